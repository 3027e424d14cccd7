"""The fused GPU renderer (`portrait360.kernels.triton_render`) behind autograd.

Triton comes with torch's builds for GPUs. Where it is missing, or does not give what `render_plain` gives on this
GPU, the readable renderer serves. Twins: `portrait360.model.rendering.render_plain`, and `portrait360.model.fused`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.config import RenderConfig
from portrait360.geometry.deformation import FIELD_MAX, FIELD_MIN
from portrait360.kernels.blocks import Form
from portrait360.kernels.selfcheck import agrees
from portrait360.model.rendering import Rays, Rendered, Sampling, finish, image_width, render_plain
from portrait360.model.trigrid import Decoder


def _padded(width: int) -> int:
    """The next power of two, at least 16: what matrix products in Triton take."""
    return max(16, 1 << (width - 1).bit_length())


def load_kernels() -> Any:
    """The module of the kernels; ImportError without Triton."""
    from portrait360.kernels import triton_render

    return triton_render


def constants(form: Form, config: RenderConfig) -> dict[str, Any]:
    """What kernels are compiled for but for which inputs there are."""
    features = form.outputs - 1
    return {
        "C": form.channels, "H": form.hidden, "O": features, "D": form.depth,
        "CP": _padded(form.channels), "HP": _padded(form.hidden), "OP": _padded(features),
        "PRECISION": "ieee" if torch.version.hip else "tf32x3",
        "SOFTPLUS": form.softplus, "SIGMOID": config.feature_activation == "sigmoid",
    }  # fmt: skip


@dataclass(frozen=True)
class Cast:
    """What of a fused render has no gradient."""

    rays: Rays
    sampling: Sampling
    config: RenderConfig
    form: Form
    stop: float
    """A ray ends when less than this share of its light is left."""


class _FusedGpu(torch.autograd.Function):
    """Glue between autograd and the Triton kernels. Planes arrive as (L, P, P, 3, D, C), w1 as (C, H), w2 as (K, H)."""

    @staticmethod
    def forward(ctx, cast, planes, field, *weights):
        rays, config, sampling, noise = cast.rays, cast.config, cast.sampling, cast.sampling.noise
        images, count, _ = rays.directions.shape
        width, occupancy = image_width(count), sampling.occupancy

        # The field's frame, and which unoccupied samples are taken.
        shape = (2, 2, 2) if field is None else field.shape[1:4]
        frame = [*FIELD_MIN]
        frame += [(n - 1) / (b - a) for n, a, b in zip(reversed(shape), FIELD_MIN, FIELD_MAX, strict=True)]
        cells = (1, 1, 1) if occupancy is None else occupancy.occupied.shape[1:]
        seed = None if occupancy is None else occupancy.seed
        if isinstance(seed, int):
            seed = torch.full((), seed, dtype=torch.int32, device=planes.device)

        # Tensors; the planes stand in where one is missing.
        inputs = (
            planes, *weights, rays.origins, rays.directions, rays.near, rays.far, sampling.jitter,
            planes if noise is None else noise, planes if field is None else field,
            planes if occupancy is None else occupancy.occupied, planes if seed is None else seed,
        )  # fmt: skip
        inputs = tuple(value.detach().contiguous() for value in inputs)

        # Numbers, what the kernels are compiled for, and the grid of programs: tiles of rays.
        numbers = (
            count, width, sampling.count, images // planes.shape[0], planes.shape[2],
            tuple(frame), tuple(reversed(shape)), (*config.box_centre, *config.box_half), tuple(reversed(cells)),
            (config.density_scale, config.density_shift, cast.stop),
        )  # fmt: skip
        flags = {
            **constants(cast.form, config), "HAS_FIELD": field is not None, "HAS_NOISE": noise is not None,
            "HAS_OCCUPANCY": occupancy is not None, "EXPLORES": seed is not None,
        }  # fmt: skip
        tile = load_kernels().TILE
        grid = (images * -(-width // tile) * -(-(count // width) // tile),)

        rendered = planes.new_empty(images, count, flags["O"] + 2)
        load_kernels().forward[grid](*inputs, rendered, *numbers, **flags)
        ctx.grid, ctx.numbers, ctx.flags, ctx.with_field = grid, numbers, flags, field is not None
        ctx.save_for_backward(*inputs, rendered)
        return rendered

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, rendered = ctx.saved_tensors
        wants_field = ctx.with_field and ctx.needs_input_grad[2]
        grads = [torch.zeros_like(value) for value in inputs[:5]]
        grad_field = torch.zeros_like(inputs[11]) if wants_field else grads[0]
        load_kernels().backward[ctx.grid](
            *inputs, rendered, grad.float().contiguous(), *grads, grad_field, *ctx.numbers, **ctx.flags,
            WANTS_FIELD=wants_field,
        )  # fmt: skip
        planes, *weights = grads
        return None, planes, grad_field if wants_field else None, *weights


def render_triton(
    tri_grid: Float[Tensor, "L 3 C D H W"],
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    sampling: Sampling,
    *,
    field: Float[Tensor, "B nz ny nx 3"] | None = None,
    stop: float,
) -> Rendered:
    """`render_plain` in one pass on a GPU; differentiable in tri-grid, decoder and field.

    Sums of gradients are atomic: their last digits differ from run to run.
    """
    planes = tri_grid.permute(0, 4, 5, 1, 3, 2).float().contiguous()
    w1, b1, w2, b2 = decoder.parameters_as_used()
    softplus = decoder.net[1].name == "softplus"
    form = Form(w1.shape[1], w1.shape[0], w2.shape[0], tri_grid.shape[3], softplus)
    out = _FusedGpu.apply(Cast(rays, sampling, config, form, stop), planes, field, w1.t(), b1, w2, b2)
    assert isinstance(out, Tensor)
    return finish(out[..., :-2], out[..., -2:-1], out[..., -1:], rays)


@dataclass(frozen=True)
class SmallCase:
    """Arguments of `render_triton` for 64 rays in which every part of the renderer matters."""

    tri_grid: Float[Tensor, "1 3 16 3 8 8"]
    decoder: Decoder
    rays: Rays
    config: RenderConfig
    sampling: Sampling
    field: Float[Tensor, "1 3 4 5 3"]


def small_case(device: torch.device | str) -> SmallCase:
    """The same on every device."""
    draws = torch.Generator().manual_seed(0)
    config = RenderConfig(quadrature="point", crop=None, box_half=(0.4, 0.5, 0.3), density_scale=8.0, density_shift=0.0)
    decoder = Decoder(16, 16, 3, "lrelu")
    for parameter in decoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws)
    directions = torch.randn(1, 64, 3, generator=draws) * 0.1 + torch.tensor([0.0, 0.0, -1.0])
    lines = torch.tensor([[0.0, 0.0, 1.0]]), directions, torch.full((1, 64), 0.6), torch.full((1, 64), 1.4)
    jitter = torch.rand(1, 64, generator=draws)
    field = torch.randn(1, 3, 4, 5, 3, generator=draws) * 0.05
    noise = torch.randn(1, 64, 6, generator=draws)
    tri_grid = torch.randn(1, 3, 16, 3, 8, 8, generator=draws)
    return SmallCase(
        tri_grid.to(device),
        decoder.to(device),
        Rays(*(value.to(device) for value in lines)),
        config,
        Sampling(6, jitter.to(device), noise.to(device)),
        field.to(device),
    )


def disagreement(device: torch.device | str) -> float:
    """The largest relative error of images and gradients against `render_plain` in a small case."""
    case = small_case(device)
    results = []
    for fused in (False, True):
        tri_grid, field = (value.detach().clone().requires_grad_() for value in (case.tri_grid, case.field))
        if fused:
            out = render_triton(tri_grid, case.decoder, case.rays, case.config, case.sampling, field=field, stop=0.0)
        else:
            out = render_plain(tri_grid, case.decoder, case.rays, case.config, case.sampling, field=field)
        leaves = [tri_grid, field, *case.decoder.parameters()]
        gradients = torch.autograd.grad(out.features.square().sum() + out.opacity.sum(), leaves)
        results.append([out.features.detach(), out.opacity.detach(), *gradients])
    return max(float((a - b).norm() / (a.norm() + 1e-12)) for a, b in zip(*results, strict=True))


@lru_cache(maxsize=8)
def triton_works(device: torch.device) -> bool:
    """Whether the kernels run on this GPU and agree with `render_plain` there; compared once."""
    return agrees("renderer", device, disagreement)
