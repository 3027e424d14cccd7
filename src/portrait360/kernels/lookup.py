"""What every CPU renderer does at a sample: warp it, look up the tri-grid, decode.

Layouts: planes (L, P, P, 3, D, C), one tri-grid per latent; w1 (C, H) and w2 (K, H), flat. Everything is inlined into
the kernels that use it, whose constant sizes let the compiler unroll.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from portrait360.kernels.simd import axpy8, device, fma8, leaky8, load8, softplus8, splat8, store8, sum8

ZERO, ONE, HALF, THIRD = np.float32(0), np.float32(1), np.float32(0.5), np.float32(1 / 3)
ROUNDING = np.float32(1e-5)
"""World units by which float32 may put a sample elsewhere."""


@numba.njit(inline="always")
def axis_taps(q: Any, size: int):
    """Two taps of zero-padded linear interpolation, align_corners=False, for q in [-1, 1], with slopes in q."""
    position = ((q + ONE) * np.float32(size) - ONE) * HALF
    low = int(position + ONE) - 1
    fraction = position - np.float32(low)
    slope = np.float32(size) * HALF
    w0, d0, i0 = ONE - fraction, -slope, low
    w1, d1, i1 = fraction, slope, low + 1
    if low < 0:
        w0, d0, i0 = ZERO, ZERO, 0
    if i1 >= size:
        w1, d1, i1 = ZERO, ZERO, size - 1
    return i0, i1, w0, w1, d0, d1


@numba.njit(inline="always")
def field_frame(box: Any, shape: Any):
    """Lower corner of the field's box (low xyz, high xyz) and nodes per world unit, axis by axis."""
    nz, ny, nx = shape
    return (box[0], box[1], box[2], np.float32(nx - 1) / (box[3] - box[0]), np.float32(ny - 1) / (box[4] - box[1]),
            np.float32(nz - 1) / (box[5] - box[2]))  # fmt: skip


@numba.njit(inline="always")
def unit_frame(box: Any):
    """Centre of the tri-grid's box (centre xyz, half xyz) and one over its half sides."""
    return box[0], box[1], box[2], ONE / box[3], ONE / box[4], ONE / box[5]


@numba.njit(inline="always")
def ray_line(origins: Any, directions: Any, image: int, ray: int):
    """Origin and direction of a ray as numbers: read from their arrays once instead of at every sample."""
    return (origins[image, 0], origins[image, 1], origins[image, 2], directions[image, ray, 0],
            directions[image, ray, 1], directions[image, ray, 2])  # fmt: skip


@numba.njit(inline="always")
def field_node(position: Any, size: int):
    """Lower node and fraction of align_corners=True interpolation, for a position in nodes; clamped to the field."""
    position = min(max(position, ZERO), np.float32(size - 1))
    i = min(int(position), size - 2)
    return i, position - np.float32(i)


@numba.njit(inline="always")
def cell_index(qx: Any, qy: Any, qz: Any, shape: Any) -> int:
    """Index of the occupancy cell of a point of the tri-grid box."""
    nz, ny, nx = shape
    i = min(int((qx + ONE) * HALF * np.float32(nx)), nx - 1)
    j = min(int((qy + ONE) * HALF * np.float32(ny)), ny - 1)
    k = min(int((qz + ONE) * HALF * np.float32(nz)), nz - 1)
    return (k * ny + j) * nx + i


@device
def taps8(planes: Any, o: Any, w: Any, c: int, total: Any):
    """total + sum of eight weighted feature vectors at channel c."""
    total = axpy8(w[0], load8(planes, o[0] + c), total)
    total = axpy8(w[1], load8(planes, o[1] + c), total)
    total = axpy8(w[2], load8(planes, o[2] + c), total)
    total = axpy8(w[3], load8(planes, o[3] + c), total)
    total = axpy8(w[4], load8(planes, o[4] + c), total)
    total = axpy8(w[5], load8(planes, o[5] + c), total)
    total = axpy8(w[6], load8(planes, o[6] + c), total)
    return axpy8(w[7], load8(planes, o[7] + c), total)


