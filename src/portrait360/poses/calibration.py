"""What the discriminator's poses of real pictures are worth, learned from coarse labels (docs/self_learning.md).

The pose head learns from generated pictures alone. There it can read how neck and head share a turn; in real pictures
little tells, but it answers as if it could. Coarse labels know better: their errors have nothing to do with what a
picture looks like. So a linear map is fitted by which the discriminator's answers predict the labels, both without
their means. The labels' bias has no part in it, and the mean stays the discriminator's own.

Labels of estimators also vary too little: they are drawn towards the pose at rest. The sum of both turns is what
pictures do tell, in real ones as in generated ones, so that answers about it are as large as the truth (a regression's
always are, where it was learned). By how much labels fall short of it is measured and made up for.

A discriminator that learned from pictures and from their middle parts answers for each; together they tell more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.cameras import mirror_body_pose
from portrait360.types import BODY_POSE_SIZE

RIDGE = 0.01
"""Added to the variances of the answers, as a part of their mean: keeps the map bounded."""
LEAST_SHRINK = 0.5
"""Labels are taken to vary by this part of the truth at least, and by the whole truth at most."""


@dataclass(frozen=True)
class PoseCalibration:
    """Linear maps from answers to poses."""

    windows: tuple[float, ...]
    """Sides of the middle parts of a picture that the answers are of, in units of its own; first 1, the whole."""
    maps: tuple[Float[Tensor, "_ 6"], ...]
    """The map for the first window, for the first two, ...: six rows for each window, then the constant."""


def fit_calibration(
    seen: Float[Tensor, "N K 6"], labels: Float[Tensor, "N 6"], windows: tuple[float, ...] = (1.0,)
) -> PoseCalibration:
    """The maps for `calibrated`, from poses that the discriminator saw in pictures and their middle parts, and the
    pictures' labels.

    Every picture counts mirrored as well, so that the maps treat left and right alike. Least squares, in float64.
    """
    answers, wanted = seen.double(), labels.double() / label_shrink(seen[:, 0], labels)
    mean = with_mirrored(answers).mean(dim=0)
    x, y = (with_mirrored(v - v.mean(dim=0)) for v in (answers, wanted))
    maps = []
    for count in range(1, len(windows) + 1):
        some = x[:, :count].flatten(1)
        variance = some.T @ some / len(some)
        ridge = RIDGE * variance.diagonal().mean() * torch.eye(len(variance), dtype=variance.dtype)
        matrix = torch.linalg.solve(variance + ridge, some.T @ y / len(some))
        # what it says on average is what the discriminator says of whole pictures
        constant = mean[0] - mean[:count].flatten() @ matrix
        maps.append(torch.cat([matrix, constant[None]]).float())
    return PoseCalibration(windows, tuple(maps))


def label_shrink(seen: Float[Tensor, "N 6"], labels: Float[Tensor, "N 6"]) -> float:
    """By how much labels vary with the truth: the slope of their sums of neck's and head's turns on the
    discriminator's, all three axes together, within LEAST_SHRINK and 1."""
    x, y = (v.double()[:, :3] + v.double()[:, 3:] for v in (seen, labels))
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    slope = float((x * y).sum() / x.square().sum().clamp_min(1e-12))
    return min(max(slope, LEAST_SHRINK), 1.0)


def with_mirrored(poses: Float[Tensor, "*N 6"]) -> Float[Tensor, "*M 6"]:
    """Poses, and after them those of the mirrored pictures."""
    return torch.cat([poses, mirror_body_pose(poses.flatten(0, -2)).view_as(poses)])


def calibrated(poses: Float[Tensor, "B K 6"], calibration: PoseCalibration | None) -> Float[Tensor, "B 6"]:
    """The discriminator's poses of real pictures, corrected; without a calibration, what it says of whole pictures.

    Args:
        poses: its answers for the first K of the calibration's windows.
        calibration: the maps.
    """
    if calibration is None:
        return poses[:, 0]
    matrix = calibration.maps[poses.shape[1] - 1].to(poses)
    return poses.flatten(1) @ matrix[:-1] + matrix[-1]


def calibration_tensors(calibration: PoseCalibration) -> dict[str, Tensor]:
    """What a file holds of it."""
    maps = {str(number): value for number, value in enumerate(calibration.maps)}
    return {"windows": torch.tensor(calibration.windows, dtype=torch.float64)} | maps


def calibration_from(tensors: dict[str, Tensor]) -> PoseCalibration:
    """The calibration of a file.

    Raises:
        ValueError: the tensors are no calibration.
    """
    windows = tensors.get("windows")
    if windows is None or windows.dim() != 1 or len(windows) != len(tensors) - 1 or not len(windows):
        raise ValueError("it has other parts")
    sides = [round(side, 6) for side in windows.tolist()]  # files may hold float32
    if sides[0] != 1.0 or sides != sorted(sides, reverse=True) or not sides[-1] > 0.0:
        raise ValueError("its windows are none")
    maps = []
    for number in range(len(sides)):
        value = tensors.get(str(number))
        shape = (BODY_POSE_SIZE * (number + 1) + 1, BODY_POSE_SIZE)
        if value is None or value.shape != shape or not bool(torch.isfinite(value).all()):
            raise ValueError(f"its map {number} is damaged")
        maps.append(value)
    return PoseCalibration(tuple(sides), tuple(maps))
