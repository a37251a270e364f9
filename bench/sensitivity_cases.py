"""The networks of bench/sensitivity.py: each with its images, its score, and the best that can still become.

Images come in the order in which a damaged network fails on them: those that the network has wrong already,
then by how far the right class is ahead of the next one; of a detector those with the most objects first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mobilenet
import numpy as np
import torch
from torch import nn

from paredown.apps.classifier.network import build
from paredown.apps.detector.darknet.darknet import parse_cfg
from paredown.apps.detector.device.boxes.decode import detect
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import load_checkpoint
from paredown.apps.detector.scoring.score import best_map50, map50, map50_interval
from paredown.apps.detector.scoring.truth import Truth
from paredown.calibration.datasets import open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.compress.sensitivity.experiment import Outputs

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its sample.

    Attributes:
        network: in evaluation mode.
        x: (N, C, H, W).
        score: of outputs of all images, with its interval.
        most: the highest score that the outputs of the first images allow.
        batch: of plain evaluation.
    """

    network: nn.Module
    x: np.ndarray
    score: Callable[[Sequence[Outputs]], tuple[float, float, float]]
    most: Callable[[Sequence[Outputs]], float]
    batch: int


@torch.inference_mode()
def run_module(network: nn.Module, x: np.ndarray, batch: int) -> list[Outputs]:
    """A module's outputs, image by image."""
    found: list[Outputs] = []
    for part in torch.from_numpy(x).split(batch):
        y = network(part)
        arrays = [t.numpy() for t in (y if isinstance(y, tuple) else (y,))]
        found += [tuple(a[i : i + 1] for a in arrays) for i in range(len(part))]
    return found


def classified(network: nn.Module, x: np.ndarray, truth: np.ndarray, batch: int) -> Case:
    """Top-1 with Wilson's interval."""
    logits = np.concatenate([o[0] for o in run_module(network, x, batch)])
    right = np.arange(len(x)), truth
    ahead, others = logits[right], logits.copy()
    others[right] = -np.inf
    order = np.argsort(ahead - others.max(1), kind="stable")
    x, truth = x[order], truth[order]

    def hits(outputs: Sequence[Outputs]) -> int:
        return int((np.array([o[0][0].argmax() for o in outputs]) == truth[: len(outputs)]).sum())

    def score(outputs: Sequence[Outputs]) -> tuple[float, float, float]:
        n, z = len(outputs), 1.96
        p = hits(outputs) / n
        centre, half = p + z * z / 2 / n, z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
        return p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)

    return Case(network, x, score, lambda o: (hits(o) + len(x) - len(o)) / len(x), batch)


def detected(network: Any, x: np.ndarray, truths: Sequence[Truth], batch: int) -> Case:
    """mAP@0.5 with its interval."""
    order = sorted(range(len(x)), key=lambda index: -len(truths[index].classes))
    x, known = x[order], [truths[index] for index in order]

    def found(outputs: Sequence[Outputs]) -> list[Any]:
        return [detect([part[0] for part in one], network.anchors) for one in outputs]

    def score(outputs: Sequence[Outputs]) -> tuple[float, float, float]:
        boxes = found(outputs)
        return map50(boxes, known), *map50_interval(boxes, known)

    return Case(network, x, score, lambda outputs: best_map50(found(outputs), known), batch)


def resnet56(data: Path, images: int, weights: Path | None) -> Case:
    """CIFAR-10, training images."""
    network = build("resnet56", 10).eval()
    file = weights or data / "cifar10-resnets" / "resnet56-4bfd9763.th"
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    sheet = cv2.imread(str(data / "cifar10" / "train4000.png"))
    assert sheet is not None
    pixels = (sheet[:images, :, ::-1] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    x = pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).astype(np.float32).copy()
    truth = np.loadtxt(data / "cifar10" / "train4000.labels.txt", dtype=int)[:images]
    return classified(network, x, truth, 32)


def mobilenet_v2(data: Path, images: int, weights: Path | None) -> Case:
    """TensorFlow's weights; every other image of the ImageNet sample, turned as they ask."""
    folder = data / "imagenet-mobilenet-v2"
    lines = (folder / "imagenet_labels.txt").read_text().splitlines()
    names = [line.partition(" ")[2].strip() if line[:1].isdigit() else line for line in lines]
    files = sorted((data / "imagenet").glob("*.jpg"))
    truth = mobilenet.classes(files, names).numpy()
    chosen = range(0, 2 * images, 2)
    pixels = [mobilenet.PREPROCESS(cv2.imread(str(files[index]))) for index in chosen]
    x = np.ascontiguousarray(np.stack(pixels)[:, :, ::-1, ::-1])
    network = mobilenet.load(folder / "mobilenet_v2_fp32_dequantized.npz", True)
    return classified(network, x, truth[list(chosen)], 16)


