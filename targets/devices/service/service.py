"""Apps that stay on a device: this end of `keeper.py`, which does the work there."""

from __future__ import annotations

import getpass
import io
import json
import re
import socket
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paredown.targets.devices.device import Device, python_of
from paredown.targets.devices.errors import NoSpaceError, is_full
from paredown.targets.devices.service import keeper
from paredown.targets.devices.service.board.starting import Health
from paredown.targets.errors import DeviceError, UsageError
from paredown.targets.own_code import own_code

STEP_S, PROVE_S = 120.0, 1800.0  # an emulated board takes its time
WATCH_S = 1e8  # three years of tailing
READY_S = 180.0  # for a first picture, on a board that has only just started
#: What runs there, in one file: the keeper, its parts, and what judges a signature.
PARTS = ("__init__.py", "targets/__init__.py", "targets/devices/__init__.py",
         "targets/devices/service/__init__.py", "targets/devices/service/board/*.py",
         "targets/devices/service/ed25519.py", "targets/devices/service/guard.py",
         "targets/devices/service/signed.py")  # fmt: skip
KEEPER = "keeper.pyz"


class Board:
    """What a device trusts, and what was put there.

    Args:
        device: connected, with a python3.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._pushed = False

    def report(self) -> dict[str, Any]:
        """Its apps, its trust document or None, its target, the newest release of each bundle, its record."""
        return self._ask("board", timeout=STEP_S)

    def trust(self, document: Path, target: str | None = None) -> dict[str, Any]:
        """Has it trust the keys of a document.

        Args:
            document: the signed file.
            target: what the device is; None = as before, or what its first release is made for.

        Returns:
            What `report` says then.

        Raises:
            DeviceError: the document may not take the place of the one that is there.
        """
        self.device.push(document, "trust.json")
        options = [] if target is None else ["--target", target]
        return self._ask("trust", "trust.json", *options, "--who", whoever(), timeout=STEP_S)

    def _ask(
        self, command: str, *arguments: str, timeout: float, on_line: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        if not self._pushed:
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / KEEPER
                local.write_bytes(keeper_archive())
                self.device.push(local, KEEPER)
            self._pushed = True
        line = [python_of(self.device), KEEPER, command, *arguments]
        done = self.device.run(line, timeout=timeout, check=False, on_line=on_line)
        if done.code:
            said = done.err.strip().splitlines()
            what = said[-1] if said else f"python3 ended with status {done.code}"
            if is_full(what):
                raise NoSpaceError(where=self.device.address)
            raise DeviceError(what, where=self.device.address.rstrip(":"))
        return dict(json.loads(done.out))


def keeper_archive() -> bytes:
    """A zip file that Python runs; the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in {"__main__.py": Path(keeper.__file__), **own_code(PARTS)}.items():
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def whoever() -> str:
    """Who works here, for a device's record: user@machine, as this machine says."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # of a container whose user has no name
        user = "?"
    return f"{user}@{socket.gethostname()}"


class Service(Board):
    """An app of a device; it outlives the connection, which is why the device's `run` alone is not enough.

    Args:
        device: connected, with a python3.
        name: of the app there.

    Raises:
        UsageError: this is no name.
    """

    def __init__(self, device: Device, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise UsageError(f"`{name}` is no name of an app", hint="small letters, digits and dashes")
        super().__init__(device)
        self.name = name

    def install(
        self, archive: bytes, release: str, needs: Mapping[str, str], envelope: bytes | None = None,
        allow_older: bool = False, prepare: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Unpacks a release there and proves it with its own test vectors; what runs is left alone.

        Args:
            archive: a tar file of an unpacked bundle, its manifest first.
            release: its name: the start of the archive's sha256.
            needs: module of Python, or several as "a|b" of which one is enough -> package that has it.
            envelope: what it is signed with.
            allow_older: whether it may be older than what the device had.
            prepare: whether what is missing is installed there, into a virtual environment of ours.

        Returns:
            What the release's own proof says.

        Raises:
            DeviceError: it fails its vectors, the device does not trust it, or something is missing there;
                then it is not installed.
        """
        options = ["--allow-older"] if allow_older else []
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "release"
            if envelope is not None:
                local.write_bytes(envelope)
                self.device.push(local, "release.json")
                options += ["--envelope", "release.json"]
            local.write_bytes(archive)
            self.device.push(local, "release.tar.gz")
        wanted = [f"{module}={package}" for module, package in needs.items()]
        options += ["--prepare"] if prepare else []
        return self._ask_app("install", release, "release.tar.gz", *wanted, *options, timeout=PROVE_S)

    def start(
        self, release: str, module: str, arguments: Sequence[str], service: bool = False,
        allow_older: bool = False, health: Health | None = None, hang_s: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Ends what runs and starts a release; where that does not work out, the one before comes back.

        A change that has begun is completed there, also where the connection is lost meanwhile.

        Args:
            release: installed.
            module: of Python, in the release.
            arguments: of its command line.
            service: whether it starts with the device, by systemd.
            allow_older: whether it may be older than what the device had.
            health: what is asked of it afterwards, and watched there; else the one before comes back.
            hang_s: seconds without a heartbeat, of an app that gave one, after which it is ended.

        Raises:
            DeviceError: it did not get ready; the line says why and what runs now.
        """
        command = {"module": module, "arguments": list(arguments)}
        what = json.dumps(command if hang_s is None else command | {"hang_s": hang_s})
        options = ["--wait", str(READY_S), *(["--service"] if service else []), "--who", whoever()]
        options += ["--allow-older"] if allow_older else []
        options += ["--health", json.dumps(vars(health))] if health else []
        return self._ask_app("start", release, what, *options, timeout=READY_S + PROVE_S)

    def back(self, release: str) -> dict[str, Any]:
        """Has the release before take the place of one; where there was none, nothing runs.

        Args:
            release: that is not wanted; where another one runs, nothing is done.

        Raises:
            DeviceError: the one before is not taken or did not get ready; the line says what runs now.
        """
        options = ["--wait", str(READY_S), "--who", whoever()]
        return self._ask_app("back", release, *options, timeout=READY_S + PROVE_S)

    def stop(self, grace_s: float = 10.0) -> dict[str, Any]:
        """Ends exactly this app; `was_running` says whether there was anything to end.

        Raises:
            DeviceError: no such app was deployed.
        """
        return self._ask_app("stop", "--grace", str(grace_s), timeout=grace_s + STEP_S)

    def status(self) -> dict[str, Any]:
        """Whether it runs, which release, as which process, and how it ended."""
        return self._ask_app("status", timeout=STEP_S)

    def logs(self, on_line: Callable[[str], None], lines: int = 50, follow: bool = False) -> None:
        """Tells the last lines of its log, and then, where asked, each one as it comes, until the app ends.

        Raises:
            DeviceError: no such app was deployed, or the connection is lost; the app goes on.
        """
        options = ["--lines", str(lines), *(["--follow"] if follow else [])]
        self._ask_app("logs", *options, timeout=WATCH_S if follow else STEP_S, on_line=on_line)

    def _ask_app(
        self, command: str, *arguments: str, timeout: float, on_line: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        return self._ask(command, self.name, *arguments, timeout=timeout, on_line=on_line)
