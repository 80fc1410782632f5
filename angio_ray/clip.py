"""The noun that travels: one clip (an XA multi-frame object), what its header says, and why it can be rejected.

Knows nothing of DICOM parsing, storage, models or Ray. Pixels never live here: they travel beside it as arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why an object has no score. The codes are stable: tables, README and `schemas/` name them."""

    NOT_DICOM = "not_dicom"
    NOT_XA = "not_xa"
    NO_PIXEL_DATA = "no_pixel_data"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    HEADER_INVALID = "header_invalid"
    TRUNCATED = "truncated"
    FRAME_COUNT_MISMATCH = "frame_count_mismatch"
    GEOMETRY_MISMATCH = "geometry_mismatch"
    TOO_LARGE = "too_large"
    TOO_SHORT = "too_short"
    FRAME_TIME_UNKNOWN = "frame_time_unknown"
    DECODE_ERROR = "decode_error"
    DECODE_TIMEOUT = "decode_timeout"
    DECODER_CRASHED = "decoder_crashed"
    OUT_OF_MEMORY = "out_of_memory"
    READ_ERROR = "read_error"
    MODEL_ERROR = "model_error"


GONE = "the object is gone"
"""Detail of the one `read_error` that is final: the store answers that there is no such object (404)."""

TRANSIENT = frozenset({Reason.READ_ERROR, Reason.MODEL_ERROR, Reason.OUT_OF_MEMORY, Reason.DECODE_TIMEOUT})
"""Reasons that another try may cure; all others are the bytes' own fault and final when first seen."""


class ClipRejected(Exception):
    """A clip that cannot be scored. `detail` is made from a template with numbers only: it never carries text
    from the file, a path or an exception, since those leak names (it ends in a result table)."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ClipRejected], tuple[Reason, str]]:
        return ClipRejected, (self.reason, self.detail)

    @property
    def transient(self) -> bool:
        """Whether another try may cure it."""
        return is_transient(self.reason, self.detail)


def is_transient(reason: str | None, detail: str | None) -> bool:
    """Whether a row with this reason is worth another try before it is final."""
    return reason in TRANSIENT and detail != GONE


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipHeader:
    """Header facts of one object, as recorded (nothing corrected). None where the header does not say.

    Identifiers are the originals: this object stays on the identified side (`clips`), never in results.
    """

    sop_instance_uid: str | None = None
    sop_class_uid: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    dicom_patient_id: str | None = None
    issuer_of_patient_id: str | None = None
    patient_birth_date: str | None = None
    """YYYYMMDD; only to see whether one PatientID stands for several people."""
    patient_sex: str | None = None
    transfer_syntax: str | None = None
    num_frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    bits_stored: int | None = None
    photometric_interpretation: str | None = None
    lossy: bool | None = None
    frame_time_ms: float | None = None
    """Mean time between frames, ms."""
    frame_time_source: str | None = None
    """frame_time | frame_time_vector | frame_date_time | cine_rate | recommended_display_frame_rate | effective_duration |
    assumed"""
    primary_angle_deg: float | None = None
    """PositionerPrimaryAngle of the first frame: LAO positive, RAO negative (PS3.3 C.8.7.5)."""
    secondary_angle_deg: float | None = None
    """PositionerSecondaryAngle of the first frame: cranial positive, caudal negative."""
    positioner_motion: str | None = None
    plane: str | None = None
    """single | a | b, from ImageType value 3, else PlaneIdentification."""
    has_mask_module: bool | None = None
    viewing_mode: str | None = None
    shutter_shape: str | None = None
    shutter_box: tuple[int, int, int, int] | None = None
    """Left, upper, right, lower edges of a rectangular shutter, px from 1 (PS3.3 C.7.6.11)."""
    imager_pixel_spacing_mm: tuple[float, float] | None = None
    """Row, column spacing at the detector housing, mm."""
    distance_source_to_detector_mm: float | None = None
    distance_source_to_patient_mm: float | None = None
    study_date: str | None = None
    acquisition_datetime: str | None = None
    """Local time as recorded, YYYYMMDDHHMMSS.ffffff; no zone invented."""
    timezone_offset: str | None = None
    series_number: int | None = None
    instance_number: int | None = None
    manufacturer: str | None = None
    model: str | None = None
    institution: str | None = None
    burned_in_annotation: str | None = None
    synthetic: bool = False
    """Made by a program, not recorded from a person: SyntheticData (0008,001C) is YES, or the phantom's Manufacturer."""
