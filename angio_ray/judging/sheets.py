"""`angio-ray review --run`: contact sheets of clips that a person should look at, and a form for each of two readers.

    run -> choose_clips -> pixels through the sandboxed reader -> sheet-NN.png, reader_a.csv, reader_b.csv, selection.csv

Chosen are clips called unsatisfactory, rejected clips whose pixels can still be shown, and clips near the threshold. Readers
see no score, and of the kind only which clips are for inspection alone: clips are mixed, in the order of their keyed hashes.
Pictures and forms carry pseudonyms only, but what is burned into a frame is shown: sheets are as confidential as the clips.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from angio_ray.clip import Reason
from angio_ray.dicom.reader import ClipReader
from angio_ray.sampling import ClipWindow, Selection
from angio_ray.storage import Storage
from angio_ray.tables.root import TableRoot, TablesError

WINDOW = ClipWindow(name="review", size=224, fps=5.0, start=0, length=40, stride=1)
"""The first eight seconds, five frames a second: what the shown frames are taken from."""
SHOWN_FRAMES = 8
CLIPS_PER_SHEET = 6
NEAR = 1.5
"""Log odds that a probability lies from its threshold at most to be near it: 0.18 to 0.82 for a threshold of 0.5."""
ASSUMED_FPS = 15.0
"""Of clips whose header names no rate: they are shown all the same."""
FORM_COLUMNS = ("sheet", "number", "clip_id", "quality", "quality_class", "artery", "comment")
READERS = ("reader_a.csv", "reader_b.csv")

_NO_PIXELS = frozenset(
    {Reason.NOT_DICOM, Reason.NO_PIXEL_DATA, Reason.UNSUPPORTED_TRANSFER_SYNTAX, Reason.HEADER_INVALID}
)
_GAP, _BAR = 4, 26
INSPECT = "rejected: for inspection only"

_HOW_TO = """How to read these sheets

Each row of a sheet is one clip: {frames} frames in the order of time, over its first {seconds:g} seconds.
Fill in the column `quality` of your own form, alone: satisfactory, unsatisfactory, or leave it empty where you cannot say.
Unsatisfactory is: not a coronary run; vessels obscured (poor engagement, little contrast, partial recording); graft vessels
after bypass surgery; foreign objects that hide most of the vessels. Native vessels clearly visible: satisfactory.
quality_class (why, in your own words), artery (LCA or RCA) and comment may stay empty. Change no other column.
Clips marked "{inspect}" were rejected before scoring, and no label of theirs can be taken: look, and leave `quality` empty.
Then: angio-ray review --read reader_a.csv reader_b.csv --tables T --labels NAME
Research use only. Frames can show what was burned into them: treat sheets as you treat the clips.
"""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A clip to be looked at."""

    clip_id: str
    object_id: str
    kind: str
    """near_threshold | unsatisfactory | rejected"""
    probability: float | None
    reason: str | None
    inspect: bool = False
    """Its header was rejected, so a label of it could not be taken."""


@dataclass(frozen=True, slots=True)
class Sheets:
    """What was written."""

    folder: Path
    num_sheets: int
    shown: Counter[str]
    """Clips on the sheets, by kind."""
    left_out: Counter[str]
    """Clips that could not be shown, by why."""
    not_chosen: Counter[str]
    """Clips that would fit as well, by kind: there were more than asked for."""
    num_inspect: int
    """Of the clips shown, those for inspection only."""

    def lines(self) -> list[str]:
        """What to tell the user."""
        told = ", ".join(f"{n:,} {kind}" for kind, n in self.shown.items()) or "none"
        lines = [f"{self.shown.total():,} clips on {self.num_sheets:,} sheets in {self.folder}: {told}"]
        for title, counted in (("not shown", self.left_out), ("more of the kind", self.not_chosen)):
            if counted:
                lines.append(f"  {title}: {', '.join(f'{n:,} {why}' for why, n in counted.most_common())}")
        if self.num_inspect:
            lines.append(f"  {self.num_inspect:,} of the rejected are for inspection only: no label is asked for")
        return [
            *lines,
            f"  forms for two readers: {', '.join(READERS)}; kinds and scores (not for readers): selection.csv",
        ]


