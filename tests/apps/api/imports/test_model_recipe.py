"""The recipe that a model file gets, from what the command line says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import helper
from onnx_models import floats, model_of, saved, small_net
from tiny_project import call

from paredown.apps.api.imports.model_recipe import Asked, model_recipe, numbers
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import InputError, ParedownError, UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / name / "one.png"), picture)
    return tmp_path / "photos"


def written(model: Path, folder: Path, **asked: Any) -> tuple[dict[str, Any], str]:
    path, said = model_recipe(model, Asked(**asked), folder)
    return tomllib.loads(path.read_text()), "\n".join(said)


def test_photos_make_a_recipe_of_outputs_and_what_is_assumed_is_said(tmp_path, photos):
    tables, said = written(small_net(tmp_path), tmp_path / "runs", data=photos)
    assert tables["app"] == "apps.outputs" and tables["network"] == str(tmp_path / "model.onnx")
    assert tables["preprocess"]["width"] == 8 and tables["preprocess"]["colour"] == "rgb"
    assert tables["preprocess"]["mean"] == pytest.approx([0.485, 0.456, 0.406], abs=1e-6)
    assert tables["preprocess"]["std"] == pytest.approx([0.229, 0.224, 0.225], abs=1e-6)
    assert "assumed: mean and scale are ImageNet's" in said and "assumed: the channels are rgb" in said
    task = load_task(load_recipe(tmp_path / "runs" / "model.toml"))
    assert len(task.data("test")) == 2


def test_what_is_said_is_taken_and_not_assumed(tmp_path, photos):
    tables, said = written(
        small_net(tmp_path),
        tmp_path,
        data=photos,
        mean=(0.0,),
        scale=(255.0,),
        channels="bgr",
        shape=(16, 12),
    )
    assert tables["preprocess"] == {
        "width": 12, "height": 16, "colour": "bgr", "mean": [0.0] * 3, "std": [1.0] * 3,
    }  # fmt: skip
    assert "assumed" not in said


def test_an_edited_recipe_is_kept(tmp_path, photos):
    model = small_net(tmp_path)
    path, _ = model_recipe(model, Asked(photos), tmp_path / "runs")
    path.write_text(path.read_text() + "\n[quantize]\nequalize = true\n")
    path, said = model_recipe(model, Asked(photos), tmp_path / "runs")
    assert "equalize" in path.with_suffix(".before.toml").read_text()
    assert any("is kept as" in line for line in said)
    path, said = model_recipe(model, Asked(photos), tmp_path / "runs")
    assert not any("is kept as" in line for line in said)


def test_grey_networks_take_grey_photos(tmp_path, photos):
    model = saved(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])], (1, 1, 8, 8)))
    tables, said = written(model, tmp_path, data=photos)
    assert tables["preprocess"]["colour"] == "grey" and "divided by 255" in said


def test_folders_of_classes_give_a_classifier(tmp_path, photos):
    tables, _ = written(small_net(tmp_path), tmp_path, data=photos, task="classify")
    assert tables["app"] == "apps.classifier" and tables["data"]["format"] == "imagefolder"
    assert Path(tables["data"]["names"]).read_text() == "cat\ndog\n"


def test_outputs_of_as_many_as_there_are_class_folders_are_a_classifier_and_it_is_said(tmp_path, photos):
    for name in "xyz":
        (photos / name).mkdir()
        (photos / "cat" / "one.png").rename(photos / name / "one.png") if name == "x" else None
    tables, said = written(small_net(tmp_path), tmp_path, data=photos)
    assert tables["app"] == "apps.classifier"
    assert "the task is classify: its output is 1 x 5, and there are 5 names (--task)" in said
    tables, _ = written(small_net(tmp_path), tmp_path, data=photos, task="outputs")
    assert tables["app"] == "apps.outputs" and tables["data"]["format"] == "folder"


def heads_model(tmp_path: Path, classes: int = 2, shape: tuple[int, ...] = (1, 3, 64, 64)) -> Path:
    """Raw heads of two levels, the coarse one first."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["fine"], "fine", strides=[8, 8]),
        helper.make_node("Conv", ["fine", "b"], ["coarse"], "coarse", strides=[2, 2], pads=[1] * 4),
    ]
    tensors, outputs = {"a": floats(4, 3, 8, 8), "b": floats(4, 4, 3, 3)}, []
    for level in ("coarse", "fine"):
        for part, count in (("box", 64), ("cls", classes)):
            name = f"{level}.{part}"
            tensors[f"{name}.w"] = floats(count, 4, 1, 1)
            nodes.append(helper.make_node("Conv", [level, f"{name}.w"], [name], name))
            outputs.append(name)
    return saved(tmp_path, model_of(nodes, shape, tensors, outputs), "heads.onnx")


def boxes_yaml(tmp_path: Path, names: str = "[cat, dog]") -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "one.png"), np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "labels" / "one.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\nnames: {names}\n")
    return tmp_path / "data.yaml"


