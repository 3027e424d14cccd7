"""Proxies, textures and backgrounds of the synthetic portraits."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from portrait360.kernels.raster import TEXELS_PER_SLOT
from portrait360.synthetic import textures
from portrait360.synthetic.background import background
from portrait360.synthetic.body import BONES, AnnyBody, rotation_matrix
from portrait360.synthetic.hair import beard_cover, scalp_cover, smooth_cover, sweep_fringe
from portrait360.synthetic.library import PREPARED, PartsLibrary
from portrait360.synthetic.proxies import BODY_VERTICES, Proxy, decode_faces, read_proxy, scale_reference
from portrait360.synthetic.subject import BEARDS
from portrait360.types import AssetError


def test_face_stream_of_triangles_and_quads_with_every_extra() -> None:
    triangle = [0b0, 1, 2, 3]
    quad_uv = [0b1001, 4, 5, 6, 7, 40, 50, 60, 70]
    # material, face uv, vertex uv, face normal, vertex normals, face colour, vertex colours
    everything = [0b11111110, 1, 2, 3, 9, 9, 10, 20, 30, 9, 9, 9, 9, 9, 9, 9, 9]
    triangles, corners = decode_faces(triangle + quad_uv + everything)
    assert triangles.tolist() == [[1, 2, 3], [4, 5, 6], [4, 6, 7], [1, 2, 3]]
    assert corners.tolist() == [[0, 0, 0], [40, 50, 60], [40, 60, 70], [10, 20, 30]]


def test_a_proxy_sits_where_its_references_say(tmp_path: Path) -> None:
    folder = tmp_path / "female_casualsuit01"
    folder.mkdir()
    data = {
        "metadata": {},
        "ref_vIdxs": [[1, 2, 3], [4, 4, 4]],
        "weights": [[0.5, 0.25, 0.25], [1, 0, 0]],
        "offsets": [[0, 0, 0], [1, 2, 3]],
        "faces": [0, 0, 1, 1],
        "uvs": [[0, 0, 1, 1]],
        "materials": [],
    }
    path = folder / "female_casualsuit01.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    proxy, texture = read_proxy(path)
    assert texture is None
    rng = np.random.default_rng(0)
    body = rng.normal(size=(BODY_VERTICES, 3)).astype(np.float32)
    reference = scale_reference(proxy.name)
    size = [abs(body[a, k] - body[b, k]) for k, (a, b) in enumerate(((5399, 11998), (791, 881), (962, 5320)))]
    fitted = proxy.fit(body)
    assert np.allclose(fitted[0], 0.5 * body[1] + 0.25 * body[2] + 0.25 * body[3], atol=1e-5)
    # one decimetre of offset is one decimetre on a head of the reference size
    assert np.allclose(fitted[1], body[4] + [(k + 1) * size[k] / reference[k] for k in range(3)], atol=1e-5)
    weights = proxy.skin_weights(np.abs(body))
    assert np.allclose(weights.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("content", ["no json", "{}", '{"ref_vIdxs": [[99999, 0, 0]]}'])
def test_a_broken_proxy_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bob01.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(AssetError, match=r"bob01\.json"):
        read_proxy(path)


def test_dilation_leaves_no_dark_fringe_and_keeps_faint_cards() -> None:
    image = np.zeros((512, 512, 4), np.float32)
    image[100:200, 100:200] = [0.8, 0.5, 0.2, 1.0]
    # a card painted half transparent, far from the opaque one
    image[300:400, 300:400] = [0.1, 0.2, 0.9, 0.5]
    out = textures.dilate(image)
    assert np.allclose(out[:, :, 3], image[:, :, 3])
    assert np.allclose(out[95, 150, :3], [0.8, 0.5, 0.2])
    assert np.allclose(out[350, 350, :3], [0.1, 0.2, 0.9])
    assert out[..., :3].max(-1).min() > 0.1


def test_strand_detail_removes_painted_bands() -> None:
    rng = np.random.default_rng(0)
    image = np.ones((512, 512, 4), np.float32)
    strands = np.exp(rng.normal(0, 0.2, (1, 512, 1)))
    bands = np.where(np.arange(512) % 256 < 128, 0.05, 0.5)[:, None, None]
    image[..., :3] = strands * bands
    detail = textures.strand_detail(image)
    assert abs(float(detail.mean()) - 1) < 0.05
    before = bands.max() / bands.min()
    after = detail[180:210].mean() / detail[50:80].mean()
    assert max(after, 1 / after) < before**0.3
    # the strands themselves stay
    assert np.corrcoef(np.log(detail[60]), np.log(strands[0, :, 0]))[0, 1] > 0.9


def test_a_slot_keeps_the_image_and_its_smaller_levels() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((512, 512, 4)).astype(np.float32)
    slot = textures.encode(image)
    assert slot.shape == (TEXELS_PER_SLOT, 4)
    linear = textures.linear_table()
    back = linear[slot[: 512 * 512, :3]].reshape(512, 512, 3)
    assert np.abs(back - image[..., :3]).max() < 0.01
    half = linear[slot[512 * 512 : 512 * 512 + 256 * 256, :3]].reshape(256, 256, 3)
    assert np.abs(half - image[..., :3].reshape(256, 2, 256, 2, 3).mean((1, 3))).max() < 0.01


def test_garments_without_an_occlusion_map_keep_their_colours(tiny_parts: Path) -> None:
    library = PartsLibrary(tiny_parts)
    assert library.recolourable == {"male_casualsuit01", "female_casualsuit01"}
    assert {s.name for s in library.skins} >= {"old_african_female_diffuse"}
    assert library.available("hair", ("short01", "short04")) == ["short01"]
    assert library.available("hair", ("afro01",)) == ["bob01", "short01"]
    slot = library.atlas[library.slots["clothes/male_elegantsuit01"]]
    assert (slot[: 512 * 512, 2].mean() - slot[: 512 * 512, 0].mean()) > 20


def test_an_incomplete_set_is_refused_and_leaves_nothing(tmp_path: Path, tiny_parts: Path) -> None:
    root = tmp_path / "parts"
    shutil.copytree(tiny_parts, root, ignore=shutil.ignore_patterns("prepared*"))
    shutil.rmtree(root / "skins")
    with pytest.raises(AssetError, match="skins"):
        PartsLibrary(root)
    assert sorted(p.name for p in root.iterdir()) == ["proxies"]


def test_a_part_without_its_image_is_named(tmp_path: Path, tiny_parts: Path) -> None:
    root = tmp_path / "parts"
    shutil.copytree(tiny_parts, root, ignore=shutil.ignore_patterns("prepared*"))
    (root / "proxies/hair/bob01/textures/bob01_diffuse.png").unlink()
    with pytest.raises(AssetError, match="hair/bob01"):
        PartsLibrary(root)


def test_a_damaged_preparation_is_named(tmp_path: Path, tiny_parts: Path) -> None:
    root = tmp_path / "parts"
    shutil.copytree(tiny_parts, root)
    PartsLibrary(root)
    (root / PREPARED / "atlas.npy").write_bytes(b"cut")
    with pytest.raises(AssetError, match="prepared"):
        PartsLibrary(root)


def test_images_of_any_size_fill_a_slot(tmp_path: Path) -> None:
    Image.new("RGB", (100, 40), (255, 128, 0)).save(tmp_path / "a.png")
    image = textures.read_rgba(tmp_path / "a.png")
    assert image.shape == (512, 512, 4)
    assert np.allclose(image[5, 5], [1, (128 / 255) ** 2.2, 0, 1], atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_backgrounds_are_the_same_at_any_size(seed: int) -> None:
    small, large = background(seed, 32), background(seed, 96)
    assert small.shape == (32, 32, 3)
    assert small.dtype == np.float32
    assert small.min() >= 0
    assert np.array_equal(large, background(seed, 96))
    assert np.abs(large.reshape(32, 3, 32, 3, 3).mean((1, 3)) - small).mean() < 0.03


def test_rest_body_equals_annys_own(body: AnnyBody) -> None:
    import anny

    phenotype = {"gender": 0.1, "age": 0.7, "weight": 0.8, "asian": 0.9, "african": 0.05, "caucasian": 0.05}
    local = {body.local_labels[3]: 0.4, body.local_labels[40]: -0.3}
    facial = {"jawOpen": 0.3, "mouthSmileLeft": 0.7}
    model = anny.Anny(
        topology="makehuman", rig="makehuman", local_changes="all", facial_actions="all", phenotypes="all"
    )
    own = model(phenotype_kwargs=phenotype, local_changes_kwargs=local, facial_actions=facial)
    expected = own["rest_vertices"][0].detach().numpy()
    vertices = body.rest(phenotype, local, facial).vertices
    assert np.abs(vertices - expected[:, [0, 2, 1]] * [1, 1, -1]).max() < 2e-5


def test_the_neck_gets_its_whole_rotation_over_three_bones(body: AnnyBody) -> None:
    joints = body.rest({}, {}, {}).joints
    vector = np.array([0.2, -0.3, 0.1])
    third = rotation_matrix(vector / 3)
    turn = rotation_matrix(np.array([0.1, 0.4, 0.0]))
    pose = body.transforms(joints, {"neck01": third, "neck02": third, "neck03": third, "head": turn})
    neck3, head = BONES.index("neck03"), BONES.index("head")
    assert np.allclose(pose[neck3, :3, :3], rotation_matrix(vector), atol=1e-6)
    assert np.allclose(pose[head, :3, :3], rotation_matrix(vector) @ turn, atol=1e-6)
    # joints stay joined
    at = np.append(joints[head], 1)
    assert np.allclose(pose[head] @ at, pose[neck3] @ at, atol=1e-6)
    assert np.allclose(body.transforms(joints, {}), np.eye(4), atol=1e-6)


def test_the_mirror_map_is_an_involution(body: AnnyBody) -> None:
    assert np.array_equal(body.mirror[body.mirror], np.arange(BODY_VERTICES))


@pytest.mark.parametrize("style", BEARDS)
def test_beards_stay_on_the_lower_face(body: AnnyBody, style: str) -> None:
    rest = body.rest({}, {}, {}).vertices
    cover = beard_cover(rest, style)
    eyes = rest[14598:14742].mean(0)
    skin = rest[: len(cover)]
    assert cover.max() > 0.9
    assert cover[skin[:, 1] > eyes[1] - 0.005].max() == 0
    assert cover[skin[:, 2] < eyes[2] - 0.1].max() == 0
    # as much left as right
    assert np.abs(cover - cover[body.mirror[: len(cover)]]).max() < 1e-3
    smooth = smooth_cover(cover, body.quads)
    assert 0 <= smooth.min() <= smooth.max() <= 1


def test_hair_tints_the_scalp_but_never_face_or_cheeks(body: AnnyBody) -> None:
    rest = body.rest({}, {}, {}).vertices
    corners = np.arange(13380, dtype=np.int32)[:, None].repeat(3, 1)
    wig = Proxy(
        name="wig",
        references=corners,
        weights=np.full((13380, 3), 1 / 3, np.float32),
        offsets=np.zeros((13380, 3), np.float32),
        triangles=corners,
        uv=np.full((13380, 3, 2), 0.5, np.float32),
        hides=np.zeros(BODY_VERTICES, bool),
    )
    cover = scalp_cover(wig, np.full((1, TEXELS_PER_SLOT, 4), 255, np.uint8), 0, rest)
    away = rest[:13380] - rest[14598:14742].mean(0)
    assert cover[(away[:, 1] > 0.08) & (away[:, 1] < 0.2)].min() > 0.85
    assert cover[(away[:, 1] > -0.05) & (away[:, 2] < -0.08) & (away[:, 1] < 0.2)].min() > 0.85
    # below the hairline all is skin as far back as the ears, which hair that is swept aside bares
    assert cover[(away[:, 1] < 0.04) & (away[:, 2] > -0.05)].max() == 0
    assert cover[away[:, 1] < -0.065].max() == 0


def _shell(side: float) -> np.ndarray:
    """Hair (V,3) hanging around a skull whose middle is the origin: everywhere but before one cheek."""
    rng = np.random.default_rng(4)
    turn = rng.uniform(-math.pi, math.pi, 20000)
    height = rng.uniform(-0.15, 0.1, 20000)
    radius = rng.uniform(0.09, 0.11, 20000)
    kept = (height > 0.05) | (np.abs(turn) > 1.0) | (turn * side > -0.1)
    shell = np.stack([radius * np.sin(turn), height, radius * np.cos(turn)], 1)
    return shell[kept].astype(np.float32)


_EYES, _SKULL = np.array([0, -0.03, 0.075], np.float32), np.zeros(3, np.float32)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_swept_fringe_leaves_the_eyes_free_and_the_rest_in_place(side: float) -> None:
    hair = _shell(side)
    swept = sweep_fringe(hair, _EYES, _SKULL, 1.0)
    before, after = np.arctan2(hair[:, 0], hair[:, 2]), np.arctan2(swept[:, 0], swept[:, 2])
    # two eyes 64 mm apart and 30 mm wide each, seen from before: the pixels of lashes included
    low = np.abs(hair[:, 1] - _EYES[1]) < 0.014
    front = np.abs(after) < math.pi / 2
    assert (low & front & (np.abs(hair[:, 0]) < 0.047)).sum() > 50
    assert not (low & front & (np.abs(swept[:, 0]) < 0.047)).any()
    # nothing above the hairline or behind the temples moves, and nothing leaves its distance from the skull
    still = (hair[:, 1] > _EYES[1] + 0.065) | (np.abs(before) > 1.45)
    assert still.any()
    assert np.abs(swept - hair)[still].max() < 1e-6
    assert np.abs(np.hypot(swept[:, 0], swept[:, 2]) - np.hypot(hair[:, 0], hair[:, 2])).max() < 1e-6
    assert np.array_equal(swept[:, 1], hair[:, 1])
    # the fringe goes to its own side, and what hung further out still does
    fringe = low & (before * side > -0.1) & (before * side < 1.4)
    assert (after * side)[fringe].min() > 0.7
    order = np.argsort((before * side)[fringe])
    assert np.corrcoef(np.arange(len(order)), (after * side)[fringe][order])[0, 1] > 0.95


def test_sweeping_by_nothing_changes_nothing_and_mirrors_agree() -> None:
    hair = _shell(1.0)
    assert np.array_equal(sweep_fringe(hair, _EYES, _SKULL, 0.0), hair)
    flip = np.array([-1, 1, 1], np.float32)
    assert (
        np.abs(sweep_fringe(hair * flip, _EYES, _SKULL, 0.9) * flip - sweep_fringe(hair, _EYES, _SKULL, 0.9)).max()
        < 1e-6
    )
