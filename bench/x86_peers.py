"""The peers of `bench/x86.py`: OpenVINO with NNCF, ONNX Runtime and ncnn, in an environment of their own.

    python -m venv peers && peers/bin/pip install openvino nncf onnxruntime onnx ncnn pnnx

Started by the bench: `x86_peers.py FOLDER [--only NAME]`, FOLDER with `model.onnx` and `model.pt`,
`calibrate.npy` and `test.npy`. It makes int8 programs as each package's own guide does, says which there
are, then runs one per line that it is told and answers with the milliseconds. It imports nothing of ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[np.ndarray], list[np.ndarray]]


def openvino(model: Any, settings: dict[str, Any]) -> Call:
    import openvino as ov

    compiled = ov.Core().compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, **settings}
    )
    request = compiled.create_infer_request()

    def call(x: np.ndarray) -> list[np.ndarray]:
        request.infer([x], share_inputs=True)
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return call


def openvino_float(folder: Path, x: np.ndarray) -> Call:
    """Its defaults: bfloat16 where the processor has it."""
    return openvino(str(folder / "model.onnx"), {})


def openvino_nncf(folder: Path, x: np.ndarray, *, seven: bool = False) -> Call:
    """Its defaults; `seven`: its own remedy for sums that saturate, weights of 7 bits in every layer."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(str(folder / "model.onnx"))
    data = nncf.Dataset([each[None] for each in x])
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE if seven else nncf.OverflowFix.FIRST_LAYER
    )
    return openvino(nncf.quantize(model, data, subset_size=len(x), advanced_parameters=advanced), {})


def ort(path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def ort_float(folder: Path, x: np.ndarray) -> Call:
    return ort(folder / "model.onnx")


def ort_int8(folder: Path, x: np.ndarray, *, seven: bool = False) -> Call:
    """Static, quantize and dequantize pairs, uint8 activations, a scale per channel of the weights.

    `seven`: `reduce_range`, its own remedy for sums that saturate.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(x)

        def get_next(self) -> dict[str, np.ndarray] | None:
            each = next(self.rest, None)
            return None if each is None else {"input": each[None]}

    prepared, made = folder / "prepared.onnx", folder / f"int8-{7 if seven else 8}.onnx"
    quant_pre_process(folder / "model.onnx", prepared, skip_symbolic_shape=True)
    quantize_static(prepared, made, Reader(), per_channel=True, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, reduce_range=seven)  # fmt: skip
    return ort(made)


def ncnn_float(folder: Path, x: np.ndarray) -> Call:
    """By pnnx from TorchScript, without its fp16 weights; the wheel has no tool that makes int8."""
    import importlib.util

    import ncnn

    shape = ",".join(map(str, (1, *x.shape[1:])))
    found = importlib.util.find_spec("pnnx")
    assert found is not None and found.origin is not None
    pnnx = Path(found.origin).with_name("pnnx")  # its command in bin/ imports torch
    for source in ("model.pt", "model.onnx"):  # it reads some networks from one of them alone
        said = subprocess.run(
            [pnnx, source, f"inputshape=[{shape}]", "fp16=0"], cwd=folder, capture_output=True, text=True
        )
        if (folder / "model.ncnn.bin").exists():
            break
    else:
        raise RuntimeError(f"pnnx makes nothing: {said.stderr[-200:]}")
    net = ncnn.Net()
    net.opt.num_threads = 1
    if net.load_param(str(folder / "model.ncnn.param")) or net.load_model(str(folder / "model.ncnn.bin")):
        left = [line for line in said.stderr.splitlines() if line.startswith("ignore")]
        raise RuntimeError(f"ncnn does not load what pnnx makes: {'; '.join(left) or 'it says nothing'}")
    outputs = sorted(net.output_names(), key=lambda name: int(name.removeprefix("out")))

    def call(x: np.ndarray) -> list[np.ndarray]:
        with net.create_extractor() as extractor:
            extractor.input(net.input_names()[0], ncnn.Mat(x[0]).clone())
            return [np.array(extractor.extract(name)[1]) for name in outputs]

    call.keeps = net  # type: ignore[attr-defined]
    return call


PEERS: dict[str, Callable[[Path, np.ndarray], Call]] = {
    "OpenVINO float": openvino_float, "OpenVINO + NNCF int8": openvino_nncf,
    "OpenVINO + NNCF, 7 bits": partial(openvino_nncf, seven=True), "ORT float32": ort_float,
    "ORT int8": ort_int8, "ORT, 7 bits": partial(ort_int8, seven=True), "ncnn float": ncnn_float,
}  # fmt: skip


def main() -> None:
    """One line of JSON with what there is, then a line of milliseconds for each name that is told."""
    folder, only = Path(sys.argv[1]), sys.argv[3:]
    answers, sys.stdout = sys.stdout, sys.stderr  # some packages print
    calibrate, test = np.load(folder / "calibrate.npy"), np.load(folder / "test.npy")
    calls, told = dict[str, Call](), dict[str, Any]()
    for index, (name, make) in enumerate(PEERS.items()):
        if only and not any(name.startswith(word) for word in only):
            continue
        try:
            call = make(folder, calibrate)
            outputs = [[np.array(part) for part in call(each[None])] for each in test]
            for place in range(len(outputs[0])):
                np.save(folder / f"peer{index}.{place}.npy", np.stack([each[place] for each in outputs]))
            calls[name], told[name] = (
                call,
                {"outputs": [f"peer{index}.{i}.npy" for i in range(len(outputs[0]))]},
            )
        except Exception as error:  # noqa: BLE001  each package raises what it likes
            told[name] = {
                "error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"
            }
    print(json.dumps(told), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        calls[line.strip()](test[:1])
        print((time.perf_counter() - start) * 1e3, file=answers, flush=True)


if __name__ == "__main__":
    main()
