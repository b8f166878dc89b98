"""gliofed-clinic: segment a patient's MRI with a released model, offline."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from common import console
from common.errors import ModelError
from common.regions import LABEL_NAMES

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def _group() -> None:
    """Segment a patient's MRI with a released model, offline."""


@app.command()
def segment(
    case: Annotated[Path, typer.Argument(help="Folder or DICOM zip of one case.")],
    out: Annotated[Path, typer.Option(help="Folder for the result, made new.")],
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A released model's folder; several, of rounds or networks, predict together."
        ),
    ] = None,
    site: Annotated[Path | None, typer.Option(help="A site's folder: its active model.")] = None,
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
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Segment one case: mask and uncertainty on the input's grid, measurements, a report.

    The report (HTML and PDF) has volumes in mL, RANO diameters, sides, outlines and doubt.
    A case may lack sequences, but not t1c and t2f both, if the model was trained for that.
    """
    from client.inference.installed import active_model, temperatures_of
    from client.inference.model import open_model
    from client.inference.segment import segment as run_segment
    from client.preemption import clinical_job
    from client.series import decisions, for_once, parse
    from client.site import Site
    from client.training import choose_execution

    try:
        decide = for_once(parse(series or []))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--series") from None
    job: AbstractContextManager[None] = nullcontext()
    temperatures, others = None, []
    if site is not None and not model:
        opened = Site.open(site)
        chosen, trusted, job = active_model(opened), True, clinical_job(opened)
        temperatures = temperatures_of(opened, chosen)
        decide = for_once(parse(series or []), decisions(opened))
    elif model and site is None:
        chosen, trusted = open_model(model[0]), False
        others = [open_model(folder, signer=chosen.signer) for folder in model[1:]]
    else:
        raise ModelError("Say which model to use.", do="Give either --model or --site.")
    with job, console.working("Segmenting"):
        result = run_segment(
            case,
            out,
            chosen,
            execution=choose_execution(),
            trusted=trusted,
            decide=decide,
            others=others,
            temperatures=temperatures,
            prior=prior,
        )
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
        f"{identity['weights_sha256'][:16]}. {result['seconds']:.1f} s."
    )
    for warning in result["warnings"]:
        console.warn(warning)
    console.say(
        "Confidence is the Dice that the model's probabilities let expect"
        + (", calibrated here." if result["calibrated"] else "; it was never calibrated here.")
    )
    console.say(
        f"Written to {out}: report.html, report.pdf, segmentation.nii.gz, uncertainty.nii.gz, "
        "overview.png, result.json."
    )


def main() -> None:
    console.run(app)


if __name__ == "__main__":
    main()
