"""Does it pay to keep channels in multiples? Equal MACs, int8, both runtimes, interleaved, one thread.

    python bench/multiples.py --network yolov2-tiny-voc --macs 0.5

The widths come from the allocation itself with made-up losses, the square of the share that a group loses
times its MACs, so that all groups are thinned alike and only the multiple differs; the weights are random,
which does not change the time. Prints Markdown.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from record import Table, add_option

from paredown.apps.detector.darknet.darknet import builtin_cfg
from paredown.apps.detector.network import YoloV2
from paredown.pipeline.compress.allocate.allocate import allocate
from paredown.pipeline.compress.allocate.cost import Cost, counted, group_widths
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import thin
from paredown.pipeline.device.timing import interleaved
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.runtimes import RUNTIMES, runtime
from paredown.targets.cards.card import ChannelMultiple

MULTIPLES = (1, 4, 8, 16, 32)


def network(name: str) -> tuple[Graph, int]:
    """A random network of the apps, and the side of its input."""
    torch.manual_seed(0)
    if name.startswith("yolo"):
        cfg = builtin_cfg(name)
        return trace(YoloV2.from_cfg(cfg), (1, 3, cfg.net.height, cfg.net.width)), cfg.net.width
    from paredown.apps.classifier.network import build

    side = 32 if name[6:] in {"20", "32", "44", "56"} else 224
    return trace(build(name).eval(), (1, 3, side, side)), side


def saved(cost: Cost, group: str, widths: tuple[int, ...]) -> float:
    """The share of the MACs that hang on a group: what its narrowest width saves, for all of it."""
    part = 1 - widths[-1] / widths[0]
    return (1 - cost.share({group: widths[-1]})) / part if part else 0.0


def main() -> None:
    """Prints one row per multiple."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="yolov2-tiny-voc")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=30)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    graph, side = network(arguments.network)
    groups = couple(graph)
    cost = counted(graph, groups, "macs")
    image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    graphs, rows = {"whole": graph}, {"whole": (1.0, "")}
    for multiple in MULTIPLES:
        every = ChannelMultiple(conv=multiple, pointwise=multiple, depthwise=multiple, linear=multiple)
        free = {g.name: group_widths(graph, g, every, 64) for g in groups if not g.locked}
        losses = {
            name: {width: saved(cost, name, found) * (1 - width / found[0]) ** 2 for width in found}
            for name, found in free.items()
        }
        found = allocate(groups, losses, cost, limit=arguments.macs, resolution=1e-5)
        kept = {g.name: tuple(range(found.widths[g.name])) for g in groups if not g.locked}
        graphs[str(multiple)] = thin(graph, groups, kept)
        widths = " ".join(str(len(kept[name])) for name in free)
        rows[str(multiple)] = (graphs[str(multiple)].macs / graph.macs, widths)
    runners = {}
    for name, each in graphs.items():
        ranges = {k: (float(v.min()), float(v.max())) for k, v in each.run(torch.from_numpy(image)).items()}
        integer = quantize(each, ranges, input_range=(0.0, 1.0))
        codes = integer.input.out.quantize(image)
        for kind in RUNTIMES:
            program = runtime(kind).lower_integer(integer).data
            runners[name, kind] = (runtime(kind).load(program, 1, name), codes)
    times = interleaved(runners, arguments.runs, lambda done, total: None)  # type: ignore[arg-type]
    print(f"{arguments.network} at {side}, {arguments.runs} interleaved runs, one thread\n")
    per_runtime = [head for kind in RUNTIMES for head in (f"{kind} ms (p10-p90)", "against 1")]
    heads = ("multiple", "MACs", *per_runtime, "channels")
    with Table("multiples", heads, arguments.record) as table:
        for name, (share, widths) in rows.items():
            cells = []
            for kind in RUNTIMES:
                values = times[name, kind]  # type: ignore[index]
                spread = f"{np.percentile(values, 10):.1f}-{np.percentile(values, 90):.1f}"
                against = np.median(values) / np.median(times["1", kind])  # type: ignore[index]
                cells += [f"{np.median(values):.1f} ({spread})", f"{against:.2f}"]
            table.row(name, f"{share:.3f}", *cells, widths)


if __name__ == "__main__":
    main()
