"""Training by two processes over gloo: both end with the same bits, and near to what one makes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ports import free_port
from torch import Tensor, nn

from paredown.pipeline.compress.ranks import Ranks, ranks
from paredown.pipeline.compress.training.config import RecoverConfig
from paredown.pipeline.compress.training.loop import descend
from paredown.pipeline.compress.training.recover import Recovered, recover
from paredown.targets.errors import UsageError

#: What docs/search.md states for batch norm that is frozen: of the largest weight of a tensor.
TOLERANCE = 1e-5
QUICK = RecoverConfig(method="both", epochs=4, warmup=2, checkpoint_every=1, lr=0.05, ema=0.9, patience=99)


def at_once(size: int, do: Callable[[Any], Any]) -> list[Any]:
    """What processes of a group return, by rank; each gets the environment that torchrun gives."""
    port, context = free_port(), multiprocessing.get_context("fork")
    told = context.SimpleQueue()

    def one(rank: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))  # fmt: skip
        told.put((rank, do(ranks())))

    processes = [context.Process(target=one, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    found = dict(told.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [found[rank] for rank in range(size)]


class Corners:
    """Which half of the image is bright; a pure function of the step."""

    per_epoch = 3

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(step)
        images, labels = torch.rand(8, 3, 8, 8, generator=chance), torch.arange(8) % 2
        images[labels == 1, :, :4] += 1
        return images, labels


def still() -> nn.Module:
    """A network that draws nothing, so that a share of the batch is all that differs."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip


def trained(norm: Any, checkpoint: Path | None = None, tick: Any = None) -> Recovered:
    student = still()
    for parameter in student.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return recover(
        student, Corners(), replace(QUICK, norm=norm), label_loss=nn.functional.cross_entropy,
        teacher=still(), distil=nn.functional.mse_loss, checkpoint=checkpoint, tick=tick,
        evaluate=lambda network: -float(network(Corners()(99)[0]).detach().square().mean()),
    )  # fmt: skip


def weights(found: Recovered) -> dict[str, bytes]:
    """As bytes: what a process sends to another is no tensor of its memory."""
    return {name: value.numpy().tobytes() for name, value in found.network.state_dict().items()}


@pytest.mark.parametrize("norm", ["frozen", "live"])
def test_two_processes_end_with_the_same_bits_each_time(norm, tmp_path):
    first, second = (at_once(2, lambda _: weights(trained(norm))) for _ in range(2))
    assert first[0] == first[1] == second[0] == second[1]
    assert first[0] != weights(trained(norm)) or norm == "frozen"


def test_with_frozen_batch_norm_two_processes_make_what_one_makes_but_for_rounding():
    one = trained("frozen").network.state_dict()
    two = at_once(2, lambda _: weights(trained("frozen")))[0]
    start = still().state_dict()
    for name, value in one.items():
        other = torch.frombuffer(bytearray(two[name]), dtype=value.dtype).view_as(value)
        assert torch.allclose(other, value, rtol=0, atol=TOLERANCE * float(value.abs().max() or 1)), name
    assert any(not torch.allclose(one[name], start[name], atol=1e-2) for name in one), "it was trained at all"


def test_the_first_process_writes_and_both_resume(tmp_path):
    whole = at_once(2, lambda _: weights(trained("live")))
    path = tmp_path / "state.pt"

    def cut_off(group: Ranks) -> bool:
        def tick(done: int, steps: int) -> None:
            if done == 5:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            trained("live", path, tick)
        return path.exists()

    assert at_once(2, cut_off) == [True, True]

    def resumed(group: Ranks) -> tuple[dict[str, bytes], int]:
        steps: list[int] = []
        return weights(trained("live", path, lambda *told: steps.append(told[0]))), steps[0]

    assert at_once(2, resumed) == [(found, 5) for found in whole], "step 5 itself was not saved"


def test_a_step_of_shares_is_a_step_of_the_whole_batch():
    def step(group: Ranks) -> list[float]:
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        images, labels = group.share(torch.arange(8.0).reshape(4, 2), [1.0, 2.0, 3.0, 4.0])
        loss = ((images @ weight - torch.tensor(labels)) ** 2).mean()
        value = descend(loss, torch.optim.SGD([weight], 1.0), [weight], clip=1e9, rate=0.01, ranks=group)
        return [value, *weight.tolist()]

    whole = step(Ranks())
    first, second = at_once(2, step)
    assert first == second == pytest.approx(whole, rel=1e-6)


def test_a_loss_that_is_no_number_in_one_process_stops_both():
    def step(group: Ranks) -> tuple[bool, float]:
        weight = nn.Parameter(torch.ones(1))
        loss = weight.sum() * (float("nan") if group.rank else 1.0)
        value = descend(loss, torch.optim.SGD([weight], 1.0), [weight], clip=1.0, rate=1.0, ranks=group)
        return value == value, float(weight.detach())

    assert at_once(2, step) == [(False, 1.0), (False, 1.0)]


def test_what_is_equal_everywhere_stays_as_it_is_in_three_processes():
    def averaged(group: Ranks) -> list[float]:
        values = torch.tensor([0.1, 1e-45, 3.3e38, float(group.rank)])
        network = nn.Module()
        network.register_buffer("values", values)
        group.average_statistics(network)
        return values.tolist()

    kept = torch.tensor([0.1, 1e-45, 3.3e38]).tolist()
    assert at_once(3, averaged) == 3 * [[*kept, 1.0]]


@pytest.mark.unit
def test_batches_without_equal_parts_and_odd_labels_are_one_line():
    pair = Ranks(1, 2)
    assert pair.share(torch.zeros(4, 1), None)[0].shape == (2, 1)
    assert pair.share(torch.zeros(4, 1), list("abcd"))[1] == ["c", "d"]
    assert Ranks().share(torch.zeros(3, 1), {"any": 1})[1] == {"any": 1}
    with pytest.raises(UsageError, match="torchrun: a batch of 5 has no 2 equal parts; change recover.batch"):
        pair.share(torch.zeros(5, 1), None)
    labels: Any
    for labels in ({"a": 1}, [1, 2, 3], Tensor([1, 2])):
        with pytest.raises(UsageError, match="labels cannot be shared out image by image"):
            pair.share(torch.zeros(4, 1), labels)


@pytest.mark.unit
def test_without_torchrun_this_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert ranks() == Ranks(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another launcher, which gives no rank
    assert ranks() == Ranks(0, 1)
