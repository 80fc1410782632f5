"""Coronary anatomy in 3D: both arteries of a patient with their named segments and small branches, at end-diastole.

Patient coordinates in mm, isocentre at the origin: x to the patient's left, y to the back, z to the head (the axes
of DICOM PS3.3 C.7.6.2). Knows nothing of disease, of motion, of the C-arm or of pixels.

Calibres (diameter, mm) and how they depend on dominance and sex: Dodge et al., Lumen diameter of normal human coronary
arteries, Circulation 1992; 86:232-246: left main 4.5, LAD 3.7 to 1.9, LCX 3.4 (left-dominant 4.2), RCA 3.9
(left-dominant 2.8), women 9 % less. Branches take their share by Murray's law with the exponent 2.7. Dominance:
Knaapen et al., Prevalence of left and balanced coronary arterial dominance decreases with increasing age of patients
at autopsy, Cardiovasc Pathol 2013; 22:49-53 (about 81 % right, 9 % left, 10 % balanced).

The epicardium is a blunt half-ellipsoid under the atrioventricular (AV) groove. A course is a list of places on it:
elevation from the groove (0) to the apex (90), and azimuth around the heart: 0 at the anterior interventricular groove,
90 at the obtuse margin, 180 at the inferior interventricular groove, -90 at the right ventricle's free wall.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from angio_ray.phantom.carm import Floats
from angio_ray.views import Artery

Dominance = Literal["right", "left", "co"]
DOMINANCES: tuple[tuple[Dominance, float], ...] = (("right", 0.82), ("left", 0.10), ("co", 0.08))
"""How often each is drawn."""

STEP_MM = 0.75
"""Distance between centreline samples."""
HEART_CENTRE = np.array([20.0, -6.0, -8.0])
BASE = np.array([2.0, 4.0, 28.0])
APEX = np.array([62.0, -36.0, -42.0])
RING_CENTRE = np.array([-1.0, 7.0, -5.0])
"""Middle of the AV groove."""
GROOVE_NORMAL = np.array([0.561, -0.661, -0.499])
"""Of the AV groove's plane, towards the apex."""
_UP = np.array([0.265, -0.426, 0.865])
TO_THE_LEFT = np.array([0.785, 0.616, 0.066])
"""In that plane, from the tricuspid to the mitral side."""
_SHAPE = np.stack([40.5 * _UP, 51.0 * TO_THE_LEFT, APEX - RING_CENTRE], axis=1)
"""From places on the unit sphere (top of the groove, obtuse margin, apex) to mm around `RING_CENTRE`."""
_TO_SPHERE = np.linalg.inv(_SHAPE)
_ATRIAL_DEPTH = 0.5
"""The atria reach this much less far from the groove than the ventricles."""
_BLUNT = 1.3
"""1 is an ellipsoid; more fills out its shoulders."""
_MURRAY = 2.7


@dataclass(frozen=True, kw_only=True)
class Vessel:
    """One tube that blood, and contrast, runs through: centreline samples at end-diastole, in mm and in flow order."""

    name: str
    points_N3: Floats
    radius_N: Floats
    """Of the lumen as it is, disease included, mm."""
    distance_N: Floats
    """Path from where the contrast comes in, mm."""
    layer: int = 0
    """Tubes of one layer do not add up where their pictures cross (the wider wins); those of different layers do."""
    healthy_radius_N: Floats | None = None
    """Without narrowings, mm; None: as `radius_N`."""
    supply_N: Floats | None = None
    """Share of the contrast that gets here, 0..1; None: all. 0 beyond a total occlusion without collaterals."""
    delay_N: Floats | None = None
    """Seconds that the contrast comes later than `distance_N` says (through collaterals); None: none."""
    moves_N: Floats | None = None
    """How much of the heart's motion each sample follows, 0 (the chest's) to 1; None: all of it."""
    parent: str | None = None
    """The vessel that this one leaves."""


@dataclass(frozen=True, kw_only=True)
class Stenosis:
    """A narrowing: percent of the diameter (100: total occlusion), over a length, around one sample of a segment."""

    segment: str
    percent: float
    length_mm: float
    index: int


