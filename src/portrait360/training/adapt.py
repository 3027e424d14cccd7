"""Weights of one model as the start of another: grown, cut, widened, or with parts that it lacks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from portrait360.config import ModelConfig, Preset
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.portrait.weights import read_weights_file
from portrait360.runtime.tensors import fill_module
from portrait360.training.passes import TrainingState
from portrait360.types import CheckpointError


@dataclass(frozen=True)
class StartingWeights:
    """Networks of a weights file and the number of images that they were trained on."""

    path: Path
    model: ModelConfig
    tensors: dict[str, Tensor]
    images: int


def read_weights(path: Path, model: ModelConfig) -> StartingWeights:
    """Weights to start a run from: of the same model, or of one that `can_start_from` accepts.

    Raises:
        CheckpointError: not a weights file, damaged, of a model that does not fit, or with a body of its own.
    """
    file = read_weights_file(path)
    if file.body is not None:
        raise CheckpointError(
            f"{path} deforms with a body of its own ({file.body.name}), but training uses the packaged one.",
            "Convert the original weights once more, without `body`.",
        )
    if not can_start_from(file.model, model):
        raise CheckpointError(
            f"{path} belongs to {file.model.name}, not {model.name} as it is set here.",
            "Give its `preset` and the values of `model` that it was trained with.",
        )
    images = file.about.get("images", 0)
    return StartingWeights(Path(path), file.model, file.tensors, images if isinstance(images, int) else 0)


def with_pose_path_of(origin: ModelConfig, preset: Preset) -> Preset:
    """The preset with as many blocks of a pose path as the model that a run goes on from.

    A discriminator with fewer blocks than that model's has no room for it, and keeps none.
    """
    cut = len(preset.model.discriminator.channels) < len(origin.discriminator.channels)
    blocks = 0 if cut else origin.discriminator.pose_blocks
    return dataclasses.replace(preset, model=preset.model.with_pose_blocks(blocks))


def can_start_from(given: ModelConfig, model: ModelConfig) -> bool:
    """Whether `model` can be trained from weights of `given`.

    It may have more or fewer blocks for larger tri-grids and, without super-resolution, for larger images; a wider last
    block of the tri-grid synthesis; a warp that `given` lacks; and styles to choose from in place of its mapping
    network. Names, numbers of rays and samples and the symmetric features do not matter: no weight depends on them. Nor
    does a pose path: a run takes it over (`with_pose_path_of`).
    """
    # The discriminator's first width may be repeated, or its first blocks be left out
    known, wanted = given.discriminator.channels, model.discriminator.channels
    doublings = len(wanted) - len(known)
    if doublings != 0 and (given.superresolution is not None or model.superresolution is not None):
        return False
    if wanted != ((known[0],) * doublings + known if doublings >= 0 else known[-doublings:]):
        return False

    # Blocks of the tri-grid synthesis that both have are as wide; the last one may be wider now
    blocks = min(len(given.synthesis.channels), len(model.synthesis.channels))
    old, new = given.synthesis.channels[:blocks], model.synthesis.channels[:blocks]
    if old[:-1] != new[:-1] or old[-1] > new[-1] or (old != new and blocks < len(model.synthesis.channels)):
        return False

    # All else is the same, but for parts that are new
    return given == dataclasses.replace(
        model,
        name=given.name,
        resolution=given.resolution,
        raw_resolution=given.raw_resolution,
        symmetric_features=given.symmetric_features,
        synthesis=dataclasses.replace(model.synthesis, channels=given.synthesis.channels),
        discriminator=dataclasses.replace(
            model.discriminator, channels=known, pose_blocks=given.discriminator.pose_blocks
        ),
        render=dataclasses.replace(model.render, samples=given.render.samples),
        warp=given.warp if given.warp is None else model.warp,
        mapping_styles=given.mapping_styles and model.mapping_styles,
    )


def widened(fresh: Tensor, known: Tensor) -> Tensor:
    """A weight or bias with the known one in its first rows and columns.

    New rows are those of `fresh`. Known rows get nothing from new inputs; what they get from known ones is scaled as
    equalised learning rates (equations 2.2) and toRGB's gain want it for more inputs.
    """
    wide = fresh.clone()
    if fresh.dim() >= 2 and fresh.shape[1] > known.shape[1]:
        wide[: known.shape[0], known.shape[1] :] = 0.0
        known = known * math.sqrt(fresh.shape[1] / known.shape[1])
    wide[tuple(slice(size) for size in known.shape)] = known
    return wide


def _generator_tensors(generator: Generator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `G_ema/` for this generator: those of the file, wider where it is, fresh where it has new parts.

    New blocks add nothing to the tri-grid at first.
    """
    # The file's, without blocks for larger tri-grids
    prefix, sides = "G_ema/backbone.synthesis.", generator.backbone.synthesis.resolutions
    adapted = {name: value for name, value in tensors.items() if name.startswith("G_ema/")}
    known = {int(name.removeprefix(f"{prefix}b").split(".")[0]) for name in adapted if name.startswith(f"{prefix}b")}
    for side in known - set(sides):
        adapted = {name: value for name, value in adapted.items() if not name.startswith(f"{prefix}b{side}.")}

    # New parts, and more channels in the last block
    blocks = [f"{prefix}b{side}." for side in sides if side not in known]
    new = ("G_ema/warp.", *blocks)
    if generator.config.mapping_styles:
        adapted = {name: value for name, value in adapted.items() if not name.startswith("G_ema/backbone.mapping.")}
        new = (*new, "G_ema/backbone.mapping.styles")
    last = f"{prefix}b{max(set(sides) & known, default=0)}."
    for plain, fresh in generator.state_dict().items():
        name = f"G_ema/{plain}"
        if name not in adapted and name.startswith(new):
            empty = name.startswith(prefix) and name.endswith(".torgb.weight")
            adapted[name] = torch.zeros_like(fresh) if empty else fresh.clone()
        elif name.startswith(last) and adapted[name].shape != fresh.shape:
            adapted[name] = widened(fresh, adapted[name])
    return adapted


