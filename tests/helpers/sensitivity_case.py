"""A small network that agrees with itself on every image, for sensitivity tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from prune_networks import conv, network, outputs
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.sensitivity.experiment import Experiment, Outputs
from paredown.pipeline.compress.sensitivity.ranking import norm, ranking
from paredown.pipeline.compress.sensitivity.sensitivity import Point, Sensitivity
from paredown.pipeline.graph.trace import trace


def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(self.stem(x))
    x = F.relu(self.second(F.relu(self.first(x))) + x)
    return self.head(F.relu(self.last(x)).mean((2, 3)))


class Case:
    """A network that agrees with itself on every image, and what measuring it takes."""

    def __init__(self, images: int, seed: int = 0) -> None:
        self.net = network(
            forward, seed, stem=conv(3, 8, 3), first=conv(8, 8, 3), second=conv(8, 8, 3),
            last=nn.Conv2d(8, 16, 3, 2, 1), head=nn.Linear(16, 4),
        )  # fmt: skip
        self.graph = trace(self.net, (1, 3, 8, 8))
        self.groups = couple(self.graph)
        self.x = np.random.default_rng(seed).standard_normal((images, 3, 8, 8), np.float32)
        logits = outputs(self.net, torch.from_numpy(self.x))[0].numpy()
        self.centre = logits.mean(0)  # the random head prefers a class by far
        self.truth = (logits - self.centre).argmax(1)
        self.ranks = ranking(norm(self.graph, self.groups))
        self.widths = {g.name: tuple(range(g.units, 0, -1)) for g in self.groups if not g.locked}
        self.calls: list[int] = []

    def score(self, found: Sequence[Outputs]) -> tuple[float, float, float]:
        assert all(len(o) == 1 and o[0].shape == (1, 4) for o in found)
        self.calls.append(len(found))
        n = len(found)
        p = float((np.array([(o[0][0] - self.centre).argmax() for o in found]) == self.truth[:n]).mean())
        half = 1.96 * (p * (1 - p) / n + 1 / n**2) ** 0.5
        return p, p - half, p + half

    def most(self, found: Sequence[Outputs]) -> float:
        """Top-1 if all other images were right."""
        wrong = (
            np.array([(o[0][0] - self.centre).argmax() for o in found]) != self.truth[: len(found)]
        ).sum()
        return 1 - float(wrong) / len(self.x)

    def experiment(self, **options: Any) -> Experiment:
        made = Experiment(
            self.graph, self.groups, self.ranks, self.widths, self.x, self.score, "top1", self.most
        )
        return replace(made, **options)

    def run(self, way: Callable[[Experiment], Sensitivity], **options: Any) -> Sensitivity:
        return way(self.experiment(**options))


def points(found: Sensitivity) -> dict[tuple[str, int], Point]:
    return {(c.group, p.width): p for c in found.curves for p in c.points}


def assert_reported_as(found: Sensitivity, expected: Sensitivity) -> None:
    """The same points; what is reported is equal, what is not says why."""
    truth = points(expected)
    assert points(found).keys() == truth.keys()
    for key, point in points(found).items():
        if point.skipped:
            assert (point.metric, point.low, point.high) == (None, None, None)
        else:
            assert point == truth[key]