@device
def plane_taps(base: int, resolution: int, plane: int, depth: int, channels: int, u: Any, v: Any, s: Any):
    """Offsets and weights of the eight taps in one plane, from the three axes' `axis` tuples."""
    column = 3 * depth * channels
    row = resolution * column
    start = base + plane * depth * channels
    a, b = start + v[0] * row + u[0] * column, start + v[0] * row + u[1] * column
    c, d = start + v[1] * row + u[0] * column, start + v[1] * row + u[1] * column
    near, far = s[0] * channels, s[1] * channels
    wa, wb, wc, wd = v[2] * u[2] * THIRD, v[2] * u[3] * THIRD, v[3] * u[2] * THIRD, v[3] * u[3] * THIRD
    offsets = (a + near, b + near, c + near, d + near, a + far, b + far, c + far, d + far)
    weights = (wa * s[2], wb * s[2], wc * s[2], wd * s[2], wa * s[3], wb * s[3], wc * s[3], wd * s[3])
    return offsets, weights


@device
def tri_grid_taps(base: int, resolution: int, q: Any, channels: int, depth: int):
    """Offsets and weights of the eight taps in each of the three planes at q."""
    x, y, z = axis_taps(q[0], resolution), axis_taps(q[1], resolution), axis_taps(q[2], resolution)
    sx, sy, sz = axis_taps(q[0], depth), axis_taps(q[1], depth), axis_taps(q[2], depth)
    o0, w0 = plane_taps(base, resolution, 0, depth, channels, x, y, sz)
    o1, w1 = plane_taps(base, resolution, 1, depth, channels, x, z, sy)
    o2, w2 = plane_taps(base, resolution, 2, depth, channels, y, z, sx)
    return o0, w0, o1, w1, o2, w2


@device
def gather(planes: Any, base: int, resolution: int, q: Any, f: Any, at: int, channels: int, depth: int):
    """Mean feature of the three planes at q into f[at : at + channels]."""
    o0, w0, o1, w1, o2, w2 = tri_grid_taps(base, resolution, q, channels, depth)
    for c in range(0, channels, 8):
        total = taps8(planes, o0, w0, c, splat8(ZERO))
        total = taps8(planes, o1, w1, c, total)
        store8(f, at + c, taps8(planes, o2, w2, c, total))


@device
def gather_levels(planes: Any, base: int, resolution: int, q: Any, f: Any, channels: int, depth: int, levels: int):
    """`gather` in a tri-grid, or the mean of all levels of a pyramid, stored from the coarsest on, into f.

    `resolution`: of the finest. f has room for `channels` rounded up to a multiple of eight.
    """
    if levels == 1:
        gather(planes, base, resolution, q, f, 0, channels, depth)
    else:
        for n in range(0, channels, 8):
            store8(f, n, splat8(ZERO))
        side, start, share = resolution >> (levels - 1), base, ONE / np.float32(levels)
        for _ in range(levels):
            o0, w0, o1, w1, o2, w2 = tri_grid_taps(start, side, q, channels, depth)
            for n in range(0, channels, 8):
                c = min(n, channels - 8)  # the last eight overlap those before where channels are no multiple of eight
                total = taps8(planes, o0, w0, c, splat8(ZERO))
                total = taps8(planes, o1, w1, c, total)
                store8(f, n, axpy8(share, taps8(planes, o2, w2, c, total), load8(f, n)))
            start += 3 * side * side * depth * channels
            side *= 2
        if channels % 8 != 0:
            last = channels - channels % 8
            for k in range(8):
                f[channels - 8 + k] = f[last + k]


@device
def hidden_layer(f: Any, at: int, w1: Any, b1: Any, h: Any, hat: int, channels: int, hidden: int, softplus: bool):
    """Hidden layer of the decoder into h[hat:]. w1 is (C, H), flat."""
    for j in range(0, hidden, 16):
        a, b = load8(b1, j), load8(b1, j + 8)
        for c in range(channels):
            v = f[at + c]
            a = axpy8(v, load8(w1, c * hidden + j), a)
            b = axpy8(v, load8(w1, c * hidden + j + 8), b)
        if softplus:
            store8(h, hat + j, softplus8(a))
            store8(h, hat + j + 8, softplus8(b))
        else:
            store8(h, hat + j, leaky8(a))
            store8(h, hat + j + 8, leaky8(b))


@device
def output(h: Any, hat: int, w2: Any, b2: Any, k: int, hidden: int):
    """Output k of the decoder from h[hat:]: 0 is the raw density. w2 is (K, H), flat."""
    total = splat8(ZERO)
    for j in range(0, hidden, 8):
        total = fma8(load8(h, hat + j), load8(w2, k * hidden + j), total)
    return b2[k] + sum8(total)


