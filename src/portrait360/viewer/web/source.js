// Where images come from: here, portraits of the page's payload that this browser renders.
//
// A source has: people (names), select(index), show(view, moving), picture(view, side), and element, what it draws
// on. A source that asks a server for its images can take the place of this one; the controls know no other thing.

import { finished, makeTexture } from "./glsl.js";
import { openContext, Renderer, Scene, SharedModel } from "./renderer.js";

const FRAME_MS = 45; // of a frame while the view moves
const TILE_MS = 25; // of a tile while it is still
const STILL_MS = 180; // from the last movement to the full resolution
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
    gl.clearColor(...model.render.background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
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

  _prepared(view) {
    const background = BACKGROUNDS[view.background] ?? this.model.render.background;
    this.renderer.prepare(this.scene, { ...view, background });
  }

  /** The newest view at a resolution that takes FRAME_MS, again and again while newer ones come. */
  async _drawCoarse() {
    let drawn = -1;
    while (drawn !== this.turn) {
      drawn = this.turn;
      const side = Math.min(this.movingSide, this.element.width);
      const start = performance.now();
      this._prepared(this.view);
      const fieldMs = performance.now() - start;
      this._drawScaled(side);
      await finished(this.gl);
      await new Promise(requestAnimationFrame);
      const spent = Math.max(performance.now() - start - fieldMs, 4);
      const next = side * Math.min(Math.max(Math.sqrt(FRAME_MS / spent), 0.5), 1.5);
      this.movingSide = Math.max(SMALLEST, Math.round(Math.min(next, this.element.width)));
    }
  }

  _drawScaled(side) {
    const { gl } = this;
    const target = this._target(side);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    this.renderer.draw(side);
    gl.bindFramebuffer(gl.READ_FRAMEBUFFER, target.framebuffer);
    gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, null);
    const { width, height } = this.element;
    gl.blitFramebuffer(0, 0, side, side, 0, 0, width, height, gl.COLOR_BUFFER_BIT, gl.LINEAR);
  }

  /** A texture of `side` pixels to draw into. */
  _target(side) {
    const { gl } = this;
    if (this.target?.side !== side) {
      if (this.target) {
        gl.deleteTexture(this.target.texture);
        gl.deleteFramebuffer(this.target.framebuffer);
      }
      const texture = makeTexture(gl, gl.TEXTURE_2D, gl.RGBA8, [side, side], gl.LINEAR);
      const framebuffer = gl.createFramebuffer();
      gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
      this.target = { side, texture, framebuffer };
    }
    return this.target;
  }

  /** The view as sharp as the canvas, unless a newer one comes in between. */
  async _drawFull(turn) {
    await this.coarse; // which would draw over it
    const side = this.element.width;
    const draw = (part) => {
      this._prepared(this.view);
      this.gl.bindFramebuffer(this.gl.FRAMEBUFFER, null);
      this.renderer.draw(side, part);
    };
    if (await this._drawTiles(side, draw, () => turn === this.turn)) {
      this.isFull = true;
      this.element.dispatchEvent(new Event("sharp"));
    }
  }

  /** Draw an image in parts from its middle on, each in about TILE_MS. Whether it was finished. */
  async _drawTiles(side, draw, isWanted) {
    const size = Math.min(this.tile, side);
    for (const part of spiral(side, size)) {
      if (!isWanted() || this.gl.isContextLost()) return false;
      const start = performance.now();
      draw(part);
      await finished(this.gl);
      const spent = performance.now() - start;
      if (part.width === size && part.height === size) this._tileTook(size, spent);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    return isWanted();
  }

  _tileTook(size, spent) {
    const factor = Math.min(Math.max(Math.sqrt(TILE_MS / Math.max(spent, 1)), 0.7), 1.3);
    this.tile = Math.round(Math.min(Math.max(size * factor, SMALLEST / 2), LARGEST_TILE));
  }

  /** A view as a PNG of `side` pixels. */
  async picture(view, side) {
    const { gl } = this;
    const scene = this.scene;
    const texture = makeTexture(gl, gl.TEXTURE_2D, gl.RGBA8, [side, side], gl.LINEAR);
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const draw = (part) => {
      this._prepared(view);
      gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
      this.renderer.draw(side, part);
    };
    await this._drawTiles(side, draw, () => scene === this.scene);

    // From the graphics card, whose rows run upwards, to a file
    const pixels = new Uint8ClampedArray(4 * side * side);
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.readPixels(0, 0, side, side, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    gl.deleteFramebuffer(framebuffer);
    gl.deleteTexture(texture);
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
