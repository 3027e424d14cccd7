"""What an ONNX file asks for, read off its bytes before a runtime sees them.

A network must be data alone: other files that it names ("external data", which may lie anywhere) and operators that are
not ONNX's own (which need code to be loaded) are refused. ONNX files are protocol buffers; of their messages only those
are walked through in which a file or an operator can be named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from portrait360.types import InputError

MOST_BYTES = 2**31 - 1
"""Larger files cannot be one protocol buffer."""
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Sets of operators that the standard defines."""
_RUNTIME_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms", "org.pytorch")
"""How the names of sets begin that runtimes bring; a network's own functions of such names excuse nothing."""
_MOST_DEPTH = 64
"""Graphs within operators within graphs: far more than networks have."""

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}
"""Fields of onnx.proto by number, and the message in each."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

Field = tuple[int, int, int | memoryview]
"""Number, kind, value."""


def check_onnx(data: bytes, path: Path) -> None:
    """Refuse what is not an ONNX network, or not data alone.

    Args:
        data: the content of the file.
        path: its name, for the sentence.

    Raises:
        InputError: not ONNX, damaged, needing other files, or using operators that are not ONNX's own.
    """
    found = _Found()
    try:
        _walk(memoryview(data), "model", found, 0)
    except ValueError as error:
        raise not_onnx(path, str(error)) from error
    if not found.graphs:
        raise not_onnx(path, "it holds no graph")
    if found.external:
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


class _Found:
    """What the walk came across. Operators and functions are pairs of domain and name."""

    def __init__(self) -> None:
        self.graphs = 0
        self.external = False
        self.operators: set[tuple[str, str]] = set()
        self.functions: set[tuple[str, str]] = set()


def _walk(data: memoryview, message: str, found: _Found, depth: int) -> None:
    """Raises ValueError for bytes that are no such message."""
    if depth > _MOST_DEPTH:
        raise ValueError("its graphs lie too deep in each other")
    inner, texts = _MESSAGES[message], {}
    for number, kind, value in _fields(data):
        if isinstance(value, memoryview):
            if number in inner:
                _walk(value, inner[number], found, depth + 1)
            texts[number] = value
        if message == "tensor":
            elsewhere = number == _TENSOR_LOCATION and (kind, value) != (_VARINT, 0)
            found.external |= elsewhere or number == _TENSOR_EXTERNAL
    found.graphs += message == "graph"
    if message == "node":
        found.operators.add((_text(texts, _NODE_DOMAIN), _text(texts, _NODE_OPERATOR)))
    if message == "function":
        domain = _text(texts, _FUNCTION_DOMAIN)
        if not domain.startswith(_RUNTIME_DOMAINS):
            found.functions.add((domain, _text(texts, _FUNCTION_NAME)))


def _text(fields: dict[int, memoryview], number: int) -> str:
    return bytes(fields[number]).decode("utf-8", "backslashreplace") if number in fields else ""


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message. Raises ValueError where they are none."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("it is damaged")
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("it is damaged")
        if length > len(data) - place:
            raise ValueError("it is cut off or damaged")
        content = data[place : place + length]
        yield number, kind, content if kind == _BYTES else int.from_bytes(content, "little")
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits per byte, the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("it is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise ValueError("it is damaged")
