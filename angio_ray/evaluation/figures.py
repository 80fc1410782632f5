"""Figures of a report as SVG text: ROC, precision-recall, calibration, decision curve. Drawn by matplotlib, no display needed.

Text becomes outlines, so a figure looks the same everywhere; a curve's name is the caption's affair (`Curve.colour` and
`Curve.dash` serve its key). Knows rows only, no models, tables or pages.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from angio_ray.evaluation.metrics import Bools, Confusion, Floats, both_classes, calibration, decision_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people tell apart; dashes tell them apart in grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a8588f", "#8a6d00", "#444444")
_DASHES = ((), (7, 2), (2, 2), (7, 2, 2, 2), (4, 4), (1, 2))
_SIZE = (5.0, 4.4)
"""Inches; a page shows a figure at any width, and at 350 px its letters have about 10 px."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One model's rows, and how it is drawn."""

    name: str
    target_N: Bools
    probability_N: Floats
    confusion: Confusion
    """At the operating threshold (pooled folds: each at its own)."""
    number: int
    """Which colour and dash."""

    @property
    def colour(self) -> str:
        """As CSS writes it."""
        return _COLOURS[self.number % len(_COLOURS)]

    @property
    def dash(self) -> tuple[int, ...]:
        """Lengths in pt of stroke and gap; empty: a whole line."""
        return _DASHES[(self.number + self.number // len(_COLOURS)) % len(_DASHES)]


def roc(curves: Sequence[Curve]) -> str | None:
    """ROC curves in one figure, a dot at each operating point; None where no curve has both classes."""

    def draw(axes: Axes, curve: Curve) -> None:
        false_positive, true_positive, _ = roc_curve(curve.target_N, curve.probability_N)
        _line(axes, curve, false_positive, true_positive)
        sensitivity, specificity = curve.confusion.sensitivity, curve.confusion.specificity
        if sensitivity is not None and specificity is not None:
            _dot(axes, curve, 1 - specificity, sensitivity)

    def frame(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color="0.7", lw=1, zorder=0)
        _unit(axes, "1 - specificity (satisfactory clips excluded)", "sensitivity (unsatisfactory clips found)")

    return _figure("roc", [c for c in curves if both_classes(c.target_N)], draw, frame)


def precision_recall(curves: Sequence[Curve]) -> str | None:
    """Precision over recall, a dot at each operating point, the share of positives as a line; None as `roc`."""
    shown = [c for c in curves if both_classes(c.target_N)]

    def draw(axes: Axes, curve: Curve) -> None:
        precision, recall, _ = precision_recall_curve(curve.target_N, curve.probability_N, drop_intermediate=True)
        _line(axes, curve, recall, precision, drawstyle="steps-post")
        if curve.confusion.precision is not None and curve.confusion.sensitivity is not None:
            _dot(axes, curve, curve.confusion.sensitivity, curve.confusion.precision)

    def frame(axes: Axes) -> None:
        for prevalence in {round(float(c.target_N.mean()), 3) for c in shown}:
            axes.axhline(prevalence, color="0.7", lw=1, zorder=0)
        _unit(axes, "recall (sensitivity)", "precision")

    return _figure("pr", shown, draw, frame)


def calibrated(curves: Sequence[Curve], *, num_bins: int = 8) -> str | None:
    """Share of positives over the mean probability, in bins of equal mass; None without rows."""

    def draw(axes: Axes, curve: Curve) -> None:
        bins = calibration(curve.target_N, curve.probability_N, num_bins=num_bins).bins
        x, y = [b.mean_probability for b in bins], [b.observed for b in bins]
        _line(axes, curve, x, y)
        axes.plot(x, y, ls="none", marker="o", ms=5, color=curve.colour)

    def frame(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color="0.7", lw=1, zorder=0)
        _unit(axes, "probability said (mean of a bin)", "share unsatisfactory in truth")

    return _figure("cal", [c for c in curves if c.target_N.size], draw, frame)


def decisions(curves: Sequence[Curve]) -> str | None:
    """Net benefit over the threshold probability, beside excluding all clips and none; None without rows."""
    shown = [c for c in curves if c.target_N.size]
    top = max((float(c.target_N.mean()) for c in shown), default=0.0)

    def draw(axes: Axes, curve: Curve) -> None:
        found = decision_curve(curve.target_N, curve.probability_N)
        _line(axes, curve, found.threshold_T, found.net_benefit_T)

    def frame(axes: Axes) -> None:
        for curve in shown[:1]:
            found = decision_curve(curve.target_N, curve.probability_N)
            axes.plot(found.threshold_T, found.call_all_T, color="0.55", lw=1, zorder=0)
        axes.axhline(0, color="0.7", lw=1, zorder=0)
        axes.set(xlim=(0, 1), ylim=(-0.25 * top - 0.01, 1.12 * top + 0.01))
        axes.set(xlabel="threshold probability", ylabel="net benefit")

    return _figure("dec", shown, draw, frame)


def _unit(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)


def _line(axes: Axes, curve: Curve, x: object, y: object, **style: object) -> None:
    dashes = {"dashes": curve.dash} if curve.dash else {}
    axes.plot(np.asarray(x), np.asarray(y), color=curve.colour, lw=1.8, **dashes, **style)  # type: ignore[arg-type]


def _dot(axes: Axes, curve: Curve, x: float, y: float) -> None:
    axes.plot([x], [y], ls="none", marker="o", ms=7, mfc=curve.colour, mec="white", mew=1.2, zorder=5)


def _figure(
    name: str, curves: Sequence[Curve], draw: Callable[[Axes, Curve], None], frame: Callable[[Axes], None]
) -> str | None:
    if not curves:
        return None
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "angio_ray", "font.size": 11}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        for curve in curves:
            draw(axes, curve)
        frame(axes)
        axes.grid(color="0.92", lw=0.8)
        axes.set_axisbelow(True)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The svg element alone, as wide as its place, with ids that no other figure of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # inside a page it would style the page
    prefix = f"{name}-{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = svg.replace('<path d="', '<path stroke-linejoin="round" d="')
    return re.sub(
        r'<svg ([^>]*?)\s*(?:width|height)="[^"]*"([^>]*?)\s*(?:width|height)="[^"]*"', r"<svg \1\2", svg, count=1
    )
