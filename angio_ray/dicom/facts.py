"""What a parsed header says about the clip: a `ClipHeader`, and the layout that its pixels are stored in.

Plain XA keeps angles and windows at the top level, Enhanced XA in functional groups, shared or per frame
(PS3.3 C.8.19.6): both are read. Nothing is corrected and nothing is decided here but whether the layout is one that
can be read at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from angio_ray.clip import ClipHeader, ClipRejected, Reason
from angio_ray.dicom.header import DataSet, ParsedObject
from angio_ray.dicom.timing import FrameTimes

XA_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.12.1",  # X-Ray Angiographic
        "1.2.840.10008.5.1.4.1.1.12.1.1",  # Enhanced XA
        "1.2.840.10008.5.1.4.1.1.12.2",  # X-Ray Radiofluoroscopic
        "1.2.840.10008.5.1.4.1.1.12.2.1",  # Enhanced XRF
    }
)
PHANTOM_MANUFACTURER = "angio_ray phantom"

_PLANES = {
    **{"SINGLE PLANE": "single", "BIPLANE A": "a", "BIPLANE B": "b"},  # ImageType, value 3
    **{"MONOPLANE": "single", "PLANE A": "a", "PLANE B": "b"},  # PlaneIdentification of Enhanced XA
}
_LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in ("50", "51", "53", "55", "81", "91", "203"))
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelLayout:
    """How the stored values of one frame lie in its bytes (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    num_frames: int
    samples: int
    planar: bool
    """Whether each sample's plane is whole (PlanarConfiguration 1), in native data."""
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    little: bool

    @property
    def dtype(self) -> np.dtype:
        """Type of one stored value, in the machine's byte order."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(rows, columns) or (rows, columns, samples)."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, decoded."""
        return self.rows * self.columns * self.samples * (self.bits_allocated // 8)


@dataclass(frozen=True, slots=True)
class Voi:
    """How stored values map to what people look at: a lookup table, or a window (PS3.3 C.11.2)."""

    lut: np.ndarray | None = None
    """Outputs as uint8, shape (entries,)."""
    first_mapped: int = 0
    center: float = 0.0
    width: float = 0.0
    function: str = "LINEAR"


def clip_header(
    parsed: ParsedObject, shared: DataSet | None, per_frame: list[DataSet], times: FrameTimes | None
) -> ClipHeader:
    """The header's facts as recorded: integers fit int32, numbers are finite, texts can be encoded as UTF-8."""
    dataset = parsed.dataset
    image_type = dataset.texts(0x00080008)
    named_planes = (*image_type[2:3], dataset.text(0x00189457) or "")
    shutter = _functional(dataset, shared, per_frame, 0x00189472) or dataset  # FrameDisplayShutterSequence
    manufacturer = dataset.text(0x00080070)
    position = _functional(dataset, shared, per_frame, 0x00189405)  # PositionerPositionSequence
    if position is not None:
        primary, secondary = position.number(0x00181510, "DS"), position.number(0x00181511, "DS")
    else:
        primary, secondary = dataset.number(0x00181510, "DS"), dataset.number(0x00181511, "DS")
    geometry = _functional(dataset, shared, per_frame, 0x00189476) or dataset  # X-RayGeometrySequence
    acquired = dataset.text(0x0008002A)
    if acquired is None and dataset.text(0x00080022):
        acquired = (dataset.text(0x00080022) or "") + (dataset.text(0x00080032) or "")
    detector = _functional(dataset, shared, per_frame, 0x00289443) or dataset  # FramePixelDataPropertiesSequence
    spacing = detector.numbers(0x00181164, "DS")
    box = tuple(shutter.integer(tag, "IS") for tag in (0x00181602, 0x00181606, 0x00181604, 0x00181608))
    lossy = dataset.text(0x00282110)
    return ClipHeader(
        sop_instance_uid=dataset.text(0x00080018) or parsed.meta.text(0x00020003),
        sop_class_uid=sop_class(parsed),
        study_instance_uid=dataset.text(0x0020000D),
        series_instance_uid=dataset.text(0x0020000E),
        dicom_patient_id=dataset.text(0x00100020),
        issuer_of_patient_id=dataset.text(0x00100021),
        patient_birth_date=dataset.text(0x00100030),
        patient_sex=dataset.text(0x00100040),
        transfer_syntax=parsed.transfer_syntax,
        num_frames=num_frames(dataset),
        rows=dataset.integer(0x00280010, "US"),
        columns=dataset.integer(0x00280011, "US"),
        bits_stored=dataset.integer(0x00280101, "US"),
        photometric_interpretation=dataset.text(0x00280004),
        lossy=True if lossy == "01" or parsed.transfer_syntax in _LOSSY_SYNTAXES else (False if lossy else None),
        frame_time_ms=times.interval_ms if times else None,
        frame_time_source=times.source if times else None,
        primary_angle_deg=primary,
        secondary_angle_deg=secondary,
        positioner_motion=dataset.text(0x00181500),
        plane=next((_PLANES[name.upper()] for name in named_planes if name.upper() in _PLANES), None),
        has_mask_module=0x00286100 in dataset,
        viewing_mode=dataset.text(0x00281090),
        shutter_shape=shutter.text(0x00181600),
        shutter_box=(box[0], box[1], box[2], box[3]) if None not in box else None,  # type: ignore[arg-type]
        imager_pixel_spacing_mm=(spacing[0], spacing[1]) if len(spacing) >= 2 and min(spacing[:2]) > 0 else None,
        distance_source_to_detector_mm=geometry.number(0x00181110, "DS"),
        distance_source_to_patient_mm=geometry.number(0x00181111, "DS"),
        study_date=dataset.text(0x00080020),
        acquisition_datetime=acquired,
        timezone_offset=dataset.text(0x00080201),
        series_number=dataset.integer(0x00200011, "IS"),
        instance_number=dataset.integer(0x00200013, "IS"),
        manufacturer=manufacturer,
        model=dataset.text(0x00081090),
        institution=dataset.text(0x00080080),
        burned_in_annotation=dataset.text(0x00280301),
        synthetic=dataset.text(0x0008001C) == "YES" or manufacturer == PHANTOM_MANUFACTURER,
    )


def sop_class(parsed: ParsedObject) -> str | None:
    """SOPClassUID of the data set, else of the file meta group."""
    return parsed.dataset.text(0x00080016) or parsed.meta.text(0x00020002)


def functional_groups(dataset: DataSet) -> tuple[DataSet | None, list[DataSet]]:
    """Shared functional groups and those of each frame (PS3.3 C.7.6.16); plain XA has neither."""
    shared = dataset.items(0x52009229)
    return (shared[0] if shared else None), dataset.items(0x52009230)


def num_frames(dataset: DataSet) -> int | None:
    """NumberOfFrames as recorded; 1 where it is absent (a single-frame object needs none), None where unreadable."""
    if 0x00280008 not in dataset or not dataset.raw(0x00280008):
        return 1
    return dataset.integer(0x00280008, "IS")


def pixel_layout(parsed: ParsedObject) -> PixelLayout:
    """The layout, checked: `header_invalid` where it is absent, contradicts itself or is one that no XA object has."""
    dataset = parsed.dataset
    rows, columns = dataset.integer(0x00280010, "US"), dataset.integer(0x00280011, "US")
    if rows is None or columns is None or not (1 <= rows <= 65535 and 1 <= columns <= 65535):
        raise _invalid(f"rows {_shown(rows)}, columns {_shown(columns)}")
    frames = num_frames(dataset)
    if frames is None or frames < 1:
        raise _invalid(f"number of frames {_shown(frames)}")
    samples = dataset.integer(0x00280002, "US")
    samples = 1 if samples is None else samples
    photometric = (dataset.text(0x00280004) or ("MONOCHROME2" if samples == 1 else "RGB")).upper()
    if not ((samples == 1 and photometric in _GREY) or (samples == 3 and photometric in _COLOUR)):
        raise _invalid(f"{samples} samples a pixel in a photometric interpretation that does not allow it")
    allocated, stored = dataset.integer(0x00280100, "US"), dataset.integer(0x00280101, "US")
    stored = allocated if stored is None else stored
    high = dataset.integer(0x00280102, "US")
    if allocated not in (8, 16) or stored is None or not 1 <= stored <= allocated:
        raise _invalid(f"bits allocated {_shown(allocated)}, stored {_shown(stored)}")
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < allocated:
        raise _invalid(f"bits allocated {allocated}, stored {stored}, high bit {high}")
    return PixelLayout(
        rows=rows,
        columns=columns,
        num_frames=frames,
        samples=samples,
        planar=samples > 1 and dataset.integer(0x00280006, "US") == 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        signed=dataset.integer(0x00280103, "US") == 1,
        photometric=photometric,
        little=dataset.encoding.little,
    )


def voi(dataset: DataSet, shared: DataSet | None, per_frame: list[DataSet]) -> Voi | None:
    """The first VOI LUT or window of a header, None where it has no usable one. Enhanced: FrameVOILUTSequence."""
    group = _functional(dataset, shared, per_frame, 0x00289132) or dataset
    tables = group.items(0x00283010)  # VOILUTSequence
    if tables and (found := _voi_lut(tables[0])) is not None:
        return found
    center, width = group.number(0x00281050, "DS"), group.number(0x00281051, "DS")
    function = next(iter(group.texts(0x00281056)), "") or "LINEAR"
    if center is None or width is None or width < (1 if function == "LINEAR" else 1e-6):
        return None
    return Voi(center=center, width=width, function=function)


def _voi_lut(item: DataSet) -> Voi | None:
    descriptor, data = item.numbers(0x00283002, "US"), item.raw(0x00283006)
    if len(descriptor) != 3 or not data:
        return None
    entries, first, bits = (int(value) for value in descriptor)
    entries = entries or 65536
    if not 8 <= bits <= 16:
        return None
    # 8-bit entries may come one to a byte or one to a word (PS3.3 C.11.2.1.1)
    dtype = np.dtype("u1") if len(data) <= entries + 1 else np.dtype(f"{item.encoding.order}u2")
    if len(data) < entries * dtype.itemsize:
        return None
    values = np.frombuffer(data, dtype=dtype, count=entries).astype(np.float64)
    lut = np.clip(np.rint(values * (255.0 / (2**bits - 1))), 0, 255).astype(np.uint8)
    return Voi(lut=lut, first_mapped=first) if int(lut.max()) - int(lut.min()) >= 16 else None


def _functional(dataset: DataSet, shared: DataSet | None, per_frame: list[DataSet], tag: int) -> DataSet | None:
    """First item of a functional group macro: the first frame's own, else the shared one, else at the top level."""
    for group in (per_frame[0] if per_frame else None, shared, dataset):
        if group is not None and (items := group.items(tag)):
            return items[0]
    return None


def _shown(value: int | None) -> str:
    return "absent" if value is None else str(value)


def _invalid(detail: str) -> ClipRejected:
    return ClipRejected(Reason.HEADER_INVALID, detail)
