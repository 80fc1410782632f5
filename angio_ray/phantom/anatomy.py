"""Coronary anatomy in 3D: vessel centrelines with calibres, how they beat, and how a C-arm projects them.

Patient coordinates in mm, isocentre at the origin: x to the patient's left, y to the back, z to the head (the axes
of DICOM PS3.3 C.7.6.2). Knows nothing of pixels' brightness, noise or DICOM files.

Mean calibres (diameter, mm) after Dodge et al., Lumen diameter of normal human coronary arteries, Circulation 1992;
86:232-246, right-dominant hearts: left main 4.5, LAD 3.7 tapering to 1.9, LCX 3.4 to 1.6, RCA 3.9 to 2.8. The courses
are schematic: a first cut, good for whole-clip quality, not for measuring a lesion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Artery = Literal["LCA", "RCA"]

STEP_MM = 1.5
"""Distance between centreline samples."""
HEART_CENTRE = np.array([20.0, -6.0, -8.0])
BASE = np.array([2.0, 4.0, 28.0])
APEX = np.array([60.0, -30.0, -48.0])

# name: (parent, where on the parent 0..1, control points, diameter at both ends, layer of additive drawing)
_Course = tuple[str | None, float, tuple[tuple[float, float, float], ...], float, float, int]
_COURSES: dict[Artery, dict[str, _Course]] = {
    "LCA": {
        "LM": (None, 0.0, ((8, 0, 36), (13, -3, 37), (19, -6, 35)), 4.5, 4.2, 0),
        "LAD": ("LM", 1.0, ((27, -24, 28), (38, -37, 8), (48, -42, -15), (57, -38, -38), (58, -28, -50)), 3.7, 1.5, 0),
        "D1": ("LAD", 0.22, ((48, -27, 16), (60, -22, 0), (66, -18, -20)), 2.2, 1.0, 0),
        "D2": ("LAD", 0.45, ((54, -30, -8), (64, -22, -26)), 1.8, 0.9, 0),
        "S1": ("LAD", 0.25, ((31, -22, 4), (33, -14, -12)), 1.3, 0.6, 0),
        "S2": ("LAD", 0.4, ((38, -26, -10), (38, -16, -24)), 1.1, 0.6, 0),
        "LCX": ("LM", 1.0, ((28, 8, 29), (40, 24, 16), (44, 34, -4), (36, 36, -20), (26, 33, -29)), 3.4, 1.4, 1),
        "OM1": ("LCX", 0.35, ((54, 20, 2), (64, 8, -16), (66, -2, -32)), 2.2, 1.0, 1),
        "OM2": ("LCX", 0.62, ((54, 28, -14), (60, 16, -32)), 1.8, 0.9, 1),
    },
    "RCA": {
        "RCA": (
            None,
            0.0,
            (
                (-4, -12, 34),
                (-18, -26, 31),
                (-38, -32, 18),
                (-48, -24, -2),
                (-45, -8, -21),
                (-28, 10, -33),
                (-4, 22, -35),
            ),
            3.9,
            2.8,
            0,
        ),
        "PDA": ("RCA", 1.0, ((10, 16, -40), (28, 4, -46), (46, -12, -50)), 2.0, 0.9, 0),
        "PLV": ("RCA", 1.0, ((8, 28, -30), (26, 34, -28), (42, 28, -30)), 2.0, 0.9, 0),
        "conus": ("RCA", 0.08, ((-12, -36, 36), (0, -46, 30)), 1.2, 0.6, 0),
        "SA": ("RCA", 0.1, ((-26, -8, 40), (-30, 8, 44)), 1.1, 0.6, 0),
        "RV": ("RCA", 0.42, ((-36, -36, -12), (-14, -42, -26)), 1.6, 0.7, 0),
        "AM": ("RCA", 0.6, ((-36, -26, -28), (-8, -30, -42)), 1.7, 0.7, 0),
    },
}
_AORTA = (
    (2, 2, 28),
    (-4, 0, 48),
    (-8, 4, 70),
    (2, 14, 92),
    (16, 30, 98),
    (22, 46, 84),
    (20, 54, 50),
    (16, 56, -20),
    (12, 56, -110),
)


@dataclass(frozen=True, kw_only=True)
class Vessel:
    """One tube: centreline samples in mm at end-diastole, radius in mm and distance from the ostium in mm."""

    name: str
    points_N3: Floats
    radius_N: Floats
    distance_N: Floats
    layer: int = 0


@dataclass(frozen=True, kw_only=True)
class Stenosis:
    """A narrowing: percent of the diameter, over a length, at one sample of a segment."""

    segment: str
    percent: float
    length_mm: float
    index: int


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One patient's artery with its branches; the first vessel begins at the ostium."""

    artery: Artery
    vessels: tuple[Vessel, ...]
    stenoses: tuple[Stenosis, ...] = field(default=())

    @property
    def ostium(self) -> Floats:
        """Where the contrast comes in, mm."""
        return self.vessels[0].points_N3[0]


