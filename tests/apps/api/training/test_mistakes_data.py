"""Mistakes that people make with data and training: one line that says what to do, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_project import CFG, call

Make = Callable[[Path], None]


def image(path: Path, size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 90, np.uint8))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def yolo(folder: Path, labels: str = "0 .5 .5 .2 .2\n", names: str = "cat\ndog\n", count: int = 2) -> None:
    """A YOLO set, and a recipe for it."""
    for number in range(count):
        image(folder / f"images/{number}.png")
        put(folder / f"labels/{number}.txt", labels)
    put(folder / "classes.txt", names)
    recipe(folder)


def recipe(folder: Path, data: str = "", app: str = "apps.detector", network: str = "net.cfg") -> None:
    keys = {"format": '"yolo"', "names": '"classes.txt"', "test": '"images"', "calibration": '"images"'}
    keys |= dict(line.split(" = ", 1) for line in data.splitlines())
    rows = "".join(f"{key} = {value}\n" for key, value in keys.items() if value != "-")
    text = f'app = "{app}"\nnetwork = "{network}"\nweights = "net.weights"\n[data]\n{rows}'
    put(folder / "r.toml", text)
    put(folder / "net.cfg", CFG)
    put(folder / "net.weights", "x")


def keyed(data: str, **more: str) -> Make:
    """The YOLO set with other keys in its recipe."""

    def make(folder: Path) -> None:
        yolo(folder)
        recipe(folder, data, **more)

    return make


def labelled(labels: str) -> Make:
    return lambda folder: yolo(folder, labels)


def named(names: str) -> Make:
    return lambda folder: yolo(folder, names=names)


def voc(xml: str) -> Make:
    def make(folder: Path) -> None:
        yolo(folder)
        image(folder / "voc/a.png")
        put(folder / "voc/a.xml", xml)
        recipe(folder, 'format = "voc"\ntest = "voc"\ncalibration = "voc"')

    return make


def voc_object(name: str = "cat", extra: str = "") -> str:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    size = "<size><width>40</width><height>20</height></size>"
    return f"<annotation>{size}<object><name>{name}</name>{extra}{box}</object></annotation>"


def coco(**changes: object) -> Make:
    def make(folder: Path) -> None:
        yolo(folder)
        image(folder / "coco/a.png")
        document = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 20}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        }
        put(folder / "coco/a.json", json.dumps({**document, **changes}))
        recipe(folder, 'format = "coco"\ntest = "coco/a.json"\ncalibration = "coco/a.json"')

    return make


def classes(
    more: Make = lambda folder: None, data: str = "", kinds: tuple[str, ...] = ("cat", "dog")
) -> Make:
    def make(folder: Path) -> None:
        for kind in kinds:
            image(folder / f"sorted/{kind}/0.png")
        put(folder / "classes.txt", "cat\ndog\n")
        keys = f'format = "imagefolder"\ntest = "sorted"\ncalibration = "sorted"\n{data}'.strip()
        recipe(folder, keys, "apps.classifier", "resnet20")
        more(folder)

    return make


def without_labels(folder: Path) -> None:
    yolo(folder)
    for file in folder.glob("labels/*.txt"):
        file.unlink()


def only_heic(folder: Path) -> None:
    yolo(folder)
    put(folder / "phone/a.heic", "x")
    recipe(folder, 'test = "phone"')


def config(text: str) -> Make:
    def make(folder: Path) -> None:
        yolo(folder)
        put(folder / "data.yaml", text)

    return make


def many(folder: Path) -> None:
    yolo(folder, "0 .5 .5 .2 .2\n1 .3 .3 .3 .2\n", count=10)


RUN = ("run", "r.toml")
TRAIN = ("train", ".", "--out", "net.safetensors")
OUTSIDE = "a box outside the image"
NO_BOX = "expected 5 columns, class cx cy w h, found"
ROWS: dict[str, tuple[Make, tuple[str, ...], int, str]] = {
    # -- label files
    "a class that the names do not have": (
        labelled("7 .5 .5 .2 .2\n"), RUN, 4,
        "labels/0.txt:1: class 7 is out of range: there are 2 classes, 0 to 1",
    ),
    "labels in pixels": (
        labelled("0 320 240 50 50\n"), RUN, 4, f"{OUTSIDE}, not normalised to it: 320 240 50 50",
    ),
    "commas as decimal points": (labelled("0 0,5 0,5 0,1 0,1\n"), RUN, 4, "'0,5' is not a finite number"),
    "polygons of a segmentation export": (
        labelled("0 .1 .1 .2 .1 .2 .2\n"), RUN, 4, f"{NO_BOX} 7; polygons and scores are not read",
    ),
    "a box that reaches far outside": (
        labelled("0 .9 .5 .4 .4\n"), RUN, 4, 'data.boxes = "clip" cuts such boxes at the edge',
    ),
    "no label file at all": (
        without_labels, RUN, 4, "no labels for any of the 2 images, and they are needed here",
    ),
    "empty label files everywhere": (
        labelled(""), RUN, 4, "not one box of the network's classes on 2 images",
    ),
    # -- names
    "a blank line between names": (named("cat\n\ndog\n"), RUN, 4, "a blank line among the class names"),
    "a name twice": (named("cat\ncat\n"), RUN, 4, "class 'cat' for the second time"),
    "names of another data set": (named("a\nb\nc\n"), RUN, 4, "3 class names for a network of 2 classes"),
    "an empty list of names": (named(""), RUN, 4, "no class names in this file"),
    "a list of names that is not there": (keyed('names = "cocos.names"'), RUN, 4, "cocos.names"),
    # -- paths and keys
    "a folder that is not there": (keyed('test = "imgs"'), RUN, 4, "imgs: no such file or folder"),
    "photos of a phone": (only_heic, RUN, 4, "no images in this folder; known: .jpg .jpeg"),
    "a misspelled format": (keyed('format = "yolov5"'), RUN, 4, "data.format"),
    "a word for boxes that is none": (keyed('boxes = "cut"'), RUN, 4, "data.boxes"),
    "a misspelled key": (keyed('callibration = "images"'), RUN, 4, "did you mean `calibration` in [data]?"),
    "class folders for a detector": (
        keyed('format = "imagefolder"'), RUN, 4, "has no boxes; detection needs boxes",
    ),
    # -- VOC
    "a class with a typing error": (
        voc(voc_object("catt")), RUN, 4, "class 'catt' is not one of the network's (did you mean 'cat'?)",
    ),
    "a difficult that is neither yes nor no": (
        voc(voc_object(extra="<difficult>maybe</difficult>")), RUN, 4,
        "object 1 ('cat'): <difficult> is 'maybe', neither 0 nor 1",
    ),
    "half an XML file": (voc("<annotation><object>"), RUN, 4, "malformed XML"),
    # -- COCO
    "no categories": (coco(categories=None), RUN, 4, "no list 'categories'; is it a COCO annotation file?"),
    "a crowd that is neither yes nor no": (
        coco(annotations=[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": "perhaps"}]),
        RUN, 4,
        "annotations[0]: iscrowd is 'perhaps', neither 0 nor 1",
    ),
    "an image that is not there": (
        coco(images=[{"id": 1, "file_name": "b.png", "width": 40, "height": 20}]), RUN, 4,
        "no image 'b.png'",
    ),
    # -- a class per image
    "an image beside the class folders": (
        classes(lambda folder: image(folder / "sorted/a.png")), RUN, 4, "an image beside the 2 class folders",
    ),
    "a folder of another class": (
        classes(kinds=("cat", "dog", "cow")), RUN, 4, "class 'cow' is not one of the network's",
    ),
    "test images of one class": (
        classes(kinds=("cat",)), RUN, 4, "all 1 test images are of one class (cat)",
    ),
    "boxes of a classifier": (
        classes(data='boxes = "clip"'), RUN, 4, "the classifier has no boxes; leave it out",
    ),
    "a list with a file that is not there": (
        classes(lambda folder: put(folder / "l.csv", "a.png,cat\n"), 'test = "l.csv"'), RUN, 4,
        "no image 'a.png'; paths start at the list's folder",
    ),
    # -- training
    "weights to a pickle": (
        many, ("train", ".", "--out", "net.pt"), 2, "end it with .safetensors or .weights",
    ),
    "a folder for the weights that is not there": (
        many, ("train", ".", "--out", "made/net.safetensors"), 4, "made: no such folder; make it first",
    ),
    "too few images": (yolo, TRAIN, 4, "2 labelled images, too few to hold some out; label at least 8"),
    "no names anywhere": (
        lambda folder: (many(folder), (folder / "classes.txt").unlink())[0], TRAIN, 4,
        "no list of the classes' names; --names gives one",
    ),
    "a video instead of images": (
        lambda folder: put(folder / "v.mp4", "x"), ("train", "v.mp4", "--out", "net.safetensors"), 4,
        "v.mp4: no data set is recognised here; known are a folder images/",
    ),
    "images that nobody labelled": (
        lambda folder: image(folder / "p/a.png"), ("train", "p", "--out", "net.safetensors"), 4,
        "p: images, but no labels; known are",
    ),
    "a data.yaml that counts otherwise": (
        config("train: images\nnames: [cat, dog]\nnc: 3\n"), TRAIN, 4,
        "data.yaml: nc is 3, and there are 2 names",
    ),
    "a data.yaml of another machine": (
        config("path: /home/me/set\ntrain: train/images\nnames: [cat, dog]\n"), TRAIN, 4,
        "no train images 'train/images'; looked at",
    ),
    "an input that the network cannot take": (
        many, (*TRAIN, "--size", "100"), 2, "--size 100; give a multiple of the network's stride 16",
    ),
    "an input of no size": (many, (*TRAIN, "--size", "8"), 2, "--size 8; give 32 pixels or more"),
    "a network that nobody has": (many, (*TRAIN, "--network", "yolov9"), 2, "no built-in network 'yolov9'"),
    "a network of v3": (
        many, (*TRAIN, "--network", "yolov3-tiny", "--size", "96"), 4,
        "no [region]: this network is not trained here",
    ),
    "more images a step than there are": (
        many, (*TRAIN, "--batch", "64"), 2, "8 images for batches of 64; make the batch smaller",
    ),
    "weights that are not there": (
        many, (*TRAIN, "--weights", "best.pt"), 4, "best.pt: cannot read the checkpoint",
    ),
    "a GPU that is not there": (
        many, (*TRAIN, "--device", "cuda:9"), 2, "device 'cuda:9' cannot be used here",
    ),
    "no epochs": (many, (*TRAIN, "--epochs", "0"), 2, "epochs = 0; at least 1"),
    "validation images that are not there": (
        many, (*TRAIN, "--validation", "val"), 4, "val: no such file or folder",
    ),
    "a format of another tool": (many, (*TRAIN, "--format", "pascal"), 2, "unknown data format 'pascal'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", ROWS)
def test_a_mistake_is_one_line_and_its_exit_code(tmp_path, monkeypatch, mistake):
    make, words, code, expected = ROWS[mistake]
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    done = call(*words)
    last = done.err.strip().splitlines()[-1]
    assert done.code == code, done.err
    assert expected in last and last.startswith("paredown: ") and "Traceback" not in done.err
    assert not (tmp_path / "net.safetensors").exists()
