"""An ONNX graph as plain data: nodes with Python values, constants as tensors, what is refused at sight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from paredown.pipeline.recipe.imports.onnx.builder import Node, listed
from paredown.pipeline.recipe.imports.onnx.file import STANDARD, Tensors, opset
from paredown.targets.errors import InputError

LOOPS = ("Loop", "Scan", "SequenceMap")
QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLSTM",
    "QLinearAdd",
    "QGemm",
)
SUPPRESSION = ("NonMaxSuppression",)


@dataclass(frozen=True)
class Source:
    """An ONNX graph.

    Attributes:
        nodes: in running order; constants are not among them.
        constants: by name.
        inputs: name -> sizes, None where one is open, and the type's number.
        outputs: names.
        opset: of the standard operations.
        halves: other types than float32 that its weights had, and how many had them.
    """

    nodes: tuple[Node, ...]
    constants: dict[str, Tensor]
    inputs: dict[str, tuple[tuple[int | None, ...], int]]
    outputs: tuple[str, ...]
    opset: int
    halves: dict[str, int]


def read_graph(model: Any, path: Path) -> Source:
    """Turns a checked model into plain data.

    Raises:
        InputError: it holds operations that are no standard's, quantized ones, or loops.
    """
    graph, version = model.graph, opset(model, path)
    check_kinds(graph.node, path)
    tensors = Tensors(path)
    constants = {each.name: tensors.read(each) for each in graph.initializer}
    nodes = nodes_of(graph.node, version, tensors, constants)
    inputs = {}
    for value in graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            sizes = [
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim
            ]
            inputs[value.name] = tuple(sizes), kind.elem_type
    return Source(nodes, constants, inputs, tuple(v.name for v in graph.output), version, tensors.halves)


def check_kinds(nodes: Sequence[Any], path: Path) -> None:
    """Refuses operations by their kind alone, in branches too.

    Raises:
        InputError: naming them.
    """
    every = list(_every(nodes))
    strange = [node for node in every if node.domain not in STANDARD]
    quantized = Counter(node.op_type for node in every if node.op_type in QUANTIZED)
    if quantized:
        kinds = listed([f"{count} {kind}" for kind, count in quantized.items()])
        raise InputError(
            f"a model that is quantized already ({kinds})",
            where=path,
            hint="give the float model: paredown quantizes it itself",
        )
    if strange:
        names = listed(list(dict.fromkeys(f"{node.domain}.{node.op_type}" for node in strange)))
        raise InputError(
            f"operations that are not ONNX's own: {names}",
            where=path,
            hint="export the model without custom operations or runtime optimizations",
        )
    for node in every:
        if node.op_type in LOOPS:
            raise InputError(
                f"node {node.name or node.op_type} is a loop ({node.op_type})",
                where=path,
                hint="programs of a device have no loops: export a fixed number of steps",
            )
        if node.op_type in SUPPRESSION:
            raise InputError(
                f"node {node.name or node.op_type} suppresses boxes ({node.op_type})",
                where=path,
                hint="export the model without its postprocessing",
            )


def _every(nodes: Iterable[Any]) -> Iterable[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _every(attribute.g.node)


def nodes_of(
    nodes: Sequence[Any], version: int, tensors: Tensors, constants: dict[str, Tensor]
) -> tuple[Node, ...]:
    """The nodes of a graph or branch; Constant nodes go to the constants."""
    from onnx import helper

    made = []
    for index, proto in enumerate(nodes):
        attrs: dict[str, Any] = {}
        for attribute in proto.attribute:
            value = helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            elif isinstance(value, list) and value and isinstance(value[0], bytes):
                value = [each.decode("utf-8", "replace") for each in value]
            elif attribute.HasField("t"):
                value = tensors.read(attribute.t)
            attrs[attribute.name] = value
        name = proto.name or f"{proto.op_type}_{index}"
        node = Node(name, proto.op_type, tuple(proto.input), tuple(proto.output), attrs, version)
        if node.kind == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            made.append(node)
    return tuple(made)


def _constant(node: Node) -> Tensor:
    import torch

    value = next((each for each in node.attrs.values()), None)
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (int, float)) or (isinstance(value, list) and value):
        return torch.tensor(value, dtype=torch.float32 if "float" in next(iter(node.attrs)) else torch.int64)
    if isinstance(value, list):
        return torch.zeros(0, dtype=torch.int64)
    raise node.error(f"is a constant of {', '.join(node.attrs) or 'nothing'}")
