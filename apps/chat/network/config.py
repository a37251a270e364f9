"""What a Gemma 3 text network looks like: read from a model's own file, and checked before any tensor is.

Source of the presets: the Gemma 3 report, arXiv 2503.19786, and the published configurations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.targets.errors import InputError

#: config.json's and GGUF's keys for the same number.
_HF = {
    "layers": "num_hidden_layers", "width": "hidden_size", "ffn": "intermediate_size",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "window": "sliding_window", "vocabulary": "vocab_size", "max_positions": "max_position_embeddings",
    "eps": "rms_norm_eps", "query_pre_attn_scalar": "query_pre_attn_scalar",
    "rope_global": "rope_theta", "rope_local": "rope_local_base_freq", "bos": "bos_token_id",
}  # fmt: skip
_GGUF = {
    "layers": "gemma3.block_count", "width": "gemma3.embedding_length", "ffn": "gemma3.feed_forward_length",
    "heads": "gemma3.attention.head_count", "kv_heads": "gemma3.attention.head_count_kv",
    "head_dim": "gemma3.attention.key_length", "window": "gemma3.attention.sliding_window",
    "vocabulary": "gemma3.vocab_size", "max_positions": "gemma3.context_length",
    "eps": "gemma3.attention.layer_norm_rms_epsilon", "rope_global": "gemma3.rope.freq_base",
    "rope_local": "gemma3.rope.freq_base_swa", "bos": "tokenizer.ggml.bos_token_id",
}  # fmt: skip
#: What transformers' Gemma3TextConfig means by a key that is not there. The text_config of a model with
#: vision omits all of these; the text-only models' files omit none of the first four.
_SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208}
_DEFAULTS = {
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    "rope_theta": 1e6, "rope_local_base_freq": 1e4, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
#: Every sixth layer is global unless the file says otherwise.
_PATTERN = 6
_LARGEST = 1 << 24  # of any size: a forged number must not ask for all memory


def five_to_one(layers: int, pattern: int = _PATTERN) -> tuple[bool, ...]:
    """Which layers are local: all but every `pattern`-th, local first."""
    return tuple(bool((layer + 1) % pattern) for layer in range(layers))


@dataclass(frozen=True)
class GemmaConfig:
    """The numbers of one Gemma 3 text network."""

    local: tuple[bool, ...]
    """For each layer, whether it sees the last `window` positions only."""
    width: int
    """Of the residual stream."""
    ffn: int
    """Of the feed-forward layers."""
    heads: int
    """Of queries."""
    kv_heads: int
    """Of keys and values; a divisor of `heads`."""
    head_dim: int
    """Of one head; even."""
    window: int
    """How many positions a local layer sees, its own included."""
    vocabulary: int
    """Rows of the embedding, which is the output layer too."""
    max_positions: int
    """The longest context that it was trained for."""
    rope_local: float = 1e4
    """Base of the rotary embedding of local layers."""
    rope_global: float = 1e6
    """Base of the rotary embedding of global layers."""
    rope_factor: float = 1.0
    """Positions of global layers are divided by this (linear scaling; 8 from 4B upward)."""
    eps: float = 1e-6
    """Of every RMSNorm."""
    query_pre_attn_scalar: float = 256
    """Scores are divided by the square root of this."""
    bos: int = 2
    """The token every text starts with."""
    eos: tuple[int, ...] = (1,)
    """The tokens that end a text."""

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.local)

    @property
    def groups(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.kv_heads


GEMMA3_270M = GemmaConfig(
    local=(True, True, True, True, True, False) * 3,
    width=640, ffn=2048, heads=4, kv_heads=1, head_dim=256, window=512, vocabulary=262_144,
    max_positions=32_768,
)  # fmt: skip
GEMMA3_1B = GemmaConfig(
    local=(True, True, True, True, True, False) * 4 + (True, True),
    width=1152, ffn=6912, heads=4, kv_heads=1, head_dim=256, window=512, vocabulary=262_144,
    max_positions=32_768,
)  # fmt: skip


def read_hf_config(folder: Path) -> GemmaConfig:
    """Reads a Hugging Face folder's config.json: Gemma3TextConfig, or one that holds it as text_config.

    Raises:
        InputError: there is none, it is no JSON object, another architecture, or a key is missing or has a
            value that this network cannot have; the line names file and key.
    """
    path = folder / "config.json"
    try:
        given = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the configuration: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where=path) from error
    if not isinstance(given, dict):
        raise InputError("not a JSON object", where=path)
    return hf_config(given, path)


def hf_config(given: Mapping[str, Any], where: object) -> GemmaConfig:
    """The parsed config.json as ours; raises as `read_hf_config`."""
    text = given.get("text_config")
    nested = isinstance(text, dict)
    table: Mapping[str, Any] = text if isinstance(text, dict) else given
    kind = given.get("model_type")
    if kind != ("gemma3" if nested else "gemma3_text"):
        raise InputError(f"model_type is {kind!r}, not 'gemma3_text'", where=where, hint="give a Gemma 3")
    keys = _Keys(_hf_rope(table, where), where, _HF, {**_DEFAULTS, **(_SIZES if nested else {})})
    for key, only in (
        ("attention_bias", False), ("attn_logit_softcapping", None), ("final_logit_softcapping", None),
        ("use_bidirectional_attention", False), ("hidden_activation", "gelu_pytorch_tanh"),
        ("tie_word_embeddings", True),
    ):  # fmt: skip
        if (found := table.get(key, only)) != only and found is not None:
            raise keys.wrong(key, f"is {found!r}; Gemma 3 has {only!r}")
    eos = table.get("eos_token_id", given.get("eos_token_id", _DEFAULTS["eos_token_id"]))
    return _build(keys, _hf_pattern(keys), keys.tokens("eos_token_id", eos), keys.number("rope_factor"))


def gguf_config(metadata: Mapping[str, Any], vocabulary: int, where: object) -> GemmaConfig:
    """A GGUF file's metadata as ours: key to number or string, beside the embedding's rows.

    Raises:
        InputError: another architecture, or a key is missing or has a value that this network cannot have;
            the line names file and key.
    """
    kind = metadata.get("general.architecture")
    if kind != "gemma3":
        raise InputError(
            f"general.architecture is {kind!r}, not 'gemma3'", where=where, hint="give a Gemma 3"
        )
    factor = 1.0
    if metadata.get("gemma3.rope.scaling.type", "none") == "linear":
        factor = metadata.get("gemma3.rope.scaling.factor", 1.0)
    given = {
        **metadata,
        "gemma3.vocab_size": vocabulary,
        "rope_factor": factor,
    }
    keys = _Keys(given, where, _GGUF, {"gemma3.rope.freq_base_swa": 1e4, "gemma3.rope.freq_base": 1e6})
    layers = keys.integer("layers")
    eos = keys.tokens("tokenizer.ggml.eos_token_id", metadata.get("tokenizer.ggml.eos_token_id"))
    if (end := metadata.get("tokenizer.ggml.eot_token_id")) is not None:
        eos = tuple(dict.fromkeys((*eos, *keys.tokens("tokenizer.ggml.eot_token_id", end))))
    return _build(keys, five_to_one(layers), eos, keys.number("rope_factor"))


class _Keys:
    """A file's keys, by our name for them, each checked when it is asked for."""

    def __init__(
        self, given: Mapping[str, Any], where: object, names: Mapping[str, str], defaults: Mapping[str, Any]
    ) -> None:
        self.given, self.where, self.names, self.defaults = given, where, names, defaults

    def wrong(self, key: str, what: str) -> InputError:
        return InputError(f"`{key}` {what}", where=self.where)

    def value(self, field: str) -> tuple[str, Any]:
        key = self.names.get(field, field)
        found = self.given.get(key, self.defaults.get(key))
        if found is None:
            raise self.wrong(key, "is missing")
        return key, found

    def integer(self, field: str, least: int = 1) -> int:
        key, found = self.value(field)
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= _LARGEST:
            raise self.wrong(key, f"is {found!r}, not a whole number from {least} to {_LARGEST}")
        return found

    def number(self, field: str) -> float:
        key, found = self.value(field)
        real = isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)
        if not real or found <= 0:
            raise self.wrong(key, f"is {found!r}, not a positive number")
        return float(found)

    def tokens(self, key: str, found: Any) -> tuple[int, ...]:
        """One token's number or a list of them, each in the vocabulary."""
        if found is None:
            raise self.wrong(key, "is missing")
        listed = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        size = self.integer("vocabulary")
        for token in listed:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
                raise self.wrong(key, f"is {found!r}, not tokens of a vocabulary of {size}")
        return tuple(listed)


