"""Tensors that do not depend on the input: LayerScale, position embeddings, class tokens.

One that has a number for each channel, or for each place along some other axis, is a depthwise convolution of
one pixel. Any other is a node of its own, with its own scale, that an addition or a concatenation reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.aten import laid, shape_of
from paredown.pipeline.graph.operations.operation import Codes, Operation
from paredown.pipeline.graph.operations.weighted.batch_norm import alone

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer


class Constant(Operation):
    """A `value`, which may be one number for all channels.

    It reads the network's input, of which it takes the number of images.

    Attributes: axes, for each axis of the value that of the parameter whose places it has, in order; -1 where
    there is none, -2 where values are repeated along it. Left out where there is none at all.
    """

    def along(self, node: Node) -> int | None:
        return None

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        assert node.value is not None
        return node.value.expand(len(inputs[0]), *node.shape[1:])

    def from_zero(self, node: Node) -> bool:
        assert node.value is not None
        return not bool(node.value.any())

    def follow(self, flow: Flow, node: Node) -> Labels:
        axis = flow.axes[node.name]
        labels = flow.new(node.shape[axis])
        assert node.value is not None
        place = node.attrs["axes"][axis] if "axes" in node.attrs else -1
        if place >= 0:
            flow.carry(node, labels, node.parameters["value"])
        elif place == -1 and node.value.numel() > 1:
            flow.lock(labels, f"meets {node.name}, a constant that is no parameter with these channels")
        return labels

    def masked(self, node: Node, gone: Sequence[int], axis: int) -> Node:
        assert node.value is not None
        return replace(node, value=node.value.index_fill(axis, torch.tensor(list(gone)), 0.0))

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        return ""

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        assert node.value is not None
        return np.broadcast_to(node.value, (len(inputs[0]), *node.shape[1:]))

    def constants(self, node: IntegerNode, feeds: Sequence[IntegerNode]) -> Mapping[str, NDArray[np.float32]]:
        assert node.value is not None
        return {"value": node.out.dequantize(np.broadcast_to(node.value, node.shape))}

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return program.constant(node, "value")

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        writer.given(node, np.broadcast_to(np.asarray(node.value), node.shape))


def constant_of(tracer: Tracer, node: Any) -> tuple[int, Any, Tensor] | None:
    """Which argument of two the input decides, and the other, where that is several given numbers.

    Returns:
        The index of the first; the other, as the program has it, and its value.
    """
    for index, other in ((0, node.args[1]), (1, node.args[0])):
        value = tracer.constants.get(getattr(other, "name", ""))
        if value is not None and value.numel() > 1:
            _checked(tracer, node, value)
            return index, other, value
    return None


def per_channel(tracer: Tracer, node: Any, index: int, given: Any, value: Tensor) -> int:
    """The axis along which alone a constant differs; 0 where it differs along several, or no map has it.

    Raises:
        InputError: it spreads the tensor that it meets.
    """
    shape, rank = shape_of(node), len(shape_of(node))
    if shape_of(node.args[index]) != shape:
        raise tracer.unknown(node, "spreads a tensor over a constant; expand the tensor before")
    axes = [rank - value.dim() + axis for axis, size in enumerate(value.shape) if size > 1]
    alone = len(axes) == 1 and (rank in {2, 3, 4} or tracer.folded(node.args[index]))
    return axes[0] if alone and tracer.held(node.args[index])[1][axes[0]] != 0 else 0


def scaled(
    tracer: Tracer,
    node: Any,
    index: int,
    axis: int,
    *,
    factor: Tensor | float,
    shift: Tensor | float,
    given: Any,
) -> None:
    """Adds `factor * x + shift`, with a number for each place along an axis.

    Args:
        tracer: makes nodes.
        node: of the exported program.
        index: of the argument that is x.
        axis: of it.
        factor: as many numbers as the axis is long, or one for all.
        shift: the same.
        given: the argument that they are made of.
    """
    count = shape_of(node)[axis]
    times, plus = (torch.as_tensor(n, dtype=torch.float32).reshape(-1).expand(count) for n in (factor, shift))
    two = len(shape_of(node)) == 2 and not tracer.folded(node.args[index])
    feed = tracer.feed(node, index) if two else tracer.map(node, index, channels=axis)
    role = "factor" if isinstance(factor, Tensor) else "shift"
    alone(tracer, node, feed, times, plus, _names(tracer, role, given))


def _names(tracer: Tracer, role: str, given: Any) -> dict[str, str]:
    """The parameter that a constant is, also where the network gave it more axes."""
    origins = tracer.origins[given.name]
    if given.name in tracer.rows and len(origins) > 1:
        return {f"row {i}": path for i, path in enumerate(origins)}
    if len(origins) == 1:
        parameter = tracer.exported.state_dict.get(origins[0])
        value = tracer.constants[given.name]
        if (
            parameter is not None
            and parameter.shape[:1] == (value.numel(),)
            and torch.equal(parameter.flatten(), value.flatten())
        ):
            return {role: origins[0]}
    return {f"computed {role} {i}": path for i, path in enumerate(origins or ("",))}


def held_constant(tracer: Tracer, node: Any, given: Any, shape: tuple[int, ...] | None = None) -> str:
    """A node that holds a constant, in the form in which an ATen node holds what it makes.

    Args:
        tracer: makes nodes; it has been asked for what else the ATen node reads.
        node: of the exported program.
        given: the argument.
        shape: that the constant is spread to.
    """
    value = _checked(tracer, node, tracer.constants[given.name])
    value = value.expand(shape or value.shape)
    if value.shape[0] != 1 and tracer.views.get(node.name, (0,))[0] == 0:
        raise tracer.unknown(node, f"reads a constant of {len(value)} images; its batch must be one")

    def formed(value: Tensor) -> Tensor:
        value = value.expand(shape or value.shape)
        if node.name not in tracer.views:
            return value
        return laid(value, tracer.views[node.name])

    return tracer.fixed(node, given, formed)


def _checked(tracer: Tracer, node: Any, value: Tensor) -> Tensor:
    if not (value.is_floating_point() and bool(value.isfinite().all())):
        raise tracer.unknown(node, "reads a constant that is not of finite floats")
    return value
