"""What iodine may fill besides a native coronary artery: aorta, left ventricle, coronary sinus, grafts, other arteries.

Aorta, ventricle, sinus and grafts lie where they belong around the heart (`anatomy`'s axes); the other territories are
centred on the isocentre, as an operator would have moved the table. Sizes are diameters in mm of adults: aorta after
Hiratzka et al., Circulation 2010;121:e266 (sinus 30-37, ascending 27-34, descending 23-27); iliac and femoral after
Pedersen et al., J Vasc Surg 1993;18:1 and Sandgren et al., J Vasc Surg 1999;29:503 (aorta 16-20, common iliac 9-12,
external iliac 7-10, common femoral 7-10); radial 2-3 after Yoo et al., Int J Cardiol 2005;101:421; renal 5-6 after
Aytac et al., J Ultrasound Med 2003;22:433; carotid after Krejza et al., Stroke 2006;37:1103 (common 6.3, internal
4.9); internal mammary 1.9-2.6, vein grafts 3-5. Courses are schematic. Knows nothing of pixels or of time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from angio_ray.phantom.anatomy import APEX, BASE, Artery, Tree, Vessel
from angio_ray.phantom.carm import Floats
from angio_ray.phantom.scene import Region

TerritoryName = Literal["femoral", "iliac", "radial", "renal", "cerebral", "mammary"]
TERRITORIES: tuple[TerritoryName, ...] = get_args(TerritoryName)

GraftKind = Literal["vein to LAD", "vein to OM", "vein to PDA", "mammary to LAD"]
GRAFTS: tuple[GraftKind, ...] = get_args(GraftKind)

STEP_MM = 1.0
"""Distance between centreline samples."""

# annulus, sinuses, ascending, arch, descending: the ostia of `anatomy`'s trees lie on the wall of the sinuses
AORTA_COURSE = np.array(
    [
        (1.5, 4.5, 19),
        (-2.5, 2, 30),
        (-7, 0, 45),
        (-11, 0, 61),
        (-10, 4, 78),
        (0, 14, 92),
        (11, 30, 96),
        (18, 44, 86),
        (20, 53, 64),
        (18, 57, 10),
        (14, 58, -60),
        (10, 58, -125),
    ],
    float,
)
_MEAN_OSTIA: dict[Artery, Floats] = {"LCA": np.array([10.7, 0.7, 31.5]), "RCA": np.array([-3.1, -11.2, 28.8])}
_AORTA_PROFILE = np.array(
    [(0, 11.5), (6, 14.0), (12, 16.0), (20, 14.5), (26, 13.5), (45, 14.5), (90, 13.0), (140, 11.5), (330, 10.5)]
)
"""Path from the annulus and radius, mm."""


@dataclass(frozen=True, kw_only=True)
class Territory:
    """Arteries away from the heart as an operator films them."""

    name: TerritoryName
    detail: str
    """Which part or variant: "right", "carotid bifurcation", "with a loop", ..."""
    vessels: tuple[Vessel, ...]
    """The first begins where the contrast comes in."""
    region: Region
    primary_deg: float
    secondary_deg: float
    catheter: Vessel
    """In flow order as others: its tip is the last sample."""


def course(
    control_K3: Floats | Sequence[Sequence[float]], *, step_mm: float = STEP_MM, round_mm: float = 0.0
) -> Floats:
    """Smooth curve through the control points, sampled evenly: (N, 3). `round_mm` rounds its bends off further."""
    control = np.asarray(control_K3, float)
    control = control[np.concatenate([[True], np.linalg.norm(np.diff(control, axis=0), axis=1) > 1e-3])]
    # knots by the root of the chord (centripetal): no overshoot where control points lie unevenly
    knots = np.concatenate([[0.0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(control, axis=0), axis=1)))])
    fine = CubicSpline(knots, control, bc_type="natural")(np.linspace(0, knots[-1], 40 * len(control)))
    points = evenly(fine, step_mm)
    return rounded(points, round_mm / step_mm) if round_mm else points


def evenly(points_N3: Floats, step_mm: float = STEP_MM) -> Floats:
    """The same curve with its samples that far apart."""
    along = path_mm(points_N3)
    even = np.linspace(0, along[-1], max(3, round(float(along[-1]) / step_mm) + 1))
    return np.stack([np.interp(even, along, points_N3[:, k]) for k in range(3)], axis=1)


def rounded(points_N3: Floats, sigma: float) -> Floats:
    """The curve with its bends rounded off by a Gaussian of so many samples; both ends stay."""
    pad = int(4 * sigma) + 2
    # continued by its own mirror image through each end point, which therefore does not move
    longer = np.pad(points_N3, ((pad, pad), (0, 0)), mode="reflect", reflect_type="odd")
    return np.asarray(gaussian_filter1d(longer, sigma, axis=0)[pad : pad + len(points_N3)])


def path_mm(points_N3: Floats) -> Floats:
    """Length along a curve at each of its samples, (N,)."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points_N3, axis=0), axis=1))])


def aorta(rng: np.random.Generator, trees: Mapping[Artery, Tree] | None = None) -> Vessel:
    """Root with its sinuses, ascending aorta, arch and descending aorta as one tube.

    With a patient's trees the root lies where their ostia are on its wall, else where they are on average.
    """
    control = AORTA_COURSE.copy()
    if trees:
        ostia = np.mean([tree.ostium - _MEAN_OSTIA[artery] for artery, tree in trees.items()], axis=0)
        control += np.interp(np.arange(len(control)), [3, 7], [1.0, 0.0])[:, None] * ostia
    control[3:] += rng.normal(0, 2.5, (len(control) - 3, 3))
    unfolded = rng.uniform(0, 10)  # an old aorta is long and wide: the arch lies higher and farther left
    control[4:9] += unfolded * np.array([[-0.4, 0, 0.3], [0, 0, 0.9], [0.4, 0, 1.0], [0.7, 0, 0.8], [0.6, 0, 0.2]])
    points = course(control, step_mm=1.5, round_mm=5.0)
    along = path_mm(points)
    radius = np.interp(along, _AORTA_PROFILE[:, 0], _AORTA_PROFILE[:, 1]) * rng.uniform(0.9, 1.12)
    radius = gaussian_filter1d(radius, 2.0, mode="nearest")
    radius[along > 24] *= 1 + 0.012 * unfolded * np.exp(-(((along[along > 24] - 60) / 45) ** 2))
    moves = np.interp(along, [0, 30, 70, 110], [0.6, 0.4, 0.12, 0.0])
    return Vessel(name="aorta", points_N3=points, radius_N=radius, distance_N=along, moves_N=moves)


