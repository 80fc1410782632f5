"""What the pipeline asks of the tables: a run's counts, the rows that --retry names, the people that `clips` knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import pyarrow.compute as pc

from angio_ray.clip import ClipHeader
from angio_ray.tables.root import TableRoot


def run_counts(root: TableRoot, run_id: str) -> tuple[Counter[str], Counter[str]]:
    """Rows of a run by status, and its rejected rows by reason."""
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    rows = root.open("scores").to_pyarrow_dataset()
    for batch in rows.to_batches(columns=["status", "reason"], filter=pc.field("run_id") == run_id):
        statuses.update(batch.column("status").to_pylist())
        reasons.update(reason for reason in batch.column("reason").to_pylist() if reason is not None)
    return statuses, reasons


def ids_with_reason(root: TableRoot, run_id: str, reasons: Collection[str]) -> set[str]:
    """object_ids of a run's rows that were rejected for one of these reasons."""
    if not reasons:
        return set()
    wanted = (pc.field("run_id") == run_id) & pc.field("reason").isin(list(reasons))
    batches = root.open("scores").to_pyarrow_dataset().to_batches(columns=["object_id"], filter=wanted)
    return {object_id for batch in batches for object_id in batch.column(0).to_pylist()}


def known_people(root: TableRoot) -> Iterator[ClipHeader]:
    """The patient's part of every header in `clips`, each combination once."""
    names = ["issuer_of_patient_id", "dicom_patient_id", "patient_birth_date", "patient_sex"]
    seen: set[tuple[str | None, ...]] = set()
    for batch in root.open("clips").to_pyarrow_dataset().to_batches(columns=names):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if values not in seen:
                seen.add(values)
                yield ClipHeader(**dict(zip(names, values, strict=True)))
