"""The consortium's charters on the coordinator's disk: who speaks for it now, and who did before.

    charters.json   the first charter and the signed ones that followed

Without the file the consortium has its first charter: the founder's key alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import StateError
from common.records.atomic_files import read_json, write_json
from common.trust.coordinator_charter import Charter, followed, parse_charter
from common.trust.identity import Statement


@dataclass(frozen=True)
class Charters:
    """All charters, verified: each is signed by enough of the one before."""

    path: Path
    first: Charter
    statements: tuple[Statement, ...]
    followers: tuple[Charter, ...]

    @classmethod
    def open(cls, folder: Path, *, own: str) -> Charters:
        """Raise StateError or IdentityError if the file was changed."""
        path = folder / "charters.json"
        if not path.exists():
            return cls(path, Charter.first(own), (), ())
        value = read_json(path, what="charters")
        if not isinstance(value, dict) or not isinstance(value.get("followed"), list):
            raise StateError(f"{path} is damaged.", do="Restore it from a backup.")
        first = parse_charter(value.get("first", {}))
        statements = tuple(Statement.from_dict(one) for one in value["followed"])
        return cls(path, first, statements, tuple(followed(first, statements)))

    @property
    def current(self) -> Charter:
        return self.followers[-1] if self.followers else self.first

    @property
    def ever(self) -> frozenset[str]:
        """Every key that ever was a coordinator's."""
        return frozenset().union(self.first.keys, *(one.keys for one in self.followers))

    def add(self, statement: Statement) -> Charter:
        """Put a charter in force that enough coordinators signed; raise IdentityError."""
        (following,) = followed(self.current, [statement]) or [self.current]
        write_json(
            self.path,
            {
                "first": self.first.model_dump(mode="json"),
                "followed": [one.to_dict() for one in (*self.statements, statement)],
            },
        )
        return following
