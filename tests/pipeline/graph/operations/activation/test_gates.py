"""SiLU and hardswish: the input times a gate."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from operation_checks import assert_cut, assert_float, assert_network_exact
from prune_networks import conv, network

SHAPE = (1, 4, 6, 5)
gates = pytest.mark.parametrize(("function", "gate"), [(F.silu, "sigmoid"), (F.hardswish, "hardsigmoid")])


@gates
def test_it_is_a_gate_and_a_product(function, gate):
    graph = assert_float(network(lambda m, x: function(x)), SHAPE)
    assert [node.kind for node in graph] == ["input", gate, "mul"]


@gates
def test_both_runtimes_compute_its_codes(function, gate):
    net = network(lambda m, x: m.b(function(m.a(x))), a=conv(4, 8, 3), b=conv(8, 5))
    assert_network_exact(net, SHAPE)


@gates
def test_channels_pass_through(function, gate):
    net = network(
        lambda m, x: m.c(function(m.b(function(m.a(x))))), a=conv(4, 8, 3), b=conv(8, 6), c=conv(6, 5)
    )
    assert [group.name for group in assert_cut(net, SHAPE).values() if not group.locked] == ["a", "b"]


def test_a_silu_on_the_networks_own_input_is_exact():
    assert_network_exact(network(lambda m, x: m.a(F.silu(x)), a=conv(4, 8, 3)), SHAPE)
