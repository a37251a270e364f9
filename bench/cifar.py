"""Makes CIFAR-10's binary files from pictures: `python bench/cifar.py SOURCE OUT`.

SOURCE holds test500.png and train4000.png (a row of 1024 pixels per image) with their .labels.txt, and
train50000-jpeg.tar.xz (train/CLASS/NNNN.jpg). OUT gets test/, lossless/ and jpeg/.
JPEG copies are for training only: no accuracy on them is worth quoting.
"""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path

import cv2
import numpy as np

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCH = 10_000
MIXED = 12_000  # JPEG images beside the 4,000 lossless ones, to train on


def records(images: np.ndarray, labels: np.ndarray) -> bytes:
    """CIFAR-10's binary records of BGR images (N, 32, 32, 3) and their labels (N,)."""
    planes = images[..., ::-1].transpose(0, 3, 1, 2).reshape(len(images), 3072)
    return np.concatenate([labels.astype(np.uint8)[:, None], planes], axis=1).tobytes()


def lossless(source: Path, name: str) -> bytes:
    """The images of one picture of rows."""
    rows = cv2.imread(str(source / f"{name}.png"))
    labels = np.loadtxt(source / f"{name}.labels.txt", dtype=np.int64)
    assert rows is not None and rows.shape == (len(labels), 1024, 3), source / name
    return records(rows.reshape(-1, 32, 32, 3), labels)


def jpeg(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """The decoded JPEG images and their labels, in an order fixed by chance: the archive sorts by class."""
    images, labels, paths = [], [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if member.isfile() and path.suffix == ".jpg":
                file = tar.extractfile(member)
                assert file is not None
                images.append(cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR))
                labels.append(NAMES.index(path.parent.name))
                paths.append(member.name)
    order = np.random.default_rng(0).permutation(np.argsort(paths))
    return np.stack(images)[order], np.array(labels)[order]


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files and the list of names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        print(folder / name, len(content) // 3073, "images")
    (folder / "batches.meta.txt").write_text("".join(f"{name}\n" for name in NAMES))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    write(options.out / "test", {"test_batch.bin": lossless(options.source, "test500")})
    write(options.out / "lossless", {"data_batch_1.bin": lossless(options.source, "train4000")})
    images, labels = jpeg(options.source / "train50000-jpeg.tar.xz")
    parts = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    batches = {f"data_batch_{n}.bin": records(images[p], labels[p]) for n, p in enumerate(parts, start=1)}
    write(options.out / "jpeg", batches)
    every = np.frombuffer(b"".join(batches.values()), np.uint8).reshape(-1, 3073)
    some = every[np.random.default_rng(0).choice(len(every), MIXED, replace=False)]
    exact = lossless(options.source, "train4000")
    write(options.out / "mixed", {"data_batch_1.bin": exact, "data_batch_2.bin": some.tobytes()})


if __name__ == "__main__":
    main()
