"""One program per camera: a lock that names its holder, and that ends with the holder however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from paredown.apps.detector.device.frames.source import device_file, hidden_password
from paredown.targets.errors import DeviceError

#: Below the home folder; another user's program is caught by the driver, which calls the camera busy.
FOLDER = Path(".local/share/paredown/.cameras")


@contextlib.contextmanager
def held(camera: str, holder: str) -> Iterator[None]:
    """Holds a camera, by whatever name, or a stream for as long as the block lasts.

    Args:
        camera: as the user names it.
        holder: who says so to others.

    Raises:
        DeviceError: somebody else holds it; the line says who.
    """
    folder = _folder()
    if folder is None:  # nothing can be written anywhere: the driver alone knows who has the camera
        yield
        return
    path = folder / f"{_lock_name(camera)}.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeviceError(
                f"in use by {_holder(path)}", where=hidden_password(camera),
                hint="end that first (`paredown stop` for a deployed app), or choose another camera",
            ) from None  # fmt: skip
        with contextlib.suppress(OSError):  # on a full disk the lock has no name in it, and holds
            file.truncate(0)
            os.write(file.fileno(), json.dumps({"name": holder, "pid": os.getpid()}).encode())
        yield


def _folder() -> Path | None:
    """Where the locks are: in the home folder, or, where it is read-only, in the system's temporary one."""
    other = Path(tempfile.gettempdir()) / f"paredown-cameras-{os.getuid()}"
    with contextlib.suppress(OSError, RuntimeError):  # no home at all
        home = Path.home() / FOLDER
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    with contextlib.suppress(OSError):
        other.mkdir(mode=0o700, exist_ok=True)
        if other.stat().st_uid == os.getuid() and os.access(other, os.W_OK):
            return other
    return None


def _lock_name(camera: str) -> str:
    """One name for all names of a camera, and no password in it."""
    file = device_file(camera)
    shown = str(file.resolve()) if file else hidden_password(camera)
    digest = hashlib.sha256(shown.encode()).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9]+', '-', shown).strip('-')[:40]}-{digest}"


def _holder(path: Path) -> str:
    try:
        known = json.loads(path.read_text())
        return f"{known['name']} (process {known['pid']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another program"
