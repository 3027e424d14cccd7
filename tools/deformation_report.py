"""Agreement of the deformation field with the exact transfer and with the body's own skinning.

python -m tools.deformation_report --out docs/lab/DATE-deformation.md
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.geometry.body import BodyTemplate, load_body, posed_vertices
from portrait360.geometry.deformation import (
    FIELD_MAX,
    FIELD_MIN,
    FIELD_SHAPE,
    apply_field,
    deform_exact,
    deformation_field,
    posing_jacobian,
)
from portrait360.geometry.weights import VOLUME_SPACING, build_weight_volume
from portrait360.runtime.files import atomic_write
from portrait360.runtime.script import run_script

PORTRAIT_MIN = (-0.25, -0.33, -0.22)
PORTRAIT_MAX = (0.25, 0.25, 0.22)
"""The region that portraits show, world units."""

NEAR_SKIN = 0.03
"""Points for the comparison with the exact transfer lie this close to the posed skin, world units."""

MOVED = 0.001
"""Points that the exact transfer moves by more than this are reported separately, world units."""

POSE_SPREAD_DEGREES = (8.0, 10.0, 6.0, 8.0, 12.0, 6.0)
"""Standard deviations of the synthetic portraits: neck nod, turn and tilt, head nod, turn and tilt."""


@dataclass(frozen=True)
class Spread:
    """Mean, 99th percentile and maximum of distances, world units."""

    mean: float
    p99: float
    maximum: float

    @staticmethod
    def of(distances: Float[Tensor, " N"]) -> Spread:
        """Summarise distances."""
        rank = max(1, math.ceil(0.99 * len(distances)))
        return Spread(distances.mean().item(), distances.kthvalue(rank).values.item(), distances.max().item())


@dataclass(frozen=True)
class Agreement:
    """Distances between field and exact transfer (all points, moved points), and of both from the truth.

    The truth is that posed vertices go back to their canonical places.
    """

    field_to_exact: Spread
    field_to_exact_moved: Spread
    field_to_vertices: Spread
    exact_to_vertices: Spread


def random_poses(count: int, seed: int = 0) -> Float[Tensor, "B 6"]:
    """Body poses as of the synthetic portraits, without their clipping."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator) * torch.tensor(POSE_SPREAD_DEGREES).deg2rad()


def single_axis_poses(degrees: float | int) -> Float[Tensor, "12 6"]:
    """Every one of the six numbers alone, at plus and minus `degrees`."""
    turns = torch.eye(6) * math.radians(degrees)
    return torch.cat([turns, -turns])


