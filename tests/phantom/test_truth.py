"""The truth: labels and side files say what the scene and the renderer said, and masks and boxes survive the packing."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from angio_ray.phantom import detector, truth
from angio_ray.phantom.anatomy import Calcification, Stenosis, Tree, Vessel
from angio_ray.phantom.carm import View, project
from angio_ray.phantom.dicom_writer import sop_instance_uid, study_instance_uid
from angio_ray.phantom.scene import Device, Injection, Motion, Rendered, Scene, Streams
from tests.phantom.test_dicom_writer import FACTS

SIZE, FRAMES = 130, 24  # a width that is no multiple of eight
VIEW = View(
    name="RAO", primary_deg=0.0, secondary_deg=0.0, source_to_detector_mm=1000.0, source_to_patient_mm=750.0,
    pitch_mm=1.2, size=SIZE, centre_px=(65.0, 65.0),
)  # fmt: skip
DETECTOR = replace(detector.draw(np.random.default_rng(0), site="seen"), shutter="none")
FILLING = np.clip((np.arange(FRAMES) - 5) / 5, 0, 1) * np.where(np.arange(FRAMES) < 18, 1.0, 0.3)


def vessel(name: str, start: tuple[float, float, float], along: tuple[float, float, float], length_mm: float) -> Vessel:
    distance = np.arange(0, length_mm, 0.75)
    points = np.array(start) + distance[:, None] * np.array(along)
    return Vessel(name=name, points_N3=points, radius_N=np.full(len(distance), 1.5), distance_N=distance)


def narrowed(whole: Vessel, at: int, percent: float, length_mm: float) -> tuple[Vessel, Stenosis]:
    shape = np.abs(whole.distance_N - whole.distance_N[at]) <= length_mm / 2
    radius = whole.radius_N * np.where(shape, 1 - percent / 100, 1.0)
    supply = np.where((np.arange(len(radius)) > at) & (percent == 100), 0.0, 1.0)
    changed = replace(whole, radius_N=radius, healthy_radius_N=whole.radius_N, supply_N=supply)
    return changed, Stenosis(segment=whole.name, percent=percent, length_mm=length_mm, index=at)


# in the picture's plane; the same towards the detector; out of the picture; behind an occlusion
RCA, MIDDLE = narrowed(vessel("RCA", (-30, 0, 20), (1, 0, 0), 60), 40, 60.0, 9.0)
AWAY, FORESHORTENED = narrowed(vessel("PDA", (10, 20, 0), (0, -1, 0), 40), 25, 70.0, 10.0)
FAR, OUTSIDE = narrowed(vessel("PLV", (60, 0, 0), (1, 0, 0), 60), 40, 80.0, 6.0)
CUT, OCCLUSION = narrowed(vessel("AM", (-30, 0, -20), (1, 0, 0), 60), 40, 100.0, 8.0)
TREE = Tree(
    artery="RCA",
    vessels=(RCA, AWAY, FAR, CUT),
    stenoses=(MIDDLE, FORESHORTENED, OUTSIDE, OCCLUSION),
    calcifications=(
        Calcification(
            segment="RCA",
            kind="tram track",
            lines=tuple(np.linspace((-20, 0, z), (-8, 0, z), 9) for z in (18.5, 21.5)),
            width_mm=0.4,
            attenuation=0.2,
        ),
    ),
    dominance="left",
)


def scene_of(**changes: Any) -> Scene:
    onsets = np.array([-0.5, 0.3, 1.1, 1.5, 2.7])  # the third beat came early
    times = np.arange(FRAMES) / 15
    scene = Scene(
        quality_class="satisfactory",
        detail="",
        streams=Streams(key=(0, 0, 1)),
        view=VIEW,
        region="chest",
        tree=TREE,
        conduits=(),
        chambers=(),
        injection=Injection(start_s=0.3, length_s=1.0, washout_s=1.0, flow_mm_s=200.0, iodine=0.15),
        motion=Motion(
            phase_T=times % 0.8 / 0.8,
            contraction_T=np.sin(times) ** 2,
            onsets_s=onsets,
            period_s=0.77,
            breath_T3=np.zeros((FRAMES, 3)),
            pan_T3=np.zeros((FRAMES, 3)),
        ),
        catheter=None,
        catheter_on_heart=True,
        devices=(Device(name="pacemaker lead"), Device(name="ECG cable"), Device(name="ECG cable")),
        times_s=times,
        detector=DETECTOR,
    )
    return replace(scene, **changes)


def rendered_of(scene: Scene, **changes: Any) -> Rendered:
    """Where everything lies; the tree moves down by half a pixel per frame."""
    rng = np.random.default_rng(0)
    frames = rng.integers(20, 200, (FRAMES, SIZE, SIZE)).astype(np.uint8)
    fall = np.stack([np.zeros(FRAMES), np.arange(FRAMES) / 2], axis=1)[:, None]
    xy = {v.name: project(v.points_N3, VIEW)[0][None] + fall for v in TREE.vessels}
    return replace(
        Rendered(
            frames_THW=frames,
            filling_T=FILLING,
            vessel_xy=xy,
            vessel_radius_px={v.name: np.tile(v.radius_N * VIEW.px_per_mm, (FRAMES, 1)) for v in TREE.vessels},
            vessel_mask_THW=rng.random((FRAMES, SIZE, SIZE)) < 0.05,
            calcium_mask_THW=rng.random((FRAMES, SIZE, SIZE)) < 0.01,
            covered_share=0.25,
        ),
        **changes,
    )


def found_in(scene: Scene, rendered: Rendered) -> tuple[truth.Lesion, ...]:
    concentration = {
        v.name: FILLING[:, None] * (np.ones(len(v.points_N3)) if v.supply_N is None else v.supply_N)
        for v in TREE.vessels
    }
    return truth.lesions(scene, rendered, concentration)


def row_of(scene: Scene, **changes: Any) -> dict[str, Any]:
    rendered = rendered_of(scene, **changes)
    found = found_in(scene, rendered)
    return truth.row(scene, rendered, FACTS, found, path="a.dcm", truth_path="a.truth.npz")


def test_a_box_surrounds_the_narrowing_while_its_vessel_is_filled() -> None:
    scene = scene_of()
    middle = found_in(scene, rendered_of(scene))[0]
    assert middle.frames_K.tolist() == [f for f in range(FRAMES) if FILLING[f] >= 0.5]
    throat = project(RCA.points_N3[40], VIEW)[0]
    half = (4.5 + 1.5) * VIEW.px_per_mm  # half its length, and the healthy radius
    across = 1.5 * VIEW.px_per_mm
    for frame, (x0, y0, x1, y1) in zip(middle.frames_K, middle.boxes_K4, strict=True):
        x, y = throat[0], throat[1] + frame / 2
        assert (x0, x1) == pytest.approx((x - half, x + half), abs=0.8)  # a sample more or less
        assert (y0, y1) == pytest.approx((y - across, y + across), abs=0.05)
    assert (middle.reference_mm, middle.minimal_mm) == pytest.approx((3.0, 1.2))


def test_only_what_the_view_shows_is_visible() -> None:
    scene = scene_of()
    assert [lesion.visible for lesion in found_in(scene, rendered_of(scene))] == [True, False, False, True]


def test_other_vessels_over_a_narrowing_hide_it() -> None:
    scene = scene_of()
    rendered = rendered_of(scene)

    def shown(*, moved_px: float = 0.0, radius_mm: float = 1.5) -> bool:
        """Whether the RCA's narrowing is, with another vessel of this radius drawn over it, or so far beside it."""
        xy = rendered.vessel_xy | {"PLV": rendered.vessel_xy["RCA"] + np.array([0.0, moved_px])}
        radius = np.full_like(rendered.vessel_radius_px["PLV"], radius_mm * VIEW.px_per_mm)
        over = replace(rendered, vessel_xy=xy, vessel_radius_px=rendered.vessel_radius_px | {"PLV": radius})
        return found_in(scene, over)[0].visible

    assert not shown()
    assert shown(moved_px=4.0), "vessels of some 3 px lie side by side"
    assert shown(radius_mm=0.2), "a thin one fills little in"


