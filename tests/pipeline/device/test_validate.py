from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny_project import Tiny, call, copy_project, paredown

from paredown.pipeline.bundle.archive import pack, unpack
from paredown.pipeline.device import executor
from paredown.pipeline.device.validate import programs, validate
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.store.files import read_graph
from paredown.targets.errors import InputError


def layers(tiny) -> tuple[list, list]:
    """What the session's models hold of their layers."""
    (found,) = [
        path.parent
        for path in (tiny.runs / ".store").glob("*/artefact.json")
        if json.loads(path.read_text())["meta"]["stage"] == "integer"
    ]
    graph = IntegerGraph.load(*read_graph(found))
    return graph.weights, graph.layer_parameters


def repacked(tiny, path: Path, change=lambda manifest, members: None) -> Path:
    """The bundle of the session with something in it falsified, every hash right again."""
    bundle = unpack(tiny.bundle)
    manifest, members = json.loads(bundle.text), dict(bundle.members)
    change(manifest, members)
    del manifest["members"], manifest["format"]
    path.write_bytes(pack(manifest, members, *layers(tiny)))
    shutil.copy(tiny.run / "recipe.toml", path.parent)  # as a run has it beside its bundle
    return path


def falsified(variant: str, metric: str, value: float):
    def change(manifest, members):
        (figure,) = (f for f in manifest["figures"] if (f["variant"], f["metric"]) == (variant, metric))
        assert figure["value"] != value
        figure["value"] = value

    return change


def checks(done) -> dict[str, dict]:
    return {check["name"]: check for check in json.loads(done.out)["checks"]}


def moved(tiny: Tiny, folder: Path) -> tuple[Path, Path]:
    """A copy of the project, and the bundle elsewhere, as another user has them."""
    copy_project(tiny, folder)
    elsewhere = folder.with_name(f"{folder.name}-bundle")
    elsewhere.mkdir()
    shutil.copy(tiny.bundle, elsewhere / "moved.paredown")
    return folder, elsewhere / "moved.paredown"


def test_a_repacked_bundle_is_the_bundle(tiny, tmp_path):
    assert repacked(tiny, tmp_path / "x").read_bytes() == tiny.bundle.read_bytes()


@pytest.mark.parametrize(
    ("network", "app", "code", "told"),
    [
        (
            "os:abort",
            "apps.detector",
            0,
            "the bundle's network is made by `os:abort`; give the recipe itself, --recipe",
        ),
        ("evil:boom", "apps.detector", 0, "network is made by `evil:boom`"),
        ("yolov2-nano", "evil", 3, "was made by the app `evil`"),
    ],
)
def test_a_bundle_names_no_code(tiny, tmp_path, monkeypatch, network, app, code, told):
    """Not even code that lies where the user is; what needs none of it is checked all the same.

    The labelled sample of a known app needs none.
    """
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\nboom = make_task = print\n")
    monkeypatch.chdir(tmp_path)

    def change(manifest, members):
        manifest["recipe"] |= {"network": network, "app": app}
        manifest["app"] = app

    done = call("validate", repacked(tiny, tmp_path / "x.paredown", change), "--json", "--times", 1)
    assert done.code == code and not (tmp_path / "PWNED").exists()
    found = checks(done)
    assert told in json.loads(done.out)["verdict"]["reasons"][0]
    assert found["score"]["passed"] is False if code else found["litert sample"]["passed"]
    assert found["litert vectors"]["passed"] and found["executorch vectors"]["passed"]


