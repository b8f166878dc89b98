"""How every command speaks: tables for people, JSON for programs, one way to fail.

Whatever is said goes through ``common.foreign_text``: what the other side wrote moves no terminal.

A command raises a ``GliofedError``; ``run`` prints what happened and what to do next, and ends with
the error's exit code. With ``--json`` the error is a JSON object too, so that scripts can read it.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common import posix
from common.errors import GliofedError
from common.foreign_text import printable

_LOG_WIDTH = 120  # columns, where the output is a file or a pipe and not a person's terminal

_ELSEWHERE = (
    "Run it on Linux, or on this computer in WSL or in a container. On Windows itself only "
    "gliofed-clinic runs."
)

out = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
err = Console(stderr=True, width=None if sys.stderr.isatty() else _LOG_WIDTH)


def show_json(value: Any) -> None:
    """Print ``value`` as JSON on standard output, without colour or wrapping."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is to the left, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = index > 0 and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    out.print(table)


def say(text: str) -> None:
    """Print one plain sentence."""
    out.print(_fit(text), highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print what a person must not overlook, in red, on standard error."""
    err.print(f"[bold red]{_fit(text)}[/]", highlight=False, soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on standard error; yields what to call with step, done and total."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def told(step: str, done: int, total: int) -> None:
            bar.update(task, description=_fit(step), completed=done, total=total)

        yield told


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show that something without a known length is going on, on standard error."""
    if err.is_terminal:
        with err.status(f"{title} ..."):
            yield
    else:
        yield


def run(app: typer.Typer, *, needs_posix: str = "") -> None:
    """Run a command-line application: errors of ours become a sentence and an exit code.

    ``needs_posix`` names the program that runs on a POSIX system alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of another code page than UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        if needs_posix:
            posix.required(needs_posix, do=_ELSEWHERE)
        app()
    except GliofedError as error:
        if "--json" in sys.argv:
            value = {"error": error.code, "message": error.message, "do": error.do}
            show_json(value)
        else:
            err.print(f"[bold red]Error:[/] {_fit(error.message)}", highlight=False)
            if error.do:
                err.print(f"[bold]What to do:[/] {_fit(error.do.strip())}", highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)


def figure(value: float | None) -> str:
    """Return a score with three digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def brief(facts: Mapping[str, Any]) -> str:
    """Return the facts of a journal entry that a person looks for first, as one line."""
    shown = (
        "round",
        "site",
        "order",
        "code",
        "reason",
        "took_part",
        "dropped",
        "needed",
        "so_far",
        "by",
        "model",
    )
    return ", ".join(
        f"{key.replace('_', ' ')} {_words(facts[key])}" for key in shown if facts.get(key)
    )


def _words(value: object) -> str:
    if isinstance(value, dict):
        return printable("; ".join(f"{key} ({why})" for key, why in value.items()))
    if isinstance(value, list):
        return printable("; ".join(str(part) for part in value))
    return printable(str(value))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return _fit(str(value))


def _fit(text: str) -> str:
    """Return a text of ours, which may hold foreign text, as rich prints it word by word."""
    return escape(printable(text, lines=True))
