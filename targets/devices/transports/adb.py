"""Android-style devices, by the platform's `adb`.

`adb shell` ends with status 1 both where the program did and where the device went away. So the device's
shell says the status itself, at the very end of standard error; where it does not, the connection was lost.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from subprocess import DEVNULL, PIPE, STDOUT

from paredown.targets.devices.device import Kind
from paredown.targets.devices.errors import (
    AdbMissingError,
    AdbOfflineError,
    AdbPermissionsError,
    AdbUnauthorisedError,
    ConnectionLostError,
    MissingToolError,
    NoAdbDeviceError,
    SeveralAdbDevicesError,
    UnreachableError,
)
from paredown.targets.devices.transports.channel import Channel, ProcessChannel, Reader
from paredown.targets.devices.transports.retry import PATIENCE, Patience, retried

_MARK = b"\x1e"  # "record separator": rare in what programs complain of
_STATUS = re.compile(rb"\x1e(\d+)\x1e$")
_SAY_STATUS = r"printf '\036%s\036' $? >&2"
REBOOTS = ("recovery", "sideload", "rescue", "bootloader")  # it is there, and runs no Android
_SHELL_2 = "shell_v2"  # streams and status apart: since Android 7


class AdbTransport:
    """Starts programs through the server that `adb` runs on this machine, which stays running, as ever.

    Args:
        serial: of the device, as `adb devices` has it, or host:port; empty = the only one.
        address: names it in errors.
        patience: how often it is tried.
        server: another one than everybody's, by its socket, as `adb -L` takes it.
    """

    kind: Kind = "adb"

    def __init__(self, serial: str, address: str, patience: Patience = PATIENCE, server: str = "") -> None:
        self.address = address
        self._serial, self._patience, self._server = serial, patience, server

    async def start(self, command: str) -> Channel:
        """Starts a program; see `Transport.start`."""
        self._serial = await retried(self._choose, self._patience, on=(UnreachableError, AdbOfflineError))
        line = f"({command}); {_SAY_STATUS}"
        process = await ProcessChannel.start(*self._adb(), "-s", self._serial, "shell", "-T", line)
        return AdbChannel(process, self.address)

    async def close(self) -> None:
        """Nothing to disconnect: the server goes on for others, or ends with what started it."""

    def _adb(self) -> list[str]:
        path = shutil.which("adb")
        if path is None:
            raise AdbMissingError(where=self.address)
        return [path, "-L", self._server] if self._server else [path]

    async def _choose(self) -> str:
        """The serial of the device, once it can be worked with."""
        states = await self._states()
        if re.fullmatch(r".+:\d+", self._serial) and self._serial not in states:
            answer = await self._ask("connect", self._serial)
            states = await self._states()
            if self._serial not in states:
                raise UnreachableError(answer, where=self.address)
        serial = self._serial or self._only(states)
        state = states.get(serial)
        if state is None:
            there = f"there are {', '.join(states)}" if states else None
            raise NoAdbDeviceError(serial, where=self.address, hint=there)
        if state in ("unauthorized", "authorizing"):
            raise AdbUnauthorisedError(serial, where=self.address)
        if state.startswith("no permissions"):
            raise AdbPermissionsError(serial, where=self.address)
        if state in REBOOTS:
            raise AdbOfflineError(
                f"{serial} is in {state}", where=self.address, hint="`adb reboot` starts it"
            )
        if state != "device":
            raise AdbOfflineError(f"{serial} is `{state}`", where=self.address)
        if _SHELL_2 not in await self._ask("-s", serial, "features"):
            raise MissingToolError(f"{_SHELL_2} of adb", where=self.address, hint="Android 7 has it")
        return serial

    def _only(self, states: dict[str, str]) -> str:
        if len(states) > 1:
            first = next(iter(states))
            raise SeveralAdbDevicesError(
                ", ".join(f"{serial} ({state})" for serial, state in states.items()),
                where=self.address,
                hint=f"choose one: adb://{first}",
            )
        return next(iter(states), "")

    async def _states(self) -> dict[str, str]:
        """Serial -> state of every device that adb sees."""
        lines = (await self._ask("devices")).splitlines()
        rows = (line.split("\t") for line in lines if "\t" in line)
        return {serial: state.strip().split(";")[0] for serial, state in rows}

    async def _ask(self, *arguments: str) -> str:
        """What adb answers, be it a complaint or not."""
        command, limit = [*self._adb(), *arguments], self._patience.answer_s
        try:
            done = await asyncio.to_thread(
                subprocess.run, command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, timeout=limit,
                start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            what = f"`adb {' '.join(arguments)}` does not answer"
            hint = "`adb kill-server` ends a stuck server"
            raise UnreachableError(what, where=self.address, hint=hint) from error
        return str(done.stdout, errors="replace").strip()


class AdbChannel:
    """A program on the device, of which `adb` is this end."""

    def __init__(self, process: ProcessChannel, address: str) -> None:
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, _Marked(process.stderr)
        self._process, self._address = process, address

    async def wait(self) -> int:
        """Its exit status; see `Channel.wait`."""
        await self._process.wait()
        if self.stderr.status is None:
            raise ConnectionLostError("before it was known how it ended", where=self._address)
        return self.stderr.status

    def abort(self) -> None:
        """Kills the `adb shell`; the device notices and ends the program."""
        self._process.abort()


class _Marked:
    """Standard error without the status at its end: what follows a mark is held back."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._held = reader, b""
        self.status: int | None = None  # until it was said

    async def read(self, n: int = -1, /) -> bytes:
        """What is no mark and comes before one; the rest at the end."""
        while data := await self._reader.read(n):
            before, mark, after = (self._held + data).partition(_MARK)
            self._held = mark + after
            if before:
                return before
        if found := _STATUS.search(self._held):
            self.status = int(found[1])
        said, self._held = self._held[: found.start() if found else None], b""
        return said
