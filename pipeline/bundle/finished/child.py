"""A finished program at work: `python -m paredown.pipeline.bundle.finished.child FILE RUNTIME FOLDER WAYS`.

In a process of its own, because a damaged program can end the process that loads it. Without
FOLDER/inputs.npy it says what the program takes and gives. With it the program runs on each input, one after
the other, with the runtime's usual kernels and, in a fresh start, with its exact ones; the outputs become
arrays in FOLDER.
Prints one JSON document.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paredown.targets.errors import InputError, ParedownError

INPUTS = "inputs.npy"
USUAL, EXACT = "usual", "exact"
ADDRESSES = 16 << 30  # bytes of memory that a program may ask for, torch's own included
#: Scalar types of torch that programs take and give.
SCALARS = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
#: Operations of TFLite that keep a state from one call to the next.
STATES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF")
SOFTMAX = "SOFTMAX"
#: Operations that leave what is computed, and change where it lies or its type.
MOVES = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "QUANTIZE")
_CUSTOM = re.compile(r"unresolved custom op: (\S+?)\.?(?:\s|$)")


def main(path: Path, runtime: str, folder: Path, ways: Sequence[str]) -> dict[str, Any]:
    """Everything but printing."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read this file: {error.strerror}", where=path) from error
    if not (folder / INPUTS).exists():
        return LOOKS[runtime](data, path)
    inputs = np.load(folder / INPUTS)
    load = LOADS[runtime]
    counts = {}
    for way in ways:
        runner = load(data, path, way == EXACT)
        if runner is None:  # the runtime has one way alone
            continue
        found = [runner(inputs[index : index + 1]) for index in range(len(inputs))]
        counts[way] = len(found[0])
        for place in range(len(found[0])):
            np.save(folder / f"{way}{place}.npy", np.stack([one[place] for one in found]))
    return {"outputs": counts}


def _litert(data: bytes, path: Path) -> dict[str, Any]:
    from paredown.targets.runners.litert import Runner

    try:
        interpreter = Runner(data, 1, path).interpreter
    except InputError as error:
        if custom := _CUSTOM.search(str(error.__cause__)):
            what = f"needs the custom operator {custom[1]}, which no device of ours has"
            raise InputError(what, where=path) from error
        raise
    operations: dict[str, int] = {}
    makers: dict[int, tuple[str, list[int]]] = {}  # tensor -> what makes it, of what
    for each in interpreter._get_ops_details():
        if each["op_name"] != "DELEGATE":
            operations[each["op_name"]] = operations.get(each["op_name"], 0) + 1
            makers |= {int(out): (each["op_name"], [*map(int, each["inputs"])]) for out in each["outputs"]}
    outputs = interpreter.get_output_details()
    return {
        "inputs": [_detail(each) for each in interpreter.get_input_details()],
        "outputs": [_detail(each) for each in outputs],
        "operations": operations, "states": [name for name in STATES if name in operations],
        "softmax": all(_softmax(int(each["index"]), makers) for each in outputs),
    }  # fmt: skip


def _softmax(tensor: int, makers: Mapping[int, tuple[str, list[int]]]) -> bool:
    """Whether a softmax makes this tensor, its numbers at most moved or shifted since."""
    name, inputs = makers.get(tensor, ("", []))
    return name == SOFTMAX or (name in MOVES and _softmax(inputs[0], makers))


def _detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor as TFLite's interpreter describes it."""
    scales = [float(scale) for scale in detail["quantization_parameters"]["scales"]]
    zeros = [int(zero) for zero in detail["quantization_parameters"]["zero_points"]]
    open_axes = [axis for axis, size in enumerate(detail["shape_signature"]) if int(size) < 0]
    return {
        "name": str(detail["name"]), "dtype": np.dtype(detail["dtype"]).name,
        "shape": [int(size) for size in detail["shape"]], "open": open_axes,
        "scales": scales, "zero_points": zeros,
    }  # fmt: skip


def _executorch(data: bytes, path: Path) -> dict[str, Any]:
    from paredown.pipeline.lower.executorch.program import ProgramRunner

    meta = ProgramRunner(data, 1, path)._module.method_meta("forward")

    def told(info: Any, name: str) -> dict[str, Any]:
        scalar = int(info.dtype())
        dtype = SCALARS[scalar] if scalar < len(SCALARS) else f"torch's type {scalar}"
        return {"name": name, "dtype": dtype, "shape": [int(size) for size in info.sizes()], "open": [],
                "scales": [], "zero_points": []}  # fmt: skip

    return {
        "inputs": [told(meta.input_tensor_meta(i), f"input{i}") for i in range(meta.num_inputs())],
        "outputs": [told(meta.output_tensor_meta(i), f"output{i}") for i in range(meta.num_outputs())],
        "operations": {}, "states": [],
    }  # fmt: skip


def _onnxruntime(data: bytes, path: Path) -> dict[str, Any]:
    from paredown.targets.runners.onnxruntime.runner import Runner

    session = Runner(data, 1, path).session

    def told(described: Any) -> dict[str, Any]:
        dtype = described.type.removeprefix("tensor(").removesuffix(")")
        sizes = [size if isinstance(size, int) else -1 for size in described.shape]
        return {"name": described.name, "dtype": {"float": "float32", "double": "float64"}.get(dtype, dtype),
                "shape": sizes, "open": [axis for axis, size in enumerate(sizes) if size < 1],
                "scales": [], "zero_points": []}  # fmt: skip

    return {
        "inputs": [told(each) for each in session.get_inputs()],
        "outputs": [told(each) for each in session.get_outputs()], "operations": {}, "states": [],
    }  # fmt: skip


def _load_litert(data: bytes, path: Path, exact: bool) -> Callable[..., Any] | None:
    from paredown.targets.runners.litert import Runner

    try:
        return Runner(data, 1, path, reference=exact)
    except InputError:
        if not exact:
            raise
        return None  # some operations have no reference kernel


def _load_executorch(data: bytes, path: Path, exact: bool) -> Callable[..., Any] | None:
    from paredown.pipeline.lower.executorch.program import ProgramRunner

    return None if exact else ProgramRunner(data, 1, path)


def _load_onnxruntime(data: bytes, path: Path, exact: bool) -> Callable[..., Any] | None:
    from paredown.targets.runners.onnxruntime.runner import Runner

    return Runner(data, 1, path, precise=exact)


def _load_openvino(data: bytes, path: Path, exact: bool) -> Callable[..., Any] | None:
    from paredown.targets.runners.onnxruntime.openvino import Runner

    return None if exact else Runner(data, 1, path)


LOOKS = {"litert": _litert, "executorch": _executorch, "onnxruntime": _onnxruntime}
LOADS = {
    "litert": _load_litert, "executorch": _load_executorch, "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
}  # fmt: skip


if __name__ == "__main__":
    try:
        print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])))
    except ParedownError as problem:
        print(json.dumps({"error": problem.what, "line": str(problem)}))
        raise SystemExit(problem.exit_code) from None
