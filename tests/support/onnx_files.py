"""ONNX files written field by field: small networks, and such as must be refused. Numbers of fields: onnx.proto."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FLOAT, INT64, FLOAT16 = 1, 7, 10
EXTERNAL = 1
Dimension = int | str


def varint(value: int) -> bytes:
    parts = []
    while True:
        value, low = value >> 7, value & 0x7F
        parts.append(low | (0x80 if value else 0))
        if not value:
            return bytes(parts)


def field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def fields(number: int, values: Sequence[int | str | bytes]) -> bytes:
    return b"".join(field(number, value) for value in values)


def tensor(name: str, values: np.ndarray, more: bytes = b"") -> bytes:
    kind = {"float32": FLOAT, "int64": INT64}[str(values.dtype)]
    return fields(1, values.shape) + field(2, kind) + field(8, name) + field(9, values.tobytes()) + more


def external(name: str, shape: Sequence[int], location: str) -> bytes:
    """A tensor whose numbers are in another file."""
    entry = field(1, "location") + field(2, location)
    return fields(1, shape) + field(2, FLOAT) + field(8, name) + field(13, entry) + field(14, EXTERNAL)


def value(name: str, shape: Sequence[Dimension], kind: int = FLOAT) -> bytes:
    """An input or output; dimensions with names are free."""
    sizes = [field(1, size) if isinstance(size, int) else field(2, size) for size in shape]
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, fields(1, sizes))))


def attribute(name: str, value: int | list[int] | bytes, kind: str = "") -> bytes:
    """An attribute: a whole number, several, or the bytes of a `tensor` or a `graph`."""
    if isinstance(value, list):
        return field(1, name) + fields(8, value) + field(20, 7)
    if isinstance(value, int):
        return field(1, name) + field(3, value) + field(20, 2)
    number, type_number = {"tensor": (5, 4), "graph": (6, 5)}[kind]
    return field(1, name) + field(number, value) + field(20, type_number)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], *attributes: bytes, domain: str = "") -> bytes:
    own = field(7, domain) if domain else b""
    return fields(1, inputs) + fields(2, outputs) + field(4, operator) + fields(5, attributes) + own


def graph(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], tensors: Sequence[bytes] = ()
) -> bytes:
    return fields(1, nodes) + field(2, "net") + fields(5, tensors) + fields(11, inputs) + fields(12, outputs)


def model(
    inside: bytes,
    *,
    metadata: dict[str, str] | None = None,
    domains: Sequence[str] = (),
    functions: Sequence[bytes] = (),
) -> bytes:
    """A file: opset 13, and version 1 of other sets of operators."""
    sets = [field(2, 13), *(field(1, name) + field(2, 1) for name in domains)]
    entries = [field(1, key) + field(2, text) for key, text in (metadata or {}).items()]
    return field(1, 8) + field(7, inside) + fields(8, sets) + fields(14, entries) + fields(25, functions)


# ---- networks ----


def channel_network(
    weights: Sequence[float] = (1.0, 0.0, 0.0),
    *,
    bias: float = 0.0,
    side: Dimension = "side",
    shape: Sequence[Dimension] | None = None,
    kind: int = FLOAT,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """[1, 1, S, S]: at each place the sum of the channels with these weights, and the bias."""
    shape = ("n", 3, side, side) if shape is None else shape
    numbers = np.asarray(weights, np.float32)[None, :, None, None]
    return model(
        graph(
            [node("Conv", ["image", "w", "b"], ["out"])],
            [value("image", shape, kind)],
            [value("out", ["a", "b", "c", "d"], kind)],
            [tensor("w", numbers), tensor("b", np.array([bias], np.float32))],
        ),
        metadata=metadata,
    )


def image_network(operator: str, *attributes: bytes, side: Dimension = "side", rank: int = 4) -> bytes:
    """One operator on the image."""
    return model(
        graph(
            [node(operator, ["image"], ["out"], *attributes)],
            [value("image", [1, 3, side, side])],
            [value("out", [f"d{i}" for i in range(rank)])],
        )
    )


def mean_network(side: Dimension = "side") -> bytes:
    """The mean of the whole image, [1, 1, 1, 1]."""
    return image_network("ReduceMean", side=side)


def identity_with(nodes: Sequence[bytes] = (), tensors: Sequence[bytes] = (), **parts) -> bytes:
    """The image itself, beside `nodes` and `tensors`."""
    ends = [value("image", [1, 3, "s", "s"])], [value("out", [1, 3, "s", "s"])]
    return model(graph([*nodes, node("Identity", ["image"], ["out"])], *ends, tensors), **parts)


def function(domain: str, name: str, nodes: Sequence[bytes]) -> bytes:
    """A function of the network's own, of one input x and one output y."""
    return (
        field(1, name) + field(4, "x") + field(5, "y") + fields(7, nodes) + field(9, field(2, 13)) + field(10, domain)
    )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
