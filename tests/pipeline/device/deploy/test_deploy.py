"""Deployment on this machine as a device: proved first, swapped at once, taken back where it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from device_contract import until
from mavlink_peer import Autopilot
from ports import free_port
from signing import A, B, C, trusting

from paredown.pipeline.bundle.archive import Bundle, extract, pack, unpack
from paredown.pipeline.bundle.signing.release import sign_bundle
from paredown.pipeline.device.deploy.deploy import deploy, release_archive
from paredown.targets.address import open_device
from paredown.targets.devices.service.service import Board, Service
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.runners.prove import prove


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    """A home folder of its own, in which nothing stays running."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # its python3
    yield folder
    with open_device("local:") as device:
        for app in (folder / ".local/share/paredown").glob("*/run.lock"):
            Service(device, app.parent.name).stop(grace_s=0.5)


@pytest.fixture
def device(home):
    with open_device("local:") as connected:
        yield connected


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A film that outlasts every test: a camera's stand-in."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (96, 72))
    for index in range(600):
        writer.write(np.full((72, 96, 3), index % 256, np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="module")
def live(clip) -> tuple[str, ...]:
    return "--source", str(clip), "--realtime"


def changed(bundle: Bundle, path: Path, members: dict[str, bytes], **fields: object) -> Path:
    """Another bundle: some members and fields of the manifest are others, and all hashes right."""
    manifest = json.loads(bundle.text) | fields
    del manifest["members"], manifest["format"]
    path.write_bytes(pack(manifest, dict(bundle.members) | members))
    return path


@pytest.fixture
def any_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the code of every bundle were the installed version's."""
    monkeypatch.setattr("paredown.pipeline.device.deploy.deploy.require_known_code", lambda bundle: None)


def releases(home: Path) -> set[str]:
    return {path.name for path in (home / ".local/share/paredown/camera/releases").iterdir() if path.is_dir()}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_an_app_outlives_the_connection_and_stop_ends_it(tiny, home, live):
    with open_device("local:") as device:
        made = deploy(tiny.bundle, device, arguments=live)
        assert made.running and made.differing == 0 and made.codes > 100 and made.previous is None
    folder = (home / ".local/share/paredown/camera/current").resolve()
    bundle = unpack(tiny.bundle)
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    assert there == {**bundle.members, "manifest.json": bundle.text}  # the packed models are expanded
    assert folder.name == made.release and release_archive(bundle) == release_archive(unpack(tiny.bundle))
    with open_device("local:") as device:
        there = Service(device, "camera")
        status = there.status()
        assert status["running"] and status["release"] == made.release and lives(status["pid"])
        until(lambda: there.status()["beat"], "the app says that it lives")
        said: list[str] = []
        there.logs(said.append)
        assert said == [f"release {made.release} starts", "first picture: 96x72"]
        other = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "100")  # somebody else's program
        try:
            ended = there.stop()
            assert ended["was_running"] and not ended["running"] and not lives(status["pid"])
            assert ended["ended"]["status"] == 0  # it was asked kindly, and completed what it had to
            assert lives(other)
        finally:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
        assert not there.stop()["was_running"]


def test_a_bundle_that_fails_its_vectors_changes_nothing(tiny, device, home, live, tmp_path):
    made = deploy(tiny.bundle, device, arguments=live)
    pid = Service(device, "camera").status()["pid"]
    bundle = unpack(tiny.bundle)
    vectors = bytearray(bundle.read("vectors.bin"))
    vectors[7] ^= 0x10
    bad = changed(bundle, tmp_path / "bad.paredown", {"vectors.bin": bytes(vectors)})
    with pytest.raises(
        DeviceError, match="local: model.tflite: its test vectors differ here: 1 of .* by up to 16"
    ):
        deploy(bad, device, arguments=live)
    status = Service(device, "camera").status()
    assert status["running"] and status["pid"] == pid and status["release"] == made.release
    assert releases(home) == {made.release}


