"""Files of SMPL's layout without SMPL's data: random ones, a lifelike one made from the packaged body, hostile ones."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from portrait360.geometry.body import BODY_BONES, load_body
from support.hostile import CANARY, HARM, Reduce, array_state, dumps, named, save

PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
ROOT = 2**32 - 1
"""The root's parent as the published files have it."""


def kintree() -> np.ndarray:
    return np.array([(ROOT, *PARENTS[1:]), range(24)], np.uint32)


def random_arrays(vertices: int = 40, faces: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers in SMPL's shapes: weights add up to 1, joints are means of vertices."""
    rng = np.random.default_rng(seed)
    regressor = rng.random((24, vertices)) * (rng.random((24, vertices)) < 0.2)
    regressor[:, :24] += np.eye(24, min(24, vertices))
    return {
        "v_template": rng.normal(size=(vertices, 3)) * 0.3,
        "f": np.stack([rng.permutation(vertices)[:3] for _ in range(faces)]).astype(np.uint32),
        "weights": rng.dirichlet(np.full(24, 0.2), vertices),
        "posedirs": rng.normal(size=(vertices, 3, 207)) * 0.01,
        "shapedirs": rng.normal(size=(vertices, 3, 10)) * 0.01,
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "kintree_table": kintree(),
    }


def lifelike_arrays() -> dict[str, np.ndarray]:
    """The packaged head and shoulders in SMPL's layout: its neck's three bones become joint 12."""
    body = load_body()
    vertices, joints = body.vertices.double().numpy(), np.zeros((24, 3))
    joints[15] = body.joints[BODY_BONES.index("head")].numpy()
    weights = np.zeros((len(vertices), 24))
    weights[:, 9] = body.weights[:, 0]
    weights[:, 12] = body.weights[:, 1:4].sum(1)
    weights[:, 15] = body.weights[:, 4]
    # each joint as the shortest combination of 200 vertices that gives its place and adds up to 1
    some = np.linspace(0, len(vertices) - 1, 200).astype(int)
    system = np.concatenate([vertices[some].T, np.ones((1, 200))])
    regressor = np.zeros((24, len(vertices)))
    regressor[:, some] = (np.linalg.pinv(system) @ np.concatenate([joints.T, np.ones((1, 24))])).T
    # corrections of a few millimetres where the neck and the head move, varying slowly
    slopes = np.random.default_rng(1).normal(size=(3, 3, 207)) * 0.02 * (1 - weights[:, 9])[:, None, None, None]
    return {
        "v_template": vertices + np.array([0.0, -0.2, 0.03]),
        "f": body.faces.numpy().astype(np.uint32),
        "weights": weights / weights.sum(1, keepdims=True),
        "posedirs": np.einsum("vi,vijp->vjp", vertices, slopes),
        "J_regressor": regressor,
        "kintree_table": kintree(),
    }


# ---- how such files are pickled ----


def array(values: np.ndarray) -> Any:
    return array_state(values.shape, values.dtype.str[1:], np.ascontiguousarray(values).tobytes())


def inert(module: str, name: str, state: dict[str, Any]) -> Any:
    """An object of a class of Python 2 with its state."""
    make, base = named("copy_reg", "_reconstructor"), named("__builtin__", "object")
    return Reduce(make, named(module, name), base, None, state=state)


def chumpy(values: np.ndarray) -> Any:
    state = {"x": array(values), "_dirty_vars": {"x"}, "_itr": None, "_depends_on_deps": {}, "_status": "new"}
    return inert("chumpy.ch", "Ch", state)


def sparse(dense: np.ndarray, **change: Any) -> Any:
    """A matrix in compressed columns, as scipy of that time pickled it."""
    rows, columns = dense.T.nonzero()[::-1]
    starts = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=dense.shape[1]))])
    state = {
        "_shape": dense.shape, "maxprint": 50, "data": array(dense[rows, columns]),
        "indices": array(rows.astype(np.int32)), "indptr": array(starts.astype(np.int32)),
    }  # fmt: skip
    return inert("scipy.sparse.csc", "csc_matrix", state | change)


def published(arrays: dict[str, np.ndarray], **change: Any) -> dict[str, Any]:
    """The dictionary in the published files: chumpy and scipy objects, and more than is needed."""
    return {
        "J_regressor_prior": sparse(arrays["J_regressor"]),
        "f": array(arrays["f"]),
        "J_regressor": sparse(arrays["J_regressor"]),
        "kintree_table": array(arrays["kintree_table"]),
        "weights": chumpy(arrays["weights"]),
        "posedirs": chumpy(arrays["posedirs"]),
        "pose_training_info": {"names": array_state((2,), "S3", b"abcdef"), "any": array_state((1,), "O8", b"\0" * 8)},
        "bs_style": "lbs",
        "v_template": chumpy(arrays["v_template"]),
        **change,
    }


