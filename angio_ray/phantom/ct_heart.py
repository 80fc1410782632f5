"""A synthetic heart for CT: its solids, and the coronary branches on it with plaques of known narrowing.

Patient axes in mm: x to the left, y to the back, z to the head; 0 is the middle of the mitral and aortic valves' plane.
Knows nothing of voxels, pictures, reports or files.

Mean calibres after Dodge et al., Circulation 1992; 86:232-246. Branch names and how often a branch is reformatted:
Dobko et al., CNN-CASS, table 1 (as far as it can be read: D-1 to D-3; the others are ours, near its 4.7 branches a
patient). Grades: CAD-RADS, Cury et al., J Cardiovasc Comput Tomogr 2016; 10:269-281.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter1d

BranchName = Literal[
    "LAD",
    "D-1",
    "D-2",
    "D-3",
    "LCX",
    "OM-1",
    "OM-2",
    "OM-3",
    "PDA-LCX",
    "PLV-LCX",
    "RCA",
    "PDA-RCA",
    "PLV-RCA",
]
BRANCHES: tuple[BranchName, ...] = get_args(BranchName)
CtArtery = Literal["LAD", "LCX", "RCA"]
ARTERIES: dict[CtArtery, tuple[BranchName, ...]] = {
    "LAD": ("LAD", "D-1", "D-2", "D-3"),
    "LCX": ("LCX", "OM-1", "OM-2", "OM-3", "PDA-LCX", "PLV-LCX"),
    "RCA": ("RCA", "PDA-RCA", "PLV-RCA"),
}
Dominance = Literal["right", "left"]
Plaque = Literal["calcified", "soft", "mixed"]
GRADES: tuple[tuple[int, int], ...] = ((0, 0), (1, 24), (25, 49), (50, 69), (70, 99), (100, 100))
"""Lowest and highest percent of CAD-RADS 0 to 5. Plaque without narrowing is grade 1."""

STEP_MM = 0.5
"""Between samples of a course."""
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One plaque. `percent` is how much of the lumen's diameter is gone where it is worst, seen from its worst side."""

    plaque: Plaque
    percent: int
    at_mm: float
    """Its middle, along the branch's own course."""
    length_mm: float
    eccentricity: float
    """0: the lumen narrows evenly; 1: from one side, so that pictures across it show next to nothing."""
    side_rad: float
    """Where in the wall it lies, from the course's first normal."""
    bulge_mm: float
    """How far it pushes the wall outwards (positive remodelling)."""

    @property
    def grade(self) -> int:
        """CAD-RADS 1 to 5."""
        return max(1, grade(self.percent))


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A named branch, from its take-off to its end, and the way to it from the aorta."""

    name: BranchName
    artery: CtArtery
    path_N3: Floats
    """From the ostium on, mm; equal steps of about STEP_MM."""
    start: int
    """Sample of `path_N3` where the branch's own course begins."""
    radius_N: Floats
    """Healthy lumen, mm, along the path."""
    lesions: tuple[Lesion, ...] = ()
    """On the own course."""
    upstream: tuple[BranchName, ...] = ()
    """The branches whose beginning the path shows on its way."""
    bridged: bool = False
    """A stretch dips into the muscle and is a little flatter there: no disease, but it looks like a narrowing."""

    @property
    def percent(self) -> int:
        """The worst lesion's; 0 where there is none."""
        return max((lesion.percent for lesion in self.lesions), default=0)

    @property
    def grade(self) -> int:
        """CAD-RADS 0 to 5."""
        return max((lesion.grade for lesion in self.lesions), default=0)

    @property
    def worst(self) -> Lesion | None:
        """The narrowest of its plaques, the longest of several."""
        return max(self.lesions, key=lambda lesion: (lesion.percent, lesion.length_mm), default=None)

    @property
    def plaque(self) -> str:
        """The worst plaque's kind; "none" without one."""
        return self.worst.plaque if self.worst else "none"

    @property
    def calcified(self) -> bool:
        """Calcium in any of its plaques, the worst or not."""
        return any(lesion.plaque != "soft" for lesion in self.lesions)


@dataclass(frozen=True)
class Line:
    """A course and its healthy lumen."""

    path_N3: Floats
    radius_N: Floats


def grade(percent: float) -> int:
    """CAD-RADS of a narrowing in percent, 0 to 5."""
    return int(np.searchsorted((0, 25, 50, 70, 100), percent, side="right")) - (percent == 0)


