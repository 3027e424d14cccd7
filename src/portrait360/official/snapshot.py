"""Snapshots of the original training code as data (equations 12): which networks, which tensors, which options.

A snapshot is a pickle whose normal loading runs source text stored in it. Here nothing of it runs (`pickle_data`):
source texts are dropped unread, unknown classes of the original's packages become inert `Thing`s, tensors are rebuilt
from their raw bytes on the CPU, and every other name in the file makes the reader refuse it.
"""

from __future__ import annotations

import io
import lzma
import math
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portrait360.official.pickle_arrays import ARRAY_CALLS, BUILTIN_CALLS, WORDS, ordered
from portrait360.official.pickle_data import HINT, Name, Rules, Thing, read_pickle, refuse
from portrait360.runtime.files import explain_os_error
from portrait360.types import CheckpointError

MOST_BYTES = 6 * 2**30
"""Largest uncompressed snapshot; published ones hold well under 2 GiB."""
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPES = {str(dtype).split(".")[1] for dtype in _STORAGES.values()}
_INERT = re.compile(r"(torch_utils|training|dnnlib|smplx|torch\.nn\.modules)(\.[A-Za-z_]\w*)*")
"""Modules whose classes become `Thing`s."""
_MOST_DEPTH = 60


class _Storage:
    """Flat values of tensors."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


# ---- the legacy container of one storage (equations 12.3) ----


class _StorageRules(Rules):
    def check(self, name: Name) -> None:
        if name.module != "torch" or name.name not in _STORAGES:
            super().check(name)

    def persistent(self, identity: Any) -> Any:
        whole = isinstance(identity, tuple) and len(identity) == 6 and identity[0] == "storage"
        if not whole or not isinstance(identity[1], Name) or identity[5] is not None:
            raise refuse("a tensor's bytes have an unknown form")
        return identity


def _read_storage(data: Any) -> _Storage:
    """Values of a legacy save of one storage; the device that it was saved from does not matter."""
    if not isinstance(data, bytes):
        raise refuse("a tensor's bytes are missing")
    stream, rules = io.BytesIO(data), _StorageRules()
    magic, protocol, system, identity, keys = (read_pickle(stream, rules) for _ in range(5))
    if magic != _MAGIC or protocol != _PROTOCOL or not isinstance(system, dict) or not system.get("little_endian"):
        raise refuse("a tensor's bytes have an unknown form")
    if not isinstance(identity, tuple) or keys != [identity[2]]:
        raise refuse("a tensor's bytes hold something else than one tensor")
    dtype = _STORAGES[identity[1].name]
    count = int.from_bytes(stream.read(8), "little")
    start = stream.tell()
    if count != identity[4] or start + count * dtype.itemsize != len(data):
        raise refuse("a tensor's length does not match its bytes")
    if count == 0:
        return _Storage(torch.empty(0, dtype=dtype))
    return _Storage(torch.frombuffer(bytearray(data[start:]), dtype=dtype))


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor that owns its values. Views that repeat values are refused: a few bytes could ask for terabytes."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise refuse("a tensor has an unknown form")
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise refuse("a tensor has an impossible shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count > storage.values.numel() or (count and last >= storage.values.numel()):
        raise refuse("a tensor is larger than its bytes")
    if count == 0:
        return torch.empty(size, dtype=storage.values.dtype)
    return storage.values.as_strided(size, stride, offset).clone()


# ---- names of the original's pickles (equations 12.2) ----


def _persistent_object(meta: Any) -> Thing:
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise refuse("an object has an unknown form")
    return Thing(Name("persistent", str(meta.get("class_name"))), state=meta["state"])


def _size(*arguments: Any) -> tuple[int, ...]:
    """A shape as a tuple."""
    if len(arguments) != 1 or not isinstance(arguments[0], (tuple, list)):
        raise refuse("a shape has an unknown form")
    if any(type(n) is not int or n < 0 for n in arguments[0]):
        raise refuse("a shape has an unknown form")
    return tuple(arguments[0])


_CALLS: dict[tuple[str, str], Any] = {
    **BUILTIN_CALLS,
    **ARRAY_CALLS,
    ("dnnlib.util", "EasyDict"): ordered,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.storage", "_load_from_bytes"): _read_storage,
    ("torch", "Size"): _size,
}
_WORDS = WORDS | {("torch.nn.parameter", "Parameter"), ("torch", "Tensor")}


class _SnapshotRules(Rules):
    def check(self, name: Name) -> None:
        pair = (name.module, name.name)
        if pair in _CALLS or pair in _WORDS:
            return
        if name.module == "torch" and (name.name in _STORAGES or name.name in _DTYPES):
            return
        if not (_INERT.fullmatch(name.module) and name.name.isidentifier()):
            super().check(name)

    def call(self, name: Name, arguments: tuple[Any, ...]) -> Any:
        make = _CALLS.get((name.module, name.name))
        if make is not None:
            return make(*arguments)
        if not _INERT.fullmatch(name.module):
            super().call(name, arguments)
        return Thing(name, arguments)


# ---- files ----


def read_snapshot(path: Path) -> dict[str, Any]:
    """The dictionary of a snapshot (`G`, `D`, `G_ema`, `D_ema`, ...), plain or xz-compressed; networks are `Thing`s.

    Raises:
        CheckpointError: missing, not a snapshot, damaged, too large, or naming anything that no snapshot names.
    """
    # Refuse what is no snapshot by its first bytes.
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no snapshot at {path}.", "Check the path.")
    try:
        with path.open("rb") as file:
            start = file.read(9)
            if not start:
                raise refuse("it is empty")
            if start[8:] == b"{":  # after the length of its header
                raise refuse("it is a safetensors file, not a snapshot of the original training")

            # Read the pickle, unpacked or mapped.
            if start.startswith(b"\xfd7zXZ\x00"):
                content = read_pickle(io.BytesIO(_decompress(path)), _SnapshotRules())
            else:
                # Mapped: a damaged length then reads to the end of the file instead of claiming memory.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    stream: Any = mapped
                    content = read_pickle(stream, _SnapshotRules())
    except OSError as error:
        raise explain_os_error(error) or CheckpointError(f"{path} cannot be read ({error}).", HINT) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", error.hint) from error

    # Networks by name are expected.
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is a pickle, but not a snapshot of networks.", HINT)
    return content


def _decompress(path: Path) -> bytes:
    """All bytes of an xz file, up to `MOST_BYTES`."""
    whole = io.BytesIO()
    try:
        with lzma.open(path, "rb") as file:
            while part := file.read(1 << 24):
                if whole.tell() + len(part) > MOST_BYTES:
                    raise refuse(f"it unpacks to more than {MOST_BYTES >> 30} GiB")
                whole.write(part)
    except (lzma.LZMAError, EOFError) as error:
        raise refuse(f"its compression is damaged ({error})") from error
    return whole.getvalue()


def state_tensors(module: Thing) -> dict[str, Tensor]:
    """Parameters and buffers of a network under their state names (equations 12.4).

    Raises:
        CheckpointError: modules nested in an impossible way.
    """
    return dict(_walk(module, "", 0))


def _walk(module: Thing, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _MOST_DEPTH:
        raise refuse("its modules are nested too deeply")
    for group in ("_parameters", "_buffers"):
        for name, value in _entries(module.state.get(group)):
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    for name, child in _entries(module.state.get("_modules")):
        if isinstance(child, Thing):
            yield from _walk(child, f"{prefix}{name}.", depth + 1)


def _entries(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def constructor_arguments(module: Thing) -> dict[str, Any]:
    """Keyword arguments that a persistent network was made with."""
    return dict(_entries(module.state.get("_init_kwargs")))


def rendering_options(module: Thing) -> dict[str, Any]:
    """What a generator renders with: its attribute, which may differ from what it was made with (equations 12.5)."""
    stored = module.state.get("rendering_kwargs")
    return dict(_entries(stored if stored else constructor_arguments(module).get("rendering_kwargs")))
