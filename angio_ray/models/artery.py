"""Which coronary artery a clip shows, left or right: from the pixels alone, so that angles cannot vouch for themselves.

The stenosis paper (spec section 2) sorts its runs by a small classifier before anything else. Ours sees the whole run, in the
input that the frames of full contrast are sought in: two seconds of it, as the quality nets see (they can be trained for this,
too), may lie before the contrast comes. Knows nothing of tables, gates or Ray.

Shapes: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from angio_ray.models.backends import TwoClassScorer
from angio_ray.models.contrast import WHOLE_112
from angio_ray.models.interface import NetSpec

if TYPE_CHECKING:
    from torch import nn

CLASSES = ("LCA", "RCA")
COLUMNS = ("artery", "artery_probability", "artery_threshold")


class ArteryScorer(TwoClassScorer):
    """Name of the artery that a clip shows, and the probability that it is the right one."""

    task = "artery"

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[np.ndarray]] | None = None,
        known: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Sort B clips: {window name: uint8 (B, T, H, W)} -> COLUMNS, each of length B; see `TwoClassScorer.named`."""
        return self.named(inputs, CLASSES)


def _projection_2d() -> nn.Module:
    from angio_ray.models.projection import projection_2d

    return projection_2d(len(CLASSES))


NETS: dict[str, NetSpec] = {
    "projection_2d": NetSpec(
        name="projection_2d", build=_projection_2d, window=WHOLE_112, layout="BCTHW", cost_input=(3, 200, 112, 112)
    )
}
