"""Networks to train: head, anchors and input size by the data, and the layers to start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paredown.apps.detector.darknet.darknet import builtin_cfg, read_cfg
from paredown.apps.detector.darknet.layers import Cfg, Convolutional, coarsest_stride
from paredown.apps.detector.darknet.write import format_cfg
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.network.weights import read_weights
from paredown.apps.detector.train.anchors import dataset_sizes, kmeans_anchors, mean_iou
from paredown.calibration.datasets import ImageSet
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.weights_file import read_weights_file
from paredown.pipeline.recipe.weights_fit import tensor_of
from paredown.targets.errors import InputError

SHIPPED = "digits.safetensors"  # of yolov2-nano, beside the detector's modules
SMALL_SHARE, SMALL_PIXELS = 0.1, 12.0  # so many boxes may have a shorter side of fewer pixels
SMALLEST, LARGEST, STEP = 160, 640, 32  # input sizes to choose from
LOOKED_AT = 20  # images whose size is asked
ANCHORS = 5


def box_sizes(data: ImageSet) -> np.ndarray:
    """Widths and heights of all boxes, (N, 2), as shares of their images."""
    found = [record.boxes[:, 2:] for record in data.records]
    return np.concatenate(found).astype(np.float64)


def choose_size(data: ImageSet) -> tuple[int, str]:
    """Width and height of the input in pixels, and why: small boxes stay large enough to be seen.

    It is a multiple of 32 for which nine of ten boxes have a shorter side of 12 pixels, 160 at least, 640 at
    most, and no more than the images have. Our design.
    """
    sides = box_sizes(data).min(axis=1)
    small = float(np.quantile(sides, SMALL_SHARE))
    images = [data[index].image.shape[:2] for index in range(min(LOOKED_AT, len(data)))]
    most = min(LARGEST, -(-max(max(shape) for shape in images) // STEP) * STEP)
    wanted = -(-SMALL_PIXELS / small // STEP) * STEP
    size = int(np.clip(wanted, min(SMALLEST, most), max(most, STEP)))
    return size, (
        f"input {size}x{size}: a tenth of the boxes have a shorter side below {small * size:.0f} pixels there"
    )


def small_boxes(data: ImageSet, size: int) -> str:
    """A warning where small boxes vanish in an input of this size; empty where none do."""
    side = float(np.quantile(box_sizes(data).min(axis=1), SMALL_SHARE)) * size
    if side >= SMALL_PIXELS / 2 or choose_size(data)[0] <= size:
        return ""
    return (
        f"input {size}x{size} is small for these boxes: a tenth have a shorter side below {side:.0f} pixels "
        f"there; {choose_size(data)[0]} would be chosen without --size"
    )


def shaped_cfg(name: str, data: ImageSet, size: int, resize: str) -> tuple[Cfg, str]:
    """A network with [region] for the data's classes, and a sentence on its anchors.

    Args:
        name: of a built-in network, or a .cfg file.
        data: labelled.
        size: of the input, width and height.
        resize: how images get there.

    Raises:
        InputError: it has no [region], or there are too few boxes for anchors.
    """
    cfg = read_cfg(name) if name.endswith(".cfg") else builtin_cfg(name)
    if cfg.region is None:
        raise InputError("no [region]: this network is not trained here", where=cfg.where,
                         hint="train it with darknet, and give its .weights")  # fmt: skip
    stride = coarsest_stride(cfg)
    if resize == "stretch":
        sizes = box_sizes(data) * size / stride
    else:
        preprocess = Preprocess(width=size, height=size, resize=resize)  # type: ignore[arg-type]
        sizes = dataset_sizes(data, preprocess, stride)
    count = min(ANCHORS, len(np.unique(sizes, axis=0)))
    anchors = kmeans_anchors(sizes, count)
    classes = len(data.names)
    head = cfg.layers[-1]
    assert isinstance(head, Convolutional)  # parse_cfg checked it
    made = replace(
        cfg,
        net=replace(cfg.net, width=size, height=size),
        layers=(*cfg.layers[:-1], replace(head, filters=count * (5 + classes))),
        region=replace(cfg.region, anchors=anchors, classes=classes),
    )
    pixels = ", ".join(f"{w * stride:.0f}x{h * stride:.0f}" for w, h in anchors)
    fit = f"mean IoU {mean_iou(sizes, anchors):.3f} over {len(sizes)} boxes"
    said = f"{count} anchors by k-means, {pixels} pixels: {fit}"
    return made, said


def write_cfg(path: Path, cfg: Cfg) -> None:
    """Writes a .cfg that a recipe names."""
    from paredown.pipeline.store.store import write_atomic

    write_atomic(path, format_cfg(cfg).encode())


def start_from(network: nn.Module, path: Path, source: Cfg | None = None) -> str:
    """Takes the layers of a weights file that fit, by name and shape; says how many.

    Args:
        network: changed in place.
        path: .safetensors, a torch checkpoint, or darknet's .weights.
        source: the network that .weights are of.

    Raises:
        InputError: the file cannot be read, or no layer fits.
    """
    own = network.state_dict()
    found = _state(path, source)
    nested = next(
        (found[key] for key in ("state_dict", "model", "net") if isinstance(found.get(key), dict)), found
    )
    taken: dict[str, torch.Tensor] = {}
    for name, held in nested.items():
        value, key = tensor_of(held), str(name).removeprefix("module.")
        if value is not None and key in own and value.shape == own[key].shape and torch.isfinite(value).all():
            taken[key] = value
    weights = [name for name in taken if name.endswith("weight")]
    if not weights:
        raise InputError("no layer of these weights fits the network", where=path,
                         hint="check --network, or leave --weights out")  # fmt: skip
    network.load_state_dict(taken, strict=False)
    whole = [name for name in own if name.endswith("weight")]
    left = [name.removesuffix(".weight") for name in whole if name not in taken]
    new = f"; new: {', '.join(left[:4])}{' and more' if len(left) > 4 else ''}" if left else ""
    return f"{path.name}: {len(weights)} of {len(whole)} weight tensors taken{new}"


def _state(path: Path, source: Cfg | None) -> dict[str, Any]:
    if path.suffix.lower() != ".weights":
        return dict(read_weights_file(path, (".weights",)))
    if source is None:
        raise InputError(".weights are of a darknet network", where=path, hint="name its .cfg as --network")
    network = Yolo(source)
    read_weights(path, network)
    return dict(network.state_dict())
