"""Images per second of training, ours against the published recipe in plain PyTorch, each in a process of its own:
`python -m portrait360.bench.training JOB [PRESET]`.

JOB is JSON: the arguments of `time_training`; PRESET is one that the package does not have, as JSON too.
The result is one line of JSON on the standard output.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from portrait360.config import ModelConfig, Preset, named_preset, original_recipe, register_preset
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label
from portrait360.portrait.weights import DEFAULT_WEIGHTS
from portrait360.poses.memory import CAPACITY
from portrait360.runtime.device import choose_device
from portrait360.runtime.distributed import Ranks
from portrait360.runtime.memory import peak_megabytes, restart_peak
from portrait360.runtime.precision import choose_bf16
from portrait360.runtime.process import settle_process
from portrait360.runtime.tensors import from_json
from portrait360.runtime.threads import denormals_flushed
from portrait360.training.adapt import StartingWeights, read_weights, start_from, with_pose_path_of
from portrait360.training.graphs import WARM_UP, record_steps
from portrait360.training.passes import Batch, Labels, TrainingState
from portrait360.training.people import People, Targets
from portrait360.training.state import new_state
from portrait360.training.step import training_step
from portrait360.training.styles import StyleTable
from portrait360.types import CheckpointError

FORMS = ("ours", "original")
DEFAULT_PRESETS = ("cpu-64", "portrait-128", "portrait-256")
SETTLED = 1_000_000
"""Images after which schedules have their last values: nothing is blurred any more."""


@denormals_flushed()
def time_training(
    preset: str,
    form: str = "ours",
    batch: int | None = None,
    steps: int = 16,
    device: str = "cpu",
    graphs: bool = False,
) -> dict[str, Any]:
    """Time `steps` steps of a preset after some that are not counted, with random images.

    `batch`: 8 on a CPU, 32 on a GPU unless given.

    `form`: `ours`, the preset's own training; or `original`, the same networks in the published recipe with the plain
    renderer, without skipping space, in float32. The preset of the packaged weights starts from them, others from
    random ones, whose density fills all space: there is nothing to skip.

    `graphs`: replay steps as CUDA graphs (our form, on a GPU), whatever the preset says.

    Returns:
        {"images_per_second", "batch", "peak_mib", "bf16", "trained"}: penalties come in one of 16 steps, as in
        training.
    """
    # Settings of the form and the machine.
    torch.manual_seed(0)
    target = choose_device(device)
    batch = batch or (32 if target.type == "cuda" else 8)
    config = _config(preset, form, batch, graphs, target)

    # A state as in the middle of a training.
    packaged = _packaged(config.model)
    state = _state(config, packaged, target)
    data = _random_batch(config, batch, target)
    if state.people is not None:
        data = dataclasses.replace(data, targets=_random_targets(config, state.people, target))
    record_steps(state, target)

    # Steps that are not counted, with penalties and without.
    restart_peak()
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target)
    for state.step in [0] if target.type == "cpu" else [0, 1] * (WARM_UP + 1):
        training_step(state, data)

    # Timed steps.
    state.step = 1
    _wait(target)
    start = time.perf_counter()
    for _ in range(steps):
        training_step(state, data)
    _wait(target)
    rate = steps * batch / (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(target) / 2**20 if target.type == "cuda" else peak_megabytes()
    bf16 = config.training.bf16
    return {"images_per_second": rate, "batch": batch, "peak_mib": peak, "bf16": bf16, "trained": packaged is not None}


def _config(preset: str, form: str, batch: int, graphs: bool, device: torch.device) -> Preset:
    """The preset as it is trained in this form."""
    named = named_preset(preset)
    training = dataclasses.replace(named.training, cuda_graphs=graphs or named.training.cuda_graphs)
    if form == "original":
        training = dataclasses.replace(original_recipe(named.model), plain_renderer=True)
    bf16 = choose_bf16(training.bf16, device, {})
    return Preset(named.model, dataclasses.replace(training, batch=batch, bf16=bf16))


def _state(config: Preset, packaged: StartingWeights | None, device: torch.device) -> TrainingState:
    """A training that is settled, from the packaged weights if there are any for this model."""
    if packaged is not None:
        config = with_pose_path_of(packaged.model, config)
    state = new_state(config, 0, device)
    if packaged is not None:
        start_from(state, packaged)
    state.images = max(state.images, SETTLED)
    _remember_poses(state)
    if config.training.reconstruction is not None:
        count, width = 2 * config.training.reconstruction.images, config.model.w_dim
        state.people = People(StyleTable(torch.randn(count, width)), torch.arange(count), torch.randn(count, 6) * 0.1)
    return state


def training_jobs(presets: Sequence[str], quick: bool, device: str) -> list[dict[str, Any]]:
    """Arguments of `time_training` for every preset in both forms."""
    steps = 2 if quick else 16
    return [{"preset": name, "form": form, "steps": steps, "device": device} for name in presets for form in FORMS]


def _packaged(model: ModelConfig) -> StartingWeights | None:
    """The packaged weights, if training of this model can start from them."""
    try:
        return read_weights(DEFAULT_WEIGHTS, model)
    except CheckpointError:
        return None


def _remember_poses(state: TrainingState) -> None:
    """Poses are refined from the first step on, as in most of a training, where the recipe does so."""
    if state.config.pose_refine_kimg is not None:
        poses = torch.randn(4, CAPACITY, 6) * 0.1
        state.memory.note(camera_label(torch.rand(CAPACITY) * 6.28), poses[0], poses[1], poses[2], poses[3])
        state.memory.keep(Ranks())


def _random_batch(preset: Preset, size: int, device: torch.device) -> Batch:
    def labels() -> Labels:
        camera = camera_label(torch.rand(size) * 6.28, torch.randn(size) * 0.2)
        return Labels(camera.to(device), (torch.randn(size, 6) * 0.1).to(device))

    side, own = preset.model.resolution, labels()
    image, mask = torch.rand(size, 3, side, side) * 2.0 - 1.0, (torch.rand(size, 1, side, side) < 0.5).float()
    return Batch(image.to(device), mask.to(device), own.camera, own.coarse_pose, (labels(), labels()))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random_targets(preset: Preset, people: People, device: torch.device) -> Targets:
    """Images to reconstruct, twice as large as the model's."""
    config = preset.training.reconstruction
    assert config is not None
    count, side = config.images, 2 * preset.model.resolution
    kept = (
        torch.rand(count, 3, side, side) * 2.0 - 1.0,
        torch.ones(count, 1, side, side),
        camera_label(torch.rand(count)),
    )
    image, mask, camera = (value.to(device) for value in kept)
    random, body = np.random.default_rng(0), load_body().to(device)
    return people.targets(torch.arange(count), (image, mask, camera), config, preset.model.resolution, random, body)


if __name__ == "__main__":
    settle_process()
    for own in sys.argv[2:]:
        register_preset(from_json(Preset, own))
    print(json.dumps(time_training(**json.loads(sys.argv[1]))))