def test_a_good_bundle_passes_and_measures(tiny):
    done = call("validate", tiny.bundle, "--json", "--times", 2)
    assert done.code == 0, done.out + done.err
    result = json.loads(done.out)
    assert result["passed"] and result["over_budget"] == []
    names = ["hashes"] + [f"{r} {c}" for r in ("executorch", "litert") for c in ("size", "vectors")]
    assert list(checks(done)) == [*names, "executorch score", "litert score"]
    assert checks(done)["litert vectors"]["detail"].startswith("0 of ")
    figures = {(f["variant"], f["metric"]): f for f in result["figures"]}
    assert figures["litert", "latency_p50"]["value"] > 0
    recorded = {(f["variant"], f["metric"]): f["value"] for f in tiny.figures()}
    for key in (("litert", "map50"), ("executorch", "map"), ("litert", "file_bytes")):
        assert figures[key]["value"] == recorded[key]
    assert figures["litert", "bundle_bytes"]["value"] == tiny.bundle.stat().st_size
    assert {f["tag"] for f in result["figures"]} == {"measured"}
    assert "{" not in done.err


def test_the_score_of_a_part_breaks_no_budget(tiny, tmp_path):
    def change(manifest, members):
        falsified("fp32", "map50", 2.0)(manifest, members)
        manifest["recipe"]["budget"] = {"accuracy_drop": 0.0}

    path = repacked(tiny, tmp_path / "strict.paredown", change)
    part = call("validate", path, "--json", "--times", 1, "--limit", 1)
    whole = call("validate", path, "--json", "--times", 1)
    assert part.code == 0 and json.loads(part.out)["over_budget"] == []
    assert whole.code == 3 and "accuracy_drop" in json.loads(whole.out)["over_budget"][0]


def test_a_memory_budget_is_measured_and_held(tiny, tmp_path):
    def change(manifest, members):
        manifest["recipe"]["budget"] = {"memory_mib": 1.0}

    path = repacked(tiny, tmp_path / "small.paredown", change)
    done = call("validate", path, "--json", "--times", 1, "--no-score")
    result = json.loads(done.out)
    assert done.code == 3 and all("memory_mib" in line for line in result["over_budget"])
    assert len(result["over_budget"]) == 2


def test_a_part_of_the_test_images_is_no_proof(tiny):
    done = call("validate", tiny.bundle, "--times", 1, "--limit", 1)
    last = done.out.splitlines()[-1]
    assert done.code == 0 and last.startswith("NOT PROVEN (missing: executorch score: map50 ")
    assert "on 1 images; 1 of " in last and "test images: no proof" in last
    assert done.out.count("skipped  ") == 2 and done.out.count("ok       ") == 5


@pytest.mark.parametrize(
    ("figure", "failing"),
    [
        (("litert", "map50", 0.9), "litert score"),
        (("executorch", "map", 0.9), "executorch score"),
        (("litert", "file_bytes", 17), "litert size"),
    ],
)
def test_a_falsified_figure_fails(tiny, tmp_path, figure, failing):
    done = call("validate", repacked(tiny, tmp_path / "x", falsified(*figure)), "--json", "--times", 1)
    assert done.code == 3
    assert [name for name, check in checks(done).items() if not check["passed"]] == [failing]
    assert "recorded" in checks(done)[failing]["detail"]


def test_another_model_under_the_same_figures_fails_its_vectors(tiny, tmp_path):
    def change(manifest, members):
        program = bytearray(members["model.tflite"])
        weights = bytes(program).find(bytes(unpack_weights(members)))
        assert weights > 0
        program[weights] ^= 0x7F
        members["model.tflite"] = bytes(program)

    def unpack_weights(members):
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT.InitFromPackedBuf(members["model.tflite"], 0)
        return max((b.data for b in model.buffers if b.data is not None), key=len).tobytes()

    path = repacked(tiny, tmp_path / "x", change)
    done = call("validate", path, "--json", "--no-score", "--times", 1)
    assert done.code == 3
    failing = [name for name, check in checks(done).items() if check["passed"] is False]
    assert failing == ["litert vectors"] and "codes differ" in checks(done)["litert vectors"]["detail"]
    done = call("validate", path, "--no-score", "--times", 1)
    last = done.out.splitlines()[-1]
    assert "FAIL     litert vectors" in done.out and last.startswith("DO NOT SHIP (litert vectors failed: ")


