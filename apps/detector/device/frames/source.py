"""Where pictures come from: a camera, a network stream, a video file, a folder of images. numpy and OpenCV.

A live source never waits for us: what is read late is old. So a lost one is opened again, with growing
pauses, and a file, whose every picture is wanted, just ends.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from paredown.apps.detector.device.frames.files import IMAGES, Folder, Video, promised_pictures
from paredown.apps.detector.device.frames.frame import Clock, Frame, Log, Source
from paredown.apps.detector.device.frames.heartbeat import Heartbeat
from paredown.apps.detector.device.frames.pipes import kind_of, open_pipe
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.runners.quiet import quiet

PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "http": 80, "https": 443}
TRY_S = 3.0
FILES = ("http", "https")  # what such a URL names may be a file
SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # between two attempts to open a lost source; it doubles
ANSWER_MS = 5000  # a stream that is silent for so long is lost
STEADY_S = 10.0  # a source that gave pictures for so long begins with the first pause again


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

    live, skipped = True, 0

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
        self._pause, self._back = FIRST_PAUSE_S, clock()

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
        since = self._clock()
        if since - self._back > STEADY_S:
            self._pause = FIRST_PAUSE_S
        self._log(f"{self.name}: lost, trying again")
        while True:
            self._beat()  # a lost source is no hang; one that never answers is
            self._capture.release()
            if self._closed.wait(self._pause):
                return None
            away = self._clock() - since
            if self._patience is not None and away > self._patience:
                raise DeviceError(f"lost, and not back after {away:.0f} s", where=self.name)
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
            try:
                self._capture, image = self._opened()
            except DeviceError:  # a camera that is not plugged in, now
                continue
            if image is not None:
                self._back = self._clock()
                self._log(f"{self.name}: back after {self._back - since:.1f} s")
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

    @property
    def skipped(self) -> int:
        """See `Source`."""
        return self._source.skipped

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
        if text.partition("://")[0] in FILES and (capture := _file_at(text)) is not None:
            return Video(text, clock, log, capture, hidden_password(text))
        return Stream(text, patience, clock, log)
    path = Path(text)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in IMAGES):
        return Folder(path, clock, log)
    if not path.is_file():
        hint = "a source is a camera's number, picamera, a file, a folder, or a URL as rtsp://host/path"
        raise InputError("no such file or folder", where=text, hint=hint)
    return Video(path, clock, log)


def _file_at(url: str) -> Any:
    """A capture of what a URL names, where it is a file that ends; None of a stream, or of nothing."""
    with quiet():
        capture = open_capture(url)
    if promised_pictures(capture):
        return capture
    capture.release()
    return None


def is_live(text: str) -> bool:
    """Whether a user's words name a camera, a stream or a URL.

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


def how_far(url: str) -> str:
    """How far a connection to what a URL names comes, as what to do next."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return "its port is no number from 0 to 65535"
    if not host or port is None:
        return f"a URL begins as {', '.join(f'{scheme}://host' for scheme in FILES)}, rtsp://host"
    try:
        socket.create_connection((host, port), TRY_S).close()
    except socket.gaierror:
        return f"no address is known of `{host}`"
    except TimeoutError:
        return f"`{host}` does not answer on port {port}"
    except OSError as error:
        return f"`{host}`, port {port}: {error.strerror or error}"
    return f"`{host}` takes connections on port {port}: are path and password right?"


def _no_picture(address: str, said: str = "") -> DeviceError:
    """Why a live source gives nothing, as far as can be told from outside, or was said."""
    camera, name = device_file(address), hidden_password(address)
    if kind_of(address):
        what = f"gives no picture{f': {said}' if said else ''}"
        return DeviceError(what, where=name, hint="it has to write motion JPEG or Y4M (4:2:0)")
    if camera is None:
        hint = how_far(address)
        return DeviceError("this stream gives no picture", where=name, hint=hint)
    if not camera.exists():
        others = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
        hint = f"there is {others}" if others else "is it plugged in? there is no camera at all"
        hint += "; a Raspberry Pi's own camera is --source picamera"
        return DeviceError(f"no such camera ({camera})", where=name, hint=hint)
    hint = f"you may open it; `fuser {camera}` names a program that holds it"
    if not os.access(camera, os.R_OK | os.W_OK):
        hint = "your user may not open it: `sudo usermod -aG video $USER`, and log in again"
    return DeviceError("this camera gives no picture", where=name, hint=hint)
