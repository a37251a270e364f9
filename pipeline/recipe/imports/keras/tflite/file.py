"""The flatbuffer of a `.tflite`, as far as an import needs it: one graph of operations and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import InputError

LARGEST = 1 << 31  # bytes, of a flatbuffer
#: What a damaged flatbuffer makes Python raise.
DAMAGED = (
    IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError,
)  # fmt: skip
NUMBERS: Mapping[str, Any] = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "INT64": np.int64, "INT8": np.int8,
    "UINT8": np.uint8, "BOOL": np.bool_, "INT16": np.int16, "FLOAT64": np.float64,
}  # fmt: skip
#: Operations by which a call depends on those before it, and those that choose or repeat graphs.
STATES, FLOW = {"READ_VARIABLE", "ASSIGN_VARIABLE"}, {"IF", "WHILE", "CALL", "CALL_ONCE"}
#: Types of codes of eight bits, and how much less they are as int8.
BYTES: Mapping[str, int] = {"INT8": 0, "UINT8": 128}
#: Types of codes, which have scales.
CODES = ("INT8", "UINT8", "INT16", "INT32")


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor.

    Attributes:
        name: in the file.
        shape: TFLite's own, channels last.
        kind: TFLite's name of its type.
        open: axes whose size the file leaves open.
        value: of a constant.
        scales: real = scale * (code - zero point): one, or one for each place along `axis`; none of reals.
        zero_points: as many.
        axis: that the scales go along.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    open: tuple[int, ...]
    value: NDArray[Any] | None
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0

    @property
    def real(self) -> NDArray[Any]:
        """The values of a constant, those of codes as real numbers of float32.

        Raises:
            InputError: their scales do not fit them.
        """
        assert self.value is not None
        if not self.scales or self.kind not in CODES:
            return self.value
        one = len(self.scales) == 1
        if len(self.zero_points) != len(self.scales) or not (
            one or (self.axis < len(self.shape) and self.shape[self.axis] == len(self.scales))
        ):
            raise InputError(f"{self.name}: {len(self.scales)} scales do not fit {self.shape}")
        form = [1] * len(self.shape) if one else [-1 if d == self.axis else 1 for d in range(self.value.ndim)]
        scale, zero = (np.asarray(each, np.float64).reshape(form) for each in (self.scales, self.zero_points))
        return ((self.value - zero) * scale).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation.

    Attributes:
        kind: TFLite's name, "CONV_2D".
        inputs: places of the tensors that it reads; -1 = none.
        outputs: likewise of those that it makes.
        options: of its kind, as the schema's classes have them; None where it has none.
        version: of its kind.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any
    version: int = 1


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole file.

    Attributes:
        tensors: all of them.
        operations: in running order.
        inputs: places of the tensors that are given.
        outputs: likewise of those that are returned.
        enums: names of fused activations and paddings by their numbers.
    """

    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    enums: Mapping[str, Mapping[int, str]]


def coded(graph: Graph) -> bool:
    """Whether it holds codes of eight bits, be they its weights alone."""
    return any(tensor.kind in BYTES for tensor in graph.tensors)


def full_integer(graph: Graph) -> bool:
    """Whether what it computes are codes of eight bits, and not its weights alone."""
    made = {place for op in graph.operations for place in op.outputs} - set(graph.outputs)
    return any(graph.tensors[place].kind in BYTES for place in made | set(graph.inputs))


