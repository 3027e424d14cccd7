"""Networks of the user's as ONNX files: pictures in, numbers out, on one thread of the CPU.

A network takes one RGB picture as float32 [1, 3, S, S]; S is a number, to which pictures are resized, or free, and then
they are resized to what the caller says. Channels go from 0 to 1 unless the file's metadata say otherwise under
`normalisation`: "unit" (0 to 1), "signed" (-1 to 1), or "imagenet" (less ImageNet's means, over its deviations).
Of several outputs the first counts.

A network must be data alone: other files that it names ("external data", which may lie anywhere) and operators that are
not ONNX's own (which need code to be loaded) are refused before a runtime sees the file. ONNX files are protocol
buffers; of their messages only those are walked through in which a file or an operator can be named.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from portrait360.runtime.files import explain_os_error
from portrait360.types import InputError

NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""What is taken from channels between 0 and 1, and what they are divided by then."""
NORMALISATION_KEY = "normalisation"
_FLOAT = "(float)"
_FATAL = 4


class OnnxNetwork:
    """Callable: the first output for a picture."""

    def __init__(self, path: Path, side: int) -> None:
        """Load a network.

        Args:
            path: the file.
            side: of the pictures, where the network leaves it open.

        Raises:
            InputError: onnxruntime is not installed, the file is missing or refused (see `check_onnx`), or the network
                takes something else than one picture.
        """
        self.path = Path(path)
        self._session = _session(_content(self.path), self.path)
        try:
            inputs, metadata = self._session.get_inputs(), self._session.get_modelmeta().custom_metadata_map
            takes = [(one.name, one.type.removeprefix("tensor"), list(one.shape)) for one in inputs]
        except UnicodeDecodeError as error:
            raise not_onnx(self.path, "a name in it is no text") from error
        self._input, fixed = _picture_input(takes, self.path)
        self.is_free, self.side = fixed is None, fixed or side
        self._mean, self._deviation = _normalisation(metadata, self.path)

    def __call__(self, image: UInt8[ndarray, "R R 3"]) -> Any:
        """Raises what onnxruntime raises where the network does not work."""
        if image.shape[:2] != (self.side, self.side):
            picture = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BILINEAR)
            image = np.asarray(picture)
        values = (image.astype(np.float32) / 255.0 - self._mean) / self._deviation
        return self._session.run(None, {self._input: np.ascontiguousarray(values.transpose(2, 0, 1)[None])})[0]

    def try_out(self) -> Float[ndarray, "*shape"]:
        """The output for a picture of no person.

        Raises:
            InputError: the network fails, or gives something else than finite float32 numbers.
        """
        ramp = np.linspace(0.0, 255.0, self.side)
        picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128.0), axis=2).astype(np.uint8)
        try:
            output = self(picture)
        except Exception as error:
            hint = "Export it with a fixed side." if self.is_free else "Try it in onnxruntime."
            sentence = f"{self.path} fails for a picture of {self.side} pixels: {first_line(error)}."
            raise InputError(sentence, hint) from error
        if not isinstance(output, ndarray) or output.dtype != np.float32 or not np.isfinite(output).all():
            raise InputError(f"{self.path} does not give finite float32 numbers.", "Export it in float32.")
        return output


def first_line(error: Exception) -> str:
    """What an error of onnxruntime says, without the lines that name its source."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(". ")


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise not_onnx(path, "it is larger than 2 GB")
        return path.read_bytes()
    except OSError as error:
        raise explain_os_error(error, path) or InputError(
            f"there is no network at {path}.", "Check the path."
        ) from error


def _session(data: bytes, path: Path) -> Any:
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("networks as ONNX need onnxruntime.", 'Install it: pip install "portrait360[onnx]"')
    check_onnx(data, path)
    import onnxruntime  # pyright: ignore[reportMissingImports] - an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.load_model_format", "ONNX")  # never its own format, which is not checked
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise not_onnx(path, first_line(error)) from error


def _picture_input(takes: list[tuple[str, str, list[Any]]], path: Path) -> tuple[str, int | None]:
    """The name of the input and the side of its pictures, None when it is free."""
    found = ", ".join(f"{kind}{shape}" for _, kind, shape in takes)
    wrong = InputError(
        f"{path} takes {found or 'nothing'}; expected one picture, (float)[1, 3, S, S].",
        "Export it for one square RGB picture in float32 (docs/photos.md).",
    )
    if len(takes) != 1 or takes[0][1] != _FLOAT or len(takes[0][2]) != 4:
        raise wrong
    name, _, shape = takes[0]
    count, channels, height, width = (size if isinstance(size, int) else None for size in shape)
    if count not in (1, None) or channels != 3 or height != width or height == 0:
        raise wrong
    return name, height


def _normalisation(metadata: dict[str, str], path: Path) -> tuple[Float[ndarray, " 3"], Float[ndarray, " 3"]]:
    name = metadata.get(NORMALISATION_KEY, "unit")
    if name not in NORMALISATIONS:
        raise InputError(
            f"{path} asks for the normalisation {name!r}.", f"Known are {', '.join(NORMALISATIONS)} (docs/photos.md)."
        )
    mean, deviation = NORMALISATIONS[name]
    return np.array(mean, np.float32), np.array(deviation, np.float32)


# ---- what a file asks for, read off its bytes ----

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
