from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from paredown.pipeline.store.store import MANIFEST, Store, canonical_json, file_hash, owner_name, write_atomic
from paredown.targets.errors import InputError

ROOT = Path(__file__).parents[3]
KEY = hashlib.sha256(b"stage").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
FILES = {"model.bin": bytes(range(256)) * 200, "maps/a.json": b"{}", "empty": b""}


def build(folder):
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def temporary(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / ".tmp").glob("*"))


def source(code: str) -> str:
    """A script that has `Store`, `KEY` and `build` as they are here."""
    prelude = f"""
        import os, signal, sys, time
        from pathlib import Path
        from paredown.pipeline.store.store import Store
        KEY = {KEY!r}
        FILES = {{"model.bin": bytes(range(256)) * 200, "maps/a.json": b"{{}}", "empty": b""}}
    """
    return textwrap.dedent(prelude) + inspect.getsource(build) + textwrap.dedent(code)


def python(code: str, *args: object) -> subprocess.Popen[str]:
    """That script in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", source(code), *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs" / ".store")


def test_a_published_artefact_is_found_whole_with_its_hashes(store):
    assert store.get(KEY) is None and store.inspect(KEY).problem == "missing"
    assert not store.root.exists()  # looking makes nothing
    path = store.publish(KEY, build, {"stage": "x"})
    assert store.get(KEY) == store.get(KEY, verify=True) == path
    found = contents(path)
    manifest = json.loads(found.pop(MANIFEST))
    assert found == FILES
    assert manifest["key"] == KEY and manifest["meta"] == {"stage": "x"}
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
    }
    assert temporary(store) == []


def test_the_same_input_gives_the_same_bytes_in_another_place_at_another_time(store, tmp_path):
    other = Store(tmp_path / "elsewhere")
    first = store.publish(KEY, build, {"b": 1, "a": 2})
    time.sleep(0.02)
    second = other.publish(KEY, lambda folder: build(folder), {"a": 2, "b": 1})
    assert contents(first) == contents(second)
    times = {
        path.stat().st_mtime_ns for place in (first, second) for path in place.rglob("*") if path.is_file()
    }
    assert len(times) == 1
    assert str(tmp_path) not in (first / MANIFEST).read_text()


def test_an_artefact_is_built_once(store):
    built = []
    for _ in range(3):
        store.publish(KEY, lambda folder: (built.append(1), build(folder)))
    assert len(built) == 1


def test_a_failing_build_leaves_nothing_and_its_own_error_passes(store, tmp_path):
    def broken(folder):
        build(folder)
        raise FileNotFoundError(errno.ENOENT, "no data", str(tmp_path / "data"))

    with pytest.raises(FileNotFoundError, match="no data"):
        store.publish(KEY, broken)

    def interrupted(folder):
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(KEY, interrupted)
    assert store.get(KEY) is None and temporary(store) == []


def truncate(path):
    (path / "model.bin").write_bytes(FILES["model.bin"][:-1])


def flip(path):
    data = bytearray((path / "model.bin").read_bytes())
    data[1000] ^= 1
    (path / "model.bin").write_bytes(data)


def remove_manifest(path):
    (path / MANIFEST).unlink()


def cut_manifest(path):
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:50])


def strange_manifest(path):
    (path / MANIFEST).write_text('{"key": 3, "files": []}')


def other_manifest(path):
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "key": OTHER}))


def lose_file(path):
    (path / "maps" / "a.json").unlink()


def become_a_file(path):
    shutil.rmtree(path)
    path.write_text("not a folder")


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        remove_manifest,
        cut_manifest,
        strange_manifest,
        other_manifest,
        lose_file,
        become_a_file,
    ],
)
def test_a_damaged_artefact_is_seen_and_rebuilt(store, damage):
    path = store.publish(KEY, build)
    damage(path)
    finding = store.inspect(KEY)
    assert finding.path is None and finding.problem
    assert store.publish(KEY, build) == path
    assert store.get(KEY, verify=True) == path
    assert {name: data for name, data in contents(path).items() if name != MANIFEST} == FILES
    assert temporary(store) == []


def test_the_problem_names_file_and_sizes(store):
    truncate(store.publish(KEY, build))
    assert store.inspect(KEY).problem == "damaged: model.bin has 51199 bytes instead of 51200"


def test_a_change_that_hides_its_time_is_found_by_a_full_check(store):
    path = store.publish(KEY, build)
    before = (path / "model.bin").stat().st_mtime_ns
    flip(path)
    os.utime(path / "model.bin", ns=(before, before))
    assert store.get(KEY) == path
    assert store.get(KEY, verify=True) is None


def test_what_is_checked_is_hashed_once_by_a_process(store):
    path = store.publish(KEY, build)
    assert store.checked(KEY).path == path
    before = (path / "model.bin").stat().st_mtime_ns
    flip(path)
    os.utime(path / "model.bin", ns=(before, before))
    assert store.checked(KEY).path == path
    assert Store(store.root).checked(KEY).problem == "damaged: model.bin has other bytes than were published"
    assert Store(store.root).publish(KEY, build) == path  # built anew, in its place
    assert Store(store.root).checked(KEY).path == path


def test_a_library_of_rust_on_a_full_disk_is_our_one_line(store):
    """Safetensors' error is no OSError; /dev/full takes no byte."""

    def fill(folder):
        (folder / "a.safetensors").symlink_to("/dev/full")
        with (folder / "a.safetensors").open("wb") as file:
            file.write(b"x" * 100_000)

    def rust(folder):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(InputError, match="the disk is full; free some space"):
        store.publish(KEY, rust)
    with pytest.raises(InputError, match="the disk is full"):
        store.publish(KEY, fill)
    with pytest.raises(RuntimeError, match="os error 2"):
        store.publish(KEY, lambda folder: (_ for _ in ()).throw(RuntimeError("no file (os error 2)")))


