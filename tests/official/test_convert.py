"""Conversion keeps every value; what the networks look like is read off the snapshot."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from portrait360.cli.main import main
from portrait360.config import PRESETS, DiscriminatorConfig, ModelConfig, SynthesisConfig
from portrait360.geometry.body import load_body, posed_vertices
from portrait360.geometry.cameras import camera_label
from portrait360.model.discriminator import Discriminator
from portrait360.model.generator import Generator
from portrait360.official.convert import convert_snapshot
from portrait360.official.smpl import read_smpl
from portrait360.portrait.scene import SceneRenderer
from portrait360.portrait.weights import load_weights
from portrait360.types import CheckpointError
from support.ball_portrait import coarse_meshes
from support.hostile import PERSISTENT, Reduce, dumps, save, storage_bytes, tensor
from support.smpl_files import lifelike_arrays, npz, write_published

SUPERRESOLUTION = {512: "SuperresolutionHybrid8XDC", 256: "SuperresolutionHybrid4X", 128: "SuperresolutionHybrid2X"}


def narrow(resolution: int) -> ModelConfig:
    """The published layout of blocks with a few channels each."""
    base = PRESETS[f"original-{resolution}"].model
    assert base.background is not None
    assert base.superresolution is not None
    blocks = len(base.discriminator.channels)
    return dataclasses.replace(
        base,
        raw_resolution=128,
        z_dim=12,
        w_dim=20,
        synthesis=SynthesisConfig((6, 6, 6, 5, 5, 4, 4)),
        background=SynthesisConfig((6, 6, 5, 5, 4, 4)[: len(base.background.channels)]),
        superresolution=dataclasses.replace(base.superresolution, channels=(6, 4)),
        render=dataclasses.replace(base.render, samples=7, importance_samples=9, near=2.2, far=3.4),
        discriminator=DiscriminatorConfig((3, 4, 5, 6, 7, 8, 8, 8)[:blocks], mapping_layers=3, pose_hidden=(10, 9)),
        pose_hidden=(11, 5),
    )


def pickled_tensor(value: torch.Tensor) -> Reduce:
    raw = value.detach().contiguous().numpy().tobytes()
    return tensor(tuple(value.shape), value.contiguous().stride(), data=storage_bytes(count=value.numel(), data=raw))


def pickled_module(module: nn.Module, class_name: str, **extra: Any) -> Reduce:
    """As the original's persistent classes pickle, source text included."""
    state = {
        "_parameters": {k: pickled_tensor(v) for k, v in module.named_parameters(recurse=False)},
        "_buffers": {k: pickled_tensor(v) for k, v in module.named_buffers(recurse=False)},
        "_modules": {k: pickled_module(v, type(v).__name__) for k, v in module.named_children()},
        "training": False,
        **extra,
    }
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}
    return Reduce(PERSISTENT, meta)


def snapshot_of(model: ModelConfig, generator: Generator, discriminator: Discriminator) -> dict[str, Any]:
    body = nn.Module()
    body.register_buffer("shaped_smpl", torch.zeros(2, 3, 3))
    generator.renderer = body  # the licensed body's data, which must not come along
    generator.register_buffer("dataset_label_std", torch.zeros(25))
    render = model.render
    options = {
        "superresolution_module": f"training.superresolution.{SUPERRESOLUTION[model.resolution]}",
        "triplane_depth": model.plane_depth, "box_warp": 1, "depth_resolution": render.samples,
        "depth_resolution_importance": render.importance_samples, "ray_start": render.near, "ray_end": render.far,
    }  # fmt: skip
    arguments = {"img_resolution": model.resolution, "rendering_kwargs": options, "thickness": model.thickness}
    g = pickled_module(
        generator, "TriPlaneGenerator", _init_kwargs=arguments, neural_rendering_resolution=model.raw_resolution
    )
    d = pickled_module(discriminator, "PoseShapeAwareDualDiscriminator")
    return {"training_set_kwargs": {"path": "x"}, "G": g, "D": d, "G_ema": g, "D_ema": d, "augment_pipe": None}


def networks(model: ModelConfig) -> tuple[Generator, Discriminator]:
    torch.manual_seed(3)
    generator, discriminator = Generator(model), Discriminator(model)
    for module in (generator, discriminator):
        for p in module.parameters():
            nn.init.normal_(p)
    return generator, discriminator


