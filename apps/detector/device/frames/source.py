"""Where pictures come from: a camera, a network stream, a video file, a folder of images. numpy and OpenCV.

A live source never waits for us: what is read late is old. So a lost one is opened again, with growing
pauses, and a file, whose every picture is wanted, just ends.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from paredown.apps.detector.device.frames.heartbeat import Heartbeat
from paredown.apps.detector.device.frames.pipes import kind_of, open_pipe
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.runners.quiet import quiet

Clock = Callable[[], float]
Log = Callable[[str], None]

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # between two attempts to open a lost source; it doubles
ANSWER_MS = 5000  # a stream that is silent for so long is lost
MISSING_SHARE = 0.05  # of a file's pictures; containers count them only roughly
FOLDER_FPS = 1.0  # a folder has no clock: one picture a second, for tracks and a saved video


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture.

    Attributes:
        image: uint8 (H, W, 3), B, G, R; one source may give several sizes.
        index: how many the source gave before.
        taken: seconds, by our clock, when it had been read.
        at: seconds of the scene since the source's first picture: a file's own time, or our clock's.
    """

    image: np.ndarray
    index: int
    taken: float
    at: float


class Source(Protocol):
    """What gives pictures.

    Attributes:
        name: as the user gave it, passwords left out.
        live: whether pictures come whether or not they are read.
        fps: pictures per second of the scene, where it is known.
    """

    @property
    def name(self) -> str:
        """See above."""

    @property
    def live(self) -> bool:
        """See above."""

    @property
    def fps(self) -> float | None:
        """See above."""

    def read(self) -> Frame | None:
        """The next picture; None at the end.

        Raises:
            InputError: a file is damaged.
            DeviceError: a live source is lost for good.
        """

    def close(self) -> None:
        """Lets go; may be called while another thread reads, which then gets None."""


class Folder:
    """The images of a folder by name, or a single one.

    Raises:
        InputError: there is none.
    """

    live, fps = False, FOLDER_FPS

    def __init__(self, path: Path, clock: Clock = time.monotonic) -> None:
        self.name, self._clock, self._next = str(path), clock, 0
        found = path.iterdir() if path.is_dir() else [path]
        self._paths = sorted(file for file in found if file.suffix.lower() in IMAGES)
        if not self._paths:
            raise InputError(f"no image in this folder ({', '.join(IMAGES)})", where=path)

    def read(self) -> Frame | None:
        """The next image; see `Source`."""
        if self._next == len(self._paths):
            return None
        path, index = self._paths[self._next], self._next
        self._next += 1
        image = cv2.imread(str(path))
        if image is None:
            raise InputError("cannot read this image (truncated or damaged?)", where=path)
        return Frame(image, index, self._clock(), index / self.fps)

    def close(self) -> None:
        """Nothing is open."""


class Video:
    """A video file, picture by picture, by its own time.

    Raises:
        InputError: there is no picture in it.
    """

    live = False

    def __init__(self, path: Path, clock: Clock = time.monotonic, log: Log = lambda line: None) -> None:
        self.name, self._clock, self._log, self._count = str(path), clock, log, 0
        with quiet():
            self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
            self._image = self._decoded()
        if self._image is None:
            hint = "is it a video, and whole?"
            raise InputError("no picture can be read from this file", where=path, hint=hint)
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps: float | None = fps if 0 < fps <= 1000 else None  # a file without times says 0 or 90000

    def read(self) -> Frame | None:
        """The next picture; see `Source`."""
        image, index = self._image, self._count
        if image is None:
            return None
        frame = Frame(image, index, self._clock(), index / (self.fps or 25.0))
        self._count += 1
        self._image = self._decoded()
        if self._image is None:
            self._note_missing()
        return frame

    def close(self) -> None:
        """The file is let go with this object: its thread may be reading."""

    def _decoded(self) -> np.ndarray | None:
        got, image = self._capture.read()
        return image if got else None

    def _note_missing(self) -> None:
        promised = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if self._count < promised * (1 - MISSING_SHARE):
            self._log(f"{self.name}: of {promised} pictures {self._count} could be read; is it damaged?")


