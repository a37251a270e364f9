"""network/own.py: what a network says of itself against what it returns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paredown.apps.detector.network.own import checked_heads, is_own
from paredown.apps.detector.network.v8 import V8Like
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

SHAPE = (1, 3, 32, 64)


class Plain(nn.Module):
    """One level, whose output is made by a function."""

    def __init__(self, made, said: object) -> None:
        super().__init__()
        self.norm, self.made, self.decoding = nn.BatchNorm2d(3), made, said

    def forward(self, x):
        return self.made(self.norm(x))


V8 = {"kind": "v8", "strides": [16], "bins": 1}


def test_outputs_are_named_by_part_or_by_level() -> None:
    network = V8Like(2, widths=(4, 8, 8, 8), depths=(1, 1, 1), levels=2, bins=3)
    heads, names = checked_heads(network, SHAPE, 2, "nets:make")
    assert names == ("box1", "cls1", "box2", "cls2") and heads.input == (64, 32)
    whole = Plain(lambda x: torch.zeros(1, 6, 2, 4), V8)
    assert checked_heads(whole, SHAPE, 2, "nets:make")[1] == ("level1",)


def test_a_network_is_left_as_it_was() -> None:
    network = Plain(lambda x: torch.zeros(1, 6, 2, 4), V8).train()
    before = network.norm.running_var.clone()
    checked_heads(network, SHAPE, 2, "nets:make")
    assert network.training and torch.equal(network.norm.running_var, before)


def test_who_says_how_it_is_decoded() -> None:
    assert is_own(Plain(None, {})) and not is_own(Plain(None, 5))
    assert not is_own(nn.Conv2d(1, 1, 1)) and not is_own({"decoding": {}})


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda x: {"a": x}, "nets:make: returns a dict, not a tuple of tensors"),
        (lambda x: (x, 5), "nets:make: returns a tuple, not a tuple of tensors"),
        (lambda x: x @ x, r"nets:make: does not take an input of \(1, 3, 32, 64\): RuntimeError"),
        (
            lambda x: torch.zeros(1, 7, 2, 4),
            r"output 1 \(output of level 1\) is \(1, 7, 2, 4\), v8 heads of 2 classes expect \(1, 6, 2, 4\)",
        ),
        (
            lambda x: (torch.zeros(1, 4, 4, 2), torch.zeros(1, 2, 2, 4)),
            r"output 1 \(box of level 1\) is \(1, 4, 4, 2\), v8 heads of 2 classes expect \(1, 4, 2, 4\)",
        ),
        (lambda x: (x, x, x), r"3 outputs; v8 heads of 1 levels have 2 \(box, cls of each level\) or 1"),
    ],
)
def test_what_does_not_fit_is_one_line(made, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        checked_heads(Plain(made, V8), SHAPE, 2, "nets:make")
    assert "\n" not in str(raised.value)
