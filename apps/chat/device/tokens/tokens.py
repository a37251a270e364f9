"""Text to tokens and back, as Gemma's tokenizers do it; runs on the board, with numpy.

What a user types can spell no control token: special tokens are set by `user_turn` alone. Tokens become bytes
before they become text, so a stream of them is cut between characters and never within one.
"""

from __future__ import annotations

import bisect
import codecs
import copy
import heapq
import io
import json
from collections.abc import Collection, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from paredown.apps.chat.device.tokens.turns import Part, Turns
from paredown.targets.errors import InputError

BOS, EOS = "<bos>", "<eos>"
START, END = "<start_of_turn>", "<end_of_turn>"
SPACE = "▁"  # what a vocabulary has for a space
ID_BITS = 32  # two tokens in one number: the left one above, the right one below
GONE = -1  # what was joined to its neighbour
MOST = 1 << 24  # entries of a vocabulary
#: What a packed tokenizer holds: kinds of numbers, and axes.
ARRAYS = {
    "text": ("u1", 1), "lengths": ("u2", 1), "letters": ("u4", 1), "letter_ids": ("i4", 1), "left": ("i4", 1),
    "right": ("i4", 1), "merged": ("i4", 1), "byte_ids": ("i4", 1), "size": ("i8", 0), "names": ("u1", 1),
}  # fmt: skip


Ids = NDArray[np.int64]
#: Rank, where, left and right token, and what comes of them.
_Candidate = tuple[int, int, int, int, int]


