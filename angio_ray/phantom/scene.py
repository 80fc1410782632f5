"""What one synthetic clip shows, as plain data: the anatomy in the beam, the injection, the motion and the machine.

`planning` draws scenes, `render` turns them into frames. Times in s, lengths in mm, attenuation as natural log.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from angio_ray.phantom.anatomy import Floats, Tree, Vessel
from angio_ray.phantom.carm import View
from angio_ray.phantom.detector import Detector

QualityClass = Literal[
    "satisfactory",
    "aorta",
    "ventricle",
    "catheter_only",
    "puncture_check",
    "other_territory",
    "no_contrast",
    "weak_contrast",
    "poor_engagement",
    "partial_recording",
    "graft",
    "foreign_object",
]
"""Satisfactory, and the ways of not being so."""
QualityGroup = Literal["not_coronary", "obscured", "graft", "foreign_object"]
QUALITY_GROUPS: dict[QualityClass, QualityGroup] = {
    "aorta": "not_coronary",
    "ventricle": "not_coronary",
    "catheter_only": "not_coronary",
    "puncture_check": "not_coronary",
    "other_territory": "not_coronary",
    "no_contrast": "obscured",
    "weak_contrast": "obscured",
    "poor_engagement": "obscured",
    "partial_recording": "obscured",
    "graft": "graft",
    "foreign_object": "foreign_object",
}
"""The quality paper's four kinds of unsatisfactory clip (spec section 1)."""
UNSATISFACTORY: tuple[QualityClass, ...] = tuple(QUALITY_GROUPS)

Region = Literal["chest", "abdomen", "pelvis", "forearm", "neck"]
"""What lies around the vessels."""
REGIONS: tuple[Region, ...] = get_args(Region)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Random numbers of one clip, a stream per purpose: what one part draws never shifts what another part gets.

    So a clip with one thing changed (its contrast, its catheter) keeps the noise, beats and background it had.
    """

    key: tuple[int, ...]
    """Seed, patient, clip."""

    def of(self, purpose: str) -> np.random.Generator:
        """The generator of one purpose, anew from its beginning at each call."""
        seed, *where = self.key
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*where, zlib.crc32(purpose.encode()))))


@dataclass(frozen=True, kw_only=True)
class Device:
    """Something dense that is no vessel: lines (wires, leads, catheters' markers) and plates (a pacemaker's can)."""

    name: str
    lines: tuple[Floats, ...] = ()
    """Each (N, 3) mm."""
    width_mm: float = 1.0
    plates: tuple[Floats, ...] = ()
    """Flat outlines, each (N, 3) mm, filled."""
    attenuation: float = 0.5
    """Of the whole thickness."""
    moves: float = 0.0
    """How much of the heart's motion it follows: 0 fixed to the chest, 1 on the heart."""
    breathes: bool = False
    """Moves with the breath although it does not beat."""


@dataclass(frozen=True, kw_only=True)
class Chamber:
    """A wide cavity that iodine may fill: aorta, left ventricle, coronary sinus."""

    tube: Vessel
    iodine: float
    """Attenuation per mm where it is full; 0: none gets there."""
    contracts: float = 0.0
    """Share of the radius lost in systole (0.38 for the ventricle)."""
    delay_s: float = 0.0
    """After the injection's start."""


@dataclass(frozen=True, kw_only=True)
class Injection:
    """How the contrast comes, runs and goes."""

    start_s: float
    """When it leaves the catheter; negative: the recording began after it."""
    length_s: float
    washout_s: float
    """Time constant of the emptying."""
    flow_mm_s: float
    iodine: float
    """Attenuation of a filled vessel per mm of lumen (undiluted 350 mg/ml at 70-90 kVp effective: 0.1 to 0.25)."""
    reach_mm: float = 1e4
    """How far along the vessels it gets, mm of `Vessel.distance_N`."""
    pulsation: float = 0.0
    """How much the heart's beats dilute it, 0..1 (flow competes with the injection in diastole)."""
    streaming: float = 0.0
    """Unmixed contrast near the ostium, 0..1."""
    reflux_iodine: float = 0.0
    """Per mm, of the cloud that spills back into the aortic root."""
    blush_iodine: float = 0.0
    """Attenuation of the muscle's stain, late in the run."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What moves, per frame."""

    phase_T: Floats
    """Position in the cardiac cycle, 0..1, 0 at the beginning of systole."""
    contraction_T: Floats
    """How contracted the heart is, 0..1 (weaker in an ectopic beat)."""
    onsets_s: Floats
    """When each beat begins, on the clip's clock (some before 0 and after the end)."""
    period_s: float
    """Mean of the normal beats."""
    breath_T3: Floats
    """Shift of heart and diaphragm by breathing, mm."""
    pan_T3: Floats
    """Shift of the whole patient under the C-arm (table), mm."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that one clip shows, and the machine that takes it."""

    quality_class: QualityClass
    detail: str
    """Which way of its class, for the labels ("femoral, ...", "arch", what hides the vessels, ...); empty if satisfactory."""
    streams: Streams
    view: View
    region: Region
    tree: Tree | None
    """The coronary artery in the picture, iodine or not; None where there is none."""
    conduits: tuple[Vessel, ...]
    """Other vessels that the injection fills: a graft, a femoral artery. With a conduit `tree` stays dark."""
    chambers: tuple[Chamber, ...]
    injection: Injection
    motion: Motion
    catheter: Vessel | None
    catheter_on_heart: bool
    """Its tip moves with the heart."""
    devices: tuple[Device, ...]
    times_s: Floats
    detector: Detector


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A clip's stored values and what is known of each frame."""

    frames_THW: NDArray[np.uint8] | NDArray[np.uint16]
    filling_T: Floats
    """Mean iodine of the vessels (tree, or conduits) by volume, 1 = all filled with undiluted contrast."""
    vessel_xy: dict[str, Floats]
    """Per vessel of the tree and conduit, (T, N, 2) pixel positions, column and row."""
    vessel_radius_px: dict[str, Floats]
    """Per vessel, (T, N)."""
    vessel_mask_THW: NDArray[np.bool_]
    """Where a vessel with iodine lies."""
    calcium_mask_THW: NDArray[np.bool_] | None
    """Where calcification lies; None where the tree has none."""
    covered_share: float
    """Share of the tree, by length times width, that devices hide at end-diastole (0 without a tree)."""
