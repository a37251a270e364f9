"""An int8 `.tflite` of another tool as an integer graph, with its own codes, scales and biases.

From it inspection, the other runtimes and microcontrollers are served as from a network of ours. Where an
operation is not known the file stays what it is: a sealed program (`paredown bundle`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode
from paredown.pipeline.lower.litert.reader import layers, moves
from paredown.pipeline.lower.litert.reader.reading import At, Reading, ours
from paredown.pipeline.lower.litert.reader.tables import FUNCTIONS, function
from paredown.pipeline.recipe.imports.keras.tflite.file import DAMAGED, Operation, read_graph
from paredown.pipeline.recipe.imports.keras.tflite.file import Graph as File
from paredown.pipeline.recipe.imports.keras.tflite.operations import names_of
from paredown.targets.errors import InputError

SEALED = '`paredown bundle` takes it as it is; quantize.observer = "minmax" chooses new codes instead'
STAYS = "stays sealed"
#: TFLite's name of an operation -> what makes its nodes.
OPERATIONS: Mapping[str, Callable[[At], IntegerNode]] = {
    "CONV_2D": layers.conv, "DEPTHWISE_CONV_2D": layers.conv, "FULLY_CONNECTED": layers.dense,
    "ADD": layers.pair, "SUB": layers.pair, "MUL": layers.pair, "AVERAGE_POOL_2D": layers.average,
    "MAX_POOL_2D": layers.largest, "MEAN": layers.mean, "LEAKY_RELU": layers.leaky,
    "RELU": layers.relu, "RELU6": layers.relu,
    "SOFTMAX": layers.softmax, "QUANTIZE": layers.requantize, "RESHAPE": moves.reshape,
    "SQUEEZE": moves.reshape, "EXPAND_DIMS": moves.reshape, "TRANSPOSE": moves.transpose, "PAD": moves.pad,
    "CONCATENATION": moves.concatenate, "SLICE": moves.part, "STRIDED_SLICE": moves.part,
    "RESIZE_NEAREST_NEIGHBOR": moves.nearest, **{name: function for name in FUNCTIONS},
}  # fmt: skip


def load(path: Path) -> IntegerGraph:
    """Reads a `.tflite` whose tensors are codes.

    Where it takes or gives float32, the graph begins and ends with the codes. Outputs of four axes are
    channels first.

    Raises:
        InputError: it is damaged, or no integer graph: the line names the operation and says why.
    """
    file = read_graph(path)
    try:
        return _graph(file)
    except InputError as error:
        raise InputError(f"{STAYS}: {error.what}", where=path, hint=SEALED) from error
    except DAMAGED as error:
        what = f"its operations do not fit each other ({type(error).__name__}: {str(error)[:80]})"
        raise InputError(what, where=path) from error


def prospect(path: Path) -> str:
    """What can be done with the codes of an int8 file, a sentence without its full stop."""
    try:
        graph = load(path)
    except InputError as error:
        what = error.what.partition("; ")[0]  # without what to do next, which is done already
        return f"{path.name} {'' if what.startswith(STAYS) else f'{STAYS}: '}{what}"
    return (
        f"all operations of {path.name} are known: with `paredown run` its own codes, an integer graph of "
        f"{len(graph.nodes)} nodes, serve other runtimes and microcontrollers too"
    )


def of_network(path: Path, graph: Graph) -> IntegerGraph:
    """The same as the integer graph of a traced network: without the softmax that the network leaves out.

    Args:
        path: of the file.
        graph: of the float network of this very file.

    Raises:
        InputError: as of `load`; or the network has other outputs.
    """
    found = load(path)
    (last, *others), (wanted, *_) = found.outputs, graph.outputs
    if not others and found[last].kind == "softmax" and graph[wanted].kind != "softmax":
        found = found.upto(found[last].inputs)
    ours, theirs = ([each[name].shape for name in each.outputs] for each in (found, graph))
    if ours != theirs:
        raise InputError(
            f"its codes give {ours}, and the recipe's network gives {theirs}", where=path,
            hint='new codes can be chosen: quantize.observer = "minmax"',
        )  # fmt: skip
    return found


def _graph(file: File) -> IntegerGraph:
    if len(file.inputs) != 1:
        raise InputError(f"takes {len(file.inputs)} inputs, not one tensor")
    reading = Reading(file)
    source = file.tensors[file.inputs[0]]
    if source.shape[:1] != (1,) or [axis for axis in source.open if axis]:
        raise InputError(f"its input {source.name} is {source.shape}, without a batch of 1 or a known size")
    if source.kind != "FLOAT32":
        reading.take(file.inputs[0])
    taken: set[str] = {"input"}
    for op, name in zip(file.operations, names_of(file), strict=True):
        if len(taken) > 1 and name in taken:
            name = f"{name}.{len(taken)}"
        taken.add(name)
        _one(reading, op, name)
    outputs = []
    for place in file.outputs:
        if place not in reading.held:
            raise InputError(f"its output {file.tensors[place].name} is not computed from its input")
        outputs.append(reading.held[place])
    if "input" in outputs or len(set(outputs)) < len(outputs):
        raise InputError("it returns its input, or one tensor twice")
    return IntegerGraph(tuple(reading.nodes.values()), tuple(outputs)).upto(outputs)


def _one(reading: Reading, op: Operation, name: str) -> None:
    """Makes the nodes of one operation."""
    file = reading.file
    try:
        if op.kind == "QUANTIZE" and op.inputs[0] in file.inputs and not reading.nodes:
            _begin(reading, op)
            return
        if op.kind == "QUANTIZE" and file.tensors[op.inputs[0]].kind == "FLOAT32":
            raise InputError("it quantizes what is computed in float32")
        if op.kind == "DEQUANTIZE" and op.outputs[0] in file.outputs:
            reading.held[op.outputs[0]] = At(reading, op, name).feed().name
            return
        make = OPERATIONS.get(op.kind)
        if make is None or len(op.outputs) != 1:
            raise InputError("it is not known here")
        at = At(reading, op, name)
        made = make(at)
        if made.shape != ours(at.shape):
            raise InputError(f"makes {made.shape}, and by the file {ours(at.shape)}")
        reading.held[op.outputs[0]] = made.name
    except InputError as error:
        raise InputError(f"{op.kind} ({name}): {error.what}") from error
    except (*DAMAGED, ArithmeticError, AssertionError) as error:
        what = f"{op.kind} ({name}) is damaged ({type(error).__name__}: {str(error)[:80]})"
        raise InputError(what) from error


def _begin(reading: Reading, op: Operation) -> None:
    """The first QUANTIZE of a float32 input is what the outside does."""
    reading.take(op.outputs[0])
    reading.held[op.inputs[0]] = "input"
