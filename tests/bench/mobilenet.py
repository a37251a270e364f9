"""Scores MobileNetV2 with TensorFlow's weights on ImageNet images: `python tests/bench/mobilenet.py DATA`.

DATA holds imagenet-mobilenet-v2/ (weights as NumPy arrays, batch norm folded, and the list of 1001 names) and
imagenet/ (WNID_name.jpg). TensorFlow pads a convolution of stride 2 by one pixel right and below, torch left
and above: the same arithmetic, half a turn apart. So kernels and images are turned by 180 degrees here, and
the network computes what TensorFlow's does, exactly; without the turn (--plain) it sees a shifted image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from apps.classifier.network import build
from calibration.preprocess import Preprocess


def load(path: Path, turned: bool) -> nn.Module:
    """Our network with the folded weights: batch norm becomes the bias."""
    arrays = np.load(path)
    layers = sorted({name.rpartition("_")[0] for name in arrays.files})
    network = build("mobilenet_v2", 1001).eval()
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for name, conv, norm in zip(layers[:-1], convs, norms, strict=True):
            weight = torch.from_numpy(
                arrays[f"{name}_w"]
            )  # (out, kh, kw, in), depthwise (1, kh, kw, channels)
            weight = weight.permute(3, 0, 1, 2) if "DEPTHWISE" in name else weight.permute(0, 3, 1, 2)
            conv.weight.copy_(weight.flip(2, 3) if turned else weight)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
            norm.bias.copy_(torch.from_numpy(arrays[f"{name}_b"]))
        linear = network.classifier[1]
        linear.weight.copy_(torch.from_numpy(arrays[f"{layers[-1]}_w"]).reshape(1001, 1280))
        linear.bias.copy_(torch.from_numpy(arrays[f"{layers[-1]}_b"]))
    return network


def classes(files: list[Path], names: list[str]) -> torch.Tensor:
    """The class of each file by its name; of equal names the one that keeps the classes in rising order."""

    def plain(text: str) -> str:
        return "".join(c for c in text.casefold() if c.isalnum())

    known: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        known.setdefault(plain(name.split(",")[0]), []).append(index)
    found, last = [], 0
    for file in files:
        last = next(i for i in known[plain(file.stem.partition("_")[2])] if i > last)
        found.append(last)
    return torch.tensor(found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--plain", action="store_true", help="torch's padding instead of TensorFlow's")
    options = parser.parse_args()
    folder = options.data / "imagenet-mobilenet-v2"
    lines = (folder / "imagenet_labels.txt").read_text().splitlines()
    names = [line.partition(" ")[2].strip() if line[:1].isdigit() else line for line in lines]
    files = sorted((options.data / "imagenet").glob("*.jpg"))
    truth = classes(files, names)
    network = load(folder / "mobilenet_v2_fp32_dequantized.npz", not options.plain)
    preprocess = Preprocess(224, 224, "crop", mean=(0.5,), std=(0.5,))
    first = five = 0
    for start in range(0, len(files), 10):
        part = [preprocess(cv2.imread(str(file))) for file in files[start : start + 10]]
        images = torch.from_numpy(np.stack(part))
        with torch.inference_mode():
            best = network(images if options.plain else images.flip(2, 3)).topk(5).indices
        right = best == truth[start : start + 10, None]
        first, five = first + int(right[:, 0].sum()), five + int(right.any(1).sum())
    print(f"top-1 {first / len(files):.4f}, top-5 {five / len(files):.4f} on {len(files)} images")


if __name__ == "__main__":
    main()
