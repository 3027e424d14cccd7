"""Files of the SMPL body model as arrays of numbers, read without running anything in them.

The published files are pickles of Python 2 whose arrays sit inside objects of chumpy and scipy. The interpreter of
`pickle_data` rebuilds the arrays from their bytes; those objects stay inert. An `.npz` is a zip of plain arrays.
"""

from __future__ import annotations

import io
import lzma
import math
import mmap
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from portrait360.official.pickle_arrays import ARRAY_CALLS, WORDS, Array, ArrayType
from portrait360.official.pickle_data import REFUSED, Name, Rules, Thing, read_pickle, refuse
from portrait360.runtime.files import explain_os_error
from portrait360.types import AssetError, CheckpointError

MOST_BYTES = 2**30
"""Largest file, and most bytes of arrays in one; the published files hold up to 250 MB."""
_MOST_SPARSE = 2**24
"""Most entries of a sparse matrix when written out; SMPL's joint regressor has 24 x 6890."""
_INERT = re.compile(r"(chumpy|scipy\.sparse)(\.[A-Za-z_]\w*)*")
"""Modules whose classes become `Thing`s."""
_CONTAINERS = ("set", "frozenset", "list", "tuple", "dict")
_HINT = (
    "Give the SMPL model as its makers publish it (.pkl), or an .npz of plain arrays with the same names: "
    "v_template, f, weights, posedirs, J_regressor, kintree_table."
)


