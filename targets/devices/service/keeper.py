"""Keeps an app on a device: installs releases, runs one, ends it, shows its log. Python's own library only.

This one file is copied to the device and run there: `python3 keeper.py COMMAND NAME ...`. It prints one JSON
document; an error is one line on standard error, and exit status 5.

    ~/.local/share/paredown/NAME/
        releases/SHA/        an unpacked bundle that passed its own test vectors here
        releases/SHA.json    how it is started: module and arguments
        releases/SHA.signed.json    what it is signed with, where it is
        current              a link to one of them
        run.lock             held by the running app, and let go by the kernel however that ends
        run.json             its process group; means something only while the lock is held
        log, log.1           what it says, a few megabytes at most
    ~/.local/share/paredown/venv
                             what this device's own Python lacks, and may not install beside Debian's packages

A process number alone would say nothing: it may be another program's by now. Whoever holds `run.lock` is the
app, so what `stop` ends is exactly that. Our design.

Whose releases are taken, and who put them here, is `guard.py`, which comes with this file where that is
asked. A copy of this file alone runs an app.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, Any

FAILED = 5  # exit status
LOG_BYTES = 2 << 20  # of each of two
POLL_S = 0.05
GRACE_S = 10.0  # for an app to complete its files
START_S = 30.0  # for a supervisor to begin, on a board that is busy
PACKED, EXPAND, PROVE = "models.packed", "paredown.targets.runners.expand", "paredown.targets.runners.prove"
LOOK = (
    "import importlib.util as u, json, sys; print(json.dumps([i for i, names in "
    "enumerate(json.loads(sys.argv[1])) if not any(u.find_spec(n) for n in names)]))"
)
UNIT = """[Unit]
Description=paredown {name}

[Service]
ExecStart="{python}" "{keeper}" run {name}
Restart=on-failure
RestartSec=5

