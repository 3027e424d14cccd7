from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import trimesh

import portrait360
from portrait360.media.glb import linear_light, write_glb
from portrait360.media.mesh import extract_mesh
from support.ball_portrait import BALL_BOX, BallPortrait


@pytest.fixture(scope="module")
def mesh():
    portrait = BallPortrait()
    return extract_mesh(portrait.query, *BALL_BOX, step=0.4 / 40)


def test_another_program_reads_the_same_mesh(mesh, tmp_path):
    write_glb(tmp_path / "a.glb", mesh, name="seed 7", extras={"seed": 7})
    scene = trimesh.load(tmp_path / "a.glb", process=False)
    assert scene.metadata["seed"] == 7
    (read,) = scene.geometry.values()
    assert np.array_equal(read.vertices, mesh.vertices)
    assert np.array_equal(read.faces, mesh.faces)
    assert np.allclose(read.vertex_normals, mesh.normals, atol=1e-5)
    assert read.is_watertight
    assert read.visual.material.metallicFactor == 0.0
    colours = np.asarray(read.visual.vertex_attributes["color"], np.float64) / 65535.0
    assert np.allclose(colours[:, :3], linear_light(mesh.colours), atol=1e-5)
    assert (colours[:, 3] == 1.0).all()


def test_the_file_is_laid_out_as_the_format_asks(mesh, tmp_path):
    write_glb(tmp_path / "a.glb", mesh, extras={"text": "°"})
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    json_length, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    assert json_length % 4 == 0
    tree = json.loads(data[20 : 20 + json_length])
    assert tree["asset"]["generator"] == f"portrait360 {portrait360.__version__}"
    assert tree["scenes"][0]["extras"] == {"text": "°"}
    binary_length, kind = struct.unpack("<I4s", data[20 + json_length : 28 + json_length])
    assert kind == b"BIN\0"
    assert binary_length == tree["buffers"][0]["byteLength"] == len(data) - 28 - json_length
    for view in tree["bufferViews"]:
        assert view["byteOffset"] % 4 == 0
    position = tree["accessors"][0]
    assert np.allclose(position["min"], mesh.vertices.min(0))
    assert np.allclose(position["max"], mesh.vertices.max(0))


def test_same_mesh_same_bytes(mesh, tmp_path):
    for name in ("a.glb", "b.glb"):
        write_glb(tmp_path / name, mesh, extras={"seed": 1})
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_linear_light_matches_known_values():
    # The middle grey of sRGB (byte 188) is half the light; the ends and the joint of the curve are exact.
    assert linear_light(np.array([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert linear_light(np.array([188 / 255]))[0] == pytest.approx(0.5, abs=0.003)
    joint = linear_light(np.array([0.04045, 0.04045 + 1e-9]))
    assert joint[0] == pytest.approx(joint[1], abs=1e-6)
