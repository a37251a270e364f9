"""What a device takes once it has a trust document: a keeper here, with a home of its own and small apps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_contract import until
from signing import APP, A, B, C, D, manifested, released, small_release, tarred, trusting

from paredown.targets.address import open_device
from paredown.targets.devices.service import guard, keeper
from paredown.targets.devices.service.service import Board, Service, whoever
from paredown.targets.errors import DeviceError

SLOW_PROOF = "import pathlib, time; pathlib.Path('../proving').touch(); time.sleep(600)"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    yield folder
    for lock in (folder / ".local/share/paredown").glob("*/run.lock"):
        keeper.stop(keeper.App(lock.parent.name), 0.5)


def trust(document: bytes, target: str | None = None) -> dict:
    return guard.accept(document, target, "me@here")


def install(tmp_path: Path, archive: bytes, envelope: bytes | None, name: str, older: bool = False) -> None:
    (tmp_path / "archive").write_bytes(archive)
    if envelope is not None:
        (tmp_path / "envelope").write_bytes(envelope)
    file = tmp_path / "envelope" if envelope is not None else None
    keeper.install(keeper.App("app"), name, tmp_path / "archive", [], file, older)


def start(name: str, older: bool = False) -> dict:
    command = {"module": "app", "arguments": []}
    return keeper.start(keeper.App("app"), name, command, False, 60.0, "me@here", older)


def installed(home: Path) -> set[str]:
    return {path.name for path in (home / ".local/share/paredown/app/releases").glob("*") if path.is_dir()}


def test_without_a_trust_document_everything_is_taken_and_noted(home, tmp_path):
    for signers in ((), (D,)):
        archive, envelope, name = small_release(*signers)
        install(tmp_path, archive, envelope if signers else None, name)
    start(name)
    (entry,) = guard.report()["record"]
    assert entry["who"] == "me@here" and entry["what"] == f"app {name}" and "keys" not in entry


def test_only_what_the_keys_signed_is_unpacked(home, tmp_path):
    trust(trusting((A,)))
    archive, envelope, name = small_release(A)
    other = small_release(A, app=APP + "#")[0]
    wrong = {
        "not signed": (archive, None, name),
        f"signed by unknown key {B.id[:12]}; trust document version 1 asks for 1 of alice": (
            archive, small_release(B)[1], name,
        ),
        "manifest.json is not what was signed": (other, envelope, guard_name(other)),
        f"the archive is not release {name}": (other, envelope, name),
        "no signed document: ": (archive, b"{", name),
    }  # fmt: skip
    for said, (data, signature, release) in wrong.items():
        with pytest.raises(keeper.Failure, match=said):
            install(tmp_path, data, signature, release)
        assert installed(home) == set()
    install(tmp_path, archive, envelope, name)
    assert installed(home) == {name}


def test_each_file_is_what_the_signed_manifest_says(home, tmp_path):
    trust(trusting((A,)))
    files = {"app.py": APP.encode(), "targets/runners/prove.py": b"print('{}')", "models.packed": b"12345"}
    packed = guard.hashlib.sha256(b"12345").hexdigest()
    manifest = manifested({name: data for name, data in files.items() if name != "models.packed"})
    envelope = released(A, manifest=guard.hashlib.sha256(manifest).hexdigest(), packed=packed)
    first = {"manifest.json": manifest}
    wrong = {
        "app.py is not what was signed": first | files | {"app.py": APP.upper().encode()},
        "prove.py is not what was signed": first | files | {"targets/runners/prove.py": b"print()"},
        "models.packed is not what was signed": first | files | {"models.packed": b"12346"},
        "no 'evil.py' here": first | files | {"evil.py": b"x"},
        "no 'app.py' here": files | first,  # before its manifest
        "models.packed is missing": first | {n: d for n, d in files.items() if n != "models.packed"},
        "app.py is missing": first | {n: d for n, d in files.items() if n != "app.py"},
    }
    for said, content in wrong.items():
        archive = tarred(content)
        with pytest.raises(keeper.Failure, match=said):
            install(tmp_path, archive, envelope, guard_name(archive))
        assert not list((home / ".local/share/paredown/app/releases").iterdir())


def guard_name(archive: bytes) -> str:
    return guard.hashlib.sha256(archive).hexdigest()[:12]


def test_an_older_release_needs_a_word_and_is_recorded(home, tmp_path):
    trust(trusting((A,)))
    new, old = small_release(A, release=9), small_release(A, app=APP + "#", release=8)
    install(tmp_path, *new)
    start(new[2])
    said = "release 8 of digits is older than 9, which was here; --allow-older goes back"
    with pytest.raises(keeper.Failure, match=said):
        install(tmp_path, *old)
    install(tmp_path, *old, older=True)
    with pytest.raises(keeper.Failure, match=said):
        start(old[2])
    assert keeper.App("app").release() == new[2] and keeper.App("app").running()
    start(old[2], older=True)
    told = guard.report()
    assert [entry.get("older", False) for entry in told["record"]] == [False, False, True]
    assert told["record"][-1]["keys"] == ["alice"] and told["record"][-1]["release"] == 8
    assert told["newest"] == {"apps.detector digits": 9}
    with pytest.raises(keeper.Failure, match=said):  # also where it runs already
        start(old[2])


def test_a_newer_envelope_does_not_bring_back_what_is_installed(home, tmp_path):
    """The old release's own archive, or its name, with the signatures on the new one."""
    trust(trusting((A,)))
    old, new = small_release(A, release=8), small_release(A, app=APP + "#", release=9)
    install(tmp_path, *old)
    said = "manifest.json is not what was signed"
    with pytest.raises(keeper.Failure, match=said):
        install(tmp_path, old[0], new[1], old[2])
    (home / f".local/share/paredown/app/releases/{old[2]}.signed.json").write_bytes(new[1])
    with pytest.raises(keeper.Failure, match=said):
        start(old[2])
    assert keeper.App("app").release() is None


