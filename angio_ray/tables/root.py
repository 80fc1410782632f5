"""Where the tables lie, how they are made, and which key their pseudonyms belong to.

Result tables (`scores`, `runs`, those of training) lie under one root; `clips` and `manifests` hold URIs and original
identifiers and may lie under another. Knows nothing of runs, rows or SQL.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError

from angio_ray.tables.schema import SCORING, arrow_schema, declaration, delta_json

logger = logging.getLogger(__name__)

IDENTIFIED = frozenset({"clips", "manifests"})
"""Tables that hold URIs or original identifiers."""

_FINGERPRINT = "angio_ray.key_fingerprint"


STORE_ERRORS = (DeltaError, OSError)
"""Errors of delta-rs, and those of the store below it."""


class TablesError(ValueError):
    """The tables cannot be used as they are: one clear line for the user."""


class KeyMismatch(TablesError):
    """The tables were made with another pseudonym key."""


class Place(Protocol):
    """What this package needs of `angio_ray.storage.Storage`."""

    def delta_uri(self, *parts: str) -> str:
        """URI of a table below this place."""

    def delta_options(self) -> dict[str, str]:
        """Current `storage_options` for delta-rs."""


class TableRoot:
    """The tables of a project."""

    def __init__(self, root: Place, clips_root: Place | None = None) -> None:
        self._root = root
        self._clips_root = clips_root or root

    def uri(self, table: str) -> str:
        """Where the table lies."""
        return self._place(table).delta_uri(table)

    def options(self, table: str) -> dict[str, str]:
        """Storage options of the table; they change when credentials are renewed."""
        return self._place(table).delta_options()

    def open(self, table: str) -> DeltaTable:
        """A handle on the table's newest version.

        Raises TablesError where there is none, OSError or DeltaError where the store does not answer.
        """
        try:
            return DeltaTable(self.uri(table), storage_options=self.options(table))
        except TableNotFoundError:
            raise TablesError(f"there is no table {table} in {self.uri(table)}") from None

    def exists(self, table: str) -> bool:
        """Whether the table is there. Raises OSError or DeltaError where the store does not answer."""
        try:
            self.open(table)
        except TablesError:
            return False
        return True

    def ensure(self, key_fingerprint: str, tables: Sequence[str] = SCORING) -> None:
        """Makes those of `tables` that are absent, and checks that all of them belong to the key.

        Safe when several processes do it at once: a table with schema, comments, constraints and fingerprint is one
        commit, and one of them wins. Raises KeyMismatch, or TablesError for tables of an older release and for a store
        that does not answer.
        """
        try:
            self._ensure(key_fingerprint, tables)
        except STORE_ERRORS as error:
            raise TablesError(f"the tables cannot be used: {describe(error)}") from None

    def _ensure(self, key_fingerprint: str, tables: Sequence[str]) -> None:
        for table in tables:
            if not self.exists(table):
                self.create(table, key_fingerprint)
            handle = self.open(table)
            found = fingerprint(handle)
            if found != key_fingerprint:
                raise KeyMismatch(
                    f"{self.uri(table)} was made with the pseudonym key {found}, this is {key_fingerprint}: "
                    "give the first key, or another folder for the tables"
                )
            if missing := missing_columns(table, handle):
                raise TablesError(
                    f"{self.uri(table)} is of an older release (no column {', '.join(missing)}): "
                    "run `angio-ray tables upgrade`"
                )

    def create(self, table: str, key_fingerprint: str) -> None:
        """Makes an absent table; no error when another process was faster (whose key may differ)."""
        try:
            DeltaTable.create(
                self.uri(table),
                Schema.from_json(delta_json(table)),
                mode="error",
                name=table,
                description=declaration(table)["description"],
                configuration={**configuration(table), _FINGERPRINT: key_fingerprint},
                raise_if_key_not_exists=False,  # the fingerprint is a key of ours
                # delta-rs would retry a creation that came second as version 1, with its own metadata on top
                commit_properties=CommitProperties(max_commit_retries=0),
                storage_options=self.options(table),
            )
        except STORE_ERRORS:
            # another process may have been first; if not, this is a real failure
            if not self.exists(table):
                raise
        else:
            logger.debug("made table %s", table)

    def _place(self, table: str) -> Place:
        return self._clips_root if table in IDENTIFIED else self._root


def configuration(table: str) -> dict[str, str]:
    """Delta's table properties: the declared constraints, and the protocol that makes every writer check them."""
    # Statistics of the first two columns (the keys) only: they are what files are skipped by, and a handle carries those
    # of every file along: with Delta's default of 32 columns commit 500 took 9 times as long (350 against 39 ms).
    statistics = {"delta.dataSkippingNumIndexedCols": "2"}
    constraints = {f"delta.constraints.{name}": sql for name, sql in declaration(table)["constraints"].items()}
    # writer version 3: a writer that does not know CHECK constraints must refuse the table
    return {"delta.minWriterVersion": "3", **statistics, **constraints}


def fingerprint(handle: DeltaTable) -> str | None:
    """Fingerprint of the key that the table's pseudonyms were made with."""
    return handle.metadata().configuration.get(_FINGERPRINT)


def missing_columns(table: str, handle: DeltaTable) -> list[str]:
    """Declared columns that the table does not have."""
    present = set(pa.schema(handle.schema().to_arrow()).names)
    return [field.name for field in arrow_schema(table) if field.name not in present]


def describe(error: Exception) -> str:
    """One line of an error of delta-rs or of the store below it, without values of rows."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|↳", "", line).strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    if isinstance(error, DeltaError):
        # what follows the first line can be a preview of rows
        return lines[0].removeprefix("Generic DeltaTable error: ").removeprefix("External error: ")
    codes = re.findall(r"<Code>(\w+)</Code>", str(error))  # S3's own word for it
    told = [line.removeprefix("Kernel error -> ") for line in lines if not line.startswith(("Error performing", "<"))]
    return ", ".join([*told, *codes])[:300]
