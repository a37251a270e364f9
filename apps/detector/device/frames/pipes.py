"""Cameras that OpenCV does not open: a Raspberry Pi's own, GStreamer pipelines, whatever a program writes.

Each is a capture as OpenCV's: `read`, `get`, `release`. A program writes motion JPEG or Y4M to its standard
output; both say themselves how large a picture is.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from paredown.targets.errors import DeviceError, UsageError

PICAMERA, GSTREAMER, PROGRAM = "picamera", "gst", "pipe"
KINDS = (PICAMERA, GSTREAMER, PROGRAM)
WIDTH, HEIGHT = 1280, 720  # of a Raspberry Pi's camera
SILENT_S = 10.0  # a program that writes nothing for so long is lost; a camera takes its time to start
CHUNK = 1 << 20
MOST = 64 << 20  # bytes of a picture
Y4M = b"YUV4MPEG2"


def kind_of(text: str) -> str:
    """One of `KINDS`; empty where a user's words name none of them.

    Raises:
        UsageError: nothing usable follows the kind.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS or rest.startswith("//"):
        return ""
    if kind == PICAMERA and rest and not rest.isdecimal():
        raise UsageError(f"`{text}` is no camera", where="--source", hint="write picamera or picamera:1")
    if kind != PICAMERA and not rest.strip():
        raise UsageError(f"`{text}` names no {'pipeline' if kind == GSTREAMER else 'program'}",
                         where="--source", hint="write gst:v4l2src device=/dev/video0")  # fmt: skip
    return kind


def open_pipe(text: str) -> Any:
    """A capture of what a user names; see `kind_of`.

    Raises:
        UsageError: the command cannot be taken apart.
        DeviceError: there is no such camera, or no program for it.
    """
    kind, _, rest = text.partition(":")
    if kind == PICAMERA:
        return open_picamera(int(rest or 0))
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"`{text}` cannot be read: {error}", where="--source") from error
    if kind == GSTREAMER:
        words = [
            "gst-launch-1.0", "-q", *words, "!", "videoconvert", "!", "video/x-raw,format=I420", "!",
            "y4menc", "!", "fdsink", "fd=1",
        ]  # fmt: skip
    return Piped(words)


def open_picamera(number: int) -> Any:
    """A Raspberry Pi's own camera, through Picamera2 where Python has it, else through rpicam-vid.

    Raises:
        DeviceError: there is neither, or no such camera.
    """
    try:
        from picamera2 import Picamera2
    except ImportError:
        pass
    else:
        return Picamera(Picamera2, number)
    program = shutil.which("rpicam-vid") or shutil.which("libcamera-vid")
    if program is None:
        hint = "sudo apt-get install python3-picamera2 (a virtual environment needs --system-site-packages)"
        raise DeviceError("neither Picamera2 nor rpicam-vid is here", where="picamera", hint=hint)
    size = ["--width", str(WIDTH), "--height", str(HEIGHT)]
    return Piped([program, "-n", "-t", "0", "--camera", str(number), "--codec", "mjpeg", *size, "-o", "-"])


class Picamera:
    """A capture through Picamera2.

    Args:
        made: its class.
        number: of the camera.

    Raises:
        DeviceError: there is no such camera, or another program holds it.
    """

    def __init__(self, made: Any, number: int) -> None:
        where = f"picamera:{number}"
        if number >= len(made.global_camera_info()):
            hint = (
                "is the cable in, its contacts the right way round? `rpicam-hello --list-cameras` lists them"
            )
            raise DeviceError("no such camera", where=where, hint=hint)
        try:
            self._camera = made(number)
            # its RGB888 lies in memory as B, G, R
            wanted = {"format": "RGB888", "size": (WIDTH, HEIGHT)}
            self._camera.configure(self._camera.create_video_configuration(main=wanted))
            self._camera.start()
        except RuntimeError as error:
            hint = "`rpicam-hello --list-cameras` lists the cameras that the system has"
            raise DeviceError(f"does not start: {error}", where=where, hint=hint) from error

    def read(self) -> tuple[bool, np.ndarray | None]:
        """The next picture."""
        try:
            return True, self._camera.capture_array("main")
        except RuntimeError:
            return False, None

    def get(self, what: int) -> float:
        """Nothing is known."""
        return 0.0

    def release(self) -> None:
        """Lets go."""
        self._camera.close()


