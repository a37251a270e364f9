"""Gemma 3 here and in llama.cpp: the same weights, the same text, one round after the other.

    python -m venv peers && peers/bin/pip install xllamacpp gguf numpy
    python bench/gemma_peers.py --program blocks=model.tflite --program rows=other.tflite \\
        --gguf Q4_K_M=gemma-3-270m-q4_k_m.gguf --make Q4_0 --make Q8_0 --peers peers/bin/python \\
        --text wiki.test.txt --tokenizer gemma-3-270m-q4_k_m.gguf --work WORK

`--make` quantizes every matrix of the first GGUF file, the embedding too, by llama.cpp's own code. Each
program loads in a process of its own, which waits; the rounds go from one to the next. Prints Markdown:
medians. `--clock cpu` counts the processor's seconds instead of the clock's: with one thread on a busy
machine that leaves out the time that others had. Without `--text` no perplexity is measured.

The limit is the file's bytes over what a core reads from memory: a loop in C, compiled when the bench starts,
adds up 512 MiB of 64-bit words in eight sums; the best of three in each round.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from record import Table, add_option

HERE = Path(__file__).parent
MB, LARGE = 1e6, 1 << 29
HEADS = (
    "program", "file MB", "perplexity", "prefill tok/s", "decode tok/s", "decode / first row", "peak RSS MiB",
    "share of the limit",
)  # fmt: skip
LOOP = """
#include <stdint.h>
uint64_t total(const uint64_t* words, long count) {
  uint64_t sums[8] = {0};
  for (long i = 0; i < count; i += 8)
    for (int k = 0; k < 8; ++k) sums[k] += words[i + k];
  return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}