def write_published(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.write_bytes(save(published(arrays)))
    return path


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def raw_npz(**members: bytes) -> bytes:
    """A zip with the given bytes as members, the other arrays being right."""
    stream = io.BytesIO()
    good = {name: npy(values) for name, values in random_arrays().items()}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (good | members).items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def npy(values: np.ndarray, **header: Any) -> bytes:
    """An .npy file whose header may lie."""
    stream = io.BytesIO()
    claimed = np.lib.format.header_data_from_array_1_0(values) | header
    np.lib.format.write_array_header_1_0(stream, claimed)
    return stream.getvalue() + values.tobytes()


# ---- files that must be refused: name, content, what the sentence says ----


def hostile_smpl_files() -> dict[str, tuple[Callable[[], bytes], str]]:
    good, command = random_arrays(), f"echo {CANARY}"
    floats, whole = np.zeros(4), np.zeros(4, np.int32)

    def with_(**change: Any) -> Callable[[], bytes]:
        return lambda: save(published(good, **change))

    def zipped(**change: np.ndarray) -> Callable[[], bytes]:
        return lambda: npz(good | change)

    def without(name: str) -> Callable[[], bytes]:
        return lambda: npz({k: v for k, v in good.items() if k != name})

    bad_weights = good["weights"].copy()
    bad_weights[3] *= 2
    not_finite = good["posedirs"].copy()
    not_finite[1, 2, 3] = np.nan
    infinite = good["v_template"].copy()
    infinite[0, 0] = -np.inf
    outside = good["f"].copy()
    outside[5, 1] = len(good["v_template"])
    loop = kintree()
    loop[0, 5] = 7
    elsewhere = kintree()
    elsewhere[0, 15] = 9
    circle = {"data": None, "indices": array(whole), "indptr": array(whole), "_shape": (24, 40)}
    circle["data"] = inert("scipy.sparse.csc", "csc_matrix", {"data": array(floats)})
    header = npy(good["v_template"])
    return {
        # ---- code ----
        "system-instead-of-an-array": (with_(weights=Reduce(os.system, command)), "names .*system"),
        "eval-instead-of-an-array": (with_(v_template=Reduce(eval, f"exec({HARM!r})")), "names .*eval"),
        "system-in-chumpy": (
            with_(weights=inert("chumpy.ch", "Ch", {"x": Reduce(os.system, command)})), "names .*system"),
        "exec-as-chumpy-state": (
            with_(weights=inert("chumpy.ch", "Ch", {"x": array(floats), "f": Reduce(exec, HARM)})), "names .*exec"),
        "chumpy-with-a-function": (
            with_(weights=Reduce(named("types", "FunctionType"), b"code", {})), "names types.FunctionType"),
        "chumpy-with-code": (
            with_(weights=inert("chumpy.ch", "Ch", {"x": Reduce(named("marshal", "loads"), b"c")})), "names marshal"),
        "chumpy-call": (with_(weights=Reduce(named("chumpy.ch", "system"), command)), "weights is not an array"),
        "lookalike-of-chumpy": (with_(weights=Reduce(named("chumpy_evil", "run"), command)), "names chumpy_evil"),
        "scipy-loader": (with_(weights=Reduce(named("scipy.io", "loadmat"), "x")), "names scipy.io"),
        "numpy-loader": (with_(weights=Reduce(named("numpy", "load"), "x")), "names numpy.load"),
        "code-in-an-unused-entry": (with_(hair=Reduce(os.popen, command)), "names .*popen"),
        "class-by-another-door": (
            with_(weights=Reduce(named("copy_reg", "constructor"), named("os", "system"))), "names copy_reg"),
        # ---- broken files ----
        "cut": (lambda: with_()()[:-3000], "damaged|too early"),
        "npz-cut": (lambda: zipped()()[:-40], "compression is damaged"),
        "npz-flipped": (lambda: _flip(zipped()()), "compression is damaged|not an array"),
        "npz-of-nothing": (lambda: b"PK\x03\x04" + b"\0" * 60, "compression is damaged"),
        "empty": (lambda: b"", "is empty"),
        "text": (lambda: b"v 0 0 0\nf 1 1 1\n", "damaged"),
        "a-list": (lambda: dumps([1, 2]), "pickle of something else"),
        "no-arrays": (lambda: dumps({"v_template": [[0.0, 0.0, 0.0]]}), "v_template is not an array"),
        "other-keys": (lambda: dumps({"vertices": 3}), "has no v_template"),
        "npz-other-keys": (without("posedirs"), "has no posedirs"),
        # ---- sizes ----
        "array-larger-than-its-bytes": (
            with_(v_template=array_state((2**40, 3), "f8", b"\0" * 24)), "size does not match"),
        "array-of-negative-size": (with_(v_template=array_state((-1, 3), "f8", b"\0" * 24)), "size does not match"),
        "array-of-objects": (with_(v_template=array_state((1, 3), "O8", b"\0" * 24)), "not an array of numbers"),
        "sparse-huge": (with_(J_regressor=sparse(good["J_regressor"], _shape=(24, 2**50))), "too large"),
        "sparse-outside": (
            with_(J_regressor=sparse(good["J_regressor"], indices=array(whole + 99), data=array(floats),
                                     indptr=array(np.linspace(0, 4, 41).astype(np.int32)))), "outside of the matrix"),
        "sparse-backwards": (
            with_(J_regressor=sparse(good["J_regressor"], indices=array(whole), data=array(floats),
                                     indptr=array(np.array([0, 4, 2] + [4] * 38, np.int32)))), "outside of the matrix"),
        "sparse-short": (with_(J_regressor=sparse(good["J_regressor"], indptr=array(whole))), "do not fit together"),
        "sparse-in-sparse": (
            with_(J_regressor=inert("scipy.sparse.csc", "csc_matrix", circle)), "not an array of numbers"),
        "sparse-of-another-kind": (
            with_(J_regressor=inert("scipy.sparse.lil", "lil_matrix", {"_shape": (24, 40)})), "is a lil_matrix"),
        "npz-huge-header": (
            lambda: raw_npz(v_template=npy(good["v_template"], shape=(2**45, 3))), "does not match its shape"),
        "npz-negative-header": (
            lambda: raw_npz(v_template=npy(good["v_template"], shape=(-40, -3))), "does not match its shape"),
        "npz-objects": (
            lambda: raw_npz(v_template=npy(good["v_template"], descr="|O")), "not an array of numbers"),
        "npz-objects-that-run": (
            lambda: raw_npz(v_template=npy(np.zeros(0), descr="|O") + dumps(Reduce(os.system, command))),
            "not an array of numbers"),
        "npz-not-npy": (lambda: raw_npz(v_template=b"hello"), "v_template is not an array"),
        "npz-header-of-brackets": (
            lambda: raw_npz(v_template=header[:10] + b"(" * (len(header) - 10)), "v_template is not an array"),
        # ---- another layout, impossible values ----
        "one-number": (zipped(v_template=np.float64(3.0)), "v_template is a single number"),
        "no-vertices": (
            zipped(v_template=np.zeros((0, 3)), weights=np.zeros((0, 24)), posedirs=np.zeros((0, 3, 207)),
                   J_regressor=np.zeros((24, 0))), "v_template is 0 x 3"),
        "no-faces": (zipped(f=np.zeros((0, 3), np.int64)), "f is 0 x 3"),
        "smplh": (zipped(weights=np.full((40, 52), 1 / 52)), "weights is 40 x 52 instead of 40 x 24"),
        "too-many-faces": (zipped(f=np.zeros((2**17 + 1, 3), np.int8)), "more than 131072"),
        "nan": (zipped(posedirs=not_finite), "posedirs holds values"),
        "infinite": (zipped(v_template=infinite), "v_template holds values"),
        "weights-of-two": (zipped(weights=bad_weights), "weights do not add up"),
        "faces-out-of-range": (zipped(f=outside), "do not number vertices from 0 to 39"),
        "faces-negative": (zipped(f=good["f"].astype(np.int64) - 1), "do not number vertices"),
        "faces-of-fractions": (zipped(f=good["f"] + 0.5), "do not number vertices"),
        "child-before-parent": (zipped(kintree_table=loop), "kintree_table is not SMPL's"),
        "head-elsewhere": (zipped(kintree_table=elsewhere), "kintree_table is not SMPL's"),
        "tree-of-nan": (zipped(kintree_table=np.full((2, 24), np.nan)), "kintree_table is not SMPL's"),
    }  # fmt: skip


def _flip(data: bytes) -> bytes:
    """The same bytes with some in the middle turned over."""
    middle = len(data) // 2
    return data[:middle] + bytes(255 - b for b in data[middle : middle + 50]) + data[middle + 50 :]
