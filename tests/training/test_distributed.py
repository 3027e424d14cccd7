"""Several processes: averages, the same networks everywhere, and exact resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fake_portraits import write_fake_dataset
from portrait360.checkpoint import checkpoints, load_checkpoint
from portrait360.training.distributed import Ranks, join
from portrait360.types import InputError

AVERAGES = """
import torch
from portrait360.training.distributed import join

ranks = join(torch.device("cpu"))
layer = torch.nn.Linear(2, 1)
layer.weight.grad = torch.full((1, 2), float(ranks.rank))
layer.bias.grad = torch.full((1,), 10.0 * ranks.rank)
ranks.average_gradients([layer])
assert layer.weight.grad.tolist() == [[0.5, 0.5]], layer.weight.grad
assert layer.bias.grad.tolist() == [5.0]
assert float(ranks.average({"a": torch.tensor(4.0 * ranks.rank), "b": torch.tensor(1.0)})["a"]) == 2.0
assert ranks.gather(torch.full((2, 3), float(ranks.rank)))[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
torch.manual_seed(ranks.rank)
states = ranks.random_states()
assert len(states) == 2 and not torch.equal(states[0], states[1])
ranks.wait()
ranks.leave()
"""

TRAIN = """
import sys
from pathlib import Path
from portrait360.training.loop import train
train(Path(sys.argv[1]), "tiny", Path(sys.argv[2]), resume=sys.argv[3] == "resume", kimg=float(sys.argv[4]), quiet=True)
"""


def launch(tmp_path: Path, code: str, *arguments: object) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        str(script),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_averages_over_two_processes(tmp_path):
    launch(tmp_path, AVERAGES)


def test_two_processes_train_and_resume_exactly(tmp_path):
    data = tmp_path / "d.zip"
    write_fake_dataset(data, coarse=True)
    launch(tmp_path, TRAIN, data, tmp_path / "whole", "new", 0.032)
    launch(tmp_path, TRAIN, data, tmp_path / "parts", "new", 0.016)
    launch(tmp_path, TRAIN, data, tmp_path / "parts", "resume", 0.032)
    _, whole, _ = load_checkpoint(checkpoints(tmp_path / "whole")[-1])
    _, parts, progress = load_checkpoint(checkpoints(tmp_path / "parts")[-1])
    assert progress["images"] == 32
    assert len(whole["random/cpu"]) == 2
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join(torch.device("cpu"))
    assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    values = {"a": torch.tensor(1.0)}
    assert ranks.average(values) is values
    assert ranks.gather(values["a"][None]).tolist() == [1.0]


def test_processes_must_divide_the_batch():
    assert Ranks(0, 2).share(16) == 8
    with pytest.raises(InputError, match="cannot share"):
        Ranks(0, 3).share(16)
