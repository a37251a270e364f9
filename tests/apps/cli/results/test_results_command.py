"""`report` and `unpack` as a user calls them."""

from __future__ import annotations

import hashlib
import json
import shutil

from tiny_project import call

from paredown.pipeline.bundle.archive import unpack


def test_a_run_and_its_bundle_have_pages(tiny, tmp_path):
    page, run = tmp_path / "page.html", tmp_path / tiny.run.name
    # what `bench` measured afterwards, for another test, is no part of the run's own page
    shutil.copytree(tiny.run, run, ignore=shutil.ignore_patterns("bench.json"))
    done = call("report", run, "--out", page)
    assert done.code == 0 and done.out == f"report   {page}\n"
    text = page.read_text()
    assert text == (tiny.run / "report.html").read_text(), "the run wrote the very same page"
    for head in ("Figures", "Budget", "Classes", "The worst images", "Time", "Parity", "Card"):
        assert f"<h2>{head}</h2>" in text, head
    card = tmp_path / "card.html"
    assert call("report", tiny.bundle, "--out", card).code == 0
    assert "paredown validate bundle.paredown" in card.read_text() and "Apache-2.0" in card.read_text()
    both = tmp_path / "both.html"
    done = call("report", tiny.run, tiny.bundle, "--compare", "--out", both, "--json")
    assert done.code == 0 and json.loads(done.out) == {"pages": [str(both)]} and "<svg" in both.read_text()


def test_a_bundle_is_unpacked_to_what_a_device_gets(tiny, tmp_path):
    folder = tmp_path / "files"
    done = call("unpack", tiny.bundle, "--out", folder, "--json")
    assert done.code == 0 and json.loads(done.out)["models"] == ["model.pte", "model.tflite"]
    manifest = unpack(tiny.bundle).manifest
    for name, entry in manifest.members.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry.sha256
    for name in ("model.tflite", "model.pte"):  # the run has them too
        assert (tiny.run / name).read_bytes() == (folder / name).read_bytes()
    again = call("unpack", tiny.bundle, "--out", folder)
    assert again.code == 2 and again.err.endswith("is there already and not empty; give --out a new folder\n")
