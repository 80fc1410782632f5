"""Reformations of a synthetic coronary CT: pictures of one branch each, 50 rotations, as the CNN-CASS paper starts from.

A curved reformation is a stretched one (Kanitsar et al., CPR - curved planar reformation, IEEE Visualization 2002): the
branch's course is swept along one direction and the swept surface is unrolled, so that lengths along the course are
true and the branch lies curved in its picture; the direction turns through 180 degrees. A straightened one cuts across
the course instead. Each picture has text, a scale and an orientation mark burned in, as a workstation's do.

Written as 8-bit PNG, not DICOM: a workstation's pictures have no HU any more and their text burned in, and the paper's
system starts from such pictures. Each says in its pixels and in its PNG text that it is no patient's.

    python -c "from angio_ray.phantom.reformations import generate_reformations as g; g('ct', patients=2, seed=1)"
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates

from angio_ray.phantom.ct_heart import STEP_MM, Branch, Floats, course_normals, lumen_path, upstream_percent
from angio_ray.phantom.ct_scan import VOXEL_MM, CtHeart, draw_heart
from angio_ray.phantom.reports import Finding, Report, write_report
from angio_ray.phantom.workers import make_set, put

ROTATIONS = 50
Kind = Literal["curved", "straightened"]
TRUTH_NAME = "truth.parquet"
_OUTSIDE_HU = -1024.0

_LESION = pa.struct(
    [
        ("plaque", pa.string()),
        ("percent", pa.int32()),
        ("grade", pa.int32()),
        ("at_mm", pa.float32()),
        ("length_mm", pa.float32()),
        ("eccentricity", pa.float32()),
    ]
)
TRUTH = pa.schema(
    [
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("branch", pa.string(), nullable=False),
        pa.field("artery", pa.string(), nullable=False),
        pa.field("percent", pa.int32(), nullable=False),
        pa.field("grade", pa.int32(), nullable=False),
        pa.field("plaque", pa.string(), nullable=False),
        pa.field("lesions", pa.list_(_LESION), nullable=False),
        pa.field("upstream_percent", pa.int32(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("ambiguous", pa.bool_(), nullable=False),
        pa.field("stated_grades", pa.list_(pa.int32()), nullable=False),
        pa.field("dominance", pa.string(), nullable=False),
        pa.field("artefact", pa.string(), nullable=False),
        pa.field("bridged", pa.bool_(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("rotations", pa.int32(), nullable=False),
        pa.field("px_mm", pa.float32(), nullable=False),
        pa.field("folder", pa.string(), nullable=False),
        pa.field("report_path", pa.string(), nullable=False),
        pa.field("synthetic", pa.bool_(), nullable=False),
    ]
)
"""`truth.parquet`, one row per branch. `percent`, `grade` (CAD-RADS 0 to 5) and `plaque` are what was drawn on the
branch's own course; `upstream_percent` is the worst that its pictures show before it begins, on the branch that it
leaves, up to there. `text` is the report's phrase on it, null where the report does not mention it; `stated_grades` are
the grades that the phrase admits, more than one where it is `ambiguous`. Pictures are `folder/rotation_XX.png`."""


@dataclass(frozen=True, kw_only=True)
class Reformation:
    """One picture of a branch."""

    picture_HW: NDArray[np.uint8]
    text_HW: NDArray[np.bool_]
    """Where text and marks are burned in."""
    course_N2: Floats
    """The branch's way from the ostium, column and row."""
    own_from: int
    """Sample of `course_N2` where the branch's own course begins."""
    angle_deg: float
    px_mm: float


