"""The fused GPU renderer (`portrait360.kernels.triton_render`) behind autograd.

Triton comes with torch's builds for GPUs. Where it is missing, or does not give what `render_plain` gives on this
GPU, the readable renderer serves. Twins: `portrait360.model.rendering.render_plain`, and `portrait360.model.fused`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from portrait360.config import RenderConfig
from portrait360.geometry.deformation import FIELD_MAX, FIELD_MIN
from portrait360.kernels.selfcheck import agrees
from portrait360.model.rendering import Occupancy, Rays, Rendered, finish, render_plain
from portrait360.model.trigrid import Decoder


def _padded(width: int) -> int:
    """The next power of two, at least 16: what matrix products in Triton take."""
    return max(16, 1 << (width - 1).bit_length())


def _kernels() -> Any:
    """The module of the kernels; ImportError without Triton."""
    from portrait360.kernels import triton_render

    return triton_render


def constants(sizes: tuple[int, int, int, int, bool], config: RenderConfig) -> dict[str, Any]:
    """What kernels are compiled for but for which inputs there are; `sizes` as of `kernels.render.fused_kernels`."""
    channels, hidden, features, depth, softplus = sizes
    return {
        "C": channels, "H": hidden, "O": features, "D": depth,
        "CP": _padded(channels), "HP": _padded(hidden), "OP": _padded(features),
        "PRECISION": "ieee" if torch.version.hip else "tf32x3",
        "SOFTPLUS": softplus, "SIGMOID": config.feature_activation == "sigmoid",
    }  # fmt: skip


class _FusedGpu(torch.autograd.Function):
    """Glue between autograd and the Triton kernels. Planes arrive as (L, P, P, 3, D, C), w1 as (C, H), w2 as (K, H)."""

    @staticmethod
    def forward(
        ctx, planes, w1, b1, w2, b2, field, rays, width, jitter, noise, occupancy, samples, config, sizes, stop
    ):
        images, count, _ = rays.directions.shape
        shape = (2, 2, 2) if field is None else field.shape[1:4]
        frame = [*FIELD_MIN]
        frame += [(n - 1) / (b - a) for n, a, b in zip(reversed(shape), FIELD_MIN, FIELD_MAX, strict=True)]
        cells = (1, 1, 1) if occupancy is None else occupancy.occupied.shape[1:]
        seed = None if occupancy is None else occupancy.seed
        if isinstance(seed, int):
            seed = torch.full((), seed, dtype=torch.int32, device=planes.device)
        inputs = (
            planes, w1, b1, w2, b2, rays.origins, rays.directions, rays.near, rays.far, jitter,
            planes if noise is None else noise, planes if field is None else field,
            planes if occupancy is None else occupancy.occupied, planes if seed is None else seed,
        )  # fmt: skip
        inputs = tuple(value.detach().contiguous() for value in inputs)
        numbers = (
            count, width, samples, images // planes.shape[0], planes.shape[2],
            *frame, *reversed(shape), *config.box_centre, *config.box_half, *reversed(cells),
            config.density_scale, config.density_shift, stop,
        )  # fmt: skip
        flags = {
            **constants(sizes, config), "HAS_FIELD": field is not None, "HAS_NOISE": noise is not None,
            "HAS_OCCUPANCY": occupancy is not None, "EXPLORES": seed is not None,
        }  # fmt: skip
        tile = _kernels().TILE
        grid = (images * -(-width // tile) * -(-(count // width) // tile),)
        rendered = planes.new_empty(images, count, flags["O"] + 2)
        _kernels().forward[grid](*inputs, rendered, *numbers, **flags)
        ctx.grid, ctx.numbers, ctx.flags, ctx.with_field = grid, numbers, flags, field is not None
        ctx.save_for_backward(*inputs, rendered)
        return rendered

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, rendered = ctx.saved_tensors
        wants_field = ctx.with_field and ctx.needs_input_grad[5]
        grads = [torch.zeros_like(value) for value in inputs[:5]]
        grad_field = torch.zeros_like(inputs[11]) if wants_field else grads[0]
        _kernels().backward[ctx.grid](
            *inputs, rendered, grad.float().contiguous(), *grads, grad_field, *ctx.numbers, **ctx.flags,
            WANTS_FIELD=wants_field,
        )  # fmt: skip
        return *grads, grad_field if wants_field else None, *([None] * 9)


def render_triton(
    tri_grid: Float[Tensor, "L 3 C D H W"],
    decoder: Decoder,
    rays: Rays,
    config: RenderConfig,
    *,
    width: int,
    samples: int,
    jitter: Float[Tensor, "B M"],
    field: Float[Tensor, "B nz ny nx 3"] | None = None,
    noise: Float[Tensor, "B M S"] | None = None,
    occupancy: Occupancy | None = None,
    stop: float,
) -> Rendered:
    """`render_plain` in one pass on a GPU; differentiable in tri-grid, decoder and field.

    Pictures have `width` columns.
    Sums of gradients are atomic: their last digits differ from run to run.
    """
    planes = tri_grid.permute(0, 4, 5, 1, 3, 2).float().contiguous()
    w1, b1, w2, b2 = decoder.parameters_as_used()
    softplus = decoder.net[1].name == "softplus"
    sizes = (w1.shape[1], w1.shape[0], w2.shape[0] - 1, tri_grid.shape[3], softplus)
    out = _FusedGpu.apply(
        planes, w1.t(), b1, w2, b2, field, rays, width, jitter, noise, occupancy, samples, config, sizes, stop
    )
    assert isinstance(out, Tensor)
    return finish(out[..., :-2], out[..., -2:-1], out[..., -1:], rays)


def small_case(device: torch.device | str) -> tuple[Tensor, Decoder, Rays, RenderConfig, dict[str, Any]]:
    """A tri-grid, a decoder and 64 rays in which every part of the renderer matters: arguments of `render_triton`."""
    draws = torch.Generator().manual_seed(0)
    config = RenderConfig(quadrature="point", crop=None, box_half=(0.4, 0.5, 0.3), density_scale=8.0, density_shift=0.0)
    decoder = Decoder(16, 16, 3, "lrelu")
    for parameter in decoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draws)
    directions = torch.randn(1, 64, 3, generator=draws) * 0.1 + torch.tensor([0.0, 0.0, -1.0])
    rays = Rays(torch.tensor([[0.0, 0.0, 1.0]]), directions, torch.full((1, 64), 0.6), torch.full((1, 64), 1.4))
    rays = Rays(*(value.to(device) for value in (rays.origins, rays.directions, rays.near, rays.far)))
    options = {
        "samples": 6,
        "jitter": torch.rand(1, 64, generator=draws),
        "field": torch.randn(1, 3, 4, 5, 3, generator=draws) * 0.05,
        "noise": torch.randn(1, 64, 6, generator=draws),
    }
    tri_grid = torch.randn(1, 3, 16, 3, 8, 8, generator=draws)
    options = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in options.items()}
    return tri_grid.to(device), decoder.to(device), rays, config, options


def disagreement(device: torch.device | str) -> float:
    """The largest relative error of pictures and gradients against `render_plain` in a small case."""
    tri_grid, decoder, rays, config, options = small_case(device)
    results = []
    for fused in (False, True):
        inputs = [tri_grid.detach().clone().requires_grad_(), options["field"].detach().clone().requires_grad_()]
        changed = options | {"field": inputs[1]}
        if fused:
            out = render_triton(inputs[0], decoder, rays, config, width=8, stop=0.0, **changed)
        else:
            out = render_plain(inputs[0], decoder, rays, config, **changed)
        leaves = [*inputs, *decoder.parameters()]
        gradients = torch.autograd.grad(out.features.square().sum() + out.opacity.sum(), leaves)
        results.append([out.features.detach(), out.opacity.detach(), *gradients])
    return max(float((a - b).norm() / (a.norm() + 1e-12)) for a, b in zip(*results, strict=True))


@lru_cache(maxsize=8)
def triton_works(device: torch.device) -> bool:
    """Whether the kernels run on this GPU and agree with `render_plain` there; looked at once."""
    return agrees("renderer", device, disagreement)
