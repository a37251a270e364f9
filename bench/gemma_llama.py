"""llama.cpp for `bench/gemma_peers.py`, in an environment of its own.

    python -m venv peers && peers/bin/pip install xllamacpp gguf numpy

Started by the bench. `gemma_llama.py make SOURCE OUT KIND` writes a GGUF file whose matrices, the embedding
too, are quantized to KIND by llama.cpp's own code. `gemma_llama.py score FILE` reads windows of tokens, one
JSON a line, and answers with the summed loss of each; `gemma_llama.py speed FILE THREADS` measures a prompt
and an answer per line. The library that the package carries is called by llama.cpp's C interface.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

CONTEXT, ROWS = 2048, 128  # rows: logits that are asked for at once
_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = [("count", ctypes.c_int32)] + [
        (name, ctypes.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")
    ]


class Params(ctypes.Structure):
    """A structure of settings: of the context's, the first word is `n_ctx`; there is room for any version."""

    _fields_ = [("words", ctypes.c_uint32 * 256)]


def library() -> Any:
    """llama.cpp, silent."""
    spec = find_spec("xllamacpp")
    assert spec and spec.origin, "pip install xllamacpp"
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    found = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_log_set", None, [_Log, pointer]),
        ("llama_model_default_params", Params, []),
        ("llama_context_default_params", Params, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Params]),
        ("llama_init_from_model", pointer, [pointer, Params]),
        ("llama_n_ctx", ctypes.c_uint32, [pointer]),
        ("llama_set_n_threads", None, [pointer, number, number]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", number, [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_decode", number, [pointer, Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, number]),
        ("ggml_quantize_chunk", ctypes.c_size_t, [number, pointer, pointer, *[ctypes.c_int64] * 3, pointer]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.hush = _Log(lambda *_: None)
    found.llama_log_set(found.hush, None)
    found.llama_backend_init()
    return found


class Llama:
    """A GGUF file, with the interface of `paredown.apps.chat.device.language_model.LanguageModel`."""

    def __init__(self, path: str, threads: int) -> None:
        self.of = library()
        model = self.of.llama_model_load_from_file(path.encode(), self.of.llama_model_default_params())
        assert model, f"llama.cpp does not load {path}"
        params = self.of.llama_context_default_params()
        params.words[0] = CONTEXT
        self.state = self.of.llama_init_from_model(model, params)
        assert self.of.llama_n_ctx(self.state) == CONTEXT, "another layout of llama_context_params"
        self.of.llama_set_n_threads(self.state, threads, threads)
        self.vocabulary = self.of.llama_vocab_n_tokens(self.of.llama_model_get_vocab(model))
        self.context, self.chunk, self.position = CONTEXT, 512, 0

    def reset(self) -> None:
        """Forgets all."""
        self.of.llama_memory_clear(self.of.llama_get_memory(self.state), True)
        self.position = 0

    def feed(self, tokens: list[int]) -> NDArray[np.float32]:
        """The logits after these tokens."""
        self._decode(np.asarray(tokens, np.int32), None)
        found = self.of.llama_get_logits_ith(self.state, -1)
        return np.ctypeslib.as_array(found, (self.vocabulary,)).copy()

    def prefill(self, tokens: list[int]) -> None:
        """Reads on; llama.cpp computes the output layer for the last of them all the same."""
        self._decode(np.asarray(tokens, np.int32), np.zeros(len(tokens), np.int8))

    def loss(self, window: list[int]) -> float:
        """Summed negative log-likelihood of all tokens but the first."""
        self.reset()
        tokens, total = np.asarray(window, np.int32), 0.0
        for first in range(0, len(tokens), ROWS):
            part = tokens[first : first + ROWS]
            self._decode(part, np.ones(len(part), np.int8))
            logits = np.ctypeslib.as_array(self.of.llama_get_logits(self.state), (len(part), self.vocabulary))
            targets = tokens[first + 1 : first + 1 + len(part)]
            logits = logits[: len(targets)]
            highest = logits.max(1)
            sums = np.exp(logits - highest[:, None]).sum(1, dtype=np.float64)
            total += float((np.log(sums) + highest - logits[np.arange(len(targets)), targets]).sum())
        return total

    def _decode(self, tokens: NDArray[np.int32], wanted: NDArray[np.int8] | None) -> None:
        batch = Batch(len(tokens), tokens.ctypes.data)
        batch.logits = None if wanted is None else wanted.ctypes.data
        assert self.of.llama_decode(self.state, batch) == 0
        self.position += len(tokens)


def make(source: Path, out: Path, kind: str) -> None:
    """Writes `source` anew with all matrices in one format."""
    import gguf

    llama, wanted = library(), gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        data, held = np.ascontiguousarray(tensor.data), tensor.tensor_type
        if held == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, data)
            continue
        name = held.name.lower() if not held.name.endswith("_K") else f"{held.name[:-1].lower()}K"
        columns, rows = map(int, tensor.shape)
        floats = np.empty((rows, columns), np.float32)
        plain = getattr(llama, f"dequantize_row_{name}")
        plain.argtypes, plain.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        plain(data.ctypes.data, floats.ctypes.data, floats.size)
        block, size = gguf.GGML_QUANT_SIZES[wanted]
        codes = np.empty((rows, columns // block * size), np.uint8)
        given = (wanted, floats.ctypes.data, codes.ctypes.data, 0, rows, columns, None)
        used = llama.ggml_quantize_chunk(*given)
        assert used == codes.nbytes
        writer.add_tensor(tensor.name, codes, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(words: list[str]) -> None:
    """Does what the bench asks."""
    if words[0] == "make":
        make(Path(words[1]), Path(words[2]), words[3])
        return
    from paredown.apps.chat.device.speed import measure

    clock = time.process_time if words[-1] == "cpu" else time.perf_counter
    model = Llama(words[1], int(words[2]) if words[0] == "speed" else 1)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        found = model.loss(given) if words[0] == "score" else measure(model, *given, clock)
        print(json.dumps({"loss": found} if words[0] == "score" else found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
