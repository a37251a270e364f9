"""Parts of an output that its one int8 scale starves: scores from 0 to 1 beside boxes from 0 to 640."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.integer import IntegerGraph

LEAST = 32  # codes that a part should reach: five bits


@dataclass(frozen=True)
class Starved:
    """A part of an output.

    Attributes:
        output: the tensor that the network returns.
        part: the tensor within it.
        codes: how many of 256 the part's range reaches in the output's scale.
        span: of the part's range.
        step: of the output's scale.
    """

    output: str
    part: str
    codes: float
    span: float
    step: float

    def line(self) -> str:
        """One sentence."""
        return (
            f"output {self.output}: its part {self.part} spans {self.span:.3g}, but a code of the output is "
            f"{self.step:.3g}, for its other parts are larger: it has {self.codes:.1f} of 256 codes. Let the "
            "network return them as outputs of their own"
        )


def starved(graph: IntegerGraph, ranges: Mapping[str, tuple[float, float]]) -> list[Starved]:
    """Every part of an output that reaches fewer than `LEAST` codes.

    Args:
        graph: integer.
        ranges: (low, high) of every tensor.
    """
    found = []
    for name in graph.outputs:
        scale = graph[name].out.scale
        parts = _parts(graph, name)
        for part in parts if len(parts) > 1 else []:
            low, high = ranges.get(part, (0.0, 0.0))
            span = max(high, 0.0) - min(low, 0.0)
            if 0 < span < LEAST * scale:
                found.append(Starved(name, part, span / scale, span, scale))
    return found


def _parts(graph: IntegerGraph, name: str) -> list[str]:
    """The tensors that are put side by side to make one."""
    node = graph[name]
    kind = operation(node.kind)
    if kind.joins:
        return [part for feed in node.inputs for part in _parts(graph, feed)]
    moves = kind.moves and len(node.inputs) == 1
    inner = _parts(graph, node.inputs[0]) if moves else []
    return inner if len(inner) > 1 else [name]
