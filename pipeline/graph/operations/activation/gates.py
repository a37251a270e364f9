"""What is the input times a gate: SiLU, hardswish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from paredown.pipeline.graph.aten import module_path
from paredown.pipeline.graph.operations.operation import Traced

if TYPE_CHECKING:
    from paredown.pipeline.graph.tracer import Tracer


class Gated(Traced):
    """No kind of its own: the gate, and a `mul`."""

    pointwise = True
    gate: ClassVar[str]

    def trace(self, tracer: Tracer, node: Any) -> None:
        feed = tracer.feed(node)
        name = module_path(node) or node.name
        gate = tracer.add(node, self.gate, (feed,), name=f"{name}.gate")
        tracer.add(node, "mul", (feed, gate), name=name)


class Silu(Gated):
    """x * sigmoid(x)."""

    aten = ("silu",)
    gate = "sigmoid"


class Hardswish(Gated):
    """x * hardsigmoid(x)."""

    aten = ("hardswish",)
    gate = "hardsigmoid"
