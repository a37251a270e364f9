"""Where a camera's time goes, and whether its memory stays: the figures of the camera app.

    python tests/bench/camera.py BUNDLE VIDEO [--frames 10000]

Two passes over a video, as often as it takes. The first reads the file as the app does, in its own thread,
with tracks and counts and without a picture, and prints each step's median and share. The second hands over
pictures that are in memory already, as a camera's driver does, draws into each, and prints the memory of the
process after every tenth of them.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import cv2

from apps.detector.device.camera import watch
from apps.detector.device.counting import Counting, parse_line, parse_zone
from apps.detector.device.detect import Detector
from apps.detector.device.handover import Reader
from apps.detector.device.looker import Looker, Seen
from apps.detector.device.source import Frame, open_source
from apps.detector.device.timing import STEPS, Split
from apps.detector.device.tracker import Tracker
from pipeline.bundle import extract, unpack

IMAGES = 50  # of the video's first ones, for the second pass


class Again:
    """Pictures in memory, over and over: a source that costs nothing."""

    dropped = 0

    def __init__(self, video: Path, count: int) -> None:
        capture = cv2.VideoCapture(str(video))
        images = [capture.read()[1] for _ in range(IMAGES)]
        self._frames = enumerate(itertools.islice(itertools.cycle(images), count))

    def get(self) -> Frame | None:
        for index, image in self._frames:
            return Frame(image, index, time.monotonic(), index / 25)
        return None


def looker(detector: Detector, drawing: bool) -> Looker:
    counting = Counting([parse_line("door=0.5,0,0.5,1")], [parse_zone("all=0.1,0.1,0.9,0.1,0.9,0.9,0.1,0.9")])
    return Looker(detector, Tracker(), counting, Split(time.monotonic), drawing=drawing)


def shares(title: str, ms: dict[str, float]) -> None:
    whole = sum(ms[step] for step in STEPS)
    print(f"\n{title}: {whole:.2f} ms per picture\n\n| step | median ms | share |\n|---|---|---|")
    for step in STEPS:
        print(f"| {step} | {ms[step]:.2f} | {100 * ms[step] / whole:.1f} % |")
    infer, work = 100 * ms["infer"], whole - ms["wait"]
    print(f"\ninference: {infer / whole:.1f} % of a picture, {infer / work:.1f} % of what is done with it")


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--frames", type=int, default=10_000, help="of the second pass")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        extract(unpack(given.bundle), Path(folder))
        detector = Detector(Path(folder))
        with Reader(open_source(str(given.video))) as frames:
            shares("from a file", watch(frames, looker(detector, drawing=False)).ms)

        memory: list[float] = []

        def note(seen: Seen) -> None:
            if (seen.frame.index + 1) % (given.frames // 10) == 0:
                memory.append(rss_mib())

        watched = watch(Again(given.video, given.frames), looker(detector, drawing=True), on_seen=note)
    shares("from memory, drawn", watched.ms)
    print(f"\nmemory over {given.frames} pictures, MiB: {', '.join(f'{value:.1f}' for value in memory)}")


if __name__ == "__main__":
    main()
