"""Reviews on the disk: numbered, each whole or not there, never written over.

    reviews/0001/        the files of the first review; review.json is written last
    reviews/log.jsonl    a hash-chained record (``common.records.journal``) of every review

A review is made in a hidden folder, logged with the SHA-256 of its review.json, which names those
of all its files, and only then gets its name. Killed in between, the next start finishes a review
that was logged and removes one that was not. Invariant: each review in the log is there as logged;
another state is refused and never mended in silence.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from common import posix
from common.errors import StateError
from common.records.atomic_files import read_json, unwritable, write_json
from common.records.journal import Entry, Journal

RECORD: Final = "review.json"
_SAVED: Final = "review saved"
_DO: Final = "Keep the folder, restore it from a backup, and ask who had access to it."


class Versions:
    """The reviews in ``folder``, of one result; one process at a time writes
    (``common.records.atomic_files``).
    """

    def __init__(self, folder: Path) -> None:
        """Finish or remove what a killed process left; raise StateError for a changed review."""
        self.folder = folder
        self.log = Journal(folder / "log.jsonl")
        logged = self._logged()
        for partial in folder.glob(".*.partial"):
            entry = logged.get(int(partial.name[1:5]))
            if entry is not None and not self.place(entry.facts["number"]).exists():
                _check(partial, entry.facts["sha256"])
                partial.rename(self.place(entry.facts["number"]))
            else:
                shutil.rmtree(partial)
        for number, entry in logged.items():
            _check(self.place(number), entry.facts["sha256"])

    def place(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    @property
    def numbers(self) -> list[int]:
        """The reviews that there are, the first one first."""
        return sorted(self._logged())

    @property
    def next(self) -> int:
        return max(self._logged(), default=0) + 1

    def save(
        self, record: Mapping[str, Any], write: Callable[[Path], None], /, **facts: Any
    ) -> int:
        """Let ``write`` fill a new folder, add ``record``, log and name it; return its number.

        ``facts`` go into the log. Raises StateError and what ``write`` raises; then nothing stays.
        """
        number = self.next
        partial = self.folder / f".{number:04d}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
            write_json(partial / RECORD, {**record, "files": files})
            sha256 = _sha256(partial / RECORD)
            self.log.append(_SAVED, number=number, sha256=sha256, **facts)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise unwritable(partial, error) from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        try:
            partial.rename(self.place(number))
            posix.sync_folder(self.folder)
        except OSError as error:  # it is logged: the next start finishes it
            raise unwritable(self.place(number), error) from error
        return number

    def _logged(self) -> dict[int, Entry]:
        return {int(one.facts["number"]): one for one in self.log.events(_SAVED)}


def _check(folder: Path, sha256: str) -> None:
    """Raise StateError unless ``folder`` holds the review that was logged, unchanged."""
    try:
        same = _sha256(folder / RECORD) == sha256
        if same:
            files = read_json(folder / RECORD, what="review")["files"]
            same = all(_sha256(folder / name) == digest for name, digest in files.items())
    except OSError:
        same = False
    if not same:
        raise StateError(
            f"The review in {folder} is not the one that was saved there: a file was changed or "
            "is gone.",
            do=_DO,
            code="review-changed",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
