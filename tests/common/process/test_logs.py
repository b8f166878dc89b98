"""What an attack on the logs finds: no name of a patient, whatever a module logs."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from common.errors import CaseError
from common.process import logs
from common.records.journal import Journal
from tests.logging_state import restored

PATIENT = "-".join(["BraTS", "GLI", "00042"])
Read = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def configured() -> Iterator[Callable[..., Read]]:
    def configure(**options: Any) -> Read:
        out = io.StringIO()
        logs.configure(
            "worker", known=lambda: ["pilot", "north"], form="json", stream=out, **options
        )
        return lambda: [json.loads(line) for line in out.getvalue().splitlines()]

    with restored():
        yield configure


def read_scan() -> None:
    try:
        raise FileNotFoundError(2, "no such file", f"/data/{PATIENT}/t1c.nii.gz")
    except FileNotFoundError as error:
        error.add_note(PATIENT)
        raise ValueError(f"scan of {PATIENT}") from error


def caught(log: Callable[..., None], *words: Any, **fields: Any) -> None:
    try:
        read_scan()
    except ValueError:
        log(*words, **fields)


def warned(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(text, stacklevel=1)


OURS, THEIRS = logging.getLogger("client.training.loop"), logging.getLogger("nibabel.loading")


def bound() -> Any:
    return logs.get_logger("client.worker")


ATTACKS: dict[str, Callable[[], object]] = {
    "in the words": lambda: bound().info(f"case {PATIENT} failed"),
    "as the words": lambda: bound().info(PATIENT),
    "as a value": lambda: bound().info("order done", patient=PATIENT),
    "as a key": lambda: bound().info("order done", **{PATIENT: 1}),
    "as a study": lambda: bound().info("order done", study=PATIENT, site=PATIENT),
    "as a code": lambda: bound().info("order done", code=f"{PATIENT} x"),
    "as a list": lambda: bound().info("order done", took_part=[PATIENT, "north"]),
    "as an order": lambda: bound().info("order done", order=PATIENT, round=PATIENT),
    "bound before": lambda: bound().bind(case=PATIENT).info("order done"),
    "in a context": lambda: (
        structlog.contextvars.bound_contextvars(case=PATIENT).__enter__()
        or bound().info("order done")
    ),
    "as an argument": lambda: OURS.warning("A scan of %s is not counted", PATIENT),
    "as a dictionary": lambda: OURS.warning("A scan of %(name)s", {"name": PATIENT}),
    "as an extra": lambda: OURS.warning("A scan", extra={"patient": PATIENT}),
    "in a text that was put together": lambda: OURS.warning(f"A scan of {PATIENT}"),
    "in an error of ours": lambda: OURS.warning("Left out. %s", CaseError(f"No {PATIENT}.")),
    "in a traceback": lambda: caught(OURS.exception, "An order failed for %s", PATIENT),
    "in a traceback of structlog": lambda: caught(bound().exception, "order failed"),
    "in the stack": lambda: OURS.warning("A scan", stack_info=True),
    "by a library": lambda: THEIRS.error("cannot read %s", PATIENT),
    "by a library with an error": lambda: caught(THEIRS.exception, "x"),
    "by a library that we trust": lambda: logging.getLogger("httpx").warning(
        f"GET /x/{PATIENT}/y '{PATIENT}'"
    ),
    "in a warning": lambda: warned(f"odd header of {PATIENT}"),
    "in what ends the process": lambda: caught(lambda: sys.excepthook(*sys.exc_info())),
}


@pytest.mark.parametrize("way", ATTACKS)
def test_no_patient_gets_into_a_log(configured: Callable[..., Read], way: str) -> None:
    read = configured()
    ATTACKS[way]()
    structlog.contextvars.clear_contextvars()
    said = read()
    assert said  # something was logged, and that is not the name
    assert PATIENT not in json.dumps(said)
    assert "00042" not in json.dumps(said)


def test_what_is_of_use_gets_through(configured: Callable[..., Read]) -> None:
    read = configured()
    bound().info("order done", study="pilot", site="north", round=3, order="train", seconds=1.5)
    OURS.warning("Training goes on after %.0f s.", 12.3)
    OURS.warning("Left out. %s", CaseError("x", code="case-grid"))
    caught(OURS.exception, "An order failed.")
    done, waited, left, failed = read()
    assert (done["event"], done["study"], done["round"]) == ("order done", "pilot", 3)
    assert (done["process"], done["level"], done["seconds"]) == ("worker", "info", 1.5)
    assert waited["event"] == "Training goes on after 12 s."
    assert left["event"] == "Left out. case-grid"
    assert (failed["error"], failed["errors"]) == ("ValueError", ["FileNotFoundError"])
    assert failed["at"][-1].endswith("read_scan")


def test_the_coordinator_may_read_the_words_of_an_error(configured: Callable[..., Read]) -> None:
    read = configured(in_words=True)
    try:
        raise OSError("refused at /home/x/y")
    except OSError:
        OURS.exception("It failed.")
    (said,) = read()
    assert said["reason"] == "refused at ..."


def test_facts_of_a_journal(configured: Callable[..., Read], tmp_path: Any) -> None:
    read = configured()
    journal = Journal(tmp_path / "j")
    journal.append("round closed", study="pilot", round=1, took_part=["north"], by=PATIENT)
    logs.log_facts(bound(), journal.entries())
    (said,) = read()
    assert (said["event"], said["took_part"]) == ("round closed", ["north"])
    assert PATIENT not in json.dumps(said)
