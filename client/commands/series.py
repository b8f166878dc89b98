"""The command with which people see and decide which DICOM series is which sequence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.site.folder import Site
from common import console
from common.errors import CaseError

if TYPE_CHECKING:
    from client.cohort.dicom import Judgement

app = typer.Typer()


@app.command()
def series(
    folder: Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")],
    study: Annotated[
        str | None,
        typer.Argument(
            help="One study: its folder or zip file, as listed.", metavar="STUDY_FOLDER"
        ),
    ] = None,
    chosen: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SEQUENCE=SERIES",
            help="Remember that a series is t1n, t1c, t2w, t2f or none of them; may be repeated.",
        ),
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget what was decided about the study.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show which DICOM series was taken for which sequence and why, and decide otherwise."""
    from client.cohort import series_decisions as decided

    site = Site.open(folder)
    if (chosen or forget) and study is None:
        raise typer.BadParameter("name the study that --set or --forget is about")
    try:
        named = decided.parse(chosen or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None
    with console.working("Reading headers"):
        found = decided.judged(site, study)
        if forget:
            decided.forget(site, found[0])
        if named:
            decided.decide(site, found[0], named)
        if forget or named:
            found = decided.judged(site, study)
    if json:
        console.show_json([_facts(one) for one in found])
    else:
        for one in found:
            _show(one)
    if study is not None and not found[0].choice.usable:
        raise typer.Exit(CaseError.exit_code)


def _facts(one: Judgement) -> dict[str, Any]:
    return {
        "study": one.name,
        "missing": list(one.choice.missing),
        "usable": one.choice.usable,
        "notes": list(one.choice.notes()),
        "series": [
            {
                "series": judged.series.name,
                "description": judged.series.facts.description,
                "slices": judged.series.facts.slices,
                "spacing_mm": [round(mm, 3) for mm in judged.series.facts.spacing_mm],
                "taken_for": judged.verdict.role,
                "confidence": judged.verdict.confidence,
                "used": judged.used,
                "decided": judged.decided,
                "why": judged.why,
            }
            for judged in one.choice.judged
        ],
    }


def _show(one: Judgement) -> None:
    rows: list[list[object]] = [
        [
            judged.series.name,
            judged.series.facts.description or judged.series.facts.protocol,
            judged.series.facts.slices,
            judged.verdict.role or "-",
            f"{judged.verdict.confidence:.2f}" if judged.verdict.role else "-",
            "used" if judged.used else "",
            judged.why,
        ]
        for judged in one.choice.judged
    ]
    columns = ["series", "description", "slices", "taken for", "confidence", "", "why"]
    console.show_table(one.name, columns, rows)
    if not one.choice.usable:
        console.warn(
            f"{one.name} is not used: no series for {', '.join(one.choice.missing)}. "
            f"--set {one.choice.missing[0]}=SERIES says which it is, none=SERIES that it is none."
        )
    for note in one.choice.notes():
        console.warn(note)
