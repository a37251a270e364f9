"""Parity: does a runtime compute what the integer graph says, and if not, which operation differs first?

The integer graph's reference interpreter is the judge. A runtime's outputs are compared code by code (one LSB
is one code); every operation is also judged on its own, on the runtime's own inputs to it, so that one
operation's difference is not blamed on those behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode, alone
from paredown.pipeline.lower.runtimes import Runner

Codes = NDArray[np.int8]
ISLAND_INPUTS = 4  # random inputs of an island that is judged alone
#: Of a runtime that computes every kind as the integer graph does: `Runtime.tolerance`.
EXACT: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Difference:
    """How far two sets of codes are apart.

    Attributes:
        values: how many codes were compared.
        differing: how many of them are not equal.
        max_lsb: the largest difference, in codes.
    """

    values: int = 0
    differing: int = 0
    max_lsb: int = 0

    @property
    def share(self) -> float:
        """The share of codes that differ at all."""
        return self.differing / self.values if self.values else 0.0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.values + other.values,
            self.differing + other.differing,
            max(self.max_lsb, other.max_lsb),
        )


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        inputs: how many inputs were run.
        outputs: over the network's outputs.
        kinds: per kind of operation, each operation judged on the runtime's own inputs to it.
        first: the first operation whose own output differs by more than its kind may, and how; empty where
            none does.
        islands: per operation that stays in float, alone, on random codes.
        allowed: of a network with such operations, or others that may differ, how far its outputs move when
            one code in a hundred of theirs moves by as much as they may.
        layers: each operation in running order, judged as in `kinds`.
    """

    inputs: int
    outputs: Difference
    kinds: Mapping[str, Difference] = field(default_factory=dict)
    first: str = ""
    islands: Mapping[str, Difference] = field(default_factory=dict)
    allowed: int = 0
    layers: Mapping[str, Difference] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; what only networks with islands have is left out of others."""
        found = asdict(self)
        if self.islands:
            return found
        return {k: v for k, v in found.items() if k != "islands" and (v or k != "allowed")}


def difference(ours: Codes, theirs: Codes) -> Difference:
    """Compares two arrays of codes of one shape."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes differ: {ours.shape} and {theirs.shape}")
    distance = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    return Difference(distance.size, int((distance > 0).sum()), int(distance.max(initial=0)))


def compare(
    graph: IntegerGraph,
    runner: Runner,
    inputs: Codes,
    tick: Callable[[], None] | None = None,
    known: dict[int, tuple[Codes, ...]] | None = None,
) -> Difference:
    """Compares a runtime's outputs with the reference interpreter's.

    Args:
        graph: what was lowered.
        runner: the lowered program, loaded.
        inputs: int8, (count, channels, height, width).
        tick: told after each input.
        known: the reference's outputs by the input's place, of another runtime; it gets those that it lacks.
    """
    total, known = Difference(), {} if known is None else known
    for index in range(len(inputs)):
        x = inputs[index : index + 1]
        if index not in known:
            known[index] = reference.predict(graph, x)
        expected, found = known[index], runner(x)
        for a, b in zip(expected, found, strict=True):
            total += difference(a, b)
        if tick:
            tick()
    return total


def may_differ(node: IntegerNode, tolerance: Mapping[str, int] = EXACT) -> int:
    """Codes by which a node's own output may differ from the integer graph's.

    Args:
        node: of it.
        tolerance: of the runtime: `Runtime.tolerance`.
    """
    return max(operation(node.kind).tolerance, tolerance.get(node.kind, 0))


def every_operation(
    graph: IntegerGraph,
    load: Callable[[IntegerGraph], Runner],
    inputs: Codes,
    tolerance: Mapping[str, int] = EXACT,
) -> tuple[dict[str, Difference], str]:
    """`every_layer`, summed up per kind of operation."""
    layers, first = every_layer(graph, load, inputs, tolerance)
    return by_kind(graph, layers), first


def by_kind(graph: IntegerGraph, layers: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences of a graph's operations, summed up per kind."""
    kinds: dict[str, Difference] = {}
    for name, apart in layers.items():
        kind = graph[name].kind
        kinds[kind] = kinds.get(kind, Difference()) + apart
    return kinds


def every_layer(
    graph: IntegerGraph,
    load: Callable[[IntegerGraph], Runner],
    inputs: Codes,
    tolerance: Mapping[str, int] = EXACT,
) -> tuple[dict[str, Difference], str]:
    """Judges each operation on the runtime's own inputs to it.

    Args:
        graph: the integer graph.
        load: lowers a graph to the runtime and loads it.
        inputs: int8, (count, channels, height, width).
        tolerance: of the runtime.

    Returns:
        The differences per operation, in running order, and the first that differs ("" where none does).
    """
    names = [node.name for node in graph if node.kind != "input"]
    exposed = graph.upto(names)
    runner = load(exposed)
    layers = dict.fromkeys(names, Difference())
    first: dict[str, Difference] = {}
    for index in range(len(inputs)):
        x = inputs[index : index + 1]
        found: dict[str, Codes] = dict(zip(names, runner(x), strict=True))
        found[graph.input.name] = x
        for name in names:
            node = graph[name]
            own = reference.apply(node, [graph[i] for i in node.inputs], [found[i] for i in node.inputs])
            apart = difference(own.reshape(found[name].shape), found[name])
            layers[name] += apart
            if apart.max_lsb > may_differ(node, tolerance):
                first[name] = first.get(name, Difference()) + apart
    worst = next((name for name in names if name in first), "")
    return layers, _named(graph, worst, first[worst]) if worst else ""


def every_table(graph: IntegerGraph, load: Callable[[IntegerGraph], Runner]) -> dict[str, Difference]:
    """Runs all 256 codes through every function of one value: a proof, not a sample.

    Args:
        graph: the integer graph.
        load: lowers a graph to the runtime and loads it.

    Returns:
        Name of the operation -> the difference. Operations of one kind with the same scales are run once.
    """
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 8, 8)
    seen: dict[object, Difference] = {}
    found: dict[str, Difference] = {}
    for node in graph:
        if not operation(node.kind).table:
            continue
        source = graph[node.inputs[0]].out
        key = (node.kind, tuple(sorted(node.attrs.items())), source, node.out, node.low, node.high)
        if key not in seen:
            start = IntegerNode("input", "input", (), x.shape, source)
            alone = IntegerGraph((start, replace(node, inputs=("input",), shape=x.shape)), (node.name,))
            seen[key] = compare(alone, load(alone), x)
        found[node.name] = seen[key]
    return found


