"""From posed to canonical space: the exact transfer through the nearest triangle, and a smooth, fast field.

The exact form follows official_model section 6 of the original: every point moves rigidly with the frame of the
nearest triangle, within a thickness. The field solves the body's own skinning for the canonical position of each
node of a posed-space grid; it is what training and rendering use. docs/deformation.md compares the two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from portrait360.geometry.body import BodyTemplate, bone_transforms, posed_vertices
from portrait360.geometry.nearest import nearest_triangles
from portrait360.geometry.weights import WeightVolume, weight_volume
from portrait360.kernels import deformation as kernel

FIELD_MIN = (-0.30, -0.34, -0.26)
FIELD_MAX = (0.30, 0.30, 0.28)
"""The posed-space box that the field covers, nodes on its faces included."""

FIELD_SHAPE = (24, 28, 20)
"""Nodes along z, y and x."""

HALF_BOX = 0.5
"""Only faces inside the cube |coordinate| < HALF_BOX take part in the exact transfer."""


def deform_exact(
    points: Float[Tensor, "B N 3"], body: BodyTemplate, pose: Float[Tensor, "B 6"], thickness: float = 0.25
) -> Float[Tensor, "B N 3"]:
    """Canonical positions of posed points, by the rigid frame of the nearest triangle of the posed body.

    Points at `thickness` or farther from the body stay. Gradients reach the pose and the points through the
    frames, not through the choice of triangle.
    """
    corners = body.vertices[body.faces]
    faces = body.faces[(corners.abs() < HALF_BOX).all(-1).all(-1)]
    posed = posed_vertices(body, pose)
    moved = []
    for cloud, vertices in zip(points, posed, strict=True):
        index, _, distance = nearest_triangles(cloud, vertices[faces])
        near = faces[index]
        origin, axes = triangle_frames(vertices[near])
        local = (axes @ (cloud - origin)[..., None])[..., 0]
        origin, axes = triangle_frames(body.vertices.to(points)[near])
        canonical = origin + (axes.mT @ local[..., None])[..., 0]
        moved.append(torch.where((distance < thickness)[:, None], canonical, cloud))
    return torch.stack(moved)


def triangle_frames(triangles: Float[Tensor, "N 3 3"]) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"]]:
    """First corner and unit axes (rows: along the first edge, normal, their cross product) of triangles."""
    first, second, third = triangles.unbind(1)
    normal = F.normalize(torch.linalg.cross(second - first, third - first, dim=-1), dim=-1)
    edge = F.normalize(second - first, dim=-1)
    return first, torch.stack([edge, normal, torch.linalg.cross(edge, normal, dim=-1)], dim=1)


def deformation_field(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], shape: tuple[int, int, int] = FIELD_SHAPE
) -> Float[Tensor, "B nz ny nx 3"]:
    """Displacements canonical - posed at the nodes of the field box, differentiable in the pose.

    Each node's canonical position x solves sum_k W_k(x) G_k x = node, with the body's weight volume W and bone
    motions G, by Newton's method; gradients follow from the implicit function theorem. Zero pose gives exactly zero.
    """
    if pose.device.type != "cpu" or pose.dtype != torch.float32:
        return deformation_field_reference(body, pose, shape)
    return _Field.apply(_bone_deltas(body, pose), weight_volume(body), shape)


def deformation_field_reference(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], shape: tuple[int, int, int] = FIELD_SHAPE
) -> Float[Tensor, "B nz ny nx 3"]:
    """The plain twin of `deformation_field`, in torch, on any device."""
    deltas = _bone_deltas(body, pose)
    volume = weight_volume(body)
    z, y, x = torch.meshgrid(*reversed(field_axes(shape)), indexing="ij")
    nodes = torch.stack([x, y, z], dim=-1).to(pose)
    shift = torch.zeros(len(pose), *nodes.shape, dtype=pose.dtype, device=pose.device)
    with torch.no_grad():
        for _ in range(kernel.ITERATIONS):
            moved, jacobian = _move(volume, deltas, nodes + shift)
            residual = shift + moved
            open_nodes = residual.square().sum(-1, keepdim=True) >= float(kernel.TOLERANCE) ** 2
            step = torch.linalg.solve(jacobian, residual)
            length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
            step = step * (float(kernel.MAX_STEP) / length.clamp_min(float(kernel.MAX_STEP)))
            shift = torch.where(open_nodes, shift - step, shift)
        _, jacobian = _move(volume, deltas, nodes + shift)
    # one more step whose value is zero and whose derivative is the implicit function theorem's
    moved, _ = _move(volume, deltas, nodes + shift)
    return shift - torch.linalg.solve(jacobian, moved - moved.detach())


def apply_field(
    field: Float[Tensor, "B nz ny nx 3"], points: Float[Tensor, "B N 3"]
) -> Float[Tensor, "B N 3"]:
    """Points plus the trilinear displacement; beyond the box the value on its border is used."""
    low, high = points.new_tensor(FIELD_MIN), points.new_tensor(FIELD_MAX)
    grid = ((points - low) / (high - low) * 2 - 1)[:, None, None]
    sampled = F.grid_sample(
        field.permute(0, 4, 1, 2, 3), grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return points + sampled[:, :, 0, 0].mT


def field_axes(shape: tuple[int, int, int] = FIELD_SHAPE) -> list[Float[Tensor, " n"]]:
    """Node coordinates of the field along x, y and z."""
    return [
        torch.linspace(low, high, count)
        for low, high, count in zip(FIELD_MIN, FIELD_MAX, reversed(shape), strict=True)
    ]


def _bone_deltas(body: BodyTemplate, pose: Tensor) -> Tensor:
    """Motions of the moving bones less the identity, (B, M, 3, 4)."""
    motions = bone_transforms(body, pose)[:, list(body.moving)]
    return motions - torch.eye(3, 4, dtype=pose.dtype, device=pose.device)


def _move(volume: WeightVolume, deltas: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement of canonical points (B, ..., 3) by the blended bones, and the Jacobian of their posed position."""
    weights, slopes = _look_up(volume, points)
    shape = (len(deltas), *[1] * (points.ndim - 2))
    motions = deltas.view(*shape, *deltas.shape[1:])
    per_bone = (motions[..., :3] @ points[..., None, :, None])[..., 0] + motions[..., 3]
    moved = (weights[..., None] * per_bone).sum(-2)
    identity = torch.eye(3, dtype=points.dtype, device=points.device)
    blended = identity + (weights[..., None, None] * motions[..., :3]).sum(-3)
    jacobian = blended + per_bone.mT @ slopes
    folded = torch.linalg.det(jacobian) < float(kernel.MIN_DETERMINANT)
    return moved, torch.where(folded[..., None, None], blended, jacobian)