def test_a_broken_budget_says_what_by_how_much(tiny, tmp_path):
    def change(manifest, members):
        manifest["recipe"]["budget"] = {"bundle_kib": 1.5, "latency_ms": 10_000.0}

    done = call("validate", repacked(tiny, tmp_path / "x", change), "--json", "--times", 1, "--no-score")
    assert done.code == 3
    result = json.loads(done.out)
    assert all(check["passed"] for check in result["checks"]) and not result["passed"]
    assert len(result["over_budget"]) == 2 and "over the budget of 1.5" in result["over_budget"][0]


def test_what_is_no_address_and_who_does_not_answer(tiny):
    for device in ("local:x", "usb:1", ""):
        done = call("validate", tiny.bundle, "--device", device)
        assert done.code == 2 and f"`{device}` is no address of a device" in done.line()
    done = call("validate", tiny.bundle, "--device", "ssh://pi@127.0.0.1:1")
    assert done.code == 5 and "ssh://pi@127.0.0.1:1: cannot be reached" in done.line()


def test_another_process_behind_a_transport_scores_the_same(tiny, tmp_path, monkeypatch):
    """The way to a board, to this machine: its LiteRT in a process of its own, files there and back."""

    def change(manifest, members):
        manifest["models"] = [model for model in manifest["models"] if model["runtime"] == "litert"]
        del members["model.pte"]

    path = repacked(tiny, tmp_path / "one.paredown", change)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setattr(executor, "LOCAL", ())
    done = call("validate", path, "--json", "--times", 2)
    assert done.code == 0, done.out + done.err
    result = json.loads(done.out)
    found = {f["metric"]: f for f in result["figures"]}
    recorded = {(f["variant"], f["metric"]): f["value"] for f in tiny.figures()}
    assert found["map50"]["value"] == recorded["litert", "map50"] and found["parity_lsb"]["value"] == 0
    assert found["latency_p50"]["tag"] == "measured" and found["memory_peak"]["value"] > 1
    assert found["latency_p50"]["where"]["name"] == "local:"
    assert list(found["map50"]["where"]["versions"]) == ["ai-edge-litert"]


def test_the_first_operation_that_differs_on_the_device_is_named(tiny, monkeypatch):
    """A board whose copy of one weight went bad."""
    bundle = unpack(tiny.bundle)
    integer = next(
        IntegerGraph.load(*read_graph(path.parent))
        for path in (tiny.runs / ".store").glob("*/artefact.json")
        if json.loads(path.read_text())["meta"]["stage"] == "integer"
    )
    layer = [node for node in integer if node.weight is not None][1]
    codes = layer.weight.transpose(0, 2, 3, 1).tobytes()

    class Board(executor.Here):
        local = False

        def run(self, program, inputs, tick):
            if program.runtime == "litert":
                bad = bytes([codes[0] ^ 0x7F]) + codes[1:]
                program = dataclasses.replace(program, data=program.data.replace(codes, bad))
            return super().run(program, inputs, tick)

        def time(self, programs, x, runs, memory, tick):
            return {}

    @contextlib.contextmanager
    def opened(address, card, log):
        yield Board()

    monkeypatch.setattr(validate, "open_executor", opened)
    done = call("validate", tiny.bundle, "--device", "ssh://pi@board", "--no-score", "--json")
    assert done.code == 3 and bundle.manifest.models
    found = checks(done)
    assert found["executorch vectors"]["passed"] and not found["litert vectors"]["passed"]
    assert f"; first at {layer.name}: " in found["litert vectors"]["detail"]


def test_test_data_moved_away_says_so_and_can_be_left_out(tiny, tmp_path):
    folder, bundle = moved(tiny, tmp_path / "there")
    assert call("validate", bundle, "--times", 1, "--data", folder).code == 0
    for gone in ("tiny.weights", "images/train"):  # what scoring does not need
        target = folder / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert call("validate", bundle, "--times", 1, "--data", folder).code == 0
    alone = call("validate", bundle, "--times", 1)
    assert alone.code == 0 and "--data FOLDER says where the recipe's files lie" in alone.out
    assert alone.out.splitlines()[-1].startswith("NOT PROVEN (missing: a score on all 2 test images: ")
    shutil.rmtree(folder / "images")
    done = call("validate", bundle, "--times", 1, "--data", folder)
    assert done.code == 4 and f"{folder}: no images in this folder" in done.err
    done = call("validate", bundle, "--times", 1, "--no-score", "--json")
    assert done.code == 0 and "score" not in " ".join(checks(done))
    verdict = json.loads(done.out)["verdict"]
    assert (verdict["word"], verdict["reasons"]) == ("NOT PROVEN", ["a score: it was left out"])


