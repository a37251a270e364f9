"""The networks against published sizes, and against real weights on real images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown.apps.classifier.catalogue import NETWORKS, architecture
from paredown.apps.classifier.network import build, fixed, zero_padding_shortcut
from paredown.apps.own.task import MEAN, STD
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.weights import load_checkpoint
from paredown.targets.errors import InputError, UsageError

# Trained parameters, and MACs of convolutions and linear layers in millions: for the last three
# torchvision's table of models, else akamaster's README and, exact to a digit more, what others counted.
PUBLISHED = {
    "resnet20": (0.27e6, 40.55), "resnet56": (0.85e6, 125.49), "resnet18": (11_689_512, 1814.07),
    "resnet50": (25_557_032, 4089.18), "mobilenet_v2": (3_504_872, 300.77),
}  # fmt: skip
WEIGHTS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet56": "resnet56-4bfd9763.th",
}


def settled(name: str, classes: int | None = None) -> nn.Module:
    """A network with the statistics of its own activations, so that it maps to ordinary numbers."""
    torch.manual_seed(0)
    network = build(name, classes).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    side = min(64, architecture(name).side)
    with torch.no_grad():
        network(torch.randn(8, 3, side, side))
    return network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_and_function_of_the_traced_network(name):
    side = architecture(name).side
    network = settled(name) if name != "resnet50" else build(name).eval()
    graph = trace(network, (1, 3, side, side))
    parameters, macs = PUBLISHED[name]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    shortcuts = sum(node.macs for node in graph if f"{node.name}.weight" in set(fixed(network)))
    if parameters > 1e6:
        assert trained == parameters
    else:
        assert trained == pytest.approx(parameters, abs=5e3)
    assert (graph.macs - shortcuts) / 1e6 == pytest.approx(macs, rel=1e-3)
    assert {node.kind for node in graph} <= {
        "input", "conv2d", "relu", "relu6", "max_pool2d", "add", "mean", "reshape", "linear",
    }  # fmt: skip
    if name != "resnet50":  # the same blocks as ResNet-18's but for a convolution, and half of the seconds
        x = torch.randn(1, 3, side, side)
        torch.testing.assert_close(graph.run(x)[graph.outputs[0]], network(x), rtol=1e-3, atol=1e-4)


def test_the_depths_between():
    for name, parameters in (("resnet32", 0.46e6), ("resnet44", 0.66e6)):
        trained = sum(p.numel() for p in build(name).parameters() if p.requires_grad)
        assert trained == pytest.approx(parameters, abs=5e3)


def test_names_in_the_state_dict_are_those_of_the_public_checkpoints():
    resnet = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight",
              "layer2.0.downsample.1.running_var", "layer4.1.bn2.bias", "fc.weight", "fc.bias"}  # fmt: skip
    mobile = {"features.0.0.weight", "features.0.1.weight", "features.1.conv.0.0.weight",
              "features.1.conv.1.weight", "features.1.conv.2.running_var", "features.2.conv.1.0.weight",
              "features.2.conv.2.weight", "features.2.conv.3.bias", "features.17.conv.3.weight",
              "features.18.0.weight", "features.18.1.weight", "classifier.1.weight"}  # fmt: skip
    for name, some, count in (("resnet18", resnet, 122), ("mobilenet_v2", mobile, 314)):
        keys = set(build(name).state_dict())
        assert some <= keys and len(keys) == count  # torchvision's count


def test_the_shortcut_is_every_second_pixel_between_zero_channels():
    """Oracle: the expression of akamaster's resnet.py."""
    x = torch.randn(2, 16, 9, 8)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8), "constant", 0)
    shortcut = zero_padding_shortcut(16, 32)
    assert torch.equal(shortcut(x), expected) and not shortcut.weight.requires_grad


def test_training_leaves_the_shortcuts_alone():
    network = build("resnet20", 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert set(fixed(network)) == {"layer2.0.shortcut.weight", "layer3.0.shortcut.weight"}
    assert not changed & set(fixed(network)) and "layer2.0.conv1.weight" in changed


def test_a_network_cut_thinner_still_runs():
    """Half of the channels inside a block, by slicing parameters: no forward pass knows a width."""
    for name, convs, norm in (
        ("resnet18", ("layer1.0.conv1", "layer1.0.conv2"), "layer1.0.bn1"),
        ("resnet20", ("layer2.1.conv1", "layer2.1.conv2"), "layer2.1.bn1"),
    ):
        network = build(name, 5).eval()
        first, second = (network.get_submodule(path) for path in convs)
        keep = first.out_channels // 2
        first.weight = nn.Parameter(first.weight[:keep])
        second.weight = nn.Parameter(second.weight[:, :keep])
        first.out_channels = second.in_channels = keep
        bn = network.get_submodule(norm)
        for part in ("weight", "bias"):
            setattr(bn, part, nn.Parameter(getattr(bn, part)[:keep]))
        bn.running_mean, bn.running_var, bn.num_features = bn.running_mean[:keep], bn.running_var[:keep], keep
        assert network(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_unknown_networks_name_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'resnet50'"):
        build("resnet-50")
    with pytest.raises(UsageError, match=", ".join(NETWORKS)):
        build("vgg")


def real(shared, name: str) -> tuple[nn.Module, torch.Tensor, np.ndarray]:
    """A trained network in double precision, the test images and their labels."""
    network = build(name)
    load_checkpoint(shared / "cifar10-resnets" / WEIGHTS[name], network, name, set(fixed(network)))
    pixels = cv2.imread(str(shared / "cifar10" / "test500.png")).reshape(-1, 32, 32, 3)
    preprocess = Preprocess(32, 32, mean=MEAN, std=STD)
    labels = np.loadtxt(shared / "cifar10" / "test500.labels.txt", dtype=np.int64)
    return network.eval(), torch.from_numpy(np.stack([preprocess(image) for image in pixels])), labels


@torch.no_grad()
def test_real_weights_classify_real_images(shared):
    network, images, labels = real(shared, "resnet20")
    assert (network(images).argmax(1).numpy() == labels).mean() == pytest.approx(0.910, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top1"), [("resnet32", 0.932), ("resnet56", 0.940)])
@torch.no_grad()
def test_deeper_real_weights_too(shared, name, top1):
    network, images, labels = real(shared, name)
    assert (network(images).argmax(1).numpy() == labels).mean() == pytest.approx(top1, abs=1e-9)


def test_only_the_shortcuts_may_be_missing(tmp_path):
    network = build("resnet20")
    state = {k: v for k, v in network.state_dict().items() if k not in set(fixed(network))}
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    load_checkpoint(path, build("resnet20"), "resnet20", set(fixed(network)))
    torch.save(network.state_dict(), path)  # one that we wrote has them
    load_checkpoint(path, build("resnet20"), "resnet20", set(fixed(network)))
    for broken, message in (
        ({**state, "linear.bias": torch.zeros(11)}, r"linear\.bias is \(11,\), not \(10,\)"),
        (
            {k: v for k, v in state.items() if k != "bn1.weight"},
            r"lacks bn1\.weight: not a checkpoint of a resn",
        ),
        ({**state, "fc.bias": torch.zeros(1)}, r"has the unknown fc\.bias"),
        (
            {**state, "conv1.weight": state["conv1.weight"] * torch.nan},
            r"conv1\.weight values hold 432 values",
        ),
    ):
        torch.save(broken, path)
        with pytest.raises(InputError, match=message):
            load_checkpoint(path, network, "a resnet20", set(fixed(network)))
