"""A scene of known things for the tests: one straight artery with a branch, a steady heart, an even background."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from angio_ray.phantom import detector
from angio_ray.phantom.anatomy import Tree, Vessel
from angio_ray.phantom.carm import View
from angio_ray.phantom.detector import Detector
from angio_ray.phantom.scene import Injection, Motion, Scene, Streams

PERIOD_S = 0.8


def vessel(name: str, start: tuple[float, float, float], end: tuple[float, float, float], **more: Any) -> Vessel:
    """A straight vessel, 3 mm wide unless told, sampled every 0.75 mm or so."""
    ends = np.array([start, end], float)
    length = float(np.linalg.norm(ends[1] - ends[0]))
    t = np.linspace(0, 1, int(length / 0.75) + 1)
    values = {"radius_N": np.full(len(t), 1.5), "distance_N": t * length} | more
    return Vessel(name=name, points_N3=ends[0] + t[:, None] * (ends[1] - ends[0]), **values)


def tree() -> Tree:
    """100 mm from the head end downwards, and a branch that leaves in the middle."""
    main = vessel("RCA", (0, 0, 50), (0, 0, -50))
    branch = vessel("AM", (0, 0, 0), (30, 0, -20))
    branch = replace(branch, distance_N=branch.distance_N + 50, radius_N=branch.radius_N * 0.5, parent="RCA")
    return Tree(artery="RCA", vessels=(main, branch))


def steady(frames: int) -> Motion:
    """Nothing moves; the beats count for the flow alone."""
    zeros, still = np.zeros(frames), np.zeros((frames, 3))
    onsets = np.arange(-3, 20) * PERIOD_S
    return Motion(phase_T=zeros, contraction_T=zeros, onsets_s=onsets, period_s=PERIOD_S, breath_T3=still, pan_T3=still)


def clean_detector(**changes: Any) -> Detector:
    """Next to no noise, no blanking, no processing."""
    drawn = detector.draw(np.random.default_rng(0), site="seen", bits=8)
    plain: dict[str, Any] = {
        "noise": 0.002, "noise_memory": 0.0, "scatter": 0.0, "sharpen": 0.0, "compression": 0.0, "settling": 0.0,
        "vignette": 0.0, "shutter": "none", "blades": (0.0, 0.0, 0.0, 0.0), "wedge": None, "jpeg_quality": None,
        "curve": "log", "gamma": 1.0, "levels": (0.3, 0.7), "shoulder": 1.0,
    }  # fmt: skip
    return replace(drawn, **(plain | changes))


def view(size: int = 128) -> View:
    """From the front, 112 mm of the isocentre across."""
    return View(
        name="AP", primary_deg=0.0, secondary_deg=0.0, source_to_detector_mm=1000.0, source_to_patient_mm=750.0,
        pitch_mm=150.0 / size, size=size, centre_px=(size / 2, size / 2),
    )  # fmt: skip


def scene(*, frames: int = 45, size: int = 128, injection: dict[str, float] | None = None, **changes: Any) -> Scene:
    """The scene; `injection` and the rest replace what they name."""
    shot: dict[str, Any] = {"start_s": 0.6, "length_s": 1.5, "washout_s": 0.5, "flow_mm_s": 180.0, "iodine": 0.2}
    whole: dict[str, Any] = {
        "quality_class": "satisfactory", "detail": "", "streams": Streams(key=(1, 2, 3)), "view": view(size),
        "region": "chest", "tree": tree(), "conduits": (), "chambers": (),
        "injection": Injection(**(shot | (injection or {}))), "motion": steady(frames), "catheter": None,
        "catheter_on_heart": False, "devices": (), "times_s": np.arange(frames) / 15, "detector": clean_detector(),
    }  # fmt: skip
    return Scene(**(whole | changes))
