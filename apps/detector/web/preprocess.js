/**
 * The preprocessing contract of calibration/preprocess.py, bit for bit: resize, colour order, then a table.
 *
 * A canvas resizes in its own way, so the pixels are resized here: as OpenCV's INTER_LINEAR does for 8 bits,
 * weights in 1/2048, and products shifted as its vector code shifts them; or as sums of whole numbers, those of
 * calibration/pictures.py.
 *
 * @typedef {object} Contract the fields of `Preprocess`
 * @property {number} width of the network's input, pixels
 * @property {number} height
 * @property {"stretch" | "letterbox" | "crop"} resize
 * @property {"rgb" | "bgr" | "grey"} colour
 * @property {number[]} mean one per channel, of the value / 255
 * @property {number[]} std
 * @property {"nchw" | "nhwc"} layout
 * @property {number} fill grey level of the letterbox's border
 * @property {"bilinear" | "area" | "bicubic" | "pillow-bilinear" | "pillow-bicubic"} [resample] bilinear where
 *   it is left out
 * @property {number} [shorter_side] of a crop, pixels
 *
 * @typedef {{left: number, top: number, width: number, height: number}} Rectangle whole pixels
 * @typedef {{data: Uint8Array | Uint8ClampedArray, width: number, height: number}} Picture RGBA, as ImageData
 * @typedef {{scaleX: number, scaleY: number, offsetX: number, offsetY: number}} Geometry
 * @typedef {{scale: number, zero_point: number}} Affine real = scale * (code - zero_point)
 */

const ONE = 2048;
const PARTS = 2 ** 22; // what a weight of Pillow's is counted in
const CUBIC_PARTS = 2 ** 20; // and one of the sixteen nearest
const LONGEST = 4; // sides of a ratio beyond which an image is cut before it is resized to a shorter side

/** @param {Contract} contract */
const channels = (contract) => (contract.colour === "grey" ? 1 : 3);

/** The quotient of whole numbers, rounded down; exact below 2^53. */
const div = (a, b) => Math.floor(a / b);

/**
 * Which part of an image is used, and where in the network's input it goes.
 *
 * @param {Contract} contract
 * @param {number} imageWidth
 * @param {number} imageHeight
 * @returns {{source: Rectangle, target: Rectangle}}
 */
export function placement(contract, imageWidth, imageHeight) {
  const { width, height } = contract;
  const source = { left: 0, top: 0, width: imageWidth, height: imageHeight };
  const target = { left: 0, top: 0, width, height };
  const wide = imageWidth * height >= width * imageHeight;
  if (contract.resize === "letterbox") {
    if (wide) target.height = Math.max(1, div(imageHeight * width, imageWidth));
    else target.width = Math.max(1, div(imageWidth * height, imageHeight));
    target.left = div(width - target.width, 2);
    target.top = div(height - target.height, 2);
  } else if (contract.shorter_side) {
    source.width = Math.min(imageWidth, LONGEST * imageHeight);
    source.height = Math.min(imageHeight, LONGEST * imageWidth);
    const short = Math.min(source.width, source.height);
    target.width = div(source.width * contract.shorter_side, short);
    target.height = div(source.height * contract.shorter_side, short);
    source.left = div(imageWidth - source.width, 2);
    source.top = div(imageHeight - source.height, 2);
    target.left = -div(target.width - width, 2);
    target.top = -div(target.height - height, 2);
  } else if (contract.resize === "crop") {
    if (wide) source.width = Math.max(1, div(imageHeight * width, height));
    else source.height = Math.max(1, div(imageWidth * height, width));
    source.left = div(imageWidth - source.width, 2);
    source.top = div(imageHeight - source.height, 2);
  }
  return { source, target };
}

/**
 * Where an image lies in the network's input, both normalised: input = image * scale + offset.
 *
 * @param {Contract} contract
 * @param {number} imageWidth
 * @param {number} imageHeight
 * @returns {Geometry}
 */
