"""The other way: a parsed .cfg, or a pruned network's, back to text that darknet reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from paredown.apps.detector.darknet.darknet import parse_cfg
from paredown.apps.detector.darknet.layers import (
    AvgPool,
    Cfg,
    Convolutional,
    Cost,
    Crop,
    Layer,
    MaxPool,
    Net,
    Region,
    Reorg,
    Route,
    Shortcut,
    Softmax,
    Upsample,
    Yolo,
)


def format_cfg(cfg: Cfg) -> str:
    """Returns .cfg text that parses to the same network, every kept option included (comments are gone)."""
    blocks = [_block("net", cfg.net, width=cfg.net.width, height=cfg.net.height, channels=cfg.net.channels)]
    blocks += [_layer(layer) for layer in cfg.layers]
    if cfg.region:
        blocks.append(_region(cfg.region))
    return "\n\n".join(blocks) + "\n"


def _layer(layer: Layer) -> str:
    if isinstance(layer, Convolutional):
        return _block(
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
    if isinstance(layer, MaxPool):
        return _block("maxpool", layer, size=layer.size, stride=layer.stride, padding=layer.padding)
    if isinstance(layer, Reorg):
        return _block("reorg", layer, stride=layer.stride)
    if isinstance(layer, Upsample):
        return _block("upsample", layer, stride=layer.stride)
    if isinstance(layer, Shortcut):
        return _block("shortcut", layer, **{"from": _listed(layer.layers), "activation": layer.activation})
    if isinstance(layer, Route):
        parts = {} if layer.groups == 1 else {"groups": layer.groups, "group_id": layer.group_id}
        return _block("route", layer, layers=_listed(layer.layers), **parts)
    if isinstance(layer, Yolo):
        return _yolo(layer)
    if isinstance(layer, Crop):
        sides = {"crop_height": layer.height, "crop_width": layer.width}
        return _block("crop", layer, **sides, noadjust=int(not layer.adjust))
    if isinstance(layer, Softmax):
        return _block("softmax", layer, groups=layer.groups, temperature=repr(layer.temperature))
    if isinstance(layer, Cost):
        return _block("cost", layer)
    return _block("avgpool" if isinstance(layer, AvgPool) else "dropout", layer)


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _pairs(anchors: Iterable[tuple[float, float]]) -> str:
    return ",".join(f"{w!r},{h!r}" for w, h in anchors)


def _yolo(layer: Yolo) -> str:
    kind = {} if layer.nms_beta is None else {"nms_kind": "diounms", "beta_nms": repr(layer.nms_beta)}
    if layer.options.get("nms_kind") == "greedynms":
        kind = {}  # the option itself is kept
    return _block(
        "yolo",
        layer,
        mask=_listed(layer.mask),
        anchors=_pairs(layer.anchors),
        num=len(layer.anchors),
        classes=layer.classes,
        scale_x_y=repr(layer.scale_x_y),
        new_coords=int(layer.new_coords),
        **kind,
    )


def _region(r: Region) -> str:
    return _block(
        "region",
        r,
        anchors=_pairs(r.anchors),
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
    return parse_cfg(format_cfg(replace(cfg, layers=tuple(layers))), cfg.where, cfg.detects)


def _regroup(layer: Convolutional, filters: int) -> int:
    return filters if layer.groups == layer.filters else layer.groups  # depthwise stays depthwise
