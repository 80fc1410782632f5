"""What makes coronary arteries sick: narrowings, occlusions with late collateral filling, and calcium in the wall.

Takes healthy trees of `anatomy` and returns new ones; the truth (segment, percent, length, where) goes with the tree.
Percent is of the healthy diameter at the same place, as quantitative coronary angiography measures it. Knows nothing
of contrast's timing beyond the share and delay that reach each sample, and nothing of pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from angio_ray.phantom.anatomy import Artery, Calcification, Stenosis, Tree, Vessel
from angio_ray.phantom.carm import Floats

# where narrowings sit, relative to one another and to their segment's calibre: proximal and middle thirds of the trunks
_SITES: dict[str, float] = {
    "LM": 0.12,
    "LAD": 1.0,
    "LCX": 0.6,
    "RCA": 1.0,
    "D1": 0.3,
    "D2": 0.15,
    "D3": 0.08,
    "ramus": 0.2,
    "OM1": 0.35,
    "OM2": 0.2,
    "OM3": 0.08,
    "AM": 0.12,
    "PDA": 0.2,
    "PLV": 0.15,
}
_SHORTEST_MM = 4.0
_LONGEST_MM = 25.0


def descendants(tree: Tree, segment: str, index: int) -> tuple[str, ...]:
    """Names of the vessels fed through sample `index` of a segment: branches from there on, and theirs."""
    found: list[str] = []
    mother = tree.vessel(segment)
    for vessel in tree.vessels:
        if vessel.parent == segment and _leaves_at(vessel, mother) >= index:
            found.append(vessel.name)
            found.extend(descendants(tree, vessel.name, 0))
    return tuple(found)


def add_stenosis(
    tree: Tree,
    segment: str,
    *,
    at_mm: float,
    percent: float,
    length_mm: float,
    rng: np.random.Generator,
    eccentricity: float = 0.0,
    collaterals: bool = False,
) -> Tree:
    """The tree with one more narrowing.

    Parameters
    ----------
    tree : Tree
        Left as it is.
    segment : str
        Which vessel.
    at_mm : float
        Where the throat is, mm from the segment's start.
    percent : float
        How much of the healthy diameter is lost in the throat, exactly; 100 is a total occlusion.
    length_mm : float
        From shoulder to shoulder.
    rng : numpy.random.Generator
        Shape of the shoulders, side of an eccentric plaque, strength of collaterals.
    eccentricity : float
        0: the lumen narrows around its middle; 1: one wall stays where it was.
    collaterals : bool
        Of an occlusion: the vessel's distal part fills late and thinly from other arteries.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"a stenosis takes 0 to 100 percent of the diameter, not {percent}")
    vessel = tree.vessel(segment)
    along = vessel.distance_N - vessel.distance_N[0]
    index = int(np.argmin(np.abs(along - at_mm)))
    healthy = vessel.radius_N if vessel.healthy_radius_N is None else vessel.healthy_radius_N
    narrowed = healthy * (1 - percent / 100 * _shoulders(along - along[index], length_mm, rng))
    radius = np.minimum(vessel.radius_N, narrowed)
    sick = replace(
        vessel,
        radius_N=radius,
        healthy_radius_N=healthy,
        points_N3=vessel.points_N3 + eccentricity * _aside(vessel, narrowed, healthy, rng),
    )
    vessels = tuple(sick if v.name == segment else v for v in tree.vessels)
    found = Stenosis(segment=segment, percent=percent, length_mm=length_mm, index=index)
    tree = replace(tree, vessels=vessels, stenoses=(*tree.stenoses, found))
    return _cut_off(tree, found, collaterals, rng) if percent >= 100 else tree


