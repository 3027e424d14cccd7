"""Measures synthetic bodies once, for `evaluation.geometry` to compare portraits with.

    python -m tools.body_statistics

rewrites `assets/body_statistics.json`. The parts of the bodies are fetched on first use (`synthetic.assets`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from portrait360.evaluation.geometry import BODY_STATISTICS, MEDIAN, SLAB, HeadMeasures, head_measures
from portrait360.runtime.files import write_json
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script
from portrait360.synthetic.source import PortraitSource

SEED = 20240
COUNT = 400


def measure_bodies(source: PortraitSource, seed: int, count: int, *, progress: bool = False) -> dict[str, Any]:
    """Head measures of the subjects 0 to count - 1 of a seed, in the canonical body pose, with and without hair.

    Hair is measured by the vertices of its cards, whose last few millimetres may be drawn transparent; subjects
    without hair count alike in both. Cuts come as often as in a dataset.

    Returns:
        What `load_body_statistics` describes.
    """
    # Measure every subject upright, with its hair and without.
    straight = {"neck": np.zeros(3), "head": np.zeros(3)}
    dressed, bare = [], []
    with show_progress("measuring", count, "bodies", visible=progress) as bar:
        for index in range(count):
            scene = source.subject(seed, index, overrides=straight)
            dressed.append(head_measures(scene.points))
            bare.append(head_measures(scene.points[~scene.soft]))
            bar.advance(1)

    # Statistics with how they were made.
    return {
        "made_by": "python -m tools.body_statistics",
        "unit": "world units; the skull's top is 0.165 above the neck joint",
        "seed": seed,
        "count": count,
        "slab": list(SLAB),
        "median": MEDIAN,
        "with_hair": _summary(dressed),
        "without_hair": _summary(bare),
    }


def _summary(measures: Iterable[HeadMeasures]) -> dict[str, dict[str, float]]:
    measures = list(measures)
    out = {}
    for field in fields(HeadMeasures):
        values = np.array([getattr(m, field.name) for m in measures], np.float64)
        low, high = np.percentile(values, [5, 95])
        numbers = {"mean": values.mean(), "std": values.std(), "p5": low, "p95": high}
        out[field.name] = {name: round(float(value), 5) for name, value in numbers.items()}
    return out


def main(out: Path = BODY_STATISTICS, seed: int = SEED, count: int = COUNT) -> None:
    """Write head measures of synthetic bodies (.json), for `evaluate` to compare portraits with."""
    write_json(out, measure_bodies(PortraitSource(), seed, count, progress=True))


if __name__ == "__main__":
    run_script(main)
