// What photos add to a portrait's colours, as portrait/appearance.py has it: where a photo saw the surface its own
// pixels, elsewhere a tint. viewer/photos.py writes the payload.

import { readArray, readBitmap, PayloadError } from "./blobs.js";
import { boneDeltas } from "./body.js";
import { bindTexture, makeTexture } from "./glsl.js";
import { unpackTiles } from "./tiles.js";

const UNITS = { rest: 3, weights: 4, maps: 5, depths: 6, tint: 7 };
const BONES = 4;

/** The shader's part: `added(position)` is the colour that is added to a posed surface, in units of [-1, 1]. */
export function photosGlsl({ photos, hasPose }) {
  return `
#define PHOTOS ${photos}
#define BONES ${BONES}
uniform sampler3D weights, tint;
uniform sampler2DArray maps, depths;
uniform vec4 deltas[PHOTOS * BONES * 3];   // rows of the motions of each photo's pose, less the identity
uniform mat3 photoAxes[PHOTOS];            // columns: right, down, forward
uniform vec3 photoPosition[PHOTOS];
uniform vec3 photoFocal[PHOTOS];           // along x, skew, along y
uniform vec2 photoCentre[PHOTOS];
uniform float photoRadius;
uniform vec3 weightsLow, weightsSize, tintLow, tintSize;
${hasPose ? "uniform sampler3D rest;" : ""}

vec4 nodes(sampler3D grid, vec3 p, vec3 low, vec3 size) {
  vec3 count = vec3(textureSize(grid, 0));
  return textureLod(grid, (clamp((p - low) / size, 0.0, 1.0) * (count - 1.0) + 0.5) / count, 0.0);
}

/** What photo \`k\` adds at a place at rest, and its weight. */
vec4 seenBy(int k, vec3 p) {
  // The place in the photo's pose, and in its image
  vec4 share = nodes(weights, p, weightsLow, weightsSize), point = vec4(p, 1.0);
  vec3 posed = p;
  for (int b = 0; b < BONES; b++) {
    int row = (k * BONES + b) * 3;
    posed += share[b] * vec3(dot(deltas[row], point), dot(deltas[row + 1], point), dot(deltas[row + 2], point));
  }
  vec3 seen = (posed - photoPosition[k]) * photoAxes[k];
  vec2 q = seen.xy / seen.z;
  vec2 uv = vec2(photoFocal[k].x * q.x + photoFocal[k].y * q.y, photoFocal[k].z * q.y) + photoCentre[k];
  if (any(lessThan(uv, vec2(0.0))) || any(greaterThan(uv, vec2(1.0)))) return vec4(0.0);

  // Its colour there, unless something was in front
  vec4 map = textureLod(maps, vec3(uv, float(k)), 0.0);
  float depth = textureLod(depths, vec3(uv, float(k)), 0.0).r + photoRadius;
  float free = 1.0 / (1.0 + exp(-(depth + 0.008 - length(posed - photoPosition[k])) / 0.002));
  return vec4((map.rgb * 255.0 - 128.0) / 127.0, map.a * free);
}

vec3 added(vec3 position) {
  vec3 p = position;
${hasPose ? "  p += nodes(rest, position, fieldLow, fieldSize).xyz;" : ""}
  vec3 own = vec3(0.0);
  float total = 0.0, best = 0.0;
  for (int k = 0; k < PHOTOS; k++) {
    vec4 seen = seenBy(k, p);
    float share = seen.a * seen.a * seen.a;
    own += seen.rgb * share;
    total += share;
    best = max(best, seen.a);
  }
  vec3 elsewhere = (nodes(tint, p, tintLow, tintSize).rgb * 255.0 - 128.0) / 127.0;
  return own / max(total, 1e-6) * best + elsewhere * (1.0 - best);
}`;
}

/** The photos of one portrait on the graphics card. */
export class Photos {
  /** The photos of a payload; null where there are none. */
  static async read(gl, model, payload) {
    if (!payload) return null;
    const count = payload.cameras.length;
    const bitmap = await readBitmap(payload.image, payload.type);
    const rows = Math.ceil((4 * count) / payload.columns);
    if (bitmap.width !== payload.columns * payload.side || bitmap.height !== rows * payload.side) {
      throw new PayloadError("its photos have another size than they should have");
    }
    const maps = unpackTiles(gl, bitmap, { columns: payload.columns, resolution: payload.side, layers: count });
    const depths = uploadDepths(gl, payload.depths.shape, await readArray(payload.depths));
    return new Photos(gl, model, payload, maps, depths, await uploadTint(gl, payload.tint));
  }

