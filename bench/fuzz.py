"""Damages files and gives them to every parser of theirs, for as long as asked: what crashes, hangs, leaks?

    python bench/fuzz.py [--inputs 1000000] [--minutes 60] [--only bundle] [--start 0] [--jobs 2]

Each target has good files (`tests/fuzz/targets.py`); an input is one of them, damaged by its number. It has
to be read or refused in one line, within seconds and memory, writing nothing outside of its folder. Inputs
run in processes of their own, a thousand each: a signal or a death is found too. A finding names its number;
`python bench/fuzz.py --only TARGET --start NUMBER --inputs 1` shows it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from record import Table, add_option

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz.harness import SECONDS, Finding, attempts  # noqa: E402 - a clone's tests
from tests.fuzz.targets import TARGETS  # noqa: E402 - likewise

BATCH = 1000


def work(name: str, numbers: range, told: Connection) -> None:
    """One process: tells after each input what came of it."""
    for number, (read, finding) in zip(numbers, attempts(TARGETS[name], numbers), strict=True):
        told.send((number, read, finding))
    told.send(None)


def batch(name: str, numbers: range) -> tuple[int, int, list[Finding]]:
    """Inputs tried, inputs read, findings; where the process dies, the batch goes on behind that input."""
    context = multiprocessing.get_context("spawn")
    tried, read, findings, left = 0, 0, list[Finding](), numbers
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(name, left, theirs), daemon=True)
        process.start()
        theirs.close()
        at = left.start
        try:
            while True:
                if not ours.poll(10 * SECONDS + 60):
                    raise EOFError
                if (told := ours.recv()) is None:
                    left = range(0)
                    break
                at, was_read, finding = told[0] + 1, told[1], told[2]
                tried, read = tried + 1, read + was_read
                findings += [finding] if finding else []
        except EOFError:
            process.kill()
            process.join()
            findings.append(Finding(name, at, f"the process died with {process.exitcode}"))
            tried, left = tried + 1, range(at + 1, numbers.stop)
        process.join()
    return tried, read, findings


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="of each target")
    parser.add_argument("--minutes", type=float, help="at most, over all targets")
    parser.add_argument("--only", action="append", default=[], help="targets whose name has this in it")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=2)
    add_option(parser)
    given = parser.parse_args()
    names = [name for name in TARGETS if not given.only or any(part in name for part in given.only)]
    share = 60 * given.minutes / len(names) if given.minutes else float("inf")
    last = given.start + given.inputs
    with (
        Table("fuzz", ["target", "inputs", "read", "findings", "inputs a second"], given.record) as table,
        ThreadPoolExecutor(given.jobs) as pool,
    ):
        for name in names:
            start, counts, findings = time.monotonic(), Counter[str](), list[Finding]()
            first = given.start
            while first < last and time.monotonic() - start < share:
                parts = [
                    range(a, min(a + BATCH, last))
                    for a in range(first, min(first + BATCH * given.jobs, last), BATCH)
                ]
                for tried, read, found in pool.map(lambda part: batch(name, part), parts):  # noqa: B023
                    counts["tried"] += tried
                    counts["read"] += read
                    findings += found
                first = parts[-1].stop
            for finding in findings:
                print(f"{name} {finding.number}: {finding.what}", file=sys.stderr)
            rate = counts["tried"] / (time.monotonic() - start)
            table.row(name, f"{counts['tried']:,}", f"{counts['read']:,}", f"{len(findings)}", f"{rate:.0f}")


if __name__ == "__main__":
    main()
