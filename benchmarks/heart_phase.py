"""How well the heart's period and phase are found in pixels: the calcification paper's plain form and ours, against truth.

    angio-ray phantom CLIPS --patients 12 --seed 610 --protocol calcium --size 256 --clips 2-3
    python benchmarks/heart_phase.py CLIPS [CLIPS ...] [--dicom FILE_OR_FOLDER ...] [--each]

A row per folder of phantom clips: error of the period in frames at 15/s (truth: the median of the beats shown), difference
of phase of the two frames chosen (by truth, times the true period), pairs found of those that could be (one beat
before contrast, and full contrast), mean quality. Where contrast is comes from the labels, not from a net. The
permitted frames are every third, as those of the task `contrast`. Clips are decoded as for it: 112 px, resampled to 15/s,
200 frames at most. The paper's pair is by its period alone: the two frames whose distance is nearest to whole beats. As the
paper writes it, contrast and slow change are its signal's longest period; "bounded" is the same of the frames before contrast
(all, where there are none), within 0.6-3 Hz.
--each prints a line per clip. --dicom takes other files: period, quality and pair; `FILE=FIRST:BEGIN:END` says in which of
the file's own frames contrast comes, is full and ends.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from angio_ray.dicom.reader import ClipReader
from angio_ray.models.contrast import CANDIDATE_STEP, WHOLE_112
from angio_ray.models.heart_phase import distance_signal, fourier_period, frame_pair, heart_phase
from angio_ray.phantom import truth
from angio_ray.storage import Storage

STEP_S = 1 / WHOLE_112.fps


@dataclass(frozen=True)
class Decoded:
    """A clip as the pipeline hands it to a model."""

    name: str
    frames_THW: NDArray[np.uint8]
    shown_T: NDArray[np.int64]
    """The file's frame that each shows."""

    def at(self, frame: int | None) -> int | None:
        """Index of the first that shows this frame of the file or a later one."""
        return None if frame is None else int(np.searchsorted(self.shown_T, frame))


def clips(source: str, reader: ClipReader) -> Iterator[Decoded]:
    """Every clip of a folder, or of one file, that can be read."""
    path = Path(source)
    storage = Storage(str(path if path.is_dir() else path.parent))
    for info in (info for page in storage.list() for info in page):
        name = info.uri.removeprefix("file://")
        if path.is_file() and Path(name).name != path.name:
            continue
        outcome = reader.read(storage.open(info))
        if outcome.reason is not None:
            print(f"{name}: {outcome.reason}")
            continue
        selection = outcome.selections[WHOLE_112.name]
        shown = np.array(selection.indices[: selection.num_shown])
        yield Decoded(name, outcome.inputs[WHOLE_112.name][: len(shown)], shown)


def permitted(clip: Decoded, first: int, begin: int, end: int) -> tuple[list[int], list[int]]:
    """Every third frame before contrast, and of full contrast."""
    index = np.arange(0, len(clip.shown_T), CANDIDATE_STEP)
    frame = clip.shown_T[index]
    return index[frame < first].tolist(), index[(frame >= begin) & (frame <= end)].tolist()


def quartiles(values: list[float]) -> str:
    if not values:
        return "-"
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def by_period(period: float, early: list[int], late: list[int]) -> tuple[int, int]:
    """The pair whose distance in time is nearest to whole beats."""
    beats = (np.array(late)[None] - np.array(early)[:, None]) / period
    i, j = np.unravel_index(np.abs(beats - np.round(beats)).argmin(), beats.shape)
    return early[i], late[j]


