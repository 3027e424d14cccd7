"""From posed to canonical space: the exact transfer through the nearest triangle, and a smooth, fast field.

The exact form follows the original model: every point moves rigidly with the frame of its nearest triangle,
within a thickness. The field solves the body's own skinning for the canonical position of each node of a
posed-space grid; training and rendering use it. docs/model.md compares the two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from portrait360.geometry.body import BodyTemplate, bone_transforms, load_body, posed_vertices
from portrait360.geometry.nearest import nearest_indices
from portrait360.geometry.weights import WeightVolume, look_up, weight_volume
from portrait360.kernels import deformation as kernel
from portrait360.kernels.selfcheck import agrees
from portrait360.runtime.device import constant
from portrait360.types import BODY_POSE_SIZE

FIELD_MIN = (-0.22, -0.24, -0.24)
FIELD_MAX = (0.22, 0.28, 0.26)
"""The posed-space box of the field, nodes on its faces included. It holds what neck and head can move; beyond
it the border value continues, which is zero at the shoulders."""
FIELD_SHAPE = (24, 28, 20)
"""Nodes along z, y and x."""
HALF_BOX = 0.5
"""Half of the side of the original's cube."""


# ---- the exact transfer ----


def deform_exact(
    points: Float[Tensor, "B N 3"],
    body: BodyTemplate,
    pose: Float[Tensor, "B 6"],
    thickness: float = 0.25,
    *,
    half_box: float = HALF_BOX,
    first_axis_of_three: bool = False,
) -> Float[Tensor, "B N 3"]:
    """Canonical positions of posed points, by the rigid frame of the nearest triangle of the posed body.

    Points at `thickness` or farther from the body stay. Gradients reach the pose and the points through the
    frames, not through the choice of triangle. Source: equations 6. `half_box`: see `kept_faces`;
    `first_axis_of_three`: see `carry`.
    """
    faces = body.faces[kept_faces(body.vertices, body.faces, half_box)]
    rest, posed = body.vertices.to(points)[faces], posed_vertices(body, pose)[:, faces]
    return transfer(points, rest, posed, thickness, first_axis_of_three=first_axis_of_three)


def kept_faces(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "T 3"], half_box: float = HALF_BOX
) -> Bool[Tensor, " T"]:
    """Which triangles take part in the exact transfer: all corners inside the cube |coordinate| < half_box, that of
    the tri-grid (equations 6.3)."""
    return (vertices.abs() < half_box).all(-1)[faces].all(-1)


def transfer(
    points: Float[Tensor, "B N 3"],
    rest: Float[Tensor, "T 3 3"],
    posed: Float[Tensor, "B T 3 3"],
    thickness: float,
    *,
    first_axis_of_three: bool = False,
) -> Float[Tensor, "B N 3"]:
    """Points carried along with the frames of their nearest triangles, from `posed` to `rest` triangles."""
    found = [nearest_indices(cloud, triangles) for cloud, triangles in zip(points, posed, strict=True)]
    indices, distances = torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])
    if first_axis_of_three:
        return carry(points, rest, posed, indices, distances, thickness, first_axis_of_three=True)
    clouds = [slice(i, i + 1) for i in range(len(points))]  # one at a time: frames take much memory
    return torch.cat([carry(points[i], rest, posed[i], indices[i], distances[i], thickness) for i in clouds])


def carry(
    points: Float[Tensor, "B N 3"],
    rest: Float[Tensor, "T 3 3"],
    posed: Float[Tensor, "B T 3 3"],
    indices: Int[Tensor, "B N"],
    distances: Float[Tensor, "B N"],
    thickness: float,
    *,
    first_axis_of_three: bool = False,
) -> Float[Tensor, "B N 3"]:
    """Points moved rigidly with triangles `indices` from `posed` to `rest` within `thickness` (equations 6.5, 6.6).

    `first_axis_of_three` reproduces a fault of the original: its cross products run along the first axis of size 3,
    which is not the last one for three clouds or three points (equations 6.7).
    """
    axis = points.shape.index(3) if first_axis_of_three else -1
    origin, axes = triangle_frames(torch.stack([t[i] for t, i in zip(posed, indices, strict=True)]), axis)
    local = (axes @ (points - origin)[..., None])[..., 0]
    origin, axes = triangle_frames(rest[indices], axis)
    canonical = origin + (axes.mT @ local[..., None])[..., 0]
    return torch.where((distances < thickness)[..., None], canonical, points)


