"""`paredown bundle`: finished programs in, a bundle out that is proved, timed and used like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from int8_tflite import Int8
from small_programs import small_programs
from tflite_models import Writer
from tiny_project import call

from paredown.apps.api.finished import Asked, bundle
from paredown.pipeline.bundle.archive import extract, pack, unpack
from paredown.pipeline.bundle.vectors import digest
from paredown.pipeline.device.validate.validate import validate
from paredown.targets.cards.card import load_card
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.runners.prove import prove

SUFFIX = {"litert": ".tflite", "executorch": ".pte", "onnxruntime": ".onnx"}
CLASSES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def net(tmp_path) -> dict[str, Path]:
    paths = {name: tmp_path / f"net{suffix}" for name, suffix in SUFFIX.items()}
    for name, path in paths.items():
        path.write_bytes(small_programs().int8[name])
    return paths


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five pictures of noise, one in the folder of each class."""
    dice = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        picture = dice.integers(0, 256, (10, 12, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / name / "one.png"), picture)
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    return tmp_path / "photos"


def made(out: Path, *programs: Path, **asked: object) -> Path:
    bundle(Asked(programs, **asked), load_card("host"), out)
    return out


def test_three_programs_of_a_network_are_proved_and_used(net, tmp_path):
    path = tmp_path / "b.paredown"
    done = call("bundle", *net.values(), "--out", path, "--json")
    assert done.code == 0, done.err
    notes = "\n".join(json.loads(done.out)["notes"])
    assert "net.pte agrees with net.tflite: 200.0 dB" in notes
    assert "inputs of the test vectors: 4 random ones: no --data was given" in notes
    manifest = unpack(path).manifest
    assert {model.runtime for model in manifest.models} == set(SUFFIX)
    assert [len({(o.scale, o.zero_point) for o in m.outputs}) for m in manifest.models] == [2, 2, 2]
    result = validate(path, runs=1)
    assert result.passed
    said = {check.name: check.detail for check in result.checks}
    assert said["litert vectors"] == "0 of 532 codes differ, by up to 0 LSB"
    assert said["score"] == "none: the bundle names no labelled images"
    folder = tmp_path / "there"
    extract(unpack(path), folder)
    assert prove(folder)["differing"] == 0
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((20, 20, 3), 90, np.uint8))
    command = [sys.executable, "-m", "paredown.apps.outputs.device.predict", str(tmp_path / "photo.png")]
    used = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert [each["shape"] for each in json.loads(used.stdout)["outputs"]] == [[8, 4, 4], [5]]


def test_photos_make_the_test_vectors(net, photos, tmp_path):
    path = made(tmp_path / "b.paredown", net["litert"], data=photos)
    opened = unpack(path)
    codes = np.frombuffer(opened.read("vectors-litert.in"), np.int8).reshape(4, 3, 8, 8)
    contract = opened.manifest.preprocess
    assert (contract["width"], contract["resize"], contract["colour"]) == (8, "stretch", "rgb")
    first = cv2.resize(cv2.imread(str(photos / "ant" / "one.png")), (8, 8), interpolation=cv2.INTER_LINEAR)
    plain = first[..., ::-1].transpose(2, 0, 1).astype(np.int64) - 128  # a pixel is a code
    assert np.array_equal(codes[0], plain)
    assert validate(path, runs=1).passed
    extract(opened, tmp_path / "there")
    assert prove(tmp_path / "there")["differing"] == 0


def test_a_device_may_have_either_kernels(net, tmp_path):
    path = made(tmp_path / "b.paredown", net["litert"])
    opened = unpack(path)
    facts = opened.json("vectors-litert.json")
    raw = np.frombuffer(opened.read("vectors-litert.bin"), np.int8)
    parts = [raw[:512].reshape(4, 8, 4, 4), raw[512:].reshape(4, 5)]
    members = dict(opened.members)
    members["vectors-litert.bin"] = (raw ^ 1).tobytes()  # the maker's machine had other kernels
    document = {k: v for k, v in json.loads(opened.text).items() if k not in ("members", "format")}
    for also, passed in ((digest(parts), True), ("0" * 64, False)):
        members["vectors-litert.json"] = json.dumps({**facts, "also": also}).encode()
        path.write_bytes(pack(document, members))
        found = next(each for each in validate(path, runs=1).checks if each.name == "litert vectors")
        assert found.passed == passed
        folder = tmp_path / f"there-{passed}"
        extract(unpack(path), folder)
        if passed:
            assert "are those of the runtime's reference kernels" in found.detail
            assert prove(folder)["differing"] == 0
        else:
            with pytest.raises(DeviceError, match="532 of 532 values"):
                prove(folder)


