"""Trains the tiny Gemma 3 that ships with paredown: `python -m paredown.apps.chat.train_tiny FOLDER`.

Some 0.7 million parameters and 1,024 tokens, learned from the topics of Python's help: enough to try every
command without a download, and to test with. FOLDER gets config.json, model.safetensors (bfloat16) and
tokenizer.json, as a Hugging Face folder has them; a killed training goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from paredown.apps.chat.network.cache import empty_cache
from paredown.apps.chat.network.config import GemmaConfig
from paredown.apps.chat.network.network import Gemma
from paredown.apps.chat.texts import pydoc_text
from paredown.pipeline.compress.training.loop import decayed_groups, descend, fit, learning_rate
from paredown.pipeline.store.checkpoint import load_run, save_checkpoint
from paredown.pipeline.store.store import write_atomic

VOCABULARY = 1024
TINY = GemmaConfig(
    local=(True, True, True, True, True, False), width=96, ffn=256, heads=4, kv_heads=1, head_dim=32,
    window=32, vocabulary=VOCABULARY, max_positions=512, query_pre_attn_scalar=32,
)  # fmt: skip
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
LENGTH = 128  # tokens of a piece


@dataclass(frozen=True)
class LearningRateSchedule:
    """How long and how fast it learns."""

    steps: int = 500
    batch: int = 16
    lr: float = 3e-3
    warmup: int = 50
    last_lr: float = 0.02
    weight_decay: float = 0.1
    seed: int = 0


def train_tokenizer(text: str) -> str:
    """A tokenizer.json of Gemma's make-up: byte fallback, spaces as a letter of their own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    orders = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    known = [*orders, *(f"<0x{byte:02X}>" for byte in range(256))]
    # words with the space before them: what a merge must not go beyond
    words = [part if i == 0 else f" {part}" for line in text.splitlines(keepends=True)
             for i, part in enumerate(line.split(" "))]  # fmt: skip
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=known, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [t for t in made["added_tokens"] if t["content"] in SPECIAL]  # bytes are no orders
    return json.dumps(made, ensure_ascii=False, separators=(",", ":"))


def run_whole(network: Gemma, tokens: Tensor) -> Tensor:
    """Logits of pieces (N, T) side by side, though the network takes one at a time: (N, T, vocabulary)."""
    positions = torch.arange(tokens.shape[1])
    cache = empty_cache(network.config, tokens.shape[1], tokens.shape[1])
    return torch.vmap(lambda piece: network(piece[None], positions, cache)[0][0])(tokens)


class _Training:
    """AdamW on random pieces of the text."""

    def __init__(self, network: Gemma, ids: Tensor, schedule: LearningRateSchedule) -> None:
        self.network, self.ids, self.schedule = network, ids, schedule
        self.step, self.steps, self.loss = 0, schedule.steps, math.nan
        groups = decayed_groups(network, schedule.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.95))
        self.identity = repr((network.config, schedule))

    def advance(self) -> float:
        """Takes a step, gives the loss."""
        chance = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + self.step)
        starts = torch.randint(0, len(self.ids) - LENGTH, (self.schedule.batch,), generator=chance)
        pieces = torch.stack([self.ids[start : start + LENGTH + 1] for start in starts])
        pieces[:, 0] = self.network.config.bos
        logits = run_whole(self.network, pieces[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
        rate = learning_rate(self.schedule, self.step, self.steps)
        self.loss = descend(loss, self.optimizer, self.network.parameters(), clip=1.0, rate=rate)
        self.step += math.isfinite(self.loss)
        return self.loss

    def save(self, path: Path) -> None:
        """Writes everything that a resumed run needs."""
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_checkpoint(path, {**state, "step": self.step, "identity": self.identity})

    def resume(self, path: Path) -> None:
        """Goes on from what `save` wrote."""
        state = load_run(path, self.identity)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def train(network: Gemma, ids: Tensor, schedule: LearningRateSchedule, checkpoint: Path) -> None:
    """Trains the network in place; a killed run goes on from its checkpoint."""
    training = _Training(network, ids, schedule)
    if checkpoint.exists():
        training.resume(checkpoint)
    fit(
        training, where="train_tiny", lr=schedule.lr, every=50, checkpoint=checkpoint,
        look=lambda: print(f"step {training.step}: loss {training.loss:.3f}", flush=True),
    )  # fmt: skip


def hf_config(config: GemmaConfig) -> dict[str, object]:
    """A config.json."""
    kinds = ["sliding_attention" if local else "full_attention" for local in config.local]
    return {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "torch_dtype": "bfloat16",
        "num_hidden_layers": config.layers, "hidden_size": config.width, "intermediate_size": config.ffn,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim, "sliding_window": config.window, "layer_types": kinds,
        "vocab_size": config.vocabulary, "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.eps, "query_pre_attn_scalar": config.query_pre_attn_scalar,
        "rope_theta": config.rope_global, "rope_local_base_freq": config.rope_local,
        "bos_token_id": config.bos, "eos_token_id": list(config.eos), "pad_token_id": 0,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=LearningRateSchedule.steps)
    arguments = parser.parse_args()
    from tokenizers import Tokenizer

    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(pydoc_text("train"))
    write_atomic(folder / "tokenizer.json", tokenizer.encode())
    encode = Tokenizer.from_str(tokenizer).encode
    ids, held = (torch.tensor(encode(pydoc_text(split)).ids) for split in ("train", "calibration"))
    network = Gemma(TINY)
    for matrix in (m for m in network.parameters() if m.ndim > 1):
        torch.nn.init.normal_(matrix, std=0.02)
    torch.nn.init.normal_(network.model.embed_tokens.weight, std=TINY.width**-0.5)
    train(network, ids, LearningRateSchedule(steps=arguments.steps), folder / "checkpoint.pt")
    with torch.inference_mode():
        pieces = held[: len(held) // LENGTH * LENGTH].view(-1, LENGTH)[:40]
        loss = F.cross_entropy(run_whole(network, pieces)[:, :-1].flatten(0, 1), pieces[:, 1:].flatten())
    print(f"{len(ids)} tokens; perplexity on held-out topics {math.exp(loss):.2f} per token")
    state = {n: t.bfloat16().contiguous() for n, t in network.state_dict().items() if n != "lm_head.weight"}
    save_file(state, folder / "model.safetensors")
    write_atomic(folder / "config.json", (json.dumps(hf_config(TINY), indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
