"""What each synthetic patient's study shows: which clips, which views, which faults, drawn from a seed.

The one place that decides what satisfactory and unsatisfactory look like. Lengths, frame rates, exposure, collimators,
devices, views and header facts are drawn without looking at the class, so that none of them gives it away. Knows
nothing of how a scene is drawn or written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from angio_ray.phantom import anatomy
from angio_ray.phantom.anatomy import Artery, Floats, Tree, Vessel, View
from angio_ray.phantom.dicom_writer import ClipFacts, Syntax
from angio_ray.phantom.render import Device, QualityClass, Scene

UNSATISFACTORY: tuple[QualityClass, ...] = (
    "no_contrast",
    "weak_contrast",
    "catheter_only",
    "poor_engagement",
    "ventricle",
    "aorta",
)
_VIEWS: dict[Artery, tuple[tuple[str, float, float], ...]] = {
    "LCA": (("LAO cranial", 38, 24), ("LAO caudal", 42, -26), ("RAO cranial", -16, 30), ("RAO caudal", -24, -24)),
    "RCA": (("LAO", 36, 0), ("RAO", -30, 0), ("LAO cranial", 14, 25)),
}
_RATES = ((15.0, 0.62), (7.5, 0.1), (10.0, 0.08), (12.5, 0.08), (30.0, 0.12))
_SYNTAXES: tuple[tuple[Syntax, float], ...] = (
    ("jpeg-lossless", 0.44),
    ("jpeg-baseline", 0.18),
    ("native", 0.12),
    ("jpeg-ls", 0.12),
    ("rle", 0.1),
    ("jpeg-2000", 0.04),
)


@dataclass(frozen=True, kw_only=True)
class PatientPlan:
    """One patient with one study: the heart, the body and the list of clips."""

    seed: int
    patient: int
    trees: dict[Artery, Tree]
    aorta: Vessel
    ventricle: Vessel
    heart_period_s: float
    source_to_detector_mm: float
    field_mm: float
    """Detector field, mm."""
    devices: tuple[Device, ...]
    clips: tuple[QualityClass, ...]

    @property
    def patient_id(self) -> str:
        """PatientID in the headers."""
        return f"PHANTOM-{self.seed}-{self.patient:05d}"

    def clip_rng(self, clip: int) -> np.random.Generator:
        """The stream of one clip: the same whoever renders it and in whatever order."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.patient, clip + 1)))


def plan_patient(seed: int, patient: int, clips: tuple[int, int], unsatisfactory: float) -> PatientPlan:
    """Draw a patient. Both classes are in the study when it has two clips or more and the share is neither 0 nor 1."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient, 0)))
    count = int(rng.integers(clips[0], clips[1] + 1))
    bad = int(rng.binomial(count, unsatisfactory))
    if count >= 2 and 0 < unsatisfactory < 1:
        bad = min(max(bad, 1), count - 1)
    faults = [UNSATISFACTORY[i] for i in rng.permutation(len(UNSATISFACTORY))]
    classes: list[QualityClass] = [faults[i % len(faults)] for i in range(bad)]
    classes += ["satisfactory"] * (count - bad)
    order = rng.permutation(count)
    diseased = rng.random() < 0.5
    return PatientPlan(
        seed=seed,
        patient=patient,
        trees={artery: anatomy.grow_tree(artery, rng, stenosed=diseased) for artery in ("LCA", "RCA")},
        aorta=anatomy.aorta(rng),
        ventricle=anatomy.ventricle(rng),
        heart_period_s=float(rng.uniform(0.6, 1.1)),
        source_to_detector_mm=float(rng.uniform(950, 1150)),
        field_mm=float(rng.uniform(150, 205)),
        devices=_devices(rng),
        clips=tuple(classes[i] for i in order),
    )


def plan_scene(
    plan: PatientPlan, clip: int, size: int, frames: tuple[int, int], fps: float | None, rng: np.random.Generator
) -> Scene:
    """Draw one clip's scene. Everything that is not the fault itself is drawn before the class is looked at."""
    rate = fps or float(rng.choice([r for r, _ in _RATES], p=[p for _, p in _RATES]))
    num_frames = int(np.clip(round(rng.uniform(3.2, 7.0) * rate), *frames))
    times = np.arange(num_frames) / rate
    length_s = num_frames / rate
    artery: Artery = "LCA" if rng.random() < 0.6 else "RCA"
    name, primary, secondary = _VIEWS[artery][rng.integers(len(_VIEWS[artery]))]
    start = float(rng.uniform(0.15, min(1.2, 0.3 * length_s)))
    if rng.random() < 0.12:
        start = float(rng.uniform(-1.5, 0.0))  # the recording began after the injection
    bolus = float(np.clip(rng.uniform(1.6, 3.4), 0.3, max(0.3, 0.75 * length_s - start)))
    quality = plan.clips[clip]
    contrast = _contrast(quality, rng)
    tree = plan.trees[artery]
    tip, style = _catheter_place(quality, tree, rng)
    coronary = quality not in ("catheter_only", "ventricle")
    view = _view(plan, name, primary, secondary, size, _target(quality, tree, plan), rng)
    return Scene(
        quality_class=quality,
        view=view,
        tree=tree if coronary else None,
        aorta=plan.aorta,
        ventricle=plan.ventricle,
        catheter=anatomy.catheter(tip, rng, style=style),
        catheter_on_heart=style != "arch",
        devices=plan.devices + _clip_devices(tree if coronary else None, rng),
        times_s=times,
        heart_period_s=plan.heart_period_s * float(rng.uniform(0.95, 1.05)),
        breath_mm=float(rng.choice([0.0, 1.0, 3.0, 6.0])),
        bolus_start_s=start,
        bolus_s=bolus,
        washout_s=float(rng.uniform(0.5, 1.5)),
        flow_mm_s=float(rng.uniform(110, 260)),
        **contrast,
        exposure=float(np.exp(rng.uniform(np.log(0.008), np.log(0.05)))),
        blur_px=float(rng.uniform(0.5, 1.1)) * max(size / 512, 0.6),
        sharpen=float(rng.choice([0.0, 0.0, 0.4, 0.9])),
        gamma=float(rng.uniform(0.55, 1.3)),
        levels=(float(rng.uniform(0.04, 0.25)), float(rng.uniform(0.6, 0.97))),
        settling=float(rng.uniform(-0.15, 0.35)),
        veil=float(rng.uniform(0.05, 0.5)),
        collimator=("none", "octagon", "round", "rectangle")[rng.choice(4, p=[0.35, 0.2, 0.15, 0.3])],
        bits=int(rng.choice([8, 10, 12], p=[0.8, 0.08, 0.12])),
        shift_px=(0.0, 0.0) if rng.random() < 0.85 else tuple((rng.normal(0, 6.0, 2) * size / 512).tolist()),
    )