@pytest.mark.parametrize(("end", "apart", "passed"), [(True, 1, True), (True, 2, False), (False, 1, False)])
def test_a_softmax_of_another_processor_may_be_one_code_apart(tmp_path, end, apart, passed):
    w = Int8((1, 8, 8, 3))
    scores = w.full(w.layer(w.input, 4, stride=2), 6)
    if end:
        scores = w.made("SOFTMAX", [scores], (1, 6), "Softmax", scale=1 / 256, zero=-128, beta=1.0)
    program = tmp_path / "net.tflite"
    program.write_bytes(w.data(scores))
    path = made(tmp_path / "b.paredown", program)
    opened = unpack(path)
    members, document = dict(opened.members), json.loads(opened.text)
    codes = np.frombuffer(opened.read("vectors-litert.bin"), np.int8).astype(int)
    codes[3] += apart if codes[3] < 0 else -apart
    members["vectors-litert.bin"] = codes.astype(np.int8).tobytes()
    path.write_bytes(pack({k: v for k, v in document.items() if k not in ("members", "format")}, members))
    result = validate(path, runs=1)
    found = next(each for each in result.checks if each.name == "litert vectors")
    assert result.verdict.warnings == (
        () if passed else (f"litert: codes differ from the integer graph's by up to {apart} LSB",)
    )
    assert (found.passed, f"1 of 24 codes differ, by up to {apart} LSB" in found.detail) == (passed, True)
    extract(unpack(path), tmp_path / "there")
    if passed:
        assert prove(tmp_path / "there")["differing"] == 1
    else:
        with pytest.raises(DeviceError, match=f"1 of 24 values, by up to {apart}"):
            prove(tmp_path / "there")


def test_float_programs_are_compared_as_real_numbers(tmp_path, photos):
    path = tmp_path / "net.tflite"
    path.write_bytes(small_programs().float32["litert"])
    for data in (None, photos):
        result = validate(made(tmp_path / "b.paredown", path, data=data), runs=1)
        assert result.passed
        assert any("float32, apart by" in check.detail for check in result.checks)


@pytest.fixture
def classifier(tmp_path) -> Path:
    """The small program with its scores as the only output."""
    from ai_edge_litert import schema_py_generated as schema

    from paredown.pipeline.lower.litert.program import aligned_builder

    model = schema.ModelT.InitFromPackedBuf(small_programs().int8["litert"], 0)
    graph = model.subgraphs[0]
    graph.outputs = np.array([t for t in graph.outputs if len(graph.tensors[t].shape) == 2], np.int32)
    model.signatureDefs = []
    builder = aligned_builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    (tmp_path / "cls.tflite").write_bytes(bytes(builder.Output()))
    return tmp_path / "cls.tflite"


