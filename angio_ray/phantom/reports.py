"""Texts of synthetic coronary CT reports, in the words of several readers, with what each phrase states.

The grades are CAD-RADS (Cury et al., J Cardiovasc Comput Tomogr 2016; 10:269-281). What a report leaves out has no
stenosis. Some phrases admit more than one grade ("50%" alone lies between mild and moderate): those are flagged, and
no impression of the same report gives the grade away. Every text says that no patient is behind it. Knows nothing of
pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from angio_ray.phantom.ct_heart import ARTERIES, BranchName

BANNER = "SYNTHETIC REPORT - computer-generated phantom, no patient"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known of one branch."""

    branch: BranchName
    percent: int
    grade: int
    plaque: str
    """The worst one's: calcified, soft, mixed or none."""
    calcified: bool
    """Calcium in any of its plaques."""
    place: Literal["", "proximal", "mid", "distal"] = ""
    """Where along the branch, if it is to be said."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What the report says of one branch."""

    text: str | None
    """The words on it, as they stand in the report; None where it says nothing."""
    grades: tuple[int, ...]
    """The CAD-RADS grades that the words admit; (0,) where it says nothing."""

    @property
    def ambiguous(self) -> bool:
        """More than one grade fits the words."""
        return len(self.grades) > 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """A text, and what it says of each branch that it was written for."""

    text: str
    statements: MappingProxyType[BranchName, Statement]


@dataclass(frozen=True)
class _Said:
    """A phrase for a finding: what stands after the branch's name."""

    words: str
    grades: tuple[int, ...]
    place: str = ""


# how readers call the branches; the first stands in tables
_NAMES: dict[BranchName, tuple[str, ...]] = {
    "LAD": ("LAD", "left anterior descending artery", "left anterior descending (LAD)"),
    "D-1": ("D1", "D-1", "first diagonal", "first diagonal branch (D1)", "diagonal 1"),
    "D-2": ("D2", "D-2", "second diagonal", "second diagonal branch (D2)", "diagonal 2"),
    "D-3": ("D3", "D-3", "third diagonal", "diagonal 3"),
    "LCX": ("LCx", "LCX", "left circumflex artery", "circumflex", "Cx"),
    "OM-1": ("OM1", "OM-1", "first obtuse marginal", "first marginal branch (OM1)"),
    "OM-2": ("OM2", "OM-2", "second obtuse marginal", "obtuse marginal 2"),
    "OM-3": ("OM3", "OM-3", "third obtuse marginal"),
    "PDA-LCX": ("LCx-PDA", "PDA-LCX", "PDA (from the LCx)", "posterior descending branch of the circumflex"),
    "PLV-LCX": ("LCx-PLV", "PLV-LCX", "PLV (from the LCx)", "posterolateral branch of the circumflex"),
    "RCA": ("RCA", "right coronary artery", "right coronary artery (RCA)"),
    "PDA-RCA": ("R-PDA", "PDA-RCA", "PDA (from the RCA)", "posterior descending branch of the RCA"),
    "PLV-RCA": ("R-PLV", "PLV-RCA", "PLV (from the RCA)", "posterolateral branch of the RCA"),
}
_NONE = (
    "no stenosis",
    "no plaque or stenosis",
    "patent without stenosis",
    "free of plaque",
    "unremarkable",
    "no plaque, 0% stenosis",
    "without atherosclerotic plaque",
    "0%",
)
_WORDS = {
    1: ("minimal stenosis", "minimal luminal irregularity", "minimal narrowing"),
    2: ("mild stenosis", "mild narrowing", "mild luminal stenosis"),
    3: ("moderate stenosis", "moderate narrowing", "moderate luminal stenosis"),
    4: ("severe stenosis", "severe narrowing", "high-grade stenosis"),
    5: ("total occlusion", "occluded", "complete occlusion", "chronic total occlusion"),
}
_RANGES = {1: "1-24%", 2: "25-49%", 3: "50-69%", 4: "70-99%", 5: "100%"}
_PLAQUES = {
    "calcified": ("calcified plaque", "densely calcified plaque", "calcified atheroma"),
    "soft": ("non-calcified plaque", "soft plaque", "non calcified (soft) plaque"),
    "mixed": ("mixed plaque", "partially calcified plaque", "mixed calcified and non-calcified plaque"),
}


