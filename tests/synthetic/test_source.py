"""Laws of the synthetic portraits: same seed same bytes, labels fit the pixels, overrides stay local."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait360.geometry.cameras import camera_label, project
from portrait360.kernels import raster
from portrait360.synthetic.source import PortraitSource, SyntheticSample, portrait_camera
from portrait360.types import InputError
from support.programs import run

STRAIGHT = {"neck": (0.0, 0.0, 0.0), "head": (0.0, 0.0, 0.0)}


def digest(sample: SyntheticSample) -> str:
    parts = [sample.image, sample.mask, sample.camera, sample.body_pose]
    if sample.depth is not None:
        parts.append(sample.depth)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def test_sample_has_the_promised_arrays(source: PortraitSource) -> None:
    sample = source.draw(3, 0, 48, depth=True)
    assert sample.image.shape == (48, 48, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (48, 48)
    assert sample.mask.dtype == np.uint8
    assert sample.camera.shape == (25,)
    assert sample.camera.dtype == np.float32
    assert sample.body_pose.shape == (6,)
    assert sample.body_pose.dtype == np.float32
    assert sample.depth is not None
    assert sample.depth.shape == (48, 48)
    assert json.loads(json.dumps(sample.info)) == sample.info
    covered = (sample.mask > 127).mean()
    assert 0.15 < covered < 0.8
    # depth and mask speak of the same pixels, up to the soft rim
    assert ((sample.depth > 0) == (sample.mask > 127)).mean() > 0.97
    assert source.draw(3, 0, 48).depth is None


def test_same_seed_same_bytes_in_another_process_and_order(source: PortraitSource, tiny_parts: Path) -> None:
    here = [digest(source.draw(5, i, 40, depth=True)) for i in (2, 0)]
    code = (
        "import sys, pathlib\n"
        "from portrait360.synthetic.source import PortraitSource\n"
        "import importlib.util\n"
        "spec = importlib.util.spec_from_file_location('own', sys.argv[2])\n"
        "own = importlib.util.module_from_spec(spec); spec.loader.exec_module(own)\n"
        "s = PortraitSource(pathlib.Path(sys.argv[1]))\n"
        "s.draw(5, 1, 32)\n"
        "print([own.digest(s.draw(5, i, 40, depth=True)) for i in (0, 2)])\n"
    )
    assert run(code, tiny_parts, __file__).output.strip().splitlines()[-1] == str(here[::-1])
    assert here[0] != here[1]


def test_camera_angles_cover_the_circle_and_stay_in_the_pitch_limits(source: PortraitSource) -> None:
    subjects = [source.describe(11, i) for i in range(400)]
    yaw = np.array([s.yaw for s in subjects])
    pitch = np.array([s.pitch for s in subjects])
    counts, _ = np.histogram(yaw, bins=8, range=(-np.pi, np.pi))
    assert counts.min() > 25
    assert np.abs(pitch).max() <= 0.52
    assert 0.17 < pitch.std() < 0.23
    assert 0.3 < np.mean([s.male for s in subjects]) < 0.7
    assert {s.age for s in subjects} == {"child", "young", "middleage", "old"}


def test_the_label_is_the_packages_camera_label(source: PortraitSource) -> None:
    subject = source.describe(4, 7)
    expected = camera_label(subject.yaw, subject.pitch).numpy()[0]
    assert np.array_equal(source.draw(4, 7, 32).camera, expected)
    assert np.array_equal(portrait_camera(0.3, -0.2), camera_label(0.3, -0.2).numpy()[0])


def _distance_to_triangle(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance (P,F) from points (P,3) to triangles (F,3,3), by projection and by the three edges."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
    away = ((points[:, None] - a) * normal).sum(-1)
    foot = points[:, None] - away[..., None] * normal
    inside = np.ones(away.shape, bool)
    best = np.full(away.shape, np.inf)
    for p, q in ((a, b), (b, c), (c, a)):
        edge = q - p
        inside &= (np.cross(np.broadcast_to(edge, foot.shape), foot - p) * normal).sum(-1) >= 0
        t = ((points[:, None] - p) * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-20)
        nearest = p + np.clip(t, 0, 1)[..., None] * edge
        best = np.minimum(best, np.linalg.norm(points[:, None] - nearest, axis=-1))
    return np.where(inside, np.abs(away), best)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_depth_through_the_label_lies_on_the_mesh(source: PortraitSource, index: int) -> None:
    scene = source.subject(8, index)
    sample = source.render(scene, portrait_camera(scene.subject.yaw, scene.subject.pitch), 96, depth=True)
    assert sample.depth is not None
    row, column = np.nonzero(sample.depth)
    pick = np.random.default_rng(0).choice(len(row), 60, replace=False)
    row, column = row[pick], column[pick]
    z = sample.depth[row, column].astype(np.float64)
    label = sample.camera.astype(np.float64)
    pose = label[:16].reshape(4, 4)
    local = np.stack([((column + 0.5) / 96 - 0.5) / label[16] * z, ((row + 0.5) / 96 - 0.5) / label[20] * z, z], 1)
    points = local @ pose[:3, :3].T + pose[:3, 3]
    corners = scene.points[scene.triangles].astype(np.float64)
    for point in points:
        near = corners[np.abs(corners - point).max((1, 2)) < 0.08]
        assert _distance_to_triangle(point[None], near).min() < 2e-5


def test_mesh_projected_by_the_package_agrees_with_the_depth_map(source: PortraitSource) -> None:
    scene = source.subject(8, 1)
    sample = source.render(scene, portrait_camera(0.4, 0.1), 128, depth=True)
    assert sample.depth is not None
    solid = np.zeros(len(scene.points), bool)
    opaque = np.isin(scene.kind, (raster.SKIN, raster.CLOTH))
    solid[scene.triangles[opaque[scene.material]]] = True
    label = torch.from_numpy(sample.camera)[None]
    uv, depth = project(label, torch.from_numpy(scene.points[solid])[None])
    at = (uv[0].numpy() * 128).astype(int)
    inside = ((at >= 0) & (at < 128)).all(1)
    seen = sample.depth[at[inside, 1], at[inside, 0]]
    behind = depth[0].numpy()[inside][seen > 0] - seen[seen > 0]
    # nothing solid stands in front of the map, but for the slope within one pixel; much is what it shows
    assert (behind < -0.02).mean() < 0.005
    assert (np.abs(behind) < 0.003).mean() > 0.2


def test_overrides_change_only_what_they_name(source: PortraitSource) -> None:
    plain = source.describe(6, 3)
    fixed = source.describe(6, 3, overrides={**STRAIGHT, "yaw": 1.0, "pitch": 0.1, "hair": None})
    assert (fixed.yaw, fixed.pitch, fixed.hair.name) == (1.0, 0.1, None)
    assert not fixed.neck.any()
    assert not fixed.head.any()
    assert fixed.phenotype == plain.phenotype
    assert fixed.local == plain.local
    assert fixed.facial == plain.facial
    assert np.array_equal(fixed.garment.fields, plain.garment.fields)
    assert np.array_equal(fixed.lighting.direction, plain.lighting.direction)
    assert fixed.background_seed == plain.background_seed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"nose": 3}, "Unknown override"),
        ({"hair": "mohawk"}, "no hair named"),
        ({"clothes": "toga"}, "no clothes named"),
        ({"age": "ancient"}, "Unknown age"),
    ],
)
def test_senseless_overrides_are_refused(source: PortraitSource, overrides: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        source.draw(0, 0, 32, overrides=overrides)


def test_senseless_cameras_and_sizes_are_refused(source: PortraitSource) -> None:
    scene = source.subject(0, 0)
    with pytest.raises(InputError, match="resolution"):
        source.render(scene, portrait_camera(0, 0), 8)
    with pytest.raises(InputError, match="25"):
        source.render(scene, np.full(25, np.nan, np.float32), 64)


def test_head_turns_while_the_shoulders_stay(source: PortraitSource) -> None:
    straight = source.subject(2, 4, overrides=STRAIGHT)
    turned = source.subject(2, 4, overrides={"neck": (0.0, 0.0, 0.0), "head": (0.0, 0.4, 0.0)})
    moved = np.linalg.norm(turned.points - straight.points, axis=1)
    assert moved[straight.points[:, 1] < -0.1].max() < 1e-6
    nose = np.argmax(np.where(straight.points[:, 1] > 0.02, straight.points[:, 2], -1))
    assert moved[nose] > 0.02
    # a positive turn about Y looks to the subject's left, which is +X
    assert turned.points[nose, 0] - straight.points[nose, 0] > 0.02
    assert np.allclose(turned.body_pose, [0, 0, 0, 0, 0.4, 0])


def test_positive_nod_looks_down_and_positive_tilt_leans_right(source: PortraitSource) -> None:
    straight = source.subject(2, 4, overrides=STRAIGHT)
    high = straight.points[:, 1] > 0.02
    nose = np.argmax(np.where(high, straight.points[:, 2], -1))
    top = np.argmax(straight.points[:, 1])
    nod = source.subject(2, 4, overrides={"neck": (0.0, 0.0, 0.0), "head": (0.3, 0.0, 0.0)})
    tilt = source.subject(2, 4, overrides={"neck": (0.0, 0.0, 0.3), "head": (0.0, 0.0, 0.0)})
    assert nod.points[nose, 1] < straight.points[nose, 1] - 0.01
    assert tilt.points[top, 0] < straight.points[top, 0] - 0.01


def test_mirrored_hair_is_the_mirror_image(source: PortraitSource) -> None:
    body, builder = source.studio.body, source.studio.builder
    hair, mirrored = builder.hair("bob01", False), builder.hair("bob01", True)
    plain, cover = hair.proxy, hair.cover
    worn, other = mirrored.proxy, mirrored.cover
    rest = body.rest({}, {}, {}).vertices
    a, b = plain.fit(rest), worn.fit(rest)
    assert np.abs(a * [-1, 1, 1] - b).max() < 1e-4
    assert a[:, 0].min() > -0.06
    assert b[:, 0].max() < 0.06
    assert np.abs(cover - other[body.mirror[: len(other)]]).max() < 1e-4
    # the faces still look outward
    centre = a.mean(0)
    for proxy, points, middle in ((plain, a, centre), (worn, b, centre * [-1, 1, 1])):
        corner = points[proxy.triangles]
        outward = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        assert ((corner.mean(1) - middle) * outward).sum(1).mean() > 0


def test_clothes_cover_the_skin_below_them(source: PortraitSource) -> None:
    parts, builder = source.studio.parts, source.studio.builder
    garment = parts.proxies["clothes"]["male_casualsuit01"]
    covered = builder.covered(garment)
    assert 0 < len(covered.triangles) < len(builder.body.triangles)
    assert np.allclose(np.unique(covered.push), [0.0, 0.35, 0.7, 1.0])
    assert covered.push[garment.hides].min() == 1.0
    kept = np.unique(covered.triangles)
    assert garment.hides[kept].mean() < 0.2


def test_a_person_keeps_looks_and_light_from_all_sides(source: PortraitSource) -> None:
    scene = source.subject(1, 1)
    views = [source.render(scene, portrait_camera(yaw, 0), 48) for yaw in (0.0, 1.5, 3.0)]
    assert not np.array_equal(views[0].image, views[1].image)
    again = source.render(scene, portrait_camera(0.0, 0), 48)
    assert np.array_equal(views[0].image, again.image)
    assert all(np.array_equal(v.body_pose, views[0].body_pose) for v in views)
    # the head stays inside the frame at the top
    assert all(not v.mask[0].any() for v in views)


def test_images_of_two_sizes_show_the_same(source: PortraitSource) -> None:
    large = source.draw(9, 2, 128)
    small = source.draw(9, 2, 64)
    halved = large.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small.image.astype(float)).mean() < 6
    assert np.array_equal(large.camera, small.camera)


def test_views_show_one_person_in_other_poses(source: PortraitSource, tiny_parts: Path) -> None:
    views = PortraitSource(tiny_parts, views=3)
    assert digest(views.draw(5, 6, 40)) == digest(source.draw(5, 2, 40))
    first, second, third = (views.describe(5, index) for index in (6, 7, 8))
    for other in (second, third):
        assert (other.phenotype, other.local, other.garment.name) == (first.phenotype, first.local, first.garment.name)
        assert other.skin == first.skin
        assert other.info == first.info
        assert (other.hair.name, other.hair.colour.tolist()) == (first.hair.name, first.hair.colour.tolist())
        assert not np.allclose(other.head, first.head)
        assert other.yaw != first.yaw
        assert not np.allclose(other.lighting.direction, first.lighting.direction)
    assert second.yaw != third.yaw
    assert views.describe(5, 9).phenotype != first.phenotype


def test_overrides_hold_in_every_view(tiny_parts: Path) -> None:
    views = PortraitSource(tiny_parts, views=2)
    for index in (0, 1):
        subject = views.describe(5, index, overrides={**STRAIGHT, "yaw": 0.5, "pitch": 0.1})
        assert not np.any(subject.neck)
        assert not np.any(subject.head)
        assert (subject.yaw, subject.pitch) == (0.5, 0.1)


def test_most_people_comb_their_hair_out_of_their_eyes(source: PortraitSource) -> None:
    people = [source.describe(8, index) for index in range(300)]
    assert all(person.info["hair_swept"] == (bool(person.hair.name) and person.hair.fringe > 0) for person in people)
    hidden = np.mean([person.hair.fringe == 0 for person in people])
    assert 0.05 < hidden < 0.16
    assert min(person.hair.fringe for person in people if person.hair.fringe > 0) >= 0.8


def test_neck_and_head_turn_together_as_far_as_each_may(source: PortraitSource) -> None:
    people = [source.describe(8, index) for index in range(1500)]
    neck, head = (np.degrees([getattr(person, part) for person in people]) for part in ("neck", "head"))
    assert np.abs(neck).max(0) == pytest.approx([16, 20, 12])
    assert np.abs(head).max(0) == pytest.approx([16, 24, 12])
    # a normal distribution cut off at two deviations has 0.96 of its spread and a bit less of its correlation
    assert neck.std(0) == pytest.approx([7.7, 9.6, 5.8], rel=0.06)
    assert head.std(0) == pytest.approx([7.7, 11.5, 5.8], rel=0.06)
    together = [float(np.corrcoef(neck[:, axis], head[:, axis])[0, 1]) for axis in range(3)]
    assert together == pytest.approx([0.5, 0.8, 0.7], abs=0.06)
