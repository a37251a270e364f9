"""What an experiment refuses, its points, and the size of a chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sensitivity_case import Case

from paredown.pipeline.compress.sensitivity.experiment import choose_chunk
from paredown.targets.errors import InputError, UsageError


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(4)


def test_bad_input_is_named(case):
    asked = case.experiment()
    with pytest.raises(UsageError, match="no images"):
        replace(asked, inputs=case.x[:0])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"widths": {"stem": [0]}}, "stem: no width of 0 units"),
        ({"widths": {"stem": [9]}}, "stem: no width of 9 units"),
        ({"widths": {"unknown": [1]}}, "unknown"),
        ({"widths": {"first": [1]}, "ranking": {"first": [0, 1]}}, "first.*ranking"),
        ({"widths": {"head": [1]}}, "head: cannot be cut"),
    ]
    for options, line in refused:
        with pytest.raises(InputError, match=line):
            replace(asked, **options)


def test_its_points_fall_group_by_group_without_the_full_widths(case):
    asked = case.experiment(widths={"last": [4, 16], "stem": [2, 8, 4, 4]})
    assert [(group.name, width) for group, width in asked.points()] == [("stem", 4), ("stem", 2), ("last", 4)]
    assert asked.kept("stem", 2) == sorted(case.ranks["stem"][:2])


def test_a_chunk_fits_the_memory(case):
    size = 4 * sum(int(np.prod(node.shape)) for node in case.graph)
    assert choose_chunk(case.graph, 10**6, 20 * size) == 10
    assert choose_chunk(case.graph, 10**6, 1) == 1
    assert choose_chunk(case.graph, 1) == 1
    assert choose_chunk(case.graph, 130) == 44  # three even chunks, not two and a rest
    assert case.experiment(chunk=3).images_at_a_time == 3