class Piped:
    """A capture of the pictures that a program writes to its standard output.

    Args:
        command: the program and its arguments; no shell reads them.
        silent_s: see `SILENT_S`.

    Raises:
        DeviceError: there is no such program.
    """

    def __init__(self, command: Sequence[str], silent_s: float = SILENT_S) -> None:
        self._errors, self._silent, self._data = tempfile.TemporaryFile(), silent_s, bytearray()
        self._size, self._fps = (0, 0), 0.0
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            hint = "sudo apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good"
            raise DeviceError(
                f"cannot start {command[0]}: {error.strerror}",
                hint=hint if command[0].startswith("gst-") else "it has to be installed, and in PATH",
            ) from error

    def read(self) -> tuple[bool, np.ndarray | None]:
        """The next picture; (False, None) where the program ended, is silent, or writes something else."""
        while self._process.stdout is not None:
            known, image = self._taken()
            if known:
                return image is not None, image
            if len(self._data) > MOST or not self._more():
                return False, None
        return False, None

    def get(self, what: int) -> float:
        """Pictures per second, where the program says it."""
        return self._fps if what == cv2.CAP_PROP_FPS else 0.0

    def said(self) -> str:
        """The last line of the program's errors."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def release(self) -> None:
        """Ends the program."""
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
            self._process.stdout = None

    def _more(self) -> bool:
        assert self._process.stdout is not None
        file, deadline = self._process.stdout.fileno(), time.monotonic() + self._silent
        ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(file, CHUNK) if ready else b""
        self._data += data
        return bool(data)

    def _taken(self) -> tuple[bool, np.ndarray | None]:
        """Whether there is a whole picture in what was read, and it; (True, None) of anything else."""
        data = self._data
        if self._size == (0, 0) and data.startswith(Y4M[: len(data)]):
            end = data.find(b"\n")
            if end < 0:
                return len(data) > 4096, None
            if not self._header(bytes(data[:end])):
                return True, None
            del data[: end + 1]
        if self._size != (0, 0):
            return self._raw()
        if len(data) >= 2 and data[:2] != b"\xff\xd8":
            return True, None
        end = jpeg_end(data)
        if not end:
            return False, None
        image = cv2.imdecode(np.frombuffer(bytes(data[:end]), np.uint8), cv2.IMREAD_COLOR)
        del data[:end]
        return True, image

    def _header(self, line: bytes) -> bool:
        fields = {word[:1]: word[1:] for word in line.decode("ascii", "replace").split()[1:]}
        try:
            self._size = int(fields["W"]), int(fields["H"])
            above, _, below = fields.get("F", "0:1").partition(":")
            self._fps = int(above) / int(below or 1)
        except (KeyError, ValueError, ZeroDivisionError):
            return False
        even = all(side > 0 and side % 2 == 0 for side in self._size)
        return even and fields.get("C", "420").startswith("420")

    def _raw(self) -> tuple[bool, np.ndarray | None]:
        (width, height), data = self._size, self._data
        begin = data.find(b"\n") + 1
        if not begin:
            return len(data) > 4096, None
        if not data.startswith(b"FRAME"):
            return True, None
        size = width * height * 3 // 2
        if len(data) < begin + size:
            return False, None
        planes = np.frombuffer(bytes(data[begin : begin + size]), np.uint8).reshape(height * 3 // 2, width)
        del data[: begin + size]
        return True, np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420))


def jpeg_end(data: bytes | bytearray) -> int:
    """Bytes of the JPEG image at the start of these; 0 where it is not whole yet."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return len(data)  # no JPEG: the decoder says so
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # what follows is coded: an FF there is never followed by D9
            end = data.find(b"\xff\xd9", at)
            return end + 2 if end >= 0 else 0
    return 0
