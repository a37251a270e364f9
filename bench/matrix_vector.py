"""How fast XNNPACK multiplies a token with a matrix of codes, and what holds it back: memory or arithmetic.

    python bench/matrix_vector.py

The matrices are those of a language model's linear layers as `.pte`: dynamically quantized activations, int4
codes in blocks of 32 or int8 codes in rows; one that no cache holds, and one that it does. A kernel that is
no faster in the cache is held back by arithmetic. Rounds go from one to the next; one thread. Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from record import Table, add_option

from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.lower.executorch.program import quiet_toolchain
from paredown.pipeline.lower.language.executorch import _DynamicLinear, _register

COLUMNS, LARGE, SMALL = 640, 65_536, 2_048  # of Gemma 3 270M's matrices
ROUNDS, WORK = 15, 4e7  # multiplications of a measurement
ARRAY = 1 << 27


@dataclass
class Row:
    """A matrix, its program, and the seconds that it took."""

    name: str
    count: int
    size: int
    data: bytes
    module: Any = None
    times: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """One round."""
        given = (torch.randn(1, COLUMNS),)
        repeats = max(1, int(WORK / self.count))
        self.module.run_method("forward", given)
        start = time.perf_counter()
        for _ in range(repeats):
            self.module.run_method("forward", given)
        self.times.append((time.perf_counter() - start) / repeats)


def program(weight: BlockWeight) -> bytes:
    """One layer, as `lower_language` writes it."""
    with quiet_toolchain(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        _register()
        layer = _DynamicLinear("linear", weight, None).eval()
        exported = torch.export.export(layer, (torch.zeros(1, COLUMNS),), strict=False)
        config = EdgeCompileConfig(_check_ir_validity=False)
        edge = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], compile_config=config
        )
        return bytes(edge.to_executorch().buffer)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option(parser)
    record = parser.parse_args().record
    rows = []
    for rows_of, where in ((LARGE, "memory"), (SMALL, "cache")):
        for what, grid in (("int4, blocks of 32", BlockGrid(4, 32)), ("int8, rows", BlockGrid(8, None))):
            weight = nearest(torch.randn(rows_of, COLUMNS), grid)
            name, count = f"{what}, {rows_of:,} x {COLUMNS}, in {where}", rows_of * COLUMNS
            rows.append(Row(name, count, weight.bytes, program(weight)))
    with quiet_toolchain():
        from executorch.extension.pybindings import _C as binding

        binding._unsafe_reset_threadpool(1)
        for row in rows:
            row.module = binding._load_for_executorch_from_buffer(row.data)
    array, rates = np.ones(ARRAY, np.float32), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        array.sum()
        rates.append(array.nbytes / (time.perf_counter() - start) / 1e9)
        for row in rows:
            row.measure()
    read = f"memory: {statistics.median(rates):.1f} GB/s"
    print(f"{read}\n")
    with Table("matrix-vector", ("matrix", "ms", "GMAC/s", "GB/s"), record, notes=[read]) as table:
        for row in rows:
            took = statistics.median(row.times)
            speeds = (f"{row.count / took / 1e9:.1f}", f"{row.size / took / 1e9:.1f}")
            table.row(row.name, f"{1e3 * took:.2f}", *speeds)


if __name__ == "__main__":
    main()