@pytest.mark.parametrize("task", [None, "detect"])
def test_heads_are_recognised_and_the_detector_takes_them_in_order(tmp_path, task):
    tables, said = written(heads_model(tmp_path), tmp_path, data=boxes_yaml(tmp_path), task=task)
    assert tables["app"] == "apps.detector"
    assert tables["decoding"] == {"kind": "v8", "strides": [8, 16], "bins": 16}
    assert "the heads are v8 of strides [8, 16]: its maps of 2 sizes have 2 and 64 channels" in said
    made = load_task(load_recipe(tmp_path / "heads.toml"))
    assert made.output_names == ("box1", "cls1", "box2", "cls2")
    assert any("order of the heads" in note for note in made.notes)


def test_what_outputs_do_not_show_is_asked_for(tmp_path):
    model, data = heads_model(tmp_path), boxes_yaml(tmp_path, "[a, b, c]")
    with pytest.raises(
        UsageError, match="show no task for 3 classes; say it: --task classify, detect, segment"
    ):
        written(model, tmp_path, data=data)
    with pytest.raises(InputError, match="are no heads of 3 classes that are known"):
        written(model, tmp_path, data=data, task="detect")


def test_maps_of_as_many_channels_as_classes_are_a_segmenter(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        shape = (16, 16, 3) if folder == "images" else (16, 16)
        cv2.imwrite(str(tmp_path / folder / "one.png"), np.ones(shape, np.uint8))
    model = saved(tmp_path, model_of([helper.make_node("Conv", ["x", "w"], ["y"], strides=[4, 4])],
                                     (1, 3, 16, 16), {"w": floats(3, 3, 4, 4)}))  # fmt: skip
    tables, said = written(model, tmp_path, data=tmp_path)
    assert tables["app"] == "apps.segmenter" and "the task is segment: its output is 1x3x4x4" in said
    assert Path(tables["data"]["names"]).read_text() == "class 0\nclass 1\nclass 2\n"
    load_task(load_recipe(tmp_path / "model.toml")).network()


def test_a_yaml_names_data_and_classes(tmp_path, photos):
    (tmp_path / "data.yaml").write_text("path: photos\ntrain: .\nval: .\nnames:\n  0: cat\n  1: dog\n")
    tables, _ = written(small_net(tmp_path), tmp_path, data=tmp_path / "data.yaml", task="classify")
    assert Path(tables["data"]["train"]).resolve() == photos.resolve()
    assert Path(tables["data"]["names"]).read_text() == "cat\ndog\n"


def test_arrays_need_no_preprocessing(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "one.npy", floats(20))
    model = saved(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])], (1, 20)))
    tables, _ = written(model, tmp_path, data=folder)
    assert tables["data"]["format"] == "arrays" and "preprocess" not in tables
    with pytest.raises(UsageError, match="arrays go into the network as they are"):
        written(model, tmp_path, data=folder, mean=(0.0,))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"task": "dance"}, "no task 'dance'; use outputs, classify, detect, segment"),
        ({"channels": "grey"}, "use grey for one channel"),
        ({"mean": (1.0, 2.0)}, "2 numbers for 3 channels"),
        ({"scale": (0.0,)}, "not above 0"),
        ({"task": "detect"}, "give a YAML of train, val, names"),
        ({"data": Path("gone")}, "no such file or folder"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, photos, asked, said):
    with pytest.raises(ParedownError) as caught:
        written(small_net(tmp_path), tmp_path, **{"data": photos, **asked})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "holds no keys"),
        ("names: [a]\n", "names no val"),
        ("val: photos\n", "names no classes"),
        ("val: [", "not a YAML file"),
        ("names: [a]\nval: gone\n", "which is not there"),
        ("!!python/object/apply:os.system [echo]\n", "not a YAML file"),
    ],
)
def test_a_broken_yaml_is_one_line(tmp_path, photos, text, said):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        written(small_net(tmp_path), tmp_path, data=path, task="classify")


def test_numbers_are_read_from_options():
    assert numbers("1, 2.5", "--mean") == (1.0, 2.5) and numbers(None, "--mean") is None
    assert numbers("3x224X200", "--shape", int, "x") == (3, 224, 200)
    with pytest.raises(UsageError, match="--shape: '3x' is no list of numbers; as 3x224x224"):
        numbers("3x", "--shape", int, "x")


@pytest.mark.slow
def test_a_model_file_and_photos_become_a_bundle(tmp_path, photos):
    model = small_net(tmp_path)
    runs = tmp_path / "runs"
    done = call(
        "run", model, "--data", photos, "--runs", runs, "--set", 'lower.runtimes=["litert"]',
        "--set", "bench.runs=2",
        "--scale", "255", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    values = {(f["variant"], f["metric"]): f["value"] for f in document["figures"]}
    assert values["litert", "parity_lsb"] == 0 and values["fp32", "r2"] == 1
    assert Path(document["bundle"]).exists() and (runs / "model" / "model.toml").exists()
    assert "assumed: the channels are rgb" in done.err and "assumed: mean" not in done.err
    again = call("run", runs / "model" / "model.toml", "--runs", runs, "--dry-run", "--json",
                 "--set", 'lower.runtimes=["litert"]', "--set", "bench.runs=2")  # fmt: skip
    assert all(stage["cached"] for stage in json.loads(again.out)["stages"])
