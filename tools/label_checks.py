"""How surely wrong labels are found: by their numbers, and by comparing them with their images.

    python -m tools.label_checks heldout.zip --out label-checks.json

The dataset must be right. Its labels (or images) are made wrong in known ways, group by group of its images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy import ndarray

from portrait360.data.conventions import OURS, Conventions, likely_conventions
from portrait360.data.dataset import PortraitDataset
from portrait360.encoder.label_check import FEWEST, LabelSample, check_labels, dataset_sample
from portrait360.geometry.cameras import camera_label, yaw_pitch
from portrait360.runtime.files import check_place, write_json
from portrait360.runtime.precision import processor_name
from portrait360.runtime.process import settle_process
from portrait360.runtime.progress import show_progress
from portrait360.runtime.script import run_script
from portrait360.types import InputError

_FOCAL_OF_EG3D = 4.2647
_MIRRORED, _OTHERS, _FRAME = "are mirrored but their labels are not", "those of other images", "EG3D"


def _mirrored(sample: LabelSample, step: int) -> LabelSample:
    """Every `step`-th image mirrored, its label as it was."""
    images, masks = sample.images.copy(), None if sample.masks is None else sample.masks.copy()
    images[::step] = images[::step, :, ::-1]
    if masks is not None:
        masks[::step] = masks[::step, :, ::-1]
    return dataclasses.replace(sample, images=images, masks=masks)


def _turned(sample: LabelSample, degrees: float) -> LabelSample:
    yaw, pitch = yaw_pitch(sample.cameras)
    return dataclasses.replace(sample, cameras=camera_label(yaw + math.radians(degrees), pitch))


def _shifted(sample: LabelSample) -> LabelSample:
    """Every image with the label of the image before it."""
    return dataclasses.replace(sample, cameras=sample.cameras.roll(1, 0), body_poses=sample.body_poses.roll(1, 0))


def _wide(sample: LabelSample) -> LabelSample:
    cameras = sample.cameras.clone()
    cameras[:, [16, 20]] = _FOCAL_OF_EG3D
    return dataclasses.replace(sample, cameras=cameras)


def _raised(sample: LabelSample) -> LabelSample:
    """The world's origin moved by a quarter of a head's height."""
    cameras = sample.cameras.clone()
    cameras[:, 7] += 0.06
    return dataclasses.replace(sample, cameras=cameras)


CASES: dict[str, tuple[Callable[[LabelSample], LabelSample], str]] = {
    "right": (lambda sample: sample, ""),
    "all images mirrored": (lambda sample: _mirrored(sample, 1), _MIRRORED),
    "every second image mirrored": (lambda sample: _mirrored(sample, 2), _MIRRORED),
    "every third image mirrored": (lambda sample: _mirrored(sample, 3), _MIRRORED),
    "front and back exchanged": (lambda sample: _turned(sample, 180.0), "front and back are exchanged"),
    "world turned by 90 degrees": (lambda sample: _turned(sample, 90.0), "turned by 90 degrees"),
    "labels of the image before": (_shifted, _OTHERS),
    "focal length of EG3D": (_wide, _FRAME),
    "origin moved by 0.06": (_raised, _FRAME),
}
"""What is done to a sample, and words of the warning that names it."""


def wrong_numbers(labels: ndarray, side: int) -> Iterator[tuple[Conventions, ndarray]]:
    """Right labels as every combination of other conventions has them."""
    for axes, matrix, intrinsics, pose in product(
        ("opencv", "opengl"), ("c2w", "w2c"), ("normalised", "pixels"), ("radians", "degrees")
    ):
        wrong = labels.astype(np.float64)
        poses = wrong[:, :16].reshape(-1, 4, 4) @ np.diag([1.0, -1.0, -1.0, 1.0] if axes == "opengl" else [1.0] * 4)
        poses = np.linalg.inv(poses) if matrix == "w2c" else poses
        wrong[:, :16] = poses.reshape(-1, 16)
        wrong[:, 16:22] *= side if intrinsics == "pixels" else 1.0
        wrong[:, 25:] *= 180.0 / math.pi if pose == "degrees" else 1.0
        yield Conventions(axes, matrix, intrinsics, pose), wrong


def measure(data: Path, group: int, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Shares of groups in which wrong labels are found, named, and right ones left alone.

    Args:
        data: a dataset with right labels, body poses and masks.
        group: images in a group.
        progress: called with 1 after every case of a group.

    Raises:
        DatasetError: the dataset cannot be used.
        InputError: it has fewer images than a group.
    """
    # The groups: every image in one, neighbours in different ones
    dataset = PortraitDataset(data)
    groups = len(dataset) // group
    if groups < 1 or group < FEWEST:
        raise InputError(f"{data} has too few images for groups of {group}.", f"A group has at least {FEWEST}.")
    whole = dataset_sample(dataset, len(dataset))
    rows = [torch.arange(first, len(dataset), groups)[:group] for first in range(groups)]

    # By numbers
    right_kind = {False: [0, 0], True: [0, 0]}
    for some in rows:
        labels = torch.cat([dataset.cameras[some], dataset.body_poses[some]], dim=1).numpy()
        for conventions, wrong in wrong_numbers(labels, dataset.resolution):
            counts = right_kind[conventions == OURS]
            counts[0] += likely_conventions(wrong, dataset.resolution) == conventions
            counts[1] += 1

    # By images
    cases: dict[str, Any] = {}
    for name, (change, words) in CASES.items():
        checks = []
        for some in rows:
            masks = None if whole.masks is None else whole.masks[some.numpy()]
            sample = LabelSample(whole.images[some.numpy()], masks, whole.cameras[some], whole.body_poses[some])
            checks.append(check_labels(change(sample)))
            progress(1)
        named = [any(words in warning for warning in check.warnings) for check in checks] if words else []
        cases[name] = {
            "warned": _mean([float(bool(check.warnings)) for check in checks]),
            "named": _mean([float(one) for one in named]) if named else None,
            "bodies_met": _mean([check.bodies_met or 0.0 for check in checks]),
            "yaw_agrees": _mean([check.yaw_agrees for check in checks]),
            "mirrored": _mean([check.mirrored or 0.0 for check in checks]),
        }

    # Together
    numbers = {"wrong_recognised": right_kind[False], "right_accepted": right_kind[True]}
    about = {"machine": processor_name(), "data": data.name, "images": len(dataset), "groups": groups, "group": group}
    return {"about": about, "numbers": numbers, "images": cases}


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def main(data: Annotated[Path, tyro.conf.Positional], out: Path, group: int = 48) -> None:
    """Write how often wrong labels are found and named (.json), of groups of a right dataset's images."""
    settle_process()
    check_place(out)
    groups = max(1, len(PortraitDataset(data)) // group)
    with show_progress("checking", groups * len(CASES), "groups") as bar:
        write_json(out, measure(data, group, bar.advance))


if __name__ == "__main__":
    run_script(main)
