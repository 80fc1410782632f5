"""The phantom: synthetic coronary angiograms with known truth, written as real XA DICOM.

`generate` makes patients, each with one study of several clips, satisfactory and unsatisfactory ones in the same
study; `write_broken` makes objects that must be rejected, each for a known reason. Nothing here can be taken for a
patient: every header says so. Knows nothing of models, Ray or tables.

    python -c "from angio_ray.phantom import generate; generate('clips', patients=6, seed=1, size=256)"

The names below are loaded when they are first asked for: whoever needs one part (the C-arm's geometry, the labels'
schema) does not load them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from angio_ray.phantom.broken import write_broken
    from angio_ray.phantom.generation import generate, render_clip
    from angio_ray.phantom.planning import PhantomConfig
    from angio_ray.phantom.truth import LABELS, Truth
    from angio_ray.phantom.truth import read as read_truth

__all__ = ["LABELS", "PhantomConfig", "Truth", "generate", "read_truth", "render_clip", "write_broken"]

_HOME = {
    "LABELS": "truth.LABELS",
    "PhantomConfig": "planning.PhantomConfig",
    "Truth": "truth.Truth",
    "generate": "generation.generate",
    "read_truth": "truth.read",
    "render_clip": "generation.render_clip",
    "write_broken": "broken.write_broken",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, what = _HOME[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), what)
