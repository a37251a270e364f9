"""A VOC set of our own of the kind that people bring: red and white blood cells, and tiny platelets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

NAMES = ("Platelets", "RBC", "WBC")  # by the alphabet, as a reader of the annotations finds them
WIDTH, HEIGHT = 256, 192
RADII = {"RBC": (13, 17), "WBC": (24, 30), "Platelets": (3, 5)}  # pixels


def blood_cells(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Writes a VOC devkit.

    Args:
        folder: which is made.
        counts: split -> images of it, as ImageSets/Main has them.
        seed: of everything.
    """
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for split, count in counts.items():
        stems = [f"{split}_{number:04d}" for number in range(count)]
        for stem in stems:
            image, objects = smear(random)
            cv2.imwrite(str(folder / "JPEGImages" / f"{stem}.jpg"), image)
            (folder / "Annotations" / f"{stem}.xml").write_text(annotation(stem, objects))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{s}\n" for s in stems))
    return folder


def smear(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[str, tuple[int, ...], bool]]]:
    """An image (HEIGHT, WIDTH, 3), and each cell: its class, corners in pixels, whether it is cut off."""
    ground = random.normal((215, 222, 232), 3, (HEIGHT, WIDTH, 3))
    image = np.clip(ground, 0, 255).astype(np.uint8)
    wanted = ["WBC"] * int(random.integers(0, 2)) + ["RBC"] * int(random.integers(5, 10))
    wanted += ["Platelets"] * int(random.integers(1, 4))
    objects: list[tuple[str, tuple[int, ...], bool]] = []
    taken: list[tuple[float, float, float]] = []
    for kind in wanted:
        for _ in range(30):
            low, high = RADII[kind]
            a, b = random.uniform(low, high, 2)
            x, y = random.uniform(2, WIDTH - 2), random.uniform(2, HEIGHT - 2)
            if all(np.hypot(x - u, y - v) > max(a, b) + r for u, v, r in taken):
                break
        else:
            continue
        taken.append((x, y, max(a, b)))
        draw(image, kind, (x, y), (a, b), random)
        left, top = max(1, round(x - a)), max(1, round(y - b))
        right, bottom = min(WIDTH, round(x + a)), min(HEIGHT, round(y + b))
        if right - left < 2 or bottom - top < 2:
            continue
        seen = (right - left) * (bottom - top) / (4 * a * b)
        objects.append((kind, (left, top, right, bottom), seen < 0.5))
    return image, objects


def draw(
    image: np.ndarray,
    kind: str,
    at: tuple[float, float],
    radii: tuple[float, float],
    random: np.random.Generator,
) -> None:
    """Draws a cell."""
    colours = {"RBC": (150, 145, 205), "WBC": (190, 150, 170), "Platelets": (150, 70, 120)}
    tone = np.clip(np.array(colours[kind]) + random.normal(0, 8, 3), 0, 255)
    centre, axes = (round(at[0]), round(at[1])), (max(1, round(radii[0])), max(1, round(radii[1])))
    cv2.ellipse(image, centre, axes, 0, 0, 360, tone.tolist(), -1, cv2.LINE_AA)
    if kind == "RBC":  # paler in the middle
        inner = (max(1, axes[0] // 3), max(1, axes[1] // 3))
        cv2.ellipse(image, centre, inner, 0, 0, 360, (tone + 25).clip(0, 255).tolist(), -1, cv2.LINE_AA)
    if kind == "WBC":  # a dark nucleus of lobes
        for angle in random.uniform(0, 2 * np.pi, 3):
            lobe = (round(at[0] + 8 * np.cos(angle)), round(at[1] + 8 * np.sin(angle)))
            cv2.circle(image, lobe, 9, (120, 40, 90), -1, cv2.LINE_AA)


def annotation(stem: str, objects: list[tuple[str, tuple[int, ...], bool]]) -> str:
    """The XML of an image; cells that are cut off are difficult."""
    rows = "".join(
        f"<object><name>{kind}</name><difficult>{int(cut)}</difficult><bndbox><xmin>{box[0]}</xmin>"
        f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for kind, box, cut in objects
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{stem}.jpg</filename>{size}{rows}</annotation>"
