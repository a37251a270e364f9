"""Boards over ssh, each fault provoked: cut and silent links, wrong keys, full disks, false servers."""

from __future__ import annotations

import getpass
import hashlib
import math
import os
import socket
import subprocess
import threading
from pathlib import Path

import asyncssh
import pytest
from device_contract import (
    TWO_PROGRAMS,
    DeviceContract,
    Running,
    client_of,
    gone,
    interrupt,
    lives,
    until,
)
from needs import missing, needs
from ssh_device import HOST, Proxy, Server, Sshd, known_hosts_line, new_key

from paredown.targets.address import open_device
from paredown.targets.devices.errors import (
    AuthenticationError,
    ConnectionLostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    LoginShellError,
    NoSpaceError,
    PullDamagedError,
    PushDamagedError,
    UnreachableError,
)
from paredown.targets.devices.shell.shell import ShellDevice
from paredown.targets.devices.transports.retry import Patience
from paredown.targets.devices.transports.ssh import SshAccess, SshTransport

QUICK = Patience(attempts=3, pause_s=0.05, answer_s=20.0, keepalive_s=1.0, grace_s=5.0)
ONCE = Patience(attempts=1, answer_s=20.0)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Where the workspaces are made."""
    folders = tmp_path / "device"
    folders.mkdir()
    return folders


@pytest.fixture
def keys(tmp_path):
    return new_key(tmp_path / "host"), new_key(tmp_path / "id")


@pytest.fixture
def server(keys, folders):
    with Server(*keys, {**os.environ, "TMPDIR": str(folders)}) as server:
        yield server


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def connect(tmp_path, keys):
    """Connects to a port as one who knows the host's key and has the right one."""

    def connect(port: int, patience: Patience = QUICK) -> ShellDevice:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(known_hosts_line(keys[0], port))
        access = SshAccess(HOST, port, getpass.getuser(), tmp_path / "id", known_hosts)
        return ShellDevice(SshTransport(access, f"ssh://{HOST}:{port}", patience), patience=patience)

    return connect


class TestSsh(DeviceContract):
    @pytest.fixture
    def device(self, connect, server, folders):
        with connect(server.port) as device:
            assert (device.kind, device.emulated) == ("ssh", False)
            assert Path(device.workspace).is_relative_to(folders)
            yield device
        assert not list(folders.iterdir())


class TestOpenSsh(DeviceContract):
    """Not our idea of a server, but the one that boards have."""

    @pytest.fixture
    def device(self, connect, tmp_path, keys, folders):
        sshd = Sshd(tmp_path, tmp_path / "host", keys[1], folders)
        with connect(sshd.port) as device:
            assert Path(device.workspace).is_relative_to(folders)
            yield device
        sshd.close()
        assert not list(folders.iterdir())


GREETING = "echo 'Welcome to the gateway'; echo 'you have mail' >&2\n"
AWKWARD = 'it\'s 100 % \\\\ \\n ! !! $HOME `id` "x" \n {a,b} *~ é'


