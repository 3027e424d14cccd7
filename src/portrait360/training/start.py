"""What a run trains, and what it goes on from: random weights, given ones, or its own last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from portrait360.config import ModelConfig, Preset, check_lengths, check_model, named_preset, original_recipe
from portrait360.portrait.weights import find_weights
from portrait360.runtime.distributed import relaunched
from portrait360.training.adapt import StartingWeights, read_weights, with_pose_path_of
from portrait360.training.checkpoints import Checkpoint, RunRecord, checkpoints, newest_checkpoint
from portrait360.training.people import can_reconstruct
from portrait360.training.settings import LENGTH, resumed_preset, with_settings
from portrait360.types import CheckpointError, InputError

RECIPES = ("preset", "original")

Origin = Checkpoint | StartingWeights | None
"""What a run goes on from; None: random weights."""


def base_preset(preset: str | Preset, recipe: str) -> Preset:
    """The preset, with the published recipe if that is wanted."""
    preset = named_preset(preset) if isinstance(preset, str) else preset
    if recipe not in RECIPES:
        raise InputError(f"there is no recipe {recipe!r}.", f"Known recipes: {', '.join(RECIPES)}.")
    if recipe == "original":
        return dataclasses.replace(preset, training=original_recipe(preset.model))
    return preset


def asked_settings(preset: str | Preset, options: Mapping[str, object], kimg: float | None) -> dict[str, object]:
    """Values that the caller asks for: those of a preset that is given itself, options, and the length."""
    settings: dict[str, object] = {}
    if isinstance(preset, Preset):
        parts = (("training", preset.training), ("model", preset.model))
        settings = {f"{path}.{name}": value for path, part in parts for name, value in vars(part).items()}
    settings |= options
    if kimg is None:
        return settings
    if LENGTH in options:
        raise InputError(f"`kimg` and `{LENGTH}` are the same.", "Give one of them.")
    check_lengths(kimg, None)
    return settings | {LENGTH: float(kimg)}


def starting_point(
    base: Preset,
    settings: Mapping[str, object],
    run: RunRecord,
    out: Path,
    *,
    resume: bool,
    init: str | Path | None,
) -> tuple[Preset, Origin]:
    """What is trained, and what it goes on from."""
    # Look into the folder; what torchrun starts again resumes by itself
    if resume and init is not None:
        raise InputError("`resume` and `init` exclude each other.", "A resumed run goes on from its own checkpoint.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder.", "Choose another folder with `out`.")
    found = checkpoints(out)
    if found and relaunched():
        resume, init = True, None
    if found and not resume:
        raise InputError(f"{out} already holds a run.", "Continue it with `resume`, or choose another `out`.")

    # Continue a run as it began
    if resume:
        if not found:
            raise InputError(f"there is no checkpoint to resume in {out}.", "Leave out `resume` to start a run.")
        checkpoint = newest_checkpoint(found)
        _check_same_run(checkpoint, run)
        return resumed_preset(checkpoint.preset, settings), checkpoint

    # Start a run, from given weights or from random ones
    trained = with_settings(base, settings)
    check_model(trained.model)
    if not trained.model.posable:
        raise InputError(
            f"{trained.model.name} can be converted and used, not trained: it knows no body pose.",
            "Train `portrait-128`, or another preset with a body.",
        )
    if trained.training.reconstruction is not None:
        _check_reconstruction(trained.model, init)
    if init is None:
        return trained, None
    return _from_weights(read_weights(find_weights(init), trained.model), trained, settings)


def _check_reconstruction(model: ModelConfig, init: str | Path | None) -> None:
    """Refuse what reconstructions cannot do without."""
    if init is None:
        raise InputError(
            f"{model.name} learns styles of images from the weights of a first training.",
            "Train `cpu-64` first and give its run with `init`.",
        )
    if not can_reconstruct(model):
        raise InputError(
            f"{model.name} cannot learn by reconstruction: `training.reconstruction` is for models without background"
            " network and super-resolution, with `model.mapping_styles` and `model.discriminator.mirror_once`.",
            "Leave `training.reconstruction` out, or use `portrait-identity`.",
        )


def _check_same_run(checkpoint: Checkpoint, run: RunRecord) -> None:
    """Refuse to resume with another preset, seed or recipe than the checkpoint's."""
    path, before = checkpoint.path, checkpoint.run
    if before.preset != run.preset:
        raise CheckpointError(f"{path} belongs to preset {before.preset}, not {run.preset}.", "Give the same `preset`.")
    if before.seed != run.seed:
        raise CheckpointError(f"{path} was trained with seed {before.seed}, not {run.seed}.", "Give the same seed.")
    if before.recipe != run.recipe:
        raise CheckpointError(
            f"{path} was trained with recipe {before.recipe}, not {run.recipe}.", "Give the same `recipe`."
        )


def _from_weights(
    weights: StartingWeights, preset: Preset, settings: Mapping[str, object]
) -> tuple[Preset, StartingWeights]:
    """The preset with the weights' pose path, and the weights."""
    trained = with_pose_path_of(weights.model, preset)
    blocks = trained.model.discriminator.pose_blocks
    if settings.get("model.discriminator.pose_blocks", blocks) != blocks:
        raise InputError(
            f"`model.discriminator.pose_blocks` is {blocks} in {weights.path} and stays so.", "Leave it out."
        )
    if weights.images >= trained.training.total_kimg * 1000:
        raise InputError(
            f"{weights.path} has been trained on {weights.images} images already, which is no less than the run"
            " is to have.",
            "Give a larger `kimg`: it counts the images that these weights were trained on.",
        )
    return trained, weights
