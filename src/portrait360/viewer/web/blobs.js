// Arrays and images of a payload (viewer/blobs.py writes them). Nothing here asks the network for anything.

/** A payload that cannot be read: the message is for people. */
export class PayloadError extends Error {
  isForPeople = true;
}

/** Bytes of base64 text. */
export function decodeBase64(text) {
  let binary;
  try {
    binary = atob(text);
  } catch {
    throw new PayloadError("its data are damaged");
  }
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}

async function inflate(bytes) {
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new PayloadError("its data are damaged");
  }
}

/** Values of an array blob {type, shape, data}: uint8, int32 or float32, or float32 from fewer bits. */
export async function readArray(blob) {
  const bytes = await inflate(decodeBase64(blob.data));
  const count = blob.shape.reduce((product, size) => product * size, 1);
  const values = READERS[blob.type]?.(bytes, count, blob);
  if (values === undefined || values.length !== count) {
    throw new PayloadError("an array has another size than it should have");
  }
  return values;
}

const READERS = {
  uint8: (bytes) => bytes,
  int32: (bytes) => new Int32Array(bytes.buffer),
  float32: (bytes) => new Float32Array(bytes.buffer),
  rows: (bytes, count, blob) => dequantizeRows(bytes, count, blob),
};

/**
 * Rows of whole numbers in `bits` (8 or 12) bits, times a float32 scale per row.
 * Layout: scales, then the upper 8 bits of every number, then (with 12 bits) the lower 4, two numbers to a byte.
 */
function dequantizeRows(bytes, count, { shape, bits }) {
  const rows = shape[0];
  const columns = count / rows;
  const low = bits === 12 ? Math.ceil(count / 2) : 0;
  if (bytes.length !== 4 * rows + count + low) return undefined;
  const scales = new Float32Array(bytes.buffer, 0, rows);
  const high = bytes.subarray(4 * rows, 4 * rows + count);
  const nibbles = bytes.subarray(4 * rows + count);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    let whole = high[i] - 128;
    if (low) whole = whole * 16 + ((nibbles[i >> 1] >> (i & 1 ? 4 : 0)) & 15);
    values[i] = whole * scales[(i / columns) | 0];
  }
  return values;
}

/** The image of base64 text as a bitmap of the very numbers in it: no colour management, no premultiplied alpha. */
export async function readBitmap(text, type) {
  const blob = new Blob([decodeBase64(text)], { type });
  try {
    return await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new PayloadError("an image in it is damaged");
  }
}
