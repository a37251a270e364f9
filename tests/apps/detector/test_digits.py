import hashlib
import itertools

import numpy as np
import pytest
from PIL import Image

from paredown.apps.detector import digits
from paredown.apps.detector.digits import LARGEST, MOST_OVERLAP, SIZE, SMALLEST, Digits, sources, split_scans
from paredown.targets.errors import UsageError

SPLITS = ("train", "calibration", "validation", "test")


def test_every_scan_is_in_exactly_one_split_and_every_class_in_each():
    parts = [split_scans(split) for split in SPLITS]
    together = np.sort(np.concatenate(parts))
    np.testing.assert_array_equal(together, np.arange(1797))
    labels = sources().labels
    overall = np.bincount(labels) / len(labels)
    for part in parts:
        share = np.bincount(labels[part], minlength=10) / len(part)
        np.testing.assert_allclose(share, overall, atol=0.02)
    assert [len(part) for part in parts] == [1258, 112, 141, 286]


def test_no_photograph_pixel_is_both_trained_on_and_scored():
    for which in range(2):
        for one, other in itertools.combinations(("train", "validation", "test"), 2):
            (t1, b1, l1, r1), (t2, b2, l2, r2) = digits._REGIONS[one][which], digits._REGIONS[other][which]
            assert min(b1, b2) <= max(t1, t2) or min(r1, r2) <= max(l1, l2)
        for split in SPLITS:
            top, bottom, left, right = digits._REGIONS[split][which]
            assert 0 <= top < bottom <= 427
            assert 0 <= left < right <= 640


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_keep_their_promises(split):
    data = Digits(split, 40)
    for index in range(40):
        sample = data[index]
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert sample.image.dtype == np.uint8
        assert sample.image.flags.c_contiguous
        assert sample.boxes.dtype == np.float32
        assert sample.classes.dtype == np.int64
        assert sample.labelled
        assert 2 <= len(sample.boxes) <= 7
        assert len(sample.classes) == len(sample.boxes)
        pixels = sample.boxes * SIZE
        longer = pixels[:, 2:].max(1)
        assert SMALLEST <= longer.min()
        assert longer.max() <= LARGEST
        low, high = pixels[:, :2] - pixels[:, 2:] / 2, pixels[:, :2] + pixels[:, 2:] / 2
        assert low.min() >= 1
        assert high.max() <= SIZE - 1
        for a, b in itertools.combinations(range(len(pixels)), 2):
            shared = np.clip(np.minimum(high[a], high[b]) - np.maximum(low[a], low[b]), 0, None).prod()
            assert shared * MOST_OVERLAP <= min(pixels[a, 2:].prod(), pixels[b, 2:].prod()) + 1e-3


def test_a_box_is_tight_around_its_digit(monkeypatch):
    """The scene without its digits is the oracle: they are where the two differ."""
    monkeypatch.setattr(digits, "_weather", lambda image, draws: image)
    scene = Digits("train")[3]
    draws = digits._Draws(digits._VERSION, 0, 3)
    changed = (scene.image.astype(int) != digits._background("train", draws)).any(-1)
    cover = np.zeros((SIZE, SIZE), bool)
    for cx, cy, w, h in np.rint(scene.boxes * SIZE * 2).astype(int) / 2:
        x0, y0, x1, y1 = (int(v) for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        cover[y0:y1, x0:x1] = True
        inside = changed[y0:y1, x0:x1]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
    assert not changed[~cover].any()


def test_enlarging_is_catmull_rom():
    """PIL's bicubic is the same kernel; with a border of its own zeros its edges agree too."""
    for scan in (0, 17, 700):
        padded = np.pad(sources().scans[scan].astype(np.float32), 2)
        enlarged = Image.fromarray(padded).resize((96, 96), Image.Resampling.BICUBIC)
        reference = np.asarray(enlarged)[16:80, 16:80]
        expected = np.clip((np.clip(reference * 16, 0, 256) - 64) * 2, 0, 255)
        got = digits._glyph(scan)[8:-8, 8:-8]
        assert np.abs(got - expected).max() <= 3


def test_drawn_digits_are_still_the_digits_they_were():
    """Shrunk back to 8 x 8, a turned and slanted digit is nearest to a scan of its own class."""
    labels = sources().labels
    train = split_scans("train")
    known = sources().scans[train].reshape(-1, 64).astype(float)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    tried, right = split_scans("test")[::2], 0
    for number, scan in enumerate(tried):
        ink = digits._draw_digit(int(scan), 48, digits._Draws(number))
        side = max(ink.shape)
        spare = [(side - length) // 2 for length in ink.shape]
        square = np.pad(ink, [(n, side - length - n) for n, length in zip(spare, ink.shape, strict=True)])
        small = np.asarray(Image.fromarray(square.astype(np.float32)).resize((8, 8), Image.Resampling.BOX))
        right += labels[train][(known @ small.ravel()).argmax()] == labels[scan]
    assert right / len(tried) > 0.85


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_the_same_bytes_on_every_machine():
    assert digest(sources().scans) == "8f26b2bd9d135c25"
    assert digest(np.stack(sources().photographs)) == "13169471ac68739c"  # of the JPEG decoder, not ours
    assert [digest(Digits(split)[7].image) for split in SPLITS] == [
        "43b41cc13b7084a9",
        "f65cffe31fdefa1d",
        "7277992b428a558b",
        "56d95a88def2c5cd",
    ]
    assert digest(Digits("train")[7].boxes) == "99e528500c526a6b"


def test_scenes_do_not_depend_on_the_order_or_the_length():
    data = Digits("test")
    later = data[200].image.copy()
    data[0].image[:] = 0  # nobody else sees it
    np.testing.assert_array_equal(Digits("test", 201)[200].image, later)
    assert data[0].image.any()
    assert [len(Digits(split)) for split in SPLITS] == [6000, 128, 200, 300]
    assert data.names == tuple("0123456789")


def test_fingerprint_names_the_content():
    prints = {Digits(split).fingerprint() for split in SPLITS} | {Digits("test", 5).fingerprint()}
    assert len(prints) == 5
    assert Digits("test").fingerprint() == Digits("test").fingerprint()


def test_wrong_requests():
    with pytest.raises(UsageError, match="one of train"):
        Digits("tset")
    with pytest.raises(UsageError, match="at least 1"):
        Digits("test", 0)
    with pytest.raises(IndexError):
        Digits("test")[300]
    assert len(list(Digits("calibration", 3))) == 3  # the old protocol of iteration ends by IndexError


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sources.cache_clear()
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        sources()
    sources.cache_clear()


def test_the_sources_are_what_scikit_learn_reads():
    from sklearn.datasets import load_digits, load_sample_images

    oracle = load_digits()
    assert np.array_equal(sources().scans, oracle.images) and np.array_equal(sources().labels, oracle.target)
    for ours, theirs in zip(sources().photographs, load_sample_images().images, strict=True):
        assert np.abs(ours[..., ::-1].astype(int) - theirs).max() <= 2  # JPEG decoders may differ a little
