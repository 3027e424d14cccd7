// Renders a portrait payload: a scene on the graphics card, drawn from any camera under any neck and head pose.

import { readArray, readBitmap, PayloadError } from "./blobs.js";
import { addWarp, deformationField } from "./body.js";
import { cameraFrame } from "./camera.js";
import { bindTexture, drawInto, GraphicsError, makeProgram, makeTexture } from "./glsl.js";
import { marchGlsl } from "./march.js";

const DECODER_BINDING = 0;
const RADIANS = Math.PI / 180;

/** The drawing context of a canvas; its content stays until it is drawn over. */
export function openContext(canvas) {
  const gl = canvas.getContext("webgl2", {
    alpha: false, antialias: false, depth: false, stencil: false, preserveDrawingBuffer: true,
  });
  if (gl === null) throw new GraphicsError("this browser has no WebGL2");
  return gl;
}

/** What all portraits of one model share: cameras, rays, decoder and body. */
export class SharedModel {
  static async read(payload) {
    const { triGrid, decoder, body, render } = payload;
    const values = await readArray(decoder.values);
    const expected = decoder.hidden * (triGrid.features + 1) + 4 * (decoder.hidden + 1);
    if (values.length !== expected) throw new PayloadError("its decoder has another size than it should have");
    const weights = Float32Array.from(await readArray(body.weights), (value) => value / 255);
    const shape = body.weights.shape.slice(0, 3);
    const volume = { values: weights, shape, low: body.volumeLow, spacing: body.spacing };
    return new SharedModel(payload.camera, render, triGrid, { ...decoder, values }, { ...body, volume });
  }

  constructor(camera, render, triGrid, decoder, body) {
    Object.assign(this, { camera, render, triGrid, decoder, body });
    this.layers = (triGrid.planes * triGrid.depth * triGrid.features) / 4;
  }

  /** Sizes that shaders are made for. */
  sizes(hasField) {
    const { triGrid, decoder, render } = this;
    return {
      ...triGrid, hidden: decoder.hidden, softplus: decoder.softplus, sigmoid: render.sigmoid,
      samples: render.samples, boxes: render.rayBoxes.length, hasField,
    };
  }

  /** The uniform block `Decoder` of `readingGlsl`; every layer's scale and offset are 1 and 0 unless given. */
  decoderBlock(scale, offset) {
    const { features } = this.triGrid;
    const { hidden, values } = this.decoder;
    const at = { firstBias: hidden * features, second: hidden * (features + 1) };
    at.secondBias = at.second + 4 * hidden;
    const out = [];
    for (let j = 0; j < hidden; j += 4) {
      for (let c = 0; c < features; c++) {
        for (let unit = 0; unit < 4; unit++) out.push(values[(j + unit) * features + c]); // column c of a mat4
      }
    }
    for (let j = 0; j < hidden; j++) out.push(values[at.firstBias + j]);
    for (let j = 0; j < hidden; j++) {
      for (let k = 0; k < 4; k++) out.push(values[at.second + k * hidden + j]);
    }
    for (let k = 0; k < 4; k++) out.push(values[at.secondBias + k]);
    for (let i = 0; i < 4 * this.layers; i++) out.push(scale ? scale[i] : 1);
    for (let i = 0; i < 4 * this.layers; i++) out.push(offset ? offset[i] : 0);
    return new Float32Array(out);
  }
}

/** One person on the graphics card: tri-grid, how its numbers are stored, occupied cells, and a shape of its own. */
export class Scene {
  /**
   * @param {{triGrid: WebGLTexture, scale: Float32Array|null, offset: Float32Array|null, cells: WebGLTexture,
   *   warp: object|null}} parts
   */
  constructor(gl, model, parts) {
    Object.assign(this, { gl, model, ...parts });
    this.block = gl.createBuffer();
    gl.bindBuffer(gl.UNIFORM_BUFFER, this.block);
    gl.bufferData(gl.UNIFORM_BUFFER, model.decoderBlock(parts.scale, parts.offset), gl.STATIC_DRAW);
  }

