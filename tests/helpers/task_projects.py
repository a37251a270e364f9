"""Users' projects in miniature: a U-Net, a pose network and a keyword spotter, with made-up data.

Each is trained here for seconds, on the data that it comes with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

SHAPES = ("background", "square", "disc")
JOINTS = ("head", "left_hand", "right_hand", "foot")
WORDS = ("low", "high", "rising")
SIDE = 48

UNET = """
import torch
from torch import nn


def block(inputs, outputs, stride=1):
    layers = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    return nn.Sequential(*layers)


class UNet(nn.Module):
    input_size = 48

    def __init__(self, classes=3):
        super().__init__()
        self.first, self.second, self.third = block(3, 8, 2), block(8, 16, 2), block(16, 16)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.last, self.head = block(24, 8), nn.Conv2d(8, classes, 1)

    def forward(self, x):
        high = self.first(x)
        low = self.third(self.second(high))
        return self.head(self.last(torch.cat([self.up(low), high], 1)))


def make():
    return UNet()


def make_four():
    return UNet(4)


def make_flat():
    network = nn.Sequential(nn.Conv2d(3, 3, 48), nn.Flatten())
    network.input_size = 48
    return network


class Pair(UNet):
    def forward(self, x):
        found = super().forward(x)
        return found, found.mean((2, 3))


def make_pair():
    return Pair()
"""
KEYWORDS = """
import torch
from torch import nn


class Spotter(nn.Module):
    def __init__(self, several=False):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(16, 24, 5, 2, 2, bias=False), nn.BatchNorm1d(24), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(24, 24, 3, 2, 1, bias=False), nn.BatchNorm1d(24), nn.ReLU())
        self.head, self.several = nn.Linear(24, 3), several

    def forward(self, x):
        x = self.second(self.first(x))
        said = self.head(x.mean(2))
        return (said, x) if self.several else said


def make():
    return Spotter()


def make_several():
    return Spotter(True)
"""
PLAIN = """
[lower]
runtimes = ["litert"]

[bench]
runs = 3
"""
WHOLE = """
[recover]
epochs = 4
batch = 8
warmup = 2
lr = 0.002

[prune]
macs = 0.7
widths = 4
multiple = 4
images = 16

[squantize]
weight_bits = 4
sparsity = 0.3
epochs = 2
batch = 8
warmup = 2
lr = 0.002

[bench]
runs = 3
"""
"""The end of a recipe that prunes and squantizes, for both runtimes."""


def shapes(
    count: int, seed: int, size: tuple[int, int] = (SIDE, SIDE)
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of noise with a square and a disc on them, and their masks; a rim of each shape is ignored."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        height, width = size
        image = random.integers(0, 90, (height, width, 3), np.uint8)
        mask = np.zeros((height, width), np.uint8)
        for kind, colour in ((1, (60, 200, 60)), (2, (60, 60, 220))):
            reach = int(random.integers(height // 8, height // 4))
            x, y = (int(random.integers(reach, side - reach)) for side in (width, height))
            shaded = tuple(int(v + random.integers(-30, 30)) for v in colour)
            for canvas, value in ((image, shaded), (mask, kind)):
                if kind == 1:
                    cv2.rectangle(canvas, (x - reach, y - reach), (x + reach, y + reach), value, -1)
                else:
                    cv2.circle(canvas, (x, y), reach, value, -1)
        mask[:, 0] = 255
        made.append((image, mask))
    return made


def figures(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Images of a stick figure each: a dot of its own colour at every joint; joints (K, 3) and the box."""
    random = np.random.default_rng(seed)
    colours = ((40, 40, 230), (40, 230, 40), (230, 60, 40), (40, 220, 230))
    made = []
    for _ in range(count):
        image = random.integers(0, 70, (80, 96, 3), np.uint8)
        reach, x, y = random.uniform(14, 20), random.uniform(36, 60), random.uniform(34, 46)
        joints = np.array([(0, -1), (-0.9, 0), (0.9, 0), (0, 1)]) * reach + (x, y)
        joints += random.uniform(-3, 3, joints.shape)
        for (across, down), colour in zip(joints, colours, strict=True):
            cv2.line(image, (round(x), round(y)), (round(across), round(down)), (120, 120, 120), 1)
            cv2.circle(image, (round(across), round(down)), 3, colour, -1)
        (left, top), (right, bottom) = joints.min(0) - 3, joints.max(0) + 3
        points = np.concatenate([joints, np.full((4, 1), 2.0)], 1)
        made.append((image, points, [float(left), float(top), float(right - left), float(bottom - top)]))
    return made


