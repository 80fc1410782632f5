"""The files: read back equal, honest about what they are, complete as XA objects."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from angio_ray.phantom.dicom_writer import MANUFACTURER, SYNTAXES, ClipFacts, sop_instance_uid, write_xa

FACTS = ClipFacts(
    patient=7,
    study_key="1/7",
    series_number=2,
    patient_id="PHANTOM-1-00007",
    patient_sex="F",
    study_date="20240102",
    study_time="090000",
    acquisition_time="090507",
    frame_times_ms=(0.0, 66.7, 133.3, 200.0, 266.7),
    use_frame_time_vector=False,
    cine_rate=15,
    primary_deg=-31.04,
    secondary_deg=24.96,
    source_to_detector_mm=1003.2,
    source_to_patient_mm=751.1,
    imager_pixel_spacing_mm=0.384,
    bits=8,
    monochrome1=False,
    syntax="native",
    kvp=81.5,
    tube_current_ma=600,
    exposure_ms=6,
)

# PS3.3 A.14.3: type 1 and 2 attributes of the mandatory modules of the XA IOD
MANDATORY = """
PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime ReferringPhysicianName
StudyID AccessionNumber Modality SeriesInstanceUID SeriesNumber Manufacturer InstanceNumber ImageType SamplesPerPixel
PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelData NumberOfFrames
FrameIncrementPointer PixelIntensityRelationship KVP RadiationSetting XRayTubeCurrent ExposureTime PositionerMotion
PositionerPrimaryAngle PositionerSecondaryAngle SOPClassUID SOPInstanceUID ContrastBolusAgent
"""


def frames_of(bits: int) -> np.ndarray:
    rng = np.random.default_rng(bits)
    ramp = np.linspace(0, 2**bits - 1, 48 * 40).reshape(48, 40)
    noisy = ramp + rng.normal(0, 2**bits / 40, (5, 48, 40))
    return np.clip(noisy, 0, 2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)


def stored_values(ds: pydicom.Dataset) -> np.ndarray:
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return ds.pixel_array
    decoder = get_decoder(syntax)
    if not decoder.is_available:  # pydicom alone has none for JPEG Lossless: liblj92 is another one than the encoder
        return np.stack([imagecodecs.ljpeg_decode(f) for f in generate_frames(ds.PixelData, number_of_frames=5)])
    return decoder.as_array(ds, raw=True)[0]


LOSSLESS = [(s, b) for s in SYNTAXES for b in (8, 10, 12) if s != "jpeg-baseline"]


@pytest.mark.parametrize(("syntax", "bits"), LOSSLESS, ids=[f"{s}-{b}" for s, b in LOSSLESS])
def test_pydicom_reads_back_the_frames_that_were_written(syntax: str, bits: int) -> None:
    frames = frames_of(bits)
    ds = pydicom.dcmread(io.BytesIO(write_xa(frames, replace(FACTS, syntax=syntax, bits=bits))))
    assert np.array_equal(stored_values(ds), frames)
    assert (ds.BitsStored, ds.HighBit) == (bits, bits - 1)
    assert ds.LossyImageCompression == "00"


def test_jpeg_baseline_is_close_and_says_that_it_is_lossy() -> None:
    smooth = np.broadcast_to(np.linspace(20, 220, 40), (5, 48, 40)).astype(np.uint8)
    ds = pydicom.dcmread(io.BytesIO(write_xa(smooth, replace(FACTS, syntax="jpeg-baseline"))))
    assert np.abs(stored_values(ds).astype(int) - smooth).max() <= 4
    assert ds.LossyImageCompression == "01"
    with pytest.raises(ValueError, match="8 bits"):
        write_xa(frames_of(12), replace(FACTS, syntax="jpeg-baseline", bits=12))


def test_monochrome1_is_stored_inverted() -> None:
    frames = frames_of(10)
    facts = replace(FACTS, bits=10, monochrome1=True, syntax="jpeg-ls")
    ds = pydicom.dcmread(io.BytesIO(write_xa(frames, facts)))
    assert ds.PhotometricInterpretation == "MONOCHROME1"
    assert np.array_equal(1023 - stored_values(ds), frames)


def test_header_cannot_be_taken_for_a_patient() -> None:
    ds = pydicom.dcmread(io.BytesIO(write_xa(frames_of(8), FACTS)))
    assert ds.SyntheticData == "YES"
    assert ds.ImageType[0] == "DERIVED"
    assert ds.Manufacturer == MANUFACTURER == "angio_ray phantom"
    assert str(ds.PatientName).startswith("PHANTOM")
    assert ds.PatientBirthDate == ""


def test_header_has_every_mandatory_attribute() -> None:
    ds = pydicom.dcmread(io.BytesIO(write_xa(frames_of(8), FACTS)))
    assert [keyword for keyword in MANDATORY.split() if keyword not in ds] == []
    assert ds.FrameIncrementPointer == 0x00181063
    assert ds.FrameTime == pytest.approx(66.675)
    assert (ds.PositionerPrimaryAngle, ds.PositionerSecondaryAngle) == (-31.0, 25.0)
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_frame_time_vector_adds_up_to_the_frame_times() -> None:
    ds = pydicom.dcmread(io.BytesIO(write_xa(frames_of(8), replace(FACTS, use_frame_time_vector=True))))
    assert ds.FrameIncrementPointer == 0x00181065
    assert np.cumsum(ds.FrameTimeVector) == pytest.approx(FACTS.frame_times_ms, abs=0.01)


def test_a_frame_time_vector_too_long_for_the_file_format_gives_way_to_the_frame_time() -> None:
    for frames, vector in ((9000, True), (10000, False)):  # 7 letters each, 65,534 at most
        times = tuple(66.667 * n for n in range(frames))
        facts = replace(FACTS, use_frame_time_vector=True, frame_times_ms=times)
        ds = pydicom.dcmread(io.BytesIO(write_xa(np.zeros((frames, 2, 2), np.uint8), facts)))
        assert ds[ds.FrameIncrementPointer].VR == "DS"
        assert ("FrameTimeVector" in ds) is vector
        assert ("FrameTime" in ds) is not vector
    assert ds.FrameTime == pytest.approx(66.667)


def test_the_magnification_is_that_of_the_distances_in_the_header() -> None:
    facts = replace(FACTS, source_to_detector_mm=1003.2499, source_to_patient_mm=751.0501)
    ds = pydicom.dcmread(io.BytesIO(write_xa(frames_of(8), facts)))
    stated = ds.DistanceSourceToDetector / ds.DistanceSourceToPatient
    assert pytest.approx(stated, abs=5.1e-5) == ds.EstimatedRadiographicMagnificationFactor


def verify(ds_bytes: bytes, folder: Path) -> tuple[int, list[str]]:
    """Exit code and findings of dciodvfy, less those on SyntheticData, which its dictionary of 2022 does not know."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy (Debian: dicom3tools)")
    (folder / "clip.dcm").write_bytes(ds_bytes)
    done = subprocess.run(["dciodvfy", folder / "clip.dcm"], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, [line for line in lines if "(0x0008,0x001c)" not in line]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_verifier_of_the_standard_finds_no_error(syntax: str, tmp_path: Path) -> None:
    for bits in (8,) if syntax == "jpeg-baseline" else (8, 10, 12):
        for vector, shape, quality in ((False, "ROUND", None), (True, "RECTANGLE", 75)):
            facts = replace(
                FACTS, syntax=syntax, bits=bits, use_frame_time_vector=vector, field_shape=shape, jpeg_quality=quality
            )
            code, lines = verify(write_xa(frames_of(bits), facts), tmp_path)
            assert "XAImage" in lines
            assert [line for line in lines if "Error" in line] == []
            assert code == 0


def test_the_verifier_finds_what_is_wrong(tmp_path: Path) -> None:
    """MONOCHROME1 is the only error of a clip that is asked to have it; a missing attribute is seen."""
    sound = write_xa(frames_of(8), replace(FACTS, monochrome1=True))
    assert [line for line in verify(sound, tmp_path)[1] if "Error" in line] == [
        "Error - Unrecognized enumerated value <MONOCHROME1> for value 1 of attribute <Photometric Interpretation>"
    ]
    ds = pydicom.dcmread(io.BytesIO(sound))
    del ds.RadiationSetting
    damaged = io.BytesIO()
    ds.save_as(damaged)
    assert any("RadiationSetting" in line for line in verify(damaged.getvalue(), tmp_path)[1])


DCMTK = {"rle": "dcmdrle", "jpeg-lossless": "dcmdjpeg", "jpeg-ls": "dcmdjpls", "native": "dcmconv"}


@pytest.mark.parametrize("syntax", DCMTK)
@pytest.mark.parametrize("bits", [8, 12])
def test_dcmtk_reads_back_the_frames_that_were_written(syntax: str, bits: int, tmp_path: Path) -> None:
    if shutil.which(DCMTK[syntax]) is None:
        pytest.skip(f"no {DCMTK[syntax]} (Debian: dcmtk)")
    frames = frames_of(bits)
    (tmp_path / "clip.dcm").write_bytes(write_xa(frames, replace(FACTS, syntax=syntax, bits=bits)))
    subprocess.run([DCMTK[syntax], tmp_path / "clip.dcm", tmp_path / "plain.dcm"], check=True, capture_output=True)
    assert np.array_equal(pydicom.dcmread(tmp_path / "plain.dcm").pixel_array, frames)


def test_frames_that_went_through_jpeg_before_say_so() -> None:
    for syntax, methods in (("jpeg-ls", 1), ("jpeg-baseline", 2)):
        ds = pydicom.dcmread(io.BytesIO(write_xa(frames_of(8), replace(FACTS, syntax=syntax, jpeg_quality=60))))
        assert ds.LossyImageCompression == "01"
        assert np.size(ds.LossyImageCompressionRatio) == np.size([ds.LossyImageCompressionMethod]) == methods
        assert np.min(np.atleast_1d(ds.LossyImageCompressionRatio).astype(float)) > 1


def test_a_twin_differs_in_its_identity_only() -> None:
    clip, twin = (
        pydicom.dcmread(io.BytesIO(write_xa(frames_of(8), replace(FACTS, twin=name)))) for name in ("", "no_contrast")
    )
    assert twin.SOPInstanceUID == sop_instance_uid(replace(FACTS, twin="no_contrast"))
    differing = {e.keyword for e in clip if e != twin[e.tag]}
    assert differing == {"SOPInstanceUID", "SeriesInstanceUID"}
    assert len(clip) == len(twin)


def test_the_field_of_view_has_the_detectors_size() -> None:
    shape = {
        s: pydicom.dcmread(io.BytesIO(write_xa(frames_of(8), replace(FACTS, field_shape=s))))
        for s in ("RECTANGLE", "ROUND")
    }
    assert shape["RECTANGLE"].FieldOfViewDimensions == [18, 15]  # 48 and 40 px of 0.384 mm
    assert shape["ROUND"].FieldOfViewDimensions == 18


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_same_facts_give_the_same_bytes(syntax: str) -> None:
    facts = replace(FACTS, syntax=syntax)
    assert write_xa(frames_of(8), facts) == write_xa(frames_of(8), facts)
