// Renders a portrait payload: a scene on the graphics card, drawn from any camera under any neck and head pose.

import { readArray, readBitmap, PayloadError } from "./blobs.js";
import { addWarp, deformationField } from "./body.js";
import { cameraFrame } from "./camera.js";
import { bindTexture, GraphicsError, makeProgram, makeTexture } from "./glsl.js";
import { marchGlsl } from "./march.js";
import { Photos } from "./photos.js";
import { unpackTiles } from "./tiles.js";

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

  /** Sizes that shaders are made for; `photos` of a scene, and whether neck or head are turned. */
  sizes(hasField, photos, hasPose) {
    const { triGrid, decoder, render } = this;
    return {
      ...triGrid, hidden: decoder.hidden, softplus: decoder.softplus, sigmoid: render.sigmoid,
      samples: render.samples, boxes: render.rayBoxes.length, hasField, photos, hasPose,
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
   *   warp: object|null, photos: Photos|null}} parts
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
    const triGrid = unpackTiles(gl, bitmap, { columns, resolution, layers: model.layers });
    const cells = uploadCells(gl, portrait.cells.shape, unpackBits(await readArray(portrait.cells.bits)));
    const warp = portrait.warp && { ...portrait.warp, values: await readArray(portrait.warp.displacements) };
    const photos = await Photos.read(gl, model, portrait.photos);
    return new Scene(gl, model, { triGrid, scale, offset, cells, warp, photos });
  }

  release() {
    this.photos?.release();
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

/** Draws scenes of one model into the bound framebuffer. */
export class Renderer {
  constructor(gl, model) {
    this.gl = gl;
    this.model = model;
    this.programs = {};
    this.fields = new WeakMap();
    const nodes = [...model.body.fieldShape].reverse();
    this.field = makeTexture(gl, gl.TEXTURE_3D, gl.RGBA16F, nodes, gl.LINEAR);
    this.rest = makeTexture(gl, gl.TEXTURE_3D, gl.RGBA16F, nodes, gl.LINEAR); // the same without a person's shape
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
    [this.scene, this.view, this.hasField, this.hasPose] = [scene, view, hasField, !atRest];
  }

  _uploadField(scene, view) {
    const { gl, model } = this;
    const { body } = model;
    const pose = { neck: view.neck.map((angle) => angle * RADIANS), head: view.head.map((angle) => angle * RADIANS) };
    const frame = { low: body.fieldLow, high: body.fieldHigh, shape: body.fieldShape };
    const field = deformationField(body, pose, frame);
    if (scene.photos) upload(gl, this.rest, frame.shape, field);
    if (scene.warp) addWarp(field, frame, scene.warp);
    upload(gl, this.field, frame.shape, field);
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
    const photos = scene.photos?.count ?? 0;
    const sizes = model.sizes(this.hasField, photos, this.hasPose);
    const key = [this.hasField, photos, this.hasPose && photos > 0].join();
    this.programs[key] ??= makeProgram(gl, marchGlsl(sizes));
    const { program, uniforms } = this.programs[key];
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
    scene.photos?.bind(uniforms, this.hasPose ? this.rest : null);
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

function upload(gl, texture, [nz, ny, nx], values) {
  gl.bindTexture(gl.TEXTURE_3D, texture);
  gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, nx, ny, nz, gl.RGBA, gl.FLOAT, values);
}
