"""A language model as a .tflite: what it says against eager torch, and whose codes it holds."""

from __future__ import annotations

import sys

import ai_edge_litert
import numpy as np
import pytest
import torch
from language_networks import CONFIG, FACTS, TOKENS, Codes, eager, network
from torch import nn

from paredown.apps.chat.device.models import _Compiled, _Interpreted, load_model
from paredown.apps.chat.network.cache import empty_cache
from paredown.pipeline.compress.blockwise.modules import ResidualEmbedding, held
from paredown.pipeline.compress.grids.weight import unpack
from paredown.pipeline.lower.language.litert import lower_language
from paredown.pipeline.lower.language.network import LanguageFacts
from paredown.targets.errors import InputError

REACH = 20  # positions of a short text: beyond the window, below the context
KINDS = {
    "int8 rows": Codes(8, 0), "int4 rows": Codes(4, 0), "int4 blocks": Codes(4, 32, residual=True),
    "int4 rows, the output layer in blocks": Codes(4, 32, rows=True),
}  # fmt: skip


def lowered(gemma, chunk: int = FACTS.chunk) -> bytes:
    facts = LanguageFacts(CONFIG.vocabulary, 64, chunk, 64, 2, (1,))
    return lower_language(gemma, empty_cache(CONFIG, 64, chunk), facts, REACH)


@pytest.fixture(scope="module")
def whole():
    gemma = network()
    return gemma, lowered(gemma)


@pytest.fixture(
    scope="module",
    params=[  # a program takes seconds; the last kind has rows of int4 too
        pytest.param(codes, id=kind, marks=[pytest.mark.slow] if kind == "int4 rows" else [])
        for kind, codes in KINDS.items()
    ],
)
def coded(request):
    gemma = network(request.param)
    modules = list(gemma.modules())
    data = lowered(gemma)
    assert list(gemma.modules()) == modules, "lowering changed the network"
    return gemma, data


def test_float_logits_are_those_of_eager_torch_past_several_windows(whole):
    gemma, data = whole
    model = load_model(data, "litert")
    found = np.stack([model.feed([token]) for token in TOKENS])
    assert np.abs(found - eager(gemma)).max() < 1e-3


@pytest.mark.parametrize("cuts", [(8, 16, 24), (1, 9, 12, 40), (56,), (7, 50)], ids=str)
def test_however_a_text_is_cut_the_logits_are_the_same(whole, cuts):
    gemma, data = whole
    model, expected = load_model(data, "litert"), eager(gemma)
    start = 0
    for end in cuts:
        assert np.abs(model.feed(TOKENS[start:end]) - expected[end - 1]).max() < 1e-3
        start = end


@pytest.mark.parametrize("engine", [_Compiled, _Interpreted])
def test_a_text_is_read_alike_through_either_interface(whole, engine, tmp_path):
    """One works in a single cache, the other passes it in and out."""
    gemma, data = whole
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    signatures, expected = engine(path, 1), eager(gemma)
    chunk = FACTS.chunk
    signatures.run("prefill", np.array([TOKENS[:chunk]], np.int32), np.arange(chunk, dtype=np.int32))
    for place in range(chunk, REACH):
        given = (np.array([[TOKENS[place]]], np.int32), np.array([place], np.int32))
        for key in {"decode", f"decode_{REACH}"} & set(signatures.keys):
            assert np.abs(signatures.run(key, *given) - expected[place]).max() < 1e-3
    signatures.close()


def test_where_the_faster_interface_is_missing_the_slower_one_answers_and_says_so(whole, monkeypatch, capfd):
    gemma, data = whole
    monkeypatch.setitem(sys.modules, "ai_edge_litert.compiled_model", None)
    monkeypatch.delattr(ai_edge_litert, "compiled_model", raising=False)
    model = load_model(data, "litert")
    found, expected = model.feed(TOKENS[:9]), eager(gemma)[8]
    assert np.abs(found - expected).max() < 1e-3
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and notes[0].endswith("the slower interpreter of LiteRT answers")


def test_what_is_read_without_logits_counts_as_read(whole):
    gemma, data = whole
    model = load_model(data, "litert")
    model.prefill(TOKENS[:19])
    model.prefill(TOKENS[19:20])
    assert model.position == 20
    assert np.abs(model.feed(TOKENS[20:24]) - eager(gemma)[23]).max() < 1e-3


