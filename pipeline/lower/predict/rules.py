"""When an operation of the integer graph leaves a runtime's delegate, why, and what to write instead.

Each rule was seen in the runtime itself (executorch 1.5.1, ai-edge-litert 2.3.0, tflite-micro of 2026-10-23,
Vela 5.2.0 and its `--supported-ops-report`); its test makes each happen there. The rules of one operation
alone are in its class in `pipeline.graph.operations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paredown.pipeline.graph.operations.kinds import KINDS, operation
from paredown.pipeline.graph.operations.placement import (
    AXES,
    EXECUTORCH,
    LITERT,
    ONNX,
    OPENVINO,
    U55,
    Place,
    Rule,
    many_axes,
)
from paredown.pipeline.lower.integer import IntegerNode
from paredown.pipeline.lower.predict import islands
from paredown.targets.cards.card import RuntimeCard, Target

#: Kinds that ONNX Runtime has no kernel on codes for, or none that is exact.
FLOAT_IN_ONNX = frozenset(
    {"sub", "mean", "softmax", "log_softmax", "normalize", "unit_norm", "matmul", "conv_transpose2d"}
)  # fmt: skip
FLOAT_IN_OPENVINO = FLOAT_IN_ONNX - {"sub"}
#: (runtime, delegate) -> the rules of all operations; they come behind an operation's own.
RULES: Mapping[tuple[str, str], tuple[Rule, ...]] = {
    EXECUTORCH: (
        Rule(
            many_axes, f"{AXES}: the .pte is made, and does not load",
            "move fewer axes at a time", "refused",
        ),
    ),
    LITERT: (Rule(many_axes, AXES, "move fewer axes at a time"),),
    ONNX: (
        Rule(
            lambda node, feed: node.kind in FLOAT_IN_ONNX, "computed in float32 by ONNX Runtime",
            "nothing: it is as exact, and seldom large", parts=(True, False, True),
        ),
    ),
    OPENVINO: (
        Rule(
            lambda node, feed: node.kind in FLOAT_IN_OPENVINO, "computed in float32 by OpenVINO",
            "nothing: it is as exact, and seldom large", parts=(True, False, True),
        ),
    ),
}  # fmt: skip


def rule_for(
    node: IntegerNode, feeds: Sequence[IntegerNode], target: Target, name: str, runtime: RuntimeCard
) -> Rule | None:
    """The rule by which an operation leaves the delegate of a runtime; None where it stays.

    Where the runtime has no int8, the float network is what it gets, and only the card's operators count.

    Args:
        node: the operation.
        feeds: the nodes that it reads.
        target: the card.
        name: of the runtime.
        runtime: the card's part on it.
    """
    feed = feeds[0]
    if operation(node.kind).island and "int8" in runtime.dtypes:
        return islands.rule(node, feeds, name, runtime.delegate, runtime.edition == "micro")
    rules, own = _on_card(node, feed, runtime), operation(node.kind).rules
    if "int8" in runtime.dtypes:
        place = (name, runtime.delegate)
        rules = (*rules, *own.get(place, ()), *RULES.get(place, ()))
    if target.npu and target.npu.accelerator.startswith(("ethos-u55", "ethos-u65")):
        rules = (*rules, *own.get(U55, ()))
    return next((rule for rule in rules if rule.applies(node, feed)), None)


def card_kind(node: IntegerNode, feed: IntegerNode) -> str:
    """What target cards call an operation."""
    return operation(node.kind).card_kind(node, feed)


def _on_card(node: IntegerNode, feed: IntegerNode, runtime: RuntimeCard) -> tuple[Rule, ...]:
    kind = card_kind(node, feed)
    if node.kind == "opaque":
        reason = f"not lowered: {node.attrs['op']}, as it is used here, is no operation that paredown carries"
        return (Rule(lambda *_: True, reason, f"use one of: {', '.join(KINDS[1:])}", "not lowered"),)
    if kind in {*runtime.ops, "permute"}:
        return ()
    place: Place = "refused" if runtime.delegate == "none" else "cpu"
    reason = f"{kind} is not among the operators on the card"
    return (Rule(lambda *_: True, reason, f"use one of: {', '.join(runtime.ops)}", place),)
