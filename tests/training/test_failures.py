"""What goes wrong in the middle of a run: in one of two processes, on the disk, or by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from portrait360.data.shards import write_shards
from portrait360.training.checkpoints import checkpoints, load_checkpoint
from support.fake_portraits import write_fake_dataset

PROGRAM = """
import dataclasses, os, signal, sys
from pathlib import Path
import torch
from support.full_disk import fill_disk
from portrait360.config import register_preset
from support.presets import TINY
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


def start(tmp_path: Path, data: Path, what: str, processes: int) -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        str(script),
        str(data),
        str(tmp_path / "run"),
        what,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def images_of_last(run: Path) -> int:
    last = checkpoints(run)[-1]
    return load_checkpoint(last).images


def test_nan_in_one_process_ends_all_and_keeps_the_last_checkpoint(tmp_path, data):
    process = start(tmp_path, data, "nan", 2)
    _, error = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "training diverged after 16 images: a loss is not finite." in error
    assert images_of_last(tmp_path / "run") == 16


def test_an_unreadable_shard_in_one_process_ends_all_with_a_sentence(tmp_path, data):
    write_shards(data, tmp_path / "s", per_shard=3, progress=False)
    damaged = max((tmp_path / "s").glob("*.tar"))
    damaged.write_bytes(b"\x01" * damaged.stat().st_size)
    process = start(tmp_path, tmp_path / "s", "shards", 2)
    _, error = process.communicate(timeout=240)
    assert process.returncode != 0
    assert f"error: {damaged} is damaged" in error
    assert not list((tmp_path / "run").glob("*.tmp*"))


def test_a_full_disk_ends_the_run_with_a_sentence_and_nothing_half_written(tmp_path, data):
    process = start(tmp_path, data, "full", 1)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "the disk is full" in error
    assert images_of_last(tmp_path / "run") == 8
    assert [file.name for file in (tmp_path / "run").iterdir() if "tmp" in file.name] == []


def test_sigterm_reaches_all_processes_and_saves(tmp_path, data):
    process = start(tmp_path, data, "sigterm", 2)
    for _ in range(2400):
        if (tmp_path / "run").is_dir() and checkpoints(tmp_path / "run"):
            break
        time.sleep(0.05)
    before = images_of_last(tmp_path / "run")
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert images_of_last(tmp_path / "run") > before
