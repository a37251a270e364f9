"""Sensitivity: the task's metric at every width of every group, without retraining (our design).

`plain` is what anybody would do: mask the group, run the whole network on the whole sample, point by point.
`measure` gives the same numbers sooner: all points that go through a chunk of images share one run of the
original network and compute only what differs (`pipeline.compress.sensitivity.masked`). A `Meter` measures
only the points that it is asked for, and gives one up early where it cannot matter any more.
All compute each convolution with the same kernel on the same chunk, so a point that two report is the same to
the last bit; a point that is not measured says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.surgery import check, mask
from paredown.pipeline.compress.sensitivity.forward import Engine
from paredown.pipeline.compress.sensitivity.masked import Variant
from paredown.pipeline.graph.graph import Graph
from paredown.targets.errors import InputError, UsageError

Outputs = tuple[NDArray[np.float32], ...]  # of one image, each with its batch of one
#: Outputs of the first images of the sample, to metric and its 95 % confidence interval.
Score = Callable[[Sequence[Outputs]], tuple[float, float, float]]
Ranking = Mapping[str, Sequence[int]]  # group -> units, most important first
Tick = Callable[[int, int], None]
Place = tuple[str, int]  # a group and a width of it

NOT_ASKED = "the answer did not need it"
GIVEN_UP = "cannot be part of the answer, after"

MEMORY = 1 << 30  # bytes
CHUNK = 64  # images at most: the tensors that an operation reads and writes should fit a cache
CHUNKS = 8  # of a sample, at least: thinner convolutions are tried out on the work of one chunk
BUSY_MACS = 30_000_000  # but per operation and chunk no fewer than these: calling one takes 0.1 ms
CHECKS = (8, 4, 2)  # a point is looked at after an eighth, a quarter and a half of the images,
CHECK_IMAGES = 32  # but not on fewer than these


@dataclass(frozen=True)
class Point:
    """One width of one group.

    Attributes:
        width: in units.
        metric: of the masked network on the sample; None if it was not measured.
        low: of its 95 % confidence interval, from the sample's size.
        high: likewise.
        skipped: why it was not measured; empty if it was.
    """

    width: int
    metric: float | None
    low: float | None
    high: float | None
    skipped: str = ""


@dataclass(frozen=True)
class Curve:
    """The widths of one group, the full one first.

    Attributes:
        group: its name.
        units: how many it has.
        points: in falling width.
    """

    group: str
    units: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What a network loses when one group alone gets thinner.

    Attributes:
        metric: its name.
        images: in the sample.
        baseline: the original network; its width is 0.
        curves: in the order of the groups.
    """

    metric: str
    images: int
    baseline: Point
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Sensitivity:
        """The inverse of `to_dict`, also after JSON."""
        curves = tuple(
            Curve(c["group"], c["units"], tuple(Point(**point) for point in c["points"]))
            for c in fields["curves"]
        )
        return cls(fields["metric"], fields["images"], Point(**fields["baseline"]), curves)


@dataclass(eq=False)
class _Trial:
    """A point at work; `limit` is the largest drop at which it matters."""

    group: Group
    width: int
    limit: float = math.inf
    outputs: list[Outputs] = field(default_factory=list)
    result: Point | None = None
    lost: float | None = None  # of the metric, at least


