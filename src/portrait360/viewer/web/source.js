// Where images come from: here, portraits of the page's payload that this browser renders.
//
// A source has: people (names), select(index), show(view, moving), picture(view, side), hasMesh(index), mesh(index), and
// element, what it draws on. One that asks a server (served.js) can take its place; the controls know no other thing.

import { decodeBase64 } from "./blobs.js";
import { finished, makeTexture } from "./glsl.js";
import { openContext, Renderer, Scene, SharedModel } from "./renderer.js";

const FRAME_MS = 45; // of a frame while the view moves
const TILE_MS = 25; // of a tile while it is still
const STILL_MS = 180; // from the last movement to the full resolution
const HIDDEN_MS = 100; // of a frame that the browser does not show
const SMALLEST = 64;
const LARGEST_TILE = 512;

/** The background as the model was trained with, and others. */
export const BACKGROUNDS = { studio: null, white: [1, 1, 1], black: [0, 0, 0] };

/** Portraits of a payload, rendered by WebGL2. */
export class LocalSource {
  static async open(canvas, payload) {
    const gl = openContext(canvas);
    const model = await SharedModel.read(payload.model);
    return new LocalSource(canvas, gl, model, payload.portraits);
  }

  constructor(canvas, gl, model, portraits) {
    Object.assign(this, { element: canvas, gl, model, portraits });
    this.people = portraits.map((portrait) => portrait.name);
    this.renderer = new Renderer(gl, model);
    this.scenes = [];
    this.movingSide = 128;
    this.tile = 128;
    this.turn = 0; // counts what was asked for: drawing for an older one stops
    this.isFull = false;
    this.index = 0;
    this.targets = {};
  }

  hasMesh(index) {
    return Boolean(this.portraits[index]?.mesh);
  }

  /** The mesh that was embedded. */
  async mesh(index) {
    return new Blob([decodeBase64(this.portraits[index].mesh)], { type: "model/gltf-binary" });
  }

  /** Load a person; the one shown before stays in sight until then. */
  async select(index) {
    this.scenes[index] ??= Scene.read(this.gl, this.model, this.portraits[index]);
    this.use(await this.scenes[index]);
  }

  /** Show a scene. */
  use(scene) {
    this.scene = scene;
    if (this.view) this.show(this.view, false);
  }

  /**
   * Draw a view: at once and coarsely, then, when it moves no more, tile by tile as sharp as the screen.
   *
   * @param view see `Renderer.prepare`; `background` is a name in BACKGROUNDS.
   * @param {boolean} moving whether more is to come.
   */
  show(view, moving) {
    this.view = view;
    this.isFull = false;
    const turn = ++this.turn;
    clearTimeout(this.timer);
    if (!this.scene) return;
    this.timer = setTimeout(() => this._drawFull(turn), moving ? STILL_MS : 0);
    this.coarse ??= this._drawCoarse().finally(() => (this.coarse = null));
  }

  _prepare(view) {
    const background = BACKGROUNDS[view.background] ?? this.model.render.background;
    this.renderer.prepare(this.scene, { ...view, background });
  }

  /** The newest view at a resolution that takes FRAME_MS, again and again while newer ones come. */
  async _drawCoarse() {
    let drawn = -1;
    while (drawn !== this.turn) {
      drawn = this.turn;
      const side = Math.min(this.movingSide, this.element.width);
      const target = this._target("coarse", side);
      this._prepare(this.view);
      const start = performance.now();
      this._drawPart(target, { x: 0, y: 0, width: side, height: side });
      await finished(this.gl);
      const spent = Math.max(performance.now() - start, 4);
      await nextFrame();
      this._present(target, { x: 0, y: 0, width: side, height: side });
      this.element.dispatchEvent(new Event("drawn"));
      const next = side * Math.min(Math.max(Math.sqrt(FRAME_MS / spent), 0.5), 1.5);
      this.movingSide = Math.max(SMALLEST, Math.round(Math.min(next, this.element.width)));
    }
  }

