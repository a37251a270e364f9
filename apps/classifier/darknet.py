"""A classifier of darknet's: a .cfg that ends in a number per class, and its .weights.

What training does with the outputs, and what distillation does, needs logits. So a last [softmax] is left to
them, as everywhere in this app: it changes no order of the classes. Its temperature is not.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from paredown.apps.detector.darknet.darknet import read_cfg
from paredown.apps.detector.darknet.layers import Cfg, Cost
from paredown.apps.detector.network.yolo import SoftmaxLayer, Yolo


class DarknetClassifier(Yolo):
    """The network of a .cfg without [region] and [yolo].

    Args:
        cfg: parsed, or the file.

    Raises:
        InputError: the file cannot be read, or describes no classifier.
    """

    def __init__(self, cfg: Cfg | str | Path) -> None:
        super().__init__(cfg if isinstance(cfg, Cfg) else read_cfg(cfg, detects=False))
        ends = [index for index, layer in enumerate(self.cfg.layers) if not isinstance(layer, Cost)]
        last = self.layers[ends[-1]]
        self.temperature = 1.0
        if isinstance(last, SoftmaxLayer):
            self.temperature = last.temperature
            self.layers[ends[-1]] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Maps images (N, channels, H, W), 0 to 1, to logits (N, classes)."""
        x, _ = self.run(x)
        x = x.flatten(1)
        return x if self.temperature == 1 else x / self.temperature
