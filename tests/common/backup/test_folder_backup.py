"""A backup that says more than it holds is refused before anything of it is written."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path

import pytest

from common.backup import folder_backup
from common.errors import StateError
from common.records import format_versions


def full_of_holes(size: int) -> bytes:
    """Return a tar with one sparse file, as GNU tar writes it, of ``size`` bytes and no data."""
    entry = tarfile.TarInfo("journal.jsonl")
    entry.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    head[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(1024)


def test_a_file_of_holes_is_no_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    lines = {"format": format_versions.NEWEST["backup"], "encryption": None}
    path.write_bytes(
        b"gliofed-backup\n" + json.dumps(lines).encode() + b"\n" + full_of_holes(2**40)
    )
    began = time.process_time()
    with pytest.raises(StateError, match="not a plain file"):
        folder_backup.verify(path, kind="site")
    assert time.process_time() - began < 5
