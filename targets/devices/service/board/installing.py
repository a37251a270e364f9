"""Installs a release on a device: unpacked, expanded and proved there. Python's own library only.

`keeper.py` asks this file, which is copied to the device with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from paredown.targets.devices.service.board.home import App, Failure, interpreter, write

PACKED, EXPAND, PROVE = "models.packed", "paredown.targets.runners.expand", "paredown.targets.runners.prove"
LOOK = (
    "import importlib.util as u, json, sys; print(json.dumps([i for i, names in "
    "enumerate(json.loads(sys.argv[1])) if not any(u.find_spec(n) for n in names)]))"
)


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
def guarded() -> Iterator[ModuleType]:
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
    with app.changing(), guarded() as guard:
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
        write(file, text)


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
