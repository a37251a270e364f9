"""What the cache of keys and values takes, ring against full: `python bench/kv_memory.py`.

For each network and context the whole cache is allocated and every slot written, position by position in
chunks, as the network does; in a process of its own, whose resident memory is read before and after from
/proc. No weights are needed: prints a Markdown table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

import torch
from record import Table, add_option

from paredown.apps.chat.network.cache import cache_bytes, empty_cache, slot_of
from paredown.apps.chat.network.config import GEMMA3_1B, GEMMA3_270M, GemmaConfig

MIB = 1 << 20
CONTEXTS = (2048, 8192, 32_768)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filled(config: GemmaConfig, context: int, chunk: int, ring: bool, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the cache's tensors, and by how much they made this process grow."""
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    one.index_copy_(2, slot_of(torch.arange(1), 1), one.clone())  # or its code counts as the cache's
    before = resident()
    cache = empty_cache(config, context, chunk, ring, dtype)
    rows = torch.ones(1, config.kv_heads, chunk, config.head_dim, dtype=dtype)
    for start in range(0, context, chunk):
        positions = torch.arange(start, min(start + chunk, context))
        for layer in cache:
            for memory in layer:
                memory.index_copy_(2, slot_of(positions, memory.shape[2]), rows[:, :, : len(positions)])
    return cache_bytes(cache), resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description="The memory of the key-value cache, measured.")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--chunk", type=int, default=128, help="tokens of a prefill chunk")
    add_option(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{given.dtype}, prefill in chunks of {given.chunk}; MiB of tensors (growth of the process)\n")
    with Table("kv-memory", ("network", "context", "full", "ring", "full / ring"), given.record) as table:
        table.note(
            f"{given.dtype}, every slot written in chunks of {given.chunk}; MiB of tensors (growth of the "
            "process). Ring: local layers keep a ring of the window's length. Full: every layer keeps the "
            "whole context."
        )
        for name, config in (("Gemma 3 270M", GEMMA3_270M), ("Gemma 3 1B", GEMMA3_1B)):
            for context in CONTEXTS:
                cells, sizes = [], []
                for ring in (False, True):
                    with multiprocessing.get_context("fork").Pool(1) as pool:
                        arguments = (config, context, given.chunk, ring, DTYPES[given.dtype])
                        size, grown = pool.apply(filled, arguments)
                    cells.append(f"{size / MIB:.1f} ({grown / MIB:.1f})")
                    sizes.append(size)
                table.row(name, f"{context:,}", *cells, f"{sizes[0] / sizes[1]:.1f}x")


if __name__ == "__main__":
    main()
