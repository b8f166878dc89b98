"""One study on a consortium that something happens to, and what must hold of it whatever that was.

The hospital that things happen to is ``north``; two others are well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.privacy import budget_caps
from client.study import round_training
from common.messages.compression import decode
from common.records.journal import Entry
from common.records.weights import Arrays, digest
from tests import children
from tests.deployment.stack import Stack, until
from tests.deployment.wires import Wire, Wires

NORTH: Final = "north"
SITES: Final = (NORTH, "south", "west")
ROUNDS: Final = 2
LOCAL_STEPS: Final = 2
PROTOCOL: Final = """\
study = "{study}"
title = "A test"
expires = 2099-12-31
rounds = {rounds}
evaluate_every = {rounds}
[network]
size = "{size}"
[preprocessing]
spacing_mm = 6.0
[training]
local_steps = {local_steps}
learning_rate = 0.001
crop_size = [16, 16, 16]
[aggregation]
quorum = 2
deadline_s = {deadline_s}
[privacy]
max_epsilon = 10
"""
_SLOW_BIT_S: Final = 1e6
_UNDER_WAY_BYTES: Final = 120_000
"""More than all calls of a few seconds, less than half of a tiny network."""


@dataclass
class Trial:
    """A study that runs while things happen to it."""

    stack: Stack
    wires: Wires
    study: str
    began: float = field(default_factory=time.monotonic)
    stopped: list[int] = field(default_factory=list)
    odd: set[str] = field(default_factory=set)
    """Supervisors that run with a command or an environment of another kind."""

    @property
    def wire(self) -> Wire:
        return self.wires[NORTH]

    def launch(
        self,
        *,
        deadline_s: float = 60.0,
        size: str = "tiny",
        odd: Mapping[str, str] | None = None,
    ) -> None:
        """Launch the study, which all three approve, and wait until its first round is opened.

        With ``odd``, north is started anew in that environment in between.
        """
        self.stack.publish(
            self.study,
            text=PROTOCOL,
            given=True,
            rounds=ROUNDS,
            local_steps=LOCAL_STEPS,
            deadline_s=deadline_s,
            size=size,
        )
        self.stack.wait_for_offer(self.study, *SITES, timeout_s=150)
        for name in SITES:
            self.stack.opened(name).decide(self.study, "approve", by="Dr Test")
        until(
            lambda: len(self.events("study approved")) == len(SITES),
            timeout_s=90,
            what="approvals heard",
        )
        if odd:
            self.restart(NORTH, odd)
        self.began = time.monotonic()
        self.relaunch()
        until(lambda: self.events("round opened", round=1), timeout_s=60, what="round 1")

    def relaunch(self) -> None:
        self.stack.call("gliofed-server", "launch", self.stack.coordinator, self.study, "--no-wait")

    def events(self, *names: str, **where: Any) -> list[Entry]:
        return self.stack.journal.events(*names, study=self.study, **where)

    def at_site(self, *names: str, site: str = NORTH, **where: Any) -> list[Entry]:
        return self.stack.opened(site).journal.events(*names, study=self.study, **where)

    def reach(self, moment: str, number: int = 1) -> None:
        """Wait until north is at ``moment`` of the round: in the middle of it.

        For ``download`` and ``upload`` its wire is slow from then on.
        """
        until(lambda: self.events("round opened", round=number), timeout_s=90, what="the round")
        if moment == "download":
            self.wire.rate_bit_s, base = _SLOW_BIT_S, self.wire.down_bytes
            until(
                lambda: self.wire.down_bytes > base + _UNDER_WAY_BYTES,
                timeout_s=60,
                what="half of the order",
                every_s=0.01,
            )
            assert not self.at_site("training", round=number)
            return
        until(
            lambda: self.at_site("training", round=number),
            timeout_s=90,
            what="training",
            every_s=0.02,
        )
        if moment == "upload":
            self.wire.rate_bit_s, base = _SLOW_BIT_S, self.wire.up_bytes
            until(
                lambda: self.wire.up_bytes > base + _UNDER_WAY_BYTES,
                timeout_s=60,
                what="half of the answer",
                every_s=0.01,
            )
        assert not self.events("reply accepted", round=number, site=NORTH), "too late"

    def kill(self, name: str, child: str) -> None:
        os.kill(self.stack.child(name, child), signal.SIGKILL)

    def freeze(self, name: str, child: str) -> None:
        pid = self.stack.child(name, child)
        os.kill(pid, signal.SIGSTOP)
        self.stopped.append(pid)

    def thaw(self) -> None:
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped.clear()

    def restart(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a supervisor anew, with more in its environment."""
        self.stack.end_supervisor(name)
        self.stack.start(name, environment=environment)
        (self.odd.add if environment else self.odd.discard)(name)

    def fill(self, name: str) -> None:
        """Leave no byte on the disk of a site or of the coordinator."""
        with self._ballast(name).open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass

    def free(self, name: str) -> None:
        self._ballast(name).unlink(missing_ok=True)

    def _ballast(self, name: str) -> Path:
        folder = self.stack.coordinator if name == "server" else self.stack.site(name)
        return folder / "ballast"

    @property
    def ended(self) -> Entry | None:
        """The entry that says how the study ended, or None while it runs."""
        ends = ("study finished", "study paused", "study stopped")
        last = self.events("study launched", *ends)[-1]
        return None if last.event == "study launched" else last

    def finish(self, timeout_s: float = 240.0) -> Entry:
        """Wait for the end of the study and return its entry."""
        until(lambda: self.ended, timeout_s=timeout_s, what=f"end of {self.study}", every_s=0.25)
        assert self.ended is not None
        return self.ended

    def restore(self) -> None:
        """Undo whatever was done to the consortium."""
        self.thaw()
        for wire in self.wires.wires.values():
            wire.mend()
        for name in ("server", NORTH):
            self.free(name)
        for name in sorted(self.odd):
            self.restart(name)
        if not self.ended:
            self.stack.call("gliofed-server", "stop", self.stack.coordinator, self.study)

    def closed(self) -> list[Entry]:
        return self.events("round closed")

    def dropped(self) -> list[set[str]]:
        """Return who is not in each closed round, as the coordinator says."""
        return [set(SITES) - set(entry.facts["took_part"]) for entry in self.closed()]

    def check(self) -> None:
        """Check that journals, ledgers, weights and the report agree."""
        self._check_rounds()
        self._check_sites()
        self._check_weights()
        self._check_report()

    def _check_rounds(self) -> None:
        assert [e.facts["round"] for e in self.closed()] == list(range(1, len(self.closed()) + 1))
        for entry in self.closed():
            number, took_part = entry.facts["round"], set(entry.facts["took_part"])
            asked = {s for e in self.events("round opened", round=number) for s in e.facts["sites"]}
            assert len(took_part) >= 2
            assert not took_part & set(entry.facts["dropped"]), "named twice"
            assert took_part | set(entry.facts["dropped"]) == asked, "somebody is not named"
            assert all(entry.facts["dropped"].values()), "dropped without a reason"

    def _check_sites(self) -> None:
        for name in SITES:
            sent = {
                (e.facts["round"], e.facts["update"])
                for e in self.at_site("sent", site=name, what="weight update")
            }
            for entry in self.closed():
                (accepted,) = self._accepted(entry, name) or (None,)
                assert (accepted is not None) == (name in entry.facts["took_part"])
                assert accepted is None or (entry.facts["round"], accepted) in sent
            charged = Counter[int]()
            with budget_caps.open_ledger(self.stack.opened(name)) as ledger:
                for fact in ledger.facts(study=self.study):
                    charged[fact.round] += fact.steps
            assert all(charged[number] >= LOCAL_STEPS for number, _ in sent), (name, charged, sent)

    def _accepted(self, closed: Entry, name: str) -> list[str]:
        """Return the digest of the update that counted, in a list, or an empty one."""
        opened = self.events("round opened", round=closed.facts["round"])
        last = [e for e in opened if e.number < closed.number][-1].number
        return [
            str(e.facts["update"])
            for e in self.events("reply accepted", round=closed.facts["round"], site=name)
            if last < e.number < closed.number
        ]

    def _check_weights(self) -> None:
        """Do the last round again from what the sites kept of it.

        A site keeps its last update alone: of another round if that was begun and never closed.
        """
        begun = max((e.facts["round"] for e in self.events("round opened")), default=0)
        study = self.stack.consortium.study(self.study)
        (started,) = self.events("study started")
        before = study.load(0, started.facts["weights"])
        for entry in self.closed():
            weights = study.load(entry.facts["round"], entry.facts["weights"])
            if entry.facts["round"] == len(self.closed()) == begun:
                updates = [self._kept(name, entry, before) for name in entry.facts["took_part"]]
                for key, value in weights.items():
                    change = np.mean([update[key] for update in updates], axis=0, dtype=np.float64)
                    np.testing.assert_allclose(value, before[key] + change, rtol=0, atol=1e-6)
            before = weights

    def _kept(self, name: str, closed: Entry, base: Arrays) -> Arrays:
        protocol = self.stack.consortium.study(self.study).protocol
        number = closed.facts["round"]
        folder = self.stack.site(name) / "outbox" / self.study
        body = (folder / f"{number:04d}-{digest(base)}.safetensors").read_bytes()
        update = decode(body, round_training.update_shapes(protocol, base), protocol.messages)
        assert [digest(update)] == self._accepted(closed, name)
        return update

    def _check_report(self) -> None:
        report = self.stack.report(self.study)
        assert self.ended is not None
        assert report["state"] == self.ended.event.removeprefix("study ")
        for entry, said in zip(self.closed(), report["rounds"], strict=True):
            assert set(said["took_part"]) == set(entry.facts["took_part"])
            assert set(said["dropped"]) == set(entry.facts["dropped"])

    def told(self) -> str:
        """Return in words what happened, as the coordinator's journal says."""
        words = []
        for entry in self.events("round closed", "round failed"):
            out = ", ".join(f"{site} ({why})" for site, why in entry.facts["dropped"].items())
            closed = "closed" if entry.event == "round closed" else "failed"
            words.append(f"round {entry.facts['round']} {closed} {f'without {out}' if out else ''}")
        lost = Counter(f"{e.facts['site']}: {e.facts['reason']}" for e in self.events("order lost"))
        words += [f"order lost {n}x ({what})" for what, n in lost.items()]
        end = self.ended
        if end is not None:
            paused = f"paused ({end.facts.get('code', '')})"
            words.append("finished" if end.event == "study finished" else paused)
        return "; ".join(word.strip() for word in words)


@contextlib.contextmanager
def own_disks(folders: Mapping[Path, int]) -> Iterator[None]:
    """Mount a small disk in memory at each folder; its size is in MiB."""
    mounted: list[Path] = []
    try:
        for folder, size_mib in folders.items():
            folder.mkdir(parents=True)
            words = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "gliofed-test", str(folder)]
            children.run(words, check=True)
            mounted.append(folder)
        yield
    finally:
        for folder in mounted:
            words = ["umount", "--lazy", str(folder)]
            children.run(words, check=True)