@dataclass(frozen=True, kw_only=True)
class Workstation:
    """What a reading station does with the pictures of a study: window, field and burned-in marks."""

    level_hu: float
    width_hu: float
    margin_mm: float
    """Beside the branch, along it and across."""
    mirrored: bool
    corners: tuple[str, ...]
    """Which lines stand where: fields of _lines per corner (upper left, upper right, lower left, lower right)."""
    font: int
    scale_side: Literal["left", "right", "bottom"]
    mark: Literal["letters", "cube", "none"]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Workstation:
        """One of several vendors' ways, with its own settings."""
        layouts = (
            ("synthetic patient", "branch", "window zoom", "angle"),
            ("synthetic", "kind patient", "branch angle", "window"),
            ("branch", "synthetic patient", "angle", "zoom window"),
            ("synthetic branch patient", "", "angle window zoom", ""),
        )
        return cls(
            level_hu=float(rng.uniform(150, 270)),
            width_hu=float(rng.uniform(800, 1150)),
            margin_mm=float(rng.uniform(12, 24)),
            mirrored=bool(rng.random() < 0.3),
            corners=layouts[int(rng.integers(len(layouts)))],
            font=int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_DUPLEX])),
            scale_side=("left", "right", "bottom")[int(rng.integers(3))],
            mark=("letters", "cube", "none")[int(rng.choice(3, p=[0.5, 0.35, 0.15]))],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What pictures to make."""

    size: int = 256
    """Rows and columns, px."""
    rotations: int = ROTATIONS
    kind: Kind = "curved"
    voxel_mm: float = VOXEL_MM
    """Of the scan."""

    def __post_init__(self) -> None:
        if not 1 <= self.rotations <= 100:
            raise ValueError("rotations must be 1 to 100")
        if not 128 <= self.size <= 1024:
            raise ValueError(
                "size must be 128 to 1024 px: smaller pictures have no room for SYNTHETIC in letters to read"
            )
        if self.kind not in get_args(Kind):
            raise ValueError("kind must be curved or straightened")
        if not 0.3 <= self.voxel_mm <= 2:
            raise ValueError("voxel_mm must be 0.3 to 2")


def draw_branch(
    heart: CtHeart,
    branch: Branch,
    station: Workstation,
    *,
    patient_id: str,
    size: int = 256,
    rotations: int = ROTATIONS,
    kind: Kind = "curved",
) -> Iterator[Reformation]:
    """The pictures of a branch, one per rotation, equally spaced over 180 degrees.

    Parameters
    ----------
    heart, branch : CtHeart, Branch
        The scan, and one of its branches.
    station : Workstation
        How the pictures are windowed and marked.
    patient_id : str
        For the burned-in text, after the word that says that it is none.
    size : int
        Rows and columns, px. All pictures of a branch have the same scale.
    rotations : int
        How many.
    kind : "curved" or "straightened"
        See the module's description.
    """
    Pictures(size=size, rotations=rotations, kind=kind)  # refuses what is out of range
    course = _tracked(heart, branch)
    sheets = [
        _curved(course, angle) if kind == "curved" else _straightened(course, angle) for angle in _angles(rotations)
    ]
    px_mm = max(sheet.extent_mm() for sheet in sheets) + 2 * station.margin_mm
    px_mm = max(px_mm, 70.0) / size
    for turn, (angle, sheet) in enumerate(zip(_angles(rotations), sheets, strict=True)):
        points, course_N2 = sheet.unrolled(size, px_mm)
        hu = _sample(heart, points)
        grey = (hu - (station.level_hu - station.width_hu / 2)) * (255 / station.width_hu)
        picture = np.clip(grey, 0, 250).astype(np.uint8)  # the text is the brightest
        if station.mirrored:
            picture = np.ascontiguousarray(picture[:, ::-1])
            course_N2 = np.stack([size - 1 - course_N2[:, 0], course_N2[:, 1]], axis=1)
        text = _overlay(station, branch, patient_id, kind, turn, rotations, angle, size, px_mm)
        picture[text > 0] = 255
        yield Reformation(
            picture_HW=picture,
            text_HW=text > 0,
            course_N2=course_N2,
            own_from=branch.start,
            angle_deg=float(np.degrees(angle)),
            px_mm=px_mm,
        )


def generate_reformations(
    out: str | Path,
    *,
    patients: int,
    seed: int = 0,
    size: int = 256,
    rotations: int = ROTATIONS,
    kind: Kind = "curved",
    voxel_mm: float = VOXEL_MM,
    workers: int | None = None,
) -> pa.Table:
    """Write `patient_XXXX/BRANCH/rotation_XX.png`, `patient_XXXX/report.txt` and `truth.parquet`.

    Parameters
    ----------
    out : str or Path
        A folder, made when absent, or an s3:// prefix. What the same call made there before is replaced.
    patients, seed : int
        How many, and which. The same seed gives the same bytes, whatever the number of workers.
    size, rotations, kind
        As for `draw_branch`.
    voxel_mm : float
        Of the scan; coarser is faster and worse: for a quick look.
    workers : int, optional
        Processes. Default: one per processor, none beside this one for up to 2 patients.

    Returns
    -------
    pa.Table
        The truth, one row per branch, schema `TRUTH`.

    Raises
    ------
    ValueError
        A number out of its range.
    angio_ray.storage.StorageUnavailable
        A place that cannot be written, or that holds patients of another set.
    angio_ray.phantom.workers.Unfinished
        A full disk, a store that went away, a killed worker: the same call makes the set anew.
    """
    if patients < 1:
        raise ValueError("patients must be at least 1")
    if not 0 <= seed < 2**63:
        raise ValueError("seed must be 0 to 2**63 - 1")
    pictures = Pictures(size=size, rotations=rotations, kind=kind, voxel_mm=voxel_mm)
    if workers is None:
        workers = 1 if patients <= 2 else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError("workers must be at least 1")
    made_with = {"patients": patients, "seed": seed, **asdict(pictures)}
    make = partial(_write_patient, str(out), seed, pictures)
    return make_set(str(out), TRUTH_NAME, TRUTH, made_with, make, range(patients), workers)


def _write_patient(out: str, seed: int, how: Pictures, patient: int) -> list[dict[str, Any]]:
    """One patient's pictures and report; returns the rows of the truth."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(b"reformations"), patient)))
    anatomy_rng, station_rng, report_rng = rng.spawn(3)
    heart = draw_heart(anatomy_rng, voxel_mm=how.voxel_mm)
    station = Workstation.draw(station_rng)
    report = write_report([_finding(branch) for branch in heart.branches], report_rng)
    folder, patient_id = f"patient_{patient:04d}", f"PHANTOM-CT-{seed}-{patient:04d}"
    put(out, f"{folder}/report.txt", report.text.encode())
    rows = []
    for branch in heart.branches:
        px_mm = 0.0
        pictures = draw_branch(
            heart,
            branch,
            station,
            patient_id=patient_id,
            size=how.size,
            rotations=how.rotations,
            kind=how.kind,
        )
        for turn, picture in enumerate(pictures):
            px_mm = picture.px_mm
            put(out, f"{folder}/{branch.name}/rotation_{turn:02d}.png", _png(picture.picture_HW))
        rows.append(
            {
                **_known(heart, branch, report),
                "patient_id": patient_id,
                "kind": how.kind,
                "rotations": how.rotations,
                "px_mm": px_mm,
                "folder": f"{folder}/{branch.name}",
                "report_path": f"{folder}/report.txt",
                "synthetic": True,
            }
        )
    return rows


