"""What nodes that are alike hold once, and what they hold each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from paredown.pipeline.graph.alike import ALIKE, distinct, get, put, shared

SAME = {ALIKE: "rnn.state"}
ONE, OTHER = np.arange(6.0).reshape(2, 3), np.ones((2, 3))


def layer(name: str, weight: np.ndarray | None, bias: float = 0.0, **attrs: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, weight=weight, bias=np.full(2, bias), attrs=attrs)


def test_arrays_are_held_once_and_found_by_each():
    arrays: dict[str, np.ndarray] = {}
    for name in ("a", "b", "c"):
        put(arrays, name, SAME, "weight", ONE.copy())
    assert list(arrays) == ["rnn.state:weight"]
    assert all(np.array_equal(get(arrays, name, SAME, "weight"), ONE) for name in ("a", "b", "c"))


def test_what_differs_all_the_same_is_held_each():
    arrays: dict[str, np.ndarray] = {}
    for name, array in (("a", ONE), ("b", OTHER), ("c", ONE)):
        put(arrays, name, SAME, "weight", array)
    assert sorted(arrays) == ["b:weight", "rnn.state:weight"]
    for name, array in (("a", ONE), ("b", OTHER), ("c", ONE)):
        assert np.array_equal(get(arrays, name, SAME, "weight"), array)


def test_others_hold_their_own_under_their_own_names():
    arrays: dict[str, np.ndarray] = {}
    put(arrays, "a", {}, "weight", ONE)
    put(arrays, "b", {}, "weight", ONE)
    put(arrays, "c", SAME, "value", ONE)  # no role that is shared
    assert sorted(arrays) == ["a:weight", "b:weight", "c:value"]
    assert get(arrays, "c", SAME, "weight") is None and get(arrays, "d", {}, "weight") is None


def test_layers_are_distinct_by_what_they_hold():
    nodes = [
        layer("a", ONE, **SAME), layer("b", ONE, **SAME), layer("c", ONE, 1.0, **SAME),
        layer("d", ONE), layer("e", ONE), layer("f", None),
    ]  # fmt: skip
    assert [node.name for node in distinct(nodes)] == ["a", "c", "d", "e"]
    first, second = nodes[:2]
    assert shared(first) == shared(second)
    assert shared(first, np.float32(1)) != shared(second, np.float32(2))  # biases in another unit