@dataclass(frozen=True, kw_only=True)
class Calcification:
    """Calcium in a vessel's wall: short lines at end-diastole that move with the vessel, visible without contrast."""

    segment: str
    kind: Literal["specks", "tram track"]
    lines: tuple[Floats, ...]
    """Each (N, 3) mm, N >= 2."""
    width_mm: float
    attenuation: float
    """Of the whole thickness, at the middle of a line (a log-attenuation, not per mm)."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One patient's artery with its branches; the first vessel begins at the ostium."""

    artery: Artery
    vessels: tuple[Vessel, ...]
    stenoses: tuple[Stenosis, ...] = ()
    calcifications: tuple[Calcification, ...] = ()
    dominance: Dominance = "right"

    @property
    def ostium(self) -> Floats:
        """Where the contrast comes in, mm."""
        return self.vessels[0].points_N3[0]

    def vessel(self, name: str) -> Vessel:
        """The vessel of that name; KeyError when the patient has none."""
        for vessel in self.vessels:
            if vessel.name == name:
                return vessel
        raise KeyError(name)


@dataclass(frozen=True, kw_only=True)
class _Course:
    """Where a named segment runs and how wide it is, in a right-dominant man of average size."""

    parent: str | None
    leaves: tuple[float, float]
    """Range of the parent's length where it leaves, 0..1."""
    places: tuple[tuple[float, float, float], ...]
    """(elevation, azimuth) in degrees and depth: 1 on the epicardium, less inside the muscle."""
    diameters_mm: tuple[float, float]
    presence: float = 1.0
    wavy: float = 1.0
    """Tortuosity relative to the patient's."""
    kept: tuple[float, float] = (1.0, 1.0)
    """Range of the share of its course that it runs: lengths vary."""
    layer: int = 0


