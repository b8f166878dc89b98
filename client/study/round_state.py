"""What a site keeps of a study between two orders: its last reply, and what is its own.

In ``outbox/STUDY``, named after the round and the weights that it began with: ``.safetensors``, the
bytes of the last update, whose presence says that the round was trained; ``.residual``, what their
encoding left out; ``.json``, the last scores; ``.ledger``, what they cost
(``client.study.charged_files``).

In ``studies/STUDY``, the site's own, which never leaves: ``control.safetensors``, its control
variate c_i (SCAFFOLD); ``local.safetensors``, its local layers; ``personal.safetensors``, its
personal model (Ditto). Also there, ``statistics.json``: the noised histograms that left, which are
made once in a study.

Invariants, whenever the process is killed:

- A round's own values stand beside its update before the update does, and count only with it. They
  are moved to ``studies`` afterwards, or when the next order comes.
- c_i changes only if its update became part of a round, and then only once.

Local layers and the personal model come from the site's patients, with the study's privacy if it
has any, and stay at the hospital. Like the last update they outlast a patient's withdrawal: who
wants them gone removes the two files, and the study goes on from the global weights. c_i is made of
nothing but what was sent. It must not be removed while the study runs.

Out of scope: what the arrays mean (``client.training.drift_correction``,
``client.study.round_training``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from client.site.folder import Site
from client.study import charged_files
from common.errors import StateError
from common.messages.compression import encode
from common.records.atomic_files import write_bytes
from common.records.weights import Arrays, load, load_metadata, save
from common.study.protocol import MessageOptions

_BODY: Final = ".safetensors"
_RESIDUAL: Final = ".residual"
Kind = Literal["control", "local", "personal"]
_CONTROL: Final = "control"
_LAYERS: Final[tuple[Kind, ...]] = ("local", "personal")


@dataclass(frozen=True)
class Trained:
    """What a round of training gave: ``update`` is to be sent, the others are the site's own.

    ``local`` are the values of its local layers, ``personal`` all weights of its personal model.
    """

    update: Arrays
    local: Arrays = field(default_factory=dict)
    personal: Arrays = field(default_factory=dict)


class Kept:
    """What the site keeps of one study."""

    def __init__(self, site: Site, study: str) -> None:
        self._owner = site
        self._site = site.name
        self._study = study
        self._outbox = site.folder / "outbox" / study
        self._home = site.folder / "studies" / study

    def own(self, kind: Kind) -> Arrays:
        """Return what is the site's own, as it was settled last, or {}; raise ModelError."""
        path = self._place(kind)
        return load(path) if path.exists() else {}

    def models(self, weights: Sequence[tuple[str, Arrays]]) -> list[tuple[str, Arrays]]:
        """Return ``weights`` by name, then with this site's local layers, then its personal model.

        Raises StateError (code ``own``) if the study left nothing of its own here.
        """
        local, personal = self.own("local"), self.own("personal")
        if not local and not personal:
            raise StateError(
                f"Study {self._study} has left neither local layers nor a personal model here.",
                do="Its protocol has none, or no round was trained yet: leave --own out.",
                code="own",
            )
        found = list(weights)
        if local:
            found += [(f"{name}, local layers", {**one, **local}) for name, one in weights]
        if personal:
            found.append(("personal model", personal))
        return found

    def scores(self, round_number: int, weights: str) -> Path:
        """Return where the scores of these weights (SHA-256) are until they leave."""
        return self._stem(round_number, weights).with_suffix(".json")

    @property
    def statistics(self) -> Path:
        """Return where the noised histograms of the cohort are."""
        return self._home / "statistics.json"

    def body(self, round_number: int, weights: str, *, left: bool = False) -> bytes | None:
        """Return the update that was made for the round from these weights, as it was encoded.

        ``left`` says that it has left before. Raises what ``charged_files.read`` raises.
        """
        path = self._stem(round_number, weights).with_suffix(_BODY)
        return charged_files.read(self._owner, path, left=left)

    def settle(self) -> None:
        """Finish what was left when the last update was kept: its layers become the site's own."""
        newest = self._newest()
        if newest is None:
            return
        for path in self._outbox.glob(f"*{_BODY}"):
            if path.stem != newest.stem:
                self._remove(path.stem)
        for kind in _LAYERS:
            made = newest.with_suffix(f".{kind}")
            if made.exists():
                write_bytes(self._place(kind), made.read_bytes())
                made.unlink()

    def settle_control(self, folded_round: int) -> None:
        """Take over the c_i of ``folded_round``, the last round with an update of this site.

        Raises StateError (code ``control``) if neither it nor its follower is of that round.
        """
        place = self._place(_CONTROL)
        known = int(load_metadata(place)["round"]) if place.exists() else 0
        if known == folded_round:
            return
        newest = self._newest()
        made = newest.with_suffix(f".{_CONTROL}") if newest is not None else None
        if made is None or not made.exists() or _round(made) != folded_round:
            raise StateError(
                f"The control variate of {self._site} in study {self._study} is of round {known}, "
                f"and the coordinator's last round with this site is {folded_round}.",
                do="Put the newest copies of the folders studies and outbox back, or leave the "
                "study: its correction would be wrong for all sites.",
                code="control",
            )
        write_bytes(place, made.read_bytes())

    def check_room(self, size_bytes: int) -> None:
        """Raise StateError (code ``disk-full``) unless the disk has so much: before any training.

        A round that cannot be kept costs its privacy each time that it is ordered again.
        """
        self._outbox.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._outbox).free
        if free < size_bytes:
            raise StateError(
                f"The disk of {self._outbox} has {free} bytes left; the round needs {size_bytes}.",
                do="Free space; the coordinator will order again.",
                code="disk-full",
            )

    def keep(
        self,
        round_number: int,
        weights: str,
        trained: Trained,
        *,
        messages: MessageOptions,
        control: Callable[[bytes], Arrays] | None = None,
    ) -> bytes:
        """Encode an update, keep it until the next round, and return the bytes that leave.

        ``control`` makes c_i from those bytes. Raises StateError if the disk is full: then the
        round counts as not trained.
        """
        stem = self._stem(round_number, weights)
        newest = self._newest()
        left_out = newest.with_suffix(_RESIDUAL) if newest is not None else None
        old = load(left_out) if left_out is not None and left_out.exists() else None
        body, residual = encode(trained.update, messages, residual=old)
        made = {
            _RESIDUAL: residual,
            f".{_CONTROL}": control(body) if control is not None else {},
            ".local": trained.local,
            ".personal": trained.personal,
        }
        for suffix, arrays in made.items():
            if arrays:
                facts = {"study": self._study, "round": str(round_number)}
                save(stem.with_suffix(suffix), arrays, facts)
        charged_files.write(self._owner, stem.with_suffix(_BODY), body)
        for path in self._outbox.iterdir():
            if path.stem != stem.name:
                path.unlink()
        self.settle()
        return body

    def _place(self, kind: Kind) -> Path:
        return self._home / f"{kind}.safetensors"

    def _stem(self, round_number: int, weights: str) -> Path:
        return self._outbox / f"{round_number:04d}-{weights}"

    def _newest(self) -> Path | None:
        """Return the last update; two are there if the process was killed between them."""
        found = sorted(self._outbox.glob(f"*{_BODY}"), key=lambda path: path.stat().st_mtime_ns)
        return found[-1] if found else None

    def _remove(self, stem: str) -> None:
        for path in self._outbox.glob(f"{stem}.*"):
            path.unlink()


def _round(path: Path) -> int:
    return int(load_metadata(path)["round"])