def _look_up(volume: WeightVolume, points: Tensor) -> tuple[Tensor, Tensor]:
    """Trilinear weights (..., M) of the moving bones at canonical points and their slopes (..., M, 3)."""
    values = volume.values.to(points)
    size = torch.tensor(values.shape[:3]).flip(0).to(points)
    position = (points - points.new_tensor(volume.low)) / volume.spacing
    inside = ((position >= 0) & (position <= size - 1)).to(points) / volume.spacing
    position = torch.minimum(position.clamp_min(0), size - 1)
    cell = torch.minimum(position.floor(), size - 2)
    fraction = position - cell
    index = cell.long()
    weights = torch.zeros(*points.shape[:-1], values.shape[-1], dtype=points.dtype, device=points.device)
    slopes = torch.zeros(*weights.shape, 3, dtype=points.dtype, device=points.device)
    for corner in range(8):
        bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=points.device)
        x, y, z = (index + bits).unbind(-1)
        value = values[z, y, x]
        share = torch.where(bits == 1, fraction, 1 - fraction)
        weights = weights + value * share.prod(-1, keepdim=True)
        others = torch.stack(
            [share[..., [1, 2]].prod(-1), share[..., [0, 2]].prod(-1), share[..., [0, 1]].prod(-1)], -1
        )
        slopes = slopes + value[..., None] * (others * (2 * bits - 1) * inside)[..., None, :]
    return weights, slopes


class _Field(torch.autograd.Function):
    """The numba kernels as a differentiable function of the bone deltas."""

    @staticmethod
    def forward(ctx: Any, deltas: Tensor, volume: WeightVolume, shape: tuple[int, int, int]) -> Tensor:
        field = torch.empty(len(deltas), *shape, 3)
        arguments = (
            volume.values.numpy(),
            torch.tensor(volume.low).numpy(),
            torch.tensor(1 / volume.spacing).numpy()[()],
            deltas.detach().contiguous().numpy(),
            *(axis.numpy() for axis in field_axes(shape)),
            field.numpy(),
        )
        kernel.field_forward(*arguments)
        ctx.arguments = arguments
        return field

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        partial = kernel.field_backward(*ctx.arguments, gradient.contiguous().numpy())
        return torch.from_numpy(partial).sum(1), None, None
