"""Training on a (pretended) GPU: nothing is forgotten on the CPU, and the numbers are the CPU's."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portrait360.config import PRESETS, Preset
from portrait360.runtime.device import constant
from portrait360.runtime.distributed import own_gpu
from portrait360.training import loop
from portrait360.training.passes import Batch
from portrait360.training.state import new_state
from portrait360.training.step import training_step
from support.fake_gpu import fake_gpu
from support.fake_portraits import write_fake_dataset
from support.presets import ALL_PRESETS
from support.random_batches import random_batch
from support.shrunken import shrunken


def moved(batch: Batch, device: torch.device) -> Batch:
    if batch.drawn is not None:
        drawn = tuple(type(d)(d.camera.to(device), d.coarse_pose.to(device)) for d in batch.drawn)
        batch = dataclasses.replace(batch, drawn=drawn)
    parts = ("image", "mask", "camera", "coarse_pose")
    return dataclasses.replace(batch, **{name: getattr(batch, name).to(device) for name in parts})


def trained(preset: Preset, device: torch.device) -> dict[str, torch.Tensor]:
    state, start = (new_state(preset, 0, where) for where in (device, torch.device("cpu")))
    for part in ("generator", "discriminator", "average", "average_discriminator"):
        getattr(state, part).load_state_dict(getattr(start, part).state_dict())
    torch.manual_seed(1)
    training_step(state, moved(random_batch(preset.model, 4), device))
    return {name: value.cpu() for name, value in state.average.state_dict().items()}


@pytest.mark.parametrize("name", ["portrait-256", "original-256"])
def test_a_step_has_the_numbers_of_the_cpu(name):
    """With the readable renderer, which serves wherever there is no better one."""
    preset = shrunken(ALL_PRESETS[name])
    preset = Preset(preset.model, dataclasses.replace(preset.training, plain_renderer=True, bf16=False))
    expected = trained(preset, torch.device("cpu"))
    with fake_gpu() as gpu:
        found = trained(preset, gpu)
    for key, value in expected.items():
        assert type(found[key]) is torch.Tensor
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_a_forgotten_tensor_of_the_cpu_is_found():
    with fake_gpu() as gpu:
        there = torch.ones(3, device=gpu)
        assert there.device.type == gpu.type
        assert float((there * constant((1.0, 2.0, 3.0), there)).sum()) == 6.0
        with pytest.raises(RuntimeError, match="on the CPU"):
            there + torch.ones(3)


def test_a_run_is_trained_saved_and_resumed(tmp_path, monkeypatch):
    data, out = tmp_path / "data.zip", tmp_path / "run"
    write_fake_dataset(data, count=12, coarse=True)
    with fake_gpu() as gpu:
        monkeypatch.setattr(loop, "choose_device", lambda name: gpu)
        preset = shrunken(PRESETS["cpu-64"])
        for images, resume in ((4, False), (8, True)):
            training = dataclasses.replace(preset.training, total_kimg=images / 1000.0)
            weights = loop.train(data, Preset(preset.model, training), out, resume=resume, quiet=True)
        assert weights.exists()
        assert sorted(p.name for p in out.glob("checkpoint-*")) == [
            "checkpoint-0000000004.safetensors",
            "checkpoint-0000000008.safetensors",
        ]


def test_each_process_of_torchrun_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_gpu(torch.device("cuda")) == torch.device("cuda", 2)
    assert own_gpu(torch.device("cuda:1")) == torch.device("cuda", 1)
    assert own_gpu(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK")
    assert own_gpu(torch.device("cuda")) == torch.device("cuda", 0)
