"""Bad input for `train`: one clear sentence, a hint, exit status 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from portrait360.cli.main import main
from support.bad_input import check
from support.damage import cut, nothing, pickled


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_dataset) -> Path:
    """A run of the preset `tiny` with one checkpoint."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", "--data", str(tiny_dataset), "--preset", "tiny", "--out", str(out), "--device", "cpu"]
    assert main([*words, "--kimg", "0.008"]) == 0
    return out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--preset gigantic", "no preset 'gigantic'"),
        ("--preset portrait-256", "needs 256"),
        ("--preset tiny-head", "converted and used, not trained"),
        ("--max-minutes 0", "--max-minutes must be above 0"),
        ("--max-minutes -5", "--max-minutes must be above 0"),
        ("--max-minutes nan", "--max-minutes must be above 0"),
        ("--kimg 0", "--kimg must be above 0"),
        ("--kimg inf", "--kimg must be above 0"),
        ("--device warp", "'warp' is not a device"),
        ("--device meta", "do not run on 'meta'"),
        ("--device cuda", "no usable CUDA GPU"),
        ("--out {0}/file", "is a file"),
        ("--out /proc/run", "no folder at /proc/run"),
        ("--resume", "no checkpoint to resume"),
        ("--init {0}/none.safetensors", "no weights file"),
        ("--init {0}/file", "not a readable safetensors file"),
    ],
)
def test_bad_flags_for_train(capfd, tmp_path, tiny_dataset, monkeypatch, flags, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").write_text("mine")
    values = {
        "--data": str(tiny_dataset),
        "--preset": "tiny",
        "--out": str(tmp_path / "out"),
        "--device": "cpu",
    }
    flag, *value = flags.format(tmp_path).split()
    values |= {flag: value[0]} if value else {}
    words = ["train", *(word for pair in values.items() for word in pair), *([] if value else [flag])]
    check(capfd, tmp_path, words, sentence)


def test_a_run_is_not_overwritten(capfd, run_folder, tiny_dataset):
    words = [
        "train",
        "--data",
        str(tiny_dataset),
        "--preset",
        "tiny",
        "--out",
        str(run_folder),
        "--device",
        "cpu",
    ]
    check(capfd, run_folder.parent, words, "already holds a run")


def test_a_run_of_another_preset_is_not_resumed(capfd, run_folder, tiny_dataset):
    other = "tiny-original"
    words = [
        "train",
        "--data",
        str(tiny_dataset),
        "--preset",
        other,
        "--out",
        str(run_folder),
        "--device",
        "cpu",
    ]
    check(capfd, run_folder.parent, [*words, "--resume"], f"belongs to preset tiny, not {other}")


@pytest.mark.parametrize("damage", [cut, nothing, pickled])
def test_a_broken_checkpoint_is_not_resumed(capfd, tmp_path, run_folder, tiny_dataset, damage):
    (checkpoint,) = run_folder.glob("checkpoint-*")
    (tmp_path / "run").mkdir()
    damage(checkpoint, tmp_path / "run" / checkpoint.name)
    words = [
        "train",
        "--data",
        str(tiny_dataset),
        "--preset",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--resume",
    ]
    check(capfd, tmp_path, [*words, "--device", "cpu"], "not a readable safetensors file")


def test_a_checkpoint_is_not_weights(capfd, tmp_path, run_folder):
    (checkpoint,) = run_folder.glob("checkpoint-*")
    words = ["generate", "--seeds", "0", "--out", str(tmp_path / "out"), "--weights", str(checkpoint)]
    check(capfd, tmp_path, words, "training checkpoint, not weights")
