"""A darknet .cfg without heads as a classifier: darknet's own arithmetic, its weights file, a whole run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_project import call

from paredown.apps.classifier.darknet import DarknetClassifier
from paredown.apps.detector.darknet.darknet import parse_cfg
from paredown.apps.detector.darknet.layers import Crop, Softmax
from paredown.apps.detector.darknet.write import format_cfg, with_filters
from paredown.apps.detector.network.weights import write_weights
from paredown.apps.detector.network.yolo import CropLayer, SoftmaxLayer
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

CFG = """[net]
width=20
height=18
channels=3
learning_rate=0.1

[crop]
crop_width=16
crop_height=16
flip=1
angle=0
saturation=1
exposure=1
noadjust=1

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[dropout]
probability=.5

[convolutional]
filters=3
size=1
stride=1
pad=1
activation=linear

[avgpool]

[softmax]
groups=1
temperature=2

[cost]
type=sse
"""


def darknet_softmax(values: list[float], groups: int, temperature: float) -> list[float]:
    """softmax_cpu of darknet, line by line."""
    made, size = [0.0] * len(values), len(values) // groups
    for group in range(groups):
        part = values[group * size : (group + 1) * size]
        largest, total = max(part), 0.0
        for index, value in enumerate(part):
            power = math.exp(value / temperature - largest / temperature)
            total += power
            made[group * size + index] = power
        for index in range(size):
            made[group * size + index] /= total
    return made


@given(
    seed=st.integers(0, 1000), groups=st.sampled_from([1, 2, 3]), side=st.sampled_from([1, 2]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_softmax_is_darknets(seed: int, groups: int, temperature: float, side: int) -> None:
    x = torch.randn(1, 6, side, side, generator=torch.Generator().manual_seed(seed)) * 3
    found = SoftmaxLayer(Softmax(groups, temperature))(x)
    expected = darknet_softmax(x.flatten().tolist(), groups, temperature)
    assert found.shape == x.shape
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("adjust", [True, False])
@pytest.mark.parametrize("size", [(4, 6), (3, 5), (7, 8)])
def test_crop_is_darknets_outside_of_training(adjust: bool, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, 7, 8)
    height, width = size
    found = CropLayer(Crop(height, width, adjust))(x)
    top, left = (7 - height) // 2, (8 - width) // 2
    scale, shift = (2.0, -1.0) if adjust else (1.0, 0.0)
    for row in range(height):
        for column in range(width):
            assert torch.equal(found[:, :, row, column], x[:, :, row + top, column + left] * scale + shift)


def test_its_outputs_are_logits_whose_softmax_is_darknets() -> None:
    torch.manual_seed(0)
    net = DarknetClassifier(parse_cfg(CFG, detects=False)).eval()
    x = torch.rand(4, 3, 18, 20)
    with torch.no_grad():
        logits = net(x)
        cropped = x[:, :, 1:17, 2:18]
        by_hand = net.layers[4](net.layers[2](net.layers[1](cropped))).mean((2, 3))
    assert logits.shape == (4, 3)
    for row, values in zip(logits.softmax(1).tolist(), by_hand.tolist(), strict=True):
        assert row == pytest.approx(darknet_softmax(values, 1, 2.0), abs=1e-6)
    assert not {"opaque", "island"} & {node.kind for node in trace(net, (1, 3, 18, 20))}


def test_the_text_comes_back_and_thinner_too() -> None:
    cfg = parse_cfg(CFG, "a.cfg", detects=False)
    again = parse_cfg(format_cfg(cfg), "a.cfg", detects=False)
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in cfg.layers]
    softmax, crop = again.layers[6], again.layers[0]
    assert isinstance(softmax, Softmax) and softmax.temperature == 2.0
    assert isinstance(crop, Crop) and (crop.height, crop.width, crop.adjust) == (16, 16, False)
    assert with_filters(cfg, {1: 5}).layers[1].filters == 5 and cfg.classes == 3


@pytest.mark.parametrize(
    ("cfg", "why"),
    [
        (CFG.replace("[avgpool]\n", ""), "ends in 3 channels of 8x8, not in a number per class"),
        (CFG.replace("groups=1", "groups=3"), "groups=3 in the last .softmax. gives several answers"),
        (CFG.replace("groups=1", "tree=imagenet.tree"), "tree=imagenet.tree in .softmax. is not supported"),
        (CFG.replace("groups=1", "spatial=1"), "spatial=1 in .softmax. is not supported"),
        (CFG.replace("noadjust=1", "nojust=1"), "unknown key nojust in .crop.; did you mean noadjust"),
        (CFG + "[dropout]\n", r":\d+: .cost. is not the last section"),
        ("[net]\nwidth=2\nheight=1\nchannels=3\n[avgpool]\n", "nothing to compute"),
    ],
)
def test_what_is_no_classifier_says_why(cfg: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse_cfg(cfg, "a.cfg", detects=False)


def test_each_app_names_the_other() -> None:
    with pytest.raises(InputError, match=r'a classifier runs with app = "apps\.classifier"'):
        parse_cfg(CFG, "a.cfg")
    head = "[convolutional]\nfilters=6\nactivation=linear\n[yolo]\nanchors=1,1\nnum=1\nclasses=1\n"
    with pytest.raises(InputError, match=r'a detector runs with app = "apps\.detector"'):
        parse_cfg("[net]\nwidth=8\nheight=8\nchannels=3\n" + head, "a.cfg", detects=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Squares of one colour, in folders, and a network of darknet's that can tell them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 6)):
        for index, name in enumerate(("blue", "green", "red")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 90, (18, 20, 3)).astype(np.uint8)
                image[..., index] += 120
                cv2.imwrite(str(folder / f"{number}.png"), image)
    (tmp_path / "names").write_text("blue\ngreen\nred\n")
    (tmp_path / "small.cfg").write_text(CFG)
    torch.manual_seed(0)
    net = DarknetClassifier(tmp_path / "small.cfg").eval()
    with torch.no_grad():
        first, last = net.layers[1].conv, net.layers[4].conv
        first.weight.zero_()
        last.weight.zero_()
        last.bias.zero_()
        for row in range(3):
            first.weight[row, row, 1, 1] = 1.0
            last.weight[row, 2 - row] = 1.0
    write_weights(tmp_path / "small.weights", net)
    (tmp_path / "small.toml").write_text(
        'app = "apps.classifier"\nnetwork = "small.cfg"\nweights = "small.weights"\n'
        '[data]\nformat = "imagefolder"\nnames = "names"\ntrain = "train"\ncalibration = "train"\n'
        'test = "test"\n[bench]\nruns = 2\n'
    )
    return tmp_path


def test_inspect_takes_the_file_alone(project: Path) -> None:
    done = call("inspect", project / "small.cfg", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["input"] == [1, 3, 18, 20] and all(each["leaving"] == 0 for each in found["runtimes"])


@pytest.mark.slow
def test_a_run_scores_it_and_both_runtimes_agree(project: Path) -> None:
    done = call("run", project / "small.toml", "--runs", project / "runs")
    assert done.code == 0, done.err
    figures = json.loads(next((project / "runs").glob("*/*/figures.json")).read_text())
    values = {(each["variant"], each["metric"]): each["value"] for each in figures}
    assert values["fp32", "top1"] == values["executorch", "top1"] == values["litert", "top1"] == 1
    assert values["executorch", "parity_lsb"] == values["litert", "parity_lsb"] == 0