  /** The scene of a portrait in the payload. */
  static async read(gl, model, portrait) {
    const { columns, image, type, low, step } = portrait.triGrid;
    const bitmap = await readBitmap(image, type);
    const [offset, steps] = [await readArray(low), await readArray(step)];
    const channels = 4 * model.layers;
    const { resolution } = model.triGrid;
    const rows = Math.ceil(channels / columns);
    if (bitmap.width !== columns * resolution || bitmap.height !== rows * resolution || offset.length !== channels) {
      throw new PayloadError("its tri-grid has another size than it should have");
    }
    const scale = steps.map((value) => 255 * value); // textures of bytes read as 0 to 1
    const triGrid = unpackTiles(gl, model, bitmap, columns);
    const cells = uploadCells(gl, portrait.cells.shape, unpackBits(await readArray(portrait.cells.bits)));
    const warp = portrait.warp && { ...portrait.warp, values: await readArray(portrait.warp.displacements) };
    return new Scene(gl, model, { triGrid, scale, offset, cells, warp });
  }

  release() {
    for (const texture of [this.triGrid, this.cells]) this.gl.deleteTexture(texture);
    this.gl.deleteBuffer(this.block);
  }
}

function unpackBits(bytes) {
  return Uint8Array.from({ length: 8 * bytes.length }, (_, i) => ((bytes[i >> 3] >> (7 - (i & 7))) & 1 ? 255 : 0));
}

function uploadCells(gl, [nz, ny, nx], values) {
  if (values.length < nx * ny * nz) throw new PayloadError("its occupied cells have another size than they should have");
  const texture = makeTexture(gl, gl.TEXTURE_3D, gl.R8, [nx, ny, nz], gl.NEAREST);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, nx, ny, nz, gl.RED, gl.UNSIGNED_BYTE, values);
  return texture;
}

/** The tiles of an image, one for each channel, as layers of four channels. */
function unpackTiles(gl, model, bitmap, columns) {
  // The image as a texture of bytes; on the graphics card, as reading a canvas back is not exact in every browser
  const source = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, source);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8, gl.RED, gl.UNSIGNED_BYTE, bitmap);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);

  // Four tiles to a layer
  const { resolution } = model.triGrid;
  const size = [resolution, resolution, model.layers];
  const triGrid = makeTexture(gl, gl.TEXTURE_2D_ARRAY, gl.RGBA8, size, gl.LINEAR);
  const { program, uniforms } = makeProgram(gl, `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler2D tiles;
uniform int layer;
out vec4 values;
float tile(int channel) {
  ivec2 corner = ivec2(channel % ${columns}, channel / ${columns}) * ${resolution};
  return texelFetch(tiles, corner + ivec2(gl_FragCoord.xy), 0).r;
}
void main() {
  values = vec4(tile(4 * layer), tile(4 * layer + 1), tile(4 * layer + 2), tile(4 * layer + 3));
}`);
  gl.useProgram(program);
  bindTexture(gl, uniforms.tiles, 0, gl.TEXTURE_2D, source);
  const framebuffer = gl.createFramebuffer();
  for (let layer = 0; layer < model.layers; layer++) {
    gl.uniform1i(uniforms.layer, layer);
    drawInto(gl, framebuffer, triGrid, [layer], [resolution, resolution]);
  }
  gl.deleteFramebuffer(framebuffer);
  gl.deleteProgram(program);
  gl.deleteTexture(source);
  return triGrid;
}

/** Draws scenes of one model into the bound framebuffer. */
export class Renderer {
  constructor(gl, model) {
    this.gl = gl;
    this.model = model;
    this.programs = {};
    this.fields = new WeakMap();
    this.field = makeTexture(gl, gl.TEXTURE_3D, gl.RGBA16F, [...model.body.fieldShape].reverse(), gl.LINEAR);
  }

