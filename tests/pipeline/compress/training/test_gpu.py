"""Training on a GPU: the same loop, the same codes, and a run that was begun elsewhere goes on.

These tests need a GPU, which CI has not; run this file where there is one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.bundle.packed.ledger import check_codes
from paredown.pipeline.compress.grids.grid import GRIDS, ORDERS, GridConfig, encode
from paredown.pipeline.compress.squantize.fold import codes_of, fold
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork, quantizable
from paredown.pipeline.compress.training.config import RecoverConfig
from paredown.pipeline.compress.training.loop import device_name, training_device
from paredown.pipeline.compress.training.recover import recover
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card
from paredown.targets.errors import UsageError

DIGITS = Path(__file__).parents[4] / "apps" / "detector" / "recipes" / "digits.toml"
SHAPE = (1, 3, 8, 8)
QUICK = RecoverConfig(method="distil", epochs=2, warmup=1, checkpoint_every=1, lr=0.02)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


class Net(nn.Module):
    """Three convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x).mean((2, 3)))


class Blurred(Net):
    """With a weight that is neither parameter nor buffer, and so does not move with the module."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = torch.ones(8, 1, 3, 3) / 9

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.conv2d(self.body(x), self.blur, groups=8).mean((2, 3)))


class Batches:
    """Noise, a pure function of the step."""

    per_epoch = 6

    def __call__(self, step: int) -> tuple[Tensor, None]:
        return torch.rand(8, *SHAPE[1:], generator=torch.Generator().manual_seed(step)), None


def live(kind: type[Net] = Net, bits: int = 4) -> tuple[QatNetwork, nn.Module]:
    torch.manual_seed(0)
    network = kind().eval()
    teacher = copy.deepcopy(network)
    graph = trace(network, SHAPE)
    plans = {name: LayerPlan(GridConfig(4), 0.6) for name in quantizable(graph, network)}
    made = QatNetwork(network, graph, plans, bits)
    made.start_clips(Batches()(99)[0])
    return made, teacher


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean()


def learn(device: str = "cuda", kind: type[Net] = Net, **options):
    student, teacher = live(kind)
    x = Batches()(50)[0]
    with torch.no_grad():
        wanted = teacher(x)

    def evaluate(network: nn.Module) -> float:
        with torch.no_grad():
            return -float(distance(network(x), wanted))

    config = replace(QUICK, device=device)
    return recover(student, Batches(), config, teacher=teacher, distil=distance, evaluate=evaluate, **options)


def test_auto_is_the_gpu():
    assert training_device("auto") == "cuda" and training_device("cpu") == "cpu"
    assert device_name("cuda") == torch.cuda.get_device_name(0)


def test_it_learns_and_comes_back_to_the_cpu_with_codes_that_fold():
    result = learn()
    assert result.best > result.baseline and result.steps == 12
    assert result.device == torch.cuda.get_device_name(0) and result.seconds > 0
    network = result.network
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}
    graph = fold(network, SHAPE)
    for node in graph:
        if node.scale is not None:
            codes, _ = codes_of(network, node.parameters["weight"])
            assert int((codes == 0).sum()) == int((node.weight == 0).sum())
            assert len(codes.unique()) <= 2**4 + 1
    values = graph.run(Batches()(51)[0])
    ranges = {name: (float(value.min()), float(value.max())) for name, value in values.items()}
    check_codes(graph, quantize(graph, ranges, input_range=(0.0, 1.0)))


def test_gpu_and_cpu_take_nearly_the_same_steps():
    there, here = learn(), learn("cpu")
    assert there.best == pytest.approx(here.best, rel=0.1)


def test_a_run_that_was_begun_on_the_cpu_goes_on_there(tmp_path):
    class Unplugged(Exception):
        pass

    def pull(done: int, total: int) -> None:
        if done == 5:
            raise Unplugged

    path = tmp_path / "checkpoint"
    with pytest.raises(Unplugged):
        learn("cpu", checkpoint=path, tick=pull)
    result = learn(checkpoint=path)
    assert result.steps == 12 and result.best > result.baseline


def test_what_the_graph_keeps_moves_along_and_what_the_network_keeps_is_explained():
    student, teacher = live(Blurred)
    x = Batches()(0)[0]
    here = student.eval()(x)
    there = copy.deepcopy(student).to("cuda")(x.cuda())
    assert torch.allclose(there.cpu(), here, atol=1e-4)
    with pytest.raises(UsageError, match="register_buffer"):
        learn(kind=Blurred)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_codes_are_those_of_the_cpu(grid, order):
    """But for weights at the very edge of a cell: mean and deviation are summed in another order."""
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(3))
    config = GridConfig(4, grid, order)
    (here, step), (there, other) = encode(weight, 0.1, config), encode(weight.cuda(), 0.1, config)
    assert float(other) == pytest.approx(float(step), rel=1e-6)
    assert int((here != there.cpu()).sum()) <= 2


def test_a_recipe_trains_on_it_by_itself(tmp_path):
    asked = ["squantize.weight_bits=4", "squantize.epochs=0.02", "squantize.evaluations=1", "prune.macs=0.7",
             "prune.images=16", "prune.widths=2", "recover.epochs=0.02", "recover.evaluations=1"]  # fmt: skip
    run = Run("digits", load_recipe(DIGITS, asked), load_card("host"), tmp_path)
    stages = run.job
    run.reach([stages.squantizing.squantize])
    name = torch.cuda.get_device_name(0)
    assert stages.pruning.history()["device"] == stages.squantizing.history()["device"] == name