def upstream_percent(branch: Branch, branches: Iterable[Branch]) -> int:
    """The worst narrowing on a branch's path before its own course: its parents show only up to where it leaves them."""
    parents = sorted((b for b in branches if b.name in branch.upstream), key=lambda b: b.start)
    return max(
        (
            lesion.percent
            for parent, following in pairwise([*parents, branch])
            for lesion in parent.lesions
            if lesion.at_mm - lesion.length_mm / 2 < STEP_MM * (following.start - parent.start)  # the same way so far
        ),
        default=0,
    )


def draw_lesions(branch: Branch, rng: np.random.Generator, *, likely: float = 0.5) -> tuple[Lesion, ...]:
    """Draw the plaques of a branch, most often none, of a diseased patient."""
    length = STEP_MM * (len(branch.path_N3) - branch.start)
    if rng.random() > likely or length < 24:
        return ()
    count = int(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08])) if length > 60 else 1
    middles = np.sort(rng.uniform(9, min(length - 10, 80), count))
    lesions: list[Lesion] = []
    for at_mm in middles:
        if lesions and at_mm - lesions[-1].at_mm < 18:
            continue
        low, high = GRADES[int(rng.choice([1, 2, 3, 4, 5], p=[0.3, 0.27, 0.19, 0.19, 0.05]))]
        percent = int(rng.integers(low, high + 1)) if rng.random() > 0.35 or low != 1 else 0
        lesions.append(draw_lesion(rng, percent=percent, at_mm=float(at_mm)))
    return tuple(lesions)


def draw_lesion(rng: np.random.Generator, *, percent: int, at_mm: float, plaque: Plaque | None = None) -> Lesion:
    """Draw what else there is to say of a plaque of known narrowing and place."""
    kinds: tuple[Plaque, ...] = get_args(Plaque)
    drawn = kinds[int(rng.choice(3, p=[0.4, 0.3, 0.3]))]
    return Lesion(
        plaque=plaque or drawn,
        percent=percent,
        at_mm=at_mm,
        length_mm=float(rng.uniform(8, 16) if percent < 100 else rng.uniform(10, 18)),
        eccentricity=float(rng.beta(1.6, 1.2)),
        side_rad=float(rng.uniform(-np.pi, np.pi)),
        bulge_mm=float(rng.uniform(0.5, 1.4)),
    )


