"""SMPL files: posed as the smplx package poses them, read as data, and used by every part of the deformation."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from scipy.sparse import csc_matrix, csr_matrix

from portrait360.geometry.body import posed_vertices
from portrait360.geometry.deformation import deformation_field, deformation_field_reference
from portrait360.official import smpl_file
from portrait360.official.smpl import read_smpl
from portrait360.types import AssetError
from support import hostile
from support.smpl_files import hostile_smpl_files, lifelike_arrays, npz, published, random_arrays, write_published
from tools.deformation_report import measure, random_poses, single_axis_poses

HOSTILE = hostile_smpl_files()
EVERY_DIRECTION = torch.cat([
    torch.zeros(1, 6),
    torch.tensor([[1e-9, 0, 0, 0, -1e-7, 0], [1e-5, 2e-5, 0, 0, 0, -1e-4], [0, 0, 0, 0.3, -0.2, 0.1]]),
    torch.tensor([[0.4, 0.1, -0.3, 0, 0, 0], [3.1, 0, 0, 0, -3.1, 0]]),
    random_poses(6) * 4,
    single_axis_poses(40),
])  # fmt: skip


def arrays_file(path: Path, arrays: dict, sparse: type = csc_matrix) -> Path:
    """A file that smplx's own loader reads: a pickle of plain arrays and one sparse one."""
    path.write_bytes(pickle.dumps(arrays | {"J_regressor": sparse(arrays["J_regressor"])}, 2))
    return path