def test_a_narrowing_that_noise_drowns_is_not_visible() -> None:
    noisy = scene_of(detector=replace(DETECTOR, noise=1.0))
    assert not any(lesion.visible for lesion in found_in(noisy, rendered_of(noisy)))


def unclear_in(scene: Scene, **changes: Any) -> tuple[bool, bool]:
    """Whether the RCA's narrowing is visible, and whether it is unclear."""
    middle = found_in(scene, rendered_of(scene, **changes))[0]
    assert not (middle.visible and middle.unclear)
    assert len(middle.frames_K) > 0 or not middle.unclear
    return middle.visible, middle.unclear


def test_what_readers_would_not_agree_on_is_unclear() -> None:
    scene = scene_of()
    rendered = rendered_of(scene)
    xy = rendered.vessel_xy | {"PLV": rendered.vessel_xy["RCA"]}
    thin = np.full_like(rendered.vessel_radius_px["PLV"], 0.62 * VIEW.px_per_mm)  # from 0.41 of what is lacking on, as it fills
    half = {"vessel_xy": xy, "vessel_radius_px": rendered.vessel_radius_px | {"PLV": thin}}
    assert unclear_in(scene) == (True, False)
    assert unclear_in(scene, **half) == (False, True)
    found = [
        unclear_in(scene_of(detector=replace(DETECTOR, noise=noise))) for noise in DETECTOR.noise * np.geomspace(1, 1e3, 40)
    ]
    assert list(dict.fromkeys(found)) == [(True, False), (False, True), (False, False)], "more and more noise"
    whole = replace(vessel("RCA", (-30, 0, 20), (1, 0, 0), 60), radius_N=np.full(80, 0.7))
    small, stenosis = narrowed(whole, 40, 60.0, 9.0)
    tree = replace(TREE, vessels=(small, AWAY, FAR, CUT), stenoses=(stenosis, *TREE.stenoses[1:]))
    assert unclear_in(scene_of(tree=tree)) == (False, True), "1.4 mm: readers score from 1.5 mm on"

    def marked(percent: float) -> list[tuple[str, float | None]]:
        changed, one = narrowed(vessel("RCA", (-30, 0, 20), (1, 0, 0), 60), 40, percent, 9.0)
        tree = replace(TREE, vessels=(changed, AWAY, FAR, CUT), stenoses=(one,))
        rows = row_of(scene_of(tree=tree), **half)["stenoses"]
        return list({(row["segment"], row["percent"]) for row in rows})

    assert marked(60.0) == [("RCA", None)], "marked without a percentage"
    assert marked(24.0) == [], "nobody marks what would not count"


