"""What every soak has in common: an app, its faults one after the other, and what must hold all the while."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import ROOT

#: Seconds after the end of a fault until the app works again; a busy machine may have the double.
BACK_S = {
    "camera": 20.0,
    "drone": 5.0,
    "broker": 35.0,
    "disk": 15.0,
    "signal": 5.0,
    "process": 30.0,
    "chat": 30.0,
    "app": 80.0,  # pauses double up to a minute
    "release": 10.0,
    "keeper": 80.0,
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

    @property
    def pid(self) -> int:
        """Of the process whose memory is looked at."""
        return self.process.pid

    def ended(self) -> int | None:
        """How it ended, where it did."""
        return self.process.poll()

    def stop(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()

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
            status = Path(f"/proc/{self.pid}/status").read_text()
            files = len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208
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
        return [pid for pid in found if pid != self.pid]


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

    def after(self, kind: str, way: str) -> str:
        """What is wrong once everything works again; empty where all is well."""
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
        if wrong := self.after(kind, way):
            self.complain(f"{self.name}, after {kind} {way}: {wrong}")
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
        if (code := self.app.ended()) is not None:
            self.complain(f"{self.name}: ended by itself with {code}: "
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
        """Ends the app and its peers."""
        self.app.settled()
        self.app.stop()
