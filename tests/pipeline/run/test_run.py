"""Whole runs: keyed, reused, explained, killed and resumed, two at once, on full and read-only disks."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Command
from tiny_project import ROOT, Done, call, copy_project, copy_runs, python

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.run.image.summary.summary import Summary
from paredown.pipeline.run.run import recipe_name
from paredown.pipeline.store.store import MANIFEST, Store
from paredown.targets.errors import UsageError

LIGHT = ("--set", 'lower.runtimes=["litert"]')  # no ExecuTorch: a process of its own then takes seconds less


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the sha256 of its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def outcomes(done: Done) -> dict[str, str]:
    """Stage name -> "done" or "reused", from the lines on standard error."""
    return {
        name: rest.split()[0] for name, _, rest in (line.partition(": ") for line in done.err.splitlines())
    }


def sound(runs: Path) -> bool:
    """Whether every artefact is complete, byte by byte, and no temporary folder is left."""
    store = Store(runs / ".store")
    keys = [path.name for path in store.root.iterdir() if (path / MANIFEST).exists()]
    return (
        len(keys) > 5
        and all(store.get(key, verify=True) for key in keys)
        and not list(store.root.glob(".tmp/*"))
    )


# -- what a run leaves ---------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_says(tiny):
    assert {path.name for path in tiny.run.iterdir()} == {
        "bundle.paredown", "figures.json", "preview.png", "report.md", "recipe.toml", "stages.json",
        "report.html", "report.json", "model.pte", "model.tflite", "run.log",
    }  # fmt: skip
    figures = {(f["variant"], f["metric"]): f for f in tiny.figures()}
    assert {f["tag"] for f in figures.values()} == {"measured"}
    assert figures["litert", "parity_lsb"]["value"] == figures["executorch", "parity_lsb"]["value"] == 0
    assert figures["litert", "bundle_bytes"]["value"] == tiny.bundle.stat().st_size
    # 16*3*3*8 MACs at 16x16 after 3*3*3*8 at 32x32, and 14*16 at 16x16: counted by hand
    assert figures["fp32", "macs"]["value"] == 216 * 32 * 32 + 1152 * 16 * 16 + 224 * 16 * 16
    for variant in ("executorch", "litert", "executorch-fp32", "litert-fp32"):
        assert figures[variant, "latency_p50"]["value"] > 0 and figures[variant, "memory_peak"]["value"] > 10
    assert figures["litert", "memory_peak"]["value"] < 150, "the LiteRT process has imported torch"
    assert sound(tiny.runs)


def test_the_bundle_holds_no_time_and_the_recipe_file_runs_again(tiny, tmp_path):
    metrics = {figure["metric"] for figure in unpack(tiny.bundle).manifest.figures}
    assert "map50" in metrics and not any(metric.startswith("latency") for metric in metrics)
    copy_runs(tiny, tmp_path / "runs")
    done = call("run", tiny.run / "recipe.toml", "--runs", tmp_path / "runs", "--json")
    assert done.code == 0
    again = outcomes(done)
    assert {name for name, outcome in again.items() if outcome == "done"} == {"bundle"}  # it carries the name
    assert json.loads(done.out)["run"] == str(tmp_path / "runs" / "recipe" / "host")


def test_a_second_run_reuses_everything_and_imports_no_torch(tiny, tmp_path):
    runs = copy_runs(tiny, tmp_path / "runs")
    before = tree(runs / "tiny" / "host")
    code = (
        "import sys\n"
        "from paredown.apps.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print([m for m in ('torch', 'executorch', 'ai_edge_litert') if m in sys.modules])"
    )
    done = python(code, "run", tiny.recipe, "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    lines = done.stderr.splitlines()
    assert len(lines) >= 16 and all(line.endswith(": reused") for line in lines)
    after = tree(runs / "tiny" / "host")
    assert {name for name in after if after[name] != before.get(name)} == {
        "run.log",
        "stages.json",
        "stages.previous.json",
    }
    explained = call("explain", runs / "tiny" / "host")
    assert all(line.endswith(": reused: nothing changed") for line in explained.out.splitlines())


@pytest.mark.slow
def test_two_makers_of_the_same_inputs_get_the_same_bytes(tiny, tmp_path):
    made = []
    for user in ("ann", "bob-with-a-longer-name"):
        recipe = copy_project(tiny, tmp_path / "home" / user / "project")
        home = {"HOME": str(tmp_path / "home" / user), "USER": user, "LOGNAME": user}
        command = [
            sys.executable,
            "-m",
            "paredown.apps.cli.main",
            "run",
            recipe.name,
            "--set",
            "bench.runs=1",
        ]
        env = {**os.environ, **home, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=recipe.parent, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append((recipe.parent / "runs" / "tiny" / "host" / "bundle.paredown").read_bytes())
    assert made[0] == made[1]


# -- what changed, and why -----------------------------------------------------------------------------------


def test_explain_names_the_option_and_the_stages_behind_it(tiny, tmp_path):
    runs, folder = copy_runs(tiny, tmp_path / "runs"), tmp_path / "runs" / "tiny" / "host"
    assert call("run", tiny.recipe, "--runs", runs, *LIGHT).code == 0
    done = call("run", tiny.recipe, "--runs", runs, *LIGHT, "--set", "quantize.observer=percentile")
    assert done.code == 0, done.err
    assert {name for name, o in outcomes(done).items() if o == "reused"} == {
        "trace", "lower-litert-fp32", "score-fp32",
    }  # fmt: skip
    why = dict(line.split(": ", 1) for line in call("explain", folder).out.splitlines())
    assert why["trace"] == "reused: nothing changed"
    assert 'observer changed from "auto" to "percentile"' in why["calibrate"]
    assert why["integer"] == "ran: input ranges changed because stage calibrate ran"
    assert why["lower-litert"] == "ran: input integer changed because stage integer ran"
    document = json.loads(call("explain", folder, "--json").out)
    assert document["stages"] == [f"{name}: {reason}" for name, reason in why.items()]
    done = call("run", tiny.recipe, "--runs", runs, *LIGHT)
    assert set(outcomes(done).values()) == {"reused"}, "going back finds the older artefacts"
    assert "that artefact was in the store" in call("explain", folder).out


def test_other_weights_run_again_and_touched_ones_do_not(tiny, tmp_path):
    recipe, runs = copy_project(tiny, tmp_path / "mine"), copy_runs(tiny, tmp_path / "runs")
    assert call("run", recipe, "--runs", runs, *LIGHT).code == 0
    weights = recipe.with_name("tiny.weights")
    os.utime(weights)
    (recipe.parent / "images" / "train" / "0.png").touch()
    assert set(outcomes(call("run", recipe, "--runs", runs, *LIGHT)).values()) == {"reused"}
    data = bytearray(weights.read_bytes())
    data[-6] ^= 0x10  # in the last float's neighbour: still a finite number
    weights.write_bytes(data)
    done = call("run", recipe, "--runs", runs, *LIGHT)
    assert done.code == 0 and set(outcomes(done).values()) == {"done"}
    assert "trace: ran: input weights has other content" in call("explain", runs / "tiny" / "host").out


def test_a_damaged_artefact_is_made_again(tiny, tmp_path):
    runs = copy_runs(tiny, tmp_path / "runs")
    (program,) = [
        path.parent / "ranges.json"
        for path in (runs / ".store").glob("*/artefact.json")
        if json.loads(path.read_text())["meta"]["stage"] == "calibrate"
    ]
    before = program.read_bytes()
    program.write_bytes(before[:-5])
    done = call("run", tiny.recipe, "--runs", runs)
    assert [name for name, outcome in outcomes(done).items() if outcome == "done"] == ["calibrate"]
    assert program.read_bytes() == before
    assert (
        "calibrate: ran: its artefact was damaged: ranges.json" in call("explain", runs / "tiny" / "host").out
    )


# -- dry runs, smoke runs, budgets, boards -------------------------------------------------------------------


def test_a_dry_run_prints_recipe_and_plan_and_writes_nothing(tiny, tmp_path):
    done = call("run", tiny.recipe, "--runs", tmp_path / "none", "--dry-run", "--set", "bench.runs=7")
    assert done.code == 0 and not (tmp_path / "none").exists()
    assert "runs = 7" in done.out and "calibration_images = 128" in done.out
    assert done.out.count("would run") == 18 and "reused" not in done.out
    runs = copy_runs(tiny, tmp_path / "runs")
    before = tree(runs)
    done = call("run", tiny.recipe, "--runs", runs, "--dry-run", "--json", "--set", "bench.runs=7")
    assert tree(runs) == before
    plan = json.loads(done.out)
    assert plan["recipe"]["bench"]["runs"] == 7
    assert [s["name"] for s in plan["stages"] if not s["cached"]] == ["bench", "bundle"]
    assert "[" not in done.err


def test_smoke_says_smoke_on_every_figure(tiny, tmp_path):
    runs = copy_runs(tiny, tmp_path / "runs")
    # a budget that a real run breaks: smoke figures prove nothing and break nothing
    done = call(
        "run", tiny.recipe, "--runs", runs, *LIGHT, "--smoke", "--set", "budget.bundle_kib=1", "--json"
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert len(document["figures"]) > 20 and {f["tag"] for f in document["figures"]} == {"smoke"}
    done = call("run", tiny.recipe, "--runs", runs, *LIGHT, "--smoke")
    rows = [
        line.split() for line in done.out.splitlines() if line.startswith((" fp32", " litert", " integer"))
    ]
    assert len(rows) == 4 and all(cell.endswith("!") or cell == "-" for row in rows for cell in row[1:])
    assert "smoke run" in done.out
    report = (runs / "tiny" / "host" / "report.md").read_text()
    assert "(smoke)" in report and "| executorch |" not in report


def test_a_broken_budget_is_exit_code_3_and_says_what_by_how_much(tiny, tmp_path):
    runs = copy_runs(tiny, tmp_path / "runs")
    limits = ("--set", "budget.bundle_kib=10", "--set", "budget.latency_ms=0.00001")
    done = call("run", tiny.recipe, "--runs", runs, *limits)
    assert done.code == 3
    size = (runs / "tiny" / "host" / "bundle.paredown").stat().st_size / 1024
    lines = [line for line in done.out.splitlines() if line.startswith("over budget: ")]
    assert len(lines) == 4
    assert f"over budget: litert: bundle_kib is {size:.4g}, {size - 10:.4g} over the budget of 10" in lines
    assert "| BROKEN |" in (runs / "tiny" / "host" / "report.md").read_text()
    done = call("run", tiny.recipe, "--runs", runs, *limits, "--json")
    assert done.code == 3 and len(json.loads(done.out)["over_budget"]) == 4
    assert set(outcomes(done).values()) == {"reused"}


def test_a_board_gets_a_bundle_and_no_latency(tiny, tmp_path):
    runs = copy_runs(tiny, tmp_path / "runs")
    done = call("run", tiny.recipe, "--runs", runs, "--target", "raspberry-pi-5", "--json")
    assert done.code == 0, done.err
    made = {name for name, outcome in outcomes(done).items() if outcome == "done"}
    assert made == {"bundle"}, "programs of the same runtimes are made and scored once"
    document = json.loads(done.out)
    assert not any(f["metric"].startswith(("latency", "memory")) for f in document["figures"])
    assert any("not validated on a device" in note for note in document["notes"])
    folder = runs / "tiny" / "raspberry-pi-5"
    assert "not validated on a device" in (folder / "report.md").read_text()
    done = call("validate", folder / "bundle.paredown", "--limit", 1)
    assert done.code == 0 and "not measured: this machine is no raspberry-pi-5" in done.out


def test_a_card_of_the_users_own(tiny, tmp_path):
    runs, card = copy_runs(tiny, tmp_path / "runs"), tmp_path / "mine.toml"
    text = (ROOT / "targets" / "cards" / "raspberry-pi-5.toml").read_text()
    card.write_text(text.replace('name = "raspberry-pi-5"', 'name = "my-board"'))
    assert call("run", tiny.recipe, "--runs", runs, "--target", card).code == 0
    done = call("validate", runs / "tiny" / "my-board" / "bundle.paredown", "--no-score", "--json")
    assert done.code == 0 and "this machine is no my-board" in done.out


# -- killed, doubled, out of space ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def light(tiny, tmp_path_factory) -> Path:
    """The runs folder of two runs that were at work at the same time, in one store."""
    runs = tmp_path_factory.mktemp("two")
    both = [Command(("run", tiny.recipe, "--runs", runs, *LIGHT)) for _ in range(2)]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "Traceback" not in err and "bundle.paredown" in out
    return runs


def test_two_runs_at_once_do_each_other_no_harm(tiny, light):
    assert sound(light)
    done = call("run", tiny.recipe, "--runs", light, *LIGHT, "--json")
    assert done.code == 0 and set(outcomes(done).values()) == {"reused"}


def test_runs_killed_at_random_moments_end_with_the_same_bytes(tiny, light, tmp_path):
    choice = random.Random(20181)
    runs = tmp_path / "runs"
    killed = 0
    for stages in (0, 2, 7):  # let so many stages of this attempt finish, then wait a little, and kill
        process = Command(("run", tiny.recipe, "--runs", runs, *LIGHT))
        for _ in range(stages):
            process.stderr.readline()
        time.sleep(choice.uniform(0, 0.1 if stages else 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 2, "the kills came too late to prove anything"
    done = call("run", tiny.recipe, "--runs", runs, *LIGHT, "--json")
    assert done.code == 0, done.err
    assert "reused" in outcomes(done).values()
    bundle = Path("tiny", "host", "bundle.paredown")
    assert (runs / bundle).read_bytes() == (light / bundle).read_bytes()
    assert sound(runs)


def in_namespace(options: str, folder: Path, *arguments: object) -> Done:
    """Runs the command where `folder` is a file system of its own, mounted with these options."""
    script = f'mount -t tmpfs -o {options} none "{folder}" && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-m",
            "paredown.apps.cli.main",
            *map(str, arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_is_one_line(tiny, tmp_path):
    done = in_namespace("size=48k", tmp_path, "run", tiny.recipe, "--runs", tmp_path / "runs", *LIGHT)
    assert done.code == 4 and done.out == ""
    *stages, line = done.err.splitlines()
    assert "the disk is full" in line and line.startswith("paredown: ")
    assert all(re.match(r"[a-z][\w-]*: ", stage) for stage in stages)  # each told by a stage


def test_a_read_only_disk_is_one_line(tiny, tmp_path):
    done = in_namespace("ro", tmp_path, "run", tiny.recipe, "--runs", tmp_path / "runs")
    assert (
        done.code == 4 and "Read-only file system" in done.line() and "choose another folder" in done.line()
    )


def test_a_runs_folder_that_is_a_file_is_one_line(tiny, tmp_path):
    (tmp_path / "file").touch()
    done = call("run", tiny.recipe, "--runs", tmp_path / "file")
    assert done.code == 4 and "cannot write" in done.line()


def test_a_failed_run_leaves_the_earlier_result_as_it_was(tiny, tmp_path):
    recipe, runs = copy_project(tiny, tmp_path / "mine"), copy_runs(tiny, tmp_path / "runs")
    folder = runs / "tiny" / "host"
    before = tree(folder)
    recipe.with_name("tiny.weights").write_bytes(b"short")
    assert call("run", recipe, "--runs", runs).code == 4
    after = tree(folder)
    for name in ("bundle.paredown", "figures.json", "report.md", "preview.png", "recipe.toml"):
        assert after[name] == before[name]
    assert sound(runs)


def test_names_of_recipes():
    assert recipe_name("digits") == "digits" and recipe_name("a/b/my.toml") == "my"
    for nothing in (".toml", "", "/", ".."):
        with pytest.raises(UsageError, match="names no recipe"):
            recipe_name(nothing)


def test_an_artefact_that_vanishes_meanwhile_is_one_line(tiny, tmp_path, monkeypatch):
    runs = copy_runs(tiny, tmp_path / "runs")
    monkeypatch.setattr(
        Summary, "figures", lambda self: shutil.rmtree(runs / ".store") or self.stage_figures()
    )
    done = call("run", tiny.recipe, "--runs", runs)
    assert done.code == 4 and "was removed or damaged meanwhile; run the same command again" in done.err
