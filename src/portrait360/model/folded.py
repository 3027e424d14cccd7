"""Style-modulated layers at inference on a CPU: one sample at a time, everything linear folded into the convolution.

The twins of `SynthesisLayer.forward` and of the skip connection in `SynthesisBlock` for [1, 3, 3, 1] networks
(official_model 3.1-3.5). Style, demodulation and gain go into the weights of the one sample; an up-sampling layer is
four small convolutions, one for each parity of row and column, and one compiled pass that smooths and activates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portrait360.kernels.fir import add_upsampled, smooth_phases
from portrait360.model.layers import SQRT2, SynthesisBlock, SynthesisLayer


def can_fold(x: Tensor) -> bool:
    """Whether the folded forms can stand in: inference, float32 on the CPU."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def one_by_one(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """`function` of every sample of the batches on its own, joined."""
    samples = [function(*(b[i : i + 1] for b in batches)) for i in range(len(batches[0]))]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _rows(x: Float[Tensor, "1 C H W"]):
    """The sample as a numpy array (H, W, C)."""
    return x[0].permute(1, 2, 0).contiguous().numpy()


def folded_layer(
    layer: SynthesisLayer, x: Float[Tensor, "1 I H W"], w: Float[Tensor, "1 S"], noise_mode: str
) -> Float[Tensor, "1 O H2 W2"]:
    """`layer(x, w, noise_mode)` for one sample; x and the result are channels-last."""
    style = layer.affine(w)
    demodulation = torch.rsqrt(layer.weight.square().sum(dim=(2, 3)) @ style[0].square() + 1e-8)
    weight = layer.weight * style[0][None, :, None, None] * (demodulation * SQRT2)[:, None, None, None]
    bias = layer.bias * SQRT2
    clamp = math.inf if layer.clamp is None else layer.clamp
    side = x.shape[-1] * (2 if layer.up else 1)
    noise = None
    if layer.noise and noise_mode == "random":
        noise = torch.randn(side, side) * (layer.noise_strength * SQRT2)
    elif layer.noise and noise_mode == "const":
        noise = layer.noise_const * (layer.noise_strength * SQRT2)
    if layer.up:
        return _up(x, weight, bias, noise, clamp)
    y = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), bias, padding=1)
    if noise is not None:
        y.add_(noise)
    F.leaky_relu_(y, 0.2)
    return y if clamp == math.inf else y.clamp_(-clamp, clamp)


def _up(x: Tensor, weight: Tensor, bias: Tensor, noise: Tensor | None, clamp: float) -> Tensor:
    """Zero-stuffed convolution by phases: y[2p] = x[p] w[0] + x[p - 1] w[2], y[2p + 1] = x[p] w[1] along each axis."""
    _, _, height, width = x.shape
    even, odd = (2, 0), (1,)
    phases = []
    for rows in (even, odd):
        for columns in (even, odd):
            taps = weight[:, :, rows][:, :, :, columns].contiguous(memory_format=torch.channels_last)
            phases.append(_rows(F.conv2d(x, taps, padding=(len(rows) - 1, len(columns) - 1))))
    out = torch.empty(1, len(bias), 2 * height, 2 * width, memory_format=torch.channels_last)
    grid = torch.zeros(0, 0) if noise is None else noise.contiguous()
    y00, y01, y10, y11 = phases
    smooth_phases(y00, y01, y10, y11, bias.numpy(), grid.numpy(), np.float32(clamp), out[0].permute(1, 2, 0).numpy())
    return out


def folded_skip(image: Float[Tensor, "1 C H W"], rgb: Float[Tensor, "1 C H2 W2"]) -> Float[Tensor, "1 C H2 W2"]:
    """rgb + `upsample_fir(image)`, written over rgb if that is channels-last."""
    out = rgb.contiguous(memory_format=torch.channels_last)
    add_upsampled(_rows(image), out[0].permute(1, 2, 0).numpy())
    return out


def run_block(
    block: SynthesisBlock,
    x: Tensor | None,
    image: Tensor | None,
    styles: list[Tensor],
    noise_mode: str,
    *,
    folded: bool,
) -> tuple[Tensor, Tensor | None]:
    """`block(x, image, styles, noise_mode)`, folded (then for one sample) or plain."""
    if not folded:
        return block(x, image, styles, noise_mode)
    if x is None:
        x = block.const[None].contiguous(memory_format=torch.channels_last)
    else:
        x = folded_layer(block.conv0, x.contiguous(memory_format=torch.channels_last), styles[0], noise_mode)
    x = folded_layer(block.conv1, x, styles[-2], noise_mode)
    if not hasattr(block, "torgb"):
        return x, image
    rgb = block.torgb(x, styles[-1])
    if image is None:
        return x, rgb
    return x, folded_skip(image, rgb) if block.up else image + rgb
