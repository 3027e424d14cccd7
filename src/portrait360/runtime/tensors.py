"""Safetensors files with JSON in their metadata, written atomically; nothing here executes code from a file.

Configs are stored as JSON: unknown keys are errors, so that weights never load into a network they were not made for; a
missing key takes its default, so that files from before a field came still load.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from portrait360.runtime.files import atomic_write
from portrait360.types import CheckpointError

FORMAT = "portrait360"
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename it. The same content gives the same bytes."""
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(_with_sorted_metadata(data))


def _with_sorted_metadata(data: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in that of a hash table.

    The file begins with the length of its JSON header (8 bytes, little-endian); spaces fill it up to a multiple of 8.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[8 + length :]])


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: missing, not a safetensors file, damaged, or not written by this project.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weights file at {path}.", "Check the path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}).",
            "Weights of this project end in .safetensors; a damaged file must be copied again.",
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} holds tensors, but was not written by portrait360.",
            "Give a file that `portrait360 train` wrote.",
        )
    return tensors, metadata


def metadata_json(metadata: dict[str, str], key: str, path: Path) -> Any:
    """The JSON entry `key` of a file's metadata."""
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} lacks a readable entry {key!r}.", "The file is damaged or too old.") from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- modules ----


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers under `prefix/name`."""
    return {f"{prefix}/{k}": v for k, v in module.state_dict().items()}


def fill_module(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Load `prefix/...` into the module; every name and shape must match.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or not finite.
    """
    wanted = module.state_dict()
    given = {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + "/")}
    for name in sorted(set(wanted) ^ set(given)):
        what = "lacks" if name in wanted else "has an unknown"
        raise CheckpointError(f"{path} {what} tensor {prefix}/{name}.", "It belongs to another model.")
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: tensor {prefix}/{name} is {list(value.shape)}, expected {list(wanted[name].shape)}.",
                "It belongs to another model.",
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: tensor {prefix}/{name} is not finite.", "Use an earlier checkpoint.")
    module.load_state_dict(given)


def in_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything that is not whole numbers in float32."""
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def filled(module: M, tensors: dict[str, Tensor], prefix: str, path: Path) -> M:
    """The module after `fill_module`, for use: in eval mode, without gradients."""
    fill_module(module, tensors, prefix, path)
    return module.eval().requires_grad_(False)


# ---- configs as JSON ----


def to_json(config: Any) -> str:
    """A config (dataclasses of plain values) as JSON text."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _build(kind: Any, value: Any, where: str) -> Any:
    # Values that may be None.
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        return _build(next(o for o in options if o is not type(None)), value, where)

    # Dataclasses, field by field.
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        needed = {f.name for f in dataclasses.fields(kind) if not _has_default(f)}
        if not isinstance(value, dict) or not needed <= set(value) <= set(hints):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise CheckpointError(
                f"the configuration at {where} does not have the expected entries (came: {got}).",
                "The file was made by another version or another program.",
            )
        return kind(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in value.items()})

    # Tuples, item by item.
    if origin is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise CheckpointError(f"the configuration at {where} should be a list, not {value!r}.")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))

    # Plain values.
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise CheckpointError(f"the configuration at {where} is {value!r}; known: {typing.get_args(kind)}.")
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise CheckpointError(f"the configuration at {where} is {value!r}, expected {getattr(kind, '__name__', kind)}.")


def from_json(kind: type[T], text: str) -> T:
    """The config of class `kind` from `to_json` text.

    Raises:
        CheckpointError: not JSON, entries that do not belong to `kind`, or one missing that has no default.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError("the configuration is not valid JSON.", "The file is damaged.") from error
    return _build(kind, value, kind.__name__)
