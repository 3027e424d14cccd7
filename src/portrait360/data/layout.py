"""The layout of a dataset: where each image lies in the zip or folder, and what its label files hold.

::

    images/00000/00000012.webp   RGB, WebP of quality 92
    masks/00000/00000012.png     8-bit grey, 255 = person
    depth/00000/00000012.png     optional, 16-bit, value / DEPTH_SCALE in world units, 0 = background
    dataset.json                 {"labels": [["images/00000/00000012.webp", [31 numbers]], ...]}
    exact.json                   the same with exact body poses, when those in dataset.json are coarse
    meta.json                    generator, version, seed, count, resolution, label_kind, label_noise, ...

The 31 numbers are the camera label (25) and the body pose (6).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

LABELS_FILE = "dataset.json"
EXACT_FILE = "exact.json"
META_FILE = "meta.json"
YAW_BEFORE = "yaw_before_balancing"
"""Key in meta.json of the counts of yaws, in 36 sectors from -180 degrees, before rare ones were repeated."""

FORMAT = "portrait360-dataset"
FORMAT_VERSION = 1

DEPTH_SCALE = 16384
"""Depth images hold round(depth * DEPTH_SCALE) in 16 bits: up to 4 world units in steps of 6e-5."""

_WEBP_QUALITY = 92
_WEBP_METHOD = 4


def image_name(index: int) -> str:
    """Where image `index` lies."""
    return f"images/{index // 1000:05d}/{index:08d}.webp"


def mask_name(index: int) -> str:
    """Where the mask of image `index` lies."""
    return f"masks/{index // 1000:05d}/{index:08d}.png"


def depth_name(index: int) -> str:
    """Where the depth of image `index` lies."""
    return f"depth/{index // 1000:05d}/{index:08d}.png"


def encode_image(image: UInt8[ndarray, "H W 3"]) -> bytes:
    """An image as WebP. The same pixels give the same bytes (for one version of Pillow and libwebp)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_METHOD)
    return buffer.getvalue()


def encode_mask(mask: UInt8[ndarray, "H W"]) -> bytes:
    """A mask as 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def encode_depth(depth: Float[ndarray, "H W"]) -> bytes:
    """Depth in world units (0 or not finite = background) as 16-bit PNG; deeper than 4 units is clipped."""
    scaled = np.round(np.where(np.isfinite(depth), depth, 0.0) * DEPTH_SCALE)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(scaled, 0, 65535).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def encode_labels(names: Iterable[str], labels: Float[ndarray, "N L"]) -> bytes:
    """dataset.json: one entry per line, nine digits (enough to give every float32 back exactly)."""
    lines = []
    for name, label in zip(names, labels.astype(np.float32), strict=True):
        numbers = [float(f"{value:.9g}") + 0.0 for value in label.tolist()]  # + 0.0 turns -0.0 into 0.0
        lines.append(json.dumps([name, numbers], separators=(",", ":")))
    return ('{"labels":[\n' + ",\n".join(lines) + "\n]}\n").encode()


def encode_meta(meta: dict) -> bytes:
    """meta.json, readable and with sorted keys."""
    return (json.dumps(meta, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
