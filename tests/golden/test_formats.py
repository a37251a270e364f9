"""What earlier versions wrote opens, runs and proves itself; `make.py` made the files, version by version."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import make
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_project import call

from paredown.pipeline.bundle.archive import Bundle, extract, pack, unpack
from paredown.pipeline.bundle.manifest import FORMAT, PACKED, wire_bytes
from paredown.pipeline.bundle.vectors import expected
from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
from paredown.pipeline.device.deploy.deploy import deploy, release_archive
from paredown.pipeline.device.latency.latency import read_table
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.report.figures import read_figures, write_figures
from paredown.pipeline.store.checkpoint import load_checkpoint
from paredown.targets.address import open_device
from paredown.targets.devices.service.service import Service
from paredown.targets.errors import InputError
from paredown.targets.runners.expand import expand_programs, unpack_codes
from paredown.targets.runners.prove import prove

HERE = Path(__file__).parent
VERSIONS = sorted(HERE.glob("format-*"), key=lambda folder: int(folder.name.partition("-")[2]))
NUMBERS = {name: int(name.partition("-")[2]) for name in (folder.name for folder in VERSIONS)}
LARGEST = 200_000  # bytes of all golden files of bundles and runs


@pytest.fixture(params=VERSIONS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


@pytest.fixture(params=[folder for folder in VERSIONS if (folder / "run.zip").exists()], ids=lambda f: f.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The files of a run of a version, unzipped, and what was noted of them."""
    files = tmp_path / "golden"
    with zipfile.ZipFile(request.param / "run.zip") as archive:
        archive.extractall(files)
    for name in ("made.json", "detector.paredown"):
        shutil.copy(request.param / name, files)
    return files


@pytest.fixture
def bundle(golden: Path) -> Bundle:
    return unpack(golden / "detector.paredown")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def facts(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "made.json").read_text())


def test_every_format_that_can_be_read_has_golden_files_and_they_are_small() -> None:
    assert {3, FORMAT} <= set(NUMBERS.values())
    sizes = [path.stat().st_size for path in HERE.glob("format-*/*")]
    assert len(sizes) >= 5 and sum(sizes) < LARGEST


def test_a_bundle_opens_and_its_programs_are_the_very_bytes(golden: Path) -> None:
    noted = {name: entry for name, entry in facts(golden).items() if name.endswith(".paredown")}
    assert "detector.paredown" in noted
    for name, entry in noted.items():
        opened = unpack(golden / name)
        assert opened.manifest.format == entry["format"] == NUMBERS[golden.name]
        assert sha256(opened.text) == entry["manifest"] and len(opened.members) == entry["members"]
        programs = {program.file: sha256(opened.read(program.file)) for program in opened.manifest.programs}
        assert programs == entry["programs"] and programs


def test_packed_programs_expand(golden: Path, bundle: Bundle) -> None:
    assert set(wire_bytes(bundle.manifest)) == {"shared"}  # else nothing here was packed
    with zipfile.ZipFile(bundle.path) as archive:
        programs = expand_programs(archive.read(PACKED))
    noted = facts(golden)["detector.paredown"]["programs"]
    assert {name: sha256(data) for name, data in programs.items()} == noted and len(noted) == 2


def test_test_vectors_run_here_with_no_code_different(bundle: Bundle, tmp_path: Path) -> None:
    extract(bundle, tmp_path)
    proof = prove(tmp_path)
    assert proof["differing"] == 0 and proof["codes"] > 100 and proof["members"] == len(bundle.members)


def test_a_bundle_passes_validation(bundle: Bundle) -> None:
    done = call("validate", bundle.path, "--no-score", "--json", "--times", 1)
    assert done.code == 0, done.out + done.err
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert checks.keys() == {
        "hashes", "executorch size", "executorch vectors", "litert size", "litert vectors",
    }  # fmt: skip
    assert all(check["passed"] for check in checks.values())
    for runtime in ("executorch", "litert"):
        assert checks[f"{runtime} vectors"]["detail"].startswith("0 of ")


def test_a_bundle_scores_what_it_says_where_its_data_lies(bundle: Bundle, tmp_path: Path) -> None:
    recipe = make.make_project(tmp_path)
    manifest = json.loads(bundle.text.decode().replace("/tmp/golden/detector", str(tmp_path)))
    del manifest["members"]  # the format stays
    moved = tmp_path / "moved.paredown"
    moved.write_bytes(pack(manifest, bundle.members))
    assert unpack(moved).manifest.format == bundle.manifest.format
    done = call("validate", moved, "--json", "--times", 1, "--recipe", recipe)
    found = json.loads(done.out)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["litert score"]["passed"] and checks["executorch score"]["passed"], done.out
    scores = {(f["variant"], f["metric"]): f["value"] for f in found["figures"]}
    noted = {(f["variant"], f["metric"]): f["value"] for f in bundle.manifest.figures}
    for cell in (("litert", "map50"), ("executorch", "map"), ("litert", "file_bytes")):
        assert scores[cell] == noted[cell]
    assert noted["litert", "map50"] > 0


