"""Write rendered frames as X-Ray Angiographic Image objects (PS3.3 A.14) in several transfer syntaxes.

Every file says that it is synthetic: SyntheticData (0008,001C) YES, ImageType DERIVED, Manufacturer "angio_ray
phantom", PatientName PHANTOM. All syntaxes but jpeg-baseline are lossless: what is read back equals the frames.

`dciodvfy` finds no error in what is written, but for two that are none of the object's or asked for: its dictionary of
2022 does not know SyntheticData, and a clip asked for in MONOCHROME1 is told that XA has MONOCHROME2 only (C.8.7.1.1;
old archives hold such files, so readers need them).

Knows nothing of anatomy; the same arguments give the same bytes (UIDs are hashes, no clock is read).
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

from angio_ray import __version__

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
    """Unless the vector is longer than the file format can hold (64 kB)."""
    cine_rate: int | None
    primary_deg: float
    secondary_deg: float
    source_to_detector_mm: float
    source_to_patient_mm: float
    imager_pixel_spacing_mm: float
    bits: int
    monochrome1: bool
    """MONOCHROME1 breaks the XA module's rule (MONOCHROME2 only); for tests of readers."""
    syntax: Syntax
    kvp: float
    tube_current_ma: int
    exposure_ms: int
    """Per frame: the pulse's length."""
    study_description: str = "simulated coronary angiography"
    model_name: str = "coronary phantom"
    field_shape: Literal["RECTANGLE", "ROUND"] = "RECTANGLE"
    """Of the detector: flat panel, or image intensifier."""
    jpeg_quality: int | None = None
    """The frames went through JPEG baseline of this quality before they were written: the header says lossy."""
    twin: str = ""
    """Names a counterfactual of the clip: other UIDs for series and instance, everything else the same."""


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
    stored: Frame = np.ascontiguousarray(2**facts.bits - 1 - frames_THW if facts.monochrome1 else frames_THW)

    ds = _header(facts, num_frames, rows, columns)
    transfer_syntax, encode = _ENCODERS[facts.syntax]
    if encode is None:
        ds.PixelData = stored.tobytes()
        ds["PixelData"].VR = "OB" if facts.bits == 8 else "OW"
    else:
        ds.PixelData = encapsulate([encode(frame, facts.bits, ds) for frame in stored], has_bot=True)
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    _say_lossy(ds, stored, facts)
    return _file_bytes(ds, transfer_syntax)


def sop_instance_uid(facts: ClipFacts) -> str:
    """The SOPInstanceUID that `write_xa` gives this clip."""
    return uid(*_series_key(facts), "instance")


def study_instance_uid(facts: ClipFacts) -> str:
    """The StudyInstanceUID that `write_xa` gives this clip."""
    return uid(facts.study_key)


def _series_key(facts: ClipFacts) -> tuple[object, ...]:
    return (facts.study_key, "series", facts.series_number, *((facts.twin,) if facts.twin else ()))


