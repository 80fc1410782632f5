"""Where vessels join: what two lumens share counts once, and a vessel that divides at its end ends round.

A joint is the union of its lumens as the beam sees it: each piece of a drawn branch keeps the share of its chord that
lies outside the vessels beside its origin. So no joint is darker than the lumens there, nor broken by a bright slit,
which would pass for a narrowing. Knows nothing of contrast or of time: joints are looked at in end-diastole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from angio_ray.phantom.anatomy import Vessel
from angio_ray.phantom.carm import Floats, View, axes
from angio_ray.phantom.tubes import END_ON, Mask, Tubes

_NEAR_MM = 4.0
"""Branches whose walls begin this near to one another may share some of their lumen."""
_ZONE = 40
"""Samples of a branch, from its origin, that may lie within its neighbours."""
_DEPTHS = (np.arange(7) + 0.5) / 3.5 - 1
"""Where along its chord, -1..1, a piece is looked at."""
_STEEPEST = 0.35
"""Sine of the angle to the beam below which a chord gets no longer."""
_TOUCH_MM = 1e-3


def ends(vessels: Sequence[Vessel]) -> dict[str, Vessel]:
    """Half balls that close the vessels which divide at their end, by the vessel's name.

    A branch that turns aside would else leave a corner of the parent's flat end, and a wedge without lumen, to be seen.
    """
    by_name = {v.name: v for v in vessels}
    found = {}
    for branch in vessels:
        parent = by_name.get(branch.parent or "")
        if parent is None or parent.name in found:
            continue
        end, radius = parent.points_N3[-1], float(parent.radius_N[-1])
        if np.linalg.norm(branch.points_N3[0] - end) > 2 * radius:
            continue
        turn = np.linspace(0, np.pi / 2, 9)
        ahead = _unit(end - parent.points_N3[-2])
        found[parent.name] = Vessel(
            name=f"{parent.name} end",
            points_N3=end + radius * np.sin(turn)[:, None] * ahead,
            radius_N=radius * np.cos(turn),
            distance_N=parent.distance_N[-1] + radius * np.sin(turn),
            moves_N=None if parent.moves_N is None else np.full(len(turn), parent.moves_N[-1]),
            parent=parent.name,
        )
    return found


def outside(vessels: Sequence[Vessel], caps: dict[str, Vessel], drawn: Tubes, view: View) -> Floats:
    """Per piece of the drawn vessels, the share of its chord that no vessel beside its origin holds already, 0..1.

    Parameters
    ----------
    vessels : sequence of Vessel
        A parent's branches in the order in which they get what they share: the first keeps it.
    caps : dict of str to Vessel
        `ends` of the vessels.
    drawn : Tubes
        The vessels in this order; what is drawn after them stays whole.
    view : View
        Where the beam comes from.
    """
    towards = axes(view.primary_deg, view.secondary_deg)[2]
    by_name = {v.name: v for v in vessels}
    before: dict[str, list[Vessel]] = {}
    share, begin = np.ones(len(drawn.at)), 0
    for vessel in vessels:
        parent = by_name.get(vessel.parent or "")
        if parent is not None:
            siblings = before.setdefault(parent.name, [])
            cap = [caps[parent.name]] if parent.name in caps else []
            beside = [(other, _shared(vessel, other)) for other in (parent, *cap, *siblings)]
            beside = [(other, count) for other, count in beside if count]
            zone = max((count for _, count in beside), default=0)
            here = slice(*np.searchsorted(drawn.at, (begin, begin + zone)))
            if here.stop > here.start:
                beam = _unit(vessel.points_N3[0] + view.source_to_patient_mm * towards)
                chords = _chords(vessel, drawn.at[here] - begin, drawn.u[here].astype(float), beam)
                taken = np.zeros(chords.shape[:2], bool)
                for other, count in beside:
                    some = slice(0, int(np.searchsorted(drawn.at[here], begin + count)))
                    taken[some] |= _inside(chords[some], beam, other)
                share[here] = 1 - taken.mean(axis=1)
            siblings.append(vessel)
        begin += len(vessel.points_N3)
    return share


def _shared(vessel: Vessel, other: Vessel) -> int:
    """How many of a vessel's samples from its origin come near enough to another to lie in it, wholly or in part."""
    points, radius = vessel.points_N3[:_ZONE], vessel.radius_N[:_ZONE]
    if np.linalg.norm(other.points_N3 - points[0], axis=1).min() > _NEAR_MM + radius[0] + other.radius_N.max():
        return 0
    away = np.linalg.norm(points[:, None] - other.points_N3[None], axis=-1) - other.radius_N
    apart = np.flatnonzero(away.min(axis=1)[1:] > radius[1:])
    return int(apart[0]) + 1 if len(apart) else len(points)  # once out, what passes by is another crossing


