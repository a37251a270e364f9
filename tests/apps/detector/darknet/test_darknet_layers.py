"""layers.py: networks of several heads, sums and routes by groups: what is read, and every shape."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_darknet import SMALL, computed, values

from paredown.apps.detector.darknet.darknet import parse_cfg
from paredown.apps.detector.darknet.layers import (
    Route,
    Shortcut,
    coarsest_stride,
    output_shapes,
)
from paredown.apps.detector.darknet.write import format_cfg, with_filters
from paredown.targets.errors import InputError

V4 = """\
[net]
width=64
height=32
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish

[route]
layers=-1
groups=2
group_id=1

[convolutional]
filters=4
activation=swish

[shortcut]
from=-2
activation=relu6

[dropout]
probability=.5

[convolutional]
filters=14
activation=linear

[yolo]
mask=1,2
anchors=4,5, 6,7, 8,9
num=3
classes=2
scale_x_y=1.05
nms_kind=greedynms
beta_nms=0.9
iou_loss=ciou
iou_normalizer=0.07

[route]
layers=-3

[upsample]
stride=2

[convolutional]
filters=7
activation=logistic

[yolo]
mask=0
anchors=4,5, 6,7, 8,9
num=3
classes=2
new_coords=1
scale_x_y=2
"""


def v4(old: str, new: str) -> str:
    assert V4.count(old) == 1
    return V4.replace(old, new)


def test_a_cfg_of_version_4_becomes_what_it_says():
    cfg = parse_cfg(V4)
    assert cfg.region is None and cfg.classes == 2 and not cfg.letter_box
    route, shortcut = cfg.layers[1], cfg.layers[3]
    assert isinstance(route, Route) and (route.layers, route.groups, route.group_id) == ((0,), 2, 1)
    assert isinstance(shortcut, Shortcut) and (shortcut.layers, shortcut.activation) == ((1,), "relu6")
    assert [type(layer).__name__ for layer in cfg.layers[4:]] == [
        "Dropout", "Convolutional", "Yolo", "Route", "Upsample", "Convolutional", "Yolo",
    ]  # fmt: skip
    first, second = cfg.yolos.values()
    assert list(cfg.yolos) == [6, 10]
    assert (first.mask, first.scale_x_y, first.new_coords) == ((1, 2), 1.05, False)
    assert first.anchors == ((4.0, 5.0), (6.0, 7.0), (8.0, 9.0))
    assert first.nms_beta == 0.6, "darknet's greedynms does not read beta_nms"
    assert (second.mask, second.scale_x_y, second.new_coords, second.nms_beta) == ((0,), 2.0, True, None)
    assert output_shapes(cfg) == (
        (8, 16, 32), (4, 16, 32), (4, 16, 32), (4, 16, 32), (4, 16, 32), (14, 16, 32), (14, 16, 32),
        (4, 16, 32), (4, 32, 64), (7, 32, 64), (7, 32, 64),
    )  # fmt: skip
    assert coarsest_stride(cfg) == 2
    diou = parse_cfg(V4.replace("greedynms", "diounms"))
    assert [yolo.nms_beta for yolo in diou.yolos.values()] == [0.9, None]
    for each in (cfg, diou):
        again = parse_cfg(format_cfg(each))
        assert computed(again) == computed(each)
        assert again.layers[6].options["iou_loss"] == "ciou"


BAD_V4 = {
    "mask beyond the anchors": (
        v4("mask=1,2", "mask=1,3"),
        ":35: mask=1,3 in [yolo] does not name anchors; num=3",
    ),
    "mask that is no number": (v4("mask=1,2", "mask=1,x"), ":35: mask=1,x"),
    "filters": (v4("filters=14", "filters=21"), ":30: filters=21 before a [yolo]"),
    "anchors": (V4.replace("8,9\nnum=3", "8\nnum=3", 1), ":36: anchors holds 5 values, num=3 needs 6"),
    "unequal shortcut": (
        v4("filters=4", "filters=3"),
        ":23: [shortcut] adds maps of different shapes: 3 channels",
    ),
    "shortcut forward": (v4("from=-2", "from=9"), ":24: from=9 in [shortcut] does not name earlier layers"),
    "groups that do not divide": (
        v4("groups=2\ngroup_id=1", "groups=3"),
        ":14: groups=3 does not divide the 8",
    ),
    "group beyond": (
        v4("group_id=1", "group_id=2"),
        ":17: group_id=2 of groups=2 in [route]; the last one is 1",
    ),
    "weighted shortcut": (
        v4("from=-2", "from=-2\nweights_type=per_feature"),
        ":25: weights_type=per_feature",
    ),
    "scaled upsample": (v4("[upsample]", "[upsample]\nscale=3"), ": scale=3 in [upsample]"),
    "downsampling": (v4("[upsample]\nstride=2", "[upsample]\nstride=-2"), "stride=-2 in [upsample]"),
    "nms of corners": (v4("greedynms", "cornersnms"), "nms_kind=cornersnms in [yolo] is not supported"),
    "new_coords without logistic": (
        v4("activation=logistic", "activation=linear"),
        "before [yolo] must be logistic",
    ),
    "logistic without new_coords": (v4("new_coords=1\n", ""), "before [yolo] must be linear"),
    "two numbers of classes": (
        v4("filters=7", "filters=8").replace("classes=2\nnew", "classes=3\nnew"),
        "classes=3 in [yolo], 2 in the first",
    ),
    "a head routed elsewhere": (v4("layers=-3", "layers=-1"), "[yolo] is routed elsewhere"),
    "a head's convolution routed elsewhere": (
        v4("layers=-3", "layers=-2"),
        "before [yolo] is routed elsewhere",
    ),
    "no route after a head": (v4("[route]\nlayers=-3\n", ""), "only a [route] can follow a [yolo]"),
    "layers after the last head": (V4 + "[dropout]\n", "[yolo] is not the last section"),
    "region and yolo": (
        V4 + SMALL.partition("[region]")[1] + SMALL.partition("[region]")[2],
        "another head before",
    ),
    "letter_box": (v4("channels=3", "channels=3\nletter_box=2"), ":5: letter_box=2"),
    "the loss in the middle": (v4("[dropout]\nprobability=.5", "[cost]"), ":27: [cost] is not the last"),
    "a part too large": (
        v4("[dropout]\nprobability=.5", "[crop]\ncrop_width=999\ncrop_height=2"),
        "[crop] takes 999x2 of a",
    ),
    "groups of a softmax": (
        v4("[dropout]\nprobability=.5", "[softmax]\ngroups=7"),
        "groups=7 does not divide the",
    ),
    "a cold softmax": (
        v4("[dropout]\nprobability=.5", "[softmax]\ntemperature=0"),
        ":28: temperature=0 is not positive",
    ),
}


@pytest.mark.parametrize("name", BAD_V4)
def test_a_mistake_of_version_4_says_where(name: str):
    text, message = BAD_V4[name]
    with pytest.raises(InputError) as caught:
        parse_cfg(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_cfg_of_version_4_parses_or_is_an_input_error(data: st.DataObject):
    text = V4.split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.integers(0, len(text) - 1))
        text[line] = (
            text[line].partition("=")[0] + "=" + data.draw(values) if data.draw(st.booleans()) else ""
        )
    try:
        cfg = parse_cfg("\n".join(text))
    except InputError:
        return
    assert computed(parse_cfg(format_cfg(cfg))) == computed(cfg)


def test_narrower_networks_of_version_4_keep_their_sums():
    cfg = parse_cfg(V4)
    thin = with_filters(cfg, {0: 4, 2: 2})
    assert output_shapes(thin)[3] == (2, 16, 32) and output_shapes(thin)[6] == (14, 16, 32)
    assert [yolo.nms_beta for yolo in thin.yolos.values()] == [0.6, None]
    with pytest.raises(InputError, match=r"\[shortcut\] adds maps of different shapes"):
        with_filters(cfg, {2: 3})
    with pytest.raises(InputError, match="groups=2 does not divide the 7 channels of a .route"):
        with_filters(cfg, {0: 7})
