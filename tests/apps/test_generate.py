from __future__ import annotations

import errno
import hashlib
import json
import math

import av
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import portrait360
from portrait360.apps.generate import generate, parse_seeds
from portrait360.geometry.body import load_body
from portrait360.geometry.cameras import yaw_pitch
from portrait360.model.generator import Generator
from portrait360.portrait import options
from portrait360.portrait import portrait as module
from portrait360.portrait.model import PortraitModel
from portrait360.portrait.options import body_pose_from_degrees
from portrait360.portrait.portrait import Portrait
from portrait360.portrait.record import PortraitRecord
from portrait360.portrait.scene import mesh_box
from portrait360.portrait.solid import PortraitMesh
from portrait360.types import InputError
from support.ball_portrait import BallPortrait, coarse_meshes
from tools.glb_reader import read_glb

FILES = ["portrait.glb", "portrait.json", "portrait.safetensors", "turntable.mp4", "views.png"]


@pytest.fixture
def ball(monkeypatch):
    """Portraits are balls on boxes, the turntable is short and the mesh coarse."""

    class Balls:
        def sample(self, seed, *, truncation=0.7):
            record = PortraitRecord("12" * 32, "ball", seed=seed, truncation_psi=truncation)
            return Portrait(BallPortrait(seed), record)

    monkeypatch.setattr(PortraitModel, "from_pretrained", lambda source=None, *, device="cpu": Balls())
    monkeypatch.setattr(options, "DEFAULT_SIZE", 64)
    monkeypatch.setattr(module, "VIDEO_FRAMES", 12)
    coarse_meshes(monkeypatch)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def views(folder) -> np.ndarray:
    """The eight views (8, H, W, 3) of a portrait's folder."""
    row = np.asarray(Image.open(folder / "views.png"))
    return np.stack(np.split(row, 8, axis=1))


def test_every_seed_gets_its_files(ball, tmp_path, capsys):
    folders = generate([3, 0], tmp_path / "out")
    assert folders == [tmp_path / "out" / "seed0003", tmp_path / "out" / "seed0000"]
    assert names(tmp_path / "out") == ["seed0000", "seed0003"]
    assert names(folders[0]) == FILES
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [str(folder) for folder in folders]


def test_views_are_one_row_of_eight_from_the_front(ball, tmp_path):
    (folder,) = generate([0], tmp_path, video=False, mesh=False)
    images = views(folder)
    assert images.shape == (8, 64, 64, 3)
    images = images[:, ::2, ::2]
    brightness = images[:, 10:16, 14:18].mean((1, 2, 3))  # of the ball, whose face is brighter than its back
    assert brightness.argmax() == 0
    assert brightness.argmin() == 4
    # Yaw is positive towards the person's left, so at 90 degrees the face looks to the left of the image.
    side = images[2, 12, :, 0].astype(int)
    inside = np.flatnonzero(np.abs(side - 128) > 20)
    assert side[inside[1]] > side[inside[-2]] + 20


