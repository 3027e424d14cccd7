// The shader that marches rays through a portrait, as kernels/render.py does: same samples, same lookups.

import { photosGlsl } from "./photos.js";

/**
 * What every pass that reads the tri-grid has in common: its samplers, the decoder, and `decode`.
 *
 * The planes are layers of four features each: plane slowest, then slice, then feature. Stored values v stand for
 * v * scale + offset. Hardware filtering clamps to the edge where the tri-grid is padded with zeros: `fade` is the
 * share of the taps that lie inside.
 */
export function readingGlsl({ planes, depth, features, hidden, softplus }) {
  return `
precision highp float;
precision highp int;
precision highp sampler2DArray;
precision highp sampler3D;
#define GROUPS ${features / 4}
#define HIDDEN ${hidden / 4}
#define DEPTH ${depth}
#define LAYERS ${(planes * depth * features) / 4}
#define RESOLUTION ${"float(textureSize(triGrid, 0).x)"}

uniform sampler2DArray triGrid;
layout(std140) uniform Decoder {
  mat4 first[HIDDEN * GROUPS];
  vec4 firstBias[HIDDEN];
  mat4 second[HIDDEN];
  vec4 secondBias;
  vec4 scale[LAYERS];
  vec4 offset[LAYERS];
};
uniform float densityScale, densityShift;

float fade(float q, float size) {
  float position = ((q + 1.0) * size - 1.0) * 0.5;
  return clamp(min(position + 1.0, size - position), 0.0, 1.0);
}

void addPlane(int plane, vec3 q, inout vec4 sums[GROUPS]) {
  float share = fade(q.x, RESOLUTION) * fade(q.y, RESOLUTION) / ${planes}.0;
  vec2 place = (q.xy + 1.0) * 0.5;
  float position = ((q.z + 1.0) * float(DEPTH) - 1.0) * 0.5;
  int low = int(floor(position));
  float fraction = position - float(low);
  for (int tap = 0; tap < 2; tap++) {
    int slice = low + tap;
    float weight = share * (tap == 0 ? 1.0 - fraction : fraction);
    if (slice < 0 || slice >= DEPTH || weight == 0.0) continue;
    int layer = (plane * DEPTH + slice) * GROUPS;
    for (int g = 0; g < GROUPS; g++) {
      vec4 stored = textureLod(triGrid, vec3(place, float(layer + g)), 0.0);
      sums[g] += weight * (stored * scale[layer + g] + offset[layer + g]);
    }
  }
}

/** Raw density, then the raw colour, at a position in [-1, 1]^3. */
vec4 decode(vec3 q) {
  vec4 sums[GROUPS];
  for (int g = 0; g < GROUPS; g++) sums[g] = vec4(0.0);
  addPlane(0, q.xyz, sums);
  addPlane(1, q.xzy, sums);
  addPlane(2, q.yzx, sums);
  vec4 result = secondBias;
  for (int j = 0; j < HIDDEN; j++) {
    vec4 h = firstBias[j];
    for (int g = 0; g < GROUPS; g++) h += first[j * GROUPS + g] * sums[g];
    h = ${softplus ? "max(h, 0.0) + log(1.0 + exp(-abs(h)))" : "max(h, 0.2 * h)"};
    result += second[j] * h;
  }
  return result;
}

/** Density per world unit of a raw one. */
float densityOf(float raw) {
  float x = raw + densityShift;
  return densityScale * (max(x, 0.0) + log(1.0 + exp(-abs(x))));
}`;
}

/**
 * The renderer's fragment shader.
 *
 * @param sizes of `readingGlsl` and `photosGlsl`, and samples, boxes (of rays), sigmoid, hasField.
 */
