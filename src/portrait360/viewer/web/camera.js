// Cameras on the sphere around the neck joint, as geometry/cameras.py has them. Angles are radians.

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

function normalize(v) {
  const length = Math.hypot(...v);
  return v.map((value) => value / length);
}

/**
 * Where a camera stands and what its axes are.
 *
 * @param {number} yaw 0 in front, positive towards the person's left.
 * @param {number} pitch positive above.
 * @param {{radius: number, lookAt: number[]}} sphere
 * @returns {{position: number[], axes: Float32Array}} axes: columns right, down, forward.
 */
export function cameraFrame(yaw, pitch, { radius, lookAt }) {
  const [sine, cosine, flat] = [Math.sin(yaw), Math.cos(yaw), Math.cos(pitch)];
  const position = [radius * sine * flat, radius * Math.sin(pitch), radius * cosine * flat];
  const forward = normalize(lookAt.map((value, axis) => value - position[axis]));
  const level = [-forward[2], 0, forward[0]];
  const right = normalize(Math.hypot(...level) < 1e-6 ? [cosine, 0, -sine] : level); // the limit straight above
  const down = cross(forward, right);
  return { position, axes: new Float32Array([...right, ...down, ...forward]) };
}
