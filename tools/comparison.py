"""Rows of a comparison with golden numbers, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.golden import Golden, Part


@dataclass(frozen=True)
class Tolerance:
    """Largest and (where given) mean absolute error that float32 rounding explains."""

    largest: float
    mean: float = math.inf


EXACT = Tolerance(0.0)
PLAIN = Tolerance(1e-5)
"""Mapping, poses, background, sampling, losses."""
TRI_GRID = Tolerance(1.5e-5)
"""Values reach 9.6, of which 1e-6 is float32's step: the golden numbers themselves are 1.1e-5 off a float64 run."""
DENSITY = Tolerance(1.1e-4)
RENDER = Tolerance(6e-4, 1e-5)
"""Whole renders: errors of planes pass through a steep density."""
LOGIT = Tolerance(1e-6)
NORM = Tolerance(2e-3)
"""Norms of gradients, relative. Noise strengths have the least certain ones: sums of many terms that nearly cancel."""
TIE = Tolerance(1e-6)
"""How much farther away the golden choice of a triangle may be than ours, in world units."""


@dataclass(frozen=True)
class Slack:
    """Values that rounding may move farther than the tolerance: by how much, and why."""

    allowed: Tensor
    reason: str


@dataclass(frozen=True)
class Row:
    """One array compared. `stage` is the part of the system, `array` the golden name, `shape` what was compared.

    Errors are absolute and over all values; `ok` also weighs a `Slack`, which `note` then names.
    """

    file: str
    stage: str
    array: str
    shape: tuple[int, ...]
    max_error: float
    mean_error: float
    tolerance: float
    mean_tolerance: float | None
    ok: bool
    note: str = ""


class Comparison:
    """Collects rows for one golden file."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.rows: list[Row] = []

    def check(
        self,
        stage: str,
        name: str,
        value: Tensor,
        tolerance: Tolerance,
        *,
        part: Part = (),
        slack: Slack | None = None,
    ) -> None:
        """Compare our `value` with `out/<name>` if the file has it.

        `part`: what of the last axes the name stands for by itself; what the key adds is taken from that.
        """
        key = f"out/{name}"
        if key in self.golden:

            def stored(v: Tensor) -> Tensor:
                return take(take(v, part), self.golden.part(key))

            if slack is not None:
                slack = Slack(stored(slack.allowed.expand_as(value)), slack.reason)
            self.add(stage, name, stored(value), self.golden.tensor(key), tolerance, slack=slack)

    def check_stored(self, stage: str, name: str, value: Tensor, tolerance: Tolerance) -> None:
        """Like `check`, for a value that was computed for the stored part alone."""
        self.add(stage, name, value, self.golden.tensor(f"out/{name}"), tolerance)

    def add(
        self,
        stage: str,
        name: str,
        value: Tensor,
        expected: Tensor,
        tolerance: Tolerance,
        *,
        slack: Slack | None = None,
        note: str = "",
    ) -> None:
        """One row for two tensors. Other shapes, and values that are not finite, are never right."""
        # Errors, and what is left of them after the slack.
        largest = mean = excess = math.inf
        if value.shape == expected.shape:
            error = (value.detach().double() - expected.detach().double()).abs()
            largest, mean = (error.max().item(), error.mean().item()) if error.numel() else (0.0, 0.0)
            excess = largest
            if slack is not None and largest > tolerance.largest:
                excess = (error - slack.allowed.double()).max().item()
                beyond = int((error > tolerance.largest).sum())
                note = f"{beyond} of {error.numel()} values are farther away: {slack.reason}"
        else:
            note = f"ours is {list(value.shape)}, the golden one {list(expected.shape)}"

        # One row.
        self.rows.append(
            Row(
                self.golden.path.name, stage, name, tuple(expected.shape), largest, mean, tolerance.largest,
                None if tolerance.mean == math.inf else tolerance.mean,
                excess <= tolerance.largest and mean <= tolerance.mean, note,
            )
        )  # fmt: skip

    def add_error(self, stage: str, name: str, errors: Iterable[float], tolerance: Tolerance, note: str) -> None:
        """One row for errors that were measured elsewhere."""
        values = torch.tensor(list(errors) or [0.0], dtype=torch.float64)
        self.add(stage, name, values, torch.zeros_like(values), tolerance, note=note)


def take(value: Tensor, part: Part) -> Tensor:
    """The part of the last axes, or of the first ones where it begins with a whole axis."""
    if part and part[0] == slice(None):
        return value[part]
    return value[(..., *part)] if part else value


def rows_table(rows: list[Row]) -> str:
    """Markdown: every array."""
    head = "| file | stage | array | shape | max error | mean error | tolerance | |\n|---|---|---|---|---|---|---|---|"
    lines = [
        f"| {r.file} | {r.stage} | `{r.array}` | {'x'.join(map(str, r.shape)) or '1'} | {r.max_error:.1e} "
        f"| {r.mean_error:.1e} | {_allowed(r)} | {'ok' if r.ok else '**too far**'}{f'; {r.note}' if r.note else ''} |"
        for r in rows
    ]
    return "\n".join([head, *lines])


def stages_table(rows: list[Row]) -> str:
    """Markdown: the largest error of each stage in each file; below, values that only a `Slack` excuses."""
    files = list(dict.fromkeys(r.file for r in rows))
    stages: dict[str, list[Row]] = {}
    for row in rows:
        stages.setdefault(row.stage, []).append(row)
    lines = ["| stage | tolerance | " + " | ".join(files) + " |", "|---|---|" + "---|" * len(files)]
    for stage, of_stage in stages.items():
        cells = []
        for file in files:
            here = [r for r in of_stage if r.file == file]
            worst = max((r.max_error for r in here), default=None)
            cell = "" if worst is None else f"{worst:.1e}"
            cells.append(cell if all(r.ok for r in here) else f"**{cell}**")
        allowed = ", ".join(dict.fromkeys(_allowed(r) for r in of_stage))
        lines.append(f"| {stage} | {allowed} | {' | '.join(cells)} |")
    excused = [r for r in rows if r.ok and r.max_error > r.tolerance]
    notes = [f"- {r.file}, `{r.array}`: {r.max_error:.1e}; {r.note}" for r in excused]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _allowed(row: Row) -> str:
    mean = "" if row.mean_tolerance is None else f" (mean {row.mean_tolerance:.0e})"
    return f"{row.tolerance:.2g}{mean}"
