"""What all tasks of a user's own network share: how a network says its size, and what it returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.apps.own.task import first_output, input_size, shapes_of, write_png

pytestmark = pytest.mark.unit


class Sized:
    def __init__(self, size: object) -> None:
        self.input_size = size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (32, {"width": 32, "height": 32}),
        ((20, 30), {"width": 30, "height": 20}),
        ([3, 20, 30], {"width": 30, "height": 20}),
        ((20,), {}),
        ((20.0, 30.0), {}),
        ("32", {}),
    ],
)
def test_a_network_says_its_size(size, expected):
    assert input_size(Sized(size)) == expected and input_size(object()) == {}


def test_outputs_are_a_tensor_or_some():
    one, two = torch.zeros(1, 3), torch.zeros(1, 2, 4)
    assert first_output(one) is one and first_output((two, one)) is two and first_output([one]) is one
    assert shapes_of(one) == ((1, 3),) and shapes_of([one, two]) == ((1, 3), (1, 2, 4))
    assert shapes_of({"a": one}) == () and shapes_of(None) == () and shapes_of((one, None)) == ()


def test_a_picture_is_written(tmp_path):
    write_png(tmp_path / "x.png", np.zeros((2, 3, 3), np.uint8))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
