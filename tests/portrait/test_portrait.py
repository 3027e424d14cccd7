"""Portraits as users have them: degrees in, images and files out, and errors that name parameters."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import portrait360 as p3
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import camera_label
from portrait360.portrait import options
from portrait360.portrait import portrait as module
from portrait360.portrait.record import PortraitRecord
from portrait360.portrait.solid import METRES_PER_UNIT
from portrait360.runtime.tensors import read_tensors, write_tensors
from support.ball_portrait import BallPortrait, coarse_meshes
from tools.glb_reader import read_glb


@pytest.fixture
def ball(monkeypatch) -> p3.Portrait:
    """A ball on a box, in small."""
    monkeypatch.setattr(options, "DEFAULT_SIZE", 64)
    monkeypatch.setattr(module, "VIDEO_FRAMES", 6)
    coarse_meshes(monkeypatch)
    return p3.Portrait(BallPortrait(), PortraitRecord("12" * 32, "ball", seed=3, truncation_psi=0.5))


@pytest.fixture(scope="module")
def model(tiny_weights) -> p3.PortraitModel:
    return p3.PortraitModel.from_pretrained(tiny_weights)


def test_an_image_has_the_size_that_was_asked_for(ball):
    assert ball.render().size == (64, 64)
    assert ball.render(yaw=35, pitch=-10, roll=5, neck=(10, 0, 0), head=(0, 20, 0), size=80).size == (80, 80)


def test_turning_the_camera_is_not_turning_the_head(ball):
    front, back = (np.asarray(ball.render(yaw=yaw)).astype(int) for yaw in (0, 180))
    assert front[20:32, 28:36].mean() > back[20:32, 28:36].mean() + 20
    turned = np.asarray(ball.render(neck=(0, 0, 40))).astype(int)
    change = np.abs(front - turned).sum(-1)
    assert change[:32].max() > 60
    assert change[56:].max() == 0


def test_views_begin_at_the_front_and_go_on_to_the_left(ball):
    sheet = np.asarray(ball.views(4))
    assert sheet.shape == (64, 256, 3)
    for i in range(4):
        assert np.array_equal(sheet[:, 64 * i : 64 * i + 64], np.asarray(ball.render(yaw=90 * i)))
    assert ball.views(9).size == (8 * 64, 2 * 64)


def test_a_notebook_shows_front_and_three_quarter_view(ball):
    image = Image.open(io.BytesIO(ball._repr_png_()))
    assert (image.format, image.size) == ("PNG", (512, 256))
    left, right = np.split(np.asarray(image), 2, axis=1)
    assert np.array_equal(left, np.asarray(ball.render(size=256)))
    assert np.array_equal(right, np.asarray(ball.render(yaw=35, size=256)))
    assert repr(ball) == "Portrait(seed=3, truncation=0.5, model='ball')"


def test_a_mesh_is_saved_with_where_it_comes_from(ball, tmp_path):
    mesh = ball.mesh(neck=(0, 30, 0))
    path = mesh.save(tmp_path / "person.glb")
    assert path.read_bytes() == mesh.to_glb()
    scene = trimesh.load(path, process=False)
    read = next(iter(scene.geometry.values()))
    assert np.asarray(read.visual.material.baseColorTexture).shape[:2] == (256, 256)
    read.merge_vertices(merge_tex=True, merge_norm=True)
    assert read.is_watertight
    assert scene.metadata["body_pose"]["degrees"] == [0, 30, 0, 0, 0, 0]
    extras = read_glb(path.read_bytes()).tree["asset"]["extras"]
    assert (extras["name"], extras["seed"], extras["licence"]) == ("portrait 3", 3, "as the weights that made it")
    assert repr(mesh).startswith("PortraitMesh(")
    assert repr(mesh).endswith("texture 256)")


def test_a_mesh_is_at_rest_and_its_joints_carry_the_pose(ball):
    rest, turned = ball.mesh(), ball.mesh(neck=(0, 0, 40))
    read = read_glb(turned.to_glb())
    assert np.array_equal(read.vertices, read_glb(rest.to_glb()).vertices)
    moved = turned.posed_vertices()[turned.textured.flat.source] * METRES_PER_UNIT
    assert np.allclose(moved, read.posed(), atol=1e-5)
    # Rotation +Z turns +Y towards -X: the head tilts to the person's right.
    top = read.vertices[:, 1] > 0.1
    assert read.posed()[top, 0].mean() < -0.04
    assert abs(read.vertices[top, 0].mean()) < 0.005


def test_a_mesh_is_in_metres_and_faces_forward(ball):
    assert pytest.approx(1 / load_body().metres_to_world, abs=1e-4) == METRES_PER_UNIT
    read = read_glb(ball.mesh().to_glb())
    assert read.vertices[:, 1].max() == pytest.approx((0.08 + 0.1) * METRES_PER_UNIT, abs=0.015)
    face = read.texture[tuple((read.uv[np.argmax(read.vertices[:, 2])][::-1] * 256).astype(int))].astype(int)
    back = read.texture[tuple((read.uv[np.argmin(read.vertices[:, 2])][::-1] * 256).astype(int))].astype(int)
    assert face.sum() > back.sum() + 60


def test_an_obj_has_the_pose_baked_in(ball, tmp_path):
    mesh = ball.mesh(neck=(0, 0, 40))
    mesh.save(tmp_path / "person.obj")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["person.mtl", "person.obj", "person.png"]
    read = trimesh.load(tmp_path / "person.obj", process=False)
    assert read.bounds == pytest.approx(
        np.stack([mesh.posed_vertices().min(0), mesh.posed_vertices().max(0)]) * METRES_PER_UNIT, abs=1e-4
    )
    with pytest.raises(p3.InputError, match="`path` must be a .glb or .obj file"):
        mesh.save(tmp_path / "person.stl")


def test_what_photos_add_is_in_the_texture(ball, monkeypatch):
    class Green:
        def at(self, body, points):
            assert points.shape[1] == 3
            return torch.tensor([[-2.0, 2.0, -2.0]]).expand(len(points), -1)

    monkeypatch.setattr(ball.renderer, "appearance", Green())
    assert (ball.mesh().textured.texture == (0, 255, 0)).all()


def test_a_turntable_is_a_file(ball, tmp_path):
    path = ball.turntable(tmp_path / "new" / "turn.mp4", size=64)
    assert path.read_bytes()[4:8] == b"ftyp"


def test_saving_writes_the_files_of_generate(ball, tmp_path):
    folder = ball.save(tmp_path / "ada", head=(0, 10, 0))
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["portrait.glb", "portrait.json", "portrait.safetensors", "turntable.mp4", "views.png"]
    record = json.loads((folder / "portrait.json").read_text())
    assert record["files"] == ["views.png", "turntable.mp4", "portrait.glb", "portrait.json"]
    assert record["body_pose"]["degrees"] == [0, 0, 0, 0, 10, 0]


def test_saving_an_obj_writes_three_files_for_the_mesh(ball, tmp_path):
    folder = ball.save(tmp_path / "ada", video=False, format="obj", texture=512)
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "portrait.json",
        "portrait.mtl",
        "portrait.obj",
        "portrait.png",
        "portrait.safetensors",
        "views.png",
    ]
    with Image.open(folder / "portrait.png") as texture:
        assert texture.size == (512, 512)
    record = json.loads((folder / "portrait.json").read_text())
    assert record["files"] == ["views.png", "portrait.obj", "portrait.mtl", "portrait.png", "portrait.json"]
    assert "mtllib portrait.mtl" in (folder / "portrait.obj").read_text()[:200]


def test_a_saved_portrait_comes_back_to_the_byte(model, tiny_weights, tmp_path):
    person = model.sample(5, truncation=0.6)
    folder = person.save(tmp_path / "ada", video=False, mesh=False)
    again = p3.Portrait.load(folder / "portrait.safetensors", weights=tiny_weights)
    assert again.record == person.record
    assert again.render(yaw=40).tobytes() == person.render(yaw=40).tobytes()


def test_a_portrait_wants_the_weights_that_it_was_made_with(model, tmp_path):
    folder = model.sample(5).save(tmp_path / "ada", video=False, mesh=False)
    with pytest.raises(p3.CheckpointError, match="was made with other weights .tiny, SHA-256") as caught:
        p3.Portrait.load(folder / "portrait.safetensors")
    assert "`weights`" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, m: m.update(kind="weights"), "is not a portrait"),
        (lambda t, m: m.pop("record"), "not valid JSON"),
        (lambda t, m: m.update(record='{"seed": 1}'), "expected entries"),
        (lambda t, m: t.update(w=t["w"][0]), "does not hold one finite style"),
        (lambda t, m: t["w"].fill_(math.nan), "does not hold one finite style"),
        (lambda t, m: t.update(other=torch.zeros(1)), "does not hold one finite style"),
        (lambda t, m: t.update(w=torch.zeros(1, 3)), "was made with other weights"),
    ],
)
def test_damaged_portrait_files(model, tiny_weights, tmp_path, change, said):
    path = model.sample(5).save(tmp_path, video=False, mesh=False) / "portrait.safetensors"
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)
    with pytest.raises(p3.CheckpointError, match=said) as caught:
        p3.Portrait.load(path, weights=tiny_weights)
    assert caught.value.hint


def test_files_that_are_no_portrait(tiny_weights, tmp_path):
    with pytest.raises(p3.CheckpointError, match="no portrait file"):
        p3.Portrait.load(tmp_path / "none.safetensors")
    with pytest.raises(p3.CheckpointError, match="is not a portrait"):
        p3.Portrait.load(tiny_weights)
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(p3.CheckpointError, match="not a readable safetensors file"):
        p3.Portrait.load(tmp_path / "noise.safetensors")


def test_tensors_are_those_of_the_images(model):
    person = model.sample(1)
    labels = torch.stack([p3.Camera(yaw).label for yaw in (0, 90, 180)])
    out = person.render_tensors(labels, torch.tensor([0.1, 0, 0, 0, 0.2, 0]))
    assert out.image.shape == (3, 3, 32, 32)
    assert out.image.dtype == out.mask.dtype == torch.float32
    levels = ((out.image[1].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    degrees = {"neck": (math.degrees(0.1), 0, 0), "head": (0, math.degrees(0.2), 0)}
    assert np.abs(np.asarray(person.render(yaw=90, **degrees)).astype(int) - levels).max() <= 1
    assert torch.equal(person.render_tensors(labels[0].tolist()).image, person.render_tensors(labels[:1]).image)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda p: p.render(size=32), "`size` must lie between 64 and 2048"),
        (lambda p: p.render(yaw=math.nan), "`yaw` must be an angle in degrees"),
        (lambda p: p.render(neck=(0, 91, 0)), "`neck` takes three angles"),
        (lambda p: p.views(head=(0, 20)), "`head` takes three angles"),
        (lambda p: p.mesh(texture=1000), "`texture` must be one of 256, 512, 1024, 2048, not 1000"),
        (lambda p: p.save("unused", format="fbx"), "`format` must be glb or obj, not 'fbx'"),
        (lambda p: p.views(0), "`count` must be at least 1"),
        (lambda p: p.render_tensors(torch.zeros(2, 24)), r"`camera_labels` must be \[B, 25\], not \[2, 24\]"),
        (lambda p: p.render_tensors(camera_label(0.0), torch.zeros(2, 6)), "`body_poses` must hold one pose"),
    ],
)
def test_errors_name_parameters(ball, action, said):
    with pytest.raises(p3.InputError, match=said) as caught:
        action(ball)
    assert caught.value.hint


def test_a_camera_is_its_label():
    label = p3.Camera(yaw=30, pitch=-10, roll=5).label
    assert label.shape == (25,)
    torch.testing.assert_close(label, camera_label(*map(math.radians, (30, -10, 5)))[0])
    assert dataclasses.astuple(p3.Camera()) == (0, 0, 0)
