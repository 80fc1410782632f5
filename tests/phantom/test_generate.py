"""Whole data sets: the same bytes however many workers, labels as designed, both classes in every study, no giveaways."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from angio_ray.phantom import LABELS, PhantomConfig, generate
from angio_ray.phantom.scenes import UNSATISFACTORY, clip_facts, plan_patient, plan_scene

SMALL = {"patients": 3, "seed": 11, "clips": (3, 3), "size": 64, "frames": (40, 44)}


def digests(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    generate(folder, workers=1, **SMALL)
    return folder


def test_bytes_do_not_depend_on_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    generate(tmp_path, workers=2, **SMALL)
    assert digests(tmp_path) == digests(made)
    assert len(digests(made)) == 10


def test_another_seed_gives_other_clips_and_other_identifiers(made: Path, tmp_path: Path) -> None:
    generate(tmp_path, workers=1, **{**SMALL, "seed": 12, "patients": 1})
    assert not set(digests(tmp_path).values()) & set(digests(made).values())
    uids = [set(pq.read_table(f / "labels.parquet")["sop_instance_uid"].to_pylist()) for f in (made, tmp_path)]
    assert not uids[0] & uids[1]


def test_labels_describe_the_files(made: Path) -> None:
    labels = pq.read_table(made / "labels.parquet")
    assert labels.schema.names == LABELS.names
    for row in labels.to_pylist():
        ds = pydicom.dcmread(made / row["path"], stop_before_pixels=True)
        assert ds.SOPInstanceUID == row["sop_instance_uid"]
        assert ds.PatientID == row["patient_id"]
        assert (row["quality"] == "satisfactory") == (row["quality_class"] == "satisfactory")
        if row["quality"] == "satisfactory":
            order = [row[n] for n in ("first_contrast", "contrast_begin", "best_frame", "contrast_end", "last_contrast")]
            assert order == sorted(order)
            assert order[0] >= 0
            assert order[-1] < ds.NumberOfFrames
            assert row["artery"] in ("LCA", "RCA")
        else:
            assert row["best_frame"] is None
            assert row["stenoses"] == []


def test_every_study_has_both_classes() -> None:
    for patient in range(40):
        classes = plan_patient(2, patient, (2, 7), 0.4).clips
        assert "satisfactory" in classes
        assert set(classes) & set(UNSATISFACTORY)


def test_every_fault_occurs_and_the_share_is_as_asked() -> None:
    classes = [c for p in range(150) for c in plan_patient(2, p, (5, 7), 0.4).clips]
    assert set(classes) == {"satisfactory", *UNSATISFACTORY}
    assert np.mean([c != "satisfactory" for c in classes]) == pytest.approx(0.4, abs=0.05)


def test_header_and_length_say_nothing_about_the_class() -> None:
    """A logistic regression on what the header holds cannot tell the classes of other patients apart."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    rows, target, patients = [], [], []
    for p in range(160):
        plan = plan_patient(6, p, (4, 4), 0.5)
        for c in range(4):
            scene = plan_scene(plan, c, 64, (40, 120), None, plan.clip_rng(c))
            facts = clip_facts(plan, c, scene, None)
            rows.append(
                [
                    len(scene.times_s), scene.times_s[1], facts.bits, facts.monochrome1, facts.primary_deg,
                    facts.secondary_deg, facts.imager_pixel_spacing_mm, facts.source_to_patient_mm, facts.kvp,
                    facts.use_frame_time_vector, facts.cine_rate is None, facts.series_number,
                ]
            )  # fmt: skip
            target.append(scene.quality_class != "satisfactory")
            patients.append(p)
    x, y, train = StandardScaler().fit_transform(np.array(rows, float)), np.array(target), np.array(patients) < 100
    model = LogisticRegression(max_iter=500).fit(x[train], y[train])
    assert roc_auc_score(y[~train], model.predict_proba(x[~train])[:, 1]) < 0.62


@pytest.mark.parametrize(
    "wrong",
    [
        {"patients": 0},
        {"clips": (3, 2)},
        {"frames": (2, 9)},
        {"size": 8},
        {"unsatisfactory": 1.5},
        {"fps": 0.1},
        {"syntax": "gif"},
    ],
    ids=lambda w: next(iter(w)),
)
def test_config_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PhantomConfig(**wrong)  # type: ignore[arg-type]
