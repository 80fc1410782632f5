"""What a report says, read from the tables at one moment: models on labelled sets, stored figures, facts of runs.

    open_tables -> ReportTables -> ModelOnSet, RunFacts ...

Knows no models, no pixels and no page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from angio_ray.evaluation.assess import UNCHECKED, Assessment, assess, selected_labels
from angio_ray.evaluation.bootstrap import RESAMPLES
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.sql import connect

Kind = Literal["folds", "set"]
UNCHECKED_ROWS = "unchecked_rows"
"""In `metrics`: rows of a model that does not say whom it has seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOnSet:
    """One model on one labelled set: the rows that no training saw, and their figures."""

    source: str
    """The experiment, or the run whose scores were evaluated."""
    model: str
    """Net or ensemble."""
    kind: Kind
    """folds: each clip scored by the fold that left its patient out; set: clips outside all folds."""
    data: str
    """Name of the folds or of the set."""
    assessment: Assessment
    """Its rows have patient_id, bundle, model_domain and code_version too."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One scoring run, in counts and digests."""

    run_id: str
    state: str
    started_at: datetime | None
    finished_at: datetime | None
    num_claims: int
    """Drivers that took it: above 1, it was resumed."""
    num_listed: int | None
    statuses: Mapping[str, int]
    reasons: Mapping[str, int]
    num_evaluated: int
    """Objects with a verdict on their quality."""
    num_unsatisfactory: int
    num_patients: int
    num_studies: int
    num_synthetic: int
    model_domain: str | None
    computed_by: str | None
    thresholds: tuple[float, ...]
    bundles: Mapping[str, str]
    """Task -> digest."""
    decode_ms: float | None
    """Mean time of an object, ms, as the next."""
    model_ms: float | None
    code_version: str | None
    config_digest: str | None
    config: Mapping[str, Any]
    """What the run is bound to; the source is a hash."""