def add_calcification(
    tree: Tree,
    segment: str,
    *,
    start_mm: float,
    length_mm: float,
    kind: Literal["specks", "tram track"],
    rng: np.random.Generator,
) -> Tree:
    """The tree with calcium in the wall of a segment, from `start_mm` over `length_mm` of its path."""
    vessel = tree.vessel(segment)
    along = vessel.distance_N - vessel.distance_N[0]
    first, last = np.searchsorted(along, (start_mm, min(start_mm + length_mm, along[-1])))
    first, last = min(int(first), len(along) - 4), min(max(int(last), int(first) + 3), len(along) - 1)
    lines = _specks(vessel, first, last, rng) if kind == "specks" else _tram_track(vessel, first, last, rng)
    calcium = Calcification(
        segment=segment,
        kind=kind,
        lines=lines,
        width_mm=float(rng.uniform(0.6, 1.3) if kind == "specks" else rng.uniform(0.4, 0.8)),
        attenuation=float(np.exp(rng.uniform(np.log(0.12), np.log(0.5)))),
    )
    return replace(tree, calcifications=(*tree.calcifications, calcium))


def add_disease(
    trees: dict[Artery, Tree],
    rng: np.random.Generator,
    *,
    p_stenosis: float = 0.5,
    p_occlusion: float = 0.1,
    p_calcified: float = 0.35,
) -> dict[Artery, Tree]:
    """One patient's coronary disease, drawn: none in many, up to four lesions in others.

    Parameters
    ----------
    p_stenosis : float
        Share of patients with at least one narrowing.
    p_occlusion : float
        Share of the narrowings that are total.
    p_calcified : float
        Share of patients with calcium; those with narrowings have it about twice as often as those without, as far as that goes.
    """
    sick = bool(rng.random() < p_stenosis)
    diffuse = sick and bool(rng.random() < 0.2)
    trees = dict(trees)
    for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])) if sick else 0):
        artery, segment = _site(trees, rng)
        trees[artery] = _lesion(trees[artery], segment, p_occlusion, rng)
    if diffuse:
        artery, segment = _site(trees, rng)
        trees[artery] = _diffuse(trees[artery], segment, rng)
    # so that the shares add up to p_calcified: sick 4/3, healthy 2/3 of it when half are sick
    weight = 2 * p_calcified / (1 + p_stenosis)
    others = weight / 2 if weight <= 1 else (p_calcified - p_stenosis) / max(1 - p_stenosis, 1e-9)  # all sick ones have it
    if rng.random() < (min(1.0, weight) if sick else others):
        for _ in range(int(rng.integers(1, 5))):
            artery, segment = _calcified_site(trees, rng)
            trees[artery] = _calcium(trees[artery], segment, rng)
    return trees


def _leaves_at(branch: Vessel, mother: Vessel) -> int:
    """The mother's sample where a branch begins. By path, which eccentric plaques do not move."""
    return int(np.argmin(np.abs(mother.distance_N - branch.distance_N[0])))


def _shoulders(from_throat_N: Floats, length_mm: float, rng: np.random.Generator) -> Floats:
    """1 in the throat, 0 outside the lesion, smooth between; entry and exit differ, the plaque is a little uneven."""
    share = rng.uniform(0.35, 0.65)
    half = np.where(from_throat_N < 0, share * length_mm, (1 - share) * length_mm)
    flat = rng.uniform(0.0, 0.3)
    x = np.clip((np.abs(from_throat_N) / half - flat) / (1 - flat), 0, 1)
    shape = 0.5 + 0.5 * np.cos(np.pi * x)
    uneven = 0.10 * np.sin(2 * np.pi * from_throat_N / rng.uniform(2.5, 5.0) + rng.uniform(0, 6)) - 0.1
    return shape * (1 + np.clip(np.abs(from_throat_N) / 1.5, 0, 1) * uneven)


def _aside(vessel: Vessel, narrowed_N: Floats, healthy_N: Floats, rng: np.random.Generator) -> Floats:
    """How far the lumen's middle moves when the plaque sits on one wall, (N, 3) mm."""
    across = np.cross(np.gradient(vessel.points_N3, axis=0), rng.normal(0, 1, 3))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    return across * (healthy_N - narrowed_N)[:, None]


