"""Report texts: every phrase admits the grade that is there, vague ones are flagged, silence means no stenosis."""

from __future__ import annotations

import re

import numpy as np
import pytest

from angio_ray.phantom.ct_heart import BRANCHES, GRADES, grade
from angio_ray.phantom.reports import BANNER, Finding, Report, Statement, write_report

PLAQUES = ("calcified", "soft", "mixed")


def findings(rng: np.random.Generator) -> list[Finding]:
    """Every branch, healthy or with any narrowing; plaque without narrowing too."""
    made = []
    for branch in BRANCHES:
        percent = int(rng.choice([0, 0, rng.integers(0, 101)]))
        plaque = "none" if percent == 0 and rng.random() < 0.6 else PLAQUES[int(rng.integers(3))]
        graded = max(grade(percent), plaque != "none")
        calcified = plaque in ("calcified", "mixed")
        made.append(Finding(branch=branch, percent=percent, grade=graded, plaque=plaque, calcified=calcified))
    return made


def admits(said: Statement, percent: int) -> bool:
    """Whether a branch narrowed so far may be what the words describe."""
    return any(GRADES[g][0] <= percent <= GRADES[g][1] or (g == 1 and percent == 0) for g in said.grades)


@pytest.fixture(scope="module")
def written() -> list[tuple[list[Finding], Report]]:
    out = []
    for seed in range(250):
        rng = np.random.default_rng(seed)
        known = findings(rng)
        out.append((known, write_report(known, rng)))
    return out


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, 0), (1, 1), (24, 1), (25, 2), (49, 2), (50, 3), (69, 3), (70, 4), (99, 4), (100, 5)],
)
def test_grades_are_cad_rads(percent: int, expected: int) -> None:
    assert grade(percent) == expected
    low, high = GRADES[expected]
    assert low <= percent <= high


def test_every_statement_admits_what_is_there(written: list[tuple[list[Finding], Report]]) -> None:
    for known, report in written:
        assert set(report.statements) == {finding.branch for finding in known}
        for finding in known:
            said = report.statements[finding.branch]
            assert finding.grade in said.grades, (finding, said)
            assert admits(said, finding.percent), (finding, said)


def test_words_stand_in_the_text_and_silence_means_no_stenosis(written: list[tuple[list[Finding], Report]]) -> None:
    silent = 0
    for known, report in written:
        for finding in known:
            said = report.statements[finding.branch]
            if said.text is None:
                silent += 1
                assert finding.grade == 0
                assert said.grades == (0,)
            else:
                assert said.text in report.text
    assert silent > 100


def test_an_independent_reader_gets_the_same_grades(written: list[tuple[list[Finding], Report]]) -> None:
    """Ranges and lone numbers in a phrase, read anew here, lie within the grades that the truth says it states."""
    checked = 0
    for _, report in written:
        for said in report.statements.values():
            numbers = [int(n) for n in re.findall(r"(\d+)(?=%|-\d+%| to \d+%)", said.text or "")]
            if len(said.grades) == 1 and numbers and not re.search(r"[<>]|more than|less than", said.text or ""):
                checked += 1
                assert {grade(n) for n in numbers} == {said.grades[0]}, said
    assert checked > 500


def test_fifty_percent_alone_is_ambiguous_and_never_given_away(written: list[tuple[list[Finding], Report]]) -> None:
    alone = [
        (report, said)
        for _, report in written
        for said in report.statements.values()
        if said.text and re.search(r"(?<![-<\d>])(?<!than )\b50%", said.text)
    ]
    assert len(alone) >= 5
    for report, said in alone:
        assert said.ambiguous
        assert {2, 3} <= set(said.grades)
        assert "CAD-RADS" not in report.text


def test_other_vague_phrases_occur_but_most_are_clear(written: list[tuple[list[Finding], Report]]) -> None:
    diseased = [report.statements[f.branch] for known, report in written for f in known if f.grade]
    share = np.mean([said.ambiguous for said in diseased])
    assert 0.03 < share < 0.35
    assert {said.grades for said in diseased if said.ambiguous} == {(1, 2), (2, 3), (3, 4)}


def test_impression_agrees_with_the_worst_finding(written: list[tuple[list[Finding], Report]]) -> None:
    stated = 0
    for known, report in written:
        if said := re.search(r"CAD-RADS (\d)", report.text.split("IMPRESSION")[1]):
            stated += 1
            assert int(said[1]) == max(f.grade for f in known)
    assert stated > 30


def test_readers_differ_and_the_same_reader_repeats() -> None:
    known = findings(np.random.default_rng(1))
    texts = [write_report(known, np.random.default_rng(seed)).text for seed in range(30)]
    assert len(set(texts)) == 30
    assert write_report(known, np.random.default_rng(3)).text == texts[3]


def test_no_text_passes_for_a_patients(written: list[tuple[list[Finding], Report]]) -> None:
    for _, report in written:
        assert report.text.startswith(BANNER)
        assert not re.search(r"\bnormal\b|rule[- ]out|no disease", report.text, re.IGNORECASE)


@pytest.mark.parametrize("calcified", [True, False])
def test_calcium_score_is_zero_only_without_calcium(calcified: bool) -> None:
    """Also where the worst plaque, which the words are on, has none."""
    known = [Finding(branch="LAD", percent=60, grade=3, plaque="soft", calcified=calcified)]
    texts = [write_report(known, np.random.default_rng(seed)).text for seed in range(60)]
    scores = [int(found[1]) for text in texts if (found := re.search(r"Agatston\): (\d+)", text))]
    assert len(scores) > 20
    assert all((score > 0) == calcified for score in scores)


def test_plaque_without_narrowing_is_no_stenosis() -> None:
    known = [Finding(branch="LAD", percent=0, grade=1, plaque="calcified", calcified=True)]
    texts = [write_report(known, np.random.default_rng(seed)).text for seed in range(60)]
    assert any("CAD-RADS 1" in text for text in texts)
    assert not any("Maximal stenosis" in text for text in texts)


def test_a_place_is_said_as_it_is_or_not_at_all() -> None:
    known = [Finding(branch="RCA", percent=80, grade=4, plaque="soft", calcified=False, place="distal")]
    texts = [write_report(known, np.random.default_rng(seed)).text for seed in range(40)]
    assert any("distal" in text for text in texts)
    assert not any("proximal" in text or "mid RCA" in text for text in texts)
