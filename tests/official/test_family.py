"""Which published model a snapshot is of, what comes over of its relatives, and what can be made with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from skimage.data import astronaut

from portrait360.cli.main import main
from portrait360.geometry.cameras import camera_label
from portrait360.geometry.conventions import world_points
from portrait360.official.convert import convert_snapshot
from portrait360.official.family import family_of
from portrait360.official.snapshot import read_snapshot
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.weights import load_generator, load_weights
from portrait360.types import CheckpointError, InputError
from support.ball_portrait import coarse_meshes
from support.hostile import Reduce, named, save
from support.smpl_files import lifelike_arrays, npz
from support.snapshots import (
    narrow,
    narrow_panohead,
    narrow_pyramid,
    networks,
    snapshot_of,
    snapshot_of_panohead,
    snapshot_of_pyramid,
)

TITLES = {"original": "3DPortraitGAN", "panohead": "PanoHead", "pyramid": "3DPortraitGAN_pyramid"}


def contents(family: str) -> dict:
    if family == "original":
        model = dataclasses.replace(narrow(128), raw_resolution=16)
        return snapshot_of(model, *networks(model))
    model = narrow_panohead() if family == "panohead" else narrow_pyramid()
    generator, discriminator = networks(model)
    if family == "panohead":
        return snapshot_of_panohead(model, generator)
    return snapshot_of_pyramid(model, generator, discriminator)


def write(folder: Path, content: dict) -> tuple[Path, Path]:
    path = folder / "snapshot.pkl"
    path.write_bytes(save(content))
    return path, folder / "converted.safetensors"


# ---- what comes over ----


@pytest.mark.parametrize("depth", [3, 1])
def test_panohead_comes_over_without_its_discriminator(depth, tmp_path):
    model = narrow_panohead(depth)
    generator, _ = networks(model)
    expected = {k: v.clone() for k, v in generator.state_dict().items()}
    path, out = write(tmp_path, snapshot_of_panohead(model, generator))
    found = convert_snapshot(path, out)
    assert (found.title, found.has_discriminator) == ("PanoHead", False)
    loaded, info = load_generator(out)
    assert loaded.config == model
    assert info.model == model.name
    state = loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    with pytest.raises(CheckpointError, match="holds no discriminator"):
        load_weights(out)


@pytest.mark.parametrize("first", [4, 8])
def test_the_pyramid_comes_over_with_the_levels_it_has(first, tmp_path):
    model = narrow_pyramid(first)
    generator, discriminator = networks(model)
    expected = {k: v.clone() for k, v in generator.state_dict().items()}
    poses = {k: v.clone() for k, v in discriminator.state_dict().items()}
    path, out = write(tmp_path, snapshot_of_pyramid(model, generator, discriminator))
    assert convert_snapshot(path, out).has_discriminator
    weights = load_weights(out)
    assert weights.generator.config == model
    state = weights.generator.state_dict()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    assert all(torch.equal(v, poses[k]) for k, v in weights.discriminator.state_dict().items())
    scene = weights.generator.scene(torch.zeros(1, model.w_dim))
    assert [level.shape[-1] for level in (*scene.coarser, scene.tri_grid)] == [s for s in (8, 16, 32, 64) if s > first]


def test_a_pyramid_without_discriminators_comes_over(tmp_path):
    content = contents("pyramid")
    del content["D"], content["D_ema"]
    path, out = write(tmp_path, content)
    assert not convert_snapshot(path, out).has_discriminator
    assert load_generator(out)[0].config.synthesis.pyramid_from == 4


@pytest.mark.parametrize("family", TITLES)
def test_the_licence_is_said_and_kept(family, capsys, tmp_path):
    path, out = write(tmp_path, contents(family))
    assert main(["convert", str(path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{TITLES[family]}: 128x128 pixels from 16" in printed
    assert f"The authors of {TITLES[family]} license it for non-commercial use only" in printed
    assert "non-commercial use only" in PortraitModel.from_pretrained(out).sample(0).record.licence


def test_the_attribute_counts_as_a_tuned_snapshot_renders_with_it(tmp_path):
    content = contents("panohead")
    state = content["G_ema"].parts[1][0]["state"]
    state["rendering_kwargs"] = state["_init_kwargs"]["rendering_kwargs"] | {"ray_start": 2.35}
    path, out = write(tmp_path, content)
    assert convert_snapshot(path, out).model.render.near == 2.35


@pytest.mark.parametrize("options", [{"c_gen_conditioning_zero": True}, {"c_scale": 0.0}])
def test_a_mapping_that_gets_zeros_does_not_see_the_camera(options, tmp_path):
    model = narrow_panohead()
    generator, _ = networks(model)
    z = torch.randn(2, model.z_dim)
    nothing = torch.zeros(2, 25)
    expected = generator.backbone.mapping(z, nothing)
    content = snapshot_of_panohead(model, generator)
    content["G_ema"].parts[1][0]["state"]["_init_kwargs"]["rendering_kwargs"].update(options)
    path, out = write(tmp_path, content)
    convert_snapshot(path, out)
    loaded, _ = load_generator(out)
    with torch.no_grad():
        torch.testing.assert_close(loaded.map(z, camera_label(torch.tensor([0.3, 2.0]))), expected)
        moved = loaded.translation(z, camera_label(torch.tensor([0.3, 2.0])))
        assert not torch.equal(moved, loaded.translation(z, camera_label(torch.tensor([1.3, 2.0]))))


# ---- what is refused ----


def mixed(one: str, other: str) -> dict:
    content = contents(one)
    return content | {"G": contents(other)["G_ema"]}


def with_child(content: dict, name: str, source: dict, child: str) -> dict:
    """A generator that also has another one's child module, as `name`."""
    taken = source["G_ema"].parts[1][0]["state"]["_modules"][child]
    content["G_ema"].parts[1][0]["state"]["_modules"][name] = taken
    return content


