"""What a sensitivity test is asked: a network, its groups, the widths to try, a sample and its score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.surgery import check
from paredown.pipeline.compress.sensitivity.sensitivity import Curve, Point, Sensitivity
from paredown.pipeline.graph.graph import Graph
from paredown.targets.errors import InputError, UsageError

Outputs = tuple[NDArray[np.float32], ...]  # of one image, each with its batch of one
#: Outputs of the first images of the sample, to metric and its 95 % confidence interval.
Score = Callable[[Sequence[Outputs]], tuple[float, float, float]]
#: Outputs of the first images of the sample, to the highest metric that the whole sample can still reach.
Most = Callable[[Sequence[Outputs]], float]
Ranking = Mapping[str, Sequence[int]]  # group -> units, most important first
Tick = Callable[[int, int], None]
Place = tuple[str, int]  # a group and a width of it

MEMORY = 1 << 30  # bytes
CHUNK = 64  # images at most: the tensors that an operation reads and writes should fit a cache
CHUNKS = 16  # of a sample, at least: points stop, and thinner convolutions are tried out, chunk by chunk
BUSY_MACS = 30_000_000  # but per operation and chunk no fewer than these: calling one takes 0.1 ms


@dataclass(frozen=True, eq=False)
class Experiment:
    """A sensitivity test.

    Attributes:
        graph: of the original network.
        groups: of `couple(graph)`.
        ranking: of each group's units; width w keeps the first w.
        widths: group name -> widths in units. Groups that are not named get no curve; the full width costs
            nothing and is on every curve.
        inputs: the sample, (N, C, H, W).
        score: from outputs to the metric; only asked about the whole sample.
        metric: its name, for the record.
        most: what the metric can still become after a part of the sample, no less than what it does become.
            Without it every point is measured on all images.
        tick: told how far it is, in images times points.
        memory: bytes, roughly: half for a chunk's tensors, half for thinner weights and outputs.
        keep: bytes for the original network's tensors, which are computed again where they do not fit; None
            for half of what is free (`pipeline.compress.sensitivity.kept`).
        chunk: images computed at a time; None: as many as suit caches and memory.

    Raises:
        UsageError: there are no images.
        InputError: a width that a group cannot have, or a ranking that does not fit it.
    """

    graph: Graph
    groups: Sequence[Group]
    ranking: Ranking
    widths: Mapping[str, Sequence[int]]
    inputs: NDArray[np.float32]
    score: Score
    metric: str
    most: Most | None = None
    tick: Tick | None = None
    memory: int = MEMORY
    keep: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Checks that it can be done."""
        if not len(self.inputs):
            raise UsageError("no images to measure sensitivity on", hint="check prune.images and the data")
        known = {group.name: group for group in self.groups}
        for name, points in self.widths.items():
            for width in points:
                if name not in known or not 0 < width <= known[name].units:
                    raise InputError(f"no width of {width} units", where=f"group {name}")
                if sorted(self.ranking.get(name, ())) != list(range(known[name].units)):
                    raise InputError("the ranking does not name each unit once", where=f"group {name}")
                check(self.groups, {name: self.kept(name, width)})

    def kept(self, group: str, width: int) -> list[int]:
        """The units that stay, rising."""
        return sorted(self.ranking[group][:width])

    def points(self) -> Iterator[tuple[Group, int]]:
        """What can be measured: by group, in falling width, without the full ones."""
        for group in self.groups:
            for width in sorted({*self.widths.get(group.name, ())} - {group.units}, reverse=True):
                yield group, width

    @property
    def images_at_a_time(self) -> int:
        """The chunk that was asked for, or one that suits."""
        return self.chunk or choose_chunk(self.graph, len(self.inputs), self.memory)

    def report(self, done: int, points: int) -> None:
        """Tells how many of the images of all points are done."""
        if self.tick:
            self.tick(done, points * len(self.inputs))

    def assemble(self, baseline: Point, found: Mapping[Place, Point]) -> Sensitivity:
        """The curves of all points."""
        curves = []
        for group in self.groups:
            if group.name in self.widths:
                full = Point(group.units, baseline.metric, baseline.low, baseline.high)
                points = [point for place, point in found.items() if place[0] == group.name]
                curves.append(Curve(group.name, group.units, (full, *points)))
        return Sensitivity(self.metric, len(self.inputs), baseline, tuple(curves))


def choose_chunk(graph: Graph, images: int, memory: int = MEMORY) -> int:
    """Images at a time: few enough that all tensors of the network together fit in half the memory."""
    size = 4 * sum(int(np.prod(node.shape)) for node in graph)
    busy = -(-BUSY_MACS * len(graph.nodes) // max(1, graph.macs))
    most = max(1, min(max(-(-images // CHUNKS), busy), CHUNK, memory // 2 // size))
    return -(-images // -(-images // most))  # as many chunks, evenly filled
