"""The hospital's oversight: what was spent, what would be, what left, who withdrew, what holds."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from client.commands import tables
from client.site.folder import Site
from common import console
from common.errors import PrivacyError, StateError
from common.study.protocol import StudyProtocol, read_protocol

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def budget(
    folder: Folder,
    plot: Annotated[
        Path | None, typer.Option(help="Draw epsilon against time into this PNG.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what each study and all studies together have cost a patient, and what is left."""
    from client.views.budget import budget as read_budget

    site = Site.open(folder)
    found = read_budget(site)
    if plot is not None:
        from client.views.budget_chart import curves, draw

        draw(site, curves(site), plot)
    if json:
        console.show_json(found)
        return
    tables.show_budget(found)
    if plot is not None:
        console.say(f"Wrote {plot}.")


@app.command()
def plan(
    folder: Folder,
    protocol: Annotated[
        str, typer.Argument(help="A protocol (TOML), or a study that was offered to this site.")
    ],
    json: Json = False,
) -> None:
    """Show what a study would cost this site's patients and what would leave, before approval."""
    from client.views.study_cost import plan as make_plan

    site = Site.open(folder)
    with console.working("Reckoning"):
        found = make_plan(site, _protocol(site, protocol))
    if json:
        console.show_json(found)
        return
    tables.show_plan(found)


@app.command()
def outbox(
    folder: Folder,
    study: Annotated[str | None, typer.Option(help="Only of this study.")] = None,
    since: Annotated[
        dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="From this day (UTC).")
    ] = None,
    json: Json = False,
) -> None:
    """Say what left the hospital: when, to whom, for which study, what it told, how many bytes."""
    from client.views.disclosures import outbox as read_outbox

    site = Site.open(folder)
    found = read_outbox(site, study=study, since=since.date() if since else None)
    if json:
        console.show_json(found)
        return
    tables.show_outbox(site.name, found)


@app.command()
def withdraw(
    folder: Folder,
    patient: Annotated[str, typer.Argument(help="The patient's name in the cohort.")],
    by: Annotated[str, typer.Option("--by", help="Who writes it down: a person's name.")],
    json: Json = False,
) -> None:
    """Withdraw a patient from every study here, and name the rounds and models that saw them."""
    from dataclasses import asdict

    from client.study.withdrawal import LIMITS
    from client.study.withdrawal import withdraw as do_withdraw

    site = Site.open(folder)
    done = do_withdraw(site, patient, by=by)
    if json:
        console.show_json({**asdict(done), "limits": LIMITS})
        return
    tables.show_withdrawal(done, limits=LIMITS)


@app.command()
def audit(
    folder: Folder,
    everything: Annotated[
        bool, typer.Option("--all", help="Every fact, not only today's.")
    ] = False,
    json: Json = False,
) -> None:
    """Check that journal and ledger are whole, and list what was done and what left."""
    from client.views.journal_audit import audit as check_records

    site = Site.open(folder)
    found = check_records(site)
    if found.damage:
        # What can still be read of damaged records is not shown: it would pass for all of them.
        raise StateError(
            " ".join(error.message for error in found.damage),
            do=" ".join(dict.fromkeys(error.do for error in found.damage)),
            code=found.damage[0].code,
        )
    today = dt.datetime.now(dt.UTC).date().isoformat()
    shown = [one for one in found.entries if everything or one.time.startswith(today)]
    sent = [one for one in shown if one.event in {"sent", "declined"}]
    if json:
        console.show_json(
            {
                "site": site.name,
                "whole": True,
                "entries": len(found.entries),
                "head": found.head,
                "told_head": found.told_head,
                "heard_head": found.heard_head,
                "ledger_facts": found.ledger_facts,
                "unconfirmed_facts": found.unconfirmed_facts,
                "withdrawn": found.withdrawn,
                "left": [{"time": entry.time, **entry.facts} for entry in sent],
                "shown": [entry._asdict() for entry in shown],
            }
        )
        return
    tables.show_journal(shown, title="Journal" if everything else "Journal of today")
    tables.show_findings(found)


@app.command("audit-privacy")
def audit_privacy(
    folder: Folder,
    study: Annotated[
        str | None, typer.Option(help="Audit with this study's clipping norm and crops.")
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(help="Invented patients; more find smaller faults.")
    ] = None,
    json: Json = False,
) -> None:
    """Attack the installed training with invented patients: does it leak more than it says?"""
    from dataclasses import asdict

    from client.privacy import audit as privacy_audit
    from client.site.execution import execution_for

    site = Site.open(folder)
    protocol = None if study is None else site.protocol(study)
    with console.progress("Auditing") as told:
        result = privacy_audit.audit_privacy(
            privacy=protocol.privacy if protocol else None,
            training=protocol.training if protocol else None,
            canaries=privacy_audit.CANARIES if canaries is None else canaries,
            execution=execution_for(site.settings.machine),
            progress=told,
        )
    trials = [asdict(trial) for trial in result.trials]
    site.journal.append("privacy audited", study=study or "", passed=result.passed, trials=trials)
    if json:
        console.show_json(
            {**asdict(result), "passed": result.passed, "trials": trials, "study": study}
        )
        raise typer.Exit(0 if result.passed else PrivacyError.exit_code)
    tables.show_trials(result)
    privacy_audit.check(result)
    tables.show_passed(result)


def _protocol(site: Site, named: str) -> StudyProtocol:
    """Return the protocol in the file ``named``, or that of the offered study of this name."""
    path = Path(named)
    looks_like_file = path.is_file() or path.suffix or len(path.parts) > 1
    return read_protocol(path) if looks_like_file else site.protocol(named)
