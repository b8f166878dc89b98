"""The commands of gliofed-site that send nothing: phantoms, rehearsal, weights, comparison."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from client.commands import tables
from client.site.folder import Site
from common import console
from common.errors import CaseError
from common.study.protocol import read_protocol

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")]
StudyName = Annotated[str, typer.Argument(help="The study's id.", metavar="STUDY")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def rehearse(
    folder: Folder,
    patients: Annotated[int, typer.Option(min=1, help="Phantom patients to make.")] = 8,
    json: Json = False,
) -> None:
    """Rehearse a study on phantoms: no patient, no ledger, no network is touched."""
    from client.rehearsal import rehearse as run_rehearsal
    from client.site.execution import execution_for
    from client.site.settings import Machine

    machine = Site.open(folder).settings.machine if (folder / "site.toml").exists() else Machine()
    with console.progress("Rehearsing") as told:
        found = run_rehearsal(
            folder / "rehearsal",
            patients=patients,
            execution=execution_for(machine),
            progress=told,
        )
    if json:
        console.show_json(found)
        return
    rows = [[step, float(seconds)] for step, seconds in found["seconds"].items()]
    console.show_table(f"Rehearsal with {patients} phantom patients", ["step", "seconds"], rows)
    console.say(
        f"One private step on {found['device']} takes {found['seconds_per_step']:.1f} s with half "
        f"of {patients} patients drawn. The phantoms are in {found['folder']}."
    )
    times = ", ".join(
        f"{kind} {took:.2f} s" for kind, took in found["seconds_by_precision"].items()
    )
    console.say(f"One patient with crops of 64: {times}. For site.toml: {found['site_toml']}")


@app.command()
def phantoms(
    folder: Annotated[Path, typer.Argument(help="Folder for the cohort.", metavar="DIR")],
    profile: Annotated[str, typer.Option(help="Scanner and case mix.")] = "reference",
    patients: Annotated[int, typer.Option(min=1, help="How many patients.")] = 12,
    size: Annotated[int, typer.Option(help="In-plane matrix: 64 is 3.75 mm, 96 is 2.5 mm.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other patients.")] = 0,
) -> None:
    """Write a cohort of synthetic patients in BraTS layout."""
    from client.phantoms.cohort import write_cohort
    from client.phantoms.profiles import PROFILES

    if profile not in PROFILES:
        raise typer.BadParameter(f"choose one of {', '.join(PROFILES)}", param_hint="--profile")
    with console.progress("Making phantoms") as told:
        made = write_cohort(
            folder,
            PROFILES[profile],
            patients=patients,
            size=size,
            seed=seed,
            progress=functools.partial(told, "Making phantoms"),
        )
    console.say(f"Wrote {len(made)} cases of {patients} synthetic patients to {folder}.")


@app.command()
def pretrain(
    protocol: Annotated[Path, typer.Argument(help="A study protocol, TOML.")],
    out: Annotated[Path, typer.Option(help="Where to write the weights (safetensors).")],
    work: Annotated[Path, typer.Option(help="Folder for the phantoms; may be removed after.")],
    patients: Annotated[int, typer.Option(min=8, help="Phantom patients to train on.")] = 160,
    steps: Annotated[int, typer.Option(min=3, help="Optimiser steps.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of phantoms, weights and draws.")] = 0,
) -> None:
    """Make starting weights for a study from phantoms alone, at no cost in privacy."""
    from client.rehearsal import pretrain as run_pretraining
    from client.site.execution import execution_for
    from client.site.settings import Machine
    from common.records.weights import digest, load, save

    with console.progress("Pre-training") as told:
        weights, dice = run_pretraining(
            work,
            protocol=read_protocol(protocol),
            patients=patients,
            steps=steps,
            seed=seed,
            execution=execution_for(Machine()),
            progress=told,
        )
    made = {"made_by": "gliofed-site pretrain", "patients": patients, "steps": steps, "seed": seed}
    save(out, weights, {key: str(value) for key, value in made.items()}, half=True)
    words = ", ".join(f"{region} {value:.3f}" for region, value in dice.items())
    wrote = f"Wrote {out}, weights {digest(load(out))[:16]}."
    if words:
        console.say(f"{wrote} Dice on phantoms held out: {words}.")
    else:
        console.warn(f"{wrote} So few phantoms leave none to score it on: take more.")


@app.command("convert-weights")
def convert_weights(
    file: Annotated[
        Path, typer.Argument(help="Weights of PyTorch (.pt, .pth) or safetensors.", metavar="FILE")
    ],
    out: Annotated[Path, typer.Option(help="Where to write the weights (safetensors).")],
) -> None:
    """Make weights of another program ready to start a study from; nothing in the file is run.

    A PyTorch file may hold plain tensors alone, or under a key such as state_dict. Names get the
    form that the network of gliofed has that they fit.
    """
    from client.networks.weight_conversion import converted
    from common.records.weights import digest, save
    from common.study.network_shapes import title

    arrays, network = converted(file)
    save(out, arrays, {"made_by": "gliofed-site convert-weights"})
    numbers = sum(array.size for array in arrays.values())
    console.say(
        f"Wrote {out}: {len(arrays)} arrays, {numbers:,} numbers, weights {digest(arrays)[:16]}."
    )
    if network is None:
        console.warn("They are those of none of gliofed's networks: no study can start from them.")
    else:
        console.say(f"They are those of a {title(network)}.")


@app.command("train-alone")
def train_alone(
    folder: Folder,
    study: StudyName,
    initial: Annotated[Path, typer.Option(help="Starting weights (safetensors).")],
    out: Annotated[Path, typer.Option(help="Where to write the weights (safetensors).")],
    private: Annotated[
        bool, typer.Option(help="With the study's privacy, or without any: it stays here.")
    ] = True,
) -> None:
    """Train as the study does, but alone, to see what joining is worth. Nothing leaves the site."""
    from client.rehearsal import train_alone as run_alone
    from client.site.execution import execution_for
    from client.study import round_training as work
    from common.records.weights import save
    from common.study.starting_weights import read

    site = Site.open(folder)
    protocol = site.protocol(study)
    start = read(initial, protocol.network)
    with console.progress("Training alone") as told:
        weights = run_alone(
            protocol,
            start,
            list(work.training_patients(site, protocol).values()),
            private=private,
            execution=execution_for(site.settings.machine),
            progress=functools.partial(told, "Training alone"),
        )
    save(out, weights, {"study": study, "site": site.name})
    console.say(f"Wrote {out}. It was trained on this site's patients: keep it here.")


@app.command()
def evaluate(
    folder: Folder,
    study: StudyName,
    weights: Annotated[list[Path], typer.Option(help="Weights to score; may be repeated.")],
    own: Annotated[
        bool,
        typer.Option("--own", help="Score too what the study left here: local layers, own model."),
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Score too what all weights predict together.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Score as BraTS does: HD95, surfaces, lesions, volumes; slower."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Score weights on the site's own test patients of a study. Nothing leaves the site."""
    from client.study import round_training as work
    from client.study.round_state import Kept
    from common.study.starting_weights import read

    site = Site.open(folder)
    protocol = site.protocol(study)
    models = [(str(path), read(path, protocol.network)) for path in weights]
    cases = work.read_split(site, protocol).test
    if not cases:
        raise CaseError(
            f"The test split of {site.name} is empty: no patient here is held out of {study}.",
            do="Add labelled patients to the cohort; about one in five is held out.",
            code="case-none",
        )
    if own:
        models = Kept(site, study).models(models)
    groups = [(name, [arrays]) for name, arrays in models]
    if together:
        groups.append(("together", [arrays for _, arrays in models]))
    found: list[dict[str, Any]] = []
    for name, arrays in groups:
        summary: dict[str, Any] = {}
        if full:
            everything = work.score_fully(site, protocol, arrays, cases)
            scores, summary = everything.dice, everything.summary()
        else:
            scores = work.score(site, protocol, arrays, cases)
        found.append(
            {
                "weights": name,
                "cases": len(cases),
                "dice": work.mean_dice(scores),
                "sums": scores.to_dict(),
                **summary,
            }
        )
    if json:
        console.show_json(found)
        return
    tables.show_scores(site.name, found)


