"""Boards for the tests of ssh, on this machine's loopback: asyncssh in this process, or OpenSSH's own sshd.

And the way to them: a TCP proxy that can cut the link or fall silent.
"""

from __future__ import annotations

import asyncio
import math
import os
import pwd
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
from device_contract import until
from needs import needs
from ports import free_port

HOST = "127.0.0.1"


def new_key(path: Path) -> asyncssh.SSHKey:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(path)
    path.chmod(0o600)
    return key


def known_hosts_line(key: asyncssh.SSHKey, port: int) -> str:
    return f"[{HOST}]:{port} {key.export_public_key().decode()}"


@dataclass
class Server:
    """asyncssh in a thread; commands run in this machine's shell.

    Attributes:
        environment: of the commands.
        prefix: comes before each command.
        shell: the user's login shell, as it is given a command.
        serve_only: bytes of standard output after which the server sends no more, and says that all is well.
        meddle: what becomes of a command's standard input on its way.
    """

    host_key: asyncssh.SSHKey
    client_key: asyncssh.SSHKey
    environment: dict[str, str]
    prefix: Sequence[str] = ()
    shell: Sequence[str] = ("sh", "-c")
    serve_only: int | None = None
    meddle: Callable[[bytes], bytes] | None = None
    port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> int:
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._acceptor = await asyncssh.listen(
            HOST, self.port, server_host_keys=[self.host_key], process_factory=self._run, encoding=None,
            authorized_client_keys=asyncssh.import_authorized_keys(self.client_key.export_public_key().decode()),
            acceptor=self._connections.add,
        )  # fmt: skip
        return self._acceptor.get_port()

    async def _stop(self) -> None:
        self._acceptor.close()
        for connection in self._connections:
            connection.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=10)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *self.prefix, *self.shell, process.command or "", stdin=pipe, stdout=pipe, stderr=pipe,
            env=self.environment, start_new_session=True,
        )  # fmt: skip
        feeding = asyncio.create_task(self._feed(process.stdin, child.stdin))
        await asyncio.gather(
            self._pass_on(child.stdout, process.stdout, self.serve_only),
            self._pass_on(child.stderr, process.stderr, None),
        )
        status = await child.wait()
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)
        await feeding

    async def _feed(self, source, target) -> None:
        try:
            if line := await source.readline():  # the script itself
                target.write(line)
            while data := await source.read(65536):
                target.write(self.meddle(data) if self.meddle else data)
                await target.drain()
        except (asyncssh.Error, OSError):
            pass  # either end is gone; the other one is told below
        finally:
            target.close()

    async def _pass_on(self, source, target, limit) -> None:
        sent = 0
        try:
            while data := await source.read(65536):
                target.write(data if limit is None else data[: max(0, limit - sent)])
                sent += len(data)
                await target.drain()
        except (asyncssh.Error, OSError):
            await source.read()  # the client is gone, and the program must not wait for it


class Sshd:
    """OpenSSH's own server, which logs in whoever runs the tests.

    Args:
        folder: for its files.
        host_key: file of its key.
        client_key: whom it lets in.
        tmpdir: for what is copied there.
        home: of who logs in; None = as here.
        prefix: comes before its command.
        shell: the user's login shell, where it is another one; needs root.
    """

    def __init__(
        self, folder: Path, host_key: Path, client_key: asyncssh.SSHKey, tmpdir: Path,
        home: Path | None = None, prefix: Sequence[str] = (), shell: str = "",
    ) -> None:  # fmt: skip
        sshd = needs("sshd", "openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it separates privileges; root's sshd asks for it
        (folder / "authorized").write_bytes(client_key.export_public_key())
        self.port = free_port()
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress {HOST}:{self.port}\nHostKey {host_key}\nAuthorizedKeysFile {folder}/authorized\n"
            f"StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n"
            f"SetEnv TMPDIR={tmpdir}{f' HOME={home}' if home else ''}\n"
        )
        command = [*prefix, sshd, "-D", "-e", "-f", config]
        if shell:  # a passwd file of its own, which only the server sees
            me = pwd.getpwuid(os.geteuid())
            entry = f"{me.pw_name}:x:{me.pw_uid}:{me.pw_gid}::{folder}:{shell}\n"
            others = Path("/etc/passwd").read_text().splitlines(keepends=True)
            kept = [line for line in others if not line.startswith(f"{me.pw_name}:")]
            (folder / "passwd").write_text("".join([entry, *kept]))
            bind = 'mount --bind "$1" /etc/passwd && shift && exec "$@"'
            namespace = [needs("unshare", "util-linux"), "--mount", "sh", "-c", bind, "sh"]
            command = [*namespace, folder / "passwd", *command]
        self._process = subprocess.Popen(command, stderr=(folder / "log").open("w"))
        until(lambda: answers(self.port), "sshd listens")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except OSError:
        return False
    return True


class Proxy:
    """A link to a port, cut or silent when the test says so.

    Attributes:
        port: to connect to.
        up, down: bytes to the board and back, in one connection, after which it is reset.
        more_cuts: how often that is still to happen.
        cuts: how often it has.
        silent: whether bytes still go in, and none come out, on either side.
    """

    def __init__(self, port: int) -> None:
        self._to, self._listener = port, socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.up = self.down = self.more_cuts = math.inf
        self.cuts, self.silent = 0, False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Resets every connection, as a router does that was switched off and on."""
        for pair in self._pairs:
            for end in pair:
                try:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)  # wakes who reads it
                except OSError:
                    continue  # closed already
                finally:
                    end.close()
        self._pairs.clear()

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)  # or accept() goes on in its thread
            self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection((HOST, self._to))
            except OSError:
                return
            self._pairs.append((near, far))
            threading.Thread(target=self._pump, args=(near, far, lambda: self.up), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, lambda: self.down), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, limit: Callable[[], float]) -> None:
        sent = 0
        try:
            while data := source.recv(16384):
                sent += len(data)
                if sent > limit() and self.more_cuts > 0:
                    self.cuts, self.more_cuts = self.cuts + 1, self.more_cuts - 1
                    self.cut()
                    return
                if not self.silent:
                    target.sendall(data)
            if not self.silent:  # else the board is not told either that we left
                target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # one of them was closed