export function geometry(contract, imageWidth, imageHeight) {
  const { source, target } = placement(contract, imageWidth, imageHeight);
  const perX = target.width / source.width;
  const perY = target.height / source.height;
  return {
    scaleX: (perX * imageWidth) / contract.width,
    scaleY: (perY * imageHeight) / contract.height,
    offsetX: (target.left - source.left * perX) / contract.width,
    offsetY: (target.top - source.top * perY) / contract.height,
  };
}

/**
 * A box on the network's input, mapped back to the image and clipped to it.
 *
 * @param {number[]} box x1, y1, x2, y2, normalised
 * @param {Geometry} place
 * @returns {number[]}
 */
export function toImage([x1, y1, x2, y2], place) {
  const x = (value) => Math.min(Math.max((value - place.offsetX) / place.scaleX, 0), 1);
  const y = (value) => Math.min(Math.max((value - place.offsetY) / place.scaleY, 0), 1);
  return [x(x1), y(y1), x(x2), y(y2)];
}

/** To the nearest whole number, halves to the even one, as numpy's rint. */
function rint(value) {
  const low = Math.floor(value);
  const over = value - low;
  return over > 0.5 || (over === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

/**
 * For each position of one axis: its two neighbours in the source and their weights in 1/2048.
 *
 * @param {number} from length of the source
 * @param {number} to length of the target
 * @param {boolean} across OpenCV clamps the weights of columns, but of rows only the indices
 */
function taps(from, to, across) {
  const first = new Int32Array(to);
  const second = new Int32Array(to);
  const near = new Int32Array(to);
  const far = new Int32Array(to);
  const step = 1 / (to / from);
  for (let i = 0; i < to; i++) {
    const position = Math.fround((i + 0.5) * step - 0.5);
    let index = Math.floor(position);
    let part = Math.fround(position - index);
    if (across && (index < 0 || index >= from - 1)) {
      index = index < 0 ? 0 : from - 1;
      part = 0;
    }
    first[i] = Math.min(Math.max(index, 0), from - 1);
    second[i] = Math.min(Math.max(index + 1, 0), from - 1);
    near[i] = rint(Math.fround(1 - part) * ONE);
    far[i] = rint(part * ONE);
  }
  return { first, second, near, far };
}

/**
 * Resizes a part of a picture as cv2.resize(..., interpolation=cv2.INTER_LINEAR).
 *
 * @param {Picture} picture
 * @param {Rectangle} part of it
 * @param {number} width of the result
 * @param {number} height
 * @returns {Uint8Array} height * width * 3: R, G, B
 */
export function resize(picture, part, width, height) {
  const { data } = picture;
  const at = (row, column) => 4 * ((part.top + row) * picture.width + part.left + column);
  const out = new Uint8Array(3 * width * height);
  const same = part.width === width && part.height === height;
  if (same || (part.width === 2 * width && part.height === 2 * height)) {
    // OpenCV copies, and halves by the mean of four.
    const [step, shift, half] = same ? [1, 0, 0] : [2, 2, 2];
    for (let y = 0, o = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let c = 0; c < 3; c++) {
          let sum = half;
          for (let row = 0; row < step; row++) {
            for (let column = 0; column < step; column++) sum += data[at(step * y + row, step * x + column) + c];
          }
          out[o++] = sum >> shift;
        }
      }
    }
    return out;
  }
  const columns = taps(part.width, width, true);
  const rows = taps(part.height, height, false);
  for (let y = 0, o = 0; y < height; y++) {
    const above = at(rows.first[y], 0);
    const below = at(rows.second[y], 0);
    const [up, down] = [rows.near[y], rows.far[y]];
    for (let x = 0; x < width; x++) {
      const left = 4 * columns.first[x];
      const right = 4 * columns.second[x];
      const [near, far] = [columns.near[x], columns.far[x]];
      for (let c = 0; c < 3; c++) {
        const high = data[above + left + c] * near + data[above + right + c] * far;
        const low = data[below + left + c] * near + data[below + right + c] * far;
        out[o++] = (((up * (high >> 4)) >> 16) + ((down * (low >> 4)) >> 16) + 2) >> 2;
      }
    }
  }
  return out;
}

