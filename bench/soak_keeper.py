"""The soak of the keeper: an app on a device, which lives on whatever becomes of it and of who deploys it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

from soak_base import App, Soak
from soak_peers import SmallDisk

from paredown.targets.address import open_device
from paredown.targets.devices.service.board.home import held
from paredown.targets.devices.service.board.log import LOG_BYTES
from paredown.targets.devices.service.board.starting import Health
from paredown.targets.devices.service.service import Service
from paredown.targets.errors import ParedownError

NAME = "soak"
HANG_S = 4.0
#: An app: it says that it lives, to its supervisor and to us, and does what we ask it.
SOURCE = """
import json, os, pathlib, socket, sys, time
release, port, *ways = sys.argv[1:]
if "does not start" in ways:
    raise SystemExit(3)
us, beat = (socket.socket(kind, socket.SOCK_DGRAM) for kind in (socket.AF_INET, socket.AF_UNIX))
us.setblocking(False)
pathlib.Path(os.environ["PAREDOWN_READY"]).touch()
began = time.monotonic()
while True:
    beat.sendto(b"WATCHDOG=1", chr(0) + os.environ["NOTIFY_SOCKET"][1:])
    us.sendto(json.dumps([release, os.getpid(), os.getppid()]).encode(), ("127.0.0.1", int(port)))
    print("at work", round(time.time(), 1), flush=True)
    if "fails in its window" in ways and time.monotonic() - began > 1:
        raise SystemExit(4)
    time.sleep(0.1)
    try:
        asked = us.recv(100)
    except BlockingIOError:
        continue
    if asked == b"exits":
        raise SystemExit(5)
    for index in range(60000):
        print(index, 64 * "x")
