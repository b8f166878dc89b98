"""The last words of a process, from its log: what a person needs to know of why it ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 16 * 1024
_MOST_LETTERS: Final = 300
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LEVEL: Final = re.compile(r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s+")
_BEGINS: Final = re.compile(_LEVEL.pattern + r"|time=\S+ level=|\{\"|Traceback ")
_FAREWELL: Final = re.compile(
    r"Shutting down|Waiting for application shutdown|Application shutdown complete"
    r"|Finished server process|FastAPI lifespan|terminated gracefully|For more information, visit"
)
"""What every server and every exit of Flower says last, whatever happened."""


def last_words(log: Path) -> str:
    """Return the last entry of ``log`` in one line of 300 letters at most; "" if there is none.

    Of a Python traceback it is the error alone. What servers say at each end is passed over.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            tail = file.read()
    except OSError:
        return ""
    text = _COLOURS.sub("", tail.decode("utf-8", "replace"))
    entries: list[list[str]] = []
    for line in text.splitlines():
        if not line.strip() or _FAREWELL.search(line):
            continue
        if _BEGINS.match(line) or not entries:
            entries.append([])
        entries[-1].append(line)
    return _in_one_line(entries[-1]) if entries else ""


def _in_one_line(entry: list[str]) -> str:
    if entry[0].startswith("Traceback "):
        entry = [line for line in entry[1:] if not line.startswith(" ")] or entry[-1:]
    words = " ".join(" ".join(entry).split())
    words = _LEVEL.sub("", words, count=1) if _LEVEL.match(words) else words
    return words if len(words) <= _MOST_LETTERS else words[: _MOST_LETTERS - 3] + "..."
