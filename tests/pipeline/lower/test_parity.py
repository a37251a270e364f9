"""Parity finds a runtime that is wrong on purpose, at the operation that is wrong, and says by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lowering_networks import Passthrough, Residual, inputs_for, quantized, random_graph, randomized

from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.parity import (
    Difference,
    check,
    compare,
    difference,
    every_operation,
    first_divergence,
)


class ReferenceRunner:
    """The reference interpreter as a runtime, of a graph that may have been tampered with."""

    def __init__(self, graph: IntegerGraph) -> None:
        self.graph = graph

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return reference.predict(self.graph, x)

    def bound(self, x: np.ndarray):
        return lambda: self(x)


def tampered(graph: IntegerGraph, name: str) -> IntegerGraph:
    """One weight of one layer is off by a lot."""
    nodes = []
    for node in graph:
        if node.name == name:
            weight = node.weight.copy()
            weight.reshape(-1)[0] = -100 if weight.reshape(-1)[0] > 0 else 100
            node = replace(node, weight=weight)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def wrong_at(name: str, load=ReferenceRunner):
    return lambda graph: load(tampered(graph, name))


def litert_runner(graph: IntegerGraph):
    return litert.load(litert.lower_integer(graph).data)


@pytest.mark.parametrize("network", [Residual, Passthrough])
def test_the_wrong_layer_is_found_and_named(network):
    graph = quantized(randomized(network()))
    x = inputs_for(graph, 2)
    for node in [n for n in graph if n.weight is not None]:
        wrong = wrong_at(node.name)
        if not compare(graph, wrong(graph), x).differing:
            continue  # this weight meets only zeros
        kinds, first = every_operation(graph, wrong, x)
        assert first.startswith(f"{node.name} ({node.kind}): ") and "LSB" in first
        differing = {kind for kind, found in kinds.items() if found.differing}
        assert differing == {node.kind}  # nobody behind it is blamed
        at = next(i for i in range(len(x)) if compare(graph, wrong(graph), x[i : i + 1]).differing)
        assert first_divergence(graph, wrong, x[at : at + 1]).startswith(f"{node.name} (")


def test_a_wrong_program_on_a_real_runtime():
    graph = quantized(randomized(Passthrough()))
    name = [n.name for n in graph if n.weight is not None][2]
    load = wrong_at(name, litert_runner)
    found = check(graph, load(graph), load, inputs_for(graph, 3))
    assert found.inputs == 5 and found.outputs.differing > 0
    assert found.first.startswith(f"{name} (conv2d): ")
    assert found.kinds["conv2d"].max_lsb >= found.kinds["leaky_relu"].max_lsb == 0
    assert [layer for layer, apart in found.layers.items() if apart.differing] == [name]
    assert list(found.layers) == [node.name for node in graph if node.kind != "input"]


def test_a_right_program_has_no_culprit_and_every_kind_was_judged():
    graph = random_graph(1)
    ticks = []
    found = check(
        graph, litert_runner(graph), litert_runner, inputs_for(graph, 3), tick=lambda: ticks.append(1)
    )
    assert found.first == "" and found.outputs.share == 0 and len(ticks) == 5
    assert set(found.kinds) == {n.kind for n in graph} - {"input"}
    values = sum(np.prod(graph[name].shape) for name in graph.outputs)
    assert found.outputs == Difference(5 * int(values), 0, 0)


def test_bisection_finds_what_exposing_hides():
    """A runtime that is wrong only where nothing is exposed: `check` falls back to bisecting."""
    graph = quantized(randomized(Passthrough()))
    name = [n.name for n in graph if n.weight is not None][2]
    everything = len(graph.nodes) - 1

    def load(part: IntegerGraph):
        return ReferenceRunner(part if len(part.outputs) == everything else tampered(part, name))

    found = check(graph, load(graph), load, inputs_for(graph, 4))
    assert found.outputs.differing
    assert all(not kind.differing for kind in found.kinds.values())
    assert found.first.startswith(f"{name} (")


def test_difference_counts_codes():
    a = np.array([[-128, 0, 5]], np.int8)
    b = np.array([[127, 0, 4]], np.int8)
    assert difference(a, b) == Difference(3, 2, 255)
    assert difference(a, b).share == pytest.approx(2 / 3)
    assert difference(a, a) + difference(a, b) == Difference(6, 2, 255)
    assert Difference().share == 0
    with pytest.raises(ValueError, match="shapes differ"):
        difference(a, b[:, :2])


def test_the_reference_runs_once_for_all_runtimes(monkeypatch):
    graph = quantized(randomized(Residual()))
    x, known, runs = inputs_for(graph, 3), {}, []
    plain = compare(graph, litert_runner(graph), x)
    predict = reference.predict
    monkeypatch.setattr(reference, "predict", lambda *a: runs.append(1) or predict(*a))
    assert [compare(graph, litert_runner(graph), x, known=known) for _ in range(2)] == [plain, plain]
    assert len(runs) == len(known) == len(x)