_LEFT_COURSES: dict[str, _Course] = {
    "LM": _Course(
        parent=None,
        leaves=(0, 0),
        places=((-11.7, 11.7, 1.0), (-6.4, 15, 1.07), (0, 18.5, 1.13)),
        diameters_mm=(4.5, 4.3),
        wavy=0.2,
        kept=(0.4, 1.0),
    ),
    "LAD": _Course(
        parent="LM",
        leaves=(1, 1),
        places=((9, 15, 1.19), (20, 11, 1.26), (32, 8, 1.21), (45, 6, 1.12), (58, 5, 1.05), (70, 4, 1.01), (82, 3, 1)),
        diameters_mm=(3.7, 0.9),
        wavy=0.55,
    ),
    "LCX": _Course(
        parent="LM",
        leaves=(1, 1),
        kept=(0.82, 1.0),
        places=((-3, 32, 1.06), (-3, 52, 1.03), (-1, 74, 1.02), (0, 96, 1.01), (1, 116, 1.0), (3, 134, 1.0)),
        diameters_mm=(3.4, 0.9),
        wavy=0.6,
        layer=1,
    ),
    "ramus": _Course(
        parent="LM",
        leaves=(1, 1),
        kept=(0.7, 1.0),
        places=((10, 33, 1.06), (24, 40, 1.03), (40, 44, 1.01), (55, 46, 1)),
        diameters_mm=(2.3, 0.6),
        presence=0.2,
        layer=1,
    ),
    "D1": _Course(
        parent="LAD",
        leaves=(0.14, 0.26),
        kept=(0.7, 1.0),
        places=((29, 21, 1.14), (39, 35, 1.09), (49, 46, 1.04), (60, 52, 1)),
        diameters_mm=(2.2, 0.5),
        presence=0.97,
    ),
    "D2": _Course(
        parent="LAD",
        leaves=(0.36, 0.48),
        kept=(0.7, 1.0),
        places=((50, 20, 1.07), (58, 36, 1.03), (67, 48, 1)),
        diameters_mm=(1.9, 0.5),
        presence=0.85,
    ),
    "D3": _Course(
        parent="LAD",
        leaves=(0.55, 0.66),
        kept=(0.7, 1.0),
        places=((67, 20, 1.01), (73, 40, 1), (77, 60, 1)),
        diameters_mm=(1.5, 0.45),
        presence=0.5,
    ),
    "S1": _Course(
        parent="LAD",
        leaves=(0.16, 0.26),
        kept=(0.7, 1.0),
        places=((31, 8, 0.92), (44, 4, 0.68), (62, 0, 0.56)),
        diameters_mm=(1.5, 0.45),
        wavy=0.35,
    ),
    "S2": _Course(
        parent="LAD",
        leaves=(0.3, 0.38),
        kept=(0.7, 1.0),
        places=((42, 5, 0.9), (53, 2, 0.76), (68, 0, 0.68)),
        diameters_mm=(1.3, 0.4),
        presence=0.95,
        wavy=0.35,
    ),
    "S3": _Course(
        parent="LAD",
        leaves=(0.42, 0.5),
        kept=(0.7, 1.0),
        places=((56, 4, 0.9), (66, 2, 0.8), (76, 0, 0.76)),
        diameters_mm=(1.1, 0.4),
        presence=0.85,
        wavy=0.4,
    ),
    "S4": _Course(
        parent="LAD",
        leaves=(0.53, 0.62),
        kept=(0.7, 1.0),
        places=((66, 3, 0.92), (74, 0, 0.84), (82, 0, 0.8)),
        diameters_mm=(1.0, 0.35),
        presence=0.65,
        wavy=0.4,
    ),
    "OM1": _Course(
        parent="LCX",
        leaves=(0.22, 0.36),
        kept=(0.7, 1.0),
        places=((10, 60, 1.04), (24, 70, 1.03), (38, 77, 1.01), (52, 80, 1), (63, 80, 1)),
        diameters_mm=(2.4, 0.55),
        presence=0.97,
        layer=1,
    ),
    "OM2": _Course(
        parent="LCX",
        leaves=(0.5, 0.64),
        kept=(0.7, 1.0),
        places=((11, 94, 1.03), (25, 104, 1.01), (38, 108, 1), (50, 110, 1)),
        diameters_mm=(2.1, 0.5),
        presence=0.8,
        layer=1,
    ),
    "OM3": _Course(
        parent="LCX",
        leaves=(0.74, 0.86),
        kept=(0.7, 1.0),
        places=((13, 124, 1.02), (26, 132, 1), (37, 135, 1)),
        diameters_mm=(1.6, 0.45),
        presence=0.45,
        layer=1,
    ),
}
_SA_FROM_LCX = _Course(
    parent="LCX",
    leaves=(0.06, 0.16),
    places=((-24, 14, 1.05), (-42, -22, 1.03), (-50, -70, 1)),
    diameters_mm=(1.3, 0.45),
    layer=1,
)
_RIGHT_COURSES: dict[str, _Course] = {
    "RCA": _Course(
        parent=None,
        leaves=(0, 0),
        places=(
            (-10.5, -11, 0.97),
            (-2, -22, 1.13),
            (2, -42, 1.13),
            (3, -64, 1.08),
            (3, -88, 1.05),
            (3, -112, 1.04),
            (3, -136, 1.04),
            (3, -157, 1.03),
            (3, -173, 1.0),
        ),
        diameters_mm=(3.9, 2.8),
        wavy=0.6,
    ),
    "conus": _Course(
        parent="RCA",
        leaves=(0.03, 0.07),
        kept=(0.7, 1.0),
        places=((8, -16, 1.28), (19, -14, 1.28), (29, -16, 1.2)),
        diameters_mm=(1.3, 0.45),
        presence=0.85,
    ),
    "SA": _Course(
        parent="RCA",
        leaves=(0.06, 0.12),
        kept=(0.7, 1.0),
        places=((-16, -34, 1.1), (-34, -50, 1.07), (-50, -74, 1)),
        diameters_mm=(1.3, 0.45),
        presence=0.6,
    ),
    "RV1": _Course(
        parent="RCA",
        leaves=(0.24, 0.34),
        kept=(0.7, 1.0),
        places=((10, -53, 1.2), (21, -49, 1.24), (33, -42, 1.17), (45, -35, 1.08)),
        diameters_mm=(1.6, 0.45),
        presence=0.95,
        wavy=1.3,
    ),
    "RV2": _Course(
        parent="RCA",
        leaves=(0.42, 0.52),
        kept=(0.7, 1.0),
        places=((11, -81, 1.19), (23, -77, 1.2), (37, -69, 1.12)),
        diameters_mm=(1.3, 0.4),
        presence=0.65,
        wavy=1.4,
    ),
    "AM": _Course(
        parent="RCA",
        leaves=(0.56, 0.66),
        kept=(0.7, 1.0),
        places=((12, -108, 1.13), (27, -114, 1.14), (44, -121, 1.07), (60, -130, 1.02)),
        diameters_mm=(1.8, 0.5),
        presence=0.92,
        wavy=1.2,
    ),
}
_PDA = ((13, 178, 1.0), (27, 176, 1.0), (42, 177, 1), (56, 179, 1), (66, 182, 1))
_PLV = ((-5, 172, 1.0), (-3, 160, 1.0), (8, 150, 1.0), (22, 146, 1), (36, 145, 1))
_PLV2 = ((12, 164, 1.0), (25, 161, 1), (38, 160, 1))


