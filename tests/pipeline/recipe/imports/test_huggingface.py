"""Folders of Hugging Face's, made by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.imports import folders, huggingface
from paredown.pipeline.recipe.imports.huggingface import load
from paredown.pipeline.recipe.imports.read import files, is_model, read
from paredown.targets.errors import InputError

SMALL = {
    "resnet": lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32,
        patch_size=8, num_labels=3)),
    "segformer": lambda: transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3)),
}  # fmt: skip


def made(name: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    network = SMALL[name]().eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("name", SMALL)
def test_it_says_what_transformers_says(tmp_path: Path, name: str, capfd):
    network = made(name, tmp_path)
    capfd.readouterr()
    found = read(tmp_path, (32, 32))
    assert capfd.readouterr() == ("", "")
    assert found.shape == (1, 3, 32, 32) and found.outputs == ("logits",)
    x = torch.rand(found.shape)
    with torch.no_grad():
        assert torch.allclose(found.module(x), network(x).logits, atol=1e-5)
    assert trace(found.module, found.shape, opaque=True).nodes


def test_the_preprocessors_numbers_are_said(tmp_path: Path):
    made("resnet", tmp_path)
    with pytest.raises(InputError, match="does not say the size of its images"):
        load(tmp_path)
    said = {"size": {"shortest_edge": 36}, "crop_size": 32, "do_center_crop": True, "resample": 3,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = load(tmp_path)
    assert found.shape == (1, 3, 32, 32)
    assert "width = 32, height = 32, mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25]" in found.notes[0]
    assert found.preprocess == {
        "width": 32,
        "height": 32,
        "resize": "crop",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "shorter_side": 36,
        "resample": "pillow-bicubic",
    }
    assert found.labels == ()  # LABEL_0, LABEL_1 and so on say nothing
    assert load(tmp_path, (3, 40, 48)).shape == (1, 3, 40, 48)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"1": "dog", "0": "cat", "2": " big  cow"}, ("cat", "dog", "big cow")),
        ({"0": "a", "2": "b"}, ()),
        ([], ()),
    ],
)
def test_the_names_of_the_classes_are_read(tmp_path: Path, given, labels):
    made("resnet", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": 32, "do_rescale": False, "resample": 4})
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert huggingface._labels(config | {"id2label": given}) == labels
    assert load(tmp_path).preprocess["std"] == [1 / 255] * 3
    assert load(tmp_path).preprocess["resample"] == "area"  # PIL's Resampling.BOX
    with pytest.raises(InputError, match="takes images of 3 channels"):
        load(tmp_path, (1, 40, 48))


def test_folders_are_known_by_their_files(tmp_path: Path):
    assert folders.kind(tmp_path) is None and not is_model(tmp_path)
    made("resnet", tmp_path)
    assert folders.kind(tmp_path) == folders.HUGGING_FACE and is_model(tmp_path)
    assert [path.name for path in files(tmp_path)] == ["config.json", "model.safetensors"]
    later = ("adapter_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    for name in later:  # a file that comes later and is read is one that decides
        (tmp_path / name).write_bytes(b"{}")
    assert [path.name for path in files(tmp_path)] == ["config.json", "model.safetensors", *later]
    (tmp_path / "saved_model.pb").write_bytes(b"1")
    assert folders.kind(tmp_path) == folders.SAVED_MODEL
    assert folders.kind(Path("x" * 5000)) is None


def test_what_is_not_read(tmp_path: Path):
    made("resnet", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def line(**changes: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(InputError) as caught:
            load(tmp_path, (32, 32))
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        return str(caught.value)

    assert "code that comes with the model" in line(auto_map={"AutoModel": "own.Model"})
    assert "its architecture is BertForMaskedLM" in line(architectures=["BertForMaskedLM"])
    assert "its architecture is none" in line(architectures=[])
    assert "transformers cannot read the model" in line(model_type="nobody knows")
    assert "has another shape of" in line(hidden_sizes=[8, 24]) or "cannot read" in line(hidden_sizes=[8, 24])
    assert "lacks" in line(depths=[1, 2])
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert "transformers cannot read the model" in line()
    weights.unlink()
    assert "no model.safetensors" in line()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        load(tmp_path)
