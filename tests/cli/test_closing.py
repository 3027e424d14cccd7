"""Every command ends with one line: what was written, where, and the next command, which is one."""

from __future__ import annotations

import json
import shlex

import pytest

from portrait360.cli.main import main, parse
from support import fake_portraits


def last_line(words: list[str], capsys) -> tuple[str, str]:
    """Run a command; what its last line says, and the next command, checked."""
    assert main(words) == 0
    said, _, following = capsys.readouterr().out.splitlines()[-1].partition("; next: ")
    program, *arguments = shlex.split(following)
    assert program == "portrait360"
    parse(arguments)
    return said, following


@pytest.fixture
def fake_people(monkeypatch) -> None:
    """`dataset synth` with people that are quick to draw, in processes that other tests do not fork theirs from."""
    from portrait360.runtime.job_processes import LocalProcess
    from portrait360.synthetic import source

    monkeypatch.setattr(LocalProcess, "START_METHOD", "spawn")

    monkeypatch.setattr(source, "PortraitSource", fake_portraits.FakeSource)


@pytest.mark.usefixtures("fake_people")
def test_synth_and_once_more(tmp_path, capsys):
    out = tmp_path / "my people.zip"
    words = [
        "dataset",
        "synth",
        "--count",
        "2",
        "--resolution",
        "32",
        "--seed",
        "1",
        "--workers",
        "1",
        "--out",
        str(out),
    ]
    said, following = last_line(words, capsys)
    assert said == f"{out}  2 images of 32x32 pixels"
    assert following.startswith("portrait360 dataset inspect ")
    said, _ = last_line(words, capsys)
    assert said == f"{out}  was finished before: 2 images of 32x32 pixels"


def test_shards(tiny_dataset, tmp_path, capsys):
    words = ["dataset", "shard", str(tiny_dataset), "--out", str(tmp_path / "shards"), "--per-shard", "6"]
    said, following = last_line(words, capsys)
    assert said == f"{tmp_path / 'shards'}  6 images in 1 shard"
    assert following.startswith(f"portrait360 train --data {tmp_path / 'shards'} ")


def test_training_that_was_stopped_and_that_came_to_its_end(tiny_dataset, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "--data", str(tiny_dataset), "--preset", "tiny", "--out", str(run), "--device", "cpu"]
    said, following = last_line([*words, "--kimg", "0.5", "--max-minutes", "0.0001"], capsys)
    shown = int(json.loads((run / "config.json").read_text())["training"]["total_kimg"] * 1000)
    assert shown == 500
    assert said.startswith(f"{run}  the run, stopped after 0")
    assert said.endswith(" of 0.5 kimg")
    assert following == shlex.join(["portrait360", *words[:-2], "--resume"])
    said, following = last_line([*words[:-2], "--resume", "--kimg", "0.024"], capsys)
    assert said == f"{run}  the trained model, after 0.024 kimg"
    assert following.startswith("portrait360 evaluate ")


def test_portraits(tiny_weights, tmp_path, capsys):
    words = ["generate", "--seeds", "1", "--no-video", "--no-mesh", "--device", "cpu", "--weights", str(tiny_weights)]
    said, following = last_line([*words, "--out", str(tmp_path / "out")], capsys)
    assert said == f"{tmp_path / 'out'}  1 portrait"
    assert f"--weights {tiny_weights}" in following


def test_long_rendering_says_so_beforehand(capsys):
    from portrait360.synthetic import job

    job._say_how_long(20_000, 128, 2)
    assert (
        capsys.readouterr().err
        == "20000 images of 128x128 pixels take about 19 minutes on 2 cores; Ctrl-C keeps what is done.\n"
    )
    job._say_how_long(100, 128, 2)
    assert capsys.readouterr().err == ""
