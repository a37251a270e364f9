"""Bundles of a stranger's, right in every hash, and the commands that a person gives them to.

Each kind is a way to make a bundle do more than be read: name code, bring code, lead out of the folder,
expand to much, steer the terminal, read the person's own files, crash a runtime. One bundle is of one or two
kinds. What gets through leaves a file outside of the folder, ends the process, takes memory, or is in what a
command prints.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import random
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zstandard

from paredown.targets.errors import ParedownError
from tests.fuzz.mutate import of_bytes, of_json
from tests.helpers.forge import forged, listed, sealed

GOLDEN = Path(__file__).parents[1] / "golden" / "format-4" / "detector.paredown"
#: What executed code does: a folder beside the one that the bundle lies in.
PAYLOAD = "import os\nos.makedirs('../executed', exist_ok=True)\n"
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
Members = dict[str, bytes]
#: Data that need no file, or take what lies beside the bundle.
DATA = ({"format": "digits"}, {"format": "folder", "test": ".", "calibration": "."})
Kind = Callable[[dict[str, Any], Members, random.Random], None]


class Reduced:
    """Unpickled, it executes the payload."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (PAYLOAD,)


# -- what lies beside the bundle -----------------------------------------------------------------------------


@functools.cache
def traps() -> dict[str, bytes]:
    """Files in the folder where the person is: modules, pickles, and folders of models with code."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/constants.pkl", pickle.dumps(Reduced()))
        archive.writestr("net/code/__torch__.py", PAYLOAD)
        archive.writestr("net/data.pkl", pickle.dumps(Reduced()))
    config = {
        "architectures": ["EvilForImageClassification"],
        "auto_map": {"AutoModelForImageClassification": "evil.E"},
    }
    return {
        "evil.py": PAYLOAD.encode() + b"def make(): pass\n",
        "sitecustomize.py": PAYLOAD.encode(), "json.py": PAYLOAD.encode(),
        "net.pt": buffer.getvalue(), "net.pt2": buffer.getvalue(), "net.ts": buffer.getvalue(),
        "net.pth": pickle.dumps(Reduced()), "net.ckpt": pickle.dumps(Reduced()),
        "hf/config.json": json.dumps(config).encode(), "hf/evil.py": PAYLOAD.encode(),
        "hf/model.safetensors": b"\2\0\0\0\0\0\0\0{}", "saved/saved_model.pb": b"x",
        "labels.npz": pickle.dumps(Reduced()), "recipe.toml": b'network = "evil:make"\n',
        "0.png": cv2.imencode(".png", np.full((60, 80, 3), 90, np.uint8))[1].tobytes(),
    }  # fmt: skip


# -- kinds ---------------------------------------------------------------------------------------------------


def names_code(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """The recipe, or the manifest, names code or a file that holds some."""
    where, value = chance.choice([
        *(("network", name) for name in (
            "evil:make", "os:abort", "signal:pause", "antigravity:x", "./evil.py:make", "net.pt", "net.pt2",
            "net.ts", "net.pth", "hf", "saved", "./hf", "../in/net.pt", "/dev/stdin", "NET.PT",
        )),
        *(("app", name) for name in (
            "evil", "antigravity", "os", "apps.evil", "apps.detector.device.camera", "apps",
        )),
        *(("weights", name) for name in ("net.pth", "net.ckpt", "net.pt", "hf", "/etc/passwd")),
    ])  # fmt: skip
    manifest["recipe"][where] = value
    manifest["recipe"]["data"] = chance.choice(DATA)  # which is there, so that nothing else stops it
    if where == "app" and chance.randrange(2):
        manifest["app"] = value
    if where == "network" and chance.randrange(2):
        manifest["recipe"]["app"] = manifest["app"] = chance.choice(
            ["apps.classifier", "apps.outputs", "apps.segmenter", "apps.pose", "apps.chat"]
        )


def brings_code(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """The device's code is other, or there is more of it."""
    ours = [name for name in members if name.endswith(".py")]
    name = chance.choice([
        *ours, "sitecustomize.py", "json.py", "usercustomize.py", "x.pth", "numpy/__init__.py", "x.so",
        "x.sh", "executorch/run", "paredown/evil.py", "paredown/apps/evil/__init__.py", "__main__.py",
        "conftest.py", ".bashrc",
    ])  # fmt: skip
    members[name] = PAYLOAD.encode() + members.get(name, b"")


