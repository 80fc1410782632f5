"""Objects that must be rejected, each for one known reason: for the demo, and for tests of whatever reads clips.

Each starts as a sound phantom clip and is damaged in one way. Knows nothing of the reader that will refuse them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, generate_frames

from angio_ray.clip import Reason
from angio_ray.phantom.dicom_writer import write_xa
from angio_ray.phantom.generation import render_clip
from angio_ray.phantom.planning import PhantomConfig, clip_facts, plan_patient


def write_broken(folder: str | Path, *, seed: int = 0, size: int = 128) -> dict[str, str]:
    """Write one object per reason into a folder, made when absent.

    Parameters
    ----------
    folder : str or Path
        Where the files go, under the names returned.
    seed, size : int
        As for `generate`: the same seed gives the same bytes.

    Returns
    -------
    dict of str to str
        File name -> the `Reason` it must be rejected for.
    """
    sound = _sound_clip(seed, size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, (reason, damage) in _DAMAGES.items():
        (folder / name).write_bytes(damage(sound))
        expected[name] = str(reason)
    return expected


def _sound_clip(seed: int, size: int) -> bytes:
    """A lossless JPEG clip of 24 frames at 15/s."""
    config = PhantomConfig(
        seed=seed, size=size, clips=(1, 1), frames=(24, 24), fps=15.0, syntax="jpeg-lossless", unsatisfactory=0.0
    )
    plan = plan_patient(config, 9000)
    scene, rendered = render_clip(plan, 0)
    return write_xa(rendered.frames_THW, clip_facts(plan, 0, scene))


def _edited(sound: bytes, key: str, edit: Callable[[pydicom.Dataset], None]) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(sound))
    # an object of its own, not the same clip under a second name
    ds.SOPInstanceUID = f"{ds.SOPInstanceUID[:50]}.{sum(key.encode())}"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    edit(ds)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=False)
    return out.getvalue()


def _frames(ds: pydicom.Dataset) -> list[bytes]:
    return list(generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)))


def _set_frames(ds: pydicom.Dataset, frames: list[bytes]) -> None:
    ds.PixelData = encapsulate(frames, has_bot=True)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def _not_xa(ds: pydicom.Dataset) -> None:
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    ds.Modality = "CT"


def _too_short(ds: pydicom.Dataset) -> None:
    _set_frames(ds, _frames(ds)[:3])
    ds.NumberOfFrames = 3
    if "FrameTimeVector" in ds:
        ds.FrameTimeVector = ds.FrameTimeVector[:3]


def _no_frame_time(ds: pydicom.Dataset) -> None:
    for keyword in ("FrameIncrementPointer", "FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"):
        if keyword in ds:
            delattr(ds, keyword)


def _missing_frames(ds: pydicom.Dataset) -> None:
    frames = _frames(ds)
    ds.NumberOfFrames = len(frames) + 40


def _wrong_geometry(ds: pydicom.Dataset) -> None:
    ds.Rows, ds.Columns = ds.Rows // 2, ds.Columns * 2


def _no_rows(ds: pydicom.Dataset) -> None:
    ds.Rows = 0


def _no_pixels(ds: pydicom.Dataset) -> None:
    del ds.PixelData


def _mpeg(ds: pydicom.Dataset) -> None:
    ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41


def _garbage_stream(ds: pydicom.Dataset) -> None:
    """A true JPEG header and end marker with nothing that can be decoded between them: no Huffman table."""
    frames = []
    for frame in _frames(ds):
        table = frame.index(b"\xff\xc4")
        length = int.from_bytes(frame[table + 2 : table + 4], "big")
        broken = frame[:table] + frame[table + 2 + length :]
        frames.append(broken + b"\0" * (len(broken) % 2))
    _set_frames(ds, frames)


def _by(key: str, edit: Callable[[pydicom.Dataset], None]) -> Callable[[bytes], bytes]:
    return lambda sound: _edited(sound, key, edit)


def _text(sound: bytes) -> bytes:
    return b"export failed, see the log of the archive\n" * 40


def _cut(sound: bytes) -> bytes:
    """The first 60 % of an upload."""
    other = _edited(sound, "truncated", lambda ds: None)
    return other[: int(len(other) * 0.6)]


def _noise(sound: bytes) -> bytes:
    return np.random.default_rng(len(sound)).bytes(5000)


_DAMAGES: dict[str, tuple[Reason, Callable[[bytes], bytes]]] = {
    "export_failed.dcm": (Reason.NOT_DICOM, _text),
    "random_bytes.dcm": (Reason.NOT_DICOM, _noise),
    "upload_cut.dcm": (Reason.TRUNCATED, _cut),
    "ct_image.dcm": (Reason.NOT_XA, _by("ct", _not_xa)),
    "no_pixels.dcm": (Reason.NO_PIXEL_DATA, _by("pixels", _no_pixels)),
    "mpeg.dcm": (Reason.UNSUPPORTED_TRANSFER_SYNTAX, _by("mpeg", _mpeg)),
    "zero_rows.dcm": (Reason.HEADER_INVALID, _by("rows", _no_rows)),
    "frames_missing.dcm": (Reason.FRAME_COUNT_MISMATCH, _by("count", _missing_frames)),
    "wrong_geometry.dcm": (Reason.GEOMETRY_MISMATCH, _by("geometry", _wrong_geometry)),
    "three_frames.dcm": (Reason.TOO_SHORT, _by("short", _too_short)),
    "no_frame_time.dcm": (Reason.FRAME_TIME_UNKNOWN, _by("time", _no_frame_time)),
    "no_huffman_table.dcm": (Reason.DECODE_ERROR, _by("stream", _garbage_stream)),
}
