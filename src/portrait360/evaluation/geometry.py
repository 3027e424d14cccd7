"""The shape of portraits: pieces, floating volume, and depth and width of heads, next to those of synthetic bodies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy import ndarray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from portrait360.geometry.body import BodyTemplate
from portrait360.media.mesh import extract_mesh
from portrait360.portrait.scene import MESH_STEP, mesh_box
from portrait360.types import BODY_POSE_SIZE, InputError

BODY_STATISTICS = Path(__file__).parents[1] / "assets" / "body_statistics.json"
SLAB = (0.10, 0.15)
"""Heights, world units, between which heads are measured: from above the ears and the bridge of the nose to nine
tenths of the skull (top at 0.165). There the profile hardly changes with height, in front (brow, forehead) and
behind, and no ear, nose or collar gets in the way."""
MEDIAN = 0.03
"""|x| in world units within which front and back are measured: a third of the skull's width."""
SMALLEST_SHARE = 0.02
"""Pieces below this share of the largest one's volume are crumbs: the default with which `extract_mesh` drops them."""


@dataclass(frozen=True)
class HeadMeasures:
    """Sizes of the upper head (SLAB) in the canonical body pose, world units; NaN where there is no head.

    The neck joint's vertical axis is x = z = 0. `back` and `front`: how far the surface reaches behind and before it
    in the median plane. `depth`: their sum. `width`: from side to side.
    """

    back: float
    front: float
    depth: float
    width: float


@dataclass(frozen=True)
class MeshStatistics:
    """Of one mesh.

    Attributes:
        pieces: separate pieces, without crumbs; closed cavities would count too.
        crumbs: pieces below SMALLEST_SHARE of the largest one's volume.
        watertight: every edge has two triangles: the mesh has no rim anywhere. False for a mesh of nothing.
        floating: share of the volume outside of the largest piece, crumbs included (of the area, if not watertight);
            NaN of nothing.
        head: of the largest piece.
    """

    pieces: int
    crumbs: int
    watertight: bool
    floating: float
    head: HeadMeasures

    @property
    def whole(self) -> bool:
        """One watertight piece, once crumbs are dropped as `extract_mesh` does."""
        return self.watertight and self.pieces == 1


NOTHING = MeshStatistics(0, 0, False, math.nan, HeadMeasures(math.nan, math.nan, math.nan, math.nan))
"""The statistics of a mesh without triangles."""


@runtime_checkable
class Surface(Protocol):
    """A triangle mesh: vertices (V, 3) in world units, faces (F, 3)."""

    @property
    def vertices(self) -> ndarray: ...
    @property
    def faces(self) -> ndarray: ...


