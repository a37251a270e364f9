"""The fast sensitivity test against plain evaluation, one thread: the same metric at every reported point.

    python bench/sensitivity.py [resnet56|yolov2-tiny-voc] [--images 64] [--groups 3] [--widths 4]
        [--batch 32] [--macs 0.5] [--cifar FOLDER] [--weights FILE]
    python bench/sensitivity.py yolov2-tiny-voc --train FILE    # makes these weights, in ten minutes

Plain evaluation runs the whole network on the whole sample for every point: the user's own module with its BN
(eval, inference mode), and the traced graph with BN folded; both masked, in the batch size given (try some)
and torch's own memory format. All three are timed in seconds of the process, scoring left out, and the fast
test before and after the others. Without weights or images the sample and the network are random: times and
the equality of outputs do not depend on them, but which points an allocation needs does. Trained weights of
yolov2-tiny-voc are not ours to bring: it learns to find digits in scenes of 160 by 160, and is measured by
mAP@0.5 at 416 by 416, where four scenes that it has not seen lie on a grey canvas.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Table, add_option
from torch import nn

from paredown.pipeline.compress.allocate.allocate import Allocation, allocate, predicted_losses
from paredown.pipeline.compress.allocate.cost import counted
from paredown.pipeline.compress.allocate.lazy import allocate_lazily
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.surgery import mask
from paredown.pipeline.compress.sensitivity import ranking
from paredown.pipeline.compress.sensitivity.experiment import Experiment, Outputs
from paredown.pipeline.compress.sensitivity.meter import Meter, measure
from paredown.pipeline.compress.sensitivity.plain import plain
from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace

ROOT = Path(__file__).parents[1]


class Timed:
    """A score that counts its own time, and keeps the outputs of whole samples for comparison."""

    def __init__(self, score: Callable[[Sequence[Outputs]], tuple[float, float, float]]) -> None:
        self.score, self.seconds = score, 0.0

    def __call__(self, outputs: Sequence[Outputs]) -> tuple[float, float, float]:
        start = time.process_time()
        found = self.score(outputs)
        self.seconds += time.process_time() - start
        return found


def top1(truth: np.ndarray) -> Callable[[Sequence[Outputs]], tuple[float, float, float]]:
    """Top-1 with Wilson's interval."""

    def score(outputs: Sequence[Outputs]) -> tuple[float, float, float]:
        right = np.array([o[0][0].argmax() for o in outputs]) == truth[: len(outputs)]
        n, p, z = len(right), float(right.mean()), 1.96
        centre, half = p + z * z / 2 / n, z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
        return p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)

    return score


def cells(truth: list[np.ndarray]) -> Callable[[Sequence[Outputs]], tuple[float, float, float]]:
    """For a random detector: the share of cells and anchors whose class is that of the unpruned network."""

    def score(outputs: Sequence[Outputs]) -> tuple[float, float, float]:
        same = np.concatenate([classes(o) == t for o, t in zip(outputs, truth, strict=False)])
        return float(same.mean()), 0.0, 1.0

    return score


def classes(outputs: Outputs) -> np.ndarray:
    return outputs[3][0].reshape(5, 20, -1).argmax(1).ravel()


def resnet56(arguments: argparse.Namespace) -> tuple[nn.Module, np.ndarray, Any]:
    from paredown.apps.classifier.network import build

    network, images = build("resnet56", 10).eval(), arguments.images
    if arguments.weights:
        state = torch.load(arguments.weights, map_location="cpu", weights_only=True)["state_dict"]
        network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    if arguments.cifar:
        import cv2

        sheet = cv2.imread(str(arguments.cifar / "train4000.png"))[:images, :, ::-1] / 255
        sheet = (sheet - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        x = sheet.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).astype(np.float32).copy()
        return network, x, top1(np.loadtxt(arguments.cifar / "train4000.labels.txt", dtype=int)[:images])
    x = np.random.default_rng(0).standard_normal((images, 3, 32, 32), np.float32)
    return network, x, top1(np.array([o[0][0].argmax() for o in run_module(network, x, 32)]))


def tiny_voc(arguments: argparse.Namespace) -> tuple[nn.Module, np.ndarray, Any]:
    from paredown.apps.detector.network import YoloV2

    if arguments.weights:
        return digits_detector(arguments)
    network = YoloV2.builtin("yolov2-tiny-voc").eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1)
    x = np.random.default_rng(0).random((arguments.images, 3, 416, 416), np.float32)
    return network, x, cells([classes(o) for o in run_module(network, x, 4)])


