/**
 * From the heads' logits to boxes: apps/detector/device/boxes/decode.py in JavaScript.
 *
 * @typedef {number[][]} Anchors of a [region]: width and height in cells
 *
 * @typedef {object} YoloHeads of a network with [yolo], as app.json has them
 * @property {{anchors: number[][], scale_x_y: number, new_coords: boolean}[]} heads anchors in pixels
 * @property {number[]} input width and height in pixels
 * @property {number | null} nms_beta
 *
 * @typedef {object} Heads of a network that is no darknet's, as app.json has them
 * @property {"v8" | "yolox" | "ssd"} kind
 * @property {number[]} input width and height in pixels
 * @property {number[]} strides pixels per cell by level; of "ssd" there may be none
 * @property {number} bins of a distance ("v8")
 * @property {number[][][]} priors width and height in pixels of prior boxes by level ("ssd")
 * @property {number[]} variances
 *
 * @typedef {object} Output of the network, for one image
 * @property {Float32Array} data
 * @property {number[]} shape rows, columns, channels
 *
 * @typedef {object} Detection
 * @property {number[]} box x1, y1, x2, y2, normalised
 * @property {number} score objectness * class probability
 * @property {number} category
 */

const FARTHEST = 40; // exp(40) is wider than any image

const sigmoid = (x) => Math.fround(0.5 * (1 + Math.tanh(0.5 * x)));

/** The four outputs of a head, if they fit its anchors. */
function fitting(outputs, count) {
  const [xy, wh, obj, cls] = outputs;
  const [rows, columns] = obj.shape;
  const classes = cls.shape[2] / count;
  const wanted = [2 * count, 2 * count, count, classes * count];
  const fits = ({ shape }, i) => shape[0] === rows && shape[1] === columns && shape[2] === wanted[i];
  if (!Number.isInteger(classes) || classes < 1 || !outputs.every(fits)) {
    const shapes = outputs.map(({ shape }) => `(${shape.join(", ")})`).join(", ");
    throw new Error(`xy, wh, obj, cls of shapes ${shapes} do not fit ${count} anchors`);
  }
  return { xy, wh, obj, cls, rows, columns, classes };
}

/** The scores of a [region]'s classes: one softmax. Rounded after every step, as numpy's float32. */
function shared(logits, objectness) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponents = Array.from(logits, (logit) => Math.fround(Math.exp(Math.fround(logit - most))));
  const part = Math.fround(objectness / exponents.reduce((a, b) => Math.fround(a + b)));
  return exponents.map((exponent) => Math.fround(exponent * part));
}

/** The scores of a [yolo]'s classes: each its own. */
const independent = (logits, objectness) =>
  Array.from(logits, (logit) => Math.fround(sigmoid(logit) * objectness));

/** How a [region] places, sizes and scores its boxes. */
const regionHead = (anchors) => ({
  anchors,
  unit: null, // anchors are in cells
  offset: sigmoid,
  growth: (logit) => Math.exp(Math.min(logit, FARTHEST)),
  score: shared,
});

/** How one [yolo] does. */
const yoloHead = ({ anchors, scale_x_y: scale, new_coords: squared }, input) => ({
  anchors,
  unit: input,
  offset: (logit) => scale * sigmoid(logit) - (scale - 1) / 2,
  growth: (logit) => (squared ? (2 * sigmoid(logit)) ** 2 : Math.exp(Math.min(logit, FARTHEST))),
  score: independent,
});

/** Every (anchor, cell, class) of a head over the threshold. */
function decodeHead(outputs, { anchors, unit, offset, growth, score }, threshold) {
  const count = anchors.length;
  const { xy, wh, obj, cls, rows, columns, classes } = fitting(outputs, count);
  const [across, down] = unit ?? [columns, rows];
  const found = [];
  for (let anchor = 0; anchor < count; anchor++) {
    for (let cell = 0; cell < rows * columns; cell++) {
      const objectness = sigmoid(obj.data[cell * count + anchor]);
      if (!(objectness > threshold)) continue; // a class probability is at most 1
      const pair = 2 * (cell * count + anchor);
      const x = ((cell % columns) + offset(xy.data[pair])) / columns;
      const y = (Math.floor(cell / columns) + offset(xy.data[pair + 1])) / rows;
      const halfWidth = (anchors[anchor][0] * growth(wh.data[pair])) / across / 2;
      const halfHeight = (anchors[anchor][1] * growth(wh.data[pair + 1])) / down / 2;
      const box = [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight].map(Math.fround);
      const start = (cell * count + anchor) * classes;
      score(cls.data.subarray(start, start + classes), objectness).forEach((value, category) => {
        if (value > threshold) found.push({ box, score: value, category });
      });
    }
  }
  return found;
}

