"""A sign of life for whoever keeps the app: `WATCHDOG=1`, as services of systemd give it."""

from __future__ import annotations

import contextlib
import os
import socket
import time

EVERY_S = 1.0


class Heartbeat:
    """Tells now and then that the app goes on; where nobody asked for it, nothing.

    Args:
        path: of the socket; `@` stands for the abstract names of Linux. None = that of the environment.
    """

    def __init__(self, path: str | None = None) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "") if path is None else path
        self._to = "\0" + path[1:] if path.startswith("@") else path
        self._told = -EVERY_S

    def __call__(self) -> None:
        """Once a second at most; nobody who hears it is no error."""
        now = time.monotonic()
        if not self._to or now - self._told < EVERY_S:
            return
        self._told = now
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(b"WATCHDOG=1", self._to)
