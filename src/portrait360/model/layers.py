"""Building blocks shared by the generator and the discriminator (equations 2.2, 3, 8.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SQRT2 = math.sqrt(2.0)
NoiseMode = Literal["random", "const", "none"]


def leaky_relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x for x >= 0, 0.2 x otherwise; no gain."""
    return F.leaky_relu(x, 0.2)


def normalize_second_moment(x: Float[Tensor, "B C"], eps: float = 1e-8) -> Float[Tensor, "B C"]:
    """Scale every row to unit mean square (equations 2.3)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)


def resize(x: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C side side"]:
    """Antialiased bilinear resize with half-pixel centres; the identity at equal size (equations 4.3)."""
    if x.shape[-1] == side and x.shape[-2] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


# ---- [1, 3, 3, 1] resampling ----


def fir_kernel() -> Float[Tensor, "4 4"]:
    """The fixed smoothing kernel, sum 1."""
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])
    k = torch.outer(k, k)
    return k / k.sum()


def fir(
    x: Float[Tensor, "B C H W"], kernel: Float[Tensor, "4 4"], gain: float = 1.0, stride: int = 1
) -> Float[Tensor, "B C H2 W2"]:
    """Valid correlation of every channel with the (symmetric) kernel."""
    channels = x.shape[1]
    return F.conv2d(x, (kernel * gain).to(x.dtype).expand(channels, 1, -1, -1), stride=stride, groups=channels)


def upsample_fir(x: Float[Tensor, "B C H W"], kernel: Float[Tensor, "4 4"]) -> Float[Tensor, "B C H2 W2"]:
    """Zero-stuff by 2 and smooth; exactly twice the side (equations 3.5)."""
    n, c, h, w = x.shape
    stuffed = x.new_zeros(n, c, 2 * h, 2 * w)
    stuffed[:, :, ::2, ::2] = x
    return fir(F.pad(stuffed, (2, 1, 2, 1)), kernel, gain=4.0)


# ---- nearest-neighbour up-sampling and convolution in one ----


def upsample_convolve_plain(
    x: Float[Tensor, "B I H W"], weight: Float[Tensor, "O I 3 3"]
) -> Float[Tensor, "B O H2 W2"]:
    """Repeat every pixel 2 x 2 times, then a padded 3x3 convolution: the readable twin of `upsample_convolve`."""
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)


def upsample_convolve(x: Float[Tensor, "B I H W"], weight: Float[Tensor, "O I 3 3"]) -> Float[Tensor, "B O H2 W2"]:
    """`upsample_convolve_plain` as one transposed convolution: 16 products per input pixel instead of 36.

    Taps that fall on copies of the same pixel are added beforehand: the 3x3 kernel becomes a 4x4 one of stride 2.
    """
    flipped = weight.flip(2, 3).transpose(0, 1)
    spread = [F.pad(flipped, (right, 1 - right, down, 1 - down)) for down in (0, 1) for right in (0, 1)]
    kernel = spread[0] + spread[1] + spread[2] + spread[3]
    return F.conv_transpose2d(x, _layout_of(x, kernel), stride=2, padding=1)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _layout_of(x: Tensor, weight: Tensor) -> Tensor:
    """The weight in channels-last order if x is."""
    return weight.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else weight


def convolve_1x1(
    x: Float[Tensor, "B I H W"], weight: Float[Tensor, "O I 1 1"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "B O H W"]:
    """1x1 convolution; for channels-last maps as a matrix product, which spares torch two changes of layout."""
    if not _is_channels_last(x):
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)


MIN_SIDE_TO_FOLD = 16
"""Input side from which the transposed convolution is the faster one on a CPU."""


# ---- dense layers ----


class FullyConnected(nn.Module):
    """y = x (W lr / sqrt(in))^T + b lr, then lrelu * sqrt(2) or nothing (equations 2.2). Always float32."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        lr_multiplier: float = 1.0,
        activation: Literal["linear", "lrelu"] = "linear",
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.activation = activation

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight [out, in] and bias [out] as they act, gains included."""
        return self.weight * self.weight_gain, self.bias * self.bias_gain

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.effective()
            y = F.linear(x.float(), weight, bias)
        return leaky_relu(y) * SQRT2 if self.activation == "lrelu" else y


def perceptron(sizes: list[int], output_scale: float = 1.0) -> nn.Sequential:
    """Stack of lrelu layers that ends in a linear one, whose initial weights are scaled by `output_scale`."""
    last = len(sizes) - 2
    layers = [
        FullyConnected(sizes[i], sizes[i + 1], activation="linear" if i == last else "lrelu") for i in range(last + 1)
    ]
    with torch.no_grad():
        layers[-1].weight.mul_(output_scale)
    return nn.Sequential(*layers)


POSE_OUTPUT_SCALE = 0.05
"""Pose branches start near the canonical pose instead of a radian away from it."""


# ---- style-modulated layers ----


@dataclass(frozen=True)
class LayerConfig:
    """What all layers of a synthesis network have in common."""

    w_dim: int
    clamp: float | None = None
    resample: str = "fir"
    noise: bool = True
    planes: int = 1
    """3: every layer sees all three planes of a tri-grid (`roll_out`); batches then hold planes, sample by sample."""


def roll_out(x: Float[Tensor, "B3 C H W"]) -> Float[Tensor, "B3 C3 H W"]:
    """What a layer that sees all three planes reads: each plane, and of the two others the averages along one axis.

    Channels come in the order of the planes. Plane p gets the next one's averages over rows, laid down its own rows,
    and those of the one after over columns, laid across its columns, the three in a circle (equations 15.4).
    """
    planes = x.unflatten(0, (-1, 3)).unbind(1)
    rolled = []
    for p, plane in enumerate(planes):
        down, across = (p + 1) % 3, (p + 2) % 3
        parts = {p: plane, down: planes[down].mean(-2)[..., :, None], across: planes[across].mean(-1)[..., None, :]}
        rolled.append(torch.cat([parts[n].expand_as(plane) for n in range(3)], dim=1))
    return torch.stack(rolled, dim=1).flatten(0, 1)


def planes_of_styles(style: Float[Tensor, "B P_I"], planes: int) -> Float[Tensor, "B_P I"]:
    """The styles of a layer's inputs, one row for each plane of each sample."""
    return style if planes == 1 else style.unflatten(1, (planes, -1)).flatten(0, 1)