@pytest.mark.slow
def test_an_app_that_does_not_start_is_taken_back(tiny, device, home, live, tmp_path, any_code):
    made = deploy(tiny.bundle, device, arguments=live)
    broken = {"paredown/apps/detector/device/camera.py": b"raise SystemExit('this release is no good')\n"}
    bad = changed(unpack(tiny.bundle), tmp_path / "bad.paredown", broken)
    expected = f"it ended with status 1: this release is no good; release {made.release} runs again"
    with pytest.raises(DeviceError, match=expected):
        deploy(bad, device, arguments=live)
    status = Service(device, "camera").status()
    assert status["running"] and status["release"] == made.release
    # wrong options are taken back, too: the old ones are what runs
    with pytest.raises(DeviceError, match="no such file or folder.* runs again"):
        deploy(tiny.bundle, device, arguments=("--source", str(tmp_path / "none.mp4")))
    assert Service(device, "camera").status()["running"]


@pytest.mark.parametrize(
    ("app", "own"), [("camera", ()), ("drone", ("--fov", "60", "--mavlink", "udp:127.0.0.1:1"))]
)
def test_two_apps_do_not_share_a_camera(tiny, device, home, app, own):
    """The lock is the app's own; here its holder is this test."""
    from paredown.apps.detector.device.frames.holding import held

    camera = "rtsp://127.0.0.1:1/a"
    with held(camera, "door"):
        with pytest.raises(DeviceError, match=rf"ended with status 5: {camera}: in use by door \(pro"):
            deploy(tiny.bundle, device, app, name="hall", arguments=("--source", camera, *own))
    status = Service(device, "hall").status()
    assert not status["running"] and status["release"] is None


@pytest.mark.slow
def test_a_drone_app_speaks_to_its_autopilot_until_a_better_one_does(
    tiny, device, home, live, tmp_path, any_code
):
    """Beside a camera app of the same bundle; a release that fails is taken back, with its own options."""
    port = free_port()
    options = (*live, "--fov", "60", "--mavlink", f"udp:127.0.0.1:{port}")
    deploy(tiny.bundle, device, arguments=live)
    with Autopilot(port) as autopilot:
        made = deploy(tiny.bundle, device, "drone", arguments=options)
        assert made.name == "drone" and made.running and made.differing == 0
        (hello, *_) = autopilot.waits_for("HEARTBEAT")
        assert (hello.get_srcSystem(), hello.get_srcComponent()) == (1, 191)
        broken = {
            "paredown/apps/detector/device/flight/pilot.py": b"raise SystemExit('this release is no good')\n"
        }
        bad = changed(unpack(tiny.bundle), tmp_path / "bad.paredown", broken)
        expected = f"it ended with status 1: this release is no good; release {made.release} runs again"
        with pytest.raises(DeviceError, match=expected):
            deploy(bad, device, "drone", arguments=("--system", "2", *options))
        autopilot.received.clear()
        (again, *_) = autopilot.waits_for("HEARTBEAT")
        assert again.get_srcSystem() == 1
    for name in ("drone", "camera"):
        status = Service(device, name).status()
        assert status["running"] and status["release"] == made.release
    assert not Service(device, "drone").stop()["running"]
    assert Service(device, "camera").status()["running"]


def test_a_short_film_is_over_at_once_and_its_log_is_there(tiny, device, home, tmp_path):
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((72, 96, 3), np.uint8))
    deploy(tiny.bundle, device, arguments=("--source", str(tmp_path), "--json"))
    said: list[str] = []
    Service(device, "camera").logs(said.append, follow=True)
    documents = [json.loads(line) for line in said if line.startswith("{")]
    assert [document["frame"] for document in documents[:-1]] == [0, 1, 2]
    assert documents[-1]["summary"]["frames"] == 3
    status = Service(device, "camera").status()
    assert not status["running"] and status["ended"]["status"] == 0


