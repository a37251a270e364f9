"""TFLite's int8 functions of one value: 256 codes each, known for good once its kernel ran on them.

Kernels compute them in ways of their own, in fixed point or in float32. Where a kind of ours gives the very
table, it is the node; else the node has the table itself, which programs look up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.operation import QMAX, QMIN
from paredown.pipeline.lower.integer import IntegerNode
from paredown.pipeline.lower.litert.program import aligned_builder
from paredown.pipeline.lower.litert.reader.reading import At
from paredown.targets.errors import InputError
from paredown.targets.runners.litert import Runner

#: TFLite's name -> the kind of ours that may have its table; empty where none has.
FUNCTIONS: Mapping[str, str] = {
    "LOGISTIC": "sigmoid", "TANH": "tanh", "ELU": "elu", "HARD_SWISH": "", "GELU": "", "ABS": "", "EXP": "",
    "LOG": "", "RSQRT": "", "SQRT": "", "SQUARE": "", "NEG": "",
}  # fmt: skip
#: What a node says of an operation that is looked up.
LOOKED_UP = "is looked up in the table that its kernel makes"


def function(at: At) -> IntegerNode:
    """An operation of one value on each value."""
    feed, kind = at.feed(), FUNCTIONS[at.op.kind]
    table = kernel_table(at)
    every = np.arange(QMIN, QMAX + 1).astype(np.int8).reshape(1, 256)
    if kind:
        node = IntegerNode(at.name, kind, (feed.name,), feed.shape, at.out)
        if np.array_equal(operation(kind).codes(node, [feed], [every])[0], table):
            return at.add(kind, [feed], feed.shape)
    attrs = {
        "op": at.op.kind, "given": "[[], {}]", "takes": (), "held": (), "makes": "float32", "result": -1,
        "single": True, "nan": False, "line": "", "why": LOOKED_UP,
    }  # fmt: skip
    return at.add("function", [feed], feed.shape, attrs=attrs, constants=(table,))


def kernel_table(at: At) -> NDArray[np.int8]:
    """The codes that LiteRT's kernel makes of all codes, in their order.

    Raises:
        InputError: it has no kernel for these types and scales.
    """
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    code, op = schema.OperatorCodeT(), schema.OperatorT()
    number = getattr(schema.BuiltinOperator, at.op.kind)
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), at.op.version
    op.opcodeIndex, op.inputs, op.outputs = 0, np.asarray([0], np.int32), np.asarray([1], np.int32)
    if at.op.options is not None:
        op.builtinOptions = at.op.options
        op.builtinOptionsType = getattr(schema.BuiltinOptions, type(at.op.options).__name__[:-1])
    graph.tensors = [_tensor(schema, affine) for affine in (at.feed().out, at.out)]
    graph.operators, graph.inputs, graph.outputs = [op], op.inputs, op.outputs
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT()]
    builder = aligned_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    every = np.arange(QMIN, QMAX + 1).astype(np.int8).reshape(1, 1, 16, 16)
    try:
        (made,) = Runner(bytes(builder.Output()))(every)
    except InputError as error:
        raise InputError("its kernel does not take these types and scales") from error
    return np.ascontiguousarray(made.reshape(256))


def _tensor(schema: Any, affine: Any) -> Any:
    """A tensor of 256 codes."""
    tensor, codes = schema.TensorT(), schema.QuantizationParametersT()
    tensor.name, tensor.buffer = "codes", 0
    tensor.shape, tensor.type = np.asarray([1, 16, 16, 1], np.int32), schema.TensorType.INT8
    codes.scale = np.asarray([affine.scale], np.float32)
    codes.zeroPoint = np.asarray([affine.zero_point], np.int64)
    tensor.quantization = codes
    return tensor
