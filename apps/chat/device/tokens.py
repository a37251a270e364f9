"""Text to tokens and back, as Gemma's tokenizers do it, by `tokenizers`; runs on the board.

What a user types can spell no control token: special tokens are set by `user_turn` alone. Tokens become bytes
before they become text, so a stream of them is cut between characters and never within one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer

from targets.errors import InputError

BOS, EOS = "<bos>", "<eos>"
START, END = "<start_of_turn>", "<end_of_turn>"
_SPACE = "▁"  # what a vocabulary has for a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_DECODERS = ("Replace", "ByteFallback", "Fuse")


class Tokens:
    """A tokenizer of Gemma's make-up: BPE over text whose spaces are replaced, with a token for each byte.

    Args:
        data: a `tokenizer.json`.
        where: names it in errors.

    Attributes:
        size: entries of the vocabulary; what was added beyond it is no business of a text model.
        bos: what every prompt starts with.
        ends: what ends an answer.
        has_turns: whether it knows the turns of a chat.
        turn_end: what follows an answer where the chat goes on.

    Raises:
        InputError: it is no such tokenizer.
    """

    def __init__(self, data: bytes, where: object = "tokenizer.json") -> None:
        """Reads it."""
        self._where = where
        try:
            self._tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # `tokenizers` raises no narrower class
            raise InputError(f"no tokenizer: {error}", where=where) from error
        kinds = _decoders(self._tokenizer)
        if kinds != _DECODERS:
            what = (
                f"decodes by {', '.join(kinds) or 'nothing'}, not by {', '.join(_DECODERS)} as Gemma's does"
            )
            raise InputError(what, where=where)
        self._tokenizer.encode_special_tokens = True  # in a user's text they are text
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.bos = self._id(BOS)
        ends = {self._id(EOS)}
        self.has_turns = None not in map(self._tokenizer.token_to_id, (START, END))
        self.turn_end: list[int] = []
        if self.has_turns:
            ends.add(self._id(END))
            self.turn_end = [self._id(END), *self.encode("\n")]
        self.ends = frozenset(ends)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise InputError(
                f"has no {token}", where=self._where, hint="give the tokenizer.json of the model"
            )
        return int(found)

    def check(self, vocabulary: int) -> None:
        """Checks that a model knows every entry.

        Args:
            vocabulary: logits of the model; more than entries are what some models are padded to.

        Raises:
            InputError: it has fewer.
        """
        if self.size > vocabulary:
            what = f"has {self.size} entries and the model {vocabulary}: the tokenizer of another model"
            raise InputError(what, where=self._where)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without `bos`; what looks like a special token is text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def user_turn(self, text: str) -> list[int]:
        """What asks for an answer: the user's turn, trimmed, and the head of the model's; without `bos`.

        Source: the chat template of Gemma 3's instruction-tuned checkpoints.
        """
        head, turn = self._id(START), self.turn_end
        return [head, *self.encode(f"user\n{text.strip()}"), *turn, head, *self.encode("model\n")]

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; nothing where it is special, or no token at all."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._special:
            return b""
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return str(piece).replace(_SPACE, " ").encode()

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")


def _decoders(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The kinds of its decoders, in order; of the document they take only this part is parsed here."""
    if tokenizer.decoder is None:
        return ()
    decoder = json.loads(tokenizer.decoder.__getstate__())
    return tuple(part["type"] for part in decoder.get("decoders", [decoder]))


class Detokenizer:
    """The text of tokens as they come.

    Args:
        tokens: the tokenizer.
    """

    def __init__(self, tokens: Tokens) -> None:
        """Starts with no token."""
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, token: int) -> str:
        """The text that is certain by now; of a character whose bytes are still to come, nothing."""
        return self._decoder.decode(self._tokens.bytes_of(token))

    def finish(self) -> str:
        """What is left: U+FFFD where a character was not completed."""
        return self._decoder.decode(b"", final=True)
