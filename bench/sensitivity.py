"""The fast sensitivity test against plain evaluation, one thread: the same metric at every reported point.

    python bench/sensitivity.py resnet56 --data DATA [--images 256] [--groups 0] [--widths 8] [--macs 0.4]
        [--every 1] [--check] [--keep FILE]
    python bench/sensitivity.py mobilenet_v2 | yolo-lite | yolov2-tiny-voc
    python bench/sensitivity.py yolov2-tiny-voc --train FILE.pt  # weights for --weights, 40 minutes

Plain evaluation runs the whole network on the whole sample for every point: the user's own module with its BN
(eval, inference mode), and the traced graph with BN folded; both masked, in torch's own memory format, and in
batches. Every N-th point is evaluated so, with --check also every one that an allocation reports; the seconds
are those of all points, at the median of those that were. "Fastest runtime" is the least time that one of our
runtimes takes for the network in float32, image by image, times images and points. Times are of the
processor, scoring left out. What was measured is written to --keep; a bench that was stopped goes on where it
was.

DATA is a folder with cifar10, cifar10-resnets and so on. Without --weights yolov2-tiny-voc has random ones:
which points an allocation needs depends on that, times and the equality of outputs do not. With them it finds
digits, four scenes of 160 by 160 that it has not seen on a grey canvas of 416 by 416, by mAP@0.5.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Table, add_option
from sensitivity_cases import CASES, Case, run_module, train_digits
from torch import nn

from paredown.pipeline.compress.allocate.allocate import allocate, predicted_losses
from paredown.pipeline.compress.allocate.cost import counted
from paredown.pipeline.compress.allocate.lazy import allocate_lazily
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.surgery import mask
from paredown.pipeline.compress.sensitivity import ranking
from paredown.pipeline.compress.sensitivity.chart import gave_up
from paredown.pipeline.compress.sensitivity.experiment import Experiment, Outputs
from paredown.pipeline.compress.sensitivity.meter import Meter
from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.runtimes import RUNTIMES

RUNTIME_IMAGES = 8
COLUMNS = (
    "points for", "seconds", "measured", "stopped early", "not asked for", "torch module, s", "speed-up",
    "torch graph, s", "speed-up", "fastest runtime, s", "speed-up", "equal metrics", "widths",
)  # fmt: skip


class Timed:
    """Something that counts its own time."""

    def __init__(self, call: Callable[[Sequence[Outputs]], Any]) -> None:
        self.call, self.seconds = call, 0.0

    def __call__(self, outputs: Sequence[Outputs]) -> Any:
        start = time.process_time()
        found = self.call(outputs)
        self.seconds += time.process_time() - start
        return found


class Keep:
    """Results by name, in a file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.known:
            self.known[name] = make()
            if self.path:
                self.path.write_text(json.dumps(self.known))
        return self.known[name]


