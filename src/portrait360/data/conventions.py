"""Which conventions the labels of a dataset follow, found from their numbers alone, and the same labels in ours.

Labels of other people's datasets come with OpenGL axes, world-to-camera matrices, intrinsics in pixels or poses in
degrees. A model trains on them without any error, and learns nothing. Under the right conventions cameras look at the
head, stand upright and at the usual distance; under wrong ones they do not. What only images can show (mirrored images,
another world frame) is in `encoder.label_check`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from portrait360.errors import DatasetError
from portrait360.geometry.cameras import LOOK_AT, RADIUS
from portrait360.types import CAMERA_LABEL_SIZE

Axes = Literal["opencv", "opengl"]
Matrix = Literal["c2w", "w2c"]
Intrinsics = Literal["normalised", "pixels"]
PoseUnit = Literal["radians", "degrees"]


@dataclass(frozen=True)
class Conventions:
    """How label numbers are meant. The defaults are this project's (docs/conventions.md)."""

    axes: Axes = "opencv"
    """Of cameras: right, down, forward (opencv) or right, up, backward (opengl)."""
    matrix: Matrix = "c2w"
    """What the 4x4 matrix maps: camera to world (c2w) or world to camera (w2c)."""
    intrinsics: Intrinsics = "normalised"
    """Divided by the image size, or in pixels."""
    pose: PoseUnit = "radians"
    """Unit of the body poses."""

    def flags(self) -> str:
        """Those that differ from this project's, as flags of `dataset convert`."""
        return " ".join(f"--{name} {value}" for name, value in vars(self).items() if value != getattr(OURS, name))


OURS = Conventions()
_CAUSES = {
    "axes": "the camera axes are OpenGL's (right, up, backward), not OpenCV's (right, down, forward)",
    "matrix": "the matrices map world to camera, not camera to world",
    "intrinsics": "the intrinsics are in pixels, not divided by the image size",
    "pose": "the body poses are in degrees, not radians",
}

_OFF_TARGET = 25.0
"""Degrees between the optical axis and the head beyond which the head is in no portrait's image. Cameras of EG3D and
PanoHead look at their own origin and are off by up to 5."""
_ON_TARGET = 2.0
"""Below so many degrees nothing is compared: the axis goes through the head."""
_CLEARLY_BETTER = 3.0
"""Ratio of the medians from which on other conventions explain labels that are not off target as they are."""
_FAR_OFF = 60.0
"""Degrees: labels of single images that are off by more are counted."""
_MOST_FAR_OFF = 0.02
"""Share of labels that may be so far off: people make mistakes."""
_RADII = (0.75 * RADIUS, 1.35 * RADIUS)
_PIXELS_FROM = 30.0
"""Focal lengths in units of the image size are below (a view of 2 degrees), those in pixels above."""
_FOCALS = (0.3, _PIXELS_FROM)
_CENTRES = (0.02, 0.98)
_LARGEST_TURN = 2.0
"""Radians: no neck and no head turns further (115 degrees)."""
_MOST_LARGE_TURNS = 0.05


def converted(
    labels: Float[ndarray, "N L"], conventions: Conventions, side: float | int, *, dtype: type = np.float64
) -> Float[ndarray, "N L"]:
    """Labels that follow `conventions`, in this project's.

    Args:
        labels: (N, 25 or 31), see `data.labels`.
        conventions: what they follow.
        side: of the image that intrinsics in pixels belong to, in pixels.
        dtype: of the result.
    """
    # Matrices
    result = labels.astype(np.float64)
    pose = result[:, :16].reshape(-1, 4, 4)
    if conventions.matrix == "w2c":
        rotation = pose[:, :3, :3].transpose(0, 2, 1).copy()
        position = -(rotation @ pose[:, :3, 3:])
        pose[:, :3, :3], pose[:, :3, 3:] = rotation, position
    if conventions.axes == "opengl":
        pose[:, :3, 1:3] *= -1.0  # up and backward to down and forward
    result[:, :16] = pose.reshape(-1, 16)

    # Intrinsics (the two upper rows) and body poses
    if conventions.intrinsics == "pixels":
        result[:, 16:22] /= side
    if conventions.pose == "degrees":
        result[:, CAMERA_LABEL_SIZE:] = np.radians(result[:, CAMERA_LABEL_SIZE:])
    return result.astype(dtype)


def likely_conventions(labels: Float[ndarray, "N L"], side: float | int) -> Conventions:
    """The conventions under which labels make most sense; ours where nothing speaks against them.

    Args:
        labels: (N, 25 or 31).
        side: of the images in pixels.
    """
    # Axes and matrix: the first under which cameras look at an upright head, as few changes as possible
    choices = [Conventions(axes, matrix) for matrix, axes in product(("c2w", "w2c"), ("opencv", "opengl"))]
    errors = [float(np.median(off_target(converted(labels, choice, side)))) for choice in choices]
    ours, best = errors[0], min(errors)
    found = choices[next(i for i, error in enumerate(errors) if error <= best + 0.5)]
    explained = best <= _OFF_TARGET and (ours > _OFF_TARGET or ours > max(_ON_TARGET, _CLEARLY_BETTER * best))
    found = found if explained else OURS

    # Intrinsics and body poses
    pixels = float(np.median(labels[:, 16])) > _PIXELS_FROM
    turns = _turns(labels)
    degrees = turns.size > 0 and float((turns > _LARGEST_TURN).mean()) > _MOST_LARGE_TURNS
    degrees = degrees and float((np.radians(turns) > _LARGEST_TURN).mean()) <= _MOST_LARGE_TURNS
    return Conventions(
        found.axes, found.matrix, "pixels" if pixels else "normalised", "degrees" if degrees else "radians"
    )


