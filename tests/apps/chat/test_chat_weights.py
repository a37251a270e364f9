"""Weights from folders and GGUF files, against transformers' loaders; broken ones, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gemma_models import edit_config, oracle, ours, save_gguf, save_hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM

from paredown.apps.chat.network.config import (
    GEMMA3_1B,
    GEMMA3_270M,
    GemmaConfig,
    gguf_config,
    hf_config,
    read_hf_config,
)
from paredown.apps.chat.network.network import Gemma
from paredown.apps.chat.weights.weights import load_gemma
from paredown.targets.errors import InputError

QUANTIZABLE = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}  # all rows multiples of 32


@pytest.fixture(scope="module")
def reference():
    return oracle(**QUANTIZABLE)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf(reference, tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def gguf_file(reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(reference, tmp_path_factory.mktemp("gguf") / "model.gguf")


def equal(network: Gemma, state: dict[str, torch.Tensor], atol: float = 0) -> bool:
    found = network.state_dict()
    return found.keys() == state.keys() and all(
        torch.allclose(found[name], state[name], atol=atol, rtol=0) for name in found
    )


def line(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_gemma(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parameters(config: GemmaConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Gemma(config).parameters())


def test_the_presets_have_the_published_numbers_of_parameters():
    assert parameters(GEMMA3_270M) == 268_098_176
    assert parameters(GEMMA3_1B) == 999_885_952


def test_a_folder(reference, folder):
    network = load_gemma(folder)
    assert equal(network, reference.state_dict())
    assert network.config == ours(reference).config
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_a_folder_of_several_files(reference, tmp_path):
    save_hf(reference, tmp_path, shard="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert equal(load_gemma(tmp_path), reference.state_dict())


def test_bfloat16_becomes_float32(reference, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    narrow = {name: t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(narrow, tmp_path / "model.safetensors")
    wanted = {name: t.bfloat16().float() for name, t in reference.state_dict().items()}
    assert equal(load_gemma(tmp_path), wanted)


def test_the_text_part_of_a_checkpoint_with_vision(reference, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    table = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": table}))
    state = {f"language_model.{name}": t for name, t in load_file(folder / "model.safetensors").items()}
    save_file({**state, "vision_tower.patch.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert equal(load_gemma(tmp_path), reference.state_dict())


def test_both_spellings_of_the_configuration(folder):
    """What transformers 4 wrote (and the published files have), and what transformers 5 writes."""
    new = json.loads((folder / "config.json").read_text())
    old = {key: new[key] for key in new if key not in ("rope_parameters", "layer_types")}
    old |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6}
    assert hf_config(old, "old") == hf_config(new, "new")
    scaled = {**old, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert hf_config(scaled, "scaled").rope_factor == 8.0


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q5_0"])
def test_a_gguf_file_is_what_transformers_reads_in_it(reference, tmp_path, kind):
    path = save_gguf(reference, tmp_path / "model.gguf", kind)
    theirs = Gemma3ForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    network = load_gemma(path)
    assert equal(network, theirs.state_dict(), atol=1e-6)  # one and the same rounding of 1 + weight - 1
    assert equal(network, reference.state_dict(), atol=1e-6 if kind == "F32" else 0.1)


def test_what_gguf_does_not_say(reference, gguf_file):
    found, wanted = load_gemma(gguf_file).config, ours(reference).config
    assert found.query_pre_attn_scalar == found.head_dim  # of all sizes but 27B
    given = {key: value for key, value in vars(found).items() if key not in ("eps", "query_pre_attn_scalar")}
    assert given == {key: vars(wanted)[key] for key in given}
    large = {
        "general.architecture": "gemma3", "gemma3.block_count": 62, "gemma3.embedding_length": 5376,
        "gemma3.feed_forward_length": 21504, "gemma3.attention.head_count": 32,
        "gemma3.attention.head_count_kv": 16, "gemma3.attention.key_length": 128,
        "gemma3.attention.sliding_window": 1024, "gemma3.context_length": 131072,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6, "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 106,
        "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0,
    }  # fmt: skip
    config = gguf_config(large, 262_208, "27b")
    assert (config.query_pre_attn_scalar, config.rope_factor, config.eos) == (168, 8.0, (1, 106))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"model_type": "llama"}, ("model_type", "'llama'", "gemma3_text")),
        ({"hidden_size": None}, ("`hidden_size`", "missing")),
        ({"vocab_size": None}, ("`vocab_size`", "missing")),
        ({"num_hidden_layers": -1}, ("`num_hidden_layers`", "-1")),
        ({"num_hidden_layers": 10**12}, ("`num_hidden_layers`", "1000000000000")),
        ({"num_key_value_heads": 3}, ("`num_key_value_heads`", "3", "4")),
        ({"head_dim": 15}, ("`head_dim`", "15")),
        ({"head_dim": "16"}, ("`head_dim`", "'16'")),
        ({"rms_norm_eps": 0}, ("`rms_norm_eps`",)),
        ({"layer_types": ["sliding_attention"]}, ("`layer_types`", "7")),
        ({"layer_types": ["linear"] * 7}, ("`layer_types`", "'linear'")),
        ({"final_logit_softcapping": 30.0}, ("`final_logit_softcapping`", "30.0")),
        ({"tie_word_embeddings": False}, ("`tie_word_embeddings`",)),
        ({"eos_token_id": [1, 5000]}, ("`eos_token_id`", "5000", "96")),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, ("yarn",)),
        ({"hidden_size": 32}, ("shape", "[96, 64]", "[96, 32]")),
        ({"num_hidden_layers": 6, "layer_types": None}, ("unexpected", "model.layers.6.")),
        ({"num_hidden_layers": 8, "layer_types": None}, ("misses", "model.layers.7.")),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be(folder, tmp_path, changed, words):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, **changed)
    said = line(tmp_path)
    assert str(tmp_path) in said and all(word in said for word in words), said


def test_a_folder_that_is_not_whole(folder, tmp_path):
    assert "no such file" in line(tmp_path / "nowhere")
    assert "config.json" in line(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    assert "model.safetensors" in line(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    assert "one.safetensors: no such file" in line(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    assert "outside its folder" in line(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in line(tmp_path)


def test_an_index_and_a_file_that_disagree(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a.weight": "model.safetensors"}}'
    )
    assert "misses a.weight" in line(tmp_path)


def test_values_that_are_not_finite(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, tmp_path / "model.safetensors")
    assert "model.norm.weight holds 1 values" in line(tmp_path)


def test_a_gguf_file_of_something_else(reference, tmp_path):
    assert "no such file" in line(tmp_path / "nowhere.gguf").lower()
    path = save_gguf(reference, tmp_path / "other.gguf", arch="llama")
    assert "'llama'" in line(path)
    path = save_gguf(reference, tmp_path / "keyless.gguf", **{"gemma3.attention.head_count": None})
    assert "`gemma3.attention.head_count` is missing" in line(path)
    path = save_gguf(reference, tmp_path / "layers.gguf", **{"gemma3.block_count": 8})
    assert "model.layers.7." in line(path)


def test_a_gguf_file_cut_anywhere(gguf_file, tmp_path):
    whole, cut = gguf_file.read_bytes(), tmp_path / "cut.gguf"
    for length in (0, 3, 7, 23, 100, len(whole) // 100, len(whole) // 2, len(whole) - 40):
        cut.write_bytes(whole[:length])
        assert str(cut) in line(cut)


def test_safetensors_cut_anywhere(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated or damaged safetensors" in line(tmp_path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_bit_flipped_where_a_gguf_file_describes_itself(gguf_file, tmp_path, data):
    """It loads, or it is one line: never a traceback, an endless loop or all the memory."""
    whole = bytearray(gguf_file.read_bytes())
    start = whole.index(b"blk.0.attn")  # metadata and the list of tensors
    at = data.draw(st.integers(0, start + 4000))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(whole)
    try:
        load_gemma(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)


def test_configurations_are_read_as_written(folder):
    config = read_hf_config(folder)
    assert config.local == (True, True, True, True, True, False, True)
    assert (config.layers, config.groups, config.query_pre_attn_scalar) == (7, 2, 24)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("adapter_config.json", ("a LoRA adapter: adapter_config.json", "merge_and_unload")),
        ("pytorch_model.bin", ("pickled weights (.bin)", "save_pretrained")),
        ("pytorch_model.bin.index.json", ("pickled weights (.bin)", "save_pretrained")),
        ("weights.npz", ("MLX model (.npz)",)),
    ],
)
def test_a_folder_of_another_kind_is_named(folder, tmp_path, file, words):
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / file).write_text("{}")
    said = line(tmp_path)
    assert all(word in said for word in words), said


def test_a_model_beside_an_adapter_that_is_not_merged_is_refused_and_a_merged_one_reads(folder, tmp_path):
    """What peft's merge gives is a plain folder: W + scale * B @ A."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state, name = load_file(folder / "model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
    low = torch.randn(2, state[name].shape[0], generator=torch.Generator().manual_seed(0))
    state[name] = state[name] + 2 * low.T @ torch.ones(2, state[name].shape[1])
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(load_gemma(tmp_path).state_dict()[name], state[name])
    (tmp_path / "pytorch_model.bin").write_bytes(b"of an older release")  # .safetensors count
    assert torch.equal(load_gemma(tmp_path).state_dict()[name], state[name])
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "a LoRA adapter" in line(tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path):
    for name, word in (("a.bin", ".bin"), ("a.pth", ".pth"), ("a.safetensors", "without their configuration"),
                       ("a.npz", "MLX"), ("a.txt", "not a model")):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
        assert word in line(tmp_path / name)


def test_a_gguf_file_of_another_kind_is_named(reference, tmp_path):
    path = tmp_path / "model.gguf"
    for change, word in (
        (lambda writer: writer.add_string("general.type", "adapter"), "a LoRA adapter"),
        (lambda writer: writer.add_string("general.type", "mmproj"), "general.type is 'mmproj'"),
        (lambda writer: writer.add_uint16("split.count", 3), "one file of 3"),
    ):
        assert word in line(save_gguf(reference, path, more=change))
    assert "a big-endian GGUF file" in line(save_gguf(reference, path, big_endian=True))
