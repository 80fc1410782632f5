"""What the quality-selection paper reports, to stand beside our figures. Its data are patients'; ours are named each time.

Source: seeds/quality-selection.txt. The paper gives no intervals. Knows nothing of tables or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from angio_ray.evaluation.metrics import Confusion

NET_NAMES: Mapping[str, str] = {
    "r18_2d": "ResNet-18 2D",
    "r152_2d": "ResNet-152 2D",
    "r18_3d": "ResNet-18 3D",
    "r152_3d": "ResNet-152 3D",
    "x3d_s": "X3D-S",
}
"""Net -> its name in the paper, in the paper's order."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One net's line of a table of the paper, two decimals as printed."""

    auc: float
    accuracy: float
    precision: float
    sensitivity: float
    specificity: float
    f1: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperSet:
    """One of the paper's data sets."""

    words: str
    rows: Mapping[str, PaperRow]
    """By net."""


TEST = PaperSet(
    words="test set, 15 % of 857 satisfactory and 180 unsatisfactory clips, split by patient",
    rows={
        "r18_2d": PaperRow(0.89, 0.85, 0.50, 0.86, 0.85, 0.63),
        "r152_2d": PaperRow(0.93, 0.88, 0.57, 0.81, 0.89, 0.67),
        "r18_3d": PaperRow(0.95, 0.87, 0.51, 0.95, 0.85, 0.67),
        "r152_3d": PaperRow(0.97, 0.88, 0.54, 0.90, 0.88, 0.68),
        "x3d_s": PaperRow(0.98, 0.96, 0.86, 0.89, 0.98, 0.87),
    },
)
INDEPENDENT = PaperSet(
    words="independent set, 20,388 clips of 2,725 patients",
    rows={
        "x3d_s": PaperRow(0.90, 0.88, 0.49, 0.78, 0.89, 0.61),
        "r18_3d": PaperRow(0.90, 0.87, 0.48, 0.78, 0.88, 0.59),
        "r152_3d": PaperRow(0.88, 0.86, 0.44, 0.74, 0.87, 0.56),
    },
)
INDEPENDENT_X3D_S = Confusion(true_positive=1920, false_positive=1966, false_negative=531, true_negative=15971)
"""X3D-S on the independent set: it excludes 19.1 % (readers: 12.0 %), and 96.8 % of the clips it keeps are satisfactory."""