"""


class Kept(App):
    """What the supervisor keeps: it tells us that it lives, and of which release it is."""

    def __init__(self, name: str, folder: Path, complain: Any) -> None:
        self.heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.heard.bind(("127.0.0.1", 0))
        self.port = self.heard.getsockname()[1]
        self.release, self.child, self.supervisor = "", 0, 0
        self.address: Any = None
        self._gone: set[int] = set()
        super().__init__(name, [], folder, complain)
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self) -> None:
        self.starts, self.began, self.memory = self.starts + 1, time.monotonic(), []

    @property
    def pid(self) -> int:
        return self.supervisor

    def ended(self) -> int | None:
        return None

    def stop(self) -> None:
        self.heard.close()

    def since(self, at: float) -> str:
        return ""

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, self.address = self.heard.recvfrom(1000)
                release, child, supervisor = json.loads(data)
                if child != self.child:
                    if child in self._gone:
                        self._complain(
                            f"keeper: two processes of the app live at once ({child}, {self.child})"
                        )
                    self._gone.add(self.child)
                    self.starts += 1
                if supervisor != self.supervisor:
                    self.settled()
                    self.began, self.memory = time.monotonic(), []
                self.release, self.child, self.supervisor = release, child, supervisor
                self.lines, self.at = self.lines + 1, time.monotonic()


class KeeperSoak(Soak):
    """Deployments, crashes, hangs and full disks against the supervisor of an app."""

    app: Kept

    def __init__(self, board: Path, work: Path, chance: random.Random, log: Any) -> None:
        super().__init__("keeper", chance, log)
        self.disk = SmallDisk(work / "home")
        self.app = Kept("keeper", board, self.complain)
        os.environ["HOME"] = str(self.disk.folder)  # of the device local:
        self.number, self.release, self.cut = 0, "", 0
        self.folder = self.disk.folder / ".local/share/paredown" / NAME
        self._deploy("good")

    def kinds(self) -> list[tuple[str, str]]:
        found = [("app", way) for way in ("killed", "exits", "hangs", "talks")] * 2
        found += [("release", way) for way in ("good", "does not start", "fails in its window")]
        found += [("keeper", way) for way in ("supervisor killed", "files torn", "deployment killed midway")]
        return (
            found
            + [("keeper", "two deployments at once")]
            + [("disk", "full")] * (2 if self.disk.small else 0)
        )

    def _deploy(self, way: str) -> None:
        """A new release; what is expected to run afterwards is noted."""
        self.number, self.cut = self.number + 1, 0
        name = f"r{self.number}"
        with open_device("local:") as device:
            service = Service(device, NAME)
            service.install(packed(), name, {})
            health = Health(seconds=6.0, restarts=0) if way == "fails in its window" else None
            try:
                service.start(name, "app", [name, str(self.app.port), way], health=health, hang_s=HANG_S)
            except ParedownError as error:
                if way == "good":
                    self.complain(f"keeper: a good release does not start: {error}")
                elif "status 3" not in str(error):
                    self.complain(f"keeper: not said why it does not start: {error}")
                return
        if way == "does not start":
            self.complain("keeper: a release that ends at once counts as started")
        elif way == "good":
            self.release = name

    def fail(self, kind: str, way: str) -> None:
        if kind == "release":
            self._deploy(way)
        elif kind == "disk":
            self.disk.fill()
        elif way in ("killed", "hangs"):
            self._signal_to(self.app.child, signal.SIGKILL if way == "killed" else signal.SIGSTOP)
        elif kind == "app":
            with contextlib.suppress(OSError):
                self.app.heard.sendto(way.encode(), self.app.address)
        elif way == "two deployments at once":
            self._two()
        elif way == "deployment killed midway":
            self._midway()
        else:
            self._signal_to(self.app.supervisor, signal.SIGKILL)
            if way == "files torn":  # as after a loss of power
                for name in ("run.json", "window.json"):
                    with contextlib.suppress(OSError):
                        os.truncate(self.folder / name, self.chance.randint(0, 40))

    def _signal_to(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _two(self) -> None:
        """Two people deploy good releases; one may be told that it is not alone."""
        self.number += 2
        names = [f"r{self.number - 1}", f"r{self.number}"]
        running = [subprocess.Popen(self._script(name), stderr=subprocess.PIPE, text=True) for name in names]
        won = [name for name, each in zip(names, running, strict=True) if self._ended(each)]
        if won:
            self.release = won[-1] if len(won) == 1 else self._current()

    def _ended(self, each: subprocess.Popen[str]) -> bool:
        try:
            _, said = each.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            each.kill()
            self.complain("keeper: a deployment beside another one does not end")
            return False
        if each.returncode and "somebody else is deploying" not in said:
            self.complain(f"keeper: a deployment beside another one: {said[-200:]!r}")
        return each.returncode == 0

    def _midway(self) -> None:
        """A deployment whose process is killed at some moment; then some release of the two runs."""
        self.number, self.cut = self.number + 1, self.cut + 1
        each = subprocess.Popen(self._script(f"r{self.number}"), stderr=subprocess.DEVNULL)
        time.sleep(self.chance.uniform(0.2, 4.0))
        each.kill()
        each.wait()
        free = time.monotonic()  # what has begun is completed by the device
        while time.monotonic() < free + 1.5:
            time.sleep(0.05)
            if held(self.folder / "change.lock"):
                free = time.monotonic()

    def _script(self, name: str) -> list[str]:
        arguments = [name, str(self.app.port), "good"]
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); import soak_keeper as s\n"
            "from paredown.targets.address import open_device\n"
            "from paredown.targets.errors import ParedownError\n"
            "try:\n"
            "    with open_device('local:') as device:\n"
            "        service = s.Service(device, s.NAME)\n"
            f"        service.install(s.packed(), {name!r}, {{}})\n"
            f"        service.start({name!r}, 'app', {arguments!r}, hang_s=s.HANG_S)\n"
            "except ParedownError as error: sys.exit(str(error))"
        )
        return [sys.executable, "-c", code, str(Path(__file__).parent)]

    def mend(self, kind: str, way: str) -> None:
        if kind == "disk":
            self.disk.free()
        if kind == "keeper" and way in ("supervisor killed", "files torn"):
            program = self.folder / "keeping/supervisor.py"  # as systemd does
            subprocess.Popen(
                [sys.executable, str(program), "run", NAME], cwd="/", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def _current(self) -> str:
        return (self.folder / "current").readlink().name

    def works(self, kind: str, since: float) -> bool:
        if kind == "keeper" and self._current() != self.release:  # one whose deployment was cut off has won
            self.release = self._current()
        return self.app.at > since and self.app.release == self.release

    def wrong(self, kind: str, way: str, since: float) -> str:
        if kind == "disk" and time.monotonic() - self.app.at > 3.0:
            return "the app fell silent on a full disk"
        return ""

    def after(self, kind: str, way: str) -> str:
        with open_device("local:") as device:
            status = Service(device, NAME).status()
        if not status["running"] or status["release"] != self.release:
            return f"status says {status['release']}, running {status['running']}, not {self.release}"
        why = {"killed": "SIGKILL", "exits": "status 5", "hangs": f"no heartbeat for {HANG_S:g} s"}.get(
            way, ""
        )
        if kind == "app" and why not in json.dumps(status["ended"]):
            return f"status does not say why it ended: {status['ended']}"
        if way == "fails in its window" and not (status["window"] or {}).get("returned"):
            return f"status does not say that the release before came back: {status['window']}"
        sizes = [path.stat().st_size for path in self.folder.glob("log*")]
        if max(sizes, default=0) > LOG_BYTES:
            return f"logs of {sizes} bytes"
        kept = [path.name for path in (self.folder / "releases").iterdir() if path.is_dir()]
        return f"{len(kept)} releases are kept: {kept}" if len(kept) > 3 + self.cut else ""

    def _left(self) -> list[str]:
        """Processes that run in the device's home or from it."""
        home, found = str(self.disk.folder), []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if home in command or str((path / "cwd").readlink()).startswith(home):
                    found.append(f"{path.name} {command[:80]}")
        return found

    def close(self) -> None:
        with open_device("local:") as device, contextlib.suppress(ParedownError):
            Service(device, NAME).stop(grace_s=2.0)
        time.sleep(1.0)
        if left := self._left():
            self.complain(f"keeper: left processes {left}")
        super().close()
        self.disk.close()


def packed() -> bytes:
    """A release that holds the app and a proof of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in (("app.py", SOURCE), ("targets/runners/prove.py", "print('{}')")):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()