@device
def decode(f: Any, at: int, w1: Any, b1: Any, w2: Any, b2: Any, h: Any, hat: int, out: Any, oat: int,
            channels: int, hidden: int, outputs: int, softplus: bool):  # fmt: skip
    """Hidden layer into h[hat:], raw density and features into out[oat:]."""
    hidden_layer(f, at, w1, b1, h, hat, channels, hidden, softplus)
    for k in range(outputs):
        out[oat + k] = output(h, hat, w2, b2, k, hidden)


@device
def canonical(field: Any, has_field: bool, image: int, shape: Any, frame: Any, unit: Any, line: Any, t: Any, q: Any):
    """Sample at distance t of a `ray_line`, warped and normalised to the tri-grid box, into q. Whether it is inside,
    and the field's corner offset and fractions. `frame`, `unit`: of `field_frame` and `unit_frame`."""
    # Posed position.
    x, y, z = line[0] + t * line[3], line[1] + t * line[4], line[2] + t * line[5]
    start, fx, fy, fz = 0, ZERO, ZERO, ZERO

    # Plus the field's trilinear displacement.
    if has_field:
        nz, ny, nx = shape
        i, fx = field_node((x - frame[0]) * frame[3], nx)
        j, fy = field_node((y - frame[1]) * frame[4], ny)
        k, fz = field_node((z - frame[2]) * frame[5], nz)
        start = (((image * nz + k) * ny + j) * nx + i) * 3
        gx, gy, gz = ONE - fx, ONE - fy, ONE - fz
        a, b, c, d = start, start + 3 * nx, start + 3 * nx * ny, start + 3 * nx * (ny + 1)
        wa, wb, wc, wd = gy * gz, fy * gz, gy * fz, fy * fz
        x += (
            wa * (gx * field[a] + fx * field[a + 3]) + wb * (gx * field[b] + fx * field[b + 3])
            + wc * (gx * field[c] + fx * field[c + 3]) + wd * (gx * field[d] + fx * field[d + 3])
        )  # fmt: skip
        y += (
            wa * (gx * field[a + 1] + fx * field[a + 4]) + wb * (gx * field[b + 1] + fx * field[b + 4])
            + wc * (gx * field[c + 1] + fx * field[c + 4]) + wd * (gx * field[d + 1] + fx * field[d + 4])
        )  # fmt: skip
        z += (
            wa * (gx * field[a + 2] + fx * field[a + 5]) + wb * (gx * field[b + 2] + fx * field[b + 5])
            + wc * (gx * field[c + 2] + fx * field[c + 5]) + wd * (gx * field[d + 2] + fx * field[d + 5])
        )  # fmt: skip

    # Normalised to the box.
    x, y, z = (x - unit[0]) * unit[3], (y - unit[1]) * unit[4], (z - unit[2]) * unit[5]
    q[0], q[1], q[2] = x, y, z
    return abs(x) < ONE and abs(y) < ONE and abs(z) < ONE, start, fx, fy, fz


@numba.njit(inline="always")
def voxel_line(frame: Any, line: Any):
    """A `ray_line` in the field's nodes."""
    return ((line[0] - frame[0]) * frame[3], (line[1] - frame[1]) * frame[4], (line[2] - frame[2]) * frame[5],
            line[3] * frame[3], line[4] * frame[4], line[5] * frame[5])  # fmt: skip


@numba.njit(inline="always")
def voxel_index(shape: Any, line: Any, t: Any) -> int:
    """Index of the field's voxel at distance t of a `voxel_line`; -1 outside of the field."""
    nz, ny, nx = shape
    x, y, z = line[0] + t * line[3], line[1] + t * line[4], line[2] + t * line[5]
    if (
        x < ZERO
        or y < ZERO
        or z < ZERO
        or x >= np.float32(nx - 1)
        or y >= np.float32(ny - 1)
        or z >= np.float32(nz - 1)
    ):
        return -1
    return (int(z) * (ny - 1) + int(y)) * (nx - 1) + int(x)


@numba.njit(inline="always")
def samples_per_voxel(line: Any, step: Any):
    """How many samples a ray (`voxel_line`) takes at least to cross a voxel, a little less for rounding's sake."""
    fastest = max(abs(line[3]), abs(line[4]), abs(line[5]))
    return np.float32(0.999) / (fastest * step + np.float32(1e-9))