@pytest.mark.parametrize("resolution", [512, 256, 128])
def test_every_tensor_and_option_comes_over(resolution, tmp_path):
    model = narrow(resolution)
    generator, discriminator = networks(model)
    expected = {f"G_ema/{k}": v.clone() for k, v in generator.state_dict().items()}
    expected |= {f"D/{k}": v.clone() for k, v in discriminator.state_dict().items()}
    path, out = tmp_path / "original.pkl", tmp_path / "converted.safetensors"
    path.write_bytes(save(snapshot_of(model, generator, discriminator)))
    assert main(["convert", str(path), "--out", str(out)]) == 0
    weights = load_weights(out)
    assert weights.generator.config == model
    found = {f"G_ema/{k}": v for k, v in weights.generator.state_dict().items()}
    found |= {f"D/{k}": v for k, v in weights.discriminator.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert weights.info.about["converted_from"] == "original.pkl"


@pytest.mark.slow
def test_an_smpl_file_becomes_the_body_of_the_weights(capsys, tmp_path):
    model = dataclasses.replace(narrow(128), raw_resolution=16)
    snapshot, smpl, out = tmp_path / "original.pkl", tmp_path / "smpl.pkl", tmp_path / "converted.safetensors"
    snapshot.write_bytes(save(snapshot_of(model, *networks(model))))
    write_published(smpl, lifelike_arrays())
    assert main(["convert", str(snapshot), "--out", str(out), "--body", str(smpl)]) == 0
    assert "SMPL licence" in capsys.readouterr().out
    weights = load_weights(out)
    assert weights.info.about["body"]["made_from"] == "smpl.pkl"
    assert "SMPL" in weights.info.about["body"]["licence"]
    body, expected = weights.generator.body, read_smpl(smpl)
    pose = torch.tensor([[0.1, 0.2, 0.0, 0.0, 0.3, 0.1]])
    assert torch.equal(posed_vertices(body, pose), posed_vertices(expected, pose))
    portrait = SceneRenderer.from_seed(weights.generator, 0)
    assert portrait.body is body
    frames = {}
    for name, moved_by, turned in (("rest", body, None), ("posed", body, pose), ("packaged", load_body(), pose)):
        weights.generator.body = moved_by
        frames[name] = portrait.render(camera_label(0.0), turned, 16).raw
    assert all(torch.isfinite(frame).all() for frame in frames.values())
    assert (frames["posed"] - frames["rest"]).abs().mean() > 1e-2
    assert (frames["posed"] - frames["packaged"]).abs().mean() > 1e-4


def test_generate_poses_heads_with_the_body_of_the_weights(tmp_path, monkeypatch):
    model = dataclasses.replace(narrow(128), raw_resolution=16)
    snapshot, smpl, out = tmp_path / "original.pkl", tmp_path / "smpl.npz", tmp_path / "converted.safetensors"
    generator, discriminator = networks(model)
    with torch.no_grad():
        generator.decoder.get_parameter("net.2.bias")[0] += 100.0  # solid, so that there is a mesh
    snapshot.write_bytes(save(snapshot_of(model, generator, discriminator)))
    smpl.write_bytes(npz(lifelike_arrays()))
    convert_snapshot(snapshot, out, smpl)
    coarse_meshes(monkeypatch, step=0.03)
    words = ["generate", "--seeds", "0", "--weights", str(out), "--no-video", "--texture", "256"]
    assert main([*words, "--out", str(tmp_path / "rest")]) == 0
    assert main([*words, "--out", str(tmp_path / "turned"), "--head", "0", "30", "0"]) == 0
    rest, turned = (np.asarray(Image.open(tmp_path / name / "seed0000" / "views.png")) for name in ("rest", "turned"))
    assert rest.shape == turned.shape
    assert np.abs(rest.astype(int) - turned).mean() > 1
    record = json.loads((tmp_path / "turned" / "seed0000" / "portrait.json").read_text())
    assert record["body_pose"]["degrees"][4] == 30
    assert (tmp_path / "turned" / "seed0000" / "portrait.glb").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content | {"D": None, "D_ema": None}, "no network D_ema or D"),
        (lambda content: content | {"G": 3, "G_ema": 4}, "no network G_ema or G"),
        (lambda content: content | {"G_ema": content["D"]}, "networks of another kind"),
        (lambda content: content | {"D_ema": content["G"]}, "networks of another kind"),
    ],
)
def test_incomplete_snapshots_are_refused(tmp_path, change, said):
    model = narrow(128)
    path, out = tmp_path / "original.pkl", tmp_path / "converted.safetensors"
    path.write_bytes(save(change(snapshot_of(model, *networks(model)))))
    with pytest.raises(CheckpointError, match=said):
        convert_snapshot(path, out)
    assert not out.exists()


@pytest.mark.parametrize("place", ["original.pkl", "smpl.npz"])
def test_what_is_read_is_not_overwritten(capfd, tmp_path, place):
    for name in ("original.pkl", "smpl.npz"):
        (tmp_path / name).write_bytes(b"mine")
    words = ["convert", str(tmp_path / "original.pkl"), "--body", str(tmp_path / "smpl.npz")]
    assert main([*words, "--out", str(tmp_path / place)]) == 2
    assert "one of the files to read" in capfd.readouterr().err
    assert (tmp_path / place).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no snapshot"),
        (b"", "is empty"),
        (b"hello", "is not read"),
        (b"cos\nsystem\n(S'true'\ntR.", "names os.system"),
        (dumps([1]), "not a snapshot"),
        (dumps({"G_ema": 1}), "no network"),
    ],
)
def test_bad_snapshots_from_the_command_line(capfd, tmp_path, content, sentence):
    path, out = tmp_path / "original.pkl", tmp_path / "converted.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main(["convert", str(path), "--out", str(out)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert sentence in lines[0]
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2
    assert not out.exists()
