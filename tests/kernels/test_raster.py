"""The renderer's kernels against their plain twins."""

from __future__ import annotations

import numpy as np
import pytest

from portrait360.kernels import raster, shading, shapes, surroundings
from portrait360.synthetic.textures import encode, linear_table
from support import raster_twin as twin

SIDE = 24
KINDS = np.array(
    [raster.SKIN, raster.EYE, raster.HAIR, raster.CLOTH, raster.FRINGE, raster.PLAIN, raster.CLOTH], np.int32
)


@pytest.fixture(scope="module")
def atlas() -> np.ndarray:
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(3):
        coarse = rng.random((32, 32, 4)).astype(np.float32)
        coarse[..., 3] = np.clip(coarse[..., 3] * 1.6 - 0.2, 0, 1)
        rows.append(encode(coarse.repeat(16, 0).repeat(16, 1)))
    return np.stack(rows)


def random_scene(seed: int, triangles: int = 60) -> dict:
    """Loose triangles of every kind in front of a camera."""
    # Triangles about the origin.
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-0.16, 0.16, (triangles, 1, 3))
    points = (centre + rng.normal(0, 0.09, (triangles, 3, 3))).reshape(-1, 3).astype(np.float32)
    normals = rng.normal(size=points.shape)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)

    # Materials with every pattern.
    fields = np.zeros((len(KINDS), raster.MATERIAL_FIELDS), np.float32)
    fields[:, 0:3] = rng.uniform(0.1, 1, (len(KINDS), 3))
    fields[:, 3], fields[:, 4] = 0.6, 4.0
    fields[:, 5:8] = rng.uniform(0.1, 1, (len(KINDS), 3))
    fields[:, 8], fields[:, 9], fields[:, 10], fields[:, 11] = 30, 0.6, 0.8, 0.2
    fields[:, 12] = np.arange(len(KINDS)) % 4
    fields[:, 13], fields[:, 14] = 0.2, 0.1
    fields[6, 4] = 0.0

    # A camera that looks at it from a random side.
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return {
        "points": points,
        "normals": normals.astype(np.float32),
        "triangles": np.arange(triangles * 3, dtype=np.int32).reshape(-1, 3),
        "uv": rng.uniform(-0.4, 1.4, (triangles, 3, 2)).astype(np.float32),
        "material": rng.integers(0, len(KINDS), triangles).astype(np.int32),
        "kind": KINDS,
        "slot": rng.integers(0, 3, len(KINDS)).astype(np.int32),
        "fields": fields,
        "rotation": turn,
        "origin": -turn[:, 2] * 2.7,
        "focal": 6.510416666666667,
        "side": SIDE,
    }


def unit_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    out = rng.normal(size=(count, 3))
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def random_surface(scene: dict, seed: int) -> shading.Surface:
    """The scene's triangles with random colours and light at their vertices."""
    rng = np.random.default_rng(seed)
    n = len(scene["points"])
    geometry = (scene[k] for k in ("normals", "triangles", "uv", "material", "kind", "slot", "level", "fields"))

    def numbers(*shape: int) -> np.ndarray:
        return rng.random(shape).astype(np.float32)

    return shading.Surface(
        *geometry,
        tint=numbers(n),
        tint_colour=numbers(n, 3),
        tone=0.5 + numbers(n, 3),
        place=numbers(n, 2),
        open_sky=numbers(n),
        irradiance=numbers(n, 3),
    )


def random_lights(seed: int) -> tuple[shading.KeyLight, shading.Surroundings]:
    rng = np.random.default_rng(seed)
    key = shading.KeyLight(
        direction=unit_vectors(rng, 1)[0],
        colour=rng.uniform(0.2, 1, 3).astype(np.float32),
        shadow=rng.uniform(-0.2, 0.3, 32 * 32).astype(np.float32),
        axes=np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32),
        scale=32 / 0.6,
        side=32,
        stride=2,
        bias=np.float32(0.01),
    )
    sky, ground = rng.random((2, 3)).astype(np.float32)
    sharpness = rng.uniform(2, 9, 3).astype(np.float32)
    colours = rng.uniform(0.2, 1, (3, 3)).astype(np.float32)
    return key, shading.Surroundings(unit_vectors(rng, 1)[0], sky, ground, unit_vectors(rng, 3), sharpness, colours)


