"""Debian's Chromium with a camera fed from a file, driven as a user would."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from needs import needs

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.web.serve import open_server

FAKE = "--use-fake-device-for-media-stream"
PATIENCE = 60  # seconds; nothing here is timed, but a page that hangs must end
_NEXT = """
const done = arguments[0];
document.addEventListener("detections", ({ detail }) => {
  const { detections, milliseconds } = detail;
  done({ image: document.getElementById("frame").toDataURL("image/png"), detections, milliseconds });
}, { once: true });
"""


@dataclass(frozen=True)
class Seen:
    """What the page showed once.

    Attributes:
        image: (H, W, 3) BGR, the frame that was looked at, every pixel.
        detections: normalised to the frame; all from a score of .05.
        milliseconds: by step.
    """

    image: np.ndarray
    detections: Detections
    milliseconds: dict[str, float]


class Browser:
    """A headless Chromium.

    Args:
        folder: where it runs; a camera's file is named relative to it.
        camera: frames as an .mjpeg file; None is a machine without a camera, but for what the flags add.
        flags: of the command line, more of them.
    """

    def __init__(self, folder: Path, camera: str | None, flags: Sequence[str] = ()) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = needs("chromium", "chromium")
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", *flags]
        if camera:
            switches += [FAKE, f"--use-file-for-fake-video-capture={camera}"]
        for switch in switches:
            options.add_argument(switch)
        service = Service(needs("chromedriver", "chromium-driver"), popen_kw={"cwd": folder})
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(PATIENCE)

    def size(self, width: int, height: int, scale: float = 1, dark: bool = False) -> None:
        """The screen: CSS pixels, device pixels of each, colours."""
        screen = {"width": width, "height": height, "deviceScaleFactor": scale}
        screen["mobile"] = min(width, height) < 600
        self.cdp("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", {"features": [scheme]})

    def allow(self, port: int, setting: str = "granted") -> None:
        """What the user has said to the camera on the page at this port: "granted", "denied" or "prompt"."""
        origin = f"http://localhost:{port}"
        values = {"permission": {"name": "camera"}, "setting": setting, "origin": origin}
        self.cdp("Browser.setPermission", values)

    def cdp(self, command: str, values: dict[str, Any]) -> Any:
        return self.driver.execute_cdp_cmd(command, values)

    def wait(self, expression: str) -> Any:
        """The value of an expression as soon as it is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE).until(lambda d: d.execute_script(f"return {expression}"))

    def text(self, identity: str) -> str:
        return self.driver.execute_script(
            "return document.getElementById(arguments[0]).textContent", identity
        )

    def click(self, identity: str) -> None:
        self.driver.find_element("id", identity).click()

    def choose(self, picture: Path) -> Seen:
        """Chooses a picture; what the page then shows."""
        script = f"window.next = new Promise((done) => (function () {{ {_NEXT} }})(done));"
        self.driver.execute_script(script)
        self.driver.find_element("id", "file").send_keys(str(picture))
        return _seen(self.driver.execute_async_script("window.next.then(arguments[0])"))

    def next(self) -> Seen:
        """What the page shows next."""
        return _seen(self.driver.execute_async_script(_NEXT))

    def close(self) -> None:
        self.driver.quit()


def _seen(raw: dict[str, Any]) -> Seen:
    png = base64.b64decode(raw["image"].partition(",")[2])
    found = raw["detections"]
    return Seen(
        cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR),
        Detections(
            np.array([each["box"] for each in found], np.float32).reshape(-1, 4),
            np.array([each["score"] for each in found], np.float32),
            np.array([each["category"] for each in found], np.int64),
        ),
        raw["milliseconds"],
    )


def farthest(seen: Seen, expected: Detections, least: float) -> float:
    """The farthest any side of any box is from Python's, in pixels of the frame; classes must be the same.

    Args:
        seen: by the page.
        expected: on the same frame, from the same score.
        least: that score.
    """
    found = seen.detections.above(least)
    assert found.classes.tolist() == expected.classes.tolist()
    height, width = seen.image.shape[:2]
    off = np.abs(found.boxes - expected.boxes) * [width, height, width, height]
    return float(off.max(initial=0.0))


def film(path: Path, frames: Sequence[np.ndarray], each: int) -> Path:
    """Writes frames as Chromium's fake camera takes them, each so many times."""
    jpegs = (cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes() for frame in frames)
    path.write_bytes(b"".join(jpeg * each for jpeg in jpegs))
    return path


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port at which a page is handed out."""
    with open_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
