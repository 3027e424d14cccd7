"""Conversion keeps every value; what the networks look like is read off the snapshot."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from portrait360.cli.main import main
from portrait360.geometry.body import load_body, posed_vertices
from portrait360.geometry.cameras import camera_label
from portrait360.official.convert import convert_snapshot
from portrait360.official.smpl import read_smpl
from portrait360.portrait.scene import SceneRenderer
from portrait360.portrait.weights import load_weights
from portrait360.types import CheckpointError
from support.ball_portrait import coarse_meshes
from support.hostile import dumps, save
from support.smpl_files import lifelike_arrays, npz, write_published
from support.snapshots import narrow, networks, snapshot_of


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
