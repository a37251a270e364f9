"""Speed of reading and writing here: `python -m paredown.apps.chat.device.speed RUNTIME PROMPT ANSWER N`.

Runs in an unpacked bundle's folder. Reads so many tokens in chunks, then writes so many one by one, the most
likely each time. Prints one JSON: tokens per second of both, the time until the first token is there (ms) and
the peak memory of this process and of those that it started (MiB).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paredown.apps.chat.device.language_model import LanguageModel
from paredown.apps.chat.device.models import open_model
from paredown.targets.errors import ParedownError, UsageError

WARM_UP = 2  # tokens


def measure(
    model: LanguageModel, prompt: int, answer: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Reads and writes once.

    Args:
        model: any; its memory is emptied.
        prompt: tokens that it reads, chosen by chance.
        answer: tokens that it writes.
        clock: seconds; `time.process_time` leaves out what others do on a busy machine.
    """
    chance = np.random.default_rng(0)
    tokens = chance.integers(0, model.vocabulary, prompt).tolist()
    model.feed(tokens[:WARM_UP])
    model.reset()
    start = clock()
    last = (prompt - 1) // model.chunk * model.chunk  # where the last part begins
    if last:
        model.prefill(tokens[:last])
    token = int(model.feed(tokens[last:]).argmax())
    read = clock()
    for _ in range(answer):
        token = int(model.feed([token]).argmax())
    written = clock()
    return {
        "prefill_rate": prompt / (read - start), "decode_rate": answer / (written - read),
        "first_token": 1e3 * (read - start), "memory_peak": peak_memory(),
    }  # fmt: skip


def peak_memory() -> float:
    """The most memory that this process and those it started have had, in MiB; 0 where nothing tells."""
    children = [
        word for file in Path("/proc/self/task").glob("*/children") for word in file.read_text().split()
    ]
    return sum(_peak(process) for process in ("self", *children))


def _peak(process: str) -> float:
    try:
        status = Path("/proc", process, "status").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in status.splitlines() if line.startswith("VmHWM"))
    return next((int(words[1]) / 1024 for words in lines), 0.0)


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    try:
        if len(arguments) != 4:
            raise UsageError("usage: python -m paredown.apps.chat.device.speed RUNTIME PROMPT ANSWER THREADS")
        runtime, (prompt, answer, threads) = arguments[0], map(int, arguments[1:])
        print(json.dumps(measure(open_model(Path.cwd(), runtime, threads), prompt, answer)))
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
