"""Detections become tracks with stable ids: numpy only.

Association in two rounds as in ByteTrack (Zhang et al., 2022, section 3): first the sure detections with all
tracks, then the unsure ones with the tracks that are left, which keeps an object that is half hidden. Boxes
are grown before they are compared (C-BIoU; Yang et al., WACV 2023, section 3.1): at a board's few pictures a
second an object can move by its own width. Positions are predicted by an alpha-beta filter, the steady state
of a Kalman filter of constant velocity, in seconds and not in frames: a camera that drops frames has no
constant step. Pairs are taken greedily, best first; the optimal assignment needs SciPy, which is larger than
everything else on a board. Our design otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paredown.apps.detector.device.boxes.decode import Detections, iou_matrix

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class TrackerConfig:
    """When detections are the same object.

    Attributes:
        sure: score over which a detection begins a track.
        unsure: score over which it may continue one.
        grow: part of its own width and height by which a box is grown on every side to be compared.
        overlap: IoU of grown boxes from which a sure detection continues a track.
        unsure_overlap: the same of an unsure one.
        hits: detections that a track needs to be shown.
        lost_s: seconds that a track outlives its last detection.
        alpha: share of a position's surprise that is believed.
        beta: share of a velocity's surprise that is believed.
    """

    sure: float = 0.5
    unsure: float = 0.1
    grow: float = 0.3
    overlap: float = 0.2
    unsure_overlap: float = 0.5
    hits: int = 2
    lost_s: float = 1.0
    alpha: float = 0.8
    beta: float = 0.3


@dataclass(frozen=True)
class Track:
    """An object in this picture.

    Attributes:
        id: counts from 1; never given twice.
        category: number of its class.
        score: of its detection in this picture.
        box: x1, y1, x2, y2 of that detection, normalised to the image.
        since: seconds of the scene at its first detection.
    """

    id: int
    category: int
    score: float
    box: Box
    since: float

    @property
    def foot(self) -> tuple[float, float]:
        """The middle of the lower edge: where an object stands."""
        return (self.box[0] + self.box[2]) / 2, self.box[3]


class _Kept:
    """A track as the tracker remembers it."""

    def __init__(self, box: np.ndarray, category: int, now: float) -> None:
        self.id, self.category, self.since, self.seen, self.hits = 0, category, now, now, 1
        self._box = box.astype(np.float64)
        self._speed = np.zeros(2)  # of its middle, in images per second

    def predicted(self, now: float) -> np.ndarray:
        return self._box + np.tile(self._speed * (now - self.seen), 2)

    def follow(self, box: np.ndarray, now: float, config: TrackerConfig) -> None:
        surprise = box - self.predicted(now)
        self._box = self.predicted(now) + config.alpha * surprise
        if now > self.seen:
            middle = (surprise[:2] + surprise[2:]) / 2
            # after one detection nothing is known of the speed: what it did since is the best guess
            believed = 1.0 if self.hits == 1 else config.beta
            self._speed = self._speed + believed * middle / (now - self.seen)
        self.seen, self.hits = now, self.hits + 1


class Tracker:
    """Follows the objects of one camera.

    Attributes:
        total: tracks shown so far, by class.
    """

    def __init__(self, config: TrackerConfig | None = None) -> None:
        self.config = config or TrackerConfig()
        self.total: dict[int, int] = {}
        self._kept: list[_Kept] = []
        self._next = 1
        self._began: float | None = None

    @property
    def alive(self) -> frozenset[int]:
        """Ids that may be seen again."""
        return frozenset(track.id for track in self._kept if track.id)

    def update(self, found: Detections, now: float) -> tuple[Track, ...]:
        """Takes the detections of the next picture.

        Args:
            found: in any order, down to the score `config.unsure`; boxes normalised to the image.
            now: seconds of the scene; never less than before.

        Returns:
            The tracks that were detected in this picture, by id.
        """
        config = self.config
        if self._began is None:
            self._began = now
        self._kept = [track for track in self._kept if now - track.seen <= config.lost_s]
        free = set(range(len(self._kept)))
        sure = np.flatnonzero(found.scores > config.sure)
        unsure = np.flatnonzero((found.scores > config.unsure) & (found.scores <= config.sure))
        pairs: dict[int, int] = {}  # detection -> track
        for members, overlap in ((sure, config.overlap), (unsure, config.unsure_overlap)):
            pairs |= self._paired(found, members, free, overlap, now)
        for detection, place in pairs.items():
            self._kept[place].follow(found.boxes[detection], now, config)
        for detection in sure.tolist():
            if detection not in pairs:
                pairs[detection] = len(self._kept)
                self._kept.append(_Kept(found.boxes[detection], int(found.classes[detection]), now))
        return self._shown(found, pairs, now)

    def _paired(
        self, found: Detections, members: np.ndarray, free: set[int], overlap: float, now: float
    ) -> dict[int, int]:
        """Which detections continue which tracks, best pair first; takes the tracks out of `free`."""
        places = sorted(free)
        if not len(members) or not places:
            return {}
        predicted = np.stack([self._kept[place].predicted(now) for place in places])
        categories = np.array([self._kept[place].category for place in places])
        close = iou_matrix(_grown(found.boxes[members], self.config), _grown(predicted, self.config))
        close[found.classes[members][:, None] != categories] = 0
        pairs: dict[int, int] = {}
        for flat in np.argsort(-close, axis=None, kind="stable").tolist():
            row, column = divmod(flat, len(places))
            if close[row, column] < overlap:
                break
            if int(members[row]) not in pairs and places[column] in free:
                pairs[int(members[row])] = places[column]
                free.discard(places[column])
        return pairs

    def _shown(self, found: Detections, pairs: dict[int, int], now: float) -> tuple[Track, ...]:
        shown = []
        for detection, place in pairs.items():
            track = self._kept[place]
            # what stands there when we begin needs no second look
            if not track.id and (track.hits >= self.config.hits or now == self._began):
                track.id, self._next = self._next, self._next + 1
                self.total[track.category] = self.total.get(track.category, 0) + 1
            if track.id:
                x1, y1, x2, y2 = (float(value) for value in found.boxes[detection])
                score = float(found.scores[detection])
                shown.append(Track(track.id, track.category, score, (x1, y1, x2, y2), track.since))
        return tuple(sorted(shown, key=lambda track: track.id))


def _grown(boxes: np.ndarray, config: TrackerConfig) -> np.ndarray:
    margin = config.grow * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)
