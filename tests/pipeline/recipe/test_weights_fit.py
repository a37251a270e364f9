"""Which part of a checkpoint is the network's, and what is said of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.pipeline.recipe.weights_fit import DICTS, fit

pytestmark = pytest.mark.unit


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1)
    return made.eval()


def state(seed: int = 0) -> dict[str, Tensor]:
    return dict(network(seed).state_dict())


def prefixed(prefix: str, held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in held.items()}


def found(tree: dict, own: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], str]:
    own = own or state()
    needed = {name for name in own if "num_batches" not in name}
    part, notes = fit(tree, own, needed)
    return part.state, "; ".join(notes)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


wraps = st.lists(
    st.sampled_from(["state_dict", "model", "net", "weights", "model_state_dict", "a.b"]), max_size=3
)
prefixes = st.lists(
    st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "backbone.body.", "0."]), max_size=3
)


@settings(max_examples=80, deadline=None)
@given(wraps, prefixes, st.booleans())
def test_any_wrapping_and_any_prefix_come_off(keys: list[str], before: list[str], noise: bool):
    good = state(3)
    tree: dict = prefixed("".join(before), good)
    for key in keys:
        tree = (
            {"epoch": 3, key: tree, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}}
            if noise
            else {key: tree}
        )
    got, said = found(tree)
    assert same(got, good)
    assert ("epoch" in said) == bool(noise and keys)
    for key in keys:
        assert key in said
    for prefix in before:
        assert prefix in said
    assert bool(said) == bool(keys or before)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_wrapper_inside_the_names_comes_off_too(data: st.DataObject):
    good, tree = state(), {}
    inner = data.draw(st.sampled_from(["module.", "_orig_mod."]))
    for name, value in good.items():
        tree[name.replace("3.", f"3.{inner}") if name.startswith("3.") else name] = value
    got, said = found(tree)
    assert same(got, good) and inner in said


def test_a_network_that_has_a_part_called_module_keeps_its_names():
    own = prefixed("module.", state())
    got, said = found({"state_dict": prefixed("module.module.", state(2))}, own)
    assert same(got, prefixed("module.", state(2))) and "`module.`" in said


def test_names_without_the_prefix_that_all_of_the_networks_have():
    own = prefixed("body.net.", state())
    for tree in (state(2), prefixed("net.", state(2)), {"model": prefixed("other.", state(2))}):
        got, said = found(tree, own)
        assert same(got, prefixed("body.net.", state(2)))
        assert "put before the names" in said


@pytest.mark.parametrize("ema", ["ema", "model_ema", "ema_state_dict", "state_dict_ema", "shadow",
                                 "ema_model", "swa_model", "averaged_model"])  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_plain_weights_come_before_averaged_ones_and_both_are_said(ema: str, first: bool):
    plain, averaged = {"net": state(1)}, {ema: prefixed("module.", state(2))}
    got, said = found({**averaged, **plain} if first else {**plain, **averaged})
    assert same(got, state(1))
    assert "`net`" in said and f"`{ema}` (EMA)" in said and "plain weights come before averaged ones" in said
    got, said = found(averaged)
    assert same(got, state(2))
    assert said.startswith("averaged weights (EMA)")


def test_equal_averaged_weights_are_no_choice():
    _, said = found({"model": state(1), "model_ema": state(1)})
    assert "would fit" not in said


def test_the_counters_of_averages_and_of_thop_are_left_out():
    counters = {
        "n_averaged": torch.tensor(3),
        "total_ops": torch.zeros(1),
        "3.0.total_params": torch.zeros(1),
    }
    for tree in (
        {**state(1), **counters},
        {**prefixed("module.", state(1)), **prefixed("module.", counters)},
    ):
        got, said = found(tree)
        assert same(got, state(1))
        assert "total_ops" in said and "3.0.total_params" in said


def test_two_networks_in_one_file():
    tree = {"teacher": state(1), "student": state(2)}
    got, said = found(tree)
    assert same(got, state(1))
    assert "`student` would fit too, with other values" in said and "the first is taken" in said
    tree = {**prefixed("student.", state(1)), **prefixed("teacher.", state(2)), "loss.weight": torch.zeros(1)}
    got, said = found({"state_dict": tree})
    assert "would fit too" in said and "loss.weight" in said
    assert same(got, state(1)) or same(got, state(2))


def test_a_state_dict_of_each_part():
    own = {**prefixed("body.", state()), **prefixed("head.", state())}
    tree = {"body": state(1), "head": state(2), "optimizer": {"lr": 0.1}}
    got, said = found(tree, own)
    assert same(got, {**prefixed("body.", state(1)), **prefixed("head.", state(2))})


def test_what_lacks_something_comes_back_as_it_is():
    good = state()
    del good["3.0.bias"]
    got, said = found({"model": prefixed("module.", good)})
    assert set(got) == set(good) and said == ""
    got, _ = found({"state_dict": {1: torch.zeros(2)}, 2: 3})
    assert got == {"2": 3}


def test_a_file_of_very_many_dicts_ends():
    tree: dict = {str(i): {str(j): {} for j in range(60)} for i in range(DICTS // 20)}
    tree["model"] = state(1)
    got, _ = found(tree)
    assert same(got, state(1))
    deep: dict = state(1)
    for _ in range(300):
        deep = {"model": deep}
    assert found(deep)[0] == {}
