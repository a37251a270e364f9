"""The classifier's networks, in plain torch: CIFAR ResNets, ResNet-18/50 and MobileNetV2.

Our own definitions with the state-dict names of the public checkpoints: akamaster's pytorch_resnet_cifar10
for the CIFAR ResNets, torchvision's for the others. No forward pass knows a number of channels, so a network
whose convolutions were cut thinner still runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from paredown.apps.classifier.catalogue import architecture


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution as these networks have it: without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def zero_padding_shortcut(inputs: int, outputs: int) -> nn.Conv2d:
    """The parameter-free shortcut (option A) as a convolution that a graph of few operations can hold.

    Every second pixel, the channels in the middle of zero channels (He et al., arXiv 1512.03385, sections 3.3
    and 4.2; placed as akamaster does): a 1x1 convolution of stride 2 with ones and zeros gives exactly these
    values. Its weight is not trained, and public checkpoints do not have it: see `fixed`.
    """
    shortcut = nn.Conv2d(inputs, outputs, 1, 2, bias=False)
    with torch.no_grad():
        shortcut.weight.zero_()
        channels = torch.arange(inputs)
        shortcut.weight[(outputs - inputs) // 2 + channels, channels] = 1.0
    shortcut.weight.requires_grad_(False)
    return shortcut


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else zero_padding_shortcut(inputs, outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for 32x32 images with 6n + 2 layers (He et al., arXiv 1512.03385, section 4.2)."""

    def __init__(self, depth: int, classes: int) -> None:
        """Builds the network with He initialisation.

        Args:
            depth: 20, 32, 44, 56, ...
            classes: outputs.
        """
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(CifarBlock, 16, 16, blocks, 1)
        self.layer2 = _stage(CifarBlock, 16, 32, blocks, 2)
        self.layer3 = _stage(CifarBlock, 32, 64, blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear) or (
                isinstance(module, nn.Conv2d) and module.weight.requires_grad
            ):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution in the shortcut where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, the stride in the 3x3 as torchvision has it ("v1.5")."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """ResNet for ImageNet (He et al., arXiv 1512.03385, table 1)."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], counts: tuple[int, ...], classes: int
    ) -> None:
        """Builds the network with torchvision's initialisation.

        Args:
            block: of all four stages.
            counts: blocks per stage.
            classes: outputs.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        wide = block.expansion
        self.layer1 = _stage(block, 64, 64, counts[0], 1, wide)
        self.layer2 = _stage(block, 64 * wide, 128, counts[1], 2, wide)
        self.layer3 = _stage(block, 128 * wide, 256, counts[2], 2, wide)
        self.layer4 = _stage(block, 256 * wide, 512, counts[3], 2, wide)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * wide, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection (Sandler et al., arXiv 1801.04381, section 3)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = [] if expand == 1 else [_conv_bn_relu6(inputs, hidden, 1)]
        layers += [_conv_bn_relu6(hidden, hidden, 3, stride, hidden), conv(hidden, outputs, 1)]
        self.conv = nn.Sequential(*layers, nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 (Sandler et al., arXiv 1801.04381, table 2)."""

    # expansion, channels, blocks, stride of the first
    SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
                (6, 320, 1, 1))  # fmt: skip

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu6(3, 32, 3, 2)]
        channels = 32
        for expand, outputs, count, stride in self.SETTINGS:
            for index in range(count):
                layers.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expand))
                channels = outputs
        layers.append(_conv_bn_relu6(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        _initialise(self)
        linear = self.classifier[1]
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, 0.0, 0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, classes)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _stage(
    block: Callable[[int, int, int], nn.Module],
    inputs: int,
    width: int,
    count: int,
    stride: int,
    wide: int = 1,
) -> nn.Sequential:
    blocks = [block(inputs, width, stride)]
    blocks += [block(width * wide, width, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _conv_bn_relu6(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU6())


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build(name: str, classes: int | None = None) -> nn.Module:
    """Builds a network, randomly initialised, in training mode.

    Args:
        name: one of `apps.classifier.catalogue.NETWORKS`.
        classes: outputs; None is what the public checkpoints have.

    Raises:
        UsageError: no network of that name.
    """
    known = architecture(name)
    classes = known.classes if classes is None else classes
    if name == "resnet18":
        return ResNet(BasicBlock, (2, 2, 2, 2), classes)
    if name == "resnet50":
        return ResNet(Bottleneck, (3, 4, 6, 3), classes)
    if name == "mobilenet_v2":
        return MobileNetV2(classes)
    return CifarResNet(int(name.removeprefix("resnet")), classes)


def fixed(network: nn.Module) -> Iterator[str]:
    """Names of the tensors that the architecture decides: the weights of option-A shortcuts.

    Public checkpoints leave them out; `build` has set them.
    """
    for path, module in network.named_modules():
        if isinstance(module, CifarBlock) and isinstance(module.shortcut, nn.Conv2d):
            yield f"{path}.shortcut.weight"
