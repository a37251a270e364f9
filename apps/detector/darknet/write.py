"""The other way: a parsed .cfg, or a pruned network's, back to text that darknet reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from paredown.apps.detector.darknet.darknet import (
    Cfg,
    Convolutional,
    Layer,
    MaxPool,
    Net,
    Region,
    Reorg,
    parse_cfg,
)


def format_cfg(cfg: Cfg) -> str:
    """Returns .cfg text that parses to the same network, every kept option included (comments are gone)."""
    blocks = [_block("net", cfg.net, width=cfg.net.width, height=cfg.net.height, channels=cfg.net.channels)]
    for layer in cfg.layers:
        if isinstance(layer, Convolutional):
            blocks.append(
                _block(
                    "convolutional",
                    layer,
                    pad=0,
                    padding=layer.padding,
                    filters=layer.filters,
                    size=layer.size,
                    stride=layer.stride,
                    groups=layer.groups,
                    batch_normalize=int(layer.batch_normalize),
                    activation=layer.activation,
                )
            )
        elif isinstance(layer, MaxPool):
            blocks.append(
                _block("maxpool", layer, size=layer.size, stride=layer.stride, padding=layer.padding)
            )
        elif isinstance(layer, Reorg):
            blocks.append(_block("reorg", layer, stride=layer.stride))
        else:
            blocks.append(_block("route", layer, layers=",".join(map(str, layer.layers))))
    r = cfg.region
    anchors = ",".join(f"{w!r},{h!r}" for w, h in r.anchors)
    blocks.append(
        _block(
            "region",
            r,
            anchors=anchors,
            num=len(r.anchors),
            classes=r.classes,
            coords=4,
            softmax=1,
            object_scale=r.object_scale,
            noobject_scale=r.noobject_scale,
            class_scale=r.class_scale,
            coord_scale=r.coord_scale,
            thresh=r.thresh,
            rescore=int(r.rescore),
        )
    )
    return "\n\n".join(blocks) + "\n"


def _block(kind: str, layer: Net | Layer | Region, **values: object) -> str:
    options = {**layer.options, **{key: str(value) for key, value in values.items()}}
    return "\n".join([f"[{kind}]", *(f"{key}={value}" for key, value in options.items())])


def with_filters(cfg: Cfg, filters: Mapping[int, int]) -> Cfg:
    """Returns the cfg with other filter counts, by layer number: what channel pruning leaves.

    Raises:
        InputError: if the layers no longer fit together.
    """
    layers = [
        replace(layer, filters=filters[i], groups=_regroup(layer, filters[i]))
        if isinstance(layer, Convolutional) and i in filters
        else layer
        for i, layer in enumerate(cfg.layers)
    ]
    return parse_cfg(format_cfg(replace(cfg, layers=tuple(layers))), cfg.where)


def _regroup(layer: Convolutional, filters: int) -> int:
    return filters if layer.groups == layer.filters else layer.groups  # depthwise stays depthwise
