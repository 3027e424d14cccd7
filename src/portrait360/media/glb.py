"""Meshes as binary glTF 2.0."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

import portrait360
from portrait360.media.mesh import Mesh
from portrait360.runtime.files import atomic_write

_FLOAT, _UNSIGNED_SHORT, _UNSIGNED_INT = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963


@dataclass(frozen=True)
class _Attribute:
    """An array of a mesh, with the names and numbers that glTF has for its use, shape and type."""

    use: str
    array: ndarray
    shape: str
    component: int
    target: int

    def accessor(self, view: int) -> dict[str, Any]:
        """How programs read the array from buffer view `view`."""
        accessor: dict[str, Any] = {
            "bufferView": view,
            "componentType": self.component,
            "count": len(self.array),
            "type": self.shape,
        }
        if self.use == "POSITION":
            accessor["min"], accessor["max"] = self.array.min(axis=0).tolist(), self.array.max(axis=0).tolist()
        if self.use == "COLOR_0":
            accessor["normalized"] = True
        return accessor


def write_glb(path: Path, mesh: Mesh, *, name: str = "portrait", extras: dict[str, Any] | None = None) -> None:
    """Write a mesh with normals, vertex colours and a matte material, atomically.

    Colours are stored as 16-bit linear light, as glTF asks (sRGB values would look too pale). `extras`
    is JSON that programs find in the file's scene. The same mesh and extras give the same bytes.
    """
    # The arrays, one after the other; every length here is a multiple of four, as the format asks.
    accessors: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []
    binary = b""
    for index, attribute in enumerate(_attributes(mesh)):
        data = np.ascontiguousarray(attribute.array).tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data), "target": attribute.target})
        binary += data
        accessors.append(attribute.accessor(index))

    # The tree that refers to them.
    tree = _tree(name, extras or {}) | {
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)

    # Header and two chunks.
    total = 12 + 8 + len(text) + 8 + len(binary)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, total))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", len(binary), b"BIN\0") + binary)


def _attributes(mesh: Mesh) -> list[_Attribute]:
    colours = np.round(linear_light(mesh.colours) * 65535.0).astype(np.uint16)
    colours = np.concatenate([colours, np.full((len(colours), 1), 65535, np.uint16)], axis=1)  # opaque
    return [
        _Attribute("POSITION", mesh.vertices.astype(np.float32), "VEC3", _FLOAT, _VERTICES),
        _Attribute("NORMAL", mesh.normals.astype(np.float32), "VEC3", _FLOAT, _VERTICES),
        _Attribute("COLOR_0", colours, "VEC4", _UNSIGNED_SHORT, _VERTICES),
        _Attribute("indices", mesh.faces.astype(np.uint32).reshape(-1), "SCALAR", _UNSIGNED_INT, _INDICES),
    ]


def _tree(name: str, extras: dict[str, Any]) -> dict[str, Any]:
    """The scene of one mesh with one material."""
    primitive = {
        "attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2},
        "indices": 3,
        "material": 0,
        "mode": 4,
    }
    return {
        "asset": {"version": "2.0", "generator": f"portrait360 {portrait360.__version__}"},
        "scene": 0,
        "scenes": [{"name": name, "nodes": [0], "extras": extras}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        # Without a material, viewers fall back on polished metal.
        "materials": [{"name": "matte", "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}],
    }


def linear_light(colours: Float[ndarray, "*any"]) -> Float[ndarray, "*any"]:
    """sRGB values in [0, 1] as linear light (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
