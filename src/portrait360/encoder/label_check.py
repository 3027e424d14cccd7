"""Whether labels belong to their images: what `data.conventions` cannot find from numbers alone.

Two checks on a sample: whether the projected body meets the mask, which another world frame or labels in another order
break; and whether the portrait encoder predicts the yaw that the label has, which mirrored images break.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from portrait360.data.dataset import PortraitDataset
from portrait360.data.shards import PortraitShards, is_shards
from portrait360.encoder.files import load_encoder
from portrait360.geometry.body import BodyTemplate, load_body
from portrait360.geometry.cameras import yaw_pitch
from portrait360.geometry.silhouette import SIDE, body_silhouette

FEWEST = 4
"""With fewer images nothing is said."""
TRAINING_SAMPLE, INSPECTION_SAMPLE = 96, 500
"""Images that are checked: some two seconds before training, ten when a dataset is inspected."""

_LEAST_OVERLAP, _LEAST_COVERED = 0.6, 0.8
"""Intersection over union of body and mask, and share of the body in the mask, of which a body meets its mask. At least
97 of 100 synthetic portraits are above both (docs/results.md)."""
_LEAST_MET = 0.7
"""Share of bodies below which the labels are doubted; 40 to 70 % meet a mask that is not theirs."""
_NEAR = math.radians(30.0)
"""Between a label's yaw and a prediction that agrees with it."""
_SIDEWAYS = math.sin(math.radians(20.0))
"""Sine of the yaw from which an image shows one side of a person."""
_FEWEST_SIDEWAYS = 3
_CLOSER = math.radians(10.0)
"""By so much a prediction must be closer to the mirrored yaw to count as mirrored."""
_MOST_MIRRORED = 0.15
_AGREEING = 0.6
"""Share of the predictions that agree when labels are right (nearly all do) or under another reading of them."""

_READINGS = {
    (-1, 0): "the images are mirrored but their labels are not",
    (1, 180): "front and back are exchanged: the world's Z axis must point out of the face",
    (1, 90): "the world is turned by 90 degrees: its Z axis must point out of the face",
    (1, 270): "the world is turned by 90 degrees: its Z axis must point out of the face",
    (-1, 180): "left and right, and front and back, are exchanged: the world's X axis must point to the subject's left",
    (-1, 90): "the world's axes are exchanged: X must point to the subject's left and Z out of the face",
    (-1, 270): "the world's axes are exchanged: X must point to the subject's left and Z out of the face",
}
"""What is wrong where yaws are predicted as SIGN * label + DEGREES."""


@dataclass(frozen=True)
class LabelSample:
    """Some images of a dataset at `SIDE` pixels, with their labels."""

    images: UInt8[ndarray, "N S S 3"]
    masks: Bool[ndarray, "N S S"] | None
    cameras: Float[Tensor, "N 25"]
    body_poses: Float[Tensor, "N 6"]


@dataclass(frozen=True)
class LabelCheck:
    """What a sample shows of a dataset's labels."""

    images: int
    """In the sample."""
    bodies_met: float | None
    """Share of labels whose projected body meets its mask; None without masks."""
    body_overlap: float | None
    """Intersection over union of body and mask, the median."""
    yaw_agrees: float
    """Share of images whose yaw the portrait encoder predicts to 30 degrees."""
    yaw_difference_degrees: float
    """Between the label and the prediction, the median."""
    sideways: int
    """Images from at least 20 degrees off the plane of symmetry, front or back."""
    mirrored: float | None
    """Share of those whose prediction agrees better with the mirrored label; None where they are too few to say."""
    warnings: tuple[str, ...]
    """What is likely wrong, in sentences; docs/training.md says how to mend it."""

    def as_json(self) -> dict[str, Any]:
        """For summary.json."""
        return {
            name: round(value, 4) if isinstance(value, float) else list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }


def check_labels(sample: LabelSample) -> LabelCheck:
    """Compare labels with masks and with the predictions of the packaged portrait encoder."""
    # Bodies and masks
    met = overlap = None
    if sample.masks is not None:
        body = load_body()
        shares = [_shares(sample, row, body) for row in range(len(sample.cameras))]
        met = float(np.mean([over >= _LEAST_OVERLAP and covered >= _LEAST_COVERED for over, covered in shares]))
        overlap = float(np.median([over for over, _ in shares]))

    # Yaws
    yaw, predicted = yaw_pitch(sample.cameras)[0], _predicted_yaw(sample)
    difference = _between(predicted, yaw)
    sideways = yaw.sin().abs() > _SIDEWAYS
    closer = (_between(predicted, -yaw) + _CLOSER < difference)[sideways]
    mirrored = closer.float().mean().item() if len(closer) >= _FEWEST_SIDEWAYS else None
    several = int(closer.sum()) > 1  # a single one may be the encoder's mistake

    # What they mean
    warnings = _yaw_warnings(yaw, predicted, mirrored if several else None)
    if met is not None and met < _LEAST_MET:
        warnings.append(
            f"the projected body meets the mask of only {met:.0%} of the images: the labels belong to other images, or"
            " to a world with another origin, scale or focal length (that of EG3D and PanoHead has its origin in the"
            " head)."
        )
    agrees = (difference < _NEAR).float().mean().item()
    return LabelCheck(
        images=len(yaw),
        bodies_met=met,
        body_overlap=overlap,
        yaw_agrees=agrees,
        yaw_difference_degrees=math.degrees(difference.median().item()),
        sideways=int(sideways.sum()),
        mirrored=mirrored,
        warnings=tuple(warnings) if len(yaw) >= FEWEST else (),
    )