class SynthesisLayer(nn.Module):
    """3x3 modulated and demodulated convolution, noise, bias, lrelu (equations 3.1-3.3).

    The convolution is computed as scale - convolve - scale, which equals per-sample kernels exactly and shares one
    weight over the batch.
    """

    noise_const: Tensor
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        config: LayerConfig,
        *,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.clamp, self.resample, self.noise = up, config.clamp, config.resample, config.noise
        self.planes = config.planes
        in_channels *= self.planes  # rolled out
        self.affine = FullyConnected(config.w_dim, self.planes * in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if self.noise:
            self.noise_strength = nn.Parameter(torch.zeros([]))
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
        if self.resample == "fir":
            self.register_buffer("resample_filter", fir_kernel())

    def style(self, w: Float[Tensor, "B S"]) -> Float[Tensor, "B_P I"]:
        """Factors of the input channels, one row for each map of the batch."""
        return planes_of_styles(self.affine(w), self.planes)

    def _convolve(self, x: Tensor) -> Tensor:
        if self.up and self.resample == "box" and x.shape[-1] >= MIN_SIDE_TO_FOLD:
            return upsample_convolve(x, self.weight)
        weight = _layout_of(x, self.weight)
        if not self.up:
            return F.conv2d(x, weight, padding=1)
        if self.resample == "box":
            return upsample_convolve_plain(x, weight)
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        return fir(F.pad(x, (1, 1, 1, 1)), self.resample_filter, gain=4.0)

    def _per_sample(self, x: Tensor, style: Tensor) -> Tensor:
        """Modulation and convolution, one kernel per sample: the original's rounding at inference (equations 3.2)."""
        n = len(x)
        kernels = self.weight[None] * style[:, None, :, None, None]
        kernels = kernels * torch.rsqrt(kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, -1, *x.shape[2:])
        if self.up:
            y = F.conv_transpose2d(x, kernels.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
            y = fir(F.pad(y, (1, 1, 1, 1)), self.resample_filter, gain=4.0)
        else:
            y = F.conv2d(x, kernels.flatten(0, 1), padding=1, groups=n)
        return y.reshape(n, -1, *y.shape[2:])

    def _original(self, x: Tensor, w: Tensor, noise_mode: str) -> Tensor:
        """Step by step as in equations 3.1."""
        y = self._per_sample(x, self.style(w))
        if self.noise and noise_mode == "random":
            y = y + torch.randn_like(y[:, :1]) * self.noise_strength
        elif self.noise and noise_mode == "const":
            y = y + self.noise_const * self.noise_strength
        y = leaky_relu(y + self.bias[:, None, None]) * SQRT2
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)

    def forward(self, x: Float[Tensor, "B_P I H W"], w: Float[Tensor, "B S"], noise_mode: str):
        if self.planes == 3:
            x = roll_out(x)
        if self.resample == "fir" and not self.training:
            return self._original(x, w, noise_mode)
        style = self.style(w)
        energy = self.weight.float().square().sum(dim=(2, 3))
        with torch.autocast(x.device.type, enabled=False):
            demodulation = torch.rsqrt(style.square() @ energy.t() + 1e-8)
        y = self._convolve(x * style.to(x.dtype)[:, :, None, None])
        # lrelu commutes with a positive gain, so sqrt(2) rides on demodulation, noise and bias: two passes fewer.
        offset = (self.bias * SQRT2).to(y.dtype)[:, None, None]
        if self.noise and noise_mode == "random":
            offset = offset + (torch.randn_like(y[:, :1]) * (self.noise_strength * SQRT2)).to(y.dtype)
        elif self.noise and noise_mode == "const":
            offset = offset + (self.noise_const * (self.noise_strength * SQRT2)).to(y.dtype)
        y = leaky_relu(torch.addcmul(offset, y, (demodulation * SQRT2).to(y.dtype)[:, :, None, None]))
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """1x1 modulated convolution without demodulation, noise or activation (equations 3.4).

    `plane_depth` above 1 marks the output as a tri-grid: weights are stored in the original's order (plane, feature,
    slice), the output's channels come as (plane, slice, feature), the order that the renderer reads.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        clamp: float | None = None,
        plane_depth: int = 1,
        planes: int = 1,
    ) -> None:
        super().__init__()
        self.clamp, self.plane_depth, self.planes = clamp, plane_depth, planes
        rolled_out = in_channels * planes
        self.affine = FullyConnected(w_dim, planes * rolled_out, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, rolled_out, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.style_gain = 1.0 / math.sqrt(in_channels)  # as published: also where the inputs are rolled out

    def forward(self, x: Float[Tensor, "B_P I H W"], w: Float[Tensor, "B S"]) -> Float[Tensor, "B_P O H W"]:
        if self.planes == 3:
            x = roll_out(x)
        style = self.style(w).to(x.dtype)
        y = convolve_1x1(x * style[:, :, None, None], self.slices_first(self.weight), self.slices_first(self.bias))
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)

    def style(self, w: Float[Tensor, "B S"]) -> Float[Tensor, "B_P I"]:
        """Factors of the input channels, one row for each map of the batch."""
        return planes_of_styles(self.affine(w), self.planes) * self.style_gain

    def slices_first(self, v: Tensor) -> Tensor:
        """Weights or biases in the order of the output's channels."""
        if self.plane_depth == 1:
            return v
        return v.reshape(3, -1, self.plane_depth, *v.shape[1:]).transpose(1, 2).reshape(v.shape)


class SynthesisBlock(nn.Module):
    """One resolution of a skip-architecture synthesis network.

    `in_channels` None marks the first block, `image_channels` None one that adds nothing to the image.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        resolution: int,
        image_channels: int | None,
        config: LayerConfig,
        *,
        up: bool = True,
        plane_depth: int = 1,
    ) -> None:
        super().__init__()
        self.up, self.resample = up, config.resample
        if self.resample == "fir":
            self.register_buffer("resample_filter", fir_kernel())
        if in_channels is None:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, resolution, config, up=up)
        self.conv1 = SynthesisLayer(out_channels, out_channels, resolution, config)
        if image_channels is not None:
            self.torgb = ToRGB(out_channels, image_channels, config.w_dim, config.clamp, plane_depth, config.planes)

    def _upsample(self, image: Tensor) -> Tensor:
        if self.resample == "box":
            return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
        return upsample_fir(image, self.resample_filter)

    def forward(self, x: Tensor | None, image: Tensor | None, styles: list[Tensor], noise_mode: str):
        """`styles`: one w [B, W] per sub-layer: [conv0,] conv1, torgb. Returns features and the image so far."""
        if hasattr(self, "const"):
            const = self.const.expand(styles[0].shape[0], -1, -1, -1)
            if self.resample == "box":
                const = const.contiguous(memory_format=torch.channels_last)
                if torch.is_autocast_enabled(const.device.type):
                    const = const.to(torch.get_autocast_dtype(const.device.type))
            x = const
        else:
            x = self.conv0(x, styles[0], noise_mode)
        x = self.conv1(x, styles[-2], noise_mode)
        if image is not None and self.up:
            image = self._upsample(image)
        if hasattr(self, "torgb"):
            rgb = self.torgb(x, styles[-1])
            image = rgb if image is None else image + rgb
        return x, image


# ---- plain convolution of the discriminator ----


class Conv(nn.Module):
    """Equalised convolution, optional 2x down-sampling, bias and lrelu with clamp or neither (equations 8.2)."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        activation: Literal["linear", "lrelu"] = "lrelu",
        down: bool = False,
        clamp: float | None = None,
        resample: str = "fir",
    ) -> None:
        super().__init__()
        self.activation, self.down, self.clamp, self.resample = activation, down, clamp, resample
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activation == "lrelu" else None
        if resample == "fir":
            self.register_buffer("resample_filter", fir_kernel())
        self.weight_gain = 1.0 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Float[Tensor, "B I H W"], gain: float = 1.0) -> Float[Tensor, "B O H2 W2"]:
        if self.resample == "fir":
            return self._original(x, gain)
        kernel_size = self.weight.shape[-1]
        # lrelu commutes with a positive gain, so the whole gain rides on weight and bias.
        gain = gain * (SQRT2 if self.activation == "lrelu" else 1.0)
        weight = self.weight * (self.weight_gain * gain)
        bias = None if self.bias is None else self.bias * gain
        x = F.avg_pool2d(x, 2) if self.down else x
        if kernel_size == 1:
            x = convolve_1x1(x, weight, bias)
        else:
            x = F.conv2d(x, _layout_of(x, weight), bias, padding=kernel_size // 2)
        if self.activation == "lrelu":
            x = leaky_relu(x)
        limit = None if self.clamp is None else self.clamp * gain / (SQRT2 if self.activation == "lrelu" else 1.0)
        return x if limit is None else x.clamp(-limit, limit)

    def _original(self, x: Tensor, gain: float) -> Tensor:
        """With [1, 3, 3, 1] filters, step by step as in equations 8.2: the same rounding as the original."""
        weight = self.weight * self.weight_gain
        kernel_size = weight.shape[-1]
        if not self.down:
            x = F.conv2d(x, weight, padding=kernel_size // 2)
        elif kernel_size == 1:
            x = F.conv2d(fir(F.pad(x, (1, 1, 1, 1)), self.resample_filter, stride=2), weight)
        else:
            x = F.conv2d(fir(F.pad(x, (2, 2, 2, 2)), self.resample_filter), weight, stride=2)
        if self.bias is not None:
            x = x + self.bias[:, None, None]
        x = leaky_relu(x) * (SQRT2 * gain) if self.activation == "lrelu" else x * gain
        return x if self.clamp is None else x.clamp(-self.clamp * gain, self.clamp * gain)
