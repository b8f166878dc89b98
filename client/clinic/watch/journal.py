"""What became of each study: results by folder, everything else by record.

OUT/results/NAME/       a complete result
OUT/unfinished/NAME/    what is being written; removed at the next start
OUT/journal/NAME.json   attempts, the refusal and its reason, what was stored in the PACS
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import GliofedError, StateError
from common.records.atomic_files import read_json, unwritable, write_json

MOST_ATTEMPTS: Final = 3
"""Begins of a study that may end with the process before it is refused."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\Z")


class Record(BaseModel):
    """``fingerprint`` is of the study's files when it was begun."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    state: Literal["begun", "done", "refused"] = "begun"
    fingerprint: str = ""
    attempts: int = 0
    code: str = ""
    reason: str = ""
    stored: int | None = None


class Journal:
    """The state of all studies below one folder. One process at a time uses it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        shutil.rmtree(out / "unfinished", ignore_errors=True)

    def result(self, study: str) -> Path:
        """Return where the study's result is, or will be."""
        return self.out / "results" / _file(study)

    def record(self, study: str) -> Record:
        """Return what is known of a study; raise StateError for a damaged record."""
        path = self._path(study)
        if not path.exists():
            return Record(study=study)
        try:
            return Record.model_validate(read_json(path, what="record of a study"))
        except ValidationError as error:
            raise StateError(
                f"The record {path} is damaged.", do="Remove it, to have the study done again."
            ) from error

    def due(self, study: str, fingerprint: str) -> bool:
        """Return whether the study is to be segmented now."""
        if (self.result(study) / "result.json").exists():
            return False
        known = self.record(study)
        return known.state != "refused" or known.fingerprint != fingerprint

    def begin(self, study: str, fingerprint: str) -> Path | None:
        """Note an attempt and return an empty folder for it; None where it was tried too often."""
        known = self.record(study)
        attempts = known.attempts if known.fingerprint == fingerprint else 0
        known = Record(study=study, fingerprint=fingerprint, attempts=attempts + 1)
        if attempts >= MOST_ATTEMPTS:
            self._write(
                known.model_copy(
                    update={
                        "state": "refused",
                        "code": "watch-attempts",
                        "reason": f"It ended the process, or failed, {attempts} times.",
                    }
                )
            )
            return None
        self._write(known)
        place = self.out / "unfinished" / _file(study)
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def finish(self, study: str, place: Path) -> None:
        """Make what was written to ``place`` the study's result."""
        target = self.result(study)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            place.replace(target)
            descriptor = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unwritable(target, error) from error
        self._write(self.record(study).model_copy(update={"state": "done"}))

    def refuse(self, study: str, error: GliofedError) -> None:
        """Record that the study cannot be used, and why."""
        known = self.record(study)
        update = {"state": "refused", "code": error.code, "reason": str(error)}
        self._write(known.model_copy(update=update))

    def put_back(self, study: str) -> None:
        """Take back an attempt that failed for a reason that is not the study's."""
        known = self.record(study)
        self._write(known.model_copy(update={"attempts": max(0, known.attempts - 1)}))

    def stored(self, study: str, count: int) -> None:
        """Record that the result's objects are in the PACS."""
        self._write(self.record(study).model_copy(update={"state": "done", "stored": count}))

    def _path(self, study: str) -> Path:
        return self.out / "journal" / f"{_file(study)}.json"

    def _write(self, record: Record) -> None:
        write_json(self._path(record.study), record.model_dump(mode="json"))


def alias(study: str) -> str:
    """Return what logs call a study: its name may be a patient's."""
    return hashlib.sha256(study.encode()).hexdigest()[:12]


def _file(study: str) -> str:
    """Return the name of a study's files: its own where that can name a file."""
    return study if _NAME.match(study) else f"study-{alias(study)}"
