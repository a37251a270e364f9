"""Files for targets that nothing here runs; the browser's is run by LiteRT, which is its runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_project import Tiny, call, predict_of

from paredown.pipeline.bundle.archive import unpack
from paredown.targets.runners.litert import Runner


@pytest.mark.parametrize(
    "target, delegate",
    [("iphone", "coreml"), pytest.param("android-vulkan", "vulkan", marks=pytest.mark.slow)],
)
def test_a_phone_gets_a_program_in_one_delegate(
    tiny: Tiny, tmp_path: Path, target: str, delegate: str
) -> None:
    done = call("export", tiny.recipe, "--target", target, "--runs", tmp_path, "--json")
    assert done.code == 0, done.err
    (made,) = json.loads(done.out)
    assert made["delegate"] == delegate and made["segments"] == 1 and made["undelegated"] == []
    data = Path(made["path"]).read_bytes()
    assert data[4:8] == b"ET12" and {"coreml": b"CoreMLBackend", "vulkan": b"VulkanBackend"}[delegate] in data


def test_a_browser_gets_float_inputs_and_the_same_codes(tiny: Tiny, tmp_path: Path) -> None:
    done = call("export", tiny.recipe, "--target", "browser", "--runs", tmp_path)
    assert done.code == 0 and "float32 in and out, nothing outside xnnpack" in done.out
    (path,) = tmp_path.glob("*/browser/model.tflite")
    runner, expected = Runner(path.read_bytes()), predict_of(unpack(tiny.bundle))
    shape = unpack(tiny.bundle).manifest.models[0].input.shape
    image = np.random.default_rng(0).random(shape, np.float32)
    for found, wanted in zip(runner(image), expected(image), strict=True):
        assert found.dtype == np.float32 and np.array_equal(found, wanted)


@pytest.mark.parametrize("command, target, words", [
    ("run", "iphone", 'use "paredown export RECIPE --target iphone"'),
    ("run", "browser", 'use "paredown export RECIPE --target browser"'),
    ("export", "raspberry-pi-5", "use `paredown run`"),
])  # fmt: skip
def test_the_other_command_is_named(
    tiny: Tiny, tmp_path: Path, command: str, target: str, words: str
) -> None:
    done = call(command, tiny.recipe, "--target", target, "--runs", tmp_path)
    assert done.code == 2 and words in done.line()


def test_a_microcontroller_is_simulated_and_has_to_hold_it(tiny: Tiny, tmp_path: Path) -> None:
    done = call("run", tiny.recipe, "--target", "cortex-m4", "--runs", tmp_path, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    figures = {(f["variant"], f["metric"]): f for f in found["figures"]}
    assert figures["litert", "arena_bytes"]["tag"] == "simulated"
    assert figures["litert", "map50"]["where"]["name"] == "cortex-m4, LiteRT Micro on this machine"
    assert not any(f["metric"].startswith("latency") for f in found["figures"])
    assert all(check["passed"] is not False for check in found["checks"])
    assert any("those of TFLite's reference kernels" in check["detail"] for check in found["checks"])
    card = tmp_path / "small.toml"
    text = Path(call_card("cortex-m4")).read_text()
    card.write_text(text.replace("sram_kib = 640", "sram_kib = 1").replace('"cortex-m4"', '"small"', 1))
    done = call("run", tiny.recipe, "--target", card, "--runs", tmp_path)
    assert done.code == 5 and "does not fit: needs" in done.err
    assert "more than the 1 KiB there are" in done.err
    assert not list(tmp_path.glob("*/small/bundle.paredown"))


def call_card(name: str) -> Path:
    from paredown.targets.cards.card import CARDS

    return CARDS / f"{name}.toml"
