"""Training a model; what `portrait360 train` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from portrait360.config import Preset, check_lengths
from portrait360.training import loop


def train(
    data: str | Path,
    *,
    preset: str | Preset,
    out: str | Path,
    resume: bool = False,
    max_minutes: float | None = None,
    kimg: float | None = None,
    device: str = "auto",
    seed: int = 0,
    init: str | Path | None = None,
    recipe: str = "preset",
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Train a model on a dataset; Ctrl-C, SIGTERM and `max_minutes` save a checkpoint.

    Args:
        data: a zip, a folder, or a folder of shards.
        preset: name of the model and its recipe, such as "cpu-64", "portrait-128" or "portrait-256"; or one of yours.
        out: folder of the run: checkpoints, weights.safetensors, log.jsonl and sheets of images.
        resume: continue the run in `out`, to the same numbers as a run that was never interrupted.
        max_minutes: save and stop after so many minutes.
        kimg: thousands of images to train on in all; as the preset says when None.
        device: cpu, cuda, cuda:1, or auto for the GPU if there is one.
        seed: of the initial weights and of every random number.
        init: weights to start from instead of random ones, of the same preset or of one that it can grow from.
        recipe: "preset", or "original" for the published training.
        progress: show how far the run is.
        settings: other values for fields of the training recipe and of the model config, `batch=32`; by full name
            (`**{"model.discriminator.clamp": None}`) where several fields have the plain one.

    Returns:
        The weights file, which `PortraitModel.from_pretrained` loads, as it does the folder `out`.

    Raises:
        TypeError: a setting that no field has, or several.
        InputError: an argument is out of range, or the run folder does not fit `resume`.
        DatasetError, CheckpointError: the dataset, the checkpoint or the weights are damaged or do not fit.
        DivergenceError: a loss is not finite, or the portraits vanished; the last good checkpoint is kept.
    """
    # Check what the loop takes on trust.
    check_lengths(kimg, max_minutes)

    # Train.
    return loop.train(
        Path(data),
        preset,
        Path(out),
        resume=resume,
        max_minutes=max_minutes,
        kimg=kimg,
        device=device,
        seed=seed,
        init=None if init is None else Path(init),
        recipe=recipe,
        quiet=not progress,
        **settings,
    )