def to_screen(scene: dict) -> np.ndarray:
    local = (scene["points"].astype(float) - scene["origin"]) @ scene["rotation"]
    return np.stack(
        [
            (local[:, 0] / local[:, 2] * scene["focal"] + 0.5) * SIDE,
            (local[:, 1] / local[:, 2] * scene["focal"] + 0.5) * SIDE,
            local[:, 2],
        ],
        1,
    )


def test_accumulation_is_a_matrix_product() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, 30)).astype(np.float32)
    c = rng.normal(size=7).astype(np.float32)
    c[2] = 0
    out = np.ones(30, np.float32)
    shapes.accumulate_rows(c, rows, out)
    assert np.allclose(out, 1 + c @ rows, atol=1e-5)

    dense = rng.normal(size=(7, 10, 3)).astype(np.float32) * (rng.random((7, 10, 1)) < 0.4)
    touched = np.abs(dense).max(-1) > 0
    starts = np.concatenate([[0], np.cumsum(touched.sum(1))]).astype(np.int64)
    out = np.zeros((10, 3), np.float32)
    shapes.accumulate_sparse(c, starts, np.nonzero(touched)[1].astype(np.int32), dense[touched], out)
    assert np.allclose(out, np.tensordot(c, dense, 1), atol=1e-5)


def test_skinning_and_normals_match_their_twins() -> None:
    rng = np.random.default_rng(2)
    points = rng.normal(size=(40, 3)).astype(np.float32)
    weights = rng.dirichlet(np.ones(5), 40).astype(np.float32)
    transforms = rng.normal(size=(5, 4, 4)).astype(np.float32)
    out = np.empty_like(points)
    shapes.skin_points(points, weights, transforms, out)
    assert np.allclose(out, twin.skin_points(points, weights, transforms), atol=1e-5)
    triangles = rng.integers(0, 40, (70, 3)).astype(np.int32)
    shapes.vertex_normals(points, triangles, out)
    assert np.allclose(out, twin.vertex_normals(points, triangles), atol=1e-4)


@pytest.mark.parametrize("perspective", [True, False])
def test_depth_raster_matches_its_twin(atlas: np.ndarray, perspective: bool) -> None:
    scene = random_scene(3)
    screen = to_screen(scene)
    depth, face = np.full(SIDE * SIDE, np.inf), np.full(SIDE * SIDE, -1, np.int32)
    common = (scene["triangles"], scene["uv"], scene["material"], scene["kind"], scene["slot"], atlas)
    raster.raster_depth(screen, *common, perspective, 128, SIDE, depth, face)
    expected, expected_face = twin.raster_depth(screen, *common, perspective, 128, SIDE)
    same = face == expected_face
    # a sample on an edge or a texel border may fall either way
    assert same.mean() > 0.99
    assert (face >= 0).mean() > 0.3
    hit = same & (face >= 0)
    assert np.allclose(depth[hit], expected[hit], rtol=1e-6)


def test_texture_levels_match_their_twin() -> None:
    scene = random_scene(4, 200)
    screen = to_screen(scene)
    scene["uv"] = (scene["uv"] * np.geomspace(0.002, 1, 200)[:, None, None]).astype(np.float32)
    level = np.empty(200, np.uint8)
    raster.texture_levels(screen, scene["triangles"], scene["uv"], level)
    assert np.array_equal(level, twin.texture_levels(screen, scene["triangles"], scene["uv"]))
    assert set(level) == {0, 1, 2, 3}


