"""An evaluation for people to look at: the printed table, and a sheet of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from portrait360.evaluation.measures import MEASURES, with_spread
from portrait360.evaluation.samples import Drawn, SampleSet
from portrait360.geometry.cameras import SECTORS, yaw_pitch
from portrait360.media.plots import FAINT, FIRST, INK, PAPER, SECOND, font
from portrait360.media.sheets import tiled

_ARROWS = {"lower": "lower is better", "higher": "higher is better", "as data": "like the data is best"}
_COLUMNS, _ROWS = 12, 2
_CELL = 96


def table(result: dict[str, Any]) -> str:
    """Measures with their spread over the seeds, and the same of real pictures, in plain text; then the sectors."""
    found = result["measures"]
    width = max(len(MEASURES[name].title) for name in found) + 2
    lines = [f"{'':{width}}{'model':>19}{'real pictures':>21}"]
    group = None
    for name, record in found.items():
        about = MEASURES[name]
        if about.group != group:
            group = about.group
            lines.append(group)
        model = with_spread(record["value"], record["spread"])
        floor = "" if record["floor"] is None else with_spread(record["floor"], record["floor_spread"])
        lines.append(f"  {about.title:{width - 2}}{model:>19}{floor:>21}  {about.unit:11}{_ARROWS[about.better]}")
    lines.append("median error of the yaw that the encoder sees, degrees")
    for sector in SECTORS:
        entry = result["sectors"][sector]
        values = [entry["yaw_error"], entry["yaw_error_real"]]
        model, real = ("" if value is None else f"{value:.1f}" for value in values)
        lines.append(f"  {sector:{width - 2}}{model:>11}{'':8}{real:>13}{'':8}  {entry['pictures']} pictures")
    lines += [f"without {name}: {why}" for name, why in result["missing"].items()]
    about = result["about"]
    lines.append(
        f"{len(about['seeds'])} x {about['pictures']} pictures, {about['pairs']} pairs, {about['meshes']} meshes;"
        f" {about['weights']['model']}, {about['data']['file']}, {about['seconds']:.0f} s"
    )
    return "\n".join(lines)


def sheet(real: SampleSet, generated: Drawn) -> Image.Image:
    """Real pictures, generated ones, and where the encoder sees both taken from against where they were."""
    rows = [
        ("real pictures", real),
        ("generated, seen by the camera they were drawn for", generated.same),
        ("the same persons, seen by other cameras in other poses", generated.random),
    ]
    width, gap = _COLUMNS * _CELL, 26
    plot = 380
    picture = Image.new("RGB", (width, len(rows) * (_ROWS * _CELL + gap) + plot + gap), PAPER)
    draw = ImageDraw.Draw(picture)
    y = 0
    for title, samples in rows:
        draw.text((4, y + 4), title, INK, font(15))
        picture.paste(_grid(samples), (0, y + gap))
        y += gap + _ROWS * _CELL
    titles = ("real: seen yaw over true yaw", "generated (other cameras): seen yaw over rendered yaw")
    for place, (title, samples) in enumerate(zip(titles, (real, generated.random), strict=True)):
        _scatter(draw, (place * width // 2, y), (width // 2, plot + gap), title, samples, (FIRST, SECOND)[place])
    return picture


def _grid(samples: SampleSet) -> Image.Image:
    """The first images of a set, small."""
    shown = samples.pictures[: _COLUMNS * _ROWS].permute(0, 2, 3, 1).numpy()
    return tiled([Image.fromarray(pixels).resize((_CELL, _CELL)) for pixels in np.ascontiguousarray(shown)], _COLUMNS)


def _scatter(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size: tuple[int, int],
    title: str,
    samples: SampleSet,
    colour: tuple[int, int, int],
) -> None:
    """Seen over true yaw, both -180 to 180 degrees."""
    side = min(size[0] - 80, size[1] - 70)
    left, top = corner[0] + 60, corner[1] + 30

    def place(degrees: Tensor) -> Tensor:
        return (degrees + 180.0) / 360.0 * side

    draw.text((left, corner[1] + 6), title, INK, font(15))
    for tick in (-180, -90, 0, 90, 180):
        at = float(place(torch.tensor(float(tick))))
        draw.line([(left + at, top), (left + at, top + side)], FAINT)
        draw.line([(left, top + side - at), (left + side, top + side - at)], FAINT)
        draw.text((left + at, top + side + 6), str(tick), INK, font(13), "mt")
        draw.text((left - 6, top + side - at), str(tick), INK, font(13), "rm")
    yaw, _ = yaw_pitch(samples.camera)
    xs = left + place(yaw.rad2deg())
    ys = top + side - place(samples.seen_yaw.rad2deg())
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        draw.ellipse([(x - 1.5, y - 1.5), (x + 1.5, y + 1.5)], colour)
