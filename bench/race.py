"""The races against peers: makes each peer's environment with pip, then runs the bench that races it.

    python bench/race.py x86 torch-pruning --cifar CIFAR --record
    python bench/race.py gemma --program ours=model.tflite --gguf published=gemma.gguf --text wiki.test.txt
    python bench/race.py --plan          # what would be run; downloads nothing

Without names all races run whose inputs are given. Benches check the outputs and interleave the rounds; this
only plans. A peer that is asked from outside has an environment of nothing else; one that runs in our process
has one that sees ours behind its own. Environments stay in --peers, and are made anew where their packages
have changed. What follows `--` goes to every bench. With --record each writes its table to docs/figures/.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
#: Options whose values a bench gets, by the bench's own names; `--peers` is the peers' Python.
INPUTS = {"zoo": "--zoo", "cifar": "--cifar", "gguf": "--gguf", "text": "--text", "program": "--program",
          "weights": "--weights", "bundle": "--bundle", "litertlm": "--litertlm"}  # fmt: skip
DONE = "packages.txt"  # in an environment that is whole


@dataclass(frozen=True)
class Race:
    """A bench with what it needs.

    Attributes:
        packages: of the peers' environment, as pip takes them.
        bench: its file and its first arguments.
        needs: names of `INPUTS` without which it cannot run.
        takes: further ones that it is given where they are there.
        beside: whether the bench itself runs in that environment, with ours behind it; else it is told where
            the environment's Python is.
    """

    packages: tuple[str, ...]
    bench: tuple[str, ...]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    beside: bool = False


RACES: Mapping[str, Race] = {
    "x86": Race(("openvino", "nncf", "onnxruntime", "onnx", "ncnn", "pnnx"), ("x86.py",)),
    "gemma": Race(
        ("xllamacpp", "gguf", "numpy"), ("gemma_peers.py", "--make", "Q4_0", "--make", "Q8_0"),
        needs=("program", "gguf"), takes=("text",),
    ),
    "litert-lm": Race(
        ("litert-lm-api",), ("gemma_speed.py",), needs=("weights", "bundle", "litertlm"), beside=True
    ),
    "ptq": Race(("ai-edge-quantizer",), ("versus_ptq.py",), needs=("zoo",), beside=True),
    "torch-pruning": Race(
        ("torch-pruning",), ("versus_torch_pruning.py", "resnet56"), needs=("cifar",), beside=True
    ),
    "torch-pruning-yolo": Race(("torch-pruning",), ("versus_torch_pruning.py", "yolo"), beside=True),
}  # fmt: skip


def missing(race: Race, given: Mapping[str, Sequence[str]]) -> list[str]:
    """The options that a race needs and that are not given."""
    return [INPUTS[name] for name in race.needs if not given.get(name)]


def absent(race: Race, given: Mapping[str, Sequence[str]]) -> list[str]:
    """The files and folders among its inputs that are not there; a value is a path, or NAME=PATH."""
    values = [value for name in (*race.needs, *race.takes) for value in given.get(name, ())]
    return [value for value in values if not Path(value.partition("=")[2] or value).exists()]


def environment(race: Race, peers: Path) -> Path:
    """Where a race's environment is: races with the same packages share one."""
    parts = [package.partition("=")[0] for package in race.packages]
    return peers / "-".join([*parts[:2], *(["beside"] if race.beside else [])])


def python_of(folder: Path) -> Path:
    """Its interpreter."""
    return folder / "bin" / "python"


def commands(
    name: str,
    given: Mapping[str, Sequence[str]],
    peers: Path,
    extra: Sequence[str] = (),
    record: bool = False,
) -> tuple[list[str], list[str]]:
    """What makes a race's environment, without the module venv's own step, and what runs its bench.

    Args:
        name: of `RACES`.
        given: name of `INPUTS` -> its values.
        peers: folder of the environments.
        extra: further arguments of the bench.
        record: whether the bench records its table.
    """
    race, python = RACES[name], python_of(environment(RACES[name], peers))
    words = [str(python) if race.beside else sys.executable, str(HERE / race.bench[0]), *race.bench[1:]]
    if not race.beside:
        words += ["--peers", str(python)]
    for each in (*race.needs, *race.takes):
        for value in given.get(each, ()):
            words += [INPUTS[each], value]
    if name == "gemma" and given.get("text"):  # the tokenizer is in the weights' file
        words += ["--tokenizer", given["gguf"][0].partition("=")[2]]
    words += [*extra, *(["--record"] if record else [])]
    return [str(python), "-m", "pip", "install", "--quiet", *race.packages], words


def prepare(race: Race, folder: Path, install: Sequence[str]) -> None:
    """Makes an environment, unless it is there with the same packages."""
    done = folder / DONE
    if done.exists() and done.read_text() == "\n".join(race.packages):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if race.beside:  # first: what ours has already, pip does not download
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    subprocess.run(list(install), check=True)
    done.write_text("\n".join(race.packages))


def chosen(names: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    """The races that are asked for; where none are, those that have what they need.

    Raises:
        SystemExit: one that there is not, or an input that is missing.
    """
    if not names:
        return [name for name, race in RACES.items() if not missing(race, given)]
    for name in names:
        if name not in RACES:
            raise SystemExit(f"race.py: no race `{name}`; there are {', '.join(RACES)}")
        if lacks := missing(RACES[name], given):
            raise SystemExit(f"race.py: {name} needs {', '.join(lacks)}")
    return list(dict.fromkeys(names))


def main(words: Sequence[str]) -> int:
    """Runs the races one after the other; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("races", nargs="*", metavar="RACE", help=", ".join(RACES))
    for name, option in INPUTS.items():
        parser.add_argument(
            option, dest=name, action="append", default=[], help="for the bench, as it takes it"
        )
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the environments")
    parser.add_argument("--plan", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--record", action="store_true", help="write the tables to docs/figures/")
    own, extra = list(words), list[str]()
    if "--" in own:
        at = own.index("--")
        own, extra = own[:at], own[at + 1 :]
    options = parser.parse_args(own)
    given = {name: getattr(options, name) for name in INPUTS}
    names, failed = chosen(options.races, given), []
    for name in names if not options.plan else ():
        if lost := absent(RACES[name], given):
            raise SystemExit(f"race.py: {name}: there is no {', no '.join(lost)}")
    for name in names:
        install, bench = commands(name, given, options.peers.resolve(), extra, options.record)
        print(f"{name}: {shlex.join(install)}\n{name}: {shlex.join(bench)}", flush=True)
        if options.plan:
            continue
        prepare(RACES[name], environment(RACES[name], options.peers.resolve()), install)
        if subprocess.run(bench, check=False).returncode:
            failed.append(name)
    for name, race in RACES.items() if not options.races else ():
        if name not in names:
            print(f"{name}: left out, it needs {', '.join(missing(race, given))}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
