"""Keeps one app of a device running. Python's own library only.

`keeper.py` copies this file beside the app, and `python3 supervisor.py run NAME` is what stays there. An app
that fails is started again, with growing pauses. It may say that it lives, as systemd's services do
(`WATCHDOG=1` to NOTIFY_SOCKET); one that did so and falls silent is ended and started again. A release that
fails in its health window gives way to the one before, with nobody there. Our design.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paredown.targets.devices.service.board.home import App, Failure, held, interpreter, read, switch, write
from paredown.targets.devices.service.board.log import LINE_BYTES, Log

FAILED = 5  # exit status
STATE_BYTES = 1024  # of a file that is written over in its place when the disk is full
TICK_S = 0.5
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before it is started again: twice as long each time
STEADY_S = 60.0  # after which the pauses begin anew
HANG_S = 120.0  # without a word that it lives
READY_S = 180.0  # in a health window, after a restart
NOTE_S = 300.0  # between two notes of the last heartbeat
GRACE_S = 10.0  # for an app to complete its files
OOM_SCORE = b"300"  # the kernel takes the app before us and before whoever could mend it
_PR_SET_PDEATHSIG = 1


class Watchdog:
    """Where the app says that it lives, and whom we tell so ourselves: systemd's protocol, both ways."""

    def __init__(self) -> None:
        self.name = f"@paredown-{os.getpid()}-{secrets.token_hex(8)}"
        self._heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._heard.setblocking(False)
        self._heard.bind("\0" + self.name[1:])
        self._above = os.environ.pop("NOTIFY_SOCKET", "")
        os.environ.pop("WATCHDOG_USEC", None)
        os.environ.pop("WATCHDOG_PID", None)

    def fileno(self) -> int:
        """For select."""
        return self._heard.fileno()

    def beats(self) -> bool:
        """Whether the app said since the last time that it lives."""
        beat = False
        with contextlib.suppress(BlockingIOError):
            while True:
                beat = b"WATCHDOG=1" in self._heard.recv(4096).split(b"\n") or beat
        return beat

    def tell(self, text: str) -> None:
        """Tells systemd, where that started us."""
        if not self._above:
            return
        path = "\0" + self._above[1:] if self._above.startswith("@") else self._above
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(text.encode(), path)