def test_what_lies_behind_the_shutter_is_neither_visible_nor_in_a_mask() -> None:
    narrow = replace(DETECTOR, shutter="rectangle", shutter_half=0.12, shutter_centre=(-0.3, 0.3))
    scene = scene_of(detector=narrow)
    rendered = rendered_of(scene)
    found = found_in(scene, rendered)
    assert not any(lesion.visible for lesion in found)
    mask = truth.read(truth.side_file(scene, rendered, found)).vessel_mask()
    open_field = detector.shutter_mask(narrow, SIZE)
    assert 0 < open_field.sum() < 0.1 * SIZE**2
    assert np.array_equal(mask, rendered.vessel_mask_THW & open_field)


@pytest.mark.parametrize(
    "changes",
    [
        {"injection": replace(scene_of().injection, iodine=0.005)},
        {"conduits": (vessel("graft", (0, 0, 0), (1, 0, 0), 30),)},
    ],
    ids=["hardly any iodine", "contrast in a graft only"],
)
def test_without_contrast_in_the_tree_no_narrowing_is_visible(changes: dict[str, Any]) -> None:
    scene = scene_of(**changes)
    row = row_of(scene)
    assert row["stenoses"] == []
    assert row["artery_percent"] == 100.0
    if "injection" in changes:
        assert [row[n] for n in ("first_contrast", "contrast_begin", "best_frame")] == [None] * 3


def test_a_vessel_that_never_fills_shows_no_narrowing() -> None:
    scene = scene_of()
    rendered = rendered_of(scene)
    faint = {v.name: np.full((FRAMES, len(v.points_N3)), 0.2) for v in TREE.vessels}
    assert not any(lesion.visible for lesion in truth.lesions(scene, rendered, faint))
    assert not any(lesion.visible for lesion in truth.lesions(scene, rendered, {}))


