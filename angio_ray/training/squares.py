"""Squares of frames in which something is marked: what nets that look for it learn from, since most of a frame teaches nothing.

    clips, boxes, drawn vessels -> Squares.draw -> Drawn               half around narrowings, or around calcification,
    pairs of frames, outlines -> PairSquares.draw                      the rest where the net was wrong, or anywhere

A square begins on a grid, so that the cells of a map lie in it as they lie in the whole frame, and is mirrored and turned by
right angles alone: nothing is resampled, and what a net sees in training has the grain of what it is to judge. (Turned by any
angle and scaled, and from any pixel on, squares of narrowings had taught next to nothing in three times as long.) Knows no nets
or loops.

Shapes: N squares, S x S pixels of a square, H x W pixels of a frame, T frames of a clip, h x w cells of a map, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from angio_ray.training.losses import MOTION
from angio_ray.training.paired_frames import mask_of
from angio_ray.training.recipes import AugmentConfig

GRID = 8
"""px from one corner to the next, of squares in which narrowings are marked."""
PAIR_GRID = 32
"""The same of pairs of frames, whose nets have larger cells."""
_AROUND_MARKED = 0.5
_AROUND_MISTAKES = 0.7
"""Of the other squares, once mistakes are known."""
_WITHIN = (0.2, 0.8)
"""Where in a square the place lies that it is cut around, in shares of its side."""
_PLACES = 256
"""Of a pair's calcification, at most, to cut around."""
_THIN = np.ones((3, 3), np.uint8)
"""Vessels thinner than this many px are not taught: a program's label has branches that nobody sees."""
_MISTAKES = 4
"""Of a frame, at most, each so many cells from the others."""
_APART = 3


class Frames(Protocol):
    """Grey frames that can be read in any order."""

    def frame(self, row: int, place: int) -> NDArray[np.uint8]:
        """One of a clip's frames, (H, W)."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Squares, and what is known of them."""

    squares_NSS: NDArray[np.uint8]
    boxes_N: list[Tensor]
    """Of each (n, 5) as `losses.box_loss` takes them: class, and x0, y0, x1, y1 as shares of its sides."""
    vessels_NSS: NDArray[np.bool_] | None
    """Where the vessels are; None where they are not taught."""
    known_N: NDArray[np.bool_]
    """Of which squares that is known."""
    rows_N: list[int]
    """Which clip each is of."""


