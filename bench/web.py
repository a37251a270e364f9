"""The page in Chromium on this machine: milliseconds per step, boxes beside Python's, a picture of it.

    export PYTHONPATH=.:tests/helpers
    paredown run digits
    python bench/web.py runs/digits/host/bundle.paredown --picture docs/images/web.jpg

The camera is a film of test scenes, 640 x 480 at 30 frames a second. Times are the page's own: medians of the
last 60 frames in this browser on this machine, and no phone's. Prints Markdown. Needs chromium,
chromium-driver, npm, and the test extra.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
from record import Table, add_option
from web_browser import Browser, farthest, film, served

from paredown.apps.detector.device.detect import Detector
from paredown.apps.detector.digits import Digits
from paredown.apps.detector.web.site import build
from paredown.pipeline.bundle.archive import extract, unpack

SCENES, HELD = 40, 15  # half a second each, at Chromium's 30 frames a second
SURE = 0.25  # as in tests/apps/detector/web/test_web_browser.py
COMPARED = 20  # frames
WAIT = """
let [left, done] = arguments;
document.addEventListener("detections", function count() {
  if (--left) return;
  document.removeEventListener("detections", count);
  done();
});
"""


def times(browser: Browser, port: int, frames: int) -> dict[str, str]:
    """The page's table after so many frames: step -> milliseconds."""
    browser.allow(port)
    browser.driver.get(f"http://localhost:{port}/")
    browser.driver.set_script_timeout(600)
    browser.driver.execute_async_script(WAIT, frames)
    rows = browser.driver.find_elements("css selector", "tr")
    cells = [[part.get_attribute("textContent") for part in row.find_elements("xpath", "*")] for row in rows]
    return dict(cells)


def screenshots(browser: Browser, path: Path) -> None:
    """A phone in the dark beside one in the light, as one picture."""
    shots = []
    for dark in (True, False):
        browser.size(390, 844, dark=dark)
        browser.next()
        shot = np.frombuffer(browser.driver.get_screenshot_as_png(), np.uint8)
        shots.append(cv2.imdecode(shot, cv2.IMREAD_COLOR))
    cv2.imwrite(str(path), cv2.hconcat(shots), [cv2.IMWRITE_JPEG_QUALITY, 85])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle of the digits")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--picture", type=Path, help="where to put two screenshots, side by side")
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = unpack(arguments.bundle)
        scenes = [cv2.resize(scene.image, (640, 480)) for scene in Digits("test", SCENES)]
        film(folder / "digits.mjpeg", scenes, HELD)
        site = build(bundle, folder / "site")
        extract(bundle, folder / "board")
        detector = Detector(folder / "board")
        browser = Browser(folder, "digits.mjpeg")
        try:
            browser.size(390, 844)
            with served(site.folder) as port:
                shown = times(browser, port, arguments.frames)
                words = browser.text("where")
                seen = [browser.next() for _ in range(COMPARED)]
                if arguments.picture:
                    screenshots(browser, arguments.picture)
        finally:
            version = browser.driver.capabilities["browserVersion"]
            browser.close()
    off = max(farthest(each, detector(each.image, SURE), SURE) for each in seen)
    print(f"Chromium {version}, {os.cpu_count()} CPUs. {words}\n")
    near = f"{len(seen)} frames: no box is farther than {off:.2f} pixels of 640 x 480 from Python's."
    with Table("web", ("step", "median ms"), arguments.record, notes=[f"Chromium {version}.", near]) as table:
        for step, value in shown.items():
            table.row(step, value)
    print(f"\n{near}")


if __name__ == "__main__":
    main()
