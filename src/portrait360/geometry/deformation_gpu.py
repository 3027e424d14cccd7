"""The deformation field by the Triton kernels (`portrait360.kernels.triton_deformation`) behind autograd."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from portrait360.geometry.body import BodyTemplate, load_body
from portrait360.geometry.deformation import (
    FIELD_SHAPE,
    bone_deltas,
    bones_last,
    deformation_field_reference,
    field_axes,
)
from portrait360.geometry.weights import weight_volume
from portrait360.kernels.deformation import BONES
from portrait360.kernels.trust import agrees
from portrait360.types import BODY_POSE_SIZE

_SMALL = (6, 8, 5)
"""Nodes of the field that is compared: more than one program takes."""

_volumes: WeakKeyDictionary[BodyTemplate, dict[torch.device, Tensor]] = WeakKeyDictionary()


def _kernels() -> Any:
    """The module of the kernels; ImportError without Triton."""
    from portrait360.kernels import triton_deformation

    return triton_deformation


def _volume(body: BodyTemplate, device: torch.device) -> Float[Tensor, "Z Y X bones"]:
    """Weights on the GPU, kept as long as the template lives."""
    known = _volumes.setdefault(body, {})
    if device not in known:
        with torch.inference_mode(False):
            known[device] = weight_volume(body).padded(BONES).to(device)
    return known[device]


@lru_cache(maxsize=8)
def _nodes(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):
        return tuple(axis.to(device) for axis in field_axes(shape))


class _FieldGpu(torch.autograd.Function):
    """Deltas arrive as (B, M, 3, 4); the kernels take them bones last."""

    @staticmethod
    def forward(ctx: Any, deltas: Tensor, body: BodyTemplate, shape: tuple[int, int, int]) -> Tensor:
        kernels = _kernels()
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
        kernels = _kernels()
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
    """Whether the kernels agree with `deformation_field_reference` on this GPU; looked at once."""
    return agrees("deformation field", device, disagreement)
