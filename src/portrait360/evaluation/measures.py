"""The numbers of `portrait360 evaluate`: each a function of sets of images, with its name, unit and direction.

Every function takes a `SampleSet` in the role of the generated images and, where it compares, one of real images.
Real images in the first role give the noise floor, changed ones the table of corruptions.
docs/evaluation.md has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from portrait360.evaluation.metrics import (
    circular_error,
    frechet_distance,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
    wasserstein_1d,
)
from portrait360.evaluation.samples import SampleSet
from portrait360.geometry.cameras import SECTORS, yaw_pitch, yaw_sector
from portrait360.geometry.rotations import axis_angle_to_matrix, geodesic_angle

Better = Literal["lower", "higher", "as data"]

BEHIND = math.radians(135.0)
"""Images from beyond this yaw show the back of the head."""

FRONTAL = math.radians(60.0)
"""From less than this yaw, an image shows the face."""


@dataclass(frozen=True)
class Measure:
    """What a number is. `group` orders the table."""

    group: str
    better: Better
    unit: str
    title: str


def _fidelity(suffix: str, how: str) -> dict[str, Measure]:
    group = "fidelity"
    return {
        f"frechet{suffix}": Measure(group, "lower", "", f"Fréchet distance{how}"),
        f"kernel{suffix}": Measure(group, "lower", "x1000", f"kernel distance{how}"),
        f"frechet_head{suffix}": Measure(group, "lower", "", f"Fréchet distance of heads{how}"),
        f"frechet_face{suffix}": Measure(group, "lower", "", f"Fréchet distance of faces{how}"),
        f"precision{suffix}": Measure(group, "higher", "", f"precision{how}"),
        f"recall{suffix}": Measure(group, "higher", "", f"recall{how}"),
        f"sliced_wasserstein{suffix}": Measure(group, "lower", "x1000", f"sliced Wasserstein distance{how}"),
        f"inception_frechet{suffix}": Measure(group, "lower", "", f"Fréchet distance, Inception{how}"),
        f"inception_kernel{suffix}": Measure(group, "lower", "x1000", f"kernel distance, Inception{how}"),
    }


def _faces(suffix: str, how: str) -> dict[str, Measure]:
    group = "faces"
    return {
        f"faces_found{suffix}": Measure(group, "higher", "share", f"faces found from the front{how}"),
        f"same_person{suffix}": Measure(group, "as data", "share", f"pairs of portraits taken for one person{how}"),
        f"face_copies{suffix}": Measure(
            group, "lower", "share", f"portraits nearer to another than any in the data{how}"
        ),
        f"frechet_recognition{suffix}": Measure(group, "lower", "", f"Fréchet distance of face descriptors{how}"),
    }


MEASURES: dict[str, Measure] = {
    **_fidelity("", ""),
    **_fidelity("_random", ", rendered independently"),
    **_faces("", ""),
    **_faces("_truncated", ", truncation 0.7"),
    "yaw_error": Measure("camera", "lower", "degrees", "yaw, median error"),
    "pitch_error": Measure("camera", "lower", "degrees", "pitch, median error"),
    "back_faces": Measure("camera", "lower", "share", "back-face rate"),
    "d_neck_error": Measure("body pose", "lower", "degrees", "discriminator: neck"),
    "d_head_error": Measure("body pose", "lower", "degrees", "discriminator: head"),
    "d_neck_error_real": Measure("body pose", "lower", "degrees", "predicted neck pose, held-out images"),
    "d_head_error_real": Measure("body pose", "lower", "degrees", "predicted head pose, held-out images"),
    "coarse_neck_error_real": Measure("body pose", "lower", "degrees", "noisy labels of held-out images: neck"),
    "coarse_head_error_real": Measure("body pose", "lower", "degrees", "noisy labels of held-out images: head"),
    "mean_neck_error_real": Measure("body pose", "lower", "degrees", "always the mean pose, held-out images: neck"),
    "mean_head_error_real": Measure("body pose", "lower", "degrees", "always the mean pose, held-out images: head"),
    "encoder_neck_error": Measure("body pose", "lower", "degrees", "encoder against the rendered pose: neck"),
    "encoder_head_error": Measure("body pose", "lower", "degrees", "encoder against the rendered pose: head"),
    "pose_distribution": Measure("body pose", "lower", "degrees", "distribution of poses, Wasserstein-1"),
    "coarse_pose_distribution": Measure("body pose", "lower", "degrees", "the same of the noisy labels"),
    "identity_similarity": Measure("consistency", "higher", "cosine", "same person from another side"),
    "identity_retrieval": Measure("consistency", "higher", "share", "found again from another side"),
    "reprojection_colour": Measure("consistency", "lower", "of 255", "colour, 20 degrees further"),
    "reprojection_depth": Measure("consistency", "lower", "units", "depth, 20 degrees further"),
    "reprojection_agreement": Measure("consistency", "higher", "share", "surface confirmed 20 degrees further"),
    "whole_meshes": Measure("geometry", "higher", "share", "watertight meshes of one piece"),
    "floating_matter": Measure("geometry", "lower", "share", "volume outside of the largest piece"),
    "back_of_head": Measure("geometry", "as data", "units", "back of the head behind the neck joint"),
    "head_depth": Measure("geometry", "as data", "units", "head from front to back"),
    "head_width": Measure("geometry", "as data", "units", "head from side to side"),
}
"""Every key of the `measures` of m.json, in the order of the table."""


def fidelity(real: SampleSet, samples: SampleSet, seed: int) -> dict[str, float]:
    """Distances between two sets of images. Sets should be of one size, as most values fall with it."""
    a, b = real.features.numpy(), samples.features.numpy()
    coverage = precision_recall(a, b)
    values = {
        "frechet": frechet_distance(a, b),
        "kernel": 1000.0 * kernel_distance(a, b, seed=seed).mean,
        "precision": coverage.precision,
        "recall": coverage.recall,
        "sliced_wasserstein": sliced_wasserstein(real.images.numpy(), samples.images.numpy(), seed=seed).mean,
    }
    if real.head_features is not None and samples.head_features is not None:
        values["frechet_head"] = frechet_distance(real.head_features.numpy(), samples.head_features.numpy())
    if real.face_features is not None and samples.face_features is not None:
        faces = [one.face_features[shows_face(one)] for one in (real, samples) if one.face_features is not None]
        if min(map(len, faces)) >= 2:
            values["frechet_face"] = frechet_distance(*(f.numpy() for f in faces))
    if real.further_features is not None and samples.further_features is not None:
        a, b = real.further_features.numpy(), samples.further_features.numpy()
        values["inception_frechet"] = frechet_distance(a, b)
        values["inception_kernel"] = 1000.0 * kernel_distance(a, b, seed=seed).mean
    return values


def shows_face(samples: SampleSet) -> Bool[Tensor, " N"]:
    """Whether an image was taken from the front, `FRONTAL` to either side."""
    return yaw_pitch(samples.camera)[0].abs() < FRONTAL


def angle_between(a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Unsigned difference of two directions, 0 to pi radians."""
    return torch.from_numpy(circular_error(a.numpy(), b.numpy())).float()


