"""From tensors to bytes that people see, and back."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor


def as_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Pictures in [-1, 1] (clipped beyond) as sRGB bytes, the nearest level each."""
    return ((images.detach().float() + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)


def from_bytes(pictures: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Bytes as pictures in [-1, 1]."""
    return pictures.float() / 127.5 - 1.0


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[ndarray, "B H W 3"]:
    """`as_bytes` in the layout of image files."""
    return as_bytes(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
