"""What a site keeps between orders, killed at every change of a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from client.site.folder import Site
from client.study import charged_files
from client.study import round_state as module
from client.study.round_state import Kept, Trained
from client.training.drift_correction import next_control
from common.errors import StateError
from common.messages.compression import decode
from common.records.weights import Arrays, load
from common.study.protocol import MessageOptions
from tests.consortia import STUDY

INT8 = MessageOptions(encoding="int8", top_share=0.5)
SHAPES = {"w": (40,)}
FOLDED = (True, False, True, True)
"""Whether the update of each round became part of it."""


class KilledError(BaseException):
    pass


class Disk:
    """Counts changes of files and kills the process at one of them, before or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: float = float("inf")
        self.after = False
        self.count = 0
        places = ((module, "write_bytes"), (module, "save"), (Path, "unlink"))
        notes = ((charged_files, "write_bytes"), (charged_files, "write_json"))
        for place, name in (*places, *notes):
            monkeypatch.setattr(place, name, self._counted(getattr(place, name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*values: Any, **options: Any) -> None:
            self.count += 1
            self.left -= 1
            if self.left == 0 and not self.after:
                raise KilledError
            change(*values, **options)
            if self.left == 0:
                raise KilledError

        return counted


T = TypeVar("T")


def again(task: Callable[[], T]) -> T:
    """Do ``task`` until the process lives through it."""
    while True:
        try:
            return task()
        except KilledError:
            continue


def value(number: int) -> Arrays:
    rng = np.random.default_rng(number)
    return {"w": rng.normal(size=40).astype(np.float32)}


def carry_out(kept: Kept, number: int, folded_round: int, c: Arrays) -> bytes:
    """Do what ``client.runtime.order_handler`` does with an order to train."""
    body = kept.body(number, "f" * 64)
    kept.settle()
    if body is not None:
        return body
    kept.settle_control(folded_round)
    return kept.keep(
        number,
        "f" * 64,
        Trained(value(number), local={"n": np.full(2, number, np.float32)}),
        messages=INT8,
        control=lambda sent: next_control(
            kept.own("control"), c, decode(sent, SHAPES, INT8), steps=2, learning_rate=0.5
        ),
    )


def study(site: Site, disk: Disk, *, kill_at: int, after: bool) -> None:
    """Do all rounds; the coordinator gives an order again after the site was killed."""
    disk.left, disk.after = kill_at, after
    expected: Arrays = {}
    folded_round = 0
    for number, folded in enumerate(FOLDED, start=1):
        c = value(100 + number)
        order = partial(carry_out, number=number, folded_round=folded_round, c=c)
        body = again(lambda order=order: order(Kept(site, STUDY)))
        assert order(Kept(site, STUDY)) == body
        assert np.array_equal(Kept(site, STUDY).own("local")["n"], [number, number])
        for name, array in Kept(site, STUDY).own("control").items():
            assert np.array_equal(array, expected[name])
        if folded:
            sent = decode(body, SHAPES, INT8)
            expected = next_control(expected, c, sent, steps=2, learning_rate=0.5)
            folded_round = number
    again(lambda: Kept(site, STUDY).settle_control(folded_round))
    assert np.array_equal(Kept(site, STUDY).own("control")["w"], expected["w"])


def test_a_site_killed_at_any_change_of_a_file_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # of no use to a killed process, and slow
    study(site, disk, kill_at=10**9, after=False)
    changes = disk.count
    assert changes > 6 * len(FOLDED)
    for after in (False, True):
        for kill_at in range(1, changes + 1):
            shutil.rmtree(site.folder / "outbox", ignore_errors=True)
            shutil.rmtree(site.folder / "studies", ignore_errors=True)
            study(site, disk, kill_at=kill_at, after=after)
            assert disk.left <= 0
    left = {path.name.partition(".")[2] for path in (site.folder / "outbox" / STUDY).iterdir()}
    assert left == {"safetensors", "residual", "control", "ledger"}


def test_a_control_variate_of_another_round_stops_the_site(site: Site) -> None:
    kept = Kept(site, STUDY)
    carry_out(kept, 1, 0, value(100))
    carry_out(kept, 2, 1, value(101))
    own = site.folder / "studies" / STUDY / "control.safetensors"
    for folded in (0, 3):
        with pytest.raises(StateError, match=f"round 1, .* site is {folded}") as caught:
            kept.settle_control(folded)
        assert caught.value.code == "control"
    own.unlink()
    kept.settle_control(2)  # its follower is still there
    own.unlink()
    shutil.rmtree(site.folder / "outbox")
    with pytest.raises(StateError, match="round 0"):
        kept.settle_control(2)
    kept.settle_control(0)


def test_a_full_disk_is_seen_before(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(site, STUDY)
    kept.check_room(1000)
    usage = type("Usage", (), {"free": 999})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StateError) as caught:
        kept.check_room(1000)
    assert caught.value.code == "disk-full"


def test_models_of_a_sites_own(site: Site) -> None:
    kept = Kept(site, STUDY)
    weights = {"w": np.zeros(3, np.float32), "n": np.zeros(2, np.float32)}
    with pytest.raises(StateError) as caught:
        kept.models([("global", weights)])
    assert caught.value.code == "own"
    keep = {"messages": MessageOptions()}
    kept.keep(1, "a" * 64, Trained({}, local={"n": np.ones(2, np.float32)}), **keep)  # type: ignore[arg-type]
    (_, plain), (name, own) = kept.models([("global", weights)])
    assert plain is weights
    assert name == "global, local layers"
    assert (own["n"].tolist(), own["w"].tolist()) == ([1, 1], [0, 0, 0])
    kept.keep(2, "b" * 64, Trained({}, personal={"w": np.ones(3, np.float32)}), **keep)  # type: ignore[arg-type]
    assert [name for name, _ in kept.models([("global", weights)])] == [
        "global",
        "global, local layers",
        "personal model",
    ]
    path = site.folder / "studies" / STUDY / "personal.safetensors"
    assert load(path)["w"].tolist() == [1, 1, 1]