def without_level(content: dict) -> dict:
    modules = content["G_ema"].parts[1][0]["state"]["_modules"]["backbone"].parts[1][0]["state"]["_modules"]
    del modules["synthesis"].parts[1][0]["state"]["_modules"]["b3d8"]
    return content


def without_child(content: dict, name: str) -> dict:
    del content["G_ema"].parts[1][0]["state"]["_modules"][name]
    return content


def with_option(content: dict, **options: object) -> dict:
    content["G_ema"].parts[1][0]["state"]["_init_kwargs"]["rendering_kwargs"].update(options)
    return content


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mixed("panohead", "pyramid"), r"is of PanoHead, G of 3DPortraitGAN_pyramid"),
        (lambda: mixed("original", "panohead"), r"is of 3DPortraitGAN, G of PanoHead"),
        (lambda: with_child(contents("original"), "t_mapping", contents("panohead"), "t_mapping"), "mixed with 3DP"),
        (lambda: with_child(contents("pyramid"), "t_mapping", contents("panohead"), "t_mapping"), "_pyramid's b3d"),
        (lambda: without_child(contents("original"), "pose_branch"), "EG3D's, perhaps"),
        (lambda: without_level(contents("pyramid")), r"levels at \[4, 16, 32\]"),
        (lambda: contents("original") | {"D_ema": contents("panohead")["D"]}, "networks of another kind"),
        (lambda: with_option(contents("panohead"), decoder_activation="sigmoid"), "decoder_activation is 'sigmoid'"),
        (lambda: with_option(contents("pyramid"), superresolution_module="x.Hybrid3X"), "unknown super-resolution"),
    ],
)
def test_wrong_and_mixed_snapshots_are_named(make, said, tmp_path):
    path, out = write(tmp_path, make())
    with pytest.raises(CheckpointError, match=said):
        convert_snapshot(path, out)
    assert not out.exists()


def test_tensors_tell_the_family():
    tensors = {"backbone.synthesis.b4.const": torch.zeros(1)}
    for name, family in (("t_mapping.w_avg", "panohead"), ("pose_branch.net.0.bias", "original")):
        assert family_of(tensors | {name: torch.zeros(1)}) == family
    with pytest.raises(ValueError, match="no tri-grid generator"):
        family_of({"t_mapping.w_avg": torch.zeros(1)})


def test_heads_take_no_body(tmp_path):
    path, out = write(tmp_path, contents("panohead"))
    (tmp_path / "smpl.npz").write_bytes(npz(lifelike_arrays()))
    with pytest.raises(InputError, match="know no body"):
        convert_snapshot(path, out, tmp_path / "smpl.npz")
    assert not out.exists()