class Supervisor:
    """Runs the current release, again and again, until it ends well or is told to stop.

    Args:
        app: whose lock we hold.
        lock: descriptor of it, which the app gets too.
    """

    def __init__(self, app: App, lock: int) -> None:
        self.app, self._lock = app, lock
        self._release = app.current.resolve().name
        self._window = read(app.home / "window.json")
        self._watchdog, self._log = Watchdog(), Log(app.home / "log")
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None
        self._ready_at: float | None = None  # of the child; monotonic, as all times but `beat` and `time`
        self._beat_at: float | None = None
        self._noted_at = 0.0
        was = read(app.home / "run.json")
        self._told: dict[str, Any] = {
            "pid": os.getpid(), "state": "starts", "restarts": 0, "beat": None, "dropped": 0,
            "ended": was.get("ended") if was.get("release") == self._release else None,
            "release": self._release,
        }  # fmt: skip

    def run(self) -> int:
        """Returns the exit status of the app's last run."""
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(kind, self._stop)
        self._watchdog.tell("READY=1")
        if self._open() and self._window["armed"]:  # we were ended in the midst of it, or the device was
            self._fails("was interrupted: the device or the supervisor started again")
        pause = PAUSE_S
        while True:
            began = time.monotonic()
            status, why = self._once()
            ended = {"status": status, "said": self._log.last, "time": time.time(), "why": why}
            self._told |= {"ended": ended, "beat": None}
            self._note("waits")
            if self._stopping or status == 0 or self._on_trial():
                self._put("exit.json", ended)
                return status if status >= 0 else 128 - status
            if self._open() and self._fails(why):
                pause = PAUSE_S
                continue
            if time.monotonic() - began > STEADY_S:
                pause = PAUSE_S
            self._told["restarts"] += 1
            self._log.note(f"paredown: it {why}; starts again in {pause:g} s".encode())
            self._note("waits")  # with the number of restarts
            until = time.monotonic() + pause
            while time.monotonic() < until and not self._stopping:
                self._wait(None)
            if self._stopping:
                self._put("exit.json", ended)
                return status if status >= 0 else 128 - status
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _stop(self, kind: int, _: object) -> None:
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def _on_trial(self) -> bool:
        """Whether somebody waits for it to get ready the first time, who will take it back."""
        return self._open() and not self._window["armed"] and held(self.app.home / "change.lock")

    def _once(self) -> tuple[int, str]:
        """Runs the app once; returns its exit status and why it ended."""
        self._ready_at = self._beat_at = None
        for name in ("ready", "exit.json"):
            with contextlib.suppress(OSError):
                (self.app.home / name).unlink(missing_ok=True)
        self._note("starts")
        self._log.note(f"release {self._release} starts".encode())
        command, killed = read(self.app.releases / f"{self._release}.json"), oom_kills()
        began, errors = time.monotonic(), self._log.errors
        try:
            self._child = child = self._spawn(command)
        except (OSError, KeyError) as error:
            return FAILED, f"could not be started: {error}"
        if self._stopping:
            child.terminate()
        assert child.stdout
        os.set_blocking(child.stdout.fileno(), False)
        why = ""
        while child.poll() is None:
            self._wait(child.stdout.fileno())
            if not why and (why := self._wrong(began, errors, command.get("hang_s", HANG_S))):
                self._kill(child)
        self._drain(child.stdout.fileno())
        child.stdout.close()
        self._log.end()
        status = child.returncode
        return status, why or reason(status, oom_kills() > killed)

    def _spawn(self, command: dict[str, Any]) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, "PAREDOWN_APP": self.app.name, "PAREDOWN_READY": str(self.app.home / "ready"),
            "NOTIFY_SOCKET": self._watchdog.name, "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        return subprocess.Popen(
            [interpreter(), "-m", command["module"], *command["arguments"]],
            cwd=self.app.releases / self._release, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[self._lock], preexec_fn=_dependent,
        )  # fmt: skip

    def _wait(self, stdout: int | None) -> None:
        """Waits a moment for what the app says, and that it lives."""
        listened = [self._watchdog.fileno(), *([] if stdout is None else [stdout])]
        found, _, _ = select.select(listened, [], [], TICK_S)
        if stdout is not None and stdout in found and not self._drain(stdout):
            time.sleep(TICK_S)  # it closed its output, and runs on
        now = time.monotonic()
        if self._watchdog.beats():
            first, self._beat_at = self._beat_at is None, now
            self._told["beat"] = time.time()
            if first:
                self._note(self._told["state"])
        self._watchdog.tell("WATCHDOG=1")
        if self._child is not None and self._child.poll() is None:
            if self._ready_at is None and (self.app.home / "ready").exists():
                self._ready_at = now
                self._arm()
                self._note("runs")
            elif now - self._noted_at > NOTE_S:
                self._note(self._told["state"])

    def _drain(self, stdout: int) -> bool:
        """Takes what the app said so far; False at its end."""
        try:
            while data := os.read(stdout, LINE_BYTES):
                self._log.feed(data)
        except BlockingIOError:
            return True
        return False

    def _wrong(self, began: float, errors: int, hang_s: float) -> str:
        """Why the app must not go on; empty where it may. A health window that is over is noted here."""
        now = time.monotonic()
        if self._beat_at is not None and now - self._beat_at > hang_s:
            return f"gave no heartbeat for {hang_s:g} s"
        if not self._open():
            return ""
        window = self._window
        if self._ready_at is None:
            late = window["armed"] and now - began > READY_S
            return f"was not ready after {READY_S:g} s" if late else ""
        if (many := self._log.errors - errors) > window["errors"]:
            return f"said {many} errors in its health window"
        if now - self._ready_at >= window["seconds"]:
            window["state"] = "passed"
            self._put("window.json", window)
        return ""

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        """Ends an app that may be deaf."""
        child.terminate()
        deadline = time.monotonic() + GRACE_S
        while child.poll() is None and time.monotonic() < deadline:
            self._wait(child.stdout.fileno() if child.stdout else None)
        child.kill()

    # -- the health window -----------------------------------------------------------------------------------

    def _open(self) -> bool:
        return self._window.get("state") == "open" and self._window.get("release") == self._release

    def _arm(self) -> None:
        if self._open() and not self._window["armed"]:
            self._window["armed"] = True
            self._put("window.json", self._window)

    def _fails(self, why: str) -> bool:
        """Counts a failure in the window; returns whether the release before takes the place of this one."""
        window = self._window
        window["failures"] += 1
        if window["failures"] <= window["restarts"]:
            self._put("window.json", window)
            return False
        before = window["before"]
        possible = before is not None and (self.app.releases / before).is_dir()
        if possible:
            self._log.note(f"paredown: it {why}; release {before} comes back".encode())
            self._release = self._told["release"] = before
            with contextlib.suppress(OSError):  # a full disk: then it is this very supervisor that knows
                if window["command_before"] is not None:
                    command = json.dumps(window["command_before"]).encode()
                    write(self.app.releases / f"{before}.json", command)
                switch(self.app, before)
        window |= {"state": "failed", "why": why, "said": self._log.last, "returned": possible}
        self._put("window.json", window)
        return possible

    # -- what is kept ----------------------------------------------------------------------------------------

    def _note(self, state: str) -> None:
        self._noted_at = time.monotonic()
        self._told |= {"state": state, "dropped": self._log.dropped}
        self._put("run.json", self._told)
        self._watchdog.tell(f"STATUS=release {self._release} {state}, {self._told['restarts']} restarts")

    def _put(self, name: str, document: dict[str, Any]) -> None:
        """Writes a file; on a full disk over the one that is there, else not at all."""
        path, data = self.app.home / name, json.dumps(document).encode().ljust(STATE_BYTES)
        try:
            write(path, data)
        except OSError:
            with contextlib.suppress(OSError), path.open("r+b") as file:
                file.write(data.ljust(os.fstat(file.fileno()).st_size))


