"""Pseudonyms: hashes that never change, keys that never leak or get lost, and people that are never merged."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import stat
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from angio_ray.clip import ClipHeader
from angio_ray.pseudonyms import (
    KEY_FILE_VARIABLE,
    KeyMissing,
    PatientIdentity,
    PatientMap,
    PatientMapError,
    PseudonymKey,
    PseudonymKeyError,
    generate_key,
    is_placeholder,
    load_key,
)

KEY = PseudonymKey(bytes(range(32)))


def header(number: str | None, *, issuer: str | None = None, study: str | None = "1.2.3", born: str | None = None,
           sex: str | None = None) -> ClipHeader:  # fmt: skip
    return ClipHeader(
        dicom_patient_id=number,
        issuer_of_patient_id=issuer,
        study_instance_uid=study,
        patient_birth_date=born,
        patient_sex=sex,
    )


# --- hashes -----------------------------------------------------------------------------------------------------------


def test_the_hash_is_the_documented_one() -> None:
    message = b"angio_ray\0study\x001.2.840.1"
    assert KEY.study_id("1.2.840.1") == hmac.new(bytes(range(32)), message, hashlib.sha256).hexdigest()[:32]


def test_hashes_of_earlier_releases_hold() -> None:
    """Tables of years are joined by these: a change here breaks every one of them."""
    assert KEY.fingerprint == "d0e9642a08509808"
    assert KEY.object_id("s3a://b/clips/a.dcm") == "b8fd96e595e0d4614205b5ee2c9a70a1"
    assert KEY.clip_id("1.2.3") == "e8cbcf14a5159aa76290edf14c1d6e06"
    assert KEY.patient_id("SITE-A", "0042") == "b222702505947176b403a2ae4d9e9047"
    assert KEY.patient_of_study("1.2.3") == "5fa87a2c1e7e5cd2ff06fcfd22edce8c"
    assert KEY.patient_of_person("person 1") == "991c19489b300223e8c79343c396dfdd"


def test_kinds_and_parts_do_not_run_into_each_other() -> None:
    ids = [
        KEY.clip_id("1.2"),
        KEY.study_id("1.2"),
        KEY.patient_id(None, "1.2"),
        KEY.patient_id("1.2", ""),
        KEY.patient_id("1", ".2"),
        KEY.patient_of_study("1.2"),
        KEY.patient_of_person("1.2"),
        KEY.object_id("/1.2"),
        PseudonymKey(bytes(32)).clip_id("1.2"),
    ]
    assert len(set(ids)) == len(ids)
    assert all(len(value) == 32 and int(value, 16) >= 0 for value in ids)


def test_the_padding_of_dicom_does_not_matter() -> None:
    assert KEY.clip_id("1.2.3\0") == KEY.clip_id("1.2.3")
    assert KEY.patient_id(" SITE ", "0042 ") == KEY.patient_id("SITE", "0042")
    assert KEY.patient_id("", "0042") == KEY.patient_id(None, "0042")
    assert KEY.patient_id(None, "42") != KEY.patient_id(None, "0042")


def test_an_object_has_one_id_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.dcm").touch()
    (tmp_path / "link").symlink_to("a b.dcm")
    spellings = ["a b.dcm", "./x/../a b.dcm", "link", str(tmp_path / "a b.dcm"), f"file://{tmp_path}/a%20b.dcm"]
    assert len({KEY.object_id(spelling) for spelling in spellings}) == 1
    assert KEY.object_id("s3://b/k") == KEY.object_id("s3a://b/k") != KEY.object_id("s3://b//k")


def test_any_text_of_a_header_has_a_pseudonym() -> None:
    assert KEY.patient_id(None, "M\udcfcller") != KEY.patient_id(None, "Müller")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_new_key_is_private_and_comes_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    key = generate_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]
    assert load_key(path) == key
    assert load_key(env={KEY_FILE_VARIABLE: str(path)}) == key
    assert generate_key(tmp_path / "other") != key


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "key")
    with pytest.raises(PseudonymKeyError, match="never overwritten"):
        generate_key(tmp_path / "key")
    assert load_key(tmp_path / "key") == key


def test_of_many_that_generate_at_once_one_wins(tmp_path: Path) -> None:
    def attempt(_: int) -> PseudonymKey | None:
        try:
            return generate_key(tmp_path / "key")
        except PseudonymKeyError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [key for key in pool.map(attempt, range(16)) if key is not None]
    assert made == [load_key(tmp_path / "key")]


def missing(folder: Path) -> None:
    load_key(folder / "absent")


def unnamed(folder: Path) -> None:
    load_key(env={})


def no_key(folder: Path) -> None:
    (folder / "key").write_text("correct horse battery staple")
    load_key(folder / "key")


def too_short(folder: Path) -> None:
    (folder / "key").write_text("00" * 15)
    load_key(folder / "key")


def odd(folder: Path) -> None:
    (folder / "key").write_text("0" * 65)
    load_key(folder / "key")


def empty(folder: Path) -> None:
    (folder / "key").write_text("")
    load_key(folder / "key")


def a_folder(folder: Path) -> None:
    load_key(folder)


def nowhere_to_write(folder: Path) -> None:
    (folder / "file").touch()
    generate_key(folder / "file" / "key")


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (missing, KeyMissing),
        (unnamed, KeyMissing),
        (no_key, PseudonymKeyError),
        (too_short, PseudonymKeyError),
        (odd, PseudonymKeyError),
        (empty, PseudonymKeyError),
        (a_folder, PseudonymKeyError),
        (nowhere_to_write, PseudonymKeyError),
    ],
)
def test_what_is_wrong_with_a_key_is_one_line_without_the_key(
    act: Callable[[Path], None], kind: type[PseudonymKeyError], tmp_path: Path
) -> None:
    with pytest.raises(PseudonymKeyError) as caught:
        act(tmp_path)
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "horse" not in "".join(traceback.format_exception(caught.value))


def test_a_key_that_others_can_read_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = generate_key(tmp_path / "key")
    assert not caplog.records
    os.chmod(tmp_path / "key", 0o644)
    assert load_key(tmp_path / "key") == key
    assert "chmod 600" in caplog.text


def test_a_key_travels_to_workers_but_shows_only_its_fingerprint(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "key")
    secret = (tmp_path / "key").read_text().strip()
    assert pickle.loads(pickle.dumps(key)) == key
    for shown in (repr(key), str(key), f"{key}", repr({"key": key})):
        assert key.fingerprint in shown
        assert secret not in shown
        assert repr(bytes.fromhex(secret)) not in shown
    assert len(key.fingerprint) == 16
    assert not hasattr(key, "__dict__")
    with pytest.raises(PseudonymKeyError):
        PseudonymKey(b"short")


# --- who is one patient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    ["0", "0000000", "000-00-0000", "ANON", "anonymous", "Anonymized", "ANON^ANON", "UNKNOWN", "unk", "N/A",
     "none", "XXXXX", "99999999", "DEIDENTIFIED", "DE-IDENTIFIED", "NO ID", "---", "...", "Removed"],
)  # fmt: skip
def test_a_placeholder_names_nobody(number: str) -> None:
    assert is_placeholder(number)
    identity = PatientIdentity(KEY).identify(header(number))
    assert identity.patient_id == KEY.patient_of_study("1.2.3")
    assert identity.study_id == KEY.study_id("1.2.3")
    assert identity.flag == "placeholder_id"


@pytest.mark.parametrize(
    "number", ["42", "0042", "7", "999", "P-0001", "X1", "ANON0001", "Nathan1", "PHANTOM-0001", "A0000", "ID77"]
)
def test_a_number_that_names_somebody_is_no_placeholder(number: str) -> None:
    assert not is_placeholder(number)
    identity = PatientIdentity(KEY).identify(header(number, issuer="SITE"))
    assert (identity.patient_id, identity.flag) == (KEY.patient_id("SITE", number), None)


@pytest.mark.parametrize("number", [None, "", "  ", "\0"])
def test_without_an_id_the_study_stands_for_the_patient(number: str | None) -> None:
    people = PatientIdentity(KEY)
    first, second = (people.identify(header(number, study=study)) for study in ("1.2.3", "1.2.4"))
    assert first.flag == second.flag == "no_id"
    assert first.patient_id != second.patient_id
    nobody = people.identify(header(number, study=None))
    assert (nobody.patient_id, nobody.study_id, nobody.flag) == (None, None, "no_id")


def test_studies_of_one_id_are_one_patient_and_issuers_are_two() -> None:
    people = PatientIdentity(KEY)
    a = people.identify(header("42", issuer="A", study="1.1", born="19500101", sex="M"))
    again = people.identify(header("42", issuer="A", study="1.2", born="19500101", sex="M"))
    b = people.identify(header("42", issuer="B", study="1.3", born="19710202", sex="F"))
    assert a.patient_id == again.patient_id != b.patient_id
    assert (a.flag, b.flag, people.num_conflicting) == (None, None, 0)


@pytest.mark.parametrize(
    ("first", "second"),
    [({"born": "19500101"}, {"born": "19710202"}), ({"sex": "M"}, {"sex": "F"})],
    ids=["birth date", "sex"],
)
def test_an_id_of_two_people_merges_nobody(first: dict[str, str], second: dict[str, str]) -> None:
    people = PatientIdentity(KEY)
    one, two = header("42", study="1.1", **first), header("42", study="1.2", **second)
    people.observe(one)
    people.observe(two)
    identities = [people.identify(clip) for clip in (one, two)]
    assert [identity.flag for identity in identities] == ["conflicting_id"] * 2
    assert [identity.patient_id for identity in identities] == [
        KEY.patient_of_study("1.1"),
        KEY.patient_of_study("1.2"),
    ]
    assert people.num_conflicting == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"born": "19500101"}, {"born": None}),
        ({"born": "19500101"}, {"born": "19000101"}),
        ({"born": "19500101"}, {"born": "1950"}),
        ({"sex": "M"}, {"sex": "O"}),
        ({"sex": "M"}, {"sex": "m "}),
        ({"sex": "F"}, {"sex": None}),
    ],
)
def test_what_is_not_known_contradicts_nothing(first: dict[str, str | None], second: dict[str, str | None]) -> None:
    people = PatientIdentity(KEY)
    ids = {people.identify(header("42", **facts)).patient_id for facts in (first, second, first)}
    assert ids == {KEY.patient_id(None, "42")}


def test_a_patient_map_joins_sites_and_has_the_last_word(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("\ufeffissuer,patient_id,person,note\nA,0042,p1,x\nB,77,p1,\n,ANON,p2,\n", encoding="utf-8")
    people = PatientIdentity(KEY, PatientMap.read(path))
    a, b = (people.identify(header(number, issuer=site)) for site, number in (("A", "0042"), ("B", "77 ")))
    assert a.patient_id == b.patient_id == KEY.patient_of_person("p1")
    anonymous = people.identify(header("ANON"))
    assert (anonymous.patient_id, anonymous.flag) == (KEY.patient_of_person("p2"), None)
    assert people.identify(header("0042", issuer="B")).patient_id == KEY.patient_id("B", "0042")


def test_a_patient_map_from_a_spreadsheet_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_bytes(b"person;issuer;patient_id\r\np1;A;1\r\np1;A;1\r\n")
    assert PatientMap.read(path).person("A", "1") == "p1"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("issuer,patient_id\nA,SECRET7\n", "lacks the column person"),
        ("", "lacks the column issuer, patient_id, person"),
        ("issuer,patient_id,person\nA,SECRET7,p1\nA,SECRET7,p2\n", "line 3"),
        ("issuer,patient_id,person\nA,SECRET7,\n", "line 2"),
        ("issuer,patient_id,person\nA,,p1\n", "line 2"),
        ("issuer,patient_id,person\nSECRET7\n", "line 2"),
    ],
)
def test_a_patient_map_that_cannot_be_meant_is_refused_without_naming_anybody(
    text: str, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(PatientMapError, match=complaint) as caught:
        PatientMap.read(tmp_path / "map.csv")
    assert len(str(caught.value).splitlines()) == 1
    assert "SECRET7" not in str(caught.value)


def test_a_patient_map_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatientMapError, match="No such file"):
        PatientMap.read(tmp_path / "absent.csv")
    (tmp_path / "map.csv").write_bytes(b"issuer,patient_id,person\nA,1,M\xfcller\n")
    with pytest.raises(PatientMapError, match="UTF-8"):
        PatientMap.read(tmp_path / "map.csv")