def test_test_data_and_networks_that_changed_since_are_not_compared_as_if_they_had_not(tiny, tmp_path):
    folder, bundle = moved(tiny, tmp_path / "there")
    labels = folder / "labels" / "test" / "0.txt"
    labels.write_text(labels.read_text().splitlines(keepends=True)[0])
    done = call("validate", bundle, "--times", 1, "--data", folder)
    assert done.code == 0 and "these are other test data than the bundle's" in done.out
    assert done.out.splitlines()[-1].startswith("NOT PROVEN")
    cfg = folder / "tiny.cfg"
    cfg.write_text(cfg.read_text().replace("3.3,4.4", "3.3,4.5"))
    done = call("validate", bundle, "--times", 1, "--data", folder)
    assert done.code == 3 and "not the one that this bundle was made from" in done.out


def test_the_sample_of_a_bundle_is_scored_anywhere(tiny, tmp_path):
    """On both test images, for these are so few; a program or a record that was changed fails."""
    bundle = moved(tiny, tmp_path / "there")[1]
    done = call("validate", bundle, "--times", 1, "--json")
    found = checks(done)
    for name in ("executorch", "litert"):
        (value,) = (f["value"] for f in tiny.figures() if (f["variant"], f["metric"]) == (name, "map50"))
        assert (
            found[f"{name} sample"]["passed"]
            and f"map50 {value:.4f} on 2" in found[f"{name} sample"]["detail"]
        )
    part = checks(call("validate", bundle, "--times", 1, "--json", "--limit", 1))["litert sample"]
    assert part["passed"] is None and "on 1 images" in part["detail"]

    def other(manifest, members):
        listed = json.loads(members["sample.json"])
        listed["scores"]["litert"]["map50"] += 0.01
        members["sample.json"] = json.dumps(listed).encode()

    changed = repacked(tiny, tmp_path / "changed.paredown", other)
    changed.with_name("recipe.toml").unlink()
    assert checks(call("validate", changed, "--times", 1, "--json"))["litert sample"]["passed"] is False

    def less(manifest, members):
        members["app.json"] = b"{}"

    broken = repacked(tiny, tmp_path / "broken.paredown", less)
    broken.with_name("recipe.toml").unlink()
    done = call("validate", broken, "--times", 1)
    assert done.code == 4 and "the labelled sample does not fit the bundle" in done.line()


def test_changed_test_data_of_the_run_fail(tiny, tmp_path):
    """Without --data they are those that the recipe beside the bundle names."""
    project = copy_project(tiny, tmp_path / "project").parent
    path = repacked(tiny, tmp_path / "x.paredown")
    recipe = path.with_name("recipe.toml")
    recipe.write_text(recipe.read_text().replace(str(tiny.folder), str(project)))
    assert call("validate", path, "--times", 1).code == 0
    labels = project / "labels" / "test" / "0.txt"
    labels.write_text(labels.read_text().splitlines(keepends=True)[0])
    done = call("validate", path, "--times", 1)
    assert done.code == 3 and "the test data have changed since" in done.out


def test_a_bundle_names_no_folder_of_its_maker(tiny):
    bundle = unpack(tiny.bundle)
    recipe = bundle.manifest.recipe
    assert (recipe.data.test, recipe.weights, recipe.network) == ("images/test", "tiny.weights", "tiny.cfg")
    for name, data in {**bundle.members, "manifest": bundle.text}.items():
        assert str(tiny.folder).encode() not in data, name


