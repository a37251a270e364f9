"""Float `.tflite` models into plain torch modules, channels first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.keras.file import Place
from paredown.pipeline.recipe.imports.keras.maker import CHANNELS_FIRST, Layer, LayerNode, Maker, Value
from paredown.pipeline.recipe.imports.keras.tflite.file import DAMAGED, Graph, Operation, read_graph
from paredown.pipeline.recipe.imports.keras.tflite.operations import At, Constants, builder, names_of
from paredown.pipeline.recipe.imports.onnx.network import Network
from paredown.targets.errors import InputError

SEALED = "`paredown bundle` takes it as it is; to train it, give the float model"


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads a float `.tflite`; see `imports.read`.

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
    return Imported(network, full, "TFLite", (*notes, *maker.builder.notes), said)


def _input(graph: Graph, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """The input's sizes, channels last."""
    if len(graph.inputs) != 1:
        names = ", ".join(graph.tensors[place].name for place in graph.inputs) or "none"
        raise InputError(f"takes {len(graph.inputs)} inputs ({names}), not one tensor",
                         hint="convert a model of one input")  # fmt: skip
    tensor = graph.tensors[graph.inputs[0]]
    quantized = [each for each in graph.tensors if each.kind in ("INT8", "UINT8", "INT16")]
    if quantized or tensor.kind != "FLOAT32":
        kinds = Counter(each.kind.lower() for each in (quantized or [tensor]))
        what = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
        raise InputError(f"a quantized model ({what} tensors), which is not trained any more", hint=SEALED)
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


def _constants(graph: Graph) -> tuple[dict[int, torch.Tensor], int]:
    """The constants by their tensor's place, those of float16 as float32; how many those are."""
    found = {
        place: torch.from_numpy(tensor.value.copy())
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
