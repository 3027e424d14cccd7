"""The measurements of meshes notice what is wrong, and a packaged portrait passes them in small."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import portrait360 as p3
from portrait360.portrait.record import PortraitRecord
from support.ball_portrait import BallPortrait, coarse_meshes
from tools import mesh_report
from tools.glb_reader import GlbMesh, read_glb
from tools.mesh_report import draw, psnr, silhouette_overlap, texture_psnr, turned_poses


@pytest.fixture(scope="module")
def small():
    """A packaged portrait with a coarse mesh, and its file."""
    with pytest.MonkeyPatch.context() as patch:
        coarse_meshes(patch, step=0.004)
        person = p3.PortraitModel.from_pretrained().sample(5)
        return person, read_glb(person.mesh(texture=256).to_glb())


def test_a_packaged_portrait_looks_like_its_volume(small):
    person, mesh = small
    values = texture_psnr(person.renderer, mesh, 96, (0.0, 135.0))
    assert min(values) > 26
    other = dataclasses.replace(mesh, texture=np.ascontiguousarray(mesh.texture[::-1]))
    assert max(texture_psnr(person.renderer, other, 96, (0.0,))) < 20


def test_turned_joints_give_the_silhouette_of_the_turned_portrait(small):
    person, mesh = small
    poses = turned_poses()[[0, 5, 7]]
    overlap = silhouette_overlap(person.renderer, mesh, poses, 96, (0.0, 90.0))
    assert overlap.shape == (3, 2)
    assert overlap.mean() > 0.97
    unmoved = dataclasses.replace(mesh, weights=np.tile([1.0, 0.0, 0.0, 0.0], (len(mesh.vertices), 1)))
    assert silhouette_overlap(person.renderer, unmoved, poses, 96, (0.0, 90.0)).mean() < overlap.mean() - 0.02


def test_a_drawn_mesh_covers_what_a_camera_sees():
    ball = p3.Portrait(BallPortrait(), PortraitRecord("12" * 32, "ball", seed=0))
    with pytest.MonkeyPatch.context() as patch:
        coarse_meshes(patch)
        mesh = read_glb(ball.mesh().to_glb())
    label = p3.Camera(yaw=30).label
    image, covered = draw(mesh, mesh.vertices, label, 64)
    out = ball.renderer.render(label[None], None, 64)
    assert np.abs(covered - out.mask[0, 0].numpy()).mean() < 0.02
    inside = (covered > 0.99) & (out.mask[0, 0].numpy() > 0.9)
    reference = (out.image[0].permute(1, 2, 0).numpy() + 1) / 2
    assert np.abs(image - reference)[inside].mean() < 0.03
    assert np.allclose(image[covered == 0], 0.5)


def test_psnr_is_that_of_the_mask():
    image, mask = np.zeros((4, 4, 3)), np.zeros((4, 4), bool)
    mask[0] = True
    noisy = image + np.where(mask[..., None], 0.1, 0.9)
    assert psnr(noisy, image, mask) == pytest.approx(20.0)


def test_poses_turn_one_axis_each_both_ways():
    poses = turned_poses(90.0)
    assert poses.shape == (12, 6)
    assert torch.equal(poses[:6], -poses[6:])
    assert (poses != 0).sum(1).tolist() == [1] * 12
    assert poses[0, 0] == pytest.approx(np.pi / 2)


def test_the_report_is_a_table_of_measured_values(monkeypatch, tmp_path):
    class Model:
        info = type("Info", (), {"model": "ball", "sha256": "12"})

        def sample(self, seed):
            return p3.Portrait(BallPortrait(seed), PortraitRecord("12" * 32, "ball", seed=seed))

    monkeypatch.setattr(p3.PortraitModel, "from_pretrained", lambda weights=None: Model())
    coarse_meshes(monkeypatch, step=0.02)
    monkeypatch.setattr(mesh_report, "YAWS", (0.0,))
    monkeypatch.setattr(mesh_report, "turned_poses", lambda: torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.1, 0.0]]))
    mesh_report.main(tmp_path / "mesh.json", seeds=1, posed=1, side=32)
    report = json.loads((tmp_path / "mesh.json").read_text())
    assert [row[0] for row in report["rows"]] == ["0", "mean"]
    assert all(len(row) == len(report["columns"]) for row in report["rows"])
    assert report["rows"][0][1].endswith(" dB")
    assert report["about"]["machine"]
    assert 0.5 < report["about"]["least overlap of one pose and view"] <= 1


def test_what_is_no_glb_is_refused():
    with pytest.raises(ValueError, match=r"not a whole \.glb"):
        read_glb(b"glTF" + bytes(60))
    assert GlbMesh.__doc__