[Install]
WantedBy=default.target
"""


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
        """Whether it runs."""
        lock = self.home / "run.lock"
        if not lock.exists():
            return False
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def release(self) -> str | None:
        """What `current` leads to."""
        return self.current.readlink().name if self.current.is_symlink() else None

    def status(self) -> dict[str, Any]:
        """What is known of it."""
        running = self.running()
        told = _read(self.home / "run.json") if running else {}
        return {
            "name": self.name, "running": running, "release": self.release(),
            "service": self.unit.exists(), "pid": told.get("pid"), "ended": _read(self.home / "exit.json"),
        }  # fmt: skip


def interpreter() -> str:
    """The Python that runs apps: that of our virtual environment where there is one, else this one."""
    python = Path.home() / ".local/share/paredown/venv/bin/python"
    return str(python) if python.exists() else sys.executable


def lacking(needs: list[str]) -> list[str]:
    """Those of `MODULE|MODULE=PACKAGE` of which that Python has no module."""
    names = json.dumps([need.partition("=")[0].split("|") for need in needs])
    done = subprocess.run(
        [interpreter(), "-c", LOOK, names], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise Failure(f"{interpreter()} does not run: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return [needs[index] for index in json.loads(done.stdout)]


def prepare(missing: list[str]) -> None:
    """Makes the virtual environment, beside what this Python has already, and installs into it.

    Raises:
        Failure: it cannot be made, or pip cannot install; the line says what to do by hand.
    """
    folder = Path.home() / ".local/share/paredown/venv"
    packages = [need.partition("=")[2] for need in missing]
    steps = [[str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *packages]]
    if not (folder / "bin/python").exists():
        steps.insert(0, [sys.executable, "-m", "venv", "--system-site-packages", str(folder)])
    for step in steps:
        done = subprocess.run(step, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            hint = "sudo apt-get install python3-venv" if "ensurepip" in done.stdout else " ".join(step)
            if len(steps) > 1:  # a half-made one would be taken for whole the next time
                shutil.rmtree(folder, ignore_errors=True)
            why = said[-1].strip() if said else f"status {done.returncode}"
            raise Failure(f"cannot install {' '.join(packages)}: {why}; there: {hint}")


@contextlib.contextmanager
def _guard() -> Iterator[ModuleType]:
    """Asks what this device trusts; what it refuses is one line."""
    from paredown.targets.devices.service import guard  # beside this file, in the folders of its name

    try:
        yield guard
    except guard.Refused as error:
        raise Failure(str(error)) from None


def install(
    app: App, release: str, archive: Path, needs: list[str], envelope: Path | None = None,
    allow_older: bool = False, prepared: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Unpacks a release, expands its models and proves them here; until then, it does not exist.

    Args:
        app: that it is for.
        release: start of the archive's sha256.
        archive: a tar file, its manifest first.
        needs: modules that must be here, as MODULE|MODULE=PACKAGE.
        envelope: what it is signed with.
        allow_older: whether it may be older than what this device had.
        prepared: whether what is missing is installed, into a virtual environment of ours.
    """
    missing = lacking(needs)
    if missing and prepared:
        prepare(missing)
        missing = lacking(needs)
    if missing:
        modules = ", ".join(need.partition("=")[0].replace("|", " or ") for need in missing)
        packages = " ".join(need.partition("=")[2] for need in missing)
        raise Failure(f"no {modules} for {interpreter()}; there: python3 -m pip install {packages}")
    with app.changing(), _guard() as guard:
        text = envelope.read_bytes() if envelope else None
        expected = guard.admit(text, allow_older)
        if expected is not None and not _sha256(archive).startswith(release):
            raise Failure(f"the archive is not release {release}")
        target, part = app.releases / release, app.releases / f".part-{release}"
        for rest in app.releases.glob(".part-*"):
            shutil.rmtree(rest)
        if target.is_dir():
            if expected is not None:
                expected.check_installed(target)
            proof = _asked(PROVE, target)
            _keep_envelope(app, release, text)
            return proof
        try:
            _unpack(archive, part, expected)
            if (part / PACKED).exists():
                _asked(EXPAND, part, PACKED, ".")
                (part / PACKED).unlink()
            proof = _asked(PROVE, part)
            os.sync()
            _keep_envelope(app, release, text)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return proof


