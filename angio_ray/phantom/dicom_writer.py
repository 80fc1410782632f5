"""Write rendered frames as X-Ray Angiographic Image objects (PS3.3 A.14) in several transfer syntaxes.

Every file says that it is synthetic: SyntheticData (0008,001C) YES, ImageType DERIVED, Manufacturer "angio_ray
phantom", PatientName PHANTOM. All syntaxes but jpeg-baseline are lossless: what is read back equals the frames. Knows nothing of
anatomy; the same arguments give the same bytes (UIDs are hashes, no clock is read).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    XRayAngiographicImageStorage,
)

MANUFACTURER = "angio_ray phantom"
JPEG_BASELINE_QUALITY = 92

Syntax = Literal["native", "rle", "jpeg-baseline", "jpeg-lossless", "jpeg-ls", "jpeg-2000"]
SYNTAXES: tuple[Syntax, ...] = get_args(Syntax)
Frame = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFacts:
    """What the header says beside the pixels. Angles as PS3.3 C.8.7.5: LAO and cranial positive."""

    patient: int
    study_key: str
    """What the study's UIDs are derived from."""
    series_number: int
    patient_id: str
    patient_sex: Literal["F", "M", "O"]
    study_date: str
    study_time: str
    acquisition_time: str
    frame_times_ms: tuple[float, ...]
    """Start of each frame."""
    use_frame_time_vector: bool
    cine_rate: int | None
    primary_deg: float
    secondary_deg: float
    source_to_detector_mm: float
    source_to_patient_mm: float
    imager_pixel_spacing_mm: float
    bits: int
    monochrome1: bool
    syntax: Syntax
    kvp: float
    tube_current_ma: int
    exposure_ms: int


