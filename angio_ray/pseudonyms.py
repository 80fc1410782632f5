"""Pseudonyms: keyed hashes in place of patient, study, clip and object names, and who counts as one patient.

Result tables and logs carry nothing else. Knows nothing of files in DICOM format, tables or the cluster: it is handed
values and a key, and only the driver reads the key.

The hash (stable: tables of years depend on it):

    hash(kind, value) = HMAC-SHA-256(key, "angio_ray" NUL kind NUL value in UTF-8), its first 32 hex digits (128 bits)

`kind` separates the domains, so that a study and a patient of the same text do not share a pseudonym. 128 bits: the
chance that two of 10 million clips collide is below 1e-24. Without the key the hash of a known patient number cannot
be computed, which a plain SHA-256 would allow (patient numbers are few: all of them can be tried).
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from angio_ray.clip import ClipHeader
from angio_ray.storage import canonical_uri

_LOG = logging.getLogger(__name__)

KEY_FILE_VARIABLE = "ANGIO_RAY_KEY_FILE"
"""Environment variable that names the key file (a mounted Secret on a cluster)."""

_MIN_KEY_BYTES = 16
_HOW_TO = "make one with `openssl rand -hex 32 > FILE; chmod 600 FILE`"


class PseudonymKeyError(ValueError):
    """The key is missing, unreadable or not a key. One line, and never the key itself."""


class KeyMissing(PseudonymKeyError):
    """No key was named, or the named file does not exist."""


class PatientMapError(ValueError):
    """The patient map cannot be used. One line with a line number, and never an id."""


class PseudonymKey:
    """The secret of one table root. Its repr and its str show the fingerprint only."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        """`secret`: at least 16 bytes."""
        if len(secret) < _MIN_KEY_BYTES:
            raise PseudonymKeyError(
                f"a pseudonym key has {_MIN_KEY_BYTES} bytes at least, not {len(secret)}: {_HOW_TO}"
            )
        self._secret = bytes(secret)

    def __reduce__(self) -> tuple[type[PseudonymKey], tuple[bytes]]:
        return PseudonymKey, (self._secret,)

    def __repr__(self) -> str:
        return f"PseudonymKey(fingerprint={self.fingerprint!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PseudonymKey) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell keys apart and give nothing away; a table root keeps it."""
        return self.hash("fingerprint", "key")[:16]

    def hash(self, kind: str, value: str) -> str:
        """The pseudonym of `value` among its `kind`: 32 hex digits. See the module's docstring for the definition."""
        # surrogatepass: a header may hold text that is not valid Unicode, and it still needs a pseudonym
        message = b"\0".join((b"angio_ray", kind.encode(), value.encode("utf-8", "surrogatepass")))
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:32]

    def object_id(self, uri: str) -> str:
        """Of an object's URI, in any spelling: known before a byte is read."""
        return self.hash("object", canonical_uri(uri))

    def clip_id(self, sop_instance_uid: str) -> str:
        """Of a SOPInstanceUID: the same clip under two URIs has one clip_id."""
        return self.hash("clip", _plain(sop_instance_uid))

    def study_id(self, study_instance_uid: str) -> str:
        """Of a StudyInstanceUID."""
        return self.hash("study", _plain(study_instance_uid))

    def patient_id(self, issuer: str | None, patient_id: str) -> str:
        """Of IssuerOfPatientID (None and empty are one) and PatientID: the same number of two issuers is two people."""
        return self.hash("patient", json.dumps(["id", _plain(issuer), _plain(patient_id)]))

    def patient_of_study(self, study_instance_uid: str) -> str:
        """A stand-in patient for a study whose PatientID says nothing: never equal to a pseudonym of a PatientID."""
        return self.hash("patient", json.dumps(["study", _plain(study_instance_uid)]))

    def patient_of_person(self, person: str) -> str:
        """Of a person named by a patient map."""
        return self.hash("patient", json.dumps(["person", person.strip()]))