def _finding(branch: Branch) -> Finding:
    place: Literal["", "proximal", "mid", "distal"] = ""
    if branch.worst is not None:
        share = branch.worst.at_mm / (STEP_MM * (len(branch.path_N3) - branch.start))
        place = ("proximal", "mid", "distal")[min(int(3 * share), 2)]
    return Finding(
        branch=branch.name,
        percent=branch.percent,
        grade=branch.grade,
        plaque=branch.plaque,
        calcified=branch.calcified,
        place=place,
    )


def _known(heart: CtHeart, branch: Branch, report: Report) -> dict[str, Any]:
    said = report.statements[branch.name]
    return {
        "branch": branch.name,
        "artery": branch.artery,
        "percent": branch.percent,
        "grade": branch.grade,
        "plaque": branch.plaque,
        "lesions": [
            {name: getattr(lesion, name) for name in _LESION.names}  # the lesion's fields have the columns' names
            for lesion in branch.lesions
        ],
        "upstream_percent": upstream_percent(branch, heart.branches),
        "text": said.text,
        "ambiguous": said.ambiguous,
        "stated_grades": list(said.grades),
        "dominance": heart.dominance,
        "artefact": heart.artefact,
        "bridged": branch.bridged,
    }


# --- geometry ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sheet:
    """A surface through a course that can be laid flat: rows run along it, columns across."""

    base_N3: Floats
    """Where each row's zero lies, mm."""
    along_N: Floats
    """How far down each row lies, mm; never falls."""
    across_N3: Floats
    """Direction of the columns, unit length."""
    course_N: Floats
    """The branch's position across, mm."""

    def extent_mm(self) -> float:
        return float(max(np.ptp(self.along_N), np.ptp(self.course_N)))

    def unrolled(self, size: int, px_mm: float) -> tuple[Floats, Floats]:
        """The patient positions (size, size, 3) of a picture's pixels, and the course in it, column and row."""
        top = (self.along_N[0] + self.along_N[-1]) / 2 - size / 2 * px_mm
        left = (self.course_N.min() + self.course_N.max()) / 2 - size / 2 * px_mm
        down = top + px_mm * (np.arange(size) + 0.5)
        sideways = left + px_mm * (np.arange(size) + 0.5)
        base = _extended(self.along_N, self.base_N3, down)
        across = np.stack([np.interp(down, self.along_N, axis) for axis in self.across_N3.T], axis=1)
        points = base[:, None] + sideways[None, :, None] * across[:, None]
        course = np.stack([self.course_N - left, self.along_N - top], axis=1) / px_mm - 0.5
        return points, course


