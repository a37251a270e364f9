"""Measures the points of a sensitivity test that it is asked for (our design).

All points share one run of the original network (`pipeline.compress.sensitivity.kept`) and compute only what
differs from it (`pipeline.compress.sensitivity.masked`). A point stops part way when it is certain to lose
more than its limit, whatever the images to come bring. What it has computed stays, and if it is asked for
again it goes on from there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.sensitivity.experiment import Experiment, Outputs, Place
from paredown.pipeline.compress.sensitivity.forward import Engine, images
from paredown.pipeline.compress.sensitivity.kept import Kept
from paredown.pipeline.compress.sensitivity.masked import Variant
from paredown.pipeline.compress.sensitivity.sensitivity import GIVEN_UP, NOT_ASKED, Point, Sensitivity

SLACK = 1e-9  # of a metric: two ways of adding up


@dataclass(eq=False)
class _Trial:
    """A point.

    Attributes:
        group, width: which one.
        limit: the largest drop at which it matters.
        outputs: of the first images.
        variant: the masked network; None while it is not planned.
        point: the result; None while it is at work.
        lost: of the metric, at least.
    """

    group: Group
    width: int
    limit: float = math.inf
    outputs: list[Outputs] = field(default_factory=list)
    variant: Variant | None = None
    point: Point | None = None
    lost: float = 0.0

    @property
    def measured(self) -> bool:
        """On all images."""
        return self.point is not None and self.point.metric is not None


class Meter:
    """Measures points of an experiment."""

    def __init__(self, asked: Experiment) -> None:
        self.asked = asked
        self._engine = Engine(asked.graph, asked.images_at_a_time)
        self.original = Kept(self._engine, asked.inputs, asked.keep)
        self._trials = {(group.name, width): _Trial(group, width) for group, width in asked.points()}
        self._size = sum(4 * math.prod(self._engine.shapes[name]) for name in asked.graph.outputs)  # an image

    @functools.cached_property
    def baseline(self) -> Point:
        """The original network; its width is 0."""
        return Point(0, *self.asked.score(self.original.outputs()))

    def ask(self, places: Mapping[Place, float]) -> dict[Place, tuple[float, bool]]:
        """Measures points, all in one go.

        A point stops when it is certain that it loses more than its limit.

        Args:
            places: group and width, below the full one -> the largest drop at which it matters. What is
                known to lose more, and is asked for still, is measured whole.

        Returns:
            What each loses of the metric, and whether that was measured; else it loses at least so much.
        """
        trials = [self._trials[place] for place in places]
        for trial, limit in zip(trials, places.values(), strict=True):
            if not trial.measured:
                trial.limit = limit if trial.point is None or limit > trial.lost else math.inf
                trial.point = None
        while wave := [trial for trial in trials if trial.point is None]:
            self._run(self._affordable(wave))
        return {(t.group.name, t.width): (t.lost, t.measured) for t in trials}

    def everything(self) -> dict[Place, float]:
        """All points, without a limit."""
        return dict.fromkeys(self._trials, math.inf)

    def found(self) -> Sensitivity:
        """All curves; a point that was not measured says why."""
        for trial in self._trials.values():
            if trial.point is None:
                trial.point = Point(trial.width, None, None, None, NOT_ASKED)
        self._report()
        points = {place: trial.point for place, trial in self._trials.items() if trial.point is not None}
        return self.asked.assemble(self.baseline, points)

    def _affordable(self, wave: Sequence[_Trial]) -> list[tuple[_Trial, Variant]]:
        """As many of the points, at least one, as have room for their weights and outputs."""
        batch: list[tuple[_Trial, Variant]] = []
        limit, used = self.asked.memory // 2, 0
        for trial in wave:
            if trial.variant is None:
                units = self.asked.kept(trial.group.name, trial.width)
                trial.variant = Variant(self._engine, trial.group, units)
            used += len(self.asked.inputs) * self._size + trial.variant.bytes
            if batch and used > limit:
                break
            batch.append((trial, trial.variant))
        return batch

    def _run(self, batch: Sequence[tuple[_Trial, Variant]]) -> None:
        """Takes some points through the sample; afterwards each has its result."""
        original = self.original
        whole = original.outputs(frozenset().union(*(variant.reads for _, variant in batch)))
        for index, start in enumerate(range(0, len(whole), self._engine.chunk)):
            busy = [each for each in batch if each[0].point is None and len(each[0].outputs) == start]
            if not busy:
                continue
            own = whole[start : start + self._engine.chunk]
            base = original.tensors(index, frozenset().union(*(variant.reads for _, variant in busy)))
            for trial, variant in busy:
                same = variant.removed is not None and all(
                    original.dead(index, name, base[name]).issuperset(gone)
                    for name, gone in variant.removed.items()
                )
                trial.outputs += own if same else images(variant.run(base), len(own))
                self._report()
                self._judge(trial)

    def _judge(self, trial: _Trial) -> None:
        """Scores a point whose images are all done, and stops one that is beyond its limit."""
        base, most, done = self.baseline.metric, self.asked.most, len(trial.outputs)
        assert base is not None
        if done == len(self.asked.inputs):
            trial.point = Point(trial.width, *self.asked.score(trial.outputs))
            assert trial.point.metric is not None
            trial.outputs, trial.variant, trial.lost = [], None, base - trial.point.metric
        elif most is not None and trial.limit < math.inf:
            best = most(trial.outputs)
            if (lost := base - best - SLACK) > trial.limit:
                why = f"{GIVEN_UP} {done} images: {best:.3g} at most, {base:.3g} unpruned"
                trial.point, trial.lost = Point(trial.width, None, None, None, why), lost
                if self._waiting() > self.asked.memory // 2:
                    trial.outputs, trial.variant = [], None

    def _waiting(self) -> int:
        """Bytes of what is kept of stopped points."""
        stopped = [trial for trial in self._trials.values() if trial.point is not None]
        weights = sum(trial.variant.bytes for trial in stopped if trial.variant is not None)
        return weights + self._size * sum(len(trial.outputs) for trial in stopped)

    def _report(self) -> None:
        images_done = (
            len(self.asked.inputs) if trial.point is not None else len(trial.outputs)
            for trial in self._trials.values()
        )  # fmt: skip
        self.asked.report(sum(images_done), len(self._trials))


def measure(asked: Experiment) -> Sensitivity:
    """Measures every point."""
    meter = Meter(asked)
    meter.ask(meter.everything())
    return meter.found()