def _build(keys: _Keys, local: tuple[bool, ...], eos: tuple[int, ...], factor: float) -> GemmaConfig:
    heads, kv_heads, head_dim = (keys.integer(field) for field in ("heads", "kv_heads", "head_dim"))
    width = keys.integer("width")
    if heads % kv_heads:
        raise keys.wrong(
            keys.names["kv_heads"], f"is {kv_heads}, no divisor of {keys.names['heads']} = {heads}"
        )
    if head_dim % 2:
        raise keys.wrong(keys.names["head_dim"], f"is {head_dim}, which rotary embeddings cannot halve")
    scalar = float(head_dim)
    if "query_pre_attn_scalar" in keys.names:
        scalar = keys.number("query_pre_attn_scalar")
    elif len(local) == 62:  # GGUF does not tell; llama.cpp knows the 27B, which has another, by its layers
        scalar = width / heads
    key, bos = keys.value("bos")
    return GemmaConfig(
        local=local,
        width=width,
        ffn=keys.integer("ffn"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=keys.integer("window"),
        vocabulary=keys.integer("vocabulary"),
        max_positions=keys.integer("max_positions"),
        rope_local=keys.number("rope_local"),
        rope_global=keys.number("rope_global"),
        rope_factor=factor,
        eps=keys.number("eps"),
        query_pre_attn_scalar=scalar,
        bos=keys.tokens(key, bos)[0],
        eos=eos,
    )


def _hf_pattern(keys: _Keys) -> tuple[bool, ...]:
    layers, kinds = keys.integer("layers"), keys.given.get("layer_types")
    if kinds is None:
        named = ("sliding_window_pattern", "_sliding_window_pattern")
        key = next((name for name in named if keys.given.get(name) is not None), None)
        return five_to_one(layers, keys.integer(key) if key else _PATTERN)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise keys.wrong("layer_types", f"does not name one kind for each of {layers} layers")
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise keys.wrong("layer_types", f"names {kind!r}, not sliding_attention or full_attention")
    return tuple(kind == "sliding_attention" for kind in kinds)


def _hf_rope(table: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The table with rope_theta, rope_local_base_freq and rope_factor, however this file spells them.

    Up to transformers 4 the bases are keys of their own beside rope_scaling; from 5 on there is
    rope_parameters, one table for each kind of layer.
    """
    flat = dict(table)
    kinds = table.get("rope_parameters") or {}
    whole = kinds.get("full_attention") or table.get("rope_scaling") or {}
    near = kinds.get("sliding_attention") or {}
    for key, found in (
        ("rope_theta", whole.get("rope_theta")),
        ("rope_local_base_freq", near.get("rope_theta")),
    ):
        if found is not None:
            flat[key] = found
    kind = whole.get("rope_type", whole.get("type", "default"))
    if kind not in ("default", "linear"):
        raise InputError(f"rope scaling is {kind!r}; Gemma 3 has 'default' and 'linear'", where=where)
    flat["rope_factor"] = whole.get("factor", 1.0) if kind == "linear" else 1.0
    return flat