#: A board has no paredown but the release that it stands in.
BOARD = """
import importlib.machinery, os, sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "paredown":
            return None
        keepers = [place for place in sys.path if place.endswith((".pyz", "/keeping"))]
        spec = importlib.machinery.PathFinder.find_spec(name, [os.getcwd(), *keepers])
        if spec is None:
            raise ModuleNotFoundError("no paredown on this board", name=name)
        return spec

sys.meta_path.insert(0, Absent)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of its own, in which nothing stays running."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "sitecustomize.py").write_text(BOARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "board"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    yield folder
    with open_device("local:") as device:
        Service(device, "camera").stop(grace_s=0.5)


def test_its_own_device_code_proves_it_and_runs_when_it_is_deployed(
    bundle: Bundle, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version's code is refused; where it is trusted all the same, it still does what it did."""
    with open_device("local:") as device, pytest.raises(InputError, match="code that is not this version's"):
        deploy(bundle.path, device)
    monkeypatch.setattr("paredown.pipeline.device.deploy.deploy.require_known_code", lambda bundle: None)
    film = tmp_path / "film"
    film.mkdir()
    for index in range(3):
        cv2.imwrite(str(film / f"{index}.png"), np.zeros((72, 96, 3), np.uint8))
    with open_device("local:") as device:
        made = deploy(bundle.path, device, arguments=("--source", str(film), "--json"))
        assert made.differing == 0 and made.codes > 100
        said: list[str] = []
        Service(device, "camera").logs(said.append, follow=True)
    documents = [json.loads(line) for line in said if line.startswith("{")]
    assert [document["frame"] for document in documents[:-1]] == [0, 1, 2]
    folder = (home / ".local/share/paredown/camera/current").resolve()
    there = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert there == {**bundle.members, "manifest.json": bundle.text}
    assert folder.name == sha256(release_archive(bundle))[: len(folder.name)]


def test_figures_parse_and_are_written_as_they_were(run: Path, tmp_path: Path) -> None:
    figures = read_figures(run / "figures.json")
    assert {("fp32", "map50"), ("litert", "latency_p50")} <= {(f.variant, f.metric) for f in figures}
    assert {figure.where.cpu for figure in figures} == {"a CPU"}
    write_figures(tmp_path / "again.json", figures)
    assert (tmp_path / "again.json").read_bytes() == (run / "figures.json").read_bytes()


def test_the_ledger_reads_and_is_explained(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "stages.json", tmp_path)
    entries = json.loads((run / "stages.json").read_text())
    done = call("explain", tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [f"{entry['name']}: ran: first run" for entry in entries]
    assert {"trace", "calibrate", "lower-litert", "bundle"} <= {entry["name"] for entry in entries}
    # a run after it is compared with it
    entries[0]["params"] = {**entries[0]["params"], "more": 1}
    (tmp_path / "stages.previous.json").write_text((run / "stages.json").read_text())


def test_a_training_goes_on_from_its_checkpoint(run: Path, tmp_path: Path) -> None:
    state = load_checkpoint(run / "checkpoint.pt")
    assert state["step"] == 5 and len(state["history"]) == 1
    shutil.copy(run / "checkpoint.pt", tmp_path)
    resumed = make.train(tmp_path / "checkpoint.pt")
    straight = make.train(tmp_path / "other.pt")
    assert resumed.steps == straight.steps == 12
    assert [row["step"] for row in resumed.history] == [3, 6, 9, 12]
    assert resumed.best == pytest.approx(straight.best, rel=1e-4)
    for name, values in straight.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], values, rtol=1e-4, atol=1e-5)


def test_packed_codes_expand(run: Path) -> None:
    codes = unpack_codes((run / "codes.packed").read_bytes())
    assert sha256(codes.tobytes()) == facts(run)["codes.packed"]
    np.testing.assert_array_equal(codes, np.concatenate([layer.ravel() for layer in make.layers()]))


def test_a_latency_table_reads(run: Path) -> None:
    found, times = read_table(run / "latency.json")
    assert found == {"card": "host", "runtime": "litert", "version": "2.3.0", "machine": "a CPU"}
    assert {(shape.kind, shape.output): ms for shape, ms in times.items()} == {
        ("conv", (1, 8, 32, 32)): 0.5, ("add", (1, 8, 4, 4)): 1.0, ("input", (1, 8, 4, 4)): 1.5,
    }  # fmt: skip
    (conv,) = (shape for shape in times if shape.kind == "conv")
    assert dict(conv.attrs)["filter"] == (3, 3) and conv.clamp == "relu"


def test_a_sensitivity_table_reads(run: Path) -> None:
    document = json.loads((run / "sensitivity.json").read_text())["sensitivity"]
    found = Sensitivity.from_dict(document)
    assert json.loads(json.dumps(found.to_dict())) == document and found.images > 0


def test_a_dumped_graph_computes_what_it_did(run: Path) -> None:
    structure = (run / "graph.graph.json").read_bytes()
    arrays = load_file(run / "graph.arrays.safetensors")
    graph = Graph.load(structure, arrays)
    again, same = graph.dump()
    assert again == structure and same.keys() == arrays.keys()
    np.testing.assert_allclose(make.outputs(graph), facts(run)["graph"], rtol=1e-4, atol=1e-5)


def test_a_dumped_integer_graph_gives_the_codes_of_its_bundle(run: Path) -> None:
    structure = (run / "integer.graph.json").read_bytes()
    arrays = load_file(run / "integer.arrays.safetensors")
    graph, bundle = IntegerGraph.load(structure, arrays), unpack(run / "detector.paredown")
    again, same = graph.dump()
    assert again == structure and all(np.array_equal(same[name], arrays[name]) for name in arrays)
    model = next(model for model in bundle.manifest.models if model.runtime == "litert")
    described, codes = expected(graph)
    assert codes == bundle.read(f"{model.vectors}.bin")
    assert json.loads(described) == bundle.json(f"{model.vectors}.json")
