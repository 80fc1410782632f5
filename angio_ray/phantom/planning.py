"""What each synthetic patient's studies show: which clips, which views, which faults, drawn from a seed.

The one place that decides what satisfactory and unsatisfactory look like. Everything that is not the fault itself
(lengths, frame rates, machines, devices, views, beats, header facts) is drawn from streams of its own, before and
without looking at the class: none of it gives the class away, and a clip planned again with another class is its
counterfactual. Knows nothing of how a scene is drawn or written.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from angio_ray.phantom import anatomy, contrast, detector, devices, disease, motion, territories
from angio_ray.phantom.anatomy import Artery, Floats, Tree, Vessel
from angio_ray.phantom.carm import View, axes, project
from angio_ray.phantom.detector import Detector
from angio_ray.phantom.dicom_writer import SYNTAXES, ClipFacts, Syntax
from angio_ray.phantom.scene import (
    UNSATISFACTORY,
    Chamber,
    Device,
    Injection,
    Motion,
    QualityClass,
    Scene,
    Streams,
)
from angio_ray.views import VIEWS

Protocol = Literal["default", "calcium"]
Site = Literal["seen", "unseen"]
_T = TypeVar("_T")

_RATES = ((15.0, 0.6), (7.5, 0.08), (10.0, 0.08), (12.5, 0.08), (25.0, 0.06), (30.0, 0.1))
_SYNTAXES: tuple[tuple[Syntax, float], ...] = (
    ("jpeg-lossless", 0.44),
    ("jpeg-baseline", 0.18),
    ("native", 0.12),
    ("jpeg-ls", 0.12),
    ("rle", 0.1),
    ("jpeg-2000", 0.04),
)
_SHORT_SHARE = {"puncture_check": 0.5, "satisfactory": 0.14}
"""Share of short runs; 0.1 for the rest. A look at the puncture site is short more often, and satisfactory runs are short
as often as unsatisfactory ones on the whole, so that the length tells nothing."""
_SHORT_FRAMES = 24
_USUAL_KV, _USUAL_MAS = 80.0, 3.9
"""Tube voltage and charge per frame that `Injection.iodine` and `Detector.noise` are drawn for."""
_BULKY_SHARE = {"satisfactory": 0.15}
"""Share of clips with something large in the field; 0.08 for the rest, beside the foreign objects. What it hides decides
the class, not that it is there."""
HIDING_SHARE = 0.6
"""Share of the tree's length that a foreign object hides at least in a clip of that class; at most `_BESIDE_SHARE` in others."""
_BESIDE_SHARE = 0.15
_IN_FIELD = 0.9
"""Share of the larger vessels that a coronary run's field holds."""
_PANNED_SHARE = 0.15
"""Share of clips in which the table moves."""
_PAN_KEEPS = 0.88
"""Share of the larger vessels that it leaves in the field while they are full; less where without it there are less."""
_SELECTIVE = ("LAD", "LCX", "conus", "SA")
"""Branches that a catheter can slip into alone."""
_ONLY = " only"
_AORTA_TIP_MM = {"root": 25.0, "root, by hand": 25.0, "ascending aorta": 48.0}
"""Ways of an aortogram: where the catheter's tip lies, mm of `Vessel.distance_N`."""
_VENTRICLE_TIP = {"mid cavity": 0.55, "apex": 0.75, "outflow tract": 0.35}
"""Ways of a ventriculogram: where the tip lies between the valve (0) and the apex (1)."""
_TRACE_IODINE = 0.004
"""Attenuation per mm of vessels that have emptied: under `truth.THINNEST_IODINE`."""
_TERRITORIES: dict[Site, tuple[territories.TerritoryName, ...]] = {
    "seen": ("femoral", "radial", "renal", "mammary"),
    "unseen": ("femoral", "radial", "renal", "mammary", "iliac", "cerebral"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomConfig:
    """What to generate."""

    patients: int = 6
    seed: int = 0
    clips: tuple[int, int] = (5, 7)
    """Fewest and most clips per patient; both classes are in every study when there are two clips or more."""
    size: int = 512
    """Rows and columns, px. The field of view stays, so 256 is the same picture on coarser pixels."""
    frames: tuple[int, int] | None = None
    """Fewest and most frames per clip; None: 60 to 120 and some clips of either class shorter, or 180 to 220 for the
    calcium protocol."""
    fps: float | None = None
    """Frames per second; None draws 15 mostly, 7.5, 10, 12.5, 25 and 30 at times (15 for the calcium protocol)."""
    syntax: Syntax | None = None
    """Transfer syntax; None draws one per clip."""
    unsatisfactory: float | None = None
    """Expected share of unsatisfactory clips; None: 0.4, or 0 for the calcium protocol. From 0.25 to 0.75 each patient
    of two clips or more has both kinds, whatever that makes of the share where clips are few."""
    diseased: float = 0.5
    """Expected share of patients with narrowings."""
    calcified: float | None = None
    """Expected share of patients with calcification; None: 0.35, or 0.55 for the calcium protocol."""
    protocol: Protocol = "default"
    """default: 0.3 to 2 s before contrast, but in one clip of ten of either class the recording begins after the injection.
    calcium: about 200 frames, the first half without contrast (spec section 4)."""
    site: Site = "seen"
    """unseen: machines, devices and kinds of run that the other site never shows, for an independent set."""
    twins: tuple[QualityClass, ...] = ()
    """For each satisfactory clip also its counterfactuals: same patient, beats and noise, and this fault."""

    def __post_init__(self) -> None:
        if self.patients < 1 or not 1 <= self.clips[0] <= self.clips[1] <= 99:
            raise ValueError("patients must be at least 1, and clips (fewest, most) from 1 to 99")
        if not 0 <= self.seed < 2**32:
            raise ValueError("seed must be 0 to 4294967295")
        if self.frames is not None and not 4 <= self.frames[0] <= self.frames[1] <= 2000:
            raise ValueError("frames must be (fewest, most) from 4 to 2000")
        if not 32 <= self.size <= 2048:
            raise ValueError("size must be 32 to 2048 px")
        if self.unsatisfactory is not None and not 0 <= self.unsatisfactory <= 1:
            raise ValueError("unsatisfactory is a share, 0 to 1")
        if not 0 <= self.diseased <= 1:
            raise ValueError("diseased is a share, 0 to 1")
        if self.calcified is not None and not 0 <= self.calcified <= 1:
            raise ValueError("calcified is a share, 0 to 1")
        if self.fps is not None and not 1 <= self.fps <= 120:
            raise ValueError("fps must be 1 to 120")
        if self.syntax is not None and self.syntax not in SYNTAXES:
            raise ValueError(f"syntax must be one of {', '.join(SYNTAXES)}")
        if self.protocol not in ("default", "calcium"):
            raise ValueError("protocol must be default or calcium")
        if self.site not in ("seen", "unseen"):
            raise ValueError("site must be seen or unseen")
        unknown = set(self.twins) - set(UNSATISFACTORY)
        if unknown:
            raise ValueError(f"twins: unknown {', '.join(sorted(unknown))}; there is {', '.join(UNSATISFACTORY)}")

    @property
    def name(self) -> str:
        """What the UIDs of this set are named after: two sets of one seed share none, although they show the same people."""
        drawn = {key: value for key, value in asdict(self).items() if key not in ("patients", "seed", "twins")}
        if self.diseased == 0.5:  # sets from before there was another share keep their UIDs
            del drawn["diseased"]
        if self.calcified is None:
            del drawn["calcified"]
        if drawn == {key: value for key, value in asdict(PhantomConfig()).items() if key in drawn}:
            return str(self.seed)
        return f"{self.seed}-{hashlib.sha256(repr(sorted(drawn.items())).encode()).hexdigest()[:6]}"

    @property
    def key(self) -> tuple[int, ...]:
        """Where all random streams of this set begin: another site has other patients, also at the same seed."""
        return (self.seed, *((1,) if self.site == "unseen" else ()))

    @property
    def frame_range(self) -> tuple[int, int]:
        """`frames`, or the protocol's."""
        return self.frames or ((60, 120) if self.protocol == "default" else (180, 220))

    @property
    def calcified_share(self) -> float:
        """`calcified`, or the protocol's."""
        if self.calcified is not None:
            return self.calcified
        return 0.35 if self.protocol == "default" else 0.55

    @property
    def unsatisfactory_share(self) -> float:
        """`unsatisfactory`, or the protocol's."""
        if self.unsatisfactory is not None:
            return self.unsatisfactory
        return 0.4 if self.protocol == "default" else 0.0


@dataclass(frozen=True, kw_only=True)
class PatientPlan:
    """One patient: the heart, the body, the laboratory, and the list of clips."""

    config: PhantomConfig
    patient: int
    female: bool
    trees: dict[Artery, Tree]
    aorta: Vessel
    ventricle: Vessel
    coronary_sinus: Vessel
    heart_period_s: float
    ectopics: float
    bypassed: bool
    """Had bypass surgery: grafts, sternal wires and clips, in every clip."""
    source_to_detector_mm: float
    field_mm: float
    """Detector field, mm."""
    rate: float
    """The laboratory's usual frames per second."""
    detectors: tuple[Detector, Detector]
    """The laboratory's two settings."""
    devices: tuple[Device, ...]
    """In or on the chest in every clip."""
    clips: tuple[QualityClass, ...]
    studies: tuple[int, ...]
    """Which of the patient's studies each clip belongs to, from 0."""

    @property
    def patient_id(self) -> str:
        """PatientID in the headers: one per person, so that sets of one seed can be split by patient together."""
        return f"PHANTOM-{self.config.seed}{'-unseen' if self.config.site == 'unseen' else ''}-{self.patient:05d}"

    def streams(self, clip: int) -> Streams:
        """The random streams of one clip: the same whoever renders it and in whatever order."""
        return Streams(key=(*self.config.key, self.patient, clip + 1))


def plan_patient(config: PhantomConfig, patient: int) -> PatientPlan:
    """Draw a patient. Both classes are in each study when it has two clips or more and the share is neither 0 nor 1."""
    streams = Streams(key=(*config.key, patient, 0))
    body, heart, lab = streams.of("body"), streams.of("heart"), streams.of("laboratory")
    female = bool(body.random() < 0.4)
    trees = anatomy.grow_trees(streams.of("trees"), female=female)
    trees = disease.add_disease(
        trees, streams.of("disease"), p_stenosis=config.diseased, p_calcified=config.calcified_share
    )
    clips, studies = _clip_classes(config, streams.of("clips"))
    bypassed = bool(body.random() < 0.1) or "graft" in clips  # all of the patient's clips show the wires, not that one
    period = float(heart.uniform(0.55, 1.1))
    return PatientPlan(
        config=config,
        patient=patient,
        female=female,
        trees=trees,
        aorta=territories.aorta(streams.of("aorta"), trees),
        ventricle=territories.ventricle(streams.of("ventricle")),
        coronary_sinus=territories.coronary_sinus(streams.of("sinus")),
        heart_period_s=period,
        ectopics=float(heart.choice([0.0, 0.03, 0.12], p=[0.6, 0.25, 0.15])),
        bypassed=bypassed,
        source_to_detector_mm=float(lab.uniform(950, 1150)),
        field_mm=float(lab.uniform(150, 205)),
        rate=config.fps or (15.0 if config.protocol == "calcium" else _draw(lab, _RATES)),
        detectors=(_detector(config, lab), _detector(config, lab)),
        devices=_worn(streams.of("devices"), bypassed, config.site),
        clips=clips,
        studies=studies,
    )


def _detector(config: PhantomConfig, rng: np.random.Generator) -> Detector:
    drawn = detector.draw(rng, site=config.site)
    return replace(drawn, bits=8) if config.syntax == "jpeg-baseline" else drawn  # which holds no more


def _clip_classes(config: PhantomConfig, rng: np.random.Generator) -> tuple[tuple[QualityClass, ...], tuple[int, ...]]:
    count = int(rng.integers(config.clips[0], config.clips[1] + 1))
    share = config.unsatisfactory_share
    bad = int(rng.binomial(count, share))
    # both classes in a study, so that the patient does not tell the class; at low shares that would falsify the share
    if count >= 2 and 0.25 <= share <= 0.75:
        bad = min(max(bad, 1), count - 1)
    faults = [UNSATISFACTORY[i] for i in rng.permutation(len(UNSATISFACTORY))]
    twice = rng.random() < 0.15 and min(bad, count - bad) >= 2
    classes: list[QualityClass] = [faults[i % len(faults)] for i in range(bad)]
    classes += ["satisfactory"] * (count - bad)
    # the first clips of either class go to the first study, so that each study has both
    study = [int(twice and i >= bad // 2) for i in range(bad)]
    study += [int(twice and i >= (count - bad) // 2) for i in range(count - bad)]
    order = sorted(rng.permutation(count), key=lambda i: study[i])
    return tuple(classes[i] for i in order), tuple(study[i] for i in order)


def plan_scene(plan: PatientPlan, clip: int, quality: QualityClass | None = None) -> Scene:
    """Draw one clip's scene.

    Parameters
    ----------
    plan : PatientPlan
        Whose clip.
    clip : int
        Which one.
    quality : QualityClass, optional
        Another class than the plan's: the counterfactual of that clip.
    """
    quality = quality or plan.clips[clip]
    config, streams = plan.config, plan.streams(clip)
    times = _times(plan, streams.of("length"), plan.clips[clip])
    artery: Artery = "LCA" if streams.of("artery").random() < 0.6 else "RCA"
    tree, conduits, detail, region = _anatomy(plan, artery, quality, streams.of("fault anatomy"))
    tree_of = plan.trees[artery]
    kv, ma, ms = _exposure(streams)
    base = _injection(float(times[-1]), config.protocol, streams.of("injection"))
    base = replace(base, iodine=base.iodine * _USUAL_KV / kv)  # soft radiation shows iodine better
    base = _with_fault(base, quality, detail, float(times[-1]), streams.of("fault injection"))
    view = _view(plan, artery, quality, detail, tree, conduits, region, streams.of("view"))
    machine = plan.detectors[int(streams.of("setting").integers(2))]
    obstacle: tuple[Device, ...] = ()
    if quality == "foreign_object":
        obstacle = devices.obstructing(tree or tree_of, view, streams.of("fault devices"), share=HIDING_SHARE)
        detail = ", ".join(dict.fromkeys(d.name for d in obstacle if devices.hides(d)))
    scene = Scene(
        quality_class=quality,
        detail=detail,
        streams=streams,
        view=view,
        region=region.region if region else "chest",
        tree=tree,
        conduits=conduits,
        chambers=_chambers(plan, quality, detail, base, streams.of("chambers")),
        injection=base,
        motion=_motion(plan, times, region is not None, streams),
        catheter=region.catheter if region else _catheter(plan, tree_of, quality, detail, conduits, streams),
        catheter_on_heart=region is None and quality != "graft" and detail != "arch",
        devices=_devices(plan, plan.clips[clip], quality, detail, tree, view, obstacle, streams) if region is None else (),
        times_s=times,
        detector=replace(machine, noise=machine.noise * float(np.sqrt(_USUAL_MAS / (ma * ms / 1000)))),
    )
    return _panned(plan, clip, tree_of, scene)


def _exposure(streams: Streams) -> tuple[float, int, int]:
    """Tube voltage in kV, current in mA and pulse length in ms of a clip: header, noise and iodine's contrast agree."""
    rng = streams.of("exposure")
    return round(float(rng.uniform(65, 100)), 1), int(rng.integers(400, 800)), int(rng.integers(4, 10))


def _times(plan: PatientPlan, rng: np.random.Generator, planned: QualityClass) -> Floats:
    """Start of each frame, s. A counterfactual keeps the length of the clip that it is made from."""
    config = plan.config
    other_rate, rate = rng.random() < 0.3, _draw(rng, _RATES)
    if not other_rate or config.fps or config.protocol == "calcium":
        rate = plan.rate
    fewest, most = config.frame_range
    seconds = rng.uniform(4.0, 8.0) if config.protocol == "default" else rng.uniform(12.0, 14.6)
    count = int(np.clip(round(seconds * rate), fewest, most))
    short = rng.random() < _SHORT_SHARE.get(planned, 0.1)
    shorter = int(rng.integers(_SHORT_FRAMES, max(fewest, _SHORT_FRAMES + 1)))
    if short and config.frames is None and config.protocol == "default":
        count = shorter
    return np.arange(count) / rate


def _anatomy(
    plan: PatientPlan, artery: Artery, quality: QualityClass, rng: np.random.Generator
) -> tuple[Tree | None, tuple[Vessel, ...], str, territories.Territory | None]:
    """The artery in the beam, other vessels that fill, which way of the class, and another part of the body if it is one."""
    tree = plan.trees[artery]
    if quality in ("other_territory", "puncture_check"):
        names = _TERRITORIES[plan.config.site]
        if quality == "puncture_check":
            names = ("femoral", "radial")
        name = names[int(rng.integers(len(names)))]
        place = territories.territory(name, rng)
        filled = quality == "other_territory" or rng.random() < 0.6
        return None, place.vessels, f"{name}, {place.detail}" + ("" if filled else ", no contrast"), place
    match quality:
        case "catheter_only":
            return None, (), str(rng.choice(["arch", "pigtail", "ostium"])), None
        case "aorta":
            way = str(rng.choice(list(_AORTA_TIP_MM)))
            return (tree if "root" in way else None), (), way, None
        case "ventricle":
            return None, (), str(rng.choice(list(_VENTRICLE_TIP))), None
        case "graft":
            graft = territories.grafts(rng, plan.trees)
            return None, graft, graft[0].name, None
        case "poor_engagement":
            branch = str(rng.choice([v.name for v in tree.vessels if v.name in _SELECTIVE] or [""]))
            if rng.random() < 2 / 3 or not branch:
                return tree, (), "off the ostium", None
            return _one_branch(tree, branch), (), f"{branch}{_ONLY}", None
        case "weak_contrast":
            return tree, (), str(rng.choice(["dilute", "dilute", "brief", "late"])), None
        case "no_contrast":
            return tree, (), str(rng.choice(["not injected", "after the run"])), None
        case "partial_recording":
            return tree, (), str(rng.choice(["balloon", "wire", "wire and puff", "balloon and puff"])), None
        case _:
            return tree, (), "", None


def _one_branch(tree: Tree, branch: str) -> Tree:
    """The tree as a catheter too deep in one branch fills it: that branch and what leaves it, nothing else."""
    served = {branch}
    for vessel in tree.vessels:  # parents come before their branches
        if vessel.parent in served:
            served.add(vessel.name)
    kept = tuple(v if v.name in served else replace(v, supply_N=np.zeros(len(v.points_N3))) for v in tree.vessels)
    start = float(min(v.distance_N[0] for v in kept if v.name in served))
    return replace(tree, vessels=tuple(replace(v, distance_N=np.maximum(v.distance_N - start, 0.0)) for v in kept))


def _injection(length_s: float, protocol: Protocol, rng: np.random.Generator) -> Injection:
    """A good injection: what every class starts from."""
    early = rng.random() < 0.1
    start = float(min(rng.uniform(0.3, 2.0), max(0.3 * length_s, min(0.3, 0.5 * length_s))))
    if early:
        start = float(rng.uniform(-1.2, 0.0))  # the recording began after the injection
    length = float(np.clip(rng.uniform(1.8, 3.6), 0.3, max(0.5, 0.8 * length_s - start)))
    if protocol == "calcium":
        start, length = float(rng.uniform(0.46, 0.54) * length_s), float(rng.uniform(3.0, 5.0))
    cloud, blush = float(rng.uniform(0.0, 0.035)), float(rng.uniform(0.0, 0.14))
    spills, stains = rng.random() < 0.6, rng.random() < 0.5
    return Injection(
        start_s=start,
        length_s=length,
        washout_s=float(rng.uniform(0.5, 1.5)),
        flow_mm_s=float(rng.uniform(110, 280)),
        iodine=float(rng.uniform(0.12, 0.21)),
        pulsation=float(rng.uniform(0.0, 0.3)),
        streaming=float(rng.uniform(0.0, 0.5)),
        reflux_iodine=cloud if spills else 0.0,
        blush_iodine=blush if stains else 0.0,
    )


def _with_fault(
    good: Injection, quality: QualityClass, detail: str, length_s: float, rng: np.random.Generator
) -> Injection:
    """The same injection with the class's fault."""
    share, reach = float(rng.uniform(0.03, 0.09)), float(rng.uniform(15, 45))
    thin, puff = float(rng.uniform(0.1, 0.4)), float(rng.uniform(0.25, 0.6))
    spill = float(rng.uniform(0.02, 0.06))
    none = replace(good, iodine=0.0, reflux_iodine=0.0, blush_iodine=0.0)
    stain = float(rng.uniform(0.1, 0.2))
    match quality, detail:
        case ("no_contrast", "after the run"):
            # the vessels have emptied before the recording begins; what is left in the muscle still pales
            gone_s = good.length_s + 4 * good.washout_s + 1.0
            return replace(good, start_s=-gone_s, iodine=_TRACE_IODINE, reflux_iodine=0.0, blush_iodine=stain)
        case ("no_contrast", _) | ("catheter_only", _) | ("ventricle", _):
            return none
        case ("weak_contrast", "brief"):
            return replace(good, iodine=good.iodine * 0.5, length_s=0.15, washout_s=0.3, reach_mm=reach * 1.5,
                           blush_iodine=0.0)  # fmt: skip
        case ("weak_contrast", "late"):
            return replace(good, start_s=length_s * float(rng.uniform(0.88, 0.96)), blush_iodine=0.0)
        case ("weak_contrast", _):
            return replace(good, iodine=good.iodine * share, reflux_iodine=good.reflux_iodine * 0.3, blush_iodine=0.0)
        case ("poor_engagement", way) if way.endswith(_ONLY):
            return replace(good, reflux_iodine=0.0)  # the tip is far from the root
        case ("poor_engagement", _):
            return replace(good, iodine=good.iodine * thin, reach_mm=reach, reflux_iodine=spill, streaming=0.8,
                           blush_iodine=0.0)  # fmt: skip
        case ("partial_recording", way):
            if "puff" not in way:
                return none
            return replace(good, length_s=puff, washout_s=0.4, iodine=good.iodine * 0.6, reach_mm=reach * 1.3,
                           blush_iodine=0.0)  # fmt: skip
        case ("aorta", _):
            return replace(good, iodine=good.iodine * 0.2, reach_mm=reach, reflux_iodine=0.0, blush_iodine=0.0)
        case ("puncture_check" | "other_territory", way) if way.endswith("no contrast"):
            return none
        case ("puncture_check" | "other_territory" | "graft", _):
            return replace(good, reflux_iodine=0.0, blush_iodine=0.0)
        case _:
            return good


def _chambers(
    plan: PatientPlan, quality: QualityClass, detail: str, injection: Injection, rng: np.random.Generator
) -> tuple[Chamber, ...]:
    dilute, share, strength = rng.uniform(0.008, 0.016), rng.uniform(0.3, 1.0), rng.uniform(0.012, 0.03)
    delay, drains = rng.uniform(2.6, 4.5), rng.random() < 0.5
    if quality == "aorta":
        strong = 1.2 if "by hand" in detail else 2.0
        return (Chamber(tube=_from_tip(plan.aorta, _AORTA_TIP_MM[detail]), iodine=float(dilute * strong)),)
    if quality == "ventricle":
        return (
            Chamber(tube=plan.ventricle, iodine=float(dilute * 1.6), contracts=0.38),
            Chamber(tube=plan.aorta, iodine=float(dilute * share), delay_s=0.5),
        )
    drains = drains and quality in ("satisfactory", "foreign_object")
    if (drains or detail == "after the run") and injection.blush_iodine > 0:
        return (Chamber(tube=plan.coronary_sinus, iodine=float(strength), delay_s=float(delay)),)
    return ()


def _from_tip(aorta: Vessel, tip_mm: float) -> Vessel:
    """What fills of the aorta: from somewhat below the catheter's tip on, with a rounded beginning; all of it from the root."""
    if tip_mm < 30:
        return aorta
    keep = aorta.distance_N >= tip_mm - 12
    along = aorta.distance_N[keep]
    assert aorta.moves_N is not None
    return replace(
        aorta,
        points_N3=aorta.points_N3[keep],
        radius_N=aorta.radius_N[keep] * np.sqrt(np.clip((along - along[0]) / 12, 0.02, 1)),
        distance_N=along,
        moves_N=aorta.moves_N[keep],
    )


def _motion(plan: PatientPlan, times: Floats, far_from_heart: bool, streams: Streams) -> Motion:
    phase, contraction, onsets = motion.beats(times, plan.heart_period_s, streams.of("beats"), ectopics=plan.ectopics)
    breath = streams.of("breath")
    amplitude = float(breath.choice([0.0, 1.0, 3.0, 6.0], p=[0.35, 0.3, 0.25, 0.1]))
    return Motion(
        phase_T=phase,
        contraction_T=contraction * (0.1 if far_from_heart else 1.0),
        onsets_s=onsets,
        period_s=plan.heart_period_s,
        breath_T3=motion.breath(times, breath, amplitude_mm=0.0 if far_from_heart else amplitude),
        pan_T3=np.zeros((len(times), 3)),
    )


def _panned(plan: PatientPlan, clip: int, tree: Tree, scene: Scene) -> Scene:
    """The scene with the table's movement, if any: it follows the contrast to the artery's distal vessels.

    It is the satisfactory clip's whatever is filmed, so that it is every counterfactual's and tells nothing.
    """
    table = scene.streams.of("table")
    if table.random() >= _PANNED_SHARE:
        return scene
    if scene.quality_class != "satisfactory":
        shift = plan_scene(plan, clip, "satisfactory").motion.pan_T3
        return replace(scene, motion=replace(scene.motion, pan_T3=shift))
    right, down, _ = axes(scene.view.primary_deg, scene.view.secondary_deg)
    shown = np.stack([right, down])
    # the level way on which the middle of the artery comes to where its ostium was seen
    x, z = np.linalg.solve(shown[:, [0, 2]], shown @ (tree.ostium - _middle(tree.vessels)))
    found = contrast.contrast_frames(contrast.curves(scene).filling_T)
    full_T = np.zeros(len(scene.times_s), bool)
    end = found["contrast_end"]
    full_T[found["contrast_begin"] or 0 : len(full_T) if end is None else end + 1] = True
    larger = np.concatenate([v.points_N3 for v in _larger(tree)])[::3]

    def least_inside(shift_T3: Floats) -> float:
        """Share of the larger vessels in the field, in the worst frame of those with full contrast."""
        xy, _ = project(motion.displace(larger, replace(scene.motion, pan_T3=shift_T3))[full_T], scene.view)
        return float(_inside(xy, scene.view, 0.48).mean(axis=1).min())

    enough = min(_PAN_KEEPS, least_inside(scene.motion.pan_T3))
    shift = motion.pan(
        scene.times_s,
        table,
        speed_mm_s=float(table.uniform(8, 30)),
        along=np.array([x, 0.0, z]),
        held_T=full_T,
        kept=lambda shift_T3: least_inside(shift_T3) >= enough,
    )
    return replace(scene, motion=replace(scene.motion, pan_T3=shift))


def _catheter(
    plan: PatientPlan, tree: Tree, quality: QualityClass, detail: str, conduits: tuple[Vessel, ...], streams: Streams
) -> Vessel:
    """The catheter where the class puts it. Its shape is the operator's choice, the same whatever the class."""
    rng, fault = streams.of("catheter"), streams.of("fault catheter")
    shapes: tuple[tuple[devices.CatheterStyle, float], ...] = (
        (("left", 0.7), ("extra backup", 0.2), ("left amplatz", 0.1))
        if tree.artery == "LCA"
        else (("right", 0.85), ("right amplatz", 0.15))
    )
    style = _draw(streams.of("catheter shape"), shapes)
    off, far, shift = fault.normal(0, 1, 3) * np.array([1, 1, 0.5]), fault.uniform(5, 11), fault.normal(0, 2, 3)
    away = tree.ostium + off / np.linalg.norm(off) * far + np.array([0.0, 2.0, 6.0])
    match quality, detail:
        case ("catheter_only", "arch" | "pigtail"):
            return devices.catheter(
                tree.ostium + shift + [0, 0, 15], rng, style="arch" if detail == "arch" else "pigtail"
            )
        case ("ventricle", _):
            deep = _VENTRICLE_TIP[detail]
            return devices.catheter(anatomy.BASE + deep * (anatomy.APEX - anatomy.BASE) + shift, rng, style="pigtail")
        case ("aorta", _):
            return devices.catheter(_at(plan.aorta, _AORTA_TIP_MM[detail]) + shift, rng, style="pigtail")
        case ("graft", _):
            return devices.catheter(conduits[0].points_N3[0], rng, style="graft")
        case ("poor_engagement", "off the ostium"):
            return devices.catheter(away, rng, style=style)
        case ("poor_engagement", way) if way.endswith(_ONLY):
            branch = tree.vessel(way.removesuffix(_ONLY))
            trunk = tree.vessels[0]  # the left main, or the right artery
            on = trunk.points_N3[8 : int(np.searchsorted(trunk.distance_N, branch.distance_N[0])) - 4 : 6]
            return devices.catheter(tree.ostium, rng, style=style, further=np.vstack([on, branch.points_N3[[0, 3]]]))
        case _:
            return devices.catheter(tree.ostium, rng, style=style)


def _devices(
    plan: PatientPlan,
    planned: QualityClass,
    quality: QualityClass,
    detail: str,
    tree: Tree | None,
    view: View,
    obstacle: tuple[Device, ...],
    streams: Streams,
) -> tuple[Device, ...]:
    """What is in the field beside the catheter. Wires, stents and bulky things come in every class alike."""
    rng, fault = streams.of("clip devices"), streams.of("fault devices")
    wire, stented, bulky = rng.random() < 0.12, rng.random() < 0.08, rng.random() < _BULKY_SHARE.get(planned, 0.08)
    found = list(plan.devices)
    if tree is not None and (wire or quality == "partial_recording"):
        found.append(devices.guide_wire(tree, streams.of("wire")))
        if quality == "partial_recording" and detail.startswith("balloon"):
            found.append(devices.balloon(tree, fault, wire=found[-1]))
    if tree is not None and stented:
        found.append(devices.stent(tree, streams.of("stent")))
    whole = tree or plan.trees["LCA"]
    if obstacle:
        found += obstacle
    elif bulky:
        found += _beside(
            devices.obstructing(whole, view, streams.of("bulky"), share=HIDING_SHARE), found, whole, view, rng
        )
    return tuple(found)


def _beside(
    bulky: tuple[Device, ...], others: list[Device], tree: Tree, view: View, rng: np.random.Generator
) -> list[Device]:
    """The same things moved across the picture, no farther than it takes to hide next to nothing of the tree."""
    right, down, _ = axes(view.primary_deg, view.secondary_deg)
    turn = rng.uniform(0, 2 * np.pi)
    for step_mm in range(0, 150, 10):
        for angle in turn + np.arange(8) * np.pi / 4:
            shift = step_mm * (np.cos(angle) * right + np.sin(angle) * down)
            moved = [
                replace(d, lines=tuple(p + shift for p in d.lines), plates=tuple(p + shift for p in d.plates))
                for d in bulky
            ]
            if devices.covered_share([*others, *moved], tree, view) <= _BESIDE_SHARE:
                return moved
    return []


def _worn(rng: np.random.Generator, bypassed: bool, site: Site) -> tuple[Device, ...]:
    """In or on the chest in all of a patient's clips."""
    draws = rng.random(8)
    found: list[Device] = []
    if bypassed or draws[0] < 0.06:
        found.append(devices.sternal_wires(rng))
    if bypassed:
        found.append(devices.surgical_clips(rng))
    if draws[1] < 0.12:
        found += devices.pacemaker(rng, leads=1 if draws[2] < 0.3 else 2)
    if draws[3] < 0.35:
        found += devices.ecg_leads(rng)
    if draws[4] < 0.06:
        found += devices.spinal_implant(rng)
    if draws[5] < 0.05:
        found.append(devices.prosthetic_valve(rng))
    if site == "unseen" and draws[6] < 0.35:
        found += devices.unseen(rng)
    return tuple(found)


def _view(
    plan: PatientPlan,
    artery: Artery,
    quality: QualityClass,
    detail: str,
    tree: Tree | None,
    conduits: tuple[Vessel, ...],
    elsewhere: territories.Territory | None,
    rng: np.random.Generator,
) -> View:
    """The C-arm for the clip, with what matters near the middle of the field. Its name is empty away from the heart."""
    names = list(VIEWS[artery])
    name = names[int(rng.integers(len(names)))]
    primary, secondary = VIEWS[artery][name]
    turn, tilt = float(rng.normal(0, 5)), float(rng.normal(0, 4))
    source_to_patient = 0.75 * plan.source_to_detector_mm * float(rng.uniform(0.97, 1.03))
    size, off_centre = plan.config.size, rng.normal(0, 0.03, 2)
    smallest = float(rng.choice([0.8, 0.9, 1.0, 1.15]))
    view = View(
        name=name,
        primary_deg=primary + turn,
        secondary_deg=secondary + tilt,
        source_to_detector_mm=plan.source_to_detector_mm,
        source_to_patient_mm=source_to_patient,
        pitch_mm=plan.field_mm * smallest / size,
        size=size,
        centre_px=(size / 2, size / 2),
    )
    # a larger field where a small one would cut the artery off; by the artery whatever is filmed, or the field would tell
    for zoom in np.arange(smallest, 1.5, 0.1):
        view = _centred(replace(view, pitch_mm=plan.field_mm * float(zoom) / size), _middle(plan.trees[artery].vessels))
        if _share_inside(plan.trees[artery], view) >= _IN_FIELD:
            break
    if elsewhere:
        view = replace(
            view, name="", primary_deg=elsewhere.primary_deg + turn, secondary_deg=elsewhere.secondary_deg + tilt
        )
    return _centred(view, _target(plan, artery, quality, detail, tree, conduits), off_centre)


def _centred(view: View, target: Floats, off_centre: Floats | None = None) -> View:
    """The view with a point in its middle, or off it by so much of its side."""
    at, _ = project(target, replace(view, centre_px=(0.0, 0.0)))
    middle = view.size / 2 - at + (0.0 if off_centre is None else off_centre * view.size)
    return replace(view, centre_px=(float(middle[0]), float(middle[1])))


def _share_inside(tree: Tree, view: View) -> float:
    """Share of the larger vessels' samples that lie well inside the picture."""
    xy, _ = project(np.concatenate([v.points_N3 for v in _larger(tree)]), view)
    return float(_inside(xy, view, 0.45).mean())


def _larger(tree: Tree) -> list[Vessel]:
    return [v for v in tree.vessels if v.radius_N[0] > 0.8]


def _inside(xy: Floats, view: View, share: float) -> NDArray[np.bool_]:
    """Which positions (..., 2) lie no farther from the picture's middle than a share of its side."""
    return np.asarray((np.abs(xy - view.size / 2) < share * view.size).all(axis=-1))


def _target(
    plan: PatientPlan,
    artery: Artery,
    quality: QualityClass,
    detail: str,
    tree: Tree | None,
    conduits: tuple[Vessel, ...],
) -> Floats:
    """What the operator puts in the middle, mm."""
    if quality == "ventricle":
        return plan.ventricle.points_N3.mean(axis=0) + np.array([0.0, 0.0, 12.0])
    if quality == "aorta":
        return _at(plan.aorta, _AORTA_TIP_MM[detail] + 10.0)
    return _middle(conduits or (tree or plan.trees[artery]).vessels)


def _middle(vessels: tuple[Vessel, ...]) -> Floats:
    low = np.min([v.points_N3.min(axis=0) for v in vessels], axis=0)
    high = np.max([v.points_N3.max(axis=0) for v in vessels], axis=0)
    return np.asarray((low + high) / 2)


def _at(vessel: Vessel, mm: float) -> Floats:
    """The point so far along a vessel."""
    return np.asarray(vessel.points_N3[np.searchsorted(vessel.distance_N, mm)])


def clip_facts(plan: PatientPlan, clip: int, scene: Scene) -> ClipFacts:
    """The header of a clip, drawn from a stream of its own so that it says nothing about the class."""
    config, study = plan.config, plan.studies[clip]
    rng = plan.streams(clip).of("header")
    kv, ma, ms = _exposure(plan.streams(clip))
    drawn: Syntax = _draw(rng, _SYNTAXES)
    chosen = config.syntax or drawn
    bits = scene.detector.bits
    if chosen == "jpeg-baseline" and bits != 8:
        chosen = "jpeg-lossless"
    day = np.datetime64("2020-01-01") + (plan.patient * 37 + config.seed) % 1500 + 190 * study
    minutes = 8 * 60 + (plan.patient * 53) % 480
    start = f"{minutes // 60:02d}{minutes % 60:02d}00"
    minutes += 2 * clip + 5
    step_ms = 1000.0 * float(np.diff(scene.times_s).mean())
    changed = "" if scene.quality_class == plan.clips[clip] else scene.quality_class
    return ClipFacts(
        patient=plan.patient,
        study_key=f"{config.name}/{plan.patient}" + (f"/{study}" if study else ""),
        twin=changed,
        series_number=clip + 1,
        patient_id=plan.patient_id,
        patient_sex="F" if plan.female else "M",
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
        bits=bits,
        monochrome1=False,  # PS3.3 C.8.7.1 allows MONOCHROME2 alone
        syntax=chosen,
        kvp=kv,
        tube_current_ma=ma,
        exposure_ms=ms,
    )


def _draw(rng: np.random.Generator, choices: tuple[tuple[_T, float], ...]) -> _T:
    """One of (value, probability)."""
    return choices[int(rng.choice(len(choices), p=[p for _, p in choices]))][0]