@dataclass(frozen=True, kw_only=True)
class _Heart:
    """One patient's heart: the generic epicardium turned and scaled."""

    size: float
    turn_33: Floats
    tortuosity: float

    def to_patient(self, places_N3: Floats) -> Floats:
        """From the sphere's coordinates to mm. The length of a row is its depth: 1 on the epicardium."""
        depth = np.maximum(np.linalg.norm(places_N3, axis=-1, keepdims=True), 1e-9)
        unit = places_N3 / depth
        across = unit[..., 0:1] ** 2 + unit[..., 1:2] ** 2
        blunt = (across**_BLUNT + np.abs(unit[..., 2:3]) ** (2 * _BLUNT)) ** (-0.5 / _BLUNT)
        place = unit * blunt * depth
        place[..., 2] = np.where(place[..., 2] < 0, place[..., 2] * _ATRIAL_DEPTH, place[..., 2])
        generic = place @ _SHAPE.T + RING_CENTRE
        return (generic - HEART_CENTRE) @ self.turn_33.T * self.size + HEART_CENTRE

    def outward(self, points_N3: Floats) -> Floats:
        """Unit vectors away from the epicardium, about."""
        generic = (points_N3 - HEART_CENTRE) / self.size @ self.turn_33 + HEART_CENTRE
        place = (generic - RING_CENTRE) @ _TO_SPHERE.T
        normal = _unit(place @ _TO_SPHERE)
        return normal @ self.turn_33.T

    def settle(self, points_N3: Floats, depth_N: Floats) -> Floats:
        """The points moved along the radius to a given depth (1: the epicardium)."""
        generic = (points_N3 - HEART_CENTRE) / self.size @ self.turn_33 + HEART_CENTRE
        place = (generic - RING_CENTRE) @ _TO_SPHERE.T
        place[:, 2] = np.where(place[:, 2] < 0, place[:, 2] / _ATRIAL_DEPTH, place[:, 2])
        return self.to_patient(_unit(place) * depth_N[:, None])

    def depth(self, points_N3: Floats) -> Floats:
        """1 on the epicardium, less inside, more outside: (N,)."""
        on_surface = self.settle(points_N3, np.ones(len(points_N3)))
        centre = (RING_CENTRE - HEART_CENTRE) @ self.turn_33.T * self.size + HEART_CENTRE
        return np.linalg.norm(points_N3 - centre, axis=1) / np.linalg.norm(on_surface - centre, axis=1)


def grow_trees(rng: np.random.Generator, *, female: bool, dominance: Dominance | None = None) -> dict[Artery, Tree]:
    """Both coronary trees of one patient, healthy: one heart, one dominance, one build.

    Parameters
    ----------
    rng : numpy.random.Generator
        The patient's; the same state gives the same trees.
    female : bool
        Women's arteries are narrower by 9 % (Dodge 1992), their hearts smaller by 6 %.
    dominance : "right", "left", "co" or None
        Which artery feeds the inferior wall; None draws it.
    """
    if dominance is None:
        dominance = draw_dominance(rng)
    heart = _Heart(
        size=float(np.clip(rng.normal(1.0, 0.055), 0.88, 1.14)) * (0.94 if female else 1.0),
        turn_33=_rotation(rng.normal(0, (4.0, 4.0, 6.0))),
        tortuosity=float(np.clip(np.exp(rng.normal(0.0, 0.42)), 0.4, 2.3)),
    )
    calibre = float(np.clip(np.exp(rng.normal(0, 0.08)), 0.83, 1.2)) * (0.91 if female else 1.0)
    sa_from_left = bool(rng.random() < 0.4)
    left, right = _courses(dominance, sa_from_left, rng)
    return {
        "LCA": Tree(artery="LCA", vessels=_grow(left, heart, calibre, rng), dominance=dominance),
        "RCA": Tree(artery="RCA", vessels=_grow(right, heart, calibre, rng), dominance=dominance),
    }


