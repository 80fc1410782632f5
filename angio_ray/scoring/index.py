"""Header facts of every object into `clips`, reading header bytes only: no run, no models, a pass that later runs profit from."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray

from angio_ray.clip import is_transient
from angio_ray.dicom.reader import Limits
from angio_ray.pseudonyms import PatientIdentity, PseudonymKey
from angio_ray.scoring.cluster import check_nodes_see, ray_cluster
from angio_ray.scoring.config import IndexConfig, RunError
from angio_ray.scoring.crash_ledger import start_ledger
from angio_ray.scoring.decode_stage import DecodeStage
from angio_ray.scoring.pipeline import key_blocks, quiet_context
from angio_ray.scoring.progress import Progress
from angio_ray.scoring.rows import clip_rows
from angio_ray.scoring.run import listing, load_patients, load_run_key, open_root, open_source
from angio_ray.storage import Storage
from angio_ray.tables.clip_log import ClipLog
from angio_ray.tables.fence import TableUnwritable

_COMMIT_S = 10.0
_PASSES = 2
"""Times that an object with a transient reason is tried."""


@dataclass(frozen=True)
class IndexSummary:
    """What an `index` did."""

    written: int
    """New rows of `clips`."""
    known: int
    """Objects that `clips` had already, unchanged."""
    rejected: int
    """Objects with a reason in place of header facts."""
    postponed: Counter[str]
    """Of these, by reason, objects that could not be read this time and are not in `clips`: the next `index` tries them again."""
    seconds: float


def index(config: IndexConfig) -> IndexSummary:
    """Append the header facts of the source's objects that `clips` does not hold yet (by URI, size and etag)."""
    started = time.monotonic()
    source, root = open_source(config.source), open_root(config.tables, config.clips)
    key = load_run_key(config.key_file, config.tables, root)
    root.ensure(key.fingerprint)
    patients = load_patients(config.patient_map, key, root)
    clip_log = ClipLog(root)
    keys = pa.concat_tables(listing(source, key))
    fresh = left = clip_log.absent(keys)
    written = rejected = 0
    transient: dict[str, str] = {}
    for _ in range(_PASSES):
        if not len(left):
            break
        now, faults, again = _index(config, source, left, len(keys), key, patients, clip_log)
        written, rejected, transient = written + now, rejected - len(transient) + faults, again
        left = left.filter(pc.is_in(left["object_id"], pa.array(list(transient), pa.string())))
    return IndexSummary(written, len(keys) - len(fresh), rejected, Counter(transient.values()), time.monotonic() - started)


def _index(
    config: IndexConfig,
    source: Storage,
    keys: pa.Table,
    total: int,
    key: PseudonymKey,
    patients: PatientIdentity,
    clip_log: ClipLog,
) -> tuple[int, int, dict[str, str]]:
    """Stream the keys through decode workers that read headers only.

    Gives rows written, objects with a reason, and of those object_id -> reason that `clips` did not take (transient).
    """
    written = 0
    transient: dict[str, str] = {}
    with ray_cluster() as nodes, Progress(total, total - len(keys)) as progress:
        if not source.is_s3:
            check_nodes_see(config.source)
        quiet_context()
        workers = max(1, int(sum(node.get("CPU", 0.0) for node in nodes)))
        ledger = start_ledger()
        rows = ray.data.from_blocks(key_blocks(keys, workers)).map_batches(
            DecodeStage,
            fn_constructor_args=(source, (), ledger),
            fn_constructor_kwargs={"limits": Limits(), "header_only": True, "fetch_threads": 16},
            batch_size=None,
            batch_format="pyarrow",
            udf_modifying_row_count=False,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        buffer: list[pa.Table] = []
        committed_at = time.monotonic()
        try:
            for block in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                buffer.append(clip_rows(block, key=key, patients=patients))
                transient |= {
                    row["object_id"]: row["reason"]
                    for row in buffer[-1].select(["object_id", "reason", "detail", "sop_instance_uid"]).to_pylist()
                    if row["sop_instance_uid"] is None and is_transient(row["reason"], row["detail"])
                }
                progress.add_statuses(["rejected" if reason else "indexed" for reason in block["reason"].to_pylist()])
                if time.monotonic() - committed_at >= _COMMIT_S:
                    written += clip_log.append(pa.concat_tables(buffer))
                    buffer, committed_at = [], time.monotonic()
            if buffer:
                written += clip_log.append(pa.concat_tables(buffer))
        except ray.exceptions.RayError as error:
            raise RunError(
                f"not finished: the pipeline broke ({type(error).__name__}); run the same command again", 1
            ) from error
        except TableUnwritable as error:
            raise RunError(f"not finished: {error}; run the same command again", 1) from error
        finally:
            if ray.is_initialized():
                ray.kill(ledger)  # the workers hold its handle: in a lasting cluster it would stay
        return written, progress.counts["rejected"], transient
