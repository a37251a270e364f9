"""One program on a device with its three streams, and what makes such channels: a transport.

The streams are those of asyncio; asyncssh has the same.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from paredown.targets.devices.device import Kind
from paredown.targets.devices.errors import SIGNALLED


class Reader(Protocol):
    """What a program writes."""

    async def read(self, n: int = -1, /) -> bytes:
        """At most `n` bytes, as soon as there are some; nothing at the end.

        Raises:
            ConnectionLostError: there would have been more.
        """


class Writer(Protocol):
    """What a program reads; all of it raises BrokenPipeError where nobody reads it any more."""

    def write(self, data: bytes, /) -> None:
        """Sends it."""

    async def drain(self) -> None:
        """Waits until there is room for more."""

    def write_eof(self) -> None:
        """Sends the end."""


class Channel(Protocol):
    """A program on the device."""

    @property
    def stdin(self) -> Writer:
        """What it reads."""

    @property
    def stdout(self) -> Reader:
        """What it writes."""

    @property
    def stderr(self) -> Reader:
        """What it complains of."""

    async def wait(self) -> int:
        """Its exit status, or 128 and the number of the signal that ended it; call it after reading all.

        Raises:
            ConnectionLostError: nobody can tell.
        """

    def abort(self) -> None:
        """Lets go of it at once; its standard input ends, at the latest when the device notices."""


class Transport(Protocol):
    """A way to start programs on a device.

    Attributes:
        kind: of device.
        address: names it in errors.
    """

    kind: Kind
    address: str

    async def start(self, command: str) -> Channel:
        """Gives a line to the shell of the device; connects first, where we are not connected.

        Raises:
            DeviceError: that failed.
        """

    async def close(self) -> None:
        """Disconnects."""


C = TypeVar("C", bound=Channel)


async def whole(start: Coroutine[Any, Any, C]) -> C:
    """Starts a program. Where we are interrupted half-way, it is let go of as soon as it has started."""
    starting = asyncio.create_task(start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(lambda task: task.exception() or task.result().abort())
        raise


class ProcessChannel:
    """A program of this machine: the thing itself, or one that speaks to a device."""

    def __init__(self, process: Process) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr
        self._process = process

    @classmethod
    async def start(cls, *command: str) -> ProcessChannel:
        """Starts it in a session of its own: the terminal's Ctrl-C is ours to answer.

        Raises:
            OSError: it cannot be started.
        """

        async def start() -> ProcessChannel:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
            return cls(process)

        return await whole(start())

    async def wait(self) -> int:
        """Its exit status as `Channel.wait` has it."""
        status = await self._process.wait()
        self.stdin.close()
        return status if status >= 0 else SIGNALLED - status

    def abort(self) -> None:
        """Closes its standard input and kills it."""
        self.stdin.close()
        if self._process.returncode is None:
            self._process.kill()