def arch_branches(aorta: Vessel, rng: np.random.Generator) -> tuple[Vessel, ...]:
    """Brachiocephalic trunk, left carotid and left subclavian, as an injection into the arch fills them."""
    top = int(np.argmax(aorta.points_N3[:, 2]))
    plans = (
        ("brachiocephalic", -16, 11.5, ((-8, -3, 18), (-20, -4, 36), (-26, -2, 55), (-40, 0, 66))),
        ("left carotid", -2, 7.0, ((1, -4, 22), (6, -6, 50), (8, -4, 80))),
        ("left subclavian", 9, 9.5, ((4, 0, 18), (14, -2, 36), (34, -6, 48), (58, -6, 42))),
    )
    found = []
    for name, offset, diameter, way in plans:
        at = int(np.clip(top + offset + rng.integers(-2, 3), 0, len(aorta.points_N3) - 1))
        start = aorta.points_N3[at]
        control = np.vstack([start, start + np.array(way, float) + rng.normal(0, 1.5, (len(way), 3))])
        width = diameter * rng.uniform(0.9, 1.1)
        branch = _tube(name, course(control, step_mm=1.5), (width * 1.1, width * 0.9), start_mm=aorta.distance_N[at])
        found.append(replace(branch, parent=aorta.name, moves_N=np.zeros(len(branch.points_N3))))
    return tuple(found)


