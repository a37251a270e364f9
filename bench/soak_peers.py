"""What the apps of a soak talk to, and how each of them fails: a network camera, an autopilot, a broker."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

BOUNDARY = b"--soak\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=soak\r\n\r\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def picture(index: int, size: tuple[int, int]) -> bytes:
    """A JPEG in which something moves: a large digit, as the network knows them."""
    image = np.full((size[1], size[0], 3), 225, np.uint8)
    place = (size[0] // 2 - 40 + 10 * (index % 5), size[1] // 2 + 45)
    cv2.putText(image, str(index // 200 % 10), place, cv2.FONT_HERSHEY_SIMPLEX, 4, (20, 20, 20), 12)
    return cv2.imencode(".jpg", image)[1].tobytes()


class NetworkCamera:
    """Motion JPEG over HTTP, ten pictures a second. `state` is how it is: see `STATES`."""

    STATES = ("closed", "refusing", "silent", "noise", "one picture each time", "larger")

    def __init__(self) -> None:
        self.port, self.state = free_port(), "good"
        self.url = f"http://127.0.0.1:{self.port}/video"
        self._over = threading.Event()
        self._server: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def _serve(self) -> None:
        while not self._over.is_set():
            if self.state == "refusing":
                if self._server is not None:
                    self._server.close()
                    self._server = None
                time.sleep(0.05)
                continue
            if self._server is None:
                self._server = socket.create_server(("127.0.0.1", self.port))
                self._server.settimeout(0.2)
            with contextlib.suppress(TimeoutError, OSError):
                connection, _ = self._server.accept()
                threading.Thread(target=self._play, args=(connection,), daemon=True).start()

    def _play(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            connection.recv(4096)
            if self.state == "closed":
                return
            connection.sendall(HEAD)
            for index in range(10**9):
                if self._over.wait(0.1) or self.state in ("closed", "refusing"):
                    return
                if self.state == "silent":
                    continue
                size = (640, 480) if self.state == "larger" else (320, 240)
                data = picture(index, size)
                if self.state == "noise":
                    data = os.urandom(len(data))
                connection.sendall(BOUNDARY % len(data) + data + b"\r\n")
                if self.state == "one picture each time":
                    return


class Autopilot:
    """An ArduPilot behind TCP: state, attitude, position and GPS, 20 times a second.

    Attributes:
        state: see `STATES`.
        got: when each message for it came, by name.
    """

    STATES = (
        "closed", "refusing", "silent", "noise", "no GPS fix", "frozen position", "old position",
        "leaping position", "calibrating", "no estimator", "another system", "restarted clock",
    )  # fmt: skip

    def __init__(self) -> None:
        self.port, self.state = free_port(), "good"
        self.address = f"tcp:127.0.0.1:{self.port}"
        self.got: list[tuple[float, str]] = []
        self._boot, self._over = time.monotonic(), threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def last(self) -> float:
        """When it was last told of a target."""
        return max((at for at, name in self.got[-50:] if name.endswith("_TARGET")), default=0.0)

    def _serve(self) -> None:
        server: socket.socket | None = None
        while not self._over.is_set():
            if self.state in ("refusing", "closed"):
                if server is not None:
                    server.close()
                    server = None
                time.sleep(0.05)
                continue
            if server is None:
                server = socket.create_server(("127.0.0.1", self.port))
                server.settimeout(0.2)
            with contextlib.suppress(TimeoutError, OSError):
                connection, _ = server.accept()
                threading.Thread(target=self._fly, args=(connection,), daemon=True).start()

    def _fly(self, connection: socket.socket) -> None:
        from pymavlink.dialects.v20 import ardupilotmega as mav

        class Out:
            def write(self, data: Any) -> None:
                connection.sendall(bytes(data))

        parser = mav.MAVLink(None)
        parser.robust_parsing = True
        with connection, contextlib.suppress(OSError):
            connection.settimeout(2)
            while not self._over.wait(0.05) and self.state not in ("refusing", "closed"):
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while data := connection.recv(65536):
                        for message in parser.parse_buffer(data) or ():
                            self.got.append((time.monotonic(), message.get_type()))
                        del self.got[:-500]
                connection.settimeout(2)
                if self.state == "silent":
                    continue
                if self.state == "noise":
                    connection.sendall(os.urandom(200))
                    continue
                us = mav.MAVLink(Out(), srcSystem=2 if self.state == "another system" else 1, srcComponent=1)
                for message in self._said(mav):
                    us.send(message)

    def _said(self, mav: Any) -> list[Any]:
        if self.state == "restarted clock":
            self._boot, self.state = time.monotonic() - 1.0, "good"
        boot = int(1e3 * (time.monotonic() - self._boot))
        state, latitude, when = self.state, 47.0, boot
        if state == "frozen position":
            when = 1234
        elif state == "old position":
            when = boot - 5000
        elif state == "leaping position":
            latitude += 0.01 * (boot // 100 % 2)
        flags = 1 if state == "no estimator" else 1 | 16 | 32
        return [
            mav.MAVLink_heartbeat_message(2, 3, 0, 0, 2 if state == "calibrating" else 4, 3),
            mav.MAVLink_attitude_message(boot, 0.0, 0.0, 0.0, 0, 0, 0),
            mav.MAVLink_gps_raw_int_message(
                1000 * boot, 1 if state == "no GPS fix" else 3, 0, 0, 0, 100, 100, 0, 0, 9
            ),
            mav.MAVLink_ekf_status_report_message(flags, 0, 0, 0, 0, 0),
            mav.MAVLink_global_position_int_message(
                max(when, 1), round(latitude * 1e7), 80000000, 500000, 20000, 0, 0, 0, 0
            ),
        ]  # fmt: skip


class Mosquitto:
    """A broker, and one who listens to it; `heard` is when the last document came."""

    STATES = ("killed", "hanging")

    def __init__(self, folder: Path) -> None:
        self.port, self.heard = free_port(), 0.0
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/sbin:/bin")
        if program is None:
            raise SystemExit("mosquitto is not installed (Debian: mosquitto)")
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n")
        self._command = [program, "-c", str(config)]
        self.start()
        from paho.mqtt.client import CallbackAPIVersion, Client

        self._client: Any = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("soak/#")
        self._client.on_message = self._take
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", self.port, 5)
        self._client.loop_start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def fail(self, how: str) -> None:
        self.process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)

    def mend(self, how: str) -> None:
        if how == "killed":
            self.process.wait()
            self.start()
        else:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._client.loop_stop()
        self.process.kill()
        self.process.wait()

    def _take(self, client: Any, data: Any, message: Any) -> None:
        if message.topic == "soak":
            self.heard = time.monotonic()


class SmallDisk:
    """A file system of 16 MB that can be filled; root only, else it is a folder that is never full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
        self.small = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def tidy(self) -> None:
        """Makes room: a recording that is being written is not counted as old."""
        videos = sorted(self.folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        for path in videos[:-1]:
            path.unlink()

    def close(self) -> None:
        if self.small:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)
