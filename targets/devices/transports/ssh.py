"""Boards over ssh, by asyncssh: the user's own keys, known hosts and ~/.ssh/config; never a password."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncssh

from paredown.targets.devices.device import Kind
from paredown.targets.devices.errors import (
    SIGNALLED,
    AuthenticationError,
    ConnectionLostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    NamedDeviceError,
    UnreachableError,
)
from paredown.targets.devices.transports.channel import Channel, whole
from paredown.targets.devices.transports.retry import PATIENCE, Patience, retried

SSH_PORT = 22


@dataclass(frozen=True)
class SshAccess:
    """What is needed to log in; what is None comes from ~/.ssh, as with the `ssh` command.

    Attributes:
        host: name or address, or a `Host` of ~/.ssh/config.
        port: where its server listens.
        user: there.
        key_file: the private key.
        known_hosts: the file that says which key the host has.
    """

    host: str
    port: int | None = None
    user: str | None = None
    key_file: Path | None = None
    known_hosts: Path | None = None


class SshTransport:
    """Starts programs over one ssh connection, which is made again when it was lost."""

    kind: Kind = "ssh"

    def __init__(self, access: SshAccess, address: str, patience: Patience = PATIENCE) -> None:
        self.address = address
        self._access, self._patience = access, patience
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting = asyncio.Lock()

    async def start(self, command: str) -> Channel:
        """Starts a program; see `Transport.start`."""
        async with self._connecting:
            if self._connection is None or self._connection.is_closed():
                self._connection = await retried(self._connect, self._patience, on=(UnreachableError,))
            connection = self._connection

        async def start() -> SshChannel:
            return SshChannel(await connection.create_process(command, encoding=None), self.address)

        try:
            return await whole(start())
        except (asyncssh.Error, OSError) as error:
            connection.abort()
            raise ConnectionLostError(str(error), where=self.address) from error

    async def close(self) -> None:
        """Disconnects, also where nobody listens any more."""
        if self._connection is None:
            return
        self._connection.close()
        try:
            async with asyncio.timeout(self._patience.grace_s):
                await self._connection.wait_closed()
        except TimeoutError:
            self._connection.abort()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        access, judge = self._access, _HostKeyJudge()
        options = self._options()
        try:
            return await asyncssh.connect(
                access.host,
                options.port,
                options=options,
                known_hosts=lambda *host: judge.look_up(_known_hosts_files(options), *host),
                client_factory=lambda: judge,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise judge.verdict(self.address, str(error)) from error
        except asyncssh.PermissionDenied as error:
            hint = _locked_keys(access.key_file)
            raise AuthenticationError(f"as user {options.username}", where=self.address, hint=hint) from error
        except asyncssh.KeyExchangeFailed as error:
            if "host key" in str(error):  # it has none of the kinds that we expect
                raise judge.verdict(self.address, str(error)) from error
            raise UnreachableError(str(error), where=self.address) from error
        except (asyncssh.Error, OSError) as error:
            reason = str(error) or f"no answer in {self._patience.answer_s:g} s"
            raise UnreachableError(reason, where=self.address, hint=_unreachable(error)) from error

    def _options(self) -> asyncssh.SSHClientConnectionOptions:
        access, patience = self._access, self._patience
        given: dict[str, Any] = {
            "port": access.port,
            "username": access.user,
            "client_keys": access.key_file and [str(access.key_file)],
            "known_hosts": access.known_hosts and [str(access.known_hosts)],
        }
        try:
            return asyncssh.SSHClientConnectionOptions(
                config=(),  # the user's own
                host=access.host,
                connect_timeout=patience.answer_s,
                login_timeout=patience.answer_s,
                keepalive_interval=patience.keepalive_s,
                keepalive_count_max=2,
                **{name: value for name, value in given.items() if value is not None},
            )
        except (asyncssh.KeyImportError, asyncssh.ConfigParseError, OSError) as error:
            what = f"the settings of ssh cannot be read: {error}"
            hint = _locked_keys(access.key_file) or "check ~/.ssh"
            raise AuthenticationError(what, where=self.address, hint=hint) from error


class SshChannel:
    """A program at the other end of a connection."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes], address: str) -> None:
        self.stdin = _Writer(process.stdin)
        self.stdout, self.stderr = (_Reader(stream, address) for stream in (process.stdout, process.stderr))
        self._process, self._address = process, address

    async def wait(self) -> int:
        """Its exit status; see `Channel.wait`."""
        await self._process.wait_closed()
        status = self._process.returncode
        if status is None:
            raise ConnectionLostError("before it was known how it ended", where=self._address)
        return status if status >= 0 else SIGNALLED - status

    def abort(self) -> None:
        """Closes the channel."""
        self._process.channel.abort()