def off_target(labels: Float[ndarray, "N L"]) -> Float[ndarray, " N"]:
    """Degrees between each camera's optical axis and the head joint, 180 more where it stands on its head."""
    pose = labels[:, :16].reshape(-1, 4, 4)
    down, forward, position = (pose[:, :3, column] for column in (1, 2, 3))
    towards = np.array(LOOK_AT) - position
    cosine = (forward * towards).sum(1) / np.maximum(np.linalg.norm(towards, axis=1), 1e-9)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))) + np.where(down[:, 1] > 0, 180.0, 0.0)


def check_conventions(path: Path, labels: Float[ndarray, "N L"], names: Sequence[str], side: int) -> None:
    """Refuse labels that do not follow this project's conventions, naming the likely cause.

    Args:
        path: the dataset, for messages.
        labels: (N, 25 or 31).
        names: of the images.
        side: of the images in pixels.

    Raises:
        DatasetError: other conventions explain the labels, whose hint is the command that converts them; or cameras do
            not look at the head, stand elsewhere, or have impossible intrinsics, or body poses turn too far.
    """
    found = likely_conventions(labels, side)
    if found != OURS:
        raise DatasetError(
            f"labels of {path} do not follow the conventions: {causes(found)}.",
            f"Convert them: `{convert_command(path, found)}`.",
        )
    problem = remaining_problem(labels, names)
    if problem is not None:
        raise DatasetError(f"labels of {path} do not follow the conventions: {problem}.", "See docs/conventions.md.")


def causes(conventions: Conventions) -> str:
    """What differs from this project's conventions, in words."""
    different = [cause for name, cause in _CAUSES.items() if getattr(conventions, name) != getattr(OURS, name)]
    return "; ".join(different)


def convert_command(path: Path, conventions: Conventions, *, masks: str | None = None) -> str:
    """The command that converts a dataset of these conventions, with separate masks if so, into a file beside it."""
    path = Path(path)
    stem = path.stem if path.suffix.lower() == ".zip" else path.name
    flags = [conventions.flags(), "" if masks is None else f"--masks {shlex.quote(masks)}"]
    words = [shlex.quote(str(path)), *flags, f"--out {shlex.quote(str(path.with_name(f'{stem}-converted.zip')))}"]
    return " ".join(["portrait360 dataset convert", *filter(None, words)])


def remaining_problem(labels: Float[ndarray, "N L"], names: Sequence[str]) -> str | None:
    """What is wrong with labels although no other conventions explain them, in words; None for good ones."""
    return _camera_problem(labels, names) or _intrinsics_problem(labels) or _pose_problem(labels)


def _camera_problem(labels: Float[ndarray, "N L"], names: Sequence[str]) -> str | None:
    # Most cameras
    off = off_target(labels)
    if np.median(off) > _OFF_TARGET:
        upside_down = (labels[:, 5] > 0).mean()
        if upside_down > 0.25 and np.median(np.where(off >= 180.0, off - 180.0, off)) <= _OFF_TARGET:
            return f"{upside_down:.0%} of the cameras stand on their heads; the world's Y axis must point up"
        return f"cameras look past the head at {LOOK_AT}, by {np.median(off):.0f} degrees in the median"
    radius = float(np.median(np.linalg.norm(labels[:, [3, 7, 11]], axis=1)))
    if not _RADII[0] <= radius <= _RADII[1]:
        return f"cameras stand {radius:.3g} units from the origin, not {RADIUS}; the world has another scale or origin"

    # Single ones
    far: Bool[ndarray, " N"] = off > _FAR_OFF
    if far.mean() > _MOST_FAR_OFF:
        first = names[int(np.argmax(far))]
        return f"{int(far.sum())} of {len(far)} cameras look past the head or stand on their heads, for example {first}"
    return None


def _intrinsics_problem(labels: Float[ndarray, "N L"]) -> str | None:
    focal, centre = np.median(labels[:, [16, 20]]), np.median(labels[:, [18, 21]], axis=0)
    if not _FOCALS[0] <= focal <= _FOCALS[1]:
        return f"the focal length is {focal:.3g} image sizes, expected about 6.5"
    if not ((centre >= _CENTRES[0]) & (centre <= _CENTRES[1])).all():
        return f"the principal point lies at ({centre[0]:.3g}, {centre[1]:.3g}), expected about (0.5, 0.5)"
    return None


def _pose_problem(labels: Float[ndarray, "N L"]) -> str | None:
    turns = _turns(labels)
    share = float((turns > _LARGEST_TURN).mean()) if turns.size else 0.0
    if share <= _MOST_LARGE_TURNS:
        return None
    return f"{share:.0%} of the body poses turn neck or head by more than {np.degrees(_LARGEST_TURN):.0f} degrees"


def _turns(labels: Float[ndarray, "N L"]) -> Float[ndarray, " M"]:
    """The larger of neck's and head's angles, in the labels' own unit; empty for labels without body poses."""
    if labels.shape[1] == CAMERA_LABEL_SIZE:
        return np.zeros(0)
    vectors = labels[:, CAMERA_LABEL_SIZE:].astype(np.float64).reshape(-1, 2, 3)
    return np.linalg.norm(vectors, axis=2).max(axis=1)
