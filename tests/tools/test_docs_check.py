"""The lint of the documents finds each fault that it is for, and the checkout's documents have none of prose."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.docs_check import Checkout, broken_links, unheld_conventions, unknown_equations, wrong_commands

from tools.docs_check import REQUIRED, missing_pages, stale_tables, undocumented_keys, unlisted_names  # isort: skip
from tools.docs_prose import Page, long_lines, long_readme, several_sentences, wrong_words

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the documents, and of the code that they are compared with."""
    for name in ("docs", "tools", "examples", "src/portrait360/evaluation"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png", "__pycache__"))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def found(check, root: Path, only: str | None = None) -> list[str]:
    checkout = Checkout(root)
    if only is not None:
        checkout.pages = {only: checkout.page(only)}
    return [str(problem) for problem in check(checkout)]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


FAULTS = [
    (stale_tables, "README.md", "| 0.286 |", "| 0.186 |", "stale table: evaluation-people.json"),
    (stale_tables, "docs/results.md", "## Parity", "| a |\n|---|\n\n## Parity", "a table by hand"),
    (stale_tables, "README.md", "| time every preset here |", "| 2 s |\n| 3 s |", "a table by hand"),
    (undocumented_keys, "docs/evaluation.md", "`face_copies`", "", "the key `face_copies` is not documented"),
    (undocumented_keys, "docs/evaluation.md", "`floor_spread`", "", "the key `floor_spread` is not documented"),
    (undocumented_keys, "docs/photos.md", "`most_flat`", "", "the limit `most_flat` is not named"),
    (unlisted_names, "docs/api.md", "::: portrait360.errors.AssetError", "", "the public name AssetError is missing"),
    (unlisted_names, "README.md", "seed=7", "seed=8", "its Python is not that of docs/api.md"),
    (unlisted_names, "tools/README.md", "`parity`", "", "tools/parity.py is not listed"),
    (unlisted_names, "docs/examples.md", "06_interpolate.py", "", "06_interpolate.py is not listed"),
    (unlisted_names, "docs/lab/index.md", "2026-11-26-parity.md", "index.md", "2026-11-26-parity.md is not listed"),
    (broken_links, "docs/index.md", "(photos.md)", "(photo.md)", "the link photo.md leads nowhere"),
    (broken_links, "docs/index.md", "(photos.md)", "(photos.md#no)", "docs/photos.md has no heading #no"),
    (broken_links, "docs/index.md", "(photos.md)", "(../README.md)", "the link ../README.md leaves the site"),
    (broken_links, "tools/golden.py", "docs/lab/2026-11-26-parity.md", "docs/parity.md", "there is no docs/parity.md"),
    (wrong_commands, "README.md", "--seeds 7", "--sedes 7", "does not parse"),
    (wrong_commands, "docs/training.md", "--preset cpu-64 --out runs/c", "--out runs/c", "does not parse"),
    (wrong_commands, "docs/results.md", "-m tools.ablations", "-m tools.ablation", "there is no module tools.ablation"),
    (wrong_commands, "README.md", "make demo", "make demos", "make has no target demos"),
    (wrong_commands, "CONTRIBUTING.md", "`make docs`", "`make doc`", "make has no target doc"),
    (unknown_equations, "docs/equations.md", "### 5.2 ", "### 5.99 ", "sections are out of order"),
]


@pytest.mark.parametrize(("check", "name", "old", "new", "sentence"), FAULTS)
def test_faults_are_found(checkout, check, name, old, new, sentence):
    only = name if check is wrong_commands else None  # to parse all of them takes seconds
    before = found(check, checkout, only)
    edit(checkout / name, old, new)
    after = [problem for problem in found(check, checkout, only) if problem not in before and sentence in problem]
    assert after
    assert all(problem.startswith(f"{name}:") for problem in after)


def test_pages_of_the_site_are_there(checkout):
    assert found(missing_pages, checkout) == []
    for name in REQUIRED:
        (checkout / name).unlink()
    assert len(found(missing_pages, checkout)) == len(REQUIRED)


def test_conventions_name_tests_that_exist(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_one(): ...\n")
    page = "# Page\n\n- held\n  `tests/test_a.py::test_one`\n- not held\n- gone `tests/test_a.py::test_two`\n"
    (tmp_path / "docs" / "conventions.md").write_text(page)
    assert [problem.split(": ", 1)[1] for problem in found(unheld_conventions, tmp_path)] == [
        "no test is named: - not held",
        "there is no test tests/test_a.py::test_two",
    ]


def test_references_lead_to_sections(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "docs" / "equations.md").write_text("## 1 One\n\n### 1.2 Two\n")
    word = "equations"  # not a reference of this file
    (tmp_path / "src" / "a.py").write_text(f"# {word} 1.2 and 1\n# ({word} 1, 1.3)\n")
    assert found(unknown_equations, tmp_path) == ["src/a.py:1: docs/equations.md has no section 1.3"]


@pytest.mark.parametrize(
    ("check", "text", "lines"),
    [
        (long_readme, "word " * 700, []),
        (long_readme, "word " * 701, [1]),
        (long_lines, f"{'a' * 200}\n{'b' * 201}\n|{'c' * 300}|", [2]),
        (
            several_sentences,
            "One. Two.\nOne e.g. two, Wu et al. 2023.\n| A. B. |\n```\nA. B.\n```\n1. One.\n- A? B.",
            [1, 8],
        ),
        (wrong_words, "a picture\n`picture`\nreal pictures\nan image\n[image](picture.md)", [1, 3, 3]),
        (wrong_words, "the verdict\nthe encoder says\nlearned by heart\ncoarse labels\nat 340 kimg", [1, 2, 3, 4, 5]),
    ],
)
def test_prose(check, text, lines):
    assert [problem.line for problem in check(Page("README.md", text))] == lines


def test_lab_notes_may_tell_history():
    assert list(wrong_words(Page("docs/lab/2026-11-30-a.md", "at 340 kimg"))) == []
