"""Operations kept by name: their arguments as text and back, and as smaller operations."""

from __future__ import annotations

import pytest
import torch

from paredown.pipeline.graph.operations.activation import floats


def described(function, *shapes, result=-1):
    class Net(torch.nn.Module):
        def forward(self, *x):
            return function(*x)

    exported = torch.export.export(Net(), tuple(torch.zeros(shape) for shape in shapes))
    node = next(n for n in exported.graph.nodes if n.op == "call_function")
    return floats.described(node, lambda each: False, result)[0]


def test_arguments_come_back_from_text():
    attrs = described(lambda x: torch.cumsum(x, 1, dtype=torch.float32), (1, 3, 4))
    x = torch.randn(2, 3, 4)
    assert torch.equal(floats.run(attrs, (), [x]), x.cumsum(1))
    assert described(lambda x: x.exp_(), (1, 3))["op"] == "aten::exp.default"


@pytest.mark.parametrize(
    ("function", "single"),
    [(torch.nn.functional.logsigmoid, True), (torch.exp, True), (lambda x: x.cumsum(1), False)],
)
def test_what_works_on_single_values_is_told(function, single):
    attrs = described(function, (1, 3, 4))
    assert floats.single_values(attrs, (), [(1, 3, 4)]) == single


def test_equal_values_are_placed_in_their_order():
    attrs = described(lambda x: x.topk(3, 1), (1, 6), result=1)
    assert floats.run(attrs, (), [torch.tensor([[1.0, 2, 2, 1, 2, 0]])]).tolist() == [[1, 2, 4]]
