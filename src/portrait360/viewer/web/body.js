// The deformation of a neck and head pose: geometry/body.py and kernels/deformation.py in JavaScript.
//
// Each node's canonical position x solves sum_m W_m(x) (D_m [x; 1]) + x = node, with the body's weight volume W and
// the motions of its bones less the identity D, by Newton's method.

const ITERATIONS = 8;
const LAST_STEP = 3e-4;
const MAX_STEP = 0.1;
const MIN_DETERMINANT = 0.2;

/** Rotation matrix (9, row-major) of an axis-angle vector in radians. */
function rotationOf([x, y, z], share) {
  [x, y, z] = [x * share, y * share, z * share];
  const square = x * x + y * y + z * z;
  const angle = Math.sqrt(square);
  const sine = square < 1e-6 ? 1 - square / 6 : Math.sin(angle) / angle;
  const half = square < 1e-6 ? 0.5 - square / 24 : (1 - Math.cos(angle)) / square;
  return [
    1 - half * (y * y + z * z), half * x * y - sine * z, half * x * z + sine * y,
    half * x * y + sine * z, 1 - half * (x * x + z * z), half * y * z - sine * x,
    half * x * z - sine * y, half * y * z + sine * x, 1 - half * (x * x + y * y),
  ];
}

function product(a, b) {
  const out = new Array(9).fill(0);
  for (let i = 0; i < 9; i++) {
    for (let k = 0; k < 3; k++) out[i] += a[3 * ((i / 3) | 0) + k] * b[3 * k + (i % 3)];
  }
  return out;
}

const apply = (m, v) => [0, 3, 6].map((row) => m[row] * v[0] + m[row + 1] * v[1] + m[row + 2] * v[2]);

/**
 * Motions of the moving bones less the identity, 12 numbers each (3x4, row-major).
 *
 * @param body {joints, parents, drive: [[name, share] | null], moving}
 * @param pose {neck, head}: axis-angle vectors in radians.
 */
export function boneDeltas(body, pose) {
  const motions = [];
  body.parents.forEach((parent, bone) => {
    let rotation = parent < 0 ? [1, 0, 0, 0, 1, 0, 0, 0, 1] : motions[parent].rotation;
    let shift = parent < 0 ? [0, 0, 0] : motions[parent].shift;
    const drive = body.drive[bone];
    if (drive !== null) {
      const local = rotationOf(pose[drive[0]], drive[1]);
      const joint = body.joints[bone];
      const turned = apply(local, joint);
      const arm = apply(rotation, joint.map((value, axis) => value - turned[axis]));
      shift = shift.map((value, axis) => value + arm[axis]);
      rotation = product(rotation, local);
    }
    motions.push({ rotation, shift });
  });
  const deltas = new Float64Array(12 * body.moving.length);
  body.moving.forEach((bone, index) => {
    const { rotation, shift } = motions[bone];
    for (let row = 0; row < 3; row++) {
      for (let column = 0; column < 3; column++) {
        deltas[12 * index + 4 * row + column] = rotation[3 * row + column] - (row === column ? 1 : 0);
      }
      deltas[12 * index + 4 * row + 3] = shift[row];
    }
  });
  return deltas;
}

/** Coordinate of node `index` of `count` between low and high, both included. */
const node = (low, high, count, index) => low + ((high - low) * index) / (count - 1);

/**
 * Displacements canonical - posed at the nodes of the field, four numbers each (the last is 0).
 *
 * @param body as for `boneDeltas`, and volume {values: Float32Array (Z, Y, X, M), shape, low, spacing}.
 * @param frame {low, high, shape: [nz, ny, nx]} of the field's nodes.
 */
export function deformationField(body, pose, frame) {
  const deltas = boneDeltas(body, pose);
  const [nz, ny, nx] = frame.shape;
  const out = new Float32Array(4 * nx * ny * nz);
  const solve = solverOf(body.volume, deltas, body.moving.length);
  let at = 0;
  for (let k = 0; k < nz; k++) {
    const z = node(frame.low[2], frame.high[2], nz, k);
    for (let j = 0; j < ny; j++) {
      const y = node(frame.low[1], frame.high[1], ny, j);
      for (let i = 0; i < nx; i++, at += 4) {
        solve(node(frame.low[0], frame.high[0], nx, i), y, z, out, at);
      }
    }
  }
  return out;
}

