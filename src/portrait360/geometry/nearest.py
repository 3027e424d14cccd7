"""The nearest triangle of a mesh to every point, by exact point-triangle distance."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.kernels.nearest import build_tree, query_tree
from portrait360.kernels.trust import agrees


def nearest_triangles(
    points: Float[Tensor, "N 3"], triangles: Float[Tensor, "T 3 3"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, "N 3"], Float[Tensor, " N"]]:
    """Nearest triangle (the first among equals), barycentric weights of its closest point, distance.

    Computed in double precision by a bounding-volume tree on the CPU; no gradients.
    """
    soup = triangles.detach().double().cpu().numpy()
    where = points.detach().double().cpu().numpy()
    order = _morton_order(soup.mean(axis=1))
    low, high = build_tree(soup, order)
    index, last_two, distance = query_tree(where, soup, order, low, high)
    barycentric = np.concatenate([1 - last_two.sum(axis=1, keepdims=True), last_two], axis=1)
    return (
        torch.from_numpy(index).to(points.device),
        torch.from_numpy(barycentric).to(points),
        torch.from_numpy(distance).to(points),
    )


def nearest_indices(
    points: Float[Tensor, "N 3"], triangles: Float[Tensor, "T 3 3"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Nearest triangle (the first among equals) and distance, found where the points are, in double precision."""
    if points.device.type == "cuda" and nearest_works(points.device):
        index = nearest_triton(points, triangles)
        return index, triangle_distances(points, triangles[index])
    index, _, distance = nearest_triangles(points, triangles)
    return index, distance


def nearest_triton(points: Float[Tensor, "N 3"], triangles: Float[Tensor, "T 3 3"]) -> Int[Tensor, " N"]:
    """Index of the nearest triangle by the Triton kernel, which tries them all."""
    from portrait360.kernels import triton_nearest

    kernel: Any = triton_nearest
    where, soup = (v.detach().double().contiguous() for v in (points, triangles))
    index = torch.zeros(len(where), dtype=torch.int32, device=where.device)
    if len(where):
        sizes = {"POINTS": kernel.POINTS, "TRIANGLES": kernel.TRIANGLES}
        kernel.nearest[(-(-len(where) // kernel.POINTS),)](where, soup, index, len(where), len(soup), **sizes)
    return index.long()


def disagreement(device: torch.device | str) -> float:
    """Share of random points for which the Triton kernel names another triangle than the readable twin."""
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(100, 3, generator=draws).to(device)
    triangles = torch.randn(21, 3, 3, generator=draws).to(device)
    expected = nearest_triangles_reference(points.double(), triangles.double())[0]
    return float((nearest_triton(points, triangles) != expected).double().mean())


@lru_cache(maxsize=8)
def nearest_works(device: torch.device) -> bool:
    """Whether the kernel agrees with `nearest_triangles_reference` on this GPU; looked at once."""
    return agrees("search for triangles", device, disagreement)


def nearest_triangles_reference(
    points: Float[Tensor, "N 3"], triangles: Float[Tensor, "T 3 3"], pairs_at_once: int = 2_000_000
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """The plain twin: every point against every triangle, in chunks; the first minimum wins."""
    chunk = max(1, pairs_at_once // len(triangles))
    corners = [triangles[None, :, i] for i in range(3)]
    found = [_point_triangle_squared(part[:, None], *corners).min(dim=1) for part in points.split(chunk)]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found]).sqrt()


def triangle_distances(points: Float[Tensor, "N 3"], triangles: Float[Tensor, "N 3 3"]) -> Float[Tensor, " N"]:
    """Distance of each point to its own triangle, in double precision like `nearest_triangles`; no gradients."""
    corners = triangles.detach().double().unbind(dim=1)
    return _point_triangle_squared(points.detach().double(), *corners).sqrt().to(points)


def _point_triangle_squared(p: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Squared distance to a triangle (Ericson, Real-Time Collision Detection, 5.1.5), arguments broadcast."""

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(-1)

    ab, ac, ap, bp, cp = b - a, c - a, p - a, p - b, p - c
    d1, d2, d3, d4, d5, d6 = (dot(edge, from_corner) for from_corner in (ap, bp, cp) for edge in (ab, ac))
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    scale = 1 / (va + vb + vc)
    square = (ap - ab * (vb * scale)[..., None] - ac * (vc * scale)[..., None]).square().sum(-1)

    def override(region: Tensor, rest: Tensor) -> Tensor:
        return torch.where(region, rest.square().sum(-1), square)

    along = (d4 - d3) / ((d4 - d3) + (d5 - d6))
    square = override((va <= 0) & (d4 >= d3) & (d5 >= d6), bp - (c - b) * along[..., None])
    square = override((vb <= 0) & (d2 >= 0) & (d6 <= 0), ap - ac * (d2 / (d2 - d6))[..., None])
    square = override((vc <= 0) & (d1 >= 0) & (d3 <= 0), ap - ab * (d1 / (d1 - d3))[..., None])
    square = override((d6 >= 0) & (d5 <= d6), cp)
    square = override((d3 >= 0) & (d4 <= d3), bp)
    return override((d1 <= 0) & (d2 <= 0), ap)


def _morton_order(centres: np.ndarray) -> np.ndarray:
    """Indices that sort points along a space-filling curve: neighbours in the list are near in space."""
    low, high = centres.min(axis=0), centres.max(axis=0)
    cells = ((centres - low) / np.maximum(high - low, 1e-12) * 1023).astype(np.int64)
    code = np.zeros(len(centres), np.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")
