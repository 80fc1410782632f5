"""Storage: one spelling per object, listings, byte ranges, faults of a real S3 endpoint, one set of credentials."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import deltalake
import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from angio_ray.clip import GONE, ClipRejected, Reason
from angio_ray.storage import (
    HEAD_BYTES,
    MERGE_GAP_BYTES,
    PAGE,
    ObjectInfo,
    RetryPolicy,
    Storage,
    StorageUnavailable,
    canonical_uri,
)

if TYPE_CHECKING:
    from tests.s3 import S3Proxy, S3Server

pytest_plugins = ("tests.s3",)

QUICK = RetryPolicy(tries=3, first_pause_s=0.01, longest_pause_s=0.02, connect_s=2, read_s=2, total_s=20)
COMMIT = r"_delta_log/\d+\.json"


@pytest.fixture(autouse=True)
def _no_foreign_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))


def listed(storage: Storage) -> list[ObjectInfo]:
    return [info for page in storage.list() for info in page]


def names(storage: Storage) -> list[str]:
    return [info.uri.removeprefix(storage.uri).lstrip("/") for info in listed(storage)]


def rejection(action: Callable[[], object]) -> ClipRejected:
    with pytest.raises(ClipRejected) as caught:
        action()
    assert caught.value.reason is Reason.READ_ERROR
    return caught.value


def complaint(action: Callable[[], object]) -> str:
    with pytest.raises(StorageUnavailable) as caught:
        action()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# --- canonical_uri ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("s3a://b/clips/a.dcm", "s3://b/clips/a.dcm"),
        ("S3://b/clips/a.dcm", "s3://b/clips/a.dcm"),
        ("s3n://b/", "s3://b"),
        ("s3://b//x//y", "s3://b//x//y"),
        ("s3://b/a/../b/./c", "s3://b/a/../b/./c"),
        ("s3://b/a%20b?c#d", "s3://b/a%20b?c#d"),
        ("s3://b/folder/", "s3://b/folder/"),
        ("file:///no/such/a%20b.dcm", "/no/such/a b.dcm"),
        ("file:/no/such/a.dcm", "/no/such/a.dcm"),
        ("FILE://localhost/no/such/a.dcm", "/no/such/a.dcm"),
        ("file:///no/such/100%25.dcm", "/no/such/100%.dcm"),
        ("/no/such/a%20b.dcm", "/no/such/a%20b.dcm"),
        ("//no//such/./x/../a.dcm", "/no/such/a.dcm"),
        ("/no/such/folder/", "/no/such/folder"),
        ("file:///no/such/M%FCller.dcm", "file:///no/such/M%FCller.dcm"),
        ("/no/such/Müller.dcm", "/no/such/Müller.dcm"),
        ("file:///no/such/M%C3%BCller.dcm", "/no/such/Müller.dcm"),
    ],
)
def test_every_spelling_has_one_canonical_form_and_that_is_its_own(uri: str, canonical: str) -> None:
    assert canonical_uri(uri) == canonical
    assert canonical_uri(canonical) == canonical


def test_relative_paths_and_links_lead_to_the_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.dcm").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    expected = str(Path(tmp_path).resolve() / "real" / "a.dcm")
    spellings: list[str | Path] = [
        "a.dcm",
        "./a.dcm",
        "../link/a.dcm",
        tmp_path / "link" / "a.dcm",
        f"file://{tmp_path}/link//a.dcm",
    ]
    assert {canonical_uri(spelling) for spelling in spellings} == {expected}


def test_a_name_that_is_no_utf8_keeps_a_form_that_tables_can_hold(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/M\xfcller.dcm"
    with open(raw, "wb") as file:
        file.write(b"pixels")
    (info,) = listed(Storage(tmp_path))
    assert info.uri.isascii()
    assert info.uri == canonical_uri(os.fsdecode(raw))
    assert Storage(tmp_path).open(info).read([(0, 6)]) == [b"pixels"]


@pytest.mark.parametrize("uri", ["gs://b/k", "s3://", "s3:///key", "file://otherhost/x", "file://x", "", "a\0b"])
def test_a_uri_that_names_no_place_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        canonical_uri(uri)
    assert len(str(caught.value).splitlines()) == 1
    complaint(lambda: Storage(uri))


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_with_what_lies_in_it_and_without_what_is_no_clip(tmp_path: Path) -> None:
    for name in ("b.dcm", "a/2", "a/1", "a/deep/x.dcm", "empty.dcm", ".DS_Store", "._b.dcm", ".git/config", "DICOMDIR",
                 "a/dicomdir", "Thumbs.db", "__MACOSX/c.dcm"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else name.encode())
    os.mkfifo(tmp_path / "pipe")
    assert names(Storage(tmp_path)) == ["a/1", "a/2", "a/deep/x.dcm", "b.dcm", "empty.dcm"]
    for info in listed(Storage(tmp_path)):
        status = os.stat(info.uri)
        assert (info.size_bytes, info.etag) == (status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def test_links_are_followed_once_and_a_dangling_one_is_an_object_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "a.dcm").write_bytes(b"a")
    (tmp_path / "study" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to("study")
    (tmp_path / "dangling").symlink_to("nowhere")
    storage = Storage(tmp_path)
    assert sorted(names(storage)) == ["nowhere", "study/a.dcm"]
    source = storage.open(f"{storage.uri}/nowhere")
    assert rejection(lambda: source.read([(0, 1)])).detail == GONE


def test_a_listing_comes_in_sorted_pages(tmp_path: Path) -> None:
    for number in range(PAGE + 5):
        (tmp_path / f"{number:05}").touch()
    pages = list(Storage(tmp_path).list())
    assert [len(page) for page in pages] == [PAGE, 5]
    assert all(page == sorted(page, key=lambda info: info.uri) for page in pages)


def test_one_file_lists_itself(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"abc")
    (info,) = listed(Storage(tmp_path / "a.dcm"))
    assert (info.uri, info.size_bytes) == (str(tmp_path / "a.dcm"), 3)


def test_a_missing_folder_is_said_in_one_line(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "absent")
    assert "No such file" in complaint(storage.probe)
    assert "No such file" in complaint(lambda: listed(storage))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_stops_the_listing_and_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "Doe^John").mkdir(mode=0)
    text = complaint(lambda: listed(Storage(tmp_path)))
    assert "Permission denied" in text
    assert "Doe" not in text


def test_ranges_are_read_and_end_where_the_file_ends(tmp_path: Path) -> None:
    data = os.urandom(1000)
    (tmp_path / "a.dcm").write_bytes(data)
    (info,) = listed(Storage(tmp_path))
    source = Storage(tmp_path).open(info)
    assert source.read([(0, 4), (990, 2000), (5000, 6000), (7, 7)]) == [data[:4], data[990:], b"", b""]
    assert source.fetched_bytes == 14
    assert (source.info, source.changed) == (info, False)
    with pytest.raises(ValueError, match="byte range"):
        source.read([(5, 4)])


def test_a_file_that_changed_since_the_listing_is_read_as_it_is_now_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"old")
    (info,) = listed(Storage(tmp_path))
    path.write_bytes(b"newer")
    source = Storage(tmp_path).open(info)
    assert source.changed
    assert source.info.size_bytes == 5
    assert source.info.etag != info.etag
    assert source.read([(0, 10)]) == [b"newer"]


def test_a_file_rewritten_while_it_is_read_is_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"one version")
    source = Storage(tmp_path).open(str(path))
    source.read([(0, 3)])
    path.write_bytes(b"another version")
    rejected = rejection(lambda: source.read([(3, 10)]))
    assert rejected.transient
    source.close()


def test_a_file_whose_name_was_taken_over_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"one version")
    source = Storage(tmp_path).open(str(path))
    (tmp_path / "b").write_bytes(b"another version")
    os.replace(tmp_path / "b", path)
    assert source.read([(0, 11)]) == [b"one version"]


def test_a_vanished_file_is_final_and_a_vanished_folder_is_not(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).write_bytes(b"x")
    storage = Storage(root)
    gone, other = listed(storage)
    (root / "a").unlink()
    rejected = rejection(lambda: storage.open(gone).read([(0, 1)]))
    assert (rejected.detail, rejected.transient) == (GONE, False)
    root.rename(tmp_path / "unmounted")
    assert rejection(lambda: storage.open(other).read([(0, 1)])).transient
    root.mkdir()  # what is left of a lost mount
    assert rejection(lambda: storage.open(other).read([(0, 1)])).transient


def test_what_took_the_place_of_a_file_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.dcm")
    source = Storage(tmp_path).open(str(tmp_path / "a.dcm"))
    assert rejection(lambda: source.read([(0, 1)])).detail == "not a regular file"


def test_small_objects_are_written_whole_and_read_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "new" / "tables")
    storage.probe_write()
    name = storage.child("reports", "a b.json")
    storage.write_bytes(name, b"1")
    storage.write_bytes(name, b"2")
    assert storage.read_bytes(name) == b"2"
    assert [path.name for path in (tmp_path / "new" / "tables").rglob("*")] == ["reports", "a b.json"]
    for _ in range(2):
        storage.delete(name)
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(name)
    assert "Is a directory" in complaint(lambda: storage.delete(storage.child("reports")))
    (tmp_path / "file").write_bytes(b"")
    assert "Not a directory" in complaint(lambda: Storage(tmp_path / "file" / "x").probe_write())


def test_an_io_error_is_told_by_its_number(tmp_path: Path) -> None:
    # a process's own memory is a regular file whose first page cannot be read: a real EIO
    storage = Storage(tmp_path, retry=QUICK)
    source = storage.open(ObjectInfo("/proc/self/mem", 10, "0-a"))
    source.info = ObjectInfo("/proc/self/mem", 10, source.info.etag)  # type: ignore[misc]
    assert rejection(lambda: source.read([(0, 10)])).detail == "system error 5 after 3 tries"


def test_a_storage_survives_pickling_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    local = pickle.loads(pickle.dumps(Storage(tmp_path)))
    assert names(local) == ["a"]
    remote = Storage("s3://b/clips/", {"access_key_id": "id", "secret_access_key": "hidden"})
    assert "hidden" not in repr(remote)
    again = pickle.loads(pickle.dumps(remote))
    assert (again.uri, again.is_s3) == ("s3://b/clips", True)


def test_a_misspelt_option_is_refused() -> None:
    assert "go together" in complaint(lambda: Storage("s3://b", {"access_key_id": "id"}))
    assert "endpoint" in complaint(lambda: Storage("s3://b", {"endpoint": "http://x"}))


def test_no_s3_library_is_loaded_for_a_folder(tmp_path: Path) -> None:
    code = "import sys; from angio_ray.storage import Storage; list(Storage(sys.argv[1]).list()); "
    code += "print(sorted({'s3fs', 'botocore', 'fsspec', 'aiohttp', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a bucket ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def put(s3_server: S3Server, s3_bucket: str) -> Callable[[str, bytes], None]:
    client = s3_server.client()
    return lambda key, body: client.put_object(Bucket=s3_bucket, Key=key, Body=body)


@pytest.fixture
def clips(s3_proxy: S3Proxy, s3_bucket: str) -> Storage:
    return Storage(f"s3://{s3_bucket}/clips", s3_proxy.options, retry=QUICK)


BIG = os.urandom(HEAD_BYTES + 10 * MERGE_GAP_BYTES)


@pytest.fixture
def big(put: Callable[[str, bytes], None], clips: Storage, s3_proxy: S3Proxy) -> ObjectInfo:
    """One object larger than what its first request fetches."""
    put("clips/big.dcm", BIG)
    (info,) = listed(clips)
    s3_proxy.clear()
    return info


def gets(proxy: S3Proxy) -> list[str]:
    return [entry["headers"].get("Range", "whole") for entry in proxy.log() if entry["method"] == "GET"]


def test_a_prefix_is_listed_by_the_names_that_the_store_uses(put: Callable[[str, bytes], None], clips: Storage) -> None:
    odd = ["//double", "a b.dcm", "a%20b.dcm", "Müller & Söhne?.dcm", "plus+.dcm", "sub/../x", "sub/1"]
    for name in odd:
        put(f"clips/{name}", name.encode())
    for name in ("", "sub/", "sub_$folder$"):
        put(f"clips/{name}", b"")
    for name in (".DS_Store", "sub/._1", ".hidden/x", "DICOMDIR"):
        put(f"clips/{name}", b"x")
    put("clips/empty.dcm", b"")
    put("clips-of-others/x", b"x")
    found = listed(clips)
    assert {info.uri.removeprefix(f"{clips.uri}/") for info in found} == {*odd, "empty.dcm"}
    for info in found:
        assert canonical_uri(info.uri) == info.uri
        name = info.uri.removeprefix(f"{clips.uri}/")
        assert clips.open(info).read([(0, 100)]) == [b"" if name == "empty.dcm" else name.encode()]


def test_more_objects_than_one_answer_holds(
    s3_server: S3Server, s3_bucket: str, put: Callable[[str, bytes], None], clips: Storage, s3_proxy: S3Proxy
) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(f"clips/{number:05}", b"x"), range(PAGE + 3)))
    s3_proxy.unavailable(times=1, match="continuation-token")
    pages = list(clips.list())
    assert [len(page) for page in pages] == [PAGE, 3]
    assert len({info.uri for page in pages for info in page}) == PAGE + 3


def test_one_object_lists_itself(put: Callable[[str, bytes], None], s3_server: S3Server, s3_bucket: str) -> None:
    put("clips/a.dcm", b"abc")
    put("clips/a.dcm.bak", b"x")
    (info,) = listed(Storage(f"s3a://{s3_bucket}/clips/a.dcm", s3_server.options))
    assert (info.uri, info.size_bytes) == (f"s3://{s3_bucket}/clips/a.dcm", 3)


def test_only_the_bytes_asked_for_are_fetched_and_neighbours_together(
    clips: Storage, big: ObjectInfo, s3_proxy: S3Proxy
) -> None:
    source = clips.open(big)
    assert source.read([(0, 132)]) == [BIG[:132]]
    first = HEAD_BYTES + 100
    near, far = first + 10 + MERGE_GAP_BYTES, first + 6 * MERGE_GAP_BYTES
    wanted = [(far, far + 10), (first, first + 10), (near, near + 10), (HEAD_BYTES - 5, HEAD_BYTES + 5), (5, 5)]
    assert source.read(wanted) == [BIG[start:stop] for start, stop in wanted]
    assert sorted(gets(s3_proxy)) == sorted(
        [f"bytes=0-{HEAD_BYTES - 1}", f"bytes={HEAD_BYTES}-{near + 9}", f"bytes={far}-{far + 9}"]
    )
    assert source.fetched_bytes == near + 10 + 10
    assert source.read([(0, len(BIG) + 5)]) == [BIG]


def test_an_object_that_changed_since_the_listing_is_read_as_it_is_now_and_says_so(
    clips: Storage, big: ObjectInfo, put: Callable[[str, bytes], None]
) -> None:
    put("clips/big.dcm", b"quite another")
    source = clips.open(big)
    assert source.changed
    assert source.info.size_bytes == 13
    assert source.info.etag not in ("", big.etag)
    assert source.read([(6, 100)]) == [b"another"]
    put("clips/big.dcm", b"")
    assert clips.open(big).info.size_bytes == 0


def test_an_object_rewritten_while_it_is_read_is_not_mixed(
    clips: Storage, big: ObjectInfo, put: Callable[[str, bytes], None]
) -> None:
    source = clips.open(big)
    put("clips/big.dcm", BIG[::-1])
    rejected = rejection(lambda: source.read([(HEAD_BYTES, HEAD_BYTES + 10)]))
    assert (rejected.detail, rejected.transient) == ("the object changed while it was read", True)


def test_a_uri_alone_is_enough_to_read(clips: Storage, big: ObjectInfo) -> None:
    source = clips.open(big.uri)
    assert (source.info, source.changed) == (big, False)
    assert source.read([(len(BIG) - 4, len(BIG))]) == [BIG[-4:]]


def test_a_vanished_object_is_final_and_a_vanished_bucket_is_not(
    clips: Storage, big: ObjectInfo, s3_server: S3Server, s3_bucket: str, s3_proxy: S3Proxy
) -> None:
    source = clips.open(big)
    s3_server.client().delete_object(Bucket=s3_bucket, Key="clips/big.dcm")
    s3_proxy.clear()
    rejected = rejection(lambda: clips.open(big).read([(0, 1)]))
    assert (rejected.detail, rejected.transient) == (GONE, False)
    assert len(gets(s3_proxy)) == 1
    assert rejection(lambda: source.read([(HEAD_BYTES, HEAD_BYTES + 1)])).detail == GONE
    s3_server.client().delete_bucket(Bucket=s3_bucket)
    assert rejection(lambda: clips.open(big).read([(0, 1)])).transient


FAULTS: dict[str, Callable[[S3Proxy], None]] = {
    "503": lambda proxy: proxy.unavailable(times=2),
    "500": lambda proxy: proxy.answer(500, code="InternalError", times=2),
    "reset": lambda proxy: proxy.reset(times=2),
    "cut": lambda proxy: proxy.cut(times=2),
    "slow": lambda proxy: proxy.delay(0.5, times=2),
    "silent": lambda proxy: proxy.delay(3.0, times=1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_survived(fault: str, clips: Storage, big: ObjectInfo, s3_proxy: S3Proxy) -> None:
    FAULTS[fault](s3_proxy)
    assert clips.open(big).read([(0, len(BIG))]) == [BIG]
    assert sum(entry["fault"] is not None for entry in s3_proxy.log()) >= 1


def test_a_lasting_fault_ends_in_a_reason_with_numbers_only(clips: Storage, big: ObjectInfo, s3_proxy: S3Proxy) -> None:
    source = clips.open(big)
    s3_proxy.unavailable()
    rejected = rejection(lambda: source.read([(0, len(BIG))]))
    assert (rejected.detail, rejected.transient) == ("HTTP status 503 after 3 tries", True)
    assert rejection(lambda: clips.open(big).read([(0, 1)])).detail == "HTTP status 503 after 3 tries"
    s3_proxy.clear()
    s3_proxy.reset()
    assert rejection(lambda: clips.open(big).read([(0, 1)])).detail == "no connection after 3 tries"
    s3_proxy.clear()
    assert clips.open(big).read([(0, 4)]) == [BIG[:4]]


def test_an_object_has_a_deadline_of_its_own(clips: Storage, big: ObjectInfo, s3_proxy: S3Proxy) -> None:
    impatient = Storage(clips.uri, s3_proxy.options, retry=RetryPolicy(read_s=30, total_s=4.0))
    impatient.open(big).read([(0, 1)])
    s3_proxy.delay(30)
    begin = time.monotonic()
    rejected = rejection(lambda: impatient.open(big).read([(0, 1)]))
    assert (rejected.detail, rejected.transient) == ("not read within 4 s", True)
    assert time.monotonic() - begin < 20


def test_revoked_credentials_are_said_at_once(clips: Storage, big: ObjectInfo, s3_proxy: S3Proxy) -> None:
    source = clips.open(big)
    s3_proxy.deny()
    rejected = rejection(lambda: source.read([(0, len(BIG))]))
    assert (rejected.detail, rejected.transient) == ("access denied", True)
    assert rejection(lambda: clips.open(big).read([(0, 1)])).detail == "access denied"
    assert len(s3_proxy.log()) == 3  # the first open, and one for each refusal: no retries
    assert "access denied" in complaint(lambda: listed(clips))


def test_an_expired_token_is_a_denial_and_no_bad_request(clips: Storage, big: ObjectInfo, s3_proxy: S3Proxy) -> None:
    s3_proxy.answer(400, code="ExpiredToken")
    assert rejection(lambda: clips.open(big).read([(0, 1)])).detail == "access denied"


def test_small_objects_of_a_bucket(clips: Storage, s3_proxy: S3Proxy) -> None:
    clips.probe_write()
    name = clips.child("a b%20.json")
    s3_proxy.unavailable(times=1)
    clips.write_bytes(name, b"1")
    assert clips.read_bytes(name) == b"1"
    assert names(clips) == ["a b%20.json"]
    for _ in range(2):
        clips.delete(name)
        with pytest.raises(FileNotFoundError):
            clips.read_bytes(name)


def test_a_place_that_cannot_be_used_is_said_in_one_line(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such bucket" in complaint(Storage("s3://no-such-bucket-here", s3_server.options, retry=QUICK).probe)
    nobody = {**s3_server.options, "endpoint_url": "http://127.0.0.1:9"}
    assert "no connection" in complaint(Storage(f"s3://{s3_bucket}", nobody, retry=QUICK).probe)
    endpoint = {"endpoint_url": s3_server.endpoint}
    unknown = Storage(f"s3://{s3_bucket}", endpoint, retry=QUICK)
    assert "no credentials" in complaint(unknown.probe)
    assert "no credentials" in complaint(unknown.delta_options)
    profile = Storage(f"s3://{s3_bucket}", {**endpoint, "profile": "absent"}, retry=QUICK)
    assert "profile (absent)" in complaint(profile.probe)
    assert "profile (absent)" in complaint(profile.delta_options)
    strict = Storage(f"s3://{s3_bucket}", {**s3_server.options, "allow_http": "false"}, retry=QUICK)
    assert "not encrypted" in complaint(strict.probe)
    assert "not encrypted" in complaint(strict.delta_options)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    assert "http://" in complaint(Storage(f"s3://{s3_bucket}", retry=QUICK).probe)


def test_threads_share_one_storage(clips: Storage, big: ObjectInfo) -> None:
    ranges = [(start, start + 5000) for start in range(HEAD_BYTES, len(BIG) - 5000, 40000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda span: clips.open(big).read([span])[0], ranges))
    assert found == [BIG[start:stop] for start, stop in ranges]


# --- one set of options for s3fs and delta-rs -------------------------------------------------------------------------


def commit(number: int) -> CommitProperties:
    return CommitProperties(app_transactions=[Transaction("run", number)], custom_metadata={"driver": "me"})


@pytest.fixture
def table(s3_proxy: S3Proxy, s3_bucket: str) -> Iterator[DeltaTable]:
    """A table with one committed row, its handle open; faults that a test asks for come after."""
    storage = Storage(f"s3://{s3_bucket}/tables", s3_proxy.options)
    schema = deltalake.Schema.from_arrow(pa.schema([("key", pa.int64())]))
    handle = DeltaTable.create(storage.delta_uri("scores"), schema, storage_options=storage.delta_options())
    append(handle, 1)
    s3_proxy.clear()
    yield handle
    s3_proxy.clear()


def append(handle: DeltaTable, number: int) -> None:
    write_deltalake(handle, pa.table({"key": [number]}), mode="append", commit_properties=commit(number))


def state(proxy: S3Proxy, handle: DeltaTable) -> tuple[list[int], int | None]:
    """The rows' keys and the run's transaction, read afresh."""
    proxy.clear()
    fresh = DeltaTable(handle.table_uri, storage_options=handle._storage_options)
    return sorted(fresh.to_pyarrow_table()["key"].to_pylist()), fresh.transaction_version("run")


def test_delta_rs_creates_appends_and_reads_with_our_options(s3_proxy: S3Proxy, table: DeltaTable) -> None:
    append(table, 2)
    commits = [entry for entry in s3_proxy.log() if entry["method"] == "PUT" and "_delta_log" in entry["path"]]
    assert [entry["headers"]["if-none-match"] for entry in commits] == ["*"]
    assert state(s3_proxy, table) == ([1, 2], 2)


def test_tables_below_the_clips_are_no_clips(s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path) -> None:
    for storage in (Storage(tmp_path), Storage(f"s3://{s3_bucket}", s3_proxy.options)):
        for name in ("A.dcm", "t/z.dcm", "tables.dcm", "z.dcm"):
            storage.write_bytes(storage.child(name), b"x")
        for table in ("t", "tables"):
            where = storage.delta_uri(table, "scores")
            write_deltalake(
                where, pa.table({"k": [1], "v": [1]}), partition_by=["k"], storage_options=storage.delta_options()
            )
        assert names(storage) == ["A.dcm", "t/z.dcm", "tables.dcm", "z.dcm"]


def test_only_what_is_no_clip_by_its_name_is_left_out(s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path) -> None:
    kept = [".b.dcm", "DICOMDIR.d/a", "a.part", "p_delta_log/readme.txt", "patient7/a.dcm"]
    left = [".snapshot/a.dcm", "._a.dcm", "labels.parquet", "patient7/DICOMDIR", "tables.key", "patient7/a.truth.npz"]
    left += [".a.dcm.part", ".0123abcd.tmp", "phantom.json"]
    for storage in (Storage(tmp_path), Storage(f"s3://{s3_bucket}", s3_proxy.options)):
        for name in (*kept, *left):
            storage_uri = storage.child(*name.split("/"))
            if not storage.is_s3:
                (tmp_path / name).parent.mkdir(exist_ok=True)
            storage.write_bytes(storage_uri, b"x")
        assert sorted(names(storage)) == kept


def test_a_folder_needs_no_options_and_odd_names_are_no_trouble(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "a b%é#?")
    assert storage.delta_options() == {}
    write_deltalake(storage.delta_uri("scores"), pa.table({"key": [1]}))
    assert (tmp_path / "a b%é#?" / "scores" / "_delta_log").is_dir()
    assert DeltaTable(storage.delta_uri("scores")).to_pyarrow_table().num_rows == 1
    assert "%20" in complaint(lambda: Storage(tmp_path / "a%20b").delta_uri("scores"))  # delta-rs mistakes it


# What delta-rs makes of a fault of its commit. The tables' fence is built on these answers: an update of delta-rs that
# changes them must be seen here first.


def test_a_commit_that_meets_503_is_tried_again(s3_proxy: S3Proxy, table: DeltaTable) -> None:
    s3_proxy.unavailable(times=3, method="PUT", match=COMMIT)
    append(table, 2)
    assert state(s3_proxy, table) == ([1, 2], 2)


def test_a_commit_whose_reply_is_lost_is_an_os_error_and_in_the_table(s3_proxy: S3Proxy, table: DeltaTable) -> None:
    s3_proxy.drop_reply(match=COMMIT)
    with pytest.raises(OSError, match="error sending request"):
        append(table, 2)
    assert [entry["fault"] for entry in s3_proxy.log() if entry["fault"]] == ["drop_reply"]
    assert table.version() == 1
    assert state(s3_proxy, table) == ([1, 2], 2)


def test_a_commit_that_never_arrived_is_the_same_os_error_and_not_in_the_table(
    s3_proxy: S3Proxy, table: DeltaTable
) -> None:
    s3_proxy.reset(times=1, method="PUT", match=COMMIT)
    with pytest.raises(OSError, match="error sending request"):
        append(table, 2)
    assert state(s3_proxy, table) == ([1], 1)


@pytest.mark.parametrize("status", [500, 503])
def test_a_commit_done_but_answered_with_an_error_is_taken_for_a_twins(
    status: int, s3_proxy: S3Proxy, table: DeltaTable
) -> None:
    s3_proxy.spoil_reply(status, match=COMMIT)
    with pytest.raises(CommitFailedError, match="Concurrent transaction"):
        append(table, 2)
    assert state(s3_proxy, table) == ([1, 2], 2)


def test_a_lost_reply_of_a_data_file_is_tried_again(s3_proxy: S3Proxy, table: DeltaTable) -> None:
    s3_proxy.drop_reply(match=r"\.parquet")
    append(table, 2)
    assert state(s3_proxy, table) == ([1, 2], 2)


def write_aws_files(folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, credentials: str = "") -> None:
    (folder / "config").write_text(config)
    (folder / "credentials").write_text(credentials)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))


def signers(proxy: S3Proxy) -> set[str]:
    """Access key, day and region that signed the requests."""
    found = set()
    for entry in proxy.log():
        headers = {name.lower(): value for name, value in entry["headers"].items()}
        key, _, region = headers["authorization"].split("Credential=")[1].split("/")[:3]
        found.add(f"{key} {region} {headers.get('x-amz-security-token', '')}".strip())
    return found


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_profile_serves_listing_and_tables_alike(
    how: str, s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_aws_files(
        tmp_path,
        monkeypatch,
        f"[profile cathlab]\nregion = eu-north-1\nendpoint_url = {s3_proxy.endpoint}\n",
        "[cathlab]\naws_access_key_id = PROFILEKEY\naws_secret_access_key = x\naws_session_token = TOKEN\n",
    )
    if how == "environment":
        monkeypatch.setenv("AWS_PROFILE", "cathlab")
    else:  # keys of the environment must not be mixed into the profile's
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "OTHERTOKEN")
    storage = Storage(f"s3://{s3_bucket}/tables", {"profile": "cathlab"} if how == "option" else None)
    write_deltalake(storage.delta_uri("t"), pa.table({"key": [1]}), storage_options=storage.delta_options())
    storage.write_bytes(storage.child("x"), b"")
    assert names(storage) == ["x"]
    assert signers(s3_proxy) == {"PROFILEKEY eu-north-1 TOKEN"}


def test_a_token_of_the_environment_is_not_added_to_other_keys(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "OTHERTOKEN")
    storage = Storage(f"s3://{s3_bucket}/tables", s3_server.options)
    storage.probe()
    assert "AWS_SESSION_TOKEN" in complaint(storage.delta_options)


def test_the_environment_is_enough(s3_proxy: S3Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_proxy.env.items():
        monkeypatch.setenv(name, value)
    storage = Storage(f"s3://{s3_bucket}/tables")
    write_deltalake(storage.delta_uri("t"), pa.table({"key": [1]}), storage_options=storage.delta_options())
    storage.write_bytes(storage.child("x"), b"")
    assert names(storage) == ["x"]
    assert signers(s3_proxy) == {"angio us-east-1"}


def test_credentials_that_end_are_fetched_anew_for_the_tables_too(
    s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "give.py").write_text(
        "import datetime, json, pathlib\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "number = int(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text(str(number))\n"
        "end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'KEY{number}', 'SecretAccessKey': 'x',\n"
        "                  'SessionToken': f'TOKEN{number}', 'Expiration': end.isoformat()}))\n"
    )
    write_aws_files(tmp_path, monkeypatch, f"[default]\ncredential_process = {sys.executable} {tmp_path / 'give.py'}\n")
    storage = Storage(f"s3://{s3_bucket}/tables", {"endpoint_url": s3_proxy.endpoint})
    first, second = storage.delta_options(), storage.delta_options()
    for options in (first, second):
        assert options["AWS_SESSION_TOKEN"] == options["AWS_ACCESS_KEY_ID"].replace("KEY", "TOKEN")
    assert first != second
    storage.probe()
    (signer,) = signers(s3_proxy)
    assert signer.startswith("KEY")
