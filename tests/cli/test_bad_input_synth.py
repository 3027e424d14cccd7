"""Bad input for `dataset synth`: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

import shutil
import signal

import pytest

from portrait360.cli.main import main
from portrait360.synthetic.source import PortraitSource
from support.bad_input import check
from support.programs import Program


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--count 0", "count must be at least 1"),
        ("--count -5", "count must be at least 1"),
        ("--resolution -64", "resolution must be"),
        ("--resolution 8", "resolution must be"),
        ("--resolution 100000", "resolution must be"),
        ("--seed -1", "seed must be at least 0"),
        ("--workers 0", "at least 1 worker"),
        ("--label-noise -1", "label noise must be"),
        ("--label-noise nan", "label noise must be"),
        ("--views 0", "views of each person"),
        ("--views 1000000", "views of each person"),
        ("--out {0}/folder.txt", r"must be a zip"),
        ("--out {0}/file/a.zip", "expected a folder"),
        ("--out {0}/other.zip", "exists already"),
    ],
)
def test_bad_numbers_and_places_for_synth(capfd, tmp_path, tiny_dataset, flags, sentence):
    (tmp_path / "file").write_text("mine")
    shutil.copy(tiny_dataset, tmp_path / "other.zip")
    values = {"--count": "2", "--resolution": "32", "--seed": "1", "--out": str(tmp_path / "new.zip")}
    flag, value = flags.format(tmp_path).split()
    values[flag] = value
    words = ["dataset", "synth", *(word for pair in values.items() for word in pair)]
    check(capfd, tmp_path, words, sentence)


def test_synth_without_npm(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PORTRAIT360_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PORTRAIT360_MAKEHUMAN", raising=False)
    out = tmp_path / "a.zip"
    words = ["dataset", "synth", "--count", "1", "--resolution", "32", "--seed", "1", "--out", str(out)]
    assert main([*words, "--workers", "1"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("error", "hint"))]
    assert "npm was not found" in lines[0]
    assert len(lines) == 2
    assert not out.exists()


@pytest.mark.slow
def test_ctrl_c_during_synth_keeps_what_is_done(tmp_path):
    out = tmp_path / "a.zip"
    words = "dataset synth --count 60 --resolution 32 --seed 1 --workers 1 --out".split()
    code = (
        "import sys, portrait360.synthetic.source as s; from support import fake_portraits;"
        "from portrait360.cli.main import entry_point; s.PortraitSource = fake_portraits.EndlessSource; entry_point()"
    )
    parts = out.with_name("a.zip.parts")
    with Program(code, *words, out) as program:
        program.until(lambda: len(list(parts.glob("part-*.zip"))) >= 3)
        program.send_signal(signal.SIGINT)
        assert program.wait() == 130
        errors = program.errors
    assert "Traceback" not in errors
    assert "images are kept" in errors
    assert "the same command" in errors
    assert not out.exists()


def test_the_source_of_synth_is_the_real_one():
    # The tests above that replace it by a quick one depend on its name.
    assert callable(PortraitSource().draw)
