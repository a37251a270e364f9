"""Starts and ends an app on a device; the release before comes back. Python's own library only."""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.targets.devices.service.board import supervisor, unit
from paredown.targets.devices.service.board.home import App, Failure, read, switch, write
from paredown.targets.devices.service.board.installing import guarded

POLL_S = 0.05
START_S = 30.0  # for a supervisor to begin, on a board that is busy
GRACE_S = supervisor.GRACE_S
KEEPING, SUPERVISOR, PARTS = "keeping", "supervisor.py", ("home.py", "log.py")
BOARD = "paredown/targets/devices/service/board"


@dataclass(frozen=True)
class Health:
    """What a release may not do in the time after it was started.

    Attributes:
        seconds: that it has to live in one go; 0 = nothing is asked.
        restarts: after more of them it gives way to the release before.
        errors: likewise lines of its log that begin with `error`, `fatal` or `Traceback`.
    """

    seconds: float = 180.0
    restarts: int = 1
    errors: int = 10


def start(
    app: App, release: str, command: dict[str, Any], service: bool, wait_s: float, who: str = "",
    allow_older: bool = False, health: Health | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Puts a release in the place of the one that runs; that one comes back where the new one fails.

    Args:
        app: to be started.
        release: installed before.
        command: `module` and `arguments`, and `hang_s` where another limit is meant.
        service: whether systemd keeps it, also over a restart of the device.
        wait_s: seconds in which it has to be ready.
        who: asks for it, for the record.
        allow_older: whether it may be older than what this device had.
        health: what is asked of it afterwards; None = nothing.
    """
    if service:
        unit.check_systemd()
    sources = _sources()  # now: where the connection is lost, they are gone before we end
    with app.changing(), guarded() as guard:
        if not (app.releases / release).is_dir():
            raise Failure(f"release {release} is not installed")
        envelope = app.releases / f"{release}.signed.json"
        text = envelope.read_bytes() if envelope.exists() else None
        expected = guard.admit(text, allow_older)
        if expected is not None:
            expected.check_installed(app.releases / release)
        before, was_running, was_service = app.release(), app.running(), app.unit.exists()
        last = read(app.home / "window.json")
        older = last.get("before") if last.get("release") == before else None
        file = app.releases / f"{release}.json"
        old_command = file.read_bytes() if file.exists() else None
        end(app, GRACE_S, forget=not service)
        write(file, json.dumps(command).encode())
        health = health or Health(0.0)
        window: dict[str, Any] = {
            "release": release, "before": before, "state": "open", "armed": False, "failures": 0, "why": "",
            "command_before": read(app.releases / f"{before}.json") or None if before != release
            else json.loads(old_command or b"null"), "returned": False, **vars(health),
        }  # fmt: skip
        write(app.home / "window.json", json.dumps(window).encode().ljust(supervisor.STATE_BYTES))
        switch(app, release)
        try:
            _launch(app, service, sources)
            _await_ready(app, wait_s)
            guard.started(text, app.name, release, who)
        except BaseException as error:
            end(app, GRACE_S, forget=before is None or not was_service)
            window |= {"state": "failed", "why": str(error), "returned": before is not None}
            write(app.home / "window.json", json.dumps(window).encode().ljust(supervisor.STATE_BYTES))
            if before is None:
                app.current.unlink()
                raise
            if old_command is not None:
                write(file, old_command)
            switch(app, before)
            _prune(app, {before, older})  # else each that fails would stay there
            if not was_running:
                raise
            _launch(app, was_service, sources)
            if not _await_running(app):
                raise Failure(f"{error}; release {before} does not run again either") from error
            raise Failure(f"{error}; release {before} runs again") from error
        if before != release:
            _prune(app, {release, before})
    return app.status() | {"previous": before}


def back(app: App, release: str, wait_s: float, who: str = "") -> dict[str, Any]:
    """Puts the release before in the place of one; where there was none, nothing runs.

    Args:
        app: of this device.
        release: that is not wanted; where another one runs, nothing is done.
        wait_s: seconds in which the one before has to be ready.
        who: asks for it, for the record.
    """
    window = read(app.home / "window.json")
    before, command = window.get("before"), window.get("command_before")
    if app.release() != release or window.get("release") != release:
        return app.status() | {"previous": None}
    if before is None or command is None:
        answer = stop(app, GRACE_S)
        app.current.unlink(missing_ok=True)
        return answer | {"release": None, "previous": release}
    return start(app, before, command, app.unit.exists(), wait_s, who, allow_older=True)


def stop(app: App, grace_s: float) -> dict[str, Any]:
    """Ends the app, kindly at first; it stays ended."""
    if not app.home.is_dir():
        raise Failure(f"no app called {app.name} was deployed here")
    with app.changing():
        was = app.running()
        end(app, grace_s, forget=True)
    return app.status() | {"was_running": was}


def end(app: App, grace_s: float, forget: bool) -> None:
    """Ends what runs; where systemd is not to forget it, a device that restarts now comes up with it."""
    if app.unit.exists() and forget:
        unit.disable(app)
    elif app.unit.exists():
        unit.system("systemctl", "--user", "stop", app.unit.name)
    for kind, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not app.running():
            return
        group = read(app.home / "run.json").get("pid")
        if group:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(group, kind)
        deadline = time.monotonic() + seconds
        while app.running() and time.monotonic() < deadline:
            time.sleep(POLL_S)
    if app.running():
        raise Failure(f"{app.name} does not end")


def _prune(app: App, keep: set[str | None]) -> None:
    """Removes every release but these: the new one, and the one to go back to."""
    for old in app.releases.iterdir():
        if old.name.partition(".")[0] not in keep:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _sources() -> dict[str, bytes]:
    """The supervisor's files: name below the folder of its own -> text; the one that is run comes last."""
    texts = {name: pkgutil.get_data(__package__, name) or b"" for name in (*PARTS, SUPERVISOR)}
    folders = (Path(BOARD), *Path(BOARD).parents[:-1])
    empty = {f"{folder}/__init__.py": b"" for folder in folders}
    parts = {f"{BOARD}/{name}": texts[name] for name in PARTS}
    return {**empty, **parts, SUPERVISOR: texts[SUPERVISOR]}


def _launch(app: App, service: bool, sources: Mapping[str, bytes]) -> None:
    """Starts the supervisor, by systemd or in a session of its own: it outlives whoever asked for it."""
    for name in ("ready", "exit.json"):
        (app.home / name).unlink(missing_ok=True)
    for name, data in sources.items():
        path = app.home / KEEPING / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, data)
    program = app.home / KEEPING / SUPERVISOR
    if service:
        unit.enable(app, program)
        return
    subprocess.Popen(
        [sys.executable, str(program), "run", app.name], cwd="/", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _await_ready(app: App, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not (app.home / "ready").exists():
        ended = read(app.home / "exit.json")
        if ended:
            raise Failure(f"it {ended['why']}: {ended['said']}")
        if time.monotonic() > deadline:
            raise Failure(f"it was not ready after {wait_s:g} s; `paredown logs` shows what it says")
        time.sleep(POLL_S)


def _await_running(app: App) -> bool:
    """Waits until the supervisor that was launched holds the app, or has ended already."""
    deadline = time.monotonic() + START_S
    while not app.running():
        if (app.home / "exit.json").exists() or time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
