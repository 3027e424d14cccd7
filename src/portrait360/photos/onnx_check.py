"""Refuse ONNX files that are more than data, before a runtime sees them.

Files that a network names ("external data", which may lie anywhere) and operators that are not ONNX's own (which need
code to be loaded) are refused. The `onnx` library parses the bytes and opens nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portrait360.types import InputError

MOST_BYTES = 2**31 - 1
"""Larger files cannot be one protocol buffer."""
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Sets of operators that the standard defines."""
_RUNTIME_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms", "org.pytorch")
"""How the names of sets begin that runtimes bring; a network's own functions of such names excuse nothing."""

_EXTERNAL_FIELDS = {13, 14}
"""Numbers of a tensor's `external_data` and `data_location`, where their values are none that the standard knows."""


def check_onnx(data: bytes, path: Path) -> None:
    """Refuse what is not an ONNX network, or not data alone.

    Args:
        data: the content of the file.
        path: its name, for the sentence.

    Raises:
        InputError: not ONNX, damaged, needing other files, or using operators that are not ONNX's own.
    """
    import onnx  # pyright: ignore[reportMissingImports] - an extra
    from google.protobuf.message import DecodeError

    # Parse the bytes, and look through all that is in them.
    try:
        model = onnx.ModelProto.FromString(data)
        found = _look_through(model)
    except DecodeError as error:
        raise not_onnx(path, "it is damaged, cut off, or its graphs lie too deep in each other") from error

    # Say what is wrong with it.
    if not model.HasField("graph"):
        raise not_onnx(path, "it holds no graph")
    if found.is_external:
        raise InputError(
            f"{path} keeps numbers in other files, which is refused.",
            "Save the network as one file: onnx.save(model, FILE, save_as_external_data=False).",
        )
    foreign = sorted(name for domain, name in found.operators - found.functions if domain not in _DOMAINS)
    if foreign:
        raise InputError(
            f"{path} uses operators that are not ONNX's own, which is refused: {', '.join(foreign[:5])}.",
            "Export it with the standard's operators only.",
        )


def not_onnx(path: Path, reason: str) -> InputError:
    """The error for a file that is no ONNX network."""
    return InputError(f"{path} is not an ONNX network that can be read: {reason}.", "Export the network again.")


@dataclass
class _Found:
    """What a model asks for. Operators and functions are pairs of domain and name."""

    is_external: bool = False
    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)


def _look_through(model: Any) -> _Found:
    """Every tensor, operator and function of a `ModelProto`, however deep."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    found = _Found()
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto":
            unknown = {one.field_number for one in UnknownFieldSet(message)}  # other runtimes may know them
            found.is_external |= bool(message.external_data) or message.data_location != message.DEFAULT
            found.is_external |= not unknown.isdisjoint(_EXTERNAL_FIELDS)
        elif kind == "NodeProto":
            found.operators.add((_text(message.domain), _text(message.op_type)))
        elif kind == "FunctionProto" and not _text(message.domain).startswith(_RUNTIME_DOMAINS):
            found.functions.add((_text(message.domain), _text(message.name)))
    return found


def _text(name: str | bytes) -> str:
    """A name; protobuf gives bytes where they are not UTF-8."""
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


def _messages(top: Any) -> Iterator[Any]:
    """A protocol buffer message and all messages in it."""
    waiting = [top]
    while waiting:
        message = waiting.pop()
        yield message
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else value
