"""Tiny random Gemmas of transformers', and their files: the oracle of the chat's network and loaders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from paredown.apps.chat.network.config import hf_config
from paredown.apps.chat.network.network import Gemma

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8,
    "query_pre_attn_scalar": 24, "max_position_embeddings": 4096,
}  # fmt: skip


def oracle(seed: int = 0, **changed: object) -> Gemma3ForCausalLM:
    """A network of transformers' whose norms, too, are not what they begin with."""
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{**SIZES, **changed})).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def ours(model: Gemma3ForCausalLM) -> Gemma:
    network = Gemma(hf_config(model.config.to_dict(), "tiny")).eval().requires_grad_(False)
    network.load_state_dict(model.state_dict())
    return network


def save_hf(model: Gemma3ForCausalLM, folder: Path, shard: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def save_gguf(model: Gemma3ForCausalLM, path: Path, kind: str = "F32", **changed: object) -> Path:
    """What llama.cpp's converter makes of it: its names, norms with 1 added, matrices in one format."""
    import gguf

    config = model.config
    order = gguf.GGUFEndian.BIG if changed.pop("big_endian", False) else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, str(changed.pop("arch", "gemma3")), endianess=order)
    if template := changed.pop("template", None):
        writer.add_chat_template(str(template))
    names_of, types_of = changed.pop("pieces", {}), changed.pop("types", {})
    tokenizer = str(changed.pop("tokenizer", "llama"))
    more, head = changed.pop("more", None), changed.pop("head", False)
    if callable(more):
        more(writer)
    numbers = {
        "gemma3.context_length": config.max_position_embeddings,
        "gemma3.block_count": config.num_hidden_layers,
        "gemma3.embedding_length": config.hidden_size, "gemma3.feed_forward_length": config.intermediate_size,
        "gemma3.attention.head_count": config.num_attention_heads,
        "gemma3.attention.head_count_kv": config.num_key_value_heads,
        "gemma3.attention.key_length": config.head_dim, "gemma3.attention.value_length": config.head_dim,
        "gemma3.attention.sliding_window": config.sliding_window, "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0, **changed,
    }  # fmt: skip
    for key, value in numbers.items():
        if value is not None:
            writer.add_uint32(key, int(value))
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("gemma3.rope.freq_base", 1e6)
    names = {
        "model.embed_tokens": "token_embd", "lm_head": "output",
        "model.norm": "output_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "post_attention_norm",
        "input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm", "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and not head:
            continue
        for theirs, llama in names.items():
            name = name.replace(theirs, llama)
        values = tensor.numpy().astype(np.float32)
        if name.endswith("norm.weight"):
            writer.add_tensor(name, values + 1)
        else:
            quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
            writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType[kind])
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"w{n}" for n in range(config.vocab_size - 4))]
    types = [3] * 4 + [1] * (len(pieces) - 4)
    for number, piece in dict(names_of).items():
        pieces[number] = piece
    for number, kind_of in dict(types_of).items():
        types[number] = kind_of
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def edit_config(folder: Path, **changed: object) -> None:
    """Changes keys of a config.json; None takes one out."""
    path = folder / "config.json"
    table = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))
