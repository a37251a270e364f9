"""Trial cuts: a group that forward() does not let go is locked before anything is measured."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from prune_networks import choose, conv, network, outputs
from torch import Tensor, nn

from paredown.pipeline.compress.coupling import surgery, trial
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.trial import couple_on_trial
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

SHAPE = (1, 3, 16, 16)


def decoder(m: nn.Module, x: Tensor) -> Tensor:
    """An encoder, a linear bottleneck, a view to a map whose channels are a number, convolutions."""
    x = F.relu(m.b(F.relu(m.a(x)))).flatten(1)
    x = F.relu(m.l(x)).view(-1, 8, 4, 4)
    x = F.relu(m.d(F.relu(m.c(x))))
    return m.h(x.mean((2, 3)))


def late() -> nn.Module:
    return network(
        decoder, a=nn.Conv2d(3, 8, 3, 2, 1), b=nn.Conv2d(8, 8, 3, 2, 1), l=nn.Linear(8 * 16, 8 * 16),
        c=conv(8, 12, 3), d=conv(12, 12, 3), h=nn.Linear(12, 5),
    )  # fmt: skip


@pytest.fixture
def cuts(monkeypatch) -> list[int]:
    """How many groups each trial cut."""
    found: list[int] = []

    def counted(network, graph, groups, kept):
        found.append(len(kept))
        return surgery.cut(network, graph, groups, kept)

    monkeypatch.setattr(trial, "cut", counted)
    return found


def test_a_view_that_holds_a_number_locks_its_group_alone():
    net = late()
    graph = trace(net, SHAPE)
    assert not {g.name: g for g in couple(graph)}["l"].locked  # the graph does not say it
    groups = couple_on_trial(net, graph)
    locked = {group.name: group.locked for group in groups if group.locked}
    assert set(locked) == {"l", "h"}
    assert locked["l"].startswith("cannot be cut: ") and "test_trial.py:" in locked["l"]
    assert "read it from the tensor's shape instead" in locked["l"]
    assert "l: 128 channels in 8 units of 16, locked: it cannot be cut: " in groups[2].describe()
    x = torch.randn(2, *SHAPE[1:])
    kept = choose(groups, 3)
    assert {"a", "b", "c", "d"} & set(kept) and outputs(surgery.cut(net, graph, groups, kept), x)[
        0
    ].shape == (2, 5)
    with pytest.raises(InputError, match="cannot be cut"):
        surgery.cut(net, graph, groups, {"l": (0, 1)})


def test_a_network_in_order_costs_one_cut(cuts):
    layers = {"a": conv(3, 6, 3), "b": conv(6, 6), "h": nn.Linear(6, 4)}
    net = network(lambda m, x: m.h(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))), **layers)
    graph = trace(net, SHAPE)
    assert couple_on_trial(net, graph) == couple(graph) and cuts == [2]


def test_one_that_fails_is_found_by_halves(cuts):
    layers = {f"c{i}": conv(4, 4) for i in range(16)}

    def deep(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        for i in range(16):
            x = F.relu(getattr(m, f"c{i}")(x))
            x = x.reshape(x.shape[0], 4, 16, 16) if i == 9 else x
        return m.head(x)

    net = network(deep, stem=conv(3, 4), head=conv(4, 2), **layers)
    groups = couple_on_trial(net, trace(net, SHAPE))
    assert [group.name for group in groups if group.locked] == ["c9", "head"]
    assert len(cuts) <= 2 + 2 * 5


def test_two_that_fail_together_only_do_not_lock_each_other():
    """One is locked, the other can go."""

    def sized(m: nn.Module, x: Tensor) -> Tensor:
        a, b = F.relu(m.a(x)), F.relu(m.b(x))
        if a.shape[1] < 4 and b.shape[1] < 4:
            raise ValueError("too thin")
        return m.h(torch.cat([a, b], 1))

    net = network(sized, a=conv(3, 4), b=conv(3, 4), h=conv(8, 2))
    groups = couple_on_trial(net, trace(net, SHAPE))
    assert [group.name for group in groups if not group.locked] == ["a"]
    assert "too thin" in groups[1].locked


def test_the_network_stays_as_it_is():
    net = late().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    couple_on_trial(net, trace(net, SHAPE))
    assert net.training and all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_a_layer_that_no_output_reads_is_named():
    """The last residual of a stack whose outputs are its skips: its layer runs for nothing, and fails."""

    def skips(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)
        y = F.relu(m.b(x))
        x = x + m.c(y)  # read by nobody
        return m.h(y)

    model = network(skips, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), h=conv(8, 2))
    groups = couple_on_trial(model, trace(model, SHAPE))
    reasons = {group.name: group.locked for group in groups}
    assert all("c runs, and no output hangs on it" in reasons[name] for name in ("a", "b"))
