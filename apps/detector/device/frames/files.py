"""Pictures of files: a folder of images, a video. Every one is wanted, and then it ends."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from paredown.apps.detector.device.frames.frame import Clock, Frame, Log
from paredown.calibration.pictures import read_picture
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.runners.quiet import quiet

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MISSING_SHARE = 0.05  # of a file's pictures; containers count them only roughly
FOLDER_FPS = 1.0  # a folder has no clock: one picture a second, for tracks and a saved video
FALLBACK_FPS = 25.0  # of a video that says no pace and no times
MOST_PICTURES = 1e8  # what a container says beyond it is no count
TOLD = 10  # pictures that are named one by one where they cannot be read


def natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """What orders names as people count: frame_2 before frame_10."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], path.name


class Folder:
    """The images of a folder in the order of their names and numbers, or a single one.

    One that cannot be read is left out, told and counted; it is an error where no other can be read.

    Raises:
        InputError: there is none.
    """

    live, fps = False, FOLDER_FPS

    def __init__(self, path: Path, clock: Clock = time.monotonic, log: Log = lambda line: None) -> None:
        self.name, self.skipped = str(path), 0
        self._clock, self._log, self._count = clock, log, 0
        found = path.iterdir() if path.is_dir() else [path]
        paths = sorted((file for file in found if file.suffix.lower() in IMAGES), key=natural)
        if not paths:
            raise InputError(f"no image in this folder ({', '.join(IMAGES)})", where=path)
        self._left = iter(paths)
        self._first_error: InputError | None = None

    def read(self) -> Frame | None:
        """The next image; see `Source`."""
        for path in self._left:
            try:
                image = read_picture(path)
            except InputError as error:
                self._skip(error)
                continue
            self._count += 1
            return Frame(image, self._count - 1, self._clock(), (self._count - 1) / self.fps)
        if self._first_error is not None and not self._count:
            raise self._first_error
        if self.skipped > TOLD:
            self._log(f"{self.name}: {self.skipped} images could not be read and were left out")
        return None

    def close(self) -> None:
        """Nothing is open."""

    def _skip(self, error: InputError) -> None:
        self.skipped += 1
        self._first_error = self._first_error or error
        if self.skipped <= TOLD:
            self._log(f"{error}; left out")


class Video:
    """A video, picture by picture, by its own times.

    Args:
        path: the file, or a URL of one.
        clock: seconds.
        log: told where it ends early.
        capture: of it, where it is open already.

    Raises:
        InputError: there is no picture in it.
    """

    live, skipped = False, 0

    def __init__(
        self,
        path: Path | str,
        clock: Clock = time.monotonic,
        log: Log = lambda line: None,
        capture: Any = None,
        name: str = "",
    ) -> None:
        self.name, self._clock, self._log, self._count = name or str(path), clock, log, 0
        self._remote = capture is not None
        self._first_ms, self._at = 0.0, 0.0
        self._file: BinaryIO | None = None
        with quiet():
            if capture is None:
                capture = cv2.VideoCapture(self._openable(str(path)), cv2.CAP_FFMPEG)
            self._capture = capture
            self._image = self._decoded()
        if self._image is None:
            hint = "FFmpeg finds none: it is no video, or cut off (an MP4's index is at its end)"
            raise InputError("no picture can be read from this file", where=self.name, hint=hint)
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps: float | None = fps if 0 < fps <= 1000 else None  # a file without times says 0 or 90000
        self._first_ms = self._ms = self._position()

    def read(self) -> Frame | None:
        """The next picture; see `Source`."""
        image, index = self._image, self._count
        if image is None:
            return None
        if index:
            at = (self._ms - self._first_ms) / 1e3
            # where the container has no times, or they do not go on, the pace has to do
            self._at = at if at > self._at else self._at + 1 / (self.fps or FALLBACK_FPS)
        frame = Frame(image, index, self._clock(), self._at)
        self._count += 1
        self._image = self._decoded()
        if self._image is None:
            self._note_missing()
        else:
            self._ms = self._position()
        return frame

    def close(self) -> None:
        """The file is let go with this object: its thread may be reading."""

    def _openable(self, name: str) -> str:
        """A name that OpenCV takes: it dies of one that is not UTF-8."""
        try:
            name.encode()
        except UnicodeEncodeError:
            self._file = open(name, "rb")  # noqa: SIM115, PTH123  -- open for as long as it is read
            return f"/proc/self/fd/{self._file.fileno()}"
        return name

    def _position(self) -> float:
        """Milliseconds of the picture that was decoded last."""
        return float(self._capture.get(cv2.CAP_PROP_POS_MSEC))

    def _decoded(self) -> np.ndarray | None:
        got, image = self._capture.read()
        return image if got else None

    def _note_missing(self) -> None:
        if self._file is not None:
            self._file.close()
        promised = promised_pictures(self._capture)
        if self._count >= promised * (1 - MISSING_SHARE):
            return
        what = f"of {promised} pictures {self._count} could be read"
        if self._remote:
            raise DeviceError(f"broke off: {what}", where=self.name)
        self._log(f"{self.name}: {what}; is it damaged?")


def promised_pictures(capture: Any) -> int:
    """How many pictures there are, as the container says; 0 where it does not, as of a stream."""
    count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return int(count) if 0 < count < MOST_PICTURES else 0
