"""One published study on the coordinator's disk: its protocol, what is wanted of it, its rounds.

    protocol.json         signed; changed by an amendment alone
    amendment.json        the signed version that takes force at the next round's start
    versions/0001.json    the versions before
    wanted.json           "running" or "stopped", and of how many rounds weights are kept
    initial.safetensors   the starting weights, if the protocol names them by their digest
    rounds/0001.safetensors, ...   the whole network after the last closed rounds
    rounds/0001.state.safetensors  what the aggregation rule needs in the next round, if anything

Rounds are written before the journal says that they are closed; a checkpoint that the journal does
not name with its digest does not count.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import IdentityError, StateError
from common.records.atomic_files import read_json, unwritable, write_json
from common.records.weights import Arrays, digest, load, save
from common.study.protocol import PROTOCOL, StudyProtocol, parse_protocol
from common.trust.identity import Statement, fingerprint

KEEP_ROUNDS: Final = 3
"""Of so many of the last rounds weights are kept, if `launch` says nothing else."""


@dataclass(frozen=True)
class Study:
    """A study's folder, with its protocol verified."""

    folder: Path
    protocol: StudyProtocol
    statement: Statement

    @classmethod
    def open(cls, folder: Path, *, coordinators: Collection[str]) -> Study:
        """Raise StateError if there is no such study, IdentityError if its protocol was changed."""
        path = folder / "protocol.json"
        if not path.exists():
            raise StateError(
                f"There is no study {folder.name} here.",
                do="Publish it with `gliofed-server study`, or check its name.",
            )
        statement = Statement.load(path, what="study protocol")
        if statement.signer not in coordinators:
            raise IdentityError(
                f"The protocol {path} is not signed by a coordinator of this consortium, but by "
                f"{fingerprint(statement.signer)}.",
                do="Restore the folder from a backup, and ask who had access to it.",
            )
        body = statement.opened(kind=PROTOCOL, signer=statement.signer)
        return cls(folder, parse_protocol(body, source=str(path)), statement)

    def signed(self) -> str:
        """Return the signed protocol as JSON text, with the signatures that it has by now."""
        now = Statement.load(self.folder / "protocol.json", what="study protocol")
        return now.dumps() if now.body == self.statement.body else self.statement.dumps()

    @property
    def amendment(self) -> Statement | None:
        """The signed version that waits to take force, if there is one."""
        path = self.folder / "amendment.json"
        return Statement.load(path, what="amendment") if path.exists() else None

    def stage(self, statement: Statement) -> None:
        """Let a protocol that was signed and checked take force at the next round's start."""
        statement.save(self.folder / "amendment.json")

    def amend(self) -> None:
        """Put the staged version in force; killed anywhere, it is done again."""
        statement = self.amendment
        if statement is None:
            return
        kept = self.folder / "versions" / f"{self.protocol.version:04d}.json"
        if statement.body != self.statement.body:
            self.statement.save(kept)
            statement.save(self.folder / "protocol.json")
        (self.folder / "amendment.json").unlink()

    @property
    def wanted(self) -> str:
        """Return ``running``, ``stopped`` or ``published``."""
        return self._wanted()[0]

    @property
    def keep_rounds(self) -> int:
        """Of how many of the last rounds weights are kept, 0 for all; see
        ``server.rounds.weight_retention``.
        """
        return self._wanted()[1]

    def _wanted(self) -> tuple[str, int]:
        path = self.folder / "wanted.json"
        if not path.exists():
            return "published", KEEP_ROUNDS
        value = read_json(path, what="study state")
        keep = value.get("keep_rounds", KEEP_ROUNDS) if isinstance(value, dict) else None
        if not isinstance(keep, int) or keep < 0 or not isinstance(value.get("state"), str):
            raise StateError(
                f"The study state {path} is damaged.",
                do="`launch` or `stop` writes it anew.",
            )
        return str(value["state"]), keep

    def want(self, state: str, *, keep_rounds: int | None = None) -> None:
        """Write what is wanted; without ``keep_rounds`` that stays as it is.

        If it cannot be read any more, all weights are kept until somebody says otherwise.
        """
        keep = self._kept() if keep_rounds is None else keep_rounds
        kept = {} if keep == KEEP_ROUNDS else {"keep_rounds": keep}
        write_json(self.folder / "wanted.json", {"state": state, **kept})

    def _kept(self) -> int:
        try:
            return self.keep_rounds
        except StateError:
            return 0

    @property
    def initial(self) -> Path:
        return self.folder / "initial.safetensors"

    def given(self) -> Arrays | None:
        """Return the starting weights that the protocol names, or None if it names none.

        Raises StateError if they are not here, or if others are.
        """
        named, name = self.protocol.initial_sha256, self.protocol.study
        if not named:
            if self.initial.exists():
                raise StateError(
                    f"{self.initial} is here, but the protocol of {name}, as the hospitals were "
                    "asked to approve it, names no starting weights.",
                    do="Publish another study with `gliofed-server study --initial FILE`; or "
                    "remove that file, to start from random weights of the protocol's seed.",
                    code="initial",
                )
            return None
        if not self.initial.exists():
            raise StateError(
                f"The starting weights of {name} ({named[:16]}) are not in {self.folder}.",
                do="`gliofed-server launch --initial FILE` puts them back.",
                code="initial",
            )
        weights = load(self.initial)
        if digest(weights) != named:
            raise StateError(
                f"The weights {self.initial} are not those that the protocol of {name} names "
                f"({named[:16]}).",
                do="`gliofed-server launch --initial FILE` puts them back.",
                code="initial",
            )
        return weights

    def give(self, weights: Arrays) -> None:
        """Keep the starting weights that the protocol names; raise StateError for any others."""
        named, own = self.protocol.initial_sha256, digest(weights)
        study = self.protocol.study
        if not named:
            raise StateError(
                f"The protocol of {study} names no starting weights: the hospitals were asked to "
                "approve random ones, of its seed.",
                do="Leave --initial out, or publish another study, with another id, by "
                "`gliofed-server study DIR PROTOCOL.toml --initial FILE`.",
                code="initial",
            )
        if own != named:
            raise StateError(
                f"These weights ({own[:16]}) are not those that the protocol of {study} names "
                f"({named[:16]}) and that the hospitals were asked to approve.",
                do="Give the file that the study was published with, or publish another study.",
                code="initial",
            )
        keep_initial(self.folder, weights)

    def checkpoint(self, number: int) -> Path:
        """Path of the network after round ``number``; round 0 is the start."""
        return self.folder / "rounds" / f"{number:04d}.safetensors"

    def save(self, number: int, weights: Arrays) -> str:
        """Write the network after round ``number`` and return its digest."""
        return self._save(self.checkpoint(number), number, weights)

    def save_state(self, number: int, state: Arrays) -> str:
        """Write the aggregation rule's state after round ``number``; return its digest, or ""."""
        return self._save(self._state(number), number, state) if state else ""

    def load(self, number: int, expected: str) -> Arrays:
        """Read the network after round ``number``; raise StateError if it is not ``expected``."""
        return self._load(self.checkpoint(number), expected)

    def load_state(self, number: int, expected: str) -> Arrays:
        """Read the rule's state after round ``number``, {} if there was none; raise StateError."""
        return self._load(self._state(number), expected) if expected else {}

    def checkpoints(self) -> list[int]:
        """Return the rounds whose weights are on the disk, 0 for the start."""
        return self._numbers(r"(\d+)\.safetensors")

    def states(self) -> list[int]:
        """Return the rounds of which the rule's state is on the disk."""
        return self._numbers(r"(\d+)\.state\.safetensors")

    def _numbers(self, pattern: str) -> list[int]:
        names = (path.name for path in (self.folder / "rounds").glob("*.safetensors"))
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(pattern, name)))

    def remove(self, number: int) -> None:
        """Remove the weights after round ``number``; raise StateError if the disk refuses."""
        self._remove(self.checkpoint(number))

    def remove_state(self, number: int) -> None:
        """Remove the rule's state after round ``number``; raise StateError if the disk refuses."""
        self._remove(self._state(number))

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error

    def _state(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:04d}.state.safetensors"

    def _save(self, path: Path, number: int, arrays: Arrays) -> str:
        save(path, arrays, {"study": self.protocol.study, "round": str(number)})
        return digest(arrays)

    def _load(self, path: Path, expected: str) -> Arrays:
        if not path.exists():
            raise StateError(
                f"The checkpoint {path} is missing.", do="Restore the folder from a backup."
            )
        arrays = load(path)
        if digest(arrays) != expected:
            raise StateError(
                f"The checkpoint {path} is not the one that the journal recorded.",
                do="Restore the folder from a backup.",
            )
        return arrays


def keep_initial(folder: Path, weights: Arrays) -> str:
    """Write the starting weights into a study's folder; return their digest."""
    save(folder / "initial.safetensors", weights, {})
    return digest(weights)