class Stream:
    """A camera or a network stream, opened again when it is lost.

    Args:
        name: of the source, as the user gave it.
        patience: seconds for which a lost one is tried again; None = for ever.
        clock: seconds.
        log: told when it is lost and when it is back.
        connect: opens it; None where it cannot be opened now.

    Raises:
        DeviceError: it gives no picture at the start: absent, busy, or not what it was taken for.
    """

    live = True

    def __init__(
        self,
        name: str,
        patience: float | None = None,
        clock: Clock = time.monotonic,
        log: Log = lambda line: None,
        connect: Callable[[str], Any] | None = None,
    ) -> None:
        """Opens it and reads its first picture, so that what is wrong is known at once."""
        self.name = hidden_password(name)
        self.lost = 0  # how often
        self._address, self._patience, self._clock, self._log = name, patience, clock, log
        self._connect = connect or open_capture
        self._closed = threading.Event()
        self._beat = Heartbeat()
        self._capture, image = self._opened()
        if image is None:
            said = getattr(self._capture, "said", str)()  # of a program that gives pictures
            self._capture.release()
            raise _no_picture(name, said)
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps: float | None = fps if 0 < fps <= 240 else None
        self._first = Frame(image, 0, clock(), 0.0)
        self._last: Frame | None = None

    def read(self) -> Frame | None:
        """The next picture, however long it takes; see `Source`."""
        if self._last is None:
            self._last = self._first
            return self._last
        image = None if self._closed.is_set() else self._next()
        if image is None:
            self._capture.release()
            return None
        now = self._clock()
        self._last = Frame(image, self._last.index + 1, now, now - self._first.taken)
        return self._last

    def close(self) -> None:
        """Ends the waiting; whoever reads lets go."""
        self._closed.set()

    def _opened(self) -> tuple[Any, np.ndarray | None]:
        with quiet():
            capture = self._connect(self._address)
            got, image = capture.read()
        return capture, image if got else None

    def _next(self) -> np.ndarray | None:
        got, image = self._capture.read()
        if got:
            return image
        self.lost += 1
        since, pause = self._clock(), FIRST_PAUSE_S
        self._log(f"{self.name}: lost, trying again")
        while True:
            self._beat()  # a lost source is no hang; one that never answers is
            self._capture.release()
            if self._closed.wait(pause):
                return None
            away = self._clock() - since
            if self._patience is not None and away > self._patience:
                raise DeviceError(f"lost, and not back after {away:.0f} s", where=self.name)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            self._capture, image = self._opened()
            if image is not None:
                self._log(f"{self.name}: back after {self._clock() - since:.1f} s")
                return image


class Paced:
    """A file played at its own pace, as if it were a camera."""

    live = True

    def __init__(self, source: Source, clock: Clock = time.monotonic) -> None:
        self.name, self.fps = source.name, source.fps
        self._source, self._clock, self._start = source, clock, -1.0
        self._closed = threading.Event()

    def read(self) -> Frame | None:
        """The next picture, when its time has come; see `Source`."""
        frame = self._source.read()
        if frame is None:
            return None
        if self._start < 0:
            self._start = self._clock()
        if self._closed.wait(max(0.0, self._start + frame.at - self._clock())):
            return None
        return Frame(frame.image, frame.index, self._clock(), frame.at)

    def close(self) -> None:
        """Ends the waiting; see `Source`."""
        self._closed.set()
        self._source.close()


def open_source(
    text: str, patience: float | None = None, log: Log = lambda line: None, clock: Clock = time.monotonic
) -> Source:
    """Opens what a user names.

    Args:
        text: a camera's number or /dev/video file, `picamera`, `gst:PIPELINE`, `pipe:PROGRAM`, a URL, a video
            file, an image, or a folder of images.
        patience: see `Stream`.
        log: told what happens to the source.
        clock: seconds.

    Raises:
        UsageError: a URL of a kind that nobody can open.
        InputError: no such file, nothing in it, or damaged.
        DeviceError: no such camera, busy, or no answer.
    """
    if is_live(text):
        return Stream(text, patience, clock, log)
    path = Path(text)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in IMAGES):
        return Folder(path, clock)
    if not path.is_file():
        hint = "a source is a camera's number, picamera, a file, a folder, or a URL as rtsp://host/path"
        raise InputError("no such file or folder", where=text, hint=hint)
    return Video(path, clock, log)


def is_live(text: str) -> bool:
    """Whether a user's words name a camera or a stream.

    Raises:
        UsageError: a URL of a kind that nobody can open.
    """
    if kind_of(text):
        return True
    scheme, mark, _ = text.partition("://")
    if mark and scheme not in SCHEMES:
        raise UsageError(f"`{text}` is no source", hint=f"URLs begin with {', '.join(SCHEMES)}")
    return bool(mark) or device_file(text) is not None


def device_file(text: str) -> Path | None:
    """The file of a camera of this machine, all of its names resolved; None where it is none."""
    if text.isdecimal():
        return Path(f"/dev/video{int(text)}")
    return Path(text).resolve() if text.startswith("/dev/") else None


def open_capture(address: str) -> Any:
    """A capture of a camera or a URL, with as little between it and us as it allows."""
    if kind_of(address):
        return open_pipe(address)
    camera = device_file(address)
    if camera is None:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, ANSWER_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, ANSWER_MS]
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    capture = cv2.VideoCapture(str(camera), cv2.CAP_V4L2)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def hidden_password(address: str) -> str:
    """A URL that may be shown."""
    return re.sub(r"://([^/@:]*):[^/@]*@", r"://\1:***@", address)


def _no_picture(address: str, said: str = "") -> DeviceError:
    """Why a live source gives nothing, as far as can be told from outside, or was said."""
    camera, name = device_file(address), hidden_password(address)
    if kind_of(address):
        what = f"gives no picture{f': {said}' if said else ''}"
        return DeviceError(what, where=name, hint="it has to write motion JPEG or Y4M (4:2:0)")
    if camera is None:
        hint = "are host, path and password right, and does it play elsewhere?"
        return DeviceError("this stream gives no picture", where=name, hint=hint)
    if not camera.exists():
        others = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
        hint = f"there is {others}" if others else "is it plugged in? there is no camera at all"
        hint += "; a Raspberry Pi's own camera is --source picamera"
        return DeviceError(f"no such camera ({camera})", where=name, hint=hint)
    hint = f"another program may hold it (`fuser {camera}` names it), or your user is not in group video"
    return DeviceError("this camera gives no picture", where=name, hint=hint)
