"""Candidate frames: which frames of a clip show no contrast in the arteries, some, or full contrast.

The stenosis paper (spec section 2) classifies frames of full contrast only, and finds them by features of each frame that a
bidirectional LSTM reads in order. `inception_lstm` is the paper's; `frames_lstm` reads how much of each frame is thin and
dark beside the other frames of the clip, which costs a hundredth. Knows nothing of tables, gates or Ray.

Shapes: B clips, T frames, C channels (3), H x W pixels, K classes (none, partial, full).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from angio_ray.models.backends import CompiledScorer
from angio_ray.models.interface import NOT_LAST, NetSpec
from angio_ray.sampling import ClipWindow

if TYPE_CHECKING:
    from torch import nn

CLASSES = ("none", "partial", "full")
"""Of a frame: no contrast in the arteries, anything between, full contrast."""
COLUMNS = (
    "first_contrast",
    "contrast_begin",
    "contrast_end",
    "last_contrast",
    "candidate_frames",
    "contrast_frames",
    "contrast_threshold",
)

NUM_CANDIDATES = 8
"""Frames chosen of those with full contrast; the paper has 5 to 10 in a clip."""
CANDIDATE_STEP = 3
"""Of the frames at 15 per second one in so many may be chosen: five a second are a handful in every beat of the heart, and what
classifies them is handed those alone, at full size."""

CONTRAST_FPS = 15.0
"""Frames a second of these windows."""
# From the first frame on: clips of 60 to 200 frames (spec section 2); the last frame stands where there are fewer.
WHOLE_112 = ClipWindow(name="t200_112px", size=112, start=0, length=200, stride=1)
WHOLE_299 = ClipWindow(name="t200_299px", size=299, start=0, length=200, stride=1)


class ContrastScorer(CompiledScorer):
    """Where contrast comes, is full and goes, in the file's own frames, and the frames to classify."""

    task = "contrast"

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[NDArray[np.integer]]],
        known: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Find the contrast of B clips: {window name: uint8 (B, T, H, W)} and the file's frames shown -> COLUMNS.

        Each column has length B and holds None where there is nothing: no full contrast, no contrast at all. ValueError when
        the net returns no number (NaN) for a clip.
        """
        name = self.windows[0].name
        probability_BTK = self.probabilities(inputs)
        found = [
            _named(p_TK[: len(shown)], np.asarray(shown), self.threshold)
            for p_TK, shown in zip(probability_BTK, frames[name], strict=True)
        ]
        columns = {}
        for column in COLUMNS:
            values = np.empty(len(found), object)
            values[:] = [row[column] for row in found]
            columns[column] = values
        return columns


def _named(p_TK: NDArray[np.float32], shown_T: NDArray[np.integer], threshold: np.float32) -> dict[str, object]:
    """The columns of one clip."""
    row: dict[str, object] = dict.fromkeys(COLUMNS)
    row["contrast_threshold"] = float(threshold)
    by_frame = dict(zip(shown_T.tolist(), p_TK[:, -1].tolist(), strict=True))
    row["contrast_frames"] = [{"frame": frame, "probability": p} for frame, p in by_frame.items()]
    full = longest_run(p_TK[:, -1], float(threshold))
    seen = longest_run(1 - p_TK[:, 0], 0.5)
    if full and seen:  # what is full is seen
        seen = min(seen[0], full[0]), max(seen[1], full[1])
    if seen := seen or full:
        row["first_contrast"], row["last_contrast"] = (int(shown_T[t]) for t in seen)
    if full:
        row["contrast_begin"], row["contrast_end"] = (int(shown_T[t]) for t in full)
        row["candidate_frames"] = candidates_between(shown_T[::CANDIDATE_STEP], *(int(shown_T[t]) for t in full))
    return row


def candidates_between(shown_T: NDArray[np.integer], begin: int, end: int, count: int = NUM_CANDIDATES) -> list[int]:
    """At most `count` of the frames shown (every CANDIDATE_STEP-th at 15 per second) from `begin` to `end`, in the file's own.

    Where full contrast is shorter than the step and has none of them, the one nearest to its middle.
    """
    full_T = shown_T[(shown_T >= begin) & (shown_T <= end)]
    if not len(full_T):
        full_T = shown_T[[int(np.abs(shown_T - (begin + end) / 2).argmin())]]
    return candidate_frames(full_T, count)


def candidate_frames(full_T: NDArray[np.integer], count: int = NUM_CANDIDATES) -> list[int]:
    """At most `count` of the frames of full contrast, evenly spread, so that all phases of the heart are among them."""
    frames = list(dict.fromkeys(full_T.tolist()))  # a file below 15/s shows a frame twice
    at = np.linspace(0, len(frames) - 1, min(count, len(frames)))
    return [frames[int(i)] for i in np.round(at)]


def longest_run(probability_T: NDArray[np.floating], threshold: float) -> tuple[int, int] | None:
    """The run of frames with the largest sum of (probability - threshold), both ends included; None where none is above.

    So a single frame that falls below does not end a run, and a single one above far from it begins none.
    """
    gain_T = np.concatenate([[0.0], np.cumsum(np.asarray(probability_T, np.float64) - float(threshold))])
    lowest_T = np.minimum.accumulate(gain_T)
    end = int(np.argmax(gain_T - lowest_T))
    if gain_T[end] <= lowest_T[end]:
        return None
    begin = int(np.flatnonzero(gain_T[: end + 1] == lowest_T[end])[-1])
    return begin, end - 1


def frame_classes(shown_T: NDArray[np.integer], contrast_4: Sequence[int | None]) -> NDArray[np.int64]:
    """Class of each frame shown, (T,), by (first_contrast, contrast_begin, contrast_end, last_contrast) of the file.

    Where no first and last frame is known, a frame outside full contrast is NOT_LAST: one of the other classes, as
    readers who marked full contrast alone have said.
    """
    first, begin, end, last = contrast_4
    shown_T = np.asarray(shown_T)
    if first is None or last is None:
        class_T = np.full(len(shown_T), NOT_LAST, np.int64)
    else:
        class_T = ((shown_T >= first) & (shown_T <= last)).astype(np.int64)
    if begin is not None and end is not None:
        class_T[(shown_T >= begin) & (shown_T <= end)] = len(CLASSES) - 1
    return class_T


def _frames_lstm() -> nn.Module:
    from angio_ray.models.frame_sequence import frames_lstm

    return frames_lstm(len(CLASSES))


def _inception_lstm() -> nn.Module:
    from angio_ray.models.frame_sequence import inception_lstm

    return inception_lstm(len(CLASSES))


NETS: dict[str, NetSpec] = {
    spec.name: spec
    for spec in (
        NetSpec(
            name="frames_lstm", build=_frames_lstm, window=WHOLE_112, layout="BCTHW-frames", classes=len(CLASSES), exact=True,
            cost_input=(3, 200, 112, 112),
        ),
        NetSpec(
            name="inception_lstm", build=_inception_lstm, window=WHOLE_299, layout="BCTHW-frames", classes=len(CLASSES),
            cost_input=(3, 200, 299, 299),
        ),
    )
}