@runtime_checkable
class Solid(Protocol):
    """What `portrait_geometry` needs of a `Portrait`."""

    @property
    def bounds(self) -> tuple[Tensor, Tensor]: ...
    @property
    def body(self) -> BodyTemplate: ...
    def query(self, points: Tensor, body_pose: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


def head_measures(vertices: ndarray) -> HeadMeasures:
    """Measure a head in the canonical body pose by its vertices (V, 3) in world units."""
    slab = vertices[(vertices[:, 1] >= SLAB[0]) & (vertices[:, 1] <= SLAB[1])]
    middle = slab[np.abs(slab[:, 0]) < MEDIAN, 2]
    if not len(middle):
        return NOTHING.head
    back, front = -float(middle.min()), float(middle.max())
    return HeadMeasures(back, front, front + back, float(np.ptp(slab[:, 0])))


def mesh_statistics(mesh: Surface) -> MeshStatistics:
    """Statistics of a triangle mesh in world units whose neighbouring triangles share vertices.

    Raises:
        InputError: vertices or faces have other shapes, are not finite, or do not go together.
    """
    # Check the mesh.
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    if vertices.ndim != 2 or faces.ndim != 2 or vertices.shape[1] != 3 or faces.shape[1] != 3:
        raise InputError(
            f"a mesh has vertices (V, 3) and faces (F, 3), not {vertices.shape} and {faces.shape}.",
            "Split polygons into triangles.",
        )
    if not len(faces):
        return NOTHING
    if not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(
            "the mesh has vertices that are not finite, or faces of vertices that it does not have.",
            "It is damaged: make it again.",
        )

    # Find pieces: vertices that edges link.
    start, end = faces.ravel(), np.roll(faces, 1, axis=1).ravel()
    links = coo_matrix((np.ones(len(start), bool), (start, end)), shape=(len(vertices),) * 2)
    _, piece_of_vertex = connected_components(links, directed=False)
    piece = piece_of_vertex[faces[:, 0]]

    # Size of each piece: signed volumes of the tetrahedra over its triangles, whose sum does not depend on the apex if
    # the piece is closed; else the area.
    watertight = is_watertight(faces)
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    volumes = np.einsum("fi,fi->f", a, np.cross(b, c)) / 6.0
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2.0
    sizes = np.abs(np.bincount(piece, volumes if watertight else areas))

    # Crumbs aside, count pieces and measure the largest one.
    present = np.bincount(piece) > 0  # vertices of no triangle are pieces of no size
    kept = present & (sizes >= SMALLEST_SHARE * sizes.max())
    largest = int(sizes.argmax())
    return MeshStatistics(
        pieces=int(kept.sum()),
        crumbs=int(present.sum() - kept.sum()),
        watertight=watertight,
        floating=float(1.0 - sizes[largest] / sizes.sum()) if sizes.sum() > 0 else math.nan,
        head=head_measures(vertices[piece_of_vertex == largest]),
    )


def is_watertight(faces: ndarray) -> bool:
    """Whether each edge of some triangles (F, 3) belongs to exactly two of them."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    _, triangles = np.unique(edges, axis=0, return_counts=True)
    return bool((triangles == 2).all())


def portrait_geometry(portrait: Solid, step: float = MESH_STEP) -> MeshStatistics:
    """Statistics of a portrait's surface in the canonical body pose.

    The surface is that of `portrait360 generate`, but for the crumbs, which are kept here to be counted. It is cut
    at the bottom, outside of every camera (`mesh_box`). `extract_mesh` pads the box with emptiness before the
    marching cubes, which closes the cut with a flat cap: a cut torso is watertight, and a rim can only come from a
    fault. A surface that the box cuts in two below the shoulders would count as two pieces.

    Args:
        portrait: what to measure.
        step: world units between the points where the density is read.

    Returns:
        NOTHING where the density is solid nowhere.
    """
    pose = torch.zeros(BODY_POSE_SIZE)
    low, high = mesh_box(portrait.bounds, pose, portrait.body)
    try:
        with torch.inference_mode():
            mesh = extract_mesh(portrait.query, low, high, step=step, smallest_share=0.0)
    except InputError:  # nothing solid
        return NOTHING
    return mesh_statistics(mesh)


def load_body_statistics(path: Path = BODY_STATISTICS) -> dict[str, Any]:
    """Head measures of synthetic bodies, as `tools.body_statistics` wrote them.

    Returns:
        `count`, `seed`, `slab`, `median` (how they were made), and under `with_hair` and `without_hair` for every
        measure of `HeadMeasures` its `mean`, `std`, `p5` and `p95` in world units.

    Raises:
        InputError: the file is missing or damaged, or was measured by another definition.
    """
    # Read, and check every number.
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for kind in ("with_hair", "without_hair"):
            for measure in fields(HeadMeasures):
                for number in ("mean", "std", "p5", "p95"):
                    float(content[kind][measure.name][number])
        same = content["slab"] == list(SLAB) and content["median"] == MEDIAN
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the statistics of bodies cannot be read from {path} ({error}).",
            "Install the package again, or make them in a checkout: python -m tools.body_statistics",
        ) from error

    # Refuse another definition of the measures.
    if not same:
        raise InputError(
            f"the bodies of {path} were measured elsewhere on the head.",
            "Make them again in a checkout: python -m tools.body_statistics",
        )
    return content


def against_bodies(portraits: Sequence[MeshStatistics], bodies: dict[str, Any] | None = None) -> dict[str, Any]:
    """Summary of many portraits, their heads next to those of synthetic bodies.

    Portraits have hair and no skull, so bodies with hair are the reference; those without show the skull's share.

    Args:
        portraits: statistics of at least one portrait.
        bodies: as from `load_body_statistics`, which is the default.

    Returns:
        A dict for JSON. `count`; the shares `watertight` and `whole` (one watertight piece after crumbs are
        dropped); the means `pieces`, `crumbs` and `floating`; `headless`, the portraits without a surface at the
        height of the head; and under `head` for each measure the `mean` and `std` of the portraits that have one,
        `bodies` and `bodies_std`, `difference` = (mean - bodies) / bodies_std: how far the average portrait
        is off, in units of the bodies' variety, positive when larger; and `outside`, the share of portraits below
        the bodies' 5th or above their 95th percentile (0.1 would be natural). None where no portrait has the measure.

    Raises:
        InputError: no portraits.
    """
    if not portraits:
        raise InputError("no portraits were given to compare with bodies.", "Make at least one.")

    # Each head measure next to that of bodies with hair.
    reference = (load_body_statistics() if bodies is None else bodies)["with_hair"]
    head = {}
    for measure in fields(HeadMeasures):
        body = reference[measure.name]
        values = [value for p in portraits if math.isfinite(value := getattr(p.head, measure.name))]
        mean = fmean(values) if values else None
        head[measure.name] = {
            "mean": mean,
            "std": float(np.std(values)) if values else None,
            "bodies": body["mean"],
            "bodies_std": body["std"],
            "difference": None if mean is None or body["std"] <= 0 else (mean - body["mean"]) / body["std"],
            "outside": fmean(not body["p5"] <= value <= body["p95"] for value in values) if values else None,
        }

    # Pieces and crumbs.
    floating = [p.floating for p in portraits if math.isfinite(p.floating)]
    return {
        "count": len(portraits),
        "watertight": fmean(p.watertight for p in portraits),
        "whole": fmean(p.whole for p in portraits),
        "pieces": fmean(p.pieces for p in portraits),
        "crumbs": fmean(p.crumbs for p in portraits),
        "floating": fmean(floating) if floating else None,
        "headless": sum(not math.isfinite(p.head.depth) for p in portraits),
        "head": head,
    }


def geometry_measures(summary: dict[str, Any]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The numbers of geometry from the summary of `against_bodies`; mean and standard deviation of synthetic bodies."""
    values: dict[str, float | None] = {"whole_meshes": summary["whole"], "floating_matter": summary["floating"]}
    bodies = {}
    for part, name in (("back", "back_of_head"), ("depth", "head_depth"), ("width", "head_width")):
        record = summary["head"][part]
        values[name] = record["mean"]
        bodies[name] = (record["bodies"], record["bodies_std"])
    return {name: value for name, value in values.items() if value is not None}, bodies
