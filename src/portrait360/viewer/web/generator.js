// Where images come from in a page with the model: people that the generator makes here, of any seed.

import { readArray } from "./blobs.js";
import { drawInto, finished, makeProgram, makeTexture, bindTexture } from "./glsl.js";
import { affine, styleOf } from "./latent.js";
import { readingGlsl } from "./march.js";
import { openContext, Scene, SharedModel } from "./renderer.js";
import { connectSeeds } from "./seeds.js";
import { LocalSource } from "./source.js";
import { Synthesis } from "./synthesis.js";

const CELLS_BINDING = 0;

async function readLayer({ inputs, outputs, affine: toScales, weight, bias }) {
  return {
    inputs, outputs, weight: await readArray(weight), bias: await readArray(bias), affine: await readDense(toScales),
  };
}

async function readDense({ weight, bias, activates }) {
  return { weight: await readArray(weight), bias: await readArray(bias), activates };
}

async function readNetwork({ constant, blocks, symmetric }) {
  const read = [];
  for (const { side, conv0, conv1, toRgb } of blocks) {
    read.push({
      side,
      conv0: conv0 && (await readLayer(conv0)), conv1: await readLayer(conv1), toRgb: toRgb && (await readLayer(toRgb)),
    });
  }
  const [channels, side] = constant.shape;
  return { constant: { values: await readArray(constant), channels, side }, blocks: read, symmetric };
}

async function readMapping({ zDim, styles, share, layers = [], average }) {
  const read = [];
  for (const layer of layers) read.push(await readDense(layer));
  return { zDim, styles: styles && (await readArray(styles)), share, layers: read, average: await readArray(average) };
}

async function readWarp(warp) {
  return warp && { ...warp, ...(await readDense(warp)), numbers: await readArray(warp.numbers) };
}

/** A person's displacements of canonical positions (model/warp.py), at the nodes where they are not always zero. */
function warpOf(warp, style) {
  const moved = affine(warp, style);
  const values = new Float32Array(3 * warp.shape[0] * warp.shape[1] * warp.shape[2]);
  moved.forEach((value, i) => (values[warp.numbers[i]] = value));
  return { low: warp.low, high: warp.high, shape: warp.shape, values };
}

/** Which cells of a tri-grid's box rays visit (model/fused.py: occupied_cells), on the graphics card. */
class CellFinder {
  constructor(gl, model, { shape, visible }) {
    Object.assign(this, { gl, model, shape, visible });
    this.framebuffer = gl.createFramebuffer();
    this.density = makeProgram(gl, `#version 300 es
${readingGlsl(model.sizes(false))}
uniform vec3 count;
uniform float slice, visible;
out vec4 found;
void main() {
  vec3 q = (vec3(gl_FragCoord.xy, slice + 0.5) / count) * 2.0 - 1.0;
  found = vec4(densityOf(decode(q).x) > visible ? 1.0 : 0.0);
}`);
    this.growth = makeProgram(gl, `#version 300 es
precision highp float;
precision highp int;
precision highp sampler3D;
uniform sampler3D cells;
uniform int slice;
out vec4 found;
void main() {
  ivec3 here = ivec3(gl_FragCoord.xy, slice), last = textureSize(cells, 0) - 1;
  found = vec4(0.0);
  for (int i = 0; i < 27; i++) {
    ivec3 at = here + ivec3(i % 3, (i / 3) % 3, i / 9) - 1;
    found = max(found, texelFetch(cells, clamp(at, ivec3(0), last), 0).rrrr);
  }
}`);
  }

  find(triGrid, block) {
    const { gl, model, density, growth, framebuffer } = this;
    const [nz, ny, nx] = this.shape;
    const [seen, grown] = [0, 1].map(() => makeTexture(gl, gl.TEXTURE_3D, gl.R8, [nx, ny, nz], gl.NEAREST));
    gl.useProgram(density.program);
    gl.uniformBlockBinding(density.program, gl.getUniformBlockIndex(density.program, "Decoder"), CELLS_BINDING);
    gl.bindBufferBase(gl.UNIFORM_BUFFER, CELLS_BINDING, block);
    bindTexture(gl, density.uniforms.triGrid, 0, gl.TEXTURE_2D_ARRAY, triGrid);
    gl.uniform3f(density.uniforms.count, nx, ny, nz);
    gl.uniform1f(density.uniforms.visible, this.visible);
    gl.uniform1f(density.uniforms.densityScale, model.render.densityScale);
    gl.uniform1f(density.uniforms.densityShift, model.render.densityShift);
    for (let z = 0; z < nz; z++) {
      gl.uniform1f(density.uniforms.slice, z);
      drawInto(gl, framebuffer, seen, [z], [nx, ny]);
    }
    gl.useProgram(growth.program);
    bindTexture(gl, growth.uniforms.cells, 0, gl.TEXTURE_3D, seen);
    for (let z = 0; z < nz; z++) {
      gl.uniform1i(growth.uniforms.slice, z);
      drawInto(gl, framebuffer, grown, [z], [nx, ny]);
    }
    gl.deleteTexture(seen);
    return grown;
  }
}

/** People of any seed, made by the generator in the page. */
export class GeneratorSource extends LocalSource {
  static async open(canvas, payload) {
    const gl = openContext(canvas);
    const model = await SharedModel.read(payload.model);
    const { generator } = payload;
    const source = new GeneratorSource(canvas, gl, model, []);
    source.mapping = await readMapping(generator.mapping);
    source.synthesis = new Synthesis(gl, await readNetwork(generator.synthesis), model.triGrid);
    source.warp = await readWarp(generator.warp);
    source.finder = new CellFinder(gl, model, generator.cells);
    source.people = ["Seed 0"];
    source.onProgress = () => {};
    return source;
  }

  /** The first person. */
  async select() {
    await this.make(0, 0.7);
  }

  /** Make and show the person of a seed; a newer call ends an older one. */
  async make(seed, truncation) {
    const wish = (this.wish = { seed, truncation });
    this.making = (this.making ?? Promise.resolve()).then(() => wish === this.wish && this._make(wish));
    await this.making;
  }

  async _make({ seed, truncation }) {
    const start = performance.now();
    const { gl, model } = this;
    const style = styleOf(seed, this.mapping, truncation);
    const triGrid = await this.synthesis.make(style, (share) => this.onProgress(seed, share));
    const block = gl.createBuffer();
    gl.bindBuffer(gl.UNIFORM_BUFFER, block);
    gl.bufferData(gl.UNIFORM_BUFFER, model.decoderBlock(null, null), gl.STATIC_DRAW);
    const cells = this.finder.find(triGrid, block);
    gl.deleteBuffer(block);
    const warp = this.warp && warpOf(this.warp, style);
    await finished(gl);

    // In place of the one before
    const before = this.scene;
    this.people = [`Seed ${seed}`];
    this.element.setAttribute("aria-label", `Seed ${seed}, a portrait in 3D`);
    this.use(new Scene(gl, model, { triGrid, scale: null, offset: null, cells, warp, photos: null }));
    before?.release();
    this.milliseconds = performance.now() - start;
    this.onProgress(seed, 1);
  }

  /** Join the page's own controls of the generator. */
  connect(form, status, complain) {
    this.onProgress = (number, share) => {
      status.textContent = share < 1 ? `Making seed ${number}: ${Math.round(100 * share)} %` : `This is seed ${number}.`;
    };
    connectSeeds(form, (seed, truncation) => this.make(seed, truncation).catch(complain));
  }
}