def _discriminator_tensors(discriminator: Discriminator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `D/` for this discriminator.

    Blocks of larger images begin by passing on the mean of 2 x 2 pixels' features: what the smaller discriminator makes
    of the image at half the side, but for the order of the mean and the first activation. Blocks of larger images than
    its own are left out; its first layer is then fresh.
    """
    # The file's, without blocks for larger images
    adapted = {name: value for name, value in tensors.items() if name.startswith("D/")}
    known = {int(name[3:].split(".")[0]) for name in adapted if name.startswith("D/b")} - {4}
    for side in known - set(discriminator.sides):
        adapted = {name: value for name, value in adapted.items() if not name.startswith(f"D/b{side}.")}
    if discriminator.pose_path is None:
        adapted = {name: value for name, value in adapted.items() if not name.startswith("D/pose_path.")}

    # The first layer
    largest = max(known, default=0)
    for name, fresh in discriminator.get_submodule(f"b{discriminator.sides[0]}.fromrgb").state_dict().items():
        shared = adapted.pop(f"D/b{largest}.fromrgb.{name}", None)
        adapted[f"D/b{discriminator.sides[0]}.fromrgb.{name}"] = fresh.clone() if shared is None else shared

    # Blocks that it lacks
    for side in discriminator.sides:
        if side in known:
            continue
        block = discriminator.get_submodule(f"b{side}").state_dict()
        width = block["skip.weight"].shape[0]
        gain = math.sqrt(2.0 * width)  # undoes the block's sqrt(1/2) and the equalised 1 / sqrt(width)
        block["skip.weight"] = gain * torch.eye(width)[:, :, None, None]
        block["conv1.weight"] = torch.zeros_like(block["conv1.weight"])
        adapted |= {f"D/b{side}.{name}": v for name, v in block.items() if not name.startswith("fromrgb.")}
    return adapted


def start_from(state: TrainingState, weights: StartingWeights) -> None:
    """Fill fresh networks: the averaged ones of the file become both the current and the averaged ones."""
    tensors = _generator_tensors(state.generator, weights.tensors)
    tensors |= _discriminator_tensors(state.discriminator, weights.tensors)
    for module, prefix in (
        (state.generator, "G_ema"),
        (state.average, "G_ema"),
        (state.discriminator, "D"),
        (state.average_discriminator, "D"),
    ):
        fill_module(module, tensors, prefix, weights.path)
    state.images = weights.images
