"""The stages that `bench/zoo.py` puts a network through, one after the other."""

from __future__ import annotations

import copy
import importlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from zoo_quality import near_float

from paredown.calibration.datasets import open_dataset
from paredown.calibration.observers import make_observer
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.bundle.packed.ledger import check_codes
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import cut, mask
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.layer_plans import layer_plans
from paredown.pipeline.compress.squantize.qat_network import QatNetwork
from paredown.pipeline.device.executor import open_executor
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.parity import compare
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.recipe.schema import Squantize
from paredown.targets.cards.card import load_card
from paredown.targets.devices.programs import Program
from paredown.targets.runners.litert import TensorInfo

STAGES = (
    "trace", "couple", "cut", "integer", "quality", "squantize", "executorch", "litert", "parity",
    "delegated",
)  # fmt: skip
NEAR = 1e-4  # of the largest output
ENDS = (-2.1179, 2.64)  # of a normalized photograph


class Failed(Exception):
    """A stage gave another result than it must."""


@dataclass
class Found:
    """What is known of a network.

    Attributes:
        passed: its stages, in order.
        cells: of the table, by column.
        failure: the first stage that failed, and why.
    """

    passed: list[str] = field(default_factory=list)
    cells: dict[str, str] = field(default_factory=dict)
    failure: str = ""


class Samples:
    """Photographs for maps of one or three channels, sums of sines for all else.

    Args:
        shape: of one input.
        task: "audio" has no photographs.
        folder: of photographs.
    """

    def __init__(self, shape: tuple[int, ...], task: str, folder: Path) -> None:
        self.shape = shape
        photos = len(shape) == 4 and shape[1] in {1, 3} and task != "audio"
        self.data = open_dataset("folder", folder, names=("any",)) if photos else None

    def __call__(self, count: int, start: int) -> Tensor:
        """So many inputs, from the one of this number on."""
        if self.data is not None:
            size = Preprocess(self.shape[3], self.shape[2])
            rows = [size(self.data[(start + i) * 7 % len(self.data)].image) for i in range(count)]
            mean, deviation = (
                torch.tensor(n)[:, None, None] for n in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            )
            x = (torch.from_numpy(np.stack(rows)) - mean) / deviation
            return x if self.shape[1] == 3 else x.mean(1, keepdim=True)
        rng, t = np.random.default_rng(start), np.linspace(0, 1, int(np.prod(self.shape[1:])))
        waves = [
            sum(
                rng.normal() * np.sin(2 * np.pi * rng.uniform(1, 60) * t + rng.uniform(0, 6))
                for _ in range(5)
            )
            + rng.normal(0, 0.3, t.size)
            for _ in range(count)
        ]
        return torch.tensor(np.stack(waves).reshape(count, *self.shape[1:]), dtype=torch.float32)


@torch.no_grad()
def ready(net: Any, samples: Samples) -> nn.Module:
    """A network with random weights, and batch norm statistics of real inputs."""
    torch.manual_seed(0)
    network: nn.Module = net.factory()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in network.modules() if getattr(net, "reinit", False) else ():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and module.weight.requires_grad:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None
    if norms:
        network(samples(4, 0))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    """What a network returns, as a list."""
    with torch.no_grad():
        found = network(x)
    return [found] if isinstance(found, Tensor) else list(found)


