/** The phone's cameras: opening one, choosing another, and clear words where there is none. */

const SIZE = { width: { ideal: 1280 }, height: { ideal: 720 } };

/** Why there is no camera, in words for the page. */
export class CameraError extends Error {
  /**
   * @param {string} title
   * @param {string} message what to do
   */
  constructor(title, message) {
    super(message);
    this.title = title;
  }
}

const REASONS = {
  NotAllowedError: [
    "The camera is not allowed",
    "Allow it for this page in the browser's settings (often a lock or camera sign beside the address), then try again.",
  ],
  NotFoundError: ["No camera was found", "Connect one and try again, or choose a picture instead."],
  OverconstrainedError: ["That camera is gone", "Choose another one, or a picture instead."],
  NotReadableError: [
    "The camera is busy",
    "Another app or page seems to use it. Close that one, then try again.",
  ],
};
REASONS.SecurityError = REASONS.NotAllowedError;
REASONS.AbortError = REASONS.NotReadableError;

/**
 * Opens a camera.
 *
 * @param {string | null} id of `cameras`; null is the one on the back, where there is one
 * @returns {Promise<MediaStream>}
 * @throws {CameraError}
 */
export async function openCamera(id) {
  if (!navigator.mediaDevices) {
    const what = "Browsers give a camera to pages from https:// or localhost only.";
    throw new CameraError("No camera over plain http", `${what} Use \`paredown serve --https\`, or choose a picture.`);
  }
  const which = id ? { deviceId: { exact: id } } : { facingMode: { ideal: "environment" } };
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { ...SIZE, ...which }, audio: false });
  } catch (error) {
    const reason = REASONS[error.name];
    throw reason ? new CameraError(...reason) : error;
  }
}

/** @returns {Promise<{id: string, label: string}[]>} the cameras; their names are known once one was allowed */
export async function cameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices
    .filter(({ kind }) => kind === "videoinput")
    .map(({ deviceId, label }, i) => ({ id: deviceId, label: label || `Camera ${i + 1}` }));
}

/** Whether a camera looks at its user, who then expects a mirror. */
export function facesUser(stream) {
  const [track] = stream.getVideoTracks();
  const { facingMode } = track.getSettings();
  return facingMode ? facingMode === "user" : /front|facetime/i.test(track.label);
}

/** Whether the camera may be used without asking. */
export async function allowed() {
  try {
    return (await navigator.permissions.query({ name: "camera" })).state === "granted";
  } catch {
    return false; // a browser that does not know this name: it asks
  }
}