def every_island(graph: IntegerGraph, load: Callable[[IntegerGraph], Runner]) -> dict[str, Difference]:
    """Runs every operation that stays in float and is no table, alone, on random codes.

    Args:
        graph: the integer graph.
        load: lowers a graph to the runtime and loads it.

    Returns:
        Name of the operation -> the difference.
    """
    found = {}
    for node in graph:
        if operation(node.kind).island and not operation(node.kind).table:
            single = alone(node, [graph[name] for name in node.inputs])
            shape = (ISLAND_INPUTS, *single.input.shape[1:])
            codes = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
            found[node.name] = compare(single, load(single), codes)
    return found


def allowed(graph: IntegerGraph, inputs: Codes, tolerance: Mapping[str, int] = EXACT) -> int:
    """How far the outputs move when one code in a hundred moves by as much as it may.

    Args:
        graph: the integer graph.
        inputs: int8, (count, channels, height, width).
        tolerance: of the runtime.
    """
    rng, most = np.random.default_rng(0), 0
    names = [node.name for node in graph if may_differ(node, tolerance)]
    if not names:
        return 0
    truth = reference.run(graph, inputs)
    values: dict[str, Codes] = {}
    for node in graph:
        if node.kind == "input":
            values[node.name] = inputs
            continue
        feeds = [graph[name] for name in node.inputs]
        made = reference.apply(node, feeds, [values[name] for name in node.inputs])
        if node.name in names:
            steps = rng.choice([-1, 1], made.shape) * may_differ(node, tolerance)
            moved = np.clip(made + steps, node.low, node.high).astype(np.int8)
            made = np.where(rng.random(made.shape) < 0.01, moved, made)
        values[node.name] = made
    for name in graph.outputs:
        most = max(most, difference(truth[name], values[name]).max_lsb)
    return max(most, 1)


def first_divergence(graph: IntegerGraph, load: Callable[[IntegerGraph], Runner], x: Codes) -> str:
    """Bisects to the first operation whose output differs from the reference when the network stops there.

    Used where exposing every tensor hides the difference (a runtime fuses less then).

    Args:
        graph: the integer graph, whose outputs are known to differ on `x`.
        load: lowers a graph to the runtime and loads it.
        x: int8, (1, channels, height, width).
    """
    names = [node.name for node in graph if node.kind != "input"]
    truth = reference.run(graph, x)

    def apart(position: int) -> Difference:
        name = names[position]
        return difference(truth[name], load(graph.upto([name]))(x)[0].reshape(truth[name].shape))

    low, high = 0, len(names) - 1  # the first diverging operation is in low..high
    while low < high:
        middle = (low + high) // 2
        if apart(middle).differing:
            high = middle
        else:
            low = middle + 1
    return _named(graph, names[low], apart(low))


def check(
    graph: IntegerGraph,
    runner: Runner,
    load: Callable[[IntegerGraph], Runner],
    inputs: Codes,
    probes: int = 2,
    tick: Callable[[], None] | None = None,
    tolerance: Mapping[str, int] = EXACT,
    known: dict[int, tuple[Codes, ...]] | None = None,
) -> Parity:
    """The whole comparison: outputs, every kind of operation, and the culprit where there is one.

    Args:
        graph: what was lowered.
        runner: the lowered program, loaded.
        load: lowers a graph to the same runtime and loads it.
        inputs: int8, (count, channels, height, width).
        probes: on how many of the inputs every single operation is judged.
        tick: told after each input.
        tolerance: of the runtime.
        known: the reference's outputs by the input's place, of another runtime; it gets those that it lacks.
    """
    outputs = compare(graph, runner, inputs, tick, known)
    layers, first = every_layer(graph, load, inputs[:probes], tolerance)
    kinds, islands = by_kind(graph, layers), {}
    for name, apart in {**every_table(graph, load), **every_island(graph, load)}.items():
        kind = operation(graph[name].kind)
        kinds[graph[name].kind] += apart
        if kind.island:
            islands[name] = apart
        if apart.max_lsb > may_differ(graph[name], tolerance) and not first:
            first = _named(graph, name, apart)
    granted = any(may_differ(n, tolerance) for n in graph if n.kind in tolerance)
    granted |= any(kinds[n.kind].differing for n in graph if operation(n.kind).tolerance)
    if outputs.differing and not first and not granted:
        for index in range(len(inputs)):
            if compare(graph, runner, inputs[index : index + 1]).differing:
                first = first_divergence(graph, load, inputs[index : index + 1])
                break
    most = allowed(graph, inputs[:probes], tolerance)
    return Parity(len(inputs), outputs, kinds, first, islands, most, layers)


def _named(graph: IntegerGraph, name: str, apart: Difference) -> str:
    node: Any = graph[name]
    share = f"{apart.differing} of {apart.values} codes differ"
    return f"{name} ({node.kind}): {share}, by up to {apart.max_lsb} LSB"
