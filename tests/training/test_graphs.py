"""Recorded steps train as computed ones do; here a recording computes anew on the CPU, into the same tensors."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from portrait360.config import Preset
from portrait360.geometry import deformation
from portrait360.geometry.cameras import camera_label
from portrait360.poses.memory import CAPACITY
from portrait360.runtime.distributed import Ranks
from portrait360.training.graphs import WARM_UP, RecordedSteps, record_steps
from portrait360.training.passes import TrainingState, compute, decide
from portrait360.training.state import new_state
from portrait360.training.step import training_step
from support.presets import ALL_PRESETS, TINY
from support.random_batches import random_batch
from support.shrunken import shrunken

CPU = torch.device("cpu")


def refining(preset: Preset, **changes) -> TrainingState:
    """A state in which poses are refined and matched, so that each step gets numbers of its own from the CPU."""
    fading = {"pose_refine_kimg": 0.9, "swap_fade_kimg": 3.0, "pose_preg_kimg": 0.6}
    settled = {"pose_match_weight": 1.0, "coarse_pose_probability": 0.5, "blur_fade_kimg": 0.0, "density_noise": 0.0}
    training = dataclasses.replace(preset.training, **fading | settled | changes)
    state = new_state(dataclasses.replace(preset, training=training), 0, CPU)
    state.images = 1000
    poses = torch.randn(3, CAPACITY, 6, generator=torch.Generator().manual_seed(1)) * 0.1
    state.memory.note(camera_label(torch.linspace(0, 6.28, CAPACITY)), *poses, poses[0])
    state.memory.keep(Ranks())
    return state


class Again:
    """A `Recorder` that computes anew to replay. Like a GPU's, it leaves nothing behind when it records, and writes
    into the same tensors later."""

    def __init__(self, state: TrainingState) -> None:
        self.modules = (state.generator, state.discriminator)
        self.parameters = [p for module in self.modules for p in module.parameters()]

    def compute(self, run):
        return run()

    def record(self, run):
        random = torch.get_rng_state()
        buffers = [(b, b.clone()) for module in self.modules for b in module.buffers()]
        outputs = run()
        gradients = [p.grad for p in self.parameters]
        torch.set_rng_state(random)
        for buffer, before in buffers:
            buffer.copy_(before)

        def replay():
            for parameter in self.parameters:
                parameter.grad = None
            found = run()
            for name, value in found.metrics.items():
                outputs.metrics[name].copy_(value)
            for kept, new in zip(outputs.poses, found.poses, strict=True):
                kept.copy_(new)
            for kept, parameter in zip(gradients, self.parameters, strict=True):
                assert (kept is None) == (parameter.grad is None)
                if kept is not None:
                    kept.copy_(parameter.grad)
                parameter.grad = None

        return outputs, replay


class Failing(Again):
    """It fails half way."""

    def record(self, run):
        for parameter in self.parameters:
            parameter.grad = torch.ones_like(parameter)
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("name", ["tiny", "cpu-64"])
def test_recorded_steps_train_as_computed_ones(name):
    """Images, poses, seeds, weights and chances differ in every step; networks, averages and memory end with the
    same bits."""
    ends = []
    for recorded in (False, True):
        state = refining(shrunken(ALL_PRESETS[name]), r1_interval=2, bf16=False)
        if recorded:
            state.recorded = RecordedSteps(Again(state))
        torch.manual_seed(7)
        metrics = [training_step(state, random_batch(state.model, 4, i)) for i in range(2 * WARM_UP + 6)]
        modules = (state.generator, state.discriminator, state.average)
        ends.append(
            [v.clone() for m in modules for v in m.state_dict().values()]
            + [state.memory.seen.rows, state.memory.errors.rows]
            + [step["g_loss"].clone() for step in metrics[-1:]]
        )
        if recorded:
            assert state.recorded.replayed == 6
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_nothing_is_recorded_while_schedules_change_and_old_recordings_are_dropped():
    state = refining(shrunken(TINY), r1_interval=100, blur_sigma=2.0, blur_fade_kimg=1.04)
    state.step = 1
    state.recorded = steps = RecordedSteps(Again(state))
    state.images = 1000
    for i in range(5 + WARM_UP):
        training_step(state, random_batch(state.model, 4, i))
    assert steps.replayed == 0
    state.images = 2000
    for i in range(WARM_UP + 2):
        training_step(state, random_batch(state.model, 4, i))
    assert steps.replayed == 2
    assert steps.kinds == 1
    training_step(state, random_batch(state.model, 8))
    assert steps.kinds == 0


def test_where_recording_fails_steps_are_computed():
    ends = []
    for fails in (False, True):
        state = refining(shrunken(TINY), r1_interval=100)
        state.step = 1
        state.recorded = RecordedSteps(Failing(state)) if fails else None
        torch.manual_seed(7)
        for i in range(WARM_UP + 2):
            warned = fails and i == WARM_UP
            with pytest.warns(UserWarning, match="cannot be recorded") if warned else contextlib.nullcontext():
                training_step(state, random_batch(state.model, 4, i))
        ends.append(list(state.generator.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Waits(TorchDispatchMode):
    """Finds operations for which the CPU waits for a device, or which bring something from the CPU to it."""

    NAMES = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        target = kwargs.get("device") if name == "_to_copy" else args[0].device if name == "copy_" else None
        source = {"_to_copy": 0, "copy_": 1}.get(name)
        moves = source is not None and target is not None and torch.device(target) != args[source].device
        if moves or name in self.NAMES:
            self.found.append(name)
        return func(*args, **kwargs)


class NoAutocast(torch.amp.autocast_mode.autocast):
    """It knows no such device."""

    def __init__(self, *_, **__) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        pass


def elsewhere(part):
    return dataclasses.replace(part, **{k: v.to("meta") for k, v in vars(part).items() if isinstance(v, torch.Tensor)})


@pytest.mark.parametrize("name", ["tiny", "cpu-64", "portrait-128", "portrait-256"])
def test_nothing_in_a_step_waits_for_the_device_or_comes_from_the_cpu(name, monkeypatch):
    """On a device without numbers, where Triton's kernels, which have their constants there, are left out."""

    def field(body, pose, shape):
        return pose.sum() * torch.zeros(len(pose), *shape, 3, device=pose.device)

    monkeypatch.setattr(deformation, "deformation_field_reference", field)
    monkeypatch.setattr(torch, "autocast", NoAutocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    state = refining(shrunken(ALL_PRESETS[name]), bf16=False, r1_interval=1)
    batch = random_batch(state.model, 4)
    given, batch = elsewhere(decide(state, batch)), elsewhere(batch)
    modules = (state.generator.to("meta"), state.discriminator.to("meta"))
    compute(state, batch, given)  # constants are made once
    for module in modules:
        module.zero_grad(set_to_none=True)
    with Waits() as mode:
        outputs = compute(state, batch, given)
    assert {value.device.type for value in outputs.metrics.values()} == {"meta"}
    assert mode.found == []


def test_waiting_is_found():
    x = torch.ones(3)
    with Waits() as mode:
        float(x.sum())
        torch.tensor([1.0])
        x.to("meta")
        torch.empty(3, device="meta").copy_(x)
        x.to(torch.float64)
        x[[0, 2]]
    assert mode.found == ["_local_scalar_dense", "lift_fresh", "_to_copy", "copy_", "lift_fresh"]


def test_steps_are_recorded_on_gpus_where_the_recipe_says_so():
    """On a CPU they never are."""
    for wanted in (False, True):
        state = refining(shrunken(TINY), cuda_graphs=wanted)
        record_steps(state, CPU)
        assert state.recorded is None
        record_steps(state, torch.device("cuda"))
        assert (state.recorded is not None) == wanted
