"""ONNX files into plain torch modules: constants are folded for one shape, the rest becomes layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.onnx.builder import Builder, Live, Node, Value, listed
from paredown.pipeline.recipe.imports.onnx.chunks import chunked
from paredown.pipeline.recipe.imports.onnx.file import Tensors, read_model
from paredown.pipeline.recipe.imports.onnx.graph import Source, nodes_of, read_graph
from paredown.pipeline.recipe.imports.onnx.network import Network, needed
from paredown.pipeline.recipe.imports.onnx.operations.moves import permuted
from paredown.pipeline.recipe.imports.onnx.operations.table import OPERATIONS
from paredown.pipeline.recipe.imports.onnx.patterns import fused
from paredown.targets.errors import InputError

FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
WHOLE = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 12: "uint32", 13: "uint64"}
TO_CHANNELS_FIRST = [0, 3, 1, 2]


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads an ONNX file; see `imports.read`.

    Raises:
        InputError: it cannot be imported; the line says why, and names the node.
    """
    path = Path(path)
    source = read_graph(read_model(path), path)
    notes = [f"{count} tensors of {kind} were made float32" for kind, count in source.halves.items()]
    name, sizes = _input(source, path, notes)
    source, sizes = _channels_first(source, name, sizes, notes)
    sizes, batch = _one(sizes, notes)
    full = _shape(sizes, shape, name, path, notes)
    try:
        for key, value in source.constants.items():
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                raise InputError(
                    f"{key} holds {int(torch.isnan(value).sum())} values that are NaN",
                    hint="export the model again, from weights that are numbers",
                )
        builder, outputs = _built(source, name, full, batch, path)
    except InputError as error:
        raise InputError(str(error), where=path) from error
    whole, renamed = chunked(builder.steps, builder.parts, builder.modules)
    made = [renamed.get(value.name, value.name) for _, value in outputs]
    steps = needed(whole, made)
    network = Network({step.path: builder.modules[step.path] for step in steps}, steps, made).eval()
    names = tuple(name for name, _ in outputs)
    return Imported(network, full, f"ONNX, opset {source.opset}", (*notes, *builder.notes), names)


# -- the input -----------------------------------------------------------------------------------------------


def _input(source: Source, path: Path, notes: list[str]) -> tuple[str, tuple[int | None, ...]]:
    """The one input's name and sizes."""
    if len(source.inputs) != 1:
        branches = " and branches (If)" if any(node.kind == "If" for node in source.nodes) else ""
        names = listed(list(source.inputs)) or "none"
        raise InputError(
            f"takes {len(source.inputs)} inputs ({names}){branches}, not one tensor",
            where=path,
            hint="export a model of one input; make states and settings constants",
        )
    ((name, (sizes, kind)),) = source.inputs.items()
    if kind in WHOLE:
        notes.append(f"the input {name} is {WHOLE[kind]}; here it is float32, of the same whole numbers")
    elif kind not in FLOATS:
        raise InputError(
            f"the input {name} holds no numbers (type {kind})",
            where=path,
            hint="export a model that takes floats",
        )
    elif kind != 1:
        notes.append(f"the input {name} is {FLOATS[kind]}; here it is float32")
    return name, sizes


def _channels_first(
    source: Source, name: str, sizes: tuple[int | None, ...], notes: list[str]
) -> tuple[Source, tuple[int | None, ...]]:
    """Takes away the transpose of images (N, H, W, C) at the door."""
    readers = [node for node in source.nodes if name in node.inputs]
    first = readers[0] if len(readers) == 1 and name not in source.outputs else None
    if first is None or first.kind != "Transpose" or len(sizes) != 4:
        return source, sizes
    if list(first.attrs.get("perm", ())) != TO_CHANNELS_FIRST:
        return source, sizes
    notes.append(f"the file takes images as (N, H, W, C): {name} is (N, C, H, W) here, without the transpose")
    nodes = tuple(replace(n, kind="Identity", attrs={}) if n is first else n for n in source.nodes)
    return replace(source, nodes=nodes), tuple(sizes[axis] for axis in TO_CHANNELS_FIRST)


def _one(sizes: tuple[int | None, ...], notes: list[str]) -> tuple[tuple[int | None, ...], int | None]:
    """A batch of one, and the number that the file has instead."""
    if not sizes:
        return sizes, None
    batch = sizes[0]
    if batch is not None and batch > 1:
        notes.append(f"the file is for a batch of {batch}; here it is 1")
    return (1, *sizes[1:]), batch if batch and batch > 1 else None