def _chords(vessel: Vessel, at: Floats, u: Floats, beam: Floats) -> Floats:
    """Points along the beam through each piece's lumen, (pieces, depths, 3) mm; `at` in samples, `u` across, -1..1."""
    tangent = _unit(np.gradient(vessel.points_N3[: _ZONE + 2], axis=0))
    side = np.cross(tangent, beam)
    sine = np.linalg.norm(side, axis=1)
    samples = np.arange(len(tangent))

    def along(values: Floats) -> Floats:
        return np.stack([np.interp(at, samples, column) for column in values[: len(samples)].T], axis=-1)

    radius = along(vessel.radius_N[:, None])
    middle = along(vessel.points_N3) + u[:, None] * radius * along(side / np.maximum(sine, 1e-9)[:, None])
    half = radius[:, 0] * np.sqrt(1 - np.minimum(u**2, 1)) / np.maximum(np.interp(at, samples, sine), _STEEPEST)
    return middle[:, None] + (half[:, None] * _DEPTHS)[..., None] * beam


def _inside(chords: Floats, beam: Floats, other: Vessel) -> Mask:
    """Which points along chords lie in the other's lumen, a stack of discs as `Tubes` draws it: (pieces, depths)."""
    if not chords.size:
        return np.zeros(chords.shape[:2], bool)
    centre = chords.mean(axis=(0, 1))
    reach = np.linalg.norm(chords - centre, axis=-1).max() + other.radius_N.max()
    near = np.flatnonzero(np.linalg.norm(other.points_N3 - centre, axis=1) < reach)
    if not len(near):
        return np.zeros(chords.shape[:2], bool)
    near = np.arange(near[0], near[-1] + 1)
    tangent = _unit(np.gradient(other.points_N3, axis=0))
    along = tangent @ beam
    # `Tubes` draws discs as if they held the beam, unless they are seen nearly from the front
    flat = (1 - along**2 > (0.75 * END_ON) ** 2)[:, None]
    normal = np.where(flat, (tangent - along[:, None] * beam) / np.maximum(1 - along**2, 1e-3)[:, None], tangent)
    path = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(other.points_N3, axis=0), axis=1)))
    axis = other.points_N3[near] - centre
    points = (chords - centre).reshape(-1, 3)
    nearest = (0.5 * (axis**2).sum(axis=1) - points @ axis.T).argmin(axis=1)
    offset, nearest = points - axis[nearest], near[nearest]
    ahead = (offset * tangent[nearest]).sum(axis=1)
    across2 = (offset**2).sum(axis=1) - ahead**2
    where = path[nearest] + (offset * normal[nearest]).sum(axis=1)
    held = across2 < np.interp(where, path, other.radius_N) ** 2
    held &= (where > _TOUCH_MM) & (where <= path[-1] + _TOUCH_MM)
    longest = np.gradient(path) * 1.5
    longest[[0, -1]] = np.inf  # the ends' own cuts decide
    return np.asarray((held & (np.abs(ahead) <= longest[nearest])).reshape(chords.shape[:2]))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9))