def clip_facts(plan: PatientPlan, clip: int, scene: Scene, syntax: Syntax | None) -> ClipFacts:
    """The header of a clip, drawn from a stream of its own so that it says nothing about the class."""
    rng = np.random.default_rng(np.random.SeedSequence(plan.seed, spawn_key=(plan.patient, clip + 1, 1)))
    chosen: Syntax = syntax or _SYNTAXES[rng.choice(len(_SYNTAXES), p=[p for _, p in _SYNTAXES])][0]
    if chosen == "jpeg-baseline" and scene.bits != 8:
        if syntax is not None:
            raise ValueError("JPEG baseline holds 8 bits only")
        chosen = "jpeg-lossless"
    day = np.datetime64("2020-01-01") + (plan.patient * 37 + plan.seed) % 1800
    minutes = 8 * 60 + (plan.patient * 53) % 480
    start = f"{minutes // 60:02d}{minutes % 60:02d}00"
    minutes += 2 * clip + 5
    step_ms = 1000.0 * float(np.diff(scene.times_s).mean())
    return ClipFacts(
        patient=plan.patient,
        study_key=f"{plan.seed}/{plan.patient}",
        series_number=clip + 1,
        patient_id=plan.patient_id,
        patient_sex="F" if (plan.patient + plan.seed) % 2 else "M",
        study_date=str(day).replace("-", ""),
        study_time=start,
        acquisition_time=f"{minutes // 60 % 24:02d}{minutes % 60:02d}{int(rng.integers(60)):02d}",
        frame_times_ms=tuple((scene.times_s * 1000.0).tolist()),
        use_frame_time_vector=bool(rng.random() < 0.15),
        cine_rate=round(1000.0 / step_ms) if rng.random() < 0.7 else None,
        primary_deg=scene.view.primary_deg,
        secondary_deg=scene.view.secondary_deg,
        source_to_detector_mm=scene.view.source_to_detector_mm,
        source_to_patient_mm=scene.view.source_to_patient_mm,
        imager_pixel_spacing_mm=scene.view.pitch_mm,
        bits=scene.bits,
        monochrome1=bool(rng.random() < 0.05),
        syntax=chosen,
        kvp=round(float(rng.uniform(65, 100)), 1),
        tube_current_ma=int(rng.integers(400, 800)),
        exposure_ms=int(rng.integers(4, 10)),
    )


def _contrast(quality: QualityClass, rng: np.random.Generator) -> dict[str, float]:
    """Attenuation of the iodine in each place, per mm, and how far it gets along the vessels."""
    vessel, cloud, dilute = rng.uniform(0.13, 0.24), rng.uniform(0.0, 0.035), rng.uniform(0.008, 0.016)
    weak, proximal = rng.uniform(0.04, 0.16), rng.uniform(15, 45)
    thin, spill = rng.uniform(0.1, 0.4), rng.uniform(0.02, 0.06)
    values = {
        "vessel_iodine": vessel,
        "reach_mm": 1e4,
        "aorta_iodine": 0.0,
        "ventricle_iodine": 0.0,
        "reflux_iodine": cloud if rng.random() < 0.6 else 0.0,
    }
    match quality:
        case "no_contrast" | "catheter_only":
            values |= {"vessel_iodine": 1e-6, "reflux_iodine": 0.0}
        case "weak_contrast":
            values |= {"vessel_iodine": vessel * weak, "reflux_iodine": cloud * 0.3}
        case "poor_engagement":
            values |= {"vessel_iodine": vessel * thin, "reach_mm": proximal, "reflux_iodine": spill}
        case "ventricle":
            values |= {"ventricle_iodine": dilute * 1.6, "aorta_iodine": dilute * rng.uniform(0.3, 1.0)}
        case "aorta":
            values |= {"aorta_iodine": dilute * 2.0, "vessel_iodine": vessel * 0.2, "reach_mm": proximal}
    return {key: float(value) for key, value in values.items()}