def triangle_frames(
    triangles: Float[Tensor, "*n 3 3"], axis: int = -1
) -> tuple[Float[Tensor, "*n 3"], Float[Tensor, "*n 3 3"]]:
    """First corner and unit axes (rows: along the first edge, normal, their cross product) of triangles.

    `axis` of the corners (*n 3) is the one along which vectors are multiplied: the last, unless faults are wanted.
    """
    first, second, third = triangles.unbind(-2)
    normal = F.normalize(torch.linalg.cross(second - first, third - first, dim=axis), dim=-1)
    edge = F.normalize(second - first, dim=-1)
    return first, torch.stack([edge, normal, torch.linalg.cross(edge, normal, dim=axis)], dim=-2)


# ---- the field: its nodes and its use ----


def field_axes(shape: tuple[int, int, int] = FIELD_SHAPE) -> list[Tensor]:
    """Node coordinates of the field along x, y and z, float32."""
    return [
        torch.linspace(low, high, count) for low, high, count in zip(FIELD_MIN, FIELD_MAX, reversed(shape), strict=True)
    ]


def field_nodes(shape: tuple[int, int, int] = FIELD_SHAPE) -> Float[Tensor, "nz ny nx 3"]:
    """Positions of the field's nodes in posed space."""
    z, y, x = torch.meshgrid(*reversed(field_axes(shape)), indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def apply_field(field: Float[Tensor, "B nz ny nx 3"], points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
    """Points plus the trilinear displacement; beyond the box the value on its border is used."""
    low, high = constant(FIELD_MIN, points), constant(FIELD_MAX, points)
    grid = ((points - low) / (high - low) * 2 - 1)[:, None, None]
    sampled = F.grid_sample(
        field.permute(0, 4, 1, 2, 3), grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return points + sampled[:, :, 0, 0].mT


# ---- the field by its readable twin ----


def deformation_field_reference(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], shape: tuple[int, int, int] = FIELD_SHAPE
) -> Float[Tensor, "B nz ny nx 3"]:
    """The readable twin of `deformation_field`, in torch, on any device."""
    # Where the nodes are, and the motions of the bones.
    deltas = bone_deltas(body, pose)
    volume = weight_volume(body).to(pose)
    z, y, x = torch.meshgrid(*reversed(field_axes(shape)), indexing="ij")
    nodes = torch.stack([x, y, z], dim=-1).to(pose)

    # Newton's method for the canonical place of each node, without gradients.
    shift = torch.zeros(len(pose), *nodes.shape, dtype=pose.dtype, device=pose.device)
    unfinished = torch.ones_like(shift[..., :1], dtype=torch.bool)
    with torch.no_grad():
        for _ in range(kernel.ITERATIONS):
            moved, jacobian = _move(volume, deltas, nodes + shift)
            residual = shift + moved
            step = _solve(jacobian, residual)
            length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
            step = step * (float(kernel.MAX_STEP) / length.clamp_min(float(kernel.MAX_STEP)))
            shift = torch.where(unfinished, shift - step, shift)
            unfinished &= residual.square().sum(-1, keepdim=True) >= float(kernel.LAST_STEP) ** 2

    # A step of value zero whose derivative is that of the implicit function theorem.
    moved, jacobian = _move(volume, deltas, nodes + shift)
    return shift - _solve(jacobian.detach(), moved - moved.detach())


def posed_points(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], points: Float[Tensor, "B N 3"]
) -> Float[Tensor, "B N 3"]:
    """Posed places of canonical points: the inverse of `apply_field` with the field of the same pose."""
    return points + _pose_points(weight_volume(body).to(pose), bone_deltas(body, pose), points)[0]


def posing_jacobian(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], points: Float[Tensor, "B N 3"]
) -> Float[Tensor, "B N 3 3"]:
    """Derivative of the posed place of canonical points; its determinant is negative where space folds."""
    return _pose_points(weight_volume(body).to(pose), bone_deltas(body, pose), points)[1]


