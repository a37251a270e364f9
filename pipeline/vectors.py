"""A bundle's test vectors: inputs that any device makes from a seed, and the outputs that it must get."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from targets.vectors import test_inputs

if TYPE_CHECKING:
    from pipeline.lower.integer import IntegerGraph

COUNT, SEED = 4, 20181


def expected(graph: IntegerGraph) -> tuple[bytes, bytes]:
    """What the integer graph gives for the test inputs.

    Returns:
        A JSON description (input shape, seed, output shapes) and all output codes, one after the other.
    """
    from pipeline.lower import reference

    outputs = reference.predict(graph, test_inputs(graph.input.shape, COUNT, SEED))
    facts = {
        "count": COUNT, "seed": SEED, "input": list(graph.input.shape),
        "outputs": [list(graph[name].shape) for name in graph.outputs],
    }  # fmt: skip
    text = json.dumps(facts, sort_keys=True, indent=1) + "\n"
    return text.encode(), b"".join(np.ascontiguousarray(o).tobytes() for o in outputs)


def unpacked(facts: Mapping[str, Any], data: bytes) -> tuple[NDArray[np.int8], list[NDArray[np.int8]]]:
    """The test inputs and the outputs expected for them, from what `expected` wrote."""
    count = facts["count"]
    inputs = test_inputs(tuple(facts["input"]), count, facts["seed"])
    outputs, offset = [], 0
    for item in facts["outputs"]:
        one = (count, *item[1:])
        size = int(np.prod(one))
        outputs.append(np.frombuffer(data, np.int8, size, offset).reshape(one))
        offset += size
    return inputs, outputs
