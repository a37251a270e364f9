"""Faults at random against the apps that run for months, and what must hold whatever happens.

    python bench/soak.py BUNDLE [--apps camera drone chat] [--chat CHAT_BUNDLE] [--minutes 60] [--seed 1]

BUNDLE is a detector's, as `paredown run digits` makes it; CHAT_BUNDLE a language model's. A camera over HTTP,
an autopilot over TCP, a broker (mosquitto) and a small disk (as root) are played here, and fail in turn, each
at a time and for a time that the seed says; the apps get signals, also SIGKILL, after which they are started
again as a keeper does. Checked all the while: standard output holds JSON lines alone; each fault is said; the
app is back within BACK_S after it; nothing is told to an autopilot whose position is none; memory and open
files stay; nothing that it started outlives it. The log, one JSON line for each fault, goes to LOG.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import ROOT, Table, add_option
from soak_peers import Autopilot, Mosquitto, NetworkCamera, SmallDisk

from paredown.pipeline.bundle.archive import extract, unpack

#: Seconds after the end of a fault until the app works again; a busy machine may have the double.
BACK_S = {
    "camera": 20.0,
    "drone": 5.0,
    "broker": 35.0,
    "disk": 15.0,
    "signal": 5.0,
    "process": 30.0,
    "chat": 30.0,
}
WARM_S = 20.0  # of a process, before its memory is looked at
GROWTH_MIB, MORE_FILES = 24.0, 8
SLACK = 2.0
MARK = "SOAK_OF"


class App:
    """A process of ours, its lines, its memory; started again when it ends.

    Args:
        name: of the app.
        command: its program and arguments.
        folder: where it runs.
        complain: told what does not hold.
    """

    def __init__(self, name: str, command: list[str], folder: Path, complain: Callable[[str], None]) -> None:
        self.name, self._command, self._folder, self._complain = name, command, folder, complain
        self.mark = f"{name}-{os.getpid()}"
        self.lines = self.starts = 0
        self.last: dict[str, Any] = {}
        self.at = 0.0  # when its last line came
        self.said: list[tuple[float, str]] = []
        self.memory: list[tuple[float, float, int]] = []  # since its start: seconds, MiB, open files
        self.start()

    def start(self) -> None:
        environment = {
            **os.environ, MARK: self.mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "HOME": str(self._folder),
        }  # fmt: skip
        self.process = subprocess.Popen(
            self._command, cwd=self._folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        self.starts, self.began, self.memory = self.starts + 1, time.monotonic(), []
        for stream, take in ((self.process.stdout, self._take), (self.process.stderr, self._hear)):
            threading.Thread(target=self._read, args=(stream, take), daemon=True).start()

    def _read(self, stream: Any, take: Callable[[str], None]) -> None:
        for line in stream:
            take(line.rstrip("\n"))

    def _take(self, line: str) -> None:
        try:
            document = json.loads(line)
        except ValueError:
            self._complain(f"{self.name}: no JSON on standard output: {line[:100]!r}")
            return
        self.lines += 1
        self.last, self.at = document, time.monotonic()

    def _hear(self, line: str) -> None:
        self.said.append((time.monotonic(), line))
        if "Traceback" in line:
            self._complain(f"{self.name}: a traceback")

    def since(self, at: float) -> str:
        """What it said on standard error since then."""
        return "\n".join(line for when, line in self.said if when >= at)

    def look(self) -> None:
        """Takes a sample of its memory and open files."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            files = len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208
        except OSError:
            return
        if found := re.search(r"VmRSS:\s+(\d+)", status):
            self.memory.append((time.monotonic() - self.began, int(found[1]) / 1024, files))

    def settled(self) -> None:
        """Complains where memory or files have grown since it was warm."""
        warm = [sample for sample in self.memory if sample[0] > WARM_S]
        if len(warm) < 60:
            return
        part = len(warm) // 4
        for index, limit, what in ((1, GROWTH_MIB, "MiB"), (2, MORE_FILES, "open files")):
            first, last = (statistics.median(s[index] for s in p) for p in (warm[:part], warm[-part:]))
            if last - first > limit:
                self._complain(f"{self.name}: from {first:.0f} to {last:.0f} {what} in {warm[-1][0]:.0f} s")

    def orphans(self) -> list[int]:
        """Processes that it started and that are still there."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return [pid for pid in found if pid != self.process.pid]


class Soak:
    """One app, its peers and their faults."""

    app: App

    def __init__(self, name: str, chance: random.Random, log: Any) -> None:
        self.name, self.chance, self._log = name, chance, log
        self.faults: Counter[str] = Counter()
        self.back: dict[str, list[float]] = {}
        self.broken: list[str] = []

    def complain(self, what: str) -> None:
        self.broken.append(what)
        self.note({"broken": what})

    def note(self, document: dict[str, Any]) -> None:
        print(
            json.dumps({"at": round(time.time(), 1), "app": self.name, **document}),
            file=self._log,
            flush=True,
        )

    def kinds(self) -> list[tuple[str, str]]:
        """Kind and way of each fault; a kind names what is to be back."""
        raise NotImplementedError

    def fail(self, kind: str, way: str) -> None:
        """Begins a fault."""

    def mend(self, kind: str, way: str) -> None:
        """Ends it."""

    def works(self, kind: str, since: float) -> bool:
        """Whether what the fault broke works again."""
        return self.app.at > since

    def wrong(self, kind: str, way: str, since: float) -> str:
        """What must not be while a fault lasts; empty where all is well."""
        return ""

    def expected(self, kind: str, way: str) -> str:
        """What is to be said of it, as a pattern; empty where nothing need be."""
        return ""

    def step(self) -> None:
        """One fault, from its beginning until everything works again."""
        kind, way = self.chance.choice(self.kinds())
        lasts = self.chance.uniform(2.0, 8.0)
        began = time.monotonic()
        if kind == "process":
            self._signal(way)
            lasts = 0.0
        elif kind == "signal":
            self.app.process.send_signal(signal.SIGSTOP)
            time.sleep(lasts)
            self.app.process.send_signal(signal.SIGCONT)
        else:
            self.fail(kind, way)
            end = began + lasts
            while time.monotonic() < end:
                self._look()
                if wrong := self.wrong(kind, way, began):
                    self.complain(f"{self.name}, {kind} {way}: {wrong}")
                    break
            self.mend(kind, way)
        mended = time.monotonic()
        limit = BACK_S[kind]
        while not self.works(kind, mended) and time.monotonic() - mended < SLACK * limit:
            self._look()
        away = time.monotonic() - mended
        if away >= SLACK * limit:
            self.complain(f"{self.name}: not back {away:.0f} s after {kind} {way}")
        expected = self.expected(kind, way)
        if (
            expected
            and lasts > 6.0
            and not re.search(expected, self.app.since(began) + json.dumps(self.app.last))
        ):
            self.complain(f"{self.name}: nothing said of {kind} {way}")
        self.faults[f"{kind}: {way}"] += 1
        self.back.setdefault(kind, []).append(away)
        self.note({"fault": f"{kind}: {way}", "lasted": round(lasts, 2), "back_s": round(away, 2)})
        quiet = time.monotonic() + self.chance.uniform(0.5, 3.0)
        while time.monotonic() < quiet:
            self._look()

    def _look(self) -> None:
        time.sleep(0.1)
        if not self.app.memory or time.monotonic() - self.app.began - self.app.memory[-1][0] >= 1.0:
            self.app.look()
        if self.app.process.poll() is not None:
            self.complain(f"{self.name}: ended by itself with {self.app.process.returncode}: "
                          f"{self.app.since(self.app.began)[-200:]!r}")  # fmt: skip
            self.app.start()

    def _signal(self, way: str) -> None:
        """Ends the app, looks at what is left of it, and starts it again."""
        self.app.settled()
        number = signal.Signals[way]
        self.app.process.send_signal(number)
        try:
            code = self.app.process.wait(30)
        except subprocess.TimeoutExpired:
            self.complain(f"{self.name}: does not end on {way}")
            self.app.process.kill()
            code = self.app.process.wait()
        if number != signal.SIGKILL and code not in self.ends(way):
            self.complain(
                f"{self.name}: ended with {code} on {way}: {self.app.since(self.app.began)[-200:]!r}"
            )
        time.sleep(0.5)
        if left := self.app.orphans():
            self.complain(f"{self.name}: left processes {left}")
        self.ended(way)
        self.app.start()

    def ends(self, way: str) -> tuple[int, ...]:
        """Exit codes that are well after a signal."""
        return (0,)

    def ended(self, way: str) -> None:
        """Looks at what the app has left."""

    def close(self) -> None:
        self.app.settled()
        self.app.process.kill()
        self.app.process.wait()


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
            self._send(json.dumps({"prompt": "Hello", "number": self.number}))
            self.asked_at = time.monotonic()
        return "done" in self.app.last and self.app.at > self.asked_at


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--apps", nargs="+", choices=("camera", "drone", "chat"), default=["camera", "drone"])
    parser.add_argument("--chat", type=Path, help="a language model's bundle, for chat")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("soak.jsonl"))
    add_option(parser)
    options = parser.parse_args()
    made = {"camera": CameraSoak, "drone": DroneSoak, "chat": ChatSoak}
    columns = ["app", "minutes", "faults", "kinds", "starts", "lines", "slowest return [s]", "broken"]
    notes = [f"seed {options.seed}", "slowest return: of each kind of fault, after its end"]
    with tempfile.TemporaryDirectory() as folder, options.log.open("w") as log:
        soaks: list[Soak] = []
        for name in options.apps:
            board, work = Path(folder) / f"{name}-board", Path(folder) / f"{name}-work"
            board.mkdir()
            work.mkdir()
            extract(unpack(options.chat if name == "chat" else options.bundle), board)
            chance = random.Random(f"{options.seed} {name}")
            soaks.append(made[name](board, work, chance, log))
        began = time.monotonic()

        def soak(each: Soak) -> None:
            while time.monotonic() - began < 60 * options.minutes:
                each.step()

        threads = [threading.Thread(target=soak, args=(each,)) for each in soaks]
        try:
            first = time.monotonic() + 120
            while time.monotonic() < first and any(not s.app.at for s in soaks):
                time.sleep(0.2)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for each in soaks:
                each.close()
    with Table("soak", columns, options.record, notes=notes) as table:
        for each in soaks:
            slowest = ", ".join(f"{kind} {max(times):.1f}" for kind, times in sorted(each.back.items()))
            table.row(
                each.name, f"{options.minutes:g}", str(sum(each.faults.values())), str(len(each.faults)),
                str(each.app.starts), f"{each.app.lines:,}", slowest, str(len(each.broken)),
            )  # fmt: skip
    for each in soaks:
        for what in each.broken:
            print(what, file=sys.stderr)
    return 1 if any(each.broken for each in soaks) else 0


if __name__ == "__main__":
    sys.exit(main())