/**
 * For each of `to` equal parts of an axis of `from` pixels: the first that it covers, and how much of each,
 * in parts of `to`.
 */
function covered(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const [start, stop] = [i * from, (i + 1) * from];
    const first = div(start, to);
    const shares = [];
    for (let x = first; x * to < stop; x++) shares.push(Math.min(stop, (x + 1) * to) - Math.max(start, x * to));
    return { first, shares };
  });
}

/**
 * Resizes a part of a picture: each pixel is the mean of what it covers, exact, halves rounded up.
 *
 * @param {Picture} picture
 * @param {Rectangle} part of it
 * @param {number} width of the result
 * @param {number} height
 * @returns {Uint8Array} height * width * 3: R, G, B
 */
export function average(picture, part, width, height) {
  const { data } = picture;
  const out = new Uint8Array(3 * width * height);
  const area = part.width * part.height; // of each, in pixels / (width * height)
  const columns = covered(part.width, width);
  let o = 0;
  for (const row of covered(part.height, height)) {
    for (const column of columns) {
      const sums = [0, 0, 0];
      for (let y = 0; y < row.shares.length; y++) {
        let at = 4 * ((part.top + row.first + y) * picture.width + part.left + column.first);
        for (let x = 0; x < column.shares.length; x++, at += 4) {
          const share = row.shares[y] * column.shares[x];
          for (let c = 0; c < 3; c++) sums[c] += share * data[at + c];
        }
      }
      for (let c = 0; c < 3; c++) out[o++] = div(2 * sums[c] + area, 2 * area);
    }
  }
  return out;
}

/** The cubic convolution kernel at a distance >= 0: 0 from 2 on. */
function cubic(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** For each of `to` pixels the four nearest and their weights in 1/2^20, those of OpenCV's INTER_CUBIC. */
function nearestFour(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const position = (2 * i + 1) * from - to;
    const before = div(position, 2 * to);
    const x = (position - before * 2 * to) / (2 * to);
    const weights = [-1, 0, 1].map((place) => rint(cubic(Math.abs(x - place), -0.75) * CUBIC_PARTS));
    weights.push(CUBIC_PARTS - weights[0] - weights[1] - weights[2]);
    return weights.map((weight, k) => [Math.min(Math.max(before - 1 + k, 0), from - 1), weight]);
  });
}

/** For each of `to` pixels those that it covers, and beyond, and their weights in 1/2^22, as Pillow's. */
function filter(kind, from, to) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  const reach = (kind === "pillow-bicubic" ? 2 : 1) * wide;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const stop = Math.min(Math.trunc(centre + reach + 0.5), from);
    const weights = [];
    let total = 0;
    for (let place = first; place < stop; place++) {
      const x = Math.abs((place - centre + 0.5) * (1 / wide));
      weights.push(kind === "pillow-bicubic" ? cubic(x, -0.5) : Math.max(1 - x, 0));
      total += weights[weights.length - 1];
    }
    return weights.map((weight, k) => {
      const scaled = (weight / total) * PARTS;
      return [first + k, Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5))];
    });
  });
}

const clip = (level) => Math.min(Math.max(level, 0), 255);

/** A sum in 1/2^22 to a level, halves rounded up. */
const level = (sum) => clip(Math.floor((sum + PARTS / 2) / PARTS));

/**
 * Resizes a part of a picture by weights for each axis: across, then down.
 *
 * @param {Picture} picture
 * @param {Rectangle} part of it
 * @param {number} width of the result
 * @param {number} height
 * @param {string} kind "bicubic", "pillow-bilinear" or "pillow-bicubic"
 * @returns {Uint8Array} height * width * 3: R, G, B
 */