def write_report(findings: Sequence[Finding], rng: np.random.Generator) -> Report:
    """Write one patient's report.

    Parameters
    ----------
    findings : sequence of Finding
        One per branch, in any order.
    rng : np.random.Generator
        The reader: style, phrases, what is left unsaid.
    """
    unsure = rng.random() < 0.3
    style = (_telegraphic, _prose, _table)[int(rng.integers(3))]
    said: dict[BranchName, _Said | None] = {}
    for finding in findings:
        unmentioned = finding.grade == 0 and rng.random() < 0.3
        said[finding.branch] = None if unmentioned else _say(finding, rng, unsure, short=style is _table)
    body, texts = style(said, rng)
    ambiguous = any(phrase is not None and len(phrase.grades) > 1 for phrase in said.values())
    calcified = any(finding.calcified for finding in findings)
    text = "\n".join(
        [*_head(calcified, rng), "", "FINDINGS", *body, "", "IMPRESSION", _impression(findings, ambiguous, rng), ""]
    )
    statements = {
        branch: Statement(text=texts.get(branch), grades=phrase.grades if phrase else (0,))
        for branch, phrase in said.items()
    }
    return Report(text=text, statements=MappingProxyType(statements))


def _say(finding: Finding, rng: np.random.Generator, unsure: bool, *, short: bool) -> _Said:
    """One of the ways of saying it."""
    if finding.grade == 0:
        return _Said(_pick(rng, ("0%", "no stenosis", "free of plaque") if short else _NONE), (0,))
    plaque = _pick(rng, _PLAQUES[finding.plaque])
    phrase = (unsure and rng.random() < 0.7 and _vague(finding, rng)) or _clear(finding, rng)
    if phrase.words.startswith("plaque"):  # it has its plaque already
        return _Said(phrase.words.replace("plaque", plaque, 1), phrase.grades, finding.place)
    words = _pick(
        rng,
        (
            f"{plaque} with {phrase.words}",
            f"{phrase.words} due to {plaque}",
            f"{phrase.words} ({plaque})",
            f"{plaque}, {phrase.words}",
            phrase.words,
        ),
    )
    return _Said(words, phrase.grades, finding.place)


def _clear(finding: Finding, rng: np.random.Generator) -> _Said:
    grade, percent = finding.grade, finding.percent
    word, span = _pick(rng, _WORDS[grade]), _RANGES[grade]
    if grade == 5:
        return _Said(_pick(rng, (word, f"{word} (100%)", "100% stenosis")), (5,))
    if percent == 0:
        without = (
            "plaque without stenosis",
            "plaque with no luminal narrowing",
            "plaque, no significant narrowing (<25%)",
        )
        return _Said(_pick(rng, without), (1,))
    ways = [f"{word} ({span})", f"{span} stenosis", f"{span.replace('-', ' to ')} stenosis", word]
    if percent not in (25, 50, 70):  # a lone number on a border would be no clear phrase
        ways += [f"{percent}% stenosis", f"approximately {percent}% stenosis", f"{word}, estimated at {percent}%"]
    if grade == 4:
        ways += ["stenosis of more than 70%", ">70% stenosis"] if percent > 70 else []
    if grade == 1:
        ways += ["less than 25% stenosis", "<25% stenosis"]
    return _Said(_pick(rng, ways), (grade,))


def _vague(finding: Finding, rng: np.random.Generator) -> _Said | None:
    """A phrase that leaves the grade open and does not contradict what is there; None where there is no such."""
    percent, ways = finding.percent, []
    if 44 <= percent <= 56:
        ways += [
            _Said("50%", (2, 3)),
            _Said("50% stenosis", (2, 3)),
            _Said("about 50% stenosis", (2, 3)),
            _Said("borderline 50% stenosis", (2, 3)),
        ]
    if 40 <= percent <= 60:
        ways.append(_Said("mild to moderate stenosis", (2, 3)))
    if 62 <= percent <= 78:
        ways += [_Said("moderate to severe stenosis", (3, 4)), _Said("stenosis of 60-80%", (3, 4))]
    if 15 <= percent <= 35:
        ways.append(_Said("minimal to mild stenosis", (1, 2)))
    if 1 <= percent < 50:
        ways += [_Said("less than 50% stenosis", (1, 2)), _Said("non-obstructive narrowing (<50%)", (1, 2))]
    if 50 < percent < 100:
        ways.append(_Said("more than 50% stenosis", (3, 4)))
    return ways[int(rng.integers(len(ways)))] if ways else None


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _head(calcified: bool, rng: np.random.Generator) -> list[str]:
    """What stands above the findings; its numbers are not of stenoses."""
    score = 1 + int(rng.gamma(0.7, 220)) if calcified else 0
    facts = [
        f"Heart rate: {int(rng.normal(61, 7))} bpm.",
        f"Calcium score (Agatston): {score}.",
        f"Ejection fraction {int(rng.normal(60, 6))}%.",
        f"Phase {int(rng.choice([40, 70, 75, 78]))}% of the R-R interval.",
        _pick(rng, ("Image quality: good.", "Image quality: diagnostic.", "Image quality: fair.")),
        "Contrast: 70 ml, 370 mg/ml.",
    ]
    keep = np.sort(rng.choice(len(facts), int(rng.integers(2, len(facts) + 1)), replace=False))
    title = _pick(rng, ("CT CORONARY ANGIOGRAM", "CCTA REPORT", "CARDIAC CT: CORONARY ARTERIES"))
    return [BANNER, "", title, " ".join(facts[k] for k in keep)]


