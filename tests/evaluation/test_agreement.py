from __future__ import annotations

import pytest

from angio_ray.evaluation.agreement import Conflict, agreement

GOOD, BAD = "satisfactory", "unsatisfactory"

# Two pathologists on 118 slides in four grades; Agresti 2002, table 10.8: kappa 0.493, standard error 0.057.
PATHOLOGISTS = ((22, 2, 2, 0), (5, 7, 14, 0), (0, 2, 36, 0), (0, 1, 17, 10))


def readers(table: tuple[tuple[int, ...], ...], labels: str = "1234") -> tuple[dict[str, str], dict[str, str]]:
    """Two readers' labels that give the table."""
    pairs = [(labels[i], labels[j]) for i, row in enumerate(table) for j, cell in enumerate(row) for _ in range(cell)]
    return {f"{n:03}": a for n, (a, _) in enumerate(pairs)}, {f"{n:03}": b for n, (_, b) in enumerate(pairs)}


def test_kappa_and_its_interval_are_agrestis() -> None:
    found = agreement(*readers(PATHOLOGISTS))
    assert found.table == PATHOLOGISTS
    assert (found.num_both, found.observed) == (118, 75 / 118)
    assert found.kappa == pytest.approx(0.493, abs=5e-4)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 / 1.95996 == pytest.approx(0.057, abs=5e-4)
    assert found.method == "fleiss_cohen_everitt"


def test_conflicts_are_listed_and_the_rest_is_agreed() -> None:
    a = {"c1": GOOD, "c2": BAD, "c3": GOOD, "c4": None, "c5": GOOD}
    b = {"c1": GOOD, "c2": GOOD, "c3": BAD, "c4": BAD, "c6": BAD}
    found = agreement(a, b)
    assert found.conflicts == (
        Conflict(clip_id="c2", label_a=BAD, label_b=GOOD),
        Conflict(clip_id="c3", label_a=GOOD, label_b=BAD),
    )
    assert found.agreed == {"c1": GOOD}
    assert (found.num_both, found.num_only_a, found.num_only_b) == (3, 1, 2)
    assert (found.labels, found.table) == ((GOOD, BAD), ((1, 1), (1, 0)))


def test_clips_of_one_patient_widen_the_interval() -> None:
    a, b = readers(((40, 6), (4, 30)), "xy")
    alone = agreement(a, b, patients={clip: clip for clip in a})
    assert alone.method == "fleiss_cohen_everitt"
    # Twice the same clips, each pair of one patient: no more is known.
    a2, b2 = ({f"{clip}{copy}": label for clip, label in given.items() for copy in "uv"} for given in (a, b))
    found = agreement(a2, b2, patients={clip: clip[:3] for clip in a2})
    assert (found.kappa, found.num_patients, found.method) == (pytest.approx(alone.kappa), 80, "clustered_bootstrap")
    assert [found.low, found.high] == pytest.approx([alone.low, alone.high], abs=0.03)
    naive = agreement(a2, b2)
    assert naive.high is not None
    assert alone.high is not None
    assert naive.high < alone.high - 0.03
    with pytest.raises(ValueError, match="1 clips have no patient: 000u"):
        agreement(a2, b2, patients={clip: clip for clip in a2 if clip != "000u"})


@pytest.mark.parametrize(
    ("a", "b", "kappa"),
    [
        ({}, {"c1": GOOD}, None),
        ({"c1": GOOD, "c2": GOOD}, {"c1": GOOD, "c2": GOOD}, None),
        ({"c1": GOOD, "c2": BAD}, {"c1": GOOD, "c2": BAD}, 1),
        ({"c1": GOOD, "c2": BAD}, {"c1": BAD, "c2": GOOD}, -1),
    ],
    ids=["no clip in both", "one label", "always", "never"],
)
def test_what_is_undefined_is_null(a: dict[str, str | None], b: dict[str, str | None], kappa: float | None) -> None:
    found = agreement(a, b)
    assert found.kappa == kappa
    assert (found.low, found.high, found.method) == (None, None, None)