/** A function that writes the displacement of a posed point into an array. */
function solverOf(volume, deltas, bones) {
  const { values, low, spacing } = volume;
  const [depth, height, width] = volume.shape;
  const alongY = width * bones;
  const alongZ = height * alongY;
  const scale = 1 / spacing;

  return (qx, qy, qz, out, at) => {
    let sx = 0, sy = 0, sz = 0;
    for (let iteration = 0; iteration < ITERATIONS; iteration++) {
      const x = qx + sx, y = qy + sy, z = qz + sz;

      // Where the point lies in the volume; beyond it the border value continues without slope.
      let px = (x - low[0]) * scale;
      let py = (y - low[1]) * scale;
      let pz = (z - low[2]) * scale;
      const slopeX = px >= 0 && px <= width - 1 ? scale : 0;
      const slopeY = py >= 0 && py <= height - 1 ? scale : 0;
      const slopeZ = pz >= 0 && pz <= depth - 1 ? scale : 0;
      px = Math.min(Math.max(px, 0), width - 1);
      py = Math.min(Math.max(py, 0), height - 1);
      pz = Math.min(Math.max(pz, 0), depth - 1);
      const ix = Math.min(px | 0, width - 2);
      const iy = Math.min(py | 0, height - 2);
      const iz = Math.min(pz | 0, depth - 2);
      const fx = px - ix, fy = py - iy, fz = pz - iz;
      const start = iz * alongZ + iy * alongY + ix * bones;

      // Displacement, blended motion (a), and what the slopes of the weights add to it (s).
      let mx = 0, my = 0, mz = 0;
      let a0 = 1, a1 = 0, a2 = 0, a3 = 0, a4 = 1, a5 = 0, a6 = 0, a7 = 0, a8 = 1;
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0, s8 = 0;
      for (let m = 0; m < bones; m++) {
        const near = start + m;
        const far = near + alongZ;
        const a = values[near], b = values[near + bones];
        const c = values[near + alongY], d = values[near + alongY + bones];
        const e = values[far], f = values[far + bones];
        const g = values[far + alongY], h = values[far + alongY + bones];
        if (a + b + c + d + e + f + g + h === 0) continue;
        const ba = b - a, dc = d - c, fe = f - e, hg = h - g;
        const nearLow = a + ba * fx, nearHigh = c + dc * fx, farLow = e + fe * fx, farHigh = g + hg * fx;
        const nearRise = nearHigh - nearLow, farRise = farHigh - farLow;
        const nearValue = nearLow + nearRise * fy, farValue = farLow + farRise * fy;
        const nearX = ba + (dc - ba) * fy, farX = fe + (hg - fe) * fy;
        const weight = nearValue + (farValue - nearValue) * fz;
        const wx = (nearX + (farX - nearX) * fz) * slopeX;
        const wy = (nearRise + (farRise - nearRise) * fz) * slopeY;
        const wz = (farValue - nearValue) * slopeZ;
        const o = 12 * m;
        const d0 = deltas[o], d1 = deltas[o + 1], d2 = deltas[o + 2];
        const d3 = deltas[o + 4], d4 = deltas[o + 5], d5 = deltas[o + 6];
        const d6 = deltas[o + 8], d7 = deltas[o + 9], d8 = deltas[o + 10];
        const ux = d0 * x + d1 * y + d2 * z + deltas[o + 3];
        const uy = d3 * x + d4 * y + d5 * z + deltas[o + 7];
        const uz = d6 * x + d7 * y + d8 * z + deltas[o + 11];
        mx += weight * ux; my += weight * uy; mz += weight * uz;
        a0 += weight * d0; a1 += weight * d1; a2 += weight * d2;
        a3 += weight * d3; a4 += weight * d4; a5 += weight * d5;
        a6 += weight * d6; a7 += weight * d7; a8 += weight * d8;
        s0 += ux * wx; s1 += ux * wy; s2 += ux * wz;
        s3 += uy * wx; s4 += uy * wy; s5 += uy * wz;
        s6 += uz * wx; s7 += uz * wy; s8 += uz * wz;
      }

      // Where space folds, slopes are left out.
      const b0 = a0 + s0, b1 = a1 + s1, b2 = a2 + s2, b3 = a3 + s3, b4 = a4 + s4, b5 = a5 + s5, b6 = a6 + s6,
        b7 = a7 + s7, b8 = a8 + s8;
      const full = b0 * (b4 * b8 - b5 * b7) - b1 * (b3 * b8 - b5 * b6) + b2 * (b3 * b7 - b4 * b6);
      if (full >= MIN_DETERMINANT) {
        a0 = b0; a1 = b1; a2 = b2; a3 = b3; a4 = b4; a5 = b5; a6 = b6; a7 = b7; a8 = b8;
      }

      // A step by Cramer's rule, none where the matrix is singular; no step is too long.
      const rx = sx + mx, ry = sy + my, rz = sz + mz;
      const c0 = a4 * a8 - a5 * a7, c1 = a2 * a7 - a1 * a8, c2 = a1 * a5 - a2 * a4;
      const c3 = a5 * a6 - a3 * a8, c4 = a0 * a8 - a2 * a6, c5 = a2 * a3 - a0 * a5;
      const c6 = a3 * a7 - a4 * a6, c7 = a1 * a6 - a0 * a7, c8 = a0 * a4 - a1 * a3;
      const determinant = a0 * c0 + a1 * c3 + a2 * c6;
      const inverse = Math.abs(determinant) > 1e-3 ? 1 / determinant : 0;
      const dx = (c0 * rx + c1 * ry + c2 * rz) * inverse;
      const dy = (c3 * rx + c4 * ry + c5 * rz) * inverse;
      const dz = (c6 * rx + c7 * ry + c8 * rz) * inverse;
      const length = Math.sqrt(dx * dx + dy * dy + dz * dz);
      const shrink = length > MAX_STEP ? MAX_STEP / length : 1;
      sx -= dx * shrink; sy -= dy * shrink; sz -= dz * shrink;
      if (rx * rx + ry * ry + rz * rz < LAST_STEP * LAST_STEP) break;
    }
    out[at] = sx;
    out[at + 1] = sy;
    out[at + 2] = sz;
  };
}

