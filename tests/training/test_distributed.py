"""Several processes: averages, the same networks everywhere, and exact resume."""

from __future__ import annotations

import pytest
import torch

from portrait360.runtime.distributed import Ranks, join
from portrait360.training import loop
from portrait360.training.checkpoints import checkpoints, load_checkpoint
from portrait360.types import InputError
from support.fake_portraits import write_fake_dataset
from support.presets import TINY
from support.programs import run_ranks
from support.torchrun import torchrun

AVERAGES = """
import torch
from portrait360.runtime.distributed import join

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
from support.presets import register

register()
train(Path(sys.argv[1]), "tiny", Path(sys.argv[2]), resume=sys.argv[3] == "resume", kimg=float(sys.argv[4]), quiet=True)
threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads  # they may abort the process when the interpreter ends
"""


DIES_ONCE = """
import dataclasses, os, signal, sys
from pathlib import Path
from portrait360.config import register_preset
from support.presets import TINY
from portrait360.training import loop

training = dataclasses.replace(TINY.training, checkpoint_kimg=0.008, sheet_kimg=1000.0, keep_checkpoints=100)
register_preset(dataclasses.replace(TINY, training=training))
original = loop.training_step

def step(state, batch, ranks):
    first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if sys.argv[3] == "dies" and first_life and ranks.rank == 1 and state.images == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(state, batch, ranks)

loop.training_step = step
loop.train(Path(sys.argv[1]), "tiny", Path(sys.argv[2]), kimg=0.024, quiet=True)
"""

STYLES = """
import dataclasses
import torch
from portrait360.config import PRESETS
from portrait360.runtime.distributed import join
from portrait360.training.reconstruction import reconstruct
from portrait360.training.state import new_state
from support.random_batches import random_batch, with_random_people
from support.shrunken import shrunken

ranks = join(torch.device("cpu"))
preset = shrunken(PRESETS["portrait-identity"])
recipe = dataclasses.replace(preset.training.reconstruction, images=2)
preset = dataclasses.replace(preset, training=dataclasses.replace(preset.training, reconstruction=recipe))
state = new_state(preset, 0, torch.device("cpu"))
with_random_people(state, random_batch(preset.model, 4))
before = state.people.table.values.clone()
torch.manual_seed(ranks.rank)
batch = with_random_people(state, random_batch(preset.model, 4, ranks.rank), seed=ranks.rank)
reconstruct(state, batch, ranks)
moved = (state.people.table.values != before).any(dim=1)
rows = ranks.gather(batch.targets.rows)
assert moved.nonzero()[:, 0].tolist() == rows.unique().tolist(), (moved, rows)
everywhere = ranks.gather(state.people.table.values[None])
assert torch.equal(everywhere[0], everywhere[1])
ranks.wait()
ranks.leave()
"""


GRADIENTS = """
import dataclasses, sys
import torch
from portrait360.config import original_recipe
from portrait360.runtime.distributed import Ranks, join
from portrait360.training.state import new_state
from portrait360.training.passes import Batch, Labels
from portrait360.training.step import training_step
from support.presets import TINY
from support.random_batches import random_batch
from support.shrunken import shrunken

ranks = join(torch.device("cpu"))
draw = {name: getattr(torch, name) for name in ("rand", "randn")}

def mine(rows):
    return rows[ranks.rank :: ranks.size].contiguous()  # so that the groups of minibatch statistics stay together

def share_of(name):
    def drawn(*size, **options):
        size = size[0] if isinstance(size[0], (tuple, torch.Size)) else size
        return mine(draw[name](size[0] * ranks.size, *size[1:], **options))
    return drawn

preset = shrunken(TINY)
same = dict(batch=8, views_per_latent=1, swap_probability=0.0, swap_fade_kimg=0.0, background_swap_probability=0.0,
            occupancy=False, bf16=False)
base = original_recipe(preset.model) if sys.argv[1] == "original" else preset.training
preset = dataclasses.replace(preset, training=dataclasses.replace(base, **same))
state = new_state(preset, 0, torch.device("cpu"))
whole = random_batch(preset.model, 8)
labels = tuple(Labels(mine(d.camera), mine(d.coarse_pose)) for d in whole.drawn)
batch = Batch(mine(whole.image), mine(whole.mask), mine(whole.camera), mine(whole.coarse_pose), labels)
torch.rand, torch.randn = share_of("rand"), share_of("randn")
torch.randn_like = lambda x: torch.randn(x.shape)
torch.manual_seed(5)
gradients = {}
for name, optimizer in (("G", state.g_optimizer), ("D", state.d_optimizer)):
    def keep(name=name, optimizer=optimizer):
        key = f"{name}{sum(k.startswith(name) for k in gradients)}"
        parameters = optimizer.param_groups[0]["params"]
        gradients[key] = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    optimizer.step = keep
metrics = training_step(state, batch, ranks)
if ranks.first:
    torch.save(gradients | {"metrics": torch.stack([metrics[k] for k in sorted(metrics)])}, sys.argv[2])
ranks.wait()
ranks.leave()
"""