def by_smplx(path: Path, vertices: int, poses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """smplx's vertices (B, V, 3) and resting joints (24, 3)."""
    ids = {name: i % vertices for i, name in enumerate(smplx.vertex_ids.vertex_ids["smplh"])}
    model = smplx.SMPL(str(path), batch_size=len(poses), vertex_ids=ids)
    turns = torch.zeros(len(poses), 23, 3)
    turns[:, 11], turns[:, 14] = poses[:, :3], poses[:, 3:]
    with torch.no_grad():
        rest = smplx.lbs.vertices2joints(model.J_regressor, model.v_template[None])[0]
        return model(body_pose=turns.flatten(1)).vertices, rest


@pytest.mark.parametrize(("vertices", "faces"), [(40, 60), (6890, 13776)])
def test_posing_equals_smplx(tmp_path: Path, vertices: int, faces: int) -> None:
    path = arrays_file(tmp_path / "smpl.pkl", random_arrays(vertices, faces))
    expected, joints = by_smplx(path, vertices, EVERY_DIRECTION)
    body = read_smpl(path)
    found = posed_vertices(body, EVERY_DIRECTION)
    assert found.shape == (len(EVERY_DIRECTION), vertices, 3)
    assert body.faces.shape == (faces, 3)
    torch.testing.assert_close(found, expected - joints[12], atol=1e-5, rtol=0)
    torch.testing.assert_close(body.joints, joints - joints[12], atol=1e-6, rtol=0)
    # the comparison means something: poses and pose shapes move vertices by far more than the tolerance
    assert (expected - expected[0]).norm(dim=-1).amax(1)[3:].min() > 0.05
    rigid = posed_vertices(replace(body, pose_shapes=None), EVERY_DIRECTION)
    assert (found - rigid).norm(dim=-1).amax(1)[3:].min() > 1e-3


def test_the_zero_pose_is_the_file_s_template_about_its_neck(tmp_path: Path) -> None:
    arrays = random_arrays()
    body = read_smpl(write_published(tmp_path / "smpl.pkl", arrays))
    neck = arrays["J_regressor"][12] @ arrays["v_template"]
    np.testing.assert_allclose(body.vertices, arrays["v_template"] - neck, atol=1e-6)
    torch.testing.assert_close(posed_vertices(body, torch.zeros(1, 6))[0], body.vertices, atol=1e-6, rtol=0)
    assert body.joints[12].abs().max() < 1e-7
    assert (body.parents[12], body.parents[15], body.parents[13]) == (9, 12, 9)
    assert body.moving == (12, 15)
    assert body.name == "smpl"


def test_every_form_of_file_gives_the_same_body(tmp_path: Path) -> None:
    arrays = random_arrays()
    signed = arrays | {"kintree_table": arrays["kintree_table"].astype(np.int64), "f": arrays["f"].astype(np.int32)}
    signed["kintree_table"][0, 0] = -1
    files = {
        "published": hostile.save(published(arrays)),
        "plain": hostile.dumps(signed),
        "protocol-4": hostile.dumps(arrays, 4),
        "fortran": hostile.dumps({name: np.asfortranarray(values) for name, values in arrays.items()}),
        "npz": npz(signed),
        "npz-big-endian": npz({name: values.astype(values.dtype.newbyteorder(">")) for name, values in arrays.items()}),
    }
    (tmp_path / "b").write_bytes(npz(arrays))
    expected = read_smpl(tmp_path / "b")
    bodies = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        bodies.append(read_smpl(tmp_path / name))
    bodies += [read_smpl(arrays_file(tmp_path / "s", arrays, form)) for form in (csc_matrix, csr_matrix)]
    for body in bodies:
        for field in ("vertices", "faces", "weights", "joints", "pose_shapes"):
            torch.testing.assert_close(getattr(body, field), getattr(expected, field), atol=1e-6, rtol=0)
        assert (body.parents, body.drive) == (expected.parents, expected.drive)


# --- the deformation with such a body ---


def test_field_agrees_with_exact_on_a_lifelike_body(tmp_path: Path) -> None:
    body = read_smpl(write_published(tmp_path / "smpl.pkl", lifelike_arrays()))
    poses = torch.cat([random_poses(4), single_axis_poses(20)])
    bare = measure(replace(body, pose_shapes=None), poses, 1500)
    assert bare.field_to_exact_moved.mean < 8e-4, bare
    assert bare.field_to_exact_moved.p99 < 7e-3, bare
    assert bare.field_to_vertices.mean < 2e-4, bare
    # the field leaves pose shapes out, the exact transfer has them: they differ by no more than these
    whole = measure(body, poses, 1500)
    shapes = (posed_vertices(body, poses) - posed_vertices(replace(body, pose_shapes=None), poses)).norm(dim=-1)
    assert 1e-3 < shapes.max() < 1e-2
    assert whole.field_to_exact.maximum < bare.field_to_exact.maximum + shapes.max()
    assert whole.exact_to_vertices.mean < 2e-4, whole


def test_the_compiled_field_takes_such_a_body(tmp_path: Path) -> None:
    body = read_smpl(write_published(tmp_path / "smpl.pkl", lifelike_arrays()))
    poses = random_poses(2).requires_grad_()
    field, plain = deformation_field(body, poses, (6, 7, 5)), deformation_field_reference(body, poses, (6, 7, 5))
    assert field.grad_fn.__class__.__name__ == "_FieldBackward"
    torch.testing.assert_close(field, plain, atol=1e-5, rtol=0)
    assert field.norm(dim=-1).max() > 0.02


# --- files made to do harm ---


def refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> AssetError:
    """The error of reading the file, after checking that nothing ran."""

    def forbidden(*arguments, **_):
        raise AssertionError(f"the file ran something: {arguments}")

    monkeypatch.delenv(hostile.CANARY, raising=False)
    for function in ("system", "popen"):
        monkeypatch.setattr(os, function, forbidden)
    before, around = set(sys.modules), os.listdir(path.parent)
    with pytest.raises(AssetError) as caught:
        read_smpl(path)
    assert hostile.CANARY not in os.environ
    assert {name for name in set(sys.modules) - before if not name.startswith("encodings.")} == set()
    assert os.listdir(path.parent) == around
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, sentence = HOSTILE[name]
    path = tmp_path / "smpl.pkl"
    path.write_bytes(make())
    with pytest.raises(AssetError, match=sentence):
        raise refused(path, monkeypatch)


@pytest.mark.parametrize("name", hostile.files())
def test_files_hostile_to_snapshots_are_refused_too(name: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "smpl.pkl"
    path.write_bytes(hostile.files()[name]())
    refused(path, monkeypatch)


def test_arrays_that_share_their_bytes_cannot_fill_the_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(smpl_file, "MOST_BYTES", 3 << 20)
    raw = b"\0" * (1 << 20)
    path = tmp_path / "smpl.pkl"
    path.write_bytes(hostile.save({i: hostile.array_state((1 << 17,), "f8", raw) for i in range(9)}))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(AssetError, match="hold more than 3 MiB"):
        read_smpl(path)
