"""An append-only, hash-chained record of facts.

One JSON object a line. It ends with its own SHA-256 and holds that of the line before, so that a
flipped bit is found and located, and a removed or reordered line shows; a random salt in each line
keeps a hash that is sent elsewhere from telling what the line says. What the file alone cannot show
is that its end was cut off or all of it written anew: for that each party keeps the other's last
hash (``common.messages.wire_format``).

A line counts once it is on the disk (fsync) and only then may the fact be acted on. A last line
that a crash cut short is set aside and said so; any other damage stops the reader. Several
processes may append to one journal: each append takes a file lock.

Facts are about studies, rounds, sites and digests; a patient is a keyed hash at most.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from common import posix
from common.errors import StateError
from common.records import format_versions

GENESIS: Final = "0" * 64
_TAIL_BYTES: Final = 4096
_SEAL: Final = re.compile(rb',"sha256":"([0-9a-f]{64})"\}')


class Entry(NamedTuple):
    """One fact: running number from 1, UTC time, name of the event, its facts, the line's hash."""

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
                posix.lock(file.fileno())
                last, end = self._repair_tail(file)
                record = {
                    "n": last.number + 1 if last else 1,
                    "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
                    "event": event,
                    "facts": facts,
                    "previous": last.hash if last else GENESIS,
                    "salt": secrets.token_hex(16),
                }
                line = _sealed(record)
                try:
                    _write(file, line + b"\n")
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
        return _open(line)[0]

    @contextlib.contextmanager
    def held(self) -> Iterator[str]:
        """Keep everybody from appending while the block runs; yields the head. Raises StateError.

        The process that holds it must not append: it would wait for itself.
        """
        try:
            file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise StateError(
                f"Cannot open the journal {self.path}: {error.strerror}.",
                do="Correct the permissions and run the command again.",
                code="journal-write",
            ) from error
        with file:
            posix.lock(file.fileno())
            last, _ = self._repair_tail(file)
            yield last.hash if last else GENESIS

    def entries(self) -> Iterator[Entry]:
        """Yield every fact in order, checking the chain; raise StateError at the first break."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        previous, number, begin = GENESIS, 0, 0
        lines = data.split(b"\n")
        torn = lines.pop()  # empty after the last newline, or a line that a crash cut short
        if _SEAL.search(torn):
            lines.append(torn)  # it was whole once: only its end was changed
        for line in lines:
            try:
                entry, before = _open(line)
                sound = before == previous and entry.number == number + 1
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise StateError(
                    f"The journal {self.path} is damaged or was changed at line {number + 1}, "
                    f"bytes {begin} to {begin + len(line)}.",
                    do="Keep the file, restore it from a backup, and ask who had access to it.",
                    code="journal-damaged",
                )
            previous, number, begin = entry.hash, entry.number, begin + len(line) + 1
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
        """Hash of the last line: two parties that know the same head know the same journal.

        Only the end of the file is read; ``entries`` checks the whole.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                last, _, _ = self._tail(file)
        except FileNotFoundError:
            return GENESIS
        return last.hash if last else GENESIS

    def holds(self, head: str) -> bool:
        """Return whether ``head`` was the journal's head at some time; raise StateError."""
        return head == GENESIS or any(entry.hash == head for entry in self.entries())

    def _repair_tail(self, file: Any) -> tuple[Entry | None, int]:
        """Cut an unfinished last line into a ``.torn`` file beside.

        Returns the last whole entry and where it ends.
        """
        last, end, torn = self._tail(file)
        if torn:
            with self.path.with_suffix(".torn").open("ab") as aside:
                aside.write(torn + b"\n")
            file.truncate(end)
        return last, end

    def _tail(self, file: Any) -> tuple[Entry | None, int, bytes]:
        """Return the last whole entry, where it ends, and the unfinished line behind it."""
        size = file.seek(0, os.SEEK_END)
        start, tail = size, b""
        while start > 0 and tail.count(b"\n") < 2:
            step = min(start, max(_TAIL_BYTES, len(tail)))
            start -= step
            file.seek(start)
            tail = _read(file, step) + tail
        kept = tail.rfind(b"\n") + 1
        torn = tail[kept:]
        line = tail[tail.rfind(b"\n", 0, max(0, kept - 1)) + 1 : max(0, kept - 1)]
        try:
            if _SEAL.search(torn):
                raise ValueError("its last line was whole once")
            return (_open(line)[0] if kept else None), start + kept, torn
        except (ValueError, KeyError, TypeError):
            raise StateError(
                f"The journal {self.path} is damaged at its end.",
                do="Keep the file and restore it from a backup.",
                code="journal-damaged",
            ) from None


def _sealed(record: dict[str, Any]) -> bytes:
    """Return the line of ``record``, which ends with the SHA-256 of what comes before."""
    body = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return body + b',"sha256":"%s"}' % hashlib.sha256(body).hexdigest().encode()


def _open(line: bytes) -> tuple[Entry, str]:
    """Return the entry of a line and the hash that it holds of the line before.

    Raises ValueError, KeyError or TypeError for anything but the line that was written, StateError
    (``format-newer``) for one that a newer gliofed wrote.
    """
    seal = _SEAL.fullmatch(line, max(0, len(line) - 77))
    body = line[: max(0, len(line) - 77)]
    if seal is None or hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise ValueError("the line is not the one that was written")
    record = json.loads(body + b"}")
    format_versions.check("journal", record.get("format"), where=f"at line {record['n']}")
    entry = Entry(record["n"], record["time"], record["event"], record["facts"], seal[1].decode())
    if not isinstance(entry.number, int) or not isinstance(entry.facts, dict):
        raise TypeError("an entry has a number and facts")
    return entry, record["previous"]


def _write(file: Any, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += file.write(data[written:])


def _read(file: Any, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data
