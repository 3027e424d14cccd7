"""Learn from coarse labels what a discriminator's poses of real pictures and of their middle parts are worth.

    python -m portrait360.training.calibrate TRAIN.zip weights.safetensors --out calibrated.safetensors

`train` does so for the weights that it writes; this is for weights that lack it, or for other pictures.
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

PICTURES, LEAST_PICTURES = 2048, 512
"""Pictures that a calibration is fitted to, and how many it takes at least."""
CLOSEST = 0.4
"""Smaller windows show the face alone; what they say adds nothing (docs/results.md)."""
_AT_ONCE = 32


def calibrate(discriminator: Discriminator, model: ModelConfig, data: TrainingData) -> PoseCalibration | None:
    """The calibration by labels of the dataset's pictures, some of them, always the same; None if they are too few.

    The windows are those in which training shows the pictures.
    """
    if len(data) < LEAST_PICTURES:
        return None
    windows = (1.0, *(data.framing.windows[level - 1] for level in closer_levels(data)))
    rows = calibration_rows(len(data))
    seen = seen_in(discriminator, model, data, rows, windows)
    return fit_calibration(seen, data.body_poses[rows], windows)


def closer_levels(data: TrainingData) -> tuple[int, ...]:
    """Zoom levels in which training shows the pictures, but for those that show the face alone."""
    windows = data.framing.windows if data.framing.zooms else ()
    return tuple(level for level, window in enumerate(windows, 1) if window >= CLOSEST)


def calibration_rows(count: int) -> Int[Tensor, " N"]:
    """The pictures of a dataset of this size that a calibration is fitted to."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:PICTURES]


def seen_in(
    discriminator: Discriminator,
    model: ModelConfig,
    data: TrainingData,
    rows: Int[Tensor, " N"],
    windows: tuple[float, ...],
) -> Float[Tensor, "N K 6"]:
    """Body poses that the discriminator sees in some of the pictures and in their middle parts, on the CPU."""
    device, grey, seen = next(discriminator.parameters()).device, model.background is None, []
    for some in rows.split(_AT_ONCE):
        there = some.to(data.images.device)
        image = data.images[there].to(device).float() / 127.5 - 1.0
        mask, cameras = data.masks[there].to(device).float() / 255.0, data.cameras[some].to(device)
        seen.append(window_poses(discriminator, model, image, mask, cameras, windows, before_grey=grey).cpu())
    return torch.cat(seen)


def load_preset_weights(path: Path) -> Weights:
    """Weights of one of this project's presets, whose recipe says how pictures are shown.

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
        data: pictures with the labels that training reads.
        weights: a weights file.
        out: the file to write.
    """
    given = load_preset_weights(weights)
    model = given.generator.config
    content = TrainingData(data, model, named_preset(model.name).training, 0, progress=True)
    found = calibrate(given.discriminator, model, content)
    if found is None:
        raise DatasetError(f"{data} holds too few pictures.", f"It takes {LEAST_PICTURES}.")
    networks = given.generator, given.discriminator
    save_weights(out, model, *networks, given.info.about, calibration=found)


if __name__ == "__main__":
    run_script(main)
