"""Things in the beam that are no vessels: catheters, wires, balloons, stents, leads, implants, and what hides the heart.

All in patient mm (`anatomy`'s axes: the sternum lies at y = -78, the front skin at -100, the vertebral bodies at 62 to
95, the pedicles behind them). Attenuations are natural logs of the whole thickness at about 75 keV in a scattering
patient: a steel wire of 0.9 mm 0.5, titanium rods of 5.5 mm 1.4, a pulse generator 2.6 and more, ECG cables 0.2. Sizes
are of products on the market, rounded. Knows nothing of iodine or of pixels' brightness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from angio_ray.phantom.anatomy import APEX, BASE, Tree, Vessel
from angio_ray.phantom.carm import Floats, View, axes, project
from angio_ray.phantom.scene import Device
from angio_ray.phantom.territories import AORTA_COURSE, course, path_mm, rounded

CatheterStyle = Literal["left", "right", "left amplatz", "right amplatz", "extra backup", "graft", "pigtail", "arch"]
Access = Literal["femoral", "right radial", "left radial"]
ACCESSES: tuple[Access, ...] = get_args(Access)

HIDING_ATTENUATION = 3.0
"""What is denser than this hides a filled vessel behind it: what little passes drowns in scatter and noise ..."""
HIDING_WIDTH_MM = 1.5
"""... and is wider than this: on both sides of a wire the vessel still shows."""

_ROOT_FROM_LEFT_OSTIUM = np.array([-13.0, 1.0, 0.0])
_ROOT_FROM_RIGHT_OSTIUM = np.array([0.8, 13.0, 1.5])
_FRONT_Y, _STERNUM_Y, _SPINE_Y = -97.0, -78.0, 80.0


def _mm(x: float, y: float, z: float) -> Floats:
    return np.array([x, y, z], float)


# ---- catheters ------------------------------------------------------------------------------------------------------


def catheter(
    tip: Floats,
    rng: np.random.Generator,
    *,
    style: CatheterStyle,
    access: Access | None = None,
    further: Floats | None = None,
) -> Vessel:
    """A 5 to 6 French catheter through the aorta to its tip, the last sample.

    Parameters
    ----------
    tip : (3,) array
        Ostium that it sits in, or where it ends.
    rng : numpy.random.Generator
        Bends, calibre, access.
    style : CatheterStyle
        "left", "right": Judkins; "left amplatz", "right amplatz", "extra backup" (a left guiding catheter); "graft": to
        the mouth of a graft, by where that is; "pigtail": a loop around the tip, through the valve where the tip lies
        in the ventricle; "arch": straightened, not engaged.
    access : "femoral", "right radial", "left radial" or None
        Over the arch, through the brachiocephalic trunk, through the left subclavian; None draws it.
    further : (K, 3) array, optional
        Points beyond the ostium that its end has slipped on along, into a branch.
    """
    tip = np.asarray(tip, float)
    by: Access = access or ACCESSES[rng.choice(3, p=[0.5, 0.42, 0.08])]
    mammary = style == "graft" and tip[0] > 25
    down = _way_to_subclavian(by, rng) if mammary else _way_to_ascending(by, rng)
    end, rounding = _CATHETER_ENDS[style](tip, rng)
    if further is not None:
        end = np.vstack([end, further])
    if len(end) > 4 and end[0][2] > 78:  # the arch turns there: no room for a point of the shape's own
        end = end[1:]
    # the access leads to some place in the ascending aorta: what of it lies beside the shape's own beginning goes
    keep = len(down)
    while (
        not mammary
        and keep > 3
        and (np.linalg.norm(down[keep - 1] - end[0]) < 26 or down[keep - 1][2] < end[0][2] + 12)
    ):
        keep -= 1
    shaped = course(np.vstack([down[:keep], end]), step_mm=0.75, round_mm=rounding)
    # behind its preformed end it is straight by itself and bends only as the vessels make it
    slack = rounded(shaped, 8.0 / 0.75)
    preformed = path_mm(end)[-1]
    stiff = np.clip((path_mm(shaped)[-1] - path_mm(shaped) - preformed) / 20.0, 0, 1)[:, None]
    points = shaped + (slack - shaped) * stiff
    along = path_mm(points)
    from_tip = along[-1] - along
    still = style == "arch"
    moves = np.zeros(len(points)) if still else np.clip(1 - from_tip / 75.0, 0, 1) ** 1.5
    width = rng.choice([1.67, 2.0]) * np.interp(from_tip, [0, 4], [0.9, 1.0])
    return Vessel(name="catheter", points_N3=points, radius_N=width / 2, distance_N=along, moves_N=moves)


def _way_to_ascending(access: Access, rng: np.random.Generator) -> Floats:
    """Control points from outside the picture into the ascending aorta's upper part."""
    if access == "femoral":
        way = AORTA_COURSE[:4:-1].copy()
        way += [0, 0, 4]  # a catheter under thrust lies along the outer curve
    elif access == "right radial":
        way = np.array([(-62, 8, 158), (-44, 8, 146), (-26, 8, 128), (-14, 7, 106), (-9, 5, 86)], float)
    else:
        way = np.array([(64, 12, 150), (40, 16, 146), (20, 22, 126), (6, 20, 102), (-6, 8, 88)], float)
    way[1:] += rng.normal(0, 2.0, (len(way) - 1, 3))
    return way


def _way_to_subclavian(access: Access, rng: np.random.Generator) -> Floats:
    """Control points into the left subclavian artery's first part, from below or from the arm."""
    if access == "left radial":
        return np.array([(96, 10, 150), (80, 10, 143), (66, 8, 136)], float) + rng.normal(0, 1.5, (3, 3))
    arch = AORTA_COURSE[:6:-1]
    return np.vstack([arch, [(13, 30, 104), (20, 18, 118)]]) + rng.normal(0, 1.5, (len(arch) + 2, 3))


def _out_of_root(tip: Floats, root_from_ostium: Floats) -> tuple[Floats, Floats]:
    """Middle of the root at an ostium's height, and the level unit vector from there to the ostium."""
    out = -root_from_ostium * _mm(1, 1, 0)
    return tip + root_from_ostium, out / np.linalg.norm(out)