def _say_lossy(ds: Dataset, stored: Frame, facts: ClipFacts) -> None:
    """Each lossy step that the pixels went through, in order, with its ratio (PS3.3 C.7.6.1.1.5)."""
    ratios = []
    if facts.jpeg_quality is not None:
        middle = (stored[len(stored) // 2] >> (facts.bits - 8)).astype(np.uint8)
        ratios.append(middle.nbytes / len(imagecodecs.jpeg8_encode(middle, level=facts.jpeg_quality)))
    if facts.syntax == "jpeg-baseline":
        ratios.append(stored.nbytes / len(ds.PixelData))
    ds.LossyImageCompression = "01" if ratios else "00"
    if ratios:
        ds.LossyImageCompressionRatio = [f"{ratio:.3f}" for ratio in ratios]
        ds.LossyImageCompressionMethod = ["ISO_10918_1"] * len(ratios)


def _header(facts: ClipFacts, num_frames: int, rows: int, columns: int) -> Dataset:
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
    ds.StudyInstanceUID = study_instance_uid(facts)
    ds.StudyDate, ds.StudyTime = facts.study_date, facts.study_time
    ds.StudyID = "1"
    ds.ReferringPhysicianName = ""
    ds.AccessionNumber = ""
    ds.Modality = "XA"
    ds.StudyDescription = facts.study_description
    ds.SeriesInstanceUID = uid(*_series_key(facts))
    ds.SeriesNumber = facts.series_number
    # no body part: named, it would tell the class (groins are unsatisfactory). Without one, dciodvfy warns of an empty
    # Laterality, and calls it an error where there is none
    ds.Laterality = ""
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = facts.model_name
    ds.SoftwareVersions = f"angio_ray {__version__}"
    ds.InstitutionName = ""
    # image, contrast
    ds.InstanceNumber = 1
    ds.PatientOrientation = []
    ds.ContentDate, ds.ContentTime = facts.study_date, facts.acquisition_time
    ds.AcquisitionDate, ds.AcquisitionTime = facts.study_date, facts.acquisition_time
    ds.AcquisitionDateTime = facts.study_date + facts.acquisition_time
    ds.BurnedInAnnotation = "NO"
    ds.ContrastBolusAgent = "simulated iodine"
    _time(ds, facts, num_frames)
    _x_ray(ds, facts, rows, columns)
    return ds


def _time(ds: Dataset, facts: ClipFacts, num_frames: int) -> None:
    """Modules multi-frame and cine."""
    ds.NumberOfFrames = num_frames
    steps = np.diff(facts.frame_times_ms)
    vector = [0.0, *(round(float(step), 3) for step in steps)]
    if facts.use_frame_time_vector and len("\\".join(map(str, vector))) < 2**16 - 1:  # an element of text holds no more
        ds.FrameIncrementPointer = 0x00181065
        ds.FrameTimeVector = vector
    else:
        ds.FrameIncrementPointer = 0x00181063
        ds.FrameTime = round(float(steps.mean()), 4) if len(steps) else 0.0
    if facts.cine_rate is not None:
        ds.CineRate = facts.cine_rate


def _x_ray(ds: Dataset, facts: ClipFacts, rows: int, columns: int) -> None:
    """Modules X-ray image, acquisition and positioner; window."""
    ds.Rows, ds.Columns = rows, columns
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if facts.monochrome1 else "MONOCHROME2"
    ds.BitsAllocated = 8 if facts.bits == 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = facts.bits, facts.bits - 1, 0
    ds.PixelIntensityRelationship = "DISP"
    ds.KVP = facts.kvp
    ds.RadiationSetting = "GR"
    ds.XRayTubeCurrent = facts.tube_current_ma
    ds.ExposureTime = facts.exposure_ms
    ds.Exposure = round(facts.tube_current_ma * facts.exposure_ms / 1000)
    ds.RadiationMode = "PULSED"
    ds.FieldOfViewShape = facts.field_shape
    field_mm = [round(n * facts.imager_pixel_spacing_mm) for n in (rows, columns)]
    ds.FieldOfViewDimensions = field_mm if facts.field_shape == "RECTANGLE" else field_mm[:1]
    ds.ImagerPixelSpacing = [round(facts.imager_pixel_spacing_mm, 5)] * 2
    to_detector, to_patient = round(facts.source_to_detector_mm, 1), round(facts.source_to_patient_mm, 1)
    ds.DistanceSourceToDetector, ds.DistanceSourceToPatient = to_detector, to_patient
    ds.EstimatedRadiographicMagnificationFactor = round(to_detector / to_patient, 4)
    ds.PositionerMotion = "STATIC"
    ds.PositionerPrimaryAngle = round(facts.primary_deg, 1)
    ds.PositionerSecondaryAngle = round(facts.secondary_deg, 1)
    middle, width = 2 ** (facts.bits - 1), 2**facts.bits
    ds.WindowCenter, ds.WindowWidth = middle, width


def _rle(frame: Frame, bits: int, ds: Dataset) -> bytes:
    """PS3.5 annex G: the high bytes, then the low ones, each packed row by row; 64 bytes of offsets before."""
    planes = [frame] if bits == 8 else [(frame >> 8).astype(np.uint8), frame.astype(np.uint8)]
    packed = [bytes(imagecodecs.packbits_encode(np.ascontiguousarray(plane))) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in packed]
    offsets = np.zeros(16, "<u4")
    offsets[0] = len(segments)
    offsets[1 : 1 + len(segments)] = 64 + np.cumsum([0, *map(len, segments[:-1])])
    return offsets.tobytes() + b"".join(segments)


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
