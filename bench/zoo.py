"""A folder of architectures through every stage, with random weights: what passes, how exact, how fast.

    python bench/zoo.py --zoo FOLDER [--only resnet18] [--only 'hf_*'] [--keep FOLDER]
    python bench/zoo.py --zoo FOLDER --board raspberry-pi-5 --board raspberry-pi-3

FOLDER has a module `nets` with `NETS`: name -> an object with `factory` (makes the torch network), `shape`
(of one input) and `task`; one whose `reinit` is true is given larger random weights. A folder `extras` in
it is searched for modules too. Each network has a process of its own. The stages, of which each needs those
before it: trace (the graph computes what the network does, but for rounding), couple (half of the channels
can go), cut (equal to the masked graph), integer, quality (at least 15 dB, or not 6 dB below a float graph
whose tensors are rounded to int8 one by one), squantize (a training step at 4 bits, folded), executorch and
litert (they run), parity (no other codes), delegated (nothing beside the delegate). With --board also boards:
both programs give the same codes on emulated boards, for one input. With --keep a bench that was stopped goes
on where it was. "torch-pruning" is what that package makes of half the channels: the share of MACs that stays
where the outputs keep their shape and more than a twentieth goes, else why not. An SNR is one draw of many
roundings: where int8 is more than 1 dB below the rounded float graph, the difference is measured eight times
more, each with ranges that are a little wider; its mean and standard error stand in a column of their own.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Table, add_option
from torch import Tensor, nn
from zoo_quality import AGAIN, again, near_float

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
from paredown.pipeline.store.files import read_json, write_json
from paredown.targets.cards.card import load_card
from paredown.targets.devices.programs import Program
from paredown.targets.runners.litert import TensorInfo

IMAGES = Path(__file__).parents[2] / "shared" / "data" / "imagenet"
STAGES = (
    "trace", "couple", "cut", "integer", "quality", "squantize", "executorch", "litert", "parity",
    "delegated",
)  # fmt: skip
OTHER = "with other scales, dB"
COLUMNS = (
    "network", "task", "stages", "free channels", "free groups", "SNR, dB", "rounded float, dB",
    OTHER, "codes apart",
    "beside the delegate", ".pte, KiB", ".tflite, KiB", "trace + couple, s", "torch-pruning", "fails at",
)  # fmt: skip
NEAR = 1e-4  # of the largest output
SHORT = 1.0  # dB below the rounded float graph: measured again
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


def short(cells: dict[str, str]) -> bool:
    """Whether int8 is more than 1 dB below the rounded float graph."""
    own, other = (float(cells.get(column, 0)) for column in ("SNR, dB", "rounded float, dB"))
    return own < other - SHORT


def other_scales(name: str, images: Path) -> str:
    """`again` of a network, in a process of its own."""
    torch.set_num_threads(1)
    net = importlib.import_module("nets").NETS[name]
    samples = Samples(net.shape, net.task, images)
    graph = trace(ready(net, samples), net.shape)
    ranges, x = calibrated(graph, samples), samples(4, 200)
    return again(graph, ranges, x, graph.run(x))


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


def torch_pruning(name: str) -> str:
    """What torch-pruning makes of a network, in a process of its own."""
    import torch_pruning as peer
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    net = importlib.import_module("nets").NETS[name]
    torch.manual_seed(0)
    network, x = net.factory().eval(), torch.randn(net.shape)

    def flops() -> tuple[int, list[tuple[int, ...]]]:
        with FlopCounterMode(display=False) as counter:
            shapes = [tuple(each.shape) for each in outputs(network, x)]
        return counter.get_total_flops(), shapes

    before, shapes = flops()
    layers = [
        (n, m) for n, m in network.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)
    ]
    heads = [m for n, m in layers if any(head in n for head in getattr(net, "heads", ()))]
    sizes = {shape[1] for shape in shapes if len(shape) > 1} | {shape[-1] for shape in shapes}
    heads = heads or [m for _, m in layers if m.weight.shape[0] in sizes]
    try:
        importance = peer.importance.MagnitudeImportance(p=2)
        pruner = peer.pruner.MagnitudePruner(
            network, x, importance=importance, pruning_ratio=0.5, ignored_layers=heads
        )
        pruner.step()
        after, changed = flops()
    except Exception as error:  # noqa: BLE001  whatever it raises is a result
        return f"fails: {type(error).__name__}"
    if changed != shapes:
        return "fails: outputs of another shape"
    return f"{after / before:.2f}" if after <= 0.95 * before else f"fails: {after / before:.2f} of the MACs"


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


def kept(folder: Path | None, name: str, every_stage: list[str]) -> Found | None:
    """What an earlier bench found of a network in the same stages."""
    path = folder / f"{name}.json" if folder else None
    if path is None or not path.exists():
        return None
    known = read_json(path)
    return Found(**known) if known.pop("stages") == every_stage else None


def peer(run: Callable[..., str], how: tuple[Any, ...], timeout: float) -> str:
    """A cell, found in a process of its own, for so many seconds at most."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        try:
            return pool.apply_async(run, how).get(timeout)
        except multiprocessing.TimeoutError:
            return f"more than {timeout:.0f} s"


