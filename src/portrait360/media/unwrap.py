"""A flat layout of a mesh for its texture, by xatlas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xatlas
from jaxtyping import Float, Int
from numpy import ndarray

from portrait360.media.mesh import Mesh
from portrait360.media.simplify import light_mesh

MOST_CHARTS = 400
LEAST_COVERAGE = 0.6
"""Share of the texture."""
_PADDING = 2
"""Texels between charts, in a texture of 1024 a side."""
_LAYOUT = 1600
"""What xatlas is told for layouts that come out at about 1024 texels a side."""
_FEWER, _TRIES = 0.75, 4


@dataclass(frozen=True)
class Unwrapped:
    """A mesh cut open along seams: vertices there have a place in the texture on each side."""

    source: Int[ndarray, " W"]
    """The mesh's vertex that each of these is."""
    faces: Int[ndarray, "F 3"]
    """The mesh's triangles, by these vertices."""
    uv: Float[ndarray, "W 2"]
    """0 to 1: u to the right, v down from the texture's top, as in glTF."""
    charts: int

    @property
    def coverage(self) -> float:
        """Share of the texture that triangles cover."""
        a, b, c = (self.uv[self.faces[:, i]].astype(np.float64) for i in range(3))
        return float(np.abs(np.cross(b - a, c - a)).sum() / 2.0)


def light_and_flat(mesh: Mesh, triangles: int, *, floor: float, step: float) -> tuple[Mesh, Unwrapped]:
    """A light mesh with a layout that is not shredded: at most `MOST_CHARTS`, at least `LEAST_COVERAGE`.

    Rough surfaces fall into many charts: they are simplified further until the layout is good, or four times.

    Args:
        mesh, floor, step: see `light_mesh`.
        triangles: the most that are left.
    """
    tried: list[tuple[Mesh, Unwrapped]] = []
    for _ in range(_TRIES):
        light = light_mesh(mesh, triangles, floor=floor, step=step)
        flat = unwrap(light)
        if flat.charts <= MOST_CHARTS and flat.coverage >= LEAST_COVERAGE:
            return light, flat
        tried.append((light, flat))
        triangles = int(triangles * _FEWER)
    return min(tried, key=lambda one: (one[1].charts > MOST_CHARTS, -one[1].coverage))


def unwrap(mesh: Mesh) -> Unwrapped:
    """Cut a mesh into charts that lie flat without overlaps, and pack them into a square."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.padding, packing.resolution, packing.bilinear, packing.bruteForce = _PADDING, _LAYOUT, True, True
    atlas.generate(xatlas.ChartOptions(), packing)
    source, faces, uv = atlas[0]
    return Unwrapped(source.astype(np.int32), faces.astype(np.int32), uv.clip(0.0, 1.0), atlas.chart_count)
