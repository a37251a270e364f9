"""darknet.py: what a .cfg means, and that every mistake is an InputError with its line."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.darknet.darknet import builtin_cfg, builtin_names, parse_cfg, read_cfg
from paredown.apps.detector.darknet.layers import (
    Cfg,
    Convolutional,
    MaxPool,
    Region,
    Reorg,
    Route,
    output_shapes,
)
from paredown.apps.detector.darknet.write import format_cfg, with_filters
from paredown.targets.errors import InputError, UsageError

SMALL = """\
[net]
width=32
height=24
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=14
size=1
activation=linear

[region]
anchors=1,2, 3.5,4
num=2
classes=2
softmax=1
"""


def changed(old: str, new: str) -> str:
    assert SMALL.count(old) == 1
    return SMALL.replace(old, new)


def test_a_small_cfg_becomes_what_it_says():
    cfg = parse_cfg(SMALL, "small.cfg")
    assert (cfg.net.width, cfg.net.height, cfg.net.channels) == (32, 24, 3)
    first, pool, last = cfg.layers
    assert isinstance(first, Convolutional) and isinstance(pool, MaxPool) and isinstance(last, Convolutional)
    assert (first.filters, first.size, first.padding, first.batch_normalize) == (8, 3, 1, True)
    assert (pool.size, pool.stride, pool.padding) == (2, 2, 1)
    assert (last.padding, last.batch_normalize, last.activation) == (0, False, "linear")
    assert cfg.region.anchors == ((1.0, 2.0), (3.5, 4.0))
    assert output_shapes(cfg) == ((8, 24, 32), (8, 12, 16), (14, 12, 16))
    assert output_shapes(cfg, width=64, height=64)[-1] == (14, 32, 32)


def test_darknet_habits_are_understood():
    text = SMALL.replace("[net]", "# a comment\n; another\n[network]").replace("[convolutional]", "[conv]")
    text = text.replace("filters=8", "  filters = 8   # eight\nfilters=9\nlearning_rate=2").replace(
        "\n", "\r\n"
    )
    cfg = parse_cfg(text)
    first = cfg.layers[0]
    assert isinstance(first, Convolutional)
    assert first.filters == 8, "darknet takes the first of two equal keys"
    assert first.options["learning_rate"] == "2", "kept, though it matters in training only"


def test_pad_wins_over_padding_and_layers_count_back():
    text = changed("size=1\nactivation=linear", "size=3\npadding=0\npad=1\nactivation=linear")
    text = text.replace("[maxpool]", "[route]\nlayers=-1,0\n\n[maxpool]")
    cfg = parse_cfg(text)
    assert isinstance(cfg.layers[1], Route) and cfg.layers[1].layers == (0, 0)
    assert isinstance(cfg.layers[-1], Convolutional) and cfg.layers[-1].padding == 1


def test_yolov2_voc_is_the_network_of_methods_section_3():
    cfg = builtin_cfg("yolov2-voc")
    assert len(cfg.layers) == 31
    assert isinstance(cfg.layers[25], Route) and cfg.layers[25].layers == (16,)
    assert isinstance(cfg.layers[27], Reorg)
    assert isinstance(cfg.layers[28], Route) and cfg.layers[28].layers == (27, 24), (
        "reorg first, then the 1024"
    )
    shapes = output_shapes(cfg)
    assert shapes[16] == (512, 26, 26) and shapes[27] == (256, 13, 13) and shapes[28] == (1280, 13, 13)
    assert cfg.region.anchors[-1] == (11.2364, 10.0071)


def test_tiny_keeps_13_cells_through_its_stride_1_pool():
    assert output_shapes(builtin_cfg("yolov2-tiny-voc"))[11:] == (
        (512, 13, 13),
        (1024, 13, 13),
        (1024, 13, 13),
        (125, 13, 13),
    )


def test_nano_has_every_kind_of_layer_and_hardware_friendly_widths():
    cfg = builtin_cfg("yolov2-nano")
    assert {type(layer) for layer in cfg.layers} == {Convolutional, MaxPool, Route, Reorg}
    assert all(la.filters % 16 == 0 for la in cfg.layers[:-1] if isinstance(la, Convolutional))
    assert output_shapes(cfg)[-1] == (75, 10, 10)


BAD = {
    "unknown section": (changed("[maxpool]", "[softplus]"), "<cfg>:14: unknown section [softplus]"),
    "known to darknet, not to us": (changed("[maxpool]", "[sam]"), ":14: [sam] is not supported; known: "),
    "unclosed section": (changed("[maxpool]", "[maxpool"), ":14: unknown section [maxpool"),
    "no equals sign": (changed("filters=8", "filters 8"), ":8: 'filters8' is not key=value"),
    "empty value": (changed("filters=8", "filters="), ":8: 'filters=' is not key=value"),
    "not a number": (changed("filters=8", "filters=many"), ":8: filters=many in [convolutional]"),
    "python's underscore": (changed("filters=8", "filters=1_0"), ":8: filters=1_0"),
    "arabic digit": (changed("filters=8", "filters=\u0668"), ":8: filters="),
    "zero filters": (changed("filters=8", "filters=0"), ":8: filters=0"),
    "a number of 5000 digits": (changed("filters=8", "filters=" + "9" * 5000), ":8: filters=999"),
    "too large to be true": (changed("filters=8\nsize=3", "filters=65536\nsize=63"), "beyond any that fits"),
    "activation": (changed("activation=leaky", "activation=selu"), ":12: activation=selu is not supported"),
    "unknown key": (changed("filters=8", "fliters=8"), ":8: unknown key fliters in [convolutional]"),
    "dilated": (changed("stride=1\n", "stride=1\ndilation=2\n"), ":11: dilation=2"),
    "region does not match the filters": (changed("filters=14", "filters=15"), "must be 2 * (5 + 2) = 14"),
    "head with batch norm": (changed("filters=14", "filters=14\nbatch_normalize=1"), ":18: the [convolution"),
    "anchors": (changed("1,2, 3.5,4", "1,2, 3.5"), ":24: anchors holds 3 values, num=2 needs 4"),
    "NaN anchor": (changed("1,2, 3.5,4", "1,2, nan,4"), ":24: anchors: 'nan' is not a finite number"),
    "negative anchor": (changed("1,2, 3.5,4", "1,2, -3,4"), ":24: anchor -3.0 is not positive"),
    "no softmax": (changed("softmax=1\n", ""), ":23: [region] without softmax=1, that"),
    "coords": (changed("num=2", "num=2\ncoords=5"), "coords=5 in [region] is not supported"),
    "no region": (SMALL.partition("[region]")[0], "no [region] section and no [yolo]"),
    "region in the middle": (SMALL + "[maxpool]\nsize=2\n", ":23: [region] is not the last section"),
    "region after a pool": (changed("[region]", "[maxpool]\nsize=1\n[region]"), "follow a [convolutional]"),
    "two nets": (SMALL + SMALL, "a second [net]"),
    "no net": (SMALL.partition("\n\n")[2], "a .cfg starts with [net]"),
    "no width": (changed("width=32\n", ""), ":1: [net] has no width"),
    "empty": ("", "a .cfg starts with [net]"),
    "key before any section": ("filters=3\n" + SMALL, ":1: filters= stands before any [section]"),
    "route forward": (changed("[maxpool]", "[route]\nlayers=1\n[maxpool]"), ":15: layers=1 in [route]"),
    "route too far back": (changed("[maxpool]", "[route]\nlayers=-2\n[maxpool]"), ":15: layers=-2 in"),
    "route to nothing": (changed("[maxpool]", "[route]\n[maxpool]"), ":14: layers= in [route]"),
    "route of two sizes": (
        changed("[convolutional]\nfilters=14", "[route]\nlayers=0,1\n[convolutional]\nfilters=14"),
        ":18: [route] joins maps of different sizes: 32x24, 16x12",
    ),
    "odd reorg": (changed("[maxpool]\nsize=2", "[reorg]\nstride=5\n[maxpool]\nsize=2"), ":14: [reorg]"),
    "groups": (changed("filters=8", "filters=8\ngroups=2"), "groups=2 does not divide 3 input channels"),
    "nothing left": (changed("size=3\nstride=1\npad=1", "size=33\nstride=1\npad=0"), "nothing is left of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_an_input_error_that_says_where(name: str):
    text, message = BAD[name]
    with pytest.raises(InputError) as caught:
        parse_cfg(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.cfg: cannot read the .cfg: No such file"):
        read_cfg(tmp_path / "none.cfg")
    with pytest.raises(InputError, match="cannot read the .cfg"):
        read_cfg(tmp_path)
    with pytest.raises(InputError, match="cannot read the .cfg"):
        read_cfg("nul\0name.cfg")
    binary = tmp_path / "binary.cfg"
    binary.write_bytes(b"[net]\nwidth=\xff\xfe")
    with pytest.raises(InputError, match="not a text file"):
        read_cfg(binary)
    binary.write_text("\ufeff" + SMALL, encoding="utf-8")
    assert read_cfg(binary).layers == parse_cfg(SMALL).layers


def test_an_unknown_builtin_lists_the_known_ones():
    assert builtin_names() == (
        "yolov2-aerial", "yolov2-nano", "yolov2-tiny-voc", "yolov2-voc", "yolov3-tiny", "yolov4-tiny",
    )  # fmt: skip
    for name in ("yolov9", "../cfgs/yolov2-nano", ""):
        with pytest.raises(UsageError, match="yolov2-aerial, yolov2-nano, yolov2-tiny-voc, yolov2-voc"):
            builtin_cfg(name)


def test_a_cfg_can_be_copied_and_hashed():
    cfg = builtin_cfg("yolov2-nano")
    assert copy.deepcopy(cfg) == cfg
    assert hash(cfg) == hash(copy.deepcopy(cfg))


def computed(cfg: Cfg) -> list[object]:
    """Everything that changes what the network computes, without lines and options."""
    parts = (cfg.net, *cfg.layers, *([cfg.region] if cfg.region else []))
    return [replace(part, line=0, options={}) for part in parts]


@pytest.mark.parametrize("name", builtin_names())
def test_written_cfgs_parse_to_the_same_network(name: str):
    cfg = builtin_cfg(name)
    again = parse_cfg(format_cfg(cfg))
    assert computed(again) == computed(cfg)
    assert again.net.options["momentum"] == "0.9", "training keys are kept"


def test_narrower_networks_keep_their_couplings():
    cfg = builtin_cfg("yolov2-nano")
    thin = with_filters(cfg, {6: 48, 12: 16})
    assert output_shapes(thin)[13] == (64, 10, 10)
    with pytest.raises(InputError, match=r"\[reorg\] stride=2 cannot take 18 channels"):
        with_filters(cfg, {12: 18})


sizes = st.integers(1, 5)


@st.composite
def cfgs(draw: st.DrawFn) -> Cfg:
    """Chains of layers that fit, with a head that fits."""
    base = parse_cfg(SMALL)
    anchors = draw(st.lists(st.tuples(*[st.floats(0.01, 100)] * 2), min_size=1, max_size=4))
    classes = draw(st.integers(1, 5))
    layers: list[Convolutional | MaxPool | Route | Reorg] = []
    channels, height, width = 3, 24, 32
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["conv", "pool", "route", "reorg"]))
        if kind == "reorg" and channels % 4 == height % 2 == width % 2 == 0:
            layers.append(Reorg(2))
            channels, height, width = channels * 4, height // 2, width // 2
        elif kind == "pool":
            size = draw(sizes)
            pool = MaxPool(size, draw(st.integers(1, 2)), draw(st.integers(0, size - 1)))
            if min(height, width) + pool.padding < size:
                continue
            layers.append(pool)
            height, width = ((n + pool.padding - size) // pool.stride + 1 for n in (height, width))
        elif kind == "route" and layers:
            layers.append(Route((len(layers) - 1,) * draw(st.integers(1, 2))))
            channels *= len(layers[-1].layers)
        else:
            filters = draw(st.integers(1, 8))
            groups = draw(st.sampled_from([g for g in range(1, 9) if channels % g == filters % g == 0]))
            layers.append(
                Convolutional(
                    filters,
                    3,
                    1,
                    1,
                    groups,
                    draw(st.booleans()),
                    draw(st.sampled_from(["leaky", "relu", "linear"])),
                )
            )
            channels = filters
    layers.append(Convolutional(len(anchors) * (5 + classes), 1, 1, 0, 1, False, "linear"))
    thresh = draw(st.floats(0, 1))
    region = Region(tuple(anchors), classes, 5.0, 1.0, 1.0, 1.0, thresh, draw(st.booleans()))
    return replace(base, layers=tuple(layers), region=region)


@settings(max_examples=80, deadline=None)
@given(cfgs())
def test_format_and_parse_are_inverse(cfg: Cfg):
    again = parse_cfg(format_cfg(cfg))
    assert computed(again) == computed(cfg)
    assert output_shapes(again) == output_shapes(cfg)


lines = st.sampled_from(
    [*SMALL.split("\n"), "[route]", "[reorg]", "layers=-1", "stride=9", "size=0", "groups=3"]
)
values = st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=8))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(lines, st.text(max_size=20), st.tuples(lines, values).map(
    lambda pair: pair[0].partition("=")[0] + "=" + pair[1])), max_size=40))  # fmt: skip
def test_any_text_parses_or_is_an_input_error(found: list[str]):
    try:
        cfg = parse_cfg("\n".join(found))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert computed(parse_cfg(format_cfg(cfg))) == computed(cfg)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_cfg_parses_or_is_an_input_error(data: st.DataObject):
    text = SMALL.split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.integers(0, len(text) - 1))
        edit = data.draw(st.sampled_from(["drop", "repeat", "value", "swap"]))
        if edit == "drop":
            text[line] = ""
        elif edit == "repeat":
            text.insert(line, text[line])
        elif edit == "value":
            text[line] = text[line].partition("=")[0] + "=" + data.draw(values)
        else:
            other = data.draw(st.integers(0, len(text) - 1))
            text[line], text[other] = text[other], text[line]
    try:
        cfg = parse_cfg("\n".join(text))
    except InputError:
        return
    assert cfg.region and output_shapes(cfg)[-1][0] == len(cfg.region.anchors) * (5 + cfg.region.classes)