def _impression(findings: Sequence[Finding], ambiguous: bool, rng: np.random.Generator) -> str:
    """One line that agrees with the findings; a vague report's says nothing on the grade."""
    if ambiguous:
        return _pick(rng, ("Coronary artery disease as described.", "Please correlate clinically.", "As above."))
    worst = max((finding.grade for finding in findings), default=0)
    if worst == 0:
        return _pick(
            rng, ("CAD-RADS 0.", "No coronary plaque or stenosis seen.", "No stenosis in the coronary arteries.")
        )
    ways = [f"CAD-RADS {worst}.", "As described above."]
    if any(finding.percent for finding in findings):  # plaque alone is grade 1, and no stenosis
        ways.append(f"Maximal stenosis {_RANGES[worst]}, CAD-RADS {worst}.")
    return _pick(rng, ways)


# --- styles: each returns the lines, and per branch the words on it as they stand there ---------------------------------

_Body = tuple[list[str], dict[BranchName, str]]
_Style = Callable[[dict[BranchName, _Said | None], np.random.Generator], _Body]


def _telegraphic(said: dict[BranchName, _Said | None], rng: np.random.Generator) -> _Body:
    """A line per branch."""
    lines, texts = ["Left main: no stenosis."] if rng.random() < 0.6 else [], {}
    mark = _pick(rng, (": ", " - ", " = "))
    for branch, phrase in said.items():
        if phrase is not None:
            texts[branch] = f"{_pick(rng, _NAMES[branch])}{mark}{phrase.words}."
            lines.append(texts[branch][0].upper() + texts[branch][1:])
            texts[branch] = lines[-1]
    return lines, texts


def _prose(said: dict[BranchName, _Said | None], rng: np.random.Generator) -> _Body:
    """A paragraph per artery, healthy branches in one sentence."""
    lines: list[str] = []
    texts: dict[BranchName, str] = {}
    if rng.random() < 0.6:
        lines.append("The left main arises from the left sinus and divides into the LAD and LCx; it is patent.")
    for branches in ARTERIES.values():
        sentences = []
        healthy = [b for b in branches if (phrase := said.get(b)) is not None and phrase.grades == (0,)]
        for branch in branches:
            phrase = said.get(branch)
            if phrase is None or branch in healthy:
                continue
            name = _pick(rng, _NAMES[branch])
            where = f"{phrase.place} " if phrase.place and branch in ("LAD", "LCX", "RCA") else ""
            sentence = _pick(
                rng, (f"The {where}{name} shows {phrase.words}.", f"In the {where}{name}: {phrase.words}.")
            )
            texts[branch] = sentence
            sentences.append(sentence)
        if healthy:
            names = [_pick(rng, _NAMES[b]) for b in healthy]
            listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
            sentence = _pick(rng, (f"No stenosis in the {listed}.", f"No plaque or stenosis is seen in the {listed}."))
            texts |= dict.fromkeys(healthy, sentence)
            sentences.append(sentence)
        if sentences:
            lines.append(" ".join(sentences))
    return lines, texts


def _table(said: dict[BranchName, _Said | None], rng: np.random.Generator) -> _Body:
    """Vessel and finding in two columns, by artery."""
    lines: list[str] = []
    texts: dict[BranchName, str] = {}
    for artery, branches in ARTERIES.items():
        rows = [(b, phrase) for b in branches if (phrase := said.get(b)) is not None]
        if rows:
            lines.append(f"[{artery}]")
        for branch, phrase in rows:
            name = _NAMES[branch][int(rng.integers(2))] if len(_NAMES[branch]) > 3 else _NAMES[branch][0]
            texts[branch] = f"{name:<10}| {phrase.words}"
            lines.append(f"  {texts[branch]}")
    return lines, texts
