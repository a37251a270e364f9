"""What a Gemma 3 text network looks like: read from a model's own file, and checked before any tensor is.

Source of the presets: the Gemma 3 report, arXiv 2503.19786, and the published configurations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paredown.apps.chat.network.keys import (
    FIXED_GGUF,
    FIXED_HF,
    NESTED_SIZES,
    SAME_GGUF,
    Keys,
    known_gguf,
    known_hf,
)
from paredown.targets.errors import InputError

#: Every sixth layer is global unless the file says otherwise.
_PATTERN = 6
_NEAR, _FAR = "sliding_attention", "full_attention"
#: GGUF's further ends of a text: of a turn, and of a message.
_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_SCALING, _OLD_FACTOR = "gemma3.rope.scaling.type", "gemma3.rope.scale_linear"


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
    """Rows of the embedding, and of the output layer."""
    max_positions: int
    """The longest context that it was trained for."""
    rope_local: float = 1e4
    """Base of the rotary embedding of local layers."""
    rope_global: float = 1e6
    """Base of the rotary embedding of global layers."""
    rope_factor: float = 1.0
    """Positions of global layers are divided by this (linear scaling; 8 from 4B upward)."""
    rope_factor_local: float = 1.0
    """Positions of local layers are divided by this."""
    eps: float = 1e-6
    """Of every RMSNorm."""
    query_pre_attn_scalar: float = 256
    """Scores are divided by the square root of this."""
    bos: int = 2
    """The token every text starts with."""
    eos: tuple[int, ...] = (1,)
    """The tokens that end a text."""
    tied: bool = True
    """Whether the output layer's weight is the embedding's."""

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

    The ends of a text are those of generation_config.json too, as `generate` of transformers stops at them.

    Raises:
        InputError: there is none, it is no JSON object, another architecture, or a key is missing or has a
            value that this network cannot have; the line names file and key.
    """
    path = folder / "config.json"
    config = hf_config(read_object(path), path)
    path = folder / "generation_config.json"
    if not path.exists():
        return config
    ends = read_object(path).get("eos_token_id")
    if ends is None:
        return config
    named = {"vocab_size": config.vocabulary, "eos_token_id": ends}
    further = Keys(named, path, gguf=False).tokens("eos", ends)
    return replace(config, eos=tuple(dict.fromkeys((*config.eos, *further))))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        given = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where=path) from error
    if not isinstance(given, dict):
        raise InputError("not a JSON object", where=path)
    return given


def hf_config(given: Mapping[str, Any], where: object) -> GemmaConfig:
    """The parsed config.json as ours; raises as `read_hf_config`."""
    text = given.get("text_config")
    nested = isinstance(text, dict)
    table: Mapping[str, Any] = text if isinstance(text, dict) else given
    kind = given.get("model_type")
    if kind != ("gemma3" if nested else "gemma3_text"):
        raise InputError(f"model_type is {kind!r}, not 'gemma3_text'", where=where, hint="give a Gemma 3")
    Keys(given, where, gguf=False).check(FIXED_HF, known_hf)
    Keys(table, where, gguf=False).check(FIXED_HF, known_hf)
    near, far = _hf_rope(table, where)
    bases = {"rope_theta": far.pop("rope_theta", None), "rope_local_base_freq": near.pop("rope_theta", None)}
    flat = {**table, **{key: base for key, base in bases.items() if base is not None}}
    flat.setdefault("eos_token_id", given.get("eos_token_id"))
    keys = Keys(flat, where, gguf=False, sizes=NESTED_SIZES if nested else None)
    factors = (_hf_factor(rope, keys) for rope in (far, near))
    return _build(keys, _hf_pattern(keys), keys.value("eos"), *factors)


def gguf_config(metadata: Mapping[str, Any], vocabulary: int, where: object) -> GemmaConfig:
    """A GGUF file's metadata as ours: key to number, string or list, beside the embedding's rows.

    Raises:
        InputError: another architecture, or a key is missing, or has a value that this network cannot have,
            or is not known; the line names file and key.
    """
    kind = metadata.get("general.architecture")
    if kind != "gemma3":
        raise InputError(
            f"general.architecture is {kind!r}, not 'gemma3'", where=where, hint="give a Gemma 3"
        )
    given = {"gemma3.vocab_size": vocabulary, **metadata}
    keys = Keys(given, where, gguf=True)
    if (stated := keys.integer("vocabulary")) != vocabulary:
        raise keys.wrong("vocabulary", f"is {stated}, and the embedding has {vocabulary} rows")
    keys.check(FIXED_GGUF, known_gguf)
    for key, field in SAME_GGUF.items():
        if (found := given.get(key)) not in (None, keys.integer(field)):
            raise keys.wrong(key, f"is {found!r}, and `{keys.name(field)}` {keys.integer(field)}")
    ends = [keys.value("eos")]
    ends += [given[key] for key in _ENDS if given.get(key) is not None]
    return _build(keys, _gguf_pattern(keys), list(dict.fromkeys(ends)), _gguf_factor(keys), 1.0)