def _extended(along_N: Floats, line_N3: Floats, at: Floats) -> Floats:
    """The line at places along it, straight on beyond its ends."""
    reach, far = 24, 400.0  # samples that give the end's direction; mm
    start, end = line_N3[0] - line_N3[reach], line_N3[-1] - line_N3[-1 - reach]
    start, end = (d / max(float(np.linalg.norm(d)), 1e-6) * far for d in (start, end))
    s = np.r_[along_N[0] - far, along_N, along_N[-1] + far]
    line = np.concatenate([[line_N3[0] + start], line_N3, [line_N3[-1] + end]])
    return np.stack([np.interp(at, s, axis) for axis in line.T], axis=1)


def _angles(rotations: int) -> Floats:
    return np.pi * np.arange(rotations) / rotations


def _tracked(heart: CtHeart, branch: Branch) -> Floats:
    """The course as a tracker finds it in this scan: the lumen's middle, steps and all, smoothed."""
    course = lumen_path(branch)
    row = np.clip(
        np.rint((course[:, 2] - heart.volume.origin[2]) / heart.volume.voxel_mm).astype(int), 0, len(heart.shift_Z2) - 1
    )
    course[:, :2] += heart.shift_Z2[row]
    return gaussian_filter1d(course, 3, axis=0, mode="nearest")


def _curved(course: Floats, angle: float) -> _Sheet:
    """Sweep the course along a direction across its chord; unroll."""
    chord = course[-1] - course[0]
    chord = chord / np.linalg.norm(chord)
    first = np.cross(chord, np.eye(3)[np.abs(chord).argmin()])
    first /= np.linalg.norm(first)
    sweep = np.cos(angle) * first + np.sin(angle) * np.cross(chord, first)
    position = course @ sweep
    base = course - position[:, None] * sweep
    along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(base, axis=0), axis=1) + 1e-9)]
    return _Sheet(base, along, np.broadcast_to(sweep, course.shape), position)


def _straightened(course: Floats, angle: float) -> _Sheet:
    """Cut across the course at every step."""
    normals = course_normals(course)
    across = np.cos(angle) * normals[:, 0] + np.sin(angle) * normals[:, 1]
    return _Sheet(course, np.arange(len(course)) * STEP_MM, across, np.zeros(len(course)))


def _sample(heart: CtHeart, points: Floats) -> NDArray[np.float32]:
    index = ((points - heart.volume.origin) / heart.volume.voxel_mm)[..., ::-1]
    return map_coordinates(
        heart.volume.hu_ZYX, np.moveaxis(index, -1, 0), order=1, mode="constant", cval=_OUTSIDE_HU, prefilter=False
    )


# --- what is burned in ------------------------------------------------------------------------------------------------


