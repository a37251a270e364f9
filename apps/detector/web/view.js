/**
 * What is seen: the frame that was looked at, its boxes, the list of what was found.
 *
 * @typedef {import("./decode.js").Detection} Detection boxes normalised to the frame
 */

const LETTERS = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

/** A class's colour: hues a golden angle apart, as in apps/detector/device/draw.py, light enough for dark words. */
export const classColour = (category) => `hsl(${((category * 0.381966) % 1) * 360} 95% 70%)`;

/**
 * Shows a frame, in a picture of its own proportions.
 *
 * @param {HTMLElement} picture the element round the canvas
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} bitmap
 */
export function showFrame(picture, canvas, bitmap) {
  const { width, height } = bitmap;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
    picture.parentElement.style.setProperty("--ratio", String(width / height));
  }
  canvas.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0);
}

/**
 * Draws boxes and names, in the screen's own pixels: sharp over a coarse frame.
 *
 * @param {HTMLCanvasElement} canvas over the frame
 * @param {Detection[]} detections the best first
 * @param {string[]} labels a class beyond them is shown by its number
 * @param {boolean} mirrored the frame is; names are not
 */
export function drawBoxes(canvas, detections, labels, mirrored) {
  const ratio = window.devicePixelRatio;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `600 15px ${LETTERS}`;
  context.textBaseline = "middle";
  context.lineWidth = 3;
  const placed = detections.toReversed().map(({ box, score, category }) => ({
    colour: classColour(category),
    text: `${labels[category] ?? category} ${Math.round(100 * score)} %`,
    left: (mirrored ? 1 - box[2] : box[0]) * width,
    top: box[1] * height,
    across: (box[2] - box[0]) * width,
    down: (box[3] - box[1]) * height,
  }));
  for (const { colour, left, top, across, down } of placed) {
    context.strokeStyle = colour;
    context.beginPath();
    context.roundRect(left, top, across, down, 6);
    context.stroke();
  }
  for (const { colour, text, left, top } of placed) {
    const across = context.measureText(text).width + 14;
    const x = Math.min(Math.max(left - 1.5, 0), Math.max(width - across, 0));
    const y = top >= 26 ? top - 26 : Math.min(top, height - 24); // above the box, else in it
    context.fillStyle = colour;
    context.beginPath();
    context.roundRect(x, y, across, 24, 6);
    context.fill();
    context.fillStyle = "#05070a";
    context.fillText(text, x + 7, y + 12.5);
  }
}

/**
 * Lists what was found, each class once.
 *
 * @param {HTMLElement} list
 * @param {Detection[]} detections
 * @param {string[]} labels
 * @returns {string} the same in words
 */
export function listFound(list, detections, labels) {
  const counts = new Map();
  for (const { category } of detections) counts.set(category, (counts.get(category) ?? 0) + 1);
  const sorted = [...counts].sort(([a], [b]) => a - b);
  list.replaceChildren(
    ...sorted.map(([category, count]) => {
      const item = document.createElement("li");
      item.style.setProperty("--colour", classColour(category));
      item.append(labels[category] ?? String(category));
      if (count > 1) {
        const times = document.createElement("small");
        times.textContent = `× ${count}`;
        item.append(times);
      }
      return item;
    }),
  );
  return sorted.map(([category, count]) => `${count} × ${labels[category] ?? category}`).join(", ");
}

/** The median of the last values of each step. */
export class Medians {
  /** @param {number} size how many values count */
  constructor(size = 60) {
    this.size = size;
    /** @type {Map<string, number[]>} */
    this.values = new Map();
  }

  /** @param {Record<string, number>} values by step */
  add(values) {
    for (const [step, value] of Object.entries(values)) {
      const kept = [...(this.values.get(step) ?? []), value].slice(-this.size);
      this.values.set(step, kept);
    }
  }

  /** @returns {Record<string, number>} */
  get() {
    const middle = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
    return Object.fromEntries([...this.values].map(([step, values]) => [step, middle(values)]));
  }

  clear() {
    this.values.clear();
  }
}