@app.command("try-postprocessing")
def try_postprocessing(
    folder: Folder,
    study: StudyName,
    weights: Annotated[Path, typer.Option(help="Weights (safetensors).")],
    by: Annotated[
        Literal["dice", "lesion_dice"], typer.Option(help="What to choose by.")
    ] = "lesion_dice",
    json: Json = False,
) -> None:
    """Try post-processing on the site's validation patients; say what it would choose.

    Nothing leaves the site: what a coordinator writes into a protocol is for people to agree on.
    """
    from client.segmentation.postprocessing_search import as_toml, try_options
    from client.study import round_training as work
    from common.study.starting_weights import read

    site = Site.open(folder)
    protocol = site.protocol(study)
    arrays = read(weights, protocol.network)
    cases = work.read_split(site, protocol).validation
    if not cases:
        raise CaseError(
            f"The validation split of {site.name} is empty.",
            do="Add labelled patients to the cohort.",
            code="case-none",
        )
    with console.progress("Trying") as told:
        # Half precision: the probabilities of all cases are held at once.
        predicted = [
            (probabilities.astype(np.float16), truth)
            for probabilities, truth in work.predicted(site, protocol, arrays, cases)
        ]
        options, trials = try_options(
            predicted,
            spacing_mm=protocol.preprocessing.spacing_mm,
            criterion=by,
            progress=functools.partial(told, "Trying"),
        )
    if json:
        tried = [dataclasses.asdict(one) for one in trials]
        console.show_json(
            {
                "cases": len(cases),
                "chosen": options.model_dump(mode="json"),
                "by": by,
                "tried": tried,
            }
        )
        return
    tables.show_tried(trials, criterion=by)
    console.say(f"Of {len(cases)} validation cases. For a protocol:\n{as_toml(options)}")
