"""From the thread that reads pictures to the one that works on them: bounded, and never behind.

A live source has room for one picture, and a newer one takes the place of one that nobody fetched: the
latest-frame policy. Whatever the model's speed, it works on what the camera saw last, and latency cannot
grow. A file has room for a few, and its reader waits: every picture is worked on.
"""

from __future__ import annotations

import threading
from collections import deque

from paredown.apps.detector.device.frames.source import Frame, Source

LIVE_ROOM, FILE_ROOM = 1, 2


class Handover:
    """A few pictures between two threads.

    Args:
        room: for how many.
        drop: whether a full one gives up its oldest for a newer one; else whoever puts waits.

    Attributes:
        dropped: how many were given up.
    """

    def __init__(self, room: int, drop: bool) -> None:
        self._frames: deque[Frame] = deque()
        self._room, self._drop = room, drop
        self._changed = threading.Condition()
        self._over, self._error = False, None  # type: bool, BaseException | None
        self.dropped = 0

    def put(self, frame: Frame) -> bool:
        """Hands a picture over; False where nobody wants any more."""
        with self._changed:
            if self._drop and len(self._frames) == self._room:
                self._frames.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._over or len(self._frames) < self._room)
            if not self._over:
                self._frames.append(frame)
                self._changed.notify_all()
            return not self._over

    def get(self) -> Frame | None:
        """The next picture; None when there will be none.

        Raises:
            ParedownError: the source's own error, after the last picture.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._over or bool(self._frames))
            if self._frames:
                frame = self._frames.popleft()
                self._changed.notify_all()
                return frame
            if self._error:
                raise self._error
            return None

    def end(self, error: BaseException | None = None) -> None:
        """No more pictures, from either side; what is there may still be fetched."""
        with self._changed:
            self._over, self._error = True, self._error or error
            self._changed.notify_all()


class Reader:
    """Reads a source in a thread of its own; a context manager that ends it.

    Args:
        source: closed at the end.
    """

    def __init__(self, source: Source) -> None:
        self.frames = Handover(LIVE_ROOM if source.live else FILE_ROOM, drop=source.live)
        self._source = source
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def __enter__(self) -> Handover:
        """Starts to read."""
        self._thread.start()
        return self.frames

    def __exit__(self, *_: object) -> None:
        """Stops; a driver that hangs in a read is left to the end of the process."""
        self._source.close()
        self.frames.end()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        try:
            while (frame := self._source.read()) is not None:
                if not self.frames.put(frame):
                    break
        except BaseException as error:  # it belongs to whoever waits for pictures
            self.frames.end(error)
        else:
            self.frames.end()
