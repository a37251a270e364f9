"""Every key of both formats: random ones against transformers, and each that is refused by its name."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gemma_models import SIZES, edit_config, oracle, save_gguf, save_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Gemma3TextConfig

from paredown.apps.chat.network.cache import empty_cache
from paredown.apps.chat.network.config import GemmaConfig, gguf_config, hf_config
from paredown.apps.chat.network.keys import COMPUTED, FIXED_GGUF, FIXED_HF, known_gguf, known_hf
from paredown.apps.chat.weights.weights import load_gemma, open_weights
from paredown.targets.errors import InputError

IDS = [2, *torch.randint(4, 96, (40,), generator=torch.Generator().manual_seed(1)).tolist()]


def logits(path: Path) -> torch.Tensor:
    network = load_gemma(path)
    with torch.no_grad():
        cache = empty_cache(network.config, len(IDS), len(IDS))
        return network(torch.tensor([IDS]), torch.arange(len(IDS)), cache)[0][0]


def theirs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float()


ROPES = st.one_of(
    st.just({"rope_type": "default"}),
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": st.sampled_from([1.0, 2.0, 8.0])}),
)
CONFIGS = st.fixed_dictionaries({
    "heads": st.sampled_from([(2, 1), (4, 2), (3, 3)]),
    "head_dim": st.sampled_from([8, 16]),
    "layers": st.lists(st.booleans(), min_size=1, max_size=4),
    "window": st.integers(1, 50),
    "scalar": st.sampled_from([8, 24, 168]),
    "bases": st.tuples(st.sampled_from([1e4, 3e4]), st.sampled_from([1e6, 2e5])),
    "ropes": st.tuples(ROPES, ROPES),
    "eps": st.sampled_from([1e-6, 1e-5]),
})  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True)
@given(CONFIGS)
def test_random_configurations_give_the_logits_of_transformers(found):
    (heads, kv_heads), (near, far) = found["heads"], found["ropes"]
    kinds = ["sliding_attention" if local else "full_attention" for local in found["layers"]]
    local, whole = found["bases"]
    model = oracle(
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=found["head_dim"], hidden_size=36,
        num_hidden_layers=len(kinds), layer_types=kinds, sliding_window=found["window"],
        query_pre_attn_scalar=found["scalar"], rms_norm_eps=found["eps"],
        rope_parameters={"sliding_attention": near | {"rope_theta": local},
                         "full_attention": far | {"rope_theta": whole}},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        got = logits(save_hf(model, Path(folder)))
    torch.testing.assert_close(got, theirs(model), atol=1e-3, rtol=0)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.sampled_from([None, "none", "linear"]),
    st.sampled_from([None, "scaling.factor", "scale_linear"]),
    st.sampled_from([None, 2, 3, "list"]),
    st.sampled_from([None, 5e4]),
)
def test_what_gguf_says_is_computed_as_llama_cpp_reads_it(kind, factor, pattern, base):
    """transformers is given what llama.cpp's source says that the keys mean."""
    kinds = [True, False, False, True, True, True, False]
    if pattern != "list":
        kinds = [bool((layer + 1) % (pattern or 6)) for layer in range(7)]
    scaled = factor is not None and kind != "none"
    rope = {"rope_type": "linear", "factor": 4.0} if scaled else {"rope_type": "default"}
    model = oracle(
        layer_types=["sliding_attention" if local else "full_attention" for local in kinds],
        query_pre_attn_scalar=SIZES["head_dim"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": base or 1e4},
            "full_attention": rope | {"rope_theta": 1e6},
        },
    )

    def more(writer: gguf.GGUFWriter) -> None:
        if kind:
            writer.add_string("gemma3.rope.scaling.type", kind)
        if factor:
            writer.add_float32(f"gemma3.rope.{factor}", 4.0)
        if base:
            writer.add_float32("gemma3.rope.freq_base_swa", base)
        if pattern == "list":
            writer.add_array("gemma3.attention.sliding_window_pattern", kinds)
        elif pattern:
            writer.add_uint32("gemma3.attention.sliding_window_pattern", pattern)

    with tempfile.TemporaryDirectory() as folder:
        got = logits(save_gguf(model, Path(folder) / "model.gguf", more=more))
    torch.testing.assert_close(got, theirs(model), atol=1e-3, rtol=0)


def test_every_field_has_its_keys():
    fields = {field.name for field in dataclasses.fields(GemmaConfig)} - {"rope_factor_local", "tied"}
    assert set(COMPUTED) == fields | {"layers"}


def test_what_transformers_writes_is_known():
    table = Gemma3TextConfig().to_dict()
    assert [key for key in table if key not in FIXED_HF and not known_hf(key)] == []