def test_what_is_wrong_with_the_bundle_is_known_before_anything_is_sent(tiny, device, home, tmp_path):
    bundle = unpack(tiny.bundle)
    with pytest.raises(InputError, match="carries no paredown/apps/detector/device/drone2.py; make it again"):
        deploy(tiny.bundle, device, app="drone2")
    other = changed(bundle, tmp_path / "other.paredown", {}, app="apps.classifier")
    with pytest.raises(InputError, match="carries no apps/classifier/device/camera.py"):
        deploy(other, device)
    evil = changed(bundle, tmp_path / "evil.paredown", {"paredown/targets/runners/prove.py": b"print()"})
    with pytest.raises(
        InputError, match="code that is not this version's: paredown/targets/runners/prove.py"
    ):
        deploy(evil, device)
    with pytest.raises(UsageError, match="`../x` is no name of an app"):
        deploy(tiny.bundle, device, name="../x")
    assert not (home / ".local").exists()


@pytest.mark.slow
def test_a_device_takes_what_its_keys_signed_and_nothing_else(tiny, device, home, live, tmp_path):
    """One life of a device: whatever it refuses, the app that runs goes on."""

    def board_trusts(*keys, **options) -> None:
        (tmp_path / "trust.json").write_bytes(trusting(keys, **options))
        Board(device).trust(tmp_path / "trust.json", "host")

    def signed(key, **options) -> Path:
        path = tmp_path / "signed.paredown"
        shutil.copy(tiny.bundle, path)
        sign_bundle(path, key.key, **options)
        return path

    def refused(said: str, path: Path, **options) -> None:
        with pytest.raises(DeviceError, match=said):
            deploy(path, device, arguments=live, **options)
        status = Service(device, "camera").status()
        assert status["running"] and status["pid"] == pid

    board_trusts(A)
    made = deploy(signed(A, number=5), device, arguments=live)
    assert made.running and made.differing == 0
    pid = Service(device, "camera").status()["pid"]
    folder = (home / ".local/share/paredown/camera/current").resolve()
    assert (folder / "manifest.json").read_bytes() == unpack(tiny.bundle).text
    refused("not signed, and this device takes signed releases only", tiny.bundle)
    refused("signed by unknown key .* asks for 1 of alice", signed(B, number=6))
    refused("release 4 of tiny is older than 5, which was here", signed(A, number=4))
    refused("release 6 expired on 2020-01-31", signed(A, number=6, expires="2020-01-31"))
    other = changed(unpack(tiny.bundle), tmp_path / "pi.paredown", {}, target="raspberry-pi-5")
    sign_bundle(other, A.key, 6)
    refused("made for raspberry-pi-5, and this device is a host", other)
    assert deploy(signed(A, number=4), device, arguments=live, allow_older=True).running
    pid = Service(device, "camera").status()["pid"]
    (tmp_path / "trust.json").write_bytes(trusting((B, C), A, B, C, version=2, threshold=2, revoked=(A,)))
    Board(device).trust(tmp_path / "trust.json")
    refused("signed by revoked key .* asks for 2 of bob, carol", signed(A, number=7))
    both = signed(B, number=7)
    refused("signed by bob; trust document version 2 asks for 2", both)
    sign_bundle(both, C.key)
    assert deploy(both, device, arguments=live).running
    told = Board(device).report()
    releases_ = [(e["release"], e.get("older", False)) for e in told["record"] if "release" in e]
    assert releases_ == [(5, False), (4, True), (7, False)]
    assert told["record"][-1]["keys"] == ["bob", "carol"] and told["apps"][0]["running"]


def test_the_proof_sees_every_damage(tiny, tmp_path):
    bundle = unpack(tiny.bundle)
    extract(bundle, tmp_path / "good")
    assert prove(tmp_path / "good")["differing"] == 0
    for name in (
        "labels.txt",
        "model.tflite",
        "paredown/apps/detector/device/drawing/draw.py",
        "vectors.bin",
    ):
        shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        data = bytearray((tmp_path / "bad" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "bad" / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: missing or damaged"):
            prove(tmp_path / "bad")
    with pytest.raises(InputError, match="no unpacked bundle"):
        prove(tmp_path)
