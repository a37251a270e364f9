/**
 * Keeps the page on the phone: it works offline, and is isolated (which threads need) on any host, since
 * every answer carries the headers that this takes. `paredown web` fills in the three constants.
 *
 * It never mixes two releases: each file is compared with its sha256 before it is kept or given, and while a
 * page of another release is open, this one waits. A page that opens alone asks the one that waits to take over.
 */
const VERSION = "@VERSION@";
const FILES = ["@FILES@"];
const HASHES = { "@HASHES@": "" };

const OURS = `paredown ${self.registration.scope} `;
const CACHE = OURS + VERSION;

self.addEventListener("install", (event) => {
  event.waitUntil(keep());
});

self.addEventListener("activate", (event) => {
  event.waitUntil(takeOver());
});

self.addEventListener("message", (event) => {
  event.waitUntil(reply(event));
});

self.addEventListener("fetch", (event) => {
  const here = event.request.url.startsWith(self.registration.scope);
  if (here && event.request.method === "GET") event.respondWith(answer(event.request));
});

/** All files or none: where the server has another release by now, the worker before stays. */
async function keep() {
  const cache = await caches.open(CACHE);
  await Promise.all(
    FILES.map(async (file) => {
      const response = await fetch(new Request(file, { cache: "reload" }));
      if (!(await ours(file, response))) throw new Error(`${file} is not of release ${VERSION}`);
      await cache.put(file, response);
    }),
  );
}

async function takeOver() {
  const old = (await caches.keys()).filter((name) => name.startsWith(OURS) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

/** Says which release this is; or takes over, where the page that asks is the only one. */
async function reply({ data, ports }) {
  if (data === "release") {
    ports[0].postMessage(VERSION);
  } else if (data === "take over") {
    const pages = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
    const alone = pages.length < 2;
    ports[0].postMessage(alone);
    if (alone) await self.skipWaiting();
  }
}

/** What is kept; else what the network has, kept from then on: of the runtime only what this browser uses. */
async function answer(request) {
  const cache = await caches.open(CACHE);
  let response = await cache.match(request, { ignoreSearch: true });
  if (!response) {
    response = await fetch(request);
    const name = new URL(request.url).pathname.slice(new URL(self.registration.scope).pathname.length);
    if (response.status === 200 && name in HASHES) {
      if (!(await ours(name, response))) return Response.error(); // the server has another release by now
      await cache.put(request, response.clone());
    }
  }
  return isolated(response);
}

/** Whether a file is this release's. */
async function ours(name, response) {
  if (response.status !== 200) return false;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await response.clone().arrayBuffer()));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === HASHES[name];
}

function isolated(response) {
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}
