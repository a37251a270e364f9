"""Damaged .pte programs: what the verifier says of each, and what becomes of who loads it all the same.

    python bench/damaged.py [--programs 1500] [--seed 7]

Each is the program of the golden bundle with one to five bits flipped, most of them where its tables lie. The
verifier (`pipeline/lower/executorch/verify`) looks at it; then a process of its own loads and runs it without
the verifier, for at most SECONDS of processor time. A program that passes and ends its process is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
from collections import Counter
from unittest import mock

import numpy as np
from record import ROOT, Table, add_option

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.lower.executorch import program
from paredown.pipeline.lower.executorch.verify.plan import check_program
from paredown.targets.errors import InputError

SECONDS = 20
TABLES = 6000  # bytes at the program's begin
GOLDEN = ROOT / "tests/golden/format-4/detector.paredown"


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to five of its bits flipped, behind its first eight bytes."""
    broken = bytearray(data)
    most = min(len(data), TABLES) if chance.random() < 0.8 else len(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        broken[chance.randrange(8, most)] ^= 1 << chance.randrange(8)
    return bytes(broken)


def alone(data: bytes) -> str:
    """What becomes of a process that loads and runs it without looking at it."""
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        try:
            with mock.patch.object(program, "check_program"):
                runner = program.load(data)
            meta = runner._module.method_meta("forward").input_tensor_meta(0)
            runner(np.zeros(tuple(meta.sizes()), np.int8))
        except InputError:
            os._exit(1)
        except BaseException:  # noqa: BLE001  whatever it is, the process did not die of it
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    return "an error" if os.WEXITSTATUS(status) else "ran"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=7)
    add_option(parser)
    given = parser.parse_args()
    chance, whole = random.Random(given.seed), unpack(GOLDEN).members["model.pte"]
    counts: Counter[tuple[str, str]] = Counter()
    for number in range(given.programs):
        data, said = damaged(whole, chance), "passes"
        try:
            check_program(data)
        except InputError:
            said = "refused"
        became = alone(data)
        counts[became, said] += 1
        if said == "passes" and became.startswith("ended"):
            print(f"program {number} passes and is {became}", file=sys.stderr)
    with Table("damaged", ["without the verifier", "refused by it", "passed"], given.record) as table:
        for became in sorted({each for each, _ in counts}):
            table.row(became, f"{counts[became, 'refused']:,}", f"{counts[became, 'passes']:,}")
        table.note(f"{given.programs:,} programs, seed {given.seed}")


if __name__ == "__main__":
    main()