export function marchGlsl(sizes) {
  return `#version 300 es
${readingGlsl(sizes)}
#define SAMPLES ${sizes.samples}
#define BOXES ${sizes.boxes}
#define HAS_FIELD ${sizes.hasField ? 1 : 0}

uniform sampler3D field, cells;
uniform vec3 fieldLow, fieldSize;   // of the nodes' box, world units
uniform vec3 boxCentre, boxHalf;    // of the tri-grid
uniform vec3 position;              // of the camera
uniform mat3 axes;                  // its columns: right, down, forward
uniform float focal, side;          // focal length in image sides; side of the image, pixels
uniform float near, far, stop;      // used where there are no boxes; least light that goes on
uniform vec3 lows[BOXES + 1], highs[BOXES + 1];
uniform vec3 background;
uniform vec2 origin;                // of the drawn part in the image, pixels from the lower left
out vec4 colour;
${sizes.photos ? photosGlsl(sizes) : ""}

/** Chord of a ray through the union of the boxes. */
vec2 chord(vec3 direction) {
  if (BOXES == 0) return vec2(near, far);
  vec3 safe = mix(direction, vec3(1e-20), lessThan(abs(direction), vec3(1e-20)));
  vec2 ends = vec2(1e6, -1e6);
  for (int i = 0; i < BOXES; i++) {
    vec3 a = (lows[i] - position) / safe, b = (highs[i] - position) / safe;
    vec3 low = min(a, b), high = max(a, b);
    float enter = max(max(low.x, max(low.y, low.z)), 0.0), leave = min(high.x, min(high.y, high.z));
    if (leave > enter) ends = vec2(min(ends.x, enter), max(ends.y, leave));
  }
  return ends;
}

/** The position in the tri-grid's [-1, 1]^3 of a posed one. */
vec3 canonical(vec3 p) {
#if HAS_FIELD
  vec3 nodes = vec3(textureSize(field, 0));
  vec3 place = clamp((p - fieldLow) / fieldSize, 0.0, 1.0) * (nodes - 1.0) + 0.5;
  p += textureLod(field, place / nodes, 0.0).xyz;
#endif
  return (p - boxCentre) / boxHalf;
}

void main() {
  // The ray of this pixel.
  vec2 pixel = gl_FragCoord.xy + origin;
  vec2 uv = vec2(pixel.x, side - pixel.y) / side - 0.5;
  vec3 direction = normalize(axes * vec3(uv / focal, 1.0));
  vec2 ends = chord(direction);
  float stepLength = (ends.y - ends.x) / float(SAMPLES);

  // Its samples, from the camera on until no light is left.
  vec3 sum = vec3(0.0);
  float through = 1.0, opacity = 0.0, depth = 0.0;  // depth: a sum of weight * distance
  ivec3 count = textureSize(cells, 0);
  for (int s = 0; s < SAMPLES; s++) {
    if (stepLength <= 0.0) break;
    float t = ends.x + (float(s) + 0.5) * stepLength;
    vec3 q = canonical(position + t * direction);
    if (any(greaterThanEqual(abs(q), vec3(1.0)))) continue;
    ivec3 cell = min(ivec3((q + 1.0) * 0.5 * vec3(count)), count - 1);
    if (texelFetch(cells, cell, 0).r == 0.0) continue;
    vec4 decoded = decode(q);
    float passes = exp(-densityOf(decoded.x) * stepLength);
    float weight = through * (1.0 - passes);
    sum += weight * ${sizes.sigmoid ? "(1.0 / (1.0 + exp(-decoded.yzw)))" : "decoded.yzw"};
    opacity += weight;
    depth += weight * t;
    through *= passes;
    if (through < stop) break;
  }

  vec3 shown = ${sizes.sigmoid ? "sum" : "0.5 * sum + 0.5 * opacity"};
${sizes.photos ? `  if (opacity > 0.02) {
    vec3 surface = position + depth / opacity * direction;
    shown = clamp(shown + 0.5 * added(surface) * opacity, 0.0, 1.0);
  }` : ""}
  colour = vec4(shown + (1.0 - opacity) * background, 1.0);
}`;
}
