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

/**
 * Every (cell, anchor, class) over the threshold.
 *
 * @param {Output[]} outputs xy (2 per anchor), wh (2), obj (1), cls (classes), anchor-major, by head
 * @param {Anchors | YoloHeads} decoder
 * @param {number} threshold NaN is never over it
 * @returns {Detection[]} by head, anchor, row, column, class
 * @throws {Error} if the shapes do not fit the anchors
 */
export function decode(outputs, decoder, threshold) {
  if (Array.isArray(decoder)) return decodeHead(outputs, regionHead(decoder), threshold);
  const { heads, input } = decoder;
  if (outputs.length !== 4 * heads.length) {
    throw new Error(`${outputs.length} outputs do not fit ${heads.length} heads, each of 4`);
  }
  return heads.flatMap((head, i) =>
    decodeHead(outputs.slice(4 * i, 4 * i + 4), yoloHead(head, input), threshold),
  );
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
 * @param {Anchors | YoloHeads} decoder
 * @param {number} threshold
 * @param {number} most overlap
 * @returns {Detection[]} boxes normalised to the network's input
 */
export function detect(outputs, decoder, threshold, most) {
  const beta = decoder.nms_beta ?? null;
  const overlap = beta === null ? iou : (a, b) => distanceIou(a, b, beta);
  return suppress(decode(outputs, decoder, threshold), most, overlap);
}
