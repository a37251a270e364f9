"""How fast a Gemma 3 reads and writes here, against transformers, LiteRT-LM and this machine's memory.

    python bench/gemma_speed.py --weights gemma-3-270m.gguf \\
        --bundle executorch.paredown --bundle litert.paredown

Every variant loads in a process of its own, which then waits; the rounds go from one to the next, so that
whatever else the machine does meets them all. Each reads a prompt of tokens chosen by chance and writes the
most likely ones after it. Prints Markdown: medians, and in brackets the lowest and the highest.

The limit: a token that is written needs every weight and the keys and values once, the embedding's rows as
the output layer. So many bytes over the bandwidth of this machine's memory, which the largest value of a
large array measures in each round, is the shortest time that a token can take. (numpy's maximum takes 8
values at once and waits for memory; its sum adds in pairs, and takes 1.6 times as long for the same bytes.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from record import Table, add_option

from paredown.apps.chat.device.models import FILES, open_model
from paredown.apps.chat.device.speed import measure, peak_memory
from paredown.apps.chat.weights.weights import open_weights

ROOT = Path(__file__).parents[1]
MB, LARGE = 1e6, 1 << 29  # bytes of the array that is read: more than any cache
CACHE_BYTES = 4
Measured = dict[str, float]


def eager(weights: Path, dtype: str, threads: int) -> Callable[[int, int], Measured]:
    """Transformers' own network."""
    import torch
    from transformers import Gemma3ForCausalLM

    torch.set_num_threads(threads)
    source: dict[str, Any] = {"gguf_file": weights.name} if weights.is_file() else {}
    folder = weights.parent if weights.is_file() else weights
    network = Gemma3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **source).eval()

    @torch.no_grad()
    def run(prompt: int, answer: int) -> Measured:
        chance = np.random.default_rng(0)
        given = torch.from_numpy(chance.integers(0, network.config.vocab_size, (1, prompt)))
        start = time.perf_counter()
        out = network(given, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        read = time.perf_counter()
        for _ in range(answer):
            out = network(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        written = time.perf_counter()
        return {
            "prefill_rate": prompt / (read - start), "decode_rate": answer / (written - read),
            "first_token": 1e3 * (read - start), "memory_peak": peak_memory(),
        }  # fmt: skip

    return run


def ours(folder: Path, runtime: str, threads: int) -> Callable[[int, int], Measured]:
    """A program of an unpacked bundle, as the chat runs it."""
    model = open_model(folder, runtime, threads)
    return lambda prompt, answer: measure(model, prompt, answer)


def litert_lm(path: Path, threads: int) -> Callable[[int, int], Measured]:
    """LiteRT-LM's engine, by its own benchmark: it loads the file in every round."""
    import litert_lm as lm

    def run(prompt: int, answer: int) -> Measured:
        backend = lm.Backend.CPU(thread_count=threads)
        found = lm.Benchmark(str(path), backend, prefill_tokens=prompt, decode_tokens=answer).run()
        return {
            "prefill_rate": found.last_prefill_tokens_per_second,
            "decode_rate": found.last_decode_tokens_per_second,
            "first_token": 1e3 * found.time_to_first_token_in_second, "memory_peak": peak_memory(),
        }  # fmt: skip

    return run


def work(kind: str, path: Path, threads: int) -> None:
    """A variant's process: measures once for each line of standard input."""
    if kind == "litert_lm":
        run = litert_lm(path, threads)
    else:
        run = ours(path, kind, threads) if kind in FILES else eager(path, kind, threads)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


@dataclass
class Variant:
    """One row.

    Attributes:
        name: of the row.
        words: what makes its process.
        read: bytes that a token needs from memory.
        file: bytes of its file; 0 where its weights are not a file.
        rows: what was measured, round by round.
    """

    name: str
    words: Sequence[str]
    read: int
    file: int = 0
    rows: list[Measured] = field(default_factory=list)

    def start(self, threads: int) -> None:
        """Loads it."""
        command = [sys.executable, __file__, "--work", *self.words, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()

    def measure(self, prompt: int, answer: int) -> None:
        """A round."""
        assert self._process.stdin
        print(json.dumps((prompt, answer)), file=self._process.stdin, flush=True)
        self.rows.append(self._answer())

    def end(self) -> None:
        """Ends its process."""
        self._process.communicate()

    def _answer(self) -> Measured:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                found: Measured = json.loads(line)
                return found
        raise RuntimeError(f"{self.name} ended by itself")


def bandwidth() -> float:
    """Bytes a second that one core reads, of three times the best."""
    data, times = np.ones(LARGE // 4, np.float32), []
    for _ in range(3):
        start = time.perf_counter()
        data.max()
        times.append(time.perf_counter() - start)
    return LARGE / min(times)


def variants(options: argparse.Namespace, folder: Path) -> list[Variant]:
    """Every row that the options ask for."""
    from paredown.apps.chat.network.cache import cache_bytes, empty_cache
    from paredown.pipeline.bundle.archive import extract, unpack

    config = open_weights(options.weights).config
    attention = config.width * config.head_dim * 2 * (config.heads + config.kv_heads)
    body = config.layers * (attention + 3 * config.width * config.ffn)
    count = body + config.vocabulary * config.width
    held = config.layers * 2 * config.kv_heads * config.head_dim * (options.prompt + options.answer)
    found = [
        Variant(f"transformers eager, {dtype}", (dtype, str(options.weights)), size * (count + held))
        for dtype, size in (("float32", 4), ("bfloat16", 2))
    ]
    for number, path in enumerate(options.bundle):
        bundle, place = unpack(path), folder / str(number)
        extract(bundle, place)
        for model in bundle.manifest.language:
            size = (place / model.file).stat().st_size
            cache = cache_bytes(empty_cache(config, model.context, model.chunk))
            name = f"paredown, .{model.file.split('.')[-1]}"
            found.append(Variant(name, (str(model.runtime), str(place)), size + cache, size))
    if options.litertlm:
        size = options.litertlm.stat().st_size
        found.append(Variant("LiteRT-LM, .litertlm", ("litert_lm", str(options.litertlm)), size, size))
    return found


def cell(values: Sequence[float]) -> str:
    """The median and, in brackets, the extremes."""
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"


def show(rows: Sequence[Variant], rates: Sequence[float], what: str, record: str | None) -> None:
    """Prints the table and, round by round, how much faster."""
    rate = statistics.median(rates)
    print(f"\nmemory: {rate / 1e9:.1f} GB/s ({min(rates) / 1e9:.1f}-{max(rates) / 1e9:.1f})\n")
    first = [found["decode_rate"] for found in rows[0].rows]
    ratios = {
        row.name: [found["decode_rate"] / one for found, one in zip(row.rows, first, strict=True)]
        for row in rows[1:]
    }
    faster = "; ".join(f"{name} {cell(values)}x" for name, values in ratios.items())
    heads = (
        "program", "file MB", "prefill tok/s", "decode tok/s", "first token ms", "peak RSS MiB",
        "limit tok/s", "share of the limit",
    )  # fmt: skip
    with Table("gemma-speed", heads, record) as table:
        for row in rows:
            cells = {name: [found[name] for found in row.rows] for name in row.rows[0]}
            limit = rate / row.read
            shown = [f"{row.file / MB:.1f}" if row.file else "-"]
            shown += [cell(cells[name]) for name in ("prefill_rate", "decode_rate", "first_token")]
            shown += [f"{max(cells['memory_peak']):,.0f}", f"{limit:,.1f}"]
            shown += [f"{statistics.median(cells['decode_rate']) / limit:.0%}"]
            table.row(row.name, *shown)
        table.note(f"{what}; medians (lowest-highest).")
        table.note(f"Limit: every weight and key is read once per token, at {rate / 1e9:.1f} GB/s.")
        table.note(f"Decoding against {rows[0].name}, round by round: {faster}.")
    print(f"\nDecoding against {rows[0].name}, round by round: {faster}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=ROOT / "apps" / "chat" / "tiny")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="may be given again")
    parser.add_argument("--litertlm", type=Path, help="a file for LiteRT-LM, where it is installed")
    parser.add_argument("--prompt", type=int, default=128, help="tokens read")
    parser.add_argument("--answer", type=int, default=32, help="tokens written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.work:
        kind, path = options.work
        work(kind, Path(path), options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows, rates = variants(options, Path(folder)), []
        for row in rows:
            row.start(options.threads)
        for number in range(options.rounds):
            rates.append(bandwidth())
            for row in rows:
                row.measure(options.prompt, options.answer)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for row in rows:
            row.end()
    what = f"prompt of {options.prompt} tokens, {options.answer} written, {options.threads} thread"
    what = f"{what}, {options.rounds} rounds interleaved"
    print(what)
    show(rows, rates, what, options.record)


if __name__ == "__main__":
    main()
