"""Every module has a test file: of its own name, or one that is named here together with the reason.

Its own is `test_MODULE.py` or `test_FOLDER_MODULE.py`, FOLDER being one that the module lies in; it lies in
the same folder below tests/, or in one above that. Another one must at least reach the module by imports.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
from house import PACKAGE, Module, read_house

pytestmark = pytest.mark.unit
TESTS = Path(__file__).parent
ROOT = TESTS.parent
#: Test file -> why it is that of other modules -> these; a path without .py stands for all below it.
ELSEWHERE: dict[str, tuple[str, tuple[str, ...]]] = {
    "apps/detector/test_detector_task.py": (
        "where a network is from is shown by the task that it makes",
        ("apps/detector/origins/",),
    ),
    "pipeline/bundle/test_archive.py": (
        "a manifest is shown by the file that it is in",
        ("pipeline/bundle/manifest.py",),
    ),
    "pipeline/recipe/imports/keras/test_keras_layers.py": (
        "every layer is shown beside Keras's own",
        ("pipeline/recipe/imports/keras/layers/", "pipeline/recipe/imports/keras/maker.py"),
    ),
    "pipeline/recipe/imports/keras/tflite/test_tflite_load.py": (
        "every operation is shown beside TFLite's own",
        ("pipeline/recipe/imports/keras/tflite/operations.py",),
    ),
    "pipeline/recipe/imports/keras/test_keras_load.py": (
        "a configuration is shown by the model that is made of it",
        ("pipeline/recipe/imports/keras/graph.py",),
    ),
    "pipeline/recipe/imports/exported/test_exported_rebuild.py": (
        "operations are shown within the networks that they make",
        ("pipeline/recipe/imports/exported/operations.py",),
    ),
    "pipeline/recipe/imports/exported/test_exported_pt2.py": (
        "files of both kinds are looked at before they are loaded",
        ("pipeline/recipe/imports/exported/torchscript.py",),
    ),
    "pipeline/recipe/imports/test_huggingface.py": (
        "a folder is known by the files of transformers",
        ("pipeline/recipe/imports/folders.py",),
    ),
    "apps/api/training/test_training_source.py": (
        "a part is held out of every layout",
        ("apps/api/training/hold_out.py",),
    ),
    "apps/api/training/test_training_command.py": (
        "the training as a user calls it",
        ("apps/api/training/networks.py", "apps/api/training/outcome.py"),
    ),
    "pipeline/report/page/test_page_render.py": (
        "documents and sections are shown as the page has them",
        ("pipeline/report/page/document.py", "pipeline/report/page/sections.py"),
    ),
    "test_api.py": ("the API as a user calls it", ("apps/api/",)),
    "pipeline/bundle/finished/test_finished_program.py": (
        "what a child process says is asked for by its parent",
        ("pipeline/bundle/finished/child.py",),
    ),
    "apps/api/test_finished.py": (
        "preprocessing and data are shown by the bundle that is made with them",
        ("apps/api/finished_input.py",),
    ),
    "pipeline/device/test_validate.py": (
        "vectors and scores are judged by the validation of a bundle",
        ("pipeline/device/validate/",),
    ),
    "pipeline/store/test_stage.py": (
        "events and ledgers are what stages write",
        ("pipeline/store/event.py", "pipeline/store/ledger.py"),
    ),
    "apps/cli/test_cli_device.py": (
        "bench and cost as a user calls them",
        ("pipeline/device/bench/bench.py", "pipeline/device/latency/measure.py"),
    ),
    "apps/detector/web/test_web_site.py": (
        "the page's network takes floats",
        ("pipeline/lower/litert/float_io.py",),
    ),
    "pipeline/lower/executorch/writer/test_delegate.py": (
        "what is written is judged by its codes, and by the exporter's program",
        ("pipeline/lower/executorch/operands.py", "pipeline/lower/executorch/writer/"),
    ),
    "pipeline/lower/onnxruntime/test_onnxruntime_program.py": (
        "what is written is judged by what ONNX Runtime makes of it",
        tuple(f"pipeline/lower/onnxruntime/{name}.py" for name in ("aten", "kinds", "optimized", "writer")),
    ),
    "pipeline/lower/onnxruntime/openvino/test_openvino_program.py": (
        "what is written is judged by what OpenVINO makes of it",
        ("pipeline/lower/onnxruntime/openvino/",),
    ),
    "pipeline/graph/operations/activation/test_island.py": (
        "islands are shown on both runtimes, beside torch",
        ("pipeline/lower/litert/floats/", "pipeline/lower/executorch/islands.py"),
    ),
    "targets/devices/transports/test_local.py": (
        "the contract of all devices, here on this machine",
        (
            "targets/devices/device.py",
            "targets/devices/errors.py",
            "targets/devices/shell/conversation.py",
            "targets/devices/shell/dialogue.py",
            "targets/devices/shell/script.py",
            "targets/devices/shell/shell.py",
            "targets/devices/shell/worker.py",
            "targets/devices/transports/channel.py",
        ),
    ),
    "targets/emulated/test_board.py": (
        "an emulated board is all of them together",
        (
            "targets/emulated/instructions.py",
            "targets/emulated/server.py",
            "targets/emulated/sysroot.py",
            "targets/devices/programs.py",
        ),
    ),
    "targets/emulated/test_adb_board.py": (
        "what ends when its owner does is an emulator",
        ("targets/emulated/leash.py",),
    ),
    "targets/mcu/test_vela.py": (
        "whether a program fits is asked after it is compiled",
        ("targets/mcu/memory.py",),
    ),
    "targets/mcu/test_tflm.py": (
        "the interpreter lives in a process of its own",
        ("targets/mcu/tflm_process.py",),
    ),
    "pipeline/report/test_figures.py": (
        "a figure says on which machine it was measured",
        ("targets/host/host.py",),
    ),
    "apps/cli/test_cli.py": (
        "the commands as a user calls them, and their errors",
        (
            "apps/cli/",
            "targets/errors.py",
        ),
    ),
    "targets/runners/test_run_executorch.py": (
        "the runner that it builds is what is run",
        ("targets/runners/executorch_build.py",),
    ),
    "targets/runners/test_litert_runner.py": (
        "its one class is the runner",
        ("targets/runners/litert.py",),
    ),
    "pipeline/device/deploy/test_deploy.py": (
        "a device proves what is deployed to it",
        (
            "targets/runners/prove.py",
            "targets/devices/service/keeper.py",
        ),
    ),
    "pipeline/device/deploy/test_rollout.py": (
        "a rollout visits boards of a few lines",
        ("pipeline/device/deploy/visit.py",),
    ),
    "targets/devices/service/board/test_supervisor.py": (
        "a real supervisor is started and ended",
        (
            "targets/devices/service/board/home.py",
            "targets/devices/service/board/installing.py",
            "targets/devices/service/board/starting.py",
        ),
    ),
    "apps/detector/device/test_detect.py": (
        "the board's program reads an unpacked bundle",
        ("targets/runners/unpacked.py",),
    ),
    "calibration/test_datasets.py": (
        "all readers of boxes are compared",
        ("calibration/readers/records.py",),
    ),
    "calibration/test_calibrate.py": (
        "a calibration run is what it is about",
        ("calibration/run.py",),
    ),
    "pipeline/run/image/test_squantize_run.py": (
        "whole runs, whose codes are followed into every artefact",
        (
            "pipeline/bundle/packed/ledger.py",
            "pipeline/compress/training/setup.py",
        ),
    ),
    "golden/test_formats.py": (
        "the vectors that a bundle had years ago are computed anew",
        ("pipeline/bundle/vectors.py",),
    ),
    "pipeline/run/language/test_language_run.py": (
        "a whole run of a language model, to its proof on a device",
        (
            "pipeline/device/language/",
            "pipeline/lower/language/network.py",
            "apps/chat/device/score.py",
            "apps/chat/device/speed.py",
            "apps/chat/task.py",
        ),
    ),
    "pipeline/run/language/test_language_changes.py": (
        "what a recipe changes, and what for",
        (
            "pipeline/compress/blockwise/mixed_bits.py",
            "pipeline/compress/blockwise/qat_training.py",
            "pipeline/recipe/language_task.py",
        ),
    ),
    "pipeline/compress/coupling/test_coupling.py": (
        "a group of channels is what flows through reshapes",
        (
            "pipeline/compress/coupling/flow.py",
            "pipeline/compress/coupling/reshapes.py",
        ),
    ),
    "pipeline/compress/coupling/test_surgery.py": (
        "surgery traced again is what it cut",
        ("pipeline/compress/coupling/thin_graph.py",),
    ),
    "pipeline/compress/grids/test_block_grid.py": (
        "the weight is what the grid makes",
        ("pipeline/compress/grids/weight.py",),
    ),
    "pipeline/compress/sensitivity/test_forward.py": (
        "the masked network is compared with one that is cut",
        ("pipeline/compress/sensitivity/masked.py",),
    ),
    "pipeline/compress/squantize/test_layer_plans.py": (
        "bits that a budget chooses become plans",
        ("pipeline/compress/squantize/bits.py",),
    ),
    "pipeline/compress/squantize/test_qat_network.py": (
        "what is trained is folded to the very codes",
        ("pipeline/compress/squantize/fold.py",),
    ),
    "pipeline/compress/training/test_recover.py": (
        "the training is their only user",
        (
            "pipeline/compress/training/config.py",
            "pipeline/compress/training/features.py",
        ),
    ),
    "pipeline/run/image/test_prune_run.py": (
        "whole runs, whose artefacts are compared",
        ("pipeline/compress/training/recovery.py",),
    ),
    "pipeline/device/bench/test_profile.py": (
        "bench follows latency and knows each operation's share",
        ("pipeline/device/executor.py",),
    ),
    "pipeline/device/latency/test_latency.py": (
        "a table is made of measured layers",
        (
            "pipeline/device/latency/layer_times.py",
            "pipeline/device/latency/layers.py",
        ),
    ),
    "pipeline/run/test_proof.py": (
        "a proof on a device, also where it is rolled back",
        (
            "pipeline/device/rollback.py",
            "pipeline/device/microcontroller.py",
        ),
    ),
    "pipeline/graph/test_graph.py": (
        "what is traced computes what the network does, operation by operation",
        (
            "pipeline/graph/opaque.py",
            "pipeline/graph/aten.py",
            "pipeline/graph/operations",
            "pipeline/graph/trace.py",
        ),
    ),
    "pipeline/lower/language/test_language_executorch.py": (
        "the program is shorter and computes the same",
        ("pipeline/lower/executorch/constants.py",),
    ),
    "pipeline/lower/language/test_language_litert.py": (
        "operation by operation against torch",
        (
            "pipeline/lower/language/aten_litert.py",
            "pipeline/lower/language/aten_operations.py",
        ),
    ),
    "pipeline/lower/predict/test_inspect.py": (
        "what is predicted is compared with what the runtimes do",
        (
            "pipeline/lower/predict/placement.py",
            "pipeline/lower/predict/rules.py",
        ),
    ),
    "pipeline/recipe/imports/onnx/test_onnx_operations.py": (
        "each operation is shown beside onnxruntime",
        ("pipeline/recipe/imports/onnx/operations/",),
    ),
    "pipeline/recipe/imports/test_imports_read.py": (
        "what is read is what all importers give back",
        ("pipeline/recipe/imports/imported.py",),
    ),
    "pipeline/lower/test_parity.py": (
        "all runtimes are compared through it",
        ("pipeline/lower/runtimes.py",),
    ),
    "pipeline/recipe/test_recipe_file.py": (
        "a recipe's file is read by its schema",
        ("pipeline/recipe/schema.py",),
    ),
    "apps/classifier/test_classifier_task.py": (
        "a task is what an app makes",
        ("apps/classifier/labels.py",),
    ),
    "apps/classifier/test_classifier_network.py": (
        "networks of users, by their names",
        ("apps/classifier/catalogue.py",),
    ),
    "pipeline/run/test_run.py": (
        "whole runs, keyed, reused and explained",
        ("pipeline/run/",),
    ),
    "apps/chat/test_chat_terminal.py": (
        "the board's program is talked to",
        ("apps/chat/device/chat.py",),
    ),
    "apps/chat/test_chat_session.py": (
        "a conversation with its figures",
        ("apps/chat/device/generation/stats.py",),
    ),
    "apps/chat/test_chat_models.py": (
        "all runtimes are language models",
        (
            "apps/chat/device/language_model.py",
            "apps/chat/network/cache.py",
        ),
    ),
    "apps/chat/test_chat_remote.py": (
        "the two ends of a cable",
        ("apps/chat/device/serve.py",),
    ),
    "apps/chat/test_chat_tokens.py": (
        "packed tokens are read again",
        ("apps/chat/device/tokens/pack.py",),
    ),
    "apps/chat/test_chat_weights.py": (
        "files of transformers and llama.cpp",
        (
            "apps/chat/network/config.py",
            "apps/chat/weights/gguf.py",
            "apps/chat/weights/hf.py",
            "apps/chat/weights/rows.py",
        ),
    ),
    "apps/chat/test_chat_template.py": (
        "turns are what a template becomes",
        ("apps/chat/device/tokens/turns.py",),
    ),
    "apps/chat/test_chat_gemma_files.py": (
        "the files that are published",
        (
            "apps/chat/tokenizer.py",
            "apps/chat/weights/packaged.py",
        ),
    ),
    "apps/own/test_own_batches.py": (
        "pictures and colours of samples of any kind",
        ("apps/own/sheet.py",),
    ),
    "apps/own/test_tally.py": (
        "what is scored may be filled in first",
        ("apps/own/filled.py",),
    ),
    "apps/classifier/test_classifier_device.py": (
        "the board's program and what it shows",
        (
            "apps/classifier/device/classify.py",
            "apps/classifier/sheet.py",
        ),
    ),
    "apps/detector/darknet/test_darknet.py": (
        "what is read is written again",
        (
            "apps/detector/darknet/text.py",
            "apps/detector/darknet/write.py",
        ),
    ),
    "apps/detector/device/test_camera_app.py": (
        "the app with all its parts",
        (
            "apps/detector/device/camera.py",
            "apps/detector/device/drawing/overlay.py",
            "apps/detector/device/frames/frame.py",
            "apps/detector/device/frames/handover.py",
            "apps/detector/device/frames/holding.py",
            "apps/detector/device/frames/timing.py",
            "apps/detector/device/sinks/outputs.py",
            "apps/detector/device/processor.py",
        ),
    ),
    "apps/detector/device/boxes/test_tracker.py": (
        "tracks are what is counted",
        ("apps/detector/device/boxes/counting.py",),
    ),
    "apps/detector/device/boxes/test_decode.py": (
        "boxes are drawn where they are",
        ("apps/detector/device/drawing/draw.py",),
    ),
    "apps/detector/device/test_drone_app.py": (
        "the app with all its parts",
        (
            "apps/detector/device/drone.py",
            "apps/detector/device/flight/pilot.py",
        ),
    ),
    "apps/detector/train/test_train.py": (
        "the training and its command",
        (
            "apps/detector/train/batches.py",
            "apps/detector/train/config.py",
        ),
    ),
}
#: Modules without a test, and why.
UNTESTED = {
    "apps/chat/train_tiny.py": "made the weights that are shipped, once; the chat's tests run these",
}
#: No import leads to these: a device or another process runs them, or a recipe names their app.
BY_NAME = {
    "apps/chat/task.py",
    "targets/devices/service/keeper.py",
    "targets/mcu/tflm_process.py",
    "apps/chat/device/score.py",
    "apps/chat/device/speed.py",
}


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    return read_house(ROOT)


def files(house: dict[str, Module]) -> list[Path]:
    paths = (module.path.relative_to(ROOT) for module in house.values())
    return sorted(path for path in paths if path.name not in ("__init__.py", "__main__.py"))


def own(path: Path) -> Path | None:
    """A module's own test file."""
    folders = path.parts[:-1]
    names = [f"test_{path.stem}.py", *(f"test_{folder}_{path.stem}.py" for folder in folders)]
    for depth in range(len(folders), 0, -1):
        for name in names:
            if (found := TESTS.joinpath(*folders[:depth], name)).exists():
                return found
    return None


