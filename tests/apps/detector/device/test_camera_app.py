"""The camera app on a tiny bundle: what it finds, what it writes, that it never falls behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_command import call, film, film_length, pictures
from test_detect import BOARD
from tiny_project import ROOT, predict_of

from paredown.apps.detector.device.boxes.counting import Counting, parse_line, parse_zone
from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.device.boxes.tracker import Track, Tracker
from paredown.apps.detector.device.camera import watch
from paredown.apps.detector.device.drawing.overlay import overlay
from paredown.apps.detector.device.frames.handover import Handover
from paredown.apps.detector.device.frames.holding import held
from paredown.apps.detector.device.frames.source import Frame
from paredown.apps.detector.device.frames.timing import STEPS, Split
from paredown.apps.detector.device.processor import FrameProcessor, turned
from paredown.apps.detector.task import DetectorTask
from paredown.pipeline.bundle.archive import extract, unpack
from paredown.pipeline.recipe.file import load_recipe

COUNT = 12


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return pictures(COUNT)


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("images")
    for index, image in enumerate(images):
        cv2.imwrite(str(made / f"{index:03}.png"), image)
    return made


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def boxes_of(document: dict) -> list[tuple]:
    return sorted((d["class"], *d["box"]) for d in document["detections"])


def test_it_sees_what_the_host_sees(tiny, folder, images, tmp_path):
    done = call("camera", tiny.bundle, "--source", folder, "--json")
    assert done.code == 0, done.err
    *documents, last = lines(done.out)
    assert [document["frame"] for document in documents] == list(range(COUNT))
    task, predict = DetectorTask(load_recipe(tiny.recipe)), predict_of(unpack(tiny.bundle))
    expected = task.detections(predict, images[0], 0.5)
    assert len(expected) > 3
    wanted = [(task.names[c], *(round(float(v), 4) for v in b)) for b, c in zip(
        expected.boxes, expected.classes, strict=True)]  # fmt: skip
    found = boxes_of(documents[0])  # of the first picture everything that is sure is shown
    assert [name for name, *_ in found] == [name for name, *_ in sorted(wanted)]
    np.testing.assert_allclose([b for _, *b in found], [b for _, *b in sorted(wanted)], atol=1.1e-4)
    summary = last["summary"]
    assert summary["frames"] == COUNT and summary["dropped"] == 0
    ids = {d["id"] for document in documents for d in document["detections"]}
    assert sum(summary["seen"].values()) == len(ids) == max(ids)
    assert set(documents[0]["ms"]) == set(STEPS) and set(STEPS) < set(summary["ms"])
    assert all(document["latency_ms"] > 0 for document in documents)


def test_a_turned_camera_is_turned_back(tiny, folder, images, tmp_path):
    for index, image in enumerate(images[:3]):  # as a camera gives them that lies on its side, mirrored
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.rot90(image[:, ::-1]))
    upright = call("camera", tiny.bundle, "--source", folder, "--frames", 3, "--json")
    turned_back = call("camera", tiny.bundle, "--source", tmp_path, "--rotate", 90, "--mirror", "--json")
    assert upright.code == turned_back.code == 0, turned_back.err
    pairs = zip(lines(upright.out)[:3], lines(turned_back.out)[:3], strict=True)
    assert all(a["detections"] == b["detections"] and a["size"] == b["size"] for a, b in pairs)


@pytest.mark.parametrize(("rotate", "turns"), [(0, 0), (90, 3), (180, 2), (270, 1)])
def test_rotation_is_clockwise(images, rotate, turns):
    np.testing.assert_array_equal(turned(images[0], rotate, False), np.rot90(images[0], turns))
    np.testing.assert_array_equal(turned(images[0], rotate, True), np.rot90(images[0], turns)[:, ::-1])


def test_it_writes_a_video_a_snapshot_and_words(tiny, images, tmp_path):
    source = film(tmp_path / "in.mp4", images)
    out, shot = tmp_path / "out.mp4", tmp_path / "shot.png"
    asked = ("--save", out, "--snapshot", shot, "--line", "door=0.5,0,0.5,1", "--zone", "all=0,0,1,0,1,1,0,1")
    done = call("camera", tiny.bundle, "--source", source, *asked)
    assert done.code == 0, done.err
    assert f"{COUNT} pictures" in done.out and "door: " in done.out and "latency" in done.out
    assert film_length(out) == film_length(source) == COUNT
    drawn = cv2.imread(str(shot))
    assert drawn.shape == images[0].shape and (drawn != images[-1]).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "shot.png"]


def test_a_video_keeps_its_size_when_the_source_does_not(tiny, images, tmp_path):
    for index, image in enumerate(images[:4]):
        larger = cv2.resize(image, None, fx=1 + index % 2, fy=1 + index % 2)
        cv2.imwrite(str(tmp_path / f"{index}.png"), larger)
    done = call("camera", tiny.bundle, "--source", tmp_path, "--save", tmp_path / "out.avi", "--json")
    assert done.code == 0, done.err
    assert [document["size"] for document in lines(done.out)[:4]] == [[96, 72], [192, 144]] * 2
    assert film_length(tmp_path / "out.avi") == 4


def test_in_the_bundles_own_folder_without_torch(tiny, folder, tmp_path):
    extract(unpack(tiny.bundle), tmp_path)
    code = BOARD.replace("device.detect", "device.camera")
    command = [sys.executable, "-I", "-c", code, tmp_path, "--source", folder, "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = call("camera", tiny.bundle, "--source", folder, "--json")
    assert [boxes_of(d) for d in lines(done.stdout)[:-1]] == [boxes_of(d) for d in lines(here.out)[:-1]]


class Clock:
    """Seconds, as the test has them pass; `now` is told of it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowModel:
    """A model of 100 ms beside a camera of 100 pictures a second, which goes on meanwhile."""

    names = ("thing",)
    PREPARE, INFER, DECODE = 0.004, 0.1, 0.002
    PERIOD = 0.01

    def __init__(self, clock: Clock, frames: Handover) -> None:
        self.clock, self.frames, self.given = clock, frames, 0
        self.let_pass(self.PERIOD)

    def let_pass(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while (self.given + 1) * self.PERIOD <= end + 1e-9:
            self.given += 1
            self.clock.now = self.given * self.PERIOD
            image = np.zeros((8, 8, 3), np.uint8)
            self.frames.put(Frame(image, self.given, self.clock.now, self.clock.now))
        self.clock.now = end

    def prepare(self, image):
        self.let_pass(self.PREPARE)

    def infer(self, x):
        self.let_pass(self.INFER)

    def decode(self, outputs, size, threshold):
        self.let_pass(self.DECODE)
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


class Keeps:
    """An output that remembers."""

    picture = False

    def __init__(self):
        self.documents = []

    def write(self, seen, document):
        self.documents.append(document)


def race(frames: Handover, limit: int) -> tuple[list[dict], dict]:
    clock, kept = Clock(), Keeps()
    model = SlowModel(clock, frames)
    looker = FrameProcessor(model, Tracker(), Counting(), Split(clock))
    watched = watch(frames, looker, [kept], limit=limit, clock=clock)
    return kept.documents, watched.to_dict()


def test_a_camera_faster_than_the_model_makes_no_latency():
    documents, summary = race(Handover(1, drop=True), 200)
    work = SlowModel.PREPARE + SlowModel.INFER + SlowModel.DECODE
    latencies = [document["latency_ms"] / 1e3 for document in documents]
    assert max(latencies) <= work + SlowModel.PERIOD + 1e-6 and min(latencies) >= work - 1e-6
    assert documents[-1]["time"] == pytest.approx(200 * work, abs=2 * SlowModel.PERIOD + work)
    given = int(200 * work / SlowModel.PERIOD)
    assert summary["dropped"] == pytest.approx(given - 200, abs=2)
    # a queue that drops nothing, for comparison, is 19 s behind in the end
    waiting, _ = race(Handover(10**6, drop=False), 200)
    assert waiting[-1]["latency_ms"] / 1e3 == pytest.approx(200 * (work - SlowModel.PERIOD), rel=0.02)


def test_the_steps_add_up_to_the_time_that_passed():
    documents, summary = race(Handover(1, drop=True), 20)
    for document in documents:
        ms = document["ms"]
        assert ms["preprocess"] == pytest.approx(4) and ms["infer"] == pytest.approx(100)
        assert ms["decode"] == pytest.approx(2) and ms["draw"] == 0
    assert summary["ms"]["fps"] == pytest.approx(1 / 0.106, rel=1e-3)
    assert summary["seconds"] == pytest.approx(20 * 0.106, rel=1e-6)


def test_the_overlay_shows_boxes_lines_and_times_and_leaves_the_image():
    image = np.full((432, 768, 3), 90, np.uint8)
    counting = Counting(
        [parse_line("door=0.5,0,0.5,1")], [parse_zone("till=0.6,0.6,0.9,0.6,0.9,0.9,0.6,0.9")]
    )
    tracks = [Track(7, 0, 0.9, (0.3, 0.4, 0.45, 0.8), 0.0), Track(8, 5, 0.5, (-1.0, 0.9, 2.0, 1.5), 0.0)]
    ms = dict.fromkeys(STEPS, 12.5) | {"latency": 99.0}
    bare = overlay(image, [], ("person",), Counting(), {})
    assert (bare == 90).all() and (image == 90).all()
    drawn = overlay(image, tracks, ("person",), counting, ms)
    assert drawn.shape == image.shape and (image == 90).all()
    changed = (drawn != 90).any(axis=2)
    assert changed[:, 383:386].all(axis=0).any()  # the line, from top to bottom
    assert changed[:150, :100].mean() > 0.5  # the times on their ground
    x, y = round(0.3 * 767), round(0.6 * 431)
    assert changed[y, x] and not changed[y, x + 20]  # a box's edge, and its empty inside


def test_one_camera_is_not_for_two(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with held("rtsp://127.0.0.1:1/a", "front door"):
        done = call("camera", tiny.bundle, "--source", "rtsp://127.0.0.1:1/a")
    assert done.code == 5 and "in use by front door (process" in done.line()


@pytest.mark.parametrize(
    ("asked", "code", "expected"),
    [
        (("--source", "97"), 5, "97: no such camera (/dev/video97)"),
        (("--source", "none.mp4"), 4, "none.mp4: no such file or folder"),
        (("--source", "{empty}"), 4, "no image in this folder"),
        (("--source", "{noise}"), 4, "no picture can be read"),
        (("--source", "rtsp://127.0.0.1:1/x"), 5, "this stream gives no picture"),
        (("--source", "gopher://x"), 2, "is no source"),
        ((), 2, "--source"),
        (("--source", "0", "--rotate", "45"), 2, "--rotate"),
        (("--source", "0", "--frames", "0"), 2, "--frames: `0` is not a number from 1 on"),
        (("--source", "0", "--confidence", "2"), 2, "--confidence: `2` is not a number from 0 to 1"),
        (("--source", "0", "--line", "a=1"), 2, "--line: `a=1` is no name and points"),
        (("--source", "{images}", "--snapshot", "a.words"), 4, "a.words: cannot write this image"),
        (("--source", "{images}", "--save", "no/such/a.mp4"), 4, "cannot write this video"),
        (("--source", "{images}", "--mqtt", "127.0.0.1:1"), 5, "127.0.0.1:1: no MQTT broker answers"),
        (("--source", "{images}", "--show"), 2, "--show: no window can be opened here"),
    ],
)
def test_what_goes_wrong_is_one_line(tiny, folder, tmp_path, monkeypatch, asked, code, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.mp4").write_bytes(bytes(1000))
    places = {"empty": tmp_path / "empty", "noise": tmp_path / "noise.mp4", "images": folder}
    done = call("camera", tiny.bundle, *(word.format(**places) for word in asked))
    told = [line for line in done.err.splitlines() if line.startswith("paredown: ")]
    assert done.code == code and len(told) == 1 and expected in told[0]
    assert done.out == "" and "Traceback" not in done.err


def test_a_kind_kill_completes_everything(tiny, images, tmp_path):
    source = film(tmp_path / "in.mp4", images * 40)
    asked = ("--source", source, "--realtime", "--json", "--save", tmp_path / "out.mp4")
    code = "import sys; from paredown.apps.cli.main import app; app(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "camera", *map(str, (tiny.bundle, *asked))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    documents = lines(first + out)
    assert "summary" in documents[-1] and documents[-1]["summary"]["frames"] == len(documents) - 1
    assert len(documents) < COUNT * 40 and film_length(tmp_path / "out.mp4") >= len(documents) - 1


class Broker:
    """As much of an MQTT 3.1.1 broker as one client at QoS 0 needs (OASIS standard, section 3)."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection, connection.makefile("rb") as stream:
            while kind := stream.read(1):
                body = stream.read(self._length(stream))
                if kind[0] >> 4 == 1:  # CONNECT
                    connection.sendall(b"\x20\x02\x00\x00")  # CONNACK: accepted
                elif kind[0] >> 4 == 3:  # PUBLISH
                    end = 2 + int.from_bytes(body[:2], "big")
                    topic, payload = body[2:end].decode(), body[end:]
                    if kind[0] >> 1 & 3:  # to be acknowledged
                        connection.sendall(b"\x40\x02" + payload[:2])  # PUBACK, with its number
                        payload = payload[2:]
                    self.messages.append((topic, payload))

    @staticmethod
    def _length(stream) -> int:
        value, shift = 0, 0
        while True:
            (byte,) = stream.read(1)
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value


def test_mqtt_gets_the_same_documents(tiny, folder):
    broker = Broker()
    asked = ("--mqtt", f"127.0.0.1:{broker.port}/hall/camera", "--json")
    done = call("camera", tiny.bundle, "--source", folder, *asked)
    assert done.code == 0, done.err
    broker.thread.join(10)
    *documents, last = lines(done.out)
    received = [json.loads(data) for topic, data in broker.messages if topic == "hall/camera"]
    # a message is lost at most, never late: the first may come before the connection is acknowledged
    assert received == documents[-len(received) :] and len(received) >= 1
    assert broker.messages[-1] == ("hall/camera/summary", json.dumps(last["summary"]).encode())


def test_mqtt_without_its_package_is_a_kind_error(tiny, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    done = call("camera", tiny.bundle, "--source", folder, "--mqtt", "127.0.0.1")
    assert done.code == 2 and "--mqtt: paho-mqtt is not installed here; `pip install paho-mqtt`" in done.err


def test_another_apps_bundle_is_refused(tiny, folder, tmp_path):
    bundle = unpack(tiny.bundle)
    from paredown.pipeline.bundle.archive import pack

    manifest = json.loads(bundle.text) | {"app": "apps.classifier"}
    members = dict(bundle.members)
    del manifest["members"], manifest["format"]
    (tmp_path / "other.paredown").write_bytes(pack(manifest, members))
    done = call("camera", tmp_path / "other.paredown", "--source", folder)
    assert done.code == 4 and "a bundle of apps.classifier detects no objects" in done.line()