/** The outputs of a level of [yolo], v8, yolox or ssd, and each one's channels for a box of a cell. */
const PARTS = {
  yolo: ["xy", "wh", "obj", "cls"],
  v8: ["box", "cls"],
  yolox: ["box", "obj", "cls"],
  ssd: ["box", "cls"],
};

/** How many boxes a cell has, and their channels in all parts but the last. */
function layoutOf({ kind, heads, priors, bins }, level) {
  if (heads) return { boxes: heads[level].anchors.length, sizes: [2, 2, 1] };
  const sizes = { v8: [4 * bins], yolox: [4, 1], ssd: [4] }[kind];
  return { boxes: priors.length ? priors[level].length : 1, sizes };
}

/** Channels `low` to `high` of every box of an output that holds all parts. */
function slice({ data, shape }, boxes, low, high) {
  const [rows, columns, channels] = shape;
  const [each, width] = [channels / boxes, high - low];
  const found = new Float32Array(rows * columns * boxes * width);
  for (let box = 0; box < rows * columns * boxes; box++) {
    found.set(data.subarray(box * each + low, box * each + high), box * width);
  }
  return { data: found, shape: [rows, columns, boxes * width] };
}

/** The parts of all levels, where a network may return one output per level. */
function separated(outputs, decoder) {
  const kind = decoder.kind ?? "yolo";
  const count = PARTS[kind].length;
  const levels = (decoder.heads ?? (decoder.priors.length ? decoder.priors : decoder.strides)).length;
  if (outputs.length === levels * count) return { parts: outputs, levels, count };
  if (outputs.length !== levels || kind === "ssd") {
    throw new Error(`${outputs.length} outputs do not fit ${levels} heads, each of ${count}`);
  }
  const parts = outputs.flatMap((output, level) => {
    const { boxes, sizes } = layoutOf(decoder, level);
    const each = output.shape[2] / boxes;
    const most = sizes.reduce((a, b) => a + b);
    if (!Number.isInteger(each) || each <= most) {
      throw new Error(`${output.shape[2]} channels do not fit ${boxes} boxes of ${most} and the classes`);
    }
    let end = 0;
    return [...sizes, each - most].map((size) => slice(output, boxes, end, (end += size)));
  });
  return { parts, levels, count };
}

/** The mean of a softmax over bins; a single bin is the distance. */
function distance(bins) {
  if (bins.length === 1) return bins[0];
  const most = bins.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponents = Array.from(bins, (logit) => Math.exp(logit - most));
  const sum = exponents.reduce((a, b) => a + b);
  return exponents.reduce((total, exponent, place) => total + exponent * place, 0) / sum;
}

const around = ([x, y], [halfWidth, halfHeight]) => [
  x - halfWidth,
  y - halfHeight,
  x + halfWidth,
  y + halfHeight,
];

/** How each kind of head without a [yolo]'s formulas places a box and scores it. */
const KINDS = {
  v8({ bins, strides }, level, [box, cls], [column, row]) {
    const side = (i) => distance(box.subarray(i * bins, i * bins + bins));
    const [x, y, stride] = [column + 0.5, row + 0.5, strides[level]];
    return {
      scores: Array.from(cls, sigmoid),
      place: () => [x - side(0), y - side(1), x + side(2), y + side(3)].map((v) => v * stride),
    };
  },
  yolox({ strides }, level, [box, obj, cls], [column, row]) {
    const stride = strides[level];
    const half = (logit) => (Math.exp(Math.min(logit, FARTHEST)) / 2) * stride;
    return {
      scores: independent(cls, sigmoid(obj[0])),
      place: () => around([(column + box[0]) * stride, (row + box[1]) * stride], [half(box[2]), half(box[3])]),
    };
  },
  ssd({ strides, input, priors, variances }, level, [box, cls], cell, [columns, rows], prior) {
    const step = strides.length ? [strides[level], strides[level]] : [input[0] / columns, input[1] / rows];
    const sides = priors[level][prior];
    const [near, scale] = variances;
    const centre = [0, 1].map((i) => (cell[i] + 0.5) * step[i] + near * box[i] * sides[i]);
    const half = [0, 1].map((i) => (sides[i] * Math.exp(Math.min(scale * box[i + 2], FARTHEST))) / 2);
    return { scores: shared(cls, 1).slice(1), place: () => around(centre, half) };
  },
};