def test_a_store_copied_without_its_times_stays_sound(store, tmp_path):
    path = store.publish(KEY, build)
    for file in path.rglob("*"):
        os.utime(file)
    assert store.get(KEY) == path


@pytest.mark.parametrize("key", ["", "abc", "../" + KEY, KEY.upper(), KEY + "\n"])
def test_only_keys_are_keys(store, key):
    with pytest.raises(ValueError, match="not a store key"):
        store.get(key)


def test_an_artefact_is_plain_files_and_at_least_one(store):
    def link(folder):
        (folder / "link").symlink_to("/etc/passwd")

    def pipe(folder):
        os.mkfifo(folder / "pipe")

    def forged(folder):
        (folder / MANIFEST).write_text("{}")

    for bad, words in (
        (link, "plain files"),
        (pipe, "plain files"),
        (forged, "store's own"),
        (lambda folder: None, "no file"),
    ):
        with pytest.raises(ValueError, match=words):
            store.publish(KEY, bad)
    assert store.get(KEY) is None and temporary(store) == []


# Killed for real, at each system call of a publish in turn.
KILLED = """
    count, at = 0, int(sys.argv[2])
    def armed(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            global count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, call)
    for name in ("mkdir", "open", "fsync", "utime", "rename", "close"):
        armed(name)
    Store(Path(sys.argv[1])).publish(KEY, build, {"stage": "x"})
    print("done", count)
"""


def test_sigkill_at_every_system_call_leaves_all_or_nothing(store):
    published = killed = 0
    for at in range(1, 200):
        process = python(KILLED, store.root, at)
        out, err = process.communicate()
        found = store.inspect(KEY, verify=True)
        assert found.path is not None or found.problem == "missing", found  # never a half artefact
        if process.returncode == 0:
            assert out.startswith("done"), err
            break
        assert process.returncode == -signal.SIGKILL, err
        killed += 1
        if found.path is not None:  # the kill came after the rename: start over from an empty store
            published += 1
            shutil.rmtree(found.path)
    assert killed >= 10 and published >= 1
    assert contents(store.get(KEY, verify=True)).keys() == {*FILES, MANIFEST}
    store.sweep()
    assert temporary(store) == []  # what the killed ones left is gone


SLOW = """
    def slow(folder):
        for number in range(40):
            (folder / f"{number}.bin").write_bytes(bytes([number]) * 50_000)
            print(number, flush=True)
            time.sleep(0.003)
    Store(Path(sys.argv[1])).publish(KEY, slow)
"""


@pytest.mark.parametrize("files", [0, 1, 17, 39])
def test_sigkill_from_outside_while_building(store, files):
    process = python(SLOW, store.root)
    for _ in range(files + 1):
        process.stdout.readline()
    process.kill()
    process.wait()
    finding = store.inspect(KEY, verify=True)
    assert finding.path is not None or finding.problem == "missing"
    left = temporary(store)
    assert left or finding.path  # it did die in the middle, or had just finished
    assert store.publish(KEY, build) == store.get(KEY, verify=True)
    assert temporary(store) == []


def test_the_temporary_folder_of_a_live_process_is_left_alone(store):
    process = python(
        """
        def wait(folder):
            build(folder)
            print("building", flush=True)
            sys.stdin.readline()
        Store(Path(sys.argv[1])).publish(KEY, wait)
        """,
        store.root,
    )
    assert process.stdout.readline() == "building\n"
    try:
        store.publish(OTHER, build)
        assert store.sweep() == 0 and len(temporary(store)) == 1
    finally:
        process.kill()
        process.wait()
    assert store.sweep() == 1 and temporary(store) == []


