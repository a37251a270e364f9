"""`.tflite` models into plain torch modules, channels first.

Codes become real numbers: an int8 file is the float32 network of its codes, from which training starts. Its
own codes are read by `pipeline.lower.litert.reader`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.keras.file import Place
from paredown.pipeline.recipe.imports.keras.maker import CHANNELS_FIRST, Layer, LayerNode, Maker, Value
from paredown.pipeline.recipe.imports.keras.tflite.file import (
    DAMAGED,
    Graph,
    Operation,
    coded,
    full_integer,
    input_codes,
    read_graph,
)
from paredown.pipeline.recipe.imports.keras.tflite.operations import At, Constants, builder, names_of
from paredown.pipeline.recipe.imports.onnx.network import Network
from paredown.targets.errors import InputError

SEALED = "`paredown bundle` takes it as it is; to train it, give the float model"
NOTE = "codes of 8 bits are float32 here; their rounding and saturation of activations is not in this network"


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads a `.tflite`; see `imports.read`.

    Raises:
        InputError: it cannot be imported; the line says why, and names the operation.
    """
    graph = read_graph(path)
    try:
        return _imported(graph, path, shape)
    except InputError as error:
        raise InputError(str(error), where=path) from error
    except DAMAGED as error:
        what = f"its operations do not fit each other ({type(error).__name__}: {str(error)[:80]})"
        raise InputError(what, where=path) from error


def _imported(graph: Graph, path: Path, asked: tuple[int, ...] | None) -> Imported:
    sizes = _input(graph, asked)
    notes: list[str] = []
    order = CHANNELS_FIRST[len(sizes)] if len(sizes) == 4 else tuple(range(len(sizes)))
    held = Constants()
    maker = Maker.start(path, tuple(sizes[axis] for axis in order), held, ())
    values: dict[int, Value] = {graph.inputs[0]: Value(maker.builder.input, order)}
    constants, halves = _constants(graph)
    if coded(graph):
        notes.append(NOTE)
    if halves:
        notes.append(f"{halves} weights of float16 made float32")
    for op, name in zip(graph.operations, names_of(graph), strict=True):
        if all(place in constants for place in op.outputs):
            continue
        values[op.outputs[0]] = _one(maker, graph, op, name, values, constants, held)
    outputs = []
    for place in graph.outputs:
        if place not in values:
            raise InputError(f"its output {graph.tensors[place].name} is not computed from its input")
        layer = Layer(LayerNode("output", "", (), ()), {}, Place((f"output{place}",), ""))
        value = maker.plain(layer, values[place])
        if value.order != tuple(range(value.rank)):
            ours, theirs, name = _text(value.live.fake.shape), _text(value.shape), graph.tensors[place].name
            notes.append(f"the output {name} is {ours}, channels first; in TFLite it is {theirs}")
        outputs.append(value)
    if not maker.builder.steps:
        raise InputError("the model returns its input")
    if order != tuple(range(len(order))):
        ours = _text(maker.builder.input.fake.shape)
        notes.insert(0, f"the input is {ours}, channels first; in TFLite it is {_text(sizes)}")
    names = [value.live.name for value in outputs]
    network = Network(maker.builder.modules, maker.builder.steps, names).eval()
    said = tuple(graph.tensors[place].name for place in graph.outputs)
    full = tuple(int(size) for size in maker.builder.input.fake.shape)
    form = "TFLite, int8" if full_integer(graph) else "TFLite"
    return Imported(network, full, form, (*notes, *maker.builder.notes), said, _range(graph, full))


def _input(graph: Graph, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """The input's sizes, channels last."""
    if len(graph.inputs) != 1:
        names = ", ".join(graph.tensors[place].name for place in graph.inputs) or "none"
        raise InputError(f"takes {len(graph.inputs)} inputs ({names}), not one tensor",
                         hint="convert a model of one input")  # fmt: skip
    tensor = graph.tensors[graph.inputs[0]]
    if wide := [each for each in graph.tensors if each.kind in ("INT16", "INT4")]:
        kinds = Counter(each.kind.lower() for each in wide)
        what = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
        raise InputError(f"a quantized model ({what} tensors); known are int8 and uint8", hint=SEALED)
    if tensor.kind not in ("FLOAT32", "INT8", "UINT8") or (tensor.kind != "FLOAT32" and not tensor.scales):
        raise InputError(f"its input {tensor.name} is {tensor.kind.lower()}, without a scale", hint=SEALED)
    if [axis for axis in tensor.open if axis] or not 2 <= len(tensor.shape) <= 4:
        said = "x".join("?" if axis in tensor.open else str(size) for axis, size in enumerate(tensor.shape))
        raise InputError(f"its input {tensor.name} is {said}",
                         hint="convert it for one size, of 2 to 4 axes with the batch")  # fmt: skip
    sizes = tensor.shape
    if sizes[0] != 1:
        raise InputError(f"is for a batch of {sizes[0]}", hint="convert it for a batch of 1")
    first = sizes if len(sizes) < 4 else (sizes[0], sizes[3], *sizes[1:3])
    if asked and tuple(asked) not in (first, first[1:], first[2:]):
        raise InputError(f"its input is {_text(first)}, and the shape {_text(asked)} does not fit",
                         hint="leave the shape out")  # fmt: skip
    return sizes


def _range(graph: Graph, shape: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of a pixel / 255 by which 0 to 255 is the whole range of the input's codes."""
    code = input_codes(graph)
    if code is None or len(shape) != 4:
        return {}
    scale, zero = code
    std = float(f"{1 / (255 * scale):.6g}")  # 1, and not 0.99999994: the file's scale is a float32
    return {"mean": ((128 + zero) / 255,) * shape[1], "std": (std,) * shape[1]}


def _constants(graph: Graph) -> tuple[dict[int, torch.Tensor], int]:
    """The constants by their tensor's place, those of float16 as float32; how many those are."""
    found = {
        place: torch.from_numpy(np.array(tensor.real))
        for place, tensor in enumerate(graph.tensors) if tensor.value is not None
    }  # fmt: skip
    halves = 0
    for op in graph.operations:
        source = found.get(op.inputs[0]) if op.inputs else None
        if op.kind == "DEQUANTIZE" and source is not None and source.dtype == torch.float16:
            found[op.outputs[0]], halves = source.float(), halves + 1
    return found, halves


def _one(
    maker: Maker, graph: Graph, op: Operation, name: str, values: dict[int, Value],
    constants: dict[int, torch.Tensor], held: Constants,
) -> Value:  # fmt: skip
    """Builds one operation."""
    node = LayerNode(name, op.kind, (), ())
    build = builder(op.kind)
    if build is None or len(op.outputs) != 1:
        raise node.error("is not known to the importer", "export ONNX, or `paredown bundle` it as it is")
    reads = tuple(values.get(place) for place in op.inputs)
    given = tuple(constants.get(place) for place in op.inputs)
    at = At(maker, graph, op, name, reads, given, held)
    try:
        made = build(at)
    except InputError as error:
        raise error if error.what.startswith("layer ") else node.error(error.what) from error
    except DAMAGED as error:
        raise node.error(f"cannot be built ({type(error).__name__}: {str(error)[:100]})") from error
    except RuntimeError as error:  # of torch, which a damaged file can ask anything
        raise node.error(f"cannot be built ({str(error).splitlines()[0][:100]})") from error
    if made.shape != at.shape:
        raise node.error(f"makes {made.shape}, and by the file {at.shape}", "check the file")
    return made


def _text(sizes: Sequence[int]) -> str:
    return "x".join(str(int(size)) for size in sizes)
