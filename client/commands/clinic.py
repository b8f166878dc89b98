"""gliofed-clinic: segment a patient's MRI with a released model, offline."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from client.commands.review import review
from common import console
from common.errors import ModelError
from common.regions import LABEL_NAMES

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

_PACS = (
    "Root of the PACS's DICOMweb service. Credentials: GLIOFED_PACS_USER and "
    "GLIOFED_PACS_PASSWORD, or GLIOFED_PACS_TOKEN, in the environment. To store also "
    "dicom://TITLE@HOST:PORT (C-STORE; dicoms:// with TLS), which knows no credentials."
)
_AET = "Our own AE title, which a PACS at dicom:// must know."


@app.callback()
def _group() -> None:
    """Segment a patient's MRI with a released model, offline."""


@app.command()
def segment(
    out: Annotated[Path, typer.Option(help="Folder for the result, made new.")],
    case: Annotated[
        Path | None, typer.Argument(help="Folder or DICOM zip of one case, or --study.")
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A released model's folder; several, of rounds or networks, predict together."
        ),
    ] = None,
    site: Annotated[Path | None, typer.Option(help="A site's folder: its active model.")] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Let the service there do it, past any proxy."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who signed the service's certificate, PEM.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The service's token, mode 0600.")
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SEQUENCE=SERIES",
            help="Take a DICOM series for t1n, t1c, t2w, t2f or none, this once; may be repeated.",
        ),
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(metavar="RESULT_DIR", help="An earlier result of this patient to compare."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="UID", help="Fetch this study (StudyInstanceUID) from --pacs."),
    ] = None,
    pacs: Annotated[str | None, typer.Option(metavar="URL", help=_PACS)] = None,
    send: Annotated[
        bool, typer.Option("--send", help="Store the DICOM objects of the result in --pacs.")
    ] = False,
    aet: Annotated[str, typer.Option(metavar="TITLE", help=_AET)] = "GLIOFED",
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        typer.Option(help="Where to compute with --model; with --site its site.toml says so."),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=0, max=1024, help="CPU threads with --model; 0 is 4 on every machine."),
    ] = 0,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show what each sequence mattered to the model: one prediction more for each, so "
            "that predicting takes up to five times as long.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Segment one case: mask and uncertainty on the input's grid, measurements, a report.

    The report (HTML and PDF) has volumes in mL, RANO diameters, sides, outlines and doubt. From
    DICOM the result is written as DICOM too: segmentation, report, uncertainty, document. A case
    may lack sequences, but not t1c and t2f both, if the model was trained for that.
    """
    if (case is None) == (study is None):
        raise typer.BadParameter("Give either a folder or --study.", param_hint="CASE")
    if (study is not None or send) and pacs is None:
        raise typer.BadParameter("Give the address of the PACS.", param_hint="--pacs")
    if explain and server is not None:
        raise typer.BadParameter("The service explains nothing.", param_hint="--explain")
    if (device is not None or threads) and not model:
        raise typer.BadParameter(
            "Only with --model: else site.toml says how to compute.", param_hint="--device"
        )
    from client.clinic.installed_models import active_model, temperatures_of
    from client.clinic.released_model import open_model
    from client.clinic.result_folder import segment_by
    from client.clinic.result_schema import Result, computed
    from client.clinic.segment import segment as run_segment
    from client.cohort.series_decisions import decisions, for_once, parse
    from client.site.execution import execution_for
    from client.site.folder import Site
    from client.site.preemption import clinical_job
    from client.site.settings import Machine

    try:
        decide = for_once(parse(series or []))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--series") from None
    machine = Machine(device=device or "auto", threads=threads)
    job: AbstractContextManager[None] = nullcontext()
    temperatures, others, sealer = None, [], None
    if server is not None:
        if site is not None or model:
            raise ModelError("The service has its own model.", do="Leave out --model and --site.")
    elif site is not None and not model:
        opened = Site.open(site)
        machine = opened.settings.machine
        chosen, trusted, job = active_model(opened), True, clinical_job(opened)
        temperatures = temperatures_of(opened, chosen)
        sealer = (opened.name, opened.identity)
        decide = for_once(parse(series or []), decisions(opened))
    elif model and site is None:
        chosen, trusted = open_model(model[0]), False
        others = [open_model(folder, signer=chosen.signer) for folder in model[1:]]
    else:
        raise ModelError("Say which model to use.", do="Give either --model or --site.")
    with _case(case, study, pacs) as folder, job, console.working("Segmenting"):
        if server is not None:
            from client.clinic.service.remote_segmentation import service

            with service(server, authority=ca, token=token_file) as by:
                result = segment_by(by, folder, out, decide=decide, prior=prior)
        else:
            result = run_segment(
                folder,
                out,
                chosen,
                execution=execution_for(machine),
                trusted=trusted,
                decide=decide,
                others=others,
                temperatures=temperatures,
                prior=prior,
                sealer=sealer,
                explain=explain,
            )
    sent = _send(out, pacs, aet) if send and pacs else 0
    if json:
        console.show_json(result)
        return
    ranges = result["range_ml"]
    rows = [
        [
            name,
            LABEL_NAMES.get(name, {"TC": "tumour core", "WT": "whole tumour"}.get(name, "")),
            float(volume),
            "{:.1f} to {:.1f}".format(*ranges[name]) if name in ranges else "",
            console.figure(result["confidence"].get(name)),
        ]
        for name, volume in result["volumes_ml"].items()
    ]
    console.show_table(
        "Volumes", ["region", "meaning", "mL", "sure to possible", "confidence"], rows
    )
    identity = result["model"]
    console.say(
        f"Model {identity['name']} {identity['version']}, round {identity['round']}, weights "
        f"{identity['weights_sha256'][:16]}."
    )
    stages = ", ".join(f"{one} {spent['wall_s']:.1f}" for one, spent in result["stages"].items())
    console.say(f"It took {result['seconds']:.1f} s: {stages}.")
    console.say(computed(Result.model_validate(result)))
    for warning in result["warnings"]:
        console.warn(warning)
    console.say(
        "Confidence is the Dice that the model's probabilities let expect"
        + (", calibrated here." if result["calibrated"] else "; it was never calibrated here.")
    )
    pictures: tuple[str, ...] = ("segmentation.nii.gz", "uncertainty.nii.gz", "overview.png")
    if result["explanation"] is not None:
        pictures = (*pictures, "explanation.nii.gz")
    files = ("report.html", "report.pdf", *pictures, *result["dicom"], "result.json")
    console.say(f"Written to {out}: {', '.join(files)}.")
    if sent:
        console.say(f"Stored {sent} objects in {pacs}.")


@app.command()
def send(
    result: Annotated[Path, typer.Argument(help="Folder of a result that was made from DICOM.")],
    pacs: Annotated[str, typer.Option(metavar="URL", help=_PACS)],
    aet: Annotated[str, typer.Option(metavar="TITLE", help=_AET)] = "GLIOFED",
) -> None:
    """Store the DICOM objects of a result in the PACS."""
    console.say(f"Stored {_send(result, pacs, aet)} objects in {pacs}.")


@app.command()
def verify(
    result: Annotated[Path, typer.Argument(help="Folder of a result.", metavar="RESULT_DIR")],
    case: Annotated[
        Path | None, typer.Option(help="The case that was segmented: folder or DICOM zip.")
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="The released model's folder; may be repeated.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="A site's folder: its models, its key, its coordinator.")
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Segment --case again and compare each voxel.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of sentences.")] = False,
) -> None:
    """Check that a result is what was written, from the images and the model that it names.

    Says what holds, what does not and what could not be checked. Ends with 0 if nothing is broken,
    else with the exit code of the first thing that is.
    """
    if model and site is not None:
        raise typer.BadParameter("Give either --model or --site.", param_hint="--site")
    if recompute and (case is None or not (model or site)):
        raise typer.BadParameter(
            "It needs --case, and --model or --site.", param_hint="--recompute"
        )
    from client.clinic.result_verification import Given, exit_code
    from client.clinic.result_verification import verify as run_verify
    from client.site.folder import Site

    given = Given(tuple(model or ()), None if site is None else Site.open(site), case)
    checks = run_verify(result, given, recompute=recompute)
    code = exit_code(checks)
    if json:
        told = [{"about": c.about, "verdict": c.verdict, "says": c.says} for c in checks]
        console.show_json({"result": str(result), "holds": code == 0, "checks": told})
    else:
        for one in checks:
            if one.verdict == "broken":
                console.warn(f"DOES NOT HOLD  {one.about}: {one.says}")
            else:
                word = "holds        " if one.verdict == "holds" else "not checked  "
                console.say(f"{word}  {one.about}: {one.says}")
        open_ends = sum(one.verdict == "unchecked" for one in checks)
        console.say(
            ("This is not what was written." if code else "All that could be checked holds.")
            + (f" Not everything was: {open_ends} not checked." if open_ends else "")
        )
    raise typer.Exit(code)


def _case(case: Path | None, study: str | None, pacs: str | None) -> AbstractContextManager[Path]:
    """Return the case's folder, fetched from the PACS for as long as it is needed."""
    if case is not None:
        return nullcontext(case)
    from client.clinic.pacs.dicomweb import fetched

    return fetched(pacs or "", study or "")


def _send(result: Path, pacs: str, aet: str) -> int:
    from client.clinic.pacs import dicomweb as archive

    return archive.send(pacs, result, calling=aet)


app.command()(review)


def main() -> None:
    console.run(app)


if __name__ == "__main__":
    main()
