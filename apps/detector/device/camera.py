"""The camera app: `python -m paredown.apps.detector.device.camera --source 0`, in a bundle's folder.

Capture, preprocess, infer, decode, track, count, draw: numpy, OpenCV and a LiteRT interpreter. A live source
is worked on latest frame first: what comes while the model is busy is dropped, never queued. A file is worked
on picture by picture, unless --realtime plays it as a camera would.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import cv2

from paredown.apps.detector.device.boxes.counting import Counting, parse_line, parse_zone
from paredown.apps.detector.device.boxes.tracker import Tracker, TrackerConfig
from paredown.apps.detector.device.detect import Detector
from paredown.apps.detector.device.frames.handover import Reader
from paredown.apps.detector.device.frames.heartbeat import Heartbeat
from paredown.apps.detector.device.frames.holding import held
from paredown.apps.detector.device.frames.private import source_text
from paredown.apps.detector.device.frames.source import Clock, Frame, Log, Paced, is_live, open_source
from paredown.apps.detector.device.frames.timing import STEPS, Split
from paredown.apps.detector.device.processor import FrameProcessor, FrameResult
from paredown.apps.detector.device.sinks.mqtt import FORM, PASSWORD, USER
from paredown.apps.detector.device.sinks.outputs import Output, outputs_for
from paredown.targets.errors import InputError, ParedownError, UsageError

#: Told by who deploys us: a file to make once the first picture was worked on, and what we are called.
READY, NAME = "PAREDOWN_READY", "PAREDOWN_APP"
STATUS_S = 60.0  # between two lines on standard error that say how it goes


class Frames(Protocol):
    """Where pictures are fetched; `handover.Handover` is one."""

    dropped: int

    def get(self) -> Frame | None:
        """The next one; None at the end."""


@dataclass(frozen=True)
class WatchSummary:
    """What came of it all, as the summary says it."""

    source: str
    frames: int
    dropped: int
    seconds: float
    seen: dict[str, int]
    counts: dict[str, Any]
    ms: dict[str, float]
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "seconds": round(self.seconds, 3)}

    def lines(self) -> list[str]:
        """In words."""
        found = [f"{self.source}: {pictures(self.frames)} in {self.seconds:.1f} s, {self.dropped} dropped"]
        if self.skipped:
            found.append(f"{pictures(self.skipped)} could not be read and were left out")
        found += [f"{name}: {count} seen" for name, count in sorted(self.seen.items())]
        for kind in self.counts.values():
            for name, values in kind.items():
                found.append(f"{name}: " + ", ".join(f"{value} {key}" for key, value in values.items()))
        if self.ms:
            steps = ", ".join(f"{step} {self.ms[step]:.1f}" for step in STEPS)
            found.append(f"median ms: {steps}; latency {self.ms['latency']:.1f}, {self.ms['fps']:.1f} fps")
        return found


def pictures(count: int) -> str:
    """So many, in words."""
    return f"{count} picture" if count == 1 else f"{count} pictures"


def watch(
    frames: Frames,
    looker: FrameProcessor,
    outputs: Sequence[Output] = (),
    *,
    source: str = "",
    limit: int | None = None,
    on_seen: Callable[[FrameResult], None] = lambda seen: None,
    clock: Clock = time.monotonic,
) -> WatchSummary:
    """Looks at every picture that is handed over, until there are no more.

    Args:
        frames: where they come from.
        looker: what is done with each.
        outputs: told of each, in this order; the caller closes them.
        source: its name, for the summary.
        limit: pictures at most.
        on_seen: called after each.
        clock: seconds.
    """
    split, count, began = looker.split, 0, clock()
    names, beat = looker.model.names, Heartbeat()
    while limit is None or count < limit:
        frame = frames.get()
        split.lap("wait")
        if frame is None:
            break
        seen = looker(frame)
        document = described(seen, names, frames.dropped, clock() - frame.taken)
        for output in outputs:
            output.write(seen, document)
        split.lap("write")
        split.finish(frame.taken)
        count += 1
        on_seen(seen)
        beat()
    total = {names[category]: number for category, number in looker.tracker.total.items()}
    counts, ms = looker.counting.to_dict(), dict(split.summary())
    return WatchSummary(source, count, frames.dropped, clock() - began, total, counts, ms)


def described(seen: FrameResult, names: Sequence[str], dropped: int, latency: float) -> dict[str, Any]:
    """What one picture showed, as JSON has it.

    Args:
        seen: that picture.
        names: of the classes.
        dropped: pictures so far.
        latency: seconds from its capture until now.
    """
    height, width = seen.size
    return {
        "frame": seen.frame.index, "time": round(seen.frame.at, 4), "size": [width, height],
        "dropped": dropped,
        "detections": [
            {"id": track.id, "class": names[track.category], "score": round(track.score, 4),
             "box": [round(value, 4) for value in track.box]}
            for track in seen.tracks
        ],
        **seen.counts, "ms": seen.ms, "latency_ms": round(1e3 * latency, 3),
    }  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, where=self.prog, hint="--help lists the options")


def parser(prog: str) -> argparse.ArgumentParser:
    """The options; the same on a board and here.

    Args:
        prog: the name of the command, for its help.
    """
    made = _Parser(prog, description="Watches a camera, a stream, a video or a folder of images.")
    add = made.add_argument
    add(
        "--source",
        required=True,
        help="camera number, device, stream, video file or folder: 0 | picamera | rtsp://... | gst:PIPELINE; "
        "@FILE = the first line of a file that only you read",
    )
    add(
        "--confidence",
        type=number_within(0.0, 1.0),
        help="minimum score of a new track (default: the bundle's)",
    )
    add("--threads", type=whole_number, default=1, help="runtime threads (default 1)")
    add(
        "--rotate",
        type=int,
        choices=(0, 90, 180, 270),
        default=0,
        help="degrees to rotate clockwise (default 0)",
    )
    add("--mirror", action="store_true", help="swap left and right, after the rotation")
    add("--realtime", action="store_true", help="play a file in real time and drop frames, as a camera does")
    add("--frames", type=whole_number, help="stop after this many frames")
    add(
        "--patience",
        type=number_within(0.0, 1e9),
        help="seconds to wait for a lost stream (default: wait forever)",
    )
    add("--line", type=parse_line, action="append", default=[], metavar="NAME=x1,y1,x2,y2",
        help="count crossings of a line; `in` is left to right, seen from its first point")  # fmt: skip
    add("--zone", type=parse_zone, action="append", default=[], metavar="NAME=x1,y1,...",
        help="count objects inside a polygon")  # fmt: skip
    add("--show", action="store_true", help="show the video in a window; q closes it")
    add(
        "--save",
        type=Path,
        metavar="OUT.mp4",
        help="write the video with boxes and counts: .mp4, .mkv or .avi (needs av)",
    )
    add("--snapshot", type=Path, metavar="OUT.png", help="write the newest frame once a second")
    add("--json", action="store_true", help="print one JSON line per frame, then a summary")
    add(
        "--mqtt",
        metavar="HOST[:PORT][/TOPIC]",
        help=f"publish these lines to an MQTT broker (needs paho-mqtt); {FORM}; user: {USER}",
    )
    add("--mqtt-password", type=Path, metavar="FILE",
        help=f"the file's first line is the broker's password (or the variable {PASSWORD})")  # fmt: skip
    add("--mqtt-ca", type=Path, metavar="FILE",
        help="TLS, with a broker whose certificate these authorities signed")  # fmt: skip
    add("--mqtt-discovery", default="", metavar="PREFIX",
        help="announce sensors to Home Assistant under this topic, there `homeassistant`")  # fmt: skip
    return made


def run(options: argparse.Namespace, folder: Path, log: Log) -> None:
    """Watches, until the source ends or a signal says so.

    Args:
        options: as `parser` reads them.
        folder: of the unpacked bundle.
        log: told a line when something happens to the source, and how it goes.

    Raises:
        UsageError: an option that this machine cannot do.
        InputError: the bundle, the file or the folder is broken, or an output cannot be written.
        DeviceError: the camera is absent, busy, or lost for good.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its own words on damaged streams; ours are enough
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    options.source = source_text(options.source)
    detector = Detector(folder, options.threads)
    sure = options.confidence if options.confidence is not None else detector.app["show_threshold"]
    config = TrackerConfig(sure=sure, unsure=min(TrackerConfig.unsure, sure))
    with contextlib.ExitStack() as stack:
        if is_live(options.source):
            stack.enter_context(held(options.source, os.environ.get(NAME, "paredown camera")))
        source = open_source(options.source, options.patience, log)
        if options.realtime and not source.live:
            source = Paced(source)
        frames = stack.enter_context(Reader(source))
        outputs = outputs_for(options, source, frames.end, log)
        looker = FrameProcessor(
            detector, Tracker(config), Counting(options.line, options.zone), Split(time.monotonic),
            rotate=options.rotate, mirror=options.mirror, drawing=any(each.picture for each in outputs),
        )  # fmt: skip
        stack.enter_context(ended_by_signals(frames.end))
        summary: dict[str, Any] = {}
        for output in outputs:
            stack.callback(output.close, summary)
        tell = StatusLogger(looker.split, lambda: frames.dropped, log)
        watched = watch(frames, looker, outputs, source=source.name, limit=options.frames, on_seen=tell)
        watched = replace(watched, skipped=source.skipped)
        summary |= watched.to_dict()
    if not options.json:
        print("\n".join(watched.lines()))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command on a board; returns the exit code."""
    return command(parser("python -m paredown.apps.detector.device.camera"), run, arguments)


def command(
    made: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Path, Log], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs an app in the folder of its bundle; what goes wrong is one line and the exit code.

    Args:
        made: reads its options.
        run: the app, given options, folder and log.
        arguments: of the command line; None = this program's own.
    """
    try:
        run(made.parse_args(arguments), Path.cwd(), tell_stderr)
        sys.stdout.flush()  # a full disk behind it shows here, not at the interpreter's end
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is None:  # standard output: what is left in its buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read our lines has what they wanted
            return 1
        where = error.filename or "standard output"
        print(InputError(error.strerror or str(error), where=where), file=sys.stderr)
        return InputError.exit_code
    return 0


