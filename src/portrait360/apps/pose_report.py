"""Predicted body poses for people to look at: a table, and the posed body outlined over the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from portrait360.data.labelled_images import LabelledImage
from portrait360.data.overlay import draw_body
from portrait360.geometry.body import BodyTemplate
from portrait360.geometry.cameras import yaw_pitch
from portrait360.media.sheets import SECOND, captioned, tiled

MOST_DRAWN = 24
MOST_ROWS = 40
_COLUMNS = 4
_SIDE = 384
_PREDICTED = (235, 45, 150)
_EXACT = (40, 110, 255)
_LABEL_COLOURS = {"exact": (_EXACT, "blue"), "estimated": (SECOND, "orange"), "coarse": (SECOND, "orange")}
"""Kinds of labels in the order in which one of them is drawn beside the prediction."""


def json_text(records: dict[str, Any]) -> str:
    """The records as readable JSON without a closing newline."""
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False)


def table(records: dict[str, dict[str, Any]]) -> str:
    """Rows of camera angles and pose angles in degrees, those of the labels below the prediction, in plain text.

    Below: the mean angle between predictions and labels. After `MOST_ROWS` pictures it only counts the others.
    """
    shown = list(records)[:MOST_ROWS]
    width = max(len("  estimated"), *(len(name) for name in shown))
    angles = f"{'nod':>8}{'turn':>7}{'tilt':>7}"
    lines = [
        f"{'':{width}}{'camera':^16}{'neck':^22}{'head':^22}".rstrip(),
        f"{'':{width}}{'yaw':>8}{'pitch':>8}{angles}{angles}",
    ]
    for name in shown:
        record = records[name]
        camera = f"{record['yaw_degrees']:8.1f}{record['pitch_degrees']:8.1f}"
        lines.append(f"{name:{width}}{camera}{_angles(record)}")
        for kind, label in record.get("labels", {}).items():
            lines.append(f"{'  ' + kind:{width}}{'':16}{_angles(label)}")
    if len(records) > len(shown):
        lines.append(f"... and {len(records) - len(shown)} more")
    return "\n".join(lines + _mean_errors(records))


def _angles(entry: dict[str, Any]) -> str:
    numbers = [entry[f"{part}_degrees"] for part in ("neck", "head")]
    return "".join(f"{nod:8.1f}{turn:7.1f}{tilt:7.1f}" for nod, turn, tilt in numbers)


def _mean_errors(records: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for kind in _LABEL_COLOURS:
        known = [record["labels"][kind] for record in records.values() if kind in record.get("labels", {})]
        if known:
            neck, head = (np.mean([label[f"{part}_error_degrees"] for label in known]) for part in ("neck", "head"))
            lines.append(f"mean angle to the {kind} labels: neck {neck:.1f}°, head {head:.1f}°")
    return lines


def drawn_pictures(count: int) -> list[int]:
    """Which of `count` pictures the overlay shows: at most `MOST_DRAWN`, evenly chosen."""
    return np.unique(np.linspace(0, count - 1, min(MOST_DRAWN, count)).round().astype(int)).tolist()


def overlay_sheet(
    pictures: Sequence[LabelledImage],
    poses: Float[Tensor, "N 6"],
    body: BodyTemplate,
    advance: Callable[[int], None],
) -> Image.Image:
    """Pictures with the predicted body in magenta, over the exact or else another labelled one if there is one.

    Args:
        pictures: `drawn_pictures` of them are drawn.
        poses: predicted body poses, radians.
        body: what the poses pose.
        advance: called with 1 after each picture.
    """
    tiles = []
    for index in drawn_pictures(len(pictures)):
        picture = pictures[index]
        tile = Image.fromarray(picture.read()[0]).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        legend = "predicted = magenta"
        kind = next((kind for kind in _LABEL_COLOURS if kind in picture.body_poses), None)
        if kind is not None:
            colour, colour_name = _LABEL_COLOURS[kind]
            tile = draw_body(tile, body, picture.camera, picture.body_poses[kind], colour)
            legend += f", {kind} = {colour_name}"
        tile = draw_body(tile, body, picture.camera, poses[index], _PREDICTED)
        yaw = yaw_pitch(picture.camera[None])[0].rad2deg().item()
        text = f"{PurePath(picture.name).stem}   yaw {round(yaw)}°   {legend}"
        tiles.append(captioned(np.asarray(tile), _SIDE, text))
        advance(1)
    return tiled(tiles, min(_COLUMNS, len(tiles)))
