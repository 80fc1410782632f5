"""What a scoring run is asked to do: one typed object behind the command line, `jobs/score.py` and the Python API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from angio_ray.clip import Reason

Gate = Literal["auto", "on", "off"]


def _words(_type: Any, tokens: Sequence[Any]) -> tuple[str, ...]:
    return tuple(word for token in tokens for word in token.value.split(",") if word)


Words = Annotated[
    tuple[str, ...],
    Parameter(converter=_words, n_tokens=1, negative="", show_default=lambda words: ",".join(words) or "none"),
]
"""Words with commas between on the command line."""
Flag = Annotated[bool, Parameter(negative="")]


class ConfigError(ValueError):
    """An argument that cannot be: one clear line for the user."""


@dataclass(frozen=True)
class ScoreConfig:
    """One run: which clips, which models, which tables."""

    source: str
    """Folder, file or s3:// prefix with the clips."""
    _: KW_ONLY
    tables: str
    """Folder or s3:// prefix of the Delta tables."""
    run: str
    """Name of the run. The same name again resumes it, and is a no-op when it is finished."""
    models: Words = ("quality",)
    """Tasks to score, with commas between."""
    bundles: Path | None = None
    """Folder with one bundle folder per task. Default: the bundles that ship with angio_ray."""
    clips: str | None = None
    """Another root for `clips` and `manifests`, the only tables that lead back to a patient. Default: `tables`."""
    key_file: Path | None = None
    """File with the pseudonym key. Default: $ANGIO_RAY_KEY_FILE, else a new key beside a new local table root."""
    patient_map: Path | None = None
    """CSV (issuer, patient_id, person) that joins the ids one person has at several sites."""
    gate: Gate = "auto"
    """Whether clips that fail the quality model stop there; auto: not those of patients if the bundle saw synthetic ones only."""
    assume_fps: float | None = None
    """Frame rate of clips whose header names none (frames/s). Default: such clips are rejected."""
    retry: Words = ()
    """Reasons whose rows of a finished run are scored again and replaced, with commas between."""
    backend: Literal["auto", "torch", "openvino"] = "auto"
    """What runs the models on processors; auto measures once at the start."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the models; each is checked against float32 before its first use."""
    batch_size: int = 16
    """Clips per forward pass."""
    scorers: int | None = None
    """Scoring actors. Default: from the cluster's GPUs, else its processors."""
    decoders: int | None = None
    """Decoding workers, each with one sandboxed child process. Default: one per processor."""
    gpus_per_scorer: float = 1.0
    """GPU share of a scoring actor where the cluster has GPUs; 0.5 puts two on each."""
    decode_timeout_s: float = 60.0
    """Longest that one clip may take to decode."""
    decode_memory_mb: int = 2048
    """Memory limit of a decoding child process."""
    commit_rows: int = 1024
    """Rows per table commit at most."""
    commit_interval_s: float = 10.0
    """Seconds between commits at most; also the heartbeat by which a second driver sees that a run is held."""
    max_failures_in_a_row: int = 50
    """So many transient failures with no success between stop the run without writing them (a lost mount, an expired token)."""
    strict: Flag = False
    """In jobs: end with 3, not 0, when clips were rejected."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.run):
            raise ConfigError(f"--run {self.run!r}: use letters, digits, '.', '_' and '-', at most 100")
        if not self.models:
            raise ConfigError("--models names no task")
        if unknown := sorted(set(self.retry) - set(Reason)):
            raise ConfigError(f"--retry {','.join(unknown)}: no such reason; there are {', '.join(Reason)}")
        if self.assume_fps is not None and not 1 <= self.assume_fps <= 240:
            raise ConfigError(f"--assume-fps {self.assume_fps:g}: not between 1 and 240 frames/s")
        for name, least in (
            ("batch_size", 1),
            ("scorers", 1),
            ("decoders", 1),
            ("commit_rows", 1),
            ("decode_memory_mb", 256),
            ("max_failures_in_a_row", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: at least {least}")
        if not self.gpus_per_scorer > 0 or (self.gpus_per_scorer > 1 and self.gpus_per_scorer % 1):
            raise ConfigError(f"--gpus-per-scorer {self.gpus_per_scorer:g}: a share up to 1, or a whole number")
        for name in ("decode_timeout_s", "commit_interval_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')}: must be above 0")


class RunError(Exception):
    """The run cannot go on: one clear line and the exit code (2 arguments, 4 held by another driver, 1 not finished)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class IndexConfig:
    """Which objects' headers go into `clips`."""

    source: str
    """Folder, file or s3:// prefix with the clips."""
    _: KW_ONLY
    tables: str
    """Folder or s3:// prefix of the Delta tables."""
    clips: str | None = None
    """Another root for `clips` and `manifests`."""
    key_file: Path | None = None
    """File with the pseudonym key, as for `score`."""
    patient_map: Path | None = None
    """CSV (issuer, patient_id, person), as for `score`."""