@pytest.mark.parametrize(
    ("shell", "package", "start"),
    [
        ("bash", "bash", ".bashrc"),
        ("dash", "dash", ".profile"),
        ("tcsh", "tcsh", ".cshrc"),
        ("fish", "fish", ".config/fish/config.fish"),
        ("busybox", "busybox", ".profile"),
    ],
)
def test_any_login_shell_that_talks(connect, tmp_path, keys, folders, payload, shell, package, start):
    """OpenSSH's server gives our line to the user's own shell, after its start file has printed."""
    if os.geteuid():
        missing("only root can give sshd a passwd file of its own")
    path = needs(shell, package)
    (tmp_path / start).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / start).write_text(GREETING)
    if shell == "busybox":  # it goes by the name that it is called by
        path = str(tmp_path / "ash")
        Path(path).symlink_to(needs("busybox", "busybox"))
    sshd = Sshd(tmp_path, tmp_path / "host", keys[1], folders, path)
    try:
        with connect(sshd.port) as device:
            device.push(payload, "a b/x")
            device.pull("a b/x", tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == payload.read_bytes()
            said: list[str] = []
            command = ["sh", "-c", 'printf %s "$1"; echo "$2" >&2; exit 3', "sh", AWKWARD, "aside"]
            done = device.run(command, timeout=30, on_line=said.append, check=False)
            assert (done.code, done.out, said, done.err) == (3, AWKWARD, ["aside"], "aside\n")
            with device.talk(["cat"], timeout=30) as talk:
                talk.send("é 1")
                assert talk.receive(20) == "é 1"
    finally:
        sshd.close()
    assert not list(folders.iterdir())


def test_a_login_shell_that_lets_nobody_in(connect, server):
    server.shell = ("sh", "-c", "echo This account is currently not available.; exit 1")
    with pytest.raises(LoginShellError, match="status 1: This account is currently not available"):
        connect(server.port)


def test_an_encrypted_key_is_named(tmp_path, keys, server, monkeypatch):
    """It is there, and was not tried: that is no key that is missing."""
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home.parent))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    keys[1].write_private_key(home / "id_ed25519")
    (home / "id_ed25519").chmod(0o600)
    encrypt = [needs("ssh-keygen", "openssh-client"), "-p", "-N", "secret", "-a", "1", "-f"]
    subprocess.run([*encrypt, home / "id_ed25519"], check=True, capture_output=True)
    (home / "known_hosts").write_text(known_hosts_line(keys[0], server.port))
    address = f"ssh://{getpass.getuser()}@{HOST}:{server.port}"
    with pytest.raises(
        AuthenticationError, match="encrypted, and not tried: .*id_ed25519; `ssh-add .*no ssh-agent"
    ):
        open_device(address, ONCE)
    with pytest.raises(AuthenticationError, match="encrypted, and not tried: .*; `ssh-add"):
        access = SshAccess(HOST, server.port, getpass.getuser(), home / "id_ed25519", home / "known_hosts")
        ShellDevice(SshTransport(access, address, ONCE), patience=ONCE)


# -- the way there -------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server((HOST, 0)) as free:
        return free.getsockname()[1]


def test_nobody_there(connect):
    port = free_port()
    with pytest.raises(
        UnreachableError, match=rf"^ssh://{HOST}:{port}: cannot be reached: .*; the machine is there"
    ):
        connect(port)


def test_no_such_name(connect, tmp_path):
    transport = SshTransport(SshAccess("no-such-board.invalid"), "ssh://no-such-board.invalid", QUICK)
    with pytest.raises(UnreachableError, match="no-such-board.invalid: cannot be reached: "):
        ShellDevice(transport, patience=QUICK)


def test_somebody_who_never_answers(connect):
    with socket.create_server((HOST, 0)) as silent:
        with pytest.raises(UnreachableError, match="no answer in 0.5 s"):
            connect(silent.getsockname()[1], Patience(attempts=1, answer_s=0.5))


def test_a_board_that_is_still_starting_is_waited_for(connect, keys, folders):
    port = free_port()
    server = Server(*keys, {**os.environ, "TMPDIR": str(folders)}, port=port)
    starting = threading.Timer(0.5, server.__enter__)
    starting.start()
    with connect(port, Patience(attempts=8, pause_s=0.1)) as device:
        assert device.run(["echo", "here"], timeout=30).out == "here\n"
    starting.join()
    server.__exit__()


def test_a_key_that_the_board_does_not_know(connect, server, tmp_path):
    new_key(tmp_path / "id")
    with pytest.raises(AuthenticationError, match="authentication failed: as user .*; .*ssh-copy-id"):
        connect(server.port)


def test_a_key_that_cannot_be_read(connect, server, tmp_path):
    (tmp_path / "id").write_text("no key")
    with pytest.raises(AuthenticationError, match="failed: the settings of ssh cannot be read: .*; check"):
        connect(server.port)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's own ~/.ssh, with the right key."""
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    (ssh / "id_ed25519").write_bytes((tmp_path / "id").read_bytes())
    monkeypatch.setenv("HOME", str(ssh.parent))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return ssh


def test_the_users_own_keys_and_settings(server, keys, home, folders):
    (home / "known_hosts").write_text(known_hosts_line(keys[0], server.port))
    (home / "config").write_text(f"Host board\n HostName {HOST}\n Port {server.port}\n User somebody\n")
    for address in (f"ssh://somebody@{HOST}:{server.port}", "ssh://board"):
        with open_device(address) as device:
            assert device.run(["echo", "here"], timeout=30).out == "here\n"
            assert Path(device.workspace).is_relative_to(folders)
        assert not list(folders.iterdir())


