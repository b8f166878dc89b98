"""Logs of our processes: what happened, to which study and round, and never a patient.

A log is read by more people than a journal, and is copied to more places. So a line is an
allow-list, as the door is through which updates leave: known fields, each with the form that its
value must have; everything else is left out and counted. The words of an event must be a constant
in the source of who logs it, or they are kept back; numbers, dates and the codes of our errors are
put into them, nothing else. Of an error there is its kind and the lines of code that it went
through, not its text, which may name a file, and so a patient. Of libraries that look at images
there is who spoke and how urgently, not what was said.

``study`` and ``site`` must be among the names that this process knows: a patient's name that has
the form of a study's id does not pass.

At the coordinator's, where no patient is, the text of an error may be read as well (``in_words``),
without paths.

``configure`` is called once, at a process's edge; modules log by the standard library's ``logging``
with a constant text, or by ``get_logger`` with an event and fields.

Out of scope: what Flower's own processes write (they never see a patient), and what native
libraries print.
"""

from __future__ import annotations

import ast
import datetime as dt
import functools
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import structlog

from common.errors import GliofedError
from common.foreign_text import printable
from common.records.journal import Entry

Form = Literal["text", "json"]
FORM: Final = "GLIOFED_LOG"
"""The environment variable by which a supervisor tells its children the form."""

KEPT_BACK: Final = "[kept back]"
_OURS: Final = ("client", "server", "common")
_TRUSTED: Final = ("flwr", "uvicorn", "httpx", "httpcore", "asyncio", "starlette")
"""Libraries that move messages and never see what is in them."""

_ROOT: Final = Path(__file__).parents[2]
_REASON_LETTERS: Final = 400
_FACT: Final = re.compile(r"[a-z][a-z -]{0,60}")
_CODE: Final = re.compile(r"[a-z0-9-]{1,60}")
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,80}")
_TIME: Final = re.compile(r"[0-9T:.+Z-]{10,40}")
_AT: Final = re.compile(r"[A-Za-z0-9_./<>]{1,120}:\d{1,6} [A-Za-z0-9_<>]{1,80}")
_PATHS: Final = re.compile(r"(?:[A-Za-z]:)?[\w.~-]*[/\\][^\s'\"]*")
_PLACE: Final = re.compile(r"%[-#0 +]*[\d.]*[sdifgre]")
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_LEVELS: Final = frozenset({"debug", "info", "warning", "error", "critical", "exception"})
_ORDERS: Final = frozenset({"offer", "initial", "describe", "train", "evaluate"})