@dataclass(frozen=True, kw_only=True)
class View:
    """A C-arm position. Angles in degrees as PS3.3 C.8.7.5: LAO and cranial positive; distances and pitch in mm."""

    name: str
    primary_deg: float
    secondary_deg: float
    source_to_detector_mm: float
    source_to_patient_mm: float
    pitch_mm: float
    """Pixel spacing at the detector."""
    size: int
    centre_px: tuple[float, float]
    """Where the isocentre lands, column and row."""

    @property
    def magnification(self) -> float:
        """Source-detector over source-patient distance."""
        return self.source_to_detector_mm / self.source_to_patient_mm

    @property
    def px_per_mm(self) -> float:
        """Pixels that one mm at the isocentre covers."""
        return self.magnification / self.pitch_mm


def axes(primary_deg: float, secondary_deg: float) -> tuple[Floats, Floats, Floats]:
    """Unit vectors (image right, image down, towards the detector) in patient coordinates.

    At 0/0 the patient faces the detector and his left is at the image's right.
    """
    a, b = np.deg2rad([primary_deg, secondary_deg])
    right = np.array([np.cos(a), np.sin(a), 0.0])
    down = np.array([np.sin(a) * np.sin(b), -np.cos(a) * np.sin(b), -np.cos(b)])
    towards = np.array([np.sin(a) * np.cos(b), -np.cos(a) * np.cos(b), np.sin(b)])
    return right, down, towards


def project(points: Floats, view: View) -> tuple[Floats, Floats]:
    """Points (..., 3) in mm -> pixel coordinates (..., 2) as (column, row), and pixels per mm at each point (...)."""
    right, down, towards = axes(view.primary_deg, view.secondary_deg)
    scale = view.source_to_detector_mm / (view.source_to_patient_mm + points @ towards) / view.pitch_mm
    xy = np.stack([(points @ right) * scale + view.centre_px[0], (points @ down) * scale + view.centre_px[1]], axis=-1)
    return xy, scale


def spline(control_K3: Floats, step_mm: float = STEP_MM) -> Floats:
    """Catmull-Rom curve through the control points, sampled about every `step_mm`: (N, 3)."""
    p = np.vstack([2 * control_K3[:1] - control_K3[1:2], control_K3, 2 * control_K3[-1:] - control_K3[-2:-1]])
    pieces = []
    for i in range(1, len(p) - 2):
        n = max(2, int(np.linalg.norm(p[i + 1] - p[i]) / step_mm))
        t = np.linspace(0, 1, n, endpoint=i == len(p) - 3)[:, None]
        pieces.append(
            0.5
            * (
                2 * p[i]
                + (p[i + 1] - p[i - 1]) * t
                + (2 * p[i - 1] - 5 * p[i] + 4 * p[i + 1] - p[i + 2]) * t**2
                + (3 * p[i] - p[i - 1] - 3 * p[i + 1] + p[i + 2]) * t**3
            )
        )
    return np.concatenate(pieces)


def tube(
    name: str, control_K3: Floats, diameters_mm: tuple[float, float], *, start_mm: float = 0.0, layer: int = 0
) -> Vessel:
    """A vessel along a spline whose diameter tapers from one end to the other."""
    points = spline(np.asarray(control_K3, float))
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    radius = np.interp(along, [0, along[-1]], diameters_mm) / 2
    return Vessel(name=name, points_N3=points, radius_N=radius, distance_N=along + start_mm, layer=layer)