def apart(wanted: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference of an output, as a share of its largest value."""
    return max(
        float((a.reshape(-1) - b.reshape(-1)).abs().max() / a.abs().max().clamp_min(1e-12))
        for a, b in zip(wanted, found, strict=True)
    )


def near(wanted: list[Tensor], found: list[Tensor], limit: float = NEAR) -> None:
    """Compares outputs.

    Raises:
        Failed: they are further apart than a share of the largest.
    """
    if not (away := apart(wanted, found)) <= limit:
        raise Failed(f"{away:.1e} of the largest output away")


def calibrated(graph: Graph, samples: Samples) -> dict[str, tuple[float, float]]:
    """The range of every tensor over four samples; of the input what it can be at all."""
    watch = dict[str, Any]()
    for x in (given := samples(4, 100)):
        for name, value in graph.run(x[None]).items():
            watch.setdefault(name, make_observer("minmax")).update(value.numpy())
    ends = ENDS if samples.data is not None else (float(given.min()), float(given.max()))
    return {name: observer.range() for name, observer in watch.items()} | {graph.nodes[0].name: ends}


def stages(
    net: Any, samples: Samples, found: Found, skip: frozenset[str], boards: tuple[str, ...] = ()
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The stages of a network, to be run one after the other."""
    network, have = ready(net, samples), dict[str, Any]()

    def traced() -> None:
        start = time.process_time()
        have["graph"] = graph = trace(network, net.shape)
        have["seconds"] = time.process_time() - start
        x = samples(2, 50)
        values = graph.run(x)
        wanted, exact = outputs(network, x), outputs(copy.deepcopy(network).double(), x.double())
        own = apart(exact, wanted)  # what float32 costs the network itself
        near(wanted, [values[name] for name in graph.outputs], max(NEAR, 3 * own))

    def coupled() -> None:
        start = time.process_time()
        have["groups"] = groups = couple(have["graph"])
        found.cells["trace + couple, s"] = f"{have['seconds'] + time.process_time() - start:.2f}"
        inner = [group for group in groups if "network's output" not in group.locked]
        free = [group for group in inner if not group.locked]
        count = [sum(len(u) for g in some for m in g.makers for u in m.channels) for some in (free, inner)]
        found.cells["free groups"] = f"{len(free)} of {len(inner)}"
        found.cells["free channels"] = f"{100 * count[0] / max(count[1], 1):.0f} %"
        if 2 * count[0] < count[1] or not count[1]:
            raise Failed(f"{count[0]} of {count[1]} channels can go")

    def halved() -> None:
        graph, groups = have["graph"], have["groups"]
        choose, kept = random.Random(0), {}
        for group in groups:
            widths = range(group.step, group.units, group.step)
            if widths and not group.locked:
                width = min(widths, key=lambda w: abs(2 * w - group.units))  # noqa: B023
                kept[group.name] = tuple(sorted(choose.sample(range(group.units), width)))
        smaller, x = cut(network, graph, groups, kept), samples(2, 60)
        values = mask(graph, groups, kept).run(x)
        near([values[name] for name in graph.outputs], outputs(smaller, x))

    def integer() -> None:
        graph = have["graph"]
        have["ranges"] = ranges = calibrated(graph, samples)
        have["integer"] = made = quantize(graph, ranges, input_range=ranges[graph.nodes[0].name])
        have["codes"] = made.input.out.quantize(samples(2, 400).numpy())

    def quality() -> None:
        graph, x = have["graph"], samples(4, 200)
        pairs = near_float(graph, have["integer"], have["ranges"], x, graph.run(x))
        worst = min(pairs)
        found.cells["SNR, dB"], found.cells["rounded float, dB"] = (f"{value:.1f}" for value in worst)
        if any(own < 15 and own < other - 6 for own, other in pairs):
            raise Failed(f"{worst[0]:.1f} dB, rounded one by one {worst[1]:.1f} dB")

    def squantized() -> None:
        graph, model = have["graph"], copy.deepcopy(network)
        live = QatNetwork(model, graph, layer_plans(Squantize(weight_bits=4, sparsity=0.6), graph, model))
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        result = live.train()(samples(2, 0))
        several = [result] if isinstance(result, Tensor) else result
        torch.stack([each.square().mean() for each in several]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        folded, x = fold(live, net.shape), samples(2, 300)
        values = folded.run(x)
        near(outputs(live.eval(), x), [values[name] for name in folded.outputs], 1e-3)
        ranges = {name: (min(0.0, float(v.min())), max(0.0, float(v.max()))) for name, v in values.items()}
        check_codes(folded, quantize(folded, ranges, input_range=have["ranges"][graph.nodes[0].name]))

    def lowered(name: str, column: str) -> None:
        tools = runtime(name)
        program = tools.lower_integer(have["integer"])
        found.cells[column] = f"{len(program.data) / 1024:,.0f}"
        loaded = tools.load(program.data, 1, name)
        have.setdefault("programs", {})[name] = (program, compare(have["integer"], loaded, have["codes"]))

    def exact() -> None:
        apart = [found.differing for _, found in have["programs"].values()]
        found.cells["codes apart"] = " and ".join(f"{count:,}" for count in apart)
        if any(apart):
            raise Failed(f"{found.cells['codes apart']} codes differ")

    def delegated() -> None:
        beside = {name: program.undelegated for name, (program, _) in have["programs"].items()}
        found.cells["beside the delegate"] = " and ".join(str(len(each)) for each in beside.values())
        if any(beside.values()) or any(program.subgraphs != 1 for program, _ in have["programs"].values()):
            raise Failed(", ".join(sorted({f"{name}: {op}" for name, each in beside.items() for op in each})))

    def board(card: str) -> None:
        made, codes = have["integer"], have["codes"][:1]
        outputs = tuple(TensorInfo(tuple(made[output].shape), "int8") for output in made.outputs)
        wanted, away = reference.predict(made, codes), []
        with open_executor(f"emulated:{card}", load_card(card)) as executor:
            for name, (lowered, _) in have["programs"].items():
                program = Program(name, lowered.data, TensorInfo(tuple(made.input.shape), "int8"), outputs)
                (got,) = executor.run(program, codes, lambda done, total: None)
                pairs = zip(wanted, got, strict=True)
                away.append(sum(int((a.reshape(-1) != b.reshape(-1)).sum()) for a, b in pairs))
        found.cells[card] = " and ".join(f"{count:,}" for count in away)
        if any(away):
            raise Failed(f"{found.cells[card]} codes differ on {card}")

    yield from (("trace", traced), ("couple", coupled), ("cut", halved), ("integer", integer))
    yield from (("quality", quality), ("squantize", squantized))
    for name, column in (("executorch", ".pte, KiB"), ("litert", ".tflite, KiB")):
        if name not in skip:
            yield name, lambda name=name, column=column: lowered(name, column)
    yield from (("parity", exact), ("delegated", delegated))
    for card in boards:
        yield card, lambda card=card: board(card)


#: A stage that others need: what fails beside it does not keep them from being tried.
NEEDED = frozenset({"trace", "integer", "executorch", "litert"})


def examine(name: str, folder: Path, images: Path, skip: frozenset[str], boards: tuple[str, ...]) -> Found:
    """One network, in a process of its own."""
    torch.set_num_threads(1)
    net = importlib.import_module("nets").NETS[name]
    found = Found(cells={"network": name, "task": net.task})
    for stage, run in stages(net, Samples(net.shape, net.task, images), found, skip, boards):
        if stage in skip:
            continue
        try:
            run()
            found.passed.append(stage)
        except Exception as error:  # noqa: BLE001  whatever a stage raises is a result
            found.failure = (
                found.failure or f"{stage}: {str(error).splitlines()[0] if str(error) else error!r}"[:160]
            )
            if stage in NEEDED:
                break
    return found
