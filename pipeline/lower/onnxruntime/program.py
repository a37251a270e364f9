"""ONNX Runtime: the integer graph (or the float network) as an .onnx of quantize and dequantize pairs.

Our own writer instead of `torch.onnx`: its files hold every scale, code and bias of the integer graph, and
ONNX Runtime fuses each pair with the operator between (`kinds` and `writer` say how). The package `onnx`
makes the file; it and `onnxruntime` are an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.graph import apply as apply_float
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.executorch.program import QdqModule
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode
from paredown.pipeline.lower.onnxruntime import aten
from paredown.pipeline.lower.onnxruntime.kinds import BOTH, OF_CODES, Emitter, finished, looked_up
from paredown.pipeline.lower.onnxruntime.optimized import in_float
from paredown.pipeline.lower.onnxruntime.writer import Value, Writer
from paredown.pipeline.lower.runtimes import Lowered
from paredown.targets.errors import InputError
from paredown.targets.runners.onnxruntime.runner import Runner, load

__all__ = ["load", "lower_float", "lower_integer"]


def lower_integer(graph: IntegerGraph) -> Lowered:
    """Writes the integer graph, NCHW, batch of one; its codes are uint8, 128 more than ours."""
    data = written(graph.written, Writer())
    return Lowered(data, 1, in_float(data))


def lower_float(graph: Graph) -> Lowered:
    """Writes the traced float network: float32 in and out, NCHW, batch of one."""
    data = written(graph.written, Writer())
    Runner(data)  # says at once what does not load
    return Lowered(data, 1, ())


def written(graph: Graph | IntegerGraph, writer: Writer) -> bytes:
    """The bytes of a file.

    Args:
        graph: of floats or of codes, as it is written.
        writer: an empty one; its `own` kinds come before those of `kinds`.
    """
    nodes: dict[str, Any] = {node.name: node for node in graph}
    values: dict[str, Value] = {}
    for node in graph:
        if node.kind == "input":
            affine = node.out if isinstance(node, IntegerNode) else None
            values[node.name] = Value(writer.name("input"), tuple(node.shape), affine)
            continue
        feeds = [nodes[name] for name in node.inputs]
        emit = _emitter(node, writer.own)
        values[node.name] = emit(writer, node, feeds, [values[name] for name in node.inputs])
    outputs = [(f"output_{index}", values[name]) for index, name in enumerate(graph.outputs)]
    return writer.model(values[graph.nodes[0].name], outputs)


def _emitter(node: Any, own: Mapping[str, Emitter]) -> Callable[..., Value]:
    if isinstance(node, IntegerNode) and node.kind in own:
        return own[node.kind]
    if node.kind in BOTH:
        return BOTH[node.kind]
    if not isinstance(node, IntegerNode):
        return _recorded
    if node.kind in OF_CODES:
        return OF_CODES[node.kind]
    return looked_up if operation(node.kind).table else _recorded


def _recorded(writer: Writer, node: Any, feeds: Sequence[Any], values: Sequence[Value]) -> Value:
    """What has no operator of its own: the torch operations that other programs hold of it."""
    where = node.attrs.get("line") or node.name
    shapes = [feed.shape for feed in feeds]
    try:
        graph = aten.record(_computes(node, feeds), shapes)
    except Exception as error:  # noqa: BLE001  torch raises whatever it likes where it cannot decompose
        raise InputError(
            f"{node.attrs.get('op', node.kind)} cannot be written in ONNX operators", where=where,
            hint='lower to the other runtimes ([lower] runtimes = ["litert", "executorch"])',
        ) from error  # fmt: skip
    made = aten.write(writer, graph, values, where, node.name)
    if isinstance(node, IntegerNode):
        return writer.codes(made, node.out, node.name, node.low, node.high)
    return finished(writer, node, writer.real(made).name)


def _computes(node: Any, feeds: Sequence[Any]) -> Callable[..., Tensor]:
    """What computes a node on real values."""
    kind = operation(node.kind)
    if kind.island:
        island = kind.recipe(node, [torch.as_tensor(each) for each in node.constants])
        if not node.attrs["nan"]:
            return island

        def numbers(*reals: Tensor) -> Tensor:
            made = island(*reals)
            return torch.where(made == made, made, torch.zeros_like(made))

        return numbers
    if isinstance(node, IntegerNode):
        program = _Alone(node, feeds)
        return lambda *reals: kind.executorch(program, node, reals)
    return lambda *reals: apply_float(node, *reals)


class _Alone(QdqModule):
    """What one node without weights asks of a program while it is recorded."""

    def __init__(self, node: IntegerNode, feeds: Sequence[IntegerNode]) -> None:
        nn.Module.__init__(self)
        import torch.ao.quantization.fx._decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

        self.graph = IntegerGraph((*{feed.name: feed for feed in feeds}.values(), node), (node.name,))
        self._constants = {
            word: torch.from_numpy(array)
            for word, array in operation(node.kind).constants(node, feeds).items()
        }

    def constant(self, node: IntegerNode, word: str) -> Tensor:
        """An array of `Operation.constants`."""
        return self._constants[word]