def bone_deltas(body: BodyTemplate, pose: Tensor) -> Tensor:
    """Motions of the moving bones less the identity, (B, M, 3, 4)."""
    motions = bone_transforms(body, pose).index_select(1, constant(body.moving, pose, torch.long))
    return motions - torch.eye(3, 4, dtype=pose.dtype, device=pose.device)


def _move(volume: WeightVolume, deltas: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement of canonical points (B, ..., 3); the Jacobian to step with, without slopes in folds."""
    moved, jacobian, blended = _pose_points(volume, deltas, points)
    folded = torch.linalg.det(jacobian) < float(kernel.MIN_DETERMINANT)
    return moved, torch.where(folded[..., None, None], blended, jacobian)


def _pose_points(volume: WeightVolume, deltas: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Displacement of canonical points, the Jacobian of their posed place, and its part without slopes."""
    weights, slopes = look_up(volume, points)
    motions = deltas.view(len(deltas), *[1] * (points.ndim - 2), *deltas.shape[1:])
    # sums of products: many tiny matrix products are slow
    per_bone = (motions[..., :3] * points[..., None, None, :]).sum(-1) + motions[..., 3]
    moved = (weights[..., None] * per_bone).sum(-2)
    identity = torch.eye(3, dtype=points.dtype, device=points.device)
    blended = identity + (weights[..., None, None] * motions[..., :3]).sum(-3)
    return moved, blended + (per_bone[..., None] * slopes[..., None, :]).sum(-3), blended


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solutions of 3x3 systems by Cramer's rule; zero where the matrix is singular."""
    first, second, third = matrix.unbind(-1)
    cofactors = torch.stack(
        [
            torch.linalg.cross(second, third),
            torch.linalg.cross(third, first),
            torch.linalg.cross(first, second),
        ],
        dim=-2,
    )
    determinant = (first * cofactors[..., 0, :]).sum(-1, keepdim=True)
    regular = determinant.abs() > 1e-3
    solution = (cofactors * vector[..., None, :]).sum(-1) / torch.where(regular, determinant, 1)
    return torch.where(regular, solution, 0)


# ---- the field by the numba kernels ----


def bones_last(deltas: Float[Tensor, "B M 3 4"]) -> Float[Tensor, "B 3 4 bones"]:
    """Motions as the compiled kernels take them, filled up with bones that do not move."""
    return F.pad(deltas.detach().permute(0, 2, 3, 1), (0, kernel.BONES - deltas.shape[1])).contiguous()


class _Field(torch.autograd.Function):
    """The numba kernels as a differentiable function of the bone deltas."""

    @staticmethod
    def forward(ctx: Any, deltas: Tensor, volume: WeightVolume, shape: tuple[int, int, int]) -> Tensor:
        field = torch.empty(len(deltas), *shape, 3)
        ctx.inputs = [
            volume.padded(kernel.BONES).numpy(),
            torch.tensor(volume.low).numpy(),
            torch.tensor(1 / volume.spacing).numpy()[()],
            bones_last(deltas).numpy(),
            *(axis.numpy() for axis in field_axes(shape)),
        ]
        kernel.field_forward(*[*ctx.inputs, field.numpy()])
        ctx.bones = deltas.shape[1]
        ctx.save_for_backward(field)
        return field

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (field,) = ctx.saved_tensors
        partial = kernel.field_backward(*[*ctx.inputs, field.numpy(), gradient.contiguous().numpy()])
        return torch.from_numpy(partial).sum(1)[..., : ctx.bones].permute(0, 3, 1, 2), None, None


def deformation_field_numba(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], shape: tuple[int, int, int] = FIELD_SHAPE
) -> Float[Tensor, "B nz ny nx 3"]:
    """`deformation_field` by the compiled kernels of the CPU, in float32, for at most `kernel.BONES` moving bones."""
    field = _Field.apply(bone_deltas(body, pose), weight_volume(body), shape)
    assert isinstance(field, Tensor)
    return field


# ---- the field by the Triton kernels ----

_SMALL = (6, 8, 5)
"""Nodes of the field that is compared: more than one program takes."""
_volumes: WeakKeyDictionary[BodyTemplate, dict[torch.device, Tensor]] = WeakKeyDictionary()


def load_kernels() -> Any:
    """The module of the kernels; ImportError without Triton."""
    from portrait360.kernels import triton_deformation

    return triton_deformation