def tell_stderr(line: str) -> None:
    """Says a line on standard error; where that is a full disk or gone, the line is lost, never the app."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class StatusLogger:
    """Says that it works, once, and then how it goes, now and then."""

    def __init__(self, split: Split, dropped: Callable[[], int], log: Log) -> None:
        self._split, self._dropped, self._log = split, dropped, log
        self._count, self._told = 0, 0.0

    def __call__(self, seen: FrameResult) -> None:
        """Takes the next picture."""
        self._count += 1
        if self._count == 1:
            self._told = time.monotonic()
            self._log(f"first picture: {seen.size[1]}x{seen.size[0]}")
            if ready := os.environ.get(READY):
                with contextlib.suppress(OSError):  # on a full disk it works all the same
                    Path(ready).touch()
        elif time.monotonic() - self._told >= STATUS_S:
            self._told = time.monotonic()
            ms = self._split.summary()
            how = f"{ms['fps']:.1f} fps, latency {ms['latency']:.1f} ms"
            self._log(f"{pictures(self._count)}, {self._dropped()} dropped; {how}")


@contextlib.contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, a kind kill and a terminal that is closed end the watching, not the process.

    Files are completed, the summary is said. What whoever started us has us ignore (`nohup`) stays ignored.
    """
    kinds = [
        kind
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if kind == signal.SIGTERM or signal.getsignal(kind) != signal.SIG_IGN
    ]
    before = {kind: signal.signal(kind, lambda *_: stop()) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def whole_number(text: str) -> int:
    """An option's value, a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 1 on")
    return int(text)


def number_within(low: float, high: float) -> Callable[[str], float]:
    """Reads an option's value, a number from low to high."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"`{text}` is not a number from {low:g} to {high:g}")
        return value

    return number


if __name__ == "__main__":
    raise SystemExit(main())