def test_a_smoke_bundle_is_compared_with_nothing(tiny, tmp_path):
    def change(manifest, members):
        for figure in manifest["figures"]:
            figure |= {"tag": "smoke", "value": 0.77}

    done = call("validate", repacked(tiny, tmp_path / "x", change), "--json", "--times", 1)
    assert done.code == 0 and "nothing to compare with" in checks(done)["litert score"]["detail"]


def test_a_board_of_the_users_own_needs_no_card_here_and_gets_no_latency(tiny, tmp_path):
    def change(manifest, members):
        manifest["target"] = manifest["card"]["name"] = "my-board"
        manifest["card"]["reach"] = {"kind": "ssh", "text": "boards come later"}

    done = call("validate", repacked(tiny, tmp_path / "x", change), "--json", "--no-score")
    assert done.code == 0
    assert checks(done)["latency"]["detail"] == "not measured: this machine is no my-board; boards come later"
    assert not any(f["metric"].startswith("latency") for f in json.loads(done.out)["figures"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m, f: f.update({"model.pte": b"garbage" * 9}), "not an ExecuTorch program"),
        (lambda m, f: f.update({"model.tflite": b""}), "not a TFLite model"),
        (lambda m, f: f.update({"model.tflite": f["model.tflite"][:64]}), "not a TFLite model"),
        (lambda m, f: f.update({"vectors.json": b"{}"}), "test vectors do not fit"),
        (lambda m, f: f.update({"vectors.json": b"{"}), "vectors.json is not JSON"),
        (lambda m, f: f.update({"vectors.bin": b"short"}), "test vectors do not fit"),
        (lambda m, f: f.pop("vectors.bin"), "has no member vectors.bin"),
        (lambda m, f: m["figures"].append({"value": 1}), "does not have exactly the keys"),
        (lambda m, f: m["figures"][0].update(value="1"), "not a number"),
        (lambda m, f: m["models"][0].update(file="absent"), "has no member absent"),
        (lambda m, f: m["models"][0].update(dtype="int16"), "dtype"),
        (lambda m, f: m["models"][0]["input"].update(shape=[1, 3, 9, 9]), "test vectors do not fit"),
    ],
)
def test_bundles_that_someone_else_packed_wrongly_are_one_line(tiny, tmp_path, change, expected):
    done = call("validate", repacked(tiny, tmp_path / "x", change))
    assert done.code == 4
    (line,) = (line for line in done.err.splitlines() if line.startswith("paredown: "))
    assert expected in line and done.out == ""


def test_damaged_bundles_and_what_is_none(tiny, tmp_path):
    good = tiny.bundle.read_bytes()
    for name, data, expected in (
        ("truncated", good[:-100], "damaged"),
        ("flipped", good[:5000] + bytes([good[5000] ^ 4]) + good[5001:], "damaged"),
        ("empty", b"", "empty"),
        ("text", b"hello", "not a bundle"),
    ):
        (tmp_path / name).write_bytes(data)
        done = call("validate", tmp_path / name)
        assert done.code == 4 and expected in done.line()
    assert call("validate", tmp_path).code == 4
    done = call("validate", tmp_path / "absent", "--json")
    assert done.code == 4 and json.loads(done.out)["exit_code"] == 4
    assert json.loads(done.out)["error"] in done.err


def test_in_a_process_of_its_own_stdout_is_one_document(tiny):
    done = paredown("validate", tiny.bundle, "--json", "--times", 1, "--limit", 1)
    assert done.code == 0, done.err
    assert json.loads(done.out)["passed"]
    assert "{" not in done.err and "Traceback" not in done.err


def test_a_damaged_program_is_refused_before_any_device_gets_it():
    whole = unpack(Path(__file__).parents[2] / "golden/format-4/detector.paredown")
    (model,) = (each for each in whole.manifest.models if each.runtime == "executorch")
    cut = {**whole.members, model.file: whole.members[model.file][:5000]}
    with pytest.raises(
        InputError, match=r"model\.pte: not an ExecuTorch program: .* reaches beyond the file"
    ):
        programs.bundle_program(dataclasses.replace(whole, members=cut), model)