class Squares:
    """All that squares can be cut from."""

    def __init__(
        self,
        clips: Frames,
        boxes: Sequence[NDArray[np.float32] | None],
        judged_NT: NDArray[np.bool_],
        *,
        augment: AugmentConfig,
        vessels: Sequence[Sequence[bytes | None]] = (),
        guesses: bool = True,
    ) -> None:
        """
        Parameters
        ----------
        clips, boxes, vessels
            Of `loop.Part`: inputs, boxes marked on each clip (None: nothing is known of it), drawn vessels as PNG.
        judged_NT
            Which frames show the clip; the rest only fills it up.
        augment
            Of it the shares of squares that are mirrored and turned.
        guesses
            Whether a box that was marked on another frame of the clip teaches where it may have moved to (MOTION); if not, such
            frames teach nothing.

        Raises ValueError where no frame is left.
        """
        self._clips, self._augment = clips, augment
        self._boxes: dict[tuple[int, int], NDArray[np.float32]] = {}
        for row, marked in enumerate(boxes):
            for place in np.flatnonzero(judged_NT[row]).tolist() if marked is not None else ():
                assert marked is not None
                here = marked[marked[:, 0] == place]
                if guesses or not (here[:, 1].astype(bool) & (here[:, 2] != 0)).any():
                    moved = here[:, 1:2] * MOTION * np.array([-1, -1, 1, 1], np.float32)
                    self._boxes[row, place] = np.concatenate([here[:, 2:3], here[:, 3:] + moved], axis=1)
        self.frames = list(self._boxes)
        """Row and place of each frame that squares are cut from."""
        if not self.frames:
            raise ValueError("no training clip says where narrowings are")
        self._counted = [(key, i) for key, found in self._boxes.items() for i in np.flatnonzero(found[:, 0] > 0).tolist()]
        self._vessels: dict[tuple[int, int], NDArray[np.uint8]] | None = None
        if any(vessels):  # decoded once, and held as bits: a frame of 512 px is 32 KB
            pngs = {key: vessels[key[0]][key[1]] for key in self.frames if key[1] < len(vessels[key[0]])}
            self._vessels = {key: self._bits(key, png) for key, png in pngs.items() if png is not None}

    def draw(
        self, size: int, count: int, rng: np.random.Generator, mistakes: Mapping[int, Sequence[Sequence[float]]]
    ) -> Drawn:
        """So many squares of `size` px. `mistakes`: of clips, each a frame's number in the clip, x and y."""
        squares = np.empty((count, size, size), np.uint8)
        vessels = None if self._vessels is None else np.zeros((count, size, size), np.bool_)
        known, boxes, of_clips = np.zeros(count, np.bool_), [], []
        rows = [row for row, places in mistakes.items() if places]
        for n in range(count):
            key, middle = self._place(rng, rows, mistakes)
            of_clips.append(key[0])
            frame_HW = self._clips.frame(*key)
            sides = np.array(frame_HW.shape[::-1])
            left, top = _corner(sides, size, GRID, middle, rng)
            down, across = slice(top, top + size), slice(left, left + size)
            turn = _turn(self._augment, rng)
            squares[n] = turn.picture(frame_HW[down, across])
            if vessels is not None and self._vessels is not None and (bits := self._vessels.get(key)) is not None:
                vessels[n] = turn.picture(np.unpackbits(bits[down], axis=-1, count=int(sides[0]))[:, across])
                known[n] = True
            boxes.append(torch.from_numpy(turn.boxes(_within(self._boxes[key], sides, (left, top), size))))
        return Drawn(squares, boxes, vessels, known, of_clips)

    def mistakes(self, key: tuple[int, int], cells_hw: NDArray[np.floating]) -> list[list[float]]:
        """Where the map of a frame of `frames` shows most outside its boxes, for `draw`."""
        return [[key[1], *place] for place in wrong_places(cells_hw, self._boxes[key][:, 1:])]

    def _place(
        self, rng: np.random.Generator, rows: Sequence[int], mistakes: Mapping[int, Sequence[Sequence[float]]]
    ) -> tuple[tuple[int, int], NDArray[np.floating] | None]:
        """A frame, and where to cut it, as shares; None: anywhere."""
        if self._counted and rng.random() < _AROUND_MARKED:
            key, i = self._counted[rng.integers(len(self._counted))]
            box = self._boxes[key][i, 1:]
            return key, (box[:2] + box[2:]) / 2
        if rows and rng.random() < _AROUND_MISTAKES:
            row = rows[int(rng.integers(len(rows)))]
            place, x, y = mistakes[row][int(rng.integers(len(mistakes[row])))]
            return (row, int(place)), np.array([x, y])
        return self.frames[rng.integers(len(self.frames))], None

    def _bits(self, key: tuple[int, int], png: bytes) -> NDArray[np.uint8]:
        drawn = mask_of(png, self._clips.frame(*key).shape[0]).astype(np.uint8)
        return np.packbits(cv2.morphologyEx(drawn, cv2.MORPH_OPEN, _THIN) > 0, axis=-1)


