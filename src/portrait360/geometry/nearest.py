"""The nearest triangle of a mesh to every point, by exact point-triangle distance."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from portrait360.kernels.nearest import build_tree, query_tree
from portrait360.kernels.selfcheck import agrees


def nearest_triangles(
    points: Float[Tensor, "N 3"], triangles: Float[Tensor, "T 3 3"]
) -> tuple[Int[Tensor, " N"], Float[Tensor, "N 3"], Float[Tensor, " N"]]:
    """Nearest triangle (the first among equals), barycentric weights of its closest point, distance.

    Computed in double precision by a bounding-volume tree on the CPU; no gradients.
    """
    soup = triangles.detach().double().cpu().numpy()
    where = points.detach().double().cpu().numpy()
    order = _morton_order(torch.from_numpy(soup).mean(dim=1)).numpy()
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
    """Index of the nearest triangle, the first among equals, by the Triton kernel: points and triangles in the order
    of a space-filling curve, triangles in groups with bounding boxes, of which most are passed over."""
    from portrait360.kernels import triton_nearest

    kernel: Any = triton_nearest
    if not len(points):
        return torch.zeros(0, dtype=torch.long, device=points.device)
    # where a training diverges, coordinates are no numbers: some triangle is found for them, and no error on a GPU
    where, soup = (v.detach().double().nan_to_num() for v in (points, triangles))
    groups = -(-len(soup) // kernel.GROUP)
    numbers = _morton_order(soup.mean(dim=1))
    numbers = torch.cat([numbers, numbers[-1:].expand(groups * kernel.GROUP - len(soup))])  # full groups only
    soup = soup[numbers].contiguous()
    corners = soup.view(groups, 3 * kernel.GROUP, 3)
    boxes = torch.stack([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    order = _morton_order(where)
    found = torch.empty(len(where), dtype=torch.int32, device=where.device)
    sizes = {"POINTS": kernel.POINTS, "GROUP": kernel.GROUP, "TRIANGLES": kernel.TRIANGLES}
    programs = (-(-len(where) // kernel.POINTS),)
    inputs = where[order].contiguous(), soup, numbers.int(), boxes
    kernel.nearest[programs](*inputs, found, len(where), groups, len(triangles), **sizes)
    return torch.empty_like(order).scatter_(0, order, found.long())


def disagreement(device: torch.device | str) -> float:
    """Share of random points for which the Triton kernel names another triangle than the readable twin."""
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(100, 3, generator=draws).to(device)
    triangles = torch.randn(21, 3, 3, generator=draws).to(device)
    expected = nearest_triangles_reference(points.double(), triangles.double())[0]
    return float((nearest_triton(points, triangles) != expected).double().mean())


@lru_cache(maxsize=8)
def nearest_works(device: torch.device) -> bool:
    """Whether the kernel agrees with `nearest_triangles_reference` on this GPU; compared once."""
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


def _morton_order(centres: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """Indices that sort points along a space-filling curve: neighbours in the list are near in space."""
    low, high = centres.amin(dim=0), centres.amax(dim=0)
    cells = ((centres - low) / (high - low).clamp_min(1e-12) * 1023).long()
    code = torch.zeros_like(cells[:, 0])
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return torch.argsort(code, stable=True)