def test_a_device_is_what_its_owner_or_its_first_release_says(home, tmp_path):
    pi5, pi4 = small_release(A), small_release(A, target="raspberry-pi-4")
    trust(trusting((A,)), "raspberry-pi-5")
    with pytest.raises(keeper.Failure, match="made for raspberry-pi-4, and this device is a raspberry-pi-5"):
        install(tmp_path, *pi4)
    trust(trusting((A,)), "raspberry-pi-4")  # the same document again, and another word
    with pytest.raises(keeper.Failure, match="made for raspberry-pi-5, and this device is a raspberry-pi-4"):
        install(tmp_path, *pi5)
    (home / ".config/paredown/board.json").unlink()
    install(tmp_path, *pi5)
    start(pi5[2])
    with pytest.raises(keeper.Failure, match="made for raspberry-pi-4"):
        install(tmp_path, *pi4)


def test_a_stolen_key_signs_nothing_after_it_is_revoked(home, tmp_path):
    """Also what it signed before, and what is installed already."""
    trust(trusting((A, B, C), threshold=2))
    before = small_release(A, B)
    install(tmp_path, *before)
    trust(trusting((B, C, D), A, B, C, D, version=2, threshold=2, revoked=(A,)))
    said = f"signed by bob, revoked key {A.id[:12]}; trust document version 2 asks for 2 of bob, carol, dora"
    for signed in (before, small_release(A, B, app=APP + "#")):
        with pytest.raises(keeper.Failure, match=said):
            install(tmp_path, *signed)
    with pytest.raises(keeper.Failure, match=said):
        start(before[2])
    with pytest.raises(guard.Refused, match="version 1 of the trust document; version 2 is there"):
        trust(trusting((A, B, C), threshold=2))
    with pytest.raises(guard.Refused, match="signed by dora, revoked key"):
        trust(trusting((B, D), A, D, version=3, revoked=(A,)))
    archive, envelope, name = small_release(B, C)
    install(tmp_path, archive, envelope, name)


def test_the_first_document_is_signed_by_enough_of_its_own_keys(home):
    with pytest.raises(guard.Refused, match="signed by alice; trust document version 1 asks for 2"):
        trust(trusting((A, B), A, threshold=2))
    assert guard.present() is None
    assert trust(trusting((A, B), threshold=2))["trust"]["version"] == 1


@pytest.mark.parametrize("name", ["trust.json", "board.json"])
def test_what_is_remembered_and_damaged_refuses_everything(home, tmp_path, name):
    trust(trusting((A,)), "raspberry-pi-5")
    file = home / ".config/paredown" / name
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(keeper.Failure, match=f"{name}.*; nothing is taken before it is put right"):
        install(tmp_path, *small_release(A))


def test_the_record_stays_short_and_plain(home, monkeypatch):
    monkeypatch.setattr(guard, "RECORDS", 3)
    for number in range(5):
        guard.started(None, "app", f"r{number}", f"{number}\x1b[2J\n@" + 1000 * "x")
    record = guard.report()["record"]
    assert [entry["what"] for entry in record] == ["app r2", "app r3", "app r4"]
    assert record[0]["who"] == ("2[2J@" + 1000 * "x")[:80]


def test_what_is_killed_while_it_is_proved_leaves_the_old_one_running(home, tmp_path):
    trust(trusting((A,)))
    old = small_release(A)
    install(tmp_path, *old)
    pid = start(old[2])["pid"]
    files = {"app.py": APP.encode(), "targets/runners/prove.py": SLOW_PROOF.encode()}
    manifest = manifested(files)
    archive = tarred({"manifest.json": manifest, **files})
    (tmp_path / "a").write_bytes(archive)
    (tmp_path / "e").write_bytes(released(A, manifest=guard.hashlib.sha256(manifest).hexdigest(), release=8))
    command = [sys.executable, keeper.__file__, "install", "app", guard_name(archive), str(tmp_path / "a")]
    child = subprocess.Popen([*command, "--envelope", str(tmp_path / "e")], start_new_session=True)
    releases = home / ".local/share/paredown/app/releases"
    until(lambda: (releases / "proving").exists(), "it is being proved")
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    status = keeper.App("app").status()
    assert status["running"] and status["pid"] == pid and status["release"] == old[2]
    assert guard.report()["newest"] == {"apps.detector digits": 7}
    install(tmp_path, *old)
    assert installed(home) == {old[2]}


def test_a_device_is_told_and_asked_over_its_connection(home, tmp_path):
    (tmp_path / "t.json").write_bytes(trusting((A,)))
    archive, envelope, name = small_release(A)
    with open_device("local:") as device:
        assert Board(device).trust(tmp_path / "t.json", "raspberry-pi-5")["trust"]["threshold"] == 1
        there = Service(device, "app")
        with pytest.raises(
            DeviceError, match="local: not signed, and this device takes signed releases only"
        ):
            there.install(archive, name, {})
        there.install(archive, name, {}, envelope)
        assert there.start(name, "app", [])["running"]
        told = json.loads(json.dumps(Board(device).report()))
    assert told["apps"][0]["release"] == name and told["target"] == "raspberry-pi-5"
    assert [entry["who"] for entry in told["record"]] == [whoever(), whoever()]