def hf(**changed: Any) -> GemmaConfig:
    table = {**Gemma3TextConfig(**SIZES).to_dict(), **changed}
    return hf_config({key: value for key, value in table.items() if value is not ...}, "config.json")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"final_logit_softcapping": 30.0}, "`final_logit_softcapping` is 30.0; Gemma 3 has None"),
        ({"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50.0"),
        ({"use_bidirectional_attention": True}, "`use_bidirectional_attention` is True"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "are quantized (bitsandbytes)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "are quantized (gptq)"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantized by MLX"),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "code of the folder's own"),
        ({"per_layer_scale": 0.5}, "`per_layer_scale` is a key that is not known here"),
        ({"rope_parameters": {"rope_type": "linear"}}, "other entries than sliding_attention"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}, "is 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "`rope_scaling` is None"),
        ({"rope_scaling": {"factor": 8.0}}, "a factor of 8.0 and no `rope_type`"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "the old key `type` ('linear')"),
        ({"rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}}}, "`partial_rotary_factor`"),
    ],
    ids=str,
)
def test_what_config_json_must_not_say(changed, said):
    with pytest.raises(InputError) as caught:
        hf(**changed)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_changes_nothing_in_config_json():
    plain = hf()
    for key, value in (
        ("torch_dtype", "bfloat16"), ("unsloth_version", "2025.9"), ("unsloth_fixed", True),
        ("pruned_heads", {}),
        ("cache_implementation", "hybrid"), ("_attn_implementation_autoset", True), ("something_new", None),
    ):  # fmt: skip
        assert hf(**{key: value}) == plain


GIVEN = {
    "general.architecture": "gemma3", "gemma3.block_count": 2, "gemma3.embedding_length": 32,
    "gemma3.feed_forward_length": 64, "gemma3.attention.head_count": 4, "gemma3.attention.head_count_kv": 2,
    "gemma3.attention.key_length": 16, "gemma3.attention.sliding_window": 8, "gemma3.context_length": 64,
    "gemma3.attention.layer_norm_rms_epsilon": 1e-6, "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("gemma3.final_logit_softcapping", 30.0, "is 30.0; Gemma 3 has None"),
        ("gemma3.attn_logit_softcapping", 50.0, "is 50.0"),
        ("gemma3.attention.causal", False, "is False"),
        ("gemma3.attention.value_length", 8, "is 8, and `gemma3.attention.key_length` 16"),
        ("gemma3.rope.dimension_count", 8, "is 8, and"),
        ("gemma3.rope.scaling.type", "yarn", "is 'yarn'; Gemma 3 has 'none' and 'linear'"),
        ("gemma3.rope.scaling.factor", -2.0, "is -2.0, not a positive number"),
        ("gemma3.attention.sliding_window_pattern", [True], "of each of 2 layers"),
        ("gemma3.attention.head_count_kv", [2, 1], "differs from layer to layer"),
        ("gemma3.vocab_size", 90, "is 90, and the embedding has 96 rows"),
        ("gemma3.new_thing", 1.5, "is a key that is not known here"),
    ],
)
def test_what_a_gguf_file_must_not_say(key, value, said):
    with pytest.raises(InputError) as caught:
        gguf_config(GIVEN | {key: value}, 96, "model.gguf")
    assert f"`{key}` {said}" in str(caught.value) or said in str(caught.value)
    assert key in str(caught.value) and "\n" not in str(caught.value)


def test_what_changes_nothing_in_a_gguf_file():
    plain = gguf_config(GIVEN, 96, "model.gguf")
    for key, value in (
        ("general.finetune", "it"), ("quantize.imatrix.file", "x"),
        ("gemma3.attention.head_count_kv", [2, 2]), ("gemma3.final_logit_softcapping", 0.0),
        ("gemma3.rope.scaling.factor", 0.0), ("gemma3.vocab_size", 96),
        ("gemma3.rope.dimension_count", 16), ("gemma3.rope.scaling.original_context_length", 64),
    ):  # fmt: skip
        assert gguf_config(GIVEN | {key: value}, 96, "model.gguf") == plain
    ends = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 1}
    assert gguf_config(GIVEN | ends, 96, "model.gguf").eos == (1, 7)
    assert all(known_gguf(key) for key in GIVEN) and not any(known_gguf(key) for key in FIXED_GGUF)


def test_generation_ends_where_transformers_ends_it(tmp_path):
    save_hf(oracle(), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 1]}))
    assert open_weights(tmp_path).config.eos == (1, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [96]}))
    with pytest.raises(InputError, match=r"generation_config.json: `eos_token_id` is \[96\]"):
        open_weights(tmp_path)


@pytest.mark.parametrize("format_", ["hf", "gguf"])
def test_an_output_layer_of_its_own(tmp_path, format_):
    """Used where it differs, and accepted where it is the embedding once more."""
    model = oracle(tie_word_embeddings=False)
    path = tmp_path / "model.gguf" if format_ == "gguf" else tmp_path
    for tied in (False, True):
        if tied:
            model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        if format_ == "gguf":
            save_gguf(model, path, head=True)
        else:
            save_hf(model, path)
            state = load_file(path / "model.safetensors")
            state["lm_head.weight"] = model.lm_head.weight.clone()
            save_file(state, path / "model.safetensors")
        assert open_weights(path).config.tied is tied
        if format_ == "hf":
            torch.testing.assert_close(logits(path), theirs(model), atol=1e-3, rtol=0)
        else:
            assert torch.equal(load_gemma(path).lm_head.weight, model.lm_head.weight)
    if format_ == "hf":
        edit_config(path, tie_word_embeddings=False)
        save_file({k: v for k, v in state.items() if k != "lm_head.weight"}, path / "model.safetensors")
        with pytest.raises(InputError, match="`tie_word_embeddings` is false, and there is no"):
            open_weights(path)
