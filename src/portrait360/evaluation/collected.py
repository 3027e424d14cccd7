"""Values of every measure over the seeds, and the records of them that m.json holds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from portrait360.evaluation import measures
from portrait360.evaluation.measures import MEASURES


@dataclass
class Collected:
    """Values of every measure, one per seed: of the model, and of real images in its place."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    floors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Floors that no seed changes: mean and standard deviation."""

    def add(self, values: dict[str, float], floors: dict[str, float]) -> None:
        """Add the finite values of one seed, and those of real images."""
        for there, new in ((self.values, values), (self.floors, floors)):
            for name, value in measures.finite(new).items():
                there[name].append(value)

    def records(self) -> dict[str, dict[str, Any]]:
        """For each measure its mean and deviation over the seeds, the same of real images, unit and direction."""
        out: dict[str, dict[str, Any]] = {}
        for name, about in MEASURES.items():
            if name not in self.values:
                continue
            value, deviation = measures.spread(self.values[name])
            record: dict[str, Any] = {"value": value, "spread": deviation, "floor": None, "floor_spread": None}
            if name in self.floors:
                record["floor"], record["floor_spread"] = measures.spread(self.floors[name])
            elif name in self.known:
                record["floor"], record["floor_spread"] = self.known[name]
            out[name] = record | {"unit": about.unit, "better": about.better}
        return out
