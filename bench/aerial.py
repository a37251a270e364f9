"""A detector of cars seen from above: its data, its training, the pipeline, and what tiles are worth.

    python bench/aerial.py prepare WORK     # split, tiles, anchors: a minute
    python bench/aerial.py train WORK       # 2,000 steps, forty minutes of a core
    python bench/aerial.py pipeline WORK    # by the recipe `aerial`, half an hour of a core
    python bench/aerial.py score WORK       # whole frames: untiled, tiled

Each goes on where it was killed. `--smoke` before the command takes a handful of steps and images.

The 92 frames show six places. Two of them, from videos of their own, are the test set: the crossing of
DJI_0762 (6 frames) and Munich's street (15). Nothing of these places is ever trained or calibrated on. Of the
five classes two are left out: 6 trucks in all cannot be learned or scored, and there is no cyclist.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from record import Table, add_option

from paredown.apps.detector.device.boxes.decode import Detections, iou_matrix
from paredown.apps.detector.device.flight.tiles import Tiling
from paredown.apps.detector.train.anchors import kmeans_anchors, mean_iou
from paredown.calibration.datasets import ImageSet, Sample, open_dataset

LABELLED = ("car", "truck", "bus", "minibus", "cyclist")
NAMES = ("car", "bus", "minibus")
TEST_PLACES = ("DJI_0762-", "MunichStreet02-")
TILING = Tiling(size=416, overlap=0.25)
SHARES = (0.6, 0.2, 0.2)  # of the classes among the objects that training crops show
VISIBLE = 0.5  # least share of a box inside a crop for it to stay a label
STRIDE = 16
BATCH = 16
NETWORK, WEIGHTS = "yolov2-aerial", "aerial.safetensors"
SHARED = Path(__file__).parents[2] / "shared" / "data"


# -- data ----------------------------------------------------------------------------------------------------


def is_test(name: str) -> bool:
    """Whether a frame belongs to the test places."""
    return name.startswith(TEST_PLACES)


def frames(source: Path, test: bool) -> list[Sample]:
    """The decoded frames of one split, in the order of their names."""
    found = open_dataset("yolo", source, names=NAMES, label_names=LABELLED, require_labels=True)
    assert isinstance(found, ImageSet)
    chosen = [i for i, record in enumerate(found.records) if is_test(record.name) == test]
    return [found[i] for i in chosen]


def corners(sample: Sample) -> np.ndarray:
    """(N, 4) x1, y1, x2, y2 in pixels."""
    height, width = sample.image.shape[:2]
    centre, half = sample.boxes[:, :2], sample.boxes[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]


def inside(boxes: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts boxes (N, 4) to a window (4,), and says which of them (N,) can still be seen."""
    cut = np.concatenate([np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])], axis=1)
    left = np.maximum(cut[:, 2:] - cut[:, :2], 0).prod(axis=1)
    return cut, left >= np.maximum(VISIBLE * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)


class Crops:
    """Square crops around objects, turned and scaled: a data set of its own, a pure function of the index.

    An object is drawn by class (the rare ones more often than they occur), a crop around it, its scale
    between 0.66 and 1.5, and one of four orientations: seen from above nothing has a right way up.
    """

    names = NAMES

    def __init__(self, frames: list[Sample], count: int, side: int = 256, seed: int = 0) -> None:
        self.frames, self.count, self.side, self.seed = frames, count, side, seed
        self._objects = [
            [(frame, i) for frame in frames for i in np.flatnonzero(frame.classes == category)]
            for category in range(len(NAMES))
        ]

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        """Of the frames' pixels and labels, and of the settings."""
        digest = hashlib.sha256(f"{self.count} {self.side} {self.seed} {SHARES}".encode())
        for frame in self.frames:
            for part in (frame.image, frame.boxes, frame.classes):
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Sample:
        chance = np.random.default_rng([self.seed, index])
        objects = self._objects[chance.choice(len(NAMES), p=SHARES)]
        frame, which = objects[int(chance.integers(len(objects)))]
        boxes = corners(frame)
        span = self.side / 2 ** chance.uniform(-0.6, 0.6)
        centre = (boxes[which, :2] + boxes[which, 2:]) / 2 + span * chance.uniform(-0.45, 0.45, 2)
        room = np.maximum(np.array(frame.image.shape[1::-1]) - span, 0)  # as little border as can be
        start = np.clip(centre - span / 2, 0, room)
        scale = self.side / span
        # Boxes measure from the image's edge, OpenCV from the first pixel's centre.
        matrix = np.hstack([np.eye(2) * scale, (scale / 2 - 0.5 - scale * start)[:, None]])
        size, grey = (self.side, self.side), (128, 128, 128)
        image = cv2.warpAffine(frame.image, matrix, size, borderValue=grey)
        cut, seen = inside((boxes - np.tile(start, 2)) * scale, np.array([0, 0, *size]))
        boxes = np.concatenate([cut[:, :2] + cut[:, 2:], 2 * (cut[:, 2:] - cut[:, :2])], 1) / 2 / self.side
        turns = int(chance.integers(4))
        image, boxes = np.ascontiguousarray(np.rot90(image, turns)), turned(boxes[seen], turns)
        return Sample(f"crop-{index}", image, boxes.astype(np.float32), frame.classes[seen], labelled=True)


