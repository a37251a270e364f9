"""The schemas as the wheel's files have them."""

from __future__ import annotations

import pytest

from paredown.pipeline.lower.executorch.schema import PROGRAM, XNNPACK, schema

pytestmark = pytest.mark.unit


def test_schemas_have_the_numbers_of_the_files():
    program, xnnpack = schema(PROGRAM), schema(XNNPACK)
    assert (program.identifier, xnnpack.identifier) == (b"ET12", b"XN01")
    assert program.tables["EValue"]["val"].slot == 1  # before it is the number of the union's member
    assert program.enums["ScalarType"][1]["CHAR"] == 1
    assert xnnpack.unions["XNodeUnion"]["XNNCos"] == (47, "_XNNNode1x1")
    assert xnnpack.tables["XNNGraph"]["constant_data"].slot == 8  # two deprecated ones are before it
    assert program.number("ScalarType") == "byte" and program.number("Tensor") is None
