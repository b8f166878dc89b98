"""Training waits for a clinical job, and computes what it would have computed."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
import torch

from client.networks.registry import build
from client.privacy.dp_sgd import CountingCharge, train_privately
from client.site.execution import ExecutionOptions
from client.site.folder import Site
from client.site.preemption import clinical_job, yielding
from client.training.loop import train
from common.records.atomic_files import held, is_held
from common.records.weights import digest
from common.study.protocol import NetworkOptions, PrivacyOptions
from tests.client.training.test_loop import cohort, options

torch.set_num_threads(1)
TINY = NetworkOptions(size="tiny")
PLAIN = ExecutionOptions(prefetch=0)
WANTED = options(local_steps=4, crops_per_patient=1)


def test_training_waits_before_the_step_and_changes_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    alone = train(build(TINY, seed=0), cohort(2), WANTED, seed=0, execution=PLAIN)
    done: list[int] = []
    second, waiting = threading.Event(), threading.Event()
    found = []

    def progress(step: int, _: int) -> None:
        done.append(step)
        if step == 2:
            second.set()
            job_began.wait(30)

    def sleep(seconds: float) -> None:
        assert seconds == 0.01
        waiting.set()
        time.sleep(seconds)

    def work() -> None:
        found.append(
            train(
                build(TINY, seed=0),
                cohort(2),
                WANTED,
                seed=0,
                execution=PLAIN,
                before_step=yielding(site, poll_s=0.01, sleep=sleep),
                progress=progress,
            )
        )

    job_began = threading.Event()
    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=work)
        thread.start()
        assert second.wait(30)
        with clinical_job(site), clinical_job(site):  # two at once, as in a clinic
            job_began.set()
            assert waiting.wait(30)
            time.sleep(0.1)
            assert done == [1, 2]
        thread.join(30)
    assert done == [1, 2, 3, 4]
    assert digest(found[0].update) == digest(alone.update)
    assert caplog.text.count("Training waits") == 1
    assert caplog.text.count("Training goes on") == 1


def test_a_private_step_waits_before_it_is_charged(site: Site) -> None:
    charge = CountingCharge()
    charged: list[int] = []

    def sleep(_: float) -> None:
        charged.append(len(charge.reserved))
        job.close()

    job = _Job(site)
    train_privately(
        build(TINY, seed=0),
        cohort(1),
        WANTED,
        PrivacyOptions(),
        charge,
        execution=PLAIN,
        before_step=yielding(site, sleep=sleep),
    )
    assert charged == [0]
    assert charge.confirmed == 4


class _Job:
    def __init__(self, site: Site) -> None:
        self._held = clinical_job(site)
        self._held.__enter__()

    def close(self) -> None:
        self._held.__exit__(None, None, None)


def test_a_clinical_job_never_fails_for_a_lock(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    done = []
    with (
        held(site.clinic_lock, what="a test"),
        caplog.at_level(logging.WARNING),
        clinical_job(site),
    ):
        done.append("segmented")
    assert done
    assert "will not wait" in caplog.text
    assert not is_held(site.clinic_lock)


def test_training_goes_on_where_the_lock_cannot_be_seen(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("client.site.preemption.is_held", refuse)
    with caplog.at_level(logging.WARNING):
        yielding(site)()
    assert "Permission denied" in caplog.text