"""


def reader(folder: Path) -> Callable[[], float]:
    """What measures the bytes a second that one core reads from memory."""
    (folder / "loop.c").write_text(LOOP)
    command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "loop.c", "-o", "loop.so"]
    subprocess.run(command, cwd=folder, check=True)
    total = ctypes.CDLL(str(folder / "loop.so")).total
    total.argtypes, total.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_uint64
    words = np.ones(LARGE // 8, np.uint64)

    def rate() -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            assert total(words.ctypes.data, len(words)) == len(words)
            times.append(time.process_time() - start)
        return LARGE / min(times)

    return rate


def processor_seconds() -> float:
    """Of this process and of those that it started: a .pte runs in one."""
    total = time.process_time()
    for file in Path("/proc/self/task").glob("*/children"):
        for child in file.read_text().split():
            for each in Path("/proc", child, "task").glob("*/schedstat"):
                total += int(each.read_text().split()[0]) / 1e9
    return total


def work(path: Path, threads: int, what: str, clock: str) -> None:
    """A program's process: measures, or sums a window's loss, for each line of standard input."""
    from paredown.apps.chat.device.models import ExecutorchModel, LitertModel
    from paredown.apps.chat.device.speed import measure

    model = (LitertModel if path.suffix == ".tflite" else ExecutorchModel)(path, threads)
    seconds = processor_seconds if clock == "cpu" else time.perf_counter
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        if what == "speed":
            print(json.dumps(measure(model, *given, seconds)), flush=True)
            continue
        model.reset()
        loss = 0.0
        for token, target in zip(given, given[1:], strict=False):
            logits = model.feed([token]).astype(np.float64)
            highest = logits.max()
            loss += float(np.log(np.exp(logits - highest).sum()) + highest - logits[target])
        print(json.dumps({"loss": loss}), flush=True)


@dataclass
class Program:
    """One row.

    Attributes:
        name: of the row.
        path: its file.
        scored: whether its perplexity says anything.
        rounds: what was measured.
    """

    name: str
    path: Path
    scored: bool = True
    rounds: list[dict[str, float]] = field(default_factory=list)

    def start(self, options: argparse.Namespace, what: str) -> None:
        """Loads it in a process of its own."""
        if self.path.suffix == ".gguf":
            words = [options.peers, HERE / "gemma_llama.py", what, self.path, options.threads, options.clock]
        else:
            words = [sys.executable, __file__, "--child", what, self.path]
            words += ["--threads", options.threads, "--clock", options.clock]
        self._process = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._answer()

    def ask(self, given: Sequence[int]) -> dict[str, float]:
        """One line to the process, and what it says."""
        assert self._process.stdin
        print(json.dumps(list(given)), file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        """Ends its process."""
        self._process.communicate()

    def perplexity(self, options: argparse.Namespace, windows: Sequence[Sequence[int]]) -> str:
        """Measured each time: one that is kept would not know of another kernel, or of other bytes."""
        self.start(options, "score")
        loss = sum(self.ask(window)["loss"] for window in windows)
        self.end()
        return f"{math.exp(loss / sum(len(window) - 1 for window in windows)):.2f}"

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit(f"gemma_peers.py: {self.path} does not load or run")


def programs(options: argparse.Namespace) -> list[Program]:
    """Every row that the options ask for; what llama.cpp is to quantize is quantized into --work."""
    given = [(each, each not in options.shape) for each in (*options.program, *options.shape, *options.gguf)]
    found = [Program(each.partition("=")[0], Path(each.partition("=")[2]), scored) for each, scored in given]
    for kind in options.make:
        path, source = options.work / f"{kind.lower()}.gguf", options.gguf[0].partition("=")[2]
        command = [options.peers, HERE / "gemma_llama.py", "make", source, path, kind]
        subprocess.run([str(word) for word in command], check=True)
        found.append(Program(f"llama.cpp, {kind}", path))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", action="append", default=[], help="NAME=FILE, a .tflite or .pte")
    parser.add_argument(
        "--shape", action="append", default=[], help="likewise, with codes drawn by chance: speed alone"
    )
    parser.add_argument("--gguf", action="append", default=[], help="NAME=FILE, for llama.cpp")
    parser.add_argument("--make", action="append", default=[], help="a GGUF type, of the first --gguf")
    parser.add_argument("--peers", default=sys.executable, help="a Python that has xllamacpp")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a Hugging Face folder or a GGUF file")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--note", action="append", default=[], help="goes under the table")
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.child:
        work(Path(options.child[1]), options.threads, options.child[0], options.clock)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    rows = programs(options)
    windows: list[list[int]] = []
    if options.text:
        from paredown.apps.chat.perplexity import windows as cut
        from paredown.apps.chat.tokenizer import load_tokenizer
        from paredown.apps.chat.weights.weights import open_weights

        config = open_weights(options.tokenizer).config
        text = options.text.read_text(encoding="utf-8")
        ids = load_tokenizer(options.tokenizer, config.vocabulary).encode(text, add_special_tokens=False).ids
        windows = [each.tolist() for each in cut(ids, options.window, config.bos, options.windows)]
    quality = {row.name: row.perplexity(options, windows) if windows and row.scored else "-" for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        rate, rates = reader(Path(folder)), list[float]()
        for row in rows:
            row.start(options, "speed")
        for _ in range(options.rounds):
            rates.append(rate())
            for row in rows:
                row.rounds.append(row.ask((options.prompt, options.answer)))
        for row in rows:
            row.end()
    show(rows, quality, statistics.median(rates), options)


def show(rows: Sequence[Program], quality: dict[str, str], rate: float, options: argparse.Namespace) -> None:
    """Prints and records the table."""
    with Table("gemma-peers", HEADS, options.record, notes=options.note) as table:
        for row in rows:
            seen = {name: [each[name] for each in row.rounds] for name in row.rounds[0]}
            prefill, decode = (statistics.median(seen[f"{what}_rate"]) for what in ("prefill", "decode"))
            first = [each["decode_rate"] for each in rows[0].rounds]
            ratio = statistics.median(a / b for a, b in zip(seen["decode_rate"], first, strict=True))
            size = row.path.stat().st_size
            share = f"{decode * size / rate:.0%}" if options.threads == 1 else "-"
            table.row(
                row.name, f"{size / MB:.1f}", quality[row.name], f"{prefill:,.0f}", f"{decode:,.1f}",
                f"{ratio:.2f}", f"{max(seen['memory_peak']):,.0f}", share,
            )  # fmt: skip
        if any(row.scored for row in rows) and options.text:
            count = options.windows * (options.window - 1)
            table.note(f"Perplexity: {count:,} tokens of {options.text.name}, windows of {options.window:,}.")
        threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
        counted = "processor seconds" if options.clock == "cpu" else "seconds of the clock"
        table.note(
            f"A prompt of {options.prompt} tokens, {options.answer} written, {threads}, {options.rounds}"
            f" interleaved rounds, medians; tokens per {counted}; load average {os.getloadavg()[0]:.0f}."
        )
        if options.threads == 1:
            table.note(
                f"Limit: the file's bytes at the {rate / 1e9:.1f} GB/s that a loop in C reads on one core, of"
                " an array of 512 MiB that no cache holds, while the others work."
            )


if __name__ == "__main__":
    main()