def digits_network(side: int) -> nn.Module:
    """yolov2-tiny-voc for ten classes and squares of so many pixels."""
    from paredown.apps.detector.darknet.darknet import parse_cfg
    from paredown.apps.detector.network import YoloV2

    text = (ROOT / "apps" / "detector" / "darknet" / "cfgs" / "yolov2-tiny-voc.cfg").read_text()
    for old, new in (("filters=125", "filters=75"), ("classes=20", "classes=10"), ("=416", f"={side}")):
        text = text.replace(old, new)
    return YoloV2(parse_cfg(text))


def train_digits(path: Path) -> None:
    """Trains on the training scenes, two epochs, and writes the weights."""
    from paredown.apps.detector.digits import Digits
    from paredown.apps.detector.train.augment import Augment
    from paredown.apps.detector.train.config import TrainConfig
    from paredown.apps.detector.train.train import train

    config = TrainConfig(epochs=2, lr=0.02, warmup=100, ema=0.98, augment=Augment(flips=False))
    checkpoint = path.with_suffix(".checkpoint")
    result = train(
        digits_network(160), Digits("train"), config, validation=Digits("validation"), checkpoint=checkpoint,
        report=print,
    )  # fmt: skip
    torch.save(result.network.state_dict(), path)


def canvas(scenes: Sequence[Any]) -> tuple[np.ndarray, Any]:
    """Four scenes of 160 by 160 as a grey image of 416 by 416, and where their digits are now."""
    from paredown.apps.detector.scoring.truth import Truth

    image, boxes = np.full((416, 416, 3), 128, np.uint8), []
    for index, scene in enumerate(scenes):
        left, top = 208 * (index % 2), 208 * (index // 2)
        image[top : top + 160, left : left + 160] = scene.image
        boxes.append((scene.boxes * 160 + [left, top, 0, 0]) / 416)
    classes = np.concatenate([scene.classes for scene in scenes])
    return image, Truth(np.concatenate(boxes), classes, True, image.shape[:2])


def digits_detector(arguments: argparse.Namespace) -> tuple[nn.Module, np.ndarray, Any]:
    """The trained detector, canvases of validation scenes, and mAP@0.5 with its interval."""
    from paredown.apps.detector.device.boxes.decode import detect
    from paredown.apps.detector.digits import Digits
    from paredown.apps.detector.scoring.score import map50, map50_interval
    from paredown.calibration.preprocess import Preprocess

    network: Any = digits_network(416).eval()
    network.load_state_dict(torch.load(arguments.weights, weights_only=True))
    scenes, look = Digits("validation", 4 * arguments.images), Preprocess(416, 416)
    made = [canvas([scenes[4 * k + i] for i in range(4)]) for k in range(arguments.images)]

    def score(outputs: Sequence[Outputs]) -> tuple[float, float, float]:
        found = [detect([part[0] for part in one], network.anchors) for one in outputs]
        truths = [truth for _, truth in made[: len(outputs)]]
        return map50(found, truths), *map50_interval(found, truths)

    return network, np.stack([look(image) for image, _ in made]), score


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


@torch.inference_mode()
def run_module(network: nn.Module, x: np.ndarray, batch: int) -> list[Outputs]:
    found: list[Outputs] = []
    for part in torch.from_numpy(x).split(batch):
        y = network(part)
        arrays = [t.numpy() for t in (y if isinstance(y, tuple) else (y,))]
        found += [tuple(a[i : i + 1] for a in arrays) for i in range(len(part))]
    return found


def run_graph(graph: Graph, x: np.ndarray, batch: int) -> list[Outputs]:
    found: list[Outputs] = []
    for part in torch.from_numpy(x).split(batch):
        values = graph.run(part)
        arrays = [values[name].numpy() for name in graph.outputs]
        found += [tuple(a[i : i + 1] for a in arrays) for i in range(len(part))]
    return found


def clock(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def main() -> None:
    """Prints one row per way of measuring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet56", choices=["resnet56", "yolov2-tiny-voc"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--groups", type=int, default=3, help="evenly spread; 0: all")
    parser.add_argument("--widths", type=int, default=4, help="per group, the full one included")
    parser.add_argument("--batch", type=int, default=32, help="of plain evaluation")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5], help="budgets to allocate for")
    parser.add_argument("--cifar", type=Path, help="folder with train4000.png and train4000.labels.txt")
    parser.add_argument("--weights", type=Path, help="of ResNet-56 (akamaster), or what --train made")
    parser.add_argument("--train", type=Path, metavar="FILE", help="train yolov2-tiny-voc, write its weights")
    parser.add_argument("--same-bits", action="store_true", help="compare with plain() too, to the last bit")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.train:
        train_digits(arguments.train)
        return
    network, x, score = {"resnet56": resnet56, "yolov2-tiny-voc": tiny_voc}[arguments.network](arguments)
    graph = trace(network, (1, *x.shape[1:]))
    groups = couple(graph)
    free = [g for g in groups if not g.locked]
    chosen = free[:: max(1, len(free) // arguments.groups)] if arguments.groups else free
    parts = arguments.widths
    widths = {g.name: [max(1, g.units * k // parts) for k in range(parts, 0, -1)] for g in chosen}
    ranks = ranking.ranking(ranking.norm(graph, groups))

    importance = {name: scores.tolist() for name, scores in ranking.norm(graph, groups).items()}
    cost = counted(graph, groups, "macs")
    options: dict[str, Any] = {"importance": importance, "resolution": 1 / len(x)}

    def every(timed: Timed) -> tuple[Sensitivity, None]:
        return measure(graph, groups, ranks, widths, x, timed, "metric"), None

    def needed(timed: Timed, limit: float) -> tuple[Sensitivity, Allocation]:
        meter = Meter(graph, groups, ranks, widths, x, timed, "metric")
        plan = allocate_lazily(groups, widths, meter.ask, cost, limit=limit, **options)
        return meter.found(), plan

    def fast(way: Callable[[Timed], Any]) -> tuple[Any, float]:
        timed = Timed(score)
        found, seconds = clock(lambda: way(timed))
        return found, seconds - timed.seconds

    ways: dict[str, Any] = {"every point": every}
    for share in arguments.macs:
        ways[f"allocation for {share:g} of the MACs"] = functools.partial(needed, limit=share)
    found = {name: fast(way) for name, way in ways.items()}
    losses = predicted_losses(found["every point"][0][0])
    points = [(g, w) for g in chosen for w in widths[g.name] if w < g.units]
    truth: dict[str, dict[tuple[str, int], float]] = {"module": {}, "graph": {}}
    seconds, apart = {"module": 0.0, "graph": 0.0}, 0.0
    for group, width in points:
        units = set(ranks[group.name][:width])
        module = masked_module(network, graph, group, units)
        masked = mask(graph, groups, {group.name: sorted(units)})
        a, time_a = clock(lambda m=module: run_module(m, x, arguments.batch))
        b, time_b = clock(lambda m=masked: run_graph(m, x, arguments.batch))
        seconds["module"] += time_a
        seconds["graph"] += time_b
        truth["module"][group.name, width], truth["graph"][group.name, width] = score(a)[0], score(b)[0]
        ours = zip(a, b, strict=True)
        apart = max(
            apart, max(float(np.abs(p - q).max()) for u, v in ours for p, q in zip(u, v, strict=True))
        )
    again = {name: fast(way) for name, way in ways.items()}
    print(
        f"{arguments.network}, {len(x)} images, {len(chosen)} groups, {len(points)} points beside full width"
    )
    print(
        f"plain in batches of {arguments.batch}; module and graph differ by up to {apart:.2g} in an output\n"
    )
    heads = (
        "fast", "fast, s", "plain module, s", "speed-up", "plain graph, s", "speed-up", "reported", "skipped",
        "equal metrics", "widths",
    )  # fmt: skip
    with Table(f"sensitivity-{arguments.network}", heads, arguments.record) as table:
        for name, ((result, plan), first) in found.items():
            own = (first + again[name][1]) / 2
            shown = {(c.group, p.width): p.metric for c in result.curves for p in c.points[1:]}
            skipped = sum(value is None for value in shown.values())
            reported = {key: value for key, value in shown.items() if value is not None}
            equal = [all(truth[way][key] == value for key, value in reported.items()) for way in truth]
            cells_ = [cell for s in seconds.values() for cell in (f"{s:.1f}", f"{s / own:.2f}x")]
            verdict = f"module {'yes' if equal[0] else 'NO'}, graph {'yes' if equal[1] else 'NO'}"
            whole = plan and allocate(groups, losses, cost, limit=plan.requested, **options)
            same = "-" if plan is None else "same" if plan.widths == whole.widths else "OTHERS"
            table.row(name, f"{own:.1f}", *cells_, len(reported), skipped, verdict, same)
    if arguments.same_bits:
        other = plain(graph, groups, ranks, widths, x, score, "metric")
        print(
            f"\nplain(): {'the same to the last bit' if other == found['every point'][0][0] else 'DIFFERENT'}"
        )


if __name__ == "__main__":
    main()
