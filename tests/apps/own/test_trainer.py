"""What all trainings have in common: patience, the best, and where a resumed one ends."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from paredown.apps.own.trainer import Listener, Run, teach


@dataclass(frozen=True)
class Config:
    epochs: int = 6
    batch: int = 4
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    warmup: int = 0
    last_lr: float = 1.0
    ema: float = 0.0
    clip: float = 10.0
    evaluate_every: int = 1
    patience: int = 0
    checkpoint_every: int = 0
    device: str = "cpu"


class Line:
    """A line through points; its scores are given."""

    per_epoch, metric = 2, "good"

    def __init__(self, scores=()):
        self.scores = iter(scores)

    def batch(self, step):
        x = torch.linspace(-1, 1, 4)[:, None, None, None] + step / 10
        return x, 3 * x.flatten(1)

    def loss(self, outputs, labels, seen):
        return (outputs - labels).square().mean(), {"seen": float(seen)}

    def score(self, network):
        return {"good": value} if (value := next(self.scores, None)) is not None else None


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(1, 1))


def test_it_stops_when_patience_is_out_and_tells_the_best():
    told = []
    run = Run(network(), Line([0.5, 0.7, 0.6, 0.7, 0.9]), Config(patience=2), [], None)
    teach(run, None, Listener(keep=lambda net, history, better: told.append((len(history), better))))
    assert told == [(1, True), (2, True), (3, False), (4, False)] and run.best == 0.7


def test_it_learns_and_a_resumed_run_ends_the_same(tmp_path):
    whole = teach(Run(network(), Line(), Config(), ["a"], None), None, Listener())
    assert whole["1.weight"].item() == pytest.approx(3, abs=0.8)
    path = tmp_path / "checkpoint"

    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        teach(Run(network(), Line([0.1] * 9), Config(), ["a"], path), path, Listener(tick=kill))
    again = Run(network(), Line([0.1] * 9), Config(), ["a"], path)
    assert again.step == 6 and again.best == 0.1 and len(again.history) == 3
    assert torch.equal(teach(again, path, Listener())["1.weight"], whole["1.weight"])
