/** The worker, as promises. */

/**
 * @typedef {object} Result
 * @property {ImageBitmap} bitmap the frame as it was looked at
 * @property {number} width of it, pixels
 * @property {number} height
 * @property {import("./decode.js").Detection[]} detections boxes normalised to the frame
 * @property {Record<string, number>} milliseconds by step
 */

export class Detector {
  constructor() {
    /** How many threads the network runs on. */
    this.threads = 0;
    this.worker = null;
    this.count = 0;
    /** @type {Map<number, {resolve: Function, reject: Function}>} */
    this.waiting = new Map();
  }

  /**
   * Starts the worker and loads the network.
   *
   * @param {object} model model.json
   */
  async load(model) {
    this.worker = new Worker("worker.js");
    this.worker.onmessage = ({ data }) => this.#settle(data.id, data);
    this.worker.onerror = (event) => {
      for (const id of this.waiting.keys()) this.#settle(id, { kind: "failed", message: event.message });
    };
    const { threads } = await this.#ask({ kind: "load", model });
    this.threads = threads;
  }

  /**
   * Looks at one frame.
   *
   * @param {ImageBitmap} bitmap handed over
   * @param {number} turns clockwise, by quarters
   * @returns {Promise<Result>}
   */
  detect(bitmap, turns) {
    return this.#ask({ kind: "frame", bitmap, turns }, [bitmap]);
  }

  #ask(message, handedOver = []) {
    const id = this.count++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ ...message, id }, handedOver);
    });
  }

  #settle(id, answer) {
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (answer.kind === "failed") reject(new Error(answer.message));
    else resolve(answer);
  }
}
