"""A language model that repeats what it is told, and a small tokenizer of Gemma's make-up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paredown.apps.chat.device.tokens.tokens import Tokens

ROOT = Path(__file__).parents[2]
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")


def small_tokenizer(size: int = 700) -> str:
    """The `tokenizer.json` of a small vocabulary, of this project's own words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, special_tokens=[*SPECIAL, *(f"<0x{n:02X}>" for n in range(256))]
    )
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in range(1, 5)])
    document = json.loads(tokenizer.to_str())
    for token in document["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(document)


class Echo:
    """Answers a turn with its own words, a bare text with itself; or with what it is given to say.

    Attributes:
        read: every token since the last reset.
        fed: lengths of what it was fed at a time.
        resets: how often it forgot.
    """

    def __init__(self, tokens: Tokens, context: int = 256, chunk: int = 16) -> None:
        self.vocabulary, self.context, self.chunk = tokens.size, context, chunk
        self.read: list[int] = []
        self.fed: list[int] = []
        self.resets = 0
        self.says: Callable[[list[int]], Sequence[int]] = lambda turn: turn
        self.delay_s = 0.0
        self.fails_at: int | None = None
        (self._end, _), (self._start, *self._user) = tokens.turn_end, tokens.user_turn("")
        self._user = self._user[: self._user.index(self._end)]
        self._model = tokens.encode("model\n")

    @property
    def position(self) -> int:
        return len(self.read)

    def reset(self) -> None:
        self.read.clear()
        self.resets += 1

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        assert 1 <= len(tokens) <= self.chunk and all(0 <= token < self.vocabulary for token in tokens)
        if len(self.read) + len(tokens) > self.context:
            raise ValueError(f"{len(tokens)} tokens after {len(self.read)} of {self.context}")
        time.sleep(self.delay_s)
        self.read += tokens
        self.fed.append(len(tokens))
        if self.fails_at is not None and self.position >= self.fails_at:
            raise RuntimeError("the runtime failed")
        logits = np.zeros(self.vocabulary, np.float32)
        logits[self._next()] = 20
        return logits

    def prefill(self, tokens: Sequence[int]) -> None:
        self.feed(tokens)

    def _next(self) -> int:
        said = self._said()
        if said is None:
            return self._end
        turn, answer = said
        wanted = [*self.says(turn), self._end]
        return wanted[len(answer) % len(wanted)]

    def _said(self) -> tuple[list[int], list[int]] | None:
        """The last turn of the user, and the model's so far; None in the middle of a prompt."""
        heads = [i for i, token in enumerate(self.read) if token == self._start]
        if len(heads) < 2:
            return None
        user, model = self.read[heads[-2] + 1 : heads[-1]], self.read[heads[-1] + 1 :]
        if model[: len(self._model)] != self._model:
            return None
        return user[len(self._user) : user.index(self._end)], model[len(self._model) :]