def _overlay(
    station: Workstation,
    branch: Branch,
    patient_id: str,
    kind: Kind,
    turn: int,
    rotations: int,
    angle: float,
    size: int,
    px_mm: float,
) -> NDArray[np.uint8]:
    """Text, scale and orientation mark, white on nothing."""
    layer = np.zeros((size, size), np.uint8)
    words = {
        "synthetic": "SYNTHETIC",
        "patient": patient_id,
        "branch": branch.name,
        "kind": "Curved MPR" if kind == "curved" else "Straightened",
        "angle": f"{np.degrees(angle):.1f} deg  {turn + 1}/{rotations}",
        "window": f"W {station.width_hu:.0f} L {station.level_hu:.0f}",
        "zoom": f"Zoom {100 * 0.5 / px_mm:.0f}%",
    }
    if not any("synthetic" in corner for corner in station.corners):
        raise ValueError("no corner says that the picture is synthetic")
    for corner, names in enumerate(station.corners):
        _write(layer, [words[name] for name in names.split()], corner, station.font)
    _scale(layer, station.scale_side, px_mm)
    _orientation(layer, station.mark, angle)
    return np.where(layer > 80, 255, 0).astype(np.uint8)  # no half-bright rims: OpenCV 5 smooths its letters


def _write(layer: NDArray[np.uint8], lines: list[str], corner: int, font: int) -> None:
    size = len(layer)
    grown = max(size / 256, 1)  # letters smaller than at 256 px cannot be read
    scale = grown * (0.62 if font == cv2.FONT_HERSHEY_PLAIN else 0.3)
    line_px = round(grown * 10)
    for k, line in enumerate(lines):
        (width, height), _ = cv2.getTextSize(line, font, scale, 1)
        x = round(size * 0.015) if corner % 2 == 0 else size - width - round(size * 0.015)
        y = height + 3 + k * line_px if corner < 2 else size - 4 - (len(lines) - 1 - k) * line_px
        cv2.putText(layer, line, (x, y), font, scale, 255, 1, cv2.LINE_8)


def _scale(layer: NDArray[np.uint8], side: str, px_mm: float) -> None:
    """A ruler with a tick per cm, 5 cm long."""
    size = len(layer)
    cm = 10 / px_mm
    begin = (size - 5 * cm) / 2
    edge = round(size * 0.03)
    for k in range(6):
        at, tick = round(begin + k * cm), round(size * (0.03 if k in (0, 5) else 0.018))
        if side == "bottom":
            cv2.line(layer, (at, size - edge), (at, size - edge - tick), 255, 1)
        else:
            x, inwards = (edge, 1) if side == "left" else (size - edge, -1)
            cv2.line(layer, (x, at), (x + inwards * tick, at), 255, 1)
    first, last = round(begin), round(begin + 5 * cm)
    if side == "bottom":
        cv2.line(layer, (first, size - edge), (last, size - edge), 255, 1)
    else:
        x = edge if side == "left" else size - edge
        cv2.line(layer, (x, first), (x, last), 255, 1)


def _orientation(layer: NDArray[np.uint8], mark: str, angle: float) -> None:
    """Which way the picture looks: letters at the edges, or a small cube that turns."""
    size = len(layer)
    scale = size / 256 * 0.32
    if mark == "letters":
        side = "ALPR"[int(np.floor(angle / (np.pi / 2) + 0.5)) % 4]
        for letter, at in (("H", (size // 2, round(size * 0.05))), (side, (round(size * 0.93), round(size * 0.44)))):
            cv2.putText(layer, letter, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_8)
    elif mark == "cube":
        centre, r = np.array([size * 0.91, size * 0.2]), size * 0.032
        corners = [np.array([np.cos(angle + q) * r, np.sin(angle + q) * r * 0.35]) for q in np.arange(4) * np.pi / 2]
        for k, corner in enumerate(corners):
            after = corners[(k + 1) % 4]
            for up in (-r * 0.7, r * 0.7):
                a, b = np.rint(centre + corner + [0, up]).astype(int), np.rint(centre + after + [0, up]).astype(int)
                cv2.line(layer, a.tolist(), b.tolist(), 255, 1)
            a, b = (np.rint(centre + corner + [0, up]).astype(int) for up in (-r * 0.7, r * 0.7))
            cv2.line(layer, a.tolist(), b.tolist(), 255, 1)


def _png(picture: NDArray[np.uint8]) -> bytes:
    """PNG with a text chunk behind the header that says what it is."""
    ok, coded = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not ok:
        raise RuntimeError("OpenCV wrote no PNG")
    data = coded.tobytes()
    said = b"tEXt" + b"Comment\x00Synthetic picture made by angio_ray: no patient"
    chunk = struct.pack(">I", len(said) - 4) + said + struct.pack(">I", zlib.crc32(said))
    header = 8 + 25  # signature, IHDR
    return data[:header] + chunk + data[header:]