def draw_dominance(rng: np.random.Generator) -> Dominance:
    """Which artery feeds the inferior wall, as often as in life."""
    return DOMINANCES[rng.choice(len(DOMINANCES), p=[p for _, p in DOMINANCES])][0]


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
    along = arc_length(points)
    radius = np.interp(along, [0, along[-1]], diameters_mm) / 2
    return Vessel(name=name, points_N3=points, radius_N=radius, distance_N=along + start_mm, layer=layer)


def arc_length(points_N3: Floats) -> Floats:
    """Path from the first point to each, mm: (N,)."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points_N3, axis=0), axis=1))])


def _courses(
    dominance: Dominance, sa_from_left: bool, rng: np.random.Generator
) -> tuple[dict[str, _Course], dict[str, _Course]]:
    """This patient's segments, left and right: which ones there are, and where the inferior wall gets its blood."""
    left, right = dict(_LEFT_COURSES), dict(_RIGHT_COURSES)
    if sa_from_left:
        left["SA"] = _SA_FROM_LCX
        del right["SA"]
    left["LAD"] = _with_apex(left["LAD"], rng)
    pda = _Course(parent="RCA", leaves=(0.93, 1.0), places=_PDA, diameters_mm=(2.2, 0.6), wavy=0.8)
    plv = _Course(parent="RCA", leaves=(1, 1), places=_PLV, diameters_mm=(2.4, 0.55), wavy=0.8)
    plv2 = _Course(parent="PLV", leaves=(0.12, 0.3), places=_PLV2, diameters_mm=(1.6, 0.5), presence=0.7)
    if dominance == "right":
        right |= {"PDA": pda, "PLV": plv, "PLV2": plv2}
    elif dominance == "co":
        right["PDA"] = replace(pda, leaves=(1, 1))
        left["LCX"] = _prolonged(left["LCX"], ((2, 146, 1.0), (2, 158, 1.0)), (3.8, 1.3))
        left["PLV"] = replace(plv, parent="LCX", leaves=(0.9, 1.0), places=_PLV2, diameters_mm=(1.9, 0.5), layer=1)
    else:
        short = right["RCA"].places[:6]
        right["RCA"] = replace(right["RCA"], places=(*short, (8, -126, 1.02)), diameters_mm=(2.8, 0.9))
        left["LCX"] = _prolonged(left["LCX"], ((3, 148, 1.0), (4, 159, 1.0), (9, 169, 1.0)), (4.2, 2.2))
        left["PDA"] = replace(pda, parent="LCX", leaves=(1, 1), layer=1)
        left["PLV"] = replace(plv, parent="LCX", leaves=(0.84, 0.92), places=_PLV2, diameters_mm=(1.9, 0.5), layer=1)
    left |= _perforators("LAD", ((9, 15), (80, 4)), left["LAD"], int(rng.integers(2, 5)), rng)
    for courses in (left, right):
        if "PDA" in courses:
            courses |= _perforators("PDA", ((6, 178), (64, 180)), courses["PDA"], int(rng.integers(3, 7)), rng)
        for name in [n for n, c in courses.items() if rng.random() >= c.presence]:
            del courses[name]
    return left, right


def _perforators(
    mother: str,
    ends: tuple[tuple[float, float], tuple[float, float]],
    along: _Course,
    count: int,
    rng: np.random.Generator,
) -> dict[str, _Course]:
    """Thin branches straight into the septum, spread over a groove's artery that runs between two places."""
    found = {}
    for i in range(count):
        where = (i + rng.uniform(0.2, 0.8)) / count * 0.75 + 0.12
        elevation = float(np.interp(where, [0, 1], [ends[0][0], ends[1][0]]))
        azimuth = float(np.interp(where, [0, 1], [ends[0][1], ends[1][1]]))
        found[f"{mother}-s{i}"] = _Course(
            parent=mother,
            leaves=(where, where),
            kept=(0.6, 1.0),
            places=((elevation + 4, azimuth, 0.88), (elevation + 11, azimuth, 0.72)),
            diameters_mm=(float(rng.uniform(0.6, 1.0)), 0.35),
            wavy=0.5,
            layer=along.layer,
        )
    return found


def _with_apex(lad: _Course, rng: np.random.Generator) -> _Course:
    """The LAD ends before the apex, at it, or wraps around it onto the inferior wall."""
    kind = rng.choice(3, p=[0.18, 0.32, 0.5])
    if kind == 0:
        return replace(lad, places=lad.places[:-1])
    if kind == 1:
        return replace(lad, places=(*lad.places, (89, 0, 1)))
    return replace(lad, places=(*lad.places, (88, 180, 1), (float(rng.uniform(66, 79)), 180, 1)))


