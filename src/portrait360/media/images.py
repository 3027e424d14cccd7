"""From tensors to bytes that people see, and back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor


def as_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Images in [-1, 1] (clipped beyond) as sRGB bytes, the nearest level each."""
    return ((images.detach().float() + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)


def from_bytes(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Bytes as images in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_bytes(images: Float[Tensor, "B 3 H W"]) -> UInt8[ndarray, "B H W 3"]:
    """`as_bytes` in the layout of image files."""
    return as_bytes(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def blur(images: Float[Tensor, "B C H W"], sigma: float) -> Float[Tensor, "B C H W"]:
    """Separable kernel 2^(-(i / sigma)^2) of radius floor(3 sigma), zero padding; the identity below a pixel."""
    radius = math.floor(3.0 * sigma)
    if radius <= 0:
        return images
    i = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp2(-((i / sigma) ** 2))
    kernel = (kernel / kernel.sum()).to(images.dtype)
    n, c, h, w = images.shape
    x = images.reshape(n * c, 1, h, w)
    x = F.conv2d(x, kernel[None, None, :, None], padding=(radius, 0))
    x = F.conv2d(x, kernel[None, None, None, :], padding=(0, radius))
    return x.reshape(n, c, h, w)