def test_the_last_chunk_of_a_full_context_is_read_token_by_token(whole):
    gemma, data = whole
    model = load_model(data, "litert")
    model.feed(TOKENS[:3])
    assert np.abs(model.feed(TOKENS[3:]) - eager(gemma)[-1]).max() < 1e-3
    model.feed([5] * 8)
    assert model.position == model.context == 64
    with pytest.raises(ValueError, match="beyond 64"):
        model.feed([5])


def test_logits_of_codes_are_those_of_their_own_eager_network(coded):
    """Both round activations to int8, with scales that differ in the last place: some land a step away.

    A step is 1/255 of a row's range in each of eight matrices; 2 % of the logits' range is what that comes
    to here, and a wrong code, scale or row is far outside.
    """
    gemma, data = coded
    model, expected = load_model(data, "litert"), eager(gemma)
    found = np.stack([model.feed([token]) for token in TOKENS])
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_an_output_layer_of_its_own_has_codes_of_its_own():
    gemma = network(Codes(4, 32), tied=False)
    assert len(held(gemma)) == 16
    model, expected = load_model(lowered(gemma), "litert"), eager(gemma)
    found = np.stack([model.feed([token]) for token in TOKENS])
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)


def test_the_file_holds_the_networks_codes_and_scales_once(coded):
    from ai_edge_litert import schema_py_generated as schema

    gemma, data = coded
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    kept = {schema.TensorType.INT8, schema.TensorType.INT4}
    tensors = [(sub, t) for sub in model.subgraphs for t in sub.tensors if t.type in kept]
    found = {}
    for sub, tensor in tensors:
        codes = torch.from_numpy(np.asarray(model.buffers[tensor.buffer].data, np.uint8))
        rows, columns = (int(size) for size in tensor.shape)
        if tensor.type == schema.TensorType.INT4:
            codes = unpack(codes.reshape(rows, -1), 4, columns)
        details = tensor.quantization.details
        if details is None:
            scales = np.asarray(tensor.quantization.scale, np.float32)
        else:
            halves = model.buffers[sub.tensors[details.scales].buffer].data
            scales = np.asarray(halves, np.uint8).view(np.float16).astype(np.float32)
        found[tensor.buffer] = (codes.view(torch.int8).reshape(rows, columns), scales.reshape(rows, -1))
    weights = [tensor.weight for tensor in held(gemma).values()]
    for weight in weights:
        if weight.per_row:  # in the tables of three signatures' tensors
            assert data.count(weight.scales.numpy().tobytes()) == 1
    residual = isinstance(gemma.model.embed_tokens, ResidualEmbedding)
    # seven matrices a layer, and the embedding that is the head too
    assert len(found) == len(weights) == 15 + residual
    for weight in weights:
        assert any(
            torch.equal(codes, weight.codes) and np.array_equal(scales, weight.scales.numpy())
            for codes, scales in found.values()
            if codes.shape == weight.codes.shape
        )


def test_the_delegate_says_nothing_where_people_chat(whole, capfd):
    load_model(whole[1], "litert").feed(TOKENS[:12])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -2000])
def test_a_cut_file_is_one_line(whole, keep):
    with pytest.raises(InputError, match="truncated or damaged") as caught:
        load_model(whole[1][:keep], "litert", where="model.tflite")
    assert str(caught.value).startswith("model.tflite: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((65, 8), r"context of 65 positions; the network was trained for at most 64"),
        ((0, 1), r"context of 0"),
        ((16, 17), r"chunk of 17 tokens; it takes one to 16"),
    ],
)
def test_sizes_beyond_the_network_are_refused_before_anything_is_lowered(sizes, line):
    with pytest.raises(InputError, match=line):
        LanguageFacts(256, *sizes, longest=64, bos=2, eos=(1,))


def test_an_operation_that_nobody_can_write_is_named():
    class Odd(nn.Module):
        def forward(self, tokens, positions, cache, keep, reach=None):
            return torch.erfinv(cache[0][0]), cache

    with pytest.raises(InputError, match="no way to write aten.erfinv"):
        lowered(Odd(), 1)
