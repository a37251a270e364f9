"""Faults at random against what runs for months, and what must hold whatever happens.

    python bench/soak.py BUNDLE [--apps camera drone keeper chat] [--chat CHAT] [--minutes 60] [--seed 1]

BUNDLE is a detector's, as `paredown run digits` makes it; CHAT a language model's. A camera over HTTP,
an autopilot over TCP, a broker (mosquitto) and a small disk (as root) are played here, and fail in turn, each
at a time and for a time that the seed says; the apps get signals, also SIGKILL, after which they are started
again as a keeper does. The keeper itself, which runs apps on a device, has an app that dies, hangs and talks,
releases that are bad, deployments that are killed midway, and a supervisor that is. Checked all the while:
standard output holds JSON lines alone; each fault is said; the app is back within BACK_S after it; nothing is
told to an autopilot whose position is none; memory and open files stay; nothing that it started outlives it.
The log, one JSON line for each fault, goes to LOG.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from record import Table, add_option
from soak_apps import CameraSoak, ChatSoak, DroneSoak
from soak_base import Soak
from soak_keeper import KeeperSoak

from paredown.pipeline.bundle.archive import extract, unpack

KINDS: dict[str, Callable[..., Soak]] = {
    "camera": CameraSoak,
    "drone": DroneSoak,
    "keeper": KeeperSoak,
    "chat": ChatSoak,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--apps", nargs="+", choices=tuple(KINDS), default=["camera", "drone", "keeper"])
    parser.add_argument("--chat", type=Path, help="a language model's bundle, for chat")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("soak.jsonl"))
    add_option(parser)
    options = parser.parse_args()
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
            soaks.append(KINDS[name](board, work, chance, log))
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