def camera_truth(samples: SampleSet) -> dict[str, float]:
    """Errors of the cameras that the encoder predicts, and the back-face rate."""
    yaw, pitch = yaw_pitch(samples.camera)
    error = angle_between(yaw, samples.encoder_yaw)
    values = {
        "yaw_error": _degrees(error.median()),
        "pitch_error": _degrees((pitch - samples.encoder_pitch).abs().median()),
    }
    behind = yaw.abs() > BEHIND
    if behind.any():
        values["back_faces"] = (samples.encoder_yaw[behind].abs() < FRONTAL).float().mean().item()
    return values


def sector_errors(samples: SampleSet) -> dict[str, dict[str, float | int | None]]:
    """Per sector: images, median error of the yaw and of the pitch in degrees (None of no images)."""
    yaw, pitch = yaw_pitch(samples.camera)
    sector = yaw_sector(yaw)
    error = angle_between(yaw, samples.encoder_yaw)
    tilt = (pitch - samples.encoder_pitch).abs()
    out: dict[str, dict[str, float | int | None]] = {}
    for index, name in enumerate(SECTORS):
        inside = sector == index
        count = int(inside.sum())
        out[name] = {
            "pictures": count,
            "yaw_error": _degrees(error[inside].median()) if count else None,
            "pitch_error": _degrees(tilt[inside].median()) if count else None,
        }
    return out


