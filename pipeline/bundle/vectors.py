"""A bundle's test vectors: inputs that any device makes from a seed, and the outputs that it must get."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.runners.vectors import test_inputs

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.lower.integer import Affine, IntegerGraph

COUNT, SEED = 4, 20181


def expected(graph: IntegerGraph) -> tuple[bytes, bytes]:
    """What the integer graph gives for the test inputs.

    Returns:
        A JSON description (input shape, seed, output shapes) and all output codes, one after the other.
    """
    from paredown.pipeline.lower import reference

    shape = tuple(graph.input.shape)
    outputs = reference.predict(graph, test_inputs(shape, COUNT, SEED))
    return _stored(shape, [graph[name].shape for name in graph.outputs], outputs, {})


def expected_floats(graph: Graph, source: Affine) -> tuple[bytes, bytes]:
    """What a float network gives for the test inputs, turned to real numbers.

    Args:
        graph: the network.
        source: scale and zero point that make real numbers of the inputs' codes.

    Returns:
        As `expected`, the outputs as float32.
    """
    import torch

    shape = tuple(graph.nodes[0].shape)
    values = graph.run(torch.from_numpy(source.dequantize(test_inputs(shape, COUNT, SEED))))
    outputs = [values[name].numpy() for name in graph.outputs]
    facts = {"dtype": "float32", "scale": source.scale, "zero_point": source.zero_point}
    return _stored(shape, [(1, *output.shape[1:]) for output in outputs], outputs, facts)


def of_program(
    inputs: NDArray[np.int8],
    outputs: Sequence[NDArray[Any]],
    exact: Sequence[NDArray[Any]],
    seed: int | None,
    source: tuple[float, int] | None,
) -> tuple[bytes, bytes, bytes]:
    """What a finished program gave for some inputs.

    Args:
        inputs: codes, (n, ...).
        outputs: (n, ...) each, with the runtime's usual kernels.
        exact: with its reference kernels, which a device may have instead.
        seed: makes the inputs again; None = they are real ones, and are stored.
        source: of a float32 program, scale and zero point that make real numbers of the codes.

    Returns:
        As `expected`, and the codes of inputs that no seed makes.
    """
    shape = (1, *inputs.shape[1:])
    facts: dict[str, Any] = {"seed": seed}
    if source is not None:
        facts |= {"dtype": "float32", "scale": source[0], "zero_point": source[1]}
    elif digest(exact) != digest(outputs):
        facts["also"] = digest(exact)
    text, data = _stored(shape, [(1, *each.shape[1:]) for each in outputs], outputs, facts)
    return text, data, b"" if seed is not None else np.ascontiguousarray(inputs).tobytes()


def digest(outputs: Sequence[NDArray[Any]]) -> str:
    """Sha256, in hex, of all outputs, each (n, ...), one behind the other as they are stored."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in outputs)).hexdigest()


def _stored(
    shape: tuple[int, ...],
    outputs: Sequence[tuple[int, ...]],
    values: Sequence[NDArray[Any]],
    more: Mapping[str, Any],
) -> tuple[bytes, bytes]:
    facts = {
        "count": len(values[0]), "seed": SEED,
        "input": list(shape), "outputs": [list(each) for each in outputs],
        **more,
    }  # fmt: skip
    text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
    return text.encode(), b"".join(np.ascontiguousarray(value).tobytes() for value in values)


def unpacked(
    facts: Mapping[str, Any], data: bytes, real: bytes = b""
) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """The test inputs and the outputs expected for them, from what the functions above wrote."""
    count, dtype = facts["count"], np.dtype(facts.get("dtype", "int8"))
    inputs: NDArray[Any]
    if facts["seed"] is None:
        inputs = np.frombuffer(real, np.int8).reshape(count, *facts["input"][1:])
    else:
        inputs = test_inputs(tuple(facts["input"]), count, facts["seed"])
    if dtype != np.int8:
        inputs = (inputs.astype(np.float32) - facts["zero_point"]) * np.float32(facts["scale"])
    outputs, offset = [], 0
    for item in facts["outputs"]:
        one = (count, *item[1:])
        size = int(np.prod(one))
        outputs.append(np.frombuffer(data, dtype, size, offset * dtype.itemsize).reshape(one))
        offset += size
    return inputs, outputs
