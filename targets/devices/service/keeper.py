"""Keeps an app on a device: installs releases, runs one, ends it, shows its log. Python's own library only.

This file is copied to the device, in one archive with the folder `board`, and run there: `python3 keeper.pyz
COMMAND NAME ...`. It prints one JSON document; an error is one line on standard error, and exit status 5.
What it keeps there is told in `board/home.py`; what stays and runs an app is `board/supervisor.py`.

Whose releases are taken, and who put them here, is `guard.py`, which comes along where that is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paredown.targets.devices.service.board.home import App, Failure
from paredown.targets.devices.service.board.installing import guarded, install
from paredown.targets.devices.service.board.starting import POLL_S, Health, back, start, stop

FAILED = 5  # exit status


def board() -> dict[str, Any]:
    """Every app of this device, whom it trusts, and who put what here."""
    folders = sorted((Path.home() / ".local/share/paredown").glob("*/releases"))
    with guarded() as guard:
        return {"apps": [App(folder.parent.name).status() for folder in folders], **guard.report()}


def trust(document: Path, target: str | None, who: str) -> dict[str, Any]:
    """Takes a trust document in the place of the present one; returns what `board` says."""
    with guarded() as guard:
        guard.accept(document.read_bytes(), target, who)
    return board()


def logs(app: App, lines: int, follow: bool, write: Callable[[str], None]) -> None:
    """Writes the end of the log, and then, where asked, what comes until the app ends."""
    path = app.home / "log"
    if not app.home.is_dir():
        raise Failure(f"no app called {app.name} was deployed here")
    text = b""
    for file in (app.home / "log.1", path):
        text += file.read_bytes() if file.exists() else b""
    for line in text.decode(errors="replace").splitlines()[-lines:]:
        write(line)
    seen = path.stat().st_size if path.exists() else 0
    while follow:
        alive = app.running()
        size = path.stat().st_size if path.exists() else 0
        seen = min(seen, size) if size >= seen else 0  # a new file, from its beginning
        if size > seen:
            with path.open("rb") as file_:
                file_.seek(seen)
                data = file_.read()
            whole = data.rfind(b"\n") + 1
            for line in data[:whole].decode(errors="replace").splitlines():
                write(line)
            seen += whole
        if not alive:
            return
        time.sleep(POLL_S)


def completed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Does it in a session of its own: a change that has begun is completed, whatever becomes of who asked.

    Raises:
        Failure: it failed.
    """
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            told = json.loads(file.read() or b'{"failed": "its process was killed"}')
        os.waitpid(child, 0)
        if "failed" in told:
            raise Failure(told["failed"])
        return dict(told["answer"])
    try:
        os.setsid()
        told = {"answer": work()}
    except BaseException as error:  # whoever asked may be there, and tells it
        told = {"failed": str(error) or type(error).__name__}
    try:
        with os.fdopen(writer, "wb") as file:
            file.write(json.dumps(told).encode())
    finally:
        os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Keeps an app on this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    names = ("install", "start", "back", "stop", "status", "logs")
    made = {name: commands.add_parser(name) for name in names}
    for each in made.values():
        each.add_argument("name")
    for name in ("install", "start"):
        made[name].add_argument("--allow-older", action="store_true")
    commands.add_parser("board")
    trusting = commands.add_parser("trust")
    trusting.add_argument("document", type=Path)
    trusting.add_argument("--target")
    for each in (made["start"], made["back"], trusting):
        each.add_argument("--who", default="")
    for each in (made["start"], made["back"]):
        each.add_argument("release")
        each.add_argument("--wait", type=float, default=120.0)
    made["install"].add_argument("--envelope", type=Path)
    made["install"].add_argument("release")
    made["install"].add_argument("archive", type=Path)
    made["install"].add_argument("needs", nargs="*", help="MODULE|MODULE=PACKAGE")
    made["install"].add_argument("--prepare", action="store_true")
    made["start"].add_argument("what", type=json.loads, help="JSON: module, arguments")
    made["start"].add_argument("--service", action="store_true")
    made["start"].add_argument("--health", type=json.loads, help="JSON: seconds, restarts, errors")
    made["stop"].add_argument("--grace", type=float, default=10.0)
    made["logs"].add_argument("--lines", type=int, default=50)
    made["logs"].add_argument("--follow", action="store_true")
    given = parser.parse_args(arguments)
    app, answer = App(getattr(given, "name", "")), None
    try:
        match given.command:
            case "install":
                answer = install(
                    app, given.release, given.archive, given.needs, given.envelope, given.allow_older,
                    given.prepare,
                )  # fmt: skip
            case "start":
                health = Health(**given.health) if given.health else None
                answer = completed(lambda: start(
                    app, given.release, given.what, given.service, given.wait, given.who, given.allow_older,
                    health,
                ))  # fmt: skip
            case "back":
                answer = completed(lambda: back(app, given.release, given.wait, given.who))
            case "stop":
                answer = stop(app, given.grace)
            case "status":
                answer = app.status()
            case "board":
                answer = board()
            case "trust":
                answer = trust(given.document, given.target, given.who)
            case "logs":  # on standard error, which the connection tells line by line
                logs(app, given.lines, given.follow, lambda line: print(line, file=sys.stderr, flush=True))
                answer = {}
    except (Failure, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return FAILED
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
