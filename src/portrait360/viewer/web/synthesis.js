// The synthesis network on the graphics card: model/layers.py with box resampling, as fragment shaders.
//
// Feature maps are textures of layers with four channels each. Style and demodulation go into the weights of the one
// person, on the CPU: two million products, where the convolutions take billions. A convolution after up-sampling by
// repeated pixels is one of 2 x 2 taps for each parity of row and column; it writes four maps of half the side, and the
// next layer reads these as one.

import { affine } from "./latent.js";
import { bindTexture, drawInto, finished, GraphicsError, makeProgram, makeTexture } from "./glsl.js";

const WEIGHTS_BINDING = 1;
const MAT4_BYTES = 64;
const MOST_OUTPUTS = 4; // layers that one pass writes
const MOST_BLOCK_BYTES = 65536;

/** How many taps each kind of convolution has. */
const TAPS = { same: 9, up: 4, point: 1 };

/** The shader of a convolution for some layers of outputs and inputs. */
function convolutionGlsl({ kind, outputs, inputs, isShuffled, hasImage }) {
  const indices = [...Array(outputs).keys()];
  const taps = TAPS[kind];
  const place = {
    same: "pixel + ivec2(tap % 3 - 1, tap / 3 - 1)",
    up: "pixel + ivec2(tap % 2, tap / 2) - 1 + phase",
    point: "pixel",
  }[kind];
  return `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2DArray;
uniform sampler2DArray source, sums, image;
uniform int firstInput, groups;   // of this pass, and of all
uniform ivec2 phase;              // parity of column and row, of up-sampling ones
uniform bool adds, ends;          // goes on where sums stopped; is the last pass of its outputs
uniform int firstOutput;
layout(std140) uniform Weights { mat4 kernel[${outputs * inputs * taps}]; };
uniform vec4 bias[${outputs}];
${indices.map((i) => `layout(location = ${i}) out vec4 out${i};`).join("\n")}

vec4 read(int group, ivec2 at, ivec2 size) {
  if (any(lessThan(at, ivec2(0))) || any(greaterThanEqual(at, size))) return vec4(0.0);
#if ${isShuffled ? 1 : 0}
  int part = (at.y & 1) * 2 + (at.x & 1);
  return texelFetch(source, ivec3(at >> 1, part * groups + group), 0);
#else
  return texelFetch(source, ivec3(at, group), 0);
#endif
}

vec4 finish(vec4 sum, vec4 offset, int index) {
  if (!ends) return sum;
  sum += offset;
${
  kind === "point"
    ? `#if ${hasImage ? 1 : 0}
  vec2 at = gl_FragCoord.xy / vec2(2 * textureSize(image, 0).xy);
  sum += textureLod(image, vec3(at, float(firstOutput + index)), 0.0);
#endif
  return sum;`
    : "return max(sum, 0.2 * sum);"
}
}

void main() {
  ivec2 pixel = ivec2(gl_FragCoord.xy);
  ivec2 size = textureSize(source, 0).xy * ${isShuffled ? 2 : 1};
${indices.map((i) => `  vec4 sum${i} = adds ? texelFetch(sums, ivec3(pixel, ${i}), 0) : vec4(0.0);`).join("\n")}
  for (int group = 0; group < ${inputs}; group++) {
    for (int tap = 0; tap < ${taps}; tap++) {
      vec4 value = read(firstInput + group, ${place}, size);
      int at = group * ${taps} + tap;
${indices.map((i) => `      sum${i} += kernel[${i * inputs * taps} + at] * value;`).join("\n")}
    }
  }
${indices.map((i) => `  out${i} = finish(sum${i}, bias[${i}], ${i});`).join("\n")}
}`;
}

