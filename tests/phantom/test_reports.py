"""Report texts: every phrase admits the grade that is there, vague ones are flagged, silence means no stenosis."""

from __future__ import annotations

import re

import numpy as np
import pytest

from angio_ray.phantom.ct_heart import BRANCHES, GRADES, grade
from angio_ray.phantom.reports import BANNER, Finding, Report, Statement, admits, write_report

PLAQUES = ("calcified", "soft", "mixed")


def findings(rng: np.random.Generator) -> list[Finding]:
    """Every branch, healthy or with any narrowing; plaque without narrowing too."""
    made = []
    for branch in BRANCHES:
        percent = int(rng.choice([0, 0, rng.integers(0, 101)]))
        plaque = "none" if percent == 0 and rng.random() < 0.6 else PLAQUES[int(rng.integers(3))]
        made.append(Finding(branch=branch, percent=percent, grade=max(grade(percent), plaque != "none"), plaque=plaque))
    return made


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


def test_admits() -> None:
    either = Statement(text="50%", grades=(2, 3))
    assert admits(either, 49)
    assert admits(either, 50)
    assert not admits(either, 70)
    assert admits(Statement(text="plaque without stenosis", grades=(1,)), 0)
    assert not admits(Statement(text=None, grades=(0,)), 30)


def test_a_place_is_said_as_it_is_or_not_at_all() -> None:
    known = [Finding(branch="RCA", percent=80, grade=4, plaque="soft", place="distal")]
    texts = [write_report(known, np.random.default_rng(seed)).text for seed in range(40)]
    assert any("distal" in text for text in texts)
    assert not any("proximal" in text or "mid RCA" in text for text in texts)
