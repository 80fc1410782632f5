"""Model inputs decoded once and read over all epochs, folds and experiments: Arrow files of uint8 frames.

    <place>/<window>-<digest>/shard-<digest>.arrow      one block of clips each: written whole, or not at all

Clips come through the reader, sandbox and sampling that scoring uses, by Ray Data, and each decoding worker writes what it
has decoded: an interrupted run keeps its shards, and the next one decodes the rest. An entry is named by object and etag,
the folder by all else that changes an input (window, assumed frame rate, SCORING_VERSION). A permanent reason is stored in
place of a clip, and so is that it ran out of time or memory each time; that it could not be read is not. Of an input the frames
that show the clip are stored, not those that fill it up. The cache holds pixels of patients under pseudonyms: keep it where the
clips may be.
Knows no labels, folds or models.

Shapes: B rows asked for, T frames, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from angio_ray.clip import Reason, is_transient
from angio_ray.dicom.reader import Limits
from angio_ray.sampling import ClipWindow
from angio_ray.scoring.config import RunError
from angio_ray.scoring.crash_ledger import start_ledger
from angio_ray.scoring.decode_stage import DecodeStage
from angio_ray.scoring.pipeline import key_blocks, quiet_context
from angio_ray.scoring.progress import Progress
from angio_ray.scoring.rows import KEYS
from angio_ray.scoring.run import SCORING_VERSION
from angio_ray.storage import Storage, StorageUnavailable
from angio_ray.storage.place import local_path

log = logging.getLogger(__name__)

_PASSES = 2
"""Times that a clip with a transient reason is tried."""
_OF_THE_CLIP = (Reason.DECODE_TIMEOUT, Reason.OUT_OF_MEMORY)
"""Transient reasons that are final after that: one such clip would keep a training from ever beginning."""
_CHANGED = "changed"
"""Reason of a clip that is not the one that `clips` knows: transient, the next run indexes it anew."""
_FORMAT = 3
"""Of the shards: 2 has the file's frames that an input shows, 3 no others."""
_SHARD = pa.schema(
    [
        pa.field("entry", pa.string(), nullable=False),
        pa.field("input", pa.large_binary()),
        pa.field("frames", pa.list_(pa.int32())),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """What filling the cache came to, for the clips asked for."""

    decoded: int
    """Clips decoded now."""
    reused: int
    """Clips that were there."""
    rejected: dict[str, tuple[str, str | None]]
    """object_id -> (reason, detail) of each clip without input, for good."""
    postponed: dict[str, tuple[str, str | None]]
    """The same for transient reasons: another run may have them."""


def entry_name(object_id: str, etag: str | None, frames: Sequence[int] | None = None) -> str:
    """What a clip is called in the cache: another version of the object, and other frames of it, are another entry."""
    named = "" if frames is None else "\t" + ",".join(map(str, frames))
    return hashlib.sha256(f"{object_id}\t{etag}{named}".encode()).hexdigest()[:32]


class ClipCache:
    """The inputs of one window in one place. Can be pickled; nothing is contacted before the first use."""

    def __init__(
        self, place: Storage, window: ClipWindow, *, assume_fps: float | None = None, limits: Limits | None = None
    ) -> None:
        """`limits`: of one clip, as in scoring if not given."""
        facts = {**asdict(window), "assume_fps": assume_fps, "version": SCORING_VERSION, "format": _FORMAT}
        del facts["name"]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        self.place = place
        self.window = window
        self.assume_fps = assume_fps
        self.limits = limits or Limits()
        self.folder = Storage(place.child(f"{window.name}-{digest}"))

    def fill(self, clips: pa.Table, source: Storage, *, workers: int) -> CacheSummary:
        """Decode those of the clips that are not there yet, by Ray Data.

        Parameters
        ----------
        clips
            Columns object_id, uri, size_bytes, etag (of `LabelJoin.clips`); with a column `frames`, each clip's input shows
            these frames of the file and not those of the window's rate. An object may come with several such lists.
        source
            Where they lie.
        workers
            Decoding workers, half a processor each.

        Raises
        ------
        RunError
            The pipeline broke, or the place cannot be written; what was decoded is kept.
        """
        schema = KEYS.append(pa.field("frames", pa.list_(pa.int32()))) if "frames" in clips.column_names else KEYS
        keys = clips.select(schema.names).cast(schema)
        names = [entry_name(*key) for key in zip(*(keys[c].to_pylist() for c in _named_by(keys)), strict=True)]
        objects = dict(zip(names, keys["object_id"].to_pylist(), strict=True))
        try:
            self.folder.probe_write()
            found = self._reasons()
            missing = [i for i, name in enumerate(names) if name not in found]
            postponed: dict[str, tuple[str, str | None]] = {}
            left = missing
            for _ in range(_PASSES):
                if not left:
                    break
                answers = self._decode(keys.take(left), source, min(workers, len(left)))
                for answer in answers:
                    name = answer["entry"]
                    told = (answer["reason"], answer["detail"])
                    if answer["kept"]:
                        found[name] = told
                        postponed.pop(name, None)
                    else:
                        postponed[name] = told
                left = [i for i in left if names[i] not in found]
            for i in left:
                reason, detail = postponed[names[i]]
                if reason in _OF_THE_CLIP:
                    found[names[i]] = postponed.pop(names[i])
                    self._write([{"entry": names[i], "reason": reason, "detail": detail}])
            left = [i for i in left if names[i] not in found]
        except StorageUnavailable as error:
            raise RunError(f"not finished: {error}; run the same command again", 1) from error
        rejected = {objects[n]: (r, d) for n in names if n in found for r, d in [found[n]] if r is not None}
        later = {objects[name]: told for name, told in postponed.items()}
        return CacheSummary(len(missing) - len(left), len(keys) - len(missing), rejected, later)

    def open(
        self,
        object_ids: Sequence[str],
        etags: Sequence[str | None],
        frames: Sequence[Sequence[int] | None] | None = None,
    ) -> CachedClips:
        """The inputs of these clips, in this order. KeyError where one is not there."""
        named = [None] * len(object_ids) if frames is None else frames
        return CachedClips(self, [entry_name(*key) for key in zip(object_ids, etags, named, strict=True)])

    def shards(self) -> Iterator[pa.RecordBatch]:
        """Every shard, mapped into memory: from the folder itself, or from a copy on this machine."""
        for uri in self._uris():
            with pa.ipc.open_file(pa.memory_map(self._local(uri))) as reader:
                yield reader.get_batch(0)

    def _uris(self) -> list[str]:
        listed = [info.uri for page in self.folder.list() for info in page]
        return sorted(uri for uri in listed if uri.endswith(".arrow"))

    def _reasons(self) -> dict[str, tuple[str | None, str | None]]:
        """Each entry's reason and detail; None where it has an input."""
        found = {}
        for batch in self.shards():
            columns = (batch.column(name).to_pylist() for name in ("entry", "reason", "detail"))
            found.update({entry: (reason, detail) for entry, reason, detail in zip(*columns, strict=True)})
        return found

    def _local(self, uri: str) -> str:
        """A path of the shard on this machine; a shard never changes, so a copy is good for ever."""
        if not self.folder.is_s3:
            return local_path(uri)
        name = hashlib.sha256(self.folder.uri.encode()).hexdigest()[:16]
        copies = Path(tempfile.gettempdir()) / f"angio_ray-{os.getuid()}" / name
        copies.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = copies / uri.rpartition("/")[2]
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(self.folder.read_bytes(uri))
            part.rename(path)
        return str(path)

    def _decode(self, keys: pa.Table, source: Storage, workers: int) -> list[dict[str, Any]]:
        """Decode and write these clips; a small row of each."""
        quiet_context()
        ledger = start_ledger()
        rows = ray.data.from_blocks(key_blocks(keys, workers, (self.window,))).map_batches(
            _CacheStage,
            fn_constructor_args=(source, self, ledger),
            batch_size=None,
            batch_format="pyarrow",
            udf_modifying_row_count=False,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        answers: list[dict[str, Any]] = []
        try:
            with Progress(len(keys)) as progress:
                for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    answers += block.to_pylist()
                    progress.add_statuses(
                        ["rejected" if reason else "decoded" for reason in block["reason"].to_pylist()]
                    )
        except ray.exceptions.RayError as error:
            raise RunError(
                f"not finished: decoding broke ({type(error).__name__}); run the same command again", 1
            ) from error
        finally:
            if ray.is_initialized():
                ray.kill(ledger)
        return answers

    def _write(self, shard: list[dict[str, Any]]) -> None:
        batch = pa.RecordBatch.from_pylist(shard, _SHARD)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, _SHARD) as writer:
            writer.write_batch(batch)
        # the name says what is in it: a worker that dies and begins again writes the same file
        name = hashlib.sha256("".join(row["entry"] for row in shard).encode()).hexdigest()[:24]
        self.folder.write_bytes(self.folder.child(f"shard-{name}.arrow"), sink.getvalue().to_pybytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return _cache, (self.place, self.folder, self.window, self.assume_fps, self.limits)


def _cache(place: Storage, folder: Storage, window: ClipWindow, assume_fps: float | None, limits: Limits) -> ClipCache:
    cache = ClipCache.__new__(ClipCache)
    cache.place, cache.folder, cache.window, cache.assume_fps, cache.limits = place, folder, window, assume_fps, limits
    return cache


class CachedClips:
    """Chosen entries of a cache, read in any order from mapped memory (`loop.Clips`)."""

    num_frames: int
    """T."""
    frames: list[NDArray[np.int64]]
    """Of each clip the file's frames that its input shows, T of them or fewer: the rest fills it up."""

    def __init__(self, cache: ClipCache, entries: Sequence[str]) -> None:
        self.num_frames, self._size = cache.window.num_frames, cache.window.size
        self._shards: list[NDArray[np.uint8]] = []
        wanted = {entry: position for position, entry in enumerate(entries)}
        if len(wanted) < len(entries):
            raise KeyError("a clip is asked for twice")
        self._where = np.full((len(entries), 2), -1, np.int64)  # shard, and the clip's first frame in it
        self.frames = [np.empty(0, np.int64)] * len(entries)
        for batch in cache.shards():
            inputs, frames = batch.column("input"), batch.column("frames")
            columns = (batch.column("entry").to_pylist(), inputs.is_valid().to_pylist(), frames.value_lengths().to_pylist())
            first = 0
            for place, (entry, valid, num_shown) in enumerate(zip(*columns, strict=True)):
                if valid:
                    if entry in wanted:
                        self._where[wanted[entry]] = len(self._shards), first
                        self.frames[wanted[entry]] = np.asarray(frames[place].as_py(), np.int64)
                    first += num_shown
            self._shards.append(_frames_of(inputs, self._size))
        if missing := int((self._where[:, 0] < 0).sum()):
            raise KeyError(f"{missing} of {len(entries)} clips are not in the cache")

    def __len__(self) -> int:
        return len(self._where)

    def num_shown(self, rows_B: NDArray[np.intp]) -> int:
        """Frames that show one of these clips, at most; what comes after them repeats the last."""
        return max(len(self.frames[row]) for row in rows_B.tolist())

    def read(self, rows_B: NDArray[np.intp], places_BT: NDArray[np.integer] | None = None) -> NDArray[np.uint8]:
        """The inputs of these rows, (B, T, H, W): all of their frames, or of each those at its places."""
        if places_BT is None:
            places_BT = np.tile(np.arange(self.num_frames), (len(rows_B), 1))
        out = np.empty((*places_BT.shape, self._size, self._size), np.uint8)
        for i, row in enumerate(rows_B.tolist()):
            for t, place in enumerate(places_BT[i].tolist()):
                out[i, t] = self.frame(row, place)
        return out

    def frame(self, row: int, place: int) -> NDArray[np.uint8]:
        """One of their frames, (H, W), in mapped memory. Beyond those that show the clip the last of them stands again, as
        `sampling` fills clips up."""
        shard, first = self._where[row]
        found: NDArray[np.uint8] = self._shards[shard][first + min(place, len(self.frames[row]) - 1)]
        return found


def _named_by(keys: pa.Table) -> list[str]:
    """The columns that name an entry."""
    return ["object_id", "etag", *(["frames"] if "frames" in keys.column_names else [])]


def _frames_of(column: pa.LargeBinaryArray, size: int) -> NDArray[np.uint8]:
    """All frames of a column one after the other, (N, H, W); nulls take no bytes."""
    values = column.buffers()[2]
    flat = np.frombuffer(values, np.uint8) if values is not None else np.empty(0, np.uint8)
    return flat[: len(flat) // size**2 * size**2].reshape(-1, size, size)


class _CacheStage:
    """Callable for `map_batches`: keys in; their inputs into one shard; object_id, entry, reason, detail, kept out."""

    def __init__(self, source: Storage, cache: ClipCache, ledger: Any) -> None:
        self.cache = cache
        self.decode = DecodeStage(source, (cache.window,), ledger, limits=cache.limits, assume_fps=cache.assume_fps)

    def __call__(self, keys: pa.Table) -> pa.Table:
        decoded = self.decode(keys)
        name = self.cache.window.name
        columns = ("object_id", "reason", "detail", "changed", f"input_{name}", f"frames_{name}")
        shard, answers = [], []
        entries = [entry_name(*key) for key in zip(*(keys[c].to_pylist() for c in _named_by(keys)), strict=True)]
        for entry, row in zip(entries, decoded.select(columns).to_pylist(), strict=True):
            reason, detail = (_CHANGED, None) if row["changed"] else (row["reason"], row["detail"])
            kept = not (reason == _CHANGED or is_transient(reason, detail))
            answers.append(
                {"object_id": row["object_id"], "entry": entry, "reason": reason, "detail": detail, "kept": kept}
            )
            if kept:
                shard.append({"entry": entry, "reason": reason, "detail": detail})
                if reason is None:
                    shown = row[f"frames_{name}"]
                    shard[-1] |= {
                        "input": row[f"input_{name}"][: len(shown) * self.cache.window.size**2],
                        "frames": shown,
                    }
        if shard:
            self.cache._write(shard)
        schema = pa.schema(
            [*(pa.field(n, pa.string()) for n in ("object_id", "entry", "reason", "detail")), ("kept", pa.bool_())]
        )
        return pa.Table.from_pylist(answers, schema)