@pytest.mark.parametrize("settings", ["", "UserKnownHostsFile none", "StrictHostKeyChecking no"])
def test_an_unknown_host_key_is_never_accepted(server, keys, home, settings):
    (home / "config").write_text(settings)
    address = f"ssh://{HOST}:{server.port}"
    for _ in range(2):
        with pytest.raises(HostKeyUnknownError) as raised:
            open_device(address, ONCE)
        assert keys[0].get_fingerprint() in str(raised.value)
        assert f"ssh-keyscan -p {server.port} {HOST} >> ~/.ssh/known_hosts" in str(raised.value)
    assert not (home / "known_hosts").exists()


def test_what_the_error_says_about_an_unknown_host_key_helps(server, home):
    address = f"ssh://{HOST}:{server.port}"
    with pytest.raises(HostKeyUnknownError) as raised:
        open_device(address, ONCE)
    needs("ssh-keyscan", "openssh-client")
    command = str(raised.value).split("and `")[1].split("`")[0]
    subprocess.run(["sh", "-c", command.replace("~", str(home.parent))], check=True, capture_output=True)
    with open_device(address, ONCE) as device:
        assert device.run(["echo", "here"], timeout=30).out == "here\n"


def test_a_changed_host_key(server, keys, home, tmp_path):
    before = known_hosts_line(new_key(tmp_path / "other"), server.port)
    (home / "known_hosts").write_text(before)
    with pytest.raises(HostKeyChangedError) as raised:
        open_device(f"ssh://{HOST}:{server.port}", ONCE)
    assert keys[0].get_fingerprint() in str(raised.value)
    assert f"ssh-keygen -R '[{HOST}]:{server.port}'" in str(raised.value)
    assert (home / "known_hosts").read_text() == before


def test_a_changed_host_key_of_another_kind(server, home):
    """Who knows only an RSA key of the host is shown an Ed25519 one."""
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    (home / "known_hosts").write_text(known_hosts_line(rsa, server.port))
    with pytest.raises(HostKeyChangedError, match="host key changed: .*: Unable to find compatible"):
        open_device(f"ssh://{HOST}:{server.port}", ONCE)


# -- the link breaks -----------------------------------------------------------------------------------------


def test_a_link_cut_while_pushing_is_mended(connect, proxy, payload):
    with connect(proxy.port) as device:
        proxy.up, proxy.more_cuts = 100_000, 2
        device.push(payload, "x")
        assert proxy.cuts == 2
        assert (Path(device.workspace) / "x").read_bytes() == payload.read_bytes()


def test_a_link_that_is_always_cut_while_pushing(connect, proxy, payload, folders):
    with connect(proxy.port) as device:
        proxy.up = 100_000
        with pytest.raises(ConnectionLostError, match="connection lost: .*; check the cable"):
            device.push(payload, "x")
        assert proxy.cuts == QUICK.attempts
        until(lambda: not list(Path(device.workspace).iterdir()), "nothing of it is there")
        proxy.up = math.inf
        device.push(payload, "x")
        assert (Path(device.workspace) / "x").read_bytes() == payload.read_bytes()
    assert not list(folders.iterdir())


