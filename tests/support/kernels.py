"""Compile the kernels that most tests use, once for all processes of pytest.

Numba keeps compiled kernels in files but does not lock them: without this, each process that meets a kernel first in a
fresh copy of the project compiles it for itself, for a minute in all.
"""

from __future__ import annotations

PROGRAM = """
import sys
from pathlib import Path
import torch
from filelock import FileLock
from portrait360.config import PRESETS
from portrait360.geometry.body import load_body
from portrait360.geometry.deformation import deformation_field
from portrait360.training.state import new_state
from portrait360.training.step import training_step
from support.presets import TINY
from support.random_batches import random_batch
from support.shrunken import shrunken

def deform():
    pose = torch.zeros(1, 6, requires_grad=True)
    deformation_field(load_body(), pose).sum().backward()

def train(preset):
    small = shrunken(preset)
    training_step(new_state(small, 0, torch.device("cpu")), random_batch(small.model, 4))

# each process begins with what others do not begin with
locks, worker = Path(sys.argv[1]), int(sys.argv[2])
work = {"deformation": deform, "tiny": lambda: train(TINY), "cpu-64": lambda: train(PRESETS["cpu-64"])}
first, *rest = work
for name in (first, *(reversed(rest) if worker % 2 else rest)):
    with FileLock(locks / f"{name}.lock"):
        work[name]()
"""
"""Its arguments: a folder that the processes of pytest share, and the number of this one."""
