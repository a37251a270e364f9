"""Networks of darknet: a .cfg, one that ships, or a factory that makes such a network."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paredown.apps.detector.darknet.layers import Cfg, Route, coarsest_stride
from paredown.apps.detector.device.boxes.decode import Decoder
from paredown.apps.detector.device.boxes.heads import YoloHead, YoloHeads
from paredown.apps.detector.origins.origin import Origin, class_names
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.store.store import file_hash
from paredown.targets.errors import InputError

OUTPUTS = ("xy", "wh", "obj", "cls")  # of one head


class Darknet(Origin):
    """A network with a [region] or with [yolo] heads.

    Args:
        recipe: resolved.
        cfg: parsed.
        factory: the source file of the factory that makes it, if one does.

    Raises:
        InputError: there are more or fewer names than classes.
    """

    cfg: Cfg

    def __init__(self, recipe: Recipe, cfg: Cfg, factory: Path | None = None) -> None:
        self._recipe, self.cfg, self._factory = recipe, cfg, factory
        size: dict[str, Any] = {"width": cfg.net.width, "height": cfg.net.height}
        if cfg.letter_box:
            size["resize"] = "letterbox"
        self.preprocess = Preprocess(**{**size, **recipe.preprocess.changes()})
        self.names = class_names(recipe)
        if len(self.names) != cfg.classes:
            raise InputError(
                f"{len(self.names)} class names for a network of {cfg.classes} classes",
                where=recipe.data.names or "the embedded digits",
                hint="data.names must list the network's classes; label_names those of the label files",
            )
        self.stride = coarsest_stride(cfg)
        self.untrained = "" if cfg.region else "[yolo]"
        self.decoder = self._decoder()
        heads = len(cfg.yolos)
        self.output_names = OUTPUTS if cfg.region else tuple(
            f"{name}{head}" for head in range(1, heads + 1) for name in OUTPUTS
        )  # fmt: skip

    def _decoder(self) -> Decoder:
        if self.cfg.region:
            return self.cfg.region.anchors
        yolos = tuple(self.cfg.yolos.values())
        heads = tuple(
            YoloHead(tuple(yolo.anchors[i] for i in yolo.mask), yolo.scale_x_y, yolo.new_coords)
            for yolo in yolos
        )
        # darknet takes the suppression from the last head
        return YoloHeads(heads, (self.preprocess.width, self.preprocess.height), yolos[-1].nms_beta)

    def identity(self) -> Mapping[str, Any]:
        """The .cfg's own text, wherever it lies."""
        facts = dataclasses.asdict(self.cfg) | {"where": ""}
        for layer, fields in zip(self.cfg.layers, facts["layers"], strict=True):
            if isinstance(layer, Route) and layer.groups == 1:
                del fields["groups"], fields["group_id"]  # they came later: runs of before are found again
        if not self.cfg.region:
            facts["kinds"] = [type(layer).__name__ for layer in self.cfg.layers]
        parsed = json.dumps(facts, sort_keys=True, default=str)
        identity = {"cfg": hashlib.sha256(parsed.encode()).hexdigest()}
        return identity | ({"factory": file_hash(self._factory)} if self._factory else {})

    def network(self, weights: Path) -> Any:
        """Of darknet's .weights, or of a checkpoint."""
        from paredown.apps.detector.network import Yolo
        from paredown.apps.detector.network.weights import load_checkpoint

        if self._factory is None:
            network: Any = Yolo.from_cfg(self.cfg)
        else:
            network, _ = from_factory(self._recipe.network, self._recipe.folder)
        self.notes = load_checkpoint(weights, network)
        return network.eval()

    def loss(self, outputs: Any, labels: Any) -> Any:
        """That of the [region]."""
        from paredown.apps.detector.train.loss import region_loss

        assert self.cfg.region is not None
        return region_loss(outputs, labels, self.cfg.region.anchors)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """By cell and anchor."""
        from paredown.apps.detector.train.distil import region_distillation, yolo_distillation

        if isinstance(self.decoder, YoloHeads):
            return yolo_distillation(student, teacher, [head.new_coords for head in self.decoder.heads])
        return region_distillation(student, teacher)

    def features(self) -> tuple[str, ...]:
        """What the head's convolution reads, of each head."""
        return head_features(self.cfg)


def head_features(cfg: Cfg) -> tuple[str, ...]:
    """Paths of the layers that the heads' convolutions read."""
    if cfg.region:
        return (f"layers.{len(cfg.layers) - 2}",)
    return tuple(f"layers.{index - 2}" for index in cfg.yolos if index >= 2)
