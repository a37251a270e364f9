"""A language model as a .pte: in our runner, in the wheel's own, and on an emulated board."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from language_networks import CONFIG, FACTS, TOKENS, Codes, eager, network, rounded
from needs import needs

from paredown.apps.chat.device.models import ExecutorchModel, load_model
from paredown.apps.chat.network.network import Stateful
from paredown.pipeline.compress.blockwise.modules import BlockLinear, BlockTensor, fake_int8, held
from paredown.pipeline.lower.language import executorch
from paredown.pipeline.lower.language.executorch import _ours, _OwnAttention, lower_language
from paredown.pipeline.lower.language.network import RingAttention
from paredown.targets.errors import InputError

BLOCKS, MIXED = Codes(4, 32, residual=True), Codes(4, 32, rows=True)


def lowered(gemma, facts=FACTS):
    sizes = (gemma, facts.context, facts.chunk)
    return lower_language(Stateful(*sizes), Stateful(*sizes, keep="none"), facts)


def stock(data):
    """Logits after each of TOKENS by the wheel's own runtime, which has `forward` alone."""
    from executorch.extension.pybindings import _C as binding

    module = binding._load_for_executorch_from_buffer(data)
    assert {"forward", "prefill", "step", "read"} < set(module.method_names())
    for position, token in enumerate(TOKENS):
        given = (torch.tensor([[token]]), torch.tensor([position]))
        yield module.run_method("forward", given)[0].numpy()[0]


def packed(weight):
    if weight.bits == 8:
        return weight.codes.numpy().tobytes()
    halves = (weight.codes + 8).to(torch.uint8)
    return (halves[:, 1::2] << 4 | halves[:, ::2]).numpy().tobytes()


@pytest.fixture(scope="module", params=[BLOCKS, MIXED], ids=["blocks", "mixed"])
def coded(request):
    needs("g++", "g++")
    gemma = network(request.param)
    made = lowered(gemma)
    return gemma, made.data, made.subgraphs


