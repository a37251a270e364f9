"""Where what a camera saw goes: a window, a snapshot, JSON lines. numpy and OpenCV.

Everything here keeps up or is left out: nothing may make the camera wait for more than a write.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np

from paredown.apps.detector.device.frames.frame import Clock, Log, Source
from paredown.apps.detector.device.frames.source import Paced
from paredown.apps.detector.device.processor import FrameResult
from paredown.apps.detector.device.sinks.mqtt import Mqtt, broker_of
from paredown.apps.detector.device.sinks.recording import Video
from paredown.calibration.pictures import write_picture
from paredown.targets.errors import DeviceError, InputError, ParedownError, UsageError

SNAPSHOT_S = 1.0
RETRY_S = 10.0  # after an output of a live source failed


class Output(Protocol):
    """Takes what was seen; `picture` says whether it needs it drawn."""

    picture: bool

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Takes the next picture.

        Args:
            seen: what it showed.
            document: the same as JSON has it.
        """

    def close(self, summary: dict[str, Any]) -> None:
        """The end."""


class Lasting:
    """An output of a live source: where it fails, that is told once, and the app goes on and tries again.

    Args:
        output: the one.
        log: told when it fails, and when it works again.
        clock: seconds.
    """

    def __init__(self, output: Output, log: Log, clock: Clock = time.monotonic) -> None:
        self.picture, self._output, self._log, self._clock = output.picture, output, log, clock
        self._failed: ParedownError | OSError | None = None
        self._again, self._missed = 0.0, 0

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Passes the next picture on, if it is not yet to wait; see `Output`."""
        if self._failed is not None and self._clock() < self._again:
            self._missed += 1
            return
        try:
            self._output.write(seen, document)
        except BrokenPipeError:
            raise
        except (InputError, DeviceError, OSError) as error:
            if self._failed is None:
                self._log(f"{_in_words(error)}; trying again every {RETRY_S:g} s")
            self._failed, self._again = error, self._clock() + RETRY_S
            self._missed += 1
            return
        if self._failed is not None:
            self._log(f"{_in_words(self._failed)}: works again, {self._missed} pictures were left out")
            self._failed, self._missed = None, 0

    def close(self, summary: dict[str, Any]) -> None:
        """The end; a failure that lasts until then is one."""
        self._output.close(summary)
        if self._failed is not None:
            raise self._failed


def _in_words(error: ParedownError | OSError) -> str:
    if isinstance(error, ParedownError):
        return str(error)
    return f"{error.filename or 'standard output'}: {error.strerror or error}"


class Lines:
    """JSON lines: one document per picture and a last one, `{"summary": ...}`.

    A line is whole or absent, also where the disk behind standard output is full for a while.
    """

    picture = False

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._rest = stream, b""
        try:
            self._file: int | None = stream.fileno()
        except (OSError, AttributeError):  # a program's own stream
            self._file = None

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """A line, at once; see `Output`."""
        self._put(document)

    def close(self, summary: dict[str, Any]) -> None:
        """The last line."""
        self._put({"summary": summary})

    def _put(self, document: dict[str, Any]) -> None:
        if self._file is None:
            print(json.dumps(document), file=self._stream, flush=True)
            return
        self._drain()  # of a line that was cut by a full disk: raises where there is still no room
        self._rest = json.dumps(document).encode() + b"\n"
        whole = len(self._rest)
        try:
            self._drain()
        except OSError:
            if len(self._rest) == whole:
                self._rest = b""
            raise

    def _drain(self) -> None:
        assert self._file is not None
        while self._rest:
            self._rest = self._rest[os.write(self._file, self._rest) :]


class Snapshot:
    """The newest picture, once a second and at the end, whole whenever somebody looks."""

    picture = True

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, -SNAPSHOT_S
        self._last: np.ndarray | None = None
        if not path.parent.is_dir() or not cv2.haveImageWriter(f"x{path.suffix}"):
            raise InputError("cannot write this image", where=path, hint="name it .png or .jpg")

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Takes the next picture; see `Output`."""
        self._last = seen.picture
        if seen.frame.taken - self._at >= SNAPSHOT_S:
            self._at = seen.frame.taken
            self._save()

    def close(self, summary: dict[str, Any]) -> None:
        """Writes the last one."""
        self._save()

    def _save(self) -> None:
        if self._last is None:
            return
        write_picture(self._path, self._last)


class Window:
    """A window; its q or Escape key ends everything."""

    picture = True

    def __init__(self, name: str, stop: Callable[[], None]) -> None:
        """Opens it, after another process has tried: without a screen Qt ends the process that asks it.

        Raises:
            UsageError: this OpenCV has no windows, or there is no screen.
        """
        self._name, self._stop = name, stop
        command = [sys.executable, "-c", "import cv2; cv2.namedWindow('x'); cv2.destroyAllWindows()"]
        tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if tried.returncode:
            said = [line for line in tried.stderr.decode(errors="replace").splitlines() if line.strip()]
            hint = "--save, --snapshot and --json need none; `pip install opencv-python` has windows"
            what = "no window can be opened here" + (f": {said[-1].strip()[:200]}" if said else "")
            raise UsageError(what, where="--show", hint=hint)
        cv2.namedWindow(name, cv2.WINDOW_NORMAL)

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Shows the next picture; see `Output`."""
        assert seen.picture is not None
        cv2.imshow(self._name, seen.picture)
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
            self._stop()

    def close(self, summary: dict[str, Any]) -> None:
        """Closes it."""
        cv2.destroyWindow(self._name)


def outputs_for(
    options: argparse.Namespace, source: Source, stop: Callable[[], None], log: Log
) -> list[Output]:
    """The outputs that the options ask for; those of a live source outlast a full disk.

    Raises:
        UsageError: an output would write over what is read, or cannot be had here.
        InputError: a file cannot be written.
        DeviceError: the MQTT broker does not let us in.
    """
    for option, path in (("--save", options.save), ("--snapshot", options.snapshot)):
        if path is not None and writes_over(path, options.source):
            what = f"{path} would be written over while it is read"
            raise UsageError(what, where=option, hint="name another file")
    outputs: list[Output] = []
    if options.json:
        outputs.append(Lines(sys.stdout))
    if options.mqtt:
        broker = broker_of(options.mqtt, options.mqtt_password, options.mqtt_ca, options.mqtt_discovery)
        outputs.append(Mqtt(broker, log, source.live))
    if options.snapshot:
        outputs.append(Snapshot(options.snapshot))
    if options.save:
        outputs.append(Video(options.save, source.fps, source.live and not isinstance(source, Paced)))
    if options.show:
        outputs.append(Window(source.name, stop))
    if source.live and not isinstance(source, Paced):
        return [Lasting(output, log) for output in outputs]
    return outputs


def writes_over(path: Path, source: str) -> bool:
    """Whether a file is what a source reads, or one of a folder that it reads."""
    if not path.exists():
        return False
    read = Path(source)
    if read.is_dir():
        return path.resolve().parent == read.resolve()
    return read.exists() and path.samefile(read)
