"""An append-only, hash-chained record of facts.

One JSON object a line; each line holds the SHA-256 of the line before it, so that a changed,
removed or reordered line shows. A line counts once it is on the disk (fsync) and only then may the
fact be acted on. A last line that a crash cut short is set aside and said so; any other damage
stops the reader. Several processes may append to one journal: each append takes a file lock.

Facts are about studies, rounds, sites and digests, never about a patient.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from common.errors import StateError

GENESIS: Final = "0" * 64
_TAIL_BYTES: Final = 4096


class Entry(NamedTuple):
    """One fact: running number from 1, UTC time, name of the event, its facts, hash of the line."""

    number: int
    time: str
    event: str
    facts: dict[str, Any]
    hash: str


class Journal:
    """The journal at ``path``; an absent file is an empty journal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **facts: Any) -> Entry:
        """Write one fact durably and return it; raise StateError if the journal is damaged."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                last, end = self._repair_tail(file)
                record = {
                    "n": last.number + 1 if last else 1,
                    "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
                    "event": event,
                    "facts": facts,
                    "previous": last.hash if last else GENESIS,
                }
                line = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
                try:
                    _write(file, line.encode() + b"\n")
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)  # a fact that was not acted on must not show up later
                    raise
        except OSError as error:
            raise StateError(
                f"Cannot write the journal {self.path}: {error.strerror}. Nothing was done.",
                do="Free space or correct the permissions, then start again.",
                code="journal-write",
            ) from error
        return _entry(record, _hash(line.encode()))

    def entries(self) -> Iterator[Entry]:
        """Yield every fact in order, checking the chain; raise StateError at the first break."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        previous, number = GENESIS, 0
        for position, line in enumerate(lines):
            if position == len(lines) - 1:
                return  # empty after the last newline, or a line that a crash cut short
            try:
                record = json.loads(line)
                entry = _entry(record, _hash(line))
                sound = record["previous"] == previous and entry.number == number + 1
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise StateError(
                    f"The journal {self.path} is damaged or was changed at line {position + 1}.",
                    do="Keep the file, restore it from a backup, and ask who had access to it.",
                    code="journal-damaged",
                )
            previous, number = entry.hash, entry.number
            yield entry

    def events(self, *names: str, **where: Any) -> list[Entry]:
        """Return the facts of the named events whose facts equal ``where``."""
        return [
            entry
            for entry in self.entries()
            if (not names or entry.event in names)
            and all(entry.facts.get(key) == value for key, value in where.items())
        ]

    @property
    def head(self) -> str:
        """Hash of the last line: two parties that know the same head know the same journal."""
        head = GENESIS
        for entry in self.entries():
            head = entry.hash
        return head

    def _repair_tail(self, file: Any) -> tuple[Entry | None, int]:
        """Cut an unfinished last line into a ``.torn`` file beside.

        Returns the last whole entry and where it ends. Only the end of the file is read: the
        whole chain is for ``entries`` to check.
        """
        size = file.seek(0, os.SEEK_END)
        start, tail = size, b""
        while start > 0 and tail.count(b"\n") < 2:
            step = min(start, max(_TAIL_BYTES, len(tail)))
            start -= step
            file.seek(start)
            tail = _read(file, step) + tail
        kept = tail.rfind(b"\n") + 1
        if kept < len(tail):
            with self.path.with_suffix(".torn").open("ab") as aside:
                aside.write(tail[kept:] + b"\n")
            file.truncate(start + kept)
        if kept == 0:
            return None, 0
        line = tail[tail.rfind(b"\n", 0, kept - 1) + 1 : kept - 1]
        try:
            return _entry(json.loads(line), _hash(line)), start + kept
        except (ValueError, KeyError, TypeError):
            raise StateError(
                f"The journal {self.path} is damaged at its end.",
                do="Keep the file and restore it from a backup.",
                code="journal-damaged",
            ) from None


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _entry(record: dict[str, Any], digest: str) -> Entry:
    entry = Entry(record["n"], record["time"], record["event"], record["facts"], digest)
    if not isinstance(entry.number, int) or not isinstance(entry.facts, dict):
        raise TypeError("an entry has a number and facts")
    return entry


def _write(file: Any, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += file.write(data[written:])


def _read(file: Any, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data