@pytest.mark.slow
class TestCodes:
    def test_logits_are_those_of_the_same_codes_in_eager_torch(self, coded):
        """Both round activations to int8; see test_language_litert for the tolerance."""
        gemma, data, _ = coded
        model, expected = load_model(data, "executorch"), eager(gemma)
        found = np.stack([model.feed([token]) for token in TOKENS])
        assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)
        assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9

    def test_chunks_give_what_single_tokens_give(self, coded):
        model = load_model(coded[1], "executorch")
        chunks = model.feed(TOKENS)
        model.reset()
        for token in TOKENS:
            single = model.feed([token])
        assert np.abs(chunks - single).max() < 1e-3

    def test_our_kernels_give_what_xnnpacks_give(self, coded):
        """The same whole numbers, added in another order."""
        ours = load_model(coded[1], "executorch")
        for token, expected in zip(TOKENS, stock(coded[1]), strict=True):
            assert np.abs(ours.feed([token]) - expected).max() < 1e-5 * np.ptp(expected)

    def test_ctrl_c_in_a_terminal_does_not_end_the_process_that_computes(self, coded):
        model = load_model(coded[1], "executorch")
        before = model.feed(TOKENS[:5])
        model._process.send_signal(signal.SIGINT)
        model.reset()
        assert np.array_equal(model.feed(TOKENS[:5]), before)

    def test_the_file_holds_the_networks_codes_and_scales(self, coded):
        """XNNPACK's packing: two codes a byte, each plus 8, the first in the lower half; bfloat16 scales."""
        gemma, data, _ = coded
        for tensor in held(gemma).values():
            assert packed(tensor.weight) in data
            scales = tensor.weight.scales
            held_as = torch.float32 if tensor.weight.per_row else torch.bfloat16
            assert scales.to(held_as).contiguous().view(torch.uint8).numpy().tobytes() in data

    def test_the_embedding_and_the_output_layer_share_their_codes(self, coded):
        gemma, data, _ = coded
        assert data.count(packed(gemma.lm_head.tensor.weight)) == 1
        weights = [tensor.weight for tensor in held(gemma).values()]
        assert not any(each.codes.numpy().tobytes() in data for each in weights if each.bits == 4)

    def test_each_layer_is_one_subgraph_more(self, coded):
        """The keys and values are written between two of them; a norm or a rotation cuts none."""
        gemma, _, subgraphs = coded
        assert subgraphs == gemma.config.layers + 1

    def test_the_wheels_llm_runner_writes_the_same_tokens(self, coded, tmp_path):
        from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:253]
        vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *letters])}
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "model.pte").write_bytes(coded[1])
        prompt = "hello world"
        ids = tokenizer.encode(prompt).ids
        model = load_model(coded[1], "executorch")
        written, logits = [], model.feed(ids)
        for _ in range(8):
            written.append(int(logits.argmax()))
            logits = model.feed(written[-1:])
        runner = TextLLMRunner(str(tmp_path / "model.pte"), str(tmp_path / "tokenizer.json"))
        said: list[str] = []
        options = GenerationConfig(echo=False, max_new_tokens=8, temperature=0.0)
        runner.generate(prompt, options, said.append, lambda _: None)
        assert "".join(said) == tokenizer.decode(written)

    def test_a_cut_file_is_one_line(self, coded):
        with pytest.raises(InputError, match=r"model\.pte: not an ExecuTorch program .* make it again"):
            load_model(coded[1][:-500], "executorch", where="model.pte")

    def test_a_program_of_something_else_is_one_line(self, coded):
        from executorch.exir import to_edge

        program = to_edge(torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 4),))).to_executorch()
        with pytest.raises(InputError, match="no language model, it has no `get_vocab_size`"):
            load_model(bytes(program.buffer), "executorch")

    @pytest.mark.parametrize(
        ("words", "line"),
        [((), "usage"), (("model", "--threads", "0"), "usage"), (("model", "--threads"), "usage")],
    )
    def test_the_runners_command_line_is_checked(self, coded, words, line):
        from paredown.targets.host.cache import cache_folder
        from paredown.targets.runners.executorch_build import build

        program = build("native", cache_folder()) / "language"
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert done.returncode == 2 and line in done.stderr

    def test_an_emulated_board_computes_the_same_logits(self, coded, tmp_path):
        from paredown.targets.emulated.board import start
        from paredown.targets.emulated.sysroot import emulated
        from paredown.targets.host.cache import cache_folder
        from paredown.targets.runners.executorch_build import build

        needs("proot", "proot")
        needs("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
        path = tmp_path / "model.pte"
        path.write_bytes(coded[1])
        shutil.copytree(build("aarch64", cache_folder()), tmp_path / "executorch")
        here = load_model(coded[1], "executorch")
        with start("raspberry-pi-5") as board:
            command = [*emulated(board.root, "cortex-a76"), "-b", str(tmp_path)]
            language = tmp_path / "language"
            language.write_text(
                f'#!/bin/sh\nexec {shlex.join(command)} {tmp_path}/executorch/language "$@"\n'
            )
            language.chmod(0o755)
            there = ExecutorchModel(path, 1, language)
            for first in range(0, 24, 6):
                logits = here.feed(TOKENS[first : first + 6])
                assert np.abs(there.feed(TOKENS[first : first + 6]) - logits).max() < 0.02 * np.ptp(logits)


@pytest.mark.slow
def test_float_logits_are_those_of_eager_torch_past_several_windows():
    gemma = network()
    model = load_model(lowered(gemma).data, "executorch")
    found = np.stack([model.feed([token]) for token in TOKENS])
    assert np.abs(found - eager(gemma)).max() < 1e-3


@pytest.mark.slow
def test_threads_change_no_bit():
    """The output layer is large enough for several of them."""
    config, facts = replace(CONFIG, vocabulary=4096), replace(FACTS, vocabulary=4096)
    data = lowered(network(BLOCKS, config=config), facts).data
    one, *others = (load_model(data, "executorch", threads) for threads in (1, 2, 3))
    for length in (6, 1, 1, 9, 1):
        tokens = TOKENS[one.position : one.position + length]
        expected = one.feed(tokens)
        for model in others:
            assert model.feed(tokens).tobytes() == expected.tobytes()


@pytest.mark.slow
def test_our_kernels_take_chunks_and_groups_of_heads_of_any_size():
    """They take 8 tokens and 4 heads side by side: here 11 are a chunk, and 5 heads look at one key."""
    config = replace(CONFIG, heads=5, kv_heads=1, head_dim=64)
    data = lowered(network(BLOCKS, config=config), replace(FACTS, chunk=11)).data
    expected = np.stack(list(stock(data)))
    model = load_model(data, "executorch")
    for length in (11, 5, 9):
        model.reset()
        for first in range(0, len(TOKENS), length):
            found = model.feed(TOKENS[first : first + length])
            last = min(first + length, len(TOKENS)) - 1
            assert np.abs(found - expected[last]).max() < 1e-3 * np.ptp(expected[last])


class OneLayer(torch.nn.Module):
    """A linear layer on a row of `inputs` for each token, which shows what it gave at every position."""

    def __init__(self, inputs, weight, facts):
        super().__init__()
        self.inputs = torch.nn.Embedding.from_pretrained(inputs)
        self.layer = BlockLinear(BlockTensor(weight), activation_bits=8)
        self.register_buffer("given", torch.zeros(facts.context, len(weight.codes)), persistent=False)

    def forward(self, tokens, input_pos):
        positions = input_pos + torch.arange(tokens.shape[1])
        self.given.index_copy_(0, positions, self.layer(self.inputs(tokens))[0])
        return self.given.flatten().unsqueeze(0)


def outliers(tokens, width):
    """Inputs that have none, one of 300 times the others, or one of -300 times; of some none is below 0."""
    inputs = torch.rand(tokens, width) * 2 - 1
    inputs[::5] = inputs[::5].abs()
    inputs[1::3, 100], inputs[2::3, 100] = 300.0, -300.0
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "codes", [Codes(4, 32), Codes(4, 0), Codes(8, 0)], ids=["blocks", "rows of 4", "rows of 8"]
)
def test_an_outlier_among_the_inputs_costs_no_digits(codes):
    """Next to one the others are a zero point of 127 and at most 1: a sum with it in float32 would cancel."""
    torch.manual_seed(0)
    tokens, width, rows = 20, 512, 11
    facts = replace(FACTS, vocabulary=20 * rows, context=20, chunk=19)
    inputs, weight = outliers(tokens, width), torch.rand(rows, width)
    weight[::2, 100] = 0  # where nothing else is added to the small ones
    layer = OneLayer(inputs, rounded(weight, codes), facts)
    x, held_weight = fake_int8(inputs).double(), layer.layer.tensor().double()
    expected, terms = (x @ held_weight.T).numpy(), (x.abs() @ held_weight.abs().T).numpy()
    model = load_model(lower_language(layer, layer, facts).data, "executorch")
    chunk = model.feed(range(tokens)).reshape(tokens, rows)  # `read` for all but the last
    model.reset()
    steps = [model.feed([token]) for token in range(tokens)][-1].reshape(tokens, rows)
    assert np.array_equal(chunk, steps)
    assert (np.abs(steps - expected) < 1e-6 * terms).all()


