/**
 * The network, off the page's own thread: frames in, detections out. A classic worker, because LiteRT.js
 * loads its program with importScripts.
 *
 * Messages in:  {kind: "load", id, model}, then {kind: "frame", id, bitmap, turns}
 * Messages out: {kind: "ready", id, threads, milliseconds}, {kind: "result", id, bitmap, width, height,
 *               detections, milliseconds}, {kind: "failed", id, message}
 */
"use strict";

const LEAST_SCORE = 0.05; // what the page's slider can reach
const WASM = new URL("litert/wasm/", self.location).href;

let detector;
const canvas = new OffscreenCanvas(1, 1);

/** Loads the network; with threads where the page is isolated and the processor has what they need. */
async function load(model) {
  const start = performance.now();
  const [litert, { detect }, preprocessing] = await Promise.all([
    import("./litert/index.js"),
    import("./decode.js"),
    import("./preprocess.js"),
  ]);
  const threads = self.crossOriginIsolated && (await litert.supportsFeature("relaxedSimd"));
  // Its loader looks for its files beside this one, and starts its threads from it, unless told otherwise.
  self.Module = {
    locateFile: (file) => WASM + file,
    mainScriptUrlOrBlob: `${WASM}litert_wasm_threaded_internal.js`,
    printErr: console.debug, // its log; what fails is thrown
  };
  await litert.loadLiteRt(WASM, { threads });
  const numThreads = threads ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const program = await litert.loadAndCompile(new URL(model.file, self.location), {
    accelerator: "wasm",
    cpuOptions: { numThreads },
  });
  detector = { model, litert, program, detect, ...preprocessing };
  detector.values = detector.table(model.preprocess, model.input);
  return { threads: numThreads, milliseconds: performance.now() - start };
}

/** Draws a frame, turned clockwise by quarters, and reads its pixels. */
function read(bitmap, turns) {
  const across = turns % 2 === 0;
  canvas.width = across ? bitmap.width : bitmap.height;
  canvas.height = across ? bitmap.height : bitmap.width;
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.translate(canvas.width / 2, canvas.height / 2);
  context.rotate((turns * Math.PI) / 2);
  context.drawImage(bitmap, -bitmap.width / 2, -bitmap.height / 2);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** The network's outputs for one input, NHWC. */
async function infer(input) {
  const { litert, program } = detector;
  const tensor = new litert.Tensor(input, Array.from(program.getInputDetails()[0].shape));
  const outputs = await program.run([tensor]);
  tensor.delete();
  return outputs.map((output) => {
    const [, ...shape] = output.type.layout.dimensions;
    const data = output.toTypedArray().slice();
    output.delete();
    return { data, shape };
  });
}

/** One frame through all steps, each with its time. */
async function run({ bitmap, turns }) {
  const { model, values } = detector;
  const times = [performance.now()];
  const lap = () => times.push(performance.now());
  const picture = read(bitmap, turns);
  lap();
  const input = detector.preprocess(model.preprocess, picture, values, "nhwc");
  lap();
  const outputs = await infer(input);
  lap();
  const found = detector.detect(outputs, model.heads ?? model.yolo ?? model.anchors, LEAST_SCORE, model.nms_iou);
  const place = detector.geometry(model.preprocess, picture.width, picture.height);
  const detections = found.map((each) => ({ ...each, box: detector.toImage(each.box, place) }));
  lap();
  const [reading, preparing, inferring, decoding] = times.slice(1).map((time, i) => time - times[i]);
  return {
    bitmap: canvas.transferToImageBitmap(), // the very pixels that were looked at
    width: picture.width,
    height: picture.height,
    detections,
    milliseconds: { read: reading, prepare: preparing, network: inferring, boxes: decoding },
  };
}

async function answer(data) {
  try {
    if (data.kind === "load") {
      self.postMessage({ kind: "ready", id: data.id, ...(await load(data.model)) });
    } else {
      const result = await run(data);
      self.postMessage({ kind: "result", id: data.id, ...result }, [result.bitmap]);
    }
  } catch (error) {
    self.postMessage({ kind: "failed", id: data.id, message: String(error?.message ?? error) });
  }
}

let last = Promise.resolve();
self.onmessage = ({ data }) => {
  last = last.then(() => answer(data)); // one at a time: they share the canvas and the network
};
