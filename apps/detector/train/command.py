"""The command `paredown train`: options in, weights out."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from torch import nn

from paredown.apps.detector.darknet.darknet import builtin_cfg
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.network.v8 import BUILTIN, builtin
from paredown.apps.detector.train.augment import Augment
from paredown.apps.detector.train.config import TrainConfig
from paredown.apps.detector.train.train import plain_input, train
from paredown.apps.detector.weights import load_checkpoint, write_weights
from paredown.calibration.datasets import Dataset, open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe import weights
from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.store.checkpoint import save_weights
from paredown.targets.errors import UsageError


class _Meter:
    """Words on stderr, and a bar once it has taken more than two seconds."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.task = self.progress.add_task("training", total=None)
        self.began = time.monotonic()

    def tick(self, done: int, total: int) -> None:
        """Moves the bar."""
        if not self.progress.live.is_started and time.monotonic() - self.began > 2:
            self.progress.start()
        self.progress.update(self.task, completed=done, total=total)

    def report(self, line: str) -> None:
        """Prints a line above the bar."""
        self.console.print(line)

    def close(self) -> None:
        """Takes the bar away."""
        if self.progress.live.is_started:  # else it would print an empty line, of an error too
            self.progress.stop()


def parser(prog: str) -> argparse.ArgumentParser:
    """The options.

    Args:
        prog: the name of the command, for its help.
    """
    default = TrainConfig()
    made = argparse.ArgumentParser(prog, description="Trains a detector: a YOLO v2, or one with v8 heads.")
    add = made.add_argument
    add("data", metavar="DATA", help="`digits` (the embedded set), or the folder or file of training images")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the weights: .safetensors or .weights (darknet)",
    )
    add(
        "--network",
        default="yolov2-nano",
        help="a built-in network, a .cfg file or my_package.nets:factory (default: %(default)s)",
    )
    add("--size", type=int, metavar="PIXELS", help="width and height of the input (default: the network's)")
    add("--weights", type=Path, metavar="FILE", help="weights to start from")
    add("--format", default="yolo", help="format of the data: yolo, voc or coco (default: %(default)s)")
    add(
        "--names",
        type=Path,
        metavar="FILE",
        help="class names, one per line; required unless DATA is `digits`",
    )
    add("--validation", type=Path, metavar="PATH", help="labelled images; scored every few epochs")
    add(
        "--resize",
        default="stretch",
        choices=("stretch", "letterbox", "crop"),
        help="how an image gets the network's size (default: %(default)s)",
    )
    for name, text in (
        ("epochs", "passes over the training images"),
        ("batch", "images per step"),
        ("warmup", "steps over which the learning rate rises"),
        ("seed", "random seed"),
    ):
        add(f"--{name}", type=int, default=getattr(default, name), help=f"{text} (default: %(default)s)")
    for name, text in (
        ("lr", "maximum learning rate"),
        ("weight-decay", "weight decay of the convolutions"),
        ("ema", "decay per step of the averaged weights; 0 = no average"),
    ):
        value = getattr(default, name.replace("-", "_"))
        add(f"--{name}", type=float, default=value, help=f"{text} (default: %(default)s)")
    add("--multi-scale", action="store_true", help="change the input size every 10 steps")
    add("--no-flips", action="store_true", help="never mirror images (`digits` are never mirrored)")
    add("--threads", type=int, default=0, help="threads of torch (default: its own choice)")
    add("--device", default=default.device, help="device of torch (default: %(default)s)")
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="file to resume from (default: --out with .checkpoint appended); deleted at the end",
    )
    return made


def _network(arguments: argparse.Namespace, classes: int) -> nn.Module:
    torch.manual_seed(arguments.seed)
    name: str = arguments.network
    made: nn.Module
    if ":" in name:
        made, _ = from_factory(name)
        if not isinstance(made, nn.Module):
            raise UsageError(f"{name} made a {type(made).__name__}", hint="it must be a torch.nn.Module")
    elif name in BUILTIN:
        made = builtin(name, classes)
    else:
        made = Yolo.from_cfg(name) if name.endswith(".cfg") else Yolo(builtin_cfg(name, tuple(BUILTIN)))
    if arguments.out.suffix == ".weights" and not isinstance(made, Yolo):
        raise UsageError(f"--out {arguments.out}: {name} is no network of darknet", hint="use .safetensors")
    if arguments.weights and isinstance(made, Yolo):
        load_checkpoint(arguments.weights, made)
    elif arguments.weights:
        weights.load_checkpoint(arguments.weights, made, name)
    return made


def _load(arguments: argparse.Namespace) -> tuple[nn.Module, Dataset, Dataset | None]:
    if arguments.data == "digits":
        from paredown.apps.detector.digits import Digits

        return _network(arguments, len(Digits.names)), Digits("train"), Digits("validation")
    if not arguments.names:
        raise UsageError("--names is missing", hint="give the file with the classes' names, one a line")
    names = read_names(arguments.names)
    opened = [
        open_dataset(arguments.format, path, names=names, require_labels=True) if path else None
        for path in (Path(arguments.data), arguments.validation)
    ]
    assert opened[0] is not None
    return _network(arguments, len(names)), opened[0], opened[1]


def run(arguments: argparse.Namespace) -> None:
    """Trains a network, and writes its weights.

    Args:
        arguments: as `parser` reads them.

    Raises:
        UsageError: an option that cannot work.
        InputError: the data, the names or the weights cannot be read.
    """
    if arguments.out.suffix not in (".safetensors", ".weights"):
        raise UsageError(f"--out {arguments.out}", hint="end it with .safetensors or .weights")
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
        cv2.setNumThreads(arguments.threads)
    network, dataset, validation = _load(arguments)
    flips = not arguments.no_flips and arguments.data != "digits"
    config = TrainConfig(
        epochs=arguments.epochs, batch=arguments.batch, lr=arguments.lr, weight_decay=arguments.weight_decay,
        warmup=arguments.warmup, ema=arguments.ema, multi_scale=arguments.multi_scale, seed=arguments.seed,
        augment=Augment(flips=flips), device=arguments.device,
    )  # fmt: skip
    size = arguments.size
    preprocess = Preprocess(width=size, height=size) if size else plain_input(network)
    preprocess = replace(preprocess, resize=arguments.resize)
    checkpoint = arguments.checkpoint or arguments.out.with_name(arguments.out.name + ".checkpoint")
    meter = _Meter()
    try:
        train(
            network, dataset, config, preprocess=preprocess, validation=validation, checkpoint=checkpoint,
            report=meter.report, tick=meter.tick,
        )  # fmt: skip
    finally:
        meter.close()
    if arguments.out.suffix == ".weights" and isinstance(network, Yolo):
        write_weights(arguments.out, network)
    else:
        save_weights(arguments.out, network)
    if not arguments.checkpoint:
        checkpoint.unlink(missing_ok=True)
    meter.report(f"wrote {arguments.out}")
