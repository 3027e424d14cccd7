"""Read a .glb file of this project as another program does: its arrays, texture and joints, and where they move it."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image

_TYPES = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


@dataclass(frozen=True)
class GlbMesh:
    """What a file holds; metres."""

    tree: dict[str, Any]
    """Its JSON."""
    vertices: Float[ndarray, "W 3"]
    """At rest."""
    normals: Float[ndarray, "W 3"]
    uv: Float[ndarray, "W 2"]
    faces: Int[ndarray, "F 3"]
    joints: Int[ndarray, "W 4"]
    weights: Float[ndarray, "W 4"]
    inverse_bind: Float[ndarray, "J 4 4"]
    texture: UInt8[ndarray, "S S 3"]

    def posed(self, rotations: dict[str, Float[ndarray, "4"]] | None = None) -> Float[ndarray, "W 3"]:
        """Vertices moved by the joints (glTF 2.0, section 3.7.3.3).

        Args:
            rotations: quaternions (x, y, z, w) of joints by name, in place of those of the file.
        """
        nodes, order = self.tree["nodes"], self.tree["skins"][0]["joints"]
        worlds = {index: np.eye(4) for index in range(len(nodes))}
        for index in order:  # parents come first
            node = nodes[index]
            turn = (rotations or {}).get(node["name"], np.array(node.get("rotation", [0.0, 0.0, 0.0, 1.0])))
            local = np.eye(4)
            local[:3, :3], local[:3, 3] = rotation_matrix(turn), node["translation"]
            parents = [worlds[i] for i in order if index in nodes[i].get("children", [])]
            worlds[index] = parents[0] @ local if parents else local
        motions = np.stack([worlds[index] for index in order]) @ self.inverse_bind
        blended = np.einsum("wk,wkab->wab", self.weights, motions[self.joints])
        return (blended[:, :3, :3] @ self.vertices[..., None])[..., 0] + blended[:, :3, 3]


def rotation_matrix(quaternion: Float[ndarray, "4"]) -> Float[ndarray, "3 3"]:
    """Of a unit quaternion x, y, z, w."""
    x, y, z, w = quaternion
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + 2.0 * w * cross + 2.0 * cross @ cross


def read_glb(data: bytes) -> GlbMesh:
    """Read a file's bytes. Raises ValueError unless it has one skinned, textured mesh."""
    # Header and chunks.
    magic, version, length = struct.unpack_from("<4sII", data)
    if magic != b"glTF" or version != 2 or length != len(data):
        raise ValueError("not a whole .glb file of version 2")
    size = struct.unpack_from("<I", data, 12)[0]
    tree, binary = json.loads(data[20 : 20 + size]), data[28 + size :]

    def view(index: int) -> bytes:
        part = tree["bufferViews"][index]
        return binary[part["byteOffset"] : part["byteOffset"] + part["byteLength"]]

    def array(index: int) -> ndarray:
        about = tree["accessors"][index]
        values = np.frombuffer(view(about["bufferView"]), _TYPES[about["componentType"]])
        return values.reshape(about["count"], _WIDTHS[about["type"]])

    # One mesh, its joints and its texture.
    (mesh,) = tree["meshes"]
    (primitive,) = mesh["primitives"]
    named = {name: array(index) for name, index in primitive["attributes"].items()}
    bind = array(tree["skins"][0]["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    image = Image.open(io.BytesIO(view(tree["images"][0]["bufferView"]))).convert("RGB")
    return GlbMesh(
        tree=tree,
        vertices=named["POSITION"].astype(np.float64),
        normals=named["NORMAL"].astype(np.float64),
        uv=named["TEXCOORD_0"].astype(np.float64),
        faces=array(primitive["indices"]).reshape(-1, 3).astype(np.int64),
        joints=named["JOINTS_0"].astype(np.int64),
        weights=named["WEIGHTS_0"].astype(np.float64) / 65535.0,
        inverse_bind=bind.astype(np.float64),
        texture=np.asarray(image),
    )