def test_averages_over_two_processes():
    run_ranks(AVERAGES)


def test_two_processes_train_and_resume_exactly(tmp_path):
    data = tmp_path / "d.zip"
    write_fake_dataset(data, coarse=True)
    run_ranks(TRAIN, data, tmp_path / "whole", "new", 0.032)
    run_ranks(TRAIN, data, tmp_path / "parts", "new", 0.016)
    run_ranks(TRAIN, data, tmp_path / "parts", "resume", 0.032)
    whole = load_checkpoint(checkpoints(tmp_path / "whole")[-1]).tensors
    last = load_checkpoint(checkpoints(tmp_path / "parts")[-1])
    parts = last.tensors
    assert last.images == 32
    assert len(whole["random/cpu"]) == 2
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


@pytest.mark.slow
def test_a_process_that_is_killed_comes_back_from_the_last_checkpoint(tmp_path):
    """torchrun starts all processes again with the same command: the end is that of a run without the failure."""
    data = tmp_path / "d.zip"
    write_fake_dataset(data, coarse=True)
    run_ranks(DIES_ONCE, data, tmp_path / "whole", "lives", TORCHELASTIC_RESTART_COUNT="0")
    torchrun(tmp_path, DIES_ONCE, data, tmp_path / "broken", "dies", restarts=1)
    ends = [load_checkpoint(checkpoints(tmp_path / name)[-1]) for name in ("whole", "broken")]
    assert [end.images for end in ends] == [24, 24]
    assert all(torch.equal(ends[0].tensors[k], ends[1].tensors[k]) for k in ends[0].tensors)


@pytest.mark.parametrize("recipe", ["preset", "original"])
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path, recipe):
    """Both networks, penalties included, with the same random numbers for the same images."""
    results = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        run_ranks(GRADIENTS, recipe, out, count=processes)
        results.append(torch.load(out, weights_only=True))
    one, two = results
    assert sorted(one) == sorted(two) == ["D0", *(["D1"] if recipe == "original" else []), "G0", "metrics"]
    for name, expected in one.items():
        assert expected.norm() > 1e-4
        assert (two[name] - expected).norm() < 1e-4 * expected.norm(), name


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = join(torch.device("cpu"))
    assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    values = {"a": torch.tensor(1.0)}
    assert ranks.average(values) is values
    assert ranks.gather(values["a"][None]).tolist() == [1.0]


def test_all_processes_move_the_styles_of_all_images():
    run_ranks(STYLES)


def test_processes_must_divide_the_batch():
    assert Ranks(0, 2).share(16) == 8
    with pytest.raises(InputError, match="cannot share"):
        Ranks(0, 3).share(16)


def test_processes_must_have_whole_portraits(tmp_path, monkeypatch):
    class Apart(Ranks):
        """One of four that never met."""

        def leave(self):
            pass

    monkeypatch.setattr(loop, "join", lambda _: Apart(0, 4))
    data = tmp_path / "d.zip"
    write_fake_dataset(data, coarse=True)
    with pytest.raises(InputError, match="2 views of each portrait"):
        loop.train(data, TINY, tmp_path / "run", quiet=True)