# --- the solids -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The heart's own axes and size. A: base to apex; Q: to the right ventricle; S: to the anterior (upper) wall."""

    axes: Floats
    """Rows A, Q, S in patient axes."""
    size: float
    lv_wall_mm: float
    hu: dict[str, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Anatomy:
        """A patient's heart: how it lies, its size, how the contrast has reached its chambers."""
        long_axis = np.array([0.62, -0.55, -0.56]) + rng.normal(0, 0.06, 3)
        long_axis /= np.linalg.norm(long_axis)
        up = np.array([0.0, 0.0, 1.0]) + rng.normal(0, 0.08, 3)
        up -= (up @ long_axis) * long_axis
        up /= np.linalg.norm(up)
        left_heart = rng.normal(410, 55)
        right_heart = left_heart * rng.uniform(0.35, 0.85)
        return cls(
            axes=np.stack([long_axis, np.cross(long_axis, up), up]),
            size=float(np.clip(rng.normal(1.0, 0.06), 0.87, 1.14)),
            lv_wall_mm=float(rng.uniform(8, 12)),
            hu={"left": left_heart, "right": right_heart, "muscle": rng.normal(105, 12), "fat": rng.normal(-95, 8)},
        )

    def to_patient(self, points: Floats) -> Floats:
        """Points (N, 3)."""
        return self.size * points @ self.axes

    def outside(self, points: Floats) -> dict[str, Floats]:
        """Distance in heart mm from each solid's surface (negative inside); points (3, ...) in the heart's axes."""
        return {
            "LV": np.maximum(ellipsoid(points, (28, 0, 0), (58, 32, 32)), -points[0] - 6),
            "RV": np.maximum(ellipsoid(points, (24, 29, -3), (50, 26, 36)), -points[0] - 4),
            "LA": ellipsoid(points, (-27, -9, -1), (24, 28, 30)),
            "RA": ellipsoid(points, (-20, 44, -14), (24, 23, 29)),
            "outflow": cone(points, (14, 22, 26), (-16, 11, 43), 15, 13),
            "root": cone(points, (2, 8, 6), (-22, 14, 22), 15.5, 16),
        }

    def surface(self, points: Floats) -> Floats:
        """Distance of points (N, 3) from the heart's outer surface, grooves kept."""
        return np.minimum.reduce(list(self.outside(points.T).values()))


def ellipsoid(points: Floats, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Floats:
    """About the distance from it, of points (3, ...)."""
    k0 = k1 = np.float32(1e-12)
    for p, c, r in zip(points, centre, radii, strict=True):
        square = ((p - c) * (1 / r)) ** 2
        k0 = k0 + square
        k1 = k1 + square * (1 / r**2)
    k0 = np.sqrt(k0)
    return k0 * (k0 - 1) / np.sqrt(k1)


def cone(
    points: Floats, start: tuple[float, float, float], end: tuple[float, float, float], radius0: float, radius1: float
) -> Floats:
    """The distance from a round-ended, tapering tube, of points (3, ...)."""
    axis = [e - s for s, e in zip(start, end, strict=True)]
    length2 = sum(a * a for a in axis)
    t = sum((p - s) * (a / length2) for p, s, a in zip(points, start, axis, strict=True))
    t = np.clip(t, 0, 1)
    off2 = sum((p - s - t * a) ** 2 for p, s, a in zip(points, start, axis, strict=True))
    return np.sqrt(off2) - (radius0 + (radius1 - radius0) * t)


# --- the branches -----------------------------------------------------------------------------------------------------

# control points in the heart's axes (A, Q, S); projected to the surface afterwards
_TRUNKS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "LM": ((-6, 2, 19), (-3, -6, 25), (0, -9, 29)),
    "LAD": ((0, -9, 29), (8, 2, 35), (22, 11, 34), (42, 13, 30), (60, 10, 23), (76, 6, 14), (86, 1, 2), (84, 0, -9)),
    "D-1": ((14, 6, 36), (24, -6, 34), (40, -14, 28), (58, -15, 19)),
    "D-2": ((34, 13, 32), (44, 2, 30), (58, -5, 23), (70, -7, 14)),
    "D-3": ((50, 12, 27), (60, 4, 24), (71, -1, 16), (78, -4, 9)),
    "LCX": ((0, -9, 29), (-1, -20, 26), (0, -31, 15), (1, -35, -1), (1, -31, -16), (2, -22, -27)),
    "LCX-crux": ((2, -22, -27), (1, -8, -33), (2, 6, -34)),
    "OM-1": ((-1, -22, 24), (12, -30, 16), (30, -33, 9), (52, -29, 2), (66, -20, -1)),
    "OM-2": ((1, -35, 2), (14, -36, -6), (34, -33, -9), (54, -26, -8)),
    "OM-3": ((1, -31, -16), (12, -31, -17), (30, -28, -19), (46, -22, -18)),
    "RCA": ((-4, 20, 15), (-1, 34, 27), (3, 50, 22), (4, 61, 5), (4, 58, -18), (3, 42, -33), (2, 22, -38), (2, 8, -35)),
    "PDA": ((2, 8, -35), (16, 10, -37), (36, 11, -34), (56, 9, -27), (72, 5, -17)),
    "AM": ((4, 60, 0), (14, 60, -6), (30, 54, -10), (46, 46, -14)),
    "RV-1": ((3, 48, 22), (12, 50, 23), (26, 45, 20), (38, 41, 14)),
    "PLV": ((2, 8, -35), (3, -4, -34), (14, -13, -32), (32, -14, -31), (48, -12, -26)),
}
# name: (trunk, what precedes it); the last two are never reformatted
_PLAN: dict[str, tuple[str, tuple[str, ...]]] = {
    "LAD": ("LAD", ("LM",)),
    "D-1": ("D-1", ("LM", "LAD")),
    "D-2": ("D-2", ("LM", "LAD")),
    "D-3": ("D-3", ("LM", "LAD")),
    "LCX": ("LCX", ("LM",)),
    "OM-1": ("OM-1", ("LM", "LCX")),
    "OM-2": ("OM-2", ("LM", "LCX")),
    "OM-3": ("OM-3", ("LM", "LCX")),
    "PDA-LCX": ("PDA", ("LM", "LCX")),
    "PLV-LCX": ("PLV", ("LM", "LCX")),
    "RCA": ("RCA", ()),
    "PDA-RCA": ("PDA", ("RCA",)),
    "PLV-RCA": ("PLV", ("RCA",)),
    "AM": ("AM", ("RCA",)),
    "RV-1": ("RV-1", ("RCA",)),
}
_DIAMETERS = {
    "LM": (4.5, 4.4),
    "LAD": (3.7, 1.5),
    "D-1": (2.2, 1.2),
    "D-2": (2.0, 1.1),
    "D-3": (1.8, 1.1),
    "LCX": (3.4, 1.7),
    "OM-1": (2.4, 1.3),
    "OM-2": (2.2, 1.2),
    "OM-3": (2.0, 1.2),
    "RCA": (3.9, 2.8),
    "PDA": (2.1, 1.2),
    "PLV": (2.2, 1.3),
    "AM": (1.9, 1.0),
    "RV-1": (1.7, 0.9),
}
"""Mean healthy lumen at a trunk's beginning and end, mm; right-dominant."""
_NAMED: dict[str, BranchName] = {name: name for name in BRANCHES}
_PRESENT = {
    "LAD": 0.99,
    "D-1": 0.88,
    "D-2": 0.43,
    "D-3": 0.08,
    "LCX": 0.87,
    "OM-1": 0.4,
    "OM-2": 0.34,
    "OM-3": 0.09,
    "RCA": 0.87,
    "PDA-RCA": 0.2,
    "PLV-RCA": 0.35,
    "PDA-LCX": 0.6,
    "PLV-LCX": 0.5,
}
"""How often a branch is there, long enough to be reformatted (the two of the LCX: of left-dominant hearts)."""


def grow(
    anatomy: Anatomy, dominance: Dominance, rng: np.random.Generator
) -> tuple[tuple[Branch, ...], tuple[Line, ...]]:
    """The branches that this patient has, healthy, and those too small to be reformatted."""
    points = {name: np.array(p) + rng.normal(0, 2.0, (len(p), 3)) for name, p in _TRUNKS.items()}
    for child, parent in (("LAD", "LM"), ("LCX", "LM"), ("LCX-crux", "LCX")):
        points[child][0] = points[parent][-1]
    crux = points.pop("LCX-crux")
    if dominance == "left":
        points["LCX"] = np.concatenate([points["LCX"], crux[1:]])
        points["RCA"] = points["RCA"][:5]
    source = "LCX" if dominance == "left" else "RCA"
    points["PDA"][0] = points["PLV"][0] = points[source][-1]
    lines = {name: _course(anatomy, p, rng, free=5.0 if name in ("LM", "RCA") else 0.0) for name, p in points.items()}
    for child, parent in (("LAD", "LM"), ("LCX", "LM"), ("PDA", source), ("PLV", source)):
        lines[child] = _pulled(lines[child], lines[parent][-1])
    factor = float(np.clip(rng.normal(1.0, 0.09), 0.8, 1.2))
    trunks = {name: Line(line, factor * _calibre(name, len(line), dominance)) for name, line in lines.items()}
    bridged = bool(rng.random() < 0.2)
    if bridged:
        trunks["LAD"] = _bridge(trunks["LAD"], anatomy, rng)
    unseen = ("PDA-RCA", "PLV-RCA") if dominance == "left" else ("PDA-LCX", "PLV-LCX")
    grown: list[Branch] = []
    twigs = [trunks["LM"]]
    for name in _PLAN:
        there, length = rng.random() < _PRESENT.get(name, 0), rng.uniform(0.8, 1.0)
        if name in unseen:
            continue
        if there:
            grown.append(_branch(_NAMED[name], trunks, length, bridged))
        elif name in ("LAD", "LCX", "RCA"):
            twigs.append(trunks[name])
        else:
            twigs.append(_small(_branch_line(name, trunks, length * 0.65)))
    return tuple(grown), tuple(twigs)


def _course(anatomy: Anatomy, control: Floats, rng: np.random.Generator, *, free: float) -> Floats:
    """A smooth, slightly winding course on the heart's surface through control points; patient mm."""
    chord = np.r_[0, np.cumsum(np.linalg.norm(np.diff(control, axis=0), axis=1))]
    s = np.arange(0, chord[-1], 1.0)
    course = make_interp_spline(chord, control, k=min(3, len(control) - 1))(s)
    wind = gaussian_filter1d(rng.standard_normal((len(s) + 40, 3)), 5, axis=0)[20:-20]
    course += wind / max(float(wind.std()), 1e-6) * rng.uniform(0.5, 1.3) * np.clip(s / 10, 0, 1)[:, None]
    depth = 3.2 + gaussian_filter1d(rng.normal(0, 3, len(s) + 60), 9)[30:-30]
    on_surface = course.copy()
    for _ in range(8):
        off = anatomy.surface(on_surface) - depth
        h = 0.5 * np.eye(3)
        slope = np.stack([anatomy.surface(on_surface + d) - anatomy.surface(on_surface - d) for d in h], axis=1)
        slope /= np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 0.3)
        on_surface -= off[:, None] * slope
    weight = np.clip((s - free) / 8, 0, 1)[:, None] if free else 1.0  # near the ostium it comes out of the aorta
    course = gaussian_filter1d(weight * on_surface + (1 - weight) * course, 2.0, axis=0, mode="nearest")
    return _even(anatomy.to_patient(course))