def _prolonged(
    course: _Course, places: tuple[tuple[float, float, float], ...], diameters_mm: tuple[float, float]
) -> _Course:
    return replace(course, places=course.places + places, diameters_mm=diameters_mm)


def _grow(courses: dict[str, _Course], heart: _Heart, calibre: float, rng: np.random.Generator) -> tuple[Vessel, ...]:
    """The named segments, then their twigs, then the twigs' own."""
    named: dict[str, Vessel] = {}
    offsets: dict[str, list[tuple[float, float]]] = {name: [] for name in courses}
    shift = _Sway(rng)
    for name, course in courses.items():
        if course.parent is not None and course.parent not in named:
            continue
        mother = named[course.parent] if course.parent else None
        points = _centreline(course, mother, heart, shift, rng)
        along = arc_length(points)
        start = 0.0
        d0, d1 = (d * calibre * float(np.exp(rng.normal(0, 0.07))) for d in course.diameters_mm)
        if mother is not None:
            at = _index_of(mother, points[0])
            start = float(mother.distance_N[at])
            d0 = min(d0, 1.9 * float(mother.radius_N[at]))
            offsets[mother.name].append((start - float(mother.distance_N[0]), d0))
        named[name] = Vessel(
            name=name,
            points_N3=points,
            radius_N=np.interp(along, [0, along[-1]], (d0, min(d1, 0.9 * d0))) / 2,
            distance_N=along + start,
            layer=course.layer,
            parent=course.parent,
        )
    vessels = [_tapered(v, offsets[v.name], rng) for v in named.values()]
    twigs = _twigs(
        [v for v in vessels if v.name != "LM" and "-" not in v.name], heart, rng, every_mm=13.0, longest_mm=36.0
    )
    finer = _twigs(twigs, heart, rng, every_mm=16.0, longest_mm=15.0)
    return (*vessels, *twigs, *finer)


class _Sway:
    """How one patient's courses differ from the mean: a smooth shift in angle over the whole heart, the same for all
    vessels so that neighbours do not cross, and a small one of each vessel's own.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.common = rng.normal(0, 1, (2, 3))

    def angles(self, places_K3: Floats, rng: np.random.Generator) -> Floats:
        """(elevation, azimuth) of the places in this patient, degrees, (K, 2)."""
        azimuth = np.deg2rad(places_K3[:, 1])
        waves = np.stack([np.sin(azimuth), np.cos(azimuth), np.sin(2 * azimuth)])
        common = (self.common @ waves).T * (2.0, 4.0)
        own = rng.normal(0, (1.6, 2.6), (len(places_K3), 2))
        deep = np.clip((places_K3[:, :1] + 12) / 20, 0, 1)  # near the aortic root there is no room
        return places_K3[:, :2] + (common + own) * deep


def _centreline(course: _Course, mother: Vessel | None, heart: _Heart, sway: _Sway, rng: np.random.Generator) -> Floats:
    """A segment's samples: through its places on this heart, from its mother, bent as this patient's vessels are."""
    places = np.array(course.places, float)
    angles = np.deg2rad(sway.angles(places, rng))
    on_sphere = np.stack(
        [
            np.cos(angles[:, 0]) * np.cos(angles[:, 1]),
            np.cos(angles[:, 0]) * np.sin(angles[:, 1]),
            np.sin(angles[:, 0]),
        ],
        axis=1,
    )
    sphere = spline(on_sphere * places[:, 2:], 0.06)
    control = heart.to_patient(sphere)
    if mother is not None:
        control = np.vstack([*_from_mother(control, np.linalg.norm(sphere, axis=1), course, mother, heart, rng)])
    points = resampled(_smooth(resampled(control, STEP_MM), 3.0), STEP_MM)
    points = points[: max(8, round(rng.uniform(*course.kept) * len(points)))]
    bent = resampled(_wavy(points, heart, heart.tortuosity * course.wavy, rng), STEP_MM)
    return resampled(_smooth(bent, 1.5), STEP_MM)  # an artery's wall does not fold


def _from_mother(
    control_K3: Floats, depth_K: Floats, course: _Course, mother: Vessel, heart: _Heart, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Where a branch leaves its mother, and its course shifted along with that place, less and less on its way."""
    last = len(mother.points_N3) - 1
    start = mother.points_N3[round(rng.uniform(*course.leaves) * last)]
    shift = start - mother.points_N3[round(sum(course.leaves) / 2 * last)]
    share = np.linspace(0.95, 0.45, len(control_K3))[:, None]
    shifted = heart.settle(control_K3 + share * shift, depth_K)
    ahead = np.linalg.norm(shifted - start, axis=1)
    first = int(np.argmin(ahead)) + 1 if ahead.min() < 6 else 0
    return start[None], shifted[first:]