def _cut_off(tree: Tree, occlusion: Stenosis, collaterals: bool, rng: np.random.Generator) -> Tree:
    """No contrast from the throat on, in the segment and all that it feeds; the distal part late, with collaterals."""
    below = descendants(tree, occlusion.segment, occlusion.index)
    stump = tree.vessel(occlusion.segment)
    cut_mm = float(stump.distance_N[occlusion.index])
    share = float(rng.uniform(0.3, 0.7)) if collaterals else 0.0
    delay = float(rng.uniform(1.0, 2.5)) if collaterals else 0.0
    gap_mm = occlusion.length_mm / 2 + float(rng.uniform(8, 25))
    vessels = []
    for vessel in tree.vessels:
        if vessel.name == occlusion.segment or vessel.name in below:
            beyond = vessel.distance_N - cut_mm
            supply = np.ones(len(beyond)) if vessel.supply_N is None else vessel.supply_N
            late = np.zeros(len(beyond)) if vessel.delay_N is None else vessel.delay_N
            refilled = np.clip((beyond - gap_mm) / 8.0, 0, 1) * share
            supply = np.where(beyond >= 0, np.minimum(supply, refilled), supply)
            late = np.where((beyond >= 0) & (refilled > 0), np.maximum(late, delay), late)
            vessel = replace(vessel, supply_N=supply, delay_N=late)
        vessels.append(vessel)
    return replace(tree, vessels=tuple(vessels))


def _site(trees: dict[Artery, Tree], rng: np.random.Generator) -> tuple[Artery, str]:
    """A segment to narrow, by how often each is affected among those that this patient has and that are wide enough."""
    sites = [
        (artery, vessel.name)
        for artery, tree in trees.items()
        for vessel in tree.vessels
        if vessel.name in _SITES and vessel.radius_N[0] > 0.6 and len(vessel.points_N3) > 12
    ]
    weights = np.array([_SITES[name] for _, name in sites])
    return sites[rng.choice(len(sites), p=weights / weights.sum())]


def _lesion(tree: Tree, segment: str, p_occlusion: float, rng: np.random.Generator) -> Tree:
    """One narrowing of drawn place, degree and length; away from those already there where there is room."""
    vessel = tree.vessel(segment)
    path = float(vessel.distance_N[-1] - vessel.distance_N[0])
    length = float(np.clip(np.exp(rng.normal(np.log(9.5), 0.45)), _SHORTEST_MM, min(_LONGEST_MM, 0.7 * path)))
    places = rng.uniform(length / 2 + 1, max(length / 2 + 1.5, 0.75 * path - length / 2), 8)
    free = [float(place) for place in places if _is_free(tree, segment, float(place), length)]
    if not free:
        return tree
    total = segment != "LM" and bool(rng.random() < p_occlusion)
    # an artery closed at its very beginning shows nothing: such a run could not be told from a poorly engaged catheter
    total = total and not (segment == "RCA" and free[0] < 0.3 * path)
    percent = float(1 + 98 * rng.beta(1.5, 1.1))
    return add_stenosis(
        tree,
        segment,
        at_mm=free[0],
        percent=100.0 if total else percent,
        length_mm=length,
        rng=rng,
        eccentricity=float(rng.uniform(0, 1)),
        collaterals=bool(rng.random() < 0.5),
    )


def _is_free(tree: Tree, segment: str, at_mm: float, length_mm: float) -> bool:
    """Whether a narrowing there leaves the throats of those already there alone, and they its own."""
    start = tree.vessel(segment).distance_N
    return all(
        abs(start[other.index] - start[0] - at_mm) > 0.65 * (length_mm + other.length_mm)
        for other in tree.stenoses
        if other.segment == segment
    )


def _diffuse(tree: Tree, segment: str, rng: np.random.Generator) -> Tree:
    """A string of mild narrowings along a segment: an uneven vessel."""
    vessel = tree.vessel(segment)
    path = float(vessel.distance_N[-1] - vessel.distance_N[0])
    at = rng.uniform(6, 12)
    while at < 0.8 * path:
        length = float(rng.uniform(6, 14))
        if _is_free(tree, segment, at, length):
            percent = float(rng.uniform(10, 45))
            tree = add_stenosis(tree, segment, at_mm=at, percent=percent, length_mm=length, rng=rng, eccentricity=0.7)
        at += length * rng.uniform(1.0, 1.6)
    return tree


