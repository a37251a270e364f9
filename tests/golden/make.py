"""Makes the golden files: what a version wrote, which every later one must open.

    python -P tests/golden/make.py CHECKOUT FOLDER [--bundle]

runs the code of a checkout of any version, this one or an older, and writes into a new folder what
`test_formats.py` opens: `tests/golden/format-3/` was made by the last version of bundle format 3,
`tests/golden/format-4/` by the first of format 4. A new format gets a folder of its own, made before it is
given up; an existing folder is never made again. `detector.paredown` is a pruned and squantized bundle,
`run.zip` has the other files that a version writes (with `--bundle` there is none: where only the bundle's
format is another), `made.json` notes what all of them must become. The machine and its versions are made up
(`keys.py`), and the project lies in /tmp/golden, so nothing in the files tells where they were made;
latencies are whatever they were. The bundle of even the smallest language model takes 85 kB, for the graph
of its program, and is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PROJECTS = Path("/tmp/golden")
PRUNED = (
    "prune.macs=0.6", "prune.multiple=2", "prune.weight_sparsity=0.3", "recover.epochs=2", "recover.batch=2",
    "squantize.weight_bits=4", "squantize.sparsity=0.5", "squantize.epochs=2", "squantize.batch=2",
)  # fmt: skip
SEED = 8  # of weights and images: it finds something
#: Stage -> what of its artefact is kept, under which name.
KEPT = {"trace": "graph", "integer": "integer"}
#: Module of today -> where it was before the package had one name.
BEFORE = {
    "targets.host.host": "targets.host",
    "pipeline.graph.graph": "pipeline.graph",
    "pipeline.bundle.archive": "pipeline.bundle",
    "pipeline.bundle.packed.packing": "pipeline.packing",
    "pipeline.compress.training.recover": "pipeline.recover",
    "pipeline.compress.training.config": "pipeline.recover_config",
    "pipeline.device.latency.latency": "pipeline.prune.latency",
    "pipeline.device.latency.layers": "pipeline.prune.layers",
}
CONFIG = {
    "method": "labels", "epochs": 4.0, "warmup": 1, "lr": 0.05, "ema": 0.9, "patience": 99,
    "checkpoint_every": 1,
}  # fmt: skip


def module(name: str) -> Any:
    """A module of the checkout, by its name of today."""
    if not (Path(sys.path[0]) / "pipeline" / "packing.py").exists():
        return importlib.import_module(f"paredown.{name}")
    return importlib.import_module(BEFORE.get(name, name))


def layers() -> list[np.ndarray]:
    """Codes of every kind that is packed: alphabets that fill a byte and that do not, gaps, none, nothing."""
    chance = np.random.default_rng(3)
    alphabets = [np.arange(-(kinds // 2), kinds - kinds // 2 + 1) for kinds in (2, 3, 4, 6, 14, 16, 17)]
    made = [chance.choice(alphabet, (7, 9)) for alphabet in alphabets]
    gaps = np.where(chance.random((12, 8, 3, 3)) < 0.9, 0, chance.integers(-7, 8, (12, 8, 3, 3)))
    full, one = chance.integers(-128, 128, (20, 20)), np.where(chance.random((30, 10)) < 0.95, 0, 4)
    return [layer.astype(np.int8) for layer in (*made, gaps, full, one, np.zeros(50))]


def network() -> Any:
    """A network whose weights are the same everywhere."""
    from torch import nn

    made = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    )
    import torch

    chance = np.random.default_rng(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.from_numpy(chance.uniform(-0.5, 0.5, tuple(parameter.shape))))
    return made.eval()


class Batches:
    """Images whose label is whether they are bright: a pure function of the step."""

    per_epoch = 3

    def __call__(self, step: int) -> tuple[Any, Any]:
        import torch

        chance = np.random.default_rng(step)
        labels = chance.integers(0, 2, 4)
        images = chance.random((4, 3, 8, 8)) + labels[:, None, None, None]
        return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


def loss(outputs: Any, labels: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(outputs, labels)


def evaluate(network: Any) -> float:
    import torch

    with torch.no_grad():
        return -float(loss(network(Batches()(1000)[0]), Batches()(1000)[1]))


def train(checkpoint: Path, stop: int | None = None) -> Any:
    """A recovery that goes on from the checkpoint; it ends by itself or after so many steps."""

    class Stop(Exception):
        pass

    def tick(done: int, total: int) -> None:
        if stop is not None and done > stop:
            raise Stop

    config = module("pipeline.compress.training.config").RecoverConfig(**CONFIG)
    recover = module("pipeline.compress.training.recover").recover
    with contextlib.suppress(Stop):
        return recover(
            network(), Batches(), config, label_loss=loss, evaluate=evaluate, checkpoint=checkpoint,
            identity="golden", tick=tick,
        )  # fmt: skip
    return None


def latency_table(path: Path) -> None:
    """A table of made-up times."""
    shape = module("pipeline.device.latency.layers").LayerShape
    conv = (("filter", (3, 3)), ("groups", 1), ("padding", (1, 1)), ("stride", (2, 2)))
    shapes = [
        shape("conv", ((1, 3, 64, 64),), (1, 8, 32, 32), conv, "relu"), shape("add", ((1, 8, 4, 4),) * 2,
        (1, 8, 4, 4)), shape("input", ((1, 8, 4, 4),), (1, 8, 4, 4)),
    ]  # fmt: skip
    facts = {"card": "host", "runtime": "litert", "version": "2.3.0", "machine": "a CPU"}
    times = {each: 0.5 * (place + 1) for place, each in enumerate(shapes)}
    table = module("pipeline.device.latency.latency").LatencyTable(facts, path, lambda part: times)
    table.need(shapes)


def make_project(folder: Path) -> Path:
    """The tiny project of the tests at half its size: smaller test vectors; returns the recipe."""
    import tiny_project

    whole = tiny_project.CFG
    halved = whole.replace("=64", "=32").replace("3.3,4.4, 2.8,3.8", "1.65,2.2, 1.4,1.9")
    assert halved.count("=32") == 2 and "1.65" in halved
    tiny_project.CFG = halved
    try:
        return tiny_project.make_project(folder, SEED)
    finally:
        tiny_project.CFG = whole


def run(recipe: Path | str, runs: Path, *settings: str) -> Path:
    """A finished run; its folder."""
    from tiny_project import call

    words = [word for setting in settings for word in ("--set", setting)]
    done = call("run", recipe, "--runs", runs, *words)
    if done.code:
        raise SystemExit(done.err)
    return runs / Path(recipe).stem / "host"


def artefact(runs: Path, stage: str) -> Path:
    """The folder of a stage's artefact."""
    (found,) = (
        path.parent
        for path in (runs / ".store").glob("*/artefact.json")
        if json.loads(path.read_text())["meta"]["stage"] == stage
    )
    return found


