"""The embedded demo: make synthetic clips, some unsatisfactory and some broken; score them; ask the tables; report.

What it prints is what a user of `angio-ray score` and `angio-ray sql` sees. All clips are synthetic.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from angio_ray.judging.evaluate import evaluate_run
from angio_ray.judging.labelled import optional_key
from angio_ray.judging.report import write_report
from angio_ray.phantom import generate, write_broken
from angio_ray.scoring.config import ScoreConfig
from angio_ray.scoring.run import score
from angio_ray.storage import Storage
from angio_ray.tables import sql
from angio_ray.tables.root import TableRoot

_MODELS = ("quality", "artery", "oblique", "contrast", "stenosis")
_PATIENTS, _SEED, _SIZE, _FRAMES = 6, 7, 256, (48, 72)
_LONG = 4
"""Patients filmed as for calcification."""

QUERIES = {
    "What became of every object": """
        SELECT status, count(*) AS objects, count(DISTINCT patient_id) AS patients,
               round(avg(quality_probability), 3) AS mean_p_unsatisfactory
        FROM scores WHERE run_id = 'demo' GROUP BY status ORDER BY objects DESC""",
    "Rejected, by reason": "SELECT reason, num_objects FROM rejects_by_reason",
    "Exclusion rate by patient (rejected objects beside it, not counted in)": """
        SELECT left(patient_id, 8) AS patient, num_clips, num_evaluated, num_unsatisfactory, num_rejected,
               round(exclusion_rate, 2) AS exclusion_rate
        FROM exclusion_by_patient WHERE num_evaluated + num_rejected > 0 ORDER BY patient""",
    "Which artery, by which view, in which frames full of contrast (the first 8 clips)": """
        SELECT left(clip_id, 8) AS clip, artery, "view", view_suspect, num_frames, contrast_begin, contrast_end, candidate_frames
        FROM scores WHERE run_id = 'demo' AND artery IS NOT NULL ORDER BY clip LIMIT 8""",
    "The worst narrowing of each study (null: not both arteries were scored, and none found)": """
        SELECT left(study_id, 8) AS study, num_clips, num_gated, num_lca_clips, num_rca_clips, complete,
               round(stenosis_probability, 3) AS p_stenosis, stenosis_positive, len(views_missing) AS views_missing
        FROM study_scores WHERE complete IS NOT NULL ORDER BY study""",
    "Calcification, and how large a region to look at": """
        SELECT left(clip_id, 8) AS clip, round(calcium_probability, 3) AS p_calcium, calcium_frames[1].mask_frame AS frame,
               calcium_frames[1].frame AS with_contrast, round(calcium_roi_area_mm2) AS mm2
        FROM scores WHERE calcium_status = 'scored' ORDER BY clip""",
}


def demo(out: Path) -> int:
    """Run the demo in the folder `out`; 0 when every object has its row."""
    say = Console(highlight=False, soft_wrap=True)
    clips, long, tables = out / "clips", out / "long", out / "tables"
    if not (clips / "labels.parquet").exists():
        say.print(f"1. {_PATIENTS} synthetic patients -> {clips}, {_LONG} filmed for calcification -> {long}")
        generate(str(long), patients=_LONG, seed=_SEED + 1, clips=(1, 1), frames=(100, 104), protocol="calcium", calcified=1.0)
        labels = generate(str(clips), patients=_PATIENTS, seed=_SEED, size=_SIZE, frames=_FRAMES)
        broken = write_broken(str(clips / "broken"), seed=_SEED)
        say.print(f"   {len(labels)} clips, {_LONG} with heartbeats before contrast, and {len(broken)} broken objects")
    root = TableRoot(Storage(str(tables)))
    for source, run, models in ((clips, "demo", _MODELS), (long, "calcium", ("calcium",))):
        number = "2." if run == "demo" else "   and"
        say.print(f"{number} angio-ray score {source} --tables {tables} --run {run} --models {','.join(models)}")
        summary = score(ScoreConfig(str(source), tables=str(tables), run=run, models=models))
        for note in summary.notes:
            say.print(f"   {note}")
        rows, written = summary.statuses.total(), summary.written
        say.print(f"   {rows} rows, one per object, {written} of them now ({summary.seconds:.0f} s)")
    say.print(f'3. angio-ray sql "..." --tables {tables}')
    for title, query in QUERIES.items():
        say.print(f"\n{title}")
        sql.write_result(sql.query(root, query))
    report, key = out / "report.html", optional_key(str(tables), None)
    judged = (("demo", clips, "quality"), ("demo", clips, "stenosis"), ("calcium", long, "calcium"))
    for run, source, task in judged:
        labels_file, of_task = source / "labels.parquet", "" if task == "quality" else f" --task {task}"
        number = "4." if task == "quality" else "   and"
        say.print(f"\n{number} angio-ray evaluate --run {run} --labels {labels_file} --tables {tables}{of_task}")
        evaluate_run(root, run, str(labels_file), key=key, task=task).print(say)
    say.print(f"\n5. angio-ray report --run demo --run calcium --tables {tables} --out {report}")
    write_report(root, report, runs=["demo", "calcium"])
    say.print(f"   {report.resolve()}")
    say.print(
        f'\nResearch use only; every clip here is synthetic. Ask more: angio-ray sql "SHOW TABLES" --tables {tables}'
    )
    return 0
