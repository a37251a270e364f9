"""Weights into a network: the values that arrive, and the files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paredown.pipeline.recipe.weights import load_checkpoint
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


def loaded(path: Path, state: object) -> tuple[nn.Module, str]:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    net = network(9)
    return net, "".join(load_checkpoint(path, net, "a net"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_other_precisions_are_converted_and_it_is_said(tmp_path: Path, dtype: torch.dtype, suffix: str):
    state = {name: v.to(dtype) if v.is_floating_point() else v for name, v in network().state_dict().items()}
    net, said = loaded(tmp_path / f"x{suffix}", {f"module.{name}": value for name, value in state.items()})
    assert said.startswith(f"x{suffix}: ") and f"{str(dtype)[6:]} converted to float32" in said
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype))
        assert value.dtype in (torch.float32, torch.int64)


def test_tensors_that_require_grad_and_arrays_load_like_any_other(tmp_path: Path):
    wanted = network().state_dict()
    held = {
        "vars": network().state_dict(keep_vars=True),
        "arrays": {name: value.numpy() for name, value in wanted.items()},
        "parameters": {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in wanted.items()},
    }
    for name, state in held.items():
        net, said = loaded(tmp_path / f"{name}.pt", state)
        assert said == ""
        assert all(torch.equal(value, wanted[key]) for key, value in net.state_dict().items())
        assert all(parameter.requires_grad for parameter in net.parameters())


def test_what_is_taken_is_said_in_one_line(tmp_path: Path):
    state = network().state_dict()
    doubled = {f"module.{name}": value * 2 for name, value in state.items()}
    tree = {"epoch": 3, "model": state, "model_ema": {**doubled, "n_averaged": torch.tensor(2)}}
    net, said = loaded(tmp_path / "x.pt", tree)
    assert torch.equal(net[0].weight, state["0.weight"])
    assert said == (
        "x.pt: weights read from `model`; `model_ema` (EMA) would fit too, with other values: not taken, "
        "since plain weights come before averaged ones; save them to a file of their own to use them; "
        "not read: epoch"
    )


def test_tensors_that_hold_no_plain_numbers(tmp_path: Path):
    good = network().state_dict()
    one = good["0.bias"]
    for message, value in {
        "complex64, not floating point": one.to(torch.complex64),
        "quantized": torch.quantize_per_tensor(one, 0.1, 0, torch.qint8),
        "sparse": one.to_sparse(),
        "int64, not floating": one.long(),
        "is str, not (4,)": "words",
        "4 values that are NaN or infinite": one.double() * 0 + 1e200,
    }.items():
        with pytest.raises(InputError) as caught:
            loaded(tmp_path / "x.pt", {**good, "0.bias": value})
        assert message in str(caught.value) and "0.bias" in str(caught.value)
    with pytest.raises(InputError, match=r"num_batches_tracked is torch\.float32"):
        loaded(tmp_path / "x.pt", {**good, "1.num_batches_tracked": torch.tensor(0.5)})
    assert np.isfinite(network()[0].bias.detach().numpy()).all()
