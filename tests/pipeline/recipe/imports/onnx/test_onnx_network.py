"""The module that runs an imported graph."""

from __future__ import annotations

import copy

import torch
from torch import nn

from paredown.pipeline.recipe.imports.onnx.network import INPUT, Call, Held, Network, Slot, Step, needed


def chain() -> Network:
    modules = {
        "block.first": nn.Linear(3, 4),
        "block.sum": Call(
            torch.add, (Slot(0), Held("value")), {"alpha": 2}, {"value": nn.Parameter(torch.ones(4))}
        ),
        "both": Call(torch.split, (Slot(0), 2, -1), {}, {}),
    }
    steps = [
        Step("block.first", (INPUT,), ("a",)),
        Step("block.sum", ("a",), ("b",)),
        Step("both", ("b",), ("c", "d")),
    ]
    return Network(modules, steps, ("c", "d"))


def test_steps_run_in_order_and_parameters_have_their_paths():
    network = chain()
    x = torch.randn(2, 3)
    first, last = network(x)
    wanted = network.block.first(x) + 2
    assert torch.equal(torch.cat([first, last], 1), wanted)
    assert list(network.state_dict()) == ["block.first.weight", "block.first.bias", "block.sum.value"]
    assert len(list(network.parameters())) == 3


def test_a_copy_is_a_network_of_its_own():
    network = chain()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.block.first.weight.zero_()
    x = torch.randn(1, 3)
    assert not torch.equal(other(x)[0], network(x)[0])


def test_values_are_let_go_after_their_last_reader():
    network = chain()
    assert [step.last for step in network.steps] == [(INPUT,), ("a",), ("b",)]


def test_steps_that_nothing_reads_are_not_needed():
    steps = [Step("one", (INPUT,), ("a",)), Step("two", ("a",), ("b",)), Step("three", ("a",), ("c",))]
    assert [step.path for step in needed(steps, ["c"])] == ["one", "three"]
