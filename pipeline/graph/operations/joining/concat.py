"""Concatenation: the inputs share one scale with the output, so that it is a copy.

One that keeps a scale of its own (`pipeline.graph.fusion.scales_apart`) is requantized before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, shape_of
from paredown.pipeline.graph.operations.activation.affine import Affine
from paredown.pipeline.graph.operations.joining.constant import held_constant
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, Codes, Operation
from paredown.pipeline.graph.operations.placement import EXECUTORCH, LITERT, MOST_INPUTS, Rule

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer


def _one(node: IntegerNode, feed: IntegerNode) -> bool:
    return len(node.inputs) < 2


AFFINE = Affine()


class Concat(Operation):
    """Attributes: dim."""

    aten = ("cat",)
    pointwise = True
    joins = True
    same_scale = True
    keeps_sign = True
    rules = {
        EXECUTORCH: (Rule(_one, "XNNPACK concatenates 2 tensors or more", "leave it out"),),
        LITERT: (Rule(_one, "XNNPACK concatenates 2 tensors or more", "leave it out"),),
    }

    def trace(self, tracer: Tracer, node: Any) -> None:
        tensors, dim = arguments(node, None, 0)
        tensors = [t for t in tensors if 0 not in shape_of(t)]
        made = {t.name: tracer.tensor(node, t) for t in tensors if t.name not in tracer.constants}
        given = {t.name: held_constant(tracer, node, t) for t in tensors if t.name in tracer.constants}
        feeds = tuple((made | given)[t.name] for t in tensors)
        axis = tracer.axis(node, dim % len(shape_of(node)))
        tracer.add(node, "concat", feeds, attrs={"dim": axis})

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, node.attrs["dim"])

    def follow(self, flow: Flow, node: Node) -> Labels:
        if node.attrs["dim"] == flow.axes[node.name]:
            return np.concatenate([flow.channels(name) for name in node.inputs])
        first, *others = (flow.channels(name) for name in node.inputs)
        for other in others:
            flow.tie(first, other)
        return first

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if not makes:
            return super().line(flow, node, units, first, read, makes)
        places = np.flatnonzero(np.isin(flow.roots(flow.labels[node.name]), list(units)))
        each = len(places) // len(units)
        times = f", {each} for each" if each > 1 else ""
        return f"{node.name} places them at channels {places[0]} to {places[-1]}{times}"

    def widen(self, node: Node, scales: Scales) -> None:
        """For inputs that keep a scale of their own; of the others the scale is the output's."""
        for name in node.inputs:
            scales.widen(node.name, scales[name] / LARGEST_FACTOR)

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        """Each input in its scale; and many of them in steps, of as many as XNNPACK takes at once."""
        names, parts = list(node.inputs), list[Any]()
        for index, feed in enumerate(feeds if hasattr(node, "out") else ()):
            if feed.out != node.out:
                names[index] = f"{node.name}.input{index}"
                attrs = {"scale": 1.0, "shift": 0.0}
                edge = replace(
                    node, name=names[index], kind="affine", inputs=(feed.name,), shape=feed.shape, attrs=attrs
                )
                parts.extend(AFFINE.written(edge, [feed]))
        sizes = {n: feed.shape[node.attrs["dim"]] for n, feed in zip(names, feeds, strict=True)}
        while len(names) > MOST_INPUTS:
            some, name = names[:MOST_INPUTS], f"{node.name}.first{len(names)}"
            sizes[name] = sum(sizes[each] for each in some)
            shape = tuple(sizes[name] if d == node.attrs["dim"] else n for d, n in enumerate(node.shape))
            parts.append(replace(node, name=name, inputs=tuple(some), shape=shape))
            names = [name, *names[MOST_INPUTS:]]
        return (*parts, replace(node, inputs=tuple(names)) if parts else node)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        return np.concatenate(inputs, node.attrs["dim"])

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(reals), node.attrs["dim"])

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        sources = [writer.read(feed, writer.native(node)) for feed in feeds]
        options = writer.s.ConcatenationOptionsT()
        options.axis = writer.axis(node, node.attrs["dim"])
        writer.op("CONCATENATION", 2, sources, writer.result(node), options)
