"""Every key of a Gemma 3's own description: config.json's name, GGUF's name, and what becomes of it.

A key is computed with, has to have the one value that this network computes, or changes nothing in what a
network computes. There is no fourth kind: a key of none of the three is refused by its name, in both formats,
because nobody can say what it would have changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paredown.targets.errors import InputError

LARGEST = 1 << 24  # of any size: a forged number must not ask for all memory
PREFIX = "gemma3."


@dataclass(frozen=True)
class Key:
    """One number of a network.

    Attributes:
        hf: its name in config.json; "" where it has none.
        gguf: its name in a GGUF file's metadata; "" where it has none.
        hf_absent: what transformers' Gemma3TextConfig means where it is not there; None = it must be.
        gguf_absent: what llama.cpp means; None = it must be there.
    """

    hf: str
    gguf: str
    hf_absent: Any = None
    gguf_absent: Any = None


#: `GemmaConfig`'s fields. `layers` stands for the length of `local`.
COMPUTED: Mapping[str, Key] = {
    "layers": Key("num_hidden_layers", "gemma3.block_count"),
    "local": Key("layer_types", "gemma3.attention.sliding_window_pattern"),
    "width": Key("hidden_size", "gemma3.embedding_length"),
    "ffn": Key("intermediate_size", "gemma3.feed_forward_length"),
    "heads": Key("num_attention_heads", "gemma3.attention.head_count"),
    "kv_heads": Key("num_key_value_heads", "gemma3.attention.head_count_kv"),
    "head_dim": Key("head_dim", "gemma3.attention.key_length"),
    "window": Key("sliding_window", "gemma3.attention.sliding_window"),
    "vocabulary": Key("vocab_size", "gemma3.vocab_size"),
    "max_positions": Key("max_position_embeddings", "gemma3.context_length", 131_072),
    "eps": Key("rms_norm_eps", "gemma3.attention.layer_norm_rms_epsilon", 1e-6),
    "query_pre_attn_scalar": Key("query_pre_attn_scalar", "", 256),
    "rope_global": Key("rope_theta", "gemma3.rope.freq_base", 1e6, 1e6),
    "rope_local": Key("rope_local_base_freq", "gemma3.rope.freq_base_swa", 1e4, 1e4),
    "rope_factor": Key("rope_scaling", "gemma3.rope.scaling.factor", 1.0, 1.0),
    "bos": Key("bos_token_id", "tokenizer.ggml.bos_token_id", 2),
    "eos": Key("eos_token_id", "tokenizer.ggml.eos_token_id", 1),
}
#: Further spellings of the above, which `config.py` reads.
ALSO_HF = frozenset({"rope_parameters", "sliding_window_pattern", "_sliding_window_pattern",
                     "tie_word_embeddings", "text_config", "model_type"})  # fmt: skip
ALSO_GGUF = frozenset({"gemma3.rope.scaling.type", "gemma3.rope.scale_linear", "tokenizer.ggml.eot_token_id",
                       "tokenizer.ggml.eom_token_id", "general.architecture", "general.type",
                       "split.count"})  # fmt: skip
#: What transformers means in a text_config of a model with vision, which omits these.
NESTED_SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208}

#: Keys that change the arithmetic and have one value here; None and 0 stand for "not used" where it is None.
FIXED_HF: Mapping[str, Any] = {
    "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "use_bidirectional_attention": False, "hidden_activation": "gelu_pytorch_tanh",
    "partial_rotary_factor": 1.0, "quantization_config": None, "quantization": None, "auto_map": None,
    "pruned_heads": None, "add_cross_attention": False, "is_encoder_decoder": False,
}  # fmt: skip
FIXED_GGUF: Mapping[str, Any] = {
    "gemma3.attn_logit_softcapping": None, "gemma3.final_logit_softcapping": None,
    "gemma3.attention.causal": True, "gemma3.attention.scale": None, "gemma3.logit_scale": None,
    "gemma3.attention.clamp_kqv": None, "gemma3.attention.max_alibi_bias": None,
    "gemma3.expert_count": None, "gemma3.rope.scaling.attn_factor": 1.0,
    "gemma3.rope.dimension_sections": None, "gemma3.attention.shared_kv_layers": None,
    "gemma3.embedding_length_per_layer_input": None,
}  # fmt: skip
#: Sizes that have to be another one's.
SAME_GGUF: Mapping[str, str] = {
    "gemma3.attention.value_length": "head_dim", "gemma3.rope.dimension_count": "head_dim",
    "gemma3.attention.key_length_swa": "head_dim", "gemma3.attention.value_length_swa": "head_dim",
    "gemma3.rope.dimension_count_swa": "head_dim",
}  # fmt: skip

#: Of training, generation, files and vision: nothing that the network computes of text depends on them.
WITHOUT_EFFECT_HF = frozenset({
    "architectures", "attention_dropout", "attn_implementation", "begin_suppress_tokens", "bad_words_ids",
    "boi_token_id", "boi_token_index", "cache_implementation", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eoi_token_id", "eoi_token_index",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "hidden_act", "id2label", "image_token_id", "image_token_index", "initializer_range", "is_decoder",
    "label2id", "length_penalty", "max_length", "min_length", "mm_tokens_per_image", "model_name",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache", "vision_config",
})  # fmt: skip
#: How further ones begin: transformers' private ones, and what tools note about themselves.
NOTES_HF = ("_", "unsloth")
WITHOUT_EFFECT_GGUF = frozenset({
    "gemma3.expert_used_count", "gemma3.mm.tokens_per_image", "gemma3.pooling_type",
    "gemma3.rope.scaling.finetuned", "gemma3.rope.scaling.original_context_length",
    "gemma3.rope.scaling.yarn_attn_factor", "gemma3.rope.scaling.yarn_beta_fast",
    "gemma3.rope.scaling.yarn_beta_slow", "gemma3.rope.scaling.yarn_ext_factor",
    "gemma3.rope.scaling.yarn_log_multiplier", "gemma3.tensor_data_layout",
})  # fmt: skip


class Keys:
    """A file's keys, by our name for them, each checked when it is asked for.

    Args:
        given: name to value.
        where: names the file in errors.
        gguf: which of the two formats.
        sizes: further values that stand for missing keys.
    """

    def __init__(
        self, given: Mapping[str, Any], where: object, gguf: bool, sizes: Mapping[str, Any] | None = None
    ) -> None:
        self.given, self.where = given, where
        self._names = {field: key.gguf if gguf else key.hf for field, key in COMPUTED.items()}
        absent = {field: key.gguf_absent if gguf else key.hf_absent for field, key in COMPUTED.items()}
        self._absent = {self._names[field]: value for field, value in absent.items()} | dict(sizes or {})

    def name(self, field: str) -> str:
        """What the file calls a field."""
        return self._names.get(field, field)

    def wrong(self, field: str, what: str, hint: str | None = None) -> InputError:
        """The error of a field's, or a key's, value."""
        return InputError(f"`{self.name(field)}` {what}", where=self.where, hint=hint)

    def value(self, field: str) -> Any:
        """What is given, or what its absence means.

        Raises:
            InputError: it must be there.
        """
        key = self.name(field)
        found = self.given.get(key)
        found = self._absent.get(key) if found is None else found
        if found is None:
            raise self.wrong(field, "is missing")
        return found

    def integer(self, field: str, least: int = 1) -> int:
        """A size; a list with one value for each layer where all are the same."""
        found = self.value(field)
        if isinstance(found, list) and found and all(each == found[0] for each in found):
            found = found[0]
        if isinstance(found, list):
            raise self.wrong(field, "differs from layer to layer, which Gemma 3 does not")
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= LARGEST:
            raise self.wrong(field, f"is {found!r}, not a whole number from {least} to {LARGEST}")
        return found

    def number(self, field: str) -> float:
        """A positive number."""
        return self.positive(field, self.value(field))

    def positive(self, field: str, found: Any) -> float:
        """A value as a positive number."""
        real = isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)
        if not real or found <= 0:
            raise self.wrong(field, f"is {found!r}, not a positive number")
        return float(found)

    def tokens(self, field: str, found: Any) -> tuple[int, ...]:
        """One token's number or a list of them, each in the vocabulary."""
        if found is None:
            raise self.wrong(field, "is missing")
        listed = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        if not listed:
            raise self.wrong(field, "names no token")
        size = self.integer("vocabulary")
        for token in listed:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
                raise self.wrong(field, f"is {found!r}, not tokens of a vocabulary of {size}")
        return tuple(listed)

    def check(self, fixed: Mapping[str, Any], known: Callable[[str], bool]) -> None:
        """Goes through all keys, and refuses by name what this network does not compute.

        Args:
            fixed: key -> the one value that it may have.
            known: whether a key that is not fixed is read, or changes nothing.
        """
        for key, found in self.given.items():
            if key in fixed:
                only = fixed[key]
                unused = found is None or (only is None and not found)
                if not unused and found != only:
                    raise self.wrong(key, _refusal(key, found, only))
            elif not known(key) and found not in (None, False, "", [], {}):
                what = "is a key that is not known here: it may change what the network computes"
                raise self.wrong(key, what, "remove it where it changes nothing")


def _refusal(key: str, found: Any, only: Any) -> str:
    if key == "quantization_config":
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
        return f"says that the weights are quantized ({method}); give the model in float or as .gguf"
    if key == "quantization":
        return "says that the weights are quantized by MLX; give the model in float or as .gguf"
    if key == "auto_map":
        return "names Python code of the folder's own, which is never run; give a plain Gemma 3"
    return f"is {found!r}; Gemma 3 has {only!r}"


def known_hf(key: str) -> bool:
    """Whether a key of config.json is read, or changes nothing."""
    read = key in ALSO_HF or any(key == each.hf for each in COMPUTED.values())
    return read or key in WITHOUT_EFFECT_HF or key.startswith(NOTES_HF)


def known_gguf(key: str) -> bool:
    """Whether a key of a GGUF file's metadata is read, or changes nothing."""
    if not key.startswith(PREFIX):
        return True
    read = key in ALSO_GGUF or key in SAME_GGUF or any(key == each.gguf for each in COMPUTED.values())
    return read or key in WITHOUT_EFFECT_GGUF
