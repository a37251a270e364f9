"""`paredown web` and `paredown serve`: what is in a page, what it is handed out with, and what is refused."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from int8_tflite import Int8
from tiny_project import ROOT, Tiny, predict_of
from typer.testing import CliRunner
from web_browser import served

from paredown.apps.api.finished import Asked, bundle
from paredown.apps.cli.web import _print_code, app
from paredown.apps.detector.web.serve import open_server, secure, self_signed
from paredown.apps.detector.web.site import MODEL, PROGRAM, build, pinned
from paredown.pipeline.bundle.archive import unpack
from paredown.targets.cards.card import load_card
from paredown.targets.errors import DeviceError, InputError
from paredown.targets.runners.litert import Runner


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node_modules with the names that a page takes from LiteRT.js, and nothing in them."""
    folder = tmp_path_factory.mktemp("web") / "node_modules"
    core, loader = folder / "@litertjs" / "core", folder / "@litertjs" / "wasm-utils"
    for package in (core, loader):
        (package / "dist").mkdir(parents=True)
        version = pinned()[f"@litertjs/{package.name}"]
        (package / "package.json").write_text(json.dumps({"version": version}))
    (core / "dist" / "index.js").write_text('import { createWasmLib } from "@litertjs/wasm-utils";\n')
    (loader / "dist" / "index.js").write_text("export function createWasmLib() {}\n//# sourceMappingURL=x\n")
    (core / "wasm").mkdir()
    for variant in ("", "compat_", "threaded_"):
        for suffix in ("js", "wasm"):
            (core / "wasm" / f"litert_wasm_{variant}internal.{suffix}").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def site(tiny: Tiny, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(unpack(tiny.bundle), tmp_path_factory.mktemp("site"), modules).folder


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_page_has_the_bundles_facts_and_a_program_that_computes_the_same(tiny: Tiny, site: Path) -> None:
    bundle = unpack(tiny.bundle)
    facts = json.loads((site / MODEL).read_text())
    assert facts["labels"] == ["square", "disc"] and facts["preprocess"] == bundle.manifest.preprocess
    assert facts["anchors"] == [[3.3, 4.4], [2.8, 3.8]]
    shape = bundle.manifest.models[0].input.shape
    image = np.random.default_rng(1).random(shape, np.float32)
    found = Runner((site / PROGRAM).read_bytes())(image)
    for one, wanted in zip(found, predict_of(bundle)(image), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_a_finished_program_of_another_tool_becomes_a_page_that_computes_its_codes(
    kind: str, modules: Path, tmp_path: Path
) -> None:
    """It names no signatures, and its ends may be of uint8."""
    types = schema.TensorType
    w = Int8((1, 32, 32, 3), kind=types.INT8 if kind == "int8" else types.UINT8)
    scale, zero = w.codes(w.input)
    x = w.input if kind == "int8" else w.to(w.input, types.INT8, scale, zero - 128)
    x = w.layer(x, 4 * 4 + 2, 8, 8)  # one level of v8 heads of two classes
    x = x if kind == "int8" else w.to(x, types.UINT8, w.codes(x)[0], w.codes(x)[1] + 128)
    (tmp_path / "det.tflite").write_bytes(w.data(x))
    (tmp_path / "names.txt").write_text("car\ntruck\n")
    (tmp_path / "p.toml").write_text('decoding = { kind = "v8", strides = [8], bins = 4 }\n')
    asked = Asked((tmp_path / "det.tflite",), tmp_path / "p.toml", tmp_path / "names.txt", task="detect")
    made = bundle(asked, load_card("host"), tmp_path / "det.paredown").path
    folder = build(unpack(made), tmp_path / "site", modules).folder
    assert json.loads((folder / MODEL).read_text())["heads"]["kind"] == "v8"
    image = np.random.default_rng(1).uniform(-2, 9, (1, 3, 32, 32)).astype(np.float32)
    (found,), (wanted,) = Runner((folder / PROGRAM).read_bytes())(image), predict_of(unpack(made))(image)
    np.testing.assert_array_equal(found, wanted)


def test_the_page_has_no_file_of_the_package_that_makes_it(site: Path) -> None:
    assert not [path.name for path in site.rglob("*") if path.suffix in (".py", ".pyc")]
    assert not (site / "__pycache__").exists()


def test_a_compiled_package_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python has written its __pycache__ into the folder, as in any installation."""
    from paredown.apps.detector.web import site as module

    shutil.copytree(module.SOURCES, tmp_path / "web", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "web" / "__pycache__").mkdir()
    monkeypatch.setattr(module, "SOURCES", tmp_path / "web")
    assert "index.html" in module._sources("x") and "__pycache__" not in module._sources("x")


def test_everything_the_page_names_is_there(site: Path) -> None:
    texts = {
        path.name: path.read_text() for path in site.iterdir() if path.suffix in {".html", ".js", ".css"}
    }
    named = set(re.findall(r'(?:src|href)="([^"#:]+)"', texts["index.html"]))
    for name, text in texts.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'(?:from|import\(|Worker\(|register\(|fetch\()\s*"([^"]+)"', text))
    assert {"app.js", "./litert/index.js", "worker.js", "sw.js", "model.json"} <= named
    assert all((site / name).is_file() for name in named)
    assert not any(re.search(r"@[A-Z]+@", text) for text in texts.values())
    kept = json.loads(re.search(r"FILES = (\[.*\])", texts["sw.js"])[1])
    runtime = {name.removeprefix("./") for name in named if "litert/" in name}
    assert {name.removeprefix("./") for name in named} - runtime - {"sw.js"} <= set(kept)
    assert "./" in kept and all((site / name).exists() for name in kept)


def test_the_manifest_and_its_icons_can_be_installed(site: Path) -> None:
    manifest = json.loads((site / "manifest.webmanifest").read_text())
    assert manifest["name"] == "tiny" and manifest["display"] == "standalone"
    sizes = set()
    for icon in manifest["icons"]:
        if icon["type"] == "image/png":
            height, width = cv2.imread(str(site / icon["src"])).shape[:2]
            assert icon["sizes"] == f"{width}x{height}"
            sizes.add(width)
    assert {192, 512} <= sizes  # what Chromium asks for


def test_workers_find_the_loader_by_path(site: Path) -> None:
    text = (site / "litert" / "index.js").read_text()
    assert text.startswith("// Changed by paredown") and 'from "./wasm-utils.js"' in text
    assert "sourceMappingURL" not in (site / "litert" / "wasm-utils.js").read_text()


def test_a_page_is_made_again_in_its_folder_and_another_page_is_another_version(
    tiny: Tiny, modules: Path, tmp_path: Path
) -> None:
    arguments = ("web", tiny.bundle, "--out", tmp_path / "site", "--litertjs", modules, "--json")
    code, out, _ = run(*arguments)
    assert code == 0 and "index.html" in json.loads(out)["files"]
    first = (tmp_path / "site" / "sw.js").read_text()
    assert run(*arguments)[0] == 0 and (tmp_path / "site" / "sw.js").read_text() == first
    loader = modules.parent / "others"
    subprocess.run(["cp", "-r", modules, loader], check=True)
    (loader / "@litertjs" / "core" / "wasm" / "litert_wasm_internal.wasm").write_bytes(b"\0asm")
    assert run(*arguments[:-2], loader)[0] == 0
    assert (tmp_path / "site" / "sw.js").read_text() != first


def test_refusals_say_what_to_do(
    tiny: Tiny, modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    code, _, err = run("web", tiny.bundle, "--out", tmp_path / "full", "--litertjs", modules)
    assert code == 2 and "give --out a new folder" in err
    code, _, err = run("web", tiny.bundle, "--out", tmp_path / "new", "--litertjs", tmp_path)
    assert code == 4 and "npm install @litertjs/core@" in err
    old = tmp_path / "old"
    subprocess.run(["cp", "-r", modules, old], check=True)
    (old / "@litertjs" / "core" / "package.json").write_text('{"version": "0.0.1"}')
    code, _, err = run("web", tiny.bundle, "--out", tmp_path / "new", "--litertjs", old)
    assert code == 4 and "@litertjs/core 0.0.1" in err
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run("web", tiny.bundle, "--out", tmp_path / "new")
    assert code == 5 and "apt-get install npm" in err and "--litertjs" in err
    assert not (tmp_path / "new").exists()


def test_npms_own_words_reach_the_user(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code EINTEGRITY' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, _, err = run("web", tiny.bundle, "--out", tmp_path / "new")
    assert code == 5 and "code EINTEGRITY" in err and len(err.splitlines()) == 1
    assert not list((tmp_path / "cache").glob("litertjs-*"))


# -- serve -----------------------------------------------------------------------------------------------


def get(connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response


def test_pages_are_isolated_typed_and_only_the_pages(site: Path) -> None:
    types = {
        "/": "text/html", "/app.js": "text/javascript", "/manifest.webmanifest": "application/manifest+json",
        "/litert/wasm/litert_wasm_internal.wasm": "application/wasm",
    }  # fmt: skip
    with served(site) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for path, kind in types.items():
            response = get(connection, path)
            assert response.status == 200 and response.headers.get_content_type() == kind
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"):
            assert get(connection, path).status == 404
        connection.close()


def test_https_shows_the_certificate_made_for_it(site: Path, tmp_path: Path) -> None:
    certificate = self_signed(["localhost", "127.0.0.1"])
    with open_server(site) as server:
        secure(server, certificate, tmp_path)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        trust = ssl.create_default_context(
            cadata=certificate[certificate.index(b"-----BEGIN CERT") :].decode()
        )
        for host in ("localhost", "127.0.0.1"):
            connection = http.client.HTTPSConnection(host, server.server_port, context=trust)
            assert get(connection, "/index.html").status == 200
            connection.close()
        server.shutdown()
        thread.join()


def test_serve_says_where_and_ends_when_interrupted(site: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "paredown.apps.cli", "serve", str(site), "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    port = re.fullmatch(r"http://localhost:(\d+)/\n", process.stdout.readline())[1]
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    assert get(connection, "/model.json").status == 200
    connection.close()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == ""


def test_the_code_in_the_terminal_is_read_as_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    """OpenCV reads what a telephone would; a block is light, as it is on a dark terminal."""
    url = "https://192.168.178.123:8000/"
    _print_code(url)
    halves = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}
    lines = capsys.readouterr().out.splitlines()
    rows = [[halves[c][part] for c in line] for line in lines for part in (0, 1)]
    picture = np.kron(np.array(rows, np.uint8), np.ones((8, 8), np.uint8))
    said, _, _ = cv2.QRCodeDetector().detectAndDecode(np.pad(picture, 32, constant_values=255))
    assert said == url and max(map(len, lines)) <= 40


def test_a_phone_needs_a_network_and_is_told_what_comes(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paredown.apps.detector.web.serve.lan_address", lambda: None)
    code, _, err = run("serve", site, "--phone", "--port", 0)
    assert code == 5
    said = "this machine is in no network; join the telephone's network (Wi-Fi), then try again"
    assert err == f"paredown: --phone: {said}\n"


def test_no_page_and_a_taken_port_are_told(site: Path, tmp_path: Path) -> None:
    code, _, err = run("serve", tmp_path)
    assert code == 4 and "paredown web BUNDLE" in err
    with open_server(site) as server, pytest.raises(DeviceError, match="--port"):
        open_server(site, port=server.server_port)
    with pytest.raises(InputError):
        open_server(tmp_path)
