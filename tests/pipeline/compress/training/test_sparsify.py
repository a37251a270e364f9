"""Weight pruning: exact shares, floors, the cubic, and what is left alone."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.pipeline.compress.training.sparsify import (
    SparsitySchedule,
    apply_masks,
    grow_masks,
    layer_sparsity,
    prunable,
    prune_weights,
    sparsest,
)
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError, UsageError


class Net(nn.Module):
    """First, plain, depthwise, pointwise and last layer, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first_bn = nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.point = nn.Conv2d(12, 16, 1, bias=False)
        self.point_bn = nn.BatchNorm2d(16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first_bn(self.first(x)))
        x = torch.relu(self.depthwise(torch.relu(self.plain(x))))
        return self.last(torch.relu(self.point_bn(self.point(x))).mean((2, 3)))


def stack(widths: list[int], kernels: list[int], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for cin, cout, kernel in zip(widths, widths[1:], kernels, strict=False):
        layers.append(nn.Conv2d(cin, cout, kernel))
        layers[-1].weight.data *= 10.0 ** (seed % 5 - len(layers))  # layers of very different scales
    return nn.Sequential(*layers)


def weights_of(network: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, p in network.named_parameters() if p.ndim > 1)


def zeros_of(network: nn.Module, names) -> int:
    return sum(int((network.get_parameter(name) == 0).sum()) for name in names)


networks = st.tuples(
    st.lists(st.integers(1, 12), min_size=3, max_size=5),
    st.lists(st.sampled_from((1, 2, 3)), min_size=4, max_size=4),
    st.integers(0, 9999),
)


@settings(max_examples=60, deadline=None)
@given(made=networks, share=st.floats(0, 1), floor=st.sampled_from((0.0, 0.02, 0.1, 0.5)))
def test_the_share_is_exact_and_the_floors_hold(made, share, floor):
    network = stack(*made)
    names = weights_of(network)
    count = sum(network.get_parameter(name).numel() for name in names)
    target = share * sparsest(network, names, floor)
    wanted = round(target * count)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = prune_weights(network, target, names, floor)
    assert zeros_of(network, names) == wanted
    assert [(r.name, r.count) for r in report] == [(n, before[n].numel()) for n in names]
    assert sum(r.zeros for r in report) == wanted
    for name in names:
        weight = network.get_parameter(name).detach()
        assert ((weight != 0).flatten(1).sum(1) >= 1).all()
        assert int((weight != 0).sum()) >= math.ceil(floor * weight.numel())
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        for row, was in zip(weight.flatten(1), before[name].flatten(1), strict=True):
            assert row.abs().max() == was.abs().max()  # a filter's largest stays
    for name, value in network.state_dict().items():
        if name not in names:
            assert torch.equal(value, before[name])


@settings(max_examples=30, deadline=None)
@given(made=networks, share=st.floats(0.05, 0.9))
def test_weights_that_remain_have_the_highest_lamp_scores(made, share):
    """The oracle computes the scores of Lee et al. by their definition, with sums in exact arithmetic."""
    network = stack(*made)
    names = weights_of(network)
    share *= sparsest(network, names, 0.0)
    masks = grow_masks(network, names, share, 0.0)
    scores, kept, free = [], [], []
    for name in names:
        weight = network.get_parameter(name).detach().double().numpy()
        squares = [Fraction(float(v)) ** 2 for v in weight.ravel()]
        order = sorted(range(len(squares)), key=squares.__getitem__)
        larger, score = Fraction(0), [0.0] * len(squares)
        for index in reversed(order):
            larger += squares[index]
            score[index] = float(squares[index] / larger)
        largest = np.zeros(weight.shape, bool).reshape(len(weight), -1)
        largest[np.arange(len(weight)), np.abs(weight).reshape(len(weight), -1).argmax(1)] = True
        scores += score
        kept += masks[name].flatten().tolist()
        free += (~largest).ravel().tolist()
    gone = [s for s, k in zip(scores, kept, strict=True) if not k]
    stays = [s for s, k, f in zip(scores, kept, free, strict=True) if k and f]
    if gone and stays:
        assert max(gone) <= min(stays) * (1 + 1e-6)


def test_the_choice_is_blind_to_the_scale_of_a_layer():
    network = stack([4, 8, 8, 4], [3, 3, 3], 1)
    names = weights_of(network)
    before = grow_masks(network, names, 0.6, 0.02)
    network[1].weight.data *= 64
    network[2].weight.data /= 1024
    after = grow_masks(network, names, 0.6, 0.02)
    assert all(torch.equal(before[name], after[name]) for name in names)


@settings(max_examples=20, deadline=None)
@given(made=networks, shares=st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_what_has_gone_stays_gone_while_the_weights_move(made, shares):
    network = stack(*made)
    names = weights_of(network)
    count = sum(network.get_parameter(name).numel() for name in names)
    most, masks = sparsest(network, names, 0.02), None
    for share in sorted(shares):
        new = grow_masks(network, names, share * most, 0.02, masks)
        assert sum(int((~m).sum()) for m in new.values()) == round(share * most * count)
        if masks:
            assert not any((new[name] & ~masks[name]).any() for name in names)
        masks = new
        apply_masks(network, masks)
        with torch.no_grad():
            for name in names:
                network.get_parameter(name).mul_(torch.rand_like(network.get_parameter(name)) + 0.1)


def test_equal_weights_go_in_order_and_the_count_is_exact():
    network = nn.Sequential(nn.Conv2d(5, 4, 3))
    nn.init.ones_(network[0].weight)
    prune_weights(network, 0.5, ("0.weight",), 0.0)
    assert zeros_of(network, ["0.weight"]) == 90
    again = nn.Sequential(nn.Conv2d(5, 4, 3))
    nn.init.ones_(again[0].weight)
    prune_weights(again, 0.5, ("0.weight",), 0.0)
    assert torch.equal(network[0].weight, again[0].weight)


def test_zeros_are_positive_zeros():
    network = stack([3, 6, 6], [3, 3], 2)
    prune_weights(network, 0.7, weights_of(network))
    for name in weights_of(network):
        weight = network.get_parameter(name).detach()
        assert not torch.signbit(weight[weight == 0]).any()


def test_gradients_of_what_has_gone_are_cleared():
    network = Net().eval()
    network(torch.randn(1, 3, 8, 8)).sum().backward()
    masks = grow_masks(network, ("plain.weight",), 0.5, 0.0)
    apply_masks(network, masks, gradients=True)
    assert (network.plain.weight.grad[~masks["plain.weight"]] == 0).all()
    assert (network.plain.weight != 0).all()


def test_more_than_the_floors_allow_is_an_error_that_names_what_can_be_reached():
    network = stack([3, 4, 4], [3, 3], 0)
    names = weights_of(network)
    most = sparsest(network, names, 0.2)
    assert most == pytest.approx(1 - (math.ceil(0.2 * 108) + math.ceil(0.2 * 144)) / 252)
    prune_weights(network, most, names, 0.2)
    with pytest.raises(UsageError, match=rf"0\.9.*at most {most:.4g}.*floor \(it was 0\.2\)"):
        prune_weights(network, 0.9, names, 0.2)


def test_wrong_names_are_named():
    with pytest.raises(InputError, match="no parameter 'nothing.weight'"):
        prune_weights(Net(), 0.5, ("nothing.weight",))
    with pytest.raises(UsageError, match="no weights to prune"):
        prune_weights(Net(), 0.5, ())


def test_first_last_and_depthwise_are_protected_unless_asked_for():
    network = Net().eval()
    graph = trace(network, (1, 3, 8, 8))
    inner = ("plain.weight", "point.weight")
    assert prunable(graph) == inner
    assert set(prunable(graph, ends=True)) == {*inner, "first.weight", "last.weight"}
    assert set(prunable(graph, depthwise=True)) == {*inner, "depthwise.weight"}
    assert set(prunable(graph, ends=True, depthwise=True)) == {
        name for name, p in network.named_parameters() if p.ndim > 1
    }


def test_every_head_of_a_network_with_several_outputs_is_last_and_a_shared_layer_comes_once():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.inner = nn.Conv2d(4, 4, 1)
            self.a, self.b = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.shared(torch.relu(self.shared(torch.relu(self.stem(x)))))
            return self.a(x), self.b(torch.relu(self.inner(x)))

    assert prunable(trace(Heads().eval(), (1, 3, 8, 8))) == ("shared.weight", "inner.weight")


def test_folding_batch_norm_keeps_zeros_zero():
    network = Net().train()
    with torch.no_grad():
        network(torch.randn(4, 3, 8, 8))
    network.eval()
    graph = trace(network, (1, 3, 8, 8))
    prune_weights(network, 0.6, prunable(graph))
    folded = trace(network, (1, 3, 8, 8))["point"].weight
    assert torch.equal(folded == 0, network.point.weight == 0)
    assert int((folded == 0).sum()) > 0


def test_a_shared_parameter_is_counted_once():
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    network[1].weight = network[0].weight
    assert len(layer_sparsity(network, ("0.weight", "1.weight"))) == 1
    prune_weights(network, 0.5, ("0.weight", "1.weight"))
    assert zeros_of(network, ["0.weight"]) == 72


@settings(max_examples=50, deadline=None)
@given(
    target=st.floats(0, 0.99), begin=st.floats(0, 0.4), end=st.floats(0.5, 1), every=st.integers(1, 20),
    steps=st.integers(1, 400),
)  # fmt: skip
def test_the_schedule_is_the_cubic_of_zhu_and_gupta(target, begin, end, every, steps):
    plan = SparsitySchedule(target, ("w",), begin, end, every)
    first, last = round(begin * steps), max(1, round(end * steps))
    shares = [plan.at(step, steps) for step in range(steps + 1)]
    for step, share in enumerate(shares):
        if step <= first and step < last:
            assert share == 0
        elif step >= last:
            assert share == target
        else:
            # s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with s_i = 0, t_0 = first, n dt = last - first
            assert share == pytest.approx(target + (0 - target) * (1 - (step - first) / (last - first)) ** 3)
    assert all(a <= b + 1e-12 for a, b in zip(shares, shares[1:], strict=False))
    due = [step for step in range(1, steps + 1) if plan.due(step, steps)]
    assert due[-1] == last
    assert all(step % every == 0 for step in due[:-1])


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"target": 1.0}, "target"), ({"begin": 0.6}, "begin"), ({"end": 1.1}, "end"), ({"every": 0}, "every"),
     ({"floor": -0.1}, "floor"), ({"target": math.nan}, "target")],
)  # fmt: skip
def test_a_schedule_that_cannot_work_is_named(wrong, name):
    with pytest.raises(UsageError, match=rf"SparsitySchedule: {name} = "):
        SparsitySchedule(**{"target": 0.5, "weights": ("w",), **wrong})
