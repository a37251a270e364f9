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
import importlib
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from record import Table, add_option
from torch import nn
from zoo_quality import AGAIN, again
from zoo_stages import STAGES, Found, Samples, calibrated, examine, outputs, ready

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.store.files import read_json, write_json

IMAGES = Path(__file__).parents[2] / "shared" / "data" / "imagenet"
OTHER = "with other scales, dB"
COLUMNS = (
    "network", "task", "stages", "free channels", "free groups", "SNR, dB", "rounded float, dB",
    OTHER, "codes apart",
    "beside the delegate", ".pte, KiB", ".tflite, KiB", "trace + couple, s", "torch-pruning", "fails at",
)  # fmt: skip
SHORT = 1.0  # dB below the rounded float graph: measured again


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
