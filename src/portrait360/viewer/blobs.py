"""Arrays and images as base64 text in a page's JSON; `web/blobs.js` reads them."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

Blob = dict[str, Any]
_TYPES = {"uint8": np.uint8, "int32": np.int32, "float32": np.float32}


def base64_text(data: bytes) -> str:
    """Bytes as ASCII."""
    return base64.b64encode(data).decode("ascii")


def array_blob(values: ndarray) -> Blob:
    """An array of uint8, int32 or float32, deflated."""
    name = str(values.dtype)
    if name not in _TYPES:
        raise TypeError(f"arrays of {name} have no form in a page")
    data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    return {"type": name, "shape": list(values.shape), "data": base64_text(zlib.compress(data, 9))}


def rows_blob(values: Float[ndarray, "rows ..."], bits: Literal[8, 12], least_scale: float = 0.0) -> Blob:
    """Rows of numbers as whole numbers of 8 or 12 bits times a scale of each row, which is at least `least_scale`.

    The layout: scales (float32), upper 8 bits of all numbers (offset by 128), then with 12 bits the lower 4 of them,
    two numbers to a byte, the first one in the lower half. The upper bits repeat often enough to be compressed.
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    largest = 2 ** (bits - 1) - 1
    peak = np.abs(flat).max(axis=1, keepdims=True)
    scales = np.maximum(np.where(peak > 0, peak / largest, 1.0), least_scale).astype(np.float32)
    whole = np.round(flat / scales).astype(np.int32).reshape(-1)
    parts = [scales.astype("<f4").tobytes()]
    if bits == 8:
        parts.append((whole + 128).astype(np.uint8).tobytes())
    else:
        low = (whole & 15).astype(np.uint8)
        low = np.append(low, np.zeros(len(low) % 2, np.uint8))
        parts += [((whole >> 4) + 128).astype(np.uint8).tobytes(), (low[0::2] | low[1::2] << 4).tobytes()]
    data = base64_text(zlib.compress(b"".join(parts), 9))
    return {"type": "rows", "bits": bits, "shape": list(values.shape), "data": data}


def read_array(blob: Blob) -> ndarray:
    """The numbers of a blob, as the page reads them; the twin of `readArray` in `web/blobs.js`."""
    data = zlib.decompress(base64.b64decode(blob["data"]))
    shape = tuple(blob["shape"])
    if blob["type"] != "rows":
        return np.frombuffer(data, np.dtype(_TYPES[blob["type"]]).newbyteorder("<")).reshape(shape)
    rows, count = shape[0], int(np.prod(shape))
    scales = np.frombuffer(data, "<f4", rows)
    whole = np.frombuffer(data, np.uint8, count, 4 * rows).astype(np.int32) - 128
    if blob["bits"] == 12:
        packed = np.frombuffer(data, np.uint8, offset=4 * rows + count)
        low = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
        whole = whole * 16 + low
    return (whole.reshape(rows, -1) * scales[:, None]).reshape(shape).astype(np.float32)


# ---- channels as tiles of an image ----

TILES_TYPE = "image/webp"
_QUALITIES = (95, 90, 85, 80, 70, 60, 50)


def tiles(channels: UInt8[ndarray, "C H W"], columns: int) -> UInt8[ndarray, "H2 W2"]:
    """Channels side by side, `columns` in a row."""
    count, height, width = channels.shape
    rows = -(-count // columns)
    padded = np.concatenate([channels, np.zeros((rows * columns - count, height, width), np.uint8)])
    return padded.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def from_tiles(image: UInt8[ndarray, "H2 W2"], columns: int, count: int) -> UInt8[ndarray, "C H W"]:
    """The inverse of `tiles`."""
    side = image.shape[1] // columns
    parts = image.reshape(-1, side, columns, side).swapaxes(1, 2)
    return parts.reshape(-1, side, side)[:count]


def encode_tiles(image: UInt8[ndarray, "H W"], most_bytes: int) -> bytes:
    """A grey image as WebP, by the best of a few qualities that stays within `most_bytes` (or the lowest)."""
    data = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=4)
        data = buffer.getvalue()
        if len(data) <= most_bytes:
            break
    return data


def decode_tiles(data: bytes) -> UInt8[ndarray, "H W"]:
    """The grey image of `encode_tiles`."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))[..., 0]