def not_smpl(path: Path, reason: object) -> AssetError:
    """The error for a file that is no SMPL body model."""
    return AssetError(f"{path} is not an SMPL body model that can be read: {reason}.", _HINT)


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The named arrays of an SMPL file, `.pkl` or `.npz` (told apart by their content); sparse ones written out.

    Raises:
        AssetError: missing, neither of the two, damaged, too large, lacking an array, or refused because it names
            anything that such a file has no reason to name.
    """
    # Check that there is a file of a sensible size.
    path = Path(path)
    if not path.is_file():
        raise AssetError(f"there is no SMPL file at {path}.", "Check the path.")
    try:
        size = path.stat().st_size
        if not 0 < size <= MOST_BYTES:
            raise not_smpl(path, "it is empty" if size == 0 else f"it is larger than {MOST_BYTES >> 30} GiB")

        # Read it by its content, never by its name.
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_npz(file, names)
            # Mapped: a damaged length then reads to the end of the file instead of claiming memory.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                stream: Any = mapped
                return _read_pkl(stream, names)
    except OSError as error:
        raise explain_os_error(error) or not_smpl(path, error) from error
    except CheckpointError as error:
        raise not_smpl(path, error.message.removeprefix(REFUSED).removesuffix(".")) from error
    except ValueError as error:
        raise not_smpl(path, error) from error


# ---- .pkl ----


class _SmplRules(Rules):
    """Arrays of numbers are rebuilt, up to `MOST_BYTES` in all; every other object stays inert."""

    def __init__(self) -> None:
        self.left = MOST_BYTES

    def spend(self, count: int) -> None:
        """Raise when the arrays of a file, which may share their bytes in it, would fill the memory."""
        self.left -= count
        if self.left < 0:
            raise refuse(f"its arrays hold more than {MOST_BYTES >> 20} MiB")

    def check(self, name: Name) -> None:
        pair = (name.module, name.name)
        container = name.module in ("builtins", "__builtin__") and name.name in _CONTAINERS
        inert = _INERT.fullmatch(name.module) and name.name.isidentifier()
        if not (inert or container or pair in ARRAY_CALLS or pair in WORDS or _is_reconstructor(name)):
            super().check(name)

    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        if name.name == "_reconstruct":
            return _SmplArray(name, arguments, rules=self)
        if name.name == "encode" and arguments:
            self.spend(len(arguments[0]))
        if (name.module, name.name) in ARRAY_CALLS:
            return ARRAY_CALLS[name.module, name.name](*arguments)
        if _is_reconstructor(name) and arguments and isinstance(arguments[0], Name):
            return Thing(arguments[0])
        return Thing(name, arguments)


def _is_reconstructor(name: Name) -> bool:
    return name.module in ("copyreg", "copy_reg") and name.name == "_reconstructor"


class _SmplArray(Array):
    """An array; one of texts or objects, among what is not needed, stays without a value."""

    def __init__(self, origin: Name, arguments: tuple[Any, ...], rules: _SmplRules) -> None:
        super().__init__(origin, arguments)
        self.rules = rules

    def set_state(self, state: Any) -> None:
        _, _, dtype, _, raw = state
        if isinstance(dtype, ArrayType) and dtype.numeric and isinstance(raw, (str, bytes)):
            self.rules.spend(len(raw))
            super().set_state(state)


def _read_pkl(stream: BinaryIO, names: Iterable[str]) -> dict[str, np.ndarray]:
    content = read_pickle(stream, _SmplRules())
    if not isinstance(content, dict):
        raise ValueError("it is a pickle of something else")
    return {name: _numbers(content, name) for name in names}


def _numbers(content: dict[Any, Any], name: str) -> np.ndarray:
    if name not in content:
        raise ValueError(f"it has no {name}")
    value = content[name]
    if isinstance(value, Thing) and value.origin.module.startswith("chumpy"):
        value = value.state.get("x")
    if isinstance(value, Thing) and value.origin.module.startswith("scipy"):
        return _written_out(value, name)
    return _plain(value, name)


def _plain(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, Array) or value.value is None:
        raise ValueError(f"its {name} is not an array of numbers")
    return value.value


def _written_out(matrix: Thing, name: str) -> np.ndarray:
    """A scipy matrix of compressed columns or rows as a dense one."""
    shape = matrix.state.get("_shape", matrix.state.get("shape"))
    if not isinstance(shape, tuple) or len(shape) != 2 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"its {name} has an unknown form")
    if math.prod(shape) > _MOST_SPARSE:
        raise ValueError(f"its {name} is too large, {shape[0]} x {shape[1]}")
    by_columns = matrix.origin.name.startswith("csc")
    if not by_columns and not matrix.origin.name.startswith("csr"):
        raise ValueError(f"its {name} is a {matrix.origin.name}")
    lines, across = shape[::-1] if by_columns else shape
    data, indices, starts = (_plain(matrix.state.get(part), name) for part in ("data", "indices", "indptr"))
    fits = starts.shape == (lines + 1,) and data.shape == indices.shape == (len(data),)
    if not fits or indices.dtype.kind not in "iu" or starts.dtype.kind not in "iu":
        raise ValueError(f"the parts of its {name} do not fit together")
    counts = np.diff(starts.astype(np.int64))
    inside = len(indices) == 0 or 0 <= indices.min() <= indices.max() < across
    if starts[0] != 0 or starts[-1] != len(data) or (counts < 0).any() or not inside:
        raise ValueError(f"its {name} has entries outside of the matrix")
    dense = np.zeros((lines, across), data.dtype)
    np.add.at(dense, (np.repeat(np.arange(lines), counts), indices.astype(np.int64)), data)
    return dense.T if by_columns else dense


# ---- .npz ----

_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    EOFError, NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip


def _read_npz(file: BinaryIO, names: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            left, arrays = MOST_BYTES, {}
            for name in names:
                info = members.get(f"{name}.npy")
                if info is None:
                    raise ValueError(f"it has no {name}")
                left -= info.file_size
                if left < 0:
                    raise ValueError(f"its arrays hold more than {MOST_BYTES >> 20} MiB")
                # never more than the stated size is unpacked
                arrays[name] = _array_of(archive.read(info), name)
            return arrays
    except _ZIP_ERRORS as error:
        raise ValueError(f"its compression is damaged or unknown ({error})") from error


def _array_of(data: bytes, name: str) -> np.ndarray:
    """The array of an .npy file's bytes, whose header cannot claim more than these."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            shape, fortran, dtype = read_header(stream)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ValueError(f"its {name} is not an array ({str(error)[:80]})") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"its {name} is not an array of numbers; write it as a plain one")
    rest = data[stream.tell() :]
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"the size of its {name} does not match its shape")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
