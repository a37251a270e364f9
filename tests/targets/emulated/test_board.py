"""Emulated boards, for real: their files, their processor, what runs there, and how they end."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import asyncssh
import pytest
from needs import needs
from small_programs import Small, small_programs

from paredown.targets.devices.counts import VARIABLE, read_counts
from paredown.targets.devices.programs import litert_archive
from paredown.targets.emulated import board as boards
from paredown.targets.emulated.sysroot import LISTING
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.host.cache import cache_folder
from paredown.targets.runners import executorch_build

RUNNERS = {"litert": "python3 run_litert.pyz", "executorch": "executorch/run"}
DIGEST = "sha256:[0-9a-f]{64}"


@pytest.fixture(scope="module")
def emulator():
    needs("qemu-aarch64", "qemu-user")
    needs("proot", "proot")


@pytest.fixture(scope="module")
def programs():
    return small_programs()


@pytest.fixture(scope="module")
def runner():
    needs("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    return executorch_build.build("aarch64", cache_folder())


@pytest.fixture(scope="module")
def board(emulator):
    """A Raspberry Pi 5 that counts instructions."""
    needs("gcc", "gcc libc6-dev")
    with boards.start("raspberry-pi-5", count_instructions=True) as board:
        yield board


def over_ssh(board, work):
    """What a coroutine function makes of a connection."""

    async def connected():
        keys = {"client_keys": [str(board.key_file)], "known_hosts": str(board.known_hosts)}
        async with asyncssh.connect(board.host, board.port, username=board.user, **keys) as connection:
            return await work(connection)

    return asyncio.run(connected())


def run(board, command, **options):
    return over_ssh(board, lambda connection: connection.run(command, timeout=120, **options))


def put(board, *sources):
    """Copies files and folders into the home folder."""
    paths = [str(source) for source in sources]
    over_ssh(board, lambda connection: asyncssh.scp(paths, (connection, "."), recurse=True, preserve=True))


@pytest.fixture(scope="module")
def equipped(board, runner, programs, tmp_path_factory):
    """The board with both runners, their programs and inputs."""
    folder = tmp_path_factory.mktemp("equipment")
    (folder / "executorch").symlink_to(runner)
    (folder / "run_litert.pyz").write_bytes(litert_archive())
    for name, program in programs.int8.items():
        (folder / f"{name}.model").write_bytes(program)
    (folder / "in").write_bytes(programs.codes.tobytes())
    put(board, *folder.iterdir())
    return board


def test_every_package_is_listed_with_version_and_hash(board):
    lines = (board.root / LISTING).read_text().splitlines()
    assert all(re.fullmatch(rf"\S+ \S+ {DIGEST}", line) for line in lines)
    names = [line.split()[0] for line in lines]
    assert {"libc6", "python3.11-minimal", "numpy", "ai-edge-litert"} <= set(names)
    assert len(names) == len(set(names))


def test_programs_see_a_board_and_not_this_machine(board):
    done = run(board, "uname -m; pwd; id -un; ps | wc -l; ls /; grep -c ^processor /proc/cpuinfo")
    lines = done.stdout.splitlines()
    assert lines[:4] == ["aarch64", "/home/pi", "pi", "1"]  # ps: its heading
    assert "work" not in lines and "home" in lines
    assert lines[-1] == "1"  # it counts instructions
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "part", "atomics"),
    [
        ("raspberry-pi-5", "0xd0b", True),
        ("raspberry-pi-4", "0xd08", False),
        pytest.param("raspberry-pi-3", "0xd03", False, marks=pytest.mark.slow),
    ],
)
def test_each_board_has_its_own_core(emulator, name, part, atomics):
    """The part numbers are Arm's. Only the Cortex-A76 (Armv8.2) has atomics, bit 8 of AT_HWCAP."""
    with boards.start(name) as other:
        done = run(other, "cat /proc/cpuinfo; LD_SHOW_AUXV=1 /usr/bin/python3 -c ''")
    assert done.stdout.count(f"CPU part\t: {part}\n") == done.stdout.count("CPU part") == 4
    assert "emulated" in done.stdout
    (capabilities,) = re.findall(r"AT_HWCAP: +([0-9a-f]+)", done.stdout)
    assert bool(int(capabilities, 16) & 1 << 8) == atomics == (" atomics " in done.stdout)


@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_int8_is_bit_identical_and_counts_repeat(equipped, programs, runtime):
    found = []
    for attempt in range(2):
        options = "--runs 3 --marks --inputs in --outputs out"
        done = run(equipped, f"{VARIABLE}=counts {RUNNERS[runtime]} {runtime}.model {options}")
        assert done.exit_status == 0, done.stderr
        assert json.loads(done.stdout)["runtime"] == runtime
        assert (equipped.root / "home/pi/out").read_bytes() == programs.expected
        found.append(read_counts((equipped.root / "home/pi/counts").read_text(), attempt))
    first, second = found
    assert first == second
    kinds = {name: count for name, count in vars(first).items() if name != "total"}
    assert first.total == sum(kinds.values())
    # SDOT, the densest instruction of this core, does 16 multiplications
    assert Small.MACS / 16 < first.simd < Small.MACS
    assert first.load_store > 0 and first.branch > 0


