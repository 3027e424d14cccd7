"""How many images, pairs and meshes an evaluation takes, and the seeds that it repeats them for."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (0, 1, 2)
COARSE_STEP = 0.0035
"""World units between the points of meshes: heads measure the same within 0.001 as with `generate`'s step, in half the
time."""


@dataclass(frozen=True)
class Plan:
    """How much is generated for each of the SEEDS."""

    images: int
    """Portraits generated, and real images on each side of a comparison."""
    pairs: int
    meshes: int
    faces: int
    """Faces of generated portraits at each truncation, and of the data, in all."""


FULL = Plan(images=3500, pairs=170, meshes=60, faces=1000)
QUICK = Plan(images=250, pairs=32, meshes=4, faces=120)
