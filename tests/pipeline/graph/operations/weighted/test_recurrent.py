"""GRU, LSTM, RNN, cells: against torch, exact on both runtimes, weights held once, hidden units cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import ranges_of
from operation_checks import (
    RUNTIMES,
    assert_cut,
    assert_exact,
    assert_float,
    assert_network_exact,
    both,
    images,
    integer_of,
)
from prune_networks import assert_near, graph_outputs, network, outputs
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut, mask
from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork, quantizable
from paredown.pipeline.graph.alike import ALIKE
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.operations.weighted import recurrent
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.targets.errors import InputError

SHAPE = (1, 4, 6)  # steps, features


def first(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(m.rnn(x)[0])


def last(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(m.rnn(x)[0][:, -1])


def net(kind: type[nn.Module], forward=first, *, width: int = 8, **options: object) -> nn.Module:
    """A recurrent layer and what reads it; `forward` gets both."""
    torch.manual_seed(3)
    rnn = kind(SHAPE[2], width, **{"batch_first": True, **options})
    wide = width * (2 if options.get("bidirectional") else 1)
    return network(forward, rnn=rnn, fc=nn.Linear(wide, 5)).eval()


def calibrated(graph: Graph, x: torch.Tensor) -> IntegerGraph:
    """The integer graph with the ranges of these very images."""
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(x).items()}
    return quantize(graph, ranges, input_range=(float(x.min()), float(x.max())))


def cells(kind: type[nn.Module], steps: int = 3) -> nn.Module:
    """A cell in a loop of the user's own."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in range(steps):
            state = m.cell(x[:, step], state)
        return m.fc(state[0] if isinstance(state, tuple) else state)

    torch.manual_seed(3)
    return network(forward, cell=kind(SHAPE[2], 8), fc=nn.Linear(8, 5)).eval()


def steps_first(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(m.rnn(x.permute(1, 0, 2))[0]).permute(1, 0, 2)


def last_of_steps(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(torch.relu(m.rnn(x.transpose(0, 1))[0])[-1])


def both_ends(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    states = m.rnn(x)[1]
    states = states[0] if isinstance(states, tuple) else states
    return m.fc(torch.cat((states[-2], states[-1]), 1))


def end(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    states = m.rnn(x)[1]
    return m.fc((states[1] if isinstance(states, tuple) else states).squeeze(0))


NETS = {
    "gru": lambda: net(nn.GRU),
    "gru, both ends": lambda: net(nn.GRU, both_ends, bidirectional=True, bias=False),
    "gru, cells": lambda: cells(nn.GRUCell),
    "gru, last": lambda: net(nn.GRU, last, num_layers=2, dropout=0.5),
    "gru, steps first": lambda: net(nn.GRU, steps_first, batch_first=False, bidirectional=True),
    "lstm": lambda: net(nn.LSTM, bidirectional=True, num_layers=2),
    "lstm, cell state": lambda: net(nn.LSTM, end),
    "lstm, cells": lambda: cells(nn.LSTMCell),
    "lstm, last of steps": lambda: net(nn.LSTM, last_of_steps, batch_first=False),
    "rnn": lambda: net(nn.RNN, both_ends, bidirectional=True),
    "rnn, cells": lambda: cells(nn.RNNCell),
    "rnn, relu": lambda: net(nn.RNN, end, nonlinearity="relu"),
}
#: Of each layer the form that has most; each takes a minute to be lowered to both runtimes.
USUAL = ("gru", "lstm, cell state", "rnn, relu")
every = pytest.mark.parametrize("name", sorted(NETS))
lowered = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in sorted(NETS)]
)


@every
def test_it_computes_what_torch_computes(name: str):
    assert_float(NETS[name](), SHAPE, programs=name in USUAL)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETS) - set(USUAL)))
def test_its_float_programs_do_too(name: str):
    assert_float(NETS[name](), SHAPE)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([nn.GRU, nn.LSTM, nn.RNN]), steps=st.integers(1, 6), width=st.integers(1, 9),
    layers=st.integers(1, 3), both_ways=st.booleans(), bias=st.booleans(), steps_come_first=st.booleans(),
)  # fmt: skip
def test_any_form_of_it_is_traced(kind, steps, width, layers, both_ways, bias, steps_come_first):
    forward = steps_first if steps_come_first else first
    options = {"num_layers": layers, "bidirectional": both_ways, "bias": bias}
    made = net(kind, forward, width=width, batch_first=not steps_come_first, **options)
    graph, x = trace(made, (1, steps, 6)), images((1, steps, 6))
    assert_near(graph_outputs(graph, x), outputs(made, x))


@lowered
def test_it_is_exact_and_in_one_delegate(name: str):
    assert_network_exact(NETS[name](), SHAPE)


@both
def test_it_is_exact_where_the_input_is_of_another_scale(runtime: object):
    assert_exact(integer_of(net(nn.LSTM, last), SHAPE), runtime)