class Bench:
    """One network with the points to measure.

    Args:
        case: the network.
        arguments: of the command.
    """

    def __init__(self, case: Case, arguments: argparse.Namespace) -> None:
        self.case, self.keep = case, Keep(arguments.keep)
        self.graph = trace(case.network, (1, *case.x.shape[1:]))
        self.groups = couple(self.graph)
        free = [g for g in self.groups if not g.locked]
        chosen = free[:: max(1, len(free) // arguments.groups)] if arguments.groups else free
        parts = arguments.widths
        self.widths = {g.name: [max(1, g.units * k // parts) for k in range(parts, 0, -1)] for g in chosen}
        norms = ranking.norm(self.graph, self.groups)
        self.ranks = ranking.ranking(norms)
        self.options: dict[str, Any] = {
            "importance": {name: scores.tolist() for name, scores in norms.items()},
            "resolution": 1 / len(case.x),
        }
        self.cost = counted(self.graph, self.groups, "macs")
        points = self.experiment(case.score, case.most).points()
        self.points: list[tuple[Group, int]] = list(points)

    def experiment(self, score: Any, most: Any) -> Experiment:
        return Experiment(
            self.graph, self.groups, self.ranks, self.widths, self.case.x, score, "metric", most
        )  # fmt: skip

    def needed(self, limit: float) -> dict[str, Any]:
        """What an allocation for a share of the MACs needs."""
        score, most = Timed(self.case.score), Timed(self.case.most)
        start = time.process_time()
        meter = Meter(self.experiment(score, most))
        plan = allocate_lazily(self.groups, self.widths, meter.ask, self.cost, limit=limit, **self.options)
        seconds = time.process_time() - start - score.seconds - most.seconds
        return {
            "seconds": seconds, "found": meter.found().to_dict(), "widths": dict(plan.widths),
            "runs": meter.original.runs, "kept": meter.original.bytes,
        }  # fmt: skip

    def every(self) -> dict[str, Any]:
        """All points, group by group, so that it can be stopped."""
        score = Timed(self.case.score)
        meter = Meter(self.experiment(score, None))

        def group(name: str) -> dict[str, Any]:
            before, start = score.seconds, time.process_time()
            meter.ask({place: np.inf for place in meter.everything() if place[0] == name})
            seconds = time.process_time() - start - (score.seconds - before)
            found = meter.found()
            curve = next(curve for curve in found.curves if curve.group == name)
            return {"seconds": seconds, "baseline": asdict(found.baseline), "curve": asdict(curve)}

        parts = [self.keep(f"every {name}", lambda n=name: group(n)) for name in self.widths]
        fields = {
            "metric": "metric", "images": len(self.case.x), "baseline": parts[0]["baseline"],
            "curves": [part["curve"] for part in parts],
        }  # fmt: skip
        return {"seconds": sum(p["seconds"] for p in parts), "found": fields, "widths": None, "kept": 0}

    def plain(self, group: Group, width: int) -> dict[str, Any]:
        """The masked module and the masked graph on one point: seconds and metric of each."""
        units = set(self.ranks[group.name][:width])
        module = masked_module(self.case.network, self.graph, group, units)
        masked = mask(self.graph, self.groups, {group.name: sorted(units)})
        a, module_seconds = clock(lambda: run_module(module, self.case.x, self.case.batch))
        b, graph_seconds = clock(lambda: run_graph(masked, self.case.x, self.case.batch))
        return {
            "module": [module_seconds, self.case.score(a)[0]], "graph": [graph_seconds, self.case.score(b)[0]]
        }  # fmt: skip

    def runtimes(self) -> dict[str, float]:
        """Seconds of the unpruned float network on all images, by runtime; the median of some."""
        found = {}
        for name, runtime in RUNTIMES.items():
            runner = runtime.load(runtime.lower_float(self.graph).data)
            calls = [runner.bound(self.case.x[i : i + 1]) for i in range(RUNTIME_IMAGES)]
            seconds = [clock(call)[1] for call in [*calls, *calls]][1:]
            found[name] = statistics.median(seconds) * len(self.case.x)
        return found


def masked_module(network: nn.Module, graph: Graph, group: Group, units: set[int]) -> nn.Module:
    """The user's module with the rows of everything that makes these channels, BN included, made zero."""
    copied = copy.deepcopy(network)
    state, nodes = copied.state_dict(), {node.name: node for node in graph}
    for member in group.makers:
        gone = [c for unit in set(range(group.units)) - units for c in member.channels[unit]]
        for role, name in nodes[member.node].parameters.items():
            if role != "bn_var":
                state[name][gone] = 0
    return copied


def run_graph(graph: Graph, x: np.ndarray, batch: int) -> list[Outputs]:
    """A graph's outputs, image by image."""
    found: list[Outputs] = []
    for part in torch.from_numpy(x).split(batch):
        values = graph.run(part)
        arrays = [values[name].numpy() for name in graph.outputs]
        found += [tuple(a[i : i + 1] for a in arrays) for i in range(len(part))]
    return found


def clock(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result and its seconds."""
    start = time.process_time()
    return work(), time.process_time() - start


def main() -> None:
    """Prints one row per way of measuring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet56", choices=list(CASES))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--groups", type=int, default=3, help="evenly spread; 0: all")
    parser.add_argument("--widths", type=int, default=4, help="per group, the full one included")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5], help="budgets to allocate for")
    parser.add_argument("--every", type=int, default=1, help="plain evaluation of every N-th point only")
    parser.add_argument("--check", action="store_true", help="and of every point that an allocation reports")
    parser.add_argument("--weights", type=Path, help="others for the network; or what --train made")
    parser.add_argument("--train", type=Path, metavar="FILE", help="train yolov2-tiny-voc, write its weights")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write results there, and go on from there")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.train:
        train_digits(arguments.train)
        return
    bench = Bench(CASES[arguments.network](arguments.data, arguments.images, arguments.weights), arguments)
    ways = {f"{share:g} of the MACs": share for share in arguments.macs}
    some, found = bench.points[:: arguments.every], dict[str, dict[str, Any]]()
    for index, (name, share) in enumerate(ways.items()):
        for group, width in some[index :: len(ways)]:  # between them: a busy machine is busy for all
            bench.keep(f"plain {group.name} {width}", lambda g=group, w=width: bench.plain(g, w))
        found[name] = bench.keep(name, lambda limit=share: bench.needed(limit))
    found["every point"] = bench.every()
    runtimes: dict[str, float] = bench.keep("runtimes", bench.runtimes)
    best = min(runtimes, key=lambda name: runtimes[name])
    every = Sensitivity.from_dict(found["every point"]["found"])
    for name in ways:
        for curve in Sensitivity.from_dict(found[name]["found"]).curves:
            group = next(g for g in bench.groups if g.name == curve.group)
            for point in curve.points[1:]:
                if point.metric is not None and arguments.check:
                    bench.keep(
                        f"plain {curve.group} {point.width}",
                        lambda g=group, w=point.width: bench.plain(g, w),
                    )
    table(bench, found, every, best, runtimes[best], arguments)


def table(
    bench: Bench,
    found: dict[str, dict[str, Any]],
    every: Sensitivity,
    best: str,
    least: float,
    arguments: argparse.Namespace,
) -> None:
    """Prints the rows, and records them."""
    points, losses = len(bench.points), predicted_losses(every)
    plain = {
        tuple(name.removeprefix("plain ").rsplit(" ", 1)): value
        for name, value in bench.keep.known.items()
        if name.startswith("plain ")
    }
    each = {way: statistics.median(value[way][0] for value in plain.values()) for way in ("module", "graph")}
    whole = {**{way: seconds * points for way, seconds in each.items()}, "runtime": least * points}
    with Table(f"sensitivity-{arguments.network}", COLUMNS, arguments.record) as made:
        for name, way in found.items():
            reported = {
                (curve.group, str(point.width)): point
                for curve in Sensitivity.from_dict(way["found"]).curves
                for point in curve.points[1:]
            }
            measured = {place: point.metric for place, point in reported.items() if point.metric is not None}
            stopped = sum(gave_up(point) for point in reported.values())
            cells = [
                cell
                for seconds in whole.values()
                for cell in (f"{seconds:.0f}", f"{seconds / way['seconds']:.1f}x")
            ]
            same = {
                key: [plain[place][key][1] == value for place, value in measured.items() if place in plain]
                for key in ("module", "graph")
            }
            equal = ", ".join(f"{key} {sum(values)} of {len(values)}" for key, values in same.items())
            widths = "-"
            if way["widths"] is not None:
                limit = float(name.split()[0])
                plan = allocate(bench.groups, losses, bench.cost, limit=limit, **bench.options)
                widths = "same" if way["widths"] == plan.widths else "OTHERS"
            rest = points - len(measured) - stopped
            made.row(
                name, f"{way['seconds']:.1f}", len(measured), stopped, rest, *cells, equal, widths
            )  # fmt: skip
        kept = max(way["kept"] for way in found.values())
        made.note(
            f"{arguments.network}, {len(bench.case.x)} images, {len(bench.widths)} groups, {points} points; "
            f"one thread, seconds of the processor, a busy machine on which all ways took turns. Plain "
            f"evaluation: the median of {len(plain)} points, times {points}. Fastest runtime in float32: "
            f"{best}. The original network's tensors took {kept / 2**20:.0f} MiB."
        )
        made.note('"same": the widths are those that all points give.')


if __name__ == "__main__":
    main()
