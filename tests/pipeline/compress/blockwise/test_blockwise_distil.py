"""Training in codes: it helps, resumes exactly, and stops where it must."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks_networks import LINEARS, Talker, calibration, texts
from torch import Tensor, nn

from paredown.pipeline.compress.blockwise.distil import DistilConfig, Distilled, distil, divergence
from paredown.pipeline.compress.blockwise.ffn_pruning import GatedFfn, thin_ffn
from paredown.pipeline.compress.blockwise.layerwise import put_nearest
from paredown.pipeline.compress.blockwise.modules import held
from paredown.pipeline.compress.grids.block_grid import BlockGrid
from paredown.targets.errors import InputError, UsageError

GRID = BlockGrid(3, 16)
TEXTS = texts(64)
GENTLE = DistilConfig(steps=8, lr=3e-4, scale_lr=3e-5, warmup=2, evaluate_every=4)
CONFIG = DistilConfig(steps=24, lr=3e-3, scale_lr=3e-4, warmup=2, evaluate_every=8, checkpoint_every=5)


def batch(step: int) -> Tensor:
    return torch.cat([TEXTS[(4 * step + i) % 48] for i in range(4)])


def logits(network: nn.Module, tokens: Tensor) -> Tensor:
    return network(tokens)


def student(teacher: nn.Module) -> nn.Module:
    network = copy.deepcopy(teacher)
    put_nearest(network, {"head": GRID, **dict.fromkeys(LINEARS, GRID)}, activation_bits=8)
    return network


@pytest.fixture(scope="session")
def teacher() -> nn.Module:
    return Talker().requires_grad_(False)


def held_out(teacher: nn.Module) -> Any:
    tokens = torch.cat(TEXTS[48:])

    @torch.no_grad()
    def score(network: nn.Module) -> float:
        return -float(divergence(network(tokens), teacher(tokens)))

    return score


def codes(found: Distilled) -> dict[str, tuple[list, list]]:
    return {name: (w.codes.tolist(), w.scales.tolist()) for name, w in found.weights.items()}


def test_divergence_is_torchs() -> None:
    a, b = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).unbind(0)
    oracle = torch.nn.functional.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="batchmean")
    assert float(divergence(a, b)) == pytest.approx(float(oracle), rel=1e-5)


def test_a_short_run_helps_and_the_network_holds_the_best_codes(teacher: nn.Module) -> None:
    network, evaluate = student(teacher), held_out(teacher)
    before = evaluate(network)
    found = distil(network, teacher, batch, logits, CONFIG, evaluate=evaluate)
    assert found.baseline == before and found.best_step in (8, 16, 24)
    assert found.best == max(row["metric"] for row in found.history) > 0.9 * before
    assert evaluate(network) == found.best
    assert all(torch.equal(held(network)[n].weight.codes, w.codes) for n, w in found.weights.items())
    assert network.embed.tensor is network.head.tensor


def test_what_is_not_trained_stays(teacher: nn.Module) -> None:
    network = student(teacher)
    before = copy.deepcopy(network.state_dict())
    config = DistilConfig(steps=2, lr=1e-2, scale_lr=1e-2, warmup=0)
    distil(network, teacher, batch, logits, config, trained=["layers.0.up"])
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("layers.0.up.") for name in changed)


def test_scales_and_floats_alone_help_too_and_the_codes_stay(teacher: nn.Module) -> None:
    network, evaluate = student(teacher), held_out(teacher)
    before = {name: tensor.weight for name, tensor in held(network).items()}
    config = replace(GENTLE, learns="scales", scale_lr=1e-3, float_lr=1e-3)
    found = distil(network, teacher, batch, logits, config, evaluate=evaluate)
    assert found.best == evaluate(network) > found.baseline and found.best_step > 0
    assert all(torch.equal(found.weights[name].codes, weight.codes) for name, weight in before.items())
    changed = [not torch.equal(found.weights[name].scales, weight.scales) for name, weight in before.items()]
    assert all(changed)
    parameters = dict(network.named_parameters())
    assert set(found.floats) == set(parameters) and "layers.0.norm.weight" in found.floats
    assert all(torch.equal(parameters[name], value) for name, value in found.floats.items())
    assert not torch.equal(parameters["layers.0.norm.weight"], teacher.layers[0].norm.weight)


def test_zeros_stay_zero(teacher: nn.Module) -> None:
    network = copy.deepcopy(teacher)
    put_nearest(network, dict.fromkeys(LINEARS, BlockGrid(4, 16, "uniform", 0.5)), activation_bits=8)
    zeros = {name: tensor.weight.codes == 0 for name, tensor in held(network).items()}
    config = replace(GENTLE, keep_zeros=True)
    found = distil(network, teacher, batch, logits, config, evaluate=held_out(teacher))
    assert found.best_step > 0
    for name, weight in found.weights.items():
        assert not weight.codes[zeros[name]].any() and float(zeros[name].float().mean()) >= 0.5


def test_the_weights_to_start_from_are_those_of_the_source(teacher: nn.Module) -> None:
    """A student of other shapes than its teacher: its own network in full precision lends the weights."""
    thinner = copy.deepcopy(teacher)
    ffns = [GatedFfn(*(f"layers.{n}.{part}" for part in ("gate", "up", "down"))) for n in range(2)]
    thin_ffn(thinner, ffns, 0.5, 16, calibration())
    network, evaluate = student(thinner), held_out(teacher)
    found = distil(network, teacher, batch, logits, GENTLE, source=thinner, evaluate=evaluate)
    assert found.best > found.baseline and found.weights["layers.0.down"].codes.shape == (32, 32)


class Killed(Exception):
    pass


def test_a_killed_run_ends_where_it_would_have(teacher: nn.Module, tmp_path: Path) -> None:
    evaluate, path = held_out(teacher), tmp_path / "run.ckpt"
    config = replace(CONFIG, float_lr=1e-3)

    def whole(checkpoint: Path | None, tick: Any = None) -> Distilled:
        return distil(
            student(teacher),
            teacher,
            batch,
            logits,
            config,
            evaluate=evaluate,
            checkpoint=checkpoint,
            tick=tick,
        )

    def kill(step: int, steps: int) -> None:
        if step == 13:
            raise Killed

    straight = whole(None)
    with pytest.raises(Killed):
        whole(path, kill)
    resumed = whole(path)
    assert codes(resumed) == codes(straight)
    assert all(torch.equal(value, resumed.floats[name]) for name, value in straight.floats.items())
    assert resumed.history == straight.history and resumed.best == straight.best
    assert codes(whole(path)) == codes(straight)  # it is done: nothing is trained again


def test_a_checkpoint_of_another_run_is_refused(teacher: nn.Module, tmp_path: Path) -> None:
    path, config = tmp_path / "run.ckpt", DistilConfig(steps=1)
    distil(student(teacher), teacher, batch, logits, config, checkpoint=path)
    with pytest.raises(InputError, match="another run"):
        distil(student(teacher), teacher, batch, logits, DistilConfig(steps=2), checkpoint=path)


def test_nan_stops_and_leaves_the_last_good_codes(teacher: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    calls: list[int] = []

    def breaks(network: nn.Module, tokens: Tensor) -> Tensor:
        calls.append(1)
        return network(tokens) * (torch.nan if len(calls) > 24 else 1.0)

    network = student(teacher)
    with pytest.raises(UsageError, match=r"nan at step 12 of 24.*lower lr"):
        distil(network, teacher, batch, breaks, CONFIG, evaluate=held_out(teacher), checkpoint=path)
    assert all(torch.isfinite(tensor().detach()).all() for tensor in held(network).values())
    straight = distil(student(teacher), teacher, batch, logits, CONFIG, evaluate=held_out(teacher))
    resumed = distil(
        student(teacher), teacher, batch, logits, CONFIG, evaluate=held_out(teacher), checkpoint=path
    )
    assert codes(resumed) == codes(straight)


def test_what_cannot_work_is_said(teacher: nn.Module) -> None:
    with pytest.raises(UsageError, match="steps = 0"):
        DistilConfig(steps=0)
    with pytest.raises(UsageError, match="learns = 'weights'"):
        DistilConfig(learns="weights")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nowhere holds no codes"):
        distil(student(teacher), teacher, batch, logits, DistilConfig(steps=1), trained=["nowhere"])