def grow_tree(artery: Artery, rng: np.random.Generator, *, stenosed: bool = False) -> Tree:
    """One patient's tree: the schematic courses, bent, scaled, made tortuous and given small side branches."""
    size, calibre = rng.uniform(0.9, 1.12), rng.uniform(0.88, 1.15)
    tortuosity_mm = rng.uniform(0.3, 2.2)
    turn = _rotation(rng.normal(0, 6, 3))
    vessels: dict[str, Vessel] = {}
    for name, (parent, where, control, d0, d1, layer) in _COURSES[artery].items():
        if parent and layer == 0 and name not in ("LAD", "PDA", "PLV") and rng.random() < 0.2:
            continue  # nobody has all the small branches
        bent = (np.array(control, float) + rng.normal(0, 2.5, (len(control), 3))) @ turn.T * size
        start = 0.0
        if parent:
            mother = vessels[parent]
            at = min(len(mother.points_N3) - 1, int(where * rng.uniform(0.9, 1.05) * (len(mother.points_N3) - 1)))
            bent = np.vstack([mother.points_N3[at], bent])
            start = float(mother.distance_N[at])
        factor = calibre * rng.uniform(0.9, 1.1)
        vessel = tube(name, bent, (d0 * factor, d1 * factor), start_mm=start, layer=layer)
        vessels[name] = _wiggled(vessel, tortuosity_mm * (0.5 if d0 > 3 else 1.0), rng)
    for mother in list(vessels.values()):
        for i in range(rng.poisson(len(mother.points_N3) / 22)):
            vessels[f"{mother.name}-{i}"] = _twig(f"{mother.name}-{i}", mother, rng)
    tree = Tree(artery=artery, vessels=tuple(vessels.values()))
    return _with_stenosis(tree, rng) if stenosed else tree


def aorta(rng: np.random.Generator) -> Vessel:
    """Root, ascending aorta, arch and descending aorta as one wide tube."""
    control = np.array(_AORTA, float) + rng.normal(0, 3, (len(_AORTA), 3))
    width = rng.uniform(24, 32)
    return tube("aorta", control, (width * 1.1, width * 0.75))


def ventricle(rng: np.random.Generator) -> Vessel:
    """The left ventricle's cavity as a tube of changing radius along the long axis."""
    axis = np.linspace(0.02, 0.98, 40)[:, None]
    points = BASE + (APEX - BASE) * axis * 0.93
    half_width = rng.uniform(19, 25)
    radius = half_width * np.sqrt(np.clip(1 - ((axis[:, 0] - 0.45) / 0.53) ** 2, 0.03, 1))
    bend = np.sin(axis * np.pi) * np.array([[4.0, 3.0, -4.0]]) * rng.uniform(0.5, 1.5)
    return Vessel(name="LV", points_N3=points + bend, radius_N=radius, distance_N=axis[:, 0] * 90)


def catheter(tip: Floats, rng: np.random.Generator, *, style: Literal["left", "right", "pigtail", "arch"]) -> Vessel:
    """A 5-6 French catheter (1.7-2 mm) from the descending aorta over the arch to `tip`."""
    along_aorta = np.array(_AORTA[::-1], float) + rng.normal(0, 3, (len(_AORTA), 3))
    width = rng.uniform(1.7, 2.1)
    if style == "arch":
        return tube("catheter", along_aorta[: rng.integers(4, 8)], (width, width * 0.9))
    down = along_aorta[:7]
    if style == "pigtail":
        angle = np.linspace(0, 1.7 * np.pi, 9)[:, None]
        plane = np.linalg.qr(rng.normal(0, 1, (3, 2)))[0].T
        curl = tip + 5.0 * (np.cos(angle) * plane[0] + np.sin(angle) * plane[1])
        middle = (along_aorta[7:8] + curl[:1]) / 2
        return tube("catheter", np.vstack([down, middle, curl]), (width, width * 0.9))
    side = -1.0 if style == "left" else 1.0  # a left Judkins leans on the wall opposite the ostium
    bow = np.array([[tip[0] + side * 9, tip[1] + 6, tip[2] + 14], [tip[0] + side * 5, tip[1] + 3, tip[2] + 3]])
    return tube("catheter", np.vstack([down, bow, tip[None]]), (width, width * 0.9))


def beat_phases(times_s: Floats, period_s: float, rng: np.random.Generator) -> Floats:
    """Phase 0..1 in the cardiac cycle at each time; each beat's length varies by up to 10 %."""
    lengths = period_s * rng.uniform(0.9, 1.1, int(times_s[-1] / (0.85 * period_s)) + 3)
    edges = np.concatenate([[-rng.uniform(0, 1) * lengths[0]], np.cumsum(lengths)])
    edges[1:] += edges[0]
    return np.interp(times_s, edges, np.arange(len(edges))) % 1.0


def contraction(phase_F: Floats) -> Floats:
    """How contracted the heart is, 0..1: systole over 45 % of the cycle, a small atrial kick before the next."""
    systole = np.where(phase_F < 0.45, np.sin(np.pi * np.clip(phase_F, 0, 0.45) / 0.45) ** 2, 0.0)
    return systole + 0.12 * np.exp(-(((phase_F - 0.9) / 0.05) ** 2))


