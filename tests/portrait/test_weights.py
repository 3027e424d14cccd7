"""Weights files: round trips, and everything that is not one is refused without running anything."""

from __future__ import annotations

import dataclasses
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from portrait360.geometry.body import load_body
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.portrait.weights import load_weights, save_weights
from portrait360.poses.calibration import PoseCalibration
from portrait360.runtime.tensors import module_tensors, read_tensors, to_json, write_tensors
from portrait360.training.checkpoints import load_checkpoint
from portrait360.types import CheckpointError, InputError
from support.presets import TINY, TINY_ORIGINAL


def test_weights_round_trip(tmp_path):
    model = TINY.model
    generator, discriminator = Generator(model), Discriminator(model)
    save_weights(tmp_path / "w.safetensors", model, generator, discriminator, {"images": 3})
    weights = load_weights(tmp_path / "w.safetensors")
    assert weights.generator.config == model
    assert weights.info.about == {"images": 3}
    assert len(weights.info.sha256) == 64
    for name, value in module_tensors(generator, "G").items():
        found = module_tensors(weights.generator, "G")[name]
        torch.testing.assert_close(found, value.half().float() if value.dim() >= 2 else value)
    assert not any(p.requires_grad for p in weights.generator.parameters())


def test_the_same_content_gives_the_same_bytes(tmp_path):
    metadata = {"format": "portrait360", **{f"entry {i}": "ü" * i for i in range(9)}}
    tensors = {"a": torch.arange(5.0), "b": torch.ones(2, 3).half()}
    for name in "xy":
        write_tensors(tmp_path / name, tensors, metadata)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    found, read = read_tensors(tmp_path / "x")
    assert read == metadata
    assert torch.equal(found["a"], tensors["a"])
    assert torch.equal(found["b"], tensors["b"])


def test_a_pose_calibration_comes_back_exactly_or_is_refused(tmp_path, tiny_weights):
    weights = load_weights(tiny_weights)
    assert weights.calibration is None
    path = tmp_path / "w.safetensors"
    networks = weights.generator, weights.discriminator
    calibration = PoseCalibration((1.0, 0.6), (torch.randn(7, 6), torch.randn(13, 6)))
    save_weights(path, weights.generator.config, *networks, {}, calibration=calibration)
    found = load_weights(path).calibration
    assert found is not None
    assert found.windows == (1.0, 0.6)
    assert all(torch.equal(a, b) for a, b in zip(found.maps, calibration.maps, strict=True))
    save_weights(path, weights.generator.config, *networks, {})
    tensors, metadata = read_tensors(path)
    for damaged in (calibration.maps[0][:6].contiguous(), torch.full((7, 6), float("nan"))):
        write_tensors(
            path, tensors | {"pose_calibration/windows": torch.ones(1), "pose_calibration/0": damaged}, metadata
        )
        with pytest.raises(CheckpointError, match="damaged pose calibration"):
            load_weights(path)


def with_body(path, tiny_weights, change=lambda tensors, metadata: None):
    """The tiny weights with a body, after a change."""
    weights = load_weights(tiny_weights)
    pose_shapes = torch.full((18, len(load_body().vertices), 3), 1e-3)
    body = dataclasses.replace(load_body(), name="mine", pose_shapes=pose_shapes)
    weights.generator.body = body
    save_weights(path, weights.generator.config, weights.generator, weights.discriminator, {"images": 3})
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)
    return body


def test_a_body_comes_back_with_the_weights(tiny_weights, tmp_path):
    assert load_weights(tiny_weights).generator.body.name == load_body().name
    body = with_body(tmp_path / "w.safetensors", tiny_weights)
    found = load_weights(tmp_path / "w.safetensors").generator.body
    for field in ("vertices", "faces", "weights", "joints", "pose_shapes", "source_vertices"):
        assert torch.equal(getattr(found, field), getattr(body, field))
    assert (found.name, found.parents, found.drive) == ("mine", body.parents, body.drive)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, m: t.pop("body/weights"), "part is missing"),
        (lambda t, m: t.update({"body/hair": torch.zeros(3)}), "nothing of it is called hair"),
        (lambda t, m: t["body/vertices"].fill_(float("nan")), "vertices should hold finite"),
        (lambda t, m: t["body/faces"].fill_(-1), "faces should number"),
        (lambda t, m: t.update({"body/joints": torch.zeros(5, 2)}), "joints should have the shape"),
        (lambda t, m: m.update(body="[1]"), "part is missing"),
        (lambda t, m: m.update(body=m["body"].replace("neck", "tail")), "drives by neck"),
        (lambda t, m: m.update(body="[" * 100_000), "lacks a readable entry 'body'"),
        (lambda t, m: m.update(body="{"), "lacks a readable entry 'body'"),
        (lambda t, m: m.pop("body"), "lacks a readable entry 'body'"),
        (lambda t, m: [t.pop(k) for k in list(t) if k.startswith("body/")], "part is missing"),
    ],
)
def test_damaged_bodies(tiny_weights, tmp_path, change, said):
    path = tmp_path / "w.safetensors"
    with_body(path, tiny_weights, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_weights(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


class Explosive:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "readable"),
        (b"not a weights file", "readable"),
        (pickle.dumps(Explosive()), "readable"),
        (b"\xff" * 64, "readable"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "readable"),
    ],
)
def test_other_files_are_refused(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load_weights(tmp_path / "w.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file"):
        load_weights(tmp_path / "none.safetensors")


def test_truncated_file(tiny_weights, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(tiny_weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="readable"):
        load_weights(path)


def test_tensors_of_another_program(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="not written by portrait360"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("D/b4.out.bias"), "lacks tensor D/b4.out.bias"),
        (lambda t: t.update({"D/extra": torch.zeros(1)}), "unknown tensor D/extra"),
        (lambda t: t.update({"G_ema/decoder.net.0.bias": torch.zeros(3)}), "expected"),
        (lambda t: t["G_ema/decoder.net.0.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_wrong_tensors(tiny_weights, tmp_path, change, said):
    _, metadata = read_tensors(tiny_weights)
    tensors = load_file(tiny_weights)
    change(tensors)
    write_tensors(tmp_path / "w.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=said):
        load_weights(tmp_path / "w.safetensors")


def test_weights_of_another_model(tiny_weights, tmp_path):
    tensors, metadata = read_tensors(tiny_weights)
    metadata["model"] = to_json(TINY_ORIGINAL.model)
    write_tensors(tmp_path / "w.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match="lacks tensor"):
        load_weights(tmp_path / "w.safetensors")


def test_weights_are_not_a_checkpoint(tiny_weights):
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        load_checkpoint(tiny_weights)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="full"):
        write_tensors(path, {"a": torch.zeros(1)}, {})
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