def ventricle(rng: np.random.Generator) -> Vessel:
    """The left ventricle's cavity at end-diastole: outflow at the valve, widest at a third, round apex."""
    # samples gather at the apex, where the outline turns within a few mm
    share = 0.06 + 0.94 * np.sin(np.linspace(0, np.pi / 2, 70))
    axis = APEX - BASE
    length = rng.uniform(0.86, 0.95)
    points = BASE + share[:, None] * axis * length
    side = np.cross(axis, [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side)
    below = np.cross(axis, side)
    below *= -np.sign(below[2]) / np.linalg.norm(below)
    bend = np.sin(share * np.pi)[:, None]
    points = points + bend * (below * rng.uniform(2, 7) + side * rng.normal(0, 2))
    half_width = rng.uniform(21.5, 28)
    widest = rng.uniform(0.3, 0.42)
    body = np.where(
        share < widest,
        1
        - (1 - 0.5) * np.clip((widest - share) / widest, 0, 1) ** 1.8,  # the outflow tract is half as wide as the body
        np.sqrt(np.clip(1 - ((share - widest) / (1 - widest)) ** 2, 0.0, 1)) ** 0.9,
    )
    along = path_mm(points)
    # trabeculae and the papillary muscles notch the outline in the lower half
    notch = rng.uniform(0.05, 0.12) * np.exp(-(((share - rng.uniform(0.55, 0.68)) / 0.06) ** 2))
    ripple = 0.018 * np.sin(along / rng.uniform(1.6, 2.4) + rng.uniform(0, 6)) * np.clip((share - 0.35) * 4, 0, 1)
    radius = np.maximum(half_width * body * (1 - notch + ripple), 0.6)
    pigtail_at = 0.5 * along[-1]
    return Vessel(name="LV", points_N3=points, radius_N=radius, distance_N=np.abs(along - pigtail_at))


def coronary_sinus(rng: np.random.Generator) -> Vessel:
    """Great cardiac vein and coronary sinus: along the back of the atrioventricular groove to the right atrium."""
    control = np.array(
        [
            (47, -30, -2),
            (42, -20, 14),
            (44, 0, 20),
            (46, 18, 14),
            (43, 32, 2),
            (32, 40, -10),
            (16, 38, -19),
            (0, 30, -24),
            (-13, 18, -25),
        ],
        float,
    )
    control += rng.normal(0, 1.2, control.shape)
    points = course(control)
    along = path_mm(points)
    mouth = rng.uniform(7.0, 10.0)
    width = np.interp(along / along[-1], [0, 0.35, 0.6, 0.85, 1.0], [2.2, 3.6, 0.62 * mouth, 0.9 * mouth, mouth])
    width = gaussian_filter1d(width, 6.0, mode="nearest") * (1 + 0.04 * np.sin(along / 5.0 + rng.uniform(0, 6)))
    return Vessel(name="coronary sinus", points_N3=points, radius_N=width / 2, distance_N=along, layer=1)


def grafts(rng: np.random.Generator, trees: Mapping[Artery, Tree], kind: GraftKind | None = None) -> tuple[Vessel, ...]:
    """A bypass graft, first, and the native arteries that it fills beyond (and a little before) its anastomosis.

    Native pieces are named "<graft>:<segment>", so that they never clash with the tree, which stays in the picture
    without contrast.
    """
    able = [k for k in GRAFTS if _graft_target(k, trees) is not None]
    chosen = kind if kind is not None else able[rng.choice(len(able), p=_shares(able))]
    found = _graft_target(chosen, trees)
    if found is None:
        raise ValueError(f"no segment for a graft: {chosen}")
    tree, native = found
    low, high = (0.05, 0.3) if chosen == "vein to PDA" else (0.4, 0.62)
    at = int(rng.uniform(low, high) * (len(native.points_N3) - 1))
    body = _graft_body(chosen, native, at, rng)
    return (body, *_native_beyond(body, tree, native, at, rng))


def territory(name: TerritoryName, rng: np.random.Generator) -> Territory:
    """Arteries of another part of the body, with the catheter or sheath that fills them."""
    return {
        "femoral": _femoral,
        "iliac": _iliac,
        "radial": _radial,
        "renal": _renal,
        "cerebral": _cerebral,
        "mammary": _mammary,
    }[name](rng)


# ---- tubes ----------------------------------------------------------------------------------------------------------


def _tube(
    name: str,
    points_N3: Floats,
    diameters_mm: Sequence[float],
    *,
    start_mm: float = 0.0,
    layer: int = 0,
    parent: str | None = None,
) -> Vessel:
    """A vessel whose diameter runs through the given values, evenly spaced along it."""
    along = path_mm(points_N3)
    width = np.interp(along, np.linspace(0, along[-1], len(diameters_mm)), diameters_mm)
    return Vessel(
        name=name, points_N3=points_N3, radius_N=width / 2, distance_N=along + start_mm, layer=layer, parent=parent
    )


def _catheter(control: Sequence[Sequence[float]], *, french: float = 5.0, round_mm: float = 2.0) -> Vessel:
    points = course(control, round_mm=round_mm)
    return replace(_tube("catheter", points, (french / 3,)), moves_N=np.zeros(len(points)))


def _swaying(points_N3: Floats, amplitude_mm: float, wavelength_mm: float, rng: np.random.Generator) -> Floats:
    """The curve with smooth irregular bends; its beginning stays where it is."""
    along = path_mm(points_N3)
    count = max(4, int(along[-1] / wavelength_mm * 2.5) + 2)
    knots = np.linspace(0, along[-1], count)
    bends = CubicSpline(knots, rng.normal(0, amplitude_mm, (count, 3)))(along)
    return points_N3 + bends * np.clip(along / (0.8 * wavelength_mm), 0, 1)[:, None] ** 1.5


class _Bush:
    """An arterial tree under construction: names, distances and parents are kept right as branches are added."""

    def __init__(self, rng: np.random.Generator, mirror: float = 1.0) -> None:
        self.rng = rng
        self.mirror = np.array([mirror, 1.0, 1.0])
        self.vessels: dict[str, Vessel] = {}

    def trunk(
        self, name: str, control: Sequence[Sequence[float]], diameters: Sequence[float], sway: float = 0.6
    ) -> Vessel:
        """Where the contrast comes in."""
        bent = np.array(control, float) * self.mirror
        points = rounded(_swaying(course(bent), sway, 25.0, self.rng), 0.7 * diameters[0])
        return self._keep(_tube(name, points, [d * self.rng.uniform(0.97, 1.03) for d in diameters]))

    def branch(
        self,
        name: str,
        mother: str,
        where: float,
        control: Sequence[Sequence[float]],
        diameters: Sequence[float],
        *,
        sway: float = 0.8,
        wavelength: float = 18.0,
        layer: int = 0,
    ) -> Vessel:
        """A branch that leaves its mother at a share (0..1) of her samples and runs through the control points."""
        parent = self.vessels[mother]
        at = min(len(parent.points_N3) - 1, max(0, round(where * (len(parent.points_N3) - 1))))
        noise = self.rng.normal(0, 0.7 * sway + 0.4, (len(control), 3))
        bent = np.vstack([parent.points_N3[at], np.array(control, float) * self.mirror + noise])
        points = rounded(_swaying(course(bent), sway, wavelength, self.rng), max(1.8, 0.7 * diameters[0]))
        points = evenly(points)
        factor = self.rng.uniform(0.92, 1.08)
        # a branch is never wider than the vessel it leaves
        widths = [min(d * factor, 2 * float(parent.radius_N[at])) for d in diameters]
        return self._keep(
            _tube(name, points, widths, start_mm=float(parent.distance_N[at]), layer=layer, parent=mother)
        )

    def twigs(
        self,
        mother: str,
        spacing_mm: float,
        length_mm: tuple[float, float],
        diameter_mm: float,
        *,
        outward: Floats | None = None,
        depth: int = 1,
        begin: float = 0.1,
    ) -> None:
        """Small wavy side branches, themselves branching `depth` times; `outward` is a direction that they prefer."""
        parent = self.vessels[mother]
        length = parent.distance_N[-1] - parent.distance_N[0]
        for i in range(self.rng.poisson(max(0.0, (1 - begin) * length / spacing_mm))):
            at = int(self.rng.uniform(begin, 0.98) * (len(parent.points_N3) - 1))
            way = self._away(parent, at, outward)
            points = evenly(self._wander(parent.points_N3[at], way, float(self.rng.uniform(*length_mm))), 1.5)
            width = min(diameter_mm * self.rng.uniform(0.7, 1.15), 1.4 * float(parent.radius_N[at]))
            name = f"{mother}-{i}"
            start = float(parent.distance_N[at])
            self._keep(
                _tube(
                    name, points, (width, 0.75 * width, min(0.35, 0.6 * width)), start_mm=start, layer=1, parent=mother
                )
            )
            if depth > 1:
                shorter = (0.4 * length_mm[0], 0.6 * length_mm[1])
                self.twigs(name, 0.8 * spacing_mm, shorter, 0.6 * width, outward=outward, depth=depth - 1)

    def _away(self, parent: Vessel, at: int, outward: Floats | None) -> Floats:
        """A direction that leaves the vessel forwards and aside."""
        ahead = parent.points_N3[min(at + 2, len(parent.points_N3) - 1)] - parent.points_N3[max(at - 2, 0)]
        ahead = ahead / (np.linalg.norm(ahead) + 1e-9)
        aside = self.rng.normal(0, 1, 3)
        if outward is not None:
            aside = aside * 0.5 + outward * 1.5
        aside -= (aside @ ahead) * ahead
        return _unit(self.rng.uniform(0.4, 1.1) * ahead + _unit(aside))

    def _wander(self, start: Floats, way: Floats, length_mm: float) -> Floats:
        """A course that keeps its direction on the whole and sways on the way."""
        count = max(4, int(length_mm / STEP_MM))
        knots = np.linspace(0, 1, max(4, int(length_mm / 6) + 2))
        drift = CubicSpline(knots, self.rng.normal(0, 0.45, (len(knots), 3)))(np.linspace(0, 1, count))
        steps = way + drift + np.linspace(0, 1, count)[:, None] * self.rng.normal(0, 0.35, 3)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        return rounded(np.vstack([start, start + np.cumsum(steps * length_mm / count, axis=0)]), 1.2)

    def _keep(self, vessel: Vessel) -> Vessel:
        self.vessels[vessel.name] = replace(vessel, moves_N=np.zeros(len(vessel.points_N3)))
        return vessel


def _mm(x: float, y: float, z: float) -> Floats:
    return np.array([x, y, z], float)


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / (np.linalg.norm(vector) + 1e-12))


# ---- grafts ---------------------------------------------------------------------------------------------------------

