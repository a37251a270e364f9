"""Damages files and gives them to every parser of theirs, for as long as asked: what crashes, hangs, leaks?

    python bench/fuzz.py [--inputs 1000000] [--minutes 60] [--only bundle] [--state FILE] [--jobs 2]

Each target has good files (`tests/fuzz/targets.py`); an input is one of them, damaged by its number. It has
to be read or refused in one line, within seconds and memory, writing nothing outside of its folder. Inputs
run in processes of their own, some thousand each: a signal or a death is found too. A finding names its
number; `python bench/fuzz.py --only TARGET --start NUMBER --inputs 1` shows it again. With `--state` a run
goes on where the one before ended, and the table tells of all of them; `--inputs` is then the number of the
last input.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from record import Table, add_option

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz.harness import SECONDS, Finding, attempts  # noqa: E402 - a clone's tests
from tests.fuzz.targets import TARGETS  # noqa: E402 - likewise

BATCH = 2000
SAMPLE = 60  # inputs whose lines are looked at
#: What takes long to import, once for all processes.
IMPORTED = [
    "tests.fuzz.targets", "torch", "cv2", "paredown.apps.api.model",
    "paredown.pipeline.device.validate.validate",
    "paredown.pipeline.recipe.imports.read", "paredown.apps.detector.darknet.darknet",
]  # fmt: skip
COLUMNS = ["target", "inputs", "read", "refused", "findings", "lines reached", "inputs a second"]
Counts = dict[str, float]


def work(name: str, numbers: range, until: float, told: Connection) -> None:
    """One process: tells after each input what came of it, and ends when it is time."""
    for outcome in attempts(TARGETS[name], numbers):
        told.send(outcome)
        if time.monotonic() > until:
            break
    told.send(None)


def batch(
    context: ForkServerContext, name: str, numbers: range, until: float
) -> tuple[int, int, list[Finding]]:
    """Inputs tried, inputs read, findings; where the process dies, the batch goes on behind that input."""
    tried, read, findings, left = 0, 0, list[Finding](), numbers
    while left:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(name, left, until, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            while True:
                if not ours.poll(10 * SECONDS + 60):
                    raise EOFError
                if (told := ours.recv()) is None:
                    left = range(0)
                    break
                was_read, finding = told
                tried, read = tried + 1, read + was_read
                findings += [finding] if finding else []
        except EOFError:
            process.kill()
            process.join()
            findings.append(Finding(name, numbers[tried], f"the process died with {process.exitcode}"))
            tried += 1
            left = numbers[tried:]
        process.join()
    return tried, read, findings


def fuzz(
    context: ForkServerContext, pool: ThreadPoolExecutor, jobs: int, name: str, numbers: range, seconds: float
) -> tuple[Counts, list[Finding]]:
    """One target: its inputs in batches, as far as the time lasts."""
    start, counts, findings = time.monotonic(), Counts(inputs=0, read=0), list[Finding]()
    left = numbers
    while left and time.monotonic() - start < seconds:
        parts = [part for k in range(jobs) if (part := left[k::jobs][:BATCH])]
        done = list(pool.map(lambda part: batch(context, name, part, start + seconds), parts))
        for tried, read, found in done:
            counts["inputs"] += tried
            counts["read"] += read
            findings += found
        left = left[sum(len(part) for part in parts) :]
    counts["seconds"] = time.monotonic() - start
    return counts, findings


def lines(name: str, told: Connection) -> None:
    """One process: where a sample of a target's inputs comes."""
    from tests.fuzz.reached import reached

    share = TARGETS[name].share
    told.send(reached(TARGETS[name], range(SAMPLE if share >= SAMPLE else share // 4)))


def lines_of(context: ForkServerContext, name: str) -> str:
    """The same in words."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lines, args=(name, theirs), daemon=True)
    process.start()
    theirs.close()
    executed, whole = ours.recv()
    process.join()
    return f"{executed:,} of {whole:,} ({executed / max(whole, 1):.0%})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="of each target")
    parser.add_argument("--minutes", type=float, help="at most, over all targets")
    parser.add_argument("--only", action="append", default=[], help="targets whose name has this in it")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--state", type=Path, help="a file that knows how far earlier runs came")
    parser.add_argument("--jobs", type=int, default=2)
    add_option(parser)
    given = parser.parse_args()
    names = [name for name in TARGETS if not given.only or any(part in name for part in given.only)]
    state: dict[str, Counts] = {}
    if given.state and given.state.exists():
        state = json.loads(given.state.read_text())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    budget = 60 * given.minutes if given.minutes else float("inf")
    total = 0
    with (
        Table("fuzz", COLUMNS, given.record) as table,
        ThreadPoolExecutor(given.jobs) as pool,
    ):
        for place, name in enumerate(names):
            counts = state.setdefault(name, Counts(inputs=0, read=0, findings=0, seconds=0))
            first = given.start + int(counts.get("next", 0))
            seconds = budget / (len(names) - place)  # what one leaves, the others get
            numbers = range(first, given.start + given.inputs)
            more, findings = fuzz(context, pool, given.jobs, name, numbers, seconds)
            budget -= more["seconds"]
            for finding in findings:
                print(f"{name} {finding.number}: {finding.what}", file=sys.stderr)
            for key, value in {**more, "findings": len(findings)}.items():
                counts[key] += value
            counts["next"] = first + int(more["inputs"]) + BATCH  # processes that ended early leave gaps
            if given.state:
                given.state.write_text(json.dumps(state, indent=1))
            inputs, read, found = (int(counts[key]) for key in ("inputs", "read", "findings"))
            reach = lines_of(context, name) if given.record is not None else "-"
            rate = inputs / max(counts["seconds"], 1e-9)
            refused = inputs - read - found
            table.row(name, f"{inputs:,}", f"{read:,}", f"{refused:,}", f"{found}", reach, f"{rate:,.0f}")
            total += inputs
        table.note(f"{total:,} inputs in all.")


if __name__ == "__main__":
    main()
