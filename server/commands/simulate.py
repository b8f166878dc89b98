"""``gliofed-server simulate``: the question and the answer of a simulated study, in words.

Out of scope: how it is found (``server.simulation.study_simulation``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from common import console
from common.study.protocol import read_protocol

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def simulate(
    protocol: Annotated[Path, typer.Argument(help="The study protocol, TOML.")],
    sites: Annotated[int, typer.Option(help="How many sites take part.", min=1)],
    rounds: Annotated[
        int, typer.Option(help="Rounds to simulate; the rest is extrapolated.", min=1)
    ] = 2,
    initial: Annotated[
        Path | None, typer.Option(help="Starting weights (safetensors), in place of random ones.")
    ] = None,
    parameters: Annotated[
        int | None, typer.Option(help="As if the network had so many parameters.")
    ] = None,
    seconds_per_step: Annotated[
        float, typer.Option(help="Of a site; `gliofed-site rehearse` measures it.", min=0)
    ] = 1.0,
    evaluation_seconds: Annotated[
        float, typer.Option(help="Of a site, for one evaluation.", min=0)
    ] = 60.0,
    mbit: Annotated[float, typer.Option(help="A site's line, each way.", min=1e-3)] = 100.0,
    server_mbit: Annotated[
        float, typer.Option(help="The coordinator's line, each way, for all sites.", min=1e-3)
    ] = 1000.0,
    slow_share: Annotated[
        float, typer.Option(help="Share of sites that are slow.", min=0, max=1)
    ] = 0.0,
    slow_factor: Annotated[
        float, typer.Option(help="How many times slower these are.", min=1)
    ] = 4.0,
    drop_share: Annotated[
        float,
        typer.Option(help="Chance of a site, each round, to hang with its order.", min=0, max=1),
    ] = 0.0,
    json: Json = False,
) -> None:
    """Tell what a study of many sites would take: time, memory, bytes; nothing is trained."""
    from server.simulation.simulated_fleet import Speeds
    from server.simulation.study_simulation import simulate as run
    from server.simulation.study_simulation import starting_weights

    speeds = Speeds(
        seconds_per_step=seconds_per_step,
        evaluation_seconds=evaluation_seconds,
        mbit=mbit,
        server_mbit=server_mbit,
        slow_share=slow_share,
        slow_factor=slow_factor,
        drop_share=drop_share,
    )
    read = read_protocol(protocol)
    with console.working(f"Simulating up to {sites} sites"):
        found = run(
            read,
            starting_weights(read.network, initial, parameters),
            sites=sites,
            rounds=rounds,
            speeds=speeds,
        )
    if json:
        console.show_json(found)
    else:
        _show(found)


def _show(found: Mapping[str, Any]) -> None:
    whole = found["measured"][-1]
    console.say(
        f"{found['study']}: {whole['sites']} sites, rule {found['rule']}, "
        f"{found['parameters']:,} parameters, of which {found['update_parameters']:,} numbers "
        f"travel back. The coordinator was real, the sites and the time were not."
    )
    rows = [
        [
            one["sites"],
            f"{one['rounds_closed']} of {found['rounds_simulated']}",
            one["answers"],
            "; ".join(f"{n} {why}" for why, n in one["dropped"].items()) or "-",
            _time(one["round_s"]),
            _time(one["study_s"]),
            f"{one['coordinator_s']:.1f}",
            f"{one['site_ms']:.1f}",
            f"{one['site_cpu_ms']:.1f}",
            f"{one['peak_bytes'] / 1e6:.0f}",
        ]
        for one in found["measured"]
    ]
    columns = ["sites", "rounds closed", "updates", "left out", "a round", "all of it"]
    columns += ["coordinator s", "ms an order", "CPU ms", "peak MB"]
    console.show_table("Simulated", columns, rows)
    if whole["ended"]:
        console.warn(f"The study did not get to its end: {whole['ended']}")
    if found["planned_s"] is not None:
        console.say(
            f"At this pace the {found['rounds_planned']} rounds of the protocol take "
            f"{_time(found['planned_s'])}, or longer if the coordinator's own work does: "
            f"{_time(found['planned_coordinator_s'])} on this machine."
        )
    rows = [
        [kind, _megabytes(whole["bytes_down"], kind), _megabytes(whole["bytes_up"], kind)]
        for kind in whole["bytes_down"]
    ]
    console.show_table("Megabytes, all sites", ["order", "to the sites", "back"], rows)
    if found["holds_every_update"]:
        console.warn(f"{found['rule']} holds every update: memory grows with each site.")
    facts = found["privacy_of_a_site"]
    if facts is None:
        console.warn("This study trains WITHOUT differential privacy.")
    else:
        console.say(
            f"Privacy: a site that takes part in every round makes {facts['steps']} steps, each "
            f"with sampling rate {facts['sampling_rate']:g} and noise multiplier "
            f"{facts['noise_multiplier']:g}, at delta {facts['delta']:g}; the study's cap is "
            f"epsilon {facts['max_epsilon']:g}. `gliofed-site plan` at a hospital tells what "
            f"epsilon that is, and whether it fits."
        )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _megabytes(counts: Mapping[str, int], kind: str) -> str:
    return f"{counts.get(kind, 0) / 1e6:.1f}"