def resampled(points_N3: Floats, step_mm: float) -> Floats:
    """The same polyline with samples at even steps of about `step_mm`; both ends stay."""
    along = arc_length(points_N3)
    even = np.linspace(0, along[-1], max(3, round(along[-1] / step_mm) + 1))
    return np.stack([np.interp(even, along, points_N3[:, k]) for k in range(3)], axis=1)


def _smooth(points_N3: Floats, sigma_mm: float) -> Floats:
    """Corners rounded by a Gaussian along the path; both ends stay (mirrored through themselves)."""
    half = min(int(3 * sigma_mm / STEP_MM), len(points_N3) - 1)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) * STEP_MM / sigma_mm) ** 2)
    head = 2 * points_N3[:1] - points_N3[half:0:-1]
    tail = 2 * points_N3[-1:] - points_N3[-2 : -half - 2 : -1]
    padded = np.vstack([head, points_N3, tail])
    return np.stack([np.convolve(padded[:, k], kernel / kernel.sum(), "valid") for k in range(3)], axis=1)


def _wavy(points_N3: Floats, heart: _Heart, tortuosity: float, rng: np.random.Generator) -> Floats:
    """Smooth bends sideways, and less so up and down, that leave the first sample in place.

    Long waves everywhere; short ones come and go along the vessel and grow towards its end, as small arteries wind more.
    """
    along = arc_length(points_N3)
    tangent = _unit(np.gradient(points_N3, axis=0))
    outward = heart.outward(points_N3)
    sideways = _unit(np.cross(outward, tangent))
    bends = np.zeros((2, len(along)))
    for wavelength, height in ((rng.uniform(28, 60), 0.9), (rng.uniform(14, 24), 0.55), (rng.uniform(7, 11), 0.28)):
        chirp = along / wavelength + 0.35 * np.sin(2 * np.pi * along / rng.uniform(40, 90) + rng.uniform(0, 6))
        present = 0.55 + 0.45 * np.sin(2 * np.pi * along / rng.uniform(35, 70) + rng.uniform(0, 6))
        growing = 1.0 if wavelength > 25 else 0.4 + 1.0 * along / along[-1]
        for k, share in enumerate((1.0, 0.45)):
            bends[k] += share * height * present * growing * np.sin(2 * np.pi * chirp + rng.uniform(0, 6))
    bends *= tortuosity * np.clip(along / 12, 0, 1) ** 2 * (3 - 2 * np.clip(along / 12, 0, 1))
    return points_N3 + bends[0][:, None] * sideways + bends[1][:, None] * outward


def _index_of(vessel: Vessel, point: Floats) -> int:
    """The sample nearest to a point."""
    return int(np.argmin(np.linalg.norm(vessel.points_N3 - point, axis=1)))


def _tapered(vessel: Vessel, branches: list[tuple[float, float]], rng: np.random.Generator) -> Vessel:
    """The vessel with a calibre that falls half steadily and half at its branches, to each its share (Murray).

    Parameters
    ----------
    branches : list of (float, float)
        Where along the vessel one leaves, and its diameter, mm.
    """
    along = vessel.distance_N - vessel.distance_N[0]
    steady = along / along[-1]
    steps, total = np.zeros_like(along), 0.0
    for where, diameter in branches:
        if where < along[-1] - 4:
            steps += diameter**_MURRAY * _smoothstep((along - where) / 4.0)
            total += diameter**_MURRAY
    spent = 0.5 * steady + 0.5 * steps / total if total else steady
    first, last = vessel.radius_N[0] ** _MURRAY, vessel.radius_N[-1] ** _MURRAY
    radius = (first + (last - first) * spent) ** (1 / _MURRAY)
    uneven = 0.02 * np.sin(2 * np.pi * along / rng.uniform(9, 20) + rng.uniform(0, 6))
    uneven += 0.015 * np.sin(2 * np.pi * along / rng.uniform(4, 8) + rng.uniform(0, 6))
    return replace(vessel, radius_N=radius * (1 + rng.uniform(0.6, 1.7) * uneven))