def _build(keys: Keys, local: tuple[bool, ...], eos: Any, far: float, near: float) -> GemmaConfig:
    heads, kv_heads, head_dim = (keys.integer(field) for field in ("heads", "kv_heads", "head_dim"))
    width = keys.integer("width")
    if heads % kv_heads:
        raise keys.wrong("kv_heads", f"is {kv_heads}, no divisor of {keys.name('heads')} = {heads}")
    if head_dim % 2:
        raise keys.wrong("head_dim", f"is {head_dim}, which rotary embeddings cannot halve")
    scalar = float(head_dim)
    if keys.name("query_pre_attn_scalar"):
        scalar = keys.number("query_pre_attn_scalar")
    elif len(local) == 62:  # GGUF does not tell; llama.cpp knows the 27B, which has another, by its layers
        scalar = width / heads
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
        rope_factor=far,
        rope_factor_local=near,
        eps=keys.number("eps"),
        query_pre_attn_scalar=scalar,
        bos=keys.tokens("bos", keys.value("bos"))[0],
        eos=keys.tokens("eos", eos),
    )


def _hf_pattern(keys: Keys) -> tuple[bool, ...]:
    layers, kinds = keys.integer("layers"), keys.given.get("layer_types")
    if kinds is None:
        named = ("sliding_window_pattern", "_sliding_window_pattern")
        key = next((name for name in named if keys.given.get(name) is not None), None)
        return five_to_one(layers, keys.integer(key) if key else _PATTERN)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise keys.wrong("local", f"does not name one kind for each of {layers} layers")
    for kind in kinds:
        if kind not in (_NEAR, _FAR):
            raise keys.wrong("local", f"names {kind!r}, not {_NEAR} or {_FAR}")
    return tuple(kind == _NEAR for kind in kinds)


def _gguf_pattern(keys: Keys) -> tuple[bool, ...]:
    """A period, or a list that says of each layer whether it is local, as llama.cpp reads it."""
    layers, found = keys.integer("layers"), keys.given.get(keys.name("local"))
    if found is None:
        return five_to_one(layers)
    if not isinstance(found, list):
        return five_to_one(layers, keys.integer("local"))
    if len(found) != layers or any(each not in (False, True) for each in found):
        raise keys.wrong("local", f"does not say of each of {layers} layers whether it is local")
    return tuple(map(bool, found))


def _hf_rope(table: Mapping[str, Any], where: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file says of the rotary embedding of local layers, and of global ones.

    Up to transformers 4 the bases are keys of their own beside rope_scaling, which is of global layers; from
    5 on there is rope_parameters, one table for each kind of layer, into which it puts a rope_scaling.
    """
    kinds = table.get("rope_parameters") or {}
    scaling = table.get("rope_scaling") or {}
    if not isinstance(kinds, dict) or kinds.keys() - {_NEAR, _FAR}:
        raise InputError(f"`rope_parameters` has other entries than {_NEAR} and {_FAR}", where=where)
    near, far = (kinds.get(kind) or {} for kind in (_NEAR, _FAR))
    if not all(isinstance(each, dict) for each in (near, far, scaling)):
        raise InputError("`rope_parameters` or `rope_scaling` is no table", where=where)
    return dict(near), {**far, **scaling}


def _hf_factor(rope: Mapping[str, Any], keys: Keys) -> float:
    """By what positions are divided; `rope` is without its base."""
    if "type" in rope and rope["type"] != rope.get("rope_type"):
        what = f"has the old key `type` ({rope['type']!r}), which transformers 4 reads and 5 does not"
        raise keys.wrong("rope_factor", what, "write `rope_type`")
    kind = rope.get("rope_type") or "default"
    if kind not in ("default", "linear"):
        raise keys.wrong("rope_factor", f"is {kind!r}; Gemma 3 has 'default' and 'linear'")
    if others := {key for key in rope if rope[key] is not None} - {"rope_type", "type", "factor"}:
        raise keys.wrong("rope_factor", f"has `{min(others)}`, which {kind!r} does not use")
    factor = rope.get("factor")
    if kind == "default" and factor is not None:
        raise keys.wrong("rope_factor", f"has a factor of {factor!r} and no `rope_type`", 'write "linear"')
    return 1.0 if kind == "default" else keys.positive("rope_factor", factor)


def _gguf_factor(keys: Keys) -> float:
    """By what positions are divided: a factor without a type is linear, 0 is none; llama.cpp reads it so."""
    kind = keys.given.get(_SCALING, "linear")
    if kind not in ("none", "linear"):
        raise keys.wrong(_SCALING, f"is {kind!r}; Gemma 3 has 'none' and 'linear'")
    key = next((key for key in (keys.name("rope_factor"), _OLD_FACTOR) if keys.given.get(key)), None)
    return 1.0 if kind == "none" or key is None else keys.positive(key, keys.given[key])
