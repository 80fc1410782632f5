"""The fence against an S3 endpoint whose replies get lost, that is unavailable, or that revokes the credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from angio_ray.storage import Storage
from angio_ray.tables.maintenance import compact
from angio_ray.tables.root import TableRoot, TablesError
from angio_ray.tables.run_log import RunHeld, TableUnwritable, run_state
from angio_ray.tables.sql import query
from tests.tables.run_driver import FINGERPRINT, object_ids, score_rows
from tests.tables.test_run_log import clip_rows, stored, take, undisturbed

if TYPE_CHECKING:
    from tests.s3 import S3Proxy, S3Server

pytest_plugins = ("tests.s3",)

IDS = object_ids(40)
LOG_ENTRY = r"/scores/_delta_log/[0-9]+\.json"


@pytest.fixture
def behind(s3_server: S3Server, s3_bucket: str) -> TableRoot:
    """The tables by the straight way."""
    made = TableRoot(Storage(f"s3://{s3_bucket}/tables", s3_server.options))
    made.ensure(FINGERPRINT)
    return made


@pytest.fixture
def proxied(behind: TableRoot, s3_proxy: S3Proxy, s3_bucket: str) -> TableRoot:
    """The same tables through the proxy."""
    return TableRoot(Storage(f"s3://{s3_bucket}/tables", s3_proxy.options))


def test_a_run_on_s3_from_claim_to_sql(behind: TableRoot) -> None:
    with take(behind) as log:
        log.append_clips(clip_rows(IDS[:20]))
        log.commit(score_rows("r", IDS[:20]))
    log = take(behind, wait=False)
    assert log.scored_ids() == set(IDS[:20])
    assert log.append_clips(clip_rows(IDS)) == 20
    log.commit(score_rows("r", IDS))
    log.finish({})
    assert compact(behind, "r")[0].files_after == 1
    assert stored(behind) == undisturbed()
    assert query(behind, "SELECT count(*) AS n FROM latest_scores").to_pylist() == [{"n": 40}]


def test_of_two_drivers_on_s3_the_older_is_fenced(behind: TableRoot) -> None:
    zombie = take(behind, interval_s=0.3, heartbeat=False)
    zombie.commit(score_rows("r", IDS[:10]))
    log = take(behind)
    with pytest.raises(RunHeld):
        zombie.commit(score_rows("r", IDS[10:20]))
    log.commit(score_rows("r", IDS[10:]))
    log.finish({})
    assert stored(behind) == undisturbed()


@pytest.mark.parametrize("loss", ["drop_reply", "spoil_reply"])
def test_a_commit_whose_reply_is_lost_is_not_written_twice(
    behind: TableRoot, proxied: TableRoot, s3_proxy: S3Proxy, loss: str
) -> None:
    log = take(proxied, heartbeat=False)
    for start in range(0, 40, 10):
        getattr(s3_proxy, loss)(match=LOG_ENTRY)
        assert log.commit(score_rows("r", IDS[start : start + 10])) == 10
    getattr(s3_proxy, loss)(match=LOG_ENTRY)
    assert log.replace(score_rows("r", IDS[:3])) == 3
    getattr(s3_proxy, loss)(match=r"/runs/_delta_log/[0-9]+\.json")
    log.finish({})
    assert stored(behind) == undisturbed()
    assert [event["event"] for event in run_state(behind, "r").events] == ["claimed", "finished"]


def test_a_store_that_is_unavailable_for_a_while_is_survived(
    behind: TableRoot, proxied: TableRoot, s3_proxy: S3Proxy
) -> None:
    log = take(proxied, heartbeat=False)
    log.commit(score_rows("r", IDS[:20]))
    s3_proxy.unavailable(times=3, match=LOG_ENTRY)
    log.commit(score_rows("r", IDS[20:]))
    log.finish({})
    assert stored(behind) == undisturbed()


def test_revoked_credentials_stop_the_run_and_a_rerun_completes_it(
    behind: TableRoot, proxied: TableRoot, s3_proxy: S3Proxy
) -> None:
    log = take(proxied, interval_s=0.5, heartbeat=False)
    log.commit(score_rows("r", IDS[:20]))
    s3_proxy.deny()
    with pytest.raises((TableUnwritable, TablesError)) as caught:
        log.commit(score_rows("r", IDS[20:]))
    assert "\n" not in str(caught.value)
    with pytest.raises(TablesError) as caught_again:
        proxied.ensure(FINGERPRINT)
    assert "\n" not in str(caught_again.value)
    assert not log.stop()
    s3_proxy.clear()
    assert stored(behind) == undisturbed(ids=IDS[:20])
    # this process lives on, so the rerun watches the run for the first driver's interval
    rerun = take(behind)
    rerun.commit(score_rows("r", IDS))
    rerun.finish({})
    assert stored(behind) == undisturbed()