def _shares(sample: LabelSample, row: int, body: BodyTemplate) -> tuple[float, float]:
    """Intersection over union of body and mask, and the share of the body in the mask."""
    assert sample.masks is not None
    silhouette = body_silhouette(body, sample.cameras[row], sample.body_poses[row])
    mask = sample.masks[row]
    both = (silhouette & mask).sum()
    return float(both / max((silhouette | mask).sum(), 1)), float(both / max(silhouette.sum(), 1))


def _predicted_yaw(sample: LabelSample) -> Float[Tensor, " N"]:
    """On a grey background, as the encoder's training images have it most often."""
    images = sample.images.astype(np.float32) / 127.5 - 1.0
    if sample.masks is not None:
        images = images * sample.masks[..., None]
    encoder, _ = load_encoder()
    return encoder.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).camera.yaw


def _between(a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return torch.atan2((a - b).sin(), (a - b).cos()).abs()


def _yaw_warnings(yaw: Float[Tensor, " N"], predicted: Float[Tensor, " N"], mirrored: float | None) -> list[str]:
    """What the predictions say of the labels; nothing where they agree."""

    def agreeing(sign: int, degrees: int) -> float:
        return (_between(predicted, sign * yaw + math.radians(degrees)) < _NEAR).float().mean().item()

    # Another reading of all labels
    as_it_is = agreeing(1, 0)
    others = {reading: agreeing(*reading) for reading in _READINGS}
    best = max(others, key=others.__getitem__)
    if as_it_is < _AGREEING <= others[best]:
        return [
            f"{_READINGS[best]} (so read, labels agree with {others[best]:.0%} of the yaws that the portrait encoder"
            f" predicts; as they are, with {as_it_is:.0%})."
        ]

    # Some of the images, or no reading at all
    either = torch.minimum(_between(predicted, yaw), _between(predicted, -yaw)) < _NEAR
    if mirrored is not None and mirrored > _MOST_MIRRORED and either.float().mean().item() >= _AGREEING:
        return [
            f"about {mirrored:.0%} of the images are mirrored but their labels are not (the portrait encoder predicts"
            " the other side)."
        ]
    if as_it_is < _AGREEING:
        return [
            "the labels are likely those of other images (the portrait encoder predicts the yaw of the label, to 30"
            f" degrees, for only {as_it_is:.0%} of the images)."
        ]
    return []


# ---- samples ----


def warn_about_labels(path: Path) -> None:
    """Check a sample of a dataset, a zip, folder or folder of shards, before training; warnings go to standard error.

    Raises:
        DatasetError: the dataset cannot be used.
    """
    if is_shards(path):
        shards = PortraitShards(path)
        check = check_labels(shard_sample(shards, TRAINING_SAMPLE)) if len(shards) >= FEWEST else None
    else:
        dataset = PortraitDataset(path)
        check = check_labels(dataset_sample(dataset, TRAINING_SAMPLE)) if len(dataset) >= FEWEST else None
    for warning in check.warnings if check is not None else ():
        print(f"warning: labels of {path}: {warning}", file=sys.stderr)


def dataset_sample(dataset: PortraitDataset, count: int) -> LabelSample:
    """At most `count` evenly chosen images of a dataset. Raises DatasetError where one is broken."""
    rows = _evenly(len(dataset), count)
    masks = dataset.mask if dataset.has_masks else None
    return _sample(rows, dataset.image, masks, dataset.cameras, dataset.body_poses)


def shard_sample(shards: PortraitShards, count: int) -> LabelSample:
    """At most `count` images of the first shard; shards are fair parts of the whole."""
    first = shards.shards[0]
    images, masks = shards.load(0, min(SIDE, shards.resolution))
    rows = _evenly(first.count, count)
    labels = [tensor[first.start : first.start + first.count] for tensor in (shards.cameras, shards.body_poses)]
    return _sample(rows, lambda row: images[row].permute(1, 2, 0).numpy(), lambda row: masks[row, 0].numpy(), *labels)


def _evenly(count: int, wanted: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


def _sample(
    rows: Sequence[int],
    image: Callable[[int], UInt8[ndarray, "H W 3"]],
    mask: Callable[[int], UInt8[ndarray, "H W"]] | None,
    cameras: Float[Tensor, "M 25"],
    body_poses: Float[Tensor, "M 6"],
) -> LabelSample:
    masks = None if mask is None else np.stack([_small(mask(row)) >= 128 for row in rows])
    return LabelSample(np.stack([_small(image(row)) for row in rows]), masks, cameras[rows], body_poses[rows])


def _small(pixels: UInt8[ndarray, "..."]) -> UInt8[ndarray, "..."]:
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