def is_full_integer(path: Path) -> bool:
    """The same of a file; of what is no `.tflite` not.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    return path.suffix.lower() == ".tflite" and full_integer(read_graph(path))


def input_codes(graph: Graph) -> tuple[float, int] | None:
    """Scale and zero point of the codes of int8 that the input is, or becomes at once; None without."""
    places = [graph.inputs[0]]
    places += [
        op.outputs[0] for op in graph.operations if op.kind == "QUANTIZE" and op.inputs == (places[0],)
    ]
    for tensor in (graph.tensors[place] for place in places):
        if (
            tensor.kind in BYTES
            and len(tensor.scales) == len(tensor.zero_points) == 1
            and tensor.scales[0] > 0
        ):
            return tensor.scales[0], tensor.zero_points[0] - BYTES[tensor.kind]
    return None


def read_graph(path: Path) -> Graph:
    """Reads a `.tflite`.

    Raises:
        InputError: it cannot be read, is none, damaged, or of more than one graph.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError("more than 2 GiB, which no TFLite model has", where=path)
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the model: {error.strerror}", where=path) from None
    if data[4:8] != b"TFL3":
        raise InputError("not a TFLite model (truncated or damaged?)", where=path)
    from ai_edge_litert import schema_py_generated as schema

    try:
        return _parsed(schema.ModelT.InitFromPackedBuf(data, 0), schema)
    except InputError as error:
        raise InputError(str(error), where=path) from None
    except Exception as error:  # struct.error and others: a damaged flatbuffer can ask anything of Python
        what = f"its flatbuffer is damaged ({type(error).__name__}: {str(error)[:80]})"
        raise InputError(what, where=path) from error


def _parsed(model: Any, schema: Any) -> Graph:
    if len(model.subgraphs or ()) != 1:
        raise InputError(f"stays sealed: has {len(model.subgraphs or ())} graphs: {_inside(model, schema)}",
                         hint="`paredown bundle` takes it as it is")  # fmt: skip
    graph, kinds = model.subgraphs[0], _names(schema.TensorType)
    tensors = tuple(_tensor(each, model.buffers, kinds) for each in graph.tensors)
    codes, known = _names(schema.BuiltinOperator), []
    for each in graph.operators:
        code = model.operatorCodes[each.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        kind = codes.get(number, f"operation {number}")
        if kind == "CUSTOM":
            text = code.customCode
            kind = f"custom operator {text.decode() if isinstance(text, bytes) else text}"
        options = getattr(each, "builtinOptions", None)
        read, made = _places(each.inputs), _places(each.outputs)
        known.append(Operation(kind, read, made, options, int(code.version or 1)))
    for places in ((*graph.inputs, *graph.outputs), *((*each.inputs, *each.outputs) for each in known)):
        if any(not -1 <= int(place) < len(tensors) for place in places):
            raise InputError("its flatbuffer is damaged: it names a tensor that it has not")
    enums = {"activation": _names(schema.ActivationFunctionType), "padding": _names(schema.Padding)}
    return Graph(tensors, tuple(known), _places(graph.inputs), _places(graph.outputs), enums)


def _inside(model: Any, schema: Any) -> str:
    """Why a file has several graphs: its operations of control flow and of states."""
    codes = _names(schema.BuiltinOperator)
    found = {codes.get(max(each.builtinCode, each.deprecatedBuiltinCode), "") for each in model.operatorCodes}
    states = sorted(found & STATES)
    if states:
        return f"it keeps a state from call to call ({', '.join(states)})"
    return f"control flow ({', '.join(sorted(found & FLOW)) or 'several entries'})"


def _tensor(told: Any, buffers: Any, kinds: Mapping[int, str]) -> Tensor:
    kind, shape = kinds.get(told.type, f"type {told.type}"), tuple(int(n) for n in _list(told.shape))
    signature = _list(told.shapeSignature)
    if told.sparsity is not None:
        raise InputError(f"{_text(told.name)} is stored sparsely", hint="convert it without")
    raw = buffers[told.buffer].data
    value = None
    if raw is not None and len(raw) and kind in NUMBERS:
        value = np.frombuffer(np.asarray(raw, np.uint8).tobytes(), NUMBERS[kind]).reshape(shape)
    spots = tuple(axis for axis, size in enumerate(signature) if int(size) < 0)
    codes = told.quantization
    scales, zeros = ((), ()) if codes is None else (_list(codes.scale), _list(codes.zeroPoint))
    return Tensor(
        _text(told.name), shape, kind, spots, value, tuple(float(n) for n in scales), _places(zeros),
        0 if codes is None else int(codes.quantizedDimension or 0),
    )  # fmt: skip


def _list(found: Any) -> list[Any]:
    return [] if found is None else list(found)


def _places(found: Any) -> tuple[int, ...]:
    return tuple(int(place) for place in _list(found))


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name or "")


def _names(enum: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}
