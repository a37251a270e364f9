"""Data sets that `bench/deployed.py` makes: handwriting on photographs, and ten spoken words."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import cv2
import numpy as np
from cases import SHARED
from numpy.typing import NDArray

WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
KINDS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4")


def make_masks(folder: Path, counts: dict[str, int], side: int = 80, seed: int = 0) -> None:
    """Handwriting (digits in any colour) on COCO photographs: images/SPLIT, labels/SPLIT, names.txt.

    A scan and a photograph belong to one split only.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        photos = sorted((SHARED / "coco").rglob(f"*{'train' if split == 'train' else 'val'}*/*.jpg"))
        scans = np.arange(0, 1400) if split == "train" else np.arange(1400, 1797)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        pictures = [cv2.imread(str(path)) for path in photos]
        for index in range(count):
            photo = pictures[rng.integers(len(pictures))]
            y, x = (int(rng.integers(max(1, length - 2 * side))) for length in photo.shape[:2])
            image = cv2.resize(photo[y : y + 2 * side, x : x + 2 * side], (side, side)).astype(np.float32)
            label = np.zeros((side, side), np.uint8)
            for _ in range(int(rng.integers(1, 4))):
                scan, size = int(rng.choice(scans)), int(rng.integers(24, 44))
                ink = cv2.resize(
                    digits.images[scan].astype(np.float32) / 16, (size, size), interpolation=cv2.INTER_CUBIC
                )
                top, left = (int(v) for v in rng.integers(0, side - size, 2))
                window = (slice(top, top + size), slice(left, left + size))
                alpha = ink.clip(0, 1)[..., None]
                image[window] = (1 - alpha) * image[window] + alpha * rng.uniform(0, 255, 3)
                label[window][alpha[..., 0] > 0.5] = 1
            cv2.imwrite(str(folder / "images" / split / f"{index:05}.png"), image.round().astype(np.uint8))
            cv2.imwrite(str(folder / "labels" / split / f"{index:05}.png"), label)
    (folder / "names.txt").write_text("background\nink\n")


def coefficients(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """10 mel-frequency cepstral coefficients of 49 frames: (1, 49, 10) of one second at 16 kHz."""
    from scipy.fft import dct

    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (0, 640)), 640)[::320][:49]
    power = np.abs(np.fft.rfft(frames * np.hanning(640), 1024)) ** 2
    mel = 2595 * np.log10(1 + np.fft.rfftfreq(1024, 1 / 16000) / 700)
    centres = np.linspace(mel[2], 2595 * np.log10(1 + 7600 / 700), 42)
    width = centres[1] - centres[0]
    bank = np.maximum(0, 1 - np.abs(mel[None] - centres[1:-1, None]) / width)
    made = dct(np.log(power @ bank.T + 1e-6), norm="ortho", axis=1)[:, :10]
    return (made / 10).astype(np.float32)[None]


def make_words(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Ten words by many voices, loud and quiet, in noise: SPLIT.npz with `inputs` and `labels`, words.txt.

    Raises:
        SystemExit: espeak-ng is not installed.
    """
    from scipy.signal import resample_poly

    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng speaks the words: install it (Debian: apt-get install espeak-ng)")
    voices = [
        f"{accent}+{kind}{n}"
        for accent in ACCENTS
        for kind, most in (("m", 7), ("f", 4))
        for n in range(1, most)
    ]
    order = np.random.default_rng(seed).permutation(len(voices))
    held = len(voices) // 4
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        chosen = order[held:] if split == "train" else order[:held]
        inputs, labels = [], []
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "word.wav"
            for index in range(count * len(WORDS)):
                word = index % len(WORDS)
                voice = voices[int(rng.choice(chosen))]
                speed, pitch = int(rng.integers(110, 230)), int(rng.integers(20, 80))
                subprocess.run(
                    [
                        "espeak-ng",
                        "-v",
                        voice,
                        "-s",
                        str(speed),
                        "-p",
                        str(pitch),
                        "-w",
                        str(path),
                        WORDS[word],
                    ],
                    check=True,
                )
                with wave.open(str(path)) as file:
                    raw = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32)
                    spoken = resample_poly(raw / 32768, 16000, file.getframerate())[:16000]
                sound = np.zeros(16000, np.float32)
                start = int(rng.integers(0, 16001 - len(spoken)))
                loud = rng.uniform(0.3, 1) / max(1e-6, np.abs(spoken).max())
                sound[start : start + len(spoken)] = spoken * loud
                sound += rng.normal(0, 10 ** rng.uniform(-2.5, -1), 16000).astype(np.float32)
                inputs.append(coefficients(sound))
                labels.append(word)
        np.savez(folder / f"{split}.npz", inputs=np.stack(inputs), labels=np.array(labels))
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
