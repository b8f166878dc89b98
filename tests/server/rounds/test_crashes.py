"""A coordinator that dies at any write of its journal ends with the bits that it would have had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from common.errors import StateError
from common.messages.compression import encode
from common.messages.wire_format import Content, Order, pack
from common.records.weights import Arrays, digest
from common.study.protocol import MessageOptions
from server.aggregation import RULES
from server.consortium.provisioning import Consortium
from tests.server.conftest import Clock, World, report

SITES = ("a", "b", "c", "d", "e")
MESSAGES = {"int8": MessageOptions(encoding="int8"), "float32": MessageOptions()}
Moment = Literal["before", "within", "after"]

EXTRA: dict[str, dict[str, Any]] = {
    "scaffold": {
        "training": {
            "local_steps": 1,
            "learning_rate": 0.1,
            "optimizer": '"sgd"',
            "momentum": 0.0,
        }
    },
    "norm_bounded_mean": {"aggregation": {"norm_bound": 2.0}},
}
STUDIES = [(rule, "float32", 0) for rule in RULES] + [
    ("fedavg", "int8", 0),
    ("fedadam", "int8", 2),
]
"""Rule, encoding of updates, and how many rounds late an update may come."""

SOON = [("scaffold", "float32", 0), ("fedadam", "int8", 2)]
"""Those without which no change passes: rules with a state at the sites and at the coordinator, an
encoding, late updates."""


class CrashError(BaseException):
    """The process ends here."""


class CrashingJournal:
    """The journal of a coordinator that dies at its ``at``-th write: nothing of the line is there
    then, or a part of it, or all."""

    def __init__(self, journal: Any, at: int, moment: Moment) -> None:
        self._journal, self._left, self._moment = journal, at, moment

    def append(self, event: str, **facts: Any) -> Any:
        self._left -= 1
        if self._left == 0 and self._moment == "before":
            raise CrashError
        entry = self._journal.append(event, **facts)
        if self._left == 0:
            if self._moment == "within":
                data = self._journal.path.read_bytes()
                self._journal.path.write_bytes(data[:-20])
            raise CrashError
        return entry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


class Template:
    """A published study that all sites approved; each trial runs on a copy of its folder."""

    def __init__(self, folder: Path, rule: str, encoding: str, late_rounds: int) -> None:
        self.folder = folder
        self.encoding = encoding
        self.world = World(folder / "template", Clock())
        self.world.join(*SITES)
        changes: dict[str, Any] = {
            "messages": {"encoding": f'"{encoding}"'},
            **EXTRA.get(rule, {}),
        }
        changes["aggregation"] = {
            "quorum": 5,
            "deadline_s": 100,
            "late_rounds": late_rounds,
            **changes.get("aggregation", {}),
            "rule": f'"{rule}"',
        }
        self.world.publish(rounds=2, **changes)
        self.world.rounds().approvals.gather(len(SITES))
        self.trials = 0

    def copy(self) -> World:
        """Return a world of its own with the same sites, which have trained for nothing yet."""
        self.trials += 1
        world = object.__new__(World)
        world.folder = self.folder / str(self.trials)
        world.clock = Clock()
        shutil.copytree(self.world.folder / "coordinator", world.folder / "coordinator")
        world.consortium = Consortium.open(world.folder / "coordinator")
        world.hospitals = {}
        world.fleet = type(self.world.fleet)(world.hospitals, world.clock)
        for name, known in self.world.hospitals.items():
            hospital = type(known)(name, known.identity)
            hospital.replies["train"] = Training(name, self.encoding)
            world.hospitals[name] = hospital
        world.fleet._sites = dict(world.hospitals)
        return world


class Training:
    """Answers an order to train with what site, round and weights determine, and counts orders."""

    def __init__(self, site: str, encoding: str) -> None:
        self.site, self.messages = site, MESSAGES[encoding]
        self.made: dict[tuple[int, str], bytes] = {}

    def __call__(self, order: Order, _good: Content) -> Content:
        key = (order.round, order.weights_sha256)
        if key not in self.made:
            seed = [*self.site.encode(), order.round, *bytes.fromhex(order.weights_sha256)]
            rng = np.random.default_rng(seed)
            shapes = {"conv_final.0.weight": (3,), "conv_final.2.weight": (2, 3)}
            update: Arrays = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
            self.made[key] = encode(update, self.messages, rng=rng)[0]
        return pack(report(order), self.made[key])


@pytest.mark.parametrize(
    ("rule", "encoding", "late_rounds"),
    [pytest.param(*study, marks=() if study in SOON else pytest.mark.slow) for study in STUDIES],
)
def test_a_crash_at_any_fact_changes_no_bit(
    tmp_path: Path, rule: str, encoding: str, late_rounds: int
) -> None:
    template = Template(tmp_path, rule, encoding, late_rounds)
    whole = template.copy()
    before = len(whole.names())
    whole.run()
    expected = digest(whole.weights())
    facts = len(whole.names()) - before
    assert facts == 2 + 2 * (1 + len(SITES) + 1 + 1)
    for at in range(1, facts + 1):
        moments: tuple[Moment, ...] = ("before", "within", "after")
        for moment in moments:
            world = template.copy()
            world.consortium.study("demo").want("running")
            journal = CrashingJournal(world.consortium.journal, at, moment)
            with pytest.raises(CrashError):
                world.rounds(journal=journal).run()
            world.run()
            where = f"{moment} fact {at}"
            assert digest(world.weights()) == expected, where
            assert world.names()[-1] == "study finished", where
            closed = world.events("round closed")
            assert [one["round"] for one in closed] == [1, 2], where
            for one in closed:
                world.consortium.study("demo").load(one["round"], one["weights"])
            assert {one["round"] for one in world.events("evaluated")} == {1, 2}, where
            for hospital in world.hospitals.values():
                training = hospital.replies["train"]
                assert isinstance(training, Training)
                assert len(training.made) == 2, f"{hospital.name} trained twice, {where}"
            shutil.rmtree(world.folder)


def test_a_full_disk_at_any_fact_changes_no_bit(tmp_path: Path) -> None:
    class FullJournal(CrashingJournal):
        def append(self, event: str, **facts: Any) -> Any:
            try:
                return super().append(event, **facts)
            except CrashError:
                raise StateError("Cannot write.", code="journal-write") from None

    template = Template(tmp_path, "fedadam", "float32", 0)
    whole = template.copy()
    before = len(whole.names())
    whole.run()
    for at in range(1, len(whole.names()) - before + 1):
        world = template.copy()
        world.consortium.study("demo").want("running")
        with pytest.raises(StateError):
            world.rounds(journal=FullJournal(world.consortium.journal, at, "before")).run()
        world.run()
        assert digest(world.weights()) == digest(whole.weights()), f"fact {at}"