class _Reader:
    """A stream that says in our words why it ends."""

    def __init__(self, reader: asyncssh.SSHReader[bytes], address: str) -> None:
        self._reader, self._address = reader, address

    async def read(self, n: int = -1, /) -> bytes:
        try:
            return await self._reader.read(n)
        except (asyncssh.Error, OSError) as error:
            raise ConnectionLostError(str(error), where=self._address) from error


class _Writer:
    """A stream that breaks as a pipe does, whatever the reason."""

    def __init__(self, writer: asyncssh.SSHWriter[bytes]) -> None:
        self.write, self.write_eof, self._writer = writer.write, writer.write_eof, writer

    async def drain(self) -> None:
        try:
            await self._writer.drain()
        except (asyncssh.Error, OSError) as error:
            raise BrokenPipeError(str(error)) from error


class _HostKeyJudge(asyncssh.SSHClient):
    """Remembers which key the host showed and which ones were expected, to say what is wrong."""

    def __init__(self) -> None:
        self._expected: Sequence[object] = ()
        self._host, self._port = "", SSH_PORT
        self._shown: asyncssh.SSHKey | None = None

    def look_up(self, files: list[str] | bytes, host: str, address: str, port: int | None) -> Any:
        """What the files know about a host; asyncssh asks this first."""
        known = asyncssh.match_known_hosts(files, host, address, port)
        self._expected, self._host, self._port = known[0], host, port or SSH_PORT
        return known

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Asked about a key that is not the expected one; never accepts it."""
        self._shown = key
        return False

    def verdict(self, address: str, reason: str) -> NamedDeviceError:
        """Why the host is not trusted."""
        host = self._host if self._port == SSH_PORT else f"[{self._host}]:{self._port}"
        key = self._shown
        shown = f"{host} shows {key.get_algorithm()} {key.get_fingerprint()}" if key else f"{host}: {reason}"
        if self._expected:
            hint = f"if it was set up anew, `ssh-keygen -R '{host}'` and connect once with `ssh`; else beware"
            return HostKeyChangedError(shown, where=address, hint=hint)
        scan = f"ssh-keyscan -p {self._port} {self._host} >> ~/.ssh/known_hosts"
        hint = f"connect once with `ssh`, or compare this key with the device's and `{scan}`"
        return HostKeyUnknownError(shown, where=address, hint=hint)


def _locked_keys(key_file: Path | None) -> str | None:
    """What to do about keys that need a passphrase, where there are such: they were not tried."""
    files = [key_file] if key_file else sorted((Path.home() / ".ssh").glob("id_*"))
    locked = []
    for file in files:
        try:
            asyncssh.read_private_key(file)
        except asyncssh.KeyEncryptionError:
            locked.append(str(file))
        except (asyncssh.KeyImportError, OSError) as error:
            if "assphrase" in str(error):
                locked.append(str(file))
    if not locked:
        return None
    agent = "" if os.environ.get("SSH_AUTH_SOCK") else "; no ssh-agent runs: `eval $(ssh-agent)` starts one"
    return f"encrypted, and not tried: {', '.join(locked)}; `ssh-add {locked[0]}` unlocks it{agent}"


def _unreachable(error: BaseException) -> str | None:
    """What to do next, where the error says how far we came."""
    if isinstance(error, socket.gaierror):
        return "this machine finds no address of that name: check it, or give the address"
    if isinstance(error, ConnectionRefusedError):
        return "the machine is there, and nothing listens on that port"
    return None


def _known_hosts_files(options: asyncssh.SSHClientConnectionOptions) -> list[str] | bytes:
    """The files to look a host up in, or b"" where there are none: then nobody is trusted."""
    files = cast(list[str], options.known_hosts) or ["~/.ssh/known_hosts"]
    found = [path for path in (Path(file).expanduser() for file in files) if path.is_file()]
    return [str(path) for path in found] or b""