def load_key(path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] | None = None) -> PseudonymKey:
    """The key in the file `path`, else in the one that ANGIO_RAY_KEY_FILE names (hex digits, at least 32 of them).

    Raises KeyMissing where no file is named or it does not exist, PseudonymKeyError where it holds no key.
    """
    named = path or (os.environ if env is None else env).get(KEY_FILE_VARIABLE)
    if not named:
        raise KeyMissing(f"no pseudonym key: name its file with --key-file or {KEY_FILE_VARIABLE} ({_HOW_TO})")
    file = Path(named)
    try:
        text = file.read_bytes().strip()
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise KeyMissing(f"there is no pseudonym key file {file}: {_HOW_TO}") from None
    except OSError as error:
        raise PseudonymKeyError(f"the pseudonym key file {file} cannot be read: {error.strerror}") from None
    if not re.fullmatch(rb"(?:[0-9a-fA-F]{2}){16,}", text):
        raise PseudonymKeyError(f"{file} holds no pseudonym key (32 or more hex digits): {_HOW_TO}")
    if stat.S_IMODE(mode) & 0o007:  # a Secret of Kubernetes is always readable by its group
        _LOG.warning("the pseudonym key file %s can be read by everybody: chmod 600", file)
    return PseudonymKey(bytes.fromhex(text.decode("ascii")))


def generate_key(path: str | os.PathLike[str]) -> PseudonymKey:
    """Write a new random key of 32 bytes to `path` (hex, mode 600) and return it.

    Never overwrites: whoever loses the key loses the way from results to patients. The file appears whole or not at
    all, so that of two processes one wins and the other gets PseudonymKeyError (then `load_key` gives the winner's).
    """
    file = Path(path)
    secret = secrets.token_bytes(32)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as opened:
                opened.write(secret.hex() + "\n")
                opened.flush()
                os.fsync(opened.fileno())
            os.link(temporary, file)  # unlike a rename it fails where the name is taken
        finally:
            os.unlink(temporary)
    except FileExistsError:
        raise PseudonymKeyError(f"{file} exists already: a pseudonym key is never overwritten") from None
    except OSError as error:
        raise PseudonymKeyError(f"the pseudonym key file {file} cannot be written: {error.strerror}") from None
    return PseudonymKey(secret)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose clip it is, by pseudonym."""

    patient_id: str | None
    """None where neither PatientID nor StudyInstanceUID says anything."""
    study_id: str | None
    flag: str | None
    """Why patient_id is not of the PatientID: no_id | placeholder_id | conflicting_id; None where it is (or mapped)."""


class PatientMap:
    """Which ids are one person: the join across sites that no header can give.

    A CSV file (UTF-8, comma or semicolon) with the columns issuer, patient_id, person. An empty issuer stands for
    objects without IssuerOfPatientID. `person` is any text; it is hashed like everything else.
    """

    def __init__(self, persons: Mapping[tuple[str, str], str]) -> None:
        self._persons = {(_plain(issuer), _plain(number)): person for (issuer, number), person in persons.items()}

    def __len__(self) -> int:
        return len(self._persons)

    def person(self, issuer: str | None, patient_id: str | None) -> str | None:
        """The person of an id, None where the map does not say."""
        return self._persons.get((_plain(issuer), _plain(patient_id)))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PatientMap:
        """Read the CSV file. PatientMapError where it is missing, lacks a column or contradicts itself."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise PatientMapError(f"the patient map {file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise PatientMapError(f"the patient map {file} is not UTF-8 text") from None
        lines = text.splitlines()
        reader = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",", skipinitialspace=True)
        missing = {"issuer", "patient_id", "person"} - set(reader.fieldnames or ())
        if missing:
            raise PatientMapError(f"the patient map {file} lacks the column {', '.join(sorted(missing))}")
        persons: dict[tuple[str, str], str] = {}
        for row in reader:
            name = (_plain(row["issuer"]), _plain(row["patient_id"]))
            person = (row["person"] or "").strip()
            if not name[1] or not person:
                raise PatientMapError(f"the patient map {file} has an empty cell in line {reader.line_num}")
            if persons.setdefault(name, person) != person:
                raise PatientMapError(f"the patient map {file} gives one id to two persons in line {reader.line_num}")
        return cls(persons)


