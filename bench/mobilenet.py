"""MobileNetV2 with TensorFlow's weights on ImageNet images: scores it, or makes a data set for recipes of it.

    python bench/mobilenet.py DATA
    python bench/mobilenet.py DATA --prepare FOLDER --more DATA/coco/images    # as the benches take it

DATA holds imagenet-mobilenet-v2/ (weights as NumPy arrays, batch norm folded, and the list of 1001 names) and
imagenet/ (WNID_name.jpg). TensorFlow pads a convolution of stride 2 by one pixel right and below, torch left
and above: the same arithmetic, half a turn apart. So kernels and images are turned by 180 degrees here, and
the network computes what TensorFlow's does, exactly; without the turn (--plain) it sees a shifted image.

--prepare writes turned images, those of even number without labels to train/ and the others into a folder per
class to test/, the images of --more without labels to train/ too, and weights whose batch norm is one again:
its statistics are those of the training images, its gain and shift undo them, so that the network is the same
and can be trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from paredown.apps.classifier.network import build
from paredown.calibration.preprocess import Preprocess

PREPROCESS = Preprocess(224, 224, "crop", mean=(0.5,), std=(0.5,))


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


@torch.inference_mode()
def live_norm(network: nn.Module, images: torch.Tensor) -> None:
    """Gives every batch norm the statistics of these images, and the gain and shift that undo them."""

    def measure(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.weight.copy_((var + norm.eps).sqrt())
        norm.bias.add_(mean)

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    network(images)
    for hook in hooks:
        hook.remove()


def prepare(
    network: nn.Module, files: list[Path], truth: torch.Tensor, more: list[Path], folder: Path
) -> None:
    """Writes images, names and weights."""
    shares = [Path("train") if i % 2 == 0 else Path("test", f"{int(c):04}") for i, c in enumerate(truth)]
    written = []
    for file, part in zip([*files, *more], [*shares, *[Path("train")] * len(more)], strict=True):
        (folder / part).mkdir(parents=True, exist_ok=True)
        written.append(folder / part / f"{file.stem}.png")
        cv2.imwrite(str(written[-1]), cv2.flip(cv2.imread(str(file)), -1))
    (folder / "names").write_text("".join(f"{index:04}\n" for index in range(1001)))
    images = [PREPROCESS(cv2.imread(str(file))) for file in written[: len(files) : 2][:64]]
    live_norm(network, torch.from_numpy(np.stack(images)))
    torch.save(network.state_dict(), folder / "mobilenet_v2.pt")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--plain", action="store_true", help="torch's padding instead of TensorFlow's")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write a data set instead of scoring")
    parser.add_argument("--more", type=Path, metavar="FOLDER", help="images to learn from, without labels")
    options = parser.parse_args()
    folder = options.data / "imagenet-mobilenet-v2"
    lines = (folder / "imagenet_labels.txt").read_text().splitlines()
    names = [line.partition(" ")[2].strip() if line[:1].isdigit() else line for line in lines]
    files = sorted((options.data / "imagenet").glob("*.jpg"))
    truth = classes(files, names)
    network = load(folder / "mobilenet_v2_fp32_dequantized.npz", not options.plain)
    if options.prepare:
        more = sorted(options.more.rglob("*.jpg")) if options.more else []
        prepare(network, files, truth, more, options.prepare)
        return
    first = five = 0
    for start in range(0, len(files), 10):
        part = [PREPROCESS(cv2.imread(str(file))) for file in files[start : start + 10]]
        images = torch.from_numpy(np.stack(part))
        with torch.inference_mode():
            best = network(images if options.plain else images.flip(2, 3)).topk(5).indices
        right = best == truth[start : start + 10, None]
        first, five = first + int(right[:, 0].sum()), five + int(right.any(1).sum())
    print(f"top-1 {first / len(files):.4f}, top-5 {five / len(files):.4f} on {len(files)} images")


if __name__ == "__main__":
    main()
