"""When an operation of the integer graph leaves a runtime's delegate, why, and what to write instead.

Each rule was seen in the runtime itself (executorch 1.5.1, ai-edge-litert 2.3.0, tflite-micro of 2026-10-23,
Vela 5.2.0 and its `--supported-ops-report`); its test makes each happen there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from paredown.pipeline.graph.graph import KINDS
from paredown.pipeline.lower.integer import IntegerNode
from paredown.pipeline.lower.litert.layout import MOST_AXES, merged, never_negative, same_padding
from paredown.targets.cards.card import Runtime, Target

#: `cpu`: beside the delegate, or the runtime's own kernel where there is no delegate; `refused`: the program
#: cannot be made or does not run; `not lowered`: the integer graph does not know the operation.
Place = Literal["delegate", "cpu", "refused", "not lowered"]
#: Told the node, and the first node that it reads.
Applies = Callable[[IntegerNode, IntegerNode], bool]

MOST_XNNPACK_AXES = 6
MOST_XNNPACK_CONCAT = 5
#: Vela's limits: rows and pixels of a pool's window; the side and pixels of what a mean reads; the sum
#: of the weights of one output; and on Ethos-U55 and U65 the stride, and any two axes of a transpose.
MOST_ROWS, MOST_WINDOW, MEAN_SIDE, MEAN_PIXELS = 256, 1 << 16, 4096, 1 << 24
MOST_WEIGHTS, MOST_STRIDE, MOST_TRANSPOSED = 127 << 16, 3, 1 << 16


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


def rule_for(
    node: IntegerNode, feed: IntegerNode, target: Target, name: str, runtime: Runtime
) -> Rule | None:
    """The rule by which an operation leaves the delegate of a runtime; None where it stays.

    Where the runtime has no int8, the float network is what it gets, and only the card's operators count.

    Args:
        node: the operation.
        feed: the first node that it reads.
        target: the card.
        name: of the runtime.
        runtime: the card's part on it.
    """
    rules = _on_card(node, feed, runtime)
    if "int8" in runtime.dtypes:
        rules = (*rules, *RULES.get((name, runtime.delegate), ()))
    if target.npu and target.npu.accelerator.startswith(("ethos-u55", "ethos-u65")):
        rules = (*rules, *U55_RULES)
    return next((rule for rule in rules if rule.applies(node, feed)), None)


def card_kind(node: IntegerNode, feed: IntegerNode) -> str:
    """What target cards call an operation; they do not speak of permutations other than a reorg's."""
    if node.kind == "conv2d" and 1 < node.attrs["groups"] == feed.shape[1]:
        return "depthwise_conv2d"
    return "reorg" if node.kind == "permute" and len(node.shape) == MOST_AXES + 1 else node.kind


def _on_card(node: IntegerNode, feed: IntegerNode, runtime: Runtime) -> tuple[Rule, ...]:
    kind = card_kind(node, feed)
    if node.kind == "opaque":
        reason = f"not lowered: {node.attrs['op']}, as it is used here, is no operation that paredown carries"
        return (Rule(lambda *_: True, reason, f"use one of: {', '.join(KINDS[1:])}", "not lowered"),)
    if kind in {*runtime.ops, "permute"}:
        return ()
    place: Place = "refused" if runtime.delegate == "none" else "cpu"
    reason = f"{kind} is not among the operators on the card"
    return (Rule(lambda *_: True, reason, f"use one of: {', '.join(runtime.ops)}", place),)


# -- what a .tflite says ----------------------------------------------------------------------------------


def written_padding(node: IntegerNode, feed: IntegerNode) -> Literal["VALID", "SAME", "PAD"]:
    """How a .tflite says the padding of a convolution or a pool; PAD is an operator before it."""
    if not any(node.attrs["padding"]):
        return "VALID"
    kernel = node.attrs["kernel"] if node.weight is None else node.weight.shape[2:]
    same = same_padding(feed.shape, kernel, node.attrs["stride"])
    return "SAME" if tuple(node.attrs["padding"]) == same else "PAD"


def _padded_elements(node: IntegerNode, feed: IntegerNode) -> int:
    left, right, top, bottom = node.attrs["padding"]
    _, channels, height, width = feed.shape
    return channels * (height + top + bottom) * (width + left + right)


