"""A contrast-enhanced CT of a synthetic heart: a volume of HU in which the branches and their plaques are painted.

Chambers, great vessels, fat, lungs, ribs and spine are simple solids; then come veins, branches with wall, lumen and
plaque, noise, the scanner's blur and at times the artefacts of a beating heart. Arrays are indexed [z, y, x]; positions
are patient mm. Knows nothing of pictures, reports or files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.spatial import cKDTree

from angio_ray.phantom.ct_heart import (
    STEP_MM,
    Anatomy,
    Branch,
    Dominance,
    Floats,
    Line,
    cone,
    course_normals,
    draw_lesions,
    ellipsoid,
    filling,
    grow,
    lumen_along,
)

Artefact = Literal["none", "stair_step", "motion"]
VOXEL_MM = 0.5
_BOX_MM = np.array([[-80.0, 85.0], [-82.0, 68.0], [-72.0, 52.0]])
"""The scanned field, x y z."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """HU on a grid."""

    hu_ZYX: NDArray[np.float32]
    origin: Floats
    """Position of voxel [0, 0, 0], x y z mm."""
    voxel_mm: float


@dataclass(frozen=True, kw_only=True)
class CtHeart:
    """One patient's scan and what is known of it."""

    volume: Volume
    branches: tuple[Branch, ...]
    dominance: Dominance
    artefact: Artefact
    shift_Z2: Floats
    """How far the artefact moved each slice, x and y mm."""


def draw_heart(rng: np.random.Generator, *, diseased: float = 0.7, voxel_mm: float = VOXEL_MM) -> CtHeart:
    """Draw a patient: a heart, its branches, their plaques, and the scan.

    Parameters
    ----------
    rng : np.random.Generator
        All chance comes from it.
    diseased : float
        Share of patients with any plaque.
    voxel_mm : float
        Coarser is faster: for a quick look.
    """
    anatomy = Anatomy.draw(rng)
    dominance: Dominance = "left" if rng.random() < 0.14 else "right"
    branches, twigs = grow(anatomy, dominance, rng)
    if rng.random() < diseased:
        branches = tuple(replace(branch, lesions=draw_lesions(branch, rng)) for branch in branches)
    return scan_heart(anatomy, branches, twigs, dominance, rng, voxel_mm=voxel_mm)


# --- the scanner -----------------------------------------------------------------------------------------------------


def scan_heart(
    anatomy: Anatomy,
    branches: tuple[Branch, ...],
    twigs: tuple[Line, ...],
    dominance: Dominance,
    rng: np.random.Generator,
    *,
    voxel_mm: float = VOXEL_MM,
) -> CtHeart:
    """Paint, blur and spoil: the volume that a scanner would give."""
    volume = _body_volume(anatomy, rng, voxel_mm)
    hu = volume.hu_ZYX
    _paint_veins(volume, branches, rng)
    contrast_hu = anatomy.hu["left"] * rng.uniform(0.9, 1.0)
    for twig in twigs:
        _paint_tube(volume, twig, contrast_hu * 0.9)
    _paint_branches(volume, branches, contrast_hu)
    noise_hu = rng.uniform(14, 38)
    sigma = float(rng.uniform(0.75, 1.05))  # voxels: a kernel between sharp and smooth
    white = np.float32(noise_hu * (2 * np.sqrt(np.pi) * sigma) ** 1.5)
    for plane in hu:
        plane += rng.standard_normal(plane.shape, dtype=np.float32) * white
    _blur(hu, sigma)
    artefacts: tuple[Artefact, ...] = get_args(Artefact)
    artefact = artefacts[int(rng.choice(3, p=[0.64, 0.22, 0.14]))]
    return CtHeart(
        volume=volume,
        branches=branches,
        dominance=dominance,
        artefact=artefact,
        shift_Z2=_spoil(volume, artefact, rng),
    )


def _blur(hu: NDArray[np.float32], sigma: float) -> None:
    flat = hu.reshape(len(hu), -1)
    cv2.GaussianBlur(flat, (1, 7), sigmaX=0.1, sigmaY=sigma, dst=flat)
    for plane in hu:
        cv2.GaussianBlur(plane, (7, 7), sigma, dst=plane)


