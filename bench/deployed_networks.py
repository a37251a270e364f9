"""Networks of the kinds that phones and boards run, in plain torch; `bench/deployed.py` trains them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv(
    channels: int, filters: int, size: int = 3, stride: int = 1, activation: nn.Module | None = None,
    *, depthwise: bool = False, eps: float = 1e-5,
) -> nn.Sequential:  # fmt: skip
    """A convolution that keeps the size at stride 1, with batch norm."""
    groups = channels if depthwise else 1
    parts = [
        nn.Conv2d(channels, filters, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(filters, eps),
    ]
    return nn.Sequential(*parts, *([activation] if activation is not None else []))


class Excite(nn.Module):
    """Squeeze and excitation: a gate per channel from the mean of all of them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.excite = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape (N, channels, h, w)."""
        return x * self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, a gate, projection; added to its input where shapes allow."""

    def __init__(
        self, channels: int, expanded: int, filters: int, size: int, stride: int, gate: bool, hard: bool
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if hard else nn.ReLU
        parts = [conv(channels, expanded, 1, activation=activation())] if expanded != channels else []
        parts.append(conv(expanded, expanded, size, stride, activation(), depthwise=True))
        parts += [Excite(expanded, max(8, expanded // 32 * 8))] if gate else []
        self.body = nn.Sequential(*parts, conv(expanded, filters, 1))
        self.add = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, channels, h, w) to (N, filters, h / stride, w / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.add else y


class MobileNetV3(nn.Module):
    """MobileNetV3-Small (Howard et al., arXiv 1905.02244, table 2) for 32x32 images: two strides less."""

    input_size = 32
    #: kernel, expanded channels, filters, squeeze and excitation, hard swish, stride
    ROWS = (
        (3, 16, 16, True, False, 1), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
    )  # fmt: skip

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks, channels = [], 16
        for size, expanded, filters, gate, hard, stride in self.ROWS:
            blocks.append(Inverted(channels, expanded, filters, size, stride, gate, hard))
            channels = filters
        self.features = nn.Sequential(
            conv(3, 16, 3, 2, nn.Hardswish()), *blocks, conv(96, 576, 1, activation=nn.Hardswish())
        )
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.classifier = nn.Sequential(nn.Linear(576, 256), nn.Hardswish(), nn.Linear(256, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 32, 32) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return logits


def mobilenet_v3() -> nn.Module:
    """Of ten classes."""
    return MobileNetV3()


class Same(nn.Sequential):
    """A convolution with batch norm, padded as TensorFlow does it: at stride 2 more right and below."""

    def __init__(self, channels: int, filters: int, size: int, stride: int, groups: int = 1) -> None:
        total = size - stride if stride > 1 else size - 1
        near = total // 2
        super().__init__(
            nn.ZeroPad2d((near, total - near, near, total - near)),
            nn.Conv2d(channels, filters, size, stride, groups=groups, bias=False),
            nn.BatchNorm2d(filters, eps=1e-3),
        )


class LiteBlock(nn.Module):
    """MBConv without gate."""

    def __init__(self, channels: int, filters: int, size: int, stride: int, ratio: int) -> None:
        super().__init__()
        inner = channels * ratio
        parts = [Same(channels, inner, 1, 1), nn.ReLU6()] if ratio > 1 else []
        parts += [Same(inner, inner, size, stride, inner), nn.ReLU6(), Same(inner, filters, 1, 1)]
        self.body = nn.Sequential(*parts)
        self.add = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, channels, h, w) to (N, filters, h / stride, w / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.add else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for 224x224 images: EfficientNet-B0 with ReLU6 and without gates."""

    input_size = 224
    #: repeats, kernel, stride, ratio, filters
    ROWS = (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks, channels = [], 32
        for repeats, size, stride, ratio, filters in self.ROWS:
            for index in range(repeats):
                blocks.append(LiteBlock(channels, filters, size, stride if index == 0 else 1, ratio))
                channels = filters
        self.stem = nn.Sequential(Same(3, 32, 3, 2), nn.ReLU6())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(Same(320, 1280, 1, 1), nn.ReLU6())
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, 224, 224) to logits (N, classes)."""
        logits: Tensor = self.fc(self.flatten(self.pool(self.head(self.blocks(self.stem(x))))))
        return logits


def efficientnet_lite0() -> nn.Module:
    """Of ImageNet's classes."""
    return EfficientNetLite0()


def public_state(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A public checkpoint of EfficientNet-Lite0 under the names here: its tensors come in the same order.

    Raises:
        ValueError: it has other shapes.
    """
    ours = network.state_dict()
    if [t.shape for t in ours.values()] != [t.shape for t in state.values()]:
        raise ValueError("not a checkpoint of EfficientNet-Lite0")
    return dict(zip(ours, state.values(), strict=True))


class UNet(nn.Module):
    """A U-Net of two levels with transposed convolutions (Ronneberger et al., arXiv 1505.04597)."""

    input_size = 80

    def __init__(self, classes: int = 2, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        first, second, third = widths

        def double(channels: int, filters: int) -> nn.Sequential:
            return nn.Sequential(
                conv(channels, filters, activation=nn.ReLU()), conv(filters, filters, activation=nn.ReLU())
            )

        self.pool = nn.MaxPool2d(2)
        self.down1, self.down2, self.down3 = double(3, first), double(first, second), double(second, third)
        self.up2, self.up1 = nn.ConvTranspose2d(third, second, 2, 2), nn.ConvTranspose2d(second, first, 2, 2)
        self.join2, self.join1 = double(2 * second, second), double(2 * first, first)
        self.head = nn.Conv2d(first, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 3, h, w) to logits (N, classes, h, w)."""
        high = self.down1(x)
        middle = self.down2(self.pool(high))
        low = self.down3(self.pool(middle))
        middle = self.join2(torch.cat([self.up2(low), middle], 1))
        logits: Tensor = self.head(self.join1(torch.cat([self.up1(middle), high], 1)))
        return logits


def unet() -> nn.Module:
    """Of ink and background."""
    return UNet()


class KeywordSpotter(nn.Module):
    """DS-CNN (Zhang et al., arXiv 1711.07128), as MLPerf Tiny has it, for 49 frames of 10 coefficients."""

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        blocks = []
        for _ in range(4):
            blocks += [conv(width, width, activation=nn.ReLU(), depthwise=True)]
            blocks += [conv(width, width, 1, activation=nn.ReLU())]
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(*blocks)
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 1, 49, 10) to logits (N, classes)."""
        logits: Tensor = self.fc(self.flatten(self.pool(self.blocks(self.stem(x)))))
        return logits


def keyword_spotter() -> nn.Module:
    """Of ten words."""
    return KeywordSpotter()