Known = Callable[[], Iterable[str]]
"""Returns the names of studies and sites that this process may speak of."""


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _matches(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


_FIELDS: Final[Mapping[str, Callable[[object], bool]]] = {
    "time": _matches(_TIME),
    "level": lambda value: value in _LEVELS,
    "logger": _matches(_WORD),
    "process": _matches(_WORD),
    "round": _number,
    "order": lambda value: value in _ORDERS,
    "code": _matches(_CODE),
    "exit_code": _number,
    "child": _matches(_WORD),
    "pid": _number,
    "number": _number,
    "seconds": _number,
    "bytes": _number,
    "steps": _number,
    "rounds": _number,
    "port": _number,
    "error": _matches(_WORD),
    "errors": lambda value: _all(value, _matches(_WORD)),
    "at": lambda value: _all(value, _matches(_AT)),
    "left_out": _number,
    "reason": lambda value: isinstance(value, Reason),
}


class Reason(str):
    """The text of an error that a log may hold."""


_NAMES: Final = frozenset({"study", "site"})
_LISTS: Final = frozenset({"took_part"})


def _all(value: object, sound: Callable[[object], bool]) -> bool:
    return isinstance(value, list | tuple) and all(sound(one) for one in value)


class Safe:
    """The processor that lets known fields through and nothing else; the last before the words."""

    def __init__(self, known: Known) -> None:
        self._ask = known
        self._known: frozenset[str] = frozenset()

    def __call__(
        self, _logger: Any, _method: str, said: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event, out, left_out = said.pop("event", ""), {}, 0
        for key, value in said.items():
            if (key in _FIELDS and _FIELDS[key](value)) or (key in _NAMES and self._named(value)):
                out[key] = value
            elif key in _LISTS and isinstance(value, list | tuple):
                out[key] = [one for one in value if self._named(one)]
            elif not str(key).startswith("_"):
                left_out += 1
        if left_out:
            out["left_out"] = left_out
        return {"event": event, **out}

    def _named(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        if value not in self._known:
            self._known = frozenset(self._ask())
        return value in self._known


def told(error: BaseException, *, in_words: bool = False) -> dict[str, Any]:
    """Return what a log may say of an error: its kinds, from effect to cause, and where it went."""
    kinds, at, seen = [], [], set[int]()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        kinds.append(type(one).__name__)
        if one is error:
            at = [_place(frame) for frame in traceback.extract_tb(one.__traceback__)]
        one = one.__cause__ or one.__context__
    said: dict[str, Any] = {"error": kinds[0], "at": at[-12:]}
    code = getattr(error, "code", None)
    if isinstance(code, str):
        said["code"] = code
    if len(kinds) > 1:
        said["errors"] = kinds[1:]
    if in_words and str(error):
        said["reason"] = Reason(_without_paths(str(error)))
    return said


def _without_paths(text: str) -> str:
    return printable(" ".join(_PATHS.sub("...", text).split()))[:_REASON_LETTERS]


def _place(frame: traceback.FrameSummary) -> str:
    """Return a line of code, named from its package on: where things are installed is no news."""
    path = Path(frame.filename)
    parts = path.parts
    if path.is_relative_to(_ROOT) and "site-packages" not in parts:
        parts = path.relative_to(_ROOT).parts
    elif "site-packages" in parts:
        parts = parts[parts.index("site-packages") + 1 :]
    else:
        parts = parts[-1:]
    return f"{'/'.join(parts)}:{frame.lineno or 0} {frame.name}"


class _Errors:
    """The processor that puts what may be said of an exception in the place of the exception."""

    def __init__(self, *, in_words: bool) -> None:
        self._in_words = in_words

    def __call__(
        self, _logger: Any, _method: str, said: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        given = said.pop("exc_info", None)
        said.pop("stack_info", None)
        error = given[1] if isinstance(given, tuple) else given
        if given is True:
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            said.update(told(error, in_words=self._in_words))
        return said


class _Words(logging.Filter):
    """Decides what may be read of a record's words, before anything reads them."""

    def __init__(self, *, in_words: bool) -> None:
        super().__init__()
        self._in_words = in_words

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict):  # of ``get_logger``
            event = str(record.msg.get("event", ""))
            caller = str(record.msg.get("pathname", ""))
            ours = caller == __file__ or event in _constants(caller)
            record.msg = {**record.msg, "event": event if ours else KEPT_BACK}
            record.msg.pop("pathname", None)
            return True
        record.msg = _words(record, in_words=self._in_words)
        record.args = None
        record.exc_text = None
        return True


def _words(record: logging.LogRecord, *, in_words: bool) -> str:
    package = record.name.partition(".")[0]
    text = str(record.msg)
    if package in _OURS:
        if not _is_constant(record, text):
            return KEPT_BACK
        return _PLACE.sub(_values(record.args, in_words=in_words), text)
    if package in _TRUSTED:
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            said = text
        return _without_paths(_QUOTED.sub("...", said))
    return "A library spoke; what it said is kept back."


def _is_constant(record: logging.LogRecord, text: str) -> bool:
    """Return whether ``text`` stands, whole, in the source of the module that logs it."""
    return text in _constants(record.pathname)


@functools.cache
def _constants(path: str) -> frozenset[str]:
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    parts = {id(one) for f in ast.walk(tree) if isinstance(f, ast.JoinedStr) for one in f.values}
    return frozenset(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
    )


def _values(given: object, *, in_words: bool) -> Callable[[re.Match[str]], str]:
    """Return what puts the values ``given`` that may be read into a text, and dots for all else."""
    left = iter(given if isinstance(given, tuple) else (given,))

    def value(place: re.Match[str]) -> str:
        one = next(left, None)
        if isinstance(one, GliofedError):
            return _without_paths(str(one)) if in_words else one.code
        try:
            return str(place[0] % one) if _number(one) or isinstance(one, dt.date) else "..."
        except (TypeError, ValueError):
            return "..."

    return value


class _Renderer:
    """JSON lines for programs, ``key=value`` lines for people."""

    def __init__(self, form: Form) -> None:
        order = ["time", "level", "process", "event", "study", "round", "site", "order", "code"]
        self._render: Any = (
            structlog.processors.JSONRenderer()
            if form == "json"
            else structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True)
        )

    def __call__(self, logger: Any, method: str, said: MutableMapping[str, Any]) -> str:
        flat = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in said.items()}
        chosen = said if isinstance(self._render, structlog.processors.JSONRenderer) else flat
        return str(self._render(logger, method, chosen))


def form_named() -> Form | None:
    """Return the form that the environment names, or None."""
    said = os.environ.get(FORM)
    return None if said is None else "json" if said == "json" else "text"


def form_wanted() -> Form:
    """Return the form that the supervisor asked for."""
    return form_named() or "text"


def configure(
    process: str,
    *,
    known: Known,
    in_words: bool = False,
    form: Form | None = None,
    stream: TextIO | None = None,
) -> None:
    """Let every log of this process pass ``Safe``, also what ends it without being caught."""

    def ours(_l: Any, _m: str, said: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        said["process"] = process
        return said

    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        ours,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _Errors(in_words=in_words),
            Safe(known),
            _Renderer(form or form_wanted()),
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_Words(in_words=in_words))
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("httpx", "httpcore", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            *before,
            # Whose source the words must be in; a logger of the library may be older than this.
            structlog.processors.CallsiteParameterAdder(
                {structlog.processors.CallsiteParameter.PATHNAME}
            ),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    sys.excepthook = _uncaught
    threading.excepthook = lambda gone: _uncaught(gone.exc_type, gone.exc_value, gone.exc_traceback)


def get_logger(name: str) -> Any:
    """Return a logger of events and fields."""
    return structlog.stdlib.get_logger(name)


def log_facts(logger: Any, entries: Iterable[Entry], *, site: str = "") -> None:
    """Log facts of a journal: the event, and of its facts what a log may hold."""
    for entry in entries:
        own = {"site": site} if site else {}
        event = entry.event if _FACT.fullmatch(entry.event) else KEPT_BACK
        logger.info(event, number=entry.number, **{**own, **_plain(entry.facts)})


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts whose names are fields; all else of a journal is no matter of a log."""
    fields = (*_FIELDS, *_NAMES, *_LISTS)
    return {key: facts[key] for key in fields if key in facts and facts[key] not in ("", None)}


def _uncaught(
    kind: type[BaseException], error: BaseException | None, _trace: TracebackType | None
) -> None:
    if isinstance(error, KeyboardInterrupt):
        return
    gone = error if error is not None else kind()
    logging.getLogger("common.process.logs").critical(
        "The process ended by an error.", exc_info=gone
    )
