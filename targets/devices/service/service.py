"""Apps that stay on a device: this end of `keeper.py`, which does the work there."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paredown.targets.devices.device import Device
from paredown.targets.devices.service import keeper
from paredown.targets.errors import DeviceError, UsageError

STEP_S, PROVE_S = 120.0, 1800.0  # an emulated board takes its time
WATCH_S = 1e8  # three years of tailing
READY_S = 180.0  # for a first picture, on a board that has only just started


class Service:
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
        self.device, self.name = device, name
        self._pushed = False

    def install(self, archive: bytes, release: str, needs: Mapping[str, str]) -> dict[str, Any]:
        """Unpacks a release there and proves it with its own test vectors; what runs is left alone.

        Args:
            archive: a tar file of an unpacked bundle.
            release: its name.
            needs: module of Python -> package that has it.

        Returns:
            What the release's own proof says.

        Raises:
            DeviceError: it fails its vectors, or something is missing there; then it is not installed.
        """
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "release"
            local.write_bytes(archive)
            self.device.push(local, "release.tar.gz")
        wanted = [f"{module}={package}" for module, package in needs.items()]
        return self._ask("install", release, "release.tar.gz", *wanted, timeout=PROVE_S)

    def start(
        self, release: str, module: str, arguments: Sequence[str], service: bool = False
    ) -> dict[str, Any]:
        """Ends what runs and starts a release; where that does not work out, the one before comes back.

        Args:
            release: installed.
            module: of Python, in the release.
            arguments: of its command line.
            service: whether it starts with the device, by systemd.

        Raises:
            DeviceError: it did not get ready; the line says why and what runs now.
        """
        what = json.dumps({"module": module, "arguments": list(arguments)})
        options = ["--wait", str(READY_S), *(["--service"] if service else [])]
        return self._ask("start", release, what, *options, timeout=READY_S + PROVE_S)

    def stop(self, grace_s: float = 10.0) -> dict[str, Any]:
        """Ends exactly this app; `was_running` says whether there was anything to end.

        Raises:
            DeviceError: no such app was deployed.
        """
        return self._ask("stop", "--grace", str(grace_s), timeout=grace_s + STEP_S)

    def status(self) -> dict[str, Any]:
        """Whether it runs, which release, as which process, and how it ended."""
        return self._ask("status", timeout=STEP_S)

    def logs(self, on_line: Callable[[str], None], lines: int = 50, follow: bool = False) -> None:
        """Tells the last lines of its log, and then, where asked, each one as it comes, until the app ends.

        Raises:
            DeviceError: no such app was deployed, or the connection is lost; the app goes on.
        """
        options = ["--lines", str(lines), *(["--follow"] if follow else [])]
        self._ask("logs", *options, timeout=WATCH_S if follow else STEP_S, on_line=on_line)

    def _ask(
        self, command: str, *arguments: str, timeout: float, on_line: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        if not self._pushed:
            self.device.push(Path(keeper.__file__), "keeper.py")
            self._pushed = True
        line = ["python3", "keeper.py", command, self.name, *arguments]
        done = self.device.run(line, timeout=timeout, check=False, on_line=on_line)
        if done.code:
            said = done.err.strip().splitlines()
            what = said[-1] if said else f"python3 ended with status {done.code}"
            raise DeviceError(what, where=self.device.address.rstrip(":"))
        return dict(json.loads(done.out))