def rotation_errors(a: Float[Tensor, "N 6"], b: Float[Tensor, "N 6"]) -> Float[Tensor, "N 2"]:
    """Angle of the rotation between two poses' necks and heads, radians."""
    first, second = (axis_angle_to_matrix(p.double().unflatten(1, (2, 3))) for p in (a, b))
    return geodesic_angle(first, second).float()


def pose_errors(name: str, guess: Float[Tensor, "N 6"], truth: Float[Tensor, "N 6"]) -> dict[str, float]:
    """Mean angle of neck and head between two sets of poses, degrees."""
    neck, head = rotation_errors(guess, truth).mean(0)
    return {f"{name}_neck_error": _degrees(neck), f"{name}_head_error": _degrees(head)}


def pose_truth(samples: SampleSet) -> dict[str, float]:
    """Errors of the body poses that discriminator and encoder predict; nothing where the true ones are unknown."""
    if samples.body_pose is None:
        return {}
    return pose_errors("d", samples.discriminator_pose, samples.body_pose) | pose_errors(
        "encoder", samples.encoder_pose, samples.body_pose
    )


def real_pose_truth(real: SampleSet) -> dict[str, float]:
    """Errors of the discriminator's poses of real images, and of the baselines: coarse labels and the mean pose."""
    if real.body_pose is None:
        return {}
    values = pose_errors("d", real.discriminator_pose, real.body_pose)
    values |= pose_errors("mean", real.body_pose.mean(0, keepdim=True).expand_as(real.body_pose), real.body_pose)
    if real.coarse_pose is not None:
        values |= pose_errors("coarse", real.coarse_pose, real.body_pose)
        values["coarse_pose_distribution"] = pose_distance(real.coarse_pose, real.body_pose)
    return {name if name == "coarse_pose_distribution" else f"{name}_real": v for name, v in values.items()}


def pose_distance(a: Float[Tensor, "N 6"], b: Float[Tensor, "M 6"]) -> float:
    """Wasserstein-1 distance of the six numbers of body poses, each on its own, mean in degrees."""
    return math.degrees(float(wasserstein_1d(a.numpy(), b.numpy()).mean()))


def set_measures(real: SampleSet, samples: SampleSet, seed: int) -> dict[str, float]:
    """Every measure of two sets of single images."""
    values = fidelity(real, samples, seed) | camera_truth(samples) | pose_truth(samples)
    if real.body_pose is not None and samples.body_pose is not None:
        values["pose_distribution"] = pose_distance(samples.body_pose, real.body_pose)
    return values


def finite(values: dict[str, float]) -> dict[str, float]:
    """Only the numbers."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def mean_where(values: Float[Tensor, " N"], chosen: Bool[Tensor, " N"] | None = None) -> float:
    """Mean of the finite values; NaN of none."""
    kept = values[torch.isfinite(values)] if chosen is None else values[chosen & torch.isfinite(values)]
    return kept.mean().item() if len(kept) else math.nan


def _degrees(angle: Tensor) -> float:
    return math.degrees(angle.item())


def spread(values: list[float]) -> tuple[float, float]:
    """Mean, and standard deviation (n - 1) of some values; of one value the latter is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def rounded(value: float) -> str:
    """Three digits, at most four of them behind the point."""
    return f"{value:.{_places(value)}f}"


def with_spread(value: float, deviation: float) -> str:
    """Three digits of the value, and the deviation to as many places."""
    places = _places(value)
    return f"{value:.{places}f} ± {deviation:.{places}f}"


def _places(value: float) -> int:
    return min(4, max(0, 2 - math.floor(math.log10(max(abs(value), 1e-4)))))
