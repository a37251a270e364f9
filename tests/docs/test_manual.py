"""What stands in the README and in docs/: commands have the options, files and keys exist, recipes load."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from manual import DOCS, LANGUAGES, MARKS, PAGES, ROOT, blocks, inline, links, prose
from task_projects import make_keywords, make_pose, make_segmentation

from paredown.pipeline.device.deploy.fleet import load_fleet
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import ParedownError


@functools.cache
def generate() -> ModuleType:
    """docs/generate.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(words: list[str]) -> None:
    """Parses a command line of ours as the command itself does, and runs nothing.

    Raises:
        AssertionError: it is no command, or has other arguments or options.
    """
    name, *arguments = words
    found = generate().commands()
    if arguments and f"{name} {arguments[0]}" in found:
        name = f"{name} {arguments.pop(0)}"
    assert name in found, f"no command {name}"
    command, _ = found[name]
    own = generate().own_parser(name, command)
    try:
        if own is not None:
            own.parse_args(arguments)
            return
        context = command.make_context(name, list(arguments))
    except (Exception, SystemExit) as error:  # click and its copy in typer have their own classes
        raise AssertionError(f"paredown {' '.join(words)}: {error!r}") from error
    for setting in context.params.get("set_") or ():
        assert setting.partition("=")[0] in generate().recipe_keys(), setting
    if name == "deploy" and "--" in arguments:
        app = arguments[arguments.index("--app") + 1] if "--app" in arguments else "camera"
        module = importlib.import_module(f"paredown.apps.detector.device.{app}")
        try:
            module.parser(app).parse_args(arguments[arguments.index("--") + 1 :])
        except (ParedownError, SystemExit) as error:
            raise AssertionError(f"paredown {' '.join(words)}: {error!r}") from error


def exists(command: list[str]) -> None:
    """A command that a block has: ours is parsed, a module of ours has these options, a bench is there."""
    program, *arguments = command
    program = Path(program).name
    if program == "paredown":
        parse(arguments)
    elif program == "python" and arguments[0] == "-m" and arguments[1].startswith("paredown"):
        module = Path(*arguments[1].split(".")[1:])
        file = next(f for f in (ROOT / f"{module}.py", ROOT / module / "__main__.py") if f.is_file())
        asked = [sys.executable, "-m", arguments[1], "--help"]
        helped = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
        for option in (word for word in arguments[2:] if word.startswith("--")):
            assert option in helped.stdout, f"{file} has no {option}"
    elif program == "python" and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    else:
        raise AssertionError(f"{program}: no command that a test knows")