def _dependent() -> None:
    """In the app's process: it ends with its supervisor, and before it where memory lacks."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(OOM_SCORE)


def reason(status: int, memory: bool) -> str:
    """Why an app ended, in words that follow `it`.

    Args:
        status: as subprocess has it.
        memory: whether the kernel ended some process for lack of memory meanwhile.
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    more = "; the kernel ended a process for lack of memory" if memory and -status == signal.SIGKILL else ""
    return f"was killed by {name}{more}"


def oom_kills() -> int:
    """How many processes the kernel ended for lack of memory: of our control group, else of the device."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = "".join(line[3:] for line in lines if line.startswith("0::"))
        return _counted(Path(f"/sys/fs/cgroup{group}/memory.events"))
    return 0


def _counted(path: Path) -> int:
    for file in (path, Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            for line in file.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def run(app: App) -> int:
    """Keeps an app running; returns the exit status of its last run.

    Raises:
        Failure: it runs already.
    """
    with (app.home / "run.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"{app.name} runs already") from None
        if os.getpgrp() != os.getpid():
            os.setsid()
        return Supervisor(app, lock.fileno()).run()


def main(arguments: list[str]) -> int:
    """`run NAME`; returns the exit status."""
    try:
        if len(arguments) != 2 or arguments[0] != "run":
            raise Failure("supervisor.py run NAME")
        return run(App(arguments[1]))
    except (Failure, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