def _shape(
    sizes: tuple[int | None, ...], asked: tuple[int, ...] | None, name: str, path: Path, notes: list[str]
) -> tuple[int, ...]:
    """The input's shape: what is asked for stands for the last axes, the file says the others."""
    said = "x".join("?" if size is None else str(size) for size in sizes)
    wanted = list(asked or ())
    sizes = sizes or (None,) * len(wanted)
    if len(wanted) > len(sizes) or min(wanted, default=1) < 1:
        raise InputError(
            f"the input {name} is {said}, and the shape {'x'.join(map(str, wanted))} does not fit",
            where=path,
            hint=f"give {len(sizes) - 1} sizes",
        )
    if len(wanted) == len(sizes) and wanted:
        wanted[0] = 1
    if len(sizes) == 4 and len(wanted) >= 3 and wanted[-1] == sizes[1] and wanted[-3] != sizes[1]:
        wanted = [*wanted[:-3], wanted[-1], *wanted[-3:-1]]  # images as the file has them
    full = [*sizes[: len(sizes) - len(wanted)], *wanted]
    if None in full or not full:
        example = "x".join(str(size or 224) for size in sizes[1:]) or "3x224x224"
        raise InputError(
            f"the input {name} is {said or 'of no known shape'}, with sizes left open",
            where=path,
            hint=f"give them: --shape {example}, or width and height in [preprocess]",
        )
    changed = [(s, f) for s, f in zip(sizes, full, strict=True) if s is not None and s != f]
    if changed:
        notes.append(f"the file declares {said}; it is imported for {'x'.join(map(str, full))}, as asked")
    return tuple(int(size) for size in full if size is not None)


# -- the graph -----------------------------------------------------------------------------------------------


def _built(
    source: Source, name: str, shape: tuple[int, ...], batch: int | None, path: Path
) -> tuple[Builder, list[tuple[str, Live]]]:
    builder = Builder(path, shape, batch)
    for key, value in source.constants.items():
        builder.weight(key, value)
    values: dict[str, Value] = {**source.constants, name: builder.input, "": None}
    nodes = _needed(fused(source), source.outputs)
    _run(builder, nodes, values)
    outputs = []
    for output in source.outputs:
        made = values.get(output)
        if isinstance(made, Live):
            outputs.append((output, _batch_first(builder, output, made)))
        else:
            builder.note(f"the output {output} does not depend on the input and is left out")
    if not outputs:
        raise InputError("no output depends on the input", hint="export the model again")
    if not builder.steps:
        raise InputError("the model returns its input", hint="export the model again")
    return builder, outputs


def _batch_first(builder: Builder, name: str, value: Live) -> Live:
    """An output with the batch of one as its first axis, as programs have it."""
    shape = builder.shape(value)
    if shape[:1] == (1,):
        return value
    node = Node(f"{name}.batch", "Transpose", (), (name,))
    found: Live
    if 1 in shape:
        axis = shape.index(1)
        found = permuted(builder, node, value, [axis, *(i for i in range(len(shape)) if i != axis)])
    else:
        found = builder.call(node, torch.unsqueeze, value, 0)
    said = "x".join(map(str, builder.shape(found)))
    builder.note(
        f"the output {name} is {'x'.join(map(str, shape))} in the file; here it is {said}, the batch first"
    )
    return found


def _needed(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """The nodes on whose results the outputs depend, branches included."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            kept.append(node)
            wanted |= set(node.inputs)
            for branch in (node.attrs.get("then_branch"), node.attrs.get("else_branch")):
                wanted |= _reads(branch) if branch is not None else set()
    return list(reversed(kept))


def _reads(graph: Any) -> set[str]:
    """Every name that a branch, or one within it, reads."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found |= set(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= _reads(attribute.g)
    return found


def _run(builder: Builder, nodes: Sequence[Node], values: dict[str, Value]) -> None:
    """Builds every node from the values of its inputs."""
    for node in nodes:
        try:
            found = _branch(builder, node, values) if node.kind == "If" else _one_node(builder, node, values)
        except InputError as error:
            if error.what.startswith("node "):
                raise
            raise node.error(str(error)) from error
        except Exception as error:  # a damaged file can ask anything of torch
            lines = str(error).splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0][:200]}"
            raise node.error(f"cannot be computed ({reason})", "check the file and the --shape") from error
        parts = found if isinstance(found, (tuple, list)) else (found,)
        values |= dict(zip(node.outputs, parts, strict=False))


def _one_node(builder: Builder, node: Node, values: dict[str, Value]) -> Any:
    build = OPERATIONS.get(node.kind)
    if build is None:
        raise node.error("is not known to the importer", "export the model without it, or for another opset")
    missing = [name for name in node.inputs if name not in values]
    if missing:
        raise node.error(f"reads {missing[0]}, which nothing computes here")
    return build(builder, node, *(values[name] for name in node.inputs))


def _branch(builder: Builder, node: Node, values: dict[str, Value]) -> tuple[Value, ...]:
    """The branch that is taken, where that is known beforehand."""
    condition = values[node.inputs[0]]
    if not isinstance(condition, Tensor):
        raise node.error(
            "chooses a branch by a value that the network computes",
            "a program on a device runs the same operations every time: export it without branches",
        )
    graph = node.attrs["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
    tensors = Tensors(builder.path)
    constants = {each.name: tensors.read(each) for each in graph.initializer}
    nodes = nodes_of(graph.node, node.opset, tensors, constants)
    for key, value in constants.items():
        builder.weight(key, value)
    inner: dict[str, Value] = {**values, **constants}
    _run(builder, nodes, inner)
    return tuple(inner[value.name] for value in graph.output)
