"""keys.py: every key that darknet reads is known, and none of those that change a result is passed over."""

from __future__ import annotations

import pytest

from paredown.apps.detector.darknet.darknet import parse_cfg
from paredown.apps.detector.darknet.keys import KEYS
from paredown.apps.detector.darknet.text import SUPPORTED
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

#: A network with one section of each kind; `{kind}` is where a key of that section goes.
SECTIONS = {
    "net": "[net]\nwidth=8\nheight=8\nchannels=4\n{net}",
    "convolutional": "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=relu\n{convolutional}",
    "maxpool": "[maxpool]\nsize=2\nstride=2\n{maxpool}",
    "route": "[route]\nlayers=-1\n{route}",
    "shortcut": "[shortcut]\nfrom=-2\n{shortcut}",
    "upsample": "[upsample]\nstride=2\n{upsample}",
    "dropout": "[dropout]\n{dropout}",
    "reorg": "[reorg]\nstride=2\n{reorg}",
    "crop": "[crop]\ncrop_height=2\ncrop_width=2\n{crop}",
    "softmax": "[softmax]\n{softmax}",
    "avgpool": "[avgpool]\n{avgpool}",
}
ENDS = {
    "yolo": "[yolo]\nanchors=1,1\nnum=1\nclasses=1\n{yolo}",
    "region": "[region]\nanchors=1,1\nnum=1\nclasses=1\nsoftmax=1\n{region}",
    "cost": "[avgpool]\n[cost]\n{cost}",
}


def cfg_with(kind: str, line: str) -> str:
    end = kind if kind in ENDS else "yolo"
    parts = [*SECTIONS.values(), "[convolutional]\nfilters=6\nactivation=linear\n", ENDS[end]]
    return "".join(part.replace(f"{{{kind}}}", line + "\n") for part in parts).translate(
        str.maketrans({"{": "#", "}": "\n"})
    )


def test_every_supported_section_has_its_keys():
    assert set(KEYS) == set(SUPPORTED) == SECTIONS.keys() | ENDS.keys()
    for keys in KEYS.values():
        sets = (keys.computed, frozenset(keys.refused), keys.training)
        assert sum(map(len, sets)) == len(frozenset().union(*sets)), "no key is in two lists"


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind, keys in KEYS.items() for key in sorted(keys.training)]
)
def test_keys_of_training_are_taken(kind: str, key: str):
    parse_cfg(cfg_with(kind, f"{key}=1"), detects=kind != "cost")


@pytest.mark.parametrize(
    ("kind", "key", "harmless"), [(k, key, v) for k, keys in KEYS.items() for key, v in keys.refused.items()]
)
def test_keys_that_change_results_are_refused_unless_they_do_nothing(kind: str, key: str, harmless: tuple):
    for value in harmless:
        parse_cfg(cfg_with(kind, f"{key}={value}"))
    with pytest.raises(
        InputError, match=rf":\d+: {key}=7 in \[{kind}\] is not supported, and it changes"
    ) as raised:
        parse_cfg(cfg_with(kind, f"{key}=7"))
    assert f"remove {key}" not in str(raised.value)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("key", ["antialiazing", "deform", "xyz", "size_x", "dontload"])
def test_keys_that_nobody_knows_are_refused(kind: str, key: str):
    expected = "is not supported" if key == "dontload" else f"unknown key {key} in"
    with pytest.raises(InputError, match=expected):
        parse_cfg(cfg_with(kind, f"{key}=1"), detects=kind != "cost")


def test_the_nearest_key_is_suggested():
    with pytest.raises(InputError, match="unknown key scale_xy in .yolo.; did you mean scale_x_y"):
        parse_cfg(cfg_with("yolo", "scale_xy=1.05"))
    with pytest.raises(InputError, match="unknown key zzz in .reorg.; known and computed: stride"):
        parse_cfg(cfg_with("reorg", "zzz=1"))