  constructor(gl, model, payload, maps, depths, tint) {
    Object.assign(this, { gl, model, payload, maps, depths, tint });
    this.count = payload.cameras.length;
    this.weights = uploadWeights(gl, model.body.volume, model.body.moving.length);
    this.deltas = new Float32Array(12 * BONES * this.count);
    payload.poses.forEach((pose, k) => this.deltas.set(boneDeltas(model.body, pose), 12 * BONES * k));
  }

  /** Set the uniforms of `photosGlsl`; `rest` is the field from posed places to places at rest, or null. */
  bind(uniforms, rest) {
    const { gl, payload, model } = this;
    if (rest !== null) bindTexture(gl, uniforms.rest, UNITS.rest, gl.TEXTURE_3D, rest);
    bindTexture(gl, uniforms.weights, UNITS.weights, gl.TEXTURE_3D, this.weights);
    bindTexture(gl, uniforms.maps, UNITS.maps, gl.TEXTURE_2D_ARRAY, this.maps);
    bindTexture(gl, uniforms.depths, UNITS.depths, gl.TEXTURE_2D_ARRAY, this.depths);
    bindTexture(gl, uniforms.tint, UNITS.tint, gl.TEXTURE_3D, this.tint);
    const { volume } = model.body;
    gl.uniform3fv(uniforms.weightsLow, volume.low);
    gl.uniform3fv(uniforms.weightsSize, [...volume.shape].reverse().map((nodes) => (nodes - 1) * volume.spacing));
    const { low, high } = payload.tint ?? { low: [0, 0, 0], high: [1, 1, 1] };
    gl.uniform3fv(uniforms.tintLow, low);
    gl.uniform3fv(uniforms.tintSize, high.map((value, axis) => value - low[axis]));
    gl.uniform1f(uniforms.photoRadius, payload.radius);
    gl.uniform4fv(uniforms.deltas, this.deltas);

    // The photos' cameras: labels of 25 numbers (docs/conventions.md)
    const each = (pick) => payload.cameras.flatMap(pick);
    gl.uniformMatrix3fv(uniforms.photoAxes, false, each((c) => [c[0], c[4], c[8], c[1], c[5], c[9], c[2], c[6], c[10]]));
    gl.uniform3fv(uniforms.photoPosition, each((c) => [c[3], c[7], c[11]]));
    gl.uniform3fv(uniforms.photoFocal, each((c) => [c[16], c[17], c[20]]));
    gl.uniform2fv(uniforms.photoCentre, each((c) => [c[18], c[21]]));
  }

  release() {
    for (const texture of [this.maps, this.depths, this.tint, this.weights]) this.gl.deleteTexture(texture);
  }
}

function uploadDepths(gl, [count, height, width], values) {
  const texture = makeTexture(gl, gl.TEXTURE_2D_ARRAY, gl.R16F, [width, height, count], gl.LINEAR);
  gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, 0, width, height, count, gl.RED, gl.FLOAT, values);
  return texture;
}

/** The tint's nodes; one node that adds nothing where there is none. */
async function uploadTint(gl, tint) {
  const [nz, ny, nx] = tint ? tint.values.shape : [1, 1, 1];
  const values = tint ? await readArray(tint.values) : Uint8Array.of(128, 128, 128);
  const filled = new Uint8Array(4 * nx * ny * nz);
  for (let i = 0; i < nx * ny * nz; i++) filled.set(values.subarray(3 * i, 3 * i + 3), 4 * i);
  const texture = makeTexture(gl, gl.TEXTURE_3D, gl.RGBA8, [nx, ny, nz], gl.LINEAR);
  gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, nx, ny, nz, gl.RGBA, gl.UNSIGNED_BYTE, filled);
  return texture;
}

/** The body's weights, a channel for each of up to four moving bones. */
function uploadWeights(gl, { values, shape: [nz, ny, nx] }, bones) {
  const filled = new Uint8Array(BONES * nx * ny * nz);
  for (let i = 0; i < nx * ny * nz; i++) {
    for (let b = 0; b < bones; b++) filled[BONES * i + b] = Math.round(255 * values[bones * i + b]);
  }
  const texture = makeTexture(gl, gl.TEXTURE_3D, gl.RGBA8, [nx, ny, nz], gl.LINEAR);
  gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, nx, ny, nz, gl.RGBA, gl.UNSIGNED_BYTE, filled);
  return texture;
}