def test_without_the_variable_nothing_is_written(equipped):
    run(
        equipped,
        "rm -f counts; executorch/run executorch.model --inputs in --outputs out --marks",
        check=True,
    )
    assert not (equipped.root / "home/pi/counts").exists()


def test_counts_that_cannot_be_written_are_an_error(equipped):
    command = f"{VARIABLE}=/no/counts executorch/run executorch.model --inputs in --outputs out --marks"
    done = run(equipped, command)
    assert done.exit_status == 5
    assert "the instruction counts cannot be written" in done.stderr


def test_commands_end_as_on_a_board(board):
    assert run(board, "exit 3").exit_status == 3
    assert run(board, "cat", input="words").stdout == "words"
    assert run(board, "kill -KILL $$").exit_signal[0] == "KILL"
    assert run(board, "echo $FOREIGN; echo $LC_ALL", env={"FOREIGN": "1", "LC_ALL": "C"}).stdout == "\nC\n"
    numbers = run(board, "echo $$; echo words >&2; ls nothing").stdout
    assert numbers.strip().isdecimal()
    large = run(board, "head -c 3000000 /dev/zero", encoding=None)
    assert len(large.stdout) == 3_000_000


def test_a_daemon_does_not_hold_a_command_up(board):
    pid = int(run(board, "sleep 1000 >/dev/null 2>&1 & echo $!").stdout)
    assert lives(pid)
    assert run(board, f"kill {pid}; echo gone").stdout == "gone\n"


def test_a_command_leads_its_group(board):
    assert run(board, "sleep 1000 & kill -KILL -$$; sleep 1000").exit_signal[0] == "KILL"


def test_files_and_commands_are_of_one_board(board, tmp_path):
    (tmp_path / "file").write_text("words")

    async def copy(connection):
        async with connection.start_sftp_client() as sftp:
            await sftp.put(str(tmp_path / "file"), "arrived")
            outside = [await sftp.realpath("."), await sftp.realpath("../../../../etc")]
            return outside, (await connection.run("cat arrived")).stdout

    assert over_ssh(board, copy) == (["/home/pi", "/etc"], "words")
    assert (board.root / "home/pi/arrived").read_text() == "words"


def test_only_its_own_key_opens_it(board):
    async def with_another_key():
        key = asyncssh.generate_private_key("ssh-ed25519")
        options = {"client_keys": [key], "known_hosts": str(board.known_hosts), "agent_path": None}
        await asyncssh.connect(board.host, board.port, username=board.user, config=None, **options)

    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(with_another_key())
    assert board.key_file.stat().st_mode & 0o077 == 0
    assert board.host == "127.0.0.1"


def test_nothing_is_left_of_a_board(emulator):
    with boards.start("raspberry-pi-4") as other:
        daemon = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"
        pids = [int(run(other, daemon).stdout) for _ in range(2)]
        run(other, "echo changed > /etc/passwd; echo new > /home/pi/new")
        assert all(map(lives, pids)) and other.root.is_dir()
    assert not any(map(lives, pids))
    assert not other.root.parent.exists()
    with boards.start("raspberry-pi-4") as again:
        assert run(again, "ls; id -un").stdout == "pi\n"


def test_what_a_killed_process_left_is_removed(emulator):
    left = cache_folder() / "boards" / "raspberry-pi-4-killed"
    left.mkdir(parents=True, exist_ok=True)
    (left / "lock").touch()
    with boards.start("raspberry-pi-4") as other:
        assert not left.exists()
        with boards.start("raspberry-pi-4"):
            assert other.root.is_dir()  # the living are spared


def test_missing_programs_are_named_with_their_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="`proot` is not installed; apt-get install proot qemu-user"):
        with boards.start("raspberry-pi-5"):
            pytest.fail("started")


def test_only_cards_with_a_known_core_can_be_emulated():
    with pytest.raises(DeviceError, match=r"target host: .* cortex-a53, cortex-a72, cortex-a76"):
        with boards.start("host"):
            pytest.fail("started")
    with pytest.raises(InputError, match="did you mean `raspberry-pi-5`"):
        with boards.start("raspberry-pi-55"):
            pytest.fail("started")


def lives(pid: int) -> bool:
    """Whether a process runs on this machine; one that just ended has a moment to go."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state in "ZX":
            return False
        time.sleep(0.001)
    return True
