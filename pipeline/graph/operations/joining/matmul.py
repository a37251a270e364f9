"""The product of two matrices that the input decides both, as attention has it.

XNNPACK multiplies them in float32 only: programs do so within the delegate, on whole numbers (`whole.py`), so
that all kernels give the same codes: a sum of up to 258 products is exact, and of more where they are not all
as large as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, laid, module_path, shape_of, target
from paredown.pipeline.graph.operations.joining.add import tied
from paredown.pipeline.graph.operations.operation import Codes, Operation
from paredown.pipeline.graph.operations.pooling.whole import Steps, offsets, requantized, whole

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

#: Brings the last of torch's axes, which a map has in the place of channels, back to its place.
LAST = (0, 2, 3, 1)
FIRST = (0, 3, 1, 2)
#: What is added to a score that a mask leaves out: e to the power of it is zero in float32, and int8 scores
#: beside it keep their resolution.
LEFT_OUT = -200.0


def _read(tracer: Tracer, node: Any, index: int, channels: int) -> str:
    """The map that an argument is, with one of its axes as channels; a constant's too."""
    argument = node.args[index]
    if argument.name not in tracer.constants:
        return tracer.formed(node, argument, tracer.spread(argument, channels))
    if shape_of(argument)[0] != 1:
        raise tracer.unknown(node, "reads a constant whose first dim is not a batch of one")

    def formed(value: Tensor) -> Tensor:
        value = value.permute(0, channels, *(axis for axis in range(1, value.dim()) if axis != channels))
        return value if value.dim() == 4 else value.unsqueeze(2)

    return tracer.fixed(node, argument, formed)


def _made(tracer: Tracer, node: Any) -> tuple[int, ...]:
    """Where the axes of the product are in its map."""
    given = next(a for a in node.args[:2] if a.name not in tracer.constants)
    return (*tracer.spread(given, len(shape_of(given)) - 1)[:-2], 3, 1)


def _mask(tracer: Tracer, node: Any, mask: Any, keys: int, causal: int) -> Any:
    """What is added to the scores of an attention; None where that is nothing.

    Args:
        tracer: of the program.
        node: of the exported program.
        mask: its argument: a number for every score, or whether it counts.
        keys: how many there are.
        causal: how many queries, where each reads no key behind it; else 0.

    Raises:
        InputError: the input decides it, or it leaves nothing to be read.
    """
    value, origins = tracer.constant(node, mask), () if mask is None else tracer.origins[mask.name]
    if causal:
        value = torch.ones(causal, keys, dtype=torch.bool).tril()
    if value is None or (value.dtype == torch.bool and bool(value.all())):
        return None
    if value.dtype == torch.bool:
        value = torch.zeros(value.shape).masked_fill(~value, -torch.inf)
    if (
        bool(value.isnan().any())
        or bool((value <= LEFT_OUT).all(-1).any())
        or bool((value == torch.inf).any())
    ):
        raise tracer.unknown(node, "has a mask that leaves out every place of a row, or is not a number")
    if (
        mask is not None
        and torch.equal(value, tracer.constants[mask.name])
        and bool((value > LEFT_OUT).all())
    ):
        return mask
    given = SimpleNamespace(name=f"{node.name}.mask")
    tracer.constants[given.name] = value.clamp_min(LEFT_OUT)
    tracer.origins[given.name] = origins
    return given


