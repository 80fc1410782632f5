"""Tables of a made-up site: clips with header facts, labels of two sorts of patients, and runs with made-up scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from angio_ray.models.bundles import Bundle, write_bundle
from angio_ray.tables.root import TableRoot
from angio_ray.tables.run_log import RunLog
from angio_ray.tables.schema import arrow_schema
from angio_ray.training.labels import join_labels, read_label_file, store_labels
from tests.training.indexed import KEY, add_clips, new_root

PATIENTS, EACH = 30, 4
MAKERS = ("Siemens", "Philips", "GE MEDICAL SYSTEMS")


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANGIO_RAY_KEY_FILE", raising=False)


def uid(patient: int, clip: int) -> str:
    return f"1.2.{patient}.{clip}"


def clip_id(patient: int, clip: int) -> str:
    return KEY.clip_id(uid(patient, clip))


def patient_id(patient: int) -> str:
    return KEY.patient_id(None, f"P{patient}")


def target(patient: int, clip: int) -> bool:
    """Whether it is unsatisfactory: a quarter of them."""
    return (patient + clip) % 4 == 0


def probability(patient: int, clip: int, sharpness: float = 1.6) -> float:
    """A score that is often right; not in steps of the label."""
    noise = np.random.default_rng([patient, clip]).normal()
    return float(1 / (1 + np.exp(-(sharpness * (2 * target(patient, clip) - 1) + noise))))


def site(folder: Path, *, synthetic: bool = False) -> TableRoot:
    """30 patients of 4 clips from three makers and two institutions, with labels under the name `readers`."""
    root = new_root(folder / "tables")
    (folder / "tables.key").write_text(bytes(range(32)).hex())
    os.chmod(folder / "tables.key", 0o600)
    pairs = [(patient, clip) for patient in range(PATIENTS) for clip in range(EACH)]
    add_clips(
        root,
        [
            {
                "uri": f"{folder}/clips/{patient}/{clip}.dcm",
                "sop_instance_uid": uid(patient, clip),
                "study_instance_uid": f"1.2.{patient}",
                "dicom_patient_id": f"P{patient}",
                "num_frames": 60,
                "frame_time_ms": 66.7 if patient % 2 else 133.3,
                "primary_angle_deg": -30.0 if clip % 2 else 40.0,
                "secondary_angle_deg": 25.0 if clip < 2 else 0.0,
                "study_date": f"{2019 + patient % 2}0301",
                "manufacturer": MAKERS[patient % 3],
                "institution": "St. Elsewhere" if patient % 2 else "General Hospital",
                "synthetic": synthetic,
            }
            for patient, clip in pairs
        ],
    )
    lines = ["sop_instance_uid,quality,artery"]
    lines += [f"{uid(p, c)},{'un' if target(p, c) else ''}satisfactory,{'RCA' if c % 2 else 'LCA'}" for p, c in pairs]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    store_labels(root, "readers", join_labels(root, KEY, read_label_file(folder / "labels.csv")))
    return root


def write_run(
    root: TableRoot,
    run: str,
    scores: Mapping[tuple[int, int], float],
    *,
    bundle: str,
    threshold: float = 0.5,
    rejected: Mapping[tuple[int, int], str] | None = None,
    folder: Path = Path("/clips"),
    synthetic: bool = False,
) -> None:
    """A finished run with these scores; (patient, clip) -> reason for objects that it rejected."""
    same: dict[str, Any] = {"run_id": run, "scored_at": datetime.now(UTC), "attempts": 1, "synthetic": synthetic}
    rows = []
    for (patient, clip), p in scores.items():
        rows.append(
            same
            | {
                "object_id": KEY.object_id(f"{folder}/clips/{patient}/{clip}.dcm"),
                "clip_id": clip_id(patient, clip),
                "patient_id": patient_id(patient),
                "status": "scored" if p < threshold else "gated",
                "model_domain": "synthetic",
                "bundles": [("quality", bundle)],
                "quality_status": "scored",
                "quality_probability": p,
                "quality_threshold": threshold,
                "quality_satisfactory": p < threshold,
            }
        )
    for (patient, clip), reason in (rejected or {}).items():
        uri = f"{folder}/clips/{patient}/{clip}.dcm"
        found = {"object_id": KEY.object_id(uri), "clip_id": clip_id(patient, clip), "status": "rejected"}
        rows.append(same | found | {"reason": reason})
    commit_run(root, run, rows)


def commit_run(root: TableRoot, run: str, rows: Sequence[dict[str, Any]]) -> None:
    ids = [row["object_id"] for row in rows]
    log = RunLog.open(root, run, {"run": run}, interval_s=1)
    log.write_manifest([pa.table({"object_id": ids, "uri": ids, "size_bytes": [1] * len(ids), "etag": ids})])
    log.commit(pa.Table.from_pylist(list(rows), arrow_schema("scores")))
    log.finish({})


def all_scores(sharpness: float = 1.6) -> dict[tuple[int, int], float]:
    return {(p, c): probability(p, c, sharpness) for p in range(PATIENTS) for c in range(EACH)}


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights that says it has seen patients 0 to 4."""
    folder = tmp_path_factory.mktemp("bundle") / "quality"
    make_bundle(folder, patients=range(5))
    return folder


def make_bundle(folder: Path, *, patients: Sequence[int] = (), trained_on: str = "synthetic") -> Bundle:
    import torch

    from angio_ray.models import NETS

    torch.manual_seed(0)
    return write_bundle(
        folder,
        task="quality",
        net="x3d_s",
        state_dicts=[NETS["x3d_s"].build().state_dict()],
        threshold=0.5,
        trained_on=trained_on,  # type: ignore[arg-type]
        training_patients=[patient_id(patient) for patient in patients],
        card="# the card as trained\n",
        half=True,
    )
