"""Making a training state, and turning it into tensors and back without losing a bit."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from portrait360.config import Preset
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.poses.memory import PoseMemory
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.tensors import fill_module, module_tensors
from portrait360.training.checkpoints import Checkpoint
from portrait360.training.passes import TrainingState
from portrait360.training.people import People
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
    if state.people is not None:
        tensors |= state.people.tensors()
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
        if state.config.reconstruction is not None:
            state.people = People.from_tensors(tensors)
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