def measure(clip: Decoded, label: dict[str, Any], known: truth.Truth) -> dict[str, Any]:
    """One phantom clip under both forms."""
    first, begin, end = (label[name] for name in ("first_contrast", "contrast_begin", "contrast_end"))
    onsets, times = known.beat_onsets_s, known.times_s
    seen = (onsets[1:] > times[0]) & (onsets[:-1] < times[-1])
    period = float(np.median(np.diff(onsets)[seen])) / STEP_S
    phase_T = known.phase_T[clip.shown_T]
    start = time.perf_counter()
    heart = heart_phase(clip.frames_THW, step_s=STEP_S, first_contrast=clip.at(first))
    row = {"period": period, "quality": heart.quality, "seconds": time.perf_counter() - start}
    plain = fourier_period(distance_signal(clip.frames_THW))
    bounded = fourier_period(distance_signal(clip.frames_THW[: clip.at(first) or None]), shortest=5, longest=25)
    for form, found in (("plain", plain), ("bounded", bounded), ("robust", heart.period_frames)):
        row[f"{form}_period"] = found
        row[f"{form}_error"] = None if found is None else abs(found - period)
    early, late = permitted(clip, first, begin, end) if begin is not None else ([], [])
    row["could"] = bool(early and late and clip.at(first) >= period)
    pair = frame_pair(heart, early, late)
    row["reason"] = pair.reason
    chosen = {"robust": (pair.precontrast, pair.contrast)}
    for form, found in (("plain", plain), ("bounded", bounded)):
        if row["could"] and found is not None:
            chosen[form] = by_period(found, early, late)
    for form, (a, b) in chosen.items():
        if a is not None and b is not None:
            apart = float(phase_T[a] - phase_T[b])
            row[f"{form}_pair"] = abs((apart + 0.5) % 1 - 0.5) * period
    return row


def phantom_rows(folder: str, reader: ClipReader, *, each: bool) -> list[dict[str, Any]]:
    """Every clip of the folder that shows a heart; others have no period to find."""
    labels = {row["path"]: row for row in pq.read_table(Path(folder) / "labels.parquet").to_pylist()}
    rows = []
    for clip in clips(folder, reader):
        label = labels[str(Path(clip.name).relative_to(Path(folder).resolve()))]
        if label["heart_period_frames"] is None:
            continue
        rows.append(row := measure(clip, label, truth.read(Path(folder) / label["truth_path"])))
        if each:
            shown = " ".join(
                f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print(f"{label['path']} {label['quality_class']} {len(clip.shown_T)} frames: {shown}", flush=True)
    return rows


def print_table(folders: dict[str, list[dict[str, Any]]]) -> None:
    print(
        "| clips | n | form | period error | over 1 frame | pair phase error | over 1 frame | pairs | quality | s a clip |"
    )
    print("|---" * 10 + "|")
    for folder, rows in folders.items():
        for form in ("plain", "bounded", "robust"):
            error = [row[f"{form}_error"] for row in rows if row[f"{form}_error"] is not None]
            pair = [row[f"{form}_pair"] for row in rows if f"{form}_pair" in row]
            over = [f"{np.mean(np.array(values) > 1):.0%}" if values else "-" for values in (error, pair)]
            could = f"{len(pair)} of {sum(row['could'] for row in rows)}"
            ours = form == "robust"
            quality = f"{np.mean([row['quality'] for row in rows]):.2f}" if ours else "-"
            seconds = f"{np.mean([row['seconds'] for row in rows]):.2f}" if ours else "-"
            cells = [
                Path(folder).name,
                str(len(rows)),
                form,
                quartiles(error),
                over[0],
                quartiles(pair),
                over[1],
                could,
            ]
            print(f"| {' | '.join([*cells, quality, seconds])} |")


def print_files(source: str, reader: ClipReader) -> None:
    path, _, contrast = source.partition("=")
    first, begin, end = (int(part) for part in contrast.split(":")) if contrast else (None, None, None)
    for clip in clips(path, reader):
        heart = heart_phase(clip.frames_THW, step_s=STEP_S, first_contrast=clip.at(first))
        early, late = ([], []) if first is None else permitted(clip, first, begin, end)
        pair, plain = frame_pair(heart, early, late), fourier_period(distance_signal(clip.frames_THW))
        found = pair.reason or f"frames {clip.shown_T[pair.precontrast]} and {clip.shown_T[pair.contrast]}"
        ours, papers = ("none" if p is None else f"{p * STEP_S:.2f} s" for p in (heart.period_frames, plain))
        print(
            f"{Path(clip.name).name}: {len(clip.shown_T)} frames at 15/s, period {ours} (plain form {papers}), "
            f"quality {heart.quality:.2f}, pair: {found}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", help="phantom clips with labels and side files")
    parser.add_argument(
        "--dicom", nargs="*", default=[], help="other files or folders, FILE=FIRST:BEGIN:END where known"
    )
    parser.add_argument("--each", action="store_true", help="a line per clip")
    options = parser.parse_args()
    reader = ClipReader([WHOLE_112])
    try:
        tables = {folder: phantom_rows(folder, reader, each=options.each) for folder in options.folders}
        if tables:
            print_table(tables)
        for source in options.dicom:
            print_files(source, reader)
    finally:
        reader.close()


if __name__ == "__main__":
    main()