def test_every_block_has_a_language_and_a_mark_that_are_known() -> None:
    fences = sum(len(re.findall(r"^```\w", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == len(blocks(*LANGUAGES)), "a fence without a language, or in another one"
    assert {block.mark for block in blocks(*LANGUAGES)} <= set(MARKS)


@pytest.mark.parametrize("mark", [mark for mark in MARKS if mark != "needs: set-up"])
def test_every_command_has_its_arguments_and_options(mark: str) -> None:
    found = [command for block in blocks("sh", "console", mark=mark) for command in block.commands()]
    assert found
    for command in found:
        exists(command)


def test_a_wrong_option_key_or_command_is_seen() -> None:
    for wrong in (["run", "digits", "--nosuch"], ["run", "digits", "--set", "prune.mac=0.4"], ["paint"]):
        with pytest.raises(AssertionError):
            parse(wrong)
    with pytest.raises(AssertionError):
        parse(["deploy", "B", "--device", "local:", "--", "--source", "0", "--nosuch"])


def test_commands_in_the_prose_have_their_options() -> None:
    found = 0
    for page in PAGES:
        for code in inline(page):
            if re.match(r"paredown \w+ .*--|paredown \w+ [A-Za-z]", code):
                words = code.split()[1:]
                parse([re.sub(r"^\d+$", "1", word) for word in words])
                found += 1
    assert found > 10


def test_keys_and_options_in_the_prose_exist() -> None:
    keys = generate().recipe_keys()
    sections = {key.partition(".")[0] for key in keys if "." in key}
    for page in PAGES:
        for code in inline(page):
            key = re.match(r"(\w+\.\w+)( ?=|$)", code)
            if key and key[1].partition(".")[0] in sections and not (ROOT / code).exists():
                assert key[1] in keys, f"{page.name}: {code}"


def test_sections_that_list_keys_list_their_own() -> None:
    """The tables of squantizer.md and chat.md name keys without their section."""
    keys = generate().recipe_keys()
    for name, section, heading in (("squantizer", "squantize", "Keys"), ("chat", "language", "Fewer bytes")):
        part = (DOCS / f"{name}.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
        cells = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
        named = [code for cell in cells for code in re.findall(r"`(\w+)", cell)]
        assert len(named) > 3
        for key in named:
            assert f"{section}.{key}" in keys, f"{name}.md: {key}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_and_path_of_a_page_exists(page: Path) -> None:
    made = {f"reference/{name}" for name in generate().PAGES}
    for link in links(page):
        target = link.partition("#")[0]
        place = (page.parent / target).resolve()
        inside = place.relative_to(DOCS).as_posix() if place.is_relative_to(DOCS) else ""
        assert place.exists() or inside in made, link
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs", "build", "dist"}
    for code in inline(page):
        if re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", code) and code.split("/")[0] in rooms and "/" in code:
            assert list(ROOT.glob(code.rstrip("/"))), f"{page.name}: {code}"


def test_recipes_load(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    pages = []
    for number, block in enumerate(blocks("toml")):
        pages.append(block.page)
        path = tmp_path / f"{number}.toml"
        path.write_text(block.text)
        load_fleet(path) if block.page == "fleet.md" else load_recipe(path)
    recipe = load_recipe(tmp_path / f"{pages.index('own-data.md')}.toml")
    assert recipe.data.test == str(tmp_path / "images" / "val") and recipe.budget.accuracy_drop == 0.01


@pytest.mark.parametrize(
    ("app", "make"),
    [
        ("segmenter", make_segmentation),
        ("pose", make_pose),
        ("outputs", make_keywords),
        ("classifier", functools.partial(make_keywords, app="classifier")),
    ],
)
def test_recipes_of_tasks_are_those_of_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: str, make: Callable[..., Path]
) -> None:
    """A page's recipe, in a folder that has what it names, makes its task: data, network and its outputs."""
    texts = [block.text for block in blocks("toml") if f'app = "apps.{app}"' in block.text]
    (text,) = (text for text in texts if "resnet18" not in text and ".onnx" not in text)
    monkeypatch.chdir(tmp_path)
    for module in ("unet", "pose_net", "spotter"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    recipe = make(tmp_path, steps=1)
    recipe.write_text(text)
    task = load_task(load_recipe(recipe))
    assert all(len(task.data(split)) for split in ("train", "test"))
    task.network()


def test_python_imports_what_exists() -> None:
    found = [
        (node.module, name.name)
        for block in blocks("python")
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    ]
    assert found
    for module, name in found:
        assert hasattr(importlib.import_module(str(module)), name), f"{module}.{name}"


def test_the_readme_is_short_and_has_no_pictures() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and "![" not in text


def test_the_set_up_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    set_up = [block.text for block in blocks("sh", mark="needs: set-up") if block.page == "README.md"]
    run, test = set_up
    assert len(run.splitlines()) == len(test.splitlines()) == 1, "one line each"
    assert "run digits --target host" in run and "pip install -q ." in run
    assert "'.[test]'" in test and "pip install --quiet --editable '.[test,docs]'" in ci
    tests = "python -m pytest -n 2 --dist loadfile -m 'not slow'"
    assert tests in test and tests in (ROOT / "CONTRIBUTING.md").read_text()
    first, others = (line for line in ci.splitlines() if "pytest" in line)
    assert first == tests.replace("'not slow'", "unit")
    more = tests.replace("'not slow'", "'(not slow or sample) and not unit'").replace("-n 2", "-n 3")
    assert others == more, "and the sample, with one process more"


def test_extras_exist() -> None:
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    text = "".join(page.read_text() for page in (*PAGES, ROOT / ".ci" / "run"))
    named = {e for found in re.findall(r"(?:'\.|paredown)\[([\w,]+)\]", text) for e in found.split(",")}
    assert named == extras, "an extra that is not documented, or is not there"


# -- figures -----------------------------------------------------------------------------------------------

PLACE = re.compile(r"\{\{ figures\(\"([\w-]+)\"\) \}\}")


def test_every_record_is_whole_and_on_a_page() -> None:
    shown = {name for page in PAGES for name in PLACE.findall(page.read_text())}
    recorded = {path.stem for path in (DOCS / "figures").glob("*.json")}
    assert shown == recorded
    for name in recorded:
        record = generate().read_figure(name)
        assert (record["commit"] is None) == ("measured" in record) == (record["date"] is None), name
        for line in record["command"].split("\n"):
            words = line.split()
            if words[:2] != ["paredown", "run"] and words[0] != "pytest":
                assert (ROOT / words[1]).is_file(), line
            elif words[0] == "paredown":
                parse([word.strip("'") for word in words[1:]])
        assert (ROOT / "bench" / f"{record['bench']}.py").is_file() or (ROOT / record["bench"]).is_file()


def test_no_measured_table_is_written_by_hand() -> None:
    for page in DOCS.glob("*.md"):
        rows = [line for line in prose(page).splitlines() if line.startswith("|")]
        plain = [re.sub(r"`.*?`", "", row) for row in rows]
        measured = [row for row in plain if re.search(r"(?<![\w.=])\d+\.\d+(?![\w.])", row)]
        assert not measured, f"{page.name}: {measured}"


def test_a_bench_records_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    record: Any = importlib.import_module("record")
    monkeypatch.setattr(record, "FIGURES", tmp_path)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    words = "bench/speed.py yolov2-nano --set /root/x.txt --record fast"
    monkeypatch.setattr(sys, "argv", words.split())
    with record.Table("speed", ("what", "ms"), "fast", notes=["one"]) as table:
        table.row("a|b", 1.5)
        with pytest.raises(ValueError, match="2 columns"):
            table.row("c")
    document = json.loads((tmp_path / "fast.json").read_text())
    assert document["bench"] == "speed" and document["rows"] == [["a|b", "1.5"]]
    assert document["command"] == "python bench/speed.py yolov2-nano --set x.txt"
    assert set(document["machine"]) == {"cpu", "cores", "arch", "system", "python", "versions"}
    assert document["columns"] == ["what", "ms"] and document["notes"] == ["one"]
    assert capsys.readouterr().out.startswith("| what | ms |\n| --- | --- |\n")
    with record.Table("speed", ("what",)) as table:
        table.row("printed only")
    assert not (tmp_path / "speed.json").exists()


def test_a_record_that_is_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate(), "FIGURES", tmp_path)
    record = {
        "bench": "speed", "command": "python bench/speed.py", "machine": {}, "commit": "c", "date": "d",
        "columns": ["a", "b"], "rows": [["1"]], "notes": [],
    }  # fmt: skip
    (tmp_path / "short.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="2 columns"):
        generate().read_figure("short")
    del record["commit"]
    (tmp_path / "less.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="lacks commit"):
        generate().read_figure("less")


# -- the reference -----------------------------------------------------------------------------------------


def test_the_reference_has_every_key_command_card_and_exit_code() -> None:
    pages = {name: make() for name, make in generate().PAGES.items()}
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.targets.cards.card import CARDS

    for section, field in Recipe.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        for key in inner if inner is not None else ():
            assert f"`{section}.{key}`" in pages["recipe.md"]
            assert inner[key].description, f"{section}.{key} has no meaning"
    assert "| `prune.macs` | number | > 0, <= 1 | unset |" in pages["recipe.md"]
    assert "| `bench.runs` | integer | >= 1 | `50` |" in pages["recipe.md"]
    assert "| `squantize.activation_bits` | integer | >= 2, <= 8 | unset |" in pages["recipe.md"]
    assert '| `squantize.norm` | one of | `"live"`, `"frozen"` | `"live"` |' in pages["recipe.md"]
    for name, (command, context) in generate().commands().items():
        assert f"\n## {name}\n" in pages["commands.md"]
        for parameter in command.get_params(context):
            if not getattr(parameter, "hidden", False) and not generate().own_parser(name, command):
                assert max(parameter.opts, key=len) in pages["commands.md"], (name, parameter.opts)
    assert "--mavlink" in pages["commands.md"] and "--mqtt" in pages["commands.md"]
    for card in CARDS.glob("*.toml"):
        assert f"\n## {card.stem}\n" in pages["targets.md"]
    for code, name in ((2, "UsageError"), (3, "BudgetError"), (4, "InputError"), (5, "DeviceError")):
        assert f"| {code} | `{name}` |" in pages["errors.md"]