def beat(points_N3: Floats, contraction_F: Floats, breath_mm_F: Floats, strength: float = 1.0) -> Floats:
    """Where points on the heart are in each frame, (F, N, 3) mm.

    The walls move in by up to 13 %, the base comes 11 mm towards the apex, the heart twists by 7 degrees, and
    breathing shifts all of it along z.
    """
    axis = (APEX - BASE) / np.linalg.norm(APEX - BASE)
    offset = points_N3 - HEART_CENTRE
    along = offset @ axis
    radial = offset - along[:, None] * axis
    s = (contraction_F * strength)[:, None, None]
    from_apex = np.clip(1 - (points_N3 - BASE) @ axis / np.linalg.norm(APEX - BASE), 0, 1.2)
    moved = points_N3 - 0.13 * s * radial + 11.0 * s * from_apex[None, :, None] * axis
    moved = moved + np.deg2rad(7.0) * s * np.cross(axis, radial)
    return moved + breath_mm_F[:, None, None] * np.array([0.0, 0.0, 1.0])


def _rotation(angles_deg: Floats) -> Floats:
    a, b, c = np.deg2rad(angles_deg)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def _wiggled(vessel: Vessel, amplitude_mm: float, rng: np.random.Generator) -> Vessel:
    """The same vessel with smooth sideways bends that leave its first sample in place."""
    along = vessel.distance_N - vessel.distance_N[0]
    bends = np.zeros_like(vessel.points_N3)
    for wavelength in (rng.uniform(10, 18), rng.uniform(22, 40)):
        phase = rng.uniform(0, 2 * np.pi, 3)
        bends += np.sin(2 * np.pi * along[:, None] / wavelength + phase) * amplitude_mm * wavelength / 40
    bends *= np.clip(along / 12, 0, 1)[:, None]
    return Vessel(
        name=vessel.name,
        points_N3=vessel.points_N3 + bends,
        radius_N=vessel.radius_N * (1 + 0.05 * np.sin(along / rng.uniform(3, 7) + rng.uniform(0, 6))),
        distance_N=vessel.distance_N,
        layer=vessel.layer,
    )


def _twig(name: str, mother: Vessel, rng: np.random.Generator) -> Vessel:
    """A small side branch over the heart's surface."""
    at = int(rng.integers(len(mother.points_N3) // 6, len(mother.points_N3)))
    start = mother.points_N3[at]
    ahead = mother.points_N3[min(at + 3, len(mother.points_N3) - 1)] - mother.points_N3[max(at - 3, 0)]
    ahead = ahead / (np.linalg.norm(ahead) + 1e-9)
    outward = (start - HEART_CENTRE) / np.linalg.norm(start - HEART_CENTRE)
    sideways = np.cross(outward, ahead) * rng.choice([-1.0, 1.0])
    length = rng.uniform(10, 34)
    t = np.linspace(0, 1, 5)[:, None]
    course = start + length * (t * (0.5 * ahead + 0.8 * sideways) - 0.35 * t**2 * outward)
    course[1:] += rng.normal(0, 1.6, (4, 3))
    diameter = min(rng.uniform(0.6, 1.2), 1.2 * float(mother.radius_N[at]))
    return tube(name, course, (diameter, 0.4), start_mm=float(mother.distance_N[at]), layer=mother.layer)


def _with_stenosis(tree: Tree, rng: np.random.Generator) -> Tree:
    """The tree with one to two narrowings of 30-90 % on its larger vessels."""
    vessels, found = list(tree.vessels), []
    named = [i for i, v in enumerate(vessels) if "-" not in v.name and v.radius_N[0] > 1.3 and len(v.points_N3) > 20]
    for i in rng.choice(named, size=min(len(named), int(rng.integers(1, 3))), replace=False):
        vessel = vessels[i]
        at = int(rng.integers(6, len(vessel.points_N3) - 6))
        percent, length = float(rng.uniform(30, 90)), float(rng.uniform(4, 14))
        shape = np.exp(-(((vessel.distance_N - vessel.distance_N[at]) / (length / 2)) ** 4))
        vessels[i] = Vessel(
            name=vessel.name,
            points_N3=vessel.points_N3,
            radius_N=vessel.radius_N * (1 - percent / 100 * shape),
            distance_N=vessel.distance_N,
            layer=vessel.layer,
        )
        found.append(Stenosis(segment=vessel.name, percent=percent, length_mm=length, index=at))
    return Tree(artery=tree.artery, vessels=tuple(vessels), stenoses=tuple(found))
