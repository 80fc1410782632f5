"""Which of the standard views a run shows, from the positioner's angles, and whether the picture agrees. Knows no pixels.

Angles in degrees as DICOM PS3.3 C.8.7.5: LAO and cranial positive. The stenosis paper (seeds: end to end; spec section 2)
has four views of the left and three of the right coronary artery, and one model per view of the left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Artery = Literal["LCA", "RCA"]

VIEWS: dict[Artery, dict[str, tuple[float, float]]] = {
    "LCA": {
        "LAO cranial": (38.0, 28.0),
        "LAO caudal": (45.0, -30.0),
        "RAO cranial": (-14.0, 34.0),
        "RAO caudal": (-26.0, -26.0),
    },
    "RCA": {
        "LAO": (44.0, 0.0),
        "RAO": (-34.0, 0.0),
        "AP cranial": (4.0, 28.0),
    },
}
"""The middle of each standard view, primary and secondary angle in degrees.

After table 2 of Di Mario and Sutaria, Coronary angiography in the angioplasty era: projections with a meaning, Heart
2005; 91:968-976; laboratories differ by some ten degrees. "AP cranial" is the paper's shallow LAO/RAO cranial.
"""

OWN_MODEL = ("RCA", *VIEWS["LCA"])
"""What the stenosis paper has a model each for: the right artery, whatever its view, and each view of the left."""

FARTHEST_DEG = 25.0
"""A beam farther than this from every middle shows no standard view."""
LEAST_OBLIQUE_DEG = 10.0
"""A beam nearer to the middle than this is neither a right nor a left anterior oblique."""


@dataclass(frozen=True, slots=True)
class NearestView:
    """The standard view whose middle lies nearest to the beam."""

    name: str
    distance_deg: float
    """Between the two beams."""


def nearest_view(
    artery: Artery, primary_deg: float | None, secondary_deg: float | None, *, moving: bool = False
) -> NearestView | None:
    """The standard view of an artery that a beam shows; None beyond FARTHEST_DEG of all, without angles, or while it moves.

    Parameters
    ----------
    artery
        Each has views of its own.
    primary_deg, secondary_deg
        PositionerPrimaryAngle and PositionerSecondaryAngle, of the first frame.
    moving
        PositionerMotion is DYNAMIC: a rotation has no single view.
    """
    if primary_deg is None or secondary_deg is None or moving:
        return None
    found = min(
        (
            NearestView(name, between_beams_deg((primary_deg, secondary_deg), middle))
            for name, middle in VIEWS[artery].items()
        ),
        key=lambda view: view.distance_deg,
    )
    return found if found.distance_deg <= FARTHEST_DEG else None


def own_model(artery: str | None, view: str | None, suspect: bool | None = None) -> str | None:
    """Which of OWN_MODEL a clip is for; None where artery or view is not known, or picture and angles disagree."""
    if suspect or artery is None:
        return None
    name = "RCA" if artery == "RCA" else view
    return name if name in OWN_MODEL else None


def is_suspect(oblique: str | None, primary_deg: float | None, *, moving: bool = False) -> bool | None:
    """Whether angles and picture disagree: `oblique` is the side, RAO or LAO, that the pixels show.

    None where either does not say: without an angle, within LEAST_OBLIQUE_DEG of the middle, while the positioner moves.
    """
    if oblique is None or primary_deg is None or moving or abs(primary_deg) < LEAST_OBLIQUE_DEG:
        return None
    return oblique != ("LAO" if primary_deg > 0 else "RAO")


def view_of(clip: Mapping[str, Any]) -> tuple[NearestView | None, bool | None]:
    """The view of a clip whose artery was told, and whether it is suspect where its side was told.

    `clip`: what the pixels said, artery and oblique, and its header's primary_angle_deg, secondary_angle_deg and
    positioner_motion; what is not there is not known.
    """
    artery, primary_deg, moving = clip.get("artery"), clip.get("primary_angle_deg"), clip.get("positioner_motion") == "DYNAMIC"
    view = nearest_view(artery, primary_deg, clip.get("secondary_angle_deg"), moving=moving) if artery else None
    return view, is_suspect(clip.get("oblique"), primary_deg, moving=moving)


def between_beams_deg(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Angle between two beams given by primary and secondary angle: steeply cranial, the primary one matters less."""
    (x, y, z), (u, v, w) = _beam(*one), _beam(*other)
    cross = (y * w - z * v, z * u - x * w, x * v - y * u)
    return math.degrees(math.atan2(math.hypot(*cross), x * u + y * v + z * w))


def _beam(primary_deg: float, secondary_deg: float) -> tuple[float, float, float]:
    """Unit vector to the detector: to the patient's left, front and head."""
    primary, secondary = math.radians(primary_deg), math.radians(secondary_deg)
    return math.sin(primary) * math.cos(secondary), math.cos(primary) * math.cos(secondary), math.sin(secondary)