def _even(course: Floats) -> Floats:
    """The same line in steps of STEP_MM."""
    s = np.r_[0, np.cumsum(np.linalg.norm(np.diff(course, axis=0), axis=1))]
    at = np.arange(0, s[-1], STEP_MM)
    return np.stack([np.interp(at, s, axis) for axis in course.T], axis=1)


def _branch_line(name: str, trunks: dict[str, Line], length: float) -> tuple[Line, int]:
    """A branch with its way from the ostium, and where on it its own course begins; cut to a share of its length."""
    trunk, before = _PLAN[name]
    own = trunks[trunk]
    keep = len(own.path_N3) if name in ("LCX", "RCA") else int(len(own.path_N3) * length)
    way: list[Line] = []
    for k, parent in enumerate(before):
        line = trunks[parent]
        after = (trunks[before[k + 1]] if k + 1 < len(before) else own).path_N3[0]
        until = int(np.argmin(np.linalg.norm(line.path_N3 - after, axis=1))) + 1
        way.append(Line(line.path_N3[:until], line.radius_N[:until]))
    joint = sum(len(part.path_N3) for part in way)
    path = np.concatenate([*(part.path_N3 for part in way), own.path_N3[:keep]])
    radius = np.concatenate([*(part.radius_N for part in way), own.radius_N[:keep]])
    return Line(_join(path, joint) if way else path, gaussian_filter1d(radius, 4, mode="nearest")), joint


