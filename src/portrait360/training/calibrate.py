"""Calibrate a discriminator's predicted poses of real images and of their centre crops by noisy pose labels.

    python -m portrait360.training.calibrate TRAIN.zip weights.safetensors --out calibrated.safetensors

`train` does so for the weights that it writes; this is for weights that lack it, or for other images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.config import ModelConfig, named_preset
from portrait360.model.discriminator import Discriminator
from portrait360.portrait.weights import Weights, load_weights, save_weights
from portrait360.poses.calibration import PoseCalibration, fit_calibration
from portrait360.poses.windows import window_poses
from portrait360.runtime.script import run_script
from portrait360.training.data import TrainingData
from portrait360.types import CheckpointError, DatasetError, InputError

IMAGES, LEAST_IMAGES = 2048, 512
"""Images that a calibration is fitted to, and how many it takes at least."""
CLOSEST = 0.4
"""Smaller windows show the face alone; predictions from them add nothing (docs/lab/2026-11-27-learning-poses.md)."""
_AT_ONCE = 32


def calibrate(discriminator: Discriminator, model: ModelConfig, data: TrainingData) -> PoseCalibration | None:
    """The calibration by labels of some of the dataset's images, always the same; None if they are too few.

    The windows are those in which training shows the images.
    """
    if len(data) < LEAST_IMAGES:
        return None
    windows = (1.0, *(data.framing.windows[level - 1] for level in closer_levels(data)))
    rows = calibration_rows(len(data))
    predicted = predicted_poses(discriminator, model, data, rows, windows)
    return fit_calibration(predicted, data.body_poses[rows], windows)


def closer_levels(data: TrainingData) -> tuple[int, ...]:
    """Zoom levels in which training shows the images, but for those that show the face alone."""
    windows = data.framing.windows if data.framing.zooms else ()
    return tuple(level for level, window in enumerate(windows, 1) if window >= CLOSEST)


def calibration_rows(count: int) -> Int[Tensor, " N"]:
    """The images of a dataset of this size that a calibration is fitted to."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:IMAGES]


def predicted_poses(
    discriminator: Discriminator,
    model: ModelConfig,
    data: TrainingData,
    rows: Int[Tensor, " N"],
    windows: tuple[float, ...],
) -> Float[Tensor, "N K 6"]:
    """Predicted body poses of some of the images and of their centre crops, on the CPU."""
    device, on_grey, predicted = next(discriminator.parameters()).device, model.background is None, []
    for some in rows.split(_AT_ONCE):
        image, mask, cameras = data.kept(some, device)
        poses = window_poses(discriminator, model, image, mask, cameras, windows, on_grey=on_grey)
        predicted.append(poses.cpu())
    return torch.cat(predicted)


def load_preset_weights(path: Path) -> Weights:
    """Weights of one of this project's presets, whose recipe says how images are shown.

    Raises:
        CheckpointError: not a weights file, or of another model.
    """
    given = load_weights(path)
    model = given.generator.config
    try:
        named_preset(model.name)
    except InputError as error:
        raise CheckpointError(f"{path} is not of one of the presets.", error.hint) from error
    if model.original_bugs.camera_unmirrored:
        raise CheckpointError(f"{path} is not of one of the presets.", "Weights of the original keep their poses.")
    return given


def main(
    data: Annotated[Path, tyro.conf.Positional],
    weights: Annotated[Path, tyro.conf.Positional],
    out: Path,
) -> None:
    """Write weights with a calibration by the labels of a dataset.

    Args:
        data: images with the labels that training reads.
        weights: a weights file.
        out: the file to write.
    """
    given = load_preset_weights(weights)
    model = given.generator.config
    content = TrainingData(data, model, named_preset(model.name).training, 0, progress=True)
    found = calibrate(given.discriminator, model, content)
    if found is None:
        raise DatasetError(f"{data} holds too few images.", f"It takes {LEAST_IMAGES}.")
    networks = given.generator, given.discriminator
    save_weights(out, model, *networks, given.info.about, calibration=found)


if __name__ == "__main__":
    run_script(main)