def make_sheets(
    root: TableRoot,
    run: str,
    out: Path,
    *,
    per_kind: int = 40,
    again: bool = False,
) -> Sheets:
    """Write sheets and forms for the clips of a run that people should look at.

    Parameters
    ----------
    per_kind
        Most clips of each kind.
    again
        Also clips whose quality is labelled in these tables already.

    Raises
    ------
    TablesError
        There is no such run, nothing to look at, or forms that may hold a reader's work are there already.
    """
    if any((out / name).exists() for name in READERS):
        raise TablesError(f"{out} holds readers' forms already: name a new folder")
    chosen, not_chosen, already = choose_clips(root, run, per_kind=per_kind, again=again)
    if not chosen:
        raise TablesError(
            f"run {run} has no clip to look at" + (f" ({already:,} are labelled already)" if already else "")
        )
    places = _places(root, {clip.object_id for clip in chosen})
    out.mkdir(parents=True, exist_ok=True)
    shown: list[Chosen] = []
    left_out: Counter[str] = Counter()
    strips: list[np.ndarray] = []
    num_sheets = 0
    if already:
        left_out["labelled already"] = already
    with ClipReader((WINDOW,), assume_fps=ASSUMED_FPS, require_xa=False) as reader:
        for clip in chosen:
            uri, reason = places.get(clip.object_id, (None, None))
            clip = replace(clip, inspect=reason is not None)
            strip, why = _strip(reader, uri)
            if strip is None:
                left_out[f"{clip.kind}: {why}"] += 1
                continue
            shown.append(clip)
            strips.append(strip)
            if len(strips) == CLIPS_PER_SHEET:
                num_sheets += 1
                _write_sheet(out, num_sheets, strips, shown[-len(strips) :])
                strips = []
    if strips:
        num_sheets += 1
        _write_sheet(out, num_sheets, strips, shown[-len(strips) :])
    _write_forms(out, shown)
    kinds, inspect = Counter(clip.kind for clip in shown), sum(clip.inspect for clip in shown)
    return Sheets(out, num_sheets, kinds, left_out, not_chosen, inspect)


def choose_clips(
    root: TableRoot, run: str, *, per_kind: int, again: bool = False
) -> tuple[list[Chosen], Counter[str], int]:
    """(clips to look at in the order of their hashes, how many more each kind has, how many are labelled already).

    near_threshold: the probabilities nearest to it, within NEAR. unsatisfactory: others called so, whether
    they were stopped or not. rejected: those that may have pixels. The last two are a sample by keyed hash, so by chance.
    """
    rows = _rows(root, run)
    known = set() if again else _labelled(root)
    kept = [row for clip_id, row in sorted(rows.items()) if clip_id not in known]
    scored = [row for row in kept if row["quality_probability"] is not None]
    scored.sort(key=lambda row: (_distance(row), row["clip_id"]))
    near = [row for row in scored if _distance(row) <= NEAR][:per_kind]
    others = scored[len(near) :]
    kinds = {
        "near_threshold": near,
        "unsatisfactory": sorted(
            (row for row in others if row["quality_satisfactory"] is False), key=lambda row: str(row["clip_id"])
        ),
        "rejected": [
            row for row in kept if row["quality_probability"] is None and row["reason"] not in {None, *_NO_PIXELS}
        ],
    }
    chosen = [
        Chosen(row["clip_id"], row["object_id"], kind, row["quality_probability"], row["reason"])
        for kind, found in kinds.items()
        for row in found[:per_kind]
    ]
    more = Counter({kind: len(found) - per_kind for kind, found in kinds.items() if len(found) > per_kind})
    return sorted(chosen, key=lambda clip: clip.clip_id), more, len(rows) - len(kept)


_SCORE_COLUMNS = [
    "clip_id",
    "object_id",
    "reason",
    "quality_probability",
    "quality_threshold",
    "quality_satisfactory",
]


def _rows(root: TableRoot, run: str) -> dict[str, dict[str, Any]]:
    """clip_id -> its row in the run: a scored one, then that of the smallest object_id. Unreadable objects have none."""
    table = root.open("scores").to_pyarrow_dataset().to_table(columns=_SCORE_COLUMNS, filter=pc.field("run_id") == run)
    if not table.num_rows:
        raise TablesError(f"there is no run {run} in these tables, or it has no rows")
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: (row["quality_probability"] is None, row["object_id"])):
        if row["clip_id"] is not None:
            found.setdefault(row["clip_id"], row)
    return found