def _keep_envelope(app: App, release: str, text: bytes | None) -> None:
    file = app.releases / f"{release}.signed.json"
    if text is None:
        file.unlink(missing_ok=True)
    else:
        _write(file, text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _unpack(archive: Path, folder: Path, expected: Any = None) -> None:
    """Writes the files of a release, each only once it is known to be what was signed, if anything was.

    Raises:
        Failure: one leads out of the folder, or is no file.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            source = tar.extractfile(member)
            if path.is_absolute() or ".." in path.parts or source is None:
                raise Failure(f"{member.name!r} has no place in a release")
            if expected is not None:
                expected.check_head(member.name, member.size)
            data = source.read()
            if expected is not None:
                expected.check(member.name, data)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    if expected is not None:
        expected.check_whole()


def _asked(module: str, folder: Path, *arguments: str) -> Any:
    """What one of a release's own programs answers, as JSON where it is.

    Raises:
        Failure: it fails.
    """
    if not (folder / f"{module.replace('.', '/')}.py").exists():
        module = module.partition(".")[2]  # a release of bundle format 3 holds its code without our name
    command = [interpreter(), "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Failure(said[-1].strip() if said else f"{module} ended with status {done.returncode}")
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {}


def start(
    app: App, release: str, command: dict[str, Any], service: bool, wait_s: float, who: str = "",
    allow_older: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Puts a release in the place of the one that runs; that one comes back where the new one fails.

    Args:
        app: to be started.
        release: installed before.
        command: `module` and `arguments`.
        service: whether systemd keeps it, also over a restart of the device.
        wait_s: seconds in which it has to be ready.
        who: asks for it, for the record.
        allow_older: whether it may be older than what this device had.
    """
    if service:
        _check_systemd()
    with app.changing(), _guard() as guard:
        if not (app.releases / release).is_dir():
            raise Failure(f"release {release} is not installed")
        envelope = app.releases / f"{release}.signed.json"
        text = envelope.read_bytes() if envelope.exists() else None
        expected = guard.admit(text, allow_older)
        if expected is not None:
            expected.check_installed(app.releases / release)
        before, was_running, was_service = app.release(), app.running(), app.unit.exists()
        file = app.releases / f"{release}.json"
        old_command = file.read_bytes() if file.exists() else None
        _end(app, GRACE_S, forget=not service)
        _write(file, json.dumps(command).encode())
        _switch(app, release)
        try:
            _launch(app, service)
            _await_ready(app, wait_s)
            guard.started(text, app.name, release, who)
        except BaseException as error:
            _end(app, GRACE_S, forget=before is None or not was_service)
            if before is None:
                app.current.unlink()
                raise
            if old_command is not None:
                _write(file, old_command)
            _switch(app, before)
            if not was_running:
                raise
            _launch(app, was_service)
            if not _await_running(app):
                raise Failure(f"{error}; release {before} does not run again either") from error
            raise Failure(f"{error}; release {before} runs again") from error
        if before != release:
            _prune(app, {release, before})
    return app.status() | {"previous": before}


def _prune(app: App, keep: set[str | None]) -> None:
    """Removes every release but these: the new one, and the one to go back to."""
    for old in app.releases.iterdir():
        if old.name.partition(".")[0] not in keep:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _switch(app: App, release: str) -> None:
    link = app.home / "current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("releases") / release)
    link.replace(app.current)


def _launch(app: App, service: bool) -> None:
    """Starts the supervisor, by systemd or in a session of its own: it outlives whoever asked for it."""
    for name in ("ready", "exit.json"):
        (app.home / name).unlink(missing_ok=True)
    keeper = app.home / "keeper.py"
    _write(keeper, Path(__file__).read_bytes())
    if service:
        app.unit.parent.mkdir(parents=True, exist_ok=True)
        unit = UNIT.format(name=app.name, python=sys.executable, keeper=keeper)
        _write(app.unit, unit.encode())
        _system("loginctl", "enable-linger")
        _system("systemctl", "--user", "daemon-reload")
        _system("systemctl", "--user", "enable", "--now", app.unit.name)
        return
    subprocess.Popen(
        [sys.executable, str(keeper), "run", app.name], cwd="/", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _await_ready(app: App, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not (app.home / "ready").exists():
        ended = _read(app.home / "exit.json")
        if ended:
            raise Failure(f"it ended with status {ended['status']}: {ended['said']}")
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


def run(app: App) -> int:
    """Runs the current release to its end, and keeps its log short; returns its exit status."""
    with (app.home / "run.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"{app.name} runs already") from None
        if os.getpgrp() != os.getpid():
            os.setsid()
        signal.signal(signal.SIGTERM, lambda *_: None)  # for the app, which then ends; we follow
        _write(app.home / "run.json", json.dumps({"pid": os.getpid()}).encode())
        release = app.current.resolve()
        command = _read(app.releases / f"{release.name}.json")
        with (app.home / "log").open("a") as log:
            print(f"release {release.name} starts", file=log)
        environment = {
            **os.environ, "PAREDOWN_APP": app.name, "PAREDOWN_READY": str(app.home / "ready"),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        child = subprocess.Popen(
            [interpreter(), "-m", command["module"], *command["arguments"]], cwd=release, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],
        )  # fmt: skip
        assert child.stdout
        last = _logged(app, child.stdout)
        status = child.wait()
        ended = {"status": status, "said": last, "time": time.time()}
        _write(app.home / "exit.json", json.dumps(ended).encode())
        return status if status >= 0 else 128 - status


def _logged(app: App, stream: IO[bytes]) -> str:
    """Writes what the app says to its log, line by line; returns the last one."""
    last = ""
    path = app.home / "log"
    file = path.open("ab")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: file.close())
        for line in stream:
            last = line.decode(errors="replace").strip() or last
            if file.tell() + len(line) > LOG_BYTES:
                file.close()
                path.replace(app.home / "log.1")
                file = path.open("ab")
            file.write(line)
            file.flush()
    return last[-500:]


def stop(app: App, grace_s: float) -> dict[str, Any]:
    """Ends the app, kindly at first; it stays ended."""
    if not app.home.is_dir():
        raise Failure(f"no app called {app.name} was deployed here")
    with app.changing():
        was = app.running()
        _end(app, grace_s, forget=True)
    return app.status() | {"was_running": was}


def _end(app: App, grace_s: float, forget: bool) -> None:
    """Ends what runs; where systemd is not to forget it, a device that restarts now comes up with it."""
    if app.unit.exists() and forget:
        _system("systemctl", "--user", "disable", "--now", app.unit.name)
        app.unit.unlink()
        _system("systemctl", "--user", "daemon-reload")
    elif app.unit.exists():
        _system("systemctl", "--user", "stop", app.unit.name)
    for kind, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not app.running():
            return
        group = _read(app.home / "run.json").get("pid")
        if group:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(group, kind)
        deadline = time.monotonic() + seconds
        while app.running() and time.monotonic() < deadline:
            time.sleep(POLL_S)
    if app.running():
        raise Failure(f"{app.name} does not end")


def board() -> dict[str, Any]:
    """Every app of this device, whom it trusts, and who put what here."""
    folders = sorted((Path.home() / ".local/share/paredown").glob("*/releases"))
    with _guard() as guard:
        return {"apps": [App(folder.parent.name).status() for folder in folders], **guard.report()}


def trust(document: Path, target: str | None, who: str) -> dict[str, Any]:
    """Takes a trust document in the place of the present one; returns what `board` says."""
    with _guard() as guard:
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


def _check_systemd() -> None:
    if shutil.which("systemctl") is None or shutil.which("loginctl") is None:
        raise Failure("this device has no systemd; leave --service out, and start the app when it starts")
    _system("systemctl", "--user", "show-environment")


def _system(*command: str) -> None:
    """Asks systemd.

    Raises:
        Failure: it refuses.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": runtime}
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Failure(f"`{' '.join(command)}` failed: {said[-1] if said else done.returncode}")


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; nothing where there is none."""
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}


def _write(path: Path, data: bytes) -> None:
    """A file that is whole or the one before, also after the power went."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Keeps an app on this device.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = {name: commands.add_parser(name) for name in ("install", "start", "run", "stop", "status", "logs")}
    for each in made.values():
        each.add_argument("name")
    for name in ("install", "start"):
        made[name].add_argument("--allow-older", action="store_true")
    commands.add_parser("board")
    trusting = commands.add_parser("trust")
    trusting.add_argument("document", type=Path)
    trusting.add_argument("--target")
    for each in (made["start"], trusting):
        each.add_argument("--who", default="")
    made["install"].add_argument("--envelope", type=Path)
    made["install"].add_argument("release")
    made["install"].add_argument("archive", type=Path)
    made["install"].add_argument("needs", nargs="*", help="MODULE|MODULE=PACKAGE")
    made["install"].add_argument("--prepare", action="store_true")
    made["start"].add_argument("release")
    made["start"].add_argument("what", type=json.loads, help="JSON: module, arguments")
    made["start"].add_argument("--service", action="store_true")
    made["start"].add_argument("--wait", type=float, default=120.0)
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
                answer = start(
                    app, given.release, given.what, given.service, given.wait, given.who, given.allow_older
                )
            case "run":
                return run(app)
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
