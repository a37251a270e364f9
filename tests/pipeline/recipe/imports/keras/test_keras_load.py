"""Whole models of Keras: nested, shared, of many outputs, drawn at random; those of MLPerf Tiny."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras_models import beside, filled, keras, saved, turned

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.imports.keras.load import load
from paredown.targets.errors import InputError

L = keras.layers


def nested() -> keras.Model:
    parts = [L.Conv2D(6, 3, padding="same"), L.BatchNormalization(), L.ReLU()]
    inner = keras.Sequential([keras.Input((8, 8, 6)), *parts], name="inner")
    outer = keras.Input((8, 8, 6))
    deeper = keras.Model(outer, L.Add()([outer, inner(outer)]), name="deeper")
    x = keras.Input((16, 16, 3))
    y = deeper(inner(L.Conv2D(6, 3, 2, padding="same")(x)))
    return filled(keras.Model(x, L.Dense(4, activation="softmax")(L.Flatten()(y))))


def several() -> keras.Model:
    x = keras.Input((12, 10, 3))
    shared = L.Conv2D(3, 3, padding="same")
    y = shared(shared(x))
    return filled(keras.Model(x, [L.Dense(2)(L.Flatten()(y)), y, L.Conv2D(5, 1, name="map")(y)]))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("make", [nested, several])
def test_models_in_models_shared_layers_and_several_outputs(tmp_path: Path, make, suffix: str):
    found = beside(make(), saved(make(), tmp_path, suffix))
    assert turned(found) == 0
    if make is nested:
        kernels = [name for name, value in found.module.named_parameters() if value.shape == (6, 6, 3, 3)]
        assert len(kernels) == (1 if suffix == ".keras" else 2)  # one layer, used twice; .h5 holds it twice


@st.composite
def models(draw: st.DrawFn) -> keras.Model:
    """A functional model of maps with branches, then a head."""
    x = keras.Input((draw(st.integers(5, 11)), draw(st.integers(5, 11)), draw(st.integers(1, 4))))
    maps = [x]
    for _ in range(draw(st.integers(1, 6))):
        y = draw(st.sampled_from(maps))
        channels, height, width = int(y.shape[3]), int(y.shape[1]), int(y.shape[2])
        kind = draw(
            st.sampled_from(
                ["conv", "depthwise", "separable", "pool", "norm", "act", "add", "cat", "up", "gate"]
            )
        )
        kernel, stride, pad = (
            draw(st.integers(1, 3)),
            draw(st.integers(1, 2)),
            draw(st.sampled_from(["same", "valid"])),
        )
        pad = "same" if kernel > min(height, width) else pad
        others = [m for m in maps if m.shape[1:3] == y.shape[1:3]]
        if kind == "conv":
            y = L.Conv2D(
                draw(st.integers(1, 6)),
                kernel,
                stride,
                pad,
                activation=draw(st.sampled_from([None, "relu", "silu"])),
            )(y)
        elif kind == "depthwise":
            y = L.DepthwiseConv2D(kernel, stride, pad, depth_multiplier=draw(st.integers(1, 2)))(y)
        elif kind == "separable":
            y = L.SeparableConv2D(draw(st.integers(1, 6)), kernel, 1, pad)(y)
        elif kind == "pool":
            y = L.MaxPooling2D(kernel, stride, pad)(y)
        elif kind == "norm":
            y = L.BatchNormalization()(y)
        elif kind == "act":
            y = L.Activation(draw(st.sampled_from(["relu", "relu6", "tanh", "hard_swish", "gelu"])))(y)
        elif kind == "up" and height * width < 200:
            y = L.UpSampling2D(2)(y)
        elif kind == "gate":
            y = L.Multiply()(
                [y, L.Dense(channels, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(y))]
            )
        elif kind == "cat":
            y = L.Concatenate()([y, draw(st.sampled_from(others))])
        else:
            z = draw(st.sampled_from(others))
            y = L.Add()([y, L.Conv2D(channels, 1)(z)])
        maps.append(y)
    head = draw(st.sampled_from(["flat", "mean", "both", "map"]))
    y = maps[-1]
    if head == "map":
        return keras.Model(x, y if y is not x else L.ReLU()(y))
    rows = {"flat": [L.Flatten()(y)], "mean": [L.GlobalAveragePooling2D()(y)],
            "both": [L.Flatten()(y), L.GlobalMaxPooling2D()(maps[0])]}[head]  # fmt: skip
    y = L.Concatenate()(rows) if len(rows) > 1 else rows[0]
    return keras.Model(x, L.Dense(3)(L.Dense(7, activation="relu")(y)))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(models(), st.integers(0, 99), st.sampled_from([".keras", ".h5"]))
def test_random_models_say_what_keras_says_and_nothing_is_turned(
    tmp_path: Path, made, seed: int, suffix: str
):
    filled(made, seed)
    found = beside(made, saved(made, tmp_path, suffix), most=5e-5, inputs=1)
    assert turned(found) == 0
    kinds = {node.kind for node in trace(found.module, found.shape, opaque=True).nodes}
    assert "opaque" not in kinds


@pytest.mark.parametrize(("name", "twin", "pixels"), [
    ("ic/pretrainedResnet.h5", "ic/pretrainedResnet.tflite", 255),
    ("vww/vww_96.h5", "vww/vww_96_float.tflite", 1),
])  # fmt: skip
def test_those_of_mlperf_say_what_their_own_float_programs_say(
    shared: Path, name: str, twin: str, pixels: int
):
    from ai_edge_litert.interpreter import Interpreter

    folder = shared / "mlperf-tiny"
    found = load(folder / name)
    program = Interpreter(str(folder / twin))
    program.allocate_tensors()
    (into,), (out,) = program.get_input_details(), program.get_output_details()
    for seed in range(3):
        x = np.random.default_rng(seed).uniform(0, pixels, into["shape"]).astype(np.float32)
        program.set_tensor(into["index"], x)
        program.invoke()
        with torch.no_grad():
            got = found.module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        assert np.abs(got - program.get_tensor(out["index"])).max() < 1e-5
    assert turned(found) == 0
    norms = [each for each in found.module.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert len(norms) == (7 if "ic" in name else 27)


@torch.no_grad()
def test_resnet8_has_the_accuracy_that_mlperf_says(shared: Path):
    found = load(shared / "mlperf-tiny" / "ic/pretrainedResnet.h5")
    folder = shared / "cifar10"
    pixels = cv2.imread(str(folder / "test500.png")).reshape(-1, 32, 32, 3)[..., ::-1]
    labels = np.loadtxt(folder / "test500.labels.txt", dtype=np.int64)
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    assert (found.module(images).argmax(1).numpy() == labels).mean() == pytest.approx(
        0.89, abs=1e-9
    )  # as its own .tflite


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny"])
def test_networks_of_keras_applications(tmp_path: Path, name: str):
    made = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=7)
    found = beside(made, saved(made, tmp_path), most=1e-4, inputs=1)
    assert (turned(found) == 0) == (name != "ConvNeXtTiny")  # whose norms are over channels


def test_sizes_that_are_left_open_are_asked_for(tmp_path: Path):
    made = filled(
        keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(4, 3), L.GlobalAveragePooling2D()])
    )
    path = saved(made, tmp_path)
    with pytest.raises(InputError, match=r"1x\?x\?x3, with sizes left open; .*--shape 3x224x224"):
        load(path)
    for shape in ((3, 10, 12), (1, 3, 10, 12), (10, 12, 3), (10, 12)):
        assert load(path, shape).shape == (1, 3, 10, 12)
    for shape in ((4, 10, 12), (3, 10, 12, 5, 6), (10,)):
        with pytest.raises(InputError, match="does not fit"):
            load(path, shape)
    fixed = filled(keras.Sequential([keras.Input((8, 8, 3), batch_size=4), L.Conv2D(4, 3)]))
    found = load(saved(fixed, tmp_path), (3, 10, 12))
    assert found.shape == (1, 3, 10, 12)
    assert any("as asked" in note for note in found.notes) and any(
        "a batch of 4" in note for note in found.notes
    )


def test_sequences_keep_their_order_where_that_turns_less(tmp_path: Path):
    steps = filled(keras.Sequential([keras.Input((11, 5)), L.GRU(4), L.Dense(2)]))
    line = filled(keras.Sequential([keras.Input((11, 5)), L.Conv1D(4, 3), L.GlobalMaxPooling1D()]))
    assert load(saved(steps, tmp_path)).shape == (1, 11, 5)
    assert load(saved(line, tmp_path)).shape == (1, 5, 11)
    assert load(saved(line, tmp_path), (11, 5)).shape == (1, 11, 5)


def test_two_inputs_code_and_models_of_the_users_own_are_named(tmp_path: Path):
    x, y = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    cases = [
        (keras.Model([x, y], L.Add()([x, y])), r"takes 2 inputs \(one, two\)"),
        (keras.Sequential([keras.Input((4,)), L.Lambda(lambda v: v * 2, name="twice")]),
         r"layer twice \(Lambda\): holds Python code"),
        (keras.Model(x, keras.ops.cumsum(x)), r"Cumsum of keras.ops"),
    ]  # fmt: skip
    for made, words in cases:
        with pytest.raises(InputError, match=words):
            load(saved(made, tmp_path))


class Doubled(L.Layer):
    def call(self, x):
        return x * 2


def test_a_layer_of_the_users_own_is_named(tmp_path: Path):
    made = keras.Sequential([keras.Input((4,)), L.Dense(3), Doubled(name="mine")])
    for suffix in (".keras", ".h5"):
        with pytest.raises(InputError, match=r"layer mine \(Doubled\)"):
            load(saved(made, tmp_path, suffix))


def edited(path: Path, change) -> Path:
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"])
        file.attrs["model_config"] = json.dumps(config)
    return path


def test_damaged_configurations_are_one_line(tmp_path: Path):
    made = filled(
        keras.Sequential(
            [keras.Input((6, 6, 3)), L.Conv2D(4, 3, name="c"), L.Flatten(), L.Dense(2, name="d")]
        )
    )

    def layer(which: str, **changes: object):
        def change(config: dict) -> None:
            next(each for each in config["layers"] if each["config"].get("name") == which)["config"].update(
                changes
            )

        return change

    cases = [
        (lambda c: c.update(layers=[]), "lists no layers"),
        (lambda c: c.update(layers=[3]), "no layer"),
        (lambda c: c["layers"].append(c["layers"][-1]), "two of its layers"),
        (layer("c", strides=[0, 1]), r"layer c \(Conv2D\): its strides"),
        (layer("c", padding="around"), "its padding is around"),
        (layer("c", groups=2), "does not fit"),
        (layer("c", activation="wavy"), "activation wavy is not known"),
        (layer("c", activation={"class_name": "function", "config": "f", "registered_name": "m>f"}),
         "user's own code"),
        (layer("d", name="other"), "not in the file|other"),
        (layer("c", dilation_rate="x"), "layer c"),
    ]  # fmt: skip
    for change, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            load(edited(saved(made, tmp_path, ".h5"), change))
        assert "\n" not in str(caught.value) and "model.h5" in str(caught.value)


def test_a_circle_and_a_layer_that_is_not_there(tmp_path: Path):
    x = keras.Input((4,), name="x")
    made = keras.Model(x, L.Dense(4, name="b")(L.Dense(4, name="a")(x)))

    def circle(config: dict) -> None:
        a = next(each for each in config["layers"] if each["config"]["name"] == "a")
        a["inbound_nodes"] = [[["b", 0, 0, {}]]]

    def gone(config: dict) -> None:
        config["output_layers"] = [["c", 0, 0]]

    for change, words in ((circle, "reads its own result"), (gone, "reads the layer c")):
        with pytest.raises(InputError, match=words):
            load(edited(saved(made, tmp_path, ".h5"), change))
