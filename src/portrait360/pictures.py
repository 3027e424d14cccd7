"""From tensors to bytes that people see."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[ndarray, "B H W 3"]:
    """Pictures in [-1, 1] (clipped beyond) as sRGB bytes, the nearest level each."""
    levels = ((images.detach().float() + 1.0) * 127.5).round().clamp(0.0, 255.0)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
