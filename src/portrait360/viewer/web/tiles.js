// Images whose tiles are channels: arrays of textures with four channels a layer.

import { bindTexture, drawInto, makeProgram, makeTexture } from "./glsl.js";

/** The tiles of an image, one for each channel, as layers of four channels. */
export function unpackTiles(gl, bitmap, { columns, resolution, layers }) {
  // The image as a texture of bytes; on the graphics card, as reading a canvas back is not exact in every browser
  const source = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, source);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8, gl.RED, gl.UNSIGNED_BYTE, bitmap);
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);

  // Four tiles to a layer
  const size = [resolution, resolution, layers];
  const unpacked = makeTexture(gl, gl.TEXTURE_2D_ARRAY, gl.RGBA8, size, gl.LINEAR);
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
  for (let layer = 0; layer < layers; layer++) {
    gl.uniform1i(uniforms.layer, layer);
    drawInto(gl, framebuffer, unpacked, [layer], [resolution, resolution]);
  }
  gl.deleteFramebuffer(framebuffer);
  gl.deleteProgram(program);
  gl.deleteTexture(source);
  return unpacked;
}
