"""From which side a clip was filmed, right or left anterior oblique: from the pixels alone, so that a wrong angle can be told.

A header's angles may be those of another run, or of nothing at all; where the picture says the other side, the row says
`view_suspect` (`angio_ray.views.is_suspect`). Input and nets are those of the artery task. Knows nothing of tables, gates or Ray.

Shapes: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from angio_ray.models.backends import TwoClassScorer

CLASSES = ("RAO", "LAO")
COLUMNS = ("oblique", "oblique_probability", "oblique_threshold")


class ObliqueScorer(TwoClassScorer):
    """The side, and the probability that it is the left one."""

    task = "oblique"

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[np.ndarray]] | None = None,
        known: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Sort B clips: {window name: uint8 (B, T, H, W)} -> COLUMNS, each of length B; see `TwoClassScorer.named`."""
        return self.named(inputs, CLASSES)