class PairSquares:
    """All that squares of pairs of frames can be cut from."""

    def __init__(self, clips: Frames, outlines: Iterable[NDArray[np.bool_]], augment: AugmentConfig) -> None:
        """`outlines`: of each pair the calcification in its first frame, (H, W). ValueError where none shows any."""
        self._clips, self._augment, self._num = clips, augment, 0
        self._marked: list[tuple[int, NDArray[np.float64]]] = []
        for row, outline_HW in enumerate(outlines):
            self._num += 1
            if len(places := np.argwhere(outline_HW)[:, ::-1]):
                some = places[np.linspace(0, len(places) - 1, min(len(places), _PLACES)).astype(int)]
                self._marked.append((row, (some + 0.5) / np.array(outline_HW.shape[::-1])))
        if not self._marked:
            raise ValueError("no training clip shows calcification")

    def draw(
        self,
        size: int,
        count: int,
        rng: np.random.Generator,
        mistakes: Mapping[int, Sequence[Sequence[float]]],
        layers: Callable[[int], NDArray[np.generic]],
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """So many squares of pairs, (N, 2, S, S), and of what belongs to each, (N, L, S, S).

        mistakes: of pairs, places, each x and y as shares. layers: of a pair (L, H, W), such as its outline.
        """
        pairs, found = np.empty((count, 2, size, size), np.uint8), []
        wrong = [row for row, places in mistakes.items() if places]
        for n in range(count):
            middle: NDArray[np.floating] | None = None
            if rng.random() < _AROUND_MARKED:
                row, places = self._marked[int(rng.integers(len(self._marked)))]
                middle = places[rng.integers(len(places))]
            elif wrong and rng.random() < _AROUND_MISTAKES:
                row = wrong[int(rng.integers(len(wrong)))]
                middle = np.asarray(mistakes[row][int(rng.integers(len(mistakes[row])))])
            else:
                row = int(rng.integers(self._num))
            of_pair_LHW = layers(row)
            left, top = _corner(np.array(of_pair_LHW.shape[:0:-1]), size, PAIR_GRID, middle, rng)
            down, across = slice(top, top + size), slice(left, left + size)
            turn = _turn(self._augment, rng)
            pairs[n] = turn.picture(np.stack([self._clips.frame(row, place)[down, across] for place in (0, 1)]))
            found.append(turn.picture(of_pair_LHW[:, down, across]))
        return pairs, np.stack(found).astype(np.float32)


def wrong_places(cells_hw: NDArray[np.floating], boxes_S4: NDArray[np.floating]) -> list[list[float]]:
    """Where a map shows most outside the boxes: x and y of a few cells, as shares, best first."""
    height, width = cells_hw.shape
    left = np.array(cells_hw, np.float64)
    for x0, y0, x1, y1 in boxes_S4:
        left[max(0, int(y0 * height) - 1) : int(y1 * height) + 2, max(0, int(x0 * width) - 1) : int(x1 * width) + 2] = -1
    found: list[list[float]] = []
    while len(found) < _MISTAKES and left.max() >= 0:
        y, x = divmod(int(left.argmax()), width)
        found.append([(x + 0.5) / width, (y + 0.5) / height])
        left[max(0, y - _APART) : y + _APART + 1, max(0, x - _APART) : x + _APART + 1] = -1
    return found


def _within(
    boxes_S5: NDArray[np.float32], sides: NDArray[np.integer], corner: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """The boxes as shares of a square's sides. One whose middle is not in it, but a part of it is, becomes one of an unknown
    class (-1)."""
    found = boxes_S5.copy()
    found[:, 1:] = (boxes_S5[:, 1:] * np.tile(sides, 2) - np.tile(corner, 2)) / size
    low, high = found[:, 1:3], found[:, 3:]
    middle = (low + high) / 2
    outside = ~((middle > 0) & (middle < 1)).all(axis=1)
    found[outside & (found[:, 0] != 0), 0] = -1
    return found[((high > 0) & (low < 1)).all(axis=1)]


def _corner(
    sides: NDArray[np.integer], size: int, grid: int, middle: NDArray[np.floating] | None, rng: np.random.Generator
) -> tuple[int, int]:
    """Column and row where a square begins that has `middle`, as shares of the frame's sides, inside; None: anywhere."""
    corner = rng.uniform(0, 1, 2) * (sides - size) if middle is None else middle * sides - rng.uniform(*_WITHIN, 2) * size
    left, top = (grid * np.clip(np.round(corner / grid), 0, (sides - size) // grid)).astype(int).tolist()
    return left, top


def _turn(augment: AugmentConfig, rng: np.random.Generator) -> Turn:
    return Turn(*(rng.random(3) < (augment.flip, augment.upside_down, augment.turned)).tolist())


@dataclass(frozen=True, slots=True)
class Turn:
    """How a square is mirrored and then turned."""

    mirrored: bool
    upside_down: bool
    turned: bool
    """Rows and columns exchanged."""

    def picture(self, cut: NDArray[Any]) -> NDArray[Any]:
        """Of one square or several, (..., S, S)."""
        seen = cut[..., :: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]
        return seen.swapaxes(-1, -2) if self.turned else seen

    def boxes(self, boxes_S5: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class and corners, as shares."""
        seen = boxes_S5.copy()
        if self.mirrored:
            seen[:, [1, 3]] = 1 - seen[:, [3, 1]]
        if self.upside_down:
            seen[:, [2, 4]] = 1 - seen[:, [4, 2]]
        return seen[:, [0, 2, 1, 4, 3]] if self.turned else seen
