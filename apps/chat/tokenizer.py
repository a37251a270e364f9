"""A model's tokenizer as a `tokenizer.json`: from a Hugging Face folder, or rebuilt from a GGUF file.

On the device `device/tokens.py` encodes, decodes and puts chats into turns; here is what it is given.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.targets.errors import InputError
from paredown.targets.host.tools import need

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

#: Rows that an embedding may have beyond the vocabulary: Gemma 3's with vision is padded by 64.
PADDING = 64
SPACE = "▁"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's token types
#: What is special by its text, whatever its type: some converters take Gemma's own for a user's.
_TURNS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
_NUMBERED = ("bos", "eos", "unknown", "padding")
#: What is a token wherever it stands in a text, though GGUF calls it a control token.
_PLAIN = re.compile(r"<unused\d+>|<mask>")
#: What a text is treated to before it is cut into tokens; Gemma's is treated to nothing.
_TREATMENTS = ("add_space_prefix", "remove_extra_whitespaces", "add_sep_token")


def load_tokenizer(path: str | Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model, for work on this machine.

    Args:
        path: a Hugging Face folder or a .gguf file.
        vocabulary: rows of the network's embedding.

    Returns:
        Its `encode(text, add_special_tokens=False).ids` are a text's tokens, without the `bos` before them.

    Raises:
        InputError: there is none, it is broken, or it is that of another network.
    """
    from tokenizers import Tokenizer

    path = Path(path)
    data = tokenizer_json(path)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the package raises nothing narrower
        raise InputError(f"no tokenizer that can be read: {error}", where=_file(path)) from error
    added = [token for token in tokenizer.get_added_tokens_decoder() if token >= vocabulary]
    size = tokenizer.get_vocab_size() - len(added)
    if not size <= vocabulary <= size + PADDING:
        what = f"the tokenizer has {size} entries and the network {vocabulary}"
        raise InputError(what, where=_file(path), hint="give the model's own tokenizer")
    return tokenizer


def tokenizer_json(path: Path) -> bytes:
    """The tokenizer.json of a Hugging Face folder, or what it would be for a .gguf file.

    Raises:
        InputError: there is none, or it is broken.
    """
    if path.is_dir():
        try:
            return _file(path).read_bytes()
        except OSError as error:
            what = f"cannot read the tokenizer: {error.strerror}"
            raise InputError(what, where=_file(path), hint="copy the model's tokenizer.json there") from error
    need("gguf", f"a .gguf file ({path})")
    from paredown.apps.chat.weights.gguf import read_gguf

    return json.dumps(_from_gguf(read_gguf(path), path), ensure_ascii=False).encode()


def _file(path: Path) -> Path:
    return path / "tokenizer.json" if path.is_dir() else path


def _from_gguf(reader: GGUFReader, where: Path) -> dict[str, Any]:
    """Gemma's tokenizer.json from the vocabulary: the very file, but for what only vision needs."""
    kind = _field(reader, "model", where)
    if kind != "llama":
        raise InputError(f"tokenizer.ggml.model is {kind!r}, Gemma's is 'llama'", where=where)
    for key in _TREATMENTS:
        if f"tokenizer.ggml.{key}" in reader.fields and _field(reader, key, where):
            raise InputError(f"`tokenizer.ggml.{key}` is true, Gemma's is false", where=where)
    tokens, types = _field(reader, "tokens", where), _field(reader, "token_type", where)
    if len(tokens) != len(types):
        raise InputError(f"{len(tokens)} tokens and {len(types)} token types", where=where)
    if strange := {kind for kind in types if not _NORMAL <= kind <= _BYTE}:
        raise InputError(f"a token of type {min(strange)}, which is not known", where=where)
    # llama.cpp spells runs of spaces as they are, everything else as the vocabulary does
    pieces = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    numbers = {
        name: _number(reader, name, len(pieces), where) for name in ("bos", "eos", "unknown", "padding")
    }
    bos, unknown = numbers["bos"], numbers["unknown"]
    if unknown is None:
        unknown = next((token for token, kind in enumerate(types) if kind == _UNKNOWN), None)
    if bos is None or unknown is None:
        missing = "bos" if bos is None else "unknown"
        raise InputError(f"`tokenizer.ggml.{missing}_token_id` is missing", where=where)
    special = {token for token in numbers.values() if token is not None} | {unknown}
    special |= {token for token, piece in enumerate(pieces) if piece in _TURNS}
    special |= {
        token for token, kind in enumerate(types) if kind == _CONTROL and not _PLAIN.fullmatch(pieces[token])
    }
    added = [
        {
            "id": token, "content": pieces[token], "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": token in special,
        }
        for token, kind in enumerate(types)
        if kind in (_CONTROL, _USER_DEFINED) or token in special
    ]  # fmt: skip
    start = {"SpecialToken": {"id": pieces[bos], "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                start, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": pieces[bos], "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {pieces[bos]: {"id": pieces[bos], "ids": [bos], "tokens": [pieces[bos]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": pieces[unknown], "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": merges(pieces, types),
        },
    }  # fmt: skip


def merges(pieces: list[str], types: list[int]) -> list[list[str]]:
    """The merges of a SentencePiece vocabulary, best first: every way to put a piece together from two.

    Those of the pieces that a user defined, runs of spaces and line ends, come first, then the others in the
    order of the vocabulary; of equals the one with the longest left part. So does transformers' converter
    from SentencePiece; a GGUF file keeps no scores that would tell.
    """
    numbers = {piece: token for token, piece in enumerate(pieces)}
    first = types.index(_NORMAL) if _NORMAL in types else 0
    found = []
    for token, piece in enumerate(pieces):
        rank = 0 if types[token] == _USER_DEFINED else first - token
        parts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        parts = [(left, right) for left, right in parts if left in numbers and right in numbers]
        parts.sort(key=lambda part: (numbers[part[0]], numbers[part[1]]))
        found += [(rank, left, right) for left, right in parts]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in found]


def _number(reader: GGUFReader, name: str, size: int, where: Path) -> int | None:
    """The number of a special token, if the file names it."""
    if f"tokenizer.ggml.{name}_token_id" not in reader.fields:
        return None
    found = _field(reader, f"{name}_token_id", where)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < size:
        what = f"`tokenizer.ggml.{name}_token_id` is {found!r}, no token of {size}"
        raise InputError(what, where=where)
    return found


def _field(reader: GGUFReader, name: str, where: Path) -> Any:
    key = f"tokenizer.ggml.{name}"
    if key not in reader.fields:
        raise InputError(f"`{key}` is missing", where=where, hint="give a file with a tokenizer")
    from paredown.apps.chat.weights.gguf import contents

    return contents(reader, key, where)