def _catheter_place(
    quality: QualityClass, tree: Tree, rng: np.random.Generator
) -> tuple[Floats, Literal["left", "right", "pigtail", "arch"]]:
    """Tip in mm, and the shape."""
    if quality == "catheter_only":
        return tree.ostium, "arch" if rng.random() < 0.5 else "pigtail"
    if quality == "ventricle":
        return anatomy.BASE + 0.55 * (anatomy.APEX - anatomy.BASE) + rng.normal(0, 3, 3), "pigtail"
    if quality == "aorta":
        return np.array([-2.0, 1.0, 42.0]) + rng.normal(0, 2, 3), "pigtail"
    style: Literal["left", "right"] = "left" if tree.artery == "LCA" else "right"
    if quality == "poor_engagement":
        away = rng.normal(0, 1, 3) * np.array([1, 1, 0.5])
        return tree.ostium + away / np.linalg.norm(away) * rng.uniform(5, 11) + np.array([0.0, 2.0, 6.0]), style
    return tree.ostium, style


def _target(quality: QualityClass, tree: Tree, plan: PatientPlan) -> Floats:
    """What the operator puts in the middle, mm."""
    if quality == "ventricle":
        return plan.ventricle.points_N3.mean(axis=0) + np.array([0.0, 0.0, 12.0])
    if quality == "aorta":
        return np.array([2.0, 6.0, 45.0])
    low = np.min([v.points_N3.min(axis=0) for v in tree.vessels], axis=0)
    high = np.max([v.points_N3.max(axis=0) for v in tree.vessels], axis=0)
    return (low + high) / 2


def _view(
    plan: PatientPlan,
    name: str,
    primary: float,
    secondary: float,
    size: int,
    target: Floats,
    rng: np.random.Generator,
) -> View:
    primary, secondary = primary + float(rng.normal(0, 5)), secondary + float(rng.normal(0, 4))
    source_to_patient = 0.75 * plan.source_to_detector_mm * float(rng.uniform(0.97, 1.03))
    pitch = plan.field_mm * float(rng.choice([1.0, 1.15])) / size
    right, down, _ = anatomy.axes(primary, secondary)
    per_mm = plan.source_to_detector_mm / source_to_patient / pitch
    off = np.array([target @ right, target @ down]) * per_mm
    middle = size / 2 - off + rng.normal(0, 0.03 * size, 2)
    return View(
        name=name,
        primary_deg=primary,
        secondary_deg=secondary,
        source_to_detector_mm=plan.source_to_detector_mm,
        source_to_patient_mm=source_to_patient,
        pitch_mm=pitch,
        size=size,
        centre_px=(float(middle[0]), float(middle[1])),
    )


def _devices(rng: np.random.Generator) -> tuple[Device, ...]:
    """What this patient has in or on the chest in every clip: sternal wires, a pacemaker's lead, ECG leads."""
    found = []
    if rng.random() < 0.15:
        loops = []
        for z in np.arange(-70, 60, 26.0):
            angle = np.linspace(0, 2 * np.pi, 14)[:, None]
            ring = np.hstack([7 * np.cos(angle), -78 + 4 * np.sin(angle), z + 6 * np.sin(angle)])
            loops.append(ring + rng.normal(0, 0.6, ring.shape))
        found.append(Device(lines=tuple(loops), width_mm=0.8, attenuation=0.9))
    if rng.random() < 0.12:
        lead = np.array([[-70, -40, 90], [-28, -5, 70], [-30, 0, 20], [-12, -14, -20], [30, -30, -44]], float)
        lead = anatomy.spline(lead + rng.normal(0, 4, lead.shape), 3.0)
        found.append(Device(lines=(lead,), width_mm=1.8, attenuation=0.5, beats=True))
    if rng.random() < 0.3:
        lead = anatomy.spline(rng.uniform(-90, 90, (4, 3)) * [1, 0, 1] + [0, -95, 0], 4.0)
        found.append(Device(lines=(lead,), width_mm=float(rng.uniform(0.6, 1.4)), attenuation=0.25))
    return tuple(found)


def _clip_devices(tree: Tree | None, rng: np.random.Generator) -> tuple[Device, ...]:
    """A guide wire down the artery, at times, whatever the class."""
    draw = rng.random()
    if tree is None or draw > 0.15:
        return ()
    trunk, first = tree.vessels[:2]
    course = np.vstack([trunk.points_N3, first.points_N3]) if tree.artery == "LCA" else trunk.points_N3
    return (Device(lines=(course,), width_mm=0.4, attenuation=0.4, beats=True),)