def leads_out(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """A member is to be written elsewhere, or over another."""
    name = chance.choice([
        "../evil", "a/../../evil", "..\\evil", "./../evil", "/tmp/paredown-evil", "C:\\evil", "a\0b", "", ".",
        "..", "LABELS.TXT", "con", "nul.txt", "a:b", "trail. ", "x/", "labels.txt/x", "e\u0301", "~/.profile",
        "\u00e9/../../x", "manifest.json", "release.dsse.json", "a" * 300, "paredown/../../evil", "\ud800",
    ])  # fmt: skip
    members[name] = b"evil"


def steers(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """A text holds what moves a cursor or changes a title."""
    match chance.randrange(4):
        case 0:
            manifest[chance.choice(["name", "target", "app", "preprocess_hash"])] = ESCAPE
        case 1:
            manifest["versions"][ESCAPE] = manifest["licences"]["x"] = ESCAPE
        case 2:
            members["labels.txt"] = (ESCAPE + "\n").encode() * 3
        case 3:
            figure = chance.choice(manifest["figures"])
            figure[chance.choice(["metric", "variant", "unit", "stage", "where"])] = ESCAPE


def reads_yours(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """The recipe's data are files of the person's, or have no end."""
    path = chance.choice(
        ["/etc/passwd", "/dev/zero", "/", "/proc/self/mem", "../../..", "~", "labels.npz", "x\0y"]
    )
    keys = chance.sample(["test", "names", "train", "calibration", "images", "labels"], 3)
    form = chance.choice(["folder", "coco", "yolo", "voc", "arrays", "cifar", "imagefolder", "masks", "text"])
    manifest["recipe"]["data"] = {
        "format": form,
        "test": "/",
        "names": "/etc/hostname",
        "calibration": "/etc",
    }
    manifest["recipe"]["data"] |= dict.fromkeys(keys, path)


def asks_for_much(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """Numbers that take all memory, all processes, or are none."""
    odd = chance.choice(
        [10**9, 2**63, -1, 1e308, float("nan"), float("inf"), 1e-300, 0, True, None, "9" * 5000]
    )
    model = chance.choice(manifest["models"])
    match chance.randrange(6):
        case 0:
            model["input"]["shape"] = [1, 3, odd, odd]
        case 1:
            model["input"]["scale"] = odd
        case 2:
            manifest["recipe"]["bench"]["threads"] = odd
        case 3:
            chance.choice(manifest["figures"])["value"] = odd
        case 4:
            manifest["preprocess"] = of_json(manifest["preprocess"], chance)
        case 5:
            model["outputs"][0]["zero_point"] = odd


def crashes(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """A program is damaged where its tables lie, or is another file."""
    name = chance.choice(["model.tflite", "model.pte"])
    data = members[name]
    at = max(len(data) - 4000, 0) if name.endswith("tflite") else 0
    damaged = data[:at] + of_bytes(data[at : at + 8000], chance) + data[at + 8000 :]
    members[name] = chance.choice([damaged, damaged, damaged, b"", b"\x7fELF" + data, members["labels.txt"]])


def lies_inside(manifest: dict[str, Any], members: Members, chance: random.Random) -> None:
    """The documents inside say what nobody can use."""
    name = chance.choice(["app.json", "vectors.json"])
    members[name] = json.dumps(of_json(json.loads(members[name]), chance)).encode(errors="surrogatepass")
    members[chance.choice(["labels.txt", "vectors.bin"])] = of_bytes(members["vectors.bin"], chance)


KINDS: tuple[Kind, ...] = (
    names_code, brings_code, leads_out, steers, reads_yours, asks_for_much, crashes, lies_inside
)  # fmt: skip


# -- zips ----------------------------------------------------------------------------------------------------


@functools.cache
def _zeros(mib: int) -> tuple[bytes, str]:
    import hashlib

    data = bytes(mib << 20)
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=True)
    return compressor.compress(data), hashlib.sha256(data).hexdigest()


def odd_zip(manifest: dict[str, Any], members: Members, chance: random.Random) -> bytes:
    """A bomb, or a zip that hides something."""
    document = {"format": 4, **manifest, "members": listed(members)}
    mib = chance.choice((80, 120))
    small, digest = _zeros(mib)
    more: list[tuple[str | zipfile.ZipInfo, bytes, int]] = []
    text_kind = chance.choice((8, 8, 8, 12, 14))
    match chance.randrange(6):
        case 0 | 1:
            stored = [f"bomb{i}.zst" for i in range(3)] if chance.randrange(2) else ["bomb.zst"] * 3
            for i, name in enumerate(stored):
                entry = {"bytes": mib << 20, "sha256": digest, "stored": name, "stored_bytes": len(small)}
                document["members"][f"bomb{i}"] = entry
            more = [(name, small, 0) for name in dict.fromkeys(stored)]
        case 2:
            text = json.dumps(document).encode() + b" " * (mib << 20)
            return sealed([("manifest.json", text, 8), *((n, d, 0) for n, d in members.items())])
        case 3:
            link = zipfile.ZipInfo("paredown/link")
            link.external_attr, link.create_system = 0o120777 << 16, 3
            document["members"] |= listed({"paredown/link": b"/etc"})
            more = [(link, b"/etc", 0)]
        case 4:
            more = [("manifest.json", b'{"format": 1}', 0), ("hidden.py", PAYLOAD.encode(), 0)]
        case 5:
            names = {f"m{i}": b"" for i in range(5000)}
            document["members"] |= listed(names)
            more = [(name, data, 0) for name, data in names.items()]
    text = json.dumps(document).encode()
    return sealed([("manifest.json", text, text_kind), *((n, d, 0) for n, d in members.items()), *more])


# -- the target ----------------------------------------------------------------------------------------------


@functools.cache
def _golden() -> tuple[bytes, Members]:
    from paredown.pipeline.bundle.archive import unpack

    bundle = unpack(GOLDEN)
    document = json.loads(bundle.text)
    del document["members"]
    return json.dumps(document).encode(), dict(bundle.members)


def forge(seed: bytes, chance: random.Random) -> bytes:
    """One bundle."""
    text, members = _golden()
    manifest, members = json.loads(text), dict(members)
    for kind in chance.sample(KINDS, chance.choice((1, 1, 2))):
        with contextlib.suppress(KeyError, IndexError, TypeError):  # where the other kind took it away
            kind(manifest, members, chance)
    if not chance.randrange(6):
        with contextlib.suppress(ValueError):
            return odd_zip(manifest, members, chance)
    try:
        return forged(manifest, members)
    except (ValueError, KeyError):  # a name that no zip can hold: of another kind then
        return odd_zip(json.loads(text), dict(_golden()[1]), chance)


#: Command lines, B for the bundle; what prints is looked at.
COMMANDS = (
    ("validate", "B", "--times", "1", "--limit", "1"),
    ("validate", "B", "--times", "1", "--no-score", "--json"),
    ("validate", "B", "--times", "1", "--data", "."), ("bench", "B", "--minutes", "0"), ("inspect", "B"),
    ("report", "B"), ("unpack", "B"), ("web", "B", "--litertjs", "."), ("verify", "B"), ("chat", "B"),
    ("camera", "B", "--source", "0.png", "--json"),
)  # fmt: skip


def use(path: Path) -> None:
    """Gives a bundle to one command, and asks what `deploy` asks.

    Raises:
        InputError: it is no bundle that opens.
        AssertionError: what is printed steers a terminal.
    """
    from paredown.pipeline.bundle.archive import unpack
    from paredown.pipeline.bundle.known_code import require_known_code

    command = random.Random(path.read_bytes()).choice(COMMANDS)
    for name, data in traps().items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(data)
    with _inside(path.parent):
        _, told = call([word.replace("B", path.name) if word == "B" else word for word in command])
        steering = [c for c in told if c not in "\n\t\r" and unicodedata.category(c) in ("Cc", "Cs")]
        assert not steering, f"{command[0]} prints {steering[0]!r}"
        assert "Traceback" not in told, f"{command[0]} ends in a traceback"
        bundle = unpack(path.name)
        with contextlib.suppress(ParedownError):
            require_known_code(bundle)
            assert PAYLOAD.encode() not in b"".join(bundle.members.values()), "deploy would bring the payload"


def call(words: list[str]) -> tuple[int, str]:
    """Exit code and all that a command prints, in this process."""
    from paredown.apps.cli.main import app

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            app(words)
        except SystemExit as end:
            return int(end.code or 0), told.getvalue()
    return 0, told.getvalue()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """As a person is in a folder, who has a home of his own there and no input to give."""
    before, home = Path.cwd(), os.environ.get("HOME", "/")
    os.environ["HOME"] = str(folder)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ["HOME"] = home
