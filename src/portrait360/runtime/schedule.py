"""A schedule that several trainings share."""

from __future__ import annotations

import math


def cosine_decay(done: float, last: float = 0.0) -> float:
    """Half a cosine from 1 to `last` as `done` goes from 0 to 1."""
    return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
