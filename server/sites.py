"""The hospitals that were admitted, with their public keys; a removed file is a revoked site.

A suspended site has a file in the folder ``suspended`` beside its request, until it is restored. It
gets no order from the next message on, in no study, and its approvals do not count meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import IdentityError, StateError
from common.files import read_json, write_json
from common.identity import Statement
from common.journal import Journal
from common.kit import Request, open_request


class Sites:
    """The folder that keeps each admitted hospital's signed enrolment request."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._folder = folder
        self._journal = journal

    def add(self, request: Statement) -> None:
        """Keep a request that was checked; the site's name is its file's name."""
        request.save(self._folder / f"{open_request(request).site}.json")

    def get(self, site: str) -> Request | None:
        """Return what the site enrolled with, or None if it was never admitted.

        Raises IdentityError if the file was changed or renamed.
        """
        path = self._folder / f"{site}.json"
        if not path.exists():
            return None
        request = open_request(Statement.load(path, what=f"enrolment request of {site}"))
        if request.site != site:
            raise IdentityError(
                f"The enrolment request {path} is that of {request.site}.",
                do="Restore the folder from a backup, and ask who had access to it.",
            )
        return request

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def all(self) -> list[Request]:
        return [request for name in self.names() if (request := self.get(name)) is not None]

    def active(self) -> set[str]:
        """Return the names of the sites that are admitted and not suspended."""
        return set(self.names()) - self._held()

    def suspend(self, name: str, *, by: str, why: str) -> None:
        """Suspend an admitted site; again, with another reason, is allowed.

        Raises StateError if there is no such site.
        """
        if name not in self.names():
            raise StateError(
                f"There is no site {name} here.",
                do=f"Admitted are: {', '.join(self.names()) or 'none'}.",
                code="no-site",
            )
        self._journal.append("site suspended", site=name, by=by, why=why)
        write_json(self._suspension(name), {"by": by, "why": why})

    def restore(self, name: str, *, by: str) -> None:
        """End the suspension of a site; raise StateError if it is not suspended."""
        if name not in self._held():
            raise StateError(
                f"{name} is not suspended.", do="Nothing needs to be done.", code="not-suspended"
            )
        self._journal.append("site restored", site=name, by=by)
        self._suspension(name).unlink()

    def suspended(self) -> dict[str, str]:
        """Return the suspended sites and why they are; raise StateError for a damaged file."""
        said = {n: read_json(self._suspension(n), what="suspension") for n in sorted(self._held())}
        return {
            name: str(value.get("why", "")) if isinstance(value, dict) else ""
            for name, value in said.items()
        }

    def _held(self) -> set[str]:
        """Return who is suspended by the names of the files alone: a damaged one counts as well."""
        return {path.stem for path in (self._folder / "suspended").glob("*.json")}

    def _suspension(self, name: str) -> Path:
        return self._folder / "suspended" / f"{name}.json"
