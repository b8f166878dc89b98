"""The hospitals that were admitted, with their public keys.

    NAME.json             the signed enrolment request, with the keys that are used now
    leaving/NAME.json     the request before, as long as the site's old node key is let in as well
    renewals/NAME.json    new keys that the site sent, checked and not taken over yet
    kits/NAME.json        a newer kit than the one that the site joined with; goes with each order
    versions/NAME.txt     which gliofed the site last said that it runs
    suspended/NAME.json   by whom and why a site is suspended
    revoked/NAME-N.json   by whom and why a site was put out for good, with its request

A suspended site gets no order from the next message on, in no study, and its approvals do not count
meanwhile. The same holds for a revoked one, whose connection is refused besides; its keys are never
admitted again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from common.errors import IdentityError, StateError
from common.records.atomic_files import read_json, write_bytes, write_json
from common.records.journal import Entry, Journal
from common.trust.enrolment import Request, check_keys, open_request
from common.trust.identity import Statement

_VERSION_EVENTS: Final = frozenset({"site admitted", "site keys renewed", "site version"})


def versions_said(entries: Iterable[Entry]) -> dict[str, str]:
    """Return which gliofed each site last said that it runs, from the journal's facts."""
    return {
        str(entry.facts["site"]): str(entry.facts["version"])
        for entry in entries
        if entry.event in _VERSION_EVENTS and entry.facts.get("version")
    }


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

    def node_keys(self) -> dict[str, str]:
        """Return every node key (OpenSSH) that is let in, and the site that it belongs to.

        A site that renews its keys has two until the new one was used.
        """
        keys = {request.node_key: request.site for request in self.all()}
        for path in sorted((self._folder / "leaving").glob("*.json")):
            if path.stem in self.names():
                old = open_request(Statement.load(path, what="old enrolment request"))
                keys.setdefault(old.node_key, old.site)
        return keys

    def kit_path(self, name: str) -> Path:
        """Return where the newer kit of a site and the charters are kept."""
        return self._folder / "kits" / f"{name}.json"

    def newer_kit(self, name: str) -> dict[str, Any]:
        """Return the fields of an order that renew a site's kit; {} if nothing was renewed."""
        path = self.kit_path(name)
        if not path.exists():
            return {}
        value = read_json(path, what="kit")
        return {"kit": value["kit"], "charters": tuple(value["charters"])}

    def without_kit(self) -> set[str]:
        """Return the active sites that have not said yet that they use their newest kit."""
        return {
            name
            for name in self.active()
            if (kit := self.newer_kit(name)) and self._taken(name) != _digest(kit["kit"])
        }

    def heard(self, name: str, *, kit_sha256: str, renewal: str, version: str = "") -> None:
        """Take note of what a site says about its version, kit and keys; raise IdentityError."""
        path = self._folder / "versions" / f"{name}.txt"
        if version and version != (path.read_text() if path.exists() else ""):
            self._journal.append("site version", site=name, version=version)
            write_bytes(path, version.encode())
        if kit_sha256 and kit_sha256 != self._taken(name) and self.kit_path(name).exists():
            self._journal.append("kit taken", site=name, kit=kit_sha256)
            write_bytes(self.kit_path(name).with_suffix(".taken"), kit_sha256.encode())
        if renewal:
            self.offer_renewal(name, Statement.loads(renewal))

    def offer_renewal(self, name: str, statement: Statement) -> None:
        """Keep a site's new keys, to be taken over; raise IdentityError unless its key signed."""
        wanted, known = open_request(statement), self.get(name)
        if known is None or wanted.site != name:
            raise IdentityError(f"The new keys are those of {wanted.site}, not of {name}.")
        if wanted.identity_key == known.identity_key:
            return
        if known.identity_key not in statement.signers():
            raise IdentityError(
                f"The new keys of {name} are not signed by its key.",
                do="Ask the hospital to run `gliofed-site rotate-keys` again.",
                code="renewal",
            )
        self.check_keys(wanted)
        path = self._folder / "renewals" / f"{name}.json"
        if not path.exists() or Statement.load(path, what="new keys") != statement:
            self._journal.append("site keys offered", site=name, key=wanted.identity_key)
            statement.save(path)

    def renewals(self) -> list[Path]:
        """Return the files with new keys that wait to be taken over, each named after its site."""
        return sorted((self._folder / "renewals").glob("*.json"))

    def replace(self, request: Statement) -> None:
        """Let a site's new keys take the place of its old ones, which are let in for a while."""
        name = open_request(request).site
        path = self._folder / f"{name}.json"
        old = Statement.load(path, what=f"enrolment request of {name}")
        if old.signer == request.signer:
            return
        old.save(self._folder / "leaving" / f"{name}.json")
        request.save(path)

    def identity_keys(self, name: str) -> set[str]:
        """Return the keys by which a site signs: its own, and the one before while it leaves."""
        paths = [self._folder / f"{name}.json", self._folder / "leaving" / f"{name}.json"]
        return {
            open_request(Statement.load(path, what=f"enrolment request of {name}")).identity_key
            for path in paths
            if path.exists()
        }

    def _taken(self, name: str) -> str:
        path = self.kit_path(name).with_suffix(".taken")
        return path.read_text() if path.exists() else ""

    def leaving(self) -> list[str]:
        """Return the sites whose old node key is still let in."""
        return sorted(path.stem for path in (self._folder / "leaving").glob("*.json"))

    def left(self, name: str) -> None:
        """Let the old node key of a site in no more."""
        self._journal.append("old node key ended", site=name)
        (self._folder / "leaving" / f"{name}.json").unlink(missing_ok=True)

    def state(self) -> object:
        """Return what changes whenever a site is admitted, revoked or renews its keys."""
        found: list[object] = []
        for path in (self._folder, self._folder / "leaving"):
            for one in sorted(path.glob("*.json")):
                about = one.stat()
                found.append((one.name, about.st_mtime_ns, about.st_ino))
            found.append(path.name)
        return found

    def out(self, name: str) -> str:
        """Return why a site gets no orders: ``suspended``, ``revoked``, or an empty text."""
        if name not in self.names():
            return "revoked"
        return "suspended" if name in self._held() else ""

    def revoke(self, name: str, *, by: str, why: str) -> None:
        """Put an admitted site out for good: its connection is refused from the next call on.

        Raises StateError if there is no such site.
        """
        path = self._admitted(name)
        request = Statement.load(path, what=f"enrolment request of {name}")
        number = 1 + len(list(self._revoked(name)))
        self._journal.append("site revoked", site=name, by=by, why=why, key=request.signer)
        write_json(
            self._folder / "revoked" / f"{name}-{number}.json",
            {"by": by, "why": why, "request": request.to_dict()},
        )
        path.unlink()
        for folder in ("leaving", "renewals", "kits", "suspended"):
            (self._folder / folder / f"{name}.json").unlink(missing_ok=True)

    def check_keys(self, request: Request) -> None:
        """Raise IdentityError unless the keys of ``request`` are keys, and nobody else's.

        Codes: ``key``, ``doubled-key``, ``revoked``.
        """
        check_keys(request)
        for site, known in self._known():
            shared = {known.identity_key, known.node_key} & {request.identity_key, request.node_key}
            if site != request.site and shared:
                raise IdentityError(
                    f"{request.site} asks with a key that is {site}'s.",
                    do="Find out who sent this request. A hospital makes its own keys with "
                    "`gliofed-site request`, in a new folder.",
                    code="doubled-key",
                )
        self.check_not_revoked(request)

    def _known(self) -> Iterator[tuple[str, Request]]:
        """Yield each request whose keys count now, did until lately, or wait to count."""
        for folder in (self._folder, self._folder / "leaving", self._folder / "renewals"):
            for path in sorted(folder.glob("*.json")):
                yield path.stem, open_request(Statement.load(path, what="enrolment request"))

    def check_not_revoked(self, request: Request) -> None:
        """Raise IdentityError if one of the keys of ``request`` was revoked under any name."""
        for path in sorted((self._folder / "revoked").glob("*.json")):
            value = read_json(path, what="revocation")
            old = open_request(Statement.from_dict(value["request"]))
            if {old.identity_key, old.node_key} & {request.identity_key, request.node_key}:
                raise IdentityError(
                    f"The keys of {request.site} were revoked as those of {old.site}: "
                    f"{value['why']}.",
                    do="Let the hospital make a new folder with new keys, and send that request.",
                    code="revoked",
                )

    def alike(self, name: str) -> str:
        """Return the name of another site, admitted or revoked, that people or disks confuse.

        Letters are compared without their case, and ``-`` and ``_`` are one. An empty text if there
        is none, or if ``name`` itself is admitted.
        """
        names = set(self.names())
        if name in names:
            return ""
        revoked = (path.stem.rpartition("-")[0] for path in self._folder.glob("revoked/*.json"))
        known = sorted({*names, *revoked} - {name})
        return next((one for one in known if _folded(one) == _folded(name)), "")

    def _revoked(self, name: str) -> Iterator[Path]:
        return (self._folder / "revoked").glob(f"{name}-[0-9]*.json")

    def _admitted(self, name: str) -> Path:
        if name not in self.names():
            raise StateError(
                f"There is no site {name} here.",
                do=f"Admitted are: {', '.join(self.names()) or 'none'}.",
                code="no-site",
            )
        return self._folder / f"{name}.json"

    def suspend(self, name: str, *, by: str, why: str) -> None:
        """Suspend an admitted site; again, with another reason, is allowed.

        Raises StateError if there is no such site.
        """
        self._admitted(name)
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


def _folded(name: str) -> str:
    return name.casefold().replace("_", "-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