/**
 * Add a person's shape to a field (model/warp.py): displacements of the canonical positions that the pose gives.
 *
 * @param warp {values: Float32Array (nz, ny, nx, 3), shape, low, high}; zero beyond its box.
 */
export function addWarp(field, frame, warp) {
  const [nz, ny, nx] = frame.shape;
  let at = 0;
  for (let k = 0; k < nz; k++) {
    for (let j = 0; j < ny; j++) {
      for (let i = 0; i < nx; i++, at += 4) {
        const x = node(frame.low[0], frame.high[0], nx, i) + field[at];
        const y = node(frame.low[1], frame.high[1], ny, j) + field[at + 1];
        const z = node(frame.low[2], frame.high[2], nz, k) + field[at + 2];
        addTrilinear(warp, x, y, z, field, at);
      }
    }
  }
}

function addTrilinear({ values, shape, low, high }, x, y, z, out, at) {
  const [nz, ny, nx] = shape;
  const px = ((x - low[0]) / (high[0] - low[0])) * (nx - 1);
  const py = ((y - low[1]) / (high[1] - low[1])) * (ny - 1);
  const pz = ((z - low[2]) / (high[2] - low[2])) * (nz - 1);
  const [ix, iy, iz] = [Math.floor(px), Math.floor(py), Math.floor(pz)];
  if (ix < -1 || iy < -1 || iz < -1 || ix >= nx || iy >= ny || iz >= nz) return;
  for (let corner = 0; corner < 8; corner++) {
    const [i, j, k] = [ix + (corner & 1), iy + ((corner >> 1) & 1), iz + (corner >> 2)];
    if (i < 0 || j < 0 || k < 0 || i >= nx || j >= ny || k >= nz) continue;
    const share =
      (1 - Math.abs(px - i)) * (1 - Math.abs(py - j)) * (1 - Math.abs(pz - k));
    const from = 3 * ((k * ny + j) * nx + i);
    for (let axis = 0; axis < 3; axis++) out[at + axis] += share * values[from + axis];
  }
}