def test_a_row_says_what_the_scene_said() -> None:
    row = row_of(scene_of())
    assert list(row) == truth.LABELS.names
    table = pa.Table.from_pylist([row], truth.LABELS)
    assert table.schema == truth.LABELS
    expected = {
        "sop_instance_uid": sop_instance_uid(FACTS), "study_instance_uid": study_instance_uid(FACTS),
        "patient_id": "PHANTOM-1-00007", "quality": "satisfactory", "quality_class": "satisfactory",
        "quality_group": None, "quality_detail": None, "covered_share": 0.25, "artery": "RCA", "dominance": "left",
        "view": "RAO", "num_frames": FRAMES, "artery_percent": 100.0, "calcified": True, "best_frame": 10,
        "contrast_begin": 10, "contrast_end": 17, "first_contrast": 6, "last_contrast": 23, "twin_of": None,
        "devices": ["ECG cable", "pacemaker lead"], "synthetic": True, "path": "a.dcm", "truth_path": "a.truth.npz",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["frame_time_ms"] == pytest.approx(1000 / 15)
    assert row["heart_period_frames"] == pytest.approx(0.8 * 15)  # the beats' median, not the early one's
    (calcium,) = row["calcifications"]
    assert (calcium["segment"], calcium["kind"]) == ("RCA", "tram track")
    assert calcium["length_mm"] == pytest.approx(12.0, abs=0.8)
    marks = [(s["segment"], s["percent"], s["frame"]) for s in row["stenoses"]]
    assert marks == [*(("RCA", 60.0, k) for k in range(10, 18)), *(("AM", 100.0, k) for k in range(10, 18))], "all full frames"


def test_a_row_of_another_part_of_the_body_claims_no_coronary_artery() -> None:
    limb = (vessel("femoral", (0, 0, 0), (0, 0, -1), 40),)
    scene = scene_of(tree=None, conduits=limb, quality_class="other_territory", detail="femoral")
    row = row_of(scene, calcium_mask_THW=None)
    none = ("artery", "dominance", "artery_percent", "calcified")
    assert [row[name] for name in none] == [None] * 4
    assert (row["stenoses"], row["calcifications"]) == ([], [])
    assert (row["quality"], row["quality_group"], row["quality_detail"]) == (
        "unsatisfactory",
        "not_coronary",
        "femoral",
    )


def test_an_aortogram_with_a_trace_of_the_coronary_names_no_artery() -> None:
    row = row_of(scene_of(quality_class="aorta", detail="root"))
    assert [row[name] for name in ("artery", "dominance", "artery_percent")] == [None] * 3


def test_vessels_with_too_little_contrast_to_be_seen_are_in_no_mask() -> None:
    scene = scene_of()
    faint = replace(scene, injection=replace(scene.injection, iodine=truth.THINNEST_IODINE / 2))
    rendered = rendered_of(scene)
    assert truth.read(truth.side_file(scene, rendered, ())).vessel_mask().any()
    assert not truth.read(truth.side_file(faint, rendered, ())).vessel_mask().any()


def test_a_side_file_gives_back_masks_boxes_and_the_hearts_cycle(tmp_path: Path) -> None:
    scene = scene_of()
    rendered = rendered_of(scene)
    found = found_in(scene, rendered)
    data = truth.side_file(scene, rendered, found)
    (tmp_path / "clip.truth.npz").write_bytes(data)
    assert set(np.load(tmp_path / "clip.truth.npz", allow_pickle=False).files) >= {"vessel_mask", "phase", "boxes"}
    for back in (truth.read(data), truth.read(tmp_path / "clip.truth.npz")):
        assert back.size == (SIZE, SIZE)
        assert np.array_equal(back.vessel_mask(), rendered.vessel_mask_THW)
        assert np.array_equal(back.vessel_mask(7), rendered.vessel_mask_THW[7])
        assert np.array_equal(back.calcium_mask(slice(3, 9, 2)), rendered.calcium_mask_THW[3:9:2])
        assert back.phase_T == pytest.approx(scene.motion.phase_T)
        assert back.contraction_T == pytest.approx(scene.motion.contraction_T)
        assert back.filling_T == pytest.approx(FILLING)
        assert back.beat_onsets_s == pytest.approx(scene.motion.onsets_s)
        assert back.times_s == pytest.approx(scene.times_s)
        assert [s["visible"] for s in back.stenoses] == [True, False, False, True]
        assert [s["segment"] for s in back.stenoses] == ["RCA", "PDA", "PLV", "AM"]
        assert back.boxes_in(0).shape == (0, 5)
        assert back.boxes_in(12)[:, 0].tolist() == [0, 3]
        assert back.boxes_in(12)[1, 1:] == pytest.approx(found[3].boxes_K4[found[3].frames_K == 12][0])
        assert len(back.boxes_K6) == sum(len(lesion.frames_K) for lesion in found)


def test_without_calcium_or_narrowings_a_side_file_says_so() -> None:
    scene = scene_of(tree=replace(TREE, stenoses=(), calcifications=()))
    rendered = rendered_of(scene, calcium_mask_THW=None)
    back = truth.read(truth.side_file(scene, rendered, ()))
    assert not back.calcified
    assert back.calcium_mask().shape == (FRAMES, SIZE, SIZE)
    assert not back.calcium_mask(3).any()
    assert back.stenoses == ()
    assert back.boxes_K6.shape == (0, 6)


def test_side_files_are_the_same_bytes_and_small() -> None:
    scene = scene_of()
    mask = np.zeros((FRAMES, SIZE, SIZE), bool)
    mask[:, 60:64, 10:100] = True
    rendered = rendered_of(scene, vessel_mask_THW=mask, calcium_mask_THW=None)
    found = found_in(scene, rendered)
    data = truth.side_file(scene, rendered, found)
    assert data == truth.side_file(scene, rendered, found)
    assert len(data) < 12_000
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
