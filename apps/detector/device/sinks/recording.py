"""A video file of what a camera saw, with its own times, that plays up to its last second whatever ends us.

PyAV writes it, through a file of our own: OpenCV's writer keeps a full disk to itself, knows one pace only,
and leaves an MP4 without its index, which nothing plays, where the process is killed. An MP4 is made of
fragments of half a second, a Matroska file of clusters; AVI has one pace. Every second what was written is
forced to the disk, by a thread: a slow card must not hold up the camera.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from paredown.targets.errors import InputError, UsageError

LIVE_FPS = 15.0  # of an AVI saved from a live source, whose own pace depends on the model
LONGEST_STILL_S = 1.0  # while the source was lost
FORCED_S = 1.0  # what was written is on the disk after so many seconds
BITS = 0.3  # per pixel
LEAST_BITS = 1_000_000  # per second
TICKS = 60_000  # a second; MPEG-4 takes 65,535 at most
KINDS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    ".mp4": (
        "mp4", "mpeg4", "yuv420p",
        {"movflags": "empty_moov+default_base_moof", "frag_duration": "500000"},
    ),
    ".mkv": ("matroska", "mpeg4", "yuv420p", {"cluster_time_limit": "500"}),
    ".avi": ("avi", "mjpeg", "yuvj420p", {}),
}  # fmt: skip


def kind_of(path: Path) -> tuple[str, str, str, dict[str, str]]:
    """Container, codec, its pixels, and options of the container.

    Raises:
        InputError: the name says none that we write.
    """
    try:
        return KINDS[path.suffix.lower()]
    except KeyError:
        hint = f"name it {', '.join(KINDS)}"
        raise InputError("cannot write this video", where=path, hint=hint) from None


def pyav() -> Any:
    """PyAV.

    Raises:
        UsageError: it is not installed here, or cannot be loaded.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        what = f"PyAV cannot be loaded here: {error}"
        raise UsageError(what, where="--save", hint="`pip install av`") from error


class Recording:
    """One file.

    Args:
        path: as .mp4, .mkv or .avi.
        size: width and height of the pictures.
        fps: their pace, roughly.

    Raises:
        UsageError: PyAV is not installed here.
        InputError: the file cannot be made.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        av = pyav()
        container, codec, pixels, options = kind_of(path)
        self.path, self._size, self._last, self._av = path, size, -1, av
        self._constant = container == "avi"
        self._rate = Fraction(fps).limit_denominator(1001)
        self._file = _Forced(path)
        try:
            self._container = av.open(
                self._file, "w", format=container, container_options={**options, "flush_packets": "1"}
            )
            self._stream: Any = self._container.add_stream(codec, rate=self._rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = *size, pixels
            self._stream.bit_rate = max(LEAST_BITS, round(BITS * size[0] * size[1] * fps))
            self._base = 1 / self._rate if self._constant else Fraction(1, TICKS)
            self._stream.codec_context.time_base = self._base
        except (OSError, ValueError) as error:
            self._file.close()
            raise self._unwritable(error) from error

    def write(self, picture: np.ndarray, at: float) -> None:
        """Appends a picture, scaled to the file's size.

        Args:
            picture: (H, W, 3) uint8, B, G, R.
            at: seconds since the first one.

        Raises:
            InputError: it cannot be written; what came before still plays.
        """
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
        self._last = max(self._last + 1, round(at / self._base))
        frame.pts, frame.time_base = self._last, self._base
        self._put(frame)

    def close(self) -> None:
        """Completes the file; raises as `write` does."""
        try:
            self._put(None)
            self._container.close()
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error
        finally:
            self._file.close()

    def leave(self) -> None:
        """Lets go of a file that takes no more."""
        with contextlib.suppress(OSError, ValueError):
            self._container.close()
        self._file.close()

    def _put(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
            if self._file.error is not None:
                raise self._file.error
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError | ValueError) -> InputError:
        error = self._file.error or error
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return InputError(f"cannot write this video: {reason}", where=self.path)


class _Forced:
    """A file for PyAV, whose first error is kept, and whose bytes are forced to the disk now and then.

    Raises:
        InputError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write this video: {error.strerror}", where=path) from error
        self.name = str(path).encode(errors="replace").decode()
        self.error: OSError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._force, name="recording", daemon=True)
        self._thread.start()

    def write(self, data: Any) -> int:
        if self.error is not None:  # what follows a gap cannot be read
            raise self.error
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return size

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        self._file.close()

    def _force(self) -> None:
        over = False
        while not over:
            over = self._over.wait(FORCED_S)
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self.error = self.error or error
                return


class Video:
    """The recording of a source; an `Output` of the camera app.

    From a live source nothing that was recorded before is written over: a file that is there already is kept,
    and the next free name is taken, as it is after a file could not be written any further.

    Args:
        path: see `Recording`.
        fps: of the source; None = nobody knows.
        live: whether the source is.
    """

    picture = True

    def __init__(self, path: Path, fps: float | None, live: bool = False) -> None:
        kind_of(path)
        pyav()
        if not path.parent.is_dir():
            raise InputError("cannot write this video: there is no such folder", where=path)
        try:
            tempfile.TemporaryFile(dir=path.parent).close()  # what the folder's mode says is not all
        except OSError as error:
            raise InputError("cannot write this video: its folder takes no files", where=path) from error
        self._path, self._fps, self._live = path, fps or LIVE_FPS, live
        self._recording: Recording | None = None
        self._start = self._last = 0.0

    def write(self, seen: Any, document: dict[str, Any]) -> None:
        """Appends a picture; see `Output`."""
        assert seen.picture is not None
        at = seen.frame.at
        if self._recording is None:
            size = seen.picture.shape[1], seen.picture.shape[0]
            self._recording = Recording(self._free() if self._live else self._path, size, self._fps)
            self._start = at
        elif self._live and at - self._last > LONGEST_STILL_S:
            self._start += at - self._last - LONGEST_STILL_S  # the source was away: the video goes on
        self._last = at
        try:
            self._recording.write(seen.picture, at - self._start)
        except InputError:
            self._recording.leave()
            self._recording = None
            raise

    def close(self, summary: dict[str, Any]) -> None:
        """Completes the file."""
        if self._recording is not None:
            self._recording.close()

    def _free(self) -> Path:
        """The path, or the first of path-2, path-3, ... that is not there yet."""
        path, count = self._path, 1
        while path.exists():
            count += 1
            path = self._path.with_stem(f"{self._path.stem}-{count}")
        return path