@pytest.mark.parametrize("arguments", [(), ((1, "2"),), ((-1,),), (3,), ((1,), (2,)), ((True,),)])
def test_odd_shapes_are_refused(arguments, tmp_path):
    path = tmp_path / "s.pkl"
    path.write_bytes(save({"shape": Reduce(named("torch", "Size"), *arguments)}))
    with pytest.raises(CheckpointError, match="a shape has an unknown form"):
        read_snapshot(path)


# ---- what is made ----


def solid_snapshot(family: str) -> dict:
    """A snapshot whose portraits fill the model's box."""
    content = contents(family)
    decoder = content["G_ema"].parts[1][0]["state"]["_modules"]["decoder"]
    last = decoder.parts[1][0]["state"]["_modules"]["net"].parts[1][0]["state"]["_modules"]["2"]
    solid = networks(narrow_panohead() if family == "panohead" else narrow_pyramid())[0]
    with torch.no_grad():
        solid.decoder.get_parameter("net.2.bias")[0] += 1000.0
    from support.snapshots import pickled_tensor

    last.parts[1][0]["state"]["_parameters"]["bias"] = pickled_tensor(solid.decoder.get_parameter("net.2.bias"))
    return content


@pytest.mark.parametrize("family", ["panohead", "pyramid"])
def test_converted_relatives_make_portraits(family, tmp_path, monkeypatch, capfd):
    path, out = write(tmp_path, solid_snapshot(family))
    coarse_meshes(monkeypatch, step=0.02)
    assert main(["convert", str(path), "--out", str(out)]) == 0
    words = ["generate", "--seeds", "3", "--weights", str(out), "--no-video", "--out", str(tmp_path / "made")]
    assert main(words) == 0
    folder = tmp_path / "made" / "seed0003"

    # Images and record.
    with Image.open(folder / "views.png") as views:
        assert views.size == (8 * 128, 128)
    record = json.loads((folder / "portrait.json").read_text())
    assert "non-commercial" in record["licence"]
    assert record["views"][0]["camera"] == camera_label(0.0)[0].tolist()

    # A closed mesh that fills the model's box, in this project's world, cut where its cameras see nothing.
    assert (folder / "portrait.glb").stat().st_size > 1000
    model = load_generator(out)[0].config
    surface = PortraitModel.from_pretrained(out).sample(3).mesh().textured.surface
    assert trimesh.Trimesh(surface.vertices, surface.faces).is_watertight
    half, crop, camera = model.render.box_half[1], model.render.crop, model.camera
    bottom = max(-half, camera.look_at[1] - 0.5 * camera.radius / camera.focal)
    corners = torch.tensor([[-crop, bottom, -crop], [crop, half, crop]])
    found = np.stack([surface.vertices.min(0), surface.vertices.max(0)])
    assert np.abs(found - world_points(corners, camera).numpy()).max() < 0.04  # two steps of the grid

    # Heads are not re-posed, bodies are.
    capfd.readouterr()
    status = main([*words[:-1], str(tmp_path / "turned"), "--head", "0", "20", "0", "--no-mesh"])
    if family == "panohead":
        assert status == 2
        assert "cannot be re-posed" in capfd.readouterr().err
        assert not (tmp_path / "turned").exists()
    else:
        assert status == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["panohead", "pyramid"])
def test_a_photo_becomes_a_portrait_of_a_relative_in_two_commands(family, tmp_path, monkeypatch):
    path, out = write(tmp_path, solid_snapshot(family))
    coarse_meshes(monkeypatch, step=0.02)
    photo, made = tmp_path / "eileen.png", tmp_path / "eileen"
    Image.fromarray(astronaut()).save(photo)
    assert main(["convert", str(path), "--out", str(out)]) == 0
    assert main(["invert", str(photo), "--weights", str(out), "--steps", "2", "--no-video", "--out", str(made)]) == 0
    assert {"comparison.png", "views.png", "portrait.glb", "portrait.safetensors"} <= {p.name for p in made.iterdir()}
    record = json.loads((made / "portrait.json").read_text())
    assert "non-commercial" in record["licence"]
    assert len(record["photos"]) == 1