def test_a_reused_pid_is_not_the_owner(store):
    """A process of the same number that began at another time; where nobody knows when, it may be the one."""
    store.publish(OTHER, build)
    machine, pid, began = owner_name().rsplit(".", 2)
    assert pid == str(os.getpid()) and began.isdigit() and began != "0"
    for name in (f"{machine}.{pid}.{int(began) + 1}.aa.x", f"{machine}.{pid}.{began}.bb.x",
                 f"{machine}.{pid}.0.cc.x"):  # fmt: skip
        (store.root / ".tmp" / name).mkdir()
    assert store.sweep() == 1
    assert [name.split(".")[-2] for name in temporary(store)] == ["cc", "bb"]


def test_another_machines_temporary_folder_is_left_alone(store):
    store.publish(OTHER, build)
    (store.root / ".tmp" / "no-such-host.1.2.abc.def").mkdir()
    assert store.sweep() == 0 and len(temporary(store)) == 1


def test_a_place_taken_while_a_damaged_artefact_is_moved_is_the_others(store, monkeypatch):
    truncate(store.publish(KEY, build))
    rename = Path.rename

    def taken(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if path == store.root / KEY:  # between our two moves another process publishes
            monkeypatch.setattr(Path, "rename", rename)
            store.publish(KEY, build, {"by": "another"})
        return moved

    monkeypatch.setattr(Path, "rename", taken)
    store.publish(KEY, build, {"by": "us"})
    manifest = json.loads((store.get(KEY, verify=True) / MANIFEST).read_text())
    assert manifest["meta"] == {"by": "another"} and temporary(store) == []


RACE = """
    meeting = Path(sys.argv[2])
    def together(folder):
        build(folder)
        (meeting / str(os.getpid())).touch()
        while len(list(meeting.iterdir())) < 2:  # both are past the look into the store
            time.sleep(0.001)
    print(Store(Path(sys.argv[1])).publish(KEY, together, {"stage": "x"}))
"""


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_publishing_one_key_both_get_it(tmp_path, damaged):
    for turn in range(4):
        store = Store(tmp_path / f"store{turn}")
        if damaged:
            truncate(store.publish(KEY, build))
        meeting = tmp_path / f"meeting{turn}"
        meeting.mkdir()
        processes = [python(RACE, store.root, meeting) for _ in range(2)]
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert Path(out.strip()) == store.root / KEY
        assert contents(store.get(KEY, verify=True)).keys() == {*FILES, MANIFEST}
        assert temporary(store) == []
        assert sorted(path.name for path in store.root.iterdir() if not path.name.startswith(".")) == [KEY]


def test_a_sound_winner_is_kept(store):
    def late(folder):
        build(folder)
        store.publish(KEY, build, {"first": True})

    path = store.publish(KEY, late, {"first": False})
    assert json.loads((path / MANIFEST).read_text())["meta"] == {"first": True}


def test_a_full_disk_is_one_line(store):
    def full(folder):
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(InputError, match="the disk is full; free some space") as raised:
        store.publish(KEY, full)
    assert raised.value.exit_code == 4 and str(raised.value).startswith(str(store.root))
    assert store.get(KEY) is None and temporary(store) == []


IN_NAMESPACE = """
    from paredown.targets.errors import InputError
    def big(folder):
        (folder / "big").write_bytes(b"x" * 300_000)
    for key, work in ((KEY, build), ("0" * 64, big)):
        try:
            print("published", Store(Path(sys.argv[1])).publish(key, work))
        except InputError as error:
            print(error)
    print(sorted(p.name for p in (Path(sys.argv[1]) / ".tmp").glob("*")))
"""


@pytest.mark.parametrize(
    ("options", "expected"), [("size=128k", "the disk is full"), ("ro", "Read-only file system")]
)
def test_a_really_full_and_a_really_read_only_file_system(tmp_path, options, expected):
    script = f'mount -t tmpfs -o {options} none {tmp_path} && exec "$0" -c "$CODE" {tmp_path / "store"}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable],
        cwd=ROOT,
        env={**os.environ, "CODE": source(IN_NAMESPACE)},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert expected in lines[1] and lines[2] == "[]"
    assert lines[0].startswith("published") == (options != "ro")


@pytest.mark.parametrize("root", ["file", "/proc/paredown", "/dev/null/x"])
def test_a_place_that_cannot_be_a_store_is_one_line(tmp_path, root):
    (tmp_path / "file").touch()
    store = Store(tmp_path / root)
    assert store.get(KEY) is None
    with pytest.raises(InputError, match="cannot write to this folder.*choose another folder"):
        store.publish(KEY, build)


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError, match="cannot read"):
        file_hash(tmp_path / "absent")


def test_an_atomic_write_replaces_or_leaves_alone(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / "folder", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "folder"]


def test_canonical_json_is_one_text_per_value():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})
    with pytest.raises(TypeError):
        canonical_json({"a": Path("x")})
