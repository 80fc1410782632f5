"""`angio-ray calibrate`: a bundle's operating threshold, set on a site's own labelled patients without retraining.

    bundle + run that it scored + labels -> calibrate -> the same weights at another threshold, with a new digest

What the weights were trained on does not change: a bundle that saw synthetic clips alone still does not gate patients'
clips unless asked to (`score --gate on`). The patients that the threshold was set on count as seen by the new bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from sklearn.model_selection import StratifiedGroupKFold

from angio_ray.evaluation.assess import counted
from angio_ray.evaluation.metrics import Metrics, binary_metrics
from angio_ray.evaluation.thresholds import OperatingPoint, Rule, choose_threshold
from angio_ray.judging.labelled import load_labels, prepare, review_note, run_scores
from angio_ray.models import TASKS
from angio_ray.models.bundles import Bundle, BundleError, load_bundle, save_bundle
from angio_ray.pseudonyms import PseudonymKey
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.training.folds import in_sample
from angio_ray.training.labels import LabelError, task_clips
from angio_ray.training.stenosis_results import choose_study_threshold

FEW_PATIENTS = 20
FEW_CLIPS = 10
"""Below so many of a class a threshold is mostly luck."""
_PARTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrated:
    """A bundle at its new threshold, and what it was set on."""

    bundle: Bundle
    before: Bundle
    point: OperatingPoint
    at_old: Metrics
    """The same rows at the old threshold."""
    honest: Metrics | None
    """Each fifth of the patients at the threshold that the others choose; None where a part would lack a class."""
    num_clips: int
    num_patients: int
    num_positive: int
    num_in_sample: int
    """Labelled clips left out since the bundle has seen their patients."""
    notes: tuple[str, ...]

    def print(self, console: Console) -> None:
        """What changed, for people."""
        old, new = self.before.threshold, self.bundle.threshold
        console.print(f"threshold {old:.4g} -> {new:.4g}: {self.bundle.threshold_from}", soft_wrap=True, markup=False)
        rows = [
            ("at the old threshold", self.at_old.confusion),
            ("at the new one (chosen on these rows)", self.point.confusion),
        ]
        if self.honest is not None:
            rows.append((f"the rule, judged on other patients ({_PARTS} parts)", self.honest.confusion))
        for name, c in rows:
            shares = (c.sensitivity, c.specificity, c.positive_rate, c.npv)
            told = [f"{value:.3f}" if value is not None else "-" for value in shares]
            negative, positive = TASKS[self.bundle.task].classes
            last = (
                f"excludes {told[2]}, satisfactory among kept {told[3]}"
                if self.bundle.task == "quality"
                else f"called {positive} {told[2]}, {negative} among the others {told[3]}"
            )
            console.print(f"  {name}: sensitivity {told[0]}, specificity {told[1]}, {last}", soft_wrap=True)
        for note in self.notes:
            console.print(note, soft_wrap=True, markup=False)
        console.print(f"digest {self.before.digest[:12]} -> {self.bundle.digest[:12]}")


def calibrate(
    root: TableRoot,
    bundle: Path,
    run: str,
    labels: str,
    out: Path,
    *,
    key: PseudonymKey | None = None,
    rule: Rule = "youden",
    at_least: float | None = None,
) -> Calibrated:
    """Choose a threshold on the labelled clips of a run that `bundle` scored, and write the bundle with it to `out`.

    `labels`: a set of the table `labels` or a file (which needs the key); `rule`, `at_least`: see `choose_threshold`.

    Raises
    ------
    BundleError
        No bundle in the folder, one in `out` already, or another one scored the run.
    TablesError, LabelError, ValueError
        No such run or labels; clips both synthetic and of patients; no clip of a class; nothing reaches `at_least`.
    """
    if not (bundle / "bundle.json").exists() and (bundle / "quality").is_dir():
        bundle = bundle / "quality"  # as `score --bundles` takes it
    before = load_bundle(bundle)
    if (out / "bundle.json").exists():
        raise BundleError(f"{out} holds a bundle already: name a new folder")
    prepare(root, key)
    found = load_labels(root, labels, key)
    clips, target = task_clips(found.clips, before.task)
    scores = run_scores(root, run, clips["clip_id"].to_pylist(), task=before.task)
    if scores.bundle != before.digest:
        raise BundleError(f"run {run} was scored by the bundle {scores.bundle[:12]}, {bundle} is {before.digest[:12]}")
    seen = in_sample(clips, before.training_patients)
    scored = np.array([clip_id in scores.probability for clip_id in clips["clip_id"].to_pylist()], bool)
    used = clips.filter(pa.array(scored & ~seen))
    target_N = target[scored & ~seen].astype(np.int64)
    if not used.num_rows:
        raise TablesError(
            f"no threshold can be set: of {clips.num_rows:,} labelled clips {int(scored.sum()):,} are scored in run {run}, "
            f"{int((scored & seen).sum()):,} of these are of patients that the bundle has seen"
        )
    probability_N = np.array([scores.probability[clip_id] for clip_id in used["clip_id"].to_pylist()])
    patients = used["group_id"].to_pylist()
    domain = _domain(used)
    point = choose_threshold(target_N, probability_N, rule=rule, at_least=at_least)
    if TASKS[before.task].named_frames:  # its verdicts are of studies: what training chooses on
        rows = used.append_column("target", pa.array(target_N == 1)).append_column("probability", pa.array(probability_N))
        threshold, level = choose_study_threshold(rows, rule, at_least)
        confusion = binary_metrics(target_N, probability_N, threshold).confusion
        point = replace(point, threshold=threshold, confusion=confusion)
        rule_words = f" of {level}"
    else:
        rule_words = ""
    named = f"labels {found.label_set}" if found.label_set else "a label file"
    asked = (rule if at_least is None else f"{rule} of {at_least:g} or more") + rule_words
    source = (
        f"set by {asked} on {used.num_rows:,} {domain} clips of {counted(len(set(patients)), 'patient')} "
        f"({int(target_N.sum()):,} {TASKS[before.task].classes[-1]}), {named}, run {run}"
    )
    after = before.with_threshold(
        point.threshold, threshold_from=source, patients=[*used["patient_id"].to_pylist(), *patients]
    )
    save_bundle(out, after, card=_card(bundle, before, after))
    return Calibrated(
        bundle=after,
        before=before,
        point=point,
        at_old=binary_metrics(target_N, probability_N, before.threshold),
        honest=None if rule_words else _honest(target_N, probability_N, np.array(patients), rule, at_least),
        num_clips=used.num_rows,
        num_patients=len(set(patients)),
        num_positive=int(target_N.sum()),
        num_in_sample=int((scored & seen).sum()),
        notes=(
            *found.report,
            *_notes(before, domain, target_N, len(set(patients)), int((scored & seen).sum()), scores.unscored),
            *([selected] if (selected := review_note(found.clips, used["clip_id"].to_pylist())) else []),
        ),
    )


def _domain(clips: pa.Table) -> str:
    kinds = set(clips["synthetic"].to_pylist())
    if len(kinds) > 1:
        raise LabelError("the labelled clips are both synthetic and of patients: a threshold is set on one kind")
    return "synthetic" if kinds == {True} else "patients'"


def _honest(
    target: np.ndarray, probability: np.ndarray, patients: np.ndarray, rule: Rule, at_least: float | None
) -> Metrics | None:
    """What the rule gives on patients that it was not chosen on."""
    groups = {side: len(set(patients[target == side])) for side in (0, 1)}
    if min(groups.values()) < _PARTS:
        return None
    threshold = np.full(len(target), np.nan)
    splitter = StratifiedGroupKFold(_PARTS, shuffle=True, random_state=0)
    for others, part in splitter.split(probability[:, None], target, patients):
        try:
            threshold[part] = choose_threshold(
                target[others], probability[others], rule=rule, at_least=at_least
            ).threshold
        except ValueError:  # a class is lacking there, or nothing reaches `at_least`
            return None
    return binary_metrics(target, probability, threshold)


def _notes(
    before: Bundle, domain: str, target: np.ndarray, num_patients: int, num_seen: int, unscored: Mapping[str, int]
) -> list[str]:
    notes = []
    fewest = int(min(target.sum(), len(target) - target.sum()))
    if num_patients < FEW_PATIENTS or fewest < FEW_CLIPS:
        data = f"{counted(num_patients, 'patient')}, {counted(fewest, 'clip')} of the rarer class"
        notes.append(f"few data: {data}; another sample may choose otherwise")
    if num_seen:
        notes.append(f"left out: {num_seen:,} clips of patients that the bundle has seen")
    if unscored:
        notes.append("labelled, without a score: " + ", ".join(f"{n:,} {why}" for why, n in unscored.items()))
    if before.trained_on == "synthetic" and domain != "synthetic":
        notes.append(
            "trained on synthetic clips alone, as before: patients' clips are scored, and gated only with --gate on"
        )
    if before.trained_on == "patients" and domain == "synthetic":
        notes.append("the clips are synthetic: this threshold says nothing of patients' clips")
    return notes


def _card(folder: Path, before: Bundle, after: Bundle) -> str:
    """The old card, below what was changed."""
    try:
        old = (folder / "MODEL_CARD.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        old = ""
    return (
        f"# {after.task}: {after.net}, threshold set at a site\n\n"
        "Research use only. Not a medical device; not for clinical use.\n\n"
        f"- Threshold {before.threshold:g} -> {after.threshold:g}: {after.threshold_from}.\n"
        f"- Digest {before.digest} -> {after.digest}. The weights are the same.\n"
        f"- Trained on: {after.trained_on}, as before.\n\n"
        "What follows is the card of the bundle as trained; its threshold and the figures at it no longer hold.\n\n---\n\n"
    ) + old