  /**
   * Choose what `draw` draws.
   *
   * @param {Scene} scene
   * @param {{yaw, pitch, zoom, neck: number[], head: number[], background: number[]}} view degrees; colours from 0 to 1.
   */
  prepare(scene, view) {
    const key = JSON.stringify([view.neck, view.head]);
    const atRest = [...view.neck, ...view.head].every((angle) => angle === 0);
    const hasField = !atRest || scene.warp !== null;
    if (hasField && (this.fieldScene !== scene || this.fieldKey !== key)) {
      this._uploadField(scene, view);
      [this.fieldScene, this.fieldKey] = [scene, key];
    }
    [this.scene, this.view, this.hasField] = [scene, view, hasField];
  }

  _uploadField(scene, view) {
    const { gl, model } = this;
    const { body } = model;
    const pose = { neck: view.neck.map((angle) => angle * RADIANS), head: view.head.map((angle) => angle * RADIANS) };
    const frame = { low: body.fieldLow, high: body.fieldHigh, shape: body.fieldShape };
    const field = deformationField(body, pose, frame);
    if (scene.warp) addWarp(field, frame, scene.warp);
    const [nz, ny, nx] = frame.shape;
    gl.bindTexture(gl.TEXTURE_3D, this.field);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, nx, ny, nz, gl.RGBA, gl.FLOAT, field);
  }

  /**
   * Draw part of an image of `side` pixels, whose rows are counted from below, with its lower left corner at `at`.
   *
   * @param {{x: number, y: number, width: number, height: number}} part in pixels of the image.
   * @param {{x: number, y: number}} at in pixels of the framebuffer.
   */
  draw(side, part = { x: 0, y: 0, width: side, height: side }, at = part) {
    const { gl, model, scene, view } = this;
    const { render, body, camera } = model;
    this.programs[this.hasField] ??= makeProgram(gl, marchGlsl(model.sizes(this.hasField)));
    const { program, uniforms } = this.programs[this.hasField];
    gl.useProgram(program);

    // The scene
    gl.uniformBlockBinding(program, gl.getUniformBlockIndex(program, "Decoder"), DECODER_BINDING);
    gl.bindBufferBase(gl.UNIFORM_BUFFER, DECODER_BINDING, scene.block);
    bindTexture(gl, uniforms.triGrid, 0, gl.TEXTURE_2D_ARRAY, scene.triGrid);
    bindTexture(gl, uniforms.cells, 1, gl.TEXTURE_3D, scene.cells);
    if (this.hasField) {
      bindTexture(gl, uniforms.field, 2, gl.TEXTURE_3D, this.field);
      gl.uniform3fv(uniforms.fieldLow, body.fieldLow);
      gl.uniform3fv(uniforms.fieldSize, body.fieldHigh.map((value, axis) => value - body.fieldLow[axis]));
    }
    gl.uniform3fv(uniforms.boxCentre, render.boxCentre);
    gl.uniform3fv(uniforms.boxHalf, render.boxHalf);
    gl.uniform1f(uniforms.densityScale, render.densityScale);
    gl.uniform1f(uniforms.densityShift, render.densityShift);
    gl.uniform1f(uniforms.stop, render.stop);

    // The rays
    const { position, axes } = cameraFrame(view.yaw * RADIANS, view.pitch * RADIANS, camera);
    gl.uniform3fv(uniforms.position, position);
    gl.uniformMatrix3fv(uniforms.axes, false, axes);
    gl.uniform1f(uniforms.focal, camera.focal * view.zoom);
    gl.uniform1f(uniforms.side, side);
    gl.uniform2f(uniforms.origin, part.x - at.x, part.y - at.y);
    if (render.rayBoxes.length === 0) {
      gl.uniform1f(uniforms.near, render.near);
      gl.uniform1f(uniforms.far, render.far);
    } else {
      gl.uniform3fv(uniforms.lows, render.rayBoxes.flatMap(([low]) => low));
      gl.uniform3fv(uniforms.highs, render.rayBoxes.flatMap(([, high]) => high));
    }
    gl.uniform3fv(uniforms.background, view.background);

    // The part
    gl.viewport(at.x, at.y, part.width, part.height);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(at.x, at.y, part.width, part.height);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
  }
}