def _twigs(
    mothers: list[Vessel], heart: _Heart, rng: np.random.Generator, *, every_mm: float, longest_mm: float
) -> list[Vessel]:
    """Small side branches of all the mothers, about one for each `every_mm`, grown together step by step."""
    sites = []
    for mother in mothers:
        count = int(rng.poisson(float(mother.distance_N[-1] - mother.distance_N[0]) / every_mm))
        for i in range(count):  # spread out, or they stand in tufts
            at = int((0.15 + 0.83 * (i + rng.uniform(0.1, 0.9)) / count) * (len(mother.points_N3) - 1))
            sites.append((mother, max(at, 1), i))
    if not sites:
        return []
    starts = np.stack([m.points_N3[at] for m, at, _ in sites])
    tangents = _unit(np.stack([m.points_N3[at + 1] - m.points_N3[at - 1] for m, at, _ in sites]))
    calibres = np.array([np.clip(1.2 * m.radius_N[at], 0.36, rng.uniform(0.6, 1.3)) for m, at, _ in sites])
    lengths = np.clip(rng.gamma(3.0, 0.19 * longest_mm, len(sites)), 0.3 * longest_mm, longest_mm)
    lengths *= np.clip(calibres / 0.8, 0.6, 1.2)
    paths = _walk(starts, tangents, float(lengths.max()), heart, rng)
    twigs = []
    for k, (mother, at, i) in enumerate(sites):
        points = resampled(paths[: max(4, round(lengths[k] / STEP_MM)), k], STEP_MM)
        along = arc_length(points)
        end = min(rng.uniform(0.28, 0.4), 0.85 * calibres[k])
        thinning = (calibres[k] ** 2 + (end**2 - calibres[k] ** 2) * along / along[-1]) ** 0.5
        twigs.append(
            Vessel(
                name=f"{mother.name}-{i}",
                points_N3=points,
                radius_N=thinning / 2,
                distance_N=along + float(mother.distance_N[at]),
                layer=mother.layer,
                parent=mother.name,
            )
        )
    return twigs


def _walk(starts_M3: Floats, tangents_M3: Floats, longest_mm: float, heart: _Heart, rng: np.random.Generator) -> Floats:
    """Winding ways over the heart's surface, (steps, M, 3): each leaves its mother at an angle and bends her way."""
    count = len(starts_M3)
    angle = np.deg2rad(rng.uniform(35, 85, count)) * rng.choice([-1.0, 1.0], count)
    heading = np.cos(angle)[:, None] * tangents_M3
    heading += np.sin(angle)[:, None] * np.cross(heart.outward(starts_M3), tangents_M3)
    depth = heart.depth(starts_M3)
    wave, phase = rng.uniform(4.5, 11.0, count), rng.uniform(0, 2 * np.pi, count)
    winding = np.minimum(heart.tortuosity * rng.uniform(0.1, 0.45, count), 0.45)  # radians per mm
    wander = np.zeros(count)
    points, path = starts_M3.copy(), [starts_M3]
    for step in range(1, int(longest_mm / STEP_MM) + 1):
        along = step * STEP_MM
        wander = 0.85 * wander + 0.045 * rng.standard_normal(count)
        turn = wander + winding * min(along / 10, 1.0) * np.sin(2 * np.pi * along / wave + phase)
        outward = heart.outward(points)
        heading = heading + STEP_MM * (turn[:, None] * np.cross(outward, heading) + 0.012 * tangents_M3)
        heading = _unit(heading - 0.9 * (heading * outward).sum(1, keepdims=True) * outward)
        depth = depth + 0.02 * (np.clip(depth, 0, 1) - depth) + 0.006 * rng.standard_normal(count)
        points = heart.settle(points + STEP_MM * heading, depth)
        path.append(points)
    return np.stack(path)


def _smoothstep(x_N: Floats) -> Floats:
    x = np.clip(x_N, 0, 1)
    return x * x * (3 - 2 * x)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _rotation(angles_deg: Floats) -> Floats:
    a, b, c = np.deg2rad(angles_deg)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z
