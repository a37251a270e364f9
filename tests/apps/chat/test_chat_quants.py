"""Every quantized type of a GGUF file, against llama.cpp's own library, which PyPI's `xllamacpp` carries."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from gguf.quants import _type_traits
from needs import missing
from numpy.typing import NDArray

from paredown.apps.chat.weights.gguf import GgufFile
from paredown.targets.errors import InputError

ROWS, COLUMNS = 64, 512
PLAIN = [Kind.F32, Kind.F16, Kind.BF16]
TYPES = sorted({*_type_traits, *PLAIN})


def save(path: Path, kind: Kind, data: NDArray[np.uint8]) -> Path:
    """A file whose embedding is made of these bytes, and that has no layers to speak of."""
    writer = gguf.GGUFWriter(path, "gemma3")
    for key, value in (
        ("block_count", 1), ("embedding_length", COLUMNS), ("feed_forward_length", 8), ("context_length", 8),
        ("attention.head_count", 1), ("attention.head_count_kv", 1), ("attention.key_length", 8),
        ("attention.sliding_window", 8),
    ):  # fmt: skip
        writer.add_uint32(f"gemma3.{key}", value)
    writer.add_float32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_tensor("token_embd.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values(kind: Kind) -> NDArray[np.float32]:
    return np.random.default_rng(kind).normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)


def read(path: Path) -> NDArray[np.float32]:
    into = torch.empty(ROWS, COLUMNS)
    GgufFile(path).copy("model.embed_tokens.weight", into)
    return into.numpy()


class Llama:
    """llama.cpp's library, by its C functions."""

    def __init__(self) -> None:
        spec = find_spec("xllamacpp")
        if spec is None or spec.origin is None:
            missing("llama.cpp's library is not installed (pip install xllamacpp)")
        (library,) = Path(spec.origin).parent.glob("xllamacpp*.so")
        self.library = ctypes.CDLL(str(library))

    def dequantize(self, data: NDArray[np.uint8], kind: Kind) -> NDArray[np.float32]:
        name = kind.name.lower() if not kind.name.endswith("_K") else f"{kind.name[:-1].lower()}K"
        out = np.zeros((ROWS, COLUMNS), np.float32)
        function = getattr(self.library, f"dequantize_row_{name}")
        function.restype = None
        data = np.ascontiguousarray(data)
        function(
            data.ctypes.data_as(ctypes.c_void_p),
            out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(out.size),
        )
        return out


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama()


def test_there_are_as_many_types_as_the_package_reads():
    assert len(TYPES) >= 26 and {Kind.Q4_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ1_M, Kind.TQ2_0} <= set(TYPES)


@pytest.mark.parametrize("kind", sorted({*_type_traits} - {Kind.BF16}), ids=lambda kind: kind.name)
def test_quantized_rows_are_those_of_llama_cpp(llama, tmp_path, kind):
    """Every bit pattern counts: blocks of random bytes, with scales of any size."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(kind).integers(0, 256, (ROWS, COLUMNS // block * size), np.uint8)
    wanted = llama.dequantize(data, kind)
    with np.errstate(all="ignore"):
        found = read(save(tmp_path / "model.gguf", kind, data))
    assert np.isfinite(wanted).mean() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_floats_are_what_they_are(tmp_path, kind):
    floats = torch.from_numpy(values(kind))
    dtype = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}[kind]
    data = floats.to(dtype).view(torch.uint8).numpy()
    assert np.array_equal(read(save(tmp_path / "model.gguf", kind, data)), floats.to(dtype).float().numpy())


@pytest.mark.parametrize("kind", [Kind.Q8_K, Kind.I32, Kind.F64], ids=lambda kind: kind.name)
def test_a_type_that_no_weights_have_is_refused(tmp_path, kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.zeros((ROWS, COLUMNS // block * size), np.uint8)
    path = save(tmp_path / "model.gguf", kind, data)
    assert GGUFReader(path).tensors[0].tensor_type is kind
    with pytest.raises(InputError, match=f"token_embd.weight is {kind.name}, which cannot be read; use"):
        read(path)
