"""The page's service worker in Debian's Chromium: one release at a time, whatever is served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_web_site import modules  # noqa: F401 - a fixture
from tiny_project import Tiny
from web_browser import Browser, served

from paredown.apps.detector.web.site import build
from paredown.pipeline.bundle.archive import pack, unpack

pytestmark = pytest.mark.slow

#: What an open page has: its own release, and what it is given for its files, also for one loaded late.
SEEN = """
const done = arguments[0];
const text = async (name) => (await fetch(name)).text();
const page = document.querySelector("meta[name=release]").content;
Promise.all([text("./"), text("model.json"), text("litert/wasm/litert_wasm_internal.js")]).then(
  ([index, model, late]) => {
    const given = index.match(/name="release" content="([0-9a-z]+)"/)[1];
    done([page, given, JSON.parse(model).name, late]);
  },
  (error) => done([page, String(error)]));
"""
#: Asks the server for another release, and waits until its worker waits, or was refused.
UPDATE = """
const done = arguments[0];
navigator.serviceWorker.getRegistration().then(async (registration) => {
  try { await registration.update(); } catch (error) { return done("refused"); }
  const fresh = registration.installing;
  if (!fresh) return done(registration.waiting ? "waits" : "nothing new");
  fresh.addEventListener("statechange", () => {
    if (fresh.state !== "installing") done(fresh.state === "redundant" ? "refused" : "waits");
  });
});
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path, None)
    yield browser
    browser.close()


def page(tiny: Tiny, folder: Path, packages: Path, name: str) -> None:
    """Another release of the page, in the same folder."""
    bundle = unpack(tiny.bundle)
    manifest = json.loads(bundle.text) | {"name": name}
    del manifest["members"], manifest["format"]
    made = folder.parent / f"{name}.paredown"
    made.write_bytes(pack(manifest, dict(bundle.members)))
    for variant in packages.rglob("litert_wasm_internal.js"):
        variant.write_text(f"// {name}")
    build(unpack(made), folder, packages)


def test_one_release_at_a_time(tiny: Tiny, modules: Path, browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    site = tmp_path / "site"
    page(tiny, site, modules, "one")

    def seen() -> list[str]:
        return browser.driver.execute_async_script(SEEN)

    def whole(name: str) -> bool:
        """Whether all that the page has is of one release."""
        first, index, model, late = seen()
        return first == index and model == name and late == f"// {name}"

    def update() -> str:
        return browser.driver.execute_async_script(UPDATE)

    with served(site) as port:
        browser.driver.get(f"http://localhost:{port}/")
        browser.wait("navigator.serviceWorker.controller !== null")
        assert whole("one")
        # another release on the server: the open page stays what it is, file by file
        page(tiny, site, modules, "two")
        assert update() == "waits" and whole("one")
        # once it is opened again, alone, all of it is the new one
        browser.driver.refresh()
        browser.wait("document.title.startsWith('two')")
        browser.wait("navigator.serviceWorker.controller !== null")
        assert whole("two")
        # half a release on the server is none
        before = {file: file.read_bytes() for file in site.rglob("*") if file.is_file()}
        page(tiny, site, modules, "three")
        (site / "model.json").write_bytes(before[site / "model.json"])
        assert update() == "refused"
        browser.driver.refresh()
        browser.wait("navigator.serviceWorker.controller !== null")
        assert whole("two")
        # with another page open nobody is taken over
        page(tiny, site, modules, "three")
        first = browser.driver.current_window_handle
        browser.driver.switch_to.new_window("tab")
        browser.driver.get(f"http://localhost:{port}/")
        browser.wait("navigator.serviceWorker.controller !== null")
        assert update() == "waits"
        browser.driver.refresh()
        browser.wait("navigator.serviceWorker.controller !== null")
        assert whole("two")
        browser.driver.close()
        browser.driver.switch_to.window(first)

        def opened() -> bool:
            """Whether the page, opened again, is the new release: a closed tab counts for a moment still."""
            browser.driver.refresh()
            browser.wait("['two', 'three'].includes(document.title.split(' ')[0])")
            return browser.driver.title.startswith("three")

        assert any(opened() for _ in range(20))
        browser.wait("navigator.serviceWorker.controller !== null")
        assert whole("three")


def test_a_late_file_of_another_release_is_not_given(
    tiny: Tiny, modules: Path, browser: Browser, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    """The runtime's files are loaded when they are needed: by then the server may have others."""
    site = tmp_path / "site"
    page(tiny, site, modules, "one")
    with served(site) as port:
        browser.driver.get(f"http://localhost:{port}/")
        browser.wait("navigator.serviceWorker.controller !== null")
        (site / "litert" / "wasm" / "litert_wasm_internal.js").write_text("// two")
        first, *rest = browser.driver.execute_async_script(SEEN)
        assert first and rest == ["TypeError: Failed to fetch"]