def outputs(graph: Any) -> list[float]:
    """The first numbers of what a dumped graph computes for one image."""
    import torch

    (source,) = (node for node in graph.nodes if node.kind == "input")
    image = torch.linspace(0, 1, int(np.prod(source.shape))).reshape(source.shape)
    values = graph.run(image)
    return [float(value) for name in graph.outputs for value in values[name].flatten()[:8]]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def bundle_facts(path: Path) -> dict[str, Any]:
    """What the bundle's programs must expand to."""
    bundle = module("pipeline.bundle.archive").unpack(path)
    files = [program.file for program in bundle.manifest.programs]
    return {
        "format": bundle.manifest.format, "manifest": sha256(bundle.text), "members": len(bundle.members),
        "programs": {file: sha256(bundle.members[file]) for file in files},
    }  # fmt: skip


def bundle(recipe: Path, out: Path, files: Path) -> dict[str, Any]:
    """The detector's bundle, and files of the run that made it."""
    made = run(recipe, PROJECTS / "runs", *PRUNED)
    shutil.copy(made / "bundle.paredown", out / "detector.paredown")
    shutil.copy(made / "sensitivity.json", files / "sensitivity.json")
    for stage, name in KEPT.items():
        found = artefact(PROJECTS / "runs", stage)
        for part in ("graph.json", "arrays.safetensors"):
            shutil.copy(found / part, files / f"{name}.{part}")
    return {"detector.paredown": bundle_facts(out / "detector.paredown")}


def others(recipe: Path, files: Path) -> dict[str, Any]:
    """What else a version writes; the run is a plain one, for it has fewer figures and stages."""
    plain = run(recipe, PROJECTS / "plain", 'lower.runtimes=["litert"]')
    for name in ("figures.json", "stages.json"):
        shutil.copy(plain / name, files / name)
    train(files / "checkpoint.pt", stop=5)
    latency_table(files / "latency.json")
    (files / "codes.packed").write_bytes(module("pipeline.bundle.packed.packing").pack_codes(*layers()))
    arrays = importlib.import_module("safetensors.numpy").load_file(files / "graph.arrays.safetensors")
    graph = module("pipeline.graph.graph").Graph.load((files / "graph.graph.json").read_bytes(), arrays)
    codes = sha256(b"".join(layer.tobytes() for layer in layers()))
    return {"codes.packed": codes, "graph": outputs(graph)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Makes the golden files of a version.")
    parser.add_argument("checkout", type=Path, help="of the version")
    parser.add_argument("folder", type=Path, help="a new folder for the files")
    parser.add_argument("--bundle", action="store_true", help="the bundle alone")
    given = parser.parse_args()
    tree, out = given.checkout.resolve(), given.folder.resolve()
    sys.path[:0] = [str(tree), str(tree / "tests"), str(tree / "tests" / "helpers")]
    importlib.import_module("torch").set_num_threads(1)
    spec = importlib.util.spec_from_file_location("keys", HERE / "keys.py")
    keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keys)
    keys.stand_still(module("targets.host.host"))
    shutil.rmtree(PROJECTS, ignore_errors=True)
    files, project = PROJECTS / "files", PROJECTS / "detector"
    for folder in (out, files, project):
        folder.mkdir(parents=True)
    os.environ["PYTHONPATH"] = str(tree)  # where the children that it starts look,
    os.chdir(PROJECTS)  # and here are no rooms of another version
    recipe = make_project(project)
    made = bundle(recipe, out, files)
    if not given.bundle:
        made |= others(recipe, files)
        with zipfile.ZipFile(out / "run.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(files.iterdir()):
                archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    (out / "made.json").write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(PROJECTS)


if __name__ == "__main__":
    main()