def uid(*key: object) -> str:
    """A UID that is a function of the key (PS3.5 B.2: a UUID-sized integer under 2.25)."""
    digest = hashlib.sha256("/".join(map(str, ("angio_ray phantom", *key))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def write_xa(frames_THW: Frame, facts: ClipFacts) -> bytes:
    """One XA multi-frame object as the bytes of a DICOM file.

    Parameters
    ----------
    frames_THW : array of uint8 (8 bits stored) or uint16 (10 or 12 bits stored)
        Stored values as they appear under MONOCHROME2; written inverted when `facts.monochrome1`.
    facts : ClipFacts
        Everything else in the header.
    """
    if facts.syntax == "jpeg-baseline" and facts.bits != 8:
        raise ValueError("JPEG baseline holds 8 bits only")
    num_frames, rows, columns = frames_THW.shape
    stored = np.ascontiguousarray(2**facts.bits - 1 - frames_THW if facts.monochrome1 else frames_THW, frames_THW.dtype)

    ds = _header(facts, num_frames)
    ds.Rows, ds.Columns = rows, columns
    transfer_syntax, encode = _ENCODERS[facts.syntax]
    if encode is None:
        ds.PixelData = stored.tobytes()
        ds["PixelData"].VR = "OB" if facts.bits == 8 else "OW"
    else:
        ds.PixelData = encapsulate([encode(frame, facts.bits, ds) for frame in stored], has_bot=True)
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    if facts.syntax == "jpeg-baseline":
        ratio = stored.nbytes / max(1, len(ds.PixelData))
        ds.LossyImageCompression = "01"
        ds.LossyImageCompressionRatio = f"{ratio:.3f}"
        ds.LossyImageCompressionMethod = "ISO_10918_1"
    return _file_bytes(ds, transfer_syntax)


def sop_instance_uid(facts: ClipFacts) -> str:
    """The SOPInstanceUID that `write_xa` gives this clip."""
    return uid(facts.study_key, "series", facts.series_number, "instance")


def _header(facts: ClipFacts, num_frames: int) -> Dataset:
    """All mandatory modules of the XA IOD but the pixels, in the order of PS3.3 A.14."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["DERIVED", "PRIMARY", "SINGLE PLANE"]
    ds.SyntheticData = "YES"
    ds.SOPClassUID = XRayAngiographicImageStorage
    ds.SOPInstanceUID = sop_instance_uid(facts)
    ds.DerivationDescription = "simulated, no person was imaged"
    # patient, study, series, equipment
    ds.PatientName = f"PHANTOM^{facts.patient:04d}"
    ds.PatientID = facts.patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = facts.patient_sex
    ds.StudyInstanceUID = uid(facts.study_key)
    ds.StudyDate, ds.StudyTime = facts.study_date, facts.study_time
    ds.StudyID = "1"
    ds.ReferringPhysicianName = ""
    ds.AccessionNumber = ""
    ds.Modality = "XA"
    ds.SeriesInstanceUID = uid(facts.study_key, "series", facts.series_number)
    ds.SeriesNumber = facts.series_number
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = "first cut"
    ds.InstitutionName = ""
    # image, contrast
    ds.InstanceNumber = 1
    ds.PatientOrientation = []
    ds.ContentDate, ds.ContentTime = facts.study_date, facts.acquisition_time
    ds.AcquisitionDate, ds.AcquisitionTime = facts.study_date, facts.acquisition_time
    ds.AcquisitionDateTime = facts.study_date + facts.acquisition_time
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    ds.ContrastBolusAgent = "simulated iodine"
    # multi-frame, cine
    ds.NumberOfFrames = num_frames
    steps = np.diff(facts.frame_times_ms)
    if facts.use_frame_time_vector:
        ds.FrameIncrementPointer = 0x00181065
        ds.FrameTimeVector = [0.0, *(round(float(step), 3) for step in steps)]
    else:
        ds.FrameIncrementPointer = 0x00181063
        ds.FrameTime = round(float(steps.mean()), 4) if len(steps) else 0.0
    if facts.cine_rate is not None:
        ds.CineRate = facts.cine_rate
    # X-ray image, acquisition, positioner
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if facts.monochrome1 else "MONOCHROME2"
    ds.BitsAllocated = 8 if facts.bits == 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = facts.bits, facts.bits - 1, 0
    ds.PixelIntensityRelationship = "DISP"
    ds.KVP = facts.kvp
    ds.RadiationSetting = "GR"
    ds.XRayTubeCurrent = facts.tube_current_ma
    ds.ExposureTime = facts.exposure_ms
    ds.ImagerPixelSpacing = [round(facts.imager_pixel_spacing_mm, 5)] * 2
    ds.DistanceSourceToDetector = round(facts.source_to_detector_mm, 1)
    ds.DistanceSourceToPatient = round(facts.source_to_patient_mm, 1)
    ds.EstimatedRadiographicMagnificationFactor = round(facts.source_to_detector_mm / facts.source_to_patient_mm, 4)
    ds.PositionerMotion = "STATIC"
    ds.PositionerPrimaryAngle = round(facts.primary_deg, 1)
    ds.PositionerSecondaryAngle = round(facts.secondary_deg, 1)
    middle, width = 2 ** (facts.bits - 1), 2**facts.bits
    ds.WindowCenter, ds.WindowWidth = middle, width
    return ds


def _rle(frame: Frame, bits: int, ds: Dataset) -> bytes:
    return RLELosslessEncoder.encode(
        frame,
        rows=ds.Rows,
        columns=ds.Columns,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=ds.BitsAllocated,
        bits_stored=bits,
        pixel_representation=0,
        number_of_frames=1,
        encoding_plugin="pydicom",
    )


def _jpeg_baseline(frame: Frame, bits: int, ds: Dataset) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(frame, level=JPEG_BASELINE_QUALITY))


def _jpeg_lossless(frame: Frame, bits: int, ds: Dataset) -> bytes:
    # predictor 1 is what transfer syntax .70 asks for (PS3.5 A.4.1)
    return bytes(imagecodecs.jpeg8_encode(frame, lossless=True, predictor=1, bitspersample=bits))


def _jpeg_ls(frame: Frame, bits: int, ds: Dataset) -> bytes:
    return bytes(imagecodecs.jpegls_encode(frame))


def _jpeg_2000(frame: Frame, bits: int, ds: Dataset) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(frame, level=0, codecformat="j2k", reversible=True, bitspersample=bits))


_ENCODERS: dict[Syntax, tuple[UID, Callable[[Frame, int, Dataset], bytes] | None]] = {
    "native": (ExplicitVRLittleEndian, None),
    "rle": (RLELossless, _rle),
    "jpeg-baseline": (JPEGBaseline8Bit, _jpeg_baseline),
    "jpeg-lossless": (JPEGLosslessSV1, _jpeg_lossless),
    "jpeg-ls": (JPEGLSLossless, _jpeg_ls),
    "jpeg-2000": (JPEG2000Lossless, _jpeg_2000),
}


def _file_bytes(ds: Dataset, transfer_syntax: UID) -> bytes:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = UID(uid("implementation", 1))
    meta.ImplementationVersionName = "ANGIO_RAY_1"
    out = io.BytesIO()
    file = FileDataset(out, ds, file_meta=meta, preamble=b"\0" * 128)
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()
