"""Talking to one program until it ends, takes too long, or we are interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from paredown.targets.devices.transports.channel import Channel, Reader, Writer

CHUNK = 1 << 16  # bytes


class Lines:
    """Collects text and tells each line as soon as it is whole.

    Args:
        on_line: told it, without its end.
    """

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self._data, self._told, self._on_line = bytearray(), 0, on_line

    def take(self, data: bytes) -> None:
        """Takes the next bytes; none are the end, also that of a last line without one."""
        self._data += data
        if self._on_line is None:
            return
        while (end := self._data.find(b"\n", self._told)) >= 0 or (not data and self._told < len(self._data)):
            end = end if end >= 0 else len(self._data)
            line = self._data[self._told : end].decode(errors="replace")
            self._told = end + 1
            self._on_line(line.removesuffix("\r"))

    @property
    def text(self) -> str:
        """All of it, as UTF-8; what is none is replaced."""
        return self._data.decode(errors="replace")


class AfterMark:
    """Passes on what comes after a line that is the mark: a login shell may have said something first.

    Args:
        mark: the line, without its end.
        take: told what follows.
        otherwise: whether it is told at the end what came, where the mark never did.

    Attributes:
        before: what came before the mark, the last of it.
        seen: whether the mark came.
    """

    def __init__(self, mark: str, take: Callable[[bytes], None], otherwise: bool) -> None:
        self.before, self.seen = b"", False
        self._mark, self._take, self._otherwise = mark.encode() + b"\n", take, otherwise

    def take(self, data: bytes) -> None:
        """Takes the next bytes; none are the end."""
        if not data:
            if self.before and self._otherwise and not self.seen:
                self._take(self.before)
            self._take(b"")
        elif self.seen:
            self._take(data)
        else:
            self.before, mark, rest = (self.before + data).partition(self._mark)
            self.seen = bool(mark)
            self.before = self.before[-CHUNK:]
            if rest:
                self._take(rest)


async def converse(
    channel: Channel,
    out: Callable[[bytes], None],
    err: Callable[[bytes], None],
    *,
    source: Path | None,
    leash: bool,
    seconds: float,
    grace_s: float,
) -> int:
    """Talks to a program to its end.

    Args:
        channel: the program.
        out: told what it writes, as it comes, and at the end b"".
        err: told what it complains of, as it comes, and at the end b"".
        source: a file that it reads.
        leash: whether its standard input stays open, so that closing it ends the program.
        seconds: that it may take.
        grace_s: seconds that it has to be gone in, once it is to end.

    Returns:
        Its exit status, or 128 and the number of the signal that ended it.

    Raises:
        TimeoutError: it took longer, and was ended.
        ConnectionLostError: nobody can tell how it ended.
    """
    work = asyncio.create_task(_talk(channel, out, err, source, leash))
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(work)
    finally:
        if not work.done():
            await _end(channel, work, grace_s)


async def _talk(
    channel: Channel,
    out: Callable[[bytes], None],
    err: Callable[[bytes], None],
    source: Path | None,
    leash: bool,
) -> int:
    streams = [
        asyncio.create_task(_drain(channel.stdout, out)),
        asyncio.create_task(_drain(channel.stderr, err)),
    ]
    if not leash:
        streams.append(asyncio.create_task(_feed(channel.stdin, source)))
    try:
        await asyncio.gather(*streams)
        return await channel.wait()
    except BaseException:
        for stream in streams:
            stream.cancel()
        channel.abort()
        raise


async def _end(channel: Channel, work: asyncio.Task[int], grace_s: float) -> None:
    """Lets go of the leash and waits until the program is gone, or for so long."""
    try:
        channel.stdin.write_eof()
    except OSError:  # it was gone already
        channel.abort()
    await asyncio.wait({work}, timeout=grace_s)
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()  # looked at: what ends it is what matters


async def _drain(reader: Reader, take: Callable[[bytes], None]) -> None:
    while data := await reader.read(CHUNK):
        take(data)
    take(b"")


async def _feed(writer: Writer, source: Path | None) -> None:
    try:
        if source is not None:
            with source.open("rb") as file:
                while data := file.read(CHUNK):
                    writer.write(data)
                    await writer.drain()
        writer.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        return  # it reads no further; its exit status, or the end of its output, says why