def _layers(scene: dict, atlas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    n, k = SIDE * SIDE, raster.MAX_LAYERS
    out = (
        np.zeros(n, np.int32),
        np.zeros((n, k), np.float32),
        np.zeros((n, k), np.int32),
        np.zeros((n, k, 2), np.float32),
    )
    level = np.zeros(len(scene["triangles"]), np.uint8)
    raster.texture_levels(to_screen(scene), scene["triangles"], scene["uv"], level)
    scene["level"] = level
    raster.raster_layers(
        to_screen(scene),
        scene["triangles"],
        scene["uv"],
        scene["material"],
        scene["kind"],
        scene["slot"],
        level,
        atlas,
        SIDE,
        *out,
    )
    return out


def test_layers_match_their_twin_and_are_sorted(atlas: np.ndarray) -> None:
    # Mostly transparent kinds, so that samples overflow MAX_LAYERS.
    scene = random_scene(5, 300)
    scene["material"] = np.random.default_rng(0).choice([1, 2, 4], 300).astype(np.int32)
    count, z, face, bary = _layers(scene, atlas)
    expected = twin.raster_layers(
        to_screen(scene),
        scene["triangles"],
        scene["uv"],
        scene["material"],
        scene["kind"],
        scene["slot"],
        scene["level"],
        atlas,
        SIDE,
    )

    # Always sorted, opaque last; nearly always the twin's faces, depths and weights.
    agree = 0
    for p, stack in enumerate(expected):
        n = count[p]
        assert (np.diff(z[p, :n]) >= 0).all()
        assert (face[p, : max(n - 1, 0)] >= 0).all()
        faces = [~f if f < 0 else f for f in face[p, :n]]
        if faces == [layer[1] for layer in stack]:
            agree += 1
            assert np.allclose(z[p, :n], [layer[0] for layer in stack], rtol=1e-6)
            assert [f < 0 for f in face[p, :n]] == [layer[2] for layer in stack]
            assert np.allclose(
                bary[p, :n].reshape(-1, 2), [layer[3][1:] for layer in stack] or np.empty((0, 2)), atol=1e-4
            )
    assert agree > 0.99 * SIDE * SIDE
    assert count.max() == raster.MAX_LAYERS


def test_light_of_a_direction_matches_its_twin() -> None:
    scene = random_scene(6)
    rng = np.random.default_rng(7)
    n = len(scene["points"])
    soft = rng.random(n) < 0.5
    total, seen, irradiance = np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros((n, 3), np.float32)
    direction, radiance = unit_vectors(rng, 1)[0], rng.random(3).astype(np.float32)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    depth = rng.uniform(-0.3, 0.3, 16 * 16).astype(np.float32)
    rest = (axes, 16 / 0.5, depth, 16, np.float32(0.01))
    places = scene["points"], scene["normals"], soft, direction
    surroundings.add_direction(*places, radiance, *rest, total, seen, irradiance)
    weight, share = twin.direction_visibility(*places, *rest)
    assert np.allclose(total, weight, atol=1e-5)
    assert np.allclose(seen, weight * share, atol=2e-3)
    assert np.allclose(irradiance, seen[:, None] * radiance, atol=1e-5)
    assert 0.1 < seen.sum() / total.sum() < 0.9


def test_shading_matches_its_twin(atlas: np.ndarray) -> None:
    # By the kernel.
    scene = random_scene(8, 90)
    count, z, face, bary = _layers(scene, atlas)
    surface, (key, around) = random_surface(scene, 9), random_lights(10)
    view = shading.View(SIDE, scene["origin"], scene["rotation"], scene["focal"])
    rgba = np.zeros((SIDE * SIDE, 4), np.float32)
    shading.shade(surface, atlas, linear_table(), shading.Layers(count, z, face, bary), view, key, around, rgba)

    # By the twin, from the kernel's layers.
    layers = [
        [
            (
                float(z[p, k]),
                int(~face[p, k] if face[p, k] < 0 else face[p, k]),
                bool(face[p, k] < 0),
                np.array([1 - bary[p, k].sum(), *bary[p, k]]),
            )
            for k in range(count[p])
        ]
        for p in range(SIDE * SIDE)
    ]
    expected = twin.shade(surface, atlas, linear_table(), layers, view, key, around)

    error = np.abs(rgba - expected).max(1)
    # comparisons (shadow, pattern, facing) may tip over at single samples
    assert (error < 2e-3).mean() > 0.98
    assert np.median(error) < 1e-5
    kinds = {int(KINDS[scene["material"][layer[1]]]) for stack in layers for layer in stack}
    assert kinds == set(KINDS.tolist())
