"""The tri-grid: three stacks of feature planes, and the decoder (equations 3.9, 5.3, 5.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from portrait360.model.layers import FullyConnected, leaky_relu
from portrait360.runtime.device import constant

TriGrid = Tensor | tuple[Tensor, ...]
"""A tri-grid [B, 3, F, D, H, W], or the levels of a pyramid of them, each of twice the side of the one before."""


def levels_of(tri_grid: TriGrid) -> tuple[Tensor, ...]:
    """The tri-grids, from the coarsest to the finest."""
    return tri_grid if isinstance(tri_grid, tuple) else (tri_grid,)


def split_planes(image: Float[Tensor, "B C H W"], depth: int) -> Float[Tensor, "B 3 F D H W"]:
    """Channels to planes: plane slowest, then depth slice, feature fastest (the order in which `ToRGB` makes them)."""
    n, c, h, w = image.shape
    return image.reshape(n, 3, depth, c // (3 * depth), h, w).transpose(2, 3)


def symmetrize_plain(tri_grid: Float[Tensor, "B 3 F D H W"], features: int) -> Float[Tensor, "B 3 F D H W"]:
    """Make the first `features` features the same left and right: the mean with their mirror image in x.

    x runs along the columns of the first two planes and along the depth of the third (see `sample_trigrid`).
    """
    free = tri_grid[:, :, features:]
    both = tri_grid[:, :, :features]
    mirrored = torch.cat([both[:, :2].flip(5), both[:, 2:].flip(3)], dim=1)
    return torch.cat([0.5 * (both + mirrored), free], dim=2)


class _Symmetrized(torch.autograd.Function):
    """`symmetrize_plain` in the memory layout of its input; a symmetric projection is its own adjoint."""

    @staticmethod
    def forward(ctx, tri_grid: Tensor, features: int) -> Tensor:
        ctx.features = features
        out = tri_grid.clone()
        for planes, axis in ((slice(0, 2), 5), (slice(2, 3), 3)):
            out[:, planes, :features].add_(tri_grid[:, planes, :features].flip(axis)).mul_(0.5)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Symmetrized.apply(grad, ctx.features), None


def symmetrize(tri_grid: Float[Tensor, "B 3 F D H W"], features: int) -> Float[Tensor, "B 3 F D H W"]:
    """`symmetrize_plain` with half the copies."""
    return _Symmetrized.apply(tri_grid, features) if features else tri_grid


def normalize_points(
    points: Float[Tensor, "B N 3"], centre: tuple[float, float, float], half: tuple[float, float, float]
) -> Float[Tensor, "B N 3"]:
    """World to the tri-grid's [-1, 1]^3."""
    return (points - constant(centre, points)) / constant(half, points)


def sample_trigrid(tri_grid: TriGrid, normalized: Float[Tensor, "B N 3"]) -> Float[Tensor, "B 3 N F"]:
    """Trilinear lookup in the three planes: (W, H, D) = (x, y, z), (x, z, y), (y, z, x); zeros outside.

    The levels of a pyramid are averaged (equations 15.5).
    """
    if isinstance(tri_grid, tuple):
        total = sample_trigrid(tri_grid[0], normalized)
        for level in tri_grid[1:]:
            total = total + sample_trigrid(level, normalized)
        return total / len(tri_grid)
    n, p, f, d, h, w = tri_grid.shape
    x, y, z = normalized.unbind(dim=-1)
    coordinates = torch.stack([torch.stack(a, dim=-1) for a in ((x, y, z), (x, z, y), (y, z, x))], dim=1)
    out = F.grid_sample(
        tri_grid.float().reshape(n * p, f, d, h, w),
        coordinates.reshape(n * p, 1, 1, -1, 3),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return out.reshape(n, p, f, -1).transpose(2, 3)


class HiddenActivation(nn.Module):
    """Softplus (the original) or lrelu without gain (no exponentials: cheaper)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return F.softplus(x) if self.name == "softplus" else leaky_relu(x)


class Decoder(nn.Module):
    """Mean over the planes, one hidden layer, then raw density and features."""

    def __init__(self, in_features: int, hidden: int, out_features: int, activation: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            FullyConnected(in_features, hidden),
            HiddenActivation(activation),
            FullyConnected(hidden, 1 + out_features),
        )

    def forward(self, plane_features: Float[Tensor, "B 3 N F"]):
        """Returns raw density [B, N, 1] (before shift and softplus) and features [B, N, O]."""
        x = self.net(plane_features.mean(dim=1))
        return x[..., :1], x[..., 1:]

    def parameters_as_used(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Effective w1 [H, F], b1 [H], w2 [1+O, H], b2 [1+O], for the fused renderer."""
        first, second = self.net[0], self.net[2]
        assert isinstance(first, FullyConnected)
        assert isinstance(second, FullyConnected)
        return (*first.effective(), *second.effective())
