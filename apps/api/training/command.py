"""The command `paredown train`: labelled images in; weights and a recipe for `paredown run` out."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn

from paredown.apps.api.training.hold_out import hold_out, opened
from paredown.apps.api.training.meter import Meter
from paredown.apps.api.training.networks import (
    SHIPPED,
    choose_size,
    shaped_cfg,
    small_boxes,
    start_from,
    write_cfg,
)
from paredown.apps.api.training.outcome import Files, Keeper, metadata, recipe_text
from paredown.apps.api.training.source import CLASSIFIER, Source, find_source
from paredown.apps.detector.darknet.darknet import builtin_cfg, read_cfg
from paredown.apps.detector.darknet.layers import coarsest_stride
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.network.v8 import BUILTIN, builtin
from paredown.apps.detector.train.augment import Augment
from paredown.apps.detector.train.config import TrainConfig
from paredown.apps.detector.train.train import plain_input, train
from paredown.apps.own.trainer import TrainSettings
from paredown.calibration.census import Census
from paredown.calibration.datasets import Dataset, ImageSet
from paredown.calibration.preprocess import RESAMPLES, Preprocess
from paredown.pipeline.compress.training.data import ImageSubset
from paredown.pipeline.compress.training.loop import device_name, training_device
from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import InputError, UsageError
from paredown.targets.host.tools import lacks

DIGITS = "digits"
STEPS, EPOCHS = 2000, (30, 200)  # where epochs are not given: so many steps, within these epochs
LOOKS, PATIENCE = 40, 12  # scores on the validation images, and how many without a gain end it
FEW = 10  # examples of a class from which next to nothing is learned
AUGMENT = Augment(zoom=0.4, colour=0.1, hsv=(0.015, 0.5, 0.3), mosaic=0.5)


def parser(prog: str) -> argparse.ArgumentParser:
    """The options.

    Args:
        prog: the name of the command, for its help.
    """
    # fmt: off
    made = argparse.ArgumentParser(prog, description="Trains a detector or a classifier on labelled images.")
    add = made.add_argument
    add("data", metavar="DATA",
        help="a folder of labelled images, data.yaml, COCO .json, .csv of file and class; or `digits`")
    add("--out", type=Path, required=True, metavar="FILE",
        help="the weights: .safetensors or .weights (darknet)")
    add("--network", help="a built-in network, a .cfg file or my_package.nets:factory (default: yolov2-nano, "
                          "or resnet20 where images have one class each)")
    add("--size", type=int, metavar="PIXELS",
        help="width and height of the input (default: by the boxes' sizes)")
    add("--weights", metavar="FILE", help="weights to start from, layers that fit are taken; `none` for none "
                                          "(default: of yolov2-nano those of the digits)")
    add("--format", help="yolo, voc, coco or imagefolder (default: by the looks of the data)")
    add("--names", type=Path, metavar="FILE",
        help="class names, one per line (default: those beside the data)")
    add("--validation", type=Path, metavar="PATH",
        help="labelled images that are not trained on (default: those of the data set, else a fifth of it)")
    add("--resize", default="stretch", choices=("stretch", "letterbox", "crop"),
        help="how an image gets the network's size (default: %(default)s)")
    add("--resample", default="bilinear", choices=RESAMPLES,
        help="its pixels: of the four nearest, the mean of all they cover, of sixteen, or as Pillow's "
             "filters (default: %(default)s)")
    add("--epochs", type=int, help="passes over the training images (default: 30 to 200, by their number)")
    add("--batch", type=int, help="images per step (default: 16, or 32 of classifiers and `digits`)")
    add("--patience", type=int, help="scores without a gain after which it stops; 0 = never (default: 12)")
    add("--warmup", type=int,
        help="steps over which the learning rate rises (default: a tenth, 400 at most)")
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    add("--lr", type=float, help="maximum learning rate (default: 0.01, of classifiers 0.05)")
    add("--weight-decay", type=float, default=5e-4, help="weight decay of the weights (default: %(default)s)")
    add("--ema", type=float,
        help="decay per step of the averaged weights; 0 = no average (default: by the steps)")
    add("--multi-scale", action="store_true", help="change the input size every 10 steps")
    add("--no-flips", action="store_true", help="never mirror images (`digits` are never mirrored)")
    add("--no-mosaic", action="store_true", help="never put four images together")
    add("--threads", type=int, default=0, help="threads of torch (default: its own choice)")
    add("--device", default="auto",
        help="device of torch; auto = a GPU where there is one (default: %(default)s)")
    add("--checkpoint", type=Path, metavar="FILE",
        help="file to resume from (default: --out with .checkpoint appended); deleted at the end")
    # fmt: on
    return made


def run(arguments: argparse.Namespace) -> None:
    """Trains a network; writes its weights, and the recipe of a run.

    Args:
        arguments: as `parser` reads them.

    Raises:
        UsageError: an option that cannot work.
        InputError: the data, the names or the weights cannot be read.
    """
    if arguments.out.suffix not in (".safetensors", ".weights"):
        raise UsageError(f"--out {arguments.out}", hint="end it with .safetensors or .weights")
    if not arguments.out.absolute().parent.is_dir():
        raise InputError("no such folder", where=arguments.out.absolute().parent, hint="make it first")
    if arguments.size is not None and arguments.size < 32:
        raise UsageError(f"--size {arguments.size}", hint="give 32 pixels or more")
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
        cv2.setNumThreads(arguments.threads)
    torch.manual_seed(arguments.seed)
    meter = Meter()
    try:
        if arguments.data == DIGITS:
            _digits(arguments, meter)
            return
        names, format = arguments.names, arguments.format
        source = find_source(Path(arguments.data), names, format, arguments.validation)
        if source.validation is None:
            source = hold_out(source, arguments.out, arguments.seed)
        meter.report(source.line())
        if source.app == CLASSIFIER:
            _classifier(arguments, source, meter)
        else:
            _detector(arguments, source, meter)
    finally:
        meter.close()


def _labelled(source: Source, path: Path, what: str, meter: Meter) -> tuple[ImageSet, Dataset]:
    """A split, and its labelled images; what is in it is said."""
    data = opened(source, path)
    meter.report(f"{what}: {data.census.line()}")
    chosen = [index for index, record in enumerate(data.records) if record.labelled]
    return data, data if len(chosen) == len(data) else ImageSubset(data, chosen)


def _few(census: Census, meter: Meter) -> None:
    few = [f"{name} {count}" for name, count in census.objects.items() if count < FEW]
    if few:
        meter.report(f"warning: too few examples to learn from: {', '.join(few[:10])}; label more of them")


def _settings(arguments: argparse.Namespace, images: int, batch: int) -> dict[str, Any]:
    """What the options say, and for the rest what suits the number of images."""
    batch = arguments.batch or min(batch, images)
    per_epoch = max(1, images // batch)
    epochs = arguments.epochs
    if epochs is None:
        epochs = min(max(-(-STEPS // per_epoch), EPOCHS[0]), EPOCHS[1])
    steps = max(1, epochs * per_epoch)
    ema = arguments.ema if arguments.ema is not None else min(0.998, max(0.9, 1 - 20 / steps))
    return {
        "epochs": epochs, "batch": batch, "weight_decay": arguments.weight_decay, "seed": arguments.seed,
        "warmup": min(400, steps // 10) if arguments.warmup is None else arguments.warmup, "ema": ema,
        "evaluate_every": max(1, epochs // LOOKS),
        "patience": PATIENCE if arguments.patience is None else arguments.patience,
        "device": training_device(arguments.device),
        **({} if arguments.lr is None else {"lr": arguments.lr}),
    }  # fmt: skip


# -- detectors -----------------------------------------------------------------------------------------------


def _detector(arguments: argparse.Namespace, source: Source, meter: Meter) -> None:
    assert source.validation is not None  # a part was held out
    data, labelled = _labelled(source, source.train, "train", meter)
    _, validation = _labelled(source, source.validation, "validation", meter)
    _few(data.census, meter)
    files = Files(arguments.out)
    size, name = arguments.size, arguments.network or "yolov2-nano"
    if size is None and ":" not in name:
        size, said = choose_size(data)
        meter.report(f"{said}; --size changes it")
    elif size is not None and (small := small_boxes(data, size)):
        meter.report(small)
    network, named, keys, original = _network(arguments, name, data, size, files, meter)
    preprocess = Preprocess(width=size, height=size) if size else plain_input(network)
    preprocess = replace(preprocess, resize=arguments.resize, resample=arguments.resample)
    if arguments.resize != "stretch":
        keys["resize"] = arguments.resize
    if arguments.resample != "bilinear":
        keys["resample"] = arguments.resample
    _start(arguments, network, original, name, meter)
    flips = not arguments.no_flips
    augment = replace(AUGMENT, flips=flips, mosaic=0.0 if arguments.no_mosaic else AUGMENT.mosaic)
    config = TrainConfig(
        **_settings(arguments, len(labelled), 16), multi_scale=arguments.multi_scale, augment=augment
    )
    write_atomic(files.names, "".join(f"{each}\n" for each in source.names).encode())
    write_atomic(files.recipe, recipe_text(source, named, keys, files).encode())
    _taught(arguments, network, labelled, validation, config, preprocess, files, meter)


def _network(
    arguments: argparse.Namespace, name: str, data: ImageSet, size: int | None, files: Files, meter: Meter
) -> tuple[nn.Module, str, dict[str, Any], Any]:
    """The network; its name and [preprocess] in the recipe; and the .cfg that .weights are of."""
    own = _own(name, len(data.names), files)
    if own is not None:
        return own, name, {} if size is None else {"width": size, "height": size}, None
    original = read_cfg(name) if name.endswith(".cfg") else builtin_cfg(name, tuple(BUILTIN))
    assert size is not None  # it was chosen
    if size % (stride := coarsest_stride(original)):
        raise UsageError(f"--size {size}", hint=f"give a multiple of the network's stride {stride}")
    cfg, said = shaped_cfg(name, data, size, arguments.resize)
    meter.report(said)
    write_cfg(files.cfg, cfg)
    return Yolo.from_cfg(files.cfg), files.cfg.name, {}, original


def _own(name: str, classes: int, files: Files) -> nn.Module | None:
    """A network that is no .cfg's: by name, or a factory's; None of a .cfg."""
    made: nn.Module | None = None
    if ":" in name:
        made, _ = from_factory(name)
        if not isinstance(made, nn.Module):
            raise UsageError(f"{name} made a {type(made).__name__}", hint="it must be a torch.nn.Module")
    elif name in BUILTIN:
        made = builtin(name, classes)
    if made is not None and files.out.suffix == ".weights" and not isinstance(made, Yolo):
        raise UsageError(f"--out {files.out}: {name} is no network of darknet", hint="use .safetensors")
    return made


def _start(arguments: argparse.Namespace, network: nn.Module, original: Any, name: str, meter: Meter) -> None:
    """Takes the layers that fit from weights that are given or ship."""
    if arguments.weights == "none":
        return
    if arguments.weights:
        meter.report(start_from(network, Path(arguments.weights), original))
    elif name == "yolov2-nano":
        from paredown.apps.detector import digits

        meter.report(start_from(network, Path(digits.__file__).with_name(SHIPPED)))


def _taught(
    arguments: argparse.Namespace, network: nn.Module, data: Dataset, validation: Dataset | None,
    config: TrainConfig, preprocess: Preprocess, files: Files, meter: Meter,
) -> None:  # fmt: skip
    meter.opening = _opening(config, len(data), files)
    keeper = Keeper(files, metadata(data.names, preprocess), validation is not None, "map50")
    train(
        network, data, config, preprocess=preprocess, validation=validation,
        checkpoint=arguments.checkpoint or files.checkpoint, report=meter.report, tick=meter.tick,
        keep=keeper,
    )  # fmt: skip
    _end(arguments, files, keeper, meter)


def _digits(arguments: argparse.Namespace, meter: Meter) -> None:
    """Trains on the embedded set, as the shipped weights were."""
    from paredown.apps.detector.digits import Digits

    name, files = arguments.network or "yolov2-nano", Files(arguments.out)
    data = Digits("train")
    network = _own(name, len(data.names), files)
    if network is None:
        network = Yolo(read_cfg(name) if name.endswith(".cfg") else builtin_cfg(name, tuple(BUILTIN)))
    if arguments.weights and arguments.weights != "none":
        meter.report(start_from(network, Path(arguments.weights), getattr(network, "cfg", None)))
    given = {
        key: getattr(arguments, key)
        for key in ("epochs", "batch", "warmup", "lr", "ema", "patience")
        if getattr(arguments, key) is not None
    }
    config = TrainConfig(
        **given, weight_decay=arguments.weight_decay, seed=arguments.seed, multi_scale=arguments.multi_scale,
        augment=Augment(flips=False), device=training_device(arguments.device),
    )  # fmt: skip
    size = arguments.size
    preprocess = Preprocess(width=size, height=size) if size else plain_input(network)
    preprocess = replace(preprocess, resize=arguments.resize, resample=arguments.resample)
    _taught(arguments, network, data, Digits("validation"), config, preprocess, files, meter)


# -- classifiers ---------------------------------------------------------------------------------------------


def _classifier(arguments: argparse.Namespace, source: Source, meter: Meter) -> None:
    from paredown.apps.classifier.catalogue import NETWORKS
    from paredown.apps.classifier.task import ClassifierTask
    from paredown.apps.classifier.train import ClassifierConfig, train_classifier
    from paredown.pipeline.recipe.file import load_recipe

    if arguments.out.suffix != ".safetensors":
        raise UsageError(f"--out {arguments.out}", hint="weights of a classifier are .safetensors")
    assert source.validation is not None  # a part was held out
    data, labelled = _labelled(source, source.train, "train", meter)
    _, validation = _labelled(source, source.validation, "validation", meter)
    _few(data.census, meter)
    files, name = Files(arguments.out), arguments.network or "resnet20"
    keys: dict[str, Any] = {}
    if arguments.size:
        keys = {"width": arguments.size, "height": arguments.size}
    elif name in NETWORKS and NETWORKS[name].side == 32:
        sides = Counter(64 if min(data[i].image.shape[:2]) > 48 else 32 for i in range(min(20, len(data))))
        side = sides.most_common(1)[0][0]
        keys = {"width": side, "height": side}
        meter.report(f"input {side}x{side}; --size changes it")
    if arguments.resize != "stretch" or keys:
        keys["resize"] = arguments.resize
    if arguments.resample != "bilinear":
        keys["resample"] = arguments.resample
    write_atomic(files.names, "".join(f"{each}\n" for each in source.names).encode())
    write_atomic(files.recipe, recipe_text(source, name, keys, files).encode())
    task = ClassifierTask(load_recipe(str(files.recipe), (), ()))
    network = task.untrained()
    if arguments.weights and arguments.weights != "none":
        meter.report(start_from(network, Path(arguments.weights)))
    config = ClassifierConfig(**_settings(arguments, len(labelled), 32))
    meter.opening = _opening(config, len(labelled), files)
    keeper = Keeper(files, metadata(source.names, task.image_input), True, "top1")
    checkpoint = arguments.checkpoint or files.checkpoint
    train_classifier(
        task, network, labelled, config, validation, checkpoint, meter.report, meter.tick, keeper
    )
    _end(arguments, files, keeper, meter)


def _opening(config: TrainSettings, images: int, files: Files) -> str:
    missing = lacks("matplotlib", f"{files.plot}, the plot,")
    return (
        f"training for at most {config.epochs} epochs of {images // config.batch} steps on "
        f"{device_name(config.device)}; the best weights so far are in {files.out}"
    ) + (f"\n{missing}" if missing else "")


def _end(arguments: argparse.Namespace, files: Files, keeper: Keeper, meter: Meter) -> None:
    for line in keeper.best():
        meter.report(line)
    if not arguments.checkpoint:
        files.checkpoint.unlink(missing_ok=True)
    plot = f", {files.plot}" if files.plot.exists() else ""
    meter.report(f"wrote {files.out} (best), {files.last} (latest){plot}")
    if files.recipe.exists():
        meter.report(f"next: paredown run {files.recipe} --target host")
