"""What the discriminator's poses of real pictures are worth, learned from coarse labels (docs/self_learning.md).

The pose head learns from generated pictures alone. There it can read how neck and head share a turn; in real pictures
little tells, but it answers as if it could. Coarse labels know better: their errors have nothing to do with what a
picture looks like. So a linear map is fitted by which the discriminator's answers predict the labels, both without
their means. The labels' bias has no part in it, and the mean stays the discriminator's own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.cameras import mirror_body_pose
from portrait360.types import BODY_POSE_SIZE

RIDGE = 0.01
"""Added to the variances of the answers, as a part of their mean: keeps the map bounded."""


def fit_calibration(seen: Float[Tensor, "N 6"], labels: Float[Tensor, "N 6"]) -> Float[Tensor, "7 6"]:
    """The map for `calibrated`, from poses that the discriminator saw and the labels of the same pictures.

    Every picture counts mirrored as well, so that the map treats left and right alike. Least squares, in float64.
    """
    x, y = (_with_mirrored(v.double() - v.double().mean(dim=0)) for v in (seen, labels))
    mean = _with_mirrored(seen.double()).mean(dim=0)
    variance = x.T @ x / len(x)
    ridge = RIDGE * variance.diagonal().mean() * torch.eye(BODY_POSE_SIZE, dtype=variance.dtype)
    matrix = torch.linalg.solve(variance + ridge, x.T @ y / len(x))
    return torch.cat([matrix, (mean - mean @ matrix)[None]]).float()


def _with_mirrored(poses: Float[Tensor, "N 6"]) -> Float[Tensor, "M 6"]:
    return torch.cat([poses, mirror_body_pose(poses)])


def calibrated(poses: Float[Tensor, "B 6"], calibration: Float[Tensor, "7 6"] | None) -> Float[Tensor, "B 6"]:
    """The discriminator's poses of real pictures, corrected; as they are without a calibration."""
    if calibration is None:
        return poses
    calibration = calibration.to(poses)
    return poses @ calibration[:BODY_POSE_SIZE] + calibration[BODY_POSE_SIZE]