def yolo_lite(data: Path, images: int, weights: Path | None) -> Case:
    """YOLO-LITE for VOC's classes with batch norm, COCO images that were no test images elsewhere."""
    folder = data / "yololite-yolov2"
    network: Any = YoloV2.from_cfg(folder / "voc-trial3-bn.cfg")
    load_checkpoint(folder / "voc-trial3-bn.weights", network.eval())
    labelled = open_dataset(
        "yolo", data / "coco" / "images" / "train", names=read_names(folder / "voc.names"),
        label_names=read_names(folder / "coco.names"),
    )  # fmt: skip
    samples = [labelled[index] for index in range(min(images, len(labelled)))]
    look = Preprocess(224, 224)
    truths = [Truth(s.boxes, s.classes, s.labelled, s.image.shape[:2]) for s in samples]
    return detected(network, np.stack([look(sample.image) for sample in samples]), truths, 16)


def tiny_voc(data: Path, images: int, weights: Path | None) -> Case:
    """yolov2-tiny-voc at 416 by 416, random weights; or `digits_detector` with those of --train.

    Of random weights it counts the share of cells and anchors whose class is that of the unpruned network.
    """
    if weights:
        return digits_detector(images, weights)
    network = YoloV2.builtin("yolov2-tiny-voc").eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.1)
    x = np.random.default_rng(0).random((images, 3, 416, 416), np.float32)
    truth = [cells(outputs) for outputs in run_module(network, x, 4)]

    def same(outputs: Sequence[Outputs]) -> int:
        return sum(int((cells(o) == t).sum()) for o, t in zip(outputs, truth, strict=False))

    def score(outputs: Sequence[Outputs]) -> tuple[float, float, float]:
        return same(outputs) / sum(map(len, truth)), 0.0, 1.0

    def most(outputs: Sequence[Outputs]) -> float:
        return (same(outputs) + sum(map(len, truth[len(outputs) :]))) / sum(map(len, truth))

    return Case(network, x, score, most, 4)


def cells(outputs: Outputs) -> np.ndarray:
    """The class of each cell and anchor."""
    return outputs[3][0].reshape(5, 20, -1).argmax(1).ravel()


def digits_network(side: int) -> nn.Module:
    """yolov2-tiny-voc for ten classes and squares of so many pixels."""
    text = (ROOT / "apps" / "detector" / "darknet" / "cfgs" / "yolov2-tiny-voc.cfg").read_text()
    for old, new in (("filters=125", "filters=75"), ("classes=20", "classes=10"), ("=416", f"={side}")):
        text = text.replace(old, new)
    return YoloV2(parse_cfg(text))


def train_digits(path: Path) -> None:
    """Trains on the training scenes, five epochs, and writes the weights; goes on where it was stopped."""
    from paredown.apps.detector.digits import Digits
    from paredown.apps.detector.train.augment import Augment
    from paredown.apps.detector.train.config import TrainConfig
    from paredown.apps.detector.train.train import train

    config = TrainConfig(epochs=5, batch=16, lr=0.01, warmup=100, ema=0.99, augment=Augment(flips=False))
    checkpoint = path.with_suffix(".checkpoint")
    result = train(
        digits_network(160), Digits("train"), config, validation=Digits("validation"), checkpoint=checkpoint,
        report=print,
    )  # fmt: skip
    torch.save(result.network.state_dict(), path)


def digits_detector(images: int, weights: Path) -> Case:
    """The trained detector, and canvases of validation scenes: four of 160 by 160 on 416 by 416."""
    from paredown.apps.detector.digits import Digits

    network: Any = digits_network(416).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    scenes, look = Digits("validation", 4 * images), Preprocess(416, 416)
    made = [canvas([scenes[4 * k + i] for i in range(4)]) for k in range(images)]
    return detected(network, np.stack([look(image) for image, _ in made]), [truth for _, truth in made], 4)


def canvas(scenes: Sequence[Any]) -> tuple[np.ndarray, Truth]:
    """Four scenes of 160 by 160 as a grey image of 416 by 416, and where their digits are now."""
    image, boxes = np.full((416, 416, 3), 128, np.uint8), []
    for index, scene in enumerate(scenes):
        left, top = 208 * (index % 2), 208 * (index // 2)
        image[top : top + 160, left : left + 160] = scene.image
        boxes.append((scene.boxes * 160 + [left, top, 0, 0]) / 416)
    classes = np.concatenate([scene.classes for scene in scenes])
    return image, Truth(np.concatenate(boxes), classes, True, (416, 416))


CASES: Mapping[str, Callable[[Path, int, Path | None], Case]] = {
    "resnet56": resnet56, "yolov2-tiny-voc": tiny_voc, "mobilenet_v2": mobilenet_v2, "yolo-lite": yolo_lite,
}  # fmt: skip
