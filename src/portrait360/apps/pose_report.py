"""Estimated poses for people to look at: a table, and the posed body outlined over the images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image

from portrait360.apps.pose_estimate import PoseEstimate, degrees
from portrait360.config import Vector3
from portrait360.data.labelled_images import LabelledImage
from portrait360.data.overlay import draw_body
from portrait360.geometry.body import BodyTemplate
from portrait360.media.sheets import SECOND, captioned, tiled

MOST_DRAWN = 24
MOST_ROWS = 40
_COLUMNS = 4
_SIDE = 384
_PREDICTED = (235, 45, 150)
_EXACT = (40, 110, 255)
_LABEL_COLOURS = {"exact": (_EXACT, "blue"), "estimated": (SECOND, "orange"), "coarse": (SECOND, "orange")}
"""Kinds of labels in the order in which one of them is drawn beside the prediction."""


def json_text(estimates: Sequence[PoseEstimate]) -> str:
    """The estimates by name as readable JSON without a closing newline."""
    content = {estimate.name: estimate.as_json() for estimate in estimates}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def table(estimates: Sequence[PoseEstimate]) -> str:
    """Rows of camera angles and pose angles in degrees, those of the labels below the prediction, in plain text.

    Below: the mean angle between predictions and labels. After `MOST_ROWS` images it only counts the others.
    """
    # Two lines of headings
    shown = estimates[:MOST_ROWS]
    width = max(len("  estimated"), *(len(estimate.name) for estimate in shown))
    angles = f"{'nod':>8}{'turn':>7}{'tilt':>7}"
    lines = [
        f"{'':{width}}{'camera':^16}{'neck':^22}{'head':^22}".rstrip(),
        f"{'':{width}}{'yaw':>8}{'pitch':>8}{angles}{angles}",
    ]

    # A line for each image, and for each of its labels
    for estimate in shown:
        pose = _angles((estimate.neck, estimate.head))
        lines.append(f"{estimate.name:{width}}{estimate.yaw:8.1f}{estimate.pitch:8.1f}{pose}")
        for kind, label in estimate.labels.items():
            lines.append(f"{'  ' + kind:{width}}{'':16}{_angles(degrees(label))}")
    if len(estimates) > len(shown):
        lines.append(f"... and {len(estimates) - len(shown)} more")
    return "\n".join(lines + _mean_errors(estimates))


def _angles(parts: tuple[Vector3, Vector3]) -> str:
    return "".join(f"{nod:8.1f}{turn:7.1f}{tilt:7.1f}" for nod, turn, tilt in parts)


def _mean_errors(estimates: Sequence[PoseEstimate]) -> list[str]:
    lines = []
    for kind in _LABEL_COLOURS:
        errors = [estimate.errors(kind) for estimate in estimates if kind in estimate.labels]
        if errors:
            neck, head = np.mean(errors, axis=0)
            lines.append(f"mean angle to the {kind} labels: neck {neck:.1f}°, head {head:.1f}°")
    return lines


def drawn_images(count: int) -> list[int]:
    """Which of `count` images the overlay shows: at most `MOST_DRAWN`, evenly chosen."""
    return np.unique(np.linspace(0, count - 1, min(MOST_DRAWN, count)).round().astype(int)).tolist()


def overlay_sheet(
    images: Sequence[LabelledImage],
    estimates: Sequence[PoseEstimate],
    body: BodyTemplate,
    advance: Callable[[int], None],
) -> Image.Image:
    """Images with the predicted body in magenta, over the exact or else another labelled one if there is one.

    Args:
        images: `drawn_images` of them are drawn.
        estimates: of each image.
        body: what the poses pose.
        advance: called with 1 after each image.
    """
    tiles = []
    for index in drawn_images(len(images)):
        image, estimate = images[index], estimates[index]
        tile = Image.fromarray(image.read()[0]).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)

        # The label first: the prediction is drawn over it
        legend = "predicted = magenta"
        kind = next((kind for kind in _LABEL_COLOURS if kind in estimate.labels), None)
        if kind is not None:
            colour, colour_name = _LABEL_COLOURS[kind]
            tile = draw_body(tile, body, estimate.camera, estimate.labels[kind], colour)
            legend += f", {kind} = {colour_name}"
        tile = draw_body(tile, body, estimate.camera, estimate.body_pose, _PREDICTED)
        text = f"{PurePath(estimate.name).stem}   yaw {round(estimate.yaw)}°   {legend}"
        tiles.append(captioned(np.asarray(tile), _SIDE, text))
        advance(1)
    return tiled(tiles, min(_COLUMNS, len(tiles)))
