"""The original network's tensors, which the points of a sensitivity test share (our design).

A point computes what lies behind its group from the original's tensors in front of it. Points are asked for
in rounds, and without these tensors each round would run the original network again. They are kept chunk by
chunk from the first on, as far as a limit in bytes goes; behind it each round computes them again, to the
same bits.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.compress.sensitivity.experiment import MEMORY, Outputs
from paredown.pipeline.compress.sensitivity.forward import Engine, Values, images

FREE_SHARE = 2  # of the free memory a half is taken
#: What a control group may use, and what it does, in both versions that Linux has.
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Kept:
    """The original network's outputs and tensors on a sample.

    Args:
        engine: of the original network.
        inputs: the sample, (N, C, H, W).
        limit: bytes of tensors; None for half of what is free.

    Attributes:
        bytes: of the tensors that are kept.
        runs: how many chunks went through the whole network.
    """

    def __init__(self, engine: Engine, inputs: NDArray[np.float32], limit: int | None = None) -> None:
        self._engine = engine
        self._limit = free_memory() // FREE_SHARE if limit is None else limit
        self._inputs, starts = inputs, range(0, len(inputs), engine.chunk)
        self._tensors: list[Values] = [{} for _ in starts]
        self._outputs: list[list[Outputs]] = [[] for _ in starts]
        self._dead: list[dict[str, set[int]]] = [{} for _ in starts]
        self.bytes = self.runs = 0

    def outputs(self, wanted: frozenset[str] = frozenset()) -> list[Outputs]:
        """The outputs of the original network, image by image.

        Args:
            wanted: tensors that will be asked for next; chunks that have to run keep them.
        """
        for index, found in enumerate(self._outputs):
            if not found:
                self.tensors(index, wanted)
        return list(itertools.chain(*self._outputs))

    def tensors(self, index: int, wanted: frozenset[str]) -> Values:
        """Tensors of one chunk; what is missing is computed, and kept if there is room."""
        kept = self._tensors[index]
        if wanted <= kept.keys() and self._outputs[index]:
            return kept
        x, count = self._engine.part(self._inputs, index)
        values = self._engine.run(x, wanted | kept.keys())
        self.runs += 1
        if not self._outputs[index]:
            self._outputs[index] = list(images(self._engine.outputs(values), count))
        fresh = {name: values[name] for name in wanted - kept.keys()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in fresh.values())
        if self.bytes + size <= self._limit:
            self.bytes += size
            kept.update(fresh)
        return values

    def dead(self, index: int, name: str, tensor: Tensor) -> set[int]:
        """The channels of a tensor that are zero in all of a chunk."""
        found = self._dead[index]
        if name not in found:
            found[name] = self._engine.dead(tensor)
        return found[name]


def free_memory() -> int:
    """Bytes that this process may still use; where the system does not say, `MEMORY`."""
    found = []
    for most, used in LIMITS:
        try:
            found.append(int(Path(most).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = {key: value for key, _, value in (line.partition(":") for line in lines)}
        found.append(int(facts["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError):
        found.append(MEMORY)
    return max(0, min(found))
