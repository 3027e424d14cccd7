// WebGL2, made short: programs, textures, framebuffers.

const VERTEX = `#version 300 es
void main() {  // one triangle that covers the viewport
  vec2 corner = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
  gl_Position = vec4(corner, 0.0, 1.0);
}`;

/** A graphics card or driver that cannot do what is needed: the message is for people. */
export class GraphicsError extends Error {
  isForPeople = true;
}

/** A program of a fragment shader over the whole viewport; `uniforms` are its locations by name. */
export function makeProgram(gl, fragment) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
    throw new GraphicsError(`the graphics driver refused a program: ${logs.join(" ")}${gl.getProgramInfoLog(program)}`);
  }
  const uniforms = {};
  for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
    const { name } = gl.getActiveUniform(program, i);
    uniforms[name.replace("[0]", "")] = gl.getUniformLocation(program, name);
  }
  return { program, uniforms };
}

/** A texture with storage: `size` is [width, height] or [width, height, depth]; clamped to its edges. */
export function makeTexture(gl, target, format, size, filter) {
  const texture = gl.createTexture();
  gl.bindTexture(target, texture);
  if (size.length === 3) gl.texStorage3D(target, 1, format, ...size);
  else gl.texStorage2D(target, 1, format, ...size);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T, gl.TEXTURE_WRAP_R]) {
    gl.texParameteri(target, side, gl.CLAMP_TO_EDGE);
  }
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, name, filter);
  return texture;
}

/** Bind a texture to a unit and its sampler. */
export function bindTexture(gl, location, unit, target, texture) {
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(target, texture);
  gl.uniform1i(location, unit);
}

/** Draw into layers of an array or slices of a volume: `layers` of `texture`, one after the other, or together. */
export function drawInto(gl, framebuffer, texture, layers, size) {
  gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, framebuffer);
  const most = gl.getParameter(gl.MAX_COLOR_ATTACHMENTS);
  for (let i = 0; i < Math.min(4, most); i++) {
    const used = i < layers.length ? texture : null;
    gl.framebufferTextureLayer(gl.DRAW_FRAMEBUFFER, gl.COLOR_ATTACHMENT0 + i, used, 0, used ? layers[i] : 0);
  }
  gl.drawBuffers(layers.map((_, i) => gl.COLOR_ATTACHMENT0 + i));
  gl.viewport(0, 0, ...size);
  gl.disable(gl.SCISSOR_TEST);
  gl.drawArrays(gl.TRIANGLES, 0, 3);
}

/** Wait until the graphics card has done what was asked of it so far, without blocking the page. */
export function finished(gl) {
  const sync = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
  gl.flush();
  return new Promise((resolve) => {
    const look = () => {
      const status = gl.isContextLost() ? gl.WAIT_FAILED : gl.clientWaitSync(sync, 0, 0);
      if (status === gl.TIMEOUT_EXPIRED) return void setTimeout(look, 1);
      gl.deleteSync(sync);
      resolve();
    };
    look();
  });
}
