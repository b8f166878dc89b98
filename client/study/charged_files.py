"""Files with what was made from patients and may leave: each is bound to what it cost.

Beside each file stands another, ``.ledger``, with the ledger's head after the charge and the file's
SHA-256. It is written first. What it says of is used only if the ledger still holds that head: a
ledger that was put back from an old copy has forgotten what the file cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from client.privacy.budget_caps import open_ledger
from client.privacy.ledger import Ledger
from client.site.folder import Site
from common.errors import StateError
from common.records.atomic_files import read_json, write_bytes, write_json

_SUFFIX: Final = ".ledger"


def write(site: Site, path: Path, data: bytes) -> None:
    """Write ``data`` durably, bound to the ledger as it is now; raise StateError."""
    with open_ledger(site) as ledger:
        facts, head = ledger.head
    sha256 = hashlib.sha256(data).hexdigest()
    write_json(path.with_suffix(_SUFFIX), {"facts": facts, "head": head, "sha256": sha256})
    write_bytes(path, data)


def read(site: Site, path: Path, *, left: bool = False) -> bytes | None:
    """Return what ``write`` wrote, or None where nothing is of use.

    A file without its head is of no use unless it has ``left`` before: then the journal names the
    head. Raises StateError (code ``ledger-old``) if the ledger does not hold what the file cost.
    """
    if not path.exists():
        return None
    data = path.read_bytes()
    said = _head(path)
    if said is None or said["sha256"] != hashlib.sha256(data).hexdigest():
        return data if left else None
    with open_ledger(site) as ledger:
        _check(ledger, path, said)
    return data


def check_all(site: Site, ledger: Ledger) -> None:
    """Raise StateError (code ``ledger-old``) if the ledger lacks what a file cost."""
    for path in _bound(site):
        said = _head(path)
        if said is not None and any(one != path for one in path.parent.glob(f"{path.stem}.*")):
            _check(ledger, path, said)


def _bound(site: Site) -> Iterator[Path]:
    for folder in ("outbox", "studies"):
        yield from sorted(site.folder.glob(f"{folder}/*/*{_SUFFIX}"))


def _head(path: Path) -> dict[str, Any] | None:
    note = path.with_suffix(_SUFFIX)
    return read_json(note, what="note of what a file cost") if note.exists() else None


def _check(ledger: Ledger, path: Path, said: dict[str, Any]) -> None:
    if not ledger.holds(said["facts"], said["head"]):
        raise StateError(
            f"The privacy ledger does not hold what {path.with_suffix('')} cost: it was put back "
            "from an old copy or replaced.",
            do="Put the newest copy of ledger.sqlite back; until then no patient is trained on.",
            code="ledger-old",
        )
