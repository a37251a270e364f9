"""ExecuTorch: one delegate call and nothing beside it, equal bytes for equal graphs, clear errors."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lowering_networks import Passthrough, Residual, inputs_for, quantized, randomized

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.executorch.program import QdqModule
from paredown.targets.errors import InputError

HERE = Path(__file__).parents[3] / "helpers"
PROGRAM = (
    "import hashlib, lowering_networks as n\n"
    "from paredown.pipeline.lower.executorch import program as executorch; "
    "from paredown.pipeline.lower.litert import program as litert; "
    "g = n.quantized(n.randomized(n.Residual())); "
    "print(*(hashlib.sha256(m.lower_integer(g).data).hexdigest() for m in (executorch, litert)))"
)


@pytest.fixture(scope="module")
def graph():
    return quantized(randomized(Residual()))


@pytest.fixture(scope="module")
def lowered(graph):
    return executorch.lower_integer(graph)


def test_one_subgraph_and_nothing_beside_it(lowered):
    assert (lowered.subgraphs, lowered.undelegated) == (1, ())


def test_integers_come_in_and_go_out(graph, lowered):
    runner = executorch.load(lowered.data)
    outputs = runner(inputs_for(graph, 1)[:1])
    assert [o.dtype for o in outputs] == [np.int8, np.int8]
    assert [o.shape for o in outputs] == [graph[name].shape for name in graph.outputs]
    kept = outputs[0].copy()
    runner(inputs_for(graph, 2)[1:2])
    assert np.array_equal(outputs[0], kept)  # not a view of the runtime's memory


def test_bytes_are_the_same_in_this_process_and_a_new_one(graph, lowered):
    from paredown.pipeline.lower.litert import program as litert

    environment = {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PYTHONHASHSEED": "7", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    ours = [lowered.data, litert.lower_integer(graph).data]
    assert done.stdout.split() == [hashlib.sha256(data).hexdigest() for data in ours]


def test_bytes_are_the_same_twice(graph, lowered):
    assert executorch.lower_integer(quantized(randomized(Residual()))).data == lowered.data


def test_the_float_program_equals_torch():
    network = randomized(Passthrough())
    lowered = executorch.lower_float(trace(network, (1, 3, 16, 16)))
    assert lowered.subgraphs >= 1
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = network(x)
    found = executorch.load(lowered.data)(x.numpy())
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-4)


def test_the_module_in_eager_torch_is_close_to_the_reference(graph):
    """Float arithmetic between q/dq nodes: one code at most for each operation, a few after all of them."""
    x = inputs_for(graph, 1)[:1]
    with torch.no_grad():
        found = QdqModule(graph)(torch.from_numpy(x))
    for a, b in zip(reference.predict(graph, x), found, strict=True):
        assert np.abs(a.astype(int) - b.numpy().astype(int)).max() <= 2


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9])
def test_a_truncated_program_is_an_input_error(lowered, keep):
    data = lowered.data[: int(len(lowered.data) * keep)]
    with pytest.raises(InputError, match=r"model\.pte: not an ExecuTorch program"):
        executorch.load(data, 1, "model.pte")


def test_other_bytes_are_an_input_error():
    for data in (b"\0" * 1000, b"hello", bytes(range(256)) * 8):
        with pytest.raises(InputError):
            executorch.load(data)


def test_lowering_leaves_logging_and_standard_error_alone(capfd, graph):
    import logging
    import os

    executorch.load(executorch.lower_integer(graph.upto([graph.nodes[1].name])).data)
    os.write(2, b"words")
    assert capfd.readouterr().err == "words"
    assert logging.root.manager.disable == logging.NOTSET
