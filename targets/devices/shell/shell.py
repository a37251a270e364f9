"""A device that has a POSIX shell: everything goes through `sh`, by whatever transport.

No file server is needed there, busybox is enough, and one code serves all boards. See `script.py` for what is
said to the device and for how nothing stays running.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import queue
import secrets
import shlex
import textwrap
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from paredown.targets.devices.device import Completed, Dialogue
from paredown.targets.devices.errors import (
    ConnectionLostError,
    LoginShellError,
    MissingToolError,
    NoSuchFileError,
    PushDamagedError,
    TimedOutError,
    failure,
    last_line,
)
from paredown.targets.devices.shell import script
from paredown.targets.devices.shell.arrival import Arrival
from paredown.targets.devices.shell.conversation import AfterMark, Lines, converse
from paredown.targets.devices.shell.dialogue import ChannelDialogue
from paredown.targets.devices.shell.worker import Worker
from paredown.targets.devices.transports.channel import Channel, Transport
from paredown.targets.devices.transports.retry import PATIENCE, Patience, retried
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.runners.expand import leads_out

T = TypeVar("T")

STEP_S = 60.0  # seconds that a small step may take, on an emulated board of a busy machine
COPY_S = 600.0  # seconds that a copy may take, and longer where the file is large:
SLOWEST = 50_000  # bytes per second
LONGEST_NAME = 80  # characters of a command in an error


class ShellDevice:
    """A connection; see `Device`, which it is one of.

    Args:
        transport: how programs are started there.
        emulated: whether an emulator is behind it.
        patience: how long it is waited for and how often it is tried.
        on_close: called at the very end, also where it could not be opened.

    Raises:
        DeviceError: it cannot be reached, lacks a program that we need, or has no room for a folder.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        emulated: bool = False,
        patience: Patience = PATIENCE,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.address, self.kind = transport.address, transport.kind
        self.emulated = emulated
        self._transport, self._patience, self._on_close = transport, patience, on_close
        self._unsure: set[str] = set()  # jobs whose end nobody saw
        self._mark = f"paredown{secrets.token_hex(8)}"
        self._open = True
        self._base = ""
        self._worker = Worker(f"device {self.address}")
        try:
            self._base = self._worker.call(self._prepare())
        except BaseException:
            self.close()
            raise
        self.workspace = f"{self._base}/work"

    def push(self, source: Path, target: str) -> None:
        """Copies a file there; see `Device.push`."""
        self._worker.call(self._push(source, _inside(target)))

    def pull(self, source: str, target: Path) -> None:
        """Copies a file here; see `Device.pull`."""
        self._worker.call(self._pull(_inside(source), target))

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
    ) -> Completed:
        """Runs a program there; see `Device.run`."""
        started = time.monotonic()
        code, out, err = self._worker.call(self._run(command, timeout, environment or {}, on_line))
        completed = Completed(code, out, err, time.monotonic() - started)
        if check and code:
            raise failure(_name(command), code, err, self.address)
        return completed

    def talk(
        self, command: Sequence[str], *, timeout: float, environment: Mapping[str, str] | None = None
    ) -> Dialogue:
        """Starts a program there to talk to it; see `Device.talk`."""
        return self._worker.call(self._talk(command, timeout, environment or {}))

    def close(self) -> None:
        """Ends what we started, removes the workspace, disconnects; see `Device.close`."""
        if not self._open:
            return
        self._open = False
        try:
            self._worker.call(self._leave())
        except DeviceError as error:
            logging.getLogger(__name__).warning("%s stays on the device: %s", self._base, error)
        finally:
            self._worker.stop(self._patience.grace_s)
            if self._on_close:
                self._on_close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    async def _prepare(self) -> str:
        """Makes the folder of this connection, once the device is known to have what we need."""
        status, out, err = await self._ask("making a folder", script.prepare(), STEP_S)
        if status == script.MISSING_TOOL:
            raise MissingToolError(err.strip(), where=self.address)
        if status:
            raise failure("making a folder", status, err, self.address)
        return out.rstrip("\n")

    async def _leave(self) -> None:
        doing = "cleaning up"
        try:
            async with asyncio.timeout(self._patience.answer_s):  # trying to connect again included
                if self._base:
                    await self._again(lambda: self._ask(doing, script.leave(self._base), COPY_S))
        except TimeoutError as error:
            raise TimedOutError(doing, where=self.address) from error
        finally:
            await self._transport.close()

    async def _push(self, source: Path, target: str) -> None:
        try:
            with source.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            stat = source.stat()
        except OSError as error:
            raise InputError(f"cannot read this file: {error.strerror}", where=source) from error
        command = script.push(self._base, target, sha256, executable=bool(stat.st_mode & 0o100))
        seconds = COPY_S + stat.st_size / SLOWEST
        doing = f"writing {target}"
        status, out, err = await self._again(lambda: self._ask(doing, command, seconds, source))
        if status == script.DIFFERENT:
            arrived = f"{target}, of {stat.st_size} bytes {out.strip() or 'others'} came"
            raise PushDamagedError(arrived, where=self.address)
        if status:
            raise failure(doing, status, err, self.address)

    async def _pull(self, source: str, target: Path) -> None:
        command = script.pull(self._base, source)
        doing = f"reading {source}"

        async def attempt() -> None:
            err = Lines()
            with Arrival(target) as arrival:
                status = await self._exchange(doing, command, COPY_S, arrival.take, err)
                if status == script.NO_FILE:
                    raise NoSuchFileError(source, where=self.address)
                if status:
                    raise failure(doing, status, err.text, self.address)
                arrival.keep(self.address, source)

        await self._again(attempt)

    async def _run(
        self,
        command: Sequence[str],
        timeout: float,
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None,
    ) -> tuple[int, str, str]:
        await self._end_unsure()
        job = secrets.token_hex(4)
        line = script.run(self._base, job, self._own_limit(timeout), command, environment)
        out, err = Lines(), Lines(on_line)
        try:
            status = await self._exchange(_name(command), line, timeout, out.take, err, leash=True)
        except BaseException:
            self._unsure.add(job)
            raise
        return status, out.text, err.text

    async def _talk(
        self, command: Sequence[str], timeout: float, environment: Mapping[str, str]
    ) -> ChannelDialogue:
        await self._end_unsure()
        job, name = secrets.token_hex(4), _name(command)
        line = script.talk(self._base, job, self._own_limit(timeout), command, environment)
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        out, err = Lines(lines.put), Lines()
        channel = await self._start(line)
        work = asyncio.create_task(self._attend(channel, name, timeout, out.take, err, leash=True))

        def ended(work: asyncio.Task[int]) -> None:
            if work.cancelled() or work.exception():
                self._unsure.add(job)

        work.add_done_callback(ended)
        return ChannelDialogue(
            self._worker, channel, lines, work, lambda status: failure(name, status, err.text, self.address)
        )

    def _own_limit(self, seconds: float) -> float:
        """Seconds after which a program ends where nobody can tell the device any more."""
        return seconds + self._patience.grace_s

    async def _end_unsure(self) -> None:
        """Ends the programs whose end nobody saw."""
        if unsure := frozenset(self._unsure):
            await self._ask("ending what still ran", script.end(self._base, unsure), STEP_S)
            self._unsure -= unsure

    async def _again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """For what can be done twice: copying and cleaning up, when the connection was lost."""
        return await retried(attempt, self._patience, on=(ConnectionLostError,))

    async def _ask(
        self, doing: str, command: str, seconds: float, source: Path | None = None
    ) -> tuple[int, str, str]:
        """Runs one of our scripts; returns status, output and complaints."""
        out, err = Lines(), Lines()
        status = await self._exchange(doing, command, seconds, out.take, err, source=source)
        return status, out.text, err.text

    async def _exchange(
        self,
        doing: str,
        command: str,
        seconds: float,
        out: Callable[[bytes], None],
        err: Lines,
        *,
        source: Path | None = None,
        leash: bool = False,
    ) -> int:
        """Starts a program and talks to it to its end; returns its status as `converse` does."""
        channel = await self._start(command)
        return await self._attend(channel, doing, seconds, out, err, source=source, leash=leash)

    async def _start(self, command: str) -> Channel:
        """Starts one of our scripts."""
        channel = await self._transport.start(script.begin(self._mark))
        with contextlib.suppress(OSError):  # it is gone already: its exit status, or its last words, say why
            channel.stdin.write(script.one_line(command))
        return channel

    async def _attend(
        self,
        channel: Channel,
        doing: str,
        seconds: float,
        out: Callable[[bytes], None],
        err: Lines,
        *,
        source: Path | None = None,
        leash: bool = False,
    ) -> int:
        """Talks to a program to its end; returns its status as `converse` does."""
        marked, words = AfterMark(self._mark, out, False), AfterMark(self._mark, err.take, True)
        try:
            status = await converse(
                channel, marked.take, words.take, source=source, leash=leash, seconds=seconds,
                grace_s=self._patience.grace_s,
            )  # fmt: skip
        except TimeoutError as error:
            what = f"{doing} took longer than {seconds:g} s and was ended{last_line(err.text)}"
            raise TimedOutError(what, where=self.address) from error
        if not self._base and not marked.seen:
            said = last_line(f"{marked.before.decode(errors='replace')}\n{err.text}")
            raise LoginShellError(f"it ended with status {status}{said}", where=self.address)
        return status


def _name(command: Sequence[str]) -> str:
    """A command in errors."""
    return f"`{textwrap.shorten(shlex.join(command), LONGEST_NAME, placeholder=' ...')}`"


def _inside(name: str) -> str:
    """A name in the workspace.

    Raises:
        InputError: it leads out of it.
    """
    if leads_out(name):
        raise InputError(f"{name!r} leads out of the device's workspace", hint="give a relative path")
    return name