def _spoil(volume: Volume, artefact: Artefact, rng: np.random.Generator) -> Floats:
    """Slabs from different heartbeats do not meet (stair steps), or every other one moved while it was taken.

    Returns how far each slice went, mm.
    """
    hu = volume.hu_ZYX
    moved_Z2 = np.zeros((len(hu), 2))
    thickness = int(rng.uniform(24, 40) / volume.voxel_mm)
    edge = int(rng.integers(thickness))
    moving = int(rng.integers(2))
    for k, first in enumerate(range(edge - thickness, len(hu), thickness)):
        shift, sweep = rng.normal(0, 1.1, 2), rng.normal(0, 1.8, 2)
        slab = slice(max(first, 0), first + thickness)
        if artefact == "stair_step":
            moved_Z2[slab] = shift
            for plane in hu[slab]:
                plane[:] = _shifted(plane, shift / volume.voxel_mm)
        elif artefact == "motion" and k % 2 == moving:
            moved_Z2[slab] = sweep / 2
            for plane in hu[slab]:
                plane[:] = (
                    plane + _shifted(plane, sweep / 2 / volume.voxel_mm) + _shifted(plane, sweep / volume.voxel_mm)
                ) / 3
    return moved_Z2


def _shifted(plane: NDArray[np.float32], by: Floats) -> NDArray[np.float32]:
    matrix = np.array([[1, 0, by[0]], [0, 1, by[1]]])
    moved = np.empty_like(plane)
    cv2.warpAffine(plane, matrix, plane.shape[::-1], dst=moved, borderMode=cv2.BORDER_REPLICATE)
    return moved


