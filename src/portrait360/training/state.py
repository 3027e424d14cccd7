"""Making a training state, and turning it into tensors and back without losing a bit."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from portrait360.config import ModelConfig, Preset
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.portrait.weights import read_weights_file
from portrait360.poses.memory import PoseMemory
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.tensors import fill_module, module_tensors
from portrait360.training.checkpoints import Checkpoint
from portrait360.training.passes import TrainingState
from portrait360.types import CheckpointError

M = TypeVar("M", bound=nn.Module)


def _adam(module: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=rate, betas=betas, eps=1e-8, fused=True)


def _average_of(module: M) -> M:
    return copy.deepcopy(module).eval().requires_grad_(False)


def new_state(preset: Preset, seed: int, device: torch.device) -> TrainingState:
    """Freshly initialised networks; also seeds torch's global generator, which all training draws use."""
    torch.manual_seed(seed)
    generator = Generator(preset.model).to(device)
    discriminator = Discriminator(preset.model).to(device)
    training = preset.training
    return TrainingState(
        preset.model,
        training,
        generator,
        discriminator,
        _average_of(generator),
        _average_of(discriminator),
        _adam(generator, training.g_lr, training.betas),
        _adam(discriminator, training.d_lr, training.d_betas or training.betas),
    )


@dataclass(frozen=True)
class StartingWeights:
    """Networks of a weights file and the number of images that they were trained on."""

    path: Path
    model: ModelConfig
    tensors: dict[str, Tensor]
    images: int


def read_weights(path: Path, model: ModelConfig) -> StartingWeights:
    """Weights to start a run from: of the same model, or of a smaller one that `model` is grown from.

    Raises:
        CheckpointError: not a weights file, damaged, of another model than `model`, or with a body of its own.
    """
    file = read_weights_file(path)
    if file.body is not None:
        raise CheckpointError(
            f"{path} deforms with a body of its own ({file.body.name}), but training uses the packaged one.",
            "Convert the original weights once more, without `body`.",
        )
    if not grows_into(file.model, model):
        raise CheckpointError(
            f"{path} belongs to {file.model.name}, not {model.name} as it is set here.",
            "Give its `preset` and the values of `model` that it was trained with.",
        )
    images = file.about.get("images", 0)
    return StartingWeights(Path(path), file.model, file.tensors, images if isinstance(images, int) else 0)


def with_pose_path_of(origin: ModelConfig, preset: Preset) -> Preset:
    """The preset with as many blocks of a pose path as the model that a run goes on from."""
    return dataclasses.replace(preset, model=preset.model.with_pose_blocks(origin.discriminator.pose_blocks))


def grows_into(smaller: ModelConfig, model: ModelConfig) -> bool:
    """Whether `model` is `smaller` with more blocks, or none, for images of twice the side each.

    They come at the end of the tri-grid synthesis and, without super-resolution, at the beginning of the discriminator.
    Names, numbers of rays and samples and the symmetric features do not matter: no weight depends on them. Nor does a
    pose path: a run takes it over (`with_pose_path_of`).
    """
    # The discriminator's first width, repeated once per doubling
    known = smaller.discriminator.channels
    doublings = len(model.discriminator.channels) - len(known)
    if doublings < 0 or (doublings > 0 and model.superresolution is not None):
        return False
    if model.discriminator.channels != (known[0],) * doublings + known:
        return False

    # All else is the same
    kept = model.synthesis.channels[: len(smaller.synthesis.channels)]
    blocks = smaller.discriminator.pose_blocks
    return smaller == dataclasses.replace(
        model,
        name=smaller.name,
        resolution=model.resolution // 2**doublings,
        raw_resolution=smaller.raw_resolution,
        symmetric_features=smaller.symmetric_features,
        synthesis=dataclasses.replace(model.synthesis, channels=kept),
        discriminator=dataclasses.replace(model.discriminator, channels=known, pose_blocks=blocks),
        render=dataclasses.replace(model.render, samples=smaller.render.samples),
    )


