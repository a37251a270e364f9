/**
 * From the region head's logits to boxes: apps/detector/device/decode.py in JavaScript.
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

/**
 * Every (cell, anchor, class) over the threshold.
 *
 * @param {Output[]} outputs xy (2 per anchor), wh (2), obj (1), cls (classes), anchor-major
 * @param {number[][]} anchors width and height in cells
 * @param {number} threshold NaN is never over it
 * @returns {Detection[]} by anchor, row, column, class
 * @throws {Error} if the shapes do not fit the anchors
 */
export function decode(outputs, anchors, threshold) {
  const [xy, wh, obj, cls] = outputs;
  const count = anchors.length;
  const [rows, columns] = obj.shape;
  const classes = cls.shape[2] / count;
  const wanted = [2 * count, 2 * count, count, classes * count];
  const fits = ({ shape }, i) => shape[0] === rows && shape[1] === columns && shape[2] === wanted[i];
  if (!Number.isInteger(classes) || classes < 1 || !outputs.every(fits)) {
    const shapes = outputs.map(({ shape }) => `(${shape.join(", ")})`).join(", ");
    throw new Error(`xy, wh, obj, cls of shapes ${shapes} do not fit ${count} anchors`);
  }
  const found = [];
  for (let anchor = 0; anchor < count; anchor++) {
    for (let cell = 0; cell < rows * columns; cell++) {
      const objectness = sigmoid(obj.data[cell * count + anchor]);
      if (!(objectness > threshold)) continue; // a class probability is at most 1
      const pair = 2 * (cell * count + anchor);
      const x = ((cell % columns) + sigmoid(xy.data[pair])) / columns;
      const y = (Math.floor(cell / columns) + sigmoid(xy.data[pair + 1])) / rows;
      const halfWidth = (anchors[anchor][0] * Math.exp(Math.min(wh.data[pair], FARTHEST))) / columns / 2;
      const halfHeight = (anchors[anchor][1] * Math.exp(Math.min(wh.data[pair + 1], FARTHEST))) / rows / 2;
      const box = [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight].map(Math.fround);
      const start = (cell * count + anchor) * classes;
      const logits = cls.data.subarray(start, start + classes);
      const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
      // Rounded after every step, as numpy's float32: scores that are equal there are equal here.
      const exponents = Array.from(logits, (logit) => Math.fround(Math.exp(Math.fround(logit - most))));
      const part = Math.fround(objectness / exponents.reduce((a, b) => Math.fround(a + b)));
      exponents.forEach((exponent, category) => {
        const score = Math.fround(exponent * part);
        if (score > threshold) found.push({ box, score, category });
      });
    }
  }
  return found;
}

/** Intersection over union of two boxes; 0 for empty ones. */
export function iou(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const union = area(a) + area(b) - width * height;
  return union > 0 ? (width * height) / union : 0;
}

/**
 * Greedy non-maximum suppression within each class.
 *
 * @param {Detection[]} detections
 * @param {number} most a box that overlaps a better one of its class by more than this is dropped
 * @returns {Detection[]} the best first; equal scores in the order given
 */
export function suppress(detections, most) {
  const kept = [];
  for (const each of [...detections].sort((a, b) => b.score - a.score)) {
    const rivals = kept.filter(({ category }) => category === each.category);
    if (!rivals.some(({ box }) => iou(box, each.box) > most)) kept.push(each);
  }
  return kept;
}

/**
 * What is in one image, as `detect` of apps/detector/device/decode.py.
 *
 * @param {Output[]} outputs
 * @param {number[][]} anchors
 * @param {number} threshold
 * @param {number} most overlap
 * @returns {Detection[]} boxes normalised to the network's input
 */
export function detect(outputs, anchors, threshold, most) {
  return suppress(decode(outputs, anchors, threshold), most);
}
