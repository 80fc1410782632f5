"""Which clips train, validate and test, fold by fold: by patient, stratified, and written once to the table `folds`.

What stays on one side is the group of `training.labels`: a patient with all studies and both planes of every biplane
pair. Test parts come from scikit-learn's StratifiedGroupKFold; validation (and the test part of a single split) is the
draw of groups whose share of clips and of positive ones lies nearest to what was asked. Knows nothing of clips' pixels,
models or Ray.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.row_sets import SetDiffers, read_set, write_set
from angio_ray.tables.schema import arrow_schema

Scheme = Literal["kfold", "split", "leave_one_patient_out", "leave_one_acquisition_out"]
PARTS = ("train", "validation", "test")

_MOST_ROWS = 2_000_000
"""Of leave-one-out: every fold has a row of every clip, so their number grows with the square."""
_DRAWS = 200
"""Draws of groups that a validation part is chosen from."""
_SIDES = ("group_id", "patient_id", "study_id", "clip_id")
"""No value of these is in two parts of a fold."""
_ROWS = pa.schema([field for field in arrow_schema("folds") if field.name not in ("fold_set", "made_at")])
_CLIP_COLUMNS = ("clip_id", "patient_id", "study_id", "group_id", "acquisition_id")
_LEFT_OUT = {"leave_one_patient_out": "group_id", "leave_one_acquisition_out": "acquisition_id"}
"""Schemes with a fold for each value of a column."""


class FoldError(ValueError):
    """Folds that cannot be made, or cannot be trained on: one clear line that names the fold."""


class PatientLeak(AssertionError):
    """A patient, study or clip is on two sides. A fault of the program, never of the data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldPlan:
    """How clips are divided."""

    scheme: Scheme = "kfold"
    """kfold: every clip is tested once. split: one fold by `shares`. leave_one_patient_out: one fold per patient.
    leave_one_acquisition_out: one fold per acquisition (a biplane pair is one); the patient's other acquisitions are
    left out of that fold, so that the model under test has not seen the patient."""
    folds: int = 5
    """Of kfold."""
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Of split: training, validation and test."""
    validation: float = 0.15
    """Of the other schemes: share of each training part that is held back for the threshold and the epoch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise FoldError(f"no scheme {self.scheme!r}: one of {', '.join(get_args(Scheme))}")
        if self.folds < 2:
            raise FoldError(f"{self.folds} folds: at least 2")
        if len(self.shares) != 3 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise FoldError("the shares of a split are three, above 0, and add up to 1")
        if self.seed < 0:
            raise FoldError(f"seed {self.seed}: at least 0")
        if not 0 < self.validation < 1:
            raise FoldError(f"validation {self.validation:g}: a share of the training part, above 0 and below 1")

    @property
    def leaves_one_out(self) -> bool:
        """Whether there are as many folds as patients or acquisitions."""
        return self.scheme in _LEFT_OUT

    @property
    def canonical(self) -> str:
        """What changes the folds, as canonical JSON: two plans with the same text make the same folds."""
        names = {"kfold": ("folds", "validation"), "split": ("shares",)}.get(self.scheme, ("validation",))
        facts = asdict(self)
        return json.dumps({name: facts[name] for name in ("scheme", "seed", *names)}, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold. Each part: clip_id, patient_id, study_id, group_id, acquisition_id, target; sorted by clip_id."""

    number: int
    train: pa.Table
    validation: pa.Table
    test: pa.Table

    def __post_init__(self) -> None:
        check_disjoint(self.train, self.validation, self.test)

    @property
    def training_patients(self) -> tuple[str, ...]:
        """Pseudonyms of all patients that a model of this fold has seen, validation included, sorted: for its bundle.

        Group and patient both, so that a row is in-sample by either.
        """
        seen: set[str] = set()
        for part in (self.train, self.validation):
            seen.update(part["patient_id"].to_pylist(), part["group_id"].to_pylist())
        return tuple(sorted(seen))


@dataclass(frozen=True, slots=True)
class Folds:
    """The folds of one name."""

    name: str
    task: str
    plan: FoldPlan
    digest: str
    """Stands for the plan and for every clip's group, acquisition and target."""
    rows: pa.Table
    """Rows of the table `folds`, sorted by fold and clip_id: one of every clip in every fold."""

    @property
    def num_folds(self) -> int:
        """How many there are."""
        return int(self.rows["fold"][-1].as_py()) + 1

    def fold(self, number: int) -> Fold:
        """One fold, its parts checked to have no patient in common. IndexError where there is no such fold."""
        if not 0 <= number < self.num_folds:
            raise IndexError(f"folds {self.name} have numbers 0 to {self.num_folds - 1}, not {number}")
        size = len(self.rows) // self.num_folds  # every fold has a row of every clip
        rows = self.rows.slice(number * size, size)
        part = rows["part"].combine_chunks()
        rows = rows.select([*_CLIP_COLUMNS, "target"])
        return Fold(number, *(rows.filter(pc.equal(part, name)) for name in PARTS))

    def __iter__(self) -> Iterator[Fold]:
        return (self.fold(number) for number in range(self.num_folds))


def check_plan(clips: pa.Table, target: Sequence[bool] | NDArray[np.bool_], plan: FoldPlan) -> None:
    """Raises FoldError for what no folds of these clips could mend: before work that would be in vain.

    Parameters as for `make_folds`, which does this too.
    """
    num_groups = pc.count_distinct(clips["group_id"]).as_py()
    least = max(plan.folds, 3) if plan.scheme == "kfold" else 3
    if num_groups < least:
        raise FoldError(f"{num_groups} patients (those that share a study count as one) are too few: {least}")
    target_N = np.asarray(target, np.bool_)
    if target_N.all() or not target_N.any():
        raise FoldError(f"all {len(target_N):,} clips have the same label: nothing can be learnt")
    if plan.leaves_one_out:
        folds = pc.count_distinct(clips[_LEFT_OUT[plan.scheme]]).as_py()
        if folds * len(clips) > _MOST_ROWS:
            raise FoldError(
                f"{plan.scheme}: {folds:,} folds of {len(clips):,} clips are more than {_MOST_ROWS:,} rows: take kfold"
            )


def make_folds(
    clips: pa.Table, target: Sequence[bool] | NDArray[np.bool_], plan: FoldPlan, *, name: str, task: str = "quality"
) -> Folds:
    """Divide the clips; the same clips, targets and plan give the same folds, in whatever order the clips come.

    Parameters
    ----------
    clips
        `LabelJoin.clips` of those with a label for the task (`labels.task_clips`); N rows.
    target
        Whether each clip is of the positive class, (N,).
    plan
        How.
    name, task
        What the rows are stored under.

    Raises
    ------
    FoldError
        Too few patients, or a part that lacks a class (the message names the fold): training and validation parts need
        both. A test part may lack one: its own AUC is null, and it counts in the pooled figures.
    """
    check_plan(clips, target, plan)
    order = np.argsort(np.array(clips["clip_id"].to_pylist()))
    clips = clips.select(_CLIP_COLUMNS).take(pa.array(order))
    target_N = np.asarray(target, np.bool_)[order]
    group_N = np.array(clips["group_id"].to_pylist())
    parts = [
        _parts(number, test_N, target_N, group_N, plan) for number, test_N in _tests(clips, target_N, group_N, plan)
    ]
    digest = _digest(clips, target_N, plan, task)
    facts = {"task": task, "plan_json": plan.canonical, "digest": digest}
    tables = []
    for number, part_N in enumerate(parts):
        columns: dict[str, Any] = {column: clips[column] for column in _CLIP_COLUMNS}
        columns |= {"part": part_N.tolist(), "target": target_N.tolist()}
        columns |= {column: [value] * len(clips) for column, value in {"fold": number, **facts}.items()}
        tables.append(pa.table([columns[field.name] for field in _ROWS], schema=_ROWS))
    folds = Folds(name, task, plan, digest, pa.concat_tables(tables).combine_chunks())
    for _ in folds:  # each is checked as it is made: a leak is never stored
        pass
    return folds


def ensure_folds(
    root: TableRoot,
    name: str,
    clips: pa.Table,
    target: Sequence[bool] | NDArray[np.bool_],
    plan: FoldPlan,
    *,
    task: str = "quality",
    some: bool = False,
) -> Folds:
    """The folds of this name: made and written by the first who asks, read by everyone after.

    Parameters as for `make_folds`. The table must be there (`TableRoot.ensure`). With `some` the folds of the name may hold more
    clips than these: each of these is in the part that it has there, so that a model of some clips is judged on patients whom a
    model of all held out, too. Raises FoldError, and SetDiffers (an argument's fault: the message says what differs) where the
    name stands for other clips, labels or another plan.
    """
    target_N = np.asarray(target, np.bool_)
    stored = _stored(root, name)
    if stored is None:
        folds = make_folds(clips, target, plan, name=name, task=task)
        with suppress(SetDiffers):  # a second driver was faster: its folds hold, if they are of the same clips
            write_set(root, "folds", folds.rows, fold_set=name)
        stored = _stored(root, name)
        assert stored is not None
    if stored.digest == (digest := _digest(clips, target_N, plan, task)):
        return stored
    within = stored.rows.filter(pc.is_in(stored.rows["clip_id"], clips["clip_id"].combine_chunks()))
    part = Folds(name, stored.task, stored.plan, digest, within)
    if not (some and within.num_rows and _digest(*_divided(part), stored.plan, stored.task) == digest):
        raise SetDiffers(_difference(stored, clips, target_N, plan, task))
    for fold in part:
        for who, rows in (("training", fold.train), ("validation", fold.validation)):
            target_P = np.asarray(rows["target"].to_pylist(), np.bool_)
            _need_both(target_P, f"fold {fold.number} of {name}: its {who} part of these clips")
        if not len(fold.test):
            raise FoldError(f"fold {fold.number} of {name} has none of these clips under test: take another --fold-set")
    return part


def read_folds(root: TableRoot, name: str) -> Folds:
    """The folds of this name. Raises TablesError where there are none."""
    stored = _stored(root, name)
    if stored is None:
        raise TablesError(f"there are no folds {name}")
    return stored


def check_disjoint(*parts: pa.Table) -> None:
    """Raises PatientLeak unless no group, patient, study or clip is in two of the parts.

    To be called wherever parts are used: before training, before a threshold is chosen, before test rows are written.
    A part has the columns clip_id, patient_id, study_id (null: none) and group_id.
    """
    for column in _SIDES:
        seen: set[Any] = set()
        for part in parts:
            values = set(part[column].to_pylist()) - {None}
            if common := seen & values:
                raise PatientLeak(f"{len(common)} {column} in two parts, one is {min(common)}")
            seen |= values


def in_sample(rows: pa.Table, training_patients: Collection[str]) -> NDArray[np.bool_]:
    """Which rows (with patient_id and group_id, N of them) are of patients that a model has seen, (N,).

    `training_patients`: `Fold.training_patients`, or those of a bundle.
    """
    seen = pa.array(sorted(training_patients), pa.string())
    either = pc.or_(pc.is_in(rows["patient_id"], seen), pc.is_in(rows["group_id"], seen))
    return np.asarray(either.to_pylist(), np.bool_)


# -- dividing --------------------------------------------------------------------------------------------------------


def _tests(
    clips: pa.Table, target_N: NDArray[np.bool_], group_N: NDArray[np.str_], plan: FoldPlan
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """(number, which clips are under test) of each fold."""
    if plan.scheme == "split":
        yield 0, _draw(target_N, group_N, plan.shares[2], (plan.seed, 0, 1), "the split: its test part")
    elif plan.scheme == "kfold":
        splitter = StratifiedGroupKFold(plan.folds, shuffle=True, random_state=plan.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes with fewer clips than folds: see `_parts`
            try:
                splits = list(splitter.split(np.zeros(len(target_N)), target_N, group_N))
            except ValueError:
                raise FoldError(f"neither class has a clip for each of {plan.folds} folds: take fewer folds") from None
        for number, (_, test) in enumerate(splits):
            yield number, np.isin(np.arange(len(target_N)), test)
    else:
        names = np.array(clips[_LEFT_OUT[plan.scheme]].to_pylist())
        for number, one in enumerate(np.unique(names)):
            yield number, names == one


def _parts(
    number: int, test_N: NDArray[np.bool_], target_N: NDArray[np.bool_], group_N: NDArray[np.str_], plan: FoldPlan
) -> NDArray[np.str_]:
    """The part of each clip in one fold."""
    if not test_N.any():
        raise FoldError(f"fold {number} has no clip under test: take fewer folds")
    part_N = np.where(test_N, "test", "train").astype("<U10")
    part_N[np.isin(group_N, group_N[test_N]) & ~test_N] = "left_out"
    train_N = part_N == "train"
    _need_both(target_N[train_N], f"fold {number}: its training part")
    share = plan.shares[1] / (plan.shares[0] + plan.shares[1]) if plan.scheme == "split" else plan.validation
    who = f"fold {number}: its validation part"
    part_N[np.flatnonzero(train_N)[_draw(target_N[train_N], group_N[train_N], share, (plan.seed, number, 2), who)]] = (
        "validation"
    )
    _need_both(target_N[part_N == "train"], f"fold {number}: its training part")
    return part_N


def _draw(
    target_N: NDArray[np.bool_], group_N: NDArray[np.str_], share: float, seed: tuple[int, ...], who: str
) -> NDArray[np.bool_]:
    """Which clips a part of this share gets, (N,): whole groups, of many draws the nearest to the share of clips and of
    positive ones, with both classes on both sides. FoldError where no draw has them."""
    groups_G, inverse_N = np.unique(group_N, return_inverse=True)
    clips_G = np.bincount(inverse_N)
    positive_G = np.bincount(inverse_N, weights=target_N)
    total, positive = len(target_N), int(target_N.sum())
    size = min(max(1, round(share * len(groups_G))), len(groups_G) - 1)
    rng = np.random.default_rng(seed)
    best: tuple[float, NDArray[np.intp]] | None = None
    for draw in range(_DRAWS):
        # more groups than the share where it takes more to have both classes
        chosen = rng.permutation(len(groups_G))[: min(size + 4 * draw // _DRAWS, len(groups_G) - 1)]
        clips, hits = int(clips_G[chosen].sum()), int(positive_G[chosen].sum())
        if not (0 < hits < clips and 0 < positive - hits < total - clips):
            continue
        distance = abs(clips / total - share) + abs(hits / positive - share)
        if best is None or distance < best[0]:
            best = (distance, chosen)
    if best is None:
        raise FoldError(
            f"{who} cannot have both classes: {total:,} clips of {len(groups_G)} patients, {positive:,} of them positive"
        )
    return np.isin(inverse_N, best[1])


def _need_both(target: NDArray[np.bool_], who: str) -> None:
    if target.all() or not target.any():
        lacking = "negative" if len(target) and target.all() else "positive"
        raise FoldError(f"{who} has no {lacking} clip ({len(target):,} clips): take fewer folds, or more patients")


# -- the table -------------------------------------------------------------------------------------------------------


def _stored(root: TableRoot, name: str) -> Folds | None:
    rows = read_set(root, "folds", fold_set=name)
    if not rows.num_rows:
        return None
    facts = rows.slice(0, 1).to_pylist()[0]
    plan = json.loads(facts["plan_json"])
    if "shares" in plan:
        plan["shares"] = tuple(plan["shares"])
    return Folds(name, facts["task"], FoldPlan(**plan), facts["digest"], rows.select(_ROWS.names))


def _digest(clips: pa.Table, target_N: NDArray[np.bool_], plan: FoldPlan, task: str) -> str:
    lines = sorted("\t".join((*clip, str(int(hit)))) for clip, hit in zip(_names(clips), target_N, strict=True))
    return hashlib.sha256("\n".join((task, plan.canonical, *lines)).encode()).hexdigest()


def _names(clips: pa.Table) -> list[tuple[str, ...]]:
    columns = (clips[name].to_pylist() for name in ("clip_id", "group_id", "acquisition_id"))
    return list(zip(*columns, strict=True))


def _by_clip(clips: pa.Table, target: list[bool]) -> dict[str, tuple[tuple[str, ...], bool]]:
    return {names[0]: (names, hit) for names, hit in zip(_names(clips), target, strict=True)}


def _divided(folds: Folds) -> tuple[pa.Table, NDArray[np.bool_]]:
    """The clips that folds divide, and their targets."""
    first = folds.rows.slice(0, len(folds.rows) // folds.num_folds)
    return first, np.asarray(first["target"].to_pylist(), np.bool_)


def _difference(stored: Folds, clips: pa.Table, target_N: NDArray[np.bool_], plan: FoldPlan, task: str) -> str:
    first, before_N = _divided(stored)
    before = _by_clip(first, before_N.tolist())
    now = _by_clip(clips, target_N.tolist())
    both = before.keys() & now.keys()
    told = {
        "new clips": len(now.keys() - before.keys()),
        "clips gone": len(before.keys() - now.keys()),
        "other labels": sum(before[clip][1] != now[clip][1] for clip in both),
        "other patients": sum(before[clip][0] != now[clip][0] for clip in both),
    }
    texts = [f"{n:,} {what}" for what, n in told.items() if n]
    if plan.canonical != stored.plan.canonical:
        texts.append(f"{stored.plan.canonical} -> {plan.canonical}")
    if task != stored.task:
        texts.append(f"task {stored.task} -> {task}")
    return f"folds {stored.name} are of other clips or another plan ({'; '.join(texts)}): take another name"
