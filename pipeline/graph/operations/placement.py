"""When an operation leaves a runtime's delegate: what a rule is, and what several operations' rules share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from paredown.pipeline.lower.integer import IntegerNode

#: `cpu`: beside the delegate, or the runtime's own kernel where there is no delegate; `refused`: the program
#: cannot be made or does not run; `not lowered`: the integer graph does not know the operation.
Place = Literal["delegate", "cpu", "refused", "not lowered"]
#: Told the node, and the first node that it reads.
Applies = Callable[["IntegerNode", "IntegerNode"], bool]

#: (runtime, delegate), as `Operation.rules` has them.
EXECUTORCH, LITERT = ("executorch", "xnnpack"), ("litert", "xnnpack")
ONNX, OPENVINO = ("onnxruntime", "mlas"), ("openvino", "openvino")
MICRO, ETHOS = ("litert", "none"), ("litert", "ethos-u")
#: Of Ethos-U55 and U65 alone, whatever the runtime.
U55 = ("", "ethos-u55")

MOST_XNNPACK_AXES = 6
MOST_INPUTS = 5  # of a concatenation, of XNNPACK in LiteRT
AXES = "XNNPACK's tensors have at most 6 axes"


@dataclass(frozen=True)
class Rule:
    """When an operation leaves the delegate.

    Attributes:
        applies: whether this operation does.
        reason: why.
        instead: what to write to keep it there.
        place: where it goes.
        parts: what the runtime makes of it, in order: True for each part that stays on the delegate.
        between: elements of the tensor between two parts; unset, as many as the operation makes.
    """

    applies: Applies
    reason: str
    instead: str
    place: Place = "cpu"
    parts: tuple[bool, ...] = (False,)
    between: Callable[[IntegerNode, IntegerNode], int] | None = None


def many_axes(node: IntegerNode, feed: IntegerNode) -> bool:
    """Whether a tensor has more axes than XNNPACK takes."""
    return max(len(node.shape), len(feed.shape)) > MOST_XNNPACK_AXES
