"""From which side a clip was filmed, right or left anterior oblique: from the pixels alone, so that a wrong angle can be told.

A header's angles may be those of another run, or of nothing at all; where the picture says the other side, the row says
`view_suspect` (`angio_ray.views.is_suspect`). Input and nets are those of the artery task. Knows nothing of tables, gates or Ray.

Shapes: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

from angio_ray.models.backends import NamingScorer

CLASSES = ("RAO", "LAO")
COLUMNS = ("oblique", "oblique_probability", "oblique_threshold")


class ObliqueScorer(NamingScorer):
    """The side, and the probability that it is the left one."""

    task = "oblique"
    classes = CLASSES
