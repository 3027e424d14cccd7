"""Style-modulated layers at inference on a CPU: one sample at a time, everything linear folded into the convolution.

The twins of `SynthesisLayer.forward` and of the skip connection in `SynthesisBlock` for [1, 3, 3, 1] networks
(equations 3.1-3.5). Style, demodulation and gain go into the weights of the one sample where these are smaller
than the maps. An up-sampling layer is four small convolutions, one for each parity of row and column, and one compiled
pass that smooths and activates.
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
from portrait360.model.layers import SQRT2, SynthesisBlock, SynthesisLayer, ToRGB

Convolve = Callable[[Tensor, Tensor | None, tuple[int, int]], Tensor]
"""A map's convolution with a weight, a bias, and that much zero padding."""
Precision = torch.dtype | None
"""Type of the numbers in folded convolutions; None stands for the plain layers."""


def fold_precision(x: Tensor, gradients: bool) -> Precision:
    """float32 where the folded forms can stand in (no gradients, on the CPU), bf16 there inside of `torch.autocast`."""
    if gradients or x.device.type != "cpu":
        return None
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def one_by_one(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """`function` of every sample of the batches on its own, joined; no gradients, types are the function's own."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        samples = [function(*(b[i : i + 1].float() for b in batches)) for i in range(len(batches[0]))]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _rows(x: Float[Tensor, "1 C H W"]):
    """The sample as a float32 numpy array (H, W, C)."""
    return x[0].permute(1, 2, 0).float().contiguous().numpy()


def folded_layer(
    layer: SynthesisLayer,
    x: Float[Tensor, "P I H W"],
    w: Float[Tensor, "1 S"],
    noise_mode: str,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "P O H2 W2"]:
    """`layer(x, w, noise_mode)` for one sample; x and the result are channels-last. `dtype`: of the convolution.

    P is 1, or 3 for layers that see the planes of a tri-grid.
    """
    if layer.planes == 1:
        return _folded(layer, x, layer.style(w)[0], noise_mode, dtype)
    given = x.to(dtype)
    styles = layer.style(w)
    parts = [_folded(layer, x[p : p + 1], styles[p], noise_mode, dtype, rolled_convolution(given, p)) for p in range(3)]
    return _channels_last(torch.cat(parts))


def rolled_convolution(planes: Float[Tensor, "3 C H W"], p: int) -> Convolve:
    """The convolution of plane p after `layers.roll_out`, without making the rolled out maps.

    The averages that are laid down the rows do not change along them, but for zero padding at both ends: three columns
    stand for all. So do three rows for those that are laid across.
    """
    own, channels = planes[p : p + 1], planes.shape[1]
    down, across = (p + 1) % 3, (p + 2) % 3
    columns = planes[down : down + 1].mean(-2)[..., :, None].expand(-1, -1, -1, 3)
    rows = planes[across : across + 1].mean(-1)[..., None, :].expand(-1, -1, 3, -1)

    def convolve(weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        blocks = [_channels_last(block) for block in weight.split(channels, dim=1)]
        y = F.conv2d(own, blocks[p], bias, padding=padding)
        for strip, block, axis in ((columns, blocks[down], -1), (rows, blocks[across], -2)):
            first, inner, *_, last = F.conv2d(strip, block, padding=padding).split(1, dim=axis)
            y.add_(inner)
            y.narrow(axis, 0, 1).add_(first - inner)
            y.narrow(axis, y.shape[axis] - 1, 1).add_(last - inner)
        return y

    return convolve


def folded_colours(layer: ToRGB, x: Float[Tensor, "P I H W"], w: Float[Tensor, "1 S"]) -> Float[Tensor, "P O H W"]:
    """`layer(x, w)` for one sample, in float32."""
    if layer.planes == 1:
        return layer(x.float(), w)
    planes, styles = x.float(), layer.style(w)
    parts = []
    for p in range(3):
        parts.append(rolled_convolution(planes, p)(layer.weight * styles[p][:, None, None], layer.bias, (0, 0)))
    return _channels_last(torch.cat(parts))


def _folded(
    layer: SynthesisLayer,
    x: Tensor,
    style: Tensor,
    noise_mode: str,
    dtype: torch.dtype,
    convolve: Convolve | None = None,
) -> Tensor:
    """The layer for one map [1, I, H, W] under the style of its channels; `convolve`: of more channels than x has."""
    # Style and demodulation.
    kernel = layer.weight.permute(0, 2, 3, 1).contiguous()  # (O, 3, 3, I): what follows runs along the channels
    styled = kernel * style
    gain = torch.rsqrt(torch.linalg.vector_norm(styled.flatten(1), dim=1).square() + 1e-8) * SQRT2
    bias = layer.bias * SQRT2

    # Scale whichever is smaller: the map, or the kernel.
    scale_maps = convolve is None and x.numel() < kernel.numel()
    if scale_maps:
        x = x * style[:, None, None]
    else:
        kernel = styled.mul_(gain[:, None, None, None])
        gain = torch.ones_like(gain)

    # Noise.
    clamp = math.inf if layer.clamp is None else layer.clamp
    side = x.shape[-1] * (2 if layer.up else 1)
    noise = None
    if layer.noise and noise_mode == "random":
        noise = torch.randn(side, side) * (layer.noise_strength * SQRT2)
    elif layer.noise and noise_mode == "const":
        noise = layer.noise_const * (layer.noise_strength * SQRT2)

    # Convolve and activate.
    if convolve is None:
        given = x.to(dtype)
        convolve = lambda weight, bias, padding: F.conv2d(given, weight, bias, padding=padding)  # noqa: E731
    if layer.up:
        return _up(x.shape[-2:], convolve, kernel.to(dtype), gain, bias, noise, clamp)
    weight = kernel.permute(0, 3, 1, 2).to(dtype)
    if scale_maps:
        y = convolve(weight, None, (1, 1)).mul_(gain[:, None, None]).add_(bias[:, None, None])
    else:
        y = convolve(weight, bias.to(dtype), (1, 1))
    if noise is not None:
        y.add_(noise)
    F.leaky_relu_(y, 0.2)
    return y if clamp == math.inf else y.clamp_(-clamp, clamp)


def _up(
    shape: tuple[int, ...], convolve: Convolve, kernel: Tensor, gain: Tensor, bias: Tensor, noise: Tensor | None,
    clamp: float,
) -> Tensor:  # fmt: skip
    """Zero-stuffed convolution by phases: y[2p] = x[p] w[0] + x[p - 1] w[2], y[2p + 1] = x[p] w[1] along each axis."""
    height, width = shape
    even, odd = torch.tensor([2, 0]), torch.tensor([1])
    phases = []
    for rows in (even, odd):
        for columns in (even, odd):
            taps = kernel.index_select(1, rows).index_select(2, columns).permute(0, 3, 1, 2)
            phases.append(_rows(convolve(taps, None, (len(rows) - 1, len(columns) - 1))))
    out = torch.empty(1, len(bias), 2 * height, 2 * width, memory_format=torch.channels_last)
    grid = torch.zeros(0, 0) if noise is None else noise.contiguous()
    y00, y01, y10, y11 = phases
    smooth_phases(
        y00, y01, y10, y11, gain.numpy(), bias.numpy(), grid.numpy(), np.float32(clamp), out[0].permute(1, 2, 0).numpy()
    )
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
    precision: Precision,
    last: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`block(x, image, styles, noise_mode)`, folded (then for one sample) or plain.

    `last`: nobody needs the block's features; they may be missing (a tensor without elements).
    """
    if precision is None:
        return block(x, image, styles, noise_mode)

    # Features.
    if x is None:
        x = folded_layer(block.conv1, _channels_last(block.const[None]), styles[-2], noise_mode, precision)
    elif last and block.up and noise_mode == "none" and x.shape[-1] >= 2 * BAND:
        return _run_in_bands(block, _channels_last(x), image, styles, precision)
    else:
        x = folded_layer(block.conv0, _channels_last(x), styles[0], noise_mode, precision)
        x = folded_layer(block.conv1, x, styles[-2], noise_mode, precision)

    # Colours, added to those so far.
    if not hasattr(block, "torgb"):
        return x, image
    rgb = folded_colours(block.torgb, x, styles[-1])
    if image is None:
        return x, rgb
    return x, folded_skip(image, rgb) if block.up else image + rgb


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


BAND = 128
"""Rows of input that a large up-sampling block takes at once."""
_HALO = 2
"""More rows of input on either side: one for each of the block's two convolutions."""


def _run_in_bands(block: SynthesisBlock, x: Tensor, image: Tensor | None, styles: list[Tensor], dtype: torch.dtype):
    """The block by bands of rows, which keeps its feature maps small; they are not returned.

    At a band's edges zero padding is wrong, unless it is the image's edge: those rows are computed and dropped.
    """
    height = x.shape[-2]
    parts = []
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        above, below = min(top, _HALO), min(height - bottom, _HALO)
        y = folded_layer(block.conv0, x[:, :, top - above : bottom + below], styles[0], "none", dtype)
        y = folded_layer(block.conv1, y, styles[-2], "none", dtype)
        parts.append(block.torgb(y[:, :, 2 * above : y.shape[-2] - 2 * below].float(), styles[-1]))
    rgb = torch.cat(parts, dim=2)
    return x[:0], rgb if image is None else folded_skip(image, rgb)