@numba.njit(inline="always")
def _cell_range(low: Any, high: Any, centre: Any, half: Any, size: int):
    """First and last occupancy cell that an interval of positions touches along one axis; first > last: none."""
    a, b = (low - centre) / half, (high - centre) / half
    if b <= -ONE or a >= ONE:
        return 1, 0
    first = int(max((a + ONE) * HALF * np.float32(size), ZERO))
    last = int(min((b + ONE) * HALF * np.float32(size), np.float32(size - 1)))
    return min(first, size - 1), last


@numba.njit(parallel=True, cache=True)
def gaps_between(reachable: Any, shape: Any, most: int, gaps: Any) -> None:
    """How many voxels away the nearest reachable one is, the longest axis counting, at most `most`; 0 = reachable.

    reachable and gaps (B, nz * ny * nx), `shape` (nz, ny, nx). One sweep forward, one back (chessboard distance).
    """
    nz, ny, nx = shape
    for image in numba.prange(len(gaps)):
        # Start from 0 and the largest distance, then sweep forward and back.
        mine = gaps[image]
        for v in range(nz * ny * nx):
            mine[v] = 0 if reachable[image, v] else most
        for sweep in range(2):
            for n in range(nz * ny * nx):
                v = n if sweep == 0 else nz * ny * nx - 1 - n
                k, j, i = v // (ny * nx), v // nx % ny, v % nx
                side = -1 if sweep == 0 else 1
                best = mine[v]

                # One more than the least of the neighbours passed so far.
                for c in range(-1, 2):
                    for d in range(-1, 2):
                        for e in range(-1, 2):
                            before = (c * 3 + d) * 3 + e  # of its 26 neighbours, those that the sweep has passed
                            a, b, o = k + c, j + d, i + e
                            inside = 0 <= a < nz and 0 <= b < ny and 0 <= o < nx
                            if inside and before * side > 0:
                                best = min(best, mine[(a * ny + b) * nx + o] + 1)
                mine[v] = best


@numba.njit(parallel=True, cache=True)
def reachable_voxels(field: Any, shape: Any, field_box: Any, box: Any, occupied: Any, cells: Any, views: int,
                     reachable: Any) -> None:  # fmt: skip
    """Mark the field's voxels from which a sample can be warped into an occupied cell.

    Inside a voxel the displacement lies between its corners' least and greatest, so the marks miss nothing.
    field (B, nz, ny, nx, 3) and occupied (L, cz, cy, cx), flat, B = L * views; reachable (B, (nz-1)(ny-1)(nx-1)).
    """
    nz, ny, nx = shape
    cz, cy, cx = cells
    for row in numba.prange(reachable.shape[0] * (nz - 1)):
        image, k = row // (nz - 1), row % (nz - 1)
        base = (image // views) * cx * cy * cz
        low, high = np.empty(3, np.float32), np.empty(3, np.float32)
        for j in range(ny - 1):
            for i in range(nx - 1):
                # Where samples of the voxel can go.
                for axis in range(3):
                    a, b = np.float32(1e9), np.float32(-1e9)
                    for corner in range(8):
                        z, y, x = k + (corner >> 2), j + ((corner >> 1) & 1), i + (corner & 1)
                        v = field[(((image * nz + z) * ny + y) * nx + x) * 3 + axis]
                        a, b = min(a, v), max(b, v)
                    n, index = (nx, i) if axis == 0 else ((ny, j) if axis == 1 else (nz, k))
                    width = (field_box[3 + axis] - field_box[axis]) / np.float32(n - 1)
                    start = field_box[axis] + width * np.float32(index)
                    low[axis], high[axis] = start + a - ROUNDING, start + width + b + ROUNDING

                # Whether any of the cells there is occupied.
                first_x, last_x = _cell_range(low[0], high[0], box[0], box[3], cx)
                first_y, last_y = _cell_range(low[1], high[1], box[1], box[4], cy)
                first_z, last_z = _cell_range(low[2], high[2], box[2], box[5], cz)
                found = 0
                for c in range(first_z, last_z + 1):
                    for d in range(first_y, last_y + 1):
                        for e in range(first_x, last_x + 1):
                            found |= occupied[base + (c * cy + d) * cx + e]
                reachable[image, (k * (ny - 1) + j) * (nx - 1) + i] = found
