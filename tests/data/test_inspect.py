"""Inspecting datasets: the right numbers, and images that show what the labels say."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from portrait360.data.dataset import PortraitDataset
from portrait360.data.inspect import inspect_dataset
from portrait360.data.overlay import draw_body
from portrait360.geometry.body import load_body, posed_vertices
from portrait360.geometry.cameras import camera_label, mirror_body_pose, mirror_camera, project
from portrait360.types import DatasetError
from support.fake_portraits import write_fake_dataset

RED = (255, 0, 0)
FILES = ["overlay.png", "pose_histogram.png", "sheet.png", "summary.json", "yaw_histogram.png"]


@pytest.fixture(scope="module")
def coarse(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("coarse") / "coarse.zip"
    write_fake_dataset(path, count=70, resolution=32, coarse=True)
    return path


@pytest.fixture
def few_overlays(monkeypatch) -> None:
    monkeypatch.setattr("portrait360.data.inspect.OVERLAYS", 2)


@pytest.mark.usefixtures("few_overlays")
def test_summary_says_what_the_dataset_holds(coarse: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    summary = inspect_dataset(coarse, tmp_path / "out", progress=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "mine.txt"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    dataset, exact = PortraitDataset(coarse), PortraitDataset(coarse, labels="exact")
    assert (summary["count"], summary["resolution"], summary["label_kind"]) == (70, 32, "coarse")
    assert summary["masks"]
    assert summary["depth"]
    yaw = np.rad2deg(np.arctan2(dataset.cameras[:, 3].numpy(), dataset.cameras[:, 11].numpy()))
    counts, _ = np.histogram(yaw, 12, (-180, 180))
    assert list(summary["yaw_sectors"].values()) == counts.tolist()
    assert summary["yaw_sectors"]["0 to 30"] == ((yaw >= 0) & (yaw < 30)).sum()
    degrees = np.rad2deg(dataset.body_poses.numpy())
    assert summary["body_pose_degrees"]["head turn"]["mean"] == pytest.approx(degrees[:, 4].mean(), abs=1e-3)
    degrees = np.rad2deg(exact.body_poses.numpy())
    assert summary["exact_body_pose_degrees"]["neck nod"]["std"] == pytest.approx(degrees[:, 0].std(), abs=1e-3)
    masks = [dataset.mask(index).mean() / 255 for index in range(70)]
    assert summary["mask_share"]["mean"] == pytest.approx(np.mean(masks), abs=1e-3)
    assert summary["mask_share"]["max"] == pytest.approx(np.max(masks), abs=1e-3)
    # 5 degrees of bias, 30 % of some 20 degrees, 4 degrees of noise per component
    for part in ("neck", "head"):
        error = summary["coarse_error_degrees"][part]
        assert 6 < error["median"] < error["95th percentile"] < 30
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (8 * 160, 8 * 180)


@pytest.mark.usefixtures("few_overlays")
def test_datasets_with_cameras_only(coarse: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(coarse) as source, zipfile.ZipFile(tmp_path / "cameras.zip", "w") as target:
        for index in range(3):
            target.writestr(f"0/{index}.webp", source.read(f"images/00000/{index:08d}.webp"))
        labels = json.loads(source.read("dataset.json"))["labels"][:3]
        labels = [[f"0/{index}.webp", label[:25]] for index, (_, label) in enumerate(labels)]
        target.writestr("dataset.json", json.dumps({"labels": labels}))
    summary = inspect_dataset(tmp_path / "cameras.zip", tmp_path / "new" / "out", progress=False)
    names = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    assert names == [name for name in FILES if name != "pose_histogram.png"]
    assert summary["body_pose_degrees"] is None
    assert "mask_share" not in summary


def test_a_broken_dataset_leaves_nothing(coarse: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(coarse.read_bytes()[:2000])
    with pytest.raises(DatasetError, match="broken"):
        inspect_dataset(broken, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_body_contours_frame_the_projected_body() -> None:
    body = load_body()
    camera = camera_label(0.6, 0.1)
    pose = torch.tensor([[0.0, 0.3, 0.0, 0.1, 0.3, 0.0]])
    blank = Image.new("RGB", (256, 256))
    drawn = np.asarray(draw_body(blank, body, camera[0], pose[0], RED))[..., 0] > 60
    points = project(camera, posed_vertices(body, pose))[0][0].numpy() * 256
    filled = Image.new("1", (256, 256))
    for face in points[body.faces.numpy()]:
        ImageDraw.Draw(filled).polygon([tuple(corner) for corner in face], fill=1)
    silhouette = np.asarray(filled)
    rows = np.nonzero(silhouette.any(axis=1))[0]
    assert np.nonzero(drawn.any(axis=1))[0].min() == pytest.approx(rows.min(), abs=2)
    for y in rows[3:-3]:
        inside, lines = np.nonzero(silhouette[y])[0], np.nonzero(drawn[y])[0]
        assert lines.min() == pytest.approx(inside.min(), abs=2)
        assert lines.max() == pytest.approx(inside.max(), abs=2)


def test_body_contours_mirror_with_camera_and_pose() -> None:
    body = load_body()
    camera = camera_label(-1.0, 0.1)
    pose = torch.tensor([[0.1, 0.3, -0.1, 0.1, 0.2, 0.2]])
    blank = Image.new("RGB", (128, 128))
    one = draw_body(blank, body, camera[0], pose[0], RED)
    other = draw_body(blank, body, mirror_camera(camera)[0], mirror_body_pose(pose)[0], RED)
    mirrored = other.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for lines, near in ((one, mirrored), (mirrored, one)):
        drawn = np.asarray(lines)[..., 0] > 60
        around = np.asarray(near.filter(ImageFilter.MaxFilter(3)))[..., 0] > 60
        assert drawn.sum() > 300
        assert (drawn & around).sum() > 0.95 * drawn.sum()


def test_back_view_hides_the_face() -> None:
    """Eyes and mouth give many contours in front and must not shine through from behind."""
    body, blank, pose = load_body(), Image.new("RGB", (256, 256)), torch.zeros(6)
    middle = {}
    for name, yaw in (("front", 0.0), ("back", 3.14159)):
        drawn = np.asarray(draw_body(blank, body, camera_label(yaw)[0], pose, RED))[..., 0] > 60
        middle[name] = drawn[80:155, 106:150].sum()
    assert middle["front"] > 60
    assert middle["back"] < 0.1 * middle["front"]
