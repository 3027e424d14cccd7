"""What is asked of synthetic datasets, checked, and how long it takes; imports nothing heavy."""

from __future__ import annotations

import math
from pathlib import Path

from portrait360.errors import InputError

RESOLUTIONS = range(16, 2049)

SECONDS_PER_IMAGE, SECONDS_PER_PIXEL = 0.1, 1.0e-6
"""Core-seconds to render an image: for each, and for each of its pixels; 0.17 at 256² (measured on a Xeon core)."""
WORTH_SAYING = 60.0
"""Seconds from which it is said beforehand how long rendering will take."""


def check_synth_arguments(
    out: Path,
    *,
    count: int,
    resolution: int,
    seed: int,
    label_noise: float | None,
    workers: int | None,
    views: int,
) -> None:
    """Raise InputError where an argument of `dataset synth` is out of range, or `out` is no zip."""
    # Counts
    if count < 1:
        raise InputError(f"the count must be at least 1, not {count}.", "Give for instance `count=1000`.")
    if seed < 0:
        raise InputError(f"the seed must be at least 0, not {seed}.", "Give for instance `seed=1`.")
    if workers is not None and workers < 1:
        raise InputError(f"there must be at least 1 worker, not {workers}.", "Leave `workers` out for one per core.")
    if not 1 <= views <= count:
        raise InputError(f"there must be 1 to {count} views of each person, not {views}.", "Try `views=4`.")

    # Sizes and noise
    if resolution not in RESOLUTIONS:
        raise InputError(
            f"the resolution must be a side of 16 to 2048 pixels, not {resolution}.",
            "Give for instance `resolution=256`.",
        )
    if label_noise is not None and not (math.isfinite(label_noise) and 0 <= label_noise <= 90):
        raise InputError(
            f"the label noise must be 0 to 90 degrees, not {label_noise}.",
            "Give for instance `label_noise=4`.",
        )

    # The place
    if out.suffix != ".zip":
        raise InputError(f"the output must be a zip, not {out}.", "Give a name that ends in .zip.")
    if out.is_dir():
        raise InputError(f"{out} is a folder.", "Give the name of a zip file.")


def rendering_seconds(count: int, resolution: int, processes: int) -> float:
    """Roughly how long `count` images take."""
    return count * (SECONDS_PER_IMAGE + SECONDS_PER_PIXEL * resolution**2) / processes