_GRAFT_WAYS: dict[GraftKind, tuple[tuple[float, float, float], ...]] = {
    # from the front of the ascending aorta over the pulmonary artery
    "vein to LAD": ((-8, -14, 66), (2, -34, 74), (18, -50, 62), (30, -54, 40)),
    "vein to OM": ((-6, -13, 70), (12, -32, 82), (40, -34, 72), (60, -14, 52), (66, 6, 30)),
    # round the right atrium to the underside
    "vein to PDA": ((-20, -10, 60), (-40, -20, 62), (-58, -24, 36), (-60, -16, 0), (-42, 2, -32)),
    # from the left subclavian down behind the ribs, beside the sternum
    "mammary to LAD": ((44, 4, 120), (36, -30, 112), (30, -56, 98), (29, -68, 74), (36, -60, 40)),
}
_GRAFT_SHARES: dict[GraftKind, float] = {
    "vein to LAD": 0.2,
    "vein to OM": 0.25,
    "vein to PDA": 0.25,
    "mammary to LAD": 0.3,
}
_TARGETS: dict[GraftKind, tuple[str, ...]] = {
    "vein to LAD": ("LAD",),
    "mammary to LAD": ("LAD",),
    "vein to OM": ("OM1", "OM2", "OM3"),
    "vein to PDA": ("PDA", "PDA-RCA", "PDA-LCX"),
}


def _shares(kinds: Sequence[GraftKind]) -> Floats:
    weights = np.array([_GRAFT_SHARES[k] for k in kinds])
    return weights / weights.sum()