/** Every (box, cell, class) of a level over the threshold. */
function decodeLevel(parts, decoder, level, threshold) {
  const { boxes, sizes } = layoutOf(decoder, level);
  const last = parts.at(-1);
  const [rows, columns] = last.shape;
  const classes = last.shape[2] / boxes;
  const channels = [...sizes, classes];
  const fits = ({ shape }, i) =>
    shape[0] === rows && shape[1] === columns && shape[2] === boxes * channels[i];
  if (!Number.isInteger(classes) || classes <= (decoder.kind === "ssd" ? 1 : 0) || !parts.every(fits)) {
    const shapes = parts.map(({ shape }) => `(${shape.join(", ")})`).join(", ");
    throw new Error(`${PARTS[decoder.kind].join(", ")} of shapes ${shapes} do not fit level ${level + 1}`);
  }
  const [width, height] = decoder.input;
  const found = [];
  for (let prior = 0; prior < boxes; prior++) {
    for (let at = 0; at < rows * columns; at++) {
      const own = parts.map(({ data }, i) => {
        const start = (at * boxes + prior) * channels[i];
        return data.subarray(start, start + channels[i]);
      });
      const cell = [at % columns, Math.floor(at / columns)];
      const { scores, place } = KINDS[decoder.kind](decoder, level, own, cell, [columns, rows], prior);
      if (!scores.some((score) => score > threshold)) continue;
      const [left, top, right, bottom] = place();
      const box = [left / width, top / height, right / width, bottom / height].map(Math.fround);
      scores.forEach((score, category) => {
        if (score > threshold) found.push({ box, score, category });
      });
    }
  }
  return found;
}

/**
 * Every (cell, anchor, class) over the threshold.
 *
 * @param {Output[]} outputs xy (2 per anchor), wh (2), obj (1), cls (classes), anchor-major, by head; of other
 *   heads their parts, or one output per level
 * @param {Anchors | YoloHeads | Heads} decoder
 * @param {number} threshold NaN is never over it
 * @returns {Detection[]} by head, anchor, row, column, class
 * @throws {Error} if the shapes do not fit the anchors
 */
export function decode(outputs, decoder, threshold) {
  if (Array.isArray(decoder)) return decodeHead(outputs, regionHead(decoder), threshold);
  const { parts, levels, count } = separated(outputs, decoder);
  const { heads, input } = decoder;
  return Array.from({ length: levels }, (_, i) => {
    const own = parts.slice(count * i, count * i + count);
    return heads
      ? decodeHead(own, yoloHead(heads[i], input), threshold)
      : decodeLevel(own, decoder, i, threshold);
  }).flat();
}

/** Intersection over union of two boxes; 0 for empty ones. */
export function iou(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const union = area(a) + area(b) - width * height;
  return union > 0 ? (width * height) / union : 0;
}

/** `iou` less the distance of the centres (over the diagonal of both, squared) ^ beta. */
export function distanceIou(a, b, beta) {
  const spread = [0, 1].map((i) => Math.max(a[i + 2], b[i + 2]) - Math.min(a[i], b[i]));
  const apart = [0, 1].map((i) => (a[i] + a[i + 2] - b[i] - b[i + 2]) / 2);
  const [diagonal, distance] = [spread, apart].map(([x, y]) => x * x + y * y);
  return iou(a, b) - (diagonal > 0 ? (distance / diagonal) ** beta : 0);
}

/**
 * Greedy non-maximum suppression within each class.
 *
 * @param {Detection[]} detections
 * @param {number} most a box that overlaps a better one of its class by more than this is dropped
 * @param {(a: number[], b: number[]) => number} overlap of two boxes
 * @returns {Detection[]} the best first; equal scores in the order given
 */
export function suppress(detections, most, overlap = iou) {
  const kept = [];
  for (const each of [...detections].sort((a, b) => b.score - a.score)) {
    const rivals = kept.filter(({ category }) => category === each.category);
    if (!rivals.some(({ box }) => overlap(box, each.box) > most)) kept.push(each);
  }
  return kept;
}

/**
 * What is in one image, as `detect` of apps/detector/device/boxes/decode.py.
 *
 * @param {Output[]} outputs
 * @param {Anchors | YoloHeads | Heads} decoder
 * @param {number} threshold
 * @param {number} most overlap
 * @returns {Detection[]} boxes normalised to the network's input
 */
export function detect(outputs, decoder, threshold, most) {
  const beta = decoder.nms_beta ?? null;
  const overlap = beta === null ? iou : (a, b) => distanceIou(a, b, beta);
  return suppress(decode(outputs, decoder, threshold), most, overlap);
}