def _transposed(node: IntegerNode, feed: IntegerNode) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and permutation of the transpose."""
    dims = node.attrs["dims"]
    return (feed.shape, dims) if len(dims) <= MOST_AXES else merged(feed.shape, dims)


# -- conditions -------------------------------------------------------------------------------------------


def _pool_skips(node: IntegerNode, feed: IntegerNode) -> bool:
    if node.kind != "max_pool2d":
        return False
    return any(stride > size for stride, size in zip(node.attrs["stride"], node.attrs["kernel"], strict=True))


def _pool_padded_by_minimum(node: IntegerNode, feed: IntegerNode) -> bool:
    if node.kind != "max_pool2d" or never_negative(feed):
        return False
    return written_padding(node, feed) == "PAD"


def _clamps_no_map(node: IntegerNode, feed: IntegerNode) -> bool:
    return node.kind in {"relu", "relu6"} and len(node.shape) != 4


def _concats_one(node: IntegerNode, feed: IntegerNode) -> bool:
    return node.kind == "concat" and len(node.inputs) < 2


def _concats_one_or_many(node: IntegerNode, feed: IntegerNode) -> bool:
    return node.kind == "concat" and not 2 <= len(node.inputs) <= MOST_XNNPACK_CONCAT


def _many_axes(node: IntegerNode, feed: IntegerNode) -> bool:
    return max(len(node.shape), len(feed.shape)) > MOST_XNNPACK_AXES


def _permutes_many_axes(node: IntegerNode, feed: IntegerNode) -> bool:
    return node.kind == "permute" and _many_axes(node, feed)


def _transposes_many_axes(node: IntegerNode, feed: IntegerNode) -> bool:
    return node.kind == "permute" and len(_transposed(node, feed)[1]) > MOST_AXES


def _transposes_wide(node: IntegerNode, feed: IntegerNode) -> bool:
    if node.kind != "permute":
        return False
    shape, dims = _transposed(node, feed)
    last_three = prod(shape[:-3]) == 1
    most = max(shape) if last_three else prod(sorted(shape)[2:])
    return dims != tuple(sorted(dims)) and most > MOST_TRANSPOSED


def _window_large(node: IntegerNode, feed: IntegerNode) -> bool:
    if node.kind != "max_pool2d":
        return False
    return node.attrs["kernel"][0] > MOST_ROWS or prod(node.attrs["kernel"]) > MOST_WINDOW


def _mean_large(node: IntegerNode, feed: IntegerNode) -> bool:
    sides = feed.shape[2:]
    return node.kind == "mean" and (max(sides) >= MEAN_SIDE or prod(sides) > MEAN_PIXELS)


def _weights_heavy(node: IntegerNode, feed: IntegerNode) -> bool:
    if node.weight is None:
        return False
    sums = np.abs(node.weight.astype(np.int64)).reshape(len(node.weight), -1).sum(1)
    return int(sums.max()) > MOST_WEIGHTS


def _far(node: IntegerNode) -> bool:
    return max(node.attrs.get("stride", (1,))) > MOST_STRIDE


def _far_padded(node: IntegerNode, feed: IntegerNode) -> bool:
    return card_kind(node, feed) == "conv2d" and _far(node) and written_padding(node, feed) == "PAD"


def _far_same(node: IntegerNode, feed: IntegerNode) -> bool:
    return _far(node) and written_padding(node, feed) == "SAME"


def _far_depthwise(node: IntegerNode, feed: IntegerNode) -> bool:
    return card_kind(node, feed) == "depthwise_conv2d" and _far(node)


# -- the rules --------------------------------------------------------------------------------------------

_POOL_SKIPS = Rule(
    _pool_skips, "XNNPACK's pools have a stride of at most their window",
    "a larger window, or a convolution with that stride",
)  # fmt: skip
_AXES = "XNNPACK's tensors have at most 6 axes"
_STRIDE = "a stride of at most 3, or two layers that share it"

#: (runtime, delegate) -> rules; the first that applies tells.
RULES: Mapping[tuple[str, str], tuple[Rule, ...]] = {
    ("executorch", "xnnpack"): (
        _POOL_SKIPS,
        Rule(_concats_one, "XNNPACK concatenates 2 tensors or more", "leave it out"),
        Rule(
            _many_axes, f"{_AXES}: the .pte is made, and does not load",
            "move fewer axes at a time", "refused",
        ),
    ),
    ("litert", "xnnpack"): (
        _POOL_SKIPS,
        Rule(
            _pool_padded_by_minimum,
            "its padding is not TensorFlow's SAME and what it reads can be negative, so it is padded with "
            "the smallest code: PADV2, which XNNPACK has not",
            "put a ReLU before the pool, or pad as SAME does: F.pad with -inf, more at the end than at the "
            "beginning, and a pool without padding",
            parts=(False, True), between=_padded_elements,
        ),
        Rule(
            _clamps_no_map, "XNNPACK has no int8 ReLU; over maps it is written as a pool, here it cannot be",
            "put it right behind a convolution, a linear layer or an addition, which take it in",
        ),
        Rule(
            _concats_one_or_many, f"XNNPACK concatenates 2 to {MOST_XNNPACK_CONCAT} tensors",
            "concatenate in steps",
        ),
        Rule(_permutes_many_axes, _AXES, "move fewer axes at a time", parts=(False, True, False)),
        Rule(_many_axes, _AXES, "move fewer axes at a time"),
    ),
    ("litert", "none"): (
        Rule(
            _transposes_many_axes, f"LiteRT Micro transposes at most {MOST_AXES} axes",
            "move fewer axes at a time", "refused",
        ),
    ),
    ("litert", "ethos-u"): (
        Rule(
            _window_large, f"Ethos-U pools over at most {MOST_ROWS} rows and {MOST_WINDOW:,} pixels",
            "two smaller pools",
        ),
        Rule(
            _mean_large, f"Ethos-U takes means over less than {MEAN_SIDE:,} rows or columns",
            "a pool before the mean",
        ),
        Rule(
            _weights_heavy, f"the weights of one output sum up to more than {MOST_WEIGHTS:,}",
            "fewer inputs per output",
        ),
    ),
}  # fmt: skip
#: Of Ethos-U55 and U65 alone.
U55_RULES = (
    Rule(
        _far_padded, "Vela fails at a stride above 3 with padding other than TensorFlow's SAME", _STRIDE,
        "refused",
    ),
    Rule(_far_depthwise, "Ethos-U55 strides by at most 3 in depthwise convolutions", _STRIDE),
    Rule(_far_same, "Ethos-U55 strides by more than 3 without padding only", _STRIDE),
    Rule(
        _transposes_wide, f"axes of the transpose have more than {MOST_TRANSPOSED:,} elements together",
        "do it on a smaller map, deeper in the network",
    ),
)  # fmt: skip