def alone(how: tuple[Any, ...], timeout: float) -> Found:
    """`examine` in a process of its own, for so many seconds at most."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        try:
            return pool.apply_async(examine, how).get(timeout)
        except multiprocessing.TimeoutError:
            return Found(cells={"network": how[0]}, failure=f"more than {timeout:.0f} s")


def main() -> None:
    """Prints a row per network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], help="a name, * for any letters")
    parser.add_argument("--skip", action="append", default=[], choices=STAGES)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one network")
    parser.add_argument("--board", action="append", default=[], help="a card with an emulated board")
    parser.add_argument("--keep", type=Path, help="folder of what was found, to go on with")
    add_option(parser)
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.zoo.resolve()), str((arguments.zoo / "extras").resolve())]
    every = importlib.import_module("nets").NETS
    names = [n for n in every if not arguments.only or any(fnmatch(n, each) for each in arguments.only)]
    trace(nn.Conv2d(1, 1, 1), (1, 1, 1, 1))  # imports what every process would
    skip, boards, whole, slowest = frozenset(arguments.skip), tuple(arguments.board), 0, (0.0, "")
    coupled = theirs = 0
    every_stage = [stage for stage in (*STAGES, *boards) if stage not in skip]
    columns = (*COLUMNS[:-1], *boards, COLUMNS[-1])
    with Table("zoo", columns, arguments.record) as table:
        for name in names:
            found = kept(arguments.keep, name, every_stage)
            if found is None:
                how = (name, arguments.zoo, arguments.images, skip, boards)
                found = alone(how, arguments.timeout)
            if "torch-pruning" not in found.cells:
                found.cells["torch-pruning"] = peer(torch_pruning, (name,), arguments.timeout)
            if OTHER not in found.cells and short(found.cells):
                found.cells[OTHER] = peer(other_scales, (name, arguments.images), arguments.timeout)
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                write_json(arguments.keep / f"{name}.json", {"stages": every_stage, **asdict(found)})
            whole += found.passed == every_stage
            coupled += "couple" in found.passed
            theirs += not found.cells["torch-pruning"].startswith(("fails", "more"))
            seconds = float(found.cells.get("trace + couple, s", 0))
            slowest = max(slowest, (seconds, name))
            cells = found.cells | {
                "stages": f"{len(found.passed)} of {len(every_stage)}", "fails at": found.failure,
            }  # fmt: skip
            table.row(*(cells.get(column, "") for column in columns))
        table.note(
            f"{whole} of {len(names)} networks pass every stage. Random weights, batch norms from inputs."
        )
        table.note(
            f"Half of the channels can go in {coupled} of {len(names)}; torch-pruning cuts {theirs} of them."
        )
        table.note(
            f"{OTHER}: where int8 is more than {SHORT:g} dB below the rounded float graph, what it is nearer "
            f"to float with ranges up to 5 % wider; mean of {AGAIN} and standard error."
        )
        table.note(f"Trace and couple take at most {slowest[0]:.1f} s ({slowest[1]}), on one thread.")
        print("\n" + "\n".join(table.notes))


if __name__ == "__main__":
    main()