/** Halves of a tri-grid's features, averaged with their mirror images in x (model/trigrid.py: symmetrize). */
function symmetrizeGlsl({ depth, features, symmetric }) {
  return `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2DArray;
uniform sampler2DArray image;
uniform int layer;
out vec4 values;
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  int groups = ${features / 4}, depth = ${depth};
  int plane = layer / (depth * groups), slice = (layer / groups) % depth, group = layer % groups;
  ivec3 mirrored = plane < 2
    ? ivec3(textureSize(image, 0).x - 1 - at.x, at.y, layer)
    : ivec3(at, (plane * depth + depth - 1 - slice) * groups + group);
  values = texelFetch(image, ivec3(at, layer), 0);
  vec4 mean = 0.5 * (values + texelFetch(image, mirrored, 0));
  values = mix(values, mean, lessThan(ivec4(0, 1, 2, 3) + 4 * group, ivec4(${symmetric})));
}`;
}

/** Makes tri-grids of styles. */
export class Synthesis {
  /**
   * @param network {constant, blocks: [{side, conv0, conv1, toRgb}], symmetric} with arrays of numbers.
   * @param sizes of the tri-grid: planes, depth, features, resolution.
   */
  constructor(gl, network, sizes) {
    Object.assign(this, { gl, network, sizes });
    if (gl.getExtension("EXT_color_buffer_float") !== null) this.format = gl.RGBA32F;
    else if (gl.getExtension("EXT_color_buffer_half_float") !== null) this.format = gl.RGBA16F; // some phones
    else throw new GraphicsError("this device cannot compute with float textures");
    this.blockBytes = Math.min(gl.getParameter(gl.MAX_UNIFORM_BLOCK_SIZE), MOST_BLOCK_BYTES);
    this.alignment = gl.getParameter(gl.UNIFORM_BUFFER_OFFSET_ALIGNMENT);
    this.framebuffer = gl.createFramebuffer();
    this.programs = {};
  }

  /** The tri-grid of a style: layers of four channels. `onProgress` gets the share that is done. */
  async make(style, onProgress) {
    const { gl, network } = this;
    const work = network.blocks.map((block) => this._work(block));
    const all = work.reduce((sum, value) => sum + value, 0);
    let done = 0;
    let map = this._constant();
    let image = null;
    for (const [index, block] of network.blocks.entries()) {
      let isShuffled = false;
      if (block.conv0) {
        map = await this._layer(block.conv0, style, map, { kind: "up" });
        isShuffled = true;
      }
      map = await this._layer(block.conv1, style, map, { kind: "same", isShuffled });
      if (block.toRgb) image = await this._layer(block.toRgb, style, map, { kind: "point", image, keepsSource: true });
      done += work[index];
      onProgress(done / all);
    }
    gl.deleteTexture(map.texture);
    return this._symmetrized(image);
  }

  /** Products that a block takes. */
  _work({ side, conv0, conv1, toRgb }) {
    const ofLayer = (layer, taps) => (layer ? layer.inputs * layer.outputs * taps * side * side : 0);
    return ofLayer(conv0, 4) + ofLayer(conv1, 9) + ofLayer(toRgb, 1);
  }