def test_the_codes_are_those_of_a_plain_loop():
    """A GRU step in whole numbers, its scales taken from the graph: each tensor as a kernel rounds it."""
    real_images = images((1, 3, 6), 8)
    graph = calibrated(trace(net(nn.GRU, last), (1, 3, 6)), real_images)
    x = graph.input.out.quantize(real_images.numpy())
    every = reference.run(graph, x)
    made = {node.name: node for node in graph}

    def real(name: str) -> np.ndarray:
        return (every[name].astype(np.float64) - made[name].out.zero_point) * made[name].out.scale

    for step in range(3):
        place = f"rnn.l0.{step}"
        before = f"rnn.l0.{step - 1}.output" if step else "rnn.l0.output_before"
        new, update = real(f"{place}.new"), real(f"{place}.update")
        wanted = new + update * (real(before) - new)
        out = made[f"{place}.output"].out
        # Three roundings, of the difference, the product and the sum.
        room = sum(made[f"{place}.{word}"].out.scale for word in ("older", "stays", "output"))
        low, high = (np.float64(code - out.zero_point) * out.scale for code in (-128, 127))
        assert (np.abs(real(f"{place}.output") - np.clip(wanted, low, high)) <= room).all()


# -- what steps share ----------------------------------------------------------------------------------------


def layers_of(graph: Graph | IntegerGraph, word: str) -> list:
    return [node for node in graph if node.attrs.get(ALIKE, "").endswith(f".{word}")]


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_all_steps_have_one_scale_next_to_their_weights_and_else_their_own(name: str):
    graph = integer_of(NETS[name](), SHAPE)
    layers = [node for node in graph if ALIKE in node.attrs and node.weight is not None]
    near = {name for node in layers for name in (node.name, *node.inputs)}
    scales: dict[tuple[bool, str], set] = {}
    for node in graph:
        if ALIKE in node.attrs:
            scales.setdefault((node.name in near, node.attrs[ALIKE]), set()).add(node.out)
    one = {word for (shared, word), found in scales.items() if shared and len(found) == 1}
    assert one == {word for shared, word in scales if shared} and len(one) >= 2
    assert {"gru": "older", "lstm": "kept"}[name] in {
        word.rpartition(".")[2] for (_, word), found in scales.items() if len(found) > 1
    }


def test_weights_are_held_once():
    """In the graphs' files, in both programs, in what they say of their size."""
    size, sizes = 64, {}
    for steps in (1, 8):
        made = net(nn.GRU, last, width=size)
        graph = trace(made, (1, steps, 6))
        assert graph.parameters == sum(p.numel() for p in made.parameters())
        integer = quantize(graph, ranges_of(graph), input_range=(-3, 3))
        stored = [sum(a.nbytes for a in each.dump()[1].values()) for each in (graph, integer)]
        programs = [len(runtime.lower_integer(integer).data) for runtime in RUNTIMES.values()]
        sizes[steps] = (stored, len(integer.weights), len(integer.layer_parameters), programs)
        for each in (graph, integer):
            again = type(each).load(*each.dump())
            for one, other in zip(each, again, strict=True):
                assert one.weight is None or np.array_equal(one.weight, other.weight), one.name
                assert one.bias is None or np.array_equal(one.bias, other.bias), one.name
    assert sizes[1][:3] == sizes[8][:3]
    per_step = [(b - a) / 7 for a, b in zip(sizes[1][3], sizes[8][3], strict=True)]
    assert max(per_step) < 3 * size * size  # bytes of the weights of a state, which a step does not add


def test_int8_is_near_to_float_at_any_length():
    ratios = []
    for steps in (5, 40):
        made = net(nn.LSTM, last, width=16)
        graph, x = trace(made, (1, steps, 6)), images((1, steps, 6), 32)
        integer = calibrated(graph, x)
        codes = reference.predict(integer, integer.input.out.quantize(x.numpy()))[0]
        found = integer[integer.outputs[0]].out.dequantize(codes)
        wanted = outputs(made, x)[0].numpy()
        noise = ((found - wanted) ** 2).sum()
        ratios.append(10 * np.log10(((wanted - wanted.mean(0)) ** 2).sum() / noise))
    assert min(ratios) > 20 and ratios[1] > ratios[0] - 6


# -- pruning, training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in (*USUAL, "lstm") else pytest.mark.slow) for n in sorted(NETS)]
)
def test_hidden_units_are_cut(name: str):
    groups = assert_cut(NETS[name](), SHAPE)
    (hidden,) = (group for group in groups.values() if not group.locked)
    assert hidden.units == 8  # a unit is a row of every gate, of all layers and directions
    assert len(hidden.chain) < 80  # a line for an operation, not for each step of it


