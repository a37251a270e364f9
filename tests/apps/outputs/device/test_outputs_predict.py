"""A run of a network of arrays, and the code in its bundle on a machine that has nothing of ours."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from task_board import board_of, figures_of, line_of, on_board, proven, run_of
from task_projects import WHOLE, WORDS, make_keywords, sounds
from tiny_project import predict_of

import paredown
from paredown.pipeline.bundle.archive import unpack

PROGRAM = "outputs.device.predict"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    sys.modules.pop("spotter", None)
    return run_of(make_keywords(tmp_path_factory.mktemp("words"), steps=40))


@pytest.fixture(scope="module")
def board(run, tmp_path_factory):
    return board_of(run, tmp_path_factory.mktemp("board"))


def test_a_run_scores_and_proves_outputs(run):
    figures = figures_of(run)
    assert figures["fp32", "r2"] == pytest.approx(1)
    assert figures["litert", "r2"] == figures["integer", "r2"] > 0.98
    assert figures["litert", "parity_lsb"] == 0 and "R²" in (run / "report.md").read_text()


def test_the_board_says_what_the_host_says(run, board, tmp_path):
    sound = sounds(3, seed=99)[0][1]
    np.save(tmp_path / "x.npy", sound)
    done = on_board(board, PROGRAM, tmp_path / "x.npy", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    expected = [part[0] for part in predict_of(unpack(run / "bundle.paredown"))(sound[None])]
    assert [part.shape for part in expected] == [(3,), (24, 10)]
    with np.load(tmp_path / "out.npz") as archive:
        assert all(np.array_equal(archive[f"arr_{i}"], part) for i, part in enumerate(expected))
    for each, part in zip(json.loads(done.stdout)["outputs"], expected, strict=True):
        assert each["shape"] == list(part.shape) and each["mean"] == pytest.approx(part.mean(), abs=1e-5)
    with paredown.load(run / "bundle.paredown") as model:
        for given in (sound, tmp_path / "x.npy"):
            assert all(map(np.array_equal, model.predict(given), expected))
        with pytest.raises(paredown.InputError, match=r"expected an array of shape \(16, 40\)"):
            model.predict(sound[:, :3])
        assert model.labels == ()


def test_what_goes_wrong_is_one_line(board, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((16, 41), np.float32))
    np.save(tmp_path / "nan.npy", np.full((16, 40), np.nan, np.float32))
    np.save(tmp_path / "x.npy", np.zeros((16, 40), np.float32))
    for arguments, code, expected in (
        ((), 2, "usage: python -m paredown.apps.outputs.device.predict INPUT [OUT.npz]"),
        ((tmp_path / "none.npy",), 4, "cannot read this array"),
        ((tmp_path / "wide.npy",), 4, "found (16, 41) float32"),
        ((tmp_path / "nan.npy",), 4, "not finite"),
        ((tmp_path / "x.npy", tmp_path / "none" / "o.npz"), 4, "cannot write the outputs"),
    ):
        done = on_board(board, PROGRAM, *arguments)
        assert done.returncode == code and expected in line_of(done)


def test_every_way_of_quantizing_takes_arrays(tmp_path):
    """The input's range is what calibration found; here there may be no two layers to balance."""
    sys.modules.pop("spotter", None)
    recipe = make_keywords(tmp_path, tail=WHOLE, steps=40)
    settings = ("observer=auto", "equalize=true", "rounding=gptq", "bias_correction=true")
    words = [word for setting in settings for word in ("--set", f"quantize.{setting}")]
    figures = figures_of(run_of(recipe, "--smoke", "--set", 'lower.runtimes=["litert"]', *words))
    assert figures["litert", "parity_lsb"] == 0 and figures["litert", "r2"] == figures["integer", "r2"]


@pytest.mark.slow
def test_a_network_of_outputs_is_pruned_squantized_and_proven_on_both_runtimes(tmp_path):
    sys.modules.pop("spotter", None)
    assert proven(make_keywords(tmp_path, tail=WHOLE), "r2")["litert", "r2"] > 0.5


@pytest.mark.slow
def test_a_keyword_spotter_is_a_classifier_of_arrays(tmp_path):
    sys.modules.pop("spotter", None)
    recipe = make_keywords(tmp_path, "classifier", WHOLE)
    figures = proven(recipe, "top1")
    assert figures["fp32", "top1"] > 0.9 and figures["litert", "top1"] > 0.7
    board = board_of(recipe.parent / "runs" / "words" / "host", tmp_path / "board")
    sound = next((tmp_path / "test" / "high").glob("*.npy"))
    done = on_board(board, "classifier.device.classify", sound)
    assert done.returncode == 0 and {each["class"] for each in json.loads(done.stdout)["classes"]} == {*WORDS}
