"""The hospitals that were admitted, with their public keys; a removed file is a revoked site."""

from __future__ import annotations

from pathlib import Path

from common.errors import IdentityError
from common.identity import Statement
from common.kit import Request, open_request


class Sites:
    """The folder that keeps each admitted hospital's signed enrolment request."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