def test_a_cut_layer_says_its_own_size():
    made = net(nn.LSTM, bidirectional=True, num_layers=2)
    graph = trace(made, SHAPE)
    groups = couple(graph)
    (name,) = (group.name for group in groups if not group.locked)
    smaller = cut(made, graph, groups, {name: (0, 2, 5)})
    rnn = smaller.rnn
    assert (rnn.hidden_size, rnn.input_size, rnn.weight_hh_l1_reverse.shape) == (3, 6, (12, 3))
    assert rnn.weight_ih_l1.shape == (12, 6)
    assert all(a is b for a, b in zip(rnn._flat_weights, rnn.parameters(), strict=True))
    x = images(SHAPE)
    assert_near(outputs(smaller, x), graph_outputs(mask(graph, groups, {name: (0, 2, 5)}), x))
    assert made.rnn.hidden_size == 8


def test_channels_before_it_are_cut():
    """The layer reads fewer features: columns of the weights of its input."""
    torch.manual_seed(3)
    made = network(
        lambda m, x: m.fc(m.rnn(torch.relu(m.conv(x)).transpose(1, 2))[0][:, -1]),
        conv=nn.Conv1d(4, 8, 3), rnn=nn.GRU(8, 6, batch_first=True), fc=nn.Linear(6, 3),
    ).eval()  # fmt: skip
    groups = assert_cut(made, (1, 4, 7))
    assert {name for name, group in groups.items() if not group.locked} == {"conv", "rnn.l0.input"}


def test_its_weights_are_trained_in_few_bits_alike_in_all_steps():
    made = net(nn.GRU, last)
    graph = trace(made, SHAPE)
    plans = {name: LayerPlan(GridConfig(4)) for name in quantizable(graph, made)}
    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0"} <= set(plans)
    live = QatNetwork(made, graph, plans)
    live.train()
    live(images(SHAPE, 4)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.rnn.parameters())
    folded = fold(live, SHAPE)
    states = [node for node in folded if node.name.endswith(".state")]
    assert len(states) == SHAPE[1]
    assert all(torch.equal(node.weight, states[0].weight) for node in states)
    assert all(len(row.unique()) <= 16 for row in states[0].weight)
    integer = quantize(folded, ranges_of(folded), input_range=(-3, 3))
    codes = (states[0].weight / states[0].scale[:, None]).round().numpy()
    assert (integer[states[-1].name].weight == codes).all()
    assert_near(graph_outputs(folded, images(SHAPE)), outputs(live.eval(), images(SHAPE)))


# -- what is refused -----------------------------------------------------------------------------------------


def starting(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(m.rnn(x, x[:, :1])[0])


def from_ones(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(m.rnn(x, torch.ones(1, 1, 8))[0])


def steps_out(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.fc(m.rnn(x.permute(1, 0, 2))[0])


@pytest.mark.parametrize(
    "build, told",
    [
        (lambda: net(nn.GRU, from_ones), "starts from a state that is not zero"),
        (lambda: net(nn.GRU, starting, width=6), "starts from a state that the network computes"),
        (lambda: net(nn.GRU, steps_out, batch_first=False), "first dim is not the batch"),
        (lambda: net(nn.LSTM, lambda m, x: m.rnn(x)[0], proj_size=3), "proj_size=0"),
    ],
    ids=["from ones", "from what is computed", "steps first in the output", "proj_size"],
)
def test_what_is_refused_says_what_to_change(build, told: str):
    with pytest.raises(InputError, match=told):
        trace(build(), SHAPE)


def test_a_long_sequence_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recurrent, "MOST_STEPS", 7)
    assert trace(net(nn.GRU), SHAPE)
    with pytest.raises(InputError, match="8 steps in all layers and directions.*at most 7"):
        trace(net(nn.GRU, bidirectional=True), SHAPE)


def length_first(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As text recognition has it: a linear layer on all steps as rows."""
    made, _ = m.r(m.c(x).squeeze(2).permute(2, 0, 1))
    length, batch, features = made.size()
    return m.f(made.view(length * batch, features)).view(length, batch, -1)


def of_text(function) -> nn.Module:
    return network(function, c=nn.Conv2d(1, 6, (4, 3), padding=(0, 1)), r=nn.GRU(6, 4), f=nn.Linear(4, 3))


def test_steps_that_are_rows_need_no_float():
    net = of_text(lambda m, x: length_first(m, x).permute(1, 0, 2))
    graph = trace(net, (1, 1, 4, 5))
    assert "island" not in {node.kind for node in graph}
    x = torch.randn(1, 1, 4, 5)
    with torch.no_grad():
        assert torch.allclose(graph.run(x)[graph.outputs[0]], net(x), atol=1e-5)


def test_an_output_whose_batch_is_not_first_is_refused_with_what_to_return():
    with pytest.raises(InputError, match=r"returns \(5, 1, 3\), whose first dim .*y.transpose\(0, 1\)"):
        trace(of_text(length_first), (1, 1, 4, 5))