def named(path: Path) -> list[str]:
    """The entries that name a module or a folder of it."""
    return [
        entry for _, modules in ELSEWHERE.values() for entry in modules if path.as_posix().startswith(entry)
    ]


@functools.cache
def imported(path: str) -> frozenset[str]:
    """Everything that a file imports, anywhere in it; each is read once."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and str(node.value).startswith(f"{PACKAGE}."):
            found.add(str(node.value))  # run with `python -m`, or imported by its name
    return frozenset(found)


def reached(test: Path, house: dict[str, Module]) -> set[str]:
    """The modules that a test file imports, through helpers, fixtures and other modules, too."""
    waiting, seen = {str(test)}, set[str]()
    ours = set[str]()
    helpers = {path.stem: path for path in (TESTS / "helpers").glob("*.py")}
    if " tiny" in test.read_text() or "(tiny" in test.read_text():
        waiting.add(str(helpers["tiny_project"]))
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for found in imported(name):
            if found in helpers:
                waiting.add(str(helpers[found]))
            if found.startswith(f"{PACKAGE}.") and (module := house.get(found.removeprefix(f"{PACKAGE}."))):
                ours.add(module.path.relative_to(ROOT).as_posix())
                waiting.add(str(module.path))
    return ours


def test_every_module_has_a_test_file(house: dict[str, Module]) -> None:
    modules = files(house)
    assert len(modules) > 200
    known = (path for path in modules if own(path) or named(path) or path.as_posix() in UNTESTED)
    lacking = sorted({path.as_posix() for path in modules} - {path.as_posix() for path in known})
    assert lacking == [], "write a test file, or say in ELSEWHERE which one it is and why"


def test_the_list_holds_nothing_that_is_not_needed(house: dict[str, Module]) -> None:
    modules = {path.as_posix(): path for path in files(house)}
    listed = [entry for _, entries in ELSEWHERE.values() for entry in entries]
    assert len(listed) == len(set(listed))
    for entry in (*listed, *UNTESTED):
        inside = [path for name, path in modules.items() if name.startswith(entry)]
        assert inside, f"{entry} is gone"
        assert any(own(path) is None for path in inside), f"{entry} has a test file of its own"


@pytest.mark.parametrize("test", ELSEWHERE)
def test_another_one_reaches_the_module(house: dict[str, Module], test: str) -> None:
    why, entries = ELSEWHERE[test]
    assert len(why.split()) > 3
    found = reached(TESTS / test, house)
    for entry in entries:
        inside = {path.as_posix() for path in files(house) if path.as_posix().startswith(entry)}
        missed = {path for path in inside - found - BY_NAME if own(Path(path)) is None}
        assert not missed


def test_files_have_names_of_their_own() -> None:
    """Test folders are no packages: pytest refuses the second file of a name."""
    paths = sorted(TESTS.rglob("test_*.py"))
    names = [path.name for path in paths]
    assert [str(path) for path in paths if names.count(path.name) > 1] == []
