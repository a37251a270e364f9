"""The list of what a bundle is made of, judged by CycloneDX's own schema."""

from __future__ import annotations

import hashlib
import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from paredown.pipeline.bundle.packed import sbom
from paredown.pipeline.bundle.packed.sbom import bundle_sbom, licence_of, licence_text, package

MANIFEST = {
    "name": "net", "app": "apps.detector", "target": "host",
    "models": [{"runtime": "litert", "file": "model.tflite"}],
    "versions": {"torch": "2.13.0+cpu", "ai-edge-litert": "2.3.0", "numpy": "2.4.6"},
}  # fmt: skip
MEMBERS = {"model.tflite": b"a program"}

pytestmark = pytest.mark.unit


def test_the_document_is_what_the_schema_of_cyclonedx_asks_for():
    text = bundle_sbom(MANIFEST, MEMBERS)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.decode()) is None
    parts = {part["name"]: part for part in json.loads(text)["components"]}
    assert list(parts) == ["ai-edge-litert", "numpy", "paredown", "torch", "model.tflite"]
    assert parts["torch"]["purl"] == "pkg:pypi/torch@2.13.0" and parts["torch"]["scope"] == "excluded"
    assert {name for name, part in parts.items() if part.get("scope") == "required"} == {
        "ai-edge-litert",
        "numpy",
    }
    digest = hashlib.sha256(b"a program").hexdigest()
    assert parts["model.tflite"]["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_it_tells_of_no_time_and_no_machine():
    text = bundle_sbom(MANIFEST, MEMBERS)
    assert text == bundle_sbom(MANIFEST, MEMBERS)
    assert not {"timestamp", "serialNumber"} & (json.loads(text)["metadata"].keys() | json.loads(text).keys())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("MIT", "anything", ["License :: OSI Approved :: BSD License"]), "MIT"),
        ((None, "BSD-3", []), "BSD-3"),
        (
            (None, "The MIT License\nPermission is hereby", ["License :: OSI Approved :: MIT License"]),
            "MIT License",
        ),
        ((None, "x" * 200, []), ""),
        ((None, None, ["Topic :: Software"]), ""),
    ],
)
def test_a_licence_is_named_in_few_words(given, found):
    assert licence_text(*given) == found


def test_a_package_that_is_not_here_has_no_licence_but_a_hash():
    made = package("no-such-package", "1", digest="a" * 64)
    assert "licenses" not in made and made["hashes"][0]["content"] == "a" * 64


def test_a_licence_is_found_by_the_package_importlib_metadata_too(monkeypatch):
    """dask brings it; it puts itself in Python's place, and raises for what is missing."""
    importlib_metadata = pytest.importorskip("importlib_metadata")
    wanted = {name: licence_of(name) for name in ("numpy", "torch", "pydantic", "none-such")}
    monkeypatch.setattr(sbom, "metadata", importlib_metadata)
    assert {name: licence_of(name) for name in wanted} == wanted and wanted["numpy"]
