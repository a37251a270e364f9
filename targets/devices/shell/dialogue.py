"""A program on a device that is talked to line by line, from an ordinary thread."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from types import TracebackType
from typing import Self

from paredown.targets.devices.shell.worker import Worker
from paredown.targets.devices.transports.channel import Channel
from paredown.targets.errors import DeviceError


class ChannelDialogue:
    """See `Dialogue`, which it is one of.

    Args:
        worker: whose loop the channel lives in.
        channel: the program.
        lines: what it has written, filled by `work`.
        work: listens to the program to its end, and gives its status; cancelled, it ends the program.
        failed: the error that a status other than 0 is.
    """

    def __init__(
        self,
        worker: Worker,
        channel: Channel,
        lines: queue.SimpleQueue[str | None],
        work: asyncio.Task[int],
        failed: Callable[[int], DeviceError],
    ) -> None:
        self._worker, self._channel, self._lines, self._work = worker, channel, lines, work
        self._failed = failed
        work.add_done_callback(lambda _: lines.put(None))

    def send(self, line: str) -> None:
        """Gives it a line; see `Dialogue.send`."""
        self._worker.call(self._send(line.encode() + b"\n"))

    def receive(self, timeout: float) -> str:
        """Its next line; see `Dialogue.receive`."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if line is not None:
            return line
        self._lines.put(None)  # for who asks again
        if self._work.cancelled():
            raise EOFError
        if status := self._work.result():
            raise self._failed(status)
        raise EOFError

    def close(self) -> None:
        """Ends it; see `Dialogue.close`."""
        self._worker.call(self._end())

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    async def _send(self, data: bytes) -> None:
        try:
            self._channel.stdin.write(data)
            await self._channel.stdin.drain()
        except OSError:
            return  # it has ended, or the connection has: `receive` knows which

    async def _end(self) -> None:
        self._work.cancel()
        await asyncio.wait({self._work})
