"""What `paredown import` says of a model file."""

from __future__ import annotations

import json

import pytest
from int8_tflite import Int8
from onnx import helper
from onnx_models import model_of, saved, small_net
from tiny_project import call

from paredown.apps.api.imports.describe import describe
from paredown.targets.cards.card import load_card


def test_a_model_is_counted_compared_and_predicted(tmp_path):
    found = describe(small_net(tmp_path), None, load_card("host"))
    assert found.format == "ONNX, opset 17" and found.shape == (1, 3, 8, 8)
    assert found.outputs == {"y": (1, 5)}
    assert found.parameters == 4 * 27 + 4 + 5 * 4 + 5
    assert found.macs == 4 * 27 * 64 + 20
    assert found.kinds["conv2d"] == 1 and found.problem == ""
    assert found.groups == (2, 1)
    assert found.difference is not None and found.difference < 1e-6
    assert found.inspection is not None and found.inspection.placements
    text = "\n".join(found.lines())
    assert "input       1x3x8x8" in text and "1 of 2 groups of channels can be cut" in text


def test_an_int8_file_says_what_becomes_of_its_codes(tmp_path):
    w = Int8((1, 8, 8, 3))
    (tmp_path / "net.tflite").write_bytes(w.data(w.layer(w.input, 4)))
    found = describe(tmp_path / "net.tflite", None, load_card("host"), couple=False)
    assert (found.format, found.difference) == ("TFLite, int8", None)
    assert "an integer graph of 2 nodes" in found.notes[-1]
    w = Int8((1, 8, 8, 3))
    (tmp_path / "net.tflite").write_bytes(w.data(w.op("FLOOR", [w.layer(w.input, 4)], (1, 8, 8, 4))))
    assert "stays sealed: FLOOR" in describe(
        tmp_path / "net.tflite", None, load_card("host"), couple=False
    ).notes[-1]  # fmt: skip


def test_what_cannot_be_traced_is_said_after_what_is_known(tmp_path):
    node = helper.make_node("ReduceMax", ["x"], ["y"], "all_of_it", keepdims=0)
    found = describe(saved(tmp_path, model_of([node], (1, 3, 8, 8))), None, load_card("host"))
    assert "layer all_of_it" in found.problem and found.macs is None and found.inspection is None
    assert found.difference == 0


@pytest.mark.parametrize("arguments", [(), ("--shape", "12x10")])
def test_the_command_prints_one_document(tmp_path, arguments):
    done = call("import", small_net(tmp_path), "--json", *arguments)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["shape"][2:] == ([12, 10] if arguments else [8, 8])
    assert {"inspection", "kinds", "difference", "notes"} <= set(document)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "MODEL"), 2, "a model file needs data to calibrate on; add --data photos/"),
        (("run", "digits", "--data", "x"), 2, "--data: is for model files alone"),
        (("run", "digits", "--mean", "1"), 2, "--mean: is for model files alone"),
        (("run", "MODEL", "--data", "gone"), 4, "gone: no such file or folder"),
        (("import", "gone.onnx"), 4, "cannot read the model"),
        (("import", "MODEL", "--shape", "a"), 2, "no list of numbers"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, code, said):
    model = str(small_net(tmp_path))
    words = [model if word == "MODEL" else word for word in arguments]
    done = call(*words)
    assert done.code == code and not done.out
    assert said in done.err.strip().splitlines()[-1] and "Traceback" not in done.err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_model_that_cannot_be_traced_is_described_and_refused(tmp_path, as_json):
    node = helper.make_node("ReduceMax", ["x"], ["y"], "all_of_it", keepdims=0)
    model = saved(tmp_path, model_of([node], (1, 3, 8, 8)))
    done = call("import", model, *(["--json"] if as_json else []))
    assert done.code == 4 and "layer all_of_it" in done.err.strip().splitlines()[-1]
    assert "ONNX, opset 17" in done.out
    assert not as_json or "all_of_it" in json.loads(done.out)["problem"]


def test_a_model_file_is_inspected_by_its_name(tmp_path):
    done = call("inspect", small_net(tmp_path), "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["input"] == [1, 3, 8, 8] and document["macs"] == 4 * 27 * 64 + 20