def _left_judkins(tip: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Down the right wall, the second bend against it, across the root, the first bend into the left main."""
    axis, out = _out_of_root(tip, _ROOT_FROM_LEFT_OSTIUM)
    arm = rng.uniform(26, 36)
    up = np.array([0.0, 0.0, 1.0])
    return (
        np.array(
            [
                axis + _mm(-2, -1, 54) - 5 * out,
                axis + (arm + 9) * up - 9.5 * out + _mm(-2, 0, 0),
                axis + (arm - 1) * up - 11.0 * out + _mm(-1, 0, 0),
                axis + (0.55 * arm) * up - 3.5 * out,
                tip - 6.5 * out + 8.0 * up,
                tip - 4.5 * out + rng.uniform(0.5, 2.0) * up,
                tip + 2.0 * out + rng.uniform(-0.5, 1.2) * up,
            ]
        ),
        1.6,
    )


def _extra_backup(tip: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """A guiding catheter: one long curve that leans on the opposite wall, then straight into the ostium."""
    axis, out = _out_of_root(tip, _ROOT_FROM_LEFT_OSTIUM)
    low = rng.uniform(-2, 6)
    return (
        np.array(
            [
                axis + _mm(-4, -1, 50) - 5 * out,
                axis + _mm(-2, 0, low + 22) - 11 * out,
                axis + _mm(0, 0, low + 8) - 10.5 * out,
                axis + _mm(0, 0, low) - 5 * out,
                tip - 5 * out + _mm(0, 0, -1.5),
                tip + 2.5 * out + _mm(0, 0, 0.3),
            ]
        ),
        1.6,
    )


def _right_judkins(tip: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Down the left and back wall, a long gentle bend, the last centimetre turned forwards into the right ostium."""
    axis, out = _out_of_root(tip, _ROOT_FROM_RIGHT_OSTIUM)
    up = np.array([0.0, 0.0, 1.0])
    return (
        np.array(
            [
                axis + _mm(-3, 2, 52) - 6 * out,
                axis + rng.uniform(30, 36) * up - 7 * out + _mm(2, 0, 0),
                axis + 16 * up - 5 * out + _mm(2, 0, 0),
                tip - 8 * out + rng.uniform(4, 7) * up,
                tip - 4 * out + 0.5 * up,
                tip + 1.5 * out - 0.3 * up,
            ]
        ),
        1.5,
    )


def _amplatz(tip: Floats, root_from_ostium: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Sits in the sinus opposite like a duck and rises to the ostium from below."""
    axis, out = _out_of_root(tip, root_from_ostium)
    deep = rng.uniform(9, 13)
    return (
        np.array(
            [
                axis + _mm(-4, -1, 50) - 5 * out,
                axis + _mm(-2, 0, 22) - 10 * out,
                axis + _mm(0, 0, -0.3 * deep) - 11.5 * out,
                axis + _mm(0, 0, -deep) - 4 * out,
                axis + _mm(0, 0, -0.75 * deep) + 5 * out,
                tip - 2.5 * out + _mm(0, 0, -2.5),
                tip + 2.0 * out + _mm(0, 0, 0.5),
            ]
        ),
        2.0,
    )


def _graft_seeker(tip: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Turned to a vein graft's mouth on the ascending aorta, or hooked from the left subclavian into the mammary."""
    if tip[0] > 25:
        hook = tip + np.array([(-22, 8, 4), (-9, 3, 10), (-1, 0, 7), (0, 0, 0), (0.5, -1, -4)], float)
        return hook, 1.2
    axis = tip + _mm(-4, 12, 0) if tip[0] > -14 else tip + _mm(9, 9, 0)
    out = (tip - axis) / np.linalg.norm(tip - axis)
    drop = rng.uniform(12, 20)
    return np.array([axis + _mm(0, 0, drop) - 6 * out, tip - 7 * out + _mm(0, 0, 4), tip + 2 * out]), 1.5


def _pigtail(tip: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """A loop of 11 mm or so around the tip; through the valve when that lies in the ventricle."""
    axis = APEX - BASE
    deep = (tip - BASE) @ axis / np.linalg.norm(axis)
    via = [np.array([-10.0, 0.0, 64.0]), np.array([-8.0, 1.0, 44.0])]
    if deep > 12:
        via += [np.array([0.0, 3.5, 26.0]), BASE + 0.5 * (tip - BASE) + _mm(0, 0, 3)]
    else:
        via = [np.array([-10.0, 0.0, max(64.0, tip[2] + 22)]), tip + _mm(-1, 0, 12)]
    ahead = tip - via[-1]
    ahead = ahead / np.linalg.norm(ahead)
    aside = rng.normal(0, 1, 3) * [1, 0.4, 1]
    aside -= (aside @ ahead) * ahead
    aside /= np.linalg.norm(aside)
    pitch = np.cross(ahead, aside)
    radius = rng.uniform(4.8, 6.2)
    via[-1] = via[-1] - radius * aside  # the shaft runs into the loop as its tangent
    angle = np.linspace(0, rng.uniform(1.7, 2.25) * np.pi, 12)[:, None]
    # the loop closes inwards and its turns lie beside each other
    shrink = 1 - 0.06 * angle / np.pi
    loop = tip + radius * shrink * (np.sin(angle) * ahead - np.cos(angle) * aside) + 0.9 * angle / np.pi * pitch
    return np.vstack([*via, loop]), 0.8


def _straight(tip: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Not engaged: hangs in the ascending aorta, its curve opened by the wire or turned to nowhere."""
    ahead = rng.normal(0, 1, 3) * [1.0, 1.0, 0.3]
    ahead /= np.linalg.norm(ahead)
    above = tip + _mm(-1, 1, 22) + rng.normal(0, 2, 3)
    if tip[2] > 76:
        return np.array([tip]), 2.0
    return np.vstack([above, tip - rng.uniform(0, 5) * ahead + _mm(0, 0, 7), tip]), 2.0


_CATHETER_ENDS: dict[CatheterStyle, Callable[[Floats, np.random.Generator], tuple[Floats, float]]] = {
    "left": _left_judkins,
    "right": _right_judkins,
    "left amplatz": lambda tip, rng: _amplatz(tip, _ROOT_FROM_LEFT_OSTIUM, rng),
    "right amplatz": lambda tip, rng: _amplatz(tip, _ROOT_FROM_RIGHT_OSTIUM, rng),
    "graft": _graft_seeker,
    "extra backup": _extra_backup,
    "pigtail": _pigtail,
    "arch": _straight,
}
"""Each gives the control points of the catheter's last part and how much its bends are rounded, mm."""


# ---- in the coronary arteries ---------------------------------------------------------------------------------------


def guide_wire(tree: Tree, rng: np.random.Generator) -> Device:
    """A wire of 0.36 mm down one of the main arteries; its last 30 mm are platinum, drawn as a second line over it."""
    lumen = _way_down(tree, rng)
    along = path_mm(lumen)
    reach = along[-1] * rng.uniform(0.72, 0.96)
    # stiffer than the artery: it cuts the corners
    points = course(lumen[along <= reach][:: max(1, round(9 / max(along[1], 0.1)))], step_mm=1.0)
    points[0] = lumen[0]
    spring = path_mm(points) >= path_mm(points)[-1] - 30
    tip = points[spring]
    return Device(name="guide wire", lines=(points, tip, tip), width_mm=0.36, attenuation=0.32, moves=1.0)


def balloon(
    tree: Tree, rng: np.random.Generator, *, inflated: bool | None = None, wire: Device | None = None
) -> Device:
    """An angioplasty balloon of 2.5-3.5 by 12-20 mm: its two markers, or the whole of it full of dilute contrast.

    It lies at the worst narrowing, where there is one, and on the guide wire that is given.
    """
    lumen = _way_down(tree, rng) if wire is None else wire.lines[0]
    along = path_mm(lumen)
    length = float(rng.choice([12.0, 15.0, 20.0]))
    start = _treated_mm(tree, lumen, rng.uniform(0.3, 0.6)) - length / 2
    full = bool(rng.random() < 0.5) if inflated is None else inflated
    if full:
        body = lumen[(along >= start) & (along <= start + length)]
        width = float(np.clip(2 * 0.95 * _radius_at(tree, body[len(body) // 2]), 2.5, 3.5))
        return Device(name="balloon", lines=(body,), width_mm=width, attenuation=0.1 * width, moves=1.0)
    marks = tuple(_stretch(lumen, along, start + at, 1.0) for at in (0.0, length))
    return Device(name="balloon markers", lines=marks, width_mm=0.9, attenuation=0.8, moves=1.0)


def stent(tree: Tree, rng: np.random.Generator) -> Device:
    """The mesh of an expanded stent: rings of zigzag struts, thin cobalt-chromium, hardly seen."""
    lumen = _way_down(tree, rng)
    along = path_mm(lumen)
    length = float(rng.uniform(12, 33))
    start = max(1.5, _treated_mm(tree, lumen, rng.uniform(0.2, 0.5)) - length / 2)
    crowns, lines = 6, []
    for at in np.arange(start, min(start + length, along[-1] - 3), 1.7):
        centre, ahead, aside, up = _frame(lumen, along, float(at))
        radius = max(1.15, 0.95 * _radius_at(tree, centre))
        angle = np.linspace(0, 2 * np.pi, 4 * crowns + 1)[:, None]
        zigzag = 0.75 * (1 - 4 * np.abs((angle * crowns / (2 * np.pi)) % 1 - 0.5))
        lines.append(centre + radius * (np.cos(angle) * aside + np.sin(angle) * up) + zigzag * ahead)
    return Device(name="stent", lines=tuple(lines), width_mm=0.15, attenuation=0.2, moves=1.0)


def _treated_mm(tree: Tree, lumen: Floats, else_share: float) -> float:
    """How far down a course the worst narrowing lies; where it is not on it, a share of the course."""
    along = path_mm(lumen)
    if tree.stenoses:
        worst = max(tree.stenoses, key=lambda s: s.percent)
        apart = np.linalg.norm(lumen - tree.vessel(worst.segment).points_N3[worst.index], axis=1)
        if apart.min() < 2.0:
            return float(np.clip(along[int(np.argmin(apart))], 12.0, max(12.0, along[-1] - 12.0)))
    return float(else_share * along[-1])


def _way_down(tree: Tree, rng: np.random.Generator) -> Floats:
    """Centreline from the ostium to the end of the segment with the worst narrowing, or of a main artery: (N, 3)."""
    named = {v.name: v for v in tree.vessels}
    ends = ["LAD", "LAD", "LCX", "OM1", "D1"] if tree.artery == "LCA" else ["PDA", "PLV", "RCA"]
    if tree.stenoses:
        worst = max(tree.stenoses, key=lambda s: s.percent).segment
        ends = {"LM": ["LAD"], "RCA": ["PDA", "RCA"]}.get(worst, [worst])
    end = str(rng.choice([e for e in ends if e in named] or [tree.vessels[0].name]))
    way = named[end].points_N3
    vessel = named[end]
    while vessel.parent in named:
        mother = named[vessel.parent]
        at = int(np.argmin(np.linalg.norm(mother.points_N3 - way[0], axis=1)))
        way = np.vstack([mother.points_N3[:at], way])
        vessel = mother
    return way


def _radius_at(tree: Tree, point: Floats) -> float:
    """Healthy radius of the widest vessel near a point, mm."""
    best = 0.0
    for vessel in tree.vessels:
        near = np.linalg.norm(vessel.points_N3 - point, axis=1) < 1.0
        if near.any():
            healthy = vessel.radius_N if vessel.healthy_radius_N is None else vessel.healthy_radius_N
            best = max(best, float(healthy[near].max()))
    return best or 1.5


def _stretch(lumen: Floats, along: Floats, start: float, length: float) -> Floats:
    at = np.linspace(start, start + length, 3)
    return np.stack([np.interp(at, along, lumen[:, k]) for k in range(3)], axis=1)


def _frame(lumen: Floats, along: Floats, at: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Point on a curve, its direction there and two unit vectors across."""
    before, point, after = _stretch(lumen, along, at - 1.5, 3.0)
    ahead = (after - before) / (np.linalg.norm(after - before) + 1e-9)
    aside = np.cross(ahead, [0.31, 0.52, 0.8])
    aside /= np.linalg.norm(aside) + 1e-9
    return point, ahead, aside, np.cross(ahead, aside)


# ---- in and on the chest --------------------------------------------------------------------------------------------


def sternal_wires(rng: np.random.Generator) -> Device:
    """Five to seven steel cerclages round the sternum after a sternotomy, each twisted to a knot in front."""
    lines = []
    spacing, tilt = rng.uniform(17, 25), rng.normal(0, 0.06)
    top = rng.uniform(60, 78)
    for i in range(int(rng.integers(5, 8))):
        z = top - i * spacing + rng.normal(0, 1.5)
        middle = np.array([tilt * z + rng.normal(0, 1.0), _STERNUM_Y, z])
        half_width, half_depth = rng.uniform(9, 14), rng.uniform(5, 7)
        angle = np.linspace(-0.5 * np.pi, 1.5 * np.pi, 22)[:, None]  # begins and ends in front, at the knot
        slope = rng.normal(0, 0.16)
        ring = np.hstack([half_width * np.cos(angle), half_depth * np.sin(angle), slope * half_width * np.cos(angle)])
        lines.append(middle + ring + rng.normal(0, 0.5, 3))
        knot = middle + _mm(0, -half_depth, 0)
        lean = rng.normal(0, 0.5)
        turn = np.linspace(0, 1, 13)[:, None]
        twist = np.hstack([np.sin(turn * 18) * 0.8 + lean * 7 * turn, -1.5 * turn, np.cos(lean) * 7 * turn])
        lines.append(knot + twist * rng.choice([-1.0, 1.0]))
    return Device(name="sternal wires", lines=tuple(lines), width_mm=0.9, attenuation=0.55)


def surgical_clips(rng: np.random.Generator, along: Vessel | None = None) -> Device:
    """Titanium clips of 4 mm on the side branches of a graft; by default along a left internal mammary's bed."""
    if along is None:
        bed = course([(36, -30, 108), (28, -62, 86), (28, -72, 50), (34, -60, 24), (42, -42, 2)])
    else:
        bed = along.points_N3
    lines = []
    for at in np.sort(rng.choice(len(bed), int(rng.integers(6, 16)), replace=False)):
        way = rng.normal(0, 1, 3)
        way /= np.linalg.norm(way)
        spread = np.cross(way, rng.normal(0, 1, 3)) * 0.35
        middle = bed[at] + rng.normal(0, 2.0, 3)
        lines.append(middle + np.array([-1.9 * way + spread, 1.6 * way + 0.3 * spread, 1.9 * way, -1.9 * way - spread]))
    return Device(name="surgical clips", lines=tuple(lines), width_mm=0.9, attenuation=0.5, moves=0.25)


def ecg_leads(rng: np.random.Generator) -> tuple[Device, ...]:
    """Two to four electrodes on the skin with their cables."""
    cables, discs, snaps = [], [], []
    for _ in range(int(rng.integers(2, 5))):
        place = np.array([rng.uniform(-75, 85), 0.0, rng.uniform(-75, 80)])
        place[1] = _skin_y(place[0])
        away = np.array(
            [rng.choice([-1.0, 1.0]) * rng.uniform(30, 130), 0.0, rng.uniform(60, 140) * rng.choice([-1, 1])]
        )
        share = np.array([0.0, 0.12, 0.35, 0.65, 1.0])[:, None]
        control = place + share * away + rng.normal(0, 9, (5, 3)) * np.minimum(1, 2 * share)
        control[:, 1] = [_skin_y(x) - 3 for x in control[:, 0]]
        cables.append(course(control, step_mm=3.0))
        discs.append(_disc(place, 11.0))
        snaps.append(_disc(place - _mm(0, 1, 0), 4.5))
    return (
        Device(
            name="ECG cables",
            lines=tuple(cables),
            width_mm=rng.uniform(1.2, 2.0),
            attenuation=rng.uniform(0.15, 0.25),
            breathes=True,
        ),
        Device(name="ECG electrodes", plates=tuple(discs), attenuation=0.05, breathes=True),
        Device(name="ECG snaps", plates=tuple(snaps), attenuation=0.3, breathes=True),
    )


def _skin_y(x: float) -> float:
    """Depth of the front skin beside the midline: the chest is an ellipse of 300 by 200 mm."""
    return float(_FRONT_Y * np.sqrt(max(0.05, 1 - (x / 150.0) ** 2)))


def _disc(centre: Floats, radius: float, across: Floats | None = None, up: Floats | None = None) -> Floats:
    """Outline of a round plate, in the frontal plane unless told otherwise."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)[:, None]
    x = np.array([1.0, 0.0, 0.0]) if across is None else across
    z = np.array([0.0, 0.0, 1.0]) if up is None else up
    return np.asarray(centre + radius * (np.cos(angle) * x + np.sin(angle) * z))


_VENOUS_WAY = (
    (56, -72, 112),
    (44, -52, 128),
    (22, -28, 122),
    (-2, -14, 108),
    (-22, -6, 90),
    (-28, -2, 66),
    (-30, 0, 40),
)
"""A lead's way from the pocket through subclavian and upper caval vein into the right atrium."""


def pacemaker(rng: np.random.Generator, *, leads: int = 2) -> tuple[Device, ...]:
    """Pulse generator below the left collarbone, a lead to the right ventricle's apex and, with two, one to the atrium."""
    can = np.array([70.0, -88.0, 100.0]) + rng.normal(0, 5, 3)
    ventricle = _lead(((-30, -8, 12), (-22, -20, -18), (0, -30, -36), (26, -36, -46), (42, -36, -50)), rng)
    lines, tips = [ventricle], [ventricle[-4:], ventricle[-16:-13]]
    if leads > 1:
        atrium = _lead(((-30, -10, 16), (-22, -22, 12), (-14, -26, 24), (-13, -25, 34)), rng)
        lines.append(atrium)
        tips += [atrium[-4:], atrium[-14:-11]]
    return (
        Device(name="pacemaker", plates=(_case(can, 48, 42, rng),), attenuation=rng.uniform(5.0, 6.5)),
        Device(name="pacemaker leads", lines=tuple(lines), width_mm=rng.uniform(1.5, 2.1), attenuation=0.4, moves=0.8),
        Device(name="pacemaker electrodes", lines=tuple(tips), width_mm=2.2, attenuation=0.7, moves=0.8),
    )


def _lead(inside: Sequence[Sequence[float]], rng: np.random.Generator) -> Floats:
    control = np.array([*_VENOUS_WAY, *inside], float)
    control[1:] += rng.normal(0, 2.5, (len(control) - 1, 3))
    return course(control, round_mm=4.0)


def _case(
    centre: Floats,
    width: float,
    height: float,
    rng: np.random.Generator,
    right: Floats | None = None,
    down: Floats | None = None,
) -> Floats:
    """Outline of a generator's case: a rounded rectangle, one corner cut off for the connector."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)[:, None]
    turn = rng.uniform(0, 2 * np.pi)
    x = np.array([1.0, 0.0, 0.0]) if right is None else right
    z = np.array([0.0, 0.0, -1.0]) if down is None else down
    x, z = np.cos(turn) * x + np.sin(turn) * z, np.cos(turn) * z - np.sin(turn) * x
    shape = np.hstack(
        [np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.55, np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.55]
    )
    return np.asarray(centre + shape[:, :1] * width / 2 * x + shape[:, 1:] * height / 2 * z)


def spinal_implant(rng: np.random.Generator) -> tuple[Device, ...]:
    """Two rods behind the vertebrae with pedicle screws, and at times a cross-link."""
    levels = int(rng.integers(3, 7))
    top = rng.uniform(20, 90)
    pitch = rng.uniform(23, 28)
    z = top - pitch * np.arange(levels) + rng.normal(0, 1.0, levels)
    bend = rng.normal(0, 6.0)

    def x_of(height: Floats | float) -> Floats:
        return np.asarray(bend * np.sin(np.asarray(height) / 60.0))

    rods, screws, heads = [], [], []
    for side in (-1.0, 1.0):
        tall = np.linspace(z[0] + 9, z[-1] - 9, 30)
        rods.append(np.stack([x_of(tall) + side * 20, np.full(30, 124.0), tall], axis=1))
        for level in z:
            x = float(x_of(level))
            way = np.array(
                [[x + side * 20, 120.0, level], [x + side * rng.uniform(9, 13), 74.0, level + rng.normal(0, 2)]]
            )
            screws.append(np.linspace(way[0], way[1], 8))
            heads.append(np.array([[x + side * 20, 118.0, level], [x + side * 20.5, 130.0, level]]))
    if rng.random() < 0.5:
        level = float(z[:2].mean())
        x = float(x_of(level))
        rods.append(np.array([[x - 20, 128.0, level], [x + 20, 128.0, level]]))
    return (
        Device(name="spinal rods", lines=tuple(rods), width_mm=5.5, attenuation=1.4),
        Device(name="pedicle screws", lines=tuple(screws), width_mm=5.5, attenuation=1.1),
        Device(name="screw heads", lines=tuple(heads), width_mm=11.0, attenuation=1.3),
    )


def prosthetic_valve(rng: np.random.Generator) -> Device:
    """A mechanical valve's ring with its leaflets, or the frame of a transcatheter valve, in the aortic annulus."""
    centre = np.array([0.5, 3.8, 22.0]) + rng.normal(0, 1.0, 3)
    ahead = np.array([-0.35, -0.25, 0.9])
    ahead /= np.linalg.norm(ahead)
    aside = np.cross(ahead, [0.0, 1.0, 0.0])
    aside /= np.linalg.norm(aside)
    up = np.cross(ahead, aside)
    radius = rng.uniform(10.5, 13.0)
    angle = np.linspace(0, 2 * np.pi, 41)[:, None]
    around = np.cos(angle) * aside + np.sin(angle) * up
    if rng.random() < 0.5:
        lines = [centre + radius * around, centre + radius * around + 1.8 * ahead]
        for side in (-1.0, 1.0):  # two half discs, seen on edge
            open_way = np.cos(0.25) * ahead + side * np.sin(0.25) * aside
            middle = centre + side * 2.2 * aside
            lines.append(np.array([middle - 0.85 * radius * up, middle + 0.85 * radius * up]))
            lines.append(
                np.array([middle - 0.6 * radius * up + 7 * open_way, middle + 0.6 * radius * up + 7 * open_way])
            )
        return Device(name="mechanical valve", lines=tuple(lines), width_mm=1.3, attenuation=0.8, moves=0.6)
    height, cells, lines = rng.uniform(17, 22), 12, []
    for side in (-1.0, 1.0):
        for i in range(cells):
            turn = np.linspace(0, 3.0, 14)[:, None] * side * 2 * np.pi / cells + 2 * np.pi * i / cells
            rise = np.linspace(-0.35, 0.65, 14)[:, None] * height
            waist = radius * (1 + 0.05 * np.cos(np.linspace(-2, 2, 14)[:, None] * 2))
            lines.append(centre + waist * (np.cos(turn) * aside + np.sin(turn) * up) + rise * ahead)
    return Device(name="transcatheter valve", lines=tuple(lines), width_mm=0.5, attenuation=0.3, moves=0.6)


# ---- kept for the independent set: no model has seen them -----------------------------------------------------------


def unseen(rng: np.random.Generator) -> tuple[Device, ...]:
    """One of the things that only the independent set shows."""
    kinds = (icd_coil, loop_recorder, echo_probe, temperature_probe, impella, balloon_pump)
    return kinds[int(rng.integers(len(kinds)))](rng)


def icd_coil(rng: np.random.Generator) -> tuple[Device, ...]:
    """A defibrillator's lead: a dense coil of 55 mm in the right ventricle and, at times, one in the caval vein."""
    lead = _lead(((-30, -8, 12), (-22, -20, -18), (0, -30, -36), (26, -36, -46), (44, -36, -50)), rng)
    from_tip = path_mm(lead)[-1] - path_mm(lead)
    coils = [lead[(from_tip > 12) & (from_tip < 67)]]
    if rng.random() < 0.5:
        coils.append(lead[(from_tip > 165) & (from_tip < 225)])
    can = np.array([78.0, -88.0, 112.0]) + rng.normal(0, 5, 3)
    return (
        Device(name="ICD", plates=(_case(can, 72, 62, rng),), attenuation=5.5),
        Device(name="ICD lead", lines=(lead,), width_mm=2.2, attenuation=0.35, moves=0.8),
        Device(name="ICD coils", lines=tuple(coils), width_mm=2.8, attenuation=0.9, moves=0.8),
    )


def loop_recorder(rng: np.random.Generator) -> tuple[Device, ...]:
    """An implanted recorder of 45 by 7 mm under the skin left of the sternum."""
    centre = np.array([rng.uniform(18, 45), -92.0, rng.uniform(-10, 35)])
    slant = rng.uniform(0.3, 1.1)
    way = np.array([np.cos(slant), 0.0, -np.sin(slant)])
    aside = np.array([np.sin(slant), 0.0, np.cos(slant)])
    outline = centre + np.array(
        [[22, 2.5], [20, 3.5], [-20, 3.5], [-22.5, 2], [-22.5, -2], [-20, -3.5], [20, -3.5], [22, -2.5]]
    ) @ np.array([way, aside])
    inner = centre + np.array([[9, 3], [-20, 3], [-20, -3], [9, -3]]) @ np.array([way, aside])
    return (
        Device(name="loop recorder", plates=(outline,), attenuation=0.6, breathes=True),
        Device(name="loop recorder battery", plates=(inner,), attenuation=0.8, breathes=True),
    )


def echo_probe(rng: np.random.Generator) -> tuple[Device, ...]:
    """A transoesophageal probe behind the heart: the shaft with its bending section and the transducer's head."""
    gullet = _gullet(rng)
    end = int(rng.integers(95, 125))
    shaft, head = gullet[:end], gullet[end - 6 : end + 34]
    links = tuple(np.stack([p + _mm(-4.5, 0, 0), p + _mm(4.5, 0, 0)]) for p in gullet[end - 60 : end - 6 : 5])
    return (
        Device(name="echo probe shaft", lines=(shaft,), width_mm=10.0, attenuation=0.45, breathes=True),
        Device(name="echo probe links", lines=links, width_mm=2.4, attenuation=0.6, breathes=True),
        Device(name="echo probe head", lines=(head,), width_mm=12.5, attenuation=1.6, breathes=True),
    )


def temperature_probe(rng: np.random.Generator) -> tuple[Device, ...]:
    """An oesophageal thermometer: a thin cable, three sensors near its end."""
    gullet = _gullet(rng)
    end = int(rng.integers(120, 165))
    sensors = tuple(gullet[at : at + 5] for at in (end - 4, end - 24, end - 44))
    return (
        Device(name="temperature probe", lines=(gullet[:end],), width_mm=2.6, attenuation=0.18, breathes=True),
        Device(name="temperature sensors", lines=sensors, width_mm=2.8, attenuation=0.8, breathes=True),
    )


def _gullet(rng: np.random.Generator) -> Floats:
    control = np.array([(-2, 60, 140), (0, 56, 90), (2, 50, 50), (6, 48, 10), (12, 46, -30), (20, 40, -62)], float)
    return course(control + rng.normal(0, 2.5, control.shape), round_mm=5.0)


def impella(rng: np.random.Generator) -> tuple[Device, ...]:
    """A micro-axial pump through the aortic valve: pigtail, inlet cage, cannula, motor, then its catheter."""
    inlet = BASE + 0.5 * (APEX - BASE) + rng.normal(0, 2, 3)
    tail = catheter(inlet + 0.16 * (APEX - BASE), rng, style="pigtail", access="femoral")
    way = tail.points_N3
    deep = (way - BASE) @ (APEX - BASE) / np.linalg.norm(APEX - BASE)
    start = int(np.flatnonzero(deep <= 40)[-1])  # the last time: the descending aorta is as low
    along = path_mm(way)
    before = along[start] - along
    cannula = way[(before >= 6) & (before <= 55)]
    motor = way[(before > 55) & (before <= 70)]
    cage = way[(before >= 0) & (before < 6)]
    return (
        Device(name="pump catheter", lines=(way,), width_mm=2.6, attenuation=0.3, moves=0.4),
        Device(name="pump cannula", lines=(cannula,), width_mm=4.4, attenuation=0.35, moves=0.4),
        Device(name="pump motor", lines=(motor, cage), width_mm=4.6, attenuation=1.8, moves=0.4),
    )


def balloon_pump(rng: np.random.Generator) -> tuple[Device, ...]:
    """The marker at the tip of an intra-aortic balloon, below the arch, and its catheter further down."""
    lumen = course(AORTA_COURSE[7:] + rng.normal(0, 2, (len(AORTA_COURSE) - 7, 3)))
    return (
        Device(name="balloon pump marker", lines=(lumen[12:16],), width_mm=2.6, attenuation=0.9),
        Device(name="balloon pump catheter", lines=(lumen[14:],), width_mm=1.4, attenuation=0.15),
    )


# ---- in front of the vessels ----------------------------------------------------------------------------------------


def covered_share(devices: Iterable[Device], tree: Tree, view: View) -> float:
    """Share of the tree in the picture, by length times width, that something dense and wide hides, 0..1."""
    hidden = hidden_mask(devices, view)
    total, covered = 0.0, 0.0
    for vessel in tree.vessels:
        xy, _ = project(vessel.points_N3, view)
        column, row = np.round(xy).astype(int).T
        inside = (column >= 0) & (row >= 0) & (column < view.size) & (row < view.size)
        area = np.gradient(path_mm(vessel.points_N3)) * vessel.radius_N
        total += float(area[inside].sum())
        covered += float(area[inside][hidden[row[inside], column[inside]]].sum())
    return covered / total if total else 0.0


def hides(device: Device) -> bool:
    """Whether a vessel behind it cannot be seen."""
    thick = device.width_mm >= HIDING_WIDTH_MM and bool(device.lines)
    return device.attenuation >= HIDING_ATTENUATION and (bool(device.plates) or thick)


def hidden_mask(devices: Iterable[Device], view: View) -> NDArray[np.bool_]:
    """Where something dense and wide lies in the picture, (H, W)."""
    picture = np.zeros((view.size, view.size), np.uint8)
    for device in devices:
        if not hides(device):
            continue
        for plate in device.plates:
            cv2.fillPoly(picture, [np.round(project(plate, view)[0]).astype(np.int32)], 1)
        for line in device.lines if device.width_mm >= HIDING_WIDTH_MM else ():
            xy, scale = project(line, view)
            width = max(1, round(device.width_mm * float(scale.mean())))
            cv2.polylines(picture, [np.round(xy).astype(np.int32)], False, 1, width)
    return picture > 0


Obstruction = Literal["generator", "spinal plates", "plate electrode", "arm", "apron", "table rail"]
OBSTRUCTIONS: tuple[Obstruction, ...] = get_args(Obstruction)
_OBSTRUCTION_SHARES: dict[Obstruction, float] = {
    "generator": 0.3,
    "spinal plates": 0.2,
    "plate electrode": 0.18,
    "arm": 0.12,
    "apron": 0.1,
    "table rail": 0.1,
}
_LARGEST = 1.3
"""How much larger than usual a thing may be."""


def obstructing(
    tree: Tree, view: View, rng: np.random.Generator, share: float, *, kind: Obstruction | None = None
) -> tuple[Device, ...]:
    """A foreign object so placed that it hides at least `share` of the tree in this view at rest.

    It is enlarged from its usual size until it does, within what there is; where that is not enough another kind of
    thing is added (`kind` is what the first is).
    """
    if not 0 < share <= 0.95:
        raise ValueError(f"share must be in (0, 0.95]: {share}")
    weights = np.array([_OBSTRUCTION_SHARES[k] for k in OBSTRUCTIONS])
    order = [OBSTRUCTIONS[i] for i in rng.choice(len(OBSTRUCTIONS), len(OBSTRUCTIONS), replace=False, p=weights)]
    seed = int(rng.integers(2**63))  # one object, drawn again at each size
    spot = _Spot(tree, view)
    first, *others = [kind, *(k for k in order if k != kind)] if kind else order
    beside: tuple[Device, ...] = ()
    for chosen in [first, *others]:
        largest = 4.0 if chosen == "apron" else _LARGEST  # an apron is pushed farther in, not enlarged
        for size in np.arange(0.8, largest + 0.01, 0.1):
            found = (*beside, *_OBSTRUCTIONS[chosen](spot, float(size), np.random.default_rng(seed)))
            if covered_share(found, tree, view) >= share:
                return found
        beside = beside or _OBSTRUCTIONS[first](spot, 1.0, np.random.default_rng(seed))
    raise ValueError(f"nothing hides {share:.0%} of this tree")


class _Spot:
    """The middle of a tree in one view, and the view's directions, to place things in front of or behind it."""

    def __init__(self, tree: Tree, view: View) -> None:
        points = np.concatenate([v.points_N3 for v in tree.vessels])
        self.right, self.down, self.towards = axes(view.primary_deg, view.secondary_deg)
        self.across = np.stack([points @ self.right, points @ self.down], axis=1)
        self.depth = float((points @ self.towards).mean())
        # the middle is where a disc as wide as a generator hides most
        places = self.across[:: max(1, len(points) // 150)]
        apart = np.linalg.norm(places[:, None] - self.across[None, ::3], axis=2)
        self.middle = places[int(np.argmax((apart < 30.0).sum(axis=1)))]
        self.half = np.percentile(np.abs(self.across - self.middle), 80, axis=0)
        self.source_mm = view.source_to_patient_mm

    def at(self, right_mm: float, down_mm: float, towards_mm: float) -> Floats:
        """A point that many mm beside the tree's middle as it appears, and nearer to the detector by `towards_mm`."""
        stretch = (self.source_mm + self.depth + towards_mm) / (self.source_mm + self.depth)
        across = (self.middle + np.array([right_mm, down_mm])) * stretch
        return np.asarray(across[0] * self.right + across[1] * self.down + (self.depth + towards_mm) * self.towards)

    def tilted(self, rng: np.random.Generator, degrees: float) -> tuple[Floats, Floats]:
        """Two unit vectors of a plane turned out of the picture's by about so much."""
        a, b = np.deg2rad(rng.normal(0, degrees, 2))
        x = np.cos(a) * self.right + np.sin(a) * self.towards
        y = np.cos(b) * self.down + np.sin(b) * self.towards
        return x, y


def _generator(spot: _Spot, size: float, rng: np.random.Generator) -> tuple[Device, ...]:
    """A pulse generator, or two, before the heart: abdominal or slipped pockets, an abandoned one beside the new."""
    x, y = spot.tilted(rng, 14)
    off = rng.normal(0, 5, 2)
    width, height = 62 * min(size, 1.1), 54 * min(size, 1.1)
    cases = [_case(spot.at(off[0], off[1], 90), width, height, rng, x, y)]
    angle = rng.uniform(0, 2 * np.pi)
    lead_rng = np.random.default_rng(rng.integers(2**32))
    header = _case(spot.at(off[0] + 0.36 * width, off[1] - 0.36 * height, 89), 24, 14, rng, x, y)
    if size > 1.15:  # one alone would be larger than any that is sold
        turn, reach = angle, (0.4 + 2 * (size - 1.1)) * width
        centre = spot.at(off[0] + reach * np.cos(turn), off[1] + reach * np.sin(turn), 86)
        cases.append(_case(centre, width, height, rng, x, y))
    start = spot.at(off[0] + 0.4 * width, off[1] - 0.4 * height, 88)
    loop = [start, start + 30 * x - 25 * y, start - 20 * x - 60 * y, start - 90 * x - 100 * y]
    lead = course(np.array(loop) + lead_rng.normal(0, 6, (4, 3)))
    return (
        Device(name="pulse generator", plates=tuple(cases), attenuation=_dense(rng)),
        Device(name="generator's header", plates=(header,), attenuation=0.25),
        Device(name="generator's lead", lines=(lead,), width_mm=1.9, attenuation=0.4),
    )


def _spinal_plates(spot: _Spot, size: float, rng: np.random.Generator) -> tuple[Device, ...]:
    """A scoliosis construct: thick rods, screws, cages in place of some vertebrae, behind the heart in this view."""
    lean = rng.normal(0, 0.12)
    up = -spot.down * np.cos(lean) + spot.right * np.sin(lean)
    side = spot.right * np.cos(lean) + spot.down * np.sin(lean)
    middle = spot.at(rng.normal(0, 4), rng.normal(0, 4), -75.0)
    gap = 17.0 * size
    tall = np.linspace(-120, 120, 40)[:, None]
    sway = 6 * np.sin(tall / 70 + rng.uniform(0, 6))
    rods = [middle + tall * up + (s * gap + sway) * side for s in (-1.0, 1.0)]
    pitch = rng.uniform(25, 29)
    screws, cages = [], []
    for level in np.arange(-110, 115, pitch):
        shift = float(np.interp(level, tall[:, 0], sway[:, 0]))
        centre = middle + level * up + shift * side
        for s in (-1.0, 1.0):
            head = centre + s * gap * side
            screws.append(np.array([head, head - s * 0.45 * gap * side + 2 * up + 25 * spot.towards]))
        if rng.random() < 0.45 or abs(level) < pitch / 2:
            tilt = rng.normal(0, 0.12)
            x, y = side * np.cos(tilt) + up * np.sin(tilt), up * np.cos(tilt) - side * np.sin(tilt)
            half_width, half_height = rng.uniform(8, 12) * size, rng.uniform(7, 10)
            cages.append(_plate(centre + 14 * spot.towards, x, y, half_width, half_height))
    wide, dense = 5.5 * size, _dense(rng)
    return (
        Device(name="spinal rods", lines=tuple(rods), width_mm=wide, attenuation=dense),
        Device(name="pedicle screws", lines=tuple(screws), width_mm=wide + 1.5, attenuation=0.7 * dense),
        Device(name="vertebral cages", plates=tuple(cages), attenuation=_dense(rng)),
    )


def _dense(rng: np.random.Generator) -> float:
    """Attenuation of something thick made of metal: nothing of a vessel is left behind it, yet it is not always black."""
    return float(rng.uniform(4.0, 6.5))


def _plate_electrode(spot: _Spot, size: float, rng: np.random.Generator) -> tuple[Device, ...]:
    """A metal plate electrode on the skin with its rubber rim and cable."""
    x, y = spot.tilted(rng, 16)
    off = rng.normal(0, 6, 2)
    centre = spot.at(off[0], off[1], 100)
    outline = _case(centre, 78 * size, 60 * size, rng, x, y)
    foil = centre + 0.92 * (outline - centre)
    cable = course(np.array([centre, centre + 50 * x + 30 * y, centre + 110 * x + 20 * y + 10 * spot.towards]))
    return (
        Device(name="electrode rim", plates=(outline,), attenuation=0.12, breathes=True),
        Device(name="electrode plate", plates=(foil,), attenuation=_dense(rng), breathes=True),
        Device(name="electrode cable", lines=(cable,), width_mm=3.5, attenuation=0.3, breathes=True),
    )


def _arm(spot: _Spot, size: float, rng: np.random.Generator) -> tuple[Device, ...]:
    """The patient's forearm on a metal board, not moved out of the way."""
    lean = rng.uniform(-0.5, 0.5)
    up = -spot.down * np.cos(lean) + spot.right * np.sin(lean)
    side = spot.right * np.cos(lean) + spot.down * np.sin(lean)
    middle = spot.at(rng.normal(0, 5), rng.normal(0, 5), rng.choice([-120.0, 120.0]))
    along = np.linspace(-170, 170, 30)[:, None]
    bone = middle + along * up
    width = 34.0 * size
    bulge = 1 + 0.1 * np.cos(along / 60)
    flesh = np.vstack([bone - bulge * width * side, (bone + bulge * width * side)[::-1]])
    board = _plate(middle, side, up, 0.86 * width, 170.0)
    return (
        Device(name="arm", plates=(flesh,), attenuation=0.7),
        Device(name="bone of the arm", lines=(bone,), width_mm=20.0, attenuation=0.8),
        Device(name="arm board", plates=(board,), attenuation=_dense(rng)),
    )


def _apron(spot: _Spot, size: float, rng: np.random.Generator) -> tuple[Device, ...]:
    """The edge of a lead apron or drape pushed into the beam."""
    turn = rng.uniform(0, 2 * np.pi)
    inward = np.cos(turn) * spot.right + np.sin(turn) * spot.down
    side = np.sin(turn) * spot.right - np.cos(turn) * spot.down
    reach = (size - 1.0) * float(spot.half.max()) * 0.9
    across = np.linspace(-220, 220, 40)[:, None]
    wave = 4 * np.sin(across / 35 + rng.uniform(0, 6)) + 2 * np.sin(across / 13)
    edge = spot.at(0, 0, 115.0) + (reach + wave) * inward + across * side
    outline = np.vstack([edge, (edge - 300 * inward)[::-1]])
    return (Device(name="lead apron", plates=(outline,), attenuation=_dense(rng)),)


def _table_rail(spot: _Spot, size: float, rng: np.random.Generator) -> tuple[Device, ...]:
    """A steel rail or fixation frame of the table across the field."""
    turn = rng.normal(0, 0.35) + rng.choice([0.0, 0.5 * np.pi])
    way = np.cos(turn) * spot.right + np.sin(turn) * spot.down
    side = np.sin(turn) * spot.right - np.cos(turn) * spot.down
    middle = spot.at(rng.normal(0, 4), rng.normal(0, 4), -130.0)
    half = 22.0 * size
    bolts = tuple(_disc(middle + at * way, 7.0, way, side) for at in (-60.0, 0.0, 60.0))
    return (
        Device(name="table rail", plates=(_plate(middle, way, side, 260.0, half),), attenuation=_dense(rng)),
        Device(name="rail bolts", plates=bolts, attenuation=1.0),
    )


def _plate(middle: Floats, x: Floats, y: Floats, half_x: float, half_y: float) -> Floats:
    """Outline of a rectangle, (4, 3)."""
    corners = np.array([[-half_x, -half_y], [half_x, -half_y], [half_x, half_y], [-half_x, half_y]])
    return np.asarray(middle + corners @ np.array([x, y]))


_OBSTRUCTIONS: dict[Obstruction, Callable[[_Spot, float, np.random.Generator], tuple[Device, ...]]] = {
    "generator": _generator,
    "spinal plates": _spinal_plates,
    "plate electrode": _plate_electrode,
    "arm": _arm,
    "apron": _apron,
    "table rail": _table_rail,
}
