"""The C-arm: from a point in the patient to a pixel, by the positioner's angles and the distances in the header.

Patient coordinates in mm, isocentre at the origin: x to the patient's left, y to the back, z to the head (the axes of
DICOM PS3.3 C.7.6.2); angles as PS3.3 C.8.7.5: LAO and cranial positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
