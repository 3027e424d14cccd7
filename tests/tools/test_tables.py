"""The tables of documents become what the measurements give, and only they are rewritten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tools.table_renderers import RENDERERS, bench_stages, bench_views, parity, table
from tools.tables import main

ABOUT = {"machine": "an abacus", "command": "make count", "date": "2026-01-02"}
SPEED = {"about": ABOUT, "columns": ["what", "time"], "rows": [["one", "2 s"], ["two", 3.5], ["none", None]]}
SPEED_ROWS = ["| what | time |", "|---|---|", "| one | 2 s |", "| two | 3.5 |", "| none | |"]
PROSE = "# Numbers\r\n\r\nBy hand,  \u2028 with | odd\tends.\n\n{0}\n\n<!-- another comment -->\nno newline at the end"
EMPTY = "<!-- table: speed.json -->\n<!-- end -->"


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with speed.json and results.md, whose one table is still empty."""
    (tmp_path / "speed.json").write_text(json.dumps(SPEED))
    write(tmp_path, PROSE.format(EMPTY))
    return tmp_path


def write(place: Path, text: str) -> None:
    (place / "results.md").write_bytes(text.encode())


def read(place: Path) -> str:
    return (place / "results.md").read_bytes().decode()


def run(place: Path, *flags: str) -> int:
    return main(["--document", str(place / "results.md"), "--measurements", str(place), *flags])


# ---- rewriting ----


def test_only_what_stands_between_the_markers_is_replaced(place, capsys):
    for old in ([], ["| old |", "|---|"], ["", "not even a table", ""]):
        write(place, PROSE.format("\n".join(["<!-- table: speed.json -->", *old, "<!-- end -->"])))
        assert run(place) == 0
        assert read(place) == PROSE.format("\n".join(["<!-- table: speed.json -->", *SPEED_ROWS, "<!-- end -->"]))
        assert "1 tables, rewritten: speed.json" in capsys.readouterr().out
    assert sorted(path.name for path in place.iterdir()) == ["results.md", "speed.json"]


def test_a_second_run_leaves_the_file_alone(place, capsys):
    assert run(place) == 0
    path = place / "results.md"
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    assert run(place) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert "all up to date" in capsys.readouterr().out


def test_check_names_the_stale_tables_and_changes_nothing(place, capsys):
    (place / "more.json").write_text(json.dumps(SPEED))
    write(place, PROSE.format(EMPTY))
    assert run(place) == 0
    fresh = read(place)
    write(place, f"{fresh}\n{EMPTY.replace('speed', 'more')}\n")
    stale = read(place)
    capsys.readouterr()
    assert run(place, "--check") == 1
    errors = capsys.readouterr().err
    assert "more.json" in errors
    assert "speed.json" not in errors
    assert "make results" in errors
    assert read(place) == stale
    assert run(place) == 0
    assert run(place, "--check") == 0
    (place / "speed.json").write_text(json.dumps(SPEED | {"rows": [["one", "1 s"]]}))
    assert run(place, "--check") == 1


def test_a_document_without_tables_stays(place):
    write(place, PROSE.format("none; `<!-- table: speed.json -->` inside of a line is none"))
    before = read(place)
    assert run(place) == 0
    assert read(place) == before


def test_without_a_document_all_are_rewritten(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "docs" / "lab").mkdir(parents=True)
    texts = {"README.md": "no table\n", "docs/results.md": f"{EMPTY}\n", "docs/lab/note.md": f"{EMPTY}\n"}
    for name, text in texts.items():
        (place / name).write_text(text)
    assert main(["--measurements", ".", "--check"]) == 1
    assert main(["--measurements", "."]) == 0
    assert main(["--measurements", ".", "--check"]) == 0
    filled = "\n".join(["<!-- table: speed.json -->", *SPEED_ROWS, "<!-- end -->", ""])
    assert {name: (place / name).read_text() for name in texts} == dict.fromkeys(texts, filled) | {
        "README.md": "no table\n"
    }


# ---- errors ----


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ("<!-- table: none.json -->\n<!-- end -->", r"there is no .*none\.json"),
        ("<!-- table: speed.json#graph -->\n<!-- end -->", "no renderer 'graph'"),
        ("<!-- table: speed.json -->\n", r"speed\.json is not closed"),
        ("<!-- table: speed.json -->\n<!-- table: more.json -->\n<!-- end -->", r"speed\.json is not closed"),
        ("text\n<!-- end -->", "line 6 ends a table that never began"),
        ("<!-- table: ../speed.json -->\n<!-- end -->", "names no table"),
        ("<!-- table: -->\n<!-- end -->", "names no table"),
        ("<!-- table: speed.json#parity -->\n<!-- end -->", "does not suit 'parity': list indices"),
        ("<!-- table: speed.json#bench-views -->\n<!-- end -->", "does not suit 'bench-views': it lacks 'presets'"),
    ],
)
def test_bad_markers(place, capsys, tables, sentence):
    write(place, PROSE.format(tables))
    complain(place, capsys, sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "does not suit 'plain'"),
        (b"null", "does not suit 'plain'"),
        (json.dumps(SPEED | {"about": {}}).encode(), "lacks 'machine'"),
        (json.dumps(SPEED | {"about": ABOUT | {"command": ""}}).encode(), "'command' of 'about' is empty"),
        (json.dumps({key: SPEED[key] for key in ("about", "columns")}).encode(), "lacks 'rows'"),
        (json.dumps(SPEED | {"rows": [["one"]]}).encode(), "row 1 has 1 cells, not 2"),
        (json.dumps(SPEED | {"rows": ["ab"]}).encode(), "expected a list of cells"),
        (json.dumps(SPEED | {"rows": [["one", {}]]}).encode(), "a cell is text or a number"),
        (json.dumps(SPEED | {"rows": 5}).encode(), "does not suit 'plain'"),
        (json.dumps(SPEED | {"columns": "ab"}).encode(), "expected a list of cells"),
    ],
)
def test_bad_measurements(place, capsys, content, sentence):
    (place / "speed.json").write_bytes(content)
    complain(place, capsys, sentence)


