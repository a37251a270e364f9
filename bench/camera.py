"""Where a camera's time goes, and whether its memory and its latency stay: the figures of the camera app.

    python bench/camera.py BUNDLE VIDEO [--frames 10000]

Three passes over a video, as often as it takes. The first reads the file as the app does, in its own thread,
with tracks and counts and without a picture, and prints each step's median and share. The second hands over
pictures that are in memory already, as a camera's driver does, draws into each, and prints the memory of the
process after every tenth of them. The third is a camera that takes twice as many pictures as the second pass
could work on, and prints the latency from picture to result, the median of every tenth.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from record import Table, add_option

from paredown.apps.detector.device.boxes.counting import Counting, parse_line, parse_zone
from paredown.apps.detector.device.boxes.tracker import Tracker
from paredown.apps.detector.device.camera import watch
from paredown.apps.detector.device.detect import Detector
from paredown.apps.detector.device.frames.handover import Reader
from paredown.apps.detector.device.frames.source import Frame, Paced, open_source
from paredown.apps.detector.device.frames.timing import STEPS, Split
from paredown.apps.detector.device.processor import FrameProcessor, FrameResult
from paredown.pipeline.bundle.archive import extract, unpack

IMAGES = 50  # of the video's first ones, for the second and third pass
TENTHS = 10


class Again:
    """Pictures in memory, over and over: a source that costs nothing, and hands over as `Frames` do."""

    name, live, dropped = "memory", False, 0

    def __init__(self, video: Path, count: int, fps: float) -> None:
        self.fps = fps
        capture = cv2.VideoCapture(str(video))
        images = [capture.read()[1] for _ in range(IMAGES)]
        self._frames = enumerate(itertools.islice(itertools.cycle(images), count))

    def get(self) -> Frame | None:
        for index, image in self._frames:
            return Frame(image, index, time.monotonic(), index / self.fps)
        return None

    read = get

    def close(self) -> None:
        """Nothing is open."""


def looker(detector: Detector, drawing: bool) -> FrameProcessor:
    counting = Counting([parse_line("door=0.5,0,0.5,1")], [parse_zone("all=0.1,0.1,0.9,0.1,0.9,0.9,0.1,0.9")])
    return FrameProcessor(detector, Tracker(), counting, Split(time.monotonic), drawing=drawing)


def shares(title: str, ms: dict[str, float], part: str, record: str | None) -> None:
    whole = sum(ms[step] for step in STEPS)
    print(f"\n{title}: {whole:.2f} ms per picture\n")
    with Table("camera", ("step", "median ms", "share"), record, part=part) as table:
        for step in STEPS:
            table.row(step, f"{ms[step]:.2f}", f"{100 * ms[step] / whole:.1f} %")
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
    parser.add_argument(
        "--frames", type=int, default=10_000, help="of the second pass, and given by the camera of the third"
    )
    add_option(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        extract(unpack(given.bundle), Path(folder))
        detector = Detector(Path(folder))
        with Reader(open_source(str(given.video))) as frames:
            shares("from a file", watch(frames, looker(detector, drawing=False)).ms, "file", given.record)

        memory: list[float] = []

        def weigh(seen: FrameResult) -> None:
            if (seen.frame.index + 1) % (given.frames // TENTHS) == 0:
                memory.append(rss_mib())

        still = Again(given.video, given.frames, fps=25)
        watched = watch(still, looker(detector, drawing=True), on_seen=weigh)
        shares("from memory, drawn", watched.ms, "drawn", given.record)
        print(f"\nmemory over {given.frames} pictures, MiB: {', '.join(f'{value:.1f}' for value in memory)}")

        latencies: list[float] = []
        fast = Again(given.video, given.frames, fps=2 * watched.ms["fps"])
        with Reader(Paced(fast)) as frames:
            hurried = watch(
                frames, looker(detector, drawing=True),
                on_seen=lambda seen: latencies.append(1e3 * (time.monotonic() - seen.frame.taken)),
            )  # fmt: skip
    tenths = ", ".join(f"{np.median(part):.1f}" for part in np.array_split(latencies, TENTHS))
    dropped = f"{hurried.frames} looked at, {hurried.dropped} dropped"
    print(f"\n{fast.fps:.0f} pictures a second, {dropped}; latency, ms: {tenths}")


if __name__ == "__main__":
    main()
