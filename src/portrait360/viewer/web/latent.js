// From a seed to a style, as model/mapping.py does it: numpy's RandomState(seed).randn, then the mapping network.

const WORDS = 624;
const MIDDLE = 397;

/** The Mersenne Twister (MT19937), seeded by one number as numpy's RandomState is. */
class Twister {
  constructor(seed) {
    this.state = new Uint32Array(WORDS);
    this.at = WORDS;
    this.state[0] = seed;
    for (let i = 1; i < WORDS; i++) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(before ^ (before >>> 30), 1812433253) + i;
    }
  }

  /** 32 random bits. */
  word() {
    if (this.at === WORDS) this._refill();
    let y = this.state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  _refill() {
    const { state } = this;
    for (let i = 0; i < WORDS; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % WORDS] & 0x7fffffff);
      state[i] = state[(i + MIDDLE) % WORDS] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }

  /** A number from 0 to 1 with 53 random bits. */
  uniform() {
    const upper = this.word() >>> 5;
    return (upper * 67108864 + (this.word() >>> 6)) / 9007199254740992;
  }
}

/** Normal numbers of a seed, by the polar method, in the order in which numpy gives them. */
export function latentOf(seed, count) {
  const twister = new Twister(seed);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    let x, y, square;
    do {
      x = 2 * twister.uniform() - 1;
      y = 2 * twister.uniform() - 1;
      square = x * x + y * y;
    } while (square >= 1 || square === 0);
    const factor = Math.sqrt((-2 * Math.log(square)) / square);
    values[i] = factor * y;
    if (i + 1 < count) values[i + 1] = factor * x;
  }
  return values;
}

/** weight @ x + bias; `weight` row by row. */
export function affine({ weight, bias }, x) {
  const out = new Float64Array(bias.length);
  for (let row = 0; row < bias.length; row++) {
    let sum = bias[row];
    for (let i = 0; i < x.length; i++) sum += weight[row * x.length + i] * x[i];
    out[row] = sum;
  }
  return out;
}

/**
 * The style of a seed.
 *
 * @param mapping {zDim, average} with either layers [{weight, bias, activates}] or styles (row by row) and share
 * @param {number} truncation 0 to 1.
 */
export function styleOf(seed, mapping, truncation) {
  return mapping.styles ? mixtureOf(seed, mapping, truncation) : mappedOf(seed, mapping, truncation);
}

/** Two learned styles, mixed (model/mapping.py: StyleMixture). */
function mixtureOf(seed, { zDim, styles, share, average }, truncation) {
  const z = latentOf(seed, zDim);
  const width = average.length;
  const count = styles.length / width;
  const row = (x, y) => Math.min(Math.floor((Math.atan2(y, x) / (2 * Math.PI) + 0.5) * count), count - 1) * width;
  const [first, second] = [row(z[0], z[1]), row(z[2], z[3])];
  const ofSecond = share * truncation ** 2;
  const ofFirst = (1 - (1 - truncation) ** 2) * Math.sqrt(1 - ofSecond ** 2);
  return Float64Array.from(average, (mean, i) =>
    mean + ofFirst * (styles[first + i] - mean) + ofSecond * (styles[second + i] - mean));
}

function mappedOf(seed, mapping, truncation) {
  let h = Float64Array.from(latentOf(seed, mapping.zDim));
  const meanSquare = h.reduce((sum, value) => sum + value * value, 0) / h.length;
  h = h.map((value) => value / Math.sqrt(meanSquare + 1e-8));
  for (const layer of mapping.layers) {
    h = affine(layer, h);
    if (layer.activates) h = h.map((value) => Math.SQRT2 * (value < 0 ? 0.2 * value : value));
  }
  return h.map((value, i) => mapping.average[i] + truncation * (value - mapping.average[i]));
}