def test_bad_documents(place, capsys):
    (place / "results.md").write_bytes(b"\xff")
    complain(place, capsys, "not UTF-8")
    (place / "results.md").unlink()
    complain(place, capsys, r"there is no .*results\.md")
    (place / "results.md").mkdir()
    complain(place, capsys, "is a folder")


def complain(place: Path, capsys, sentence: str) -> None:
    """Both ways of running say `sentence` (a pattern) and a hint, and change nothing."""
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    for flags in ([], ["--check"]):
        assert run(place, *flags) == 2
        output = capsys.readouterr()
        error, hint = output.err.splitlines()
        assert error.startswith("error: ")
        assert re.search(sentence, error), error
        assert hint.startswith("hint: ")
        assert output.out == ""
        assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


# ---- renderers ----


def test_cells_come_back_from_markdown_as_they_went_in():
    cells = [
        "a|b",
        "||",
        "`code`",
        r"back\slash",
        "a  b",
        "",
        "two\nlines",
        "11.4 ± 0.3°",
        0,
        2.5,
        None,
        "<!-- end -->",
    ]
    columns = [f"c{i}" for i in range(len(cells))]
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(table(columns, [cells])))
    found = [token.content for token in tokens if token.type == "inline"][len(cells) :]
    assert found == ["a|b", "||", "`code`", r"back\slash", "a  b", "", "two lines", "11.4 ± 0.3°", "0", "2.5", "",
                     "<!-- end -->"]  # fmt: skip


def test_rows_with_markers_in_them_do_not_end_a_table(place):
    rows = [["<!-- end -->", "\n<!-- end -->\n"], ["<!-- table: x.json -->", "|"]]
    (place / "speed.json").write_text(json.dumps(SPEED | {"rows": rows}))
    assert run(place) == 0
    assert run(place, "--check") == 0


def test_bench_tables():
    exact = {"views": {"first view, posed": 8.0, "further view, canonical": 2.0, "further view, posed": 4.04},
             "peak_mib": 2000.6, "psnr_db": {"canonical": 69.2, "posed": 48.8}}  # fmt: skip
    views = {"further view, canonical": 0.5, "further view, posed": 1.0, "first view, posed": 2.004}
    fast = {"rays": 64, "stages": {"tri-grid": 0.0123, "occupancy": 0.002, "rendering, posed": 0.1}, "views": views,
            "peak_mib": 999.6, "exact": exact}  # fmt: skip
    bench = {"machine": {}, "presets": {"big": fast, "small": fast | {"exact": None}, "tiny": fast}}
    assert bench_views(bench)[2:] == [
        "| `big` | 64² | 2.00 s | 0.50 s | 1.00 s | 1000 MiB | 69 / 49 dB |",
        "| exact renderer | 64² | 8.0 s (4x) | 2.0 s (4x) | 4.0 s (4x) | 2001 MiB | |",
        "| `small` | 64² | 2.00 s | 0.50 s | 1.00 s | 1000 MiB | |",
    ]
    assert bench_stages(bench)[2:] == [f"| `{name}` | 12 | | 2 | | | 100 | | |" for name in ("big", "small")]


def test_parity_table():
    def row(file: str, stage: str, error: float, ok: bool = True, mean: float | None = None, limit: float = 1e-5):
        return {"file": file, "stage": stage, "max_error": error, "tolerance": limit, "mean_tolerance": mean, "ok": ok}

    rows = [
        row("a.npz", "mapping", 4.16e-7),
        row("a.npz", "mapping", 0.0),
        row("b.npz", "mapping", float("inf"), ok=False),
        row("a.npz", "image", 2.7e-3, mean=1e-5, limit=6e-4),
        row("b.npz", "view", 0.0, limit=0.0),
        row("a.npz", "two", 1.0, limit=1e-6),
        row("a.npz", "two", 2.0, limit=1.1e-4),
    ]
    assert parity({"rows": rows, "not_compared": ["out/x"]}) == [
        "| stage | tolerance | a | b |",
        "|---|---|---|---|",
        "| mapping | 1e-5 | 4.2e-7 | **inf** |",
        "| image | 6e-4, mean 1e-5 | 2.7e-3 | |",
        "| view | 0 | | 0 |",
        "| two | 1e-6, 1.1e-4 | 2.0e0 | |",
        "| **not compared**: out/x | | | |",
    ]


def test_names_of_renderers_can_stand_in_markers():
    assert all(re.fullmatch(r"[\w-]+", name) for name in RENDERERS)
