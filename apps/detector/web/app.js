/**
 * The page: a camera or a picture goes to the worker frame by frame, what comes back is shown.
 *
 * One frame is at work at any time, and the next is the newest there is: the picture never lags behind.
 * Every result is announced as the event "detections" on the document.
 */
import { CameraError, allowed, cameras, facesUser, openCamera } from "./camera.js";
import { Detector } from "./detector.js";
import { Medians, drawBoxes, listFound, showFrame } from "./view.js";

const at = (id) => document.getElementById(id);
const video = document.createElement("video");
video.muted = video.playsInline = true;

const detector = new Detector();
const medians = new Medians();
/** What is shown and how; `run` counts sources, so that a loop knows when its own is over. */
const state = {
  model: null, stream: null, still: null, paused: false, turns: 0, result: null, words: "", run: 0,
};

// -- words -----------------------------------------------------------------------------------------------

function say(title, text, { start = "" } = {}) {
  at("notice").hidden = false;
  at("notice-title").textContent = title;
  at("notice-text").textContent = text;
  at("start").hidden = !start;
  at("start").textContent = start;
  at("choose").hidden = !start;
}

function status(text, live = false) {
  at("state").textContent = text;
  at("state").toggleAttribute("data-live", live);
}

function fail(error) {
  stop();
  status("Stopped");
  if (error instanceof CameraError) say(error.title, error.message, { start: "Try again" });
  else say("Something went wrong", error.message, { start: detector.threads ? "Try again" : "" });
}

/** Runs what a button or a choice asks for; what goes wrong is told on the page. */
const told = (action) => async (event) => {
  try {
    await action(event);
  } catch (error) {
    fail(error);
  }
};

// -- showing ---------------------------------------------------------------------------------------------

const threshold = () => Number(at("threshold").value);
const visible = () => state.result.detections.filter(({ score }) => score > threshold());

function redraw() {
  at("threshold-value").textContent = `${Math.round(100 * threshold())} %`;
  at("picture").classList.toggle("mirrored", at("mirror").checked);
  if (!state.result) return;
  drawBoxes(at("boxes"), visible(), state.model.labels, at("mirror").checked);
  state.words = listFound(at("found"), visible(), state.model.labels);
}

function show(result) {
  state.result = result;
  at("notice").hidden = true;
  showFrame(at("picture"), at("frame"), result.bitmap);
  result.bitmap.close();
  redraw();
  document.dispatchEvent(new CustomEvent("detections", { detail: result }));
}

/** Times of the steps; frame to frame only while frames follow each other. */
function showTimes() {
  const times = medians.get();
  for (const cell of document.querySelectorAll("[data-step]")) {
    const value = times[cell.dataset.step];
    cell.textContent = value === undefined ? "–" : value.toFixed(1);
  }
  const { width, height } = state.result;
  const live = times.frame && !state.paused;
  status(live ? `${(1000 / times.frame).toFixed(0)} frames/s` : state.still ? "Picture" : "Paused", live);
  const threads = detector.threads === 1 ? "1 thread" : `${detector.threads} threads`;
  at("where").textContent = `Medians, measured in this browser just now: ${width} × ${height} pixels, ${threads}.`;
}

// -- sources ---------------------------------------------------------------------------------------------

function stop() {
  state.run++;
  state.stream?.getTracks().forEach((track) => track.stop());
  state.stream = null;
  video.srcObject = null;
  medians.clear();
  for (const id of ["pause", "flip", "turn"]) at(id).disabled = true;
}

function nextFrame() {
  return new Promise((resolve) => {
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(resolve);
    else requestAnimationFrame(resolve);
  });
}

async function startCamera(id = null) {
  stop();
  const run = state.run;
  say("Opening the camera", "The browser may ask whether it is allowed.");
  const stream = await openCamera(id);
  if (run !== state.run) {
    stream.getTracks().forEach((track) => track.stop());
    return;
  }
  state.stream = stream;
  state.still = null;
  const [track] = stream.getVideoTracks();
  track.addEventListener("ended", () => {
    if (state.stream === stream) fail(new CameraError("The camera was lost", "Connect it again, then try again."));
  });
  at("mirror").checked = facesUser(stream);
  video.srcObject = stream;
  await video.play();
  await listCameras(track.getSettings().deviceId);
  pause(false);
  at("pause").disabled = false;
  await follow(run);
}

async function listCameras(current) {
  const found = await cameras();
  at("camera").replaceChildren(...found.map(({ id, label }) => new Option(label, id, false, id === current)));
  at("camera-field").hidden = found.length === 0;
  at("flip").disabled = found.length < 2;
}