@pytest.mark.slow
def test_a_program_whose_one_kernel_of_ours_has_the_former_name_runs(monkeypatch):
    executorch._register()
    former = torch.library.Library("paredown", "FRAGMENT")
    given = "Tensor x, Tensor codes, Tensor scales"
    former.define(f"output_layer({given}) -> Tensor")
    former.define(f"output_layer.out({given}, *, Tensor(a!) out) -> Tensor(a!)")
    former.impl("output_layer", executorch._linear_shape, "CompositeExplicitAutograd")
    former.impl("output_layer.out", executorch._given_out, "CompositeExplicitAutograd")

    def forward(self, x):
        return torch.ops.paredown.output_layer.default(x, self.codes, self.scales)

    monkeypatch.setattr(executorch._OwnLinear, "forward", forward)
    data = lowered(network(BLOCKS)).data
    assert b"paredown::output_layer" in data and b"paredown::linear" not in data
    model = load_model(data, "executorch")
    for token, expected in zip(TOKENS, stock(data), strict=True):
        assert np.abs(model.feed([token]) - expected).max() < 1e-5 * np.ptp(expected)


LAYERS = 2 * 7  # linear ones


@pytest.mark.parametrize(
    ("codes", "tied", "ours"),
    [
        (BLOCKS, True, LAYERS + 1),
        (MIXED, True, LAYERS + 1),
        (BLOCKS, False, LAYERS + 1),
        (Codes(4, 0), True, LAYERS + 1),
        (Codes(8, 0), True, LAYERS + 1),
        (Codes(4, 16), True, 0),
        (None, True, 0),
    ],
)
def test_our_kernels_are_for_blocks_of_32_and_rows(codes, tied, ours):
    assert len(_ours(Stateful(network(codes, tied), FACTS.context, FACTS.chunk))) == ours


def test_attention_whose_heads_our_kernel_does_not_have_stays_as_it_was():
    plain, memory = RingAttention(None), torch.randn(2, 1, 2, 6, 8)
    given = (torch.randn(1, 1, 4, 8), *memory, torch.zeros(1, 6), torch.tensor([5]))
    assert torch.equal(_OwnAttention(plain)(*given), plain(*given))


def test_what_xnnpack_does_not_have_is_refused():
    gemma = network(Codes(8, 32))
    with pytest.raises(InputError, match=r"q_proj: int8 codes with a scale per block of 32"):
        lowered(gemma)


def test_facts_reach_the_runner_by_name():
    from paredown.pipeline.lower.language.executorch import _metadata

    assert json.loads(json.dumps(_metadata(FACTS))) == {
        "get_max_seq_len": 8, "get_max_context_len": 64, "get_vocab_size": 256, "get_bos_id": 2,
        "get_eos_ids": [1], "use_kv_cache": True, "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": False,
    }  # fmt: skip


@pytest.mark.slow
def test_what_is_read_without_logits_counts_as_read():
    gemma = network()
    model = load_model(lowered(gemma).data, "executorch")
    model.prefill(TOKENS[:19])
    model.prefill(TOKENS[19:20])
    assert model.position == 20
    assert np.abs(model.feed(TOKENS[20:24]) - eager(gemma)[23]).max() < 1e-3