  _constant() {
    const { gl, network } = this;
    const { values, channels, side } = network.constant;
    const texels = new Float32Array(values.length);
    for (let channel = 0; channel < channels; channel++) {
      for (let pixel = 0; pixel < side * side; pixel++) {
        texels[4 * ((channel >> 2) * side * side + pixel) + (channel & 3)] = values[channel * side * side + pixel];
      }
    }
    const map = this._map(side, channels / 4, this.format, gl.NEAREST);
    gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, 0, side, side, channels / 4, gl.RGBA, gl.FLOAT, texels);
    return map;
  }

  _map(side, layers, format, filter) {
    const texture = makeTexture(this.gl, this.gl.TEXTURE_2D_ARRAY, format, [side, side, layers], filter);
    return { texture, side, layers };
  }

  /** The output map of a layer; the maps that it read are released. */
  async _layer(layer, style, source, { kind, isShuffled = false, image = null, keepsSource = false }) {
    // What one pass can do
    const { gl } = this;
    const [groups, outputs, taps] = [layer.inputs / 4, layer.outputs / 4, TAPS[kind]];
    const most = Math.floor(this.blockBytes / (MAT4_BYTES * taps));
    const together = [4, 3, 2, 1].find((n) => outputs % n === 0 && n <= MOST_OUTPUTS && (n === 1 || n * groups <= most));
    const inputs = divisorUpTo(groups, Math.floor(most / together));
    const phases = kind === "up" ? 4 : 1;
    const weights = modulated(layer, style, kind);
    const { buffer, stride } = this._upload(weights, { groups, outputs, taps, phases, together, inputs });

    // Where it writes
    const isImage = kind === "point";
    const side = source.side * (isShuffled ? 2 : 1);
    const format = isImage ? gl.RGBA16F : this.format;
    const map = this._map(side, outputs * phases, format, isImage ? gl.LINEAR : gl.NEAREST);
    const sums = [0, 1].map(() => inputs < groups && this._map(side, together, this.format, gl.NEAREST));
    const form = { kind, outputs: together, inputs, isShuffled, hasImage: image !== null };
    const { program, uniforms } = (this.programs[JSON.stringify(form)] ??= makeProgram(gl, convolutionGlsl(form)));

    // Pass by pass
    let index = 0;
    for (let phase = 0; phase < phases; phase++) {
      for (let first = 0; first < outputs; first += together) {
        for (let input = 0; input < groups; input += inputs, index++) {
          gl.useProgram(program);
          gl.uniformBlockBinding(program, gl.getUniformBlockIndex(program, "Weights"), WEIGHTS_BINDING);
          const size = together * inputs * taps * MAT4_BYTES;
          gl.bindBufferRange(gl.UNIFORM_BUFFER, WEIGHTS_BINDING, buffer, index * stride, size);
          const ends = input + inputs === groups;
          const pass = (input / inputs) % 2;
          bindTexture(gl, uniforms.source, 0, gl.TEXTURE_2D_ARRAY, source.texture);
          bindTexture(gl, uniforms.sums, 1, gl.TEXTURE_2D_ARRAY, input > 0 ? sums[1 - pass].texture : source.texture);
          if (image) bindTexture(gl, uniforms.image, 2, gl.TEXTURE_2D_ARRAY, image.texture);
          gl.uniform1i(uniforms.firstInput, input);
          gl.uniform1i(uniforms.groups ?? null, groups);
          gl.uniform2i(uniforms.phase ?? null, phase & 1, phase >> 1);
          gl.uniform1i(uniforms.adds, input > 0);
          gl.uniform1i(uniforms.ends, ends);
          gl.uniform1i(uniforms.firstOutput ?? null, first);
          gl.uniform4fv(uniforms.bias, weights.bias.subarray(4 * first, 4 * (first + together)));
          const layers = [...Array(together).keys()].map((i) => (ends ? phase * outputs + first + i : i));
          drawInto(gl, this.framebuffer, ends ? map.texture : sums[pass].texture, layers, [side, side]);
        }
      }
      await finished(gl); // so that the page stays alive
    }

    // What is no longer needed
    gl.deleteBuffer(buffer);
    for (const old of [!keepsSource && source, image, ...sums]) if (old) gl.deleteTexture(old.texture);
    return map;
  }

  /** The weights of every pass in one buffer, and how far apart they are, bytes. */
  _upload({ matrices }, { groups, outputs, taps, phases, together, inputs }) {
    const { gl } = this;
    const count = (phases * outputs * groups) / (together * inputs);
    const floats = together * inputs * taps * 16;
    const stride = Math.ceil((4 * floats) / this.alignment) * this.alignment;
    const packed = new Float32Array((count * stride) / 4);
    let to = 0;
    for (let phase = 0; phase < phases; phase++) {
      for (let first = 0; first < outputs; first += together) {
        for (let input = 0; input < groups; input += inputs, to += stride / 4) {
          for (let i = 0; i < together; i++) {
            const from = ((phase * outputs + first + i) * groups + input) * taps * 16;
            packed.set(matrices.subarray(from, from + inputs * taps * 16), to + i * inputs * taps * 16);
          }
        }
      }
    }
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.UNIFORM_BUFFER, buffer);
    gl.bufferData(gl.UNIFORM_BUFFER, packed, gl.STATIC_DRAW);
    return { buffer, stride };
  }

  _symmetrized(image) {
    const { gl, sizes, network } = this;
    const { texture } = this._map(image.side, image.layers, gl.RGBA16F, gl.LINEAR);
    const form = { ...sizes, symmetric: network.symmetric };
    const { program, uniforms } = (this.programs.symmetrize ??= makeProgram(gl, symmetrizeGlsl(form)));
    for (let layer = 0; layer < image.layers; layer++) {
      gl.useProgram(program);
      bindTexture(gl, uniforms.image, 0, gl.TEXTURE_2D_ARRAY, image.texture);
      gl.uniform1i(uniforms.layer, layer);
      drawInto(gl, this.framebuffer, texture, [layer], [image.side, image.side]);
    }
    gl.deleteTexture(image.texture);
    return texture;
  }
}