def _branch(name: BranchName, trunks: dict[str, Line], length: float, bridged: bool) -> Branch:
    line, joint = _branch_line(name, trunks, length)
    return Branch(
        name=name,
        artery=next(artery for artery, names in ARTERIES.items() if name in names),
        path_N3=line.path_N3,
        start=joint,
        radius_N=line.radius_N,
        upstream=tuple(n for n in BRANCHES if n in _PLAN[name][1]),
        bridged=bridged and name == "LAD",
    )


def _small(line: tuple[Line, int]) -> Line:
    whole, joint = line
    return Line(whole.path_N3[joint:], whole.radius_N[joint:] * 0.65)


def _calibre(trunk: str, samples: int, dominance: Dominance) -> Floats:
    """Healthy radius along a whole trunk, before the patient's own factor."""
    wide, narrow = _DIAMETERS[trunk]
    if dominance == "left":
        wide, narrow = {"LCX": (4.2, 2.4), "RCA": (2.8, 1.6)}.get(trunk, (wide, narrow))
    return np.linspace(wide, narrow, samples) / 2


def _join(path: Floats, joint: int) -> Floats:
    """Pull the own course's beginning onto the parent and round the corner."""
    path = np.concatenate([path[:joint], _pulled(path[joint:], path[joint - 1])])
    smooth = gaussian_filter1d(path, 2.5, axis=0, mode="nearest")
    near = np.exp(-(((np.arange(len(path)) - joint) * STEP_MM / 4) ** 2))[:, None]
    return near * smooth + (1 - near) * path


def _pulled(line: Floats, to: Floats) -> Floats:
    """The line, begun at a point that lies a few mm beside its beginning."""
    fade = np.exp(-np.arange(len(line)) * STEP_MM / 6)
    return line + (to - line[0]) * fade[:, None]


def _bridge(line: Line, anatomy: Anatomy, rng: np.random.Generator) -> Line:
    """Let the middle of the LAD run through the muscle for 15 to 25 mm."""
    s = np.arange(len(line.path_N3)) * STEP_MM
    dip = np.exp(-(((s - rng.uniform(40, 60)) / rng.uniform(8, 13)) ** 4))
    inwards = anatomy.to_patient(np.array([35.0, 0.0, 0.0])) - line.path_N3
    inwards /= np.linalg.norm(inwards, axis=1, keepdims=True)
    path = line.path_N3 + inwards * (dip * rng.uniform(4.5, 6.5))[:, None]
    return Line(path, line.radius_N * (1 - rng.uniform(0.1, 0.22) * dip))


# --- the lumen --------------------------------------------------------------------------------------------------------


