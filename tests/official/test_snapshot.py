"""Snapshots are read as data; files made to do harm are refused, and nothing in them runs."""

from __future__ import annotations

import lzma
import os
import sys

import numpy as np
import pytest
import torch

from portrait360.official import pickle_data, snapshot
from portrait360.official.pickle_data import Name, Thing
from portrait360.official.snapshot import constructor_arguments, read_snapshot, state_tensors
from portrait360.types import CheckpointError, InputError
from support.hostile import CANARY, PERSISTENT, Reduce, array_state, dumps, files, named, save, storage_bytes, tensor

HOSTILE = files()


def persistent(class_name: str, state: dict) -> Reduce:
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}
    return Reduce(PERSISTENT, meta)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_never_run(name, tmp_path, monkeypatch):
    def forbidden(*arguments, **_):
        raise AssertionError(f"the file ran something: {arguments}")

    path = tmp_path / "snapshot.pkl"
    path.write_bytes(HOSTILE[name]())
    monkeypatch.delenv(CANARY, raising=False)
    for function in ("system", "popen"):
        monkeypatch.setattr(os, function, forbidden)
    before = set(sys.modules)
    with pytest.raises(CheckpointError) as caught:
        read_snapshot(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert CANARY not in os.environ
    assert set(sys.modules) == before
    assert os.listdir(tmp_path) == ["snapshot.pkl"]


def test_there_are_enough_hostile_files():
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", ["os.system", "exec", "exec-protocol-4", "pickle.loads", "partial"])
def test_hostile_files_would_do_harm_elsewhere(name):
    """The files are what they claim: they name functions that a usual unpickler calls."""
    import pickletools

    operations = [operation.name for operation, _, _ in pickletools.genops(HOSTILE[name]())]
    assert "REDUCE" in operations
    assert {"GLOBAL", "STACK_GLOBAL"} & set(operations)


def test_modules_tensors_and_options_of_a_snapshot(tmp_path):
    weight = Reduce(named("torch._utils", "_rebuild_parameter"), tensor((2, 2), (2, 1)), True, {})
    state = {"_parameters": {"weight": weight}, "_buffers": {"none": None}, "_modules": {}}
    child = Reduce(named("training.smpl_triplane", "OSGDecoder"), state=state)
    data = np.arange(4, dtype="<f4").tobytes()
    buffer = tensor((2,), (2,), offset=1, data=storage_bytes(data=data))
    network = persistent("TriPlaneGenerator", {
        "_parameters": {}, "_buffers": {"w_avg": buffer}, "_modules": {"decoder": child},
        "_init_kwargs": {"z_dim": 512, "rendering_kwargs": {"ray_start": 2.25}},
        "faces": array_state((2, 1), "i4", np.array([7, 8], "<i4").tobytes()),
    })  # fmt: skip
    path = tmp_path / "s.pkl"
    path.write_bytes(save({"G_ema": network, "augment_pipe": None}))
    content = read_snapshot(path)
    assert list(content) == ["G_ema", "augment_pipe"]
    found = content["G_ema"]
    assert found.origin == Name("persistent", "TriPlaneGenerator")
    tensors = state_tensors(found)
    assert sorted(tensors) == ["decoder.weight", "w_avg"]
    assert torch.equal(tensors["w_avg"], torch.tensor([1.0, 3.0]))
    assert tensors["decoder.weight"].shape == (2, 2)
    assert constructor_arguments(found) == {"z_dim": 512, "rendering_kwargs": {"ray_start": 2.25}}
    assert found.state["faces"].value.tolist() == [[7], [8]]
    compressed = tmp_path / "s.pkl.xz"
    compressed.write_bytes(lzma.compress(path.read_bytes()))
    assert state_tensors(read_snapshot(compressed)["G_ema"]).keys() == tensors.keys()


def test_shared_objects_stay_shared(tmp_path):
    shared = {"a": 1}
    path = tmp_path / "s.pkl"
    values = (1, "ä", b"b", None, True, 2.5)
    path.write_bytes(dumps({"x": [shared, shared], "y": {1, 2}, "z": frozenset({3}), "t": values}))
    content = read_snapshot(path)
    assert content["x"][0] is content["x"][1]
    assert sorted(content["y"]) == [1, 2]
    assert content["t"] == values


def test_modules_in_a_circle_are_refused():
    module = Thing(Name("training", "X"))
    module.state["_modules"] = {"again": module}
    with pytest.raises(CheckpointError, match="nested too deeply"):
        state_tensors(module)


def test_bombs_are_stopped_early(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "MOST_BYTES", 1 << 25)
    path = tmp_path / "bomb.pkl.xz"
    with lzma.open(path, "wb", preset=0) as file:
        for _ in range(6):
            file.write(b"\0" * (1 << 24))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        read_snapshot(path)


def test_endless_operations_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_data, "MOST_OPERATIONS", 1000)
    path = tmp_path / "s.pkl"
    path.write_bytes(b"\x80\x02" + b"N0" * 10_000 + b"N.")
    with pytest.raises(CheckpointError, match="more than 1000 operations"):
        read_snapshot(path)


SAFE = b"\x08" + bytes(7) + b'{"a": 1}'


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no snapshot"), (b"", "is empty"), (b"\xfd7zXZ\x00junk", "compression"), (SAFE, "a safetensors file")],
)
def test_files_that_are_none(tmp_path, content, said):
    path = tmp_path / "s.pkl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((CheckpointError, InputError), match=said):
        read_snapshot(path)
