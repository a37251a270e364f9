"""Where what a camera saw goes: a window, a video, a snapshot, JSON lines, MQTT. numpy and OpenCV.

Everything here keeps up or is left out: nothing may make the camera wait for more than a write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np

from paredown.apps.detector.device.processor import FrameResult
from paredown.targets.errors import DeviceError, InputError, UsageError

LIVE_FPS = 15.0  # of a video saved from a live source, whose own pace depends on the model
LONGEST_STILL_S = 1.0  # of a saved video, while the source was lost
SNAPSHOT_S = 1.0
MQTT_PORT, MQTT_TOPIC, MQTT_WAIT_S = 1883, "paredown/camera", 5.0


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


class Lines:
    """JSON lines: one document per picture and a last one, `{"summary": ...}`."""

    picture = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """A line, at once; see `Output`."""
        print(json.dumps(document), file=self._stream, flush=True)

    def close(self, summary: dict[str, Any]) -> None:
        """The last line."""
        print(json.dumps({"summary": summary}), file=self._stream, flush=True)


class Video:
    """A video file of constant pace; pictures that came late are shown for longer, as they were.

    Args:
        path: as .mp4 or .avi.
        fps: of the source; None = it is live, or nobody knows.
    """

    picture = True

    def __init__(self, path: Path, fps: float | None) -> None:
        self._path, self._file_fps = path, fps
        self._fps = fps or LIVE_FPS
        self._writer: Any = None
        self._size, self._frames, self._start = (0, 0), 0, 0.0

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Appends a picture, scaled to the first one's size if the source has changed it; see `Output`."""
        picture = seen.picture
        assert picture is not None
        if self._writer is None:
            self._size, self._start = (picture.shape[1], picture.shape[0]), seen.frame.at
            self._writer = self._opened()
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        for _ in range(self._due(seen.frame.at)):
            self._writer.write(picture)
            self._frames += 1

    def close(self, summary: dict[str, Any]) -> None:
        """Completes the file."""
        if self._writer is not None:
            self._writer.release()

    def _due(self, at: float) -> int:
        if self._file_fps is not None:
            return 1
        missing = int((at - self._start) * self._fps) + 1 - self._frames
        longest = round(LONGEST_STILL_S * self._fps)
        if missing > longest:  # the source was away: the video's own time goes on without it
            self._start += (missing - longest) / self._fps
        return min(max(missing, 0), longest)

    def _opened(self) -> Any:
        codec = "MJPG" if self._path.suffix.lower() == ".avi" else "mp4v"
        fourcc = cv2.VideoWriter.fourcc(*codec)
        writer = cv2.VideoWriter(str(self._path), fourcc, self._fps, self._size)
        if not writer.isOpened():
            raise InputError("cannot write this video", where=self._path, hint="name it .mp4 or .avi")
        return writer


class Snapshot:
    """The newest picture, once a second and at the end, whole whenever somebody looks."""

    picture = True

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, -SNAPSHOT_S
        self._last: np.ndarray | None = None
        if not path.parent.is_dir() or not cv2.haveImageWriter(str(path)):
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
        part = self._path.with_name(f".{self._path.stem}.part{self._path.suffix}")
        if not cv2.imwrite(str(part), self._last):
            raise InputError("cannot write this image", where=self._path)
        part.replace(self._path)


class Window:
    """A window; its q or Escape key ends everything."""

    picture = True

    def __init__(self, name: str, stop: Callable[[], None]) -> None:
        """Opens it.

        Raises:
            UsageError: this OpenCV has no windows, or there is no screen.
        """
        self._name, self._stop = name, stop
        try:
            cv2.namedWindow(name, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            hint = "`pip install opencv-python` has windows; --save, --snapshot and --json need none"
            raise UsageError("no window can be opened here", where="--show", hint=hint) from error

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Shows the next picture; see `Output`."""
        assert seen.picture is not None
        cv2.imshow(self._name, seen.picture)
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
            self._stop()

    def close(self, summary: dict[str, Any]) -> None:
        """Closes it."""
        cv2.destroyWindow(self._name)


class Mqtt:
    """An MQTT broker: every picture's document under one topic, at most once; none while it is away.

    Args:
        address: HOST[:PORT][/TOPIC].

    Raises:
        UsageError: paho-mqtt is not installed, or this is no address.
        DeviceError: the broker does not answer.
    """

    picture = False

    def __init__(self, address: str) -> None:
        try:
            from paho.mqtt.client import CallbackAPIVersion, Client
        except ImportError:
            what, hint = "paho-mqtt is not installed here", "`pip install paho-mqtt`"
            raise UsageError(what, where="--mqtt", hint=hint) from None
        place, _, topic = address.partition("/")
        host, _, port = place.partition(":")
        if not host or (port and not port.isdecimal()):
            raise UsageError(f"`{address}` is no broker", where="--mqtt", hint="write HOST[:PORT][/TOPIC]")
        self._topic = topic or MQTT_TOPIC
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.connect_timeout = MQTT_WAIT_S
        try:
            self._client.connect(host, int(port or MQTT_PORT))
        except (OSError, ValueError) as error:
            hint = "is a broker running there, and is the port right?"
            raise DeviceError(f"no MQTT broker answers: {error}", where=place, hint=hint) from error
        self._client.loop_start()

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Publishes it; see `Output`."""
        if self._client.is_connected():
            self._client.publish(self._topic, json.dumps(document))

    def close(self, summary: dict[str, Any]) -> None:
        """Publishes the summary under TOPIC/summary and says goodbye."""
        if self._client.is_connected():
            last = self._client.publish(f"{self._topic}/summary", json.dumps(summary))
            last.wait_for_publish(MQTT_WAIT_S)
        self._client.disconnect()
        self._client.loop_stop()