class Meter:
    """Measures the points that it is asked for.

    Args:
        graph: of the original network.
        groups: of `couple(graph)`.
        ranking: of each group's units; width w keeps the first w.
        widths: group name -> widths in units. Groups that are not named get no curve; the full width costs
            nothing and is on every curve.
        inputs: the sample, (N, C, H, W).
        score: from outputs to the metric; called with the first images' outputs too.
        metric: its name, for the record.
        tick: told how far it is, in images times points.
        memory: bytes, roughly: half for a chunk's tensors, half for thinner weights and outputs.
        chunk: images computed at a time; None: as many as suit caches and memory.

    Attributes:
        baseline: the original network; its width is 0.

    Raises:
        UsageError: there are no images.
        InputError: a width that a group cannot have, or a ranking that does not fit it.
    """

    def __init__(
        self,
        graph: Graph,
        groups: Sequence[Group],
        ranking: Ranking,
        widths: Mapping[str, Sequence[int]],
        inputs: NDArray[np.float32],
        score: Score,
        metric: str,
        *,
        tick: Tick | None = None,
        memory: int = MEMORY,
        chunk: int | None = None,
    ) -> None:
        self._wanted = _wanted(groups, ranking, widths, inputs)
        self._engine = Engine(graph, chunk or choose_chunk(graph, len(inputs), memory))
        self._ranking, self._inputs, self._metric = ranking, inputs, metric
        self._tick, self._memory = tick, memory
        original = _original(self._engine, inputs)
        self.baseline = Point(0, *score(original))
        self._judge = _Judge(score, original, self.baseline)
        self._trials = _trials(self._wanted)

    def ask(self, places: Mapping[Place, float]) -> dict[Place, tuple[float, bool]]:
        """Measures points, all in one go.

        A point is given up after a part of the images if even the upper end of its 95 % confidence interval
        there is more than its limit below what the original network has on the same images. This is a
        statistical judgement about what to leave out, never about a number reported.

        Args:
            places: group and width, below the full one -> the largest drop at which it matters. What was
                given up once is measured whole.

        Returns:
            What each loses of the metric, and whether that was measured; else it loses at least so much.
        """
        asked = [self._trials[place] for place in places]
        for trial, limit in zip(asked, places.values(), strict=True):
            if trial.result is None or trial.result.metric is None:
                trial.limit = limit if trial.result is None else math.inf
                trial.result, trial.outputs = None, []
        while wave := [trial for trial in asked if trial.result is None]:
            batch = _affordable(self._engine, self._ranking, wave, len(self._inputs), self._memory // 2)
            _run(self._engine, batch, self._inputs, self._judge, self._report)
        self._report(())
        return {(t.group.name, t.width): (t.lost or 0.0, _measured(t)) for t in asked}

    def everything(self) -> dict[Place, float]:
        """All points, without a limit."""
        return dict.fromkeys(self._trials, math.inf)

    def found(self) -> Sensitivity:
        """All curves; a point that was not measured says why."""
        for trial in self._trials.values():
            if trial.result is None:
                trial.result = Point(trial.width, None, None, None, NOT_ASKED)
        self._report(())
        return _assemble(self._metric, len(self._inputs), self.baseline, self._wanted, self._trials)

    def _report(self, busy: Sequence[_Trial]) -> None:
        if self._tick:
            each = len(self._inputs)
            done = sum(trial.result is not None for trial in self._trials.values()) * each
            done += sum(len(trial.outputs) for trial in busy if trial.result is None)
            self._tick(done, len(self._trials) * each)


def measure(
    graph: Graph,
    groups: Sequence[Group],
    ranking: Ranking,
    widths: Mapping[str, Sequence[int]],
    inputs: NDArray[np.float32],
    score: Score,
    metric: str,
    *,
    tick: Tick | None = None,
    memory: int = MEMORY,
    chunk: int | None = None,
) -> Sensitivity:
    """Measures every point.

    Arguments and errors as for `Meter`.
    """
    meter = Meter(
        graph, groups, ranking, widths, inputs, score, metric, tick=tick, memory=memory, chunk=chunk
    )
    meter.ask(meter.everything())
    return meter.found()


def plain(
    graph: Graph,
    groups: Sequence[Group],
    ranking: Ranking,
    widths: Mapping[str, Sequence[int]],
    inputs: NDArray[np.float32],
    score: Score,
    metric: str,
    *,
    tick: Tick | None = None,
    memory: int = MEMORY,
    chunk: int | None = None,
) -> Sensitivity:
    """Measures every point for itself with the whole masked network.

    Arguments and errors as for `measure`.
    """
    wanted = _wanted(groups, ranking, widths, inputs)
    chunk = chunk or choose_chunk(graph, len(inputs), memory)
    baseline = Point(0, *score(_original(Engine(graph, chunk), inputs)))
    trials = _trials(wanted)
    for index, trial in enumerate(trials.values()):
        kept = {trial.group.name: sorted(ranking[trial.group.name][: trial.width])}
        outputs = _original(Engine(mask(graph, groups, kept), chunk), inputs)
        trial.result = Point(trial.width, *score(outputs))
        if tick:
            tick((index + 1) * len(inputs), len(trials) * len(inputs))
    return _assemble(metric, len(inputs), baseline, wanted, trials)


def choose_chunk(graph: Graph, images: int, memory: int = MEMORY) -> int:
    """Images at a time: few enough that all tensors of the network together fit in half the memory."""
    size = 4 * sum(int(np.prod(node.shape)) for node in graph)
    busy = -(-BUSY_MACS * len(graph.nodes) // max(1, graph.macs))
    most = max(1, min(max(-(-images // CHUNKS), busy), CHUNK, memory // 2 // size))
    return -(-images // -(-images // most))  # as many chunks, evenly filled


def _wanted(
    groups: Sequence[Group],
    ranking: Ranking,
    widths: Mapping[str, Sequence[int]],
    inputs: NDArray[np.float32],
) -> list[tuple[Group, list[int]]]:
    """The groups that get a curve with their widths, the full one first."""
    if not len(inputs):
        raise UsageError("no images to measure sensitivity on", hint="check prune.images and the data")
    known = {group.name: group for group in groups}
    for name, points in widths.items():
        for width in points:
            if name not in known or not 0 < width <= known[name].units:
                raise InputError(f"no width of {width} units", where=f"group {name}")
            if sorted(ranking.get(name, ())) != list(range(known[name].units)):
                raise InputError("the ranking does not name each unit once", where=f"group {name}")
            check(groups, {name: sorted(ranking[name][:width])})
    return [
        (group, sorted({group.units, *widths[group.name]}, reverse=True))
        for group in groups
        if group.name in widths
    ]


def _trials(wanted: Sequence[tuple[Group, list[int]]]) -> dict[Place, _Trial]:
    """The points that can be measured, by group and in falling width."""
    return {(group.name, width): _Trial(group, width) for group, points in wanted for width in points[1:]}


def _measured(trial: _Trial) -> bool:
    return trial.result is not None and trial.result.metric is not None


def _original(engine: Engine, inputs: NDArray[np.float32]) -> list[Outputs]:
    found: list[Outputs] = []
    for x, count in engine.chunks(inputs):
        found += _images(engine.outputs(engine.run(x, frozenset())), count)
    return found


def _images(outputs: Outputs, count: int) -> Iterator[Outputs]:
    """A chunk's outputs, image by image; copies, for a slice would keep the chunk alive."""
    for index in range(count):
        yield tuple(output[index : index + 1].copy() for output in outputs)


class _Judge:
    """Scores points, and decides which cannot matter."""

    def __init__(self, score: Score, original: list[Outputs], baseline: Point) -> None:
        self.score, self.original = score, original
        images = len(original)
        self.checks = sorted({images // part for part in CHECKS if images // part >= CHECK_IMAGES})
        self._base = {images: baseline.metric}

    def finish(self, trial: _Trial) -> None:
        """All images are done: the point is measured."""
        if trial.result is not None:
            return
        trial.result = Point(trial.width, *self.score(trial.outputs))
        trial.outputs = []
        base = self._base[len(self.original)]
        assert trial.result.metric is not None and base is not None
        trial.lost = base - trial.result.metric

    def look(self, trial: _Trial, images: int) -> None:
        """Some images are done: the point is given up if it is all but certain that it cannot matter."""
        if trial.result is not None or trial.limit == math.inf:
            return
        if images not in self._base:
            self._base[images] = self.score(self.original[:images])[0]
        base = self._base[images]
        _, _, high = self.score(trial.outputs)
        assert base is not None
        if (lost := base - high) > trial.limit:
            why = f"{GIVEN_UP} {images} images: {high:.3g} at most (95 %), {base:.3g} unpruned"
            trial.outputs, trial.lost = [], lost
            trial.result = Point(trial.width, None, None, None, why)


def _affordable(
    engine: Engine, ranking: Ranking, wave: Sequence[_Trial], images: int, limit: int
) -> list[tuple[_Trial, Variant]]:
    """As many of the points, at least one, as have room for their weights and outputs."""
    outputs = images * sum(4 * int(np.prod(engine.shapes[name])) for name in engine.graph.outputs)
    batch: list[tuple[_Trial, Variant]] = []
    used = 0
    for trial in wave:
        variant = Variant(engine, trial.group, sorted(ranking[trial.group.name][: trial.width]))
        used += outputs + variant.bytes
        if batch and used > limit:
            break
        batch.append((trial, variant))
    return batch


def _run(
    engine: Engine,
    batch: Sequence[tuple[_Trial, Variant]],
    inputs: NDArray[np.float32],
    judge: _Judge,
    report: Callable[[Sequence[_Trial]], None],
) -> None:
    """Takes some points through the sample; afterwards each has its result."""
    checks, done = list(judge.checks), 0
    trials = [trial for trial, _ in batch]
    for x, count in engine.chunks(inputs):
        busy = [(trial, variant) for trial, variant in batch if trial.result is None]
        if not busy:
            break
        base = engine.run(x, frozenset().union(*(variant.reads for _, variant in busy)))
        whole = engine.outputs(base)
        sliced = {name for _, variant in busy for name in variant.removed or ()}
        dead = {name: engine.dead(base[name]) for name in sliced}
        for trial, variant in busy:
            same = variant.removed is not None and all(
                dead[name].issuperset(gone) for name, gone in variant.removed.items()
            )
            trial.outputs += _images(whole if same else variant.run(base), count)
            report(trials)
        done += count
        if checks and done >= checks[0] and done < len(inputs):
            checks = [check for check in checks if check > done]
            for trial, _ in busy:
                judge.look(trial, done)
    for trial in trials:
        judge.finish(trial)
        report(trials)


def _assemble(
    metric: str,
    images: int,
    baseline: Point,
    wanted: Sequence[tuple[Group, list[int]]],
    trials: Mapping[Place, _Trial],
) -> Sensitivity:
    curves = []
    for group, points_wanted in wanted:
        full = Point(group.units, baseline.metric, baseline.low, baseline.high)
        made = (trials[group.name, width].result for width in points_wanted[1:])
        points = [point for point in made if point is not None]
        curves.append(Curve(group.name, group.units, (full, *points)))
    return Sensitivity(metric, images, baseline, tuple(curves))
