"""Networks of the detector: those of darknet's files, and one of an own definition without anchors."""

from paredown.apps.detector.network.yolo import (
    AvgPoolLayer,
    ConvLayer,
    Header,
    MaxPoolLayer,
    Outputs,
    RegionHead,
    ReorgLayer,
    RouteLayer,
    ShortcutLayer,
    UpsampleLayer,
    Yolo,
    YoloV2,
)

__all__ = [
    "AvgPoolLayer",
    "ConvLayer",
    "Header",
    "MaxPoolLayer",
    "Outputs",
    "RegionHead",
    "ReorgLayer",
    "RouteLayer",
    "ShortcutLayer",
    "UpsampleLayer",
    "Yolo",
    "YoloV2",
]
