"""How a quality bundle judges the real clip at hand, whole and changed, and the same clip before contrast arrives.

    python benchmarks/real_clip.py [--bundle angio_ray/bundles/quality]

The clip is 0002.DCM, a right coronary run of a patient (96 frames, contrast from about frame 18 on), from the folder that
the tests use (ANGIO_RAY_TEST_DATA). Its first frames, looped to its length, show no contrast: they should be called
unsatisfactory, the rest satisfactory. Probability of being unsatisfactory, torch float32. Neither the clip nor these
figures are used to train or to choose a threshold.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray

from angio_ray.models import NETS
from angio_ray.models.bundles import load_bundle
from angio_ray.sampling import resize_frames, select_frames

SHARED_DATA = Path(os.environ.get("ANGIO_RAY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
STEP_MS = 33.0


def turned(frames_THW: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """The clip rotated about its middle."""
    matrix = cv2.getRotationMatrix2D((frames_THW.shape[2] / 2, frames_THW.shape[1] / 2), degrees, 1.0)
    return np.stack([cv2.warpAffine(frame, matrix, frame.shape[::-1]) for frame in frames_THW]).astype(np.uint8)


def main(argv: list[str] | None = None) -> int:
    """Command line; exit 1 when a variant falls on the wrong side of the threshold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default="angio_ray/bundles/quality")
    args = parser.parse_args(argv)
    bundle = load_bundle(args.bundle)
    model, window = bundle.ensemble().eval(), NETS[bundle.net].window

    def probability(frames_THW: NDArray[np.uint8]) -> float:
        picked = select_frames(np.arange(len(frames_THW)) * STEP_MS, window).indices
        inputs = resize_frames(frames_THW[list(picked)], window.size)
        with torch.inference_mode():
            return float(model(torch.from_numpy(inputs[None].astype(np.float32)))[0, 1])

    clip = pydicom.dcmread(SHARED_DATA / "xa_real/0002.DCM").pixel_array
    grey = clip.astype(np.float64)
    whole = {
        "as it is": clip,
        "flipped": clip[:, :, ::-1],
        "turned by -8 degrees": turned(clip, -8),
        "turned by 8 degrees": turned(clip, 8),
        "gamma 0.7": (255 * (grey / 255) ** 0.7).astype(np.uint8),
        "gamma 1.4": (255 * (grey / 255) ** 1.4).astype(np.uint8),
        "contrast x 0.8": np.clip((grey - grey.mean()) * 0.8 + grey.mean(), 0, 255).astype(np.uint8),
        "contrast x 1.2": np.clip((grey - grey.mean()) * 1.2 + grey.mean(), 0, 255).astype(np.uint8),
        "from frame 10 on": clip[10:],
        "from frame 30 on": clip[30:],
    }
    before = {f"frames 0-{n - 1}, looped": np.concatenate([clip[:n]] * 8)[: len(clip)] for n in (12, 16, 18)}
    before["frames 0-17, back and forth"] = np.concatenate([clip[:18], clip[17::-1]] * 4)[: len(clip)]
    print(f"bundle {bundle.digest[:12]}, threshold {bundle.threshold}")
    right = True
    for title, variants, unsatisfactory in (("whole clip", whole, False), ("before contrast", before, True)):
        for name, frames in variants.items():
            p = probability(np.ascontiguousarray(frames))
            right &= (p >= bundle.threshold) == unsatisfactory
            print(f"{title:16}{name:30}{p:7.3f}")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