/** Looks at the newest frame, again and again, until the source is over. */
async function follow(run) {
  let last = 0;
  while (run === state.run) {
    await nextFrame();
    if (state.paused || document.hidden) {
      last = 0;
      await new Promise((resolve) => setTimeout(resolve, 50));
      continue;
    }
    const result = await detector.detect(await createImageBitmap(video), state.turns);
    if (run !== state.run || state.paused) continue;
    const now = performance.now();
    medians.add({ ...result.milliseconds, ...(last ? { frame: now - last } : {}) });
    last = now;
    show(result);
    showTimes();
  }
}

async function showStill() {
  const bitmap = await createImageBitmap(state.still, { colorSpaceConversion: "none" });
  const result = await detector.detect(bitmap, state.turns);
  medians.clear();
  medians.add(result.milliseconds);
  show(result);
  showTimes();
}

async function choose() {
  const [file] = at("file").files;
  at("file").value = ""; // the same file may be chosen again
  if (!file) return;
  stop();
  at("mirror").checked = false;
  state.still = file;
  at("turn").disabled = false;
  try {
    await showStill();
  } catch (error) {
    if (error.name !== "InvalidStateError" && error.name !== "EncodingError") throw error;
    throw new CameraError("This is no picture", `The browser cannot read ${file.name}. Choose another one.`);
  }
}

function pause(paused) {
  state.paused = paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  at("pause").querySelector("span").textContent = paused ? "Go on" : "Pause";
  at("pause").querySelector("path").setAttribute("d", paused ? "M8 5l11 7-11 7z" : "M8 5v14M16 5v14");
  at("turn").disabled = paused;
  if (paused) {
    status("Paused");
    at("summary").textContent = `Paused. Found: ${state.words || "nothing"}.`;
  }
}

// -- the page --------------------------------------------------------------------------------------------

function listen() {
  at("start").addEventListener("click", told(() => startCamera()));
  at("pause").addEventListener("click", () => pause(!state.paused));
  at("camera").addEventListener("change", told(() => startCamera(at("camera").value)));
  at("flip").addEventListener("click", told(() => {
    const list = at("camera");
    list.selectedIndex = (list.selectedIndex + 1) % list.length;
    return startCamera(list.value);
  }));
  at("turn").addEventListener("click", told(() => {
    state.turns = (state.turns + 1) % 4;
    return state.still ? showStill() : undefined;
  }));
  at("file").addEventListener("change", told(choose));
  for (const id of ["threshold", "mirror"]) at(id).addEventListener("input", redraw);
  new ResizeObserver(redraw).observe(at("picture"));
  window.addEventListener("beforeinstallprompt", (event) => {
    event.preventDefault();
    at("install").hidden = false;
    at("install").onclick = () => event.prompt();
  });
  window.addEventListener("appinstalled", () => {
    at("install").hidden = true;
  });
}

/** What a service worker answers. */
function asked(worker, question) {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => resolve(data);
    worker.postMessage(question, [port2]);
  });
}

/** Waits until another page takes this one's place. */
function reloaded() {
  location.reload();
  return new Promise(() => {});
}

/**
 * Keeps the page for use offline; the runtime's files are kept as they are loaded, so this comes first.
 *
 * A page works with the files of its own release alone: where another one's worker takes over, it begins anew.
 */
async function keepOffline() {
  const container = navigator.serviceWorker;
  if (!container) return; // plain http
  const release = document.querySelector("meta[name=release]").content;
  try {
    if (container.controller) container.addEventListener("controllerchange", () => location.reload());
    const registration = await container.register("sw.js");
    if (container.controller) {
      if (registration.waiting && (await asked(registration.waiting, "take over"))) await new Promise(() => {});
      return;
    }
    const fresh = registration.installing;
    if (!fresh) return;
    await new Promise((resolve) => {
      fresh.addEventListener("statechange", () => {
        if (["activated", "redundant"].includes(fresh.state)) resolve();
      });
    });
    if (container.controller && (await asked(container.controller, "release")) !== release) await reloaded();
  } catch (error) {
    console.warn("The page will not work offline:", error.message); // as behind a certificate of one's own
  }
}

async function main() {
  listen();
  await keepOffline();
  const response = await fetch("model.json");
  state.model = await response.json();
  at("threshold").value = String(state.model.show_threshold);
  redraw();
  await detector.load(state.model);
  status("Ready");
  at("file").disabled = false; // before that there is nothing that could look at it
  if (await allowed()) await startCamera();
  else say("Ready", "Point the camera at something, or choose a picture. Nothing leaves this device.", { start: "Start camera" });
}

told(main)();