def points_near_skin(
    vertices: Float[Tensor, "V 3"], body: BodyTemplate, count: int, seed: int = 0
) -> Float[Tensor, "N 3"]:
    """Points in the portrait region, evenly over the skin of a posed body, up to NEAR_SKIN off it."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(PORTRAIT_MIN), torch.tensor(PORTRAIT_MAX)
    corners = vertices[body.faces]
    first, second, third = corners.unbind(1)
    area = torch.linalg.vector_norm(torch.linalg.cross(second - first, third - first), dim=-1)
    inside = ((corners > low) & (corners < high)).all(-1).all(-1)
    face = torch.multinomial(area * inside, count, replacement=True, generator=generator)
    share = torch.distributions.Dirichlet(torch.ones(3))  # even over a triangle
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        on_skin = (corners[face] * share.sample((count,))[..., None]).sum(1)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    points = on_skin + direction * NEAR_SKIN * torch.rand(count, 1, generator=generator)
    return points.clamp(low, high)


def measure(body: BodyTemplate, poses: Float[Tensor, "B 6"], points_per_pose: int = 4000) -> Agreement:
    """Compare field, exact transfer and skinning over the given poses."""
    field = deformation_field(body, poses)
    posed = posed_vertices(body, poses)
    points = torch.stack([points_near_skin(v, body, points_per_pose, i) for i, v in enumerate(posed)])
    exact = deform_exact(points, body, poses)
    apart = (apply_field(field, points) - exact).norm(dim=-1)
    moved = (exact - points).norm(dim=-1) > MOVED
    shown = ((posed > torch.tensor(PORTRAIT_MIN)) & (posed < torch.tensor(PORTRAIT_MAX))).all(-1)
    return Agreement(
        field_to_exact=Spread.of(apart.flatten()),
        field_to_exact_moved=Spread.of(apart[moved]),
        field_to_vertices=Spread.of((apply_field(field, posed) - body.vertices).norm(dim=-1)[shown]),
        exact_to_vertices=Spread.of((deform_exact(posed, body, poses) - body.vertices).norm(dim=-1)[shown]),
    )


def seconds_per_image(body: BodyTemplate, batch: int = 16, repeats: int = 20) -> tuple[float, float]:
    """Best processor time of one thread for the forward and the backward pass of the field, per image."""
    import numba

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    forward, backward = [], []
    try:
        for _ in range(repeats):
            poses = random_poses(batch).requires_grad_()
            start = time.process_time()
            field = deformation_field(body, poses)
            middle = time.process_time()
            field.backward(torch.ones_like(field))
            forward.append(middle - start)
            backward.append(time.process_time() - middle)
    finally:
        numba.set_num_threads(threads)
    return min(forward) / batch, min(backward) / batch


def folded_share(body: BodyTemplate, poses: Float[Tensor, "B 6"], points: int = 20000) -> Float[Tensor, " B"]:
    """For each pose the share of canonical points near the skin where posing turns space inside out."""
    cloud = points_near_skin(body.vertices, body, points).expand(len(poses), -1, -1)
    jacobian = posing_jacobian(body, poses, cloud)
    return (torch.linalg.det(jacobian) <= 0).float().mean(1)


def report(body: BodyTemplate) -> str:
    """The page, a note for docs/lab."""
    # Distances for sets of poses.
    sets = {
        "random poses": random_poses(48),
        "single axes at ±20°": single_axis_poses(20),
        "single axes at ±40°": single_axis_poses(40),
    }
    rows = []
    for name, poses in sets.items():
        found = measure(body, poses)
        spreads = [found.field_to_exact, found.field_to_exact_moved]
        spreads += [found.field_to_vertices, found.exact_to_vertices]
        cells = [f"{s.mean:.5f} / {s.p99:.4f} / {s.maximum:.4f}" for s in spreads]
        rows.append(f"| {name} | {' | '.join(cells)} |")

    # Where posing folds space, and what it costs.
    both_nod = torch.tensor([[math.radians(45), 0, 0] * 2])
    folded = [folded_share(body, p).max().item() for p in (sets["single axes at ±40°"], both_nod)]
    forward, backward = seconds_per_image(body)
    start = time.perf_counter()
    build_weight_volume(body)

    # The page.
    return _PAGE.format(
        nodes=" x ".join(str(n) for n in reversed(FIELD_SHAPE)),
        low=FIELD_MIN,
        high=FIELD_MAX,
        spacing=VOLUME_SPACING,
        build=time.perf_counter() - start,
        forward=forward * 1e3,
        backward=backward * 1e3,
        metres=1 / body.metres_to_world,
        near=NEAR_SKIN,
        moved=MOVED,
        spread=", ".join(f"{degrees:g}" for degrees in POSE_SPREAD_DEGREES),
        rows="\n".join(rows),
        folded=folded,
    )


_PAGE = """# The deformation field against the exact transfer

Question: how far is the fast deformation field from the exact transfer through triangles?

Written by `python -m tools.deformation_report --out FILE.md`; `tests/geometry/test_deformation.py` holds the bounds.
The method is in [model](../model.md#deformation).

- Field: {nodes} nodes (x, y, z) over {low} to {high}.
- Weights: a grid of {spacing} units, computed when a body is first used, in {build:.1f} s.
- Cost of one image on one core: {forward:.1f} ms forward, {backward:.1f} ms backward; two cores halve it.

## Accuracy

Distances are in world units: the image is 0.41 units wide, a pixel at 256² 0.0016.
Points lie within {near} of the skin, evenly over it, in the region that portraits show.
"Moved" are those that the exact transfer moves by more than {moved}; 1 unit is about {metres:.1f} m.
Random poses are normal with standard deviations of {spread} degrees (neck nod, turn, tilt, head nod, turn, tilt).
The last two columns are about the truth: posed vertices should return to their canonical places.

| mean / 99th % / maximum | field to exact | field to exact, moved | field to truth | exact to truth |
|---|---|---|---|---|
{rows}

The largest distances between the two lie where chin, jaw and collar come close.
There the exact transfer switches between head and chest from one point to the next.
The field blends them over the gap.

Near the skin nothing folds at ±20° about single axes.
At ±40° at most {folded[0]:.2%} of the points do, and {folded[1]:.2%} when neck and head both nod by 45°.
There the field stays finite and bounded, but is no longer one-to-one.
"""


def main(out: Path) -> None:
    """Write a page (.md) that compares the deformation field with the exact transfer."""
    with atomic_write(out) as temporary:
        temporary.write_text(report(load_body()), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
