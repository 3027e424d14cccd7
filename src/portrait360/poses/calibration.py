"""A correction of the discriminator's poses of real images, fitted to noisy pose labels (docs/training.md).

The pose head is trained on generated images. There it can infer how neck and head share a turn; real images hardly show
it, yet predictions come as if they did. Errors of noisy labels, in contrast, do not depend on what an image looks like.
So a linear map is fitted that predicts the labels from the discriminator's poses, both without their means. The labels'
bias has no part in it, and the mean stays the discriminator's own.

Labels of estimators also vary too little: they are shrunk towards the pose at rest. The sum of both turns is what
images do show, real ones like generated ones, so predictions of it have the spread of the truth. The shrinkage of the
labels is measured against it and undone.

A discriminator that was trained on images and on their centre crops predicts from each; together they are more exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.cameras import mirror_body_pose
from portrait360.types import BODY_POSE_SIZE

RIDGE = 0.01
"""Added to the variances of the predictions, as a share of their mean: keeps the map bounded."""
LEAST_SHRINK = 0.5
"""Labels are taken to vary by this part of the truth at least, and by the whole truth at most."""


@dataclass(frozen=True)
class PoseCalibration:
    """Linear maps from predicted to corrected poses."""

    windows: tuple[float, ...]
    """Sides of the centre crops that predictions are made from, in units of the image's; first 1, the whole."""
    maps: tuple[Float[Tensor, "_ 6"], ...]
    """The map for the first window, for the first two, ...: six rows for each window, then the constant."""


def fit_calibration(
    seen: Float[Tensor, "N K 6"], labels: Float[Tensor, "N 6"], windows: tuple[float, ...] = (1.0,)
) -> PoseCalibration:
    """Fit the maps for `calibrated`: least squares, in float64.

    Every image counts mirrored as well, so that the maps treat left and right alike.

    Args:
        seen: predicted poses from images and their centre crops, one per window.
        labels: noisy labels of the images.
        windows: sides of the crops, in units of the image's.
    """
    # Without means, and with the labels' shrinkage undone
    answers, wanted = seen.double(), labels.double() / label_shrink(seen[:, 0], labels)
    mean = with_mirrored(answers).mean(dim=0)
    x, y = (with_mirrored(v - v.mean(dim=0)) for v in (answers, wanted))

    # A ridge regression for the first window, the first two, ...
    maps = []
    for count in range(1, len(windows) + 1):
        some = x[:, :count].flatten(1)
        variance = some.T @ some / len(some)
        ridge = RIDGE * variance.diagonal().mean() * torch.eye(len(variance), dtype=variance.dtype)
        matrix = torch.linalg.solve(variance + ridge, some.T @ y / len(some))
        # the mean stays that of the predictions for whole images
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
    """Poses, and after them those of the mirrored images."""
    return torch.cat([poses, mirror_body_pose(poses.flatten(0, -2)).view_as(poses)])


def calibrated(poses: Float[Tensor, "B K 6"], calibration: PoseCalibration | None) -> Float[Tensor, "B 6"]:
    """The discriminator's poses of real images, corrected; without a calibration, its poses of whole images.

    Args:
        poses: its predictions for the first K of the calibration's windows.
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