def test_a_link_cut_while_pulling(connect, proxy, payload, tmp_path):
    with connect(proxy.port) as device:
        device.push(payload, "x")
        (tmp_path / "back").write_bytes(b"before")
        proxy.down = 100_000
        with pytest.raises(ConnectionLostError):
            device.pull("x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"before"
        assert not list(tmp_path.glob(".back*"))
        assert proxy.cuts == QUICK.attempts
        proxy.down = math.inf
        device.pull("x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()


def test_a_link_cut_while_running(connect, proxy):
    """The program ends on the device, and nobody runs it a second time."""
    with connect(proxy.port) as device:
        running = Running(device, f"echo once >>runs; {TWO_PROGRAMS}")
        proxy.cut()
        assert isinstance(running.end(), ConnectionLostError)
        gone(running.pids)
        assert device.run(["cat", "runs"], timeout=30).out == "once\n"


def test_a_link_that_falls_silent_while_running(connect, proxy):
    """Neither end hears of it: keepalives find out, and the next connection ends what still runs."""
    with connect(proxy.port) as device:
        running = Running(device)
        proxy.silent = True
        assert isinstance(running.end(), ConnectionLostError)
        assert all(map(lives, running.pids))  # nobody could tell the device
        proxy.silent = False
        assert device.run(["echo", "again"], timeout=30).out == "again\n"
        gone(running.pids)


def test_closing_what_is_gone_raises_nothing(connect, proxy, server, caplog):
    device = connect(proxy.port)
    proxy.close()
    device.close()
    assert "stays on the device: " in caplog.text and "cannot be reached" in caplog.text


@pytest.fixture(params=["asyncssh", "sshd"])
def address(request, keys, home, folders, tmp_path) -> str:
    """Of a board that the user's own ~/.ssh knows."""
    if request.param == "asyncssh":
        port = request.getfixturevalue("server").port
    else:
        sshd = Sshd(tmp_path, tmp_path / "host", keys[1], folders)
        request.addfinalizer(sshd.close)
        port = sshd.port
    (home / "known_hosts").write_text(known_hosts_line(keys[0], port))
    return f"ssh://{getpass.getuser()}@{HOST}:{port}"


def test_ctrl_c_ends_what_runs_and_cleans_up(address, folders, tmp_path):
    with client_of(address, tmp_path) as (process, pids):
        interrupt(process)
        assert not any(map(lives, pids))
        assert not list(folders.iterdir())


def test_nothing_outlives_a_client_that_is_killed(address, tmp_path):
    with client_of(address, tmp_path) as (process, pids):
        process.kill()
        gone(pids)


# -- the board lies or is full -------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [0, 10, 70, 5000])
def test_a_pull_that_comes_truncated(connect, server, payload, tmp_path, served):
    """The server sends too little and says that all is well."""
    with connect(server.port) as device:
        device.push(payload, "x")
        (tmp_path / "back").write_bytes(b"before")
        server.serve_only = served
        with pytest.raises(PullDamagedError, match="pull arrived different: x, .* of which .* came; try"):
            device.pull("x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"before"
        assert not list(tmp_path.glob(".back*"))
        server.serve_only = None
        device.pull("x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()


def test_a_push_that_arrives_different(connect, server, payload):
    with connect(server.port) as device:
        server.meddle = lambda data: data[:-1] + bytes([data[-1] ^ 1])
        with pytest.raises(PushDamagedError, match=r"x, of 512009 bytes 512009 came.*; try again"):
            device.push(payload, "x")
        assert not list(Path(device.workspace).iterdir())
        server.meddle = None
        device.push(payload, "x")
        there = Path(device.workspace) / "x"
        assert hashlib.sha256(there.read_bytes()).digest() == hashlib.sha256(payload.read_bytes()).digest()


@pytest.fixture
def small_disk(folders):
    """A file system of 256 KiB over the folder of the workspaces, seen only by who has the prefix."""
    mount = f"mount -t tmpfs -o size=256k paredown '{folders}' && echo mounted && exec sleep 1000"
    namespace = [needs("unshare", "util-linux"), "--user", "--map-root-user", "--mount"]
    holder = subprocess.Popen(
        [*namespace, "sh", "-c", mount], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = holder.stdout.readline()
    if said != b"mounted\n":
        holder.kill()
        missing(f"no file system can be mounted in a namespace of our own: {said.decode().strip()}")
    yield [needs("nsenter", "util-linux"), "-t", str(holder.pid), "-U", "-m", "--preserve-credentials", "--"]
    holder.kill()
    holder.wait()


def test_a_full_disk(connect, server, small_disk, payload, tmp_path):
    server.prefix = small_disk
    with connect(server.port) as device:
        with pytest.raises(NoSpaceError, match="no space left on the device: writing x: .*; make room"):
            device.push(payload, "x")
        assert device.run(["ls", "-A"], timeout=30).out == ""
        fits = tmp_path / "fits"
        fits.write_bytes(payload.read_bytes()[:100_000])
        device.push(fits, "x")
        fill = "cat /dev/zero >filler; cat x >copy"
        with pytest.raises(NoSpaceError, match="no space left on the device: `sh -c .*No space left"):
            device.run(["sh", "-c", fill], timeout=30)
        running = device.run(["sh", "-c", "echo runs; exit 4"], timeout=30, check=False)
        assert (running.code, running.out) == (4, "runs\n")  # a full disk takes no note of it, and it runs
        assert device.run(["rm", "filler"], timeout=30).code == 0
        device.pull("x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == fits.read_bytes()
