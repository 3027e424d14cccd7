"""Reading the tri-grid at points, many at once: densities alone, or all that the decoder gives.

The readable twins are `portrait360.model.fused.read_density_plain` and `portrait360.model.rendering.query`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numba
import numpy as np

from portrait360.kernels.blocks import Form
from portrait360.kernels.lookup import decode, gather_levels
from portrait360.kernels.simd import FASTMATH, softplus1

_kernel = numba.njit(parallel=True, fastmath=FASTMATH, cache=True)

BLOCK = 512
"""Points that one task reads."""


@lru_cache(maxsize=16)
def density_kernel(form: Form) -> Callable[..., None]:
    """A reader of densities."""
    C, H, D, levels, room = form.channels, form.hidden, form.depth, form.levels, form.scratch

    @_kernel
    def density(planes, resolution, latents, decoder, points, light, densities):
        """densities (L, N) per world unit at points (N, 3) of the tri-grid's [-1, 1]^3, the same for all latents."""
        stride = planes.size // latents
        count = len(points)
        blocks = (count + BLOCK - 1) // BLOCK
        for task in numba.prange(latents * blocks):
            latent, first = task // blocks, (task % blocks) * BLOCK
            f, h, out = np.empty(room, np.float32), np.empty(H, np.float32), np.empty(1, np.float32)
            for n in range(first, min(first + BLOCK, count)):
                gather_levels(planes, latent * stride, resolution, points[n], f, C, D, levels)
                decode(f, 0, decoder.w1, decoder.b1, decoder.w2, decoder.b2, h, 0, out, 0, C, H, 1, form.softplus)
                densities[latent, n] = softplus1(out[0] + light.shift) * light.scale

    return density


@lru_cache(maxsize=16)
def outputs_kernel(form: Form) -> Callable[..., None]:
    """A reader of the decoder's outputs."""
    C, H, K, D = form.channels, form.hidden, form.outputs, form.depth
    levels, room = form.levels, form.scratch

    @_kernel
    def outputs(planes, resolution, decoder, points, values):
        """values (N, K), raw density and raw features, at points (N, 3) of the tri-grid's [-1, 1]^3."""
        count = len(points)
        for task in numba.prange((count + BLOCK - 1) // BLOCK):
            f, h, out = np.empty(room, np.float32), np.empty(H, np.float32), np.empty(K, np.float32)
            for n in range(task * BLOCK, min((task + 1) * BLOCK, count)):
                gather_levels(planes, 0, resolution, points[n], f, C, D, levels)
                decode(f, 0, decoder.w1, decoder.b1, decoder.w2, decoder.b2, h, 0, out, 0, C, H, K, form.softplus)
                for k in range(K):
                    values[n, k] = out[k]

    return outputs
