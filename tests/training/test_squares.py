"""Squares: where they are cut, and that pictures, boxes and vessels stay together."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from angio_ray.training.loop import InMemory
from angio_ray.training.losses import MOTION
from angio_ray.training.recipes import NO_AUGMENTATION
from angio_ray.training.squares import GRID, PAIR_GRID, Drawn, PairSquares, Squares, wrong_places

STILL = NO_AUGMENTATION
ANY_WAY = replace(STILL, flip=0.5, upside_down=0.5, turned=0.5)


def clips(rng: np.random.Generator, count: int = 6) -> tuple[InMemory, list[NDArray[np.float32] | None]]:
    """Clips of two frames of 96 px, a bright oblong of 16 x 8 px in each; all is marked."""
    frames, boxes = np.full((count, 2, 96, 96), 50, np.uint8), []
    for clip_THW in frames:
        marked = []
        for place, frame_HW in enumerate(clip_THW):
            x, y = rng.integers(0, 80, 2)
            frame_HW[y : y + 8, x : x + 16] = 200
            marked.append([place, 0, 1, *(np.array([x, y, x + 16, y + 8]) / 96)])
        boxes.append(np.array(marked, np.float32))
    return InMemory(frames), boxes


def brights(drawn: Drawn) -> list[NDArray[np.bool_]]:
    return [square > 100 for square in drawn.squares_NSS]


def test_boxes_and_vessels_go_with_their_square_however_it_is_turned() -> None:
    rng = np.random.default_rng(0)
    inputs, boxes = clips(rng)
    pngs = [[cv2.imencode(".png", (frame > 100).astype(np.uint8))[1].tobytes() for frame in clip] for clip in inputs.clips_NTHW]
    squares = Squares(inputs, boxes, np.ones((6, 2), bool), augment=ANY_WAY, vessels=[*pngs[:-1], []])
    drawn = squares.draw(40, 400, rng, {})
    assert drawn.vessels_NSS is not None
    assert 0.7 < drawn.known_N.mean() < 0.95, "of five clips of six"
    whole, tall = 0, 0
    for bright, found, vessels, known in zip(brights(drawn), drawn.boxes_N, drawn.vessels_NSS, drawn.known_N, strict=True):
        assert (vessels == (bright & known)).all()
        if not len(found):
            assert not bright.any()
            continue
        left, top, right, bottom = (found[0, 1:].numpy() * 40).round().astype(int).clip(0, 40)
        expected = np.zeros((40, 40), bool)
        expected[top:bottom, left:right] = True
        assert (bright == expected).all()
        if bright.sum() == 128:
            assert found[0, 0] == 1
            whole, tall = whole + 1, tall + (bottom - top > right - left)
        elif found[0, 0] == 1:
            assert bright.sum() >= 32, "its middle is in the square"
    assert whole > 150, "half of them are around boxes"
    assert 0.35 * whole < tall < 0.65 * whole


def test_squares_begin_where_the_cells_of_a_map_do() -> None:
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8), (1, 1, 96, 96))
    found = Squares(InMemory(ramp), [np.empty((0, 7), np.float32)], np.ones((1, 1), bool), augment=STILL)
    corners = found.draw(40, 200, np.random.default_rng(1), {}).squares_NSS[:, 0, 0]
    assert set(corners.tolist()) == set(range(0, 57, GRID)), "any, up to the border"


def test_what_is_not_in_half_of_a_box_is_not_called_one() -> None:
    rng = np.random.default_rng(2)
    inputs, boxes = clips(rng)
    drawn = Squares(inputs, boxes, np.ones((6, 2), bool), augment=STILL).draw(24, 400, rng, {})
    for found in drawn.boxes_N:
        for of, *corners in found.tolist():
            middle = np.array(corners).reshape(2, 2).mean(axis=0)
            assert (of == 1) == bool(((middle > 0) & (middle < 1)).all())
    assert {of for found in drawn.boxes_N for of in found[:, 0].tolist()} == {1, -1}


def test_mistakes_draw_most_of_the_other_squares() -> None:
    rng = np.random.default_rng(3)
    inputs, boxes = clips(rng)
    inputs.clips_NTHW[4, 1, 40, 60] = 255
    squares = Squares(inputs, boxes, np.ones((6, 2), bool), augment=STILL)
    drawn = squares.draw(24, 400, rng, {4: [[1, 60.5 / 96, 40.5 / 96]], 2: []})
    assert 100 < (drawn.squares_NSS.max(axis=(1, 2)) == 255).sum() < 180, "seven of ten of a half"


def test_only_frames_of_which_something_is_known_are_cut() -> None:
    rng = np.random.default_rng(4)
    inputs, boxes = clips(rng)
    judged = np.ones((6, 2), bool)
    judged[0, 1] = False  # fills its clip up
    boxes[1] = None  # nobody looked
    boxes[2] = np.array([[0, 0, 1, 0.1, 0.2, 0.3, 0.3], [1, 1, 1, 0.1, 0.2, 0.3, 0.3]], np.float32)  # seen on the other frame
    boxes[3] = np.array([[0, 0, 0, 0.1, 0.2, 0.3, 0.3], [1, 1, 0, 0.1, 0.2, 0.3, 0.3]], np.float32)  # mild
    guessed = Squares(inputs, boxes, judged, augment=STILL)
    assert [row for row, _ in guessed.frames] == [0, 2, 2, 3, 3, 4, 4, 5, 5]
    exact = Squares(inputs, boxes, judged, augment=STILL, guesses=False)
    assert (2, 1) not in exact.frames, "a detector learns boxes where they are, not where they may be"
    assert (3, 1) in exact.frames, "but there is none where none counts"
    drawn = (guessed.draw(96, 1, np.random.default_rng(i), {2: [[1, 0.5, 0.5]]}).boxes_N[0] for i in range(99))
    wide = next(found for found in drawn if found[:, 0].tolist() == [1] and found[0, 1] < 0.09)
    moved = np.array([0.1, 0.2, 0.3, 0.3]) + MOTION * np.array([-1, -1, 1, 1])
    np.testing.assert_allclose(wide[0, 1:], moved, atol=1e-6)
    with pytest.raises(ValueError, match="no training clip"):
        Squares(inputs, [None] * 6, judged, augment=STILL)


def test_squares_of_pairs_keep_their_outlines() -> None:
    rng = np.random.default_rng(5)
    pairs = rng.integers(0, 99, (4, 2, 128, 128)).astype(np.uint8)
    outlines = [np.zeros((128, 128), bool) for _ in pairs]
    for pair, outline in zip(pairs[:3], outlines, strict=False):
        x, y = rng.integers(8, 110, 2)
        outline[y : y + 6, x : x + 12] = True
        pair[0, outline] = 200
    squares = PairSquares(InMemory(pairs), outlines, ANY_WAY)
    drawn, layers = squares.draw(64, 300, rng, {3: [[0.9, 0.1]]}, lambda row: np.stack([outlines[row], np.full((128, 128), row)]))
    assert drawn.shape == layers.shape == (300, 2, 64, 64)
    assert ((drawn[:, 0] == 200) == (layers[:, 0] > 0)).all()
    holds = layers[:, 0].any(axis=(1, 2))
    assert 0.5 < holds.mean() < 0.75, "half are around calcification, and some of the others meet it"
    of_row = layers[:, 1, 0, 0]
    assert 0.3 < (of_row == 3).mean() < 0.5, "seven of ten of the others are where the net was wrong"
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8), (1, 2, 128, 128))
    corners = PairSquares(InMemory(ramp), outlines[:1], STILL).draw(64, 99, rng, {}, lambda _: outlines[0][None])[0][:, 0, 0, 0]
    assert set(corners.tolist()) <= set(range(0, 65, PAIR_GRID))
    with pytest.raises(ValueError, match="no training clip shows calcification"):
        PairSquares(InMemory(pairs), outlines[3:], STILL)


def test_wrong_places_lie_apart_and_outside_the_boxes() -> None:
    cells = np.zeros((16, 16), np.float32)
    cells[4, 4], cells[4, 5], cells[12, 12], cells[8, 1] = 0.9, 0.8, 0.7, 0.6
    found = wrong_places(cells, np.array([[12, 12, 13, 13]], np.float32) / 16)
    assert found[:2] == [[4.5 / 16, 4.5 / 16], [1.5 / 16, 8.5 / 16]], "not beside the best, not in the box"
    assert len(found) == 4
