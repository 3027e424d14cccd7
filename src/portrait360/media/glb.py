"""Textured, rigged meshes as binary glTF 2.0."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

import portrait360
from portrait360.geometry.rig import JOINTS, Rig
from portrait360.media.mesh import Mesh
from portrait360.media.unwrap import Unwrapped

_FLOAT, _BYTE, _SHORT, _INT = 5126, 5121, 5123, 5125
_VERTICES, _INDICES = 34962, 34963
_LINEAR, _LINEAR_MIPMAP, _CLAMP = 9729, 9987, 33071
ROUGHNESS = 0.9
_QUALITY = 92
"""Of the JPEG, whose colours have full resolution."""


@dataclass(frozen=True)
class TexturedMesh:
    """A surface with its layout, texture and rig; world units."""

    surface: Mesh
    flat: Unwrapped
    texture: UInt8[ndarray, "S S 3"]
    """sRGB."""
    rig: Rig
    """Weights at the surface's vertices."""


@dataclass
class _Buffer:
    """The binary part of a file and the tables that say what lies where in it."""

    data: bytes = b""
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)

    def view(self, data: bytes, target: int | None = None) -> int:
        """Append bytes, at a multiple of four as the format asks; the number of their view."""
        self.data += b"\0" * (-len(self.data) % 4)
        use = {} if target is None else {"target": target}
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **use})
        self.data += data
        return len(self.views) - 1

    def array(self, array: ndarray, shape: str, component: int, target: int | None = None, **more: Any) -> int:
        """Append an array; the number of its accessor."""
        view = self.view(np.ascontiguousarray(array).tobytes(), target)
        about = {"bufferView": view, "componentType": component, "count": len(array), "type": shape}
        self.accessors.append(about | more)
        return len(self.accessors) - 1


def glb_bytes(
    mesh: TexturedMesh,
    *,
    name: str,
    extras: dict[str, Any],
    metres: float,
    rotations: Float[ndarray, "3 4"],
) -> bytes:
    """A .glb file: one mesh with a texture and a matte material, bound at rest to the joints root, neck and head.

    The same input gives the same bytes. Positions are in metres, Y up, and the portrait faces +Z; the texture is a JPEG
    inside of the file.

    Args:
        mesh: what to write.
        name: of the mesh and the scene.
        extras: JSON for `asset.extras`, and for the scene's, which Blender and others show.
        metres: per world unit.
        rotations: of the joints against their parents, quaternions (x, y, z, w): the pose in which the file opens.
    """
    # Vertices, triangles, joints and texture.
    buffer = _Buffer()
    source, places = mesh.flat.source, mesh.rig.joints.astype(np.float32) * np.float32(metres)
    positions = (mesh.surface.vertices * np.float32(metres)).astype(np.float32)[source]
    limits = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    weights = _in_shorts(mesh.rig.weights)[source]
    joints = np.tile(np.array([0, 1, 2, 0], np.uint8), (len(source), 1)) * (weights > 0)
    attributes = {
        "POSITION": buffer.array(positions, "VEC3", _FLOAT, _VERTICES, **limits),
        "NORMAL": buffer.array(mesh.surface.normals.astype(np.float32)[source], "VEC3", _FLOAT, _VERTICES),
        "TEXCOORD_0": buffer.array(mesh.flat.uv.astype(np.float32), "VEC2", _FLOAT, _VERTICES),
        "JOINTS_0": buffer.array(joints.astype(np.uint8), "VEC4", _BYTE, _VERTICES),
        "WEIGHTS_0": buffer.array(weights, "VEC4", _SHORT, _VERTICES, normalized=True),
    }
    small = len(source) < 65535
    faces = mesh.flat.faces.reshape(-1).astype(np.uint16 if small else np.uint32)
    indices = buffer.array(faces, "SCALAR", _SHORT if small else _INT, _INDICES)
    bind = buffer.array(_inverse_bind(places), "MAT4", _FLOAT)
    image = buffer.view(_jpeg(mesh.texture))

    # The tree that refers to them.
    primitive = {"attributes": attributes, "indices": indices, "material": 0, "mode": 4}
    tree = _tree(name, extras) | {
        "nodes": _nodes(name, places, rotations),
        "meshes": [{"name": name, "primitives": [primitive]}],
        "skins": [{"name": name, "joints": [1, 2, 3], "skeleton": 1, "inverseBindMatrices": bind}],
        "images": [{"name": name, "mimeType": "image/jpeg", "bufferView": image}],
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
    }
    return _file(tree, buffer.data)


def _jpeg(texture: UInt8[ndarray, "S S 3"]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(texture).save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def _in_shorts(weights: Float[ndarray, "N 3"]) -> ndarray:
    """Weights as 16-bit shares of exactly 65535, with a fourth that is 0."""
    shares = np.zeros((len(weights), 4), np.int64)
    shares[:, :3] = np.round(weights.astype(np.float64) * 65535.0)
    largest = shares.argmax(axis=1)
    shares[np.arange(len(shares)), largest] += 65535 - shares.sum(axis=1)
    return shares.astype(np.uint16)


def _inverse_bind(places: Float[ndarray, "3 3"]) -> Float[ndarray, "3 16"]:
    """From the mesh to joints that are only shifted, column by column."""
    matrices = np.tile(np.eye(4, dtype=np.float32), (len(places), 1, 1))
    matrices[:, 3, :3] = -places  # column-major: the last column comes last
    return matrices.reshape(len(places), 16)


def _nodes(name: str, places: ndarray, rotations: ndarray) -> list[dict[str, Any]]:
    """The skinned mesh, and the chain of joints."""
    nodes: list[dict[str, Any]] = [{"name": name, "mesh": 0, "skin": 0}]
    before = np.zeros(3, np.float32)
    for i, joint in enumerate(JOINTS):
        node: dict[str, Any] = {"name": joint, "translation": (places[i] - before).tolist()}
        if abs(float(rotations[i, 3])) < 1.0:
            node["rotation"] = rotations[i].tolist()
        if i + 1 < len(JOINTS):
            node["children"] = [i + 2]
        nodes.append(node)
        before = places[i]
    return nodes


def _tree(name: str, extras: dict[str, Any]) -> dict[str, Any]:
    """The scene, and one material."""
    matte = {
        "name": "matte",
        "pbrMetallicRoughness": {
            "baseColorTexture": {"index": 0},
            "metallicFactor": 0.0,
            "roughnessFactor": ROUGHNESS,
        },
    }
    return {
        "asset": {"version": "2.0", "generator": f"portrait360 {portrait360.__version__}", "extras": extras},
        "scene": 0,
        "scenes": [{"name": name, "nodes": [0, 1], "extras": extras}],
        "materials": [matte],
        "textures": [{"sampler": 0, "source": 0}],
        "samplers": [{"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP, "wrapS": _CLAMP, "wrapT": _CLAMP}],
    }


def _file(tree: dict[str, Any], data: bytes) -> bytes:
    """Header and two chunks, each padded to a multiple of four."""
    data += b"\0" * (-len(data) % 4)
    text = json.dumps(tree | {"buffers": [{"byteLength": len(data)}]}, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(data))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