def _graft_target(kind: GraftKind, trees: Mapping[Artery, Tree]) -> tuple[Tree, Vessel] | None:
    """The native artery that a graft of this kind goes to, and its tree."""
    for name in _TARGETS[kind]:
        for tree in trees.values():
            for vessel in tree.vessels:
                if vessel.name == name and vessel.radius_N[len(vessel.radius_N) // 2] > 0.45:
                    return tree, vessel
    return None


def _graft_body(kind: GraftKind, native: Vessel, at: int, rng: np.random.Generator) -> Vessel:
    """The conduit itself, from its mouth to the native artery, which it reaches at a slant."""
    way = np.array(_GRAFT_WAYS[kind], float)
    way[1:] += rng.normal(0, 3.0, (len(way) - 1, 3))
    end = native.points_N3[at]
    before = native.points_N3[max(0, at - 12)] - native.points_N3[min(at + 12, len(native.points_N3) - 1)]
    lifted = _unit(end - (BASE + APEX) / 2)  # off the heart's surface
    slant = end + 15 * _unit(_unit(before) + 1.4 * _unit(way[-1] - end) + 0.3 * lifted)
    way = np.vstack([way[:2], way[2:][np.linalg.norm(way[2:] - end, axis=1) > 32]])
    points = course(np.vstack([way, slant, end]), round_mm=6.0)
    mammary = kind == "mammary to LAD"
    points = rounded(_swaying(points, 0.5 if mammary else 1.0, 30.0, rng), 4.0)
    points += np.linspace(0, 1, len(points))[:, None] ** 6 * (end - points[-1])  # meets the artery again
    along = path_mm(points)
    if mammary:
        width = np.interp(along, [0, along[-1]], rng.uniform(0.9, 1.15) * np.array([2.7, 1.9]))
    else:
        width = rng.uniform(3.2, 5.0) * np.interp(along / along[-1], [0, 0.06, 0.85, 1.0], [0.85, 1.0, 0.95, 0.7])
        for valve in (
            rng.uniform(0.15, 0.9, rng.integers(1, 5)) * along[-1]
        ):  # the sinus behind each of the vein's valves
            width *= 1 + rng.uniform(0.08, 0.22) * np.exp(-(((along - valve) / 3.0) ** 2))
    moves = np.interp(
        along / along[-1], [0, 0.45, 0.8, 1.0], [0.0 if mammary else 0.2, 0.1 if mammary else 0.35, 0.7, 1.0]
    )
    name = "LIMA" if mammary else "SVG"
    return Vessel(name=name, points_N3=points, radius_N=width / 2, distance_N=along, layer=1, moves_N=moves)


def _native_beyond(body: Vessel, tree: Tree, native: Vessel, at: int, rng: np.random.Generator) -> tuple[Vessel, ...]:
    """The native artery beyond the anastomosis with all that leaves it, and a stretch filled backwards."""
    start = float(body.distance_N[-1])
    shift = start - float(native.distance_N[at])
    beyond = _piece(native, slice(at, None), f"{body.name}:{native.name}", body.name, shift)
    found = {native.name: beyond}
    back = at - int(rng.uniform(8, 30) / max(0.3, float(np.diff(native.distance_N).mean())))
    pieces = [beyond]
    if back < at - 3:
        backwards = slice(at, max(back, 0), -1)
        piece = _piece(native, backwards, f"{body.name}:{native.name} backwards", body.name, 0.0)
        along = path_mm(piece.points_N3)
        pieces.append(
            replace(piece, distance_N=start + along, supply_N=np.clip(1.3 - along / max(along[-1], 1.0), 0.0, 1.0))
        )
    for vessel in _descendants(tree, native, at):
        mother = found.get(vessel.parent or "", beyond)
        part = _piece(vessel, slice(None), f"{body.name}:{vessel.name}", mother.name, shift)
        found[vessel.name] = part
        pieces.append(part)
    return tuple(pieces)


def _piece(vessel: Vessel, part: slice, name: str, parent: str, shift_mm: float) -> Vessel:
    """Part of a vessel as a vessel of its own, later by a distance."""

    def cut(values_N: Floats | None) -> Floats | None:
        return None if values_N is None else values_N[part]

    return replace(
        vessel,
        name=name,
        parent=parent,
        points_N3=vessel.points_N3[part],
        radius_N=vessel.radius_N[part],
        distance_N=vessel.distance_N[part] + shift_mm,
        healthy_radius_N=cut(vessel.healthy_radius_N),
        # an occlusion upstream, which the graft goes round, no longer counts
        supply_N=None,
        delay_N=None,
        moves_N=cut(vessel.moves_N),
    )


def _descendants(tree: Tree, native: Vessel, at: int) -> list[Vessel]:
    """Branches that leave the native artery beyond sample `at`, theirs after them."""
    found: list[Vessel] = []
    reached = {native.name: native.points_N3[at:]}
    for _ in tree.vessels:  # as many rounds as there could be generations
        new = [v for v in tree.vessels if v.name not in reached and _leaves(v, reached)]
        if not new:
            break
        found += new
        reached |= {v.name: v.points_N3 for v in new}
    return found


def _leaves(vessel: Vessel, reached: Mapping[str, Floats]) -> bool:
    points = reached.get(vessel.parent) if vessel.parent else None
    return points is not None and float(np.linalg.norm(points - vessel.points_N3[0], axis=1).min()) < 1.5


# ---- other parts of the body, patient's left side drawn, mirrored for the right --------------------------------------


def _side(rng: np.random.Generator) -> tuple[float, str]:
    return (-1.0, "right") if rng.random() < 0.6 else (1.0, "left")


def _femoral(rng: np.random.Generator) -> Territory:
    """Common femoral artery with its division, filled through the sheath: the check of the puncture."""
    side, detail = _side(rng)
    bush = _Bush(rng, side)
    low = rng.uniform(-16, 0)  # the bifurcation's height against the femoral head varies
    bush.trunk(
        "external iliac",
        ((-16, 22, 82), (-9, 6, 55), (-2, -6, 28), (1, -8, low + 12), (1, -7, low)),
        (8.5, 8.2, 8.6, 8.8),
        0.9,
    )
    bush.branch(
        "SFA", "external iliac", 1.0, ((-1, -8, low - 22), (-6, -8, low - 50), (-11, -3, low - 85)), (6.6, 6.0, 5.6)
    )
    bush.branch(
        "profunda",
        "external iliac",
        0.99,
        ((7, 4, low - 14), (12, 12, low - 34), (10, 20, low - 60), (7, 24, low - 88)),
        (6.4, 5.0, 3.4, 2.4),
        layer=1,
    )
    bush.branch(
        "lateral circumflex",
        "profunda",
        0.22,
        ((20, 6, low - 22), (34, 4, low - 26), (46, 4, low - 22)),
        (3.8, 3.0, 1.6),
        sway=1.2,
    )
    bush.branch(
        "descending branch",
        "lateral circumflex",
        0.35,
        ((30, 2, low - 46), (32, 6, low - 84)),
        (2.6, 1.5),
        sway=1.4,
        layer=1,
    )
    bush.branch(
        "medial circumflex",
        "profunda",
        0.12,
        ((-6, 10, low - 18), (-20, 18, low - 20), (-30, 22, low - 12)),
        (3.2, 1.4),
        sway=1.3,
    )
    bush.branch(
        "inferior epigastric",
        "external iliac",
        0.55,
        ((-10, -14, 26), (-20, -22, 44), (-26, -26, 80)),
        (2.3, 1.6, 1.0),
        sway=1.5,
        layer=1,
    )
    bush.branch(
        "deep circumflex iliac",
        "external iliac",
        0.53,
        ((10, -8, 44), (26, -6, 58), (44, 0, 68)),
        (2.0, 1.0),
        sway=1.5,
        layer=1,
    )
    bush.branch(
        "pudendal", "external iliac", 0.93, ((-12, -14, low - 2), (-30, -16, low + 4)), (1.7, 0.7), sway=1.3, layer=1
    )
    for name in ("SFA", "profunda", "lateral circumflex", "medial circumflex", "descending branch"):
        bush.twigs(name, 15.0, (14, 40), 1.4, depth=2)
    puncture = float(rng.uniform(low + 4, low + 26))
    iliac = bush.vessels["external iliac"].points_N3
    inside = iliac[int(np.argmin(np.abs(iliac[:, 2] - puncture)))]
    end = iliac[int(np.argmin(np.abs(iliac[:, 2] - min(78.0, puncture + rng.uniform(35, 65)))))]
    skin = inside + np.array([side * rng.uniform(-4, 8), -32, -38])
    between = (inside + end) / 2 + np.array([side * 1.0, 1.0, 0.0])
    sheath = _catheter((skin * 1.0 + (skin - inside) * 0.8, skin, inside, between, end), french=7.8)  # 6 F inside
    return _filmed("femoral", detail, bush, "pelvis", side * rng.uniform(10, 38), rng.normal(0, 4), sheath, rng)


def _iliac(rng: np.random.Generator) -> Territory:
    """Aortic bifurcation with both common, external and internal iliac arteries, filled from a pigtail."""
    bush = _Bush(rng)
    high = rng.uniform(18, 36)
    width = rng.uniform(15, 18.5)
    bush.trunk(
        "abdominal aorta",
        ((2, 6, 100), (1, 4, 70), (2, 6, high + 12), (2, 8, high)),
        (width, width * 0.97, width * 0.94, width * 0.78),
        0.8,
    )
    kinked = rng.uniform(0.5, 2.6)
    for side, name in ((-1.0, "right"), (1.0, "left")):
        bush.mirror = np.array([side, 1.0, 1.0])
        common, external, internal = f"{name} common iliac", f"{name} external iliac", f"{name} internal iliac"
        bush.branch(
            common,
            "abdominal aorta",
            1.0,
            ((9, 8, high - 11), (20, 14, high - 28), (29, 20, high - 44)),
            (10.5, 9.6, 9.2),
            sway=0.5 * kinked,
            wavelength=28,
        )
        bush.branch(
            external,
            common,
            1.0,
            ((36, 18, high - 62), (44, 4, high - 86), (52, -16, high - 112)),
            (8.0, 7.6, 7.4),
            sway=kinked,
            wavelength=32,
        )
        bush.branch(internal, common, 0.98, ((29, 34, high - 54), (31, 48, high - 68)), (6.4, 5.4), sway=0.6, layer=1)
        bush.branch(
            f"{name} superior gluteal",
            internal,
            0.9,
            ((40, 60, high - 66), (56, 66, high - 60), (70, 66, high - 48)),
            (4.2, 3.0, 1.6),
            layer=1,
        )
        bush.branch(
            f"{name} inferior gluteal",
            internal,
            1.0,
            ((30, 56, high - 84), (36, 62, high - 106), (40, 66, high - 130)),
            (3.8, 2.4, 1.4),
            layer=1,
        )
        bush.branch(
            f"{name} obturator",
            internal,
            0.8,
            ((24, 40, high - 76), (22, 22, high - 100), (26, 8, high - 116)),
            (2.4, 1.4),
            layer=1,
        )
        bush.branch(
            f"{name} iliolumbar", internal, 0.3, ((34, 40, high - 34), (50, 36, high - 22)), (2.2, 1.0), layer=1
        )
        for where in (0.25, 0.55, 0.85):
            z = float(np.interp(where, [0, 1], [100, high]))
            bush.branch(
                f"{name} lumbar {where}",
                "abdominal aorta",
                where,
                ((12, 24, z - 2), (24, 36, z - 8), (44, 40, z - 16)),
                (2.2, 1.6, 0.8),
                layer=1,
            )
        for twiggy in (
            f"{name} superior gluteal",
            f"{name} inferior gluteal",
            f"{name} obturator",
            f"{name} lumbar 0.85",
        ):
            bush.twigs(twiggy, 13.0, (12, 32), 1.3, depth=2)
    bush.mirror = np.ones(3)
    bush.branch(
        "median sacral",
        "abdominal aorta",
        0.98,
        ((1, 20, high - 20), (3, 30, high - 60)),
        (1.6, 0.8),
        sway=1.4,
        layer=1,
    )
    bush.branch(
        "inferior mesenteric",
        "abdominal aorta",
        0.55,
        ((8, -8, 54), (17, -12, 36), (22, -10, 6), (16, 0, -34)),
        (3.6, 3.0, 1.6),
        layer=1,
    )
    bush.twigs("inferior mesenteric", 12.0, (20, 45), 1.6, depth=2, outward=np.array([1.0, -0.2, -0.2]))
    from_side = "right" if rng.random() < 0.7 else "left"
    up = [
        *bush.vessels[f"{from_side} external iliac"].points_N3[::-18],
        *bush.vessels[f"{from_side} common iliac"].points_N3[::-14],
    ]
    catheter = _catheter([*up, (1, 7, high + 14), (0, 5, high + 40), *_curl(np.array([2.0, 5.0, high + 58]), 6.0)])
    return _filmed("iliac", f"from the {from_side}", bush, "pelvis", rng.normal(0, 8), rng.normal(0, 4), catheter, rng)


def _radial(rng: np.random.Generator) -> Territory:
    """Arteries of the elbow and forearm: brachial, radial, ulnar, interosseous; at times a radial loop."""
    side, _ = _side(rng)
    bush = _Bush(rng, side)
    detail = ("plain", "with a loop", "tortuous", "high origin")[rng.choice(4, p=[0.4, 0.25, 0.2, 0.15])]
    sway = 2.6 if detail == "tortuous" else 0.7
    bush.trunk("brachial", ((-8, 4, 92), (-5, 0, 66), (-1, -4, 46), (1, -5, 34)), (4.8, 4.5, 4.3), sway)
    way = [(6, -8, 24), (13, -9, 6), (20, -7, -26), (21, -6, -60), (19, -8, -95)]
    if detail == "with a loop":
        # down, round and down again
        angle = np.linspace(0.0, 0.95, 8)[:, None] * 2 * np.pi
        radius = rng.uniform(6, 10)
        ring = np.hstack([-np.cos(angle), 0.12 * angle, -np.sin(angle)])
        loop = np.array([[7.0 + radius, -8.0, 10.0]]) + radius * ring
        way = [(6, -8, 22), *loop.tolist(), *way[2:]]
    origin = 0.35 if detail == "high origin" else 1.0
    if detail == "high origin":
        way = [(4, -9, 66), (8, -9, 40), *way[1:]]
    bush.branch("radial", "brachial", origin, way, (3.0, 2.7, 2.5, 2.3), sway=sway * 0.8, wavelength=24)
    bush.branch(
        "ulnar",
        "brachial",
        1.0,
        ((-4, -2, 22), (-14, 2, 4), (-21, 2, -30), (-20, -3, -64), (-17, -5, -95)),
        (3.3, 2.9, 2.6, 2.4),
        sway=sway * 0.7,
        wavelength=24,
    )
    bush.branch(
        "interosseous", "ulnar", 0.16, ((-6, 8, 2), (-2, 11, -30), (0, 10, -70), (1, 9, -92)), (2.2, 1.5, 0.9), layer=1
    )
    bush.branch(
        "radial recurrent", "radial", 0.1, ((16, -4, 22), (18, 0, 42), (12, 4, 66)), (1.6, 0.8), sway=1.6, layer=1
    )
    bush.branch(
        "ulnar recurrent", "ulnar", 0.12, ((-16, 6, 18), (-22, 8, 40), (-16, 8, 62)), (1.6, 0.8), sway=1.5, layer=1
    )
    bush.branch(
        "collateral", "brachial", 0.15, ((-16, 8, 70), (-20, 10, 48), (-22, 10, 34)), (1.4, 0.8), sway=1.4, layer=1
    )
    for name, spacing in (("radial", 16.0), ("ulnar", 14.0), ("interosseous", 12.0), ("brachial", 20.0)):
        bush.twigs(name, spacing, (10, 30), 0.95, depth=2)
    # the wire's way from the wrist: up the radial artery into the brachial, whose upper end gets the contrast
    up = [*bush.vessels["radial"].points_N3[::-9]]
    joint = int(origin * (len(bush.vessels["brachial"].points_N3) - 1))
    up += [*bush.vessels["brachial"].points_N3[joint:6:-9]]
    catheter = _catheter(up, round_mm=5.0)
    return _filmed("radial", detail, bush, "forearm", rng.normal(0, 10), rng.normal(0, 4), catheter, rng)


_KIDNEY_HALF = np.array([27.0, 20.0, 54.0])


def _renal(rng: np.random.Generator) -> Territory:
    """One renal artery with its segmental, interlobar and arcuate branches inside the kidney's outline."""
    side, detail = _side(rng)
    bush = _Bush(rng, side)
    lean = np.deg2rad(rng.uniform(5, 18))
    centre = np.array([18.0, 14.0, rng.normal(0, 4)])

    def inside(share: float, up: float, back: float) -> list[float]:
        """A point of the kidney: share of the way to its surface, towards the pole (up, -90..90) and back (degrees)."""
        u, b = np.deg2rad([up, back])
        local = share * _KIDNEY_HALF * np.array([np.cos(u) * np.cos(b), np.cos(u) * np.sin(b), np.sin(u)])
        x, y, z = local
        return list(centre + _mm(x * np.cos(lean) - z * np.sin(lean), y, z * np.cos(lean) + x * np.sin(lean)))

    ostium_z = float(rng.uniform(4, 20))
    bush.trunk(
        "renal",
        ((-50, -6, ostium_z), (-36, 0, ostium_z - 6), (-22, 8, 0.5 * ostium_z - 4), (-10, 12, 0)),
        (6.0, 5.6, 5.2, 4.0),
        1.0,
    )
    poles = ((70, 0.72), (36, 0.9), (4, 1.0), (-30, 0.95), (-66, 0.82))
    for i, (up, where) in enumerate(poles):
        back = rng.choice([-1, 1]) * rng.uniform(10, 40)
        first = inside(0.28, up * 0.8, back * 0.5)
        name = f"segmental {i}"
        bush.branch(
            name,
            "renal",
            where,
            (first, inside(0.55, up + rng.normal(0, 5), back)),
            (3.6, 2.6, 2.0),
            sway=0.9,
            wavelength=14,
            layer=i % 2,
        )
        for j, turn in enumerate((-16, 0, 15)):
            lobar = f"{name}.{j}"
            to = up + turn + rng.normal(0, 3)
            away = back + rng.normal(0, 35)
            bush.branch(
                lobar,
                name,
                (0.55, 1.0, 0.8)[j],
                (inside(0.68, to, away), inside(0.84, to + rng.normal(0, 3), away)),
                (1.9, 1.3, 1.0),
                sway=0.6,
                wavelength=10,
                layer=j % 2,
            )
            bush.twigs(lobar, 7.0, (5, 12), 0.6)
            for k, along in enumerate((-9, 9)):
                arcuate = f"{lobar}.{k}"
                bush.branch(
                    arcuate,
                    lobar,
                    1.0,
                    (inside(0.87, to + along * 0.5, away), inside(0.86, to + along, away + rng.normal(0, 10))),
                    (1.0, 0.6),
                    sway=0.3,
                    wavelength=8,
                    layer=k,
                )
                outward = _unit((np.array(inside(1.0, to, away)) - centre) * bush.mirror)
                bush.twigs(arcuate, 2.6, (4, 8), 0.5, outward=outward, begin=0.0)
    bush.branch("adrenal", "renal", 0.35, ((-26, 4, 22), (-18, 8, 42)), (1.4, 0.6), sway=1.2, layer=1)
    bush.branch("ureteric", "renal", 0.75, ((-14, 10, -18), (-18, 8, -44)), (1.1, 0.5), sway=1.4, layer=1)
    mouth = bush.vessels["renal"].points_N3[0]
    shaft = mouth + np.array([-side * 9.0, 1.0, -10.0])
    catheter = _catheter(
        (
            shaft + _mm(0, 4, -110),
            shaft + _mm(side * 1.0, 3, -60),
            shaft + _mm(-side * 3, 1, 2),
            mouth + _mm(-side * 8, 0, 8),
            mouth + _mm(-side * 2, 0, 3.0),
            mouth + _mm(side * 3.0, 0, 0),
        ),
        round_mm=3.0,
    )
    return _filmed("renal", detail, bush, "abdomen", side * rng.uniform(-5, 20), rng.normal(0, 5), catheter, rng)


def _cerebral(rng: np.random.Generator) -> Territory:
    return _carotid_bifurcation(rng) if rng.random() < 0.45 else _carotid_siphon(rng)


def _carotid_bifurcation(rng: np.random.Generator) -> Territory:
    """Common carotid artery with its division and the external carotid's branches."""
    side, detail = _side(rng)
    bush = _Bush(rng, side)
    fork = float(rng.uniform(-28, -8))
    bush.trunk("CCA", ((-3, 8, -92), (-1, 5, -62), (0, 4, fork - 12), (0, 4, fork)), (6.8, 6.6, 6.8, 7.4), 0.9)
    bush.branch(
        "ICA",
        "CCA",
        1.0,
        ((4, 10, fork + 12), (5, 14, fork + 34), (2, 13, fork + 62), (-3, 11, fork + 100)),
        (7.6, 6.4, 5.0, 4.8, 4.6),
        sway=rng.uniform(0.6, 2.6),
        wavelength=30,
    )
    bush.branch(
        "ECA",
        "CCA",
        0.99,
        ((-3, -2, fork + 14), (-3, -5, fork + 34), (4, 0, fork + 62), (10, 6, fork + 84)),
        (5.2, 4.4, 3.6, 2.6),
        sway=0.9,
        layer=1,
    )
    for name, where, way, widths in (
        ("superior thyroid", 0.06, ((-8, -12, fork + 6), (-12, -20, fork - 12), (-10, -22, fork - 38)), (2.2, 1.2)),
        ("lingual", 0.2, ((-10, -16, fork + 20), (-14, -30, fork + 18), (-18, -46, fork + 26)), (2.6, 1.4)),
        (
            "facial",
            0.3,
            ((-4, -16, fork + 32), (2, -28, fork + 28), (6, -38, fork + 40), (0, -54, fork + 62)),
            (2.8, 1.9, 1.2),
        ),
        ("occipital", 0.32, ((2, 12, fork + 36), (4, 30, fork + 50), (-2, 52, fork + 58)), (2.4, 1.2)),
        ("maxillary", 0.85, ((4, -8, fork + 80), (-2, -26, fork + 84), (-8, -42, fork + 88)), (3.0, 1.8)),
        ("superficial temporal", 0.95, ((14, 4, fork + 100), (15, -2, fork + 124)), (2.2, 1.4)),
    ):
        bush.branch(name, "ECA", where, way, widths, sway=1.5, wavelength=14, layer=1)
        bush.twigs(name, 11.0, (10, 28), 1.2, depth=2)
    catheter = _catheter(((-6, 14, -150), (-4, 10, -110), (-2, 7, -88), bush.vessels["CCA"].points_N3[18]))
    angle = side * rng.uniform(20, 75)
    return _filmed("cerebral", f"carotid bifurcation, {detail}", bush, "neck", angle, rng.normal(0, 4), catheter, rng)


def _carotid_siphon(rng: np.random.Generator) -> Territory:
    """Internal carotid artery with its siphon, anterior and middle cerebral arteries."""
    side, detail = _side(rng)
    bush = _Bush(rng, side)
    siphon = (
        (0, 14, -96),
        (1, 14, -76),
        (0, 13, -58),
        (-3, 11, -50),
        (-10, 4, -45),
        (-14, 0, -38),
        (-15, -6, -33),
        (-15, -16, -32),
        (-15, -23, -28),
        (-15, -22, -21),
        (-14, -14, -18),
        (-12, -10, -13),
    )
    bush.trunk("ICA", siphon, (5.2, 5.0, 4.8, 4.4, 3.8), 0.4)
    bush.branch("ophthalmic", "ICA", 0.88, ((-13, -30, -22), (-11, -44, -24)), (1.4, 0.8), sway=0.8, layer=1)
    bush.branch(
        "posterior communicating",
        "ICA",
        0.93,
        ((-14, 4, -17), (-14, 16, -16), (-14, 40, -10), (-14, 62, 0)),
        (1.5, 1.7, 1.0),
        layer=1,
    )
    bush.branch("A1", "ICA", 1.0, ((-18, -14, -8), (-25, -18, -6)), (2.4, 2.2), sway=0.5)
    bush.branch(
        "A2",
        "A1",
        1.0,
        ((-26, -28, 2), (-26, -34, 16), (-26, -28, 30), (-26, -10, 38), (-26, 18, 36), (-26, 40, 26)),
        (2.2, 1.8, 1.2, 0.8),
        sway=1.0,
        wavelength=14,
    )
    bush.branch(
        "callosomarginal",
        "A2",
        0.3,
        ((-25, -42, 30), (-25, -30, 48), (-24, -4, 58), (-24, 20, 62)),
        (1.6, 1.2, 0.7),
        sway=1.4,
        wavelength=14,
        layer=1,
    )
    bush.branch("M1", "ICA", 1.0, ((-4, -9, -8), (6, -9, -9), (13, -7, -8)), (2.9, 2.7, 2.5), sway=0.7, layer=1)
    bush.branch("superior trunk", "M1", 1.0, ((18, -4, -1), (20, 0, 8)), (2.1, 1.8), sway=0.6, layer=1)
    bush.branch("inferior trunk", "M1", 0.98, ((18, 2, -7), (20, 10, -2)), (2.1, 1.8), sway=0.6, layer=0)
    # over the island's cortex, round the operculum's edge and out over the hemisphere, front to back
    for i, turn in enumerate(np.linspace(-32, 205, 9) + rng.normal(0, 5, 9)):
        a = np.deg2rad(turn)
        mother = "superior trunk" if turn < 120 else "inferior trunk"
        ahead = np.array([0.0, -np.cos(a), np.sin(a)])  # turn 0: to the front, 90: up, 180: back
        hub = np.array([20.0, 6.0, 2.0])
        way = (
            hub + 16 * ahead + _mm(0, 0, 0),
            hub + 24 * ahead + _mm(3, 0, 2),
            hub + 21 * ahead + _mm(13, 0, -2),
            hub + 36 * ahead + _mm(19, 2, 2),
            hub + (62 * ahead * [1, 1.0, 0.85]) + _mm(8, 5, 2),
        )
        name = f"insular {i}"
        bush.branch(
            name, mother, rng.uniform(0.4, 1.0), way, (1.7, 1.4, 1.2, 1.0, 0.6), sway=1.5, wavelength=11, layer=i % 2
        )
        bush.twigs(name, 10.0, (10, 30), 0.9, outward=ahead, depth=2, begin=0.45)
    for name in ("A2", "callosomarginal"):
        bush.twigs(name, 9.0, (12, 32), 0.9, outward=np.array([0.0, 0.2, 1.0]), depth=2, begin=0.2)
    catheter = _catheter(((2, 16, -170), (1, 14, -130), (0, 15, -104), bush.vessels["ICA"].points_N3[10]))
    lateral = rng.random() < 0.5
    primary = side * rng.uniform(80, 95) if lateral else rng.normal(0, 4)
    where = "lateral" if lateral else "front"
    cranial = rng.normal(0, 3) if lateral else rng.uniform(10, 22)
    return _filmed("cerebral", f"carotid siphon, {detail}, {where}", bush, "neck", primary, cranial, catheter, rng)


def _mammary(rng: np.random.Generator) -> Territory:
    """The left internal mammary artery where it was born: straight beside the sternum, with all its side branches."""
    bush = _Bush(rng)
    bush.trunk(
        "LIMA",
        ((10, 20, 78), (4, 8, 62), (0, 0, 40), (-1, -3, 10), (1, -3, -24), (3, 0, -58)),
        (2.9, 2.6, 2.4, 2.1),
        0.7,
    )
    bush.branch(
        "musculophrenic", "LIMA", 1.0, ((10, 2, -70), (26, 8, -86), (44, 16, -98)), (1.6, 0.9), sway=1.0, layer=1
    )
    bush.branch("superior epigastric", "LIMA", 0.99, ((1, 0, -72), (-1, 2, -104)), (1.7, 1.1), sway=1.0, layer=1)
    bush.branch(
        "pericardiacophrenic", "LIMA", 0.08, ((12, 14, 44), (22, 24, 14), (28, 30, -20)), (1.1, 0.5), sway=1.4, layer=1
    )
    for i, where in enumerate(np.linspace(0.2, 0.92, 5) + rng.normal(0, 0.02, 5)):
        z = float(np.interp(where, [0, 1], [78, -58]))
        droop = rng.uniform(4, 10)
        bush.branch(
            f"intercostal {i}",
            "LIMA",
            float(where),
            ((12, 2, z - 1), (28, 8, z - droop), (50, 22, z - 0.6 * droop)),
            (1.2, 0.9, 0.5),
            sway=0.9,
            layer=1,
        )
        if rng.random() < 0.8:
            bush.branch(
                f"sternal {i}",
                "LIMA",
                float(where) - 0.04,
                ((-8, -3, z + 3), (-19, -4, z + rng.normal(0, 5))),
                (0.9, 0.4),
                sway=0.9,
                layer=1,
            )
        bush.twigs(f"intercostal {i}", 16.0, (6, 16), 0.6)
    bush.twigs("LIMA", 26.0, (8, 22), 0.8)
    mouth = bush.vessels["LIMA"].points_N3[0]
    offsets = ((-42, 34, 0), (-26, 26, 26), (-8, 12, 34), (8, 2, 22), (4, 0, 8), (0, 0, 0))
    catheter = _catheter([mouth + np.array(o, float) for o in offsets])
    return _filmed("mammary", "in its bed", bush, "chest", rng.uniform(-35, 35), rng.normal(0, 6), catheter, rng)


def _curl(centre: Floats, radius_mm: float) -> list[list[float]]:
    """A pigtail's end in the frontal plane, entered from below."""
    angle = np.linspace(0, 1.75 * np.pi, 10)
    return [list(centre + radius_mm * np.array([np.cos(a), 0.0, np.sin(a)])) for a in angle]


def _filmed(
    name: TerritoryName,
    detail: str,
    bush: _Bush,
    region: Region,
    primary_deg: float,
    secondary_deg: float,
    catheter: Vessel,
    rng: np.random.Generator,
) -> Territory:
    """The territory, a little turned and scaled as bodies differ."""
    size = rng.uniform(0.92, 1.08)
    turn = rng.normal(0, 0.06)
    tilt = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]]) * size

    def placed(vessel: Vessel) -> Vessel:
        return replace(vessel, points_N3=vessel.points_N3 @ tilt.T, distance_N=vessel.distance_N * size)

    return Territory(
        name=name,
        detail=detail,
        vessels=tuple(placed(v) for v in bush.vessels.values()),
        region=region,
        primary_deg=float(primary_deg),
        secondary_deg=float(secondary_deg),
        catheter=placed(catheter),
    )
