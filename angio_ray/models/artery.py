"""Which coronary artery a clip shows, left or right: from the pixels alone, so that angles cannot vouch for themselves.

The stenosis paper (spec section 2) sorts its runs by a small classifier before anything else. Nets and inputs are those of the
quality task, so a clip is decoded once for both. Knows nothing of tables, gates or Ray.

Shapes: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from angio_ray.models.backends import BackendChoice, make_runner
from angio_ray.sampling import ClipWindow

if TYPE_CHECKING:
    from angio_ray.models.bundles import Bundle

CLASSES = ("LCA", "RCA")
COLUMNS = ("artery", "artery_probability", "artery_threshold")


class ArteryScorer:
    """Name of the artery that a clip shows, and the probability that it is the right one."""

    task = "artery"

    def __init__(self, bundle: Bundle, backend: BackendChoice, *, num_threads: int = 1) -> None:
        self.windows: tuple[ClipWindow, ...] = (bundle.window,)
        self.threshold = np.float32(bundle.threshold)
        self._run = make_runner(bundle.ensemble(), bundle.window, backend, num_threads=num_threads)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sort B clips: {window name: uint8 (B, T, H, W)} -> COLUMNS, each of length B.

        artery is RCA where the probability of RCA reaches the bundle's threshold; artery_probability is that of RCA,
        float32 in 0..1 as the threshold. ValueError when the net returns no number (NaN) for a clip.
        """
        probability = np.ascontiguousarray(self._run(inputs[self.windows[0].name])[:, CLASSES.index("RCA")])
        if not np.isfinite(probability).all():
            raise ValueError("the artery net returned NaN")
        return {
            "artery": np.where(probability >= self.threshold, "RCA", "LCA"),
            "artery_probability": probability,
            "artery_threshold": np.full_like(probability, self.threshold),
        }