class PatientIdentity:
    """Says whose clip each header is, and never merges two people under a number that names nobody.

    A PatientID that is empty or a placeholder (zeros, ANON, UNKNOWN ...), or that stands for people of different
    birth dates or sexes, falls back to the study and is flagged. A patient map has the last word.

    A conflict shows only when the second person is seen: rows given out before carry the merged id. Where that
    matters, `observe` all headers first (the `clips` table of an earlier `index` has them), then `identify`.
    """

    def __init__(self, key: PseudonymKey, patient_map: PatientMap | None = None) -> None:
        self._key = key
        self._map = patient_map
        self._birth_dates: dict[tuple[str, str], str] = {}
        self._sexes: dict[tuple[str, str], str] = {}
        self._conflicting: set[tuple[str, str]] = set()

    @property
    def num_conflicting(self) -> int:
        """How many ids stood for several people so far."""
        return len(self._conflicting)

    def observe(self, header: ClipHeader) -> None:
        """Remember birth date and sex of the header's PatientID."""
        name = (_plain(header.issuer_of_patient_id), _plain(header.dicom_patient_id))
        if not name[1]:
            return
        birth_date, sex = _plain(header.patient_birth_date), _plain(header.patient_sex).upper()
        if re.fullmatch(r"\d{8}", birth_date) and birth_date[:4] not in _PLACEHOLDER_YEARS:
            self._compare(self._birth_dates, name, birth_date)
        if sex in ("M", "F"):  # O and empty contradict nothing
            self._compare(self._sexes, name, sex)

    def identify(self, header: ClipHeader) -> Identity:
        """The pseudonyms of a header's patient and study (and observe it)."""
        self.observe(header)
        study_uid = _plain(header.study_instance_uid)
        study_id = self._key.study_id(study_uid) if study_uid else None
        issuer, number = _plain(header.issuer_of_patient_id), _plain(header.dicom_patient_id)
        person = self._map.person(issuer, number) if self._map is not None else None
        if person is not None:
            return Identity(self._key.patient_of_person(person), study_id, None)
        if not number:
            flag = "no_id"
        elif is_placeholder(number):
            flag = "placeholder_id"
        elif (issuer, number) in self._conflicting:
            flag = "conflicting_id"
        else:
            return Identity(self._key.patient_id(issuer, number), study_id, None)
        return Identity(self._key.patient_of_study(study_uid) if study_uid else None, study_id, flag)

    def _compare(self, known: dict[tuple[str, str], str], name: tuple[str, str], value: str) -> None:
        if known.setdefault(name, value) != value:
            self._conflicting.add(name)


_PLACEHOLDER_YEARS = ("0000", "0001", "1800", "1900", "9999")
_PLACEHOLDER = re.compile(
    r"""0+ | X+ | 9{4,} | (ANON(YM(OUS|I[SZ]ED)?)?)+ | DEIDENTIFIED | (UNKNOWN)+ | UNK | NONE | NULL | NA | NAN | NIL
      | NOID | NONAME | NOTAVAILABLE | REMOVED | REDACTED | DELETED | EMPTY | DUMMY | TEST | PATIENT | PATIENTID | ID |""",
    re.VERBOSE,
)


def is_placeholder(patient_id: str) -> bool:
    """Whether a PatientID names nobody: zeros, ANON, UNKNOWN, N/A ... (case, marks ignored). ANON0001 is somebody's number."""
    return _PLACEHOLDER.fullmatch(re.sub(r"[\W_]+", "", patient_id).upper()) is not None


def _plain(value: str | None) -> str:
    """Without the padding that DICOM adds (PS3.5 6.2: spaces around LO are insignificant, UIDs end in NUL)."""
    return (value or "").strip(" \0\t\r\n")