  /** The view as sharp as the canvas, unless a newer one comes in between. */
  async _drawFull(turn) {
    await this.coarse; // which would draw over it
    const target = this._target("full", this.element.width);
    const isWanted = () => turn === this.turn && target.side === this.element.width;
    if (await this._drawTiles(target, this.view, isWanted, (part) => this._present(target, part))) {
      this.isFull = true;
      this.element.dispatchEvent(new Event("sharp"));
    }
  }

  /** A texture of `side` pixels to draw into; one is kept for each use. */
  _target(use, side) {
    if (this.targets[use]?.side !== side) {
      if (this.targets[use]) releaseTarget(this.gl, this.targets[use]);
      this.targets[use] = makeTarget(this.gl, side);
    }
    return this.targets[use];
  }

  _drawPart(target, part) {
    this.gl.bindFramebuffer(this.gl.FRAMEBUFFER, target.framebuffer);
    this.renderer.draw(target.side, part);
  }

  /** Show part of a target on the canvas, enlarged. */
  _present(target, { x, y, width, height }) {
    const { gl } = this;
    const scale = this.element.width / target.side;
    const [left, bottom, right, top] = [x, y, x + width, y + height].map((value) => Math.round(value * scale));
    gl.bindFramebuffer(gl.READ_FRAMEBUFFER, target.framebuffer);
    gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, null);
    const filter = scale === 1 ? gl.NEAREST : gl.LINEAR;
    gl.blitFramebuffer(x, y, x + width, y + height, left, bottom, right, top, gl.COLOR_BUFFER_BIT, filter);
  }

  /** Draw a view in parts from its middle on, each in about TILE_MS. Whether it was finished. */
  async _drawTiles(target, view, isWanted, onPart) {
    const size = Math.min(this.tile, target.side);
    for (const part of spiral(target.side, size)) {
      if (!isWanted() || this.gl.isContextLost()) return false;
      this._prepare(view);
      const start = performance.now();
      this._drawPart(target, part);
      await finished(this.gl);
      if (part.width === size && part.height === size) this._tileTook(size, performance.now() - start);
      await nextFrame();
      if (!isWanted()) return false;
      onPart(part);
    }
    return true;
  }

  _tileTook(size, spent) {
    const factor = Math.min(Math.max(Math.sqrt(TILE_MS / Math.max(spent, 1)), 0.7), 1.3);
    this.tile = Math.round(Math.min(Math.max(size * factor, SMALLEST / 2), LARGEST_TILE));
  }

  /** A view as a PNG of `side` pixels. */
  async picture(view, side) {
    const { gl, scene } = this;
    const target = makeTarget(gl, side);
    await this._drawTiles(target, view, () => scene === this.scene, () => {});

    // From the graphics card, whose rows run upwards, to a file
    const pixels = new Uint8ClampedArray(4 * side * side);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    gl.readPixels(0, 0, side, side, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    releaseTarget(gl, target);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    for (let row = 0; row < side; row++) {
      const line = new ImageData(pixels.subarray(4 * side * row, 4 * side * (row + 1)), side, 1);
      context.putImageData(line, 0, side - 1 - row);
    }
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

/** Until the browser has shown what was drawn, and has looked after people's hands; pages out of sight get no frames. */
function nextFrame() {
  return new Promise((resolve) => {
    requestAnimationFrame(resolve);
    setTimeout(resolve, HIDDEN_MS);
  });
}

function makeTarget(gl, side) {
  const texture = makeTexture(gl, gl.TEXTURE_2D, gl.RGBA8, [side, side], gl.LINEAR);
  const framebuffer = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  return { side, texture, framebuffer };
}

function releaseTarget(gl, { texture, framebuffer }) {
  gl.deleteTexture(texture);
  gl.deleteFramebuffer(framebuffer);
}

/** Square parts that cover an image, those near its middle first. */
function spiral(side, size) {
  const parts = [];
  for (let y = 0; y < side; y += size) {
    for (let x = 0; x < side; x += size) {
      parts.push({ x, y, width: Math.min(size, side - x), height: Math.min(size, side - y) });
    }
  }
  const distance = ({ x, y }) => Math.max(Math.abs(x + size / 2 - side / 2), Math.abs(y + size / 2 - side / 2));
  return parts.sort((a, b) => distance(a) - distance(b));
}
