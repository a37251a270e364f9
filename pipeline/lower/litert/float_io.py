"""An int8 .tflite made to take and give float32: LiteRT.js takes no int8 inputs or outputs."""

from __future__ import annotations

from typing import Any

from paredown.pipeline.lower.litert.program import aligned_builder
from paredown.pipeline.lower.litert.slices import apart


def with_float_io(data: bytes) -> bytes:
    """Puts a quantization before the program and a dequantization after it.

    The codes in between stay what they were: `litert.lower_integer(graph, io="float32")` makes the same from
    the integer graph.

    Args:
        data: a program whose inputs and outputs are int8 with one scale each.

    Raises:
        InputError: it is something else, or damaged.
    """
    with apart():
        return _with_float_io(data)


def _with_float_io(data: bytes) -> bytes:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    (graph,) = model.subgraphs
    real = {int(index): _real(schema, graph, int(index)) for index in (*graph.inputs, *graph.outputs)}
    first = [_operator(schema, model, "QUANTIZE", 1, real[int(index)], index) for index in graph.inputs]
    last = [_operator(schema, model, "DEQUANTIZE", 2, index, real[int(index)]) for index in graph.outputs]
    graph.operators = [*first, *graph.operators, *last]
    graph.inputs = [real[int(index)] for index in graph.inputs]
    graph.outputs = [real[int(index)] for index in graph.outputs]
    for signature in model.signatureDefs or ():  # programs of other tools may have none
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = real[entry.tensorIndex]
    builder = aligned_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _real(schema: Any, graph: Any, index: int) -> int:
    """A float32 tensor of the shape of another; its index."""
    codes, tensor = graph.tensors[index], schema.TensorT()
    tensor.name, tensor.shape, tensor.type = codes.name + b"/real", codes.shape, schema.TensorType.FLOAT32
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(schema: Any, model: Any, kind: str, version: int, source: int, target: int) -> Any:
    """An operation of one input and one output."""
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
    code.version = version
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = [source], [target]
    return operator
