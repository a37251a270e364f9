"""Islands on a runtime: whether it can compute one, and where; by making it there, alone.

An island is not one operation with a rule but any of torch's. So it is lowered by itself, loaded, and run:
what `inspect` says of it is what a run will meet.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.activation.function import chain
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.placement import Rule
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode, alone
from paredown.pipeline.lower.runtimes import runtime
from paredown.targets.cards.card import RuntimeCard
from paredown.targets.errors import DeviceError, InputError, ParedownError

#: TFLite's names of what `alone` adds.
CUTTING = frozenset({"SLICE", "RESHAPE", "DEQUANTIZE", "QUANTIZE"})


@dataclass(frozen=True)
class Alone:
    """What a runtime makes of an island by itself.

    Attributes:
        refused: why it cannot; empty where it can.
        outside: names of its operations that run beside the delegate.
    """

    refused: str = ""
    outside: tuple[str, ...] = ()


def islands(graph: Graph | IntegerGraph) -> list[Any]:
    """The nodes of a graph that stay in float."""
    return [node for node in graph if operation(node.kind).island]


def tried(name: str, node: IntegerNode, feeds: Sequence[IntegerNode], micro: bool = False) -> Alone:
    """Makes an island on a runtime, by itself.

    Args:
        name: of the runtime.
        node: the island.
        feeds: what it reads.
        micro: whether LiteRT Micro is meant, whose kernels are its own.
    """
    attrs = {key: value for key, value in node.attrs.items() if key not in {"why", "line"}}
    key = json.dumps(
        [attrs, node.kind, node.shape, [(f.name, f.shape) for f in feeds], node.inputs], sort_keys=True
    )
    return _tried(name, micro, _Key(key, node, tuple(feeds)))


@dataclass(frozen=True)
class _Key:
    """An island that is like another where the text is."""

    text: str
    node: IntegerNode
    feeds: tuple[IntegerNode, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@functools.lru_cache(1024)
def _tried(name: str, micro: bool, key: _Key) -> Alone:
    graph = alone(key.node, key.feeds)
    tools = runtime(name)
    x = np.zeros(graph.input.shape, np.int8)
    try:
        lowered = tools.lower_integer(graph)
        if not micro:  # the float network is a baseline that every run has
            tools.lower_float(_as_float(graph))
        if micro:
            from paredown.targets.mcu import tflm

            tflm.run(lowered.data, x)
        else:
            tools.load(lowered.data, where=key.node.attrs["op"])(x)
    except (InputError, DeviceError) as error:
        return Alone(error.what if isinstance(error, ParedownError) else str(error))
    outside = lowered.undelegated
    if len(set(key.node.inputs)) > 1:  # what cuts its inputs from one tensor is none of it
        outside = tuple(word for word in outside if word not in CUTTING) or outside
    return Alone(outside=outside)


def _as_float(graph: IntegerGraph) -> Graph:
    nodes = (
        Node(n.name, n.kind, n.inputs, n.shape, n.attrs, constants=tuple(map(torch.from_numpy, n.constants)))
        for n in graph
    )
    return Graph(tuple(nodes), graph.outputs)


def rule(
    node: IntegerNode, feeds: Sequence[IntegerNode], name: str, delegate: str, micro: bool
) -> Rule | None:
    """How an island leaves a runtime's delegate; None where it stays.

    Args:
        node: the island.
        feeds: what it reads.
        name: of the runtime.
        delegate: as the card has it.
        micro: whether the runtime is LiteRT Micro.
    """
    found, op = tried(name, node, feeds, micro), node.attrs["op"].removeprefix("aten::")
    why = f"{op} has no integer form" + (f": it {node.attrs['why']}" if "why" in node.attrs else "")
    why = why.replace(f"it operation {op.partition('.')[0]} ", "it ")
    if found.refused:
        return Rule(_always, f"{why}; {found.refused}", "write it in other operations", "refused")
    fused = delegate in {"xnnpack", "mlas", "openvino"}
    if fused and not found.outside:
        return None
    table = node.kind == "function" and chain(node.attrs) is None
    said = "a table of 256 codes" if table else "in float"
    if fused:
        said += f", beside the delegate ({', '.join(dict.fromkeys(found.outside))})"
    else:
        said += ", on the CPU"
    parts = ((False,) if name == "litert" else (False, True)) if table else (True, False, True)
    instead = "an operation with an integer form" if not table else "ReLU, hardswish, sigmoid"
    return Rule(_always, f"{why}; {said}", instead, "cpu", parts if fused else (False,),
                lambda node, feed: 4 * prod(node.shape))  # fmt: skip


def _made_up(node: Node) -> IntegerNode:
    """A node of the integer graph with some scale: of an island, whether a runtime has it asks for none."""
    attrs, constants = node.attrs, tuple(each.numpy() for each in node.constants)
    fixed = operation(node.kind).fixed(node) or (2.0**-6, 0)
    return IntegerNode(
        node.name, node.kind, node.inputs, node.shape, Affine(*fixed), attrs=attrs, constants=constants
    )


def _always(*_: Any) -> bool:
    return True


def refused(graph: Graph, runtimes: Mapping[str, RuntimeCard]) -> None:
    """Stops where an island cannot be computed on one of the runtimes.

    Args:
        graph: traced.
        runtimes: name -> the card's part on it.

    Raises:
        InputError: which operation, where in the user's code, on which runtime it can go.
    """
    asked = {name: card.edition == "micro" for name, card in runtimes.items() if "int8" in card.dtypes}
    for node in islands(graph):
        feeds = [_made_up(graph[each]) for each in node.inputs]
        found = {name: tried(name, _made_up(node), feeds, micro) for name, micro in asked.items()}
        bad = [name for name in asked if found[name].refused]
        if bad:
            goes = [name for name in asked if name not in bad]
            hint = (
                f'lower to {goes[0]} alone: [lower] runtimes = ["{goes[0]}"]'
                if goes
                else "write it in other operations"
            )
            raise InputError(
                f"{node.name}: {found[bad[0]].refused}", where=node.attrs["line"] or node.name, hint=hint
            )


def facts(node: Any, feeds: Sequence[Any], found: Alone) -> dict[str, Any]:
    """What a report says of an island: which operation, where, how large, and what leaves the delegate."""
    moved = sum(prod(feed.shape) for feed in feeds) + prod(node.shape)
    return {
        "op": node.attrs["op"].removeprefix("aten::"),
        "line": node.attrs["line"],
        "elements": prod(node.shape),
        "float_bytes": 4 * moved,
        "kind": node.kind,
        "outside": list(found.outside),
    }


def told(integer: IntegerGraph, placements: Sequence[Any]) -> list[str]:
    """One sentence for each island: which operation, where, how large, and where it runs.

    Args:
        integer: of the network.
        placements: of each runtime, as `placement.place` makes them.
    """
    sentences = []
    for node in islands(integer):
        size = facts(node, [integer[each] for each in node.inputs], Alone())
        where = [
            f"{each.runtime}: {'in the delegate' if found.place == 'delegate' else found.place}"
            for each in placements
            for found in each.operations
            if found.name == node.name
        ]
        line = f" ({size['line']})" if size["line"] else ""
        form = (
            "is a table of 256 codes"
            if node.kind == "function" and chain(node.attrs) is None
            else "stays in float"
        )
        cost = f", {size['float_bytes']:,} bytes of floats" if form == "stays in float" else ""
        sentences.append(
            f"{node.name}, {size['op']}{line}, {form}: {size['elements']:,} values{cost}; {', '.join(where)}"
        )
    return sentences


def island_times(name: str, integer: IntegerGraph, runs: int) -> dict[str, float]:
    """Name of an island -> the median milliseconds that it takes alone, on this machine.

    Args:
        name: of the runtime.
        integer: the integer graph.
        runs: of each.
    """
    tools, found = runtime(name), {}
    for node in islands(integer):
        graph = alone(node, [integer[each] for each in node.inputs])
        call = tools.load(tools.lower_integer(graph).data).bound(np.zeros(graph.input.shape, np.int8))
        times = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        found[node.name] = 1e3 * float(np.median(times[1:]))
    return found


def not_numbers(graph: Graph, values: Mapping[str, Any]) -> None:
    """Stops where an island made what is no number of numbers.

    Args:
        graph: traced.
        values: of all tensors, as `Graph.run` gives them.

    Raises:
        InputError: how many values, of which operation, at which line.
    """
    for node in islands(graph):
        made = values[node.name]
        bad = int((~made.isfinite()).sum())
        if bad and all(bool(values[name].isfinite().all()) for name in node.inputs):
            raise InputError(
                f"{node.attrs['op'].removeprefix('aten::')} makes {bad} of {made.numel()} values on a "
                f"calibration image infinite or no numbers ({node.name})",
                where=node.attrs["line"] or node.name,
                hint="clamp what it reads to where it is defined, as in x.clamp(min=1e-3).log()",
            )  # fmt: skip
