"""A model's tokenizer as a `tokenizer.json`: from a Hugging Face folder, or rebuilt from a GGUF file.

On the device `device/tokens.py` encodes, decodes and puts chats into turns; here is what it is given.
"""

from __future__ import annotations

import json
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
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # llama.cpp's token types
#: What is special by its text; the rest of the special ones GGUF names by number.
_TURNS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
_NUMBERED = ("bos", "eos", "unknown", "padding")


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


def is_for_chat(path: Path) -> bool:
    """Whether a model has a chat template: instruction-tuned ones do, base models continue plain text.

    Raises:
        InputError: its files are broken.
    """
    if not path.is_dir():
        need("gguf", f"a .gguf file ({path})")
        from paredown.apps.chat.weights.gguf import read_gguf

        return "tokenizer.chat_template" in read_gguf(path).fields
    config = path / "tokenizer_config.json"
    if (path / "chat_template.jinja").exists() or not config.exists():
        return (path / "chat_template.jinja").exists()
    try:
        return "chat_template" in json.loads(config.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the tokenizer's configuration: {error}", where=config) from error


def _file(path: Path) -> Path:
    return path / "tokenizer.json" if path.is_dir() else path


def _from_gguf(reader: GGUFReader, where: Path) -> dict[str, Any]:
    """Gemma's tokenizer.json from the vocabulary: the very file, but for what only vision needs."""
    kind = _field(reader, "model", where)
    if kind != "llama":
        raise InputError(f"tokenizer.ggml.model is {kind!r}, Gemma's is 'llama'", where=where)
    tokens, types = _field(reader, "tokens", where), _field(reader, "token_type", where)
    if len(tokens) != len(types):
        raise InputError(f"{len(tokens)} tokens and {len(types)} token types", where=where)
    # llama.cpp spells runs of spaces as they are, everything else as the vocabulary does
    pieces = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    numbers = {_field(reader, f"{name}_token_id", where) for name in _NUMBERED}
    special = numbers | {token for token, piece in enumerate(pieces) if piece in _TURNS}
    unknown, bos = (_field(reader, f"{name}_token_id", where) for name in ("unknown", "bos"))
    added = [
        {
            "id": token, "content": pieces[token], "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": token in special,
        }
        for token, kind in enumerate(types)
        if kind in (_CONTROL, _USER_DEFINED)
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


def _field(reader: GGUFReader, name: str, where: Path) -> Any:
    key = f"tokenizer.ggml.{name}"
    if key not in reader.fields:
        raise InputError(f"`{key}` is missing", where=where, hint="give a file with a tokenizer")
    try:
        return reader.fields[key].contents()
    except UnicodeDecodeError as error:
        raise InputError(f"`{key}` is damaged: {error}", where=where) from error