function divisorUpTo(number, most) {
  for (let n = Math.min(number, most); n > 1; n--) if (number % n === 0) return n;
  return 1;
}

/** Taps of the 3 x 3 kernel that fall on each of two pixels of one axis, for even and for odd outputs. */
const FOLDS = [[[0], [1, 2]], [[0, 1], [2]]];

/**
 * The weights of one person: matrices [phase][output group][input group][tap] of 4 x 4 (columns are inputs), and biases.
 *
 * A 1x1 layer has a style alone; a 3x3 layer is demodulated, and its gain sqrt(2) rides on weights and bias.
 */
function modulated(layer, style, kind) {
  const { inputs, outputs, weight } = layer;
  const scales = affine(layer.affine, style);
  const size = kind === "point" ? 1 : 9;
  const gains = new Float64Array(outputs).fill(1);
  if (kind !== "point") {
    for (let o = 0; o < outputs; o++) {
      let energy = 1e-8;
      for (let i = 0; i < inputs; i++) {
        const at = (o * inputs + i) * 9;
        let squares = 0;
        for (let tap = 0; tap < 9; tap++) squares += weight[at + tap] * weight[at + tap];
        energy += squares * scales[i] * scales[i];
      }
      gains[o] = Math.SQRT2 / Math.sqrt(energy);
    }
  }

  // Which taps of the kernel each tap of a phase adds up
  const taps = TAPS[kind];
  const phases = kind === "up" ? 4 : 1;
  const parts = [];
  for (let phase = 0; phase < phases; phase++) {
    for (let tap = 0; tap < taps; tap++) {
      if (kind !== "up") parts.push([tap]);
      else {
        const [columns, rows] = [FOLDS[phase & 1][tap % 2], FOLDS[phase >> 1][tap >> 1]];
        parts.push(rows.flatMap((row) => columns.map((column) => 3 * row + column)));
      }
    }
  }

  // Matrix by matrix
  const matrices = new Float32Array(phases * outputs * inputs * taps);
  let at = 0;
  for (let phase = 0; phase < phases; phase++) {
    for (let og = 0; og < outputs; og += 4) {
      for (let ig = 0; ig < inputs; ig += 4) {
        for (let tap = 0; tap < taps; tap++) {
          const summed = parts[phase * taps + tap];
          for (let i = ig; i < ig + 4; i++) {
            for (let o = og; o < og + 4; o++) {
              const from = (o * inputs + i) * size;
              let sum = 0;
              for (const part of summed) sum += weight[from + part];
              matrices[at++] = sum * scales[i] * gains[o];
            }
          }
        }
      }
    }
  }
  const gain = kind === "point" ? 1 : Math.SQRT2;
  return { matrices, bias: layer.bias.map((value) => value * gain) };
}
