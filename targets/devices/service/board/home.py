"""The folder of an app on a device, and how its files are read and written. Python's own library only.

    ~/.local/share/paredown/NAME/
        releases/SHA/        an unpacked bundle that passed its own test vectors here
        releases/SHA.json    how it is started: module and arguments
        releases/SHA.signed.json    what it is signed with, where it is
        current        a link to one of them
        change.lock    held by whoever installs, starts or stops it
        run.lock       held by the running app, and let go by the kernel however that ends
        run.json       process group, state, restarts, and why it last ended; old unless the lock is held
        exit.json      how it ended, where nobody starts it again
        window.json    the health window of a release: what it may not do, and what it gives way to
        log, log.1     what the app says, a few megabytes at most
        keeping/       the supervisor's own files
    ~/.local/share/paredown/venv
                       what this device's own Python lacks, and may not install beside Debian's packages

A process number alone would say nothing: it may be another program's by now. Whoever holds `run.lock` is the
app, so what `stop` ends is exactly that. Our design.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Failure(Exception):
    """One line for the user."""


class App:
    """An app of this device.

    Args:
        name: of its folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.home = Path.home() / ".local/share/paredown" / name
        self.releases, self.current = self.home / "releases", self.home / "current"
        self.unit = Path.home() / ".config/systemd/user" / f"paredown-{name}.service"

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Only one at a time installs, starts or stops."""
        self.releases.mkdir(parents=True, exist_ok=True)
        with (self.home / "change.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failure(f"somebody else is deploying {self.name} just now; try again later") from None
            yield

    def running(self) -> bool:
        """Whether it runs, or is about to be started again."""
        return held(self.home / "run.lock")

    def release(self) -> str | None:
        """What `current` leads to."""
        return self.current.readlink().name if self.current.is_symlink() else None

    def status(self) -> dict[str, Any]:
        """What is known of it."""
        running, release = self.running(), self.release()
        told, window = read(self.home / "run.json"), read(self.home / "window.json")
        ended = read(self.home / "exit.json") or told.get("ended") or {}
        window.pop("command_before", None)
        return {
            "name": self.name, "running": running, "release": release, "service": self.unit.exists(),
            "pid": told.get("pid") if running else None, "ended": ended,
            "state": told.get("state", "runs") if running else "ended", "restarts": told.get("restarts", 0),
            "beat": told.get("beat"), "dropped": told.get("dropped", 0), "window": window or None,
            "command": command_digest(read(self.releases / f"{release}.json")),
        }  # fmt: skip


def command_digest(command: Mapping[str, Any]) -> str:
    """Tells commands apart without telling what is in them, as the password of a stream."""
    return hashlib.sha256(json.dumps(command, sort_keys=True).encode()).hexdigest()[:12]


def interpreter() -> str:
    """The Python that runs apps: that of our virtual environment where there is one, else this one."""
    python = Path.home() / ".local/share/paredown/venv/bin/python"
    return str(python) if python.exists() else sys.executable


def switch(app: App, release: str) -> None:
    """Has `current` lead to a release, at once."""
    link = app.home / "current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("releases") / release)
    link.replace(app.current)


def held(lock: Path) -> bool:
    """Whether a process holds a lock."""
    if not lock.exists():
        return False
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; nothing where there is none, or the power went while it was written over."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}


def write(path: Path, data: bytes) -> None:
    """A file that is whole or the one before, also after the power went."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
