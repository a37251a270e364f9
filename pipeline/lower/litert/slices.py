"""Parts of a .tflite as programs of their own: its first operations, or all of it with every tensor out.

With the first operations a per-operation profile is made on any device whose runtime has no profiler: the
time of one operation is what a prefix takes more than the one before it. With every tensor out, the first
operation is found in which two machines differ. Our design.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from paredown.targets.errors import InputError
from paredown.targets.runners.litert import TensorInfo


@dataclass(frozen=True)
class Slice:
    """A part of a program.

    Attributes:
        data: a .tflite of its own.
        names: of the tensors that it returns, in order.
        outputs: what they are, NCHW.
        operations: kinds of its operations, in running order.
    """

    data: bytes
    names: tuple[str, ...]
    outputs: tuple[TensorInfo, ...]
    operations: tuple[str, ...]


def prefixes(program: bytes) -> tuple[Slice, ...]:
    """The first operation, the first two, and so on to the whole; each returns all that nobody in it reads.

    Args:
        program: a .tflite of one input and one subgraph.

    Raises:
        InputError: it is something else, or damaged.
    """
    with apart():
        count = len(_parsed(program).subgraphs[0].operators)
        return tuple(_sliced(program, length, every=False) for length in range(1, count + 1))


def divisible(program: bytes) -> bool:
    """Whether a program has one subgraph, whose operations all make a tensor: it keeps no state."""
    model = _parsed(program)
    return len(model.subgraphs) == 1 and all(len(op.outputs) for op in model.subgraphs[0].operators)


def exposed(program: bytes) -> Slice:
    """The whole program, returning the output of every operation, in running order.

    Args:
        program: a .tflite of one input and one subgraph.

    Raises:
        InputError: it is something else, or damaged.
    """
    with apart():
        return _sliced(program, None, every=True)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Says in one line that a file cannot be taken apart: the generated reader follows every offset."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, struct.error) as error:
        raise InputError(f"not a TFLite model that can be taken apart: {error}") from error


def _parsed(program: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(program, 0)


def _sliced(program: bytes, length: int | None, *, every: bool) -> Slice:
    from ai_edge_litert import schema_py_generated as schema

    from paredown.pipeline.lower.litert.program import aligned_builder

    model = _parsed(program)
    graph = model.subgraphs[0]
    graph.operators = graph.operators[:length]
    made = [int(t) for op in graph.operators for t in op.outputs]
    read = {int(t) for op in graph.operators for t in op.inputs}
    final = {int(t) for t in graph.outputs}
    wanted = made if every else [t for t in made if t not in read or t in final]
    graph.outputs = np.asarray(wanted, np.int32)
    model.signatureDefs = []
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    builder = aligned_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    tensors = [graph.tensors[t] for t in wanted]
    return Slice(
        bytes(builder.Output()),
        tuple(_text(tensor.name) for tensor in tensors),
        tuple(_described(tensor, schema) for tensor in tensors),
        tuple(kinds[codes[op.opcodeIndex]] for op in graph.operators),
    )


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _described(tensor: Any, schema: Any) -> TensorInfo:
    """NHWC turned to NCHW, as runners give it."""
    shape = tuple(int(size) for size in tensor.shape)
    if len(shape) == 4:
        shape = (shape[0], shape[3], shape[1], shape[2])
    codes = (schema.TensorType.INT8, schema.TensorType.UINT8)
    return TensorInfo(shape, "int8" if tensor.type in codes else "float32")


def first_difference(names: Iterable[str], ours: Iterable[Any], theirs: Iterable[Any]) -> str:
    """The first tensor in which two runs of an exposed program differ, and how; empty where none does."""
    from paredown.pipeline.lower.parity import difference

    for name, a, b in zip(names, ours, theirs, strict=True):
        apart = difference(a, b)
        if apart.differing:
            return f"{name}: {apart.differing} of {apart.values} codes, by up to {apart.max_lsb} LSB"
    return ""