def _volume(body: BodyTemplate, device: torch.device) -> Float[Tensor, "Z Y X bones"]:
    """Weights on the GPU, kept as long as the template lives."""
    known = _volumes.setdefault(body, {})
    if device not in known:
        with torch.inference_mode(False):
            known[device] = weight_volume(body).padded(kernel.BONES).to(device)
    return known[device]


@lru_cache(maxsize=8)
def _nodes(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):
        return tuple(axis.to(device) for axis in field_axes(shape))


class _FieldGpu(torch.autograd.Function):
    """Deltas arrive as (B, M, 3, 4); the kernels take them bones last."""

    @staticmethod
    def forward(ctx: Any, deltas: Tensor, body: BodyTemplate, shape: tuple[int, int, int]) -> Tensor:
        kernels = load_kernels()
        numbers = weight_volume(body)
        volume, nodes = _volume(body, deltas.device), _nodes(shape, deltas.device)
        inputs = volume, bones_last(deltas), *nodes
        sizes = (*reversed(shape), *reversed(volume.shape[:3]), *numbers.low, 1.0 / numbers.spacing)
        grid = (len(deltas), -(-nodes[0].numel() * nodes[1].numel() * nodes[2].numel() // kernels.BLOCK))
        field = deltas.new_empty(len(deltas), *shape, 3)
        kernels.forward[grid](*inputs, field, *sizes, BLOCK=kernels.BLOCK)
        ctx.sizes, ctx.grid, ctx.bones = sizes, grid, deltas.shape[1]
        ctx.save_for_backward(*inputs, field)
        return field

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        kernels = load_kernels()
        *inputs, field = ctx.saved_tensors
        deltas = torch.zeros_like(inputs[1])
        kernels.backward[ctx.grid](*inputs, field, gradient.contiguous(), deltas, *ctx.sizes, BLOCK=kernels.BLOCK)
        return deltas[..., : ctx.bones].permute(0, 3, 1, 2), None, None


def deformation_field_triton(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], shape: tuple[int, int, int] = FIELD_SHAPE
) -> Float[Tensor, "B nz ny nx 3"]:
    """`deformation_field` in one kernel per direction.

    Sums of gradients are atomic: their last digits differ from run to run.
    """
    field = _FieldGpu.apply(bone_deltas(body, pose), body, shape)
    assert isinstance(field, Tensor)
    return field


def disagreement(device: torch.device | str) -> float:
    """The largest relative error of values and gradients against the readable twin, over a few strong poses."""
    draws = torch.Generator().manual_seed(0)
    poses = (torch.randn(3, BODY_POSE_SIZE, generator=draws) * 0.15).to(device)
    weight = torch.randn(3, *_SMALL, 3, generator=draws).to(device)
    results = []
    for make in (deformation_field_reference, deformation_field_triton):
        pose = poses.clone().requires_grad_()
        field = make(load_body(), pose, _SMALL)
        results.append([field.detach(), *torch.autograd.grad((field * weight).sum(), pose)])
    return max(float((a - b).norm() / (a.norm() + 1e-12)) for a, b in zip(*results, strict=True))


@lru_cache(maxsize=8)
def field_works(device: torch.device) -> bool:
    """Whether the kernels agree with `deformation_field_reference` on this GPU; compared once."""
    return agrees("deformation field", device, disagreement)


# ---- the field by whichever form suits ----


def deformation_field(
    body: BodyTemplate, pose: Float[Tensor, "B 6"], shape: tuple[int, int, int] = FIELD_SHAPE
) -> Float[Tensor, "B nz ny nx 3"]:
    """Displacements canonical - posed at the nodes of the field box, differentiable in the pose.

    Each node's canonical position x solves sum_k W_k(x) G_k x = node, with the body's weight volume W and
    bone motions G, by Newton's method; gradients follow from the implicit function theorem. The zero pose
    gives exactly zero. Pose shapes of the body are left out.

    Args:
        body: what the pose moves.
        pose: radians.
        shape: nodes along z, y and x, at least two each.
    """
    if pose.dtype == torch.float32 and len(body.moving) <= kernel.BONES:
        if pose.device.type == "cpu":
            return deformation_field_numba(body, pose, shape)
        if pose.device.type == "cuda" and field_works(pose.device):
            return deformation_field_triton(body, pose, shape)
    return deformation_field_reference(body, pose, shape)