def _with_new_blocks(generator: Generator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with blocks of the tri-grid synthesis added that the file lacks, fresh from `generator`.

    Their toRGB weights are zero: the tri-grid begins as the up-sampled one of the smaller model.
    """
    synthesis, prefix = generator.backbone.synthesis, "G_ema/backbone.synthesis"
    added = dict(tensors)
    for side in synthesis.resolutions:
        if not any(name.startswith(f"{prefix}.b{side}.") for name in tensors):
            block = synthesis.get_submodule(f"b{side}").state_dict()
            block = {name: torch.zeros_like(v) if name == "torgb.weight" else v for name, v in block.items()}
            added |= {f"{prefix}.b{side}.{name}": v for name, v in block.items()}
    return added


def _with_new_sides(discriminator: Discriminator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the blocks of larger images added that the file lacks, fresh from `discriminator`.

    They begin by passing on the mean of 2 x 2 pixels' features: what the smaller discriminator makes of the image
    at half the side, but for the order of the mean and the first activation.
    """
    added = dict(tensors)
    known = [side for side in discriminator.sides if f"D/b{side}.conv0.weight" in tensors]
    for side in discriminator.sides:
        if side in known:
            continue
        block = discriminator.get_submodule(f"b{side}").state_dict()
        width = block["skip.weight"].shape[0]
        gain = math.sqrt(2.0 * width)  # undoes the block's sqrt(1/2) and the equalised 1 / sqrt(width)
        block["skip.weight"] = gain * torch.eye(width)[:, :, None, None]
        block["conv1.weight"] = torch.zeros_like(block["conv1.weight"])
        added |= {f"D/b{side}.{name}": v for name, v in block.items()}
    if known and known[0] != discriminator.sides[0]:
        for name in [name for name in added if name.startswith(f"D/b{known[0]}.fromrgb.")]:
            added[name.replace(f"b{known[0]}.", f"b{discriminator.sides[0]}.")] = added.pop(name)
    return added


def start_from(state: TrainingState, weights: StartingWeights) -> None:
    """Fill fresh networks: the averaged ones of the file become both the current and the averaged ones."""
    tensors = _with_new_sides(state.discriminator, _with_new_blocks(state.generator, weights.tensors))
    for module, prefix in (
        (state.generator, "G_ema"),
        (state.average, "G_ema"),
        (state.discriminator, "D"),
        (state.average_discriminator, "D"),
    ):
        fill_module(module, tensors, prefix, weights.path)
    state.images = weights.images


def optimizer_tensors(optimizer: torch.optim.Adam, module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Adam's state by the names of the parameters, `prefix/name/exp_avg`."""
    names = {id(p): name for name, p in module.named_parameters()}
    tensors = {}
    for parameter, values in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{prefix}/{names[id(parameter)]}/{key}"] = values[key]
    return tensors


def fill_optimizer(optimizer: torch.optim.Adam, module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """The inverse of `optimizer_tensors`; parameters without a state keep none."""
    for name, parameter in module.named_parameters():
        keys = {key: f"{prefix}/{name}/{key}" for key in ("exp_avg", "exp_avg_sq", "step")}
        if all(k in tensors for k in keys.values()):
            optimizer.state[parameter] = {
                key: tensors[k].to(parameter.device if key != "step" or parameter.is_cuda else "cpu").clone()
                for key, k in keys.items()
            }


def state_tensors(state: TrainingState, random_states: Tensor) -> dict[str, Tensor]:
    """Weights, moving average, optimisers, and the random state of every process (one row each)."""
    tensors = module_tensors(state.generator, "G") | module_tensors(state.discriminator, "D")
    tensors |= module_tensors(state.average, "G_ema") | module_tensors(state.average_discriminator, "D_ema")
    tensors |= optimizer_tensors(state.g_optimizer, state.generator, "adam_G")
    tensors |= optimizer_tensors(state.d_optimizer, state.discriminator, "adam_D")
    tensors |= state.memory.tensors()
    tensors["random/cpu"] = random_states
    device = next(state.generator.parameters()).device
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def fill_state(state: TrainingState, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Put a checkpoint's tensors into a fresh state of the same preset.

    With another number of processes than before, each seeds its random state anew.

    Raises:
        CheckpointError: a tensor is missing, or of another shape.
    """
    # Networks and optimisers
    tensors = checkpoint.tensors
    for module, prefix in (
        (state.generator, "G"),
        (state.discriminator, "D"),
        (state.average, "G_ema"),
        (state.average_discriminator, "D_ema"),
    ):
        fill_module(module, tensors, prefix, checkpoint.path)
    fill_optimizer(state.g_optimizer, state.generator, tensors, "adam_G")
    fill_optimizer(state.d_optimizer, state.discriminator, tensors, "adam_D")

    # The memory of poses and the random state
    device = next(state.generator.parameters()).device
    try:
        state.memory = PoseMemory.from_tensors(tensors)
        random_states = tensors["random/cpu"]
        if len(random_states) == ranks.size:
            torch.set_rng_state(random_states[ranks.rank].clone())
        else:
            torch.manual_seed(checkpoint.images * ranks.size + ranks.rank)
        if device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], device)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path} lacks parts of the training state ({error}).", "Use another one."
        ) from error
    state.images, state.step = checkpoint.images, checkpoint.step
