"""[1, 3, 3, 1] smoothing of channels-last feature maps in one pass (equations 3.3, 3.5).

Feature maps arrive as (H, W, C). `portrait360.model.layers.fir` and `upsample_fir` are the readable twins.
"""

from __future__ import annotations

import numba
import numpy as np

from portrait360.kernels.simd import FASTMATH

_jit = numba.njit(parallel=True, fastmath=FASTMATH, cache=True)
QUARTER, THREE_QUARTERS = np.float32(0.25), np.float32(0.75)
LEAK = np.float32(0.2)


@_jit
def smooth_phases(even_even, even_odd, odd_even, odd_odd, gain, bias, noise, clamp, out):
    """Smooth a zero-stuffed convolution and activate it: out (2H, 2W, C) = clamp(lrelu(gain fir(y) + noise + bias)).

    y (2H + 1, 2W + 1, C) comes as its four phases, named by the parity of row and column. `noise` (2H, 2W) or empty;
    `clamp` infinite for none.
    """
    height, width, channels = out.shape
    has_noise = noise.size > 0
    for i in numba.prange(height):
        # Smooth down the columns: four rows of the zero-stuffed map.
        rows = np.zeros((width + 3, channels), np.float32)
        for tap in range(4):
            r = i - 1 + tap
            if r < 0 or r > height:
                continue
            share = QUARTER if tap == 0 or tap == 3 else THREE_QUARTERS
            half = r // 2
            left, right = (even_even, even_odd) if r % 2 == 0 else (odd_even, odd_odd)
            for q in range(width // 2 + 1):
                for c in range(channels):
                    rows[2 * q + 1, c] += share * left[half, q, c]
            for q in range(width // 2):
                for c in range(channels):
                    rows[2 * q + 2, c] += share * right[half, q, c]

        # Smooth along the row, and activate.
        for j in range(width):
            offset = noise[i, j] if has_noise else np.float32(0)
            for c in range(channels):
                v = QUARTER * (rows[j, c] + rows[j + 3, c]) + THREE_QUARTERS * (rows[j + 1, c] + rows[j + 2, c])
                v = gain[c] * v + bias[c] + offset
                v = max(v, LEAK * v)
                out[i, j, c] = min(max(v, -clamp), clamp)


@_jit
def add_upsampled(image, out):
    """out (2H, 2W, C) += image (H, W, C) zero-stuffed by 2 and smoothed with gain 4."""
    height, width, channels = image.shape
    for i in numba.prange(2 * height):
        p = i // 2
        other = p - 1 if i % 2 == 0 else p + 1
        rows = np.empty((width + 2, channels), np.float32)
        rows[0] = np.float32(0)
        rows[width + 1] = np.float32(0)
        reach = QUARTER if 0 <= other < height else np.float32(0)
        other = min(max(other, 0), height - 1)
        for q in range(width):
            for c in range(channels):
                rows[q + 1, c] = THREE_QUARTERS * image[p, q, c] + reach * image[other, q, c]
        for q in range(width):
            for c in range(channels):
                here = THREE_QUARTERS * rows[q + 1, c]
                out[i, 2 * q, c] += here + QUARTER * rows[q, c]
                out[i, 2 * q + 1, c] += here + QUARTER * rows[q + 2, c]