@dataclass(frozen=True)
class _Neighbourhood:
    """The voxels around a course: which sample is nearest, and where they lie across it."""

    voxels: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
    nearest: NDArray[np.intp]
    across: Floats
    """(M, 2) mm along the course's two normals."""

    @classmethod
    def of(cls, volume: Volume, path: Floats, normals: Floats, reach_mm: float) -> _Neighbourhood:
        shape = volume.hu_ZYX.shape
        centre = np.round((path[::2] - volume.origin) / volume.voxel_mm).astype(np.int32)
        r = int(np.ceil(reach_mm / volume.voxel_mm)) + 1
        ball = np.stack(np.meshgrid(*[np.arange(-r, r + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
        ball = ball[(ball**2).sum(1) <= r * r].astype(np.int32)
        xyz = (centre[:, None] + ball).reshape(-1, 3)
        xyz = xyz[((xyz >= 0) & (xyz < np.array(shape[::-1]))).all(1)]
        flat = np.unique((xyz[:, 2].astype(np.int64) * shape[1] + xyz[:, 1]) * shape[2] + xyz[:, 0])
        z, y, x = np.unravel_index(flat, shape)
        points = volume.origin + volume.voxel_mm * np.stack([x, y, z], 1)
        nearest = cKDTree(path).query(points)[1]
        across = np.einsum("mkd,md->mk", normals[nearest], points - path[nearest])
        return cls((z, y, x), nearest, across)


def _paint_branches(volume: Volume, branches: tuple[Branch, ...], contrast_hu: float) -> None:
    """Walls and plaques first, then lumens, then calcium: where branches meet, the lumen stays open."""
    hu = volume.hu_ZYX
    painted = [_Painted.of(volume, branch, contrast_hu) for branch in branches]
    for part in ("wall", "lumen", "calcium"):
        for p in painted:
            cover, value = p.layers[part]
            there = hu[p.where.voxels]
            if part == "wall":  # none within the aorta and other blood
                cover = cover * np.clip((260 - there) / 80, 0, 1)
            hu[p.where.voxels] = there + cover * (value - there)


@dataclass(frozen=True)
class _Painted:
    where: _Neighbourhood
    layers: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    """What covers a voxel how far, and its HU."""

    @classmethod
    def of(cls, volume: Volume, branch: Branch, contrast_hu: float) -> _Painted:
        lumen = lumen_along(branch)
        first = max(branch.start - 4, 0)  # the way to it is the parents': they have their own plaques
        reach_mm = float(branch.radius_N[first:].max()) + 2.6
        normals = course_normals(branch.path_N3)
        where = _Neighbourhood.of(volume, branch.path_N3[first:], normals[first:], reach_mm)
        voxel = volume.voxel_mm
        k = where.nearest + first
        to_plaque = where.across[:, 0] * np.cos(lumen.side_N[k]) + where.across[:, 1] * np.sin(lumen.side_N[k])
        beside = -where.across[:, 0] * np.sin(lumen.side_N[k]) + where.across[:, 1] * np.cos(lumen.side_N[k])
        a, b = np.maximum(lumen.narrow_N[k], 0.02), np.maximum(lumen.wide_N[k], 0.02)
        open_mm = _ellipse_distance(to_plaque + lumen.shift_N[k], beside, a, b)
        own = k >= branch.start
        ending = np.clip((len(branch.path_N3) - 1 - k) * STEP_MM / 12, 0, 1)
        open_cover = np.clip(0.5 - open_mm / voxel, 0, 1) * np.clip(lumen.narrow_N[k] / 0.06, 0, 1)
        open_cover = np.where(k == len(branch.path_N3) - 1, 0, open_cover) * ending**0.5

        radius = branch.radius_N[k]
        rho = np.hypot(to_plaque, beside)
        facing = np.clip(to_plaque / np.maximum(rho, 1e-3), -1, 1)
        thickness = (0.25 + 0.75 * np.clip(0.5 + 0.7 * facing, 0, 1)) * (1 - lumen.even_N[k]) + 0.75 * lumen.even_N[k]
        outer = radius + 0.35 + lumen.bulge_N[k] * thickness
        wall_cover = np.clip(0.5 - (rho - outer) / voxel, 0, 1) * ending
        wall_hu = np.where(lumen.plaque_N[k] > 0.15, 45.0, 30.0)

        depth = outer - rho
        arc = np.clip((facing - (0.25 - 0.7 * lumen.even_N[k])) * 4, 0, 1)
        calcium = lumen.calcium_N[k] * arc * np.clip(0.5 + (depth + 0.15) / voxel, 0, 1)
        calcium = calcium * np.clip(0.5 + (open_mm - 0.1) / voxel, 0, 1) * own
        layers = {
            "wall": (wall_cover, wall_hu),
            "lumen": (open_cover, contrast_hu * filling(branch)[k]),
            "calcium": (calcium, np.full(len(k), 1050.0)),
        }
        return cls(where, {n: (c.astype(np.float32), v.astype(np.float32)) for n, (c, v) in layers.items()})


def _paint_veins(volume: Volume, branches: tuple[Branch, ...], rng: np.random.Generator) -> None:
    """A fainter, wider companion beside the LAD, the LCX and the inferior branch."""
    for branch in branches:
        if branch.name not in ("LAD", "LCX", "PDA-RCA", "PDA-LCX", "PLV-RCA", "OM-1"):
            continue
        own = branch.path_N3[branch.start + 12 :]
        if len(own) < 20:
            continue
        normals = course_normals(own)
        swing = gaussian_filter1d(rng.normal(0, 8, len(own) + 80), 18)[40:-40] + rng.uniform(-np.pi, np.pi)
        apart = 4.2 + gaussian_filter1d(rng.normal(0, 6, len(own) + 80), 14)[40:-40].clip(-0.8, 5)
        path = own + apart[:, None] * (np.cos(swing)[:, None] * normals[:, 0] + np.sin(swing)[:, None] * normals[:, 1])
        radius = np.linspace(*((2.0, 0.9) if branch.name == "LAD" else (1.3, 2.3)), len(path))
        _paint_tube(volume, Line(path, radius), rng.uniform(90, 230))


def _paint_tube(volume: Volume, line: Line, value: float) -> None:
    path = line.path_N3
    where = _Neighbourhood.of(volume, path, course_normals(path), float(line.radius_N.max()) + 1)
    rho = np.linalg.norm(where.across, axis=1)
    cover = np.clip(0.5 - (rho - line.radius_N[where.nearest]) / volume.voxel_mm, 0, 1)
    cover *= where.nearest < len(path) - 1
    there = volume.hu_ZYX[where.voxels]
    volume.hu_ZYX[where.voxels] = there + (cover * (value - there)).astype(np.float32)


def _ellipse_distance(x: Floats, y: Floats, a: Floats, b: Floats) -> Floats:
    k0 = np.sqrt((x / a) ** 2 + (y / b) ** 2) + 1e-6
    k1 = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2) + 1e-6
    return k0 * (k0 - 1) / k1


# --- the body -----------------------------------------------------------------------------------------------------------


def _body_volume(anatomy: Anatomy, rng: np.random.Generator, voxel_mm: float) -> Volume:
    """Everything but the coronary vessels, computed on voxels of twice the size."""
    coarse_mm = 2 * voxel_mm
    body = _body(anatomy, rng, coarse_mm)
    shape = (2 * body.shape[0], 2 * body.shape[1], 2 * body.shape[2])
    origin = _BOX_MM[:, 0] - voxel_mm / 2
    return Volume(hu_ZYX=_stretch(body, shape), origin=origin, voxel_mm=voxel_mm)


def _body(anatomy: Anatomy, rng: np.random.Generator, voxel_mm: float) -> NDArray[np.float32]:
    x, y, z = (np.arange(lo, hi, voxel_mm, dtype=np.float32) for lo, hi in _BOX_MM)
    shape = (len(z), len(y), len(x))
    grid = np.stack(np.broadcast_arrays(x, y[:, None], z[:, None, None]))
    heart = np.stack(
        [sum(np.float32(a) * g for a, g in zip(axis, grid, strict=True)) for axis in anatomy.axes / anatomy.size]
    )
    solid = anatomy.outside(heart)
    texture = _cloud(shape, 1.2 / voxel_mm, rng)
    lumps = _cloud(shape, 5.0 / voxel_mm, rng)
    hu = np.full(shape, anatomy.hu["fat"], np.float32)

    def paint(distance: Floats, value: Floats | float) -> None:
        cover = np.clip(0.5 - distance / voxel_mm, 0, 1).astype(np.float32)
        np.add(hu, cover * (value - hu), out=hu)

    outline = np.minimum.reduce(list(solid.values()))
    sac = gaussian_filter(outline, 6 / voxel_mm) - 7.5 - 2.5 * lumps.clip(-1, 2)  # fat fills the grooves
    chest_wall = y[:, None] + 64 - 0.004 * (x - 5) ** 2 + 3 * lumps
    spine = cone(grid, (-16, 84, -200), (-12, 78, 200), 25, 25) + 1.5 * lumps
    aorta_down = cone(grid, (18, 58, -200), (16, 56, 200), 12, 12)
    dome = z[:, None, None] + 46 + 0.005 * ((x + 30) ** 2 + (y[:, None] - 5) ** 2) + 1.5 * lumps

    mediastinum = np.minimum(np.minimum(sac, spine - 7), aorta_down - 5)
    mediastinum = np.minimum(mediastinum, cone(grid, (0, 12, 20), (0, 16, 90), 30, 38) + 4 * lumps)
    lung_vessels = np.clip((texture + 0.4 * lumps - 1.75) * 4, 0, 1)
    paint(-mediastinum, -865 + 35 * texture + 820 * lung_vessels)
    paint(dome, 95 + 12 * texture + 10 * lumps)  # liver, stomach, spleen
    paint(chest_wall, 45 + 25 * texture)
    paint(sac, anatomy.hu["fat"] + 14 * texture + 8 * lumps)
    paint(np.abs(sac + 1.0) - 0.6, 15.0)  # pericardium
    _bones(paint, grid, x, y, z, spine, texture, rng)

    muscle = anatomy.hu["muscle"] + 9 * lumps + 5 * texture
    left = anatomy.hu["left"] + 12 * lumps
    right = anatomy.hu["right"] * np.clip(1 + 0.2 * lumps * (0.4 + abs(lumps)), 0.65, 1.5)  # poorly mixed
    wall = anatomy.lv_wall_mm
    aorta = np.minimum(solid["root"], cone(heart, (-22, 14, 22), (-60, 26, 70), 16, 15))
    rough = 0.5 * texture + 0.9 * lumps
    for name, of_wall in (("RA", 70.0), ("LA", 60.0), ("RV", 85.0 + 20 * texture), ("outflow", 70.0)):
        paint(solid[name], of_wall)
    paint(aorta, 60.0)
    paint(aorta_down, 60.0)
    paint(solid["LV"], muscle)
    appendage = cone(heart, (-14, -25, 12), (-2, -24, 27), 8, 5) + 1.6 * rough.clip(-1.5, 1.5)
    cavity = np.maximum(
        ellipsoid(heart, (25, 0, 0), (58 - wall - 4, 31 - wall, 31 - wall)) + 1.2 * rough, -heart[0] - 4
    )
    trabeculae = np.clip((texture + 0.7 * lumps - 0.9) * 2, 0, 1)
    paint(solid["RA"] + 2.0, right * 0.85)
    paint(np.maximum(solid["RV"] + 3.2, 0.5 - solid["LV"]), right - trabeculae * 0.5 * (right - 90))
    paint(solid["outflow"] + 2.4, right)
    paint(solid["LA"] + 1.8, left)
    paint(appendage, left * 0.97)
    paint(cavity, left)
    for papillary in (((30, -12, 9), (58, -8, 7)), ((30, -6, -14), (58, -6, -8))):
        paint(cone(heart, *papillary, 4.5, 7) + 0.8 * rough, muscle)
    paint(np.maximum(np.abs(heart[0] + 5 + 0.004 * (heart[2] ** 2)) - 0.8, cavity - 5), 120.0)  # mitral valve
    paint(aorta + 1.7, left * 1.03)
    paint(aorta_down + 1.6, left)
    return hu


def _cloud(shape: tuple[int, int, int], sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of unit variance."""
    step = max(1, round(sigma / 2))
    small = tuple(n // step + 2 for n in shape)
    cloud = gaussian_filter(rng.standard_normal(small, dtype=np.float32), sigma / step)
    cloud /= cloud.std()
    return _stretch(cloud, shape) if step > 1 else np.ascontiguousarray(cloud[: shape[0], : shape[1], : shape[2]])


def _stretch(volume: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """To another grid, linearly."""
    planes = [cv2.resize(plane, (shape[2], shape[1]), interpolation=cv2.INTER_LINEAR) for plane in volume]
    rows = np.clip((np.arange(shape[0]) + 0.5) * len(planes) / shape[0] - 0.5, 0, len(planes) - 1)
    out = np.empty(shape, np.float32)
    for k, row in enumerate(rows):
        low = min(int(row), len(planes) - 2)
        cv2.addWeighted(planes[low], low + 1 - row, planes[low + 1], row - low, 0, dst=out[k])
    return out


def _bones(
    paint: Any, grid: Floats, x: Floats, y: Floats, z: Floats, spine: Floats, texture: Floats, rng: np.random.Generator
) -> None:
    discs = np.abs((z + rng.uniform(0, 24)) % 24 - 12)[:, None, None]
    vertebra = np.maximum(spine + 3, 2.5 - discs)
    paint(vertebra, 480.0)
    paint(vertebra + 1.8, 190 + 60 * texture)
    tilt = 0.45 * np.abs(x)[None, None, :] - 0.2 * y[None, :, None]
    ribs = np.abs((z[:, None, None] + tilt + rng.uniform(0, 26)) % 26 - 13) - 5.5
    shell = np.abs(y[:, None] + 72 - 0.004 * (x - 5) ** 2)[None] - 3.5
    rib = np.maximum(ribs, shell)
    near_sternum = np.clip(1 - np.abs(x - 4) / 60, 0, 1)  # cartilage there: darker, with calcified rims
    paint(rib, 520 - 330 * near_sternum + 60 * texture)
    paint(rib + 2.0, 210 - 110 * near_sternum + 50 * texture)
    sternum = ellipsoid(grid, (2, -77, 0), (17, 6.5, 400))
    paint(sternum, 420.0)
    paint(sternum + 1.5, 150 + 50 * texture)
