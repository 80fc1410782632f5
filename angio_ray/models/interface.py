"""What a net and a task have to say about themselves, so that bundles, backends and the pipeline need no more.

Types only: knows no architecture, no file format, no Ray. The entries are in `angio_ray.models` (NETS, TASKS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from angio_ray.sampling import ClipWindow

if TYPE_CHECKING:
    from torch import nn

    from angio_ray.models.backends import BackendChoice, Converted
    from angio_ray.models.bundles import Bundle

Layout = Literal["BCTHW", "BTCHW-mean", "BCTHW-frames", "BCTHW-maps", "B2HW-regions"]
"""How a net takes a clip: all frames as one volume, or frame by frame with its class probabilities averaged, or all frames
with probabilities for each of them, (B, T, K), or all frames with maps, (B, T, K - 1, h, w): the log-odds of each class against
the first in each cell, which are pooled to those of the frame, or a pair of frames in five patches, each with a verdict and the
probability of each pixel to be in the region."""

Pool = Literal["mean", "logsumexp"]
"""How the cells of a map become one: the mean, as after a global average pooling, or a smooth maximum."""

UNJUDGED = -1
"""In place of a frame's class: not known, so no loss and no figure."""
NOT_LAST = -2
"""In place of a frame's class: any but the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperFigures:
    """What the net's paper states: parameters in millions, GMAC, ms a clip and frames/s (on a V100)."""

    params_m: float
    gmac: float
    ms_per_clip: float
    frames_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NetSpec:
    """One architecture: how it is built and what it sees."""

    name: str
    build: Callable[[], nn.Module]
    """A fresh net that returns logits; must build on the meta device too (no data-dependent code)."""
    window: ClipWindow
    """The default input; a bundle may name another."""
    layout: Layout
    classes: int = 2
    cost_input: tuple[int, ...]
    """The input without batch at which the net has its paper's GMAC: (C, T, H, W), or (C, H, W) for one frame."""
    paper: PaperFigures | None = None
    pool: Pool = "mean"
    """Of the layout with maps."""
    num_boxes: int = 0
    """Of each frame, of nets with maps that are detectors too."""
    part: str | None = None
    """Name of the net whose weights are a part of this one's: it may begin from a bundle of that."""
    exact: bool = False
    """Always in float32, whatever the run's precision: what follows from small differences, at little cost."""
    autocast: bool = False
    """In bfloat16 by torch's autocast alone, which leaves in float32 what comes before the first convolution: where that tells a
    pixel from its surroundings, OpenVINO, which rounds from the input on, was 0.11 beside in a probability."""
    sees_view: bool = False
    """The first pixel of each frame says which artery and view it shows (`stenosis.with_view`)."""
    varying: bool = False
    """What a pass computes depends on what it finds: nobody counts it, and torch alone runs it."""

    @property
    def per_frame(self) -> bool:
        """Whether each frame gets a class, not the clip."""
        return self.layout in ("BCTHW-frames", "BCTHW-maps")


@dataclass(frozen=True, kw_only=True, slots=True)
class SideObject:
    """A file beside the tables, one of a clip at most."""

    column: str
    """Of the scorer's answer: its bytes; never a column of a table."""
    suffix: str
    """Of its name."""
    list_column: str
    """Column of `scores` that holds a list of structs, ..."""
    uri_field: str
    """... and the field of its first one that says where the file lies."""


class Scorer(Protocol):
    """A task's model, compiled and ready, inside a scoring actor. Built there: it is never pickled."""

    task: str
    windows: tuple[ClipWindow, ...]

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[np.ndarray]],
        known: Mapping[str, Sequence[Any]],
    ) -> dict[str, np.ndarray]:
        """Score B clips.

        inputs: window name -> uint8 B,T,H,W. frames: window name -> of each clip the file's frames shown, in order, at most T
        of them: what an input has beyond is padding. known: the columns that the task reads (`TaskSpec.reads`) -> what earlier
        tasks and the header say of each clip. Out: column of `scores` -> array of length B; of these `<task>_reason` is None
        where the clip was scored, else why not.
        """
        ...


class ScorerFactory(Protocol):
    """A scorer's constructor."""

    def __call__(
        self, bundle: Bundle, backend: BackendChoice, *, num_threads: int, converted: Mapping[str, Converted] | None = None
    ) -> Scorer:
        """Build the nets, load the weights and compile. `converted`: bundles in OpenVINO's form by their digests, where they are
        at hand."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One task of the pipeline: what it is fed, what computes it and which columns of `scores` it fills."""

    name: str
    scorer: ScorerFactory
    windows: Callable[[Bundle], tuple[ClipWindow, ...]] = lambda bundle: (bundle.window,)
    """The inputs that its bundle asks for; the driver hands them to the decode stage without building the model."""
    needs: tuple[str, ...] = ()
    """Tasks that must have gone before: a run that asks for this one is asked for them too."""
    reads: tuple[str, ...] = ()
    """Columns of theirs, and facts of the header, that the scorer is told."""
    columns: tuple[str, ...]
    """What the scorer returns, beside `<task>_status` and `<task>_reason`, which the pipeline fills."""
    classes: tuple[str, ...]
    """Order of the net's outputs that its bundles must have; the last is the positive class."""
    finer: tuple[str, ...] = ()
    """Other classes that its bundles may have: the first the same, the others together the positive ones."""
    gate_column: str | None = None
    """A boolean column; where it is false the clip stops here (`gated`) and the other tasks skip it."""
    mirrors: bool = True
    """Whether a mirrored clip keeps its class, so that training may flip it."""
    layouts: tuple[Layout, ...] = ("BCTHW", "BTCHW-mean")
    """Of the nets that are for it."""
    per_frame: bool = False
    """Whether what it says is of each frame, and judged so; then `classes` are those of a frame."""
    paired_frames: bool = False
    """Whether its nets see a frame without contrast and one with it, of the same phase of the heart."""
    side_objects: tuple[SideObject, ...] = ()
    """What the scorer returns beside its columns, for the driver to store."""
    named_frames: bool = False
    """Whether its nets see frames that are named one by one, by labels in training and by an earlier task in scoring; the clip's
    class is that of its worst frame."""