def course_normals(path: Floats) -> Floats:
    """Two normals per sample that do not twist along the course, (N, 2, 3)."""
    tangent = np.gradient(gaussian_filter1d(path, 2, axis=0, mode="nearest"), axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normals = np.empty((len(path), 2, 3))
    first = np.cross(tangent[0], np.eye(3)[np.abs(tangent[0]).argmin()])
    for k, t in enumerate(tangent):
        first = first - (first @ t) * t
        first /= np.linalg.norm(first)
        normals[k] = first, np.cross(t, first)
    return normals


@dataclass(frozen=True)
class Lumen:
    """The open lumen's cross-section along a path: an ellipse beside the healthy lumen's middle."""

    narrow_N: Floats
    """Half-width towards the plaque, mm; 0 where it is closed."""
    wide_N: Floats
    """Half-width across that."""
    shift_N: Floats
    """How far its middle is pushed away from the plaque, mm."""
    side_N: Floats
    """Direction of the plaque, rad from the first normal."""
    plaque_N: Floats
    """0 healthy wall, 1 the plaque's full thickness."""
    bulge_N: Floats
    calcium_N: Floats
    """0 none, 1 the plaque is calcified here."""
    even_N: Floats
    """1: the plaque goes all around; 0: on its side only."""


def lumen_along(branch: Branch) -> Lumen:
    """How the branch's plaques leave its lumen."""
    n = len(branch.path_N3)
    s = (np.arange(n) - branch.start) * STEP_MM
    narrow, wide = branch.radius_N.astype(float).copy(), branch.radius_N.astype(float).copy()
    shift, side, plaque, bulge, calcium, even = (np.zeros(n) for _ in range(6))
    for lesion in branch.lesions:
        t = (s - lesion.at_mm) / (lesion.length_mm / 2)
        flat = 0.7 if lesion.percent == 100 else 0.3  # share of the length that is as narrow as it gets
        shape = np.cos(np.pi / 2 * np.clip((np.abs(t) - flat) / (1 - flat), 0, 1)) ** 2
        gone = shape * lesion.percent / 100
        ecc = lesion.eccentricity * (1 - (lesion.percent / 100) ** 3)  # what is almost closed is closed all around
        narrow *= 1 - gone
        wide *= 1 - gone * (1 - 0.8 * ecc)
        shift += ecc * branch.radius_N * gone * 0.9
        here = np.abs(t) < 1.25
        side[here] = lesion.side_rad
        even[here] = 1 - ecc
        thick = np.where(np.abs(t) < 1.2, np.cos(np.pi / 2 * np.clip(t / 1.2, -1, 1)), 0)
        plaque = np.maximum(plaque, thick)
        bulge = np.maximum(bulge, thick * lesion.bulge_mm)
        if lesion.plaque != "soft":
            share = 0.25 if lesion.plaque == "calcified" else 0.6
            calcium = np.maximum(calcium, np.clip((_speckle(s, lesion) - share) * 4, 0, 1) * (np.abs(t) < 0.95))
    return Lumen(narrow, wide, shift, side, plaque, bulge, calcium, even)


def _speckle(s: Floats, lesion: Lesion) -> Floats:
    """0..1 along the course: the lumps of a calcified plaque, of uneven length."""
    phases = lesion.side_rad * np.array([1.0, 5.0, 11.0])
    waves = [np.sin(2 * np.pi * s / length + phase) for length, phase in zip((9.7, 5.3, 3.1), phases, strict=True)]
    return 0.5 + 0.27 * (waves[0] + waves[1] + 0.7 * waves[2])


def lumen_path(branch: Branch) -> Floats:
    """The middle of the open lumen, which is what a centreline tracker finds, (N, 3) mm."""
    lumen = lumen_along(branch)
    normals = course_normals(branch.path_N3)
    away = -(np.cos(lumen.side_N)[:, None] * normals[:, 0] + np.sin(lumen.side_N)[:, None] * normals[:, 1])
    return branch.path_N3 + gaussian_filter1d(lumen.shift_N, 3)[:, None] * away


def filling(branch: Branch) -> Floats:
    """Contrast along the path: a little less distally, much less behind an occlusion (collaterals)."""
    filling = np.linspace(1.0, 0.88, len(branch.path_N3))
    for lesion in branch.lesions:
        if lesion.percent == 100:
            behind = (np.arange(len(filling)) - branch.start) * STEP_MM > lesion.at_mm
            filling = np.where(behind, filling * 0.6, filling)
    return filling