def _calcified_site(trees: dict[Artery, Tree], rng: np.random.Generator) -> tuple[Artery, str]:
    """A trunk to calcify; half the time one that has a narrowing, where there is one."""
    narrowed = [(artery, s.segment) for artery, tree in trees.items() for s in tree.stenoses]
    if narrowed and rng.random() < 0.5:
        return narrowed[rng.integers(len(narrowed))]
    trunks: list[tuple[Artery, str]] = [("LCA", "LAD"), ("LCA", "LAD"), ("LCA", "LCX"), ("RCA", "RCA"), ("RCA", "RCA")]
    trunks.append(("LCA", "LM"))
    return trunks[rng.integers(len(trunks))]


def _calcium(tree: Tree, segment: str, rng: np.random.Generator) -> Tree:
    """One calcified stretch, near the segment's narrowing where it has one, else in its proximal half."""
    vessel = tree.vessel(segment)
    path = float(vessel.distance_N[-1] - vessel.distance_N[0])
    throats = [float(vessel.distance_N[s.index] - vessel.distance_N[0]) for s in tree.stenoses if s.segment == segment]
    length = float(min(rng.uniform(6, 30), 0.8 * path))
    middle = throats[rng.integers(len(throats))] + rng.normal(0, 4) if throats else rng.uniform(0.05, 0.5) * path
    start = float(np.clip(middle - length / 2, 0, path - length))
    kind: Literal["specks", "tram track"] = "tram track" if rng.random() < 0.35 else "specks"
    return add_calcification(tree, segment, start_mm=start, length_mm=length, kind=kind, rng=rng)


def _wall(vessel: Vessel, index: slice, side: Floats) -> Floats:
    """Points in the vessel's wall, on the given side of its axis: (n, 3)."""
    healthy = vessel.radius_N if vessel.healthy_radius_N is None else vessel.healthy_radius_N
    tangent = np.gradient(vessel.points_N3, axis=0)[index]
    tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    across = side - (tangent @ side)[:, None] * tangent
    across = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    return vessel.points_N3[index] + across * (1.08 * healthy[index])[:, None]


def _specks(vessel: Vessel, first: int, last: int, rng: np.random.Generator) -> tuple[Floats, ...]:
    """3 to 12 short pieces of wall, each 0.5 to 3 mm long, on any side."""
    step = float(np.mean(np.diff(vessel.distance_N)))
    lines = []
    for _ in range(int(rng.integers(3, 13))):
        samples = max(2, round(rng.uniform(0.5, 3.0) / step) + 1)
        at = int(rng.integers(first, max(first + 1, last - samples + 2)))
        side = rng.normal(0, 1, 3)
        line = _wall(vessel, slice(at, min(at + samples, len(vessel.points_N3))), side / np.linalg.norm(side))
        if len(line) >= 2:
            lines.append(line)
    return tuple(lines)


def _tram_track(vessel: Vessel, first: int, last: int, rng: np.random.Generator) -> tuple[Floats, ...]:
    """Two thin lines along opposite walls, with gaps.

    They lie left and right of the axis as seen from the front: a calcified tube shows its two edges from any side, and
    the C-arm never turns far enough from the front to bring these two lines together.
    """
    middle = vessel.points_N3[last] - vessel.points_N3[first]
    side = np.cross(middle, np.array([0.0, 1.0, 0.0]) + rng.normal(0, 0.15, 3))
    side = side / max(float(np.linalg.norm(side)), 1e-9)
    lines = []
    for wall in (side, -side):
        at = first
        while at < last - 2:
            end = min(at + int(rng.integers(8, 24)), last)
            lines.append(_wall(vessel, slice(at, end + 1), wall))
            at = end + int(rng.integers(1, 6))
    return tuple(line for line in lines if len(line) >= 2)
