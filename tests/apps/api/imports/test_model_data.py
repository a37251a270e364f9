"""What lies in a folder or a YAML, and the section of a recipe that it becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paredown.apps.api.imports.model_data import check, look, section
from paredown.targets.errors import InputError


def made(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("files", "kind", "names"),
    [
        (("a.jpg", "b.jpg"), "photos", ()),
        (("more/a.jpg",), "photos", ("more",)),
        (("cat/a.jpg", "dog/a.jpg", ".git/x"), "classes", ("cat", "dog")),
        (("images/a.jpg", "labels/a.png"), "masks", ()),
        (("images/a.jpg", "masks/x/a.png"), "masks", ()),
    ],
)
def test_folders_are_looked_at(tmp_path, files, kind, names):
    found = look(made(tmp_path, *files))
    assert (found.kind, found.names) == (kind, names) and str(tmp_path) in found.line()


def test_arrays_and_names_beside_masks_are_found(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.png").write_bytes(b"")
    (tmp_path / "names.txt").write_text("sky\nland\n")
    assert look(tmp_path).names == ("sky", "land")
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert look(tmp_path).kind == look(tmp_path / "x.npy").kind == "arrays"


def test_names_of_the_data_that_are_not_the_networks_are_kept_apart(tmp_path):
    found = look(made(tmp_path / "photos", "cat/a.jpg", "dog/a.jpg"))
    out = tmp_path / "out"
    out.mkdir()
    made_of = section(found, "classify", ("dog", "cow", "cat"), out)
    assert Path(made_of["names"]).read_text() == "dog\ncow\ncat\n"
    assert Path(made_of["label_names"]).read_text() == "cat\ndog\n"
    assert "label_names" not in section(found, "classify", ("cat", "dog"), out)


@pytest.mark.parametrize(
    ("task", "said"),
    [("detect", "holds no boxes"), ("classify", "no folder for each"), ("segment", "no masks")],
)
def test_data_without_the_labels_of_a_task_are_refused(tmp_path, task, said):
    found = look(made(tmp_path, "a.jpg"))
    check(found, "outputs")
    with pytest.raises(InputError, match=said):
        check(found, task)


def test_a_yaml_is_photos_where_outputs_are_compared(tmp_path):
    made(tmp_path, "images/a.jpg")
    (tmp_path / "d.yml").write_text("val: images\nnames: {0: a, 1: 2}\n")
    found = look(tmp_path / "d.yml")
    assert found.kind == "yaml" and found.names == ("a", "2")
    place = str((tmp_path / "images").absolute())
    assert section(found, "outputs", (), tmp_path) == {
        "format": "folder",
        "calibration": place,
        "test": place,
    }
