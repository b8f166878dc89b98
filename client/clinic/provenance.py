"""What ties a result to what it came from: digests of its files, versions, the site's signature.

``result.json`` names every other file of its folder by SHA-256. Who changes a file is found out by
that; who changes ``result.json`` with it is found out by the seal: a statement about the SHA-256 of
``result.json``, signed with the site's key, in ``seal.json``. Only a site can seal; a result of
``--model`` alone has no seal.
"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from common.errors import StateError
from common.trust.identity import Identity, Statement

RESULT: Final = "result.json"
SEAL: Final = "seal.json"
SEALED: Final = "segmentation-result"
"""Kind of the signed statement that names a ``result.json``."""

_PACKAGES: Final = (
    "gliofed", "highdicom", "monai", "nibabel", "numpy", "pydicom", "scipy", "SimpleITK", "torch",
)  # fmt: skip


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file; raise StateError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StateError(
            f"Cannot read {path}: {error.strerror}.", do="Check that this user may read it."
        ) from error


def outputs(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that lies in a result's folder, those of lineage aside."""
    return {
        path.name: sha256_of(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (RESULT, SEAL)
    }


def software() -> dict[str, str]:
    """Return the versions that a result depends on, by package."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source, or not needed here
            continue
    return found


def seal(folder: Path, result: bytes, *, site: str, key: Identity) -> None:
    """Sign ``result``, the bytes of ``result.json``, for ``site`` into ``folder``."""
    body = {"site": site, "result_sha256": hashlib.sha256(result).hexdigest()}
    key.sign(SEALED, body).save(folder / SEAL)


def sealed_sha256(folder: Path, *, signer: str | None) -> tuple[str, str]:
    """Return the site that sealed ``result.json`` and the digest that it signed.

    With ``signer`` (hex) only that key counts. Raises IdentityError, or StateError for a file that
    is no seal.
    """
    path = folder / SEAL
    statement = Statement.load(path, what="seal")
    body = statement.opened(kind=SEALED, signer=signer or statement.signer)
    try:
        return str(body["site"]), str(body["result_sha256"])
    except KeyError as error:
        raise StateError(f"The seal {path} lacks {error}.", do="Segment the case again.") from None
