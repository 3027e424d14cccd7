"""What goes wrong in the middle of a run: in one of two processes, on the disk, or by a signal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from portrait360.data.shards import write_shards
from portrait360.training.checkpoints import checkpoints, load_checkpoint
from support.fake_portraits import write_fake_dataset
from support.programs import Program, ranks

PROGRAM = """
import dataclasses, sys
from pathlib import Path
import torch
from support.full_disk import fill_disk
from portrait360.config import register_preset
from support.presets import TINY
from support.programs import hold
from portrait360.cli.main import main
from portrait360.training import loop

training = dataclasses.replace(TINY.training, checkpoint_kimg=0.008, sheet_kimg=1000.0, keep_checkpoints=100)
register_preset(dataclasses.replace(TINY, training=training))
data, out, what = sys.argv[1:]
original = loop.training_step

def step(state, batch, ranks):
    if what == "nan" and ranks.rank == ranks.size - 1 and state.images >= 16:
        with torch.no_grad():
            next(state.discriminator.parameters()).fill_(float("nan"))
    if what == "full" and state.images == 12:
        fill_disk(20000)
    if what == "sigterm" and state.images == 12 and ranks.first:
        hold(Path(out))
    return original(state, batch, ranks)

loop.training_step = step
kimg = "100" if what == "sigterm" else "0.032"
sys.exit(main(["train", "--data", data, "--preset", "tiny", "--out", out, "--kimg", kimg]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.zip"
    write_fake_dataset(path, count=22, coarse=True)
    return path


def images_of_last(run: Path) -> int:
    last = checkpoints(run)[-1]
    return load_checkpoint(last).images


def errors_of_two(data: Path, out: Path, what: str) -> str:
    """What two processes say that both end with an error."""
    with ranks(PROGRAM, data, out, what) as programs:
        assert all(program.wait() != 0 for program in programs)
        return "\n".join(program.errors for program in programs)


def test_nan_in_one_process_ends_all_and_keeps_the_last_checkpoint(tmp_path, data):
    errors = errors_of_two(data, tmp_path / "run", "nan")
    assert "training diverged after 16 images: a loss is not finite." in errors
    assert images_of_last(tmp_path / "run") == 16


def test_an_unreadable_shard_in_one_process_ends_all_with_a_sentence(tmp_path, data):
    write_shards(data, tmp_path / "s", per_shard=3, progress=False)
    damaged = max((tmp_path / "s").glob("*.tar"))
    damaged.write_bytes(b"\x01" * damaged.stat().st_size)
    errors = errors_of_two(tmp_path / "s", tmp_path / "run", "shards")
    assert f"error: {damaged} is damaged" in errors
    assert not list((tmp_path / "run").glob("*.tmp*"))


def test_a_full_disk_ends_the_run_with_a_sentence_and_nothing_half_written(tmp_path, data):
    with Program(PROGRAM, data, tmp_path / "run", "full") as program:
        assert program.wait() == 2
        assert "the disk is full" in program.errors
    assert images_of_last(tmp_path / "run") == 8
    assert [file.name for file in (tmp_path / "run").iterdir() if "tmp" in file.name] == []


def test_sigterm_reaches_all_processes_and_saves(tmp_path, data):
    """One process has the signal; all end after the same step."""
    out = tmp_path / "run"
    with ranks(PROGRAM, data, out, "sigterm") as programs:
        programs[0].held(out)
        programs[1].send_signal(signal.SIGTERM)
        programs[0].release(out)
        assert [program.wait() for program in programs] == [0, 0]
    assert 12 < images_of_last(out) <= 20
