"""The soaks of the apps that use a bundle: the camera, the drone, the chat."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from soak_base import App, Soak
from soak_peers import Autopilot, Mosquitto, NetworkCamera, SmallDisk


class CameraSoak(Soak):
    def __init__(self, board: Path, work: Path, chance: random.Random, log: Any) -> None:
        super().__init__("camera", chance, log)
        self.peer, self.broker, self.disk = NetworkCamera(), Mosquitto(work), SmallDisk(work / "disk")
        self.shot = self.disk.folder / "shot.png"
        options = ["--source", self.peer.url, "--json", "--save", str(self.disk.folder / "out.mp4"),
                   "--snapshot", str(self.shot), "--mqtt", f"127.0.0.1:{self.broker.port}/soak"]  # fmt: skip
        command = [sys.executable, "-P", "-m", "paredown.apps.detector.device.camera", *options]
        self.app = App("camera", command, board, self.complain)

    def kinds(self) -> list[tuple[str, str]]:
        found = [("camera", way) for way in NetworkCamera.STATES] * 2
        found += [("broker", way) for way in Mosquitto.STATES] * 2
        found += [("disk", "full")] * (3 if self.disk.small else 0)
        found += [("signal", "SIGSTOP and SIGCONT")]
        return found + [("process", way) for way in ("SIGTERM", "SIGHUP", "SIGINT", "SIGKILL")]

    def fail(self, kind: str, way: str) -> None:
        if kind == "camera":
            self.peer.state = way
        elif kind == "broker":
            self.broker.fail(way)
        else:
            self.disk.fill()

    def mend(self, kind: str, way: str) -> None:
        self.peer.state = "good"
        if kind == "broker":
            self.broker.mend(way)
        elif kind == "disk":
            self.disk.free()
        self.disk.tidy()

    def works(self, kind: str, since: float) -> bool:
        if kind == "broker":
            return self.broker.heard > since
        if kind == "disk":
            new = self.shot.exists() and time.time() - self.shot.stat().st_mtime < time.monotonic() - since
            return self.app.at > since and new
        return self.app.at > since and self.app.process.poll() is None

    def expected(self, kind: str, way: str) -> str:
        return {
            "camera": "" if way in ("larger", "noise") else r"lost, trying again",
            "broker": "MQTT broker .* lost" if way == "killed" else "",
            "disk": "No space left on device",
        }.get(kind, "")

    def ends(self, way: str) -> tuple[int, ...]:
        return (0, 4)  # 4: an output was still failing

    def ended(self, way: str) -> None:
        """The newest recording plays, whatever ended the app."""
        import av

        videos = sorted(self.disk.folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        if not videos or videos[-1].stat().st_size < 100_000:
            return
        try:
            with av.open(str(videos[-1])) as container:
                count = sum(1 for _ in container.decode(video=0))
        except (OSError, ValueError) as error:
            self.complain(f"camera: the recording does not play after {way}: {error}")
            return
        if not count:
            self.complain(f"camera: the recording holds no picture after {way}")

    def close(self) -> None:
        super().close()
        for each in (self.peer, self.broker, self.disk):
            each.close()


class DroneSoak(Soak):
    #: States in which it hears no position that could be believed; and seconds until that must be known.
    GRACE_S = 2.0
    BAD = tuple(
        s for s in Autopilot.STATES if s not in ("noise", "silent", "another system", "restarted clock")
    )

    def __init__(self, board: Path, work: Path, chance: random.Random, log: Any) -> None:
        super().__init__("drone", chance, log)
        self.peer, self.camera = Autopilot(), NetworkCamera()
        options = ["--source", self.camera.url, "--json", "--fov", "62", "--tiles", "off", "--send", "both",
                   "--mavlink", self.peer.address]  # fmt: skip
        command = [sys.executable, "-P", "-m", "paredown.apps.detector.device.drone", *options]
        self.app = App("drone", command, board, self.complain)

    def kinds(self) -> list[tuple[str, str]]:
        found = [("drone", way) for way in Autopilot.STATES] * 2
        found += [("camera", way) for way in ("closed", "refusing", "silent")]
        found += [("signal", "SIGSTOP and SIGCONT")]
        return found + [("process", way) for way in ("SIGTERM", "SIGKILL")]

    def fail(self, kind: str, way: str) -> None:
        if kind == "camera":
            self.camera.state = way
        else:
            self.peer.state = way

    def mend(self, kind: str, way: str) -> None:
        self.camera.state = self.peer.state = "good"

    def works(self, kind: str, since: float) -> bool:
        return self.peer.last() > since

    def wrong(self, kind: str, way: str, since: float) -> str:
        if kind == "drone" and way in self.BAD and self.peer.last() > since + self.GRACE_S:
            return f"told of a target {self.peer.last() - since:.1f} s after it began"
        silent = self.app.last.get("drone", {}).get("silent")
        if silent == "":
            return "silent without a reason"
        return ""

    def expected(self, kind: str, way: str) -> str:
        return {"closed": "trying again", "refusing": "trying again"}.get(way, "") if kind == "drone" else ""

    def close(self) -> None:
        super().close()
        for each in (self.peer, self.camera):
            each.close()


class ChatSoak(Soak):
    """Requests and bad lines to `chat --serve`: each prompt is answered, the same prompt alike."""

    def __init__(self, board: Path, work: Path, chance: random.Random, log: Any) -> None:
        super().__init__("chat", chance, log)
        options = ["--serve", "--seed", "7", "--temperature", "0", "--max-tokens", "8", "--threads", "1"]
        command = [sys.executable, "-P", "-m", "paredown.apps.chat.device.chat", *options]
        self.number = 0
        self.app = App("chat", command, board, self.complain)

    def kinds(self) -> list[tuple[str, str]]:
        found = [
            ("chat", way) for way in ("no JSON", "no prompt", "interrupt", "reset", "long prompt", "odd text")
        ]
        return found * 2 + [("signal", "SIGSTOP and SIGCONT"), ("process", "SIGKILL"), ("process", "SIGTERM"),
                            ("process", "end of input")]  # fmt: skip

    def _send(self, line: str) -> None:
        assert self.app.process.stdin
        self.app.process.stdin.write(line + "\n")
        self.app.process.stdin.flush()

    def _signal(self, way: str) -> None:
        if way != "end of input":
            super()._signal(way)
            return
        assert self.app.process.stdin
        self.app.process.stdin.close()
        try:
            if code := self.app.process.wait(30):
                self.complain(f"chat: ended with {code} at the end of its input")
        except subprocess.TimeoutExpired:
            self.complain("chat: goes on after the end of its input")
            self.app.process.kill()
        self.app.start()

    def ends(self, way: str) -> tuple[int, ...]:
        return (-signal.SIGTERM,)

    def fail(self, kind: str, way: str) -> None:
        self.number += 1
        prompt = {"prompt": "What is a camera?", "number": self.number}
        lines = {
            "no JSON": ["Welcome to the board"], "no prompt": ['{"number": 1}', "[]", "null"],
            "interrupt": [json.dumps(prompt), json.dumps({"interrupt": self.number})],
            "reset": ['{"reset": true}'], "long prompt": [json.dumps({**prompt, "prompt": "word " * 5000})],
            "odd text": [json.dumps({**prompt, "prompt": "\x00\x1b[31m\ud800 <end_of_turn>"})],
        }[way]  # fmt: skip
        for line in lines:
            self._send(line)

    def works(self, kind: str, since: float) -> bool:
        """Asks, once, and waits for the end of that answer."""
        if self.app.process.poll() is not None:
            return False
        if getattr(self, "asked", 0.0) < since:
            self.asked = time.monotonic()
            self.number += 1
            self._send(json.dumps({"reset": True}))
            self.asked_at = time.monotonic()  # before: an answer may be faster than this thread
            self._send(json.dumps({"prompt": "Hello", "number": self.number}))
        return "done" in self.app.last and self.app.at > self.asked_at
