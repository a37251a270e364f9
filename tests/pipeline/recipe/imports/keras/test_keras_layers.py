"""Every layer that is imported, beside Keras's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from keras_models import beside, filled, keras, saved, turned

from paredown.pipeline.recipe.imports.keras.layers.activations import hard_sigmoid_2
from paredown.pipeline.recipe.imports.keras.layers.convolutions import same
from paredown.pipeline.recipe.imports.keras.layers.table import LAYERS, REFUSED
from paredown.pipeline.recipe.imports.keras.load import load
from paredown.targets.errors import InputError

L = keras.layers
MAP, WIDE, LINE, ROW = (9, 8, 4), (12, 13, 6), (11, 5), (7,)


def model(shape: tuple[int, ...], *layers: keras.Layer) -> keras.Model:
    return filled(keras.Sequential([keras.Input(shape), *layers]))


def check(made: keras.Model, folder: Path, suffix: str = ".keras", permutes: int = 0) -> None:
    assert turned(beside(made, saved(made, folder, suffix))) == permutes


def _merge(kind: type, *shapes: tuple[int, ...], **keywords: object) -> keras.Model:
    x = keras.Input(MAP)
    parts = [L.Conv2D(shape[-1], 1)(x) if shape[:2] == MAP[:2] else L.GlobalAveragePooling2D(keepdims=True)(x)
             for shape in shapes]  # fmt: skip
    return filled(keras.Model(x, kind(**keywords)(parts)))


ACTIVATIONS = (
    "relu", "relu6", "silu", "swish", "gelu", "hard_sigmoid", "hard_swish", "hard_silu", "elu", "selu",
    "sigmoid", "tanh", "softmax", "log_softmax", "softplus", "softsign", "mish", "leaky_relu", "exponential",
    "celu", "log_sigmoid",
)  # fmt: skip
CASES = {
    **{f"activation {name}": lambda name=name: model(MAP, L.Activation(name)) for name in ACTIVATIONS},
    **{f"convolution and {name}": lambda name=name: model(MAP, L.Conv2D(6, 3, activation=name))
       for name in ("relu", "silu", "softmax", "gelu", "linear")},
    **{
        f"conv2d {kernel} by {stride} {pad}": lambda k=kernel, s=stride, p=pad: model(
            WIDE, L.Conv2D(5, k, strides=s, padding=p)
        )
        for kernel in (1, 2, 3, (4, 5)) for stride in (1, 2, 3) for pad in ("same", "valid")
    },
    "conv2d dilated": lambda: model(WIDE, L.Conv2D(4, 3, dilation_rate=2, padding="same", use_bias=False)),
    "conv2d in groups": lambda: model(WIDE, L.Conv2D(6, 3, groups=3)),
    **{
        f"depthwise by {stride}, {times} times": lambda s=stride, t=times: model(
            WIDE, L.DepthwiseConv2D(3, strides=s, depth_multiplier=t, padding="same", activation="relu6")
        )
        for stride in (1, 2) for times in (1, 2)
    },
    "separable2d": lambda: model(WIDE, L.SeparableConv2D(7, 3, 2, "same", depth_multiplier=2)),
    "separable1d": lambda: model(LINE, L.SeparableConv1D(7, 3, padding="same", activation="relu")),
    "depthwise1d": lambda: model(LINE, L.DepthwiseConv1D(3, padding="valid")),
    **{f"conv1d {pad}": lambda p=pad: model(LINE, L.Conv1D(6, 4, 1 if p == "causal" else 2, p))
       for pad in ("same", "valid", "causal")},
    "conv1d dilated causal": lambda: model(LINE, L.Conv1D(6, 3, padding="causal", dilation_rate=2)),
    **{
        f"transposed {kernel} by {stride} {pad}": lambda k=kernel, s=stride, p=pad: model(
            (5, 6, 4), L.Conv2DTranspose(3, k, strides=s, padding=p)
        )
        for kernel in (1, 2, 3, 4, 5) for stride in (1, 2, 3) for pad in ("same", "valid")
    },
    "transposed 1d": lambda: model(LINE, L.Conv1DTranspose(3, 4, strides=2, padding="same", use_bias=False)),
    "dense": lambda: model(ROW, L.Dense(5, activation="tanh"), L.Dense(3, use_bias=False)),
    "dense of a map": lambda: model(MAP, L.Dense(5, activation="relu"), L.Conv2D(2, 3)),
    "dense of a line": lambda: model(LINE, L.Conv1D(6, 3), L.Dense(5)),
    "flatten and dense": lambda: model(MAP, L.Conv2D(6, 3), L.Flatten(), L.Dropout(0.5), L.Dense(9)),
    "flatten, norm and dense": lambda: model(MAP, L.Flatten(), L.BatchNormalization(), L.ReLU(), L.Dense(9)),
    "flatten, scale": lambda: model(MAP, L.Flatten(), L.Activation("softmax"), L.Dense(3)),
    "batch norm": lambda: model(MAP, L.Conv2D(6, 3), L.BatchNormalization(epsilon=1e-2)),
    "batch norm without scale": lambda: model(MAP, L.BatchNormalization(scale=False), L.ReLU()),
    "batch norm without center": lambda: model(MAP, L.BatchNormalization(center=False)),
    "batch norm of a row": lambda: model(ROW, L.Dense(4), L.BatchNormalization()),
    "batch norm of a line": lambda: model(LINE, L.BatchNormalization(), L.Conv1D(3, 3)),
    "layer norm of a row": lambda: model(ROW, L.LayerNormalization()),
    "layer norm alone": lambda: model(ROW, L.LayerNormalization(center=False, scale=False)),
    "group norm": lambda: model(WIDE, L.GroupNormalization(3), L.GroupNormalization(-1, scale=False)),
    "normalization that was adapted": lambda: model(MAP, L.Normalization(), L.Conv2D(2, 1)),
    "rescaling": lambda: model(MAP, L.Rescaling(1 / 127.5, -1), L.Conv2D(3, 3)),
    "rescaling by channel": lambda: model(MAP, L.Rescaling([0.5, 2.0, 1.0, 3.0], [0.0, 1.0, 2.0, 0.5])),
    "normalization": lambda: model(MAP, L.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 9, 2])),
    "relu of a kind": lambda: model(MAP, L.ReLU(max_value=3.0), L.ReLU(negative_slope=0.1), L.ReLU(2.0, 0.3)),
    "relu to six": lambda: model(MAP, L.ReLU(6.0), L.LeakyReLU(0.2), L.ELU(0.5)),
    "prelu by channel": lambda: model(MAP, L.Conv2D(5, 3), L.PReLU(shared_axes=[1, 2])),
    "prelu by number": lambda: model(MAP, L.PReLU()),
    "prelu of a row": lambda: model(ROW, L.PReLU()),
    "softmax": lambda: model(MAP, L.Softmax()),
    "softmax over rows": lambda: model(MAP, L.Softmax(axis=1)),
    **{
        f"{kind} pool {size} by {stride} {pad}": lambda k=kind, n=size, s=stride, p=pad: model(
            (9, 8, 3), getattr(L, f"{k}Pooling2D")(n, s, p)
        )
        for kind in ("Max", "Average") for size in (2, 3, 4) for stride in (1, 2, 3)
        for pad in ("same", "valid")
        if not (kind == "Average" and pad == "same")  # below
    },
    "max pool 1d": lambda: model(LINE, L.MaxPooling1D(3, padding="same")),
    "average pool 1d": lambda: model(LINE, L.AveragePooling1D(2)),
    "global average": lambda: model(MAP, L.GlobalAveragePooling2D(), L.Dense(3)),
    "global average that keeps": lambda: model(MAP, L.GlobalAveragePooling2D(keepdims=True), L.Conv2D(3, 1)),
    "global max": lambda: model(MAP, L.GlobalMaxPooling2D()),
    "global pools of a line": lambda: model(LINE, L.Conv1D(3, 2), L.GlobalMaxPooling1D()),
    "upsampling": lambda: model(MAP, L.UpSampling2D((2, 3)), L.UpSampling2D(2, interpolation="bilinear")),
    "upsampling 1d": lambda: model(LINE, L.UpSampling1D(3), L.Conv1D(2, 3)),
    "resizing": lambda: model(MAP, L.Resizing(13, 11)),
    "padding": lambda: model(MAP, L.ZeroPadding2D(((1, 0), (2, 3))), L.Conv2D(3, 3)),
    "padding 1d": lambda: model(LINE, L.ZeroPadding1D((1, 2)), L.Conv1D(3, 3)),
    "cropping": lambda: model(MAP, L.Cropping2D(((1, 0), (2, 1)))),
    "cropping 1d": lambda: model(LINE, L.Conv1D(3, 1), L.Cropping1D((1, 2))),
    "reshape of a map": lambda: model(MAP, L.Reshape((-1, 4)), L.Conv1D(3, 3)),
    "row to map": lambda: model((40,), L.Reshape((8, 5, 1)), L.Conv2D(3, 3)),
    "repeat": lambda: model(ROW, L.RepeatVector(4)),
    "left out": lambda: model(MAP, L.Dropout(0.3), L.GaussianNoise(0.1), L.RandomFlip(), L.ReLU()),
    **{f"{kind.__name__}": lambda kind=kind: _merge(kind, (9, 8, 4), (9, 8, 4), (9, 8, 4))
       for kind in (L.Add, L.Multiply, L.Average, L.Maximum, L.Minimum, L.Concatenate)},
    "Subtract": lambda: _merge(L.Subtract, (9, 8, 4), (9, 8, 4)),
    "gate": lambda: _merge(L.Multiply, (1, 1, 4), (9, 8, 4)),
    "concatenate rows": lambda: _merge(L.Concatenate, (9, 8, 4), (9, 8, 4), axis=1),
    **{
        f"{kind.__name__} {'all' if every else 'last'}": lambda kind=kind, e=every: model(
            LINE, kind(6, return_sequences=e), L.Dense(3)
        )
        for kind in (L.LSTM, L.GRU, L.SimpleRNN) for every in (True, False)
    },
    "lstm without bias": lambda: model(LINE, L.LSTM(4, use_bias=False, go_backwards=True)),
    **{f"both directions {every}": lambda e=every: model(LINE, L.Bidirectional(L.GRU(4, return_sequences=e)))
       for every in (True, False)},
    "both directions lstm": lambda: model(LINE, L.Bidirectional(L.LSTM(4)), L.Dense(2)),
    "time distributed": lambda: model(LINE, L.LSTM(4, return_sequences=True), L.TimeDistributed(L.Dense(3))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_keras_says(tmp_path: Path, name: str):
    check(CASES[name](), tmp_path)


TURNED = {
    "permute": lambda: model(MAP, L.Permute((2, 1, 3)), L.Conv2D(3, 3)),
    "reshape that splits channels": lambda: model(MAP, L.Conv2D(6, 1), L.Reshape((-1, 3))),
    "layer norm of a map": lambda: model(MAP, L.Conv2D(6, 3), L.LayerNormalization()),
    "convolutions and lstm": lambda: model(LINE, L.Conv1D(6, 3), L.LSTM(4)),
    "flatten at the end": lambda: model(MAP, L.Conv2D(6, 3), L.Flatten()),
    "flatten and reshape": lambda: model(MAP, L.Conv2D(6, 3), L.Flatten(), L.Reshape((14, 18))),
    "flatten twice and together": lambda: filled(_flattened()),
}  # fmt: skip


def _arithmetic() -> keras.Model:
    x = keras.Input(MAP)
    y = 1.0 - L.Conv2D(4, 1)(x) * 2.0 + 3.0
    return keras.Model(x, (y / x + L.GlobalMaxPooling2D(keepdims=True)(x)) * (5.0 / (x * x + 1.0)))


def test_arithmetic_outside_layers(tmp_path: Path):
    made = filled(_arithmetic())
    assert turned(beside(made, saved(made, tmp_path), most=1e-4)) == 0


def _flattened() -> keras.Model:
    x = keras.Input(MAP)
    parts = [L.Flatten()(L.Conv2D(2, 3)(x)), L.Flatten()(L.Conv2D(3, 2)(x)), L.GlobalMaxPooling2D()(x)]
    return keras.Model(x, L.Dense(4)(L.Concatenate()(parts)))


@pytest.mark.parametrize("name", TURNED)
def test_where_something_has_to_be_turned_it_is(tmp_path: Path, name: str):
    made = TURNED[name]()
    beside(made, saved(made, tmp_path))


H5 = ("conv2d 3 by 2 same", "depthwise by 2, 2 times", "both directions True", "GRU last", "separable2d",
      "batch norm", "prelu by channel", "layer norm of a row")  # fmt: skip


@pytest.mark.parametrize("name", H5)
def test_h5_files_too(tmp_path: Path, name: str):
    check(CASES[name](), tmp_path, ".h5")


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_pads_so_that_every_stride_has_its_place(size: int, kernel: int, stride: int):
    before, after = same(size, kernel, stride)
    assert 0 <= after - before <= 1
    assert (size + before + after - kernel) // stride + 1 >= -(-size // stride)
    assert before + after == max((-(-size // stride) - 1) * stride + kernel - size, 0)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_mean_at_the_edge_does_not_count_what_is_padded(tmp_path: Path, size: int, stride: int):
    made = model((9, 8, 3), L.AveragePooling2D(size, stride, "same"))
    found = load(saved(made, tmp_path))
    x = np.random.default_rng(0).normal(size=(1, 9, 8, 3)).astype(np.float32)
    with torch.no_grad():
        got = found.module(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    rows, columns = same(9, size, stride), same(8, size, stride)
    for i in range(got.shape[2]):
        for j in range(got.shape[3]):
            top, left = i * stride - rows[0], j * stride - columns[0]
            window = x[0, max(top, 0) : top + size, max(left, 0) : left + size]
            assert np.allclose(got[0, :, i, j], window.mean((0, 1)), atol=1e-5)
    assert got.shape[2:] == (-(-9 // stride), -(-8 // stride))


def test_keras_2_has_another_hard_sigmoid():
    x = torch.tensor([-3.0, -2.5, 0.0, 1.0, 2.5, 3.0])
    assert torch.allclose(hard_sigmoid_2(x), torch.tensor([0.0, 0.0, 0.5, 0.7, 1.0, 1.0]))


@pytest.mark.parametrize(("layer", "words"), [
    (lambda: L.Embedding(10, 4), "Embedding"),
    (lambda: L.Conv3D(2, 2), "known are 2 to 4 axes"),
    (lambda: L.Attention(), "Attention): is not known"),
    (lambda: L.GRU(3, reset_after=False), "reset_after"),
    (lambda: L.LSTM(3, activation="relu"), "activations are relu and sigmoid"),
    (lambda: L.LSTM(3, stateful=False, return_state=True), "return_state"),
    (lambda: L.ReLU(threshold=1.0), "threshold is 1"),
])  # fmt: skip
def test_what_is_not_known_is_named(tmp_path: Path, layer, words: str):
    made = layer()
    shape = {"Embedding": ROW, "Conv3D": (4, 4, 4, 2), "ReLU": MAP}.get(type(made).__name__, LINE)
    x = keras.Input(shape)
    y = made([x, x]) if isinstance(made, L.Attention) else made(x)
    path = saved(keras.Model(x, y[0] if isinstance(y, (list, tuple)) else y), tmp_path)
    with pytest.raises(InputError) as caught:
        load(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_the_table_names_layers_that_keras_has():
    own = {name for name in LAYERS if name.endswith(" of keras.ops")}
    assert own and {name.partition(" ")[0] for name in own} <= {
        "Add",
        "Subtract",
        "Multiply",
        "Divide",
        "TrueDivide",
    }
    # Two layers of keras.applications have no class in keras.layers.
    assert set(LAYERS) - own - {"LayerScale", "StochasticDepth"} <= set(dir(L))
    assert "Lambda" in REFUSED and not set(REFUSED) & set(LAYERS)
