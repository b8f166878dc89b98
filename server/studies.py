"""One published study on the coordinator's disk: its protocol, what is wanted of it, its rounds.

    protocol.json         signed, never changed
    wanted.json           "running" or "stopped", written by `launch` and `stop`
    initial.safetensors   the starting weights, if `launch --initial` gave them
    rounds/0001.safetensors, ...   the whole network after each closed round

Rounds are written before the journal says that they are closed; a checkpoint that the journal does
not name with its digest does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import StateError
from common.files import read_json, write_json
from common.identity import Statement
from common.protocol import PROTOCOL, StudyProtocol, parse_protocol
from common.weights import Arrays, digest, load, save


@dataclass(frozen=True)
class Study:
    """A study's folder, with its protocol verified."""

    folder: Path
    protocol: StudyProtocol
    statement: Statement

    @classmethod
    def open(cls, folder: Path, *, coordinator: str) -> Study:
        """Raise StateError if there is no such study, IdentityError if its protocol was changed."""
        path = folder / "protocol.json"
        if not path.exists():
            raise StateError(
                f"There is no study {folder.name} here.",
                do="Publish it with `gliofed-server study`, or check its name.",
            )
        statement = Statement.load(path, what="study protocol")
        body = statement.opened(kind=PROTOCOL, signer=coordinator)
        return cls(folder, parse_protocol(body, source=str(path)), statement)

    @property
    def wanted(self) -> str:
        """Return ``running``, ``stopped`` or ``published``."""
        path = self.folder / "wanted.json"
        if not path.exists():
            return "published"
        value = read_json(path, what="study state")
        if not isinstance(value, dict) or not isinstance(value.get("state"), str):
            raise StateError(
                f"The study state {path} is damaged.", do="`launch` or `stop` writes it anew."
            )
        return str(value["state"])

    def want(self, state: str) -> None:
        write_json(self.folder / "wanted.json", {"state": state})

    @property
    def initial(self) -> Path:
        return self.folder / "initial.safetensors"

    def checkpoint(self, number: int) -> Path:
        """Path of the network after round ``number``; round 0 is the start."""
        return self.folder / "rounds" / f"{number:04d}.safetensors"

    def save(self, number: int, weights: Arrays) -> str:
        """Write the network after round ``number`` and return its digest."""
        save(self.checkpoint(number), weights, {"study": self.protocol.study, "round": str(number)})
        return digest(weights)

    def load(self, number: int, expected: str) -> Arrays:
        """Read the network after round ``number``; raise StateError if it is not ``expected``."""
        path = self.checkpoint(number)
        if not path.exists():
            raise StateError(
                f"The checkpoint {path} is missing.", do="Restore the folder from a backup."
            )
        weights = load(path)
        if digest(weights) != expected:
            raise StateError(
                f"The checkpoint {path} is not the one that the journal recorded.",
                do="Restore the folder from a backup.",
            )
        return weights
