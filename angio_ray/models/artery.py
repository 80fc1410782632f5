"""Which coronary artery a clip shows, left or right: from the pixels alone, so that angles cannot vouch for themselves.

The stenosis paper (spec section 2) sorts its runs by a small classifier before anything else. The quality task's nets can be
trained for it; the bundle that ships is a `projection_2d`, which sees the whole run in place of two seconds, in the input that
the frames of full contrast are sought in, since contrast may come later than that. Knows nothing of tables, gates or Ray.

Shapes: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from angio_ray.models.backends import NamingScorer
from angio_ray.models.contrast import WHOLE_112
from angio_ray.models.interface import NetSpec

if TYPE_CHECKING:
    from torch import nn

CLASSES = ("LCA", "RCA")
COLUMNS = ("artery", "artery_probability", "artery_threshold")


class ArteryScorer(NamingScorer):
    """Name of the artery that a clip shows, and the probability that it is the right one."""

    task = "artery"
    classes = CLASSES


def _projection_2d() -> nn.Module:
    from angio_ray.models.projection import projection_2d

    return projection_2d(len(CLASSES))


NETS: dict[str, NetSpec] = {
    "projection_2d": NetSpec(
        name="projection_2d", build=_projection_2d, window=WHOLE_112, layout="BCTHW", cost_input=(3, 200, 112, 112),
        autocast=True,
    )
}
