"""A network camera goes away and comes back as a larger one: GStreamer's RTSP server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, dropwhile, islice
from queue import Queue

import pytest
from needs import missing
from ports import free_port
from tiny_project import ROOT

pytestmark = pytest.mark.slow

PYTHON = "/usr/bin/python3"  # Debian's, which has GObject's bindings
PACKAGES = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
BINDINGS = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
"""
SERVER = (
    BINDINGS
    + """
import sys
port, width, height = sys.argv[1:]
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc pattern=ball is-live=true"
    f" ! video/x-raw,width={width},height={height},framerate=15/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=15 ! rtph264pay name=pay0 pt=96 )"
)
factory.set_shared(True)
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
print("listening", flush=True)
GLib.MainLoop().run()
"""
)


class Camera:
    """A network camera that can be switched off and on."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/cam"
        self._process: subprocess.Popen[str] | None = None

    def on(self, width: int, height: int) -> None:
        command = [PYTHON, "-c", SERVER, str(self.port), str(width), str(height)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout and self._process.stdout.readline() == "listening\n"

    def off(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def camera() -> Iterator[Camera]:
    code = BINDINGS + "assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
    if subprocess.run([PYTHON, "-c", code], capture_output=True).returncode:
        missing(f"GStreamer's RTSP server is not installed (Debian: {PACKAGES})")
    made = Camera()
    try:
        yield made
    finally:
        made.off()


def read_in_thread(stream) -> Queue[str]:
    lines: Queue[str] = Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    return lines


def test_a_network_camera_is_cut_and_comes_back_larger(tiny, camera, tmp_path):
    camera.on(320, 240)
    code = "import sys; from paredown.apps.cli.main import app; app(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "camera", str(tiny.bundle), "--source", camera.url, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        seen, said = read_in_thread(process.stdout), read_in_thread(process.stderr)
        first = [json.loads(seen.get(timeout=60)) for _ in range(10)]
        assert {tuple(document["size"]) for document in first} == {(320, 240)}
        assert said.get(timeout=60) == "first picture: 320x240\n"
        camera.off()
        assert said.get(timeout=60) == f"{camera.url}: lost, trying again\n"
        time.sleep(1.0)  # some attempts in vain
        camera.on(640, 480)
        assert said.get(timeout=90).startswith(f"{camera.url}: back after ")
        documents = (json.loads(seen.get(timeout=60)) for _ in count())
        later = list(islice(dropwhile(lambda each: each["size"] == [320, 240], documents), 10))
        assert {tuple(document["size"]) for document in later} == {(640, 480)}
        times = [document["time"] for document in first + later]
        assert times == sorted(times) and later[-1]["frame"] > first[-1]["frame"]
        process.terminate()
        process.wait(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_nobody_there_and_no_such_path(tiny, camera, tmp_path, monkeypatch):
    from camera_command import call

    monkeypatch.setenv("HOME", str(tmp_path))
    camera.on(320, 240)
    done = call("camera", tiny.bundle, "--source", f"{camera.url}-other")
    assert done.code == 5 and f"{camera.url}-other: this stream gives no picture" in done.line()
    camera.off()
    done = call("camera", tiny.bundle, "--source", camera.url)
    assert done.code == 5 and "this stream gives no picture" in done.line()