def test_a_classifier_is_scored_and_scored_again(classifier, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, labels = tmp_path / "b.paredown", tmp_path / "labels.txt"
    done = call(
        "bundle", classifier, "--task", "classify", "--labels", labels, "--data", photos, "--out", path
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "top1" in done.out
    result = validate(path, runs=1)
    assert result.passed
    score = next(check for check in result.checks if check.name == "litert score")
    assert "on 5 images, recorded" in score.detail
    assert str(tmp_path) not in unpack(path).text.decode()
    monkeypatch.chdir("/")
    assert validate(path, runs=1, data=tmp_path).passed
    folder = tmp_path / "there"
    extract(unpack(path), folder)
    command = [
        sys.executable,
        "-m",
        "paredown.apps.classifier.device.classify",
        str(photos / "ant" / "one.png"),
    ]
    used = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)
    assert {each["class"] for each in used["classes"]} == set(CLASSES)
    done = call("run", path)
    assert done.code != 0


@pytest.mark.parametrize(
    ("asked", "error", "line"),
    [
        ({"task": "sing"}, UsageError, "--task: no task 'sing'; use outputs, classify, detect"),
        ({"task": "classify"}, UsageError, "--labels: --task classify needs the classes' names; give a file"),
        ({"labels": "labels.txt"}, UsageError, "--labels: names are for a task; add --task"),
        ({"task": "classify", "labels": "labels.txt"}, InputError, "--task classify: gives .*, not one row"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(net, photos, tmp_path, asked, error, line):
    given = {key: tmp_path / value if key == "labels" else value for key, value in asked.items()}
    with pytest.raises(error, match=line):
        made(tmp_path / "b.paredown", net["litert"], **given)
    assert not (tmp_path / "b.paredown").exists()


def test_names_of_another_number_are_refused(classifier, tmp_path):
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"few\.txt: 2 names for 5 scores; give one name a line"):
        made(tmp_path / "b.paredown", classifier, task="classify", labels=tmp_path / "few.txt")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("width = 16", r"--preprocess: width is 16, and net\.tflite takes 8x8; leave the size out"),
        ('[preprocess]\ncolour = "grey"', r"--preprocess: colour is grey, and net\.tflite takes 3 channels"),
        ("widht = 8", r"p\.toml:1.*widht"),
        ("std = [0.0]", r"p\.toml.*std"),
        ("width = ", r"p\.toml: the file of the preprocessing is not valid TOML"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(net, tmp_path, text, line):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(InputError, match=line):
        made(tmp_path / "b.paredown", net["litert"], preprocess=tmp_path / "p.toml")


def test_preprocessing_is_taken_from_the_file(net, tmp_path):
    (tmp_path / "p.toml").write_text(
        'colour = "bgr"\nmean = [0.5]\nstd = [0.5]\n[preprocess]\nresize = "crop"'
    )
    opened = unpack(made(tmp_path / "b.paredown", net["litert"], preprocess=tmp_path / "p.toml"))
    contract = opened.manifest.preprocess
    assert (contract["colour"], contract["resize"], contract["mean"]) == ("bgr", "crop", [0.5, 0.5, 0.5])


def test_programs_that_are_not_one_network_are_refused(net, tmp_path):
    other = tmp_path / "float.tflite"
    other.write_bytes(small_programs().float32["litert"])
    with pytest.raises(UsageError, match=r"float\.tflite: a second program for litert; make two bundles"):
        made(tmp_path / "b.paredown", net["litert"], other)
    mixed = tmp_path / "float.onnx"
    mixed.write_bytes(small_programs().float32["onnxruntime"])
    with pytest.raises(
        InputError, match=r"float\.onnx: another network: float32 .*, and net\.tflite is int8"
    ):
        made(tmp_path / "b.paredown", net["litert"], mixed)
    data = bytearray(mixed.read_bytes())
    import onnx

    model = onnx.load_from_string(bytes(data))
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor)[..., ::-1, ::-1] * -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    mixed.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"float\.onnx: gives other outputs than float\.tflite: .* dB"):
        made(tmp_path / "b.paredown", other, mixed)


def test_a_target_without_the_runtime_is_refused(net, tmp_path):
    with pytest.raises(
        UsageError, match=r"net\.pte: target cortex-m4 has no runtime executorch; it has litert"
    ):
        bundle(Asked((net["executorch"],)), load_card("cortex-m4"), tmp_path / "b.paredown")


def test_a_microcontroller_proves_it_too(net, tmp_path):
    pytest.importorskip("tflite_micro")
    path = tmp_path / "b.paredown"
    bundle(Asked((net["litert"],)), load_card("cortex-m4"), path)
    result = validate(path, "simulated:", runs=1)
    assert result.passed
    assert any("those of TFLite's reference kernels" in check.detail for check in result.checks)


@pytest.fixture
def detector(tmp_path) -> Path:
    """One level of v8 heads of two classes: an 8x8 convolution; with a photo, its label and p.toml."""
    w = Writer((1, 32, 32, 3))
    (tmp_path / "det.tflite").write_bytes(w.data(w.conv(w.input, 4 * 4 + 2, 8, 8)))
    (tmp_path / "two.txt").write_text("car\ntruck\n")
    (tmp_path / "p.toml").write_text('decoding = { kind = "v8", strides = [8], bins = 4 }\n')
    for part in ("images", "labels"):
        (tmp_path / "road" / part).mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "road" / "images" / "a.png"), picture)
    (tmp_path / "road" / "labels" / "a.txt").write_text("1 0.5 0.5 0.4 0.4\n")
    return tmp_path / "det.tflite"


def test_a_detector_is_scored_and_detects(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "b.paredown"
    asked = {"task": "detect", "labels": tmp_path / "two.txt", "preprocess": tmp_path / "p.toml"}
    made(path, detector, data=tmp_path / "road" / "images", **asked)
    result = validate(path, runs=1)
    assert result.passed
    score = next(check for check in result.checks if check.name == "litert score")
    assert score.detail.startswith("map50 ")
    assert "on 1 images, recorded" in score.detail
    extract(unpack(path), tmp_path / "there")
    photo = str(tmp_path / "road" / "images" / "a.png")
    command = [sys.executable, "-m", "paredown.apps.detector.device.detect", photo]
    used = subprocess.run(command, cwd=tmp_path / "there", capture_output=True, check=True)
    assert "detections" in json.loads(used.stdout)


def test_a_detector_says_how_its_outputs_become_boxes(detector, tmp_path):
    asked = {"task": "detect", "labels": tmp_path / "two.txt"}
    with pytest.raises(InputError, match="decoding"):
        made(tmp_path / "b.paredown", detector, **asked)
    (tmp_path / "two.txt").write_text("car\ntruck\nbus\n")
    with pytest.raises(InputError, match=r"output 1 .* is \(1, 18, 4, 4\), v8 heads of 3 classes expect"):
        made(tmp_path / "b.paredown", detector, **asked, preprocess=tmp_path / "p.toml")