def turned(boxes: np.ndarray, turns: int) -> np.ndarray:
    """Boxes (N, 4) cx, cy, w, h of a square image after that many quarter turns counter-clockwise."""
    for _ in range(turns):
        boxes = np.stack([boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3], boxes[:, 2]], axis=1)
    return boxes


def write_tiles(samples: list[Sample], folder: Path) -> int:
    """Writes the tiles of frames with their YOLO labels; returns how many boxes they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for sample in samples:
        boxes = corners(sample)
        for window in TILING.windows(*sample.image.shape[:2]):
            edge = np.array([window.left, window.top, window.right, window.bottom], float)
            cut, seen = inside(boxes, edge)
            size = np.tile(edge[2:] - edge[:2], 2)
            cut = (cut - np.tile(edge[:2], 2)) / size
            rows = [
                f"{category} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"
                for (x1, y1, x2, y2), category in zip(cut[seen], sample.classes[seen], strict=True)
            ]
            stem = folder / f"{Path(sample.name).stem}_{window.left}_{window.top}"
            cv2.imwrite(f"{stem}.png", window.cut(sample.image))
            stem.with_name(stem.name + ".txt").write_text("".join(rows))
            total += len(rows)
    return total


def shuffled_list(folder: Path, path: Path) -> int:
    """Writes the list of a folder's images in an order that no name decides; the pipeline takes the first."""
    names = sorted(folder.glob("*.png"), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    path.write_text("".join(f"{file.relative_to(path.parent)}\n" for file in names))
    return len(names)


def prepare(source: Path, work: Path) -> None:
    """Splits the frames by place, cuts both splits into tiles, and measures the anchors."""
    if work.exists():
        shutil.rmtree(work)
    (work / "frames").mkdir(parents=True)
    (work / "labelled.names").write_text("\n".join(LABELLED) + "\n")
    (work / "aerial.names").write_text("\n".join(NAMES) + "\n")
    for split in ("train", "test"):
        samples = frames(source, split == "test")
        boxes = write_tiles(samples, work / split)
        tiles = shuffled_list(work / split, work / f"{split}.txt")
        listed = "".join(f"{(source / sample.name).absolute()}\n" for sample in samples)
        (work / "frames" / f"{split}.txt").write_text(listed)
        counts = np.bincount(np.concatenate([sample.classes for sample in samples]), minlength=len(NAMES))
        each = ", ".join(f"{name} {count}" for name, count in zip(NAMES, counts, strict=True))
        print(f"{split}: {len(samples)} frames ({each}), {tiles} tiles ({boxes} boxes)")
        if split == "train":
            sizes = np.concatenate([corners(s)[:, 2:] - corners(s)[:, :2] for s in samples]) / STRIDE
            sizes = np.concatenate([sizes, sizes[:, ::-1]])
            anchors = kmeans_anchors(sizes)
            text = ", ".join(f"{w:.2f},{h:.2f}" for w, h in anchors)
            print(f"anchors={text}  (mean IoU {mean_iou(sizes, anchors):.3f})")


# -- training ------------------------------------------------------------------------------------------------


def from_voc(network, folder: Path) -> None:
    """Gives a network the convolutions of YOLO-LITE that fit it: all but its head."""
    from paredown.apps.detector.network import YoloV2
    from paredown.apps.detector.network.weights import load_checkpoint

    voc = YoloV2.from_cfg(folder / "voc-trial3-bn.cfg")
    load_checkpoint(folder / "voc-trial3-bn.weights", voc)
    theirs = [layer for layer in voc.layers if hasattr(layer, "conv")]
    ours = [layer for layer in network.layers if hasattr(layer, "conv")]
    for mine, given in zip(ours, theirs, strict=False):  # ours goes on where theirs ends
        mine.load_state_dict(given.state_dict())


def train_detector(source: Path, work: Path, voc: Path, steps: int) -> None:
    """Trains from YOLO-LITE's convolutions; a killed training goes on from its last checkpoint."""
    import torch

    from paredown.apps.detector.network import YoloV2
    from paredown.apps.detector.train.augment import Augment
    from paredown.apps.detector.train.config import TrainConfig
    from paredown.apps.detector.train.train import train
    from paredown.calibration.preprocess import Preprocess
    from paredown.pipeline.store.checkpoint import save_weights

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    network = YoloV2.builtin(NETWORK)
    from_voc(network, voc)
    epochs = min(8, steps)
    crops = Crops(frames(source, test=False), count=BATCH * steps // epochs)
    # The crops are already scaled and shifted, and cheap to cut again.
    config = TrainConfig(
        epochs=epochs, batch=BATCH, lr=0.01, warmup=min(200, steps // 4), checkpoint_every=50, cache_mib=0,
        augment=Augment(zoom=0, shift=0, colour=0.3),
    )  # fmt: skip
    size = Preprocess(width=crops.side, height=crops.side)
    checkpoint = work / "aerial.checkpoint"
    train(network, crops, config, preprocess=size, checkpoint=checkpoint, report=say)
    save_weights(work / WEIGHTS, network)
    checkpoint.unlink()
    say(f"wrote {work / WEIGHTS}")


def say(line: str) -> None:
    """Words go to standard error."""
    print(line, file=sys.stderr, flush=True)


# -- pipeline and score --------------------------------------------------------------------------------------


def run_pipeline(work: Path, smoke: bool, record: str | None) -> None:
    """Prunes, squantizes and lowers by the recipe `aerial`; goes on where it was killed."""
    from paredown.apps.cli.console import recipe_folders
    from paredown.pipeline.recipe.file import load_recipe
    from paredown.pipeline.report.figures import figures_table
    from paredown.pipeline.run.run import Run
    from paredown.targets.cards.card import load_card

    here = {
        "weights": WEIGHTS, "data.names": "aerial.names", "data.train": "train.txt", "data.test": "test.txt",
    }  # fmt: skip
    settings = [f"{key}={work / name}" for key, name in here.items()]
    recipe = load_recipe("aerial", settings, recipe_folders())
    result = Run(
        "aerial", recipe, load_card("host"), work / "runs", smoke=smoke, tell=lambda event: say(event.line())
    ).execute()
    from rich.console import Console

    Console(width=120).print(figures_table(result.figures))
    for note in result.notes:
        print(f"note: {note}")
    stages({(figure.variant, figure.metric): figure.value for figure in result.figures}, record)


def stages(figures: dict[tuple[str, str], float], record: str | None) -> None:
    """Prints what each stage costs and saves; the last KiB are of its LiteRT program in a bundle.

    Args:
        figures: of a run, by variant and metric.
        record: as `--record` has it.
    """

    def costs(size: float, kind: str) -> list[str]:
        ms = [f"{figures[runtime + kind, 'latency_p50']:.2f}" for runtime in ("executorch", "litert")]
        return [f"{size / 1024:,.1f}", *ms]

    def work(variant: str) -> str:
        return f"{figures[variant, 'macs'] / figures['fp32', 'macs']:.1%}"

    def score(variant: str) -> str:
        return f"{figures[variant, 'map50']:.4f}"

    original, ours = figures["litert-original", "file_bytes"], figures["litert", "wire_bytes"]
    heads = ("stage", "MACs", "mAP@0.5", "KiB", "ExecuTorch ms", "LiteRT ms")
    with Table("aerial", heads, record, part="stages") as table:
        table.row("float32", work("fp32"), score("fp32"), *costs(figures["fp32", "state_bytes"], "-fp32"))
        table.row("original, int8", work("fp32"), "-", *costs(original, "-original"))
        table.row("pruned, recovered", work("pruned"), score("pruned"), "-", "-", "-")
        table.row("and SQuantizer", work("pruned"), score("squantized"), "-", "-", "-")
        table.row("the same, int8", work("pruned"), score("litert"), *costs(ours, ""))


def score(source: Path, bundle: Path, smoke: bool, record: str | None) -> None:
    """Prints what the bundle finds in whole test frames, untiled and tiled."""
    from paredown.apps.detector.device.detect import Detector
    from paredown.apps.detector.device.flight.tiles import Tiled
    from paredown.apps.detector.scoring.score import class_average_precisions, map50_interval
    from paredown.pipeline.bundle.archive import extract, unpack

    samples = frames(source, test=True)[:: 10 if smoke else 1]
    with tempfile.TemporaryDirectory() as folder:
        extract(unpack(bundle), Path(folder))
        detector = Detector(Path(folder))
    total = [sum(int((s.classes == c).sum()) for s in samples) for c in range(len(NAMES))]
    heads = [f"{name} ({count})" for name, count in zip(NAMES, total, strict=True)]
    columns = (f"{len(samples)} whole frames", "mAP@0.5", "95 %", *heads, f"found of {sum(total)}")
    with Table("aerial", columns, record, part="frames") as table:
        for name, model in (("untiled", detector), ("tiled", Tiled(detector, TILING))):
            found = []
            for sample in samples:
                outputs = model.infer(model.prepare(sample.image))
                found.append(model.decode(outputs, sample.image.shape[:2], 0.005))
            each = class_average_precisions(found, samples)
            low, high = map50_interval(found, samples)
            right = sum(count_found(one, sample) for one, sample in zip(found, samples, strict=True))
            cells = [f"{each[c]:.4f}" if c in each else "-" for c in range(len(NAMES))]
            mean = float(np.mean(list(each.values())))
            table.row(name, f"{mean:.4f}", f"{low:.3f} to {high:.3f}", *cells, right)


def count_found(found: Detections, sample: Sample) -> int:
    """How many labelled objects a shown detection (score over 0.5) of their class covers with IoU 0.5."""
    shown = found.above(0.5)
    height, width = sample.image.shape[:2]
    overlaps = iou_matrix(corners(sample) / [width, height, width, height], shown.boxes)
    overlaps[sample.classes[:, None] != shown.classes] = 0
    return int((overlaps >= 0.5).any(axis=1).sum())


# -- command -------------------------------------------------------------------------------------------------


def main() -> None:
    """One sub-command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a handful of steps and images")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "train", "pipeline", "score"):
        each = commands.add_parser(name)
        each.add_argument("work", type=Path, help="folder of tiles, weights and runs")
        each.add_argument("--source", type=Path, default=SHARED / "aerial-cars")
        if name == "train":
            each.add_argument("--voc", type=Path, default=SHARED / "yololite-yolov2")
            each.add_argument("--steps", type=int, default=2000, help="of 16 crops")
        if name == "score":
            each.add_argument("--bundle", type=Path, help="unless it is that of `pipeline`")
        if name in ("pipeline", "score"):
            add_option(each)
    arguments = parser.parse_args()
    work, source = arguments.work, arguments.source
    if arguments.command == "prepare":
        prepare(source, work)
    elif arguments.command == "train":
        train_detector(source, work, arguments.voc, 4 if arguments.smoke else arguments.steps)
    elif arguments.command == "pipeline":
        run_pipeline(work, arguments.smoke, arguments.record)
    else:
        bundle = arguments.bundle or work / "runs" / "aerial" / "host" / "bundle.paredown"
        score(source, bundle, arguments.smoke, arguments.record)


if __name__ == "__main__":
    main()
