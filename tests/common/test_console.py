import io
import json
import sys
from collections.abc import Callable
from typing import Annotated

import pytest
import typer

from common import console
from common.errors import GliofedError, StateError


def command(action: Callable[[], None]) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def main(json: Annotated[bool, typer.Option("--json")] = False) -> None:
        action()

    return app


def run(
    action: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as caught:
        console.run(command(action))
    return caught.value.code


def failing(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize("kind", GliofedError.__subclasses__())
def test_an_error_ends_with_its_exit_code_in_words(
    kind: type[GliofedError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = kind("The [red]disk[/] is full.", do="Free space.", code="disk-full")
    assert run(failing(error), monkeypatch) == kind.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "Error: The [red]disk[/] is full.\nWhat to do: Free space.\n"


def test_an_error_is_json_where_json_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = StateError("Full.", do="Free space.", code="disk-full")
    assert run(failing(error), monkeypatch, "--json") == 10
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": "disk-full", "message": "Full.", "do": "Free space."}
    assert said.err == ""


def test_an_error_without_advice_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(StateError("Full.")), monkeypatch) == 10
    assert capsys.readouterr().err == "Error: Full.\n"


def test_success_wrong_usage_and_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda: None, monkeypatch) == 0
    assert run(lambda: None, monkeypatch, "--unknown") == 2
    assert run(failing(KeyboardInterrupt()), monkeypatch) == 130

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        console.run(interrupted)  # type: ignore[arg-type]
    assert caught.value.code == 130
    assert "Stopped." in capsys.readouterr().err


def test_an_unforeseen_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        console.run(command(failing(ZeroDivisionError())))


def test_words_go_out_and_warnings_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("A [bold]path[/].")
    console.warn("No [b]privacy[/].")
    console.show_json({"b": 1, "a": "ü"})
    said = capsys.readouterr()
    assert said.out.startswith("A [bold]path[/].\n")
    assert json.loads(said.out.partition("\n")[2]) == {"a": "ü", "b": 1}
    assert said.err == "No [b]privacy[/].\n"


def test_a_table_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_table("Rounds", ["site", "dice"], [["[a]", 0.12345], ["b", 1]])
    said = capsys.readouterr().out
    for part in ("Rounds", "site", "dice", "[a]", "0.123", " 1 "):
        assert part in said


def test_progress_is_told_on_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("working") as told:
        told("step", 1, 2)
    with console.working("thinking"):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.000"), (0.87654, "0.877")])
def test_figures(value: float | None, text: str) -> None:
    assert console.figure(value) == text


def test_a_fact_is_told_in_brief() -> None:
    facts = {"round": 2, "site": "a", "took_part": ["a", "b"], "weights": "abc", "reason": ""}
    assert console.brief(facts) == "round 2, site a, took part a; b"


@pytest.mark.parametrize("code_page", ["cp1252", "cp437", "ascii"])
def test_a_console_writes_a_letter_that_it_lacks_as_its_number(
    monkeypatch: pytest.MonkeyPatch, code_page: str
) -> None:
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, code_page, write_through=True))

    def action() -> None:
        console.say("To Őr → Budapest")
        console.show_table("Őr", ["Őr"], [["Őr"]])
        console.warn("Őr")
        raise StateError("Őr is full.")

    assert run(action, monkeypatch) == 10
    said = {name: stream.getvalue().decode(code_page) for name, stream in written.items()}
    assert said["stdout"].startswith("To \\u0150r \\u2192 Budapest\n")
    assert said["stdout"].count("\\u0150r") == 4
    assert said["stderr"].split("\n")[:2] == ["\\u0150r", "Error: \\u0150r is full."]
