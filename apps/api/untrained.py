"""Networks by name alone, without weights or data: enough to say where their operations would run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paredown.apps.classifier.catalogue import NETWORKS, architecture
from paredown.apps.own.task import MEAN, STD
from paredown.pipeline.recipe.imports.read import is_model

CLASSES = 80  # of a detector that has no number of its own: COCO's
CFGS = Path(__file__).parents[1] / "detector" / "darknet" / "cfgs"


def untrained(model: str) -> tuple[Any, tuple[int, ...], tuple[float, float]] | None:
    """A network with random weights.

    Args:
        model: a classifier of `apps.classifier.catalogue`, a darknet .cfg, a detector that ships, or
            a model file.

    Returns:
        The module, its input's shape, and the smallest and largest value of an input; None where this is
        the name of no model.

    Raises:
        InputError: the .cfg is broken.
    """
    if model in NETWORKS:
        from paredown.apps.classifier.network import build

        side = architecture(model).side
        ends = [(end - mean) / std for end in (0, 1) for mean, std in zip(MEAN, STD, strict=True)]
        return build(model).eval(), (1, 3, side, side), (min(ends), max(ends))
    if is_model(model):
        from paredown.pipeline.recipe.imports.read import read

        found = read(model)
        return found.module, found.shape, (-1.0, 1.0)
    if model.endswith(".cfg") or model in {path.stem for path in CFGS.glob("*.cfg")}:
        from paredown.apps.detector.darknet.darknet import builtin_cfg, read_cfg
        from paredown.apps.detector.network import YoloV2

        cfg = read_cfg(model, detects=None) if model.endswith(".cfg") else builtin_cfg(model)
        made: Any
        if cfg.detects:
            made = YoloV2(cfg)
        else:
            from paredown.apps.classifier.darknet import DarknetClassifier

            made = DarknetClassifier(cfg)
        return made.eval(), (1, cfg.net.channels, cfg.net.height, cfg.net.width), (0.0, 1.0)
    from paredown.apps.detector.origins.find import BUILTIN

    if model in BUILTIN:
        from paredown.apps.detector.network.v8 import builtin

        made = builtin(model, CLASSES)
        return made.eval(), (1, 3, made.input_size, made.input_size), (0.0, 1.0)
    return None