def _labelled(root: TableRoot) -> set[str]:
    if not root.exists("labels"):
        return set()
    wanted = pc.field("quality").is_valid()
    return set(
        root.open("labels").to_pyarrow_dataset().to_table(columns=["clip_id"], filter=wanted)["clip_id"].to_pylist()
    )


def _distance(row: dict[str, Any]) -> float:
    """Distance of a probability from its threshold in log odds."""

    def logit(p: float) -> float:
        p = min(max(float(p), 1e-6), 1 - 1e-6)
        return math.log(p / (1 - p))

    return abs(logit(row["quality_probability"]) - logit(row["quality_threshold"]))


def _places(root: TableRoot, object_ids: set[str]) -> dict[str, tuple[str, str | None]]:
    """object_id -> URI and why its header was rejected, of the newest row of `clips`."""
    wanted = pc.is_in(pc.field("object_id"), pa.array(sorted(object_ids), pa.string()))
    names = ["object_id", "uri", "reason", "indexed_at"]
    rows = root.open("clips").to_pyarrow_dataset().to_table(columns=names, filter=wanted).sort_by("indexed_at")
    return {row["object_id"]: (row["uri"], row["reason"]) for row in rows.to_pylist()}


def _strip(reader: ClipReader, uri: str | None) -> tuple[np.ndarray | None, str]:
    """(frames side by side, shape (size, width) uint8, or None; why there is none)."""
    if uri is None:
        return None, "not in the table clips"
    with closing(Storage(uri.rpartition("/")[0] or "/").open(uri)) as source:
        outcome = reader.read(source)
    if outcome.reason is not None:
        return None, str(outcome.reason)
    frames = outcome.inputs[WINDOW.name][_spread(outcome.selections[WINDOW.name])]
    gap = np.full((WINDOW.size, _GAP), 255, np.uint8)
    parts: list[np.ndarray] = [frames[0]]
    for frame in frames[1:]:
        parts += [gap, frame]
    return np.concatenate(parts, axis=1), ""


def _spread(selection: Selection) -> np.ndarray:
    """Positions of the shown frames within the window: evenly over what is no repetition of the last frame."""
    real = min(selection.num_resampled, WINDOW.num_frames)
    return np.linspace(0, real - 1, SHOWN_FRAMES).round().astype(int)


def _write_sheet(out: Path, sheet: int, strips: Sequence[np.ndarray], clips: Sequence[Chosen]) -> None:
    font = ImageFont.load_default(size=16)
    height = WINDOW.size + _BAR
    image = Image.new("L", (strips[0].shape[1], height * len(strips)), 255)
    draw = ImageDraw.Draw(image)
    for number, (strip, clip) in enumerate(zip(strips, clips, strict=True)):
        text = f"sheet {sheet}, number {number + 1}" + (f"   {INSPECT}" if clip.inspect else "")
        draw.text((4, number * height + 4), text, fill=0, font=font)
        image.paste(Image.fromarray(strip), (0, number * height + _BAR))
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    (out / f"sheet-{sheet:02d}.png").write_bytes(data.getvalue())


def _write_forms(out: Path, shown: Sequence[Chosen]) -> None:
    (out / "how-to.txt").write_text(
        _HOW_TO.format(frames=SHOWN_FRAMES, seconds=WINDOW.length / WINDOW.fps, inspect=INSPECT), "utf-8"
    )
    places = [(position // CLIPS_PER_SHEET + 1, position % CLIPS_PER_SHEET + 1) for position in range(len(shown))]
    with open(out / "selection.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sheet", "number", "clip_id", "kind", "probability", "reason"))
        for (sheet, number), clip in zip(places, shown, strict=True):
            p = "" if clip.probability is None else f"{clip.probability:.4f}"
            writer.writerow((sheet, number, clip.clip_id, clip.kind, p, clip.reason or ""))
    for name in READERS:
        with open(out / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(FORM_COLUMNS)
            for (sheet, number), clip in zip(places, shown, strict=True):
                writer.writerow((sheet, number, clip.clip_id, "", "", "", INSPECT if clip.inspect else ""))
