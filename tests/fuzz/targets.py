"""The parsers that are given files of others, each with good files to damage."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from paredown.targets.devices.service.signed import RELEASE, TRUST
from paredown.targets.errors import InputError
from tests.fuzz.forgeries import forge, use
from tests.fuzz.forked import forked_children, load_runtimes
from tests.fuzz.harness import Target
from tests.fuzz.mutate import json_bytes, of_bytes, of_json, of_text
from tests.helpers.forge import COMMENT, forged, resealed

GOLDEN = Path(__file__).parents[1] / "golden" / "format-4" / "detector.paredown"
MODEL = "model.tflite"
Mutate = Callable[[bytes, random.Random], bytes]


@functools.cache
def _golden() -> Any:
    from paredown.pipeline.bundle.archive import unpack

    return unpack(GOLDEN)


# -- bundles -------------------------------------------------------------------------------------------------


def _bundle() -> dict[str, bytes]:
    return {"x.paredown": GOLDEN.read_bytes()}


def _zip(seed: bytes, chance: random.Random) -> bytes:
    """The zip is damaged, mostly in its directory, and sealed again."""
    body = seed[:-COMMENT]
    at = body.rfind(b"PK\x05\x06") - 3000 if chance.randrange(3) else 0
    return resealed(body[: max(at, 0)] + of_bytes(body[max(at, 0) :], chance))


def _manifest(seed: bytes, chance: random.Random) -> bytes:
    """The manifest says something else."""
    bundle = _golden()
    document = json.loads(bundle.text)
    del document["members"]
    made = of_json(document, chance)
    return forged(made if isinstance(made, dict) else {}, bundle.members)


def _listing(seed: bytes, chance: random.Random) -> bytes:
    """What the manifest says of its members is something else."""

    def fix(document: dict[str, Any]) -> None:
        document["members"] = of_json(document["members"], chance)

    bundle = _golden()
    document = json.loads(bundle.text)
    return forged(document, bundle.members, fix=fix)


def _inner(seed: bytes, chance: random.Random) -> bytes:
    """A member that is data is damaged, and every hash is right."""
    bundle = _golden()
    members = dict(bundle.members)
    name = chance.choice(["app.json", "labels.txt", "vectors.json", "vectors.bin"])
    damage = json_bytes() if name.endswith("json") else of_bytes if name.endswith("bin") else of_text
    members[name] = damage(members[name], chance)
    document = json.loads(bundle.text)
    if not chance.randrange(3):
        document["preprocess"] = of_json(document["preprocess"], chance)
    return forged(document, members)


def _open_bundle(path: Path) -> None:
    from paredown.pipeline.bundle.archive import extract, unpack
    from paredown.pipeline.bundle.known_code import foreign

    bundle = unpack(path)
    foreign(bundle)
    extract(bundle, path.parent / "out")


def _use_bundle(path: Path) -> None:
    """Opens it, reads its vectors and figures, and detects on an image."""
    from paredown.apps.api.model import Model
    from paredown.pipeline.bundle.archive import unpack
    from paredown.pipeline.device.validate.programs import bundle_program
    from paredown.pipeline.report.figures import parse_figures

    bundle = unpack(path)
    parse_figures(bundle.manifest.figures, path)
    for model in bundle.manifest.models:
        bundle_program(bundle, model)
    with Model(path, 1) as opened:
        if opened.app == "apps.detector":
            opened.detect(np.zeros((24, 32, 3), np.uint8))


def _packed() -> dict[str, bytes]:
    with zipfile.ZipFile(GOLDEN) as archive:
        return {"models.packed": archive.read("models.packed")}


def _resummed(seed: bytes, chance: random.Random) -> bytes:
    """Damaged behind its checksum, which is right again."""
    damaged = of_bytes(seed[8:], chance)
    return seed[:4] + struct.pack("<I", zlib.crc32(damaged)) + damaged


def _expand(path: Path) -> None:
    from paredown.targets.runners.expand import expand_programs

    expand_programs(path.read_bytes(), path)


def _programs() -> dict[str, bytes]:
    load_runtimes()
    return {name: _golden().members[name] for name in (MODEL, "model.pte")}


def _table(seed: bytes, chance: random.Random) -> bytes:
    """Damaged where the tables of a program lie: at the end of a .tflite, at the start of a .pte."""
    if not chance.randrange(3):
        return of_bytes(seed, chance)
    at = max(len(seed) - 4000, 0) if seed[4:8] == b"TFL3" else 0
    return seed[:at] + of_bytes(seed[at : at + 8000], chance) + seed[at + 8000 :]


def _run_apart(path: Path) -> None:
    """In a process of its own, whose death is one line."""
    from dataclasses import replace

    from paredown.pipeline.bundle.finished.apart import run_apart
    from paredown.pipeline.device.validate.programs import bundle_program

    bundle = _golden()
    (model,) = (model for model in bundle.manifest.models if model.file == path.name)
    with forked_children():
        run_apart(replace(bundle_program(bundle, model), data=path.read_bytes()))


def _pte() -> dict[str, bytes]:
    return {"model.pte": _golden().members["model.pte"]}


def _verify(path: Path) -> None:
    from paredown.pipeline.lower.executorch.verify.plan import check_program

    check_program(path.read_bytes(), path)


def _tflite() -> dict[str, bytes]:
    return {MODEL: _golden().members[MODEL]}


def _edit(path: Path) -> None:
    from paredown.pipeline.lower.litert.float_io import with_float_io
    from paredown.pipeline.lower.litert.slices import exposed, prefixes

    with_float_io(path.read_bytes())
    exposed(path.read_bytes())
    prefixes(path.read_bytes())


# -- what a user brings --------------------------------------------------------------------------------------


def _recipe() -> dict[str, bytes]:
    from paredown.targets.own_code import ROOMS

    return {"recipe.toml": (ROOMS / "apps/detector/recipes/digits.toml").read_bytes()}


def _load_recipe(path: Path) -> None:
    from paredown.pipeline.recipe.file import load_recipe

    load_recipe(path)


def _cfgs() -> dict[str, bytes]:
    from paredown.targets.own_code import ROOMS

    return {path.name: path.read_bytes() for path in (ROOMS / "apps/detector/darknet/cfgs").glob("*.cfg")}


def _read_cfg(path: Path) -> None:
    from paredown.apps.detector.darknet.darknet import read_cfg
    from paredown.apps.detector.darknet.layers import output_shapes

    output_shapes(read_cfg(path))


def _weights() -> dict[str, bytes]:
    import torch
    from safetensors.torch import save

    state = {"a.weight": torch.ones(4, 3, 3, 3), "a.bias": torch.zeros(4), "n": torch.tensor(3)}
    buffer = io.BytesIO()
    torch.save({"model_state_dict": state, "epoch": 3}, buffer)
    return {"net.safetensors": save(state), "net.pt": buffer.getvalue()}


def _read_weights(path: Path) -> None:
    from paredown.pipeline.recipe.weights_file import read_weights_file

    read_weights_file(path)


def _onnx() -> dict[str, bytes]:
    from tests.helpers.onnx_models import small_net

    with tempfile.TemporaryDirectory() as folder:
        return {"net.onnx": small_net(Path(folder)).read_bytes()}


def _import(path: Path) -> None:
    from paredown.pipeline.recipe.imports.read import read

    read(path)


def _yolo() -> dict[str, bytes]:
    return {"0.txt": b"0 0.5 0.5 0.2 0.3\n1 0.25 0.25 0.1 0.1\n2 0.7 0.7 0.1 0.2\n"}


@functools.cache
def _png() -> bytes:
    return bytes(cv2.imencode(".png", np.full((40, 50, 3), 90, np.uint8))[1])


def _image(path: Path) -> None:
    path.write_bytes(_png())


def _read_yolo(path: Path) -> None:
    from paredown.calibration.datasets import open_dataset

    _image(path.with_suffix(".png"))
    open_dataset("yolo", path.parent, names=("a", "b", "c"), labels=path.parent)[0]


XML = b"""<annotation><filename>0.png</filename>
<size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>a</name><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
<object><name>b</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
</annotation>
"""


def _read_voc(path: Path) -> None:
    from paredown.calibration.datasets import open_dataset

    _image(path.with_suffix(".png"))
    open_dataset("voc", path.parent, names=("a", "b"))[0]


def _coco() -> dict[str, bytes]:
    document = {
        "images": [{"id": 7, "file_name": "0.png", "width": 50, "height": 40}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 12], "iscrowd": 0, "area": 120},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [4, 4, 5, 5.5], "iscrowd": 0, "area": 27.5},
        ],
        "categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}],
    }
    return {"set.json": json.dumps(document).encode()}


def _read_coco(path: Path) -> None:
    from paredown.calibration.datasets import open_dataset

    _image(path.parent / "0.png")
    open_dataset("coco", path, names=("a", "b"), images=path.parent)[0]


def _pictures() -> dict[str, bytes]:
    picture = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    return {f"0{suffix}": cv2.imencode(suffix, picture)[1].tobytes() for suffix in (".png", ".jpg", ".bmp")}


def _read_picture(path: Path) -> None:
    from paredown.calibration.datasets import open_dataset

    open_dataset("folder", path.parent, names=())[0]


def _arrays() -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, inputs=np.zeros((3, 4, 5), np.float32), labels=np.array([0, 1, 1]))
    return {"set.npz": buffer.getvalue()}


def _read_arrays(path: Path) -> None:
    from paredown.calibration.datasets import open_dataset

    open_dataset("arrays", path, names=("a", "b"))[0]


def _gguf() -> dict[str, bytes]:
    from tests.helpers.gemma_models import oracle, save_gguf

    with tempfile.TemporaryDirectory() as folder:
        small = oracle(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=32)
        path = save_gguf(small, Path(folder) / "net.gguf")
        return {"net.gguf": path.read_bytes()}


def _read_gguf(path: Path) -> None:
    from paredown.apps.chat.weights.weights import load_gemma

    load_gemma(path)


def _tokenizer() -> dict[str, bytes]:
    from paredown.apps.chat.device.tokens.pack import pack
    from paredown.targets.own_code import ROOMS

    return {"tokenizer.npz": pack((ROOMS / "apps/chat/tiny/tokenizer.json").read_bytes())}


def _members_of_zip(seed: bytes, chance: random.Random) -> bytes:
    """A member of a zip is damaged, whose checksums are right; or else the zip."""
    if not chance.randrange(3):
        return of_bytes(seed, chance)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seed)) as before, zipfile.ZipFile(buffer, "w") as after:
        hit = chance.choice(before.namelist())
        for name in before.namelist():
            data = before.read(name)
            head = (
                of_bytes(data[:160], chance) + data[160:] if chance.randrange(2) else of_bytes(data, chance)
            )
            after.writestr(name, head if name == hit else data)
    return buffer.getvalue()


def _tokenize(path: Path) -> None:
    from paredown.apps.chat.device.tokens.tokens import Tokens

    tokens = Tokens(path.read_bytes(), path)
    tokens.decode([*tokens.encode("Hello, wörld\n\n of 3 tokens"), tokens.size, -1])


def _envelope() -> dict[str, bytes]:
    from paredown.targets.devices.service.signed import Envelope, Key, Release, Trust

    release = Release("net", "apps.detector", "host", 7, "2031-01-01", "a" * 64, "b" * 64)
    key = Key("alice", bytes(32))
    bodies = {"release.json": release, "trust.json": Trust(1, 1, {key.id: key}, frozenset({"c" * 64}))}
    kinds = {"release.json": RELEASE, "trust.json": TRUST}
    return {
        name: Envelope(kinds[name], body.body(), {key.id: bytes(64)}).text() for name, body in bodies.items()
    }


def _payload(seed: bytes, chance: random.Random) -> bytes:
    """Its payload says something else, in the one form; or else the envelope is damaged."""
    from paredown.targets.devices.service.signed import canonical

    if not chance.randrange(3):
        return json_bytes()(seed, chance)
    document = json.loads(seed)
    body = of_json(json.loads(base64.b64decode(document["payload"])), chance)
    with contextlib.suppress(ValueError, UnicodeEncodeError):
        document["payload"] = base64.b64encode(canonical(body)).decode()
    return canonical(document)


def _read_envelope(path: Path) -> None:
    from paredown.targets.devices.service.signed import Refused, Release, Trust, opened

    try:
        envelope = opened(path.read_bytes())
        (Release if path.stem == "release" else Trust).of(envelope)
    except Refused as error:
        raise InputError(str(error), where=path) from error


def _card() -> dict[str, bytes]:
    from paredown.targets.cards.card import CARDS

    return {path.name: path.read_bytes() for path in CARDS.glob("*.toml")}


def _read_card(path: Path) -> None:
    from paredown.targets.cards.card import load_card

    load_card(path)


def _config() -> dict[str, bytes]:
    from paredown.targets.own_code import ROOMS

    return {"config.json": (ROOMS / "apps/chat/tiny/config.json").read_bytes()}


def _read_config(path: Path) -> None:
    from paredown.apps.chat.network.config import read_hf_config

    read_hf_config(path.parent)


def _figures() -> dict[str, bytes]:
    return {"figures.json": json.dumps(json.loads(_golden().text)["figures"]).encode()}


def _read_figures(path: Path) -> None:
    from paredown.pipeline.report.figures import read_figures

    read_figures(path)


#: By name; what each is given is damaged as its makers' tools, a broken disk, or somebody with a plan would.
TARGETS = {
    target.name: target
    for target in (
        Target("bundle, zip", _bundle, _zip, _open_bundle),
        Target("bundle, manifest", _bundle, _manifest, _use_bundle),
        Target("bundle, members", _bundle, _listing, _open_bundle),
        Target("bundle, inner documents", _bundle, _inner, _use_bundle),
        Target("packed programs", _packed, _resummed, _expand),
        Target("programs", _programs, _table, _run_apart, share=20, patience=6),
        Target("programs, before they run", _pte, _table, _verify),
        Target("tflite, edited", _tflite, of_bytes, _edit),
        Target("figures", _figures, json_bytes(), _read_figures),
        Target("recipe", _recipe, of_text, _load_recipe),
        Target("darknet cfg", _cfgs, of_text, _read_cfg),
        Target("weights", _weights, of_bytes, _read_weights),
        Target("onnx", _onnx, of_bytes, _import),
        Target("labels, yolo", _yolo, of_text, _read_yolo),
        Target("labels, voc", lambda: {"0.xml": XML}, of_text, _read_voc),
        Target("labels, coco", _coco, json_bytes(), _read_coco),
        Target("images", _pictures, of_bytes, _read_picture),
        Target("arrays", _arrays, of_bytes, _read_arrays),
        Target("tokenizer", _tokenizer, _members_of_zip, _tokenize),
        Target("signatures", _envelope, _payload, _read_envelope),
        Target("target card", _card, of_text, _read_card),
        Target("language config", _config, json_bytes(), _read_config),
        Target("forged bundles", _bundle, forge, use, share=6, patience=6),
        Target("gguf", _gguf, of_bytes, _read_gguf),
    )
}
