"""Compile the kernels that most tests use, once for all processes of pytest.

Numba keeps compiled kernels in files but does not lock them: without this, each process that meets a kernel first in a
fresh copy of the project compiles it for itself, for a minute in all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from portrait360.config import PRESETS, Preset
from portrait360.geometry.body import load_body
from portrait360.geometry.deformation import deformation_field
from portrait360.training.state import new_state
from portrait360.training.step import training_step
from support.presets import TINY
from support.random_batches import random_batch
from support.shrunken import shrunken


def _deform() -> None:
    pose = torch.zeros(1, 6, requires_grad=True)
    deformation_field(load_body(), pose).sum().backward()


def _train(preset: Preset) -> None:
    small = shrunken(preset)
    training_step(new_state(small, 0, torch.device("cpu")), random_batch(small.model, 4))


WORK: dict[str, Callable[[], None]] = {
    "deformation": _deform,
    "tiny": lambda: _train(TINY),
    "cpu-64": lambda: _train(PRESETS["cpu-64"]),
}


def compile_kernels(locks: Path, worker: int) -> None:
    """All of them, those first that other processes of pytest do not begin with.

    Args:
        locks: a folder that the processes share.
        worker: the number of this one.
    """
    first, *rest = WORK
    for name in (first, *(reversed(rest) if worker % 2 else rest)):
        with FileLock(locks / f"{name}.lock"), torch.random.fork_rng():
            WORK[name]()
