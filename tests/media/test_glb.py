"""What other programs find in a .glb file: trimesh, and a reader that follows the format's text."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import portrait360
from portrait360.geometry.body import load_body
from portrait360.geometry.rig import JOINTS, joint_rotations, make_rig, skinned
from portrait360.media.glb import TexturedMesh, glb_bytes
from portrait360.media.mesh import extract_mesh
from portrait360.media.obj import write_obj
from portrait360.media.texture import bake_texture
from portrait360.media.unwrap import light_and_flat
from support.ball_portrait import BALL_BOX, BallPortrait
from tools.glb_reader import read_glb

STEP, METRES = 0.4 / 50, 1.4
POSE = torch.tensor([0.2, -0.3, 0.1, 0.15, 0.25, -0.2])


@pytest.fixture(scope="module")
def mesh() -> TexturedMesh:
    query = BallPortrait().query
    dense = extract_mesh(query, *BALL_BOX, step=STEP)
    light, flat = light_and_flat(dense, 2000, floor=BALL_BOX[0][1], step=STEP)
    texture = bake_texture(query, light, flat, 128, step=STEP)
    return TexturedMesh(light, flat, texture, make_rig(load_body(), light.vertices))


def to_bytes(mesh: TexturedMesh, pose: torch.Tensor | None = None, **extras) -> bytes:
    rotations = joint_rotations(torch.zeros(6) if pose is None else pose)
    return glb_bytes(mesh, name="ada", extras=extras, metres=METRES, rotations=rotations)


def parts(data: bytes) -> tuple[dict, bytes]:
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def test_another_program_reads_the_same_mesh(mesh):
    scene = trimesh.load(io.BytesIO(to_bytes(mesh, seed=7)), file_type="glb", process=False)
    assert scene.metadata["seed"] == 7
    (read,) = scene.geometry.values()
    source = mesh.flat.source
    assert np.allclose(read.vertices, mesh.surface.vertices[source] * METRES, atol=1e-6)
    assert np.array_equal(read.faces, mesh.flat.faces)
    assert np.allclose(read.vertex_normals, mesh.surface.normals[source], atol=1e-5)
    # trimesh turns v upwards
    assert np.allclose(read.visual.uv[:, 0], mesh.flat.uv[:, 0], atol=1e-6)
    assert np.allclose(1.0 - read.visual.uv[:, 1], mesh.flat.uv[:, 1], atol=1e-6)
    read.merge_vertices(merge_tex=True, merge_norm=True)
    assert read.is_watertight
    assert read.is_winding_consistent
    assert read.volume > 0


def test_the_material_is_a_texture_on_something_matte(mesh):
    scene = trimesh.load(io.BytesIO(to_bytes(mesh)), file_type="glb", process=False)
    (read,) = scene.geometry.values()
    material = read.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 0.9)
    texture = np.asarray(material.baseColorTexture.convert("RGB")).astype(int)
    assert texture.shape == (128, 128, 3)
    assert np.abs(texture - mesh.texture).mean() < 3
    tree, _ = parts(to_bytes(mesh))
    assert "COLOR_0" not in tree["meshes"][0]["primitives"][0]["attributes"]
    assert "alphaMode" not in tree["materials"][0]


def test_the_file_is_laid_out_as_the_format_asks(mesh):
    data = to_bytes(mesh, text="°")
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    assert json_length % 4 == 0
    tree, binary = parts(data)
    assert tree["asset"]["generator"] == f"portrait360 {portrait360.__version__}"
    assert tree["asset"]["extras"] == tree["scenes"][0]["extras"] == {"text": "°"}
    binary_length, kind = struct.unpack("<I4s", data[20 + json_length : 28 + json_length])
    assert kind == b"BIN\0"
    assert binary_length == tree["buffers"][0]["byteLength"] == len(binary)
    assert binary_length % 4 == 0
    end = 0
    for view in tree["bufferViews"]:
        assert view["byteOffset"] % 4 == 0
        assert view["byteOffset"] >= end
        end = view["byteOffset"] + view["byteLength"]
    assert end <= binary_length
    position = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert np.allclose(position["min"], mesh.surface.vertices.min(0) * METRES, atol=1e-6)
    assert np.allclose(position["max"], mesh.surface.vertices.max(0) * METRES, atol=1e-6)


def test_accessors_fit_their_views_and_what_they_number(mesh):
    tree, _ = parts(to_bytes(mesh))
    sizes = {5121: 1, 5123: 2, 5125: 4, 5126: 4}
    widths = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
    for accessor in tree["accessors"]:
        length = accessor["count"] * sizes[accessor["componentType"]] * widths[accessor["type"]]
        assert tree["bufferViews"][accessor["bufferView"]]["byteLength"] == length
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "TEXCOORD_0", "JOINTS_0", "WEIGHTS_0"}
    assert len({tree["accessors"][index]["count"] for index in attributes.values()}) == 1
    read = read_glb(to_bytes(mesh))
    assert read.faces.min() == 0
    assert read.faces.max() == len(read.vertices) - 1
    assert np.abs(np.linalg.norm(read.normals, axis=1) - 1).max() < 1e-5
    # what the Khronos validator asks of weights: whole shares, and joint 0 where there is none
    assert (np.round(read.weights * 65535).astype(int).sum(1) == 65535).all()
    assert (read.joints[read.weights == 0] == 0).all()
    assert Image.open(io.BytesIO(_image(to_bytes(mesh)))).size == (128, 128)


def _image(data: bytes) -> bytes:
    tree, binary = parts(data)
    view = tree["bufferViews"][tree["images"][0]["bufferView"]]
    return binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]


def test_the_joints_are_root_neck_and_head(mesh):
    tree, _ = parts(to_bytes(mesh))
    skin, nodes = tree["skins"][0], tree["nodes"]
    assert [nodes[i]["name"] for i in skin["joints"]] == list(JOINTS)
    assert nodes[0]["skin"] == 0
    assert all("rotation" not in node for node in nodes)
    # every joint is where the rig has it, and the rest pose leaves the mesh as it is
    place = np.cumsum([nodes[i]["translation"] for i in skin["joints"]], axis=0)
    assert np.allclose(place, mesh.rig.joints * METRES, atol=1e-6)
    read = read_glb(to_bytes(mesh))
    assert np.allclose(read.posed(), read.vertices, atol=1e-6)


def test_turned_joints_move_the_mesh_as_the_rig_does(mesh):
    read = read_glb(to_bytes(mesh, POSE))
    expected = skinned(mesh.rig, mesh.surface.vertices, POSE)[mesh.flat.source] * METRES
    assert np.allclose(read.posed(), expected, atol=2e-5)
    assert np.allclose(read.vertices, read_glb(to_bytes(mesh)).vertices)
    assert np.abs(read.posed() - read.vertices).max() > 0.02


def test_same_mesh_same_bytes(mesh):
    assert to_bytes(mesh, seed=1) == to_bytes(mesh, seed=1) != to_bytes(mesh, seed=2)


def test_many_vertices_get_wide_indices(mesh):
    repeated = 65535 // len(mesh.flat.source) + 1
    count = len(mesh.flat.source)
    flat = type(mesh.flat)(
        np.tile(mesh.flat.source, repeated),
        np.concatenate([mesh.flat.faces + k * count for k in range(repeated)]),
        np.tile(mesh.flat.uv, (repeated, 1)),
        mesh.flat.charts,
    )
    read = read_glb(to_bytes(TexturedMesh(mesh.surface, flat, mesh.texture, mesh.rig)))
    assert read.faces.max() == repeated * count - 1


def test_an_obj_is_the_same_mesh_with_its_texture_beside(mesh, tmp_path):
    surface = mesh.surface
    files = write_obj(tmp_path / "ada.obj", mesh, surface.vertices, surface.normals, metres=METRES)
    assert [path.name for path in files] == ["ada.obj", "ada.mtl", "ada.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ada.mtl", "ada.obj", "ada.png"]
    read = trimesh.load(tmp_path / "ada.obj", process=False)
    assert len(read.faces) == len(surface.faces)
    corners = read.vertices[read.faces]
    assert np.allclose(corners, surface.vertices[surface.faces] * METRES, atol=2e-6)
    uv = read.visual.uv[read.faces]
    assert np.allclose(np.stack([uv[..., 0], 1 - uv[..., 1]], -1), mesh.flat.uv[mesh.flat.faces], atol=2e-6)
    assert np.array_equal(np.asarray(read.visual.material.image.convert("RGB")), mesh.texture)
    merged = trimesh.load(tmp_path / "ada.obj", process=False)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    assert merged.is_watertight