def sounds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spectrograms (N, 16, 40) of three words, and the words."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(WORDS)
    made = random.normal(0, 0.4, (count, 16, 40)).astype(np.float32)
    for spectrogram, label in zip(made, labels, strict=True):
        start, low, high = random.integers(0, 10), random.integers(1, 5), random.integers(10, 14)
        for step in range(start, start + 25):
            band = (low, high, low + (high - low) * (step - start) // 25)[label]
            spectrogram[band, step] += 2.5
    return made, labels


def _trained(
    code: str, inputs: torch.Tensor, truth: torch.Tensor, loss: Callable, steps: int, file: Path
) -> None:
    scope: dict = {}
    exec(code, scope)
    torch.manual_seed(0)
    network = scope["make"]().train()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        part = torch.randperm(len(inputs))[:16]
        optimizer.zero_grad()
        loss(network(inputs[part]), truth[part]).backward()
        optimizer.step()
    torch.save(network.state_dict(), file)


def _pixels(outputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    wide = F.interpolate(outputs, (SIDE, SIDE), mode="bilinear")
    return F.cross_entropy(wide, masks, ignore_index=255)


def _inputs(images: list[np.ndarray]) -> torch.Tensor:
    from paredown.apps.own.task import MEAN, STD

    values = [image[..., ::-1].transpose(2, 0, 1) / 255 for image in images]
    mean, std = (np.array(each)[:, None, None] for each in (MEAN, STD))
    return torch.from_numpy(((np.stack(values) - mean) / std).astype(np.float32))


def make_segmentation(folder: Path, tail: str = PLAIN, steps: int = 120) -> Path:
    """A U-Net, images with label PNGs, and the recipe; returns the recipe."""
    (folder / "unet.py").write_text(UNET)
    for split, count in (("train", 48), ("test", 8)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index, (image, mask) in enumerate(made := shapes(count, seed=count)):
            cv2.imwrite(str(folder / "images" / split / f"{index:02}.png"), image)
            cv2.imwrite(str(folder / "labels" / split / f"{index:02}.png"), mask)
        if split == "train":
            masks = torch.from_numpy(np.stack([mask for _, mask in made]).astype(np.int64))
            images = _inputs([image for image, _ in made])
            _trained(UNET, images, masks, _pixels, steps, folder / "net.pth")
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in SHAPES))
    (folder / "shapes.toml").write_text(
        'app = "apps.segmenter"\nnetwork = "unet:make"\nweights = "net.pth"\n\n[data]\n'
        'format = "masks"\nnames = "names.txt"\ntrain = "images/train"\n'
        'test = "images/test"\nlabels = "labels"\n' + tail
    )
    return folder / "shapes.toml"


def make_pose(folder: Path, tail: str = PLAIN, steps: int = 200) -> Path:
    """A network of heatmaps, stick figures in COCO's format, and the recipe; returns the recipe."""
    from paredown.apps.pose.device.region import cut, region
    from paredown.apps.pose.heatmaps import heatmap_loss

    code = UNET.replace("classes=3", "classes=4").replace("return UNet(4)", "return UNet(5)")
    (folder / "pose_net.py").write_text(code)
    for split, count in (("train", 48), ("test", 8)):
        (folder / split).mkdir(parents=True)
        document = {"images": [], "annotations": [], "categories": [
            {"id": 1, "name": "figure", "keypoints": list(JOINTS[::-1])}]}  # fmt: skip
        parts, points = [], []
        for index, (image, joints, box) in enumerate(figures(count, seed=count)):
            name = f"{index:02}.png"
            cv2.imwrite(str(folder / split / name), image)
            document["images"].append({"id": index, "file_name": name, "width": 96, "height": 80})
            values = joints[::-1].ravel().tolist()
            document["annotations"].append(
                {"id": index, "image_id": index, "category_id": 1, "keypoints": values, "bbox": box}
            )
            where = region((box[0], box[1], box[2], box[3]), 1.0)
            parts.append(cv2.resize(cut(image, where), (SIDE, SIDE)))
            shares = (joints[:, :2] - (where.left, where.top)) / (where.width, where.height)
            points.append(np.concatenate([shares, np.ones((4, 1))], 1))
        (folder / split / "people.json").write_text(json.dumps(document))
        if split == "train":
            wanted = torch.from_numpy(np.stack(points).astype(np.float32))
            _trained(code, _inputs(parts), wanted, heatmap_loss, steps, folder / "net.pth")
    (folder / "joints.txt").write_text("".join(f"{name}\n" for name in JOINTS))
    (folder / "figures.toml").write_text(
        'app = "apps.pose"\nnetwork = "pose_net:make"\nweights = "net.pth"\n\n[data]\nformat = "coco"\n'
        'names = "joints.txt"\ntrain = "train/people.json"\ntest = "test/people.json"\n' + tail
    )
    return folder / "figures.toml"


def make_keywords(folder: Path, app: str = "outputs", tail: str = PLAIN, steps: int = 60) -> Path:
    """A keyword spotter, spectrograms as arrays in a folder per word, and the recipe; returns the recipe."""
    (folder / "spotter.py").write_text(KEYWORDS)
    for split, count in (("train", 48), ("test", 12)):
        inputs, labels = sounds(count, seed=count)
        for index, (spectrogram, label) in enumerate(zip(inputs, labels, strict=True)):
            (folder / split / WORDS[label]).mkdir(parents=True, exist_ok=True)
            np.save(folder / split / WORDS[label] / f"{index:02}.npy", spectrogram)
        if split == "train":
            words = torch.from_numpy(inputs), torch.from_numpy(labels)
            _trained(KEYWORDS, *words, F.cross_entropy, steps, folder / "net.pth")
    (folder / "words.txt").write_text("".join(f"{name}\n" for name in WORDS))
    names = 'names = "words.txt"\n' if app == "classifier" else ""
    network = "make" if app == "classifier" else "make_several"
    (folder / "words.toml").write_text(
        f'app = "apps.{app}"\nnetwork = "spotter:{network}"\nweights = "net.pth"\n\n[data]\n'
        f'format = "arrays"\n{names}train = "train"\ntest = "test"\n' + tail
    )
    return folder / "words.toml"