def test_video_is_one_turn(ball, tmp_path):
    (folder,) = generate([0], tmp_path, mesh=False)
    with av.open(str(folder / "turntable.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 12
    assert frames[0].shape == (32, 32, 3)
    brightness = [frame[10:16, 14:18].mean() for frame in frames]
    assert np.argmax(brightness) in (0, 1, 11)
    assert np.argmin(brightness) in (5, 6, 7)


def test_the_size_is_that_of_each_view(ball, tmp_path):
    (folder,) = generate([0], tmp_path, size=80, mesh=False)
    assert views(folder).shape == (8, 80, 80, 3)
    with av.open(str(folder / "turntable.mp4")) as container:
        assert container.streams.video[0].width == 40


@pytest.mark.parametrize("size", [0, 63, 4096])
def test_sizes_out_of_range_are_refused_before_anything_is_written(ball, tmp_path, size):
    with pytest.raises(InputError, match="`size`"):
        generate([0], tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()


def test_models_with_a_side_of_their_own_keep_it(tmp_path, tiny_weights):
    (folder,) = generate([0], tmp_path / "own", weights=tiny_weights, video=False, mesh=False)
    assert views(folder).shape[1] == 32
    with pytest.raises(InputError, match="32 pixels"):
        generate([0], tmp_path / "other", weights=tiny_weights, size=64, video=False, mesh=False)


def test_mesh_is_closed_and_says_where_it_comes_from(ball, tmp_path):
    (folder,) = generate([4], tmp_path, video=False, truncation=0.5)
    scene = trimesh.load(folder / "portrait.glb", process=False)
    (mesh,) = scene.geometry.values()
    mesh.merge_vertices(merge_tex=True, merge_norm=True)  # at the seams of the texture
    assert mesh.is_watertight
    assert mesh.volume > 0
    assert scene.metadata["seed"] == 4
    assert scene.metadata["truncation_psi"] == 0.5


def test_record_says_everything_needed_to_make_it_again(ball, tmp_path):
    (folder,) = generate([7], tmp_path, video=False, mesh=False, truncation=0.25, neck=(10.0, 0.0, -20.0))
    record = json.loads((folder / "portrait.json").read_text())
    assert record["seed"] == 7
    assert record["truncation_psi"] == 0.25
    assert record["weights"] == {"sha256": "12" * 32}
    assert record["model"] == "ball"
    assert record["convolutions"] == "float32"
    assert record["package_version"] == portrait360.__version__
    assert record["files"] == ["views.png", "portrait.json"]
    assert record["body_pose"]["degrees"] == [10.0, 0.0, -20.0, 0.0, 0.0, 0.0]
    assert record["body_pose"]["radians"] == pytest.approx(np.radians([10, 0, -20, 0, 0, 0]), abs=1e-6)
    assert [view["yaw_degrees"] for view in record["views"]] == [0, 45, 90, 135, 180, 225, 270, 315]
    yaw, pitch = yaw_pitch(torch.tensor([view["camera"] for view in record["views"]]))
    assert torch.rad2deg(yaw).remainder(360.0).numpy() == pytest.approx(np.arange(0, 360, 45), abs=1e-3)
    assert pitch.abs().max() < 1e-5


def test_same_seed_same_bytes_and_another_seed_others(ball, tmp_path):
    (first,), (second,) = generate([1], tmp_path / "a"), generate([1], tmp_path / "b")
    (other,) = generate([2], tmp_path / "a")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()


def test_posing_reaches_images_and_mesh(ball, tmp_path):
    (rest,) = generate([0], tmp_path / "rest", video=False)
    (tilted,) = generate([0], tmp_path / "tilted", video=False, neck=(0.0, 0.0, 40.0))
    images, turned = views(rest).astype(int), views(tilted).astype(int)
    change = np.abs(images[0] - turned[0]).sum(-1)
    assert change[:32].max() > 60  # the head moved
    assert change[56:].max() == 0  # the shoulders did not

    def head_centre(folder):
        mesh = read_glb((folder / "portrait.glb").read_bytes())
        return mesh.posed()[mesh.vertices[:, 1] > 0.05].mean(0)

    assert abs(head_centre(rest)[0]) < 2e-3
    assert head_centre(tilted)[0] < -0.04  # +Z tilts to the person's right, which is -X


def test_texture_and_format_reach_the_mesh(ball, tmp_path):
    (folder,) = generate([0], tmp_path, video=False, texture=512)
    assert len(read_glb((folder / "portrait.glb").read_bytes()).texture) == 512
    (folder,) = generate([1], tmp_path, video=False, format="obj")
    assert {"portrait.obj", "portrait.mtl", "portrait.png"} < set(names(folder))
    assert "portrait.glb" not in names(folder)


@pytest.mark.parametrize(("option", "said"), [({"texture": 100}, "`texture`"), ({"format": "fbx"}, "`format`")])
def test_other_textures_and_formats_are_refused_before_anything_is_written(ball, tmp_path, option, said):
    with pytest.raises(InputError, match=said):
        generate([0], tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_nothing_of_that_portrait(ball, tmp_path, monkeypatch):
    def full(mesh):
        raise OSError(errno.ENOSPC, "No space left on device", "portrait.glb")

    generate([0], tmp_path / "out", video=False)
    monkeypatch.setattr(PortraitMesh, "to_glb", full)
    with pytest.raises(InputError, match="the disk is full"):
        generate([1], tmp_path / "out", video=False)
    assert names(tmp_path / "out") == ["seed0000"]
    with pytest.raises(InputError, match="the disk is full"):
        generate([1], tmp_path / "new" / "folder", video=False)
    assert names(tmp_path) == ["out"]


def test_other_files_in_the_folder_stay(ball, tmp_path):
    (folder,) = generate([0], tmp_path, video=False, mesh=False)
    (folder / "notes.txt").write_text("mine")
    generate([0], tmp_path, video=False, mesh=False)
    assert names(folder) == ["notes.txt", "portrait.json", "portrait.safetensors", "views.png"]


def test_nothing_of_an_earlier_portrait_stays_beside_a_new_one(ball, tmp_path):
    (folder,) = generate([0], tmp_path)
    assert {"turntable.mp4", "portrait.glb"} <= set(names(folder))
    (folder / "mine.mp4").write_bytes(b"stays")
    generate([0], tmp_path, video=False, mesh=False)
    assert names(folder) == ["mine.mp4", "portrait.json", "portrait.safetensors", "views.png"]


def test_a_list_from_elsewhere_cannot_name_other_files(ball, tmp_path):
    """Only plain names of images, videos and meshes in the folder itself are taken from an earlier portrait.json."""
    folder = tmp_path / "seed0000"
    folder.mkdir()
    (tmp_path / "above.png").write_bytes(b"stays")
    (folder / "notes.txt").write_bytes(b"stays")
    (folder / "below").mkdir()
    (folder / "below" / "a.png").write_bytes(b"stays")
    listed = ["../above.png", str(tmp_path / "above.png"), "notes.txt", "below/a.png", "below", 7, None]
    for content in ({"files": listed}, {"files": 3}, {"files": None}, [], "text"):
        (folder / "portrait.json").write_text(json.dumps(content))
        generate([0], tmp_path, video=False, mesh=False)
        for path in (tmp_path / "above.png", folder / "notes.txt", folder / "below" / "a.png"):
            assert path.read_bytes() == b"stays"


def test_turns_that_no_neck_does_are_warned_of_and_made(ball, tmp_path, capsys):
    generate([0], tmp_path, head=(0.0, 80.0, 0.0), video=False, mesh=False)
    assert "warning: no head turns against its neck by 80 degrees" in capsys.readouterr().err


def test_real_portraits_are_made_once_and_the_same_every_time(tmp_path, tiny_weights, monkeypatch):
    """The network itself, untrained: every seed's scene is computed once, its images do not change."""
    scenes = []
    compute = Generator.scene
    monkeypatch.setattr(Generator, "scene", lambda *a, **k: scenes.append(1) or compute(*a, **k))
    monkeypatch.setattr(module, "VIDEO_FRAMES", 9)
    (first,) = generate([5], tmp_path / "a", weights=tiny_weights, mesh=False)
    assert len(scenes) == 1
    (second, other) = generate([5, 6], tmp_path / "b", weights=tiny_weights, mesh=False)
    assert len(scenes) == 3
    assert names(first) == ["portrait.json", "portrait.safetensors", "turntable.mp4", "views.png"]
    for name in names(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert views(first).shape == (8, 32, 32, 3)
    assert np.abs(views(first).astype(int) - views(other)).max() > 0
    record = json.loads((first / "portrait.json").read_text())
    assert record["model"] == "tiny"
    assert record["weights"]["sha256"] == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()


def test_an_empty_portrait_says_how_to_go_on(tmp_path, tiny_weights, monkeypatch):
    monkeypatch.setattr(module, "MESH_STEP", 0.015)
    with pytest.raises(InputError, match="nothing solid") as caught:
        generate([0], tmp_path / "out", weights=tiny_weights, video=False)
    assert "`mesh=False`" in caught.value.hint
    assert names(tmp_path) == []


@pytest.mark.parametrize("psi", [-0.1, 1.1, math.nan, math.inf])
def test_truncation_out_of_range(ball, tmp_path, psi):
    with pytest.raises(InputError, match="between 0 and 1"):
        generate([0], tmp_path / "out", truncation=psi)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("0,5,7-9", [0, 5, 7, 8, 9]),
        (" 3 , 1 - 2 ", [3, 1, 2]),
        ("2,0-3,2", [2, 0, 1, 3]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_parse_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "a",
        "1.5",
        "0-",
        "-3-4",
        "1,,2",
        "3-1",
        "1e3",
        "0x10",
        "٣",
        "4294967296",
        "0-10000",
        "0-99999999999",
    ],
)
def test_parse_seeds_refuses(text):
    with pytest.raises(InputError) as caught:
        parse_seeds(text)
    assert caught.value.hint


@given(st.lists(st.tuples(st.integers(0, 2**32 - 50), st.integers(0, 40)), min_size=1, max_size=9))
def test_parse_seeds_gives_every_number_of_every_range_once(ranges):
    text = ",".join(str(first) if extra == 0 else f"{first}-{first + extra}" for first, extra in ranges)
    expected = [seed for first, extra in ranges for seed in range(first, first + extra + 1)]
    assert parse_seeds(text) == list(dict.fromkeys(expected))


def test_body_pose_is_in_radians_neck_first():
    pose = body_pose_from_degrees((90.0, 0.0, 0.0), (0.0, -45.0, 0.0))
    assert pose.tolist() == pytest.approx([math.pi / 2, 0, 0, 0, -math.pi / 4, 0], abs=1e-6)


@pytest.mark.parametrize("vector", [(91.0, 0.0, 0.0), (70.0, 70.0, 0.0), (math.nan, 0.0, 0.0), (0.0, -math.inf, 0.0)])
def test_body_pose_out_of_range(vector):
    with pytest.raises(InputError, match="`neck` takes three angles"):
        body_pose_from_degrees(vector, (0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="`head` takes three angles"):
        body_pose_from_degrees((0.0, 0.0, 0.0), vector)


def test_mesh_box_is_cut_below_what_cameras_see():
    low, high = mesh_box((torch.tensor([-0.2, -0.4, -0.1]), torch.tensor([0.2, 0.2, 0.1])), torch.zeros(6), load_body())
    assert low == pytest.approx((-0.2, 0.0649 - 2.7 * 0.5 / 6.510416666666667, -0.1))
    assert high == pytest.approx((0.2, 0.2, 0.1))


def test_mesh_box_holds_the_turned_head_and_the_resting_shoulders():
    bounds = ((-0.15, -0.1, -0.1), (0.15, 0.2, 0.1))
    corners = (torch.tensor(bounds[0]), torch.tensor(bounds[1]))
    low, high = mesh_box(corners, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), load_body())
    assert low[0] < -0.22  # the top of the head swings to the person's right
    assert low[1] == pytest.approx(bounds[0][1])
    assert all(a <= b + 1e-6 for a, b in zip(low, bounds[0], strict=True))
    assert all(a >= b - 1e-6 for a, b in zip(high, bounds[1], strict=True))
    assert np.abs([*low, *high]).max() < 0.4
