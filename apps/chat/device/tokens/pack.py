"""A `tokenizer.json` as arrays, so that a board needs numpy alone to read it.

Gemma's is 33 MB of JSON with half a million merges; `tokenizers` takes 278 MB of memory and 2.5 s of an x86
core to read it, more than the network. Packed, it is 10 MB and read in a tenth of a second.
"""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np

from paredown.apps.chat.device.tokens.tokens import BOS, END, EOS, SPACE, START
from paredown.targets.errors import InputError

USED = (BOS, EOS, START, END)  # special tokens of a text model; others can lie beyond its vocabulary
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_DECODERS = ["Replace", "ByteFallback", "Fuse"]
_WORDS = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def pack(data: bytes, where: object = "tokenizer.json") -> bytes:
    """Packs a tokenizer for `Tokens`.

    Args:
        data: a `tokenizer.json` of Gemma's make-up: BPE over text whose spaces are replaced, not cut into
            words, with a token for each byte.
        where: names it in errors.

    Returns:
        An .npz file of `text` and `lengths`, the bytes that each token stands for; `letters` and
        `letter_ids`, the characters that are tokens; `byte_ids`; `left`, `right` and `merged`, the tokens of
        each merge, the first to be done first; `size`, entries that a model must know; `names`, JSON with the
        special tokens and the others that were added, which are tokens wherever they stand.

    Raises:
        InputError: it is no such tokenizer.
    """
    try:
        document = json.loads(data)
        _check(document, where)
        return _pack(document, where)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"no tokenizer.json that can be read: {error!r}", where=where) from error


def _check(document: dict[str, Any], where: object) -> None:
    """Refuses what would encode or decode in another way than we do."""
    model = document["model"]
    wrong = {
        "model.type": (model["type"], "BPE"),
        "model.byte_fallback": (model["byte_fallback"], True),
        "model.ignore_merges": (model.get("ignore_merges", False), False),
        "model.dropout": (model.get("dropout"), None),
        "normalizer": (document["normalizer"], _NORMALIZER),
        "pre_tokenizer": (document["pre_tokenizer"] or _WORDS, _WORDS),
        "decoder": ([part["type"] for part in document["decoder"]["decoders"]], _DECODERS),
    }
    for name, (found, wanted) in wrong.items():
        if found != wanted:
            raise InputError(f"{name} is {found!r}; Gemma's is {wanted!r}", where=where)
    for token in document["added_tokens"]:
        if token["normalized"] or token["single_word"] or token["lstrip"] or token["rstrip"]:
            raise InputError(f"added token {token['content']!r} takes text beside it", where=where)


def _pack(document: dict[str, Any], where: object) -> bytes:
    vocabulary: dict[str, int] = document["model"]["vocab"]
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    special = sorted(token["id"] for token in document["added_tokens"] if token["special"])
    pieces = {token: piece for piece, token in {**vocabulary, **added}.items()}
    if sorted(pieces) != list(range(len(pieces))):
        raise InputError("the vocabulary has gaps, or two entries with one number", where=where)
    if missing := [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]:
        raise InputError(f"no token for {len(missing)} bytes, the first {missing[0]}", where=where)
    texts = [b"" if token in special else _bytes(pieces[token]) for token in range(len(pieces))]
    letters = sorted((ord(piece), token) for piece, token in vocabulary.items() if len(piece) == 1)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in document["model"]["merges"]]
    merges = np.array([(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in pairs], np.int32)
    left, right, merged = merges.reshape(-1, 3).T
    plain = {content: token for content, token in added.items() if token not in special}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        text=np.frombuffer(b"".join(texts), np.uint8),
        lengths=np.array([len(text) for text in texts], np.uint16),
        letters=np.array([letter for letter, _ in letters], np.uint32),
        letter_ids=np.array([token for _, token in letters], np.int32),
        left=left,
        right=right,
        merged=merged,
        byte_ids=np.array([vocabulary[f"<0x{byte:02X}>"] for byte in range(256)], np.int32),
        size=np.int64(1 + max(*vocabulary.values(), *plain.values(), *(added.get(name, 0) for name in USED))),
        names=np.frombuffer(
            json.dumps({"added": plain, "special": {pieces[token]: token for token in special}}).encode(),
            np.uint8,
        ),
    )
    return buffer.getvalue()


def _bytes(piece: str) -> bytes:
    """What a piece stands for."""
    if byte := _BYTE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace(SPACE, " ").encode()
