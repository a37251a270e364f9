"""The SSH server of an emulated board: its commands run in the emulator, its files are the board's.

It behaves as OpenSSH on a board does: a command leads a session of its own; of a client's environment only
LANG and LC_* arrive; a lost connection ends no command; relative paths of SFTP begin in the home folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import signal
import subprocess
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncssh

HOST = "127.0.0.1"
#: Runs a command as the leader of a session and writes its status to descriptor $1: the emulator itself ends
#: only with the last of its programs, daemons included.
_LEAD = 'status=$1; shift; exec 3>&2 2>/dev/null; (setsid "$@" 2>&3 3>&-); echo $? >&"$status"'
KILLED = 128  # and a signal's number: a shell's status of a program that a signal ended
Result = TypeVar("Result")


class _Files(asyncssh.SFTPServer):
    """SFTP and scp below the board's root."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], root: Path, home: str) -> None:
        super().__init__(channel, chroot=os.fsencode(root))
        self._home = home.encode()

    def map_path(self, path: bytes) -> bytes:
        return super().map_path(posixpath.join(self._home, path))

    def exit(self) -> None:
        # Without a status, scp reports failure after a complete copy.
        self.channel.exit(0)


class _Connection(asyncssh.SSHServer):
    """Keeps itself in the server's list while it lasts."""

    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._connection)


class BoardServer:
    """An SSH server on this machine's loopback, in a thread of its own; a context manager.

    Args:
        root: the board's root folder.
        emulator: the start of a command line that runs a program in it.
        environment: of every command; HOME is where relative paths begin.
        host_key: the server's private key.
        client_key: the public key that may log in.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(
        self,
        root: Path,
        emulator: Sequence[str],
        environment: Mapping[str, str],
        host_key: asyncssh.SSHKey,
        client_key: bytes,
    ) -> None:
        self._root = root
        self._emulator = emulator
        self._environment = environment
        self._host_key = host_key
        self._client_keys = asyncssh.import_authorized_keys(client_key.decode())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="emulated board", daemon=True)
        self._waiting = ThreadPoolExecutor(64, "emulated command")  # commands at the same time
        self._running: list[subprocess.Popen[bytes]] = []
        self._connections: set[asyncssh.SSHServerConnection] = set()

    def __enter__(self) -> Self:
        """Listens."""
        self._thread.start()
        self._acceptor = self._call(self._listen())
        self.port = self._acceptor.get_port()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends every command and connection."""
        self._call(self._stop())
        self._waiting.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(
            lambda: _Connection(self._connections),
            HOST,
            0,
            server_host_keys=[self._host_key],
            authorized_client_keys=self._client_keys,
            process_factory=self._run,
            sftp_factory=lambda channel: _Files(channel, self._root, self._environment["HOME"]),
            allow_scp=True,
            line_editor=False,
            encoding=None,
        )

    async def _stop(self) -> None:
        self._acceptor.close()
        for connection in list(self._connections):
            connection.abort()
        for proot in self._running:
            await asyncio.to_thread(_end, proot)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        locale = {name: value for name, value in process.env.items() if name.startswith(("LANG", "LC_"))}
        shell = ["/bin/sh", "-c", process.command] if process.command else ["/bin/sh", "-l"]
        status, status_end = os.pipe()
        child = subprocess.Popen(
            [*self._emulator, "/bin/sh", "-c", _LEAD, "sh", str(status_end), *shell],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env={**self._environment, **locale}, start_new_session=True, pass_fds=[status_end],
        )  # fmt: skip
        os.close(status_end)
        self._running.append(child)
        self._waiting.submit(child.wait)
        over = self._loop.run_in_executor(self._waiting, _read_line, status)
        with contextlib.suppress(OSError, asyncssh.Error):  # the client may be gone
            feeding = asyncio.ensure_future(_feed(child, process))
            await _forward(child, process, over)
            feeding.cancel()
            code = int(over.result() or KILLED + signal.SIGKILL)
            if code > KILLED:
                process.exit_with_signal(signal.Signals(code - KILLED).name.removeprefix("SIG"))
            else:
                process.exit(code)
            await process.wait_closed()


async def _feed(child: subprocess.Popen[bytes], process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Sends a command all of its input; asyncssh's redirection loses what a pipe cannot take at once."""
    assert child.stdin
    with child.stdin as stdin, contextlib.suppress(OSError, asyncssh.Error):  # it need not read all
        os.set_blocking(stdin.fileno(), False)
        while data := await process.stdin.read(1 << 16):
            rest = memoryview(data)
            while rest:
                written = stdin.write(rest)
                rest = rest[written or 0 :]
                await asyncio.sleep(0 if written else 0.01)


async def _forward(
    child: subprocess.Popen[bytes], process: asyncssh.SSHServerProcess[bytes], over: asyncio.Future[bytes]
) -> None:
    """Sends a command's output until it is over and nothing is left; then lets go of its pipes.

    Nobody waits for the end of a pipe here: it does not come, the emulator, too, holds them open.
    """
    assert child.stdout and child.stderr
    with child.stdout as stdout, child.stderr as stderr:
        for pipe in (stdout, stderr):
            os.set_blocking(pipe.fileno(), False)
        while True:
            last, idle = over.done(), True
            for pipe, writer in ((stdout, process.stdout), (stderr, process.stderr)):
                if data := pipe.read(1 << 16):
                    idle = False
                    writer.write(data)
                    await writer.drain()
            if last and idle:
                return
            await asyncio.sleep(0.01 if idle else 0)


def _read_line(descriptor: int) -> bytes:
    """What is written there in one go, or nothing where all writers are gone; closes it."""
    with open(descriptor, "rb") as file:
        return file.readline()


def _end(proot: subprocess.Popen[bytes]) -> None:
    """Kills what an emulator runs, daemons included; it ends with the last of them.

    Killed itself, it would let go of its programs, and they would go on outside the board.
    """
    while proot.poll() is None:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if f"\nTracerPid:\t{proot.pid}\n" in status.read_text():
                    os.kill(int(status.parent.name), signal.SIGKILL)
            except OSError:  # it ended by itself
                continue
