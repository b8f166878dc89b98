"""What ``doctor`` says: each finding is well, a warning or a problem, with what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from common import console
from common.errors import GliofedError

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """``about`` is one word for what was looked at, ``do`` what to do unless all is well."""

    level: Level
    about: str
    what: str
    do: str = ""


def ok(about: str, what: str) -> Finding:
    return Finding("ok", about, what)


def warning(about: str, what: str, do: str) -> Finding:
    return Finding("warning", about, what, do)


def problem(about: str, what: str, do: str) -> Finding:
    return Finding("problem", about, what, do)


def looked(about: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what a look found; what it raises is a finding as well, and stops no other look."""
    try:
        return look()
    except GliofedError as error:
        return [problem(about, error.message, error.do or "See the log, and `--help`.")]
    except OSError as error:
        what = f"{error.filename or 'A file'}: {error.strerror or error}."
        return [problem(about, what, "Check its permissions and its disk.")]


def failed(findings: Iterable[Finding]) -> bool:
    return any(one.level == "problem" for one in findings)


def show(title: str, findings: Sequence[Finding], *, json: bool) -> None:
    """Print what was found, for a person or as JSON."""
    if json:
        value: dict[str, Any] = {
            "ok": not failed(findings),
            "findings": [asdict(one) for one in findings],
        }
        console.show_json(value)
        return
    rows = [
        [one.level, one.about, one.what + (f"\nDo: {one.do}" if one.do else "")] for one in findings
    ]
    console.show_table(title, ["", "about", "what, and what to do"], rows)
    counted = {
        level: sum(one.level == level for one in findings) for level in ("problem", "warning")
    }
    told = f"Problems: {counted['problem']}, warnings: {counted['warning']}."
    (console.warn if counted["problem"] else console.say)(told)