export function weighed(picture, part, width, height, kind) {
  const { data } = picture;
  const made = kind === "bicubic" ? nearestFour : (from, to) => filter(kind, from, to);
  // Pillow keeps levels between its two passes.
  const between = kind === "bicubic" ? (sum) => sum : level;
  const last = kind === "bicubic" ? (sum) => clip(rint(sum / CUBIC_PARTS ** 2)) : level;
  const across = new Float64Array(3 * width * part.height);
  let o = 0;
  const columns = made(part.width, width);
  for (let y = 0; y < part.height; y++) {
    const row = 4 * ((part.top + y) * picture.width + part.left);
    for (const taps of columns) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (const [place, weight] of taps) sum += weight * data[row + 4 * place + c];
        across[o++] = between(sum);
      }
    }
  }
  const out = new Uint8Array(3 * width * height);
  o = 0;
  for (const taps of made(part.height, height)) {
    for (let x = 0; x < 3 * width; x++) {
      let sum = 0;
      for (const [place, weight] of taps) sum += weight * across[3 * width * place + x];
      out[o++] = last(sum);
    }
  }
  return out;
}

/** Resizes a part of a picture as `resample` says. */
function resampled(resample, ...given) {
  if (resample === "area") return average(...given);
  return !resample || resample === "bilinear" ? resize(...given) : weighed(...given, resample);
}

/**
 * Resizes a picture into the network's input and orders its colours.
 *
 * @param {Contract} contract
 * @param {Picture} picture
 * @returns {Uint8Array} height * width * channels
 */
export function pixels(contract, picture) {
  const { source, target } = placement(contract, picture.width, picture.height);
  const resized = resampled(contract.resample, picture, source, target.width, target.height);
  const count = channels(contract);
  const out = new Uint8Array(contract.width * contract.height * count).fill(contract.fill);
  const [left, top] = [Math.max(target.left, 0), Math.max(target.top, 0)];
  const width = Math.min(target.left + target.width, contract.width) - left; // a crop may be larger than the input
  const height = Math.min(target.top + target.height, contract.height) - top;
  for (let y = 0; y < height; y++) {
    let i = 3 * ((top - target.top + y) * target.width + left - target.left);
    let o = count * ((top + y) * contract.width + left);
    for (let x = 0; x < width; x++, i += 3) {
      const [r, g, b] = [resized[i], resized[i + 1], resized[i + 2]];
      if (count === 1) {
        out[o++] = (r * 9798 + g * 19235 + b * 3735 + (1 << 14)) >> 15; // BT.601, as OpenCV rounds it
      } else {
        out[o++] = contract.colour === "rgb" ? r : b;
        out[o++] = g;
        out[o++] = contract.colour === "rgb" ? b : r;
      }
    }
  }
  return out;
}

/**
 * What the network takes for each level of each channel.
 *
 * @param {Contract} contract
 * @param {Affine | null} quantization of an integer network's input: the values are then those of its codes,
 *   so that its own quantization cannot round otherwise than Python's does
 * @returns {Float32Array} channels * 256
 */
export function table(contract, quantization = null) {
  const values = new Float32Array(256 * channels(contract));
  for (let i = 0; i < values.length; i++) {
    const channel = i >> 8;
    values[i] = ((i & 255) / 255 - contract.mean[channel]) / contract.std[channel];
    if (quantization) {
      const { scale, zero_point: zero } = quantization;
      const code = Math.min(Math.max(rint(values[i] / scale) + zero, -128), 127);
      values[i] = (code - zero) * scale;
    }
  }
  return values;
}

/**
 * The network's input for a picture.
 *
 * @param {Contract} contract
 * @param {Picture} picture
 * @param {Float32Array} values of `table`
 * @param {"nchw" | "nhwc"} layout
 * @returns {Float32Array}
 */
export function preprocess(contract, picture, values, layout = contract.layout) {
  const count = channels(contract);
  const levels = pixels(contract, picture);
  const out = new Float32Array(levels.length);
  const area = contract.width * contract.height;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < count; c++) {
      out[layout === "nchw" ? c * area + i : i * count + c] = values[256 * c + levels[i * count + c]];
    }
  }
  return out;
}