class Tokens:
    """A tokenizer of Gemma's make-up: BPE over text whose spaces are replaced, with a token for each byte.

    Args:
        data: what `pack_tokens.pack` makes of a `tokenizer.json`.
        where: names it in errors.
        turns: of a chat; Gemma's own where None, if it knows them.
        ends: tokens that end an answer beside Gemma's own.

    Attributes:
        size: entries that a model must know; Gemma's has one for images beyond them.
        bos: what every text starts with that is no chat.
        ends: what ends an answer.
        turns: of a chat; None where it knows none.
        start: what a chat begins with.
        turn_end: what follows an answer where the chat goes on.

    Raises:
        InputError: it is no such tokenizer.
    """

    def __init__(
        self,
        data: bytes,
        where: object = "tokenizer",
        turns: Turns | None = None,
        ends: Collection[int] = (),
    ) -> None:
        try:
            arrays, names = _read(data)
        except Exception as error:  # numpy's reader raises many kinds for a damaged file
            raise InputError(f"no packed tokenizer: {str(error)[:100]}", where=where) from error
        self._text, lengths = arrays["text"].tobytes(), arrays["lengths"]
        self._letters, self._letter_ids = arrays["letters"], arrays["letter_ids"].astype(np.int64)
        self._byte_ids = arrays["byte_ids"].astype(np.int64)
        self._merges = _Merges(arrays["left"], arrays["right"], arrays["merged"])
        self.size = int(arrays["size"])
        self._ends, self._longest = lengths.cumsum(dtype=np.int64), int(lengths.max())
        self._where, self._special = where, names["special"]
        self._added = _Added(names["added"])
        self.bos = self._id(BOS)
        own = {token for name, token in self._special.items() if name in (EOS, END)}
        self.ends = frozenset(own | set(ends))
        self._set_turns(turns or self.own_turns)

    def with_turns(self, turns: Turns) -> Tokens:
        """The same tokenizer with other turns."""
        other = copy.copy(self)
        other._set_turns(turns)
        return other

    def _set_turns(self, turns: Turns | None) -> None:
        self.turns = turns
        self.start = self.encode_parts(self.turns.start) if self.turns else [self.bos]
        self.turn_end = self.encode_parts(self.turns.end) if self.turns else []
        used = (*self.ends, *self.start, *self.turn_end, *(self.user_turn("") if self.turns else ()))
        self.size = max(self.size, 1 + max(used))

    @property
    def own_turns(self) -> Turns | None:
        """Those of Gemma 3's instruction-tuned checkpoints, if the tokenizer knows them."""
        if not {START, END} <= self._special.keys():
            return None
        head, end = self._id(START), self._id(END)
        return Turns((self.bos,), (head, "user\n"), (end, "\n", head, "model\n"), (end, "\n"), True)

    @property
    def special(self) -> dict[str, int]:
        """Every special token, by its name."""
        return dict(self._special)

    def _id(self, name: str) -> int:
        if name not in self._special:
            raise InputError(f"has no special token {name}", where=self._where)
        return int(self._special[name])

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

    def fewest(self, text: str) -> int:
        """Tokens that a text has at least: what has too many need not be encoded to know it."""
        return -(-len(text) // self._longest)  # a character is one byte at least

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without `bos`; what looks like a special token is text."""
        found: list[int] = []
        for piece, token in self._added.split(text):
            found += self._merges.join(self._symbols(piece)) if token is None else [token]
        return found

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """The tokens of texts and tokens one after the other; texts beside each other are one text."""
        found: list[int] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            found += [*self.encode(text), part]
            text = ""
        return [*found, *self.encode(text)]

    def user_turn(self, text: str) -> list[int]:
        """What asks for an answer: the user's turn, and the head of the model's; without `start`.

        Raises:
            InputError: the tokenizer knows no turns.
        """
        if self.turns is None:
            raise InputError("the tokenizer knows no turns of a chat", where=self._where)
        text = text.strip() if self.turns.strip else text
        return self.encode_parts((*self.turns.lead, text, *self.turns.ask))

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; nothing where it is special, or no token at all."""
        if not 0 <= token < len(self._ends):
            return b""
        return self._text[int(self._ends[token - 1]) if token else 0 : int(self._ends[token])]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def _symbols(self, text: str) -> Ids:
        """A token for each character, or several: one for each byte of a character that is none."""
        if not text:
            return np.zeros(0, np.int64)
        letters = np.frombuffer(text.replace(" ", SPACE).encode("utf-32-le", errors="replace"), np.uint32)
        at = np.searchsorted(self._letters, letters).clip(max=len(self._letters) - 1)
        known = self._letters[at] == letters
        parts = [
            self._letter_ids[at[i] : at[i] + 1]
            if known[i]
            else self._byte_ids[list(chr(letters[i]).encode(errors="replace"))]
            for i in range(len(letters))
        ]
        return np.concatenate(parts)


def _read(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """The arrays of a packed tokenizer and its tokens with names, which fit each other.

    Raises:
        Exception: they do not, or cannot be read.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in ARRAYS}
    for name, (kind, axes) in ARRAYS.items():
        if arrays[name].dtype != np.dtype(kind) or arrays[name].ndim != axes:
            raise ValueError(f"{name} is {arrays[name].dtype} of {arrays[name].ndim} axes")
    size, names = int(arrays["size"]), json.loads(arrays["names"].tobytes())
    lengths, letters = arrays["lengths"], arrays["letters"]
    named = [names["added"], names["special"]]
    ids = [arrays[key] for key in ("letter_ids", "left", "right", "merged", "byte_ids")]
    ids += [np.array([_whole(token) for token in each.values()], np.int64) for each in named]
    if not 0 < size <= MOST or not 0 < len(lengths) <= MOST or not int(lengths.max()):
        raise ValueError(f"a vocabulary of {size}")
    if int(lengths.sum(dtype=np.int64)) != len(arrays["text"]) or "" in names["added"]:
        raise ValueError("texts of other lengths")
    if any(each.size and not 0 <= int(each.min()) <= int(each.max()) < MOST for each in ids):
        raise ValueError("tokens beyond the vocabulary")
    pairs = {len(arrays[key]) for key in ("left", "right", "merged")}
    if len(arrays["byte_ids"]) != 256 or len(pairs) > 1 or not 0 < len(letters) == len(arrays["letter_ids"]):
        raise ValueError("arrays of different lengths")
    if np.any(letters[1:] < letters[:-1]):
        raise ValueError("letters out of order")
    return arrays, names


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{str(value)[:20]!r} is no token")
    return value


class _Merges:
    """Which neighbours are joined to one token, and which first: byte pair encoding.

    Args:
        left: (n,) tokens, those of the merge to be done first come first.
        right: (n,).
        merged: (n,), what comes of them.
    """

    def __init__(self, left: Ids, right: Ids, merged: Ids) -> None:
        keys = left.astype(np.int64) << ID_BITS | right
        order = np.argsort(keys, kind="stable")
        self._keys, self._ranks, self._merged = keys[order], order.astype(np.int32), merged[order]
        # The same memory: one number at a time, Python reads it faster so.
        self._key_view: memoryview[int] = self._keys.data
        self._rank_view: memoryview[int] = self._ranks.data
        self._merged_view: memoryview[int] = self._merged.data

    def join(self, symbols: Ids) -> list[int]:
        """Joins neighbours until none can be: always the pair of the lowest rank, of equals the leftmost."""
        count = len(symbols)
        ids: list[int] = symbols.tolist()
        after, before = list(range(1, count + 1)), list(range(-1, count - 1))
        queue = self._all(symbols)
        heapq.heapify(queue)
        while queue:
            _, i, left, right, merged = heapq.heappop(queue)
            j = after[i]
            if ids[i] != left or j >= count or ids[j] != right:
                continue  # one of them was joined to another meanwhile
            ids[i], ids[j] = merged, GONE
            after[i] = after[j]
            if after[j] < count:
                before[after[j]] = i
            for a, b in ((before[i], i), (i, after[i])):
                if a >= 0 and b < count and (found := self._find(ids[a], ids[b])):
                    heapq.heappush(queue, (found[0], a, ids[a], ids[b], found[1]))
        return [token for token in ids if token != GONE]

    def _all(self, symbols: Ids) -> list[_Candidate]:
        """The neighbours that can be joined at first."""
        left, right = symbols[:-1], symbols[1:]
        keys = left << ID_BITS | right
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        (where,) = np.nonzero(self._keys[at] == keys) if len(self._keys) else (at[:0],)
        at = at[where]
        parts = (self._ranks[at], where, left[where], right[where], self._merged[at])
        return list(zip(*(part.tolist() for part in parts), strict=True))

    def _find(self, left: int, right: int) -> tuple[int, int] | None:
        """Rank and result of joining two tokens, if they can be."""
        key = left << ID_BITS | right
        at = bisect.bisect_left(self._key_view, key)
        if at == len(self._key_view) or self._key_view[at] != key:
            return None
        return self._rank_view[at], self._merged_view[at]


class _Added:
    """What is a token wherever it stands in a text, as runs of line ends are; the longest counts."""

    def __init__(self, added: dict[str, int]) -> None:
        self._added = added
        self._firsts = {content[0] for content in added}
        self._lengths = sorted({len(content) for content in added}, reverse=True)

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text, in pieces of it and added tokens."""
        start = i = 0
        while i < len(text):
            found = self._at(text, i)
            if found is None:
                i += 1
                continue
            if start < i:
                yield text[start:i], None
            yield found, self._added[found]
            start = i = i + len(found)
        if start < len(text):
            yield text[start:], None

    def _at(self, text: str, i: int) -> str | None:
        if text[i] not in self._firsts:
            return None
        return next((piece for n in self._lengths if (piece := text[i : i + n]) in self._added), None)


class Detokenizer:
    """The text of tokens as they come.

    Args:
        tokens: the tokenizer.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, token: int) -> str:
        """The text that is certain by now; of a character whose bytes are still to come, nothing."""
        return self._decoder.decode(self._tokens.bytes_of(token))

    def finish(self) -> str:
        """What is left: U+FFFD where a character was not completed."""
        return self._decoder.decode(b"", final=True)