class ReportTables:
    """One snapshot of the tables; `with open_tables(root) as tables`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, sql: str, *parameters: Any) -> pa.Table:
        """The result of one query."""
        found: pa.Table = self._connection.sql(sql, params=list(parameters)).to_arrow_table()
        return found

    def names(self, table: Literal["predictions", "runs"]) -> list[str]:
        """Experiments with predictions, or runs, that are there."""
        column = {"predictions": "experiment", "runs": "run_id"}[table]
        return [str(v) for v in self.rows(f"SELECT DISTINCT {column} FROM {table} ORDER BY 1")[column].to_pylist()]

    def models(
        self, source: str, *, task: str = "quality", resamples: int = RESAMPLES
    ) -> tuple[list[ModelOnSet], list[str]]:
        """Each model of an experiment (or evaluated run) on each of its sets, and a note for each that cannot be judged."""
        rows = self.rows(_PREDICTIONS, source, task)
        found, notes = [], []
        key_names = ["model", "data", "fold_set"]
        for key in rows.select(key_names).group_by(key_names).aggregate([]).to_pylist():
            mine = rows
            for column, value in key.items():
                mine = mine.filter(pc.is_null(mine[column]) if value is None else pc.equal(mine[column], value))
            in_folds = key["data"] == "folds"
            data = (key["fold_set"] or "folds") if in_folds else key["data"]
            known = self._known(source, key["model"], key["data"], mine)
            try:
                assessment = assess(mine, title=f"{key['model']} on {data}", notes=known, resamples=resamples)
            except ValueError as error:  # an ensemble on its own folds' clips; no operating threshold
                notes.append(str(error))
                continue
            kind: Kind = "folds" if in_folds else "set"
            found.append(ModelOnSet(source=source, model=key["model"], kind=kind, data=data, assessment=assessment))
        return sorted(found, key=lambda one: (one.kind, one.data, one.model)), notes

    def other_tasks(self, source: str, *, task: str = "quality") -> list[str]:
        """Tasks that an experiment (or evaluated run) has predictions of, beside this one."""
        asked = "SELECT DISTINCT task FROM predictions WHERE experiment = ? AND task <> ? ORDER BY 1"
        return [str(name) for name in self.rows(asked, source, task)["task"].to_pylist()]

    def _known(self, source: str, model: str, data: str, rows: pa.Table) -> list[str]:
        """What to know of all figures of these rows."""
        known = [UNCHECKED] if self.rows(_UNCHECKED, source, model, data, UNCHECKED_ROWS).num_rows else []
        label_set = next((name for name in rows["label_set"].to_pylist() if name is not None), None)
        reviewed = self.rows("SELECT clip_id FROM labels WHERE label_set = ? AND origin = 'review'", label_set)
        number = pc.sum(pc.is_in(rows["clip_id"], reviewed["clip_id"].combine_chunks())).as_py() or 0
        return [*known, *([selected_labels(number, rows.num_rows)] if number else [])]

    def stored_figures(self, sources: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of `metrics` of these experiments (or runs), of the quality task: subgroups, comparisons, cost of training."""
        marks = ", ".join("?" * len(sources)) or "NULL"
        rows: list[dict[str, Any]] = self.rows(_METRICS.format(marks), *sources).to_pylist()
        return rows

    def levels(self, source: str, task: str) -> list[dict[str, Any]]:
        """Rows of `metrics` of an experiment (or evaluated run) about single frames, arteries, studies, boxes and regions."""
        rows: list[dict[str, Any]] = self.rows(_LEVELS, source, source, task).to_pylist()
        return rows

    def clip_places(self, clip_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """clip_id -> uri, size_bytes, etag, burned_in_annotation, synthetic; empty where `clips` cannot be reached."""
        if "clips" not in self.rows("SHOW TABLES")["name"].to_pylist():
            return {}
        marks = ", ".join("?" * len(clip_ids)) or "NULL"
        rows = self.rows(_PLACES.format(marks), *clip_ids)
        return {row.pop("clip_id"): row for row in rows.to_pylist()}

    def scored(self, run: str, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of `scores` of these clips of a run, one of each: the table's first that was not rejected."""
        marks = ", ".join("?" * len(clip_ids)) or "NULL"
        rows: list[dict[str, Any]] = self.rows(_SCORED.format(marks), run, *clip_ids).to_pylist()
        return rows

    def run_facts(self, run: str) -> RunFacts:
        """Counts, digests and configuration of a run. Raises TablesError where there is none."""
        found = self.rows("SELECT * FROM run_summary WHERE run_id = ?", run).to_pylist()
        if not found:
            raise TablesError(f"there is no run {run} in these tables")
        summary, counts = found[0], self.rows(_RUN_COUNTS, run).to_pylist()[0]
        statuses = self.rows(
            "SELECT status, count(*) AS n FROM scores WHERE run_id = ? GROUP BY 1 ORDER BY n DESC", run
        )
        reasons = self.rows("SELECT reason, num_objects AS n FROM rejects_by_reason WHERE run_id = ?", run)
        config = json.loads(summary["config_json"]) if summary["config_json"] else {}
        return RunFacts(
            run_id=run,
            state="finished" if summary["finished"] else "not finished",
            started_at=summary["started_at"],
            finished_at=summary["finished_at"],
            num_claims=summary["num_claims"],
            num_listed=summary["num_listed"],
            statuses=dict(zip(statuses["status"].to_pylist(), statuses["n"].to_pylist(), strict=True)),
            reasons=dict(zip(reasons["reason"].to_pylist(), reasons["n"].to_pylist(), strict=True)),
            num_unsatisfactory=summary["num_unsatisfactory"],
            model_domain=summary["model_domain"],
            bundles={str(k): str(v) for k, v in (config.get("models") or {}).items()},
            code_version=summary["code_version"],
            config_digest=summary["config_digest"],
            config=config,
            thresholds=tuple(counts.pop("thresholds") or ()),
            **counts,
        )


@contextmanager
def open_tables(root: TableRoot) -> Iterator[ReportTables]:
    """The tables as they are now. Raises TablesError as `tables.sql.connect`."""
    with connect(root) as connection:
        yield ReportTables(connection)


_PREDICTIONS = """
SELECT model, data, fold_set, in_sample, clip_id, patient_id, group_id, target, probability, threshold, fold, bundle,
    label_set, model_domain, synthetic, code_version
FROM predictions
WHERE experiment = ? AND task = ? AND part IN ('test', 'independent') AND target IS NOT NULL
ORDER BY model, data, fold, clip_id"""

_UNCHECKED = "SELECT 1 FROM metrics WHERE experiment = ? AND model = ? AND data = ? AND metric = ?"

_METRICS = """
SELECT * FROM metrics AS m WHERE experiment IN ({}) AND NOT EXISTS (
    FROM predictions AS p WHERE p.experiment = m.experiment AND p.model = m.model AND p.task <> 'quality'
)
-- figures of frames have no row of predictions where a run was judged
AND NOT EXISTS (
    FROM metrics AS f WHERE f.experiment = m.experiment AND f.model = m.model AND f.data = m.data
        AND f.metric = 'begin_error_frames'
)
ORDER BY experiment, model, data, subgroup, num_clips DESC NULLS LAST, subgroup_value, fold, metric"""

_LEVELS = """
SELECT * FROM metrics WHERE experiment = ? AND scope <> 'fold' AND (subgroup IN ('level', 'regions') OR subgroup LIKE 'boxes%')
    AND model IN (SELECT model FROM predictions WHERE experiment = ? AND task = ?)
ORDER BY model, data, subgroup DESC, subgroup_value, scope"""

_RUN_COUNTS = """
SELECT
    count(quality_satisfactory) AS num_evaluated,
    count(DISTINCT patient_id) AS num_patients,
    count(DISTINCT study_id) AS num_studies,
    count(*) FILTER (synthetic) AS num_synthetic,
    string_agg(DISTINCT concat_ws(' ', backend, "precision"), ', ') FILTER (backend IS NOT NULL) AS computed_by,
    list(DISTINCT quality_threshold ORDER BY quality_threshold) FILTER (quality_threshold IS NOT NULL) AS thresholds,
    avg(decode_ms) FILTER (status <> 'rejected') AS decode_ms,
    avg(model_ms) FILTER (status <> 'rejected') AS model_ms
FROM scores WHERE run_id = ?"""

_SCORED = """
SELECT * FROM scores WHERE run_id = ? AND clip_id IN ({}) AND status <> 'rejected'
QUALIFY row_number() OVER (PARTITION BY clip_id ORDER BY object_id) = 1"""

_PLACES = """
SELECT clip_id, uri, size_bytes, etag, burned_in_annotation, synthetic
FROM clips WHERE clip_id IN ({}) AND reason IS NULL
QUALIFY row_number() OVER (PARTITION BY clip_id ORDER BY indexed_at DESC, object_id) = 1"""