class Matmul(Operation):
    """Attributes: scale, by which the product is multiplied.

    It reads maps (1, K, heads, M) and (1, N, heads, K), which are torch's (1, heads, M, K) and
    (1, heads, K, N) with the last axis as channels, and makes (1, N, heads, M).
    """

    aten: ClassVar[tuple[str, ...]] = ("matmul", "bmm", "baddbmm", "scaled_dot_product_attention")
    multiplies = True
    folds = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        if target(node) == "scaled_dot_product_attention":
            self._attention(tracer, node)
            return
        if target(node) == "baddbmm":
            self._added(tracer, node)
            return
        one, other = (shape_of(argument) for argument in node.args[:2])
        if len(one) != len(other) or len(one) < 3 or one[:-2] != other[:-2]:
            raise tracer.unknown(
                node, f"multiplies {one} by {other}; both need three axes or more, alike but the last two"
            )
        second = _read(tracer, node, 1, len(one) - 1)
        first = _read(tracer, node, 0, len(one) - 1)
        axes = _made(tracer, node)
        form = (1, other[-1], prod(one[:-2]), one[-2])
        made = tracer.add(node, "matmul", (first, second), shape=form, attrs={"scale": 1.0})
        tracer.hold(node, made, axes)

    def _attention(self, tracer: Tracer, node: Any) -> None:
        query, key, _, mask, dropout, causal = arguments(node, None, None, None, None, 0.0, False)
        if dropout or node.kwargs.get("enable_gqa"):
            raise tracer.unknown(node, "is grouped or drops values; leave that out")
        shapes = [shape_of(argument) for argument in node.args[:3]]
        if {len(shape) for shape in shapes} != {4} or len({shape[:2] for shape in shapes}) != 1:
            raise tracer.unknown(node, f"reads {shapes}; (batch, heads, length, features) are known")
        size, given, axes = shapes[0][-1], node.kwargs.get("scale"), _made(tracer, node)
        heads, rows = prod(shapes[0][:2]), shapes[0][2]
        form = (1, shapes[1][2], heads, rows)
        attrs = {"scale": float(size**-0.5 if given is None else given)}
        value, keys = _read(tracer, node, 2, 3), _read(tracer, node, 1, 2)
        queries = _read(tracer, node, 0, 3)
        name = module_path(node) or node.name
        made = tracer.add(node, "matmul", (queries, keys), shape=form, name=f"{name}.scores", attrs=attrs)
        given = _mask(tracer, node, mask, shapes[1][2], shapes[0][2] if causal else 0)
        if given is not None:
            scores = (*shapes[0][:3], shapes[1][2])
            fixed = tracer.fixed(node, given, lambda value: laid(value.expand(scores), axes))
            made = tracer.add(node, "add", (made, fixed), shape=form, name=f"{name}.masked")
        made = tracer.add(node, "softmax", (made,), shape=form, name=f"{name}.softmax")
        form = (1, shapes[2][3], heads, rows)
        made = tracer.add(node, "matmul", (made, value), shape=form, name=name, attrs={"scale": 1.0})
        tracer.hold(node, made, axes)

    def _added(self, tracer: Tracer, node: Any) -> None:
        """A product and a constant, as torch's own attention adds a mask."""
        mask, one, other = node.args[:3]
        if not (one.name in tracer.alias and other.name in tracer.alias) or node.kwargs.get("beta", 1) != 1:
            raise tracer.unknown(node, "multiplies a constant, or scales what it adds")
        shapes = (shape_of(one), shape_of(other))
        axes = (*tracer.spread(one, 2)[:-2], 3, 1)
        form, name = (1, shapes[1][-1], shapes[0][0], shapes[0][1]), module_path(node) or node.name
        feeds = tuple(tracer.formed(node, each, tracer.spread(each, 2)) for each in (one, other))
        attrs = {"scale": float(node.kwargs.get("alpha", 1))}
        made = tracer.add(node, "matmul", feeds, shape=form, name=f"{name}.scores", attrs=attrs)
        given = _mask(tracer, node, mask, shapes[1][-1], 0)
        if given is not None:
            whole = (shapes[0][0], shapes[0][1], shapes[1][-1])
            fixed = tracer.fixed(node, given, lambda value: laid(value.expand(whole), axes))
            made = tracer.add(node, "add", (made, fixed), shape=form, name=name)
        tracer.hold(node, made, axes)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        first, second = (x.permute(LAST) for x in inputs)
        return (first @ second).permute(FIRST) * node.attrs["scale"]

    def macs(self, node: Any) -> int:
        return 0

    def along(self, node: Node) -> int:
        return 2 if node.shape[2] > 1 else 1

    def follow(self, flow: Flow, node: Node) -> Labels:
        """A head of both factors is a unit. Of one head, the columns of the second factor are channels."""
        if flow.axes[node.name] == 2:
            return tied(flow, node)
        second = flow.full(node.inputs[1])
        if node.shape[2] == 1 and bool((second == second[..., :1]).all()):
            where = f"is multiplied in {node.name}, where it counts for every channel"
            flow.lock(flow.channels(node.inputs[0]), where)
            return flow.channels(node.inputs[1])
        for name in node.inputs:
            flow.lock(flow.channels(name), f"is multiplied in {node.name}, where it counts for every channel")
        labels = flow.new(node.shape[1])
        flow.lock(labels, f"is made by {node.name} of all channels")
        return labels

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if read and makes:
            return f"{node.name} multiplies them" + (" head by head" if flow.axes[node.name] == 2 else "")
        return f"{node.name} multiplies them: locked" if read else ""

    def _unit(self, node: IntegerNode, feeds: Sequence[IntegerNode]) -> float:
        """The value of a product of ones."""
        one, other = (np.float64(feed.out.scale) for feed in feeds)
        return float(np.float32(one * other * node.attrs["scale"]))

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        first, second = (
            offsets(x, feed.out).astype(np.float64).transpose(LAST)
            for x, feed in zip(inputs, feeds, strict=True)
        )
        product = (first @ second).astype(np.float32).transpose(FIRST)
        return requantized(product * np.float32(self._unit(node, feeds)), node)

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        feeds = [program.graph[name] for name in node.inputs]
        first, second = (
            whole(x.permute(LAST).reshape(x.shape[2], x.shape[3], x.shape[1]), feed.out)
            for x, feed in zip(reals, feeds, strict=True)
        )
        product = torch.bmm(first, second) * self._unit(node, feeds)
        return product.reshape(1, *product.shape).permute(FIRST)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        steps, factors = Steps(writer, node.name), []
        for index, feed in enumerate(feeds):
            real = writer.real(writer.read(feed, "nhwc"), f"{node.name}/input{index}")
            factors.append(steps.whole(real, feed.out) if writer.integer else real)
        unit = self._unit(node, feeds) if writer.integer else node.attrs["scale"]
        with writer.quantized(writer.tensor(node, "nhwc"), f"{node.name}/output") as made:
            product = steps.fresh(made, steps.shape(made))
            writer.op("BATCH_MATMUL", 1, factors, product, writer.s.BatchMatMulOptionsT())
            steps.by("MUL", product, unit, made)
