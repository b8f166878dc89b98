"""What a study of many sites would cost, found by running it: for planning.

The coordinator is the real one: rounds, checks of every reply, aggregation rule, checkpoints and
journal, in a temporary folder. The sites are simulated and time is virtual
(``server.simulation.simulated_fleet``). *Study seconds* are what a clock on the wall would show
under the given speeds; *coordinator seconds* are what this machine spent on its part, which is not
contained in them: where it is the larger of the two, the study takes that long.

Memory and coordinator seconds are measured at several numbers of sites, so that what one more site
costs is seen and not assumed.

Out of scope: learning, and what a study costs the patients: epsilon is composed at the sites
(``gliofed-site plan``); here are the facts that it is composed of.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import GliofedError, ProtocolError, StateError
from common.records.journal import Journal
from common.records.weights import Arrays
from common.study import network_shapes
from common.study.protocol import PROTOCOL, NetworkOptions, StudyProtocol
from common.study.starting_weights import read as read_weights
from common.study.trained_parameters import update_shapes
from common.trust.enrolment import Request, sign_request
from common.trust.identity import Identity
from server.consortium.published_study import Study, keep_initial
from server.consortium.sites import Sites
from server.reporting.study_report import full_report
from server.rounds.round_loop import Rounds
from server.simulation.simulated_fleet import Clock, SimulatedFleet, Speeds

HOLDING: Final = frozenset(
    {"coordinate_median", "trimmed_mean", "geometric_median", "krum", "multi_krum"}
)
"""Rules that hold all updates of a round at once: their memory grows with the sites."""

_ARRAYS: Final = 60
"""Into so many arrays a given number of parameters is split: about as many as a SegResNet has."""

_SHARES: Final = (0.1, 0.3, 1.0)
"""Of the wanted number of sites: where the cost of a site is measured."""


@dataclass(frozen=True)
class Measured:
    """One simulated study."""

    sites: int
    rounds_closed: int
    rounds_failed: int
    answers: int
    """Updates that were accepted."""
    dropped: dict[str, int]
    """Reasons for which sites were left out of a round, and how often."""
    ended: str
    """Empty if every round was closed, else what stopped the study."""
    study_s: float
    rounds_s: float
    """Of ``study_s``, all attempts at rounds; the rest is offers and evaluation."""
    round_s: float | None
    """Median of the closed rounds, without evaluation."""
    coordinator_s: float
    coordinator_cpu_s: float
    site_ms: float
    """Coordinator's milliseconds for one order to one site and its answer, waiting for the disk
    among them."""
    site_cpu_ms: float
    peak_bytes: int
    """Most memory of this process during the study, the few drawn updates among it."""
    bytes_down: dict[str, int]
    bytes_up: dict[str, int]
    journal_bytes: int


def starting_weights(
    network: NetworkOptions, initial: Path | None = None, parameters: int | None = None
) -> Arrays:
    """Return the weights of the file, or small random numbers of the network's names and shapes.

    With ``parameters`` they are so many, of any network, in as many arrays as usual. Raises
    StateError for both, ModelError for a file that does not fit the network.
    """
    if initial is not None and parameters is not None:
        raise StateError(
            "The size of the network is said twice.", do="Leave --initial or --parameters out."
        )
    if initial is not None:
        return read_weights(initial, network)
    rng = np.random.default_rng(0)
    if parameters is None:
        return {
            name: rng.standard_normal(shape, np.float32) * np.float32(1e-2)
            for name, shape in network_shapes.shapes(network).items()
        }
    if parameters < 1:
        raise StateError("A network has parameters.", do="Give --parameters a positive number.")
    count = min(_ARRAYS, parameters)
    edges = [round(parameters * place / count) for place in range(count + 1)]
    return {
        f"layer{place:02d}.weight": rng.standard_normal(high - low, np.float32) * np.float32(1e-2)
        for place, (low, high) in enumerate(pairwise(edges))
    }


def counts(protocol: StudyProtocol, sites: int) -> list[int]:
    """Return the numbers of sites to measure at, rising; raise ProtocolError for fewer than due."""
    least = max(protocol.aggregation.quorum, len(protocol.aggregation.weights))
    if sites < least:
        raise ProtocolError(
            f"{sites} sites are too few: the protocol names or needs {least}.",
            do="Simulate more sites, or lower aggregation.quorum.",
        )
    return sorted({max(least, round(share * sites)) for share in _SHARES})


def simulate(
    protocol: StudyProtocol,
    weights: Arrays,
    *,
    sites: int,
    rounds: int,
    speeds: Speeds,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run ``rounds`` rounds at several numbers of sites up to ``sites``; return what it took.

    Raises ProtocolError for a protocol that so few sites cannot fulfil or whose parameters
    ``weights`` do not have, StateError if the rule would need more memory than there is.
    """
    numbers = counts(protocol, sites)
    short = protocol.model_copy(update={"rounds": rounds})
    shapes = update_shapes(
        {name: value.shape for name, value in weights.items()},
        protocol.network.name,
        protocol.training,
    )
    update_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    _check_memory(protocol, update_bytes, sites)
    measured = []
    for number in numbers:
        told(f"{number} sites")
        measured.append(_run(short, weights, shapes, sites=number, speeds=speeds))
    whole = measured[-1]
    privacy = protocol.privacy
    return {
        "study": protocol.study,
        "rule": protocol.aggregation.rule,
        "holds_every_update": protocol.aggregation.rule in HOLDING,
        "parameters": sum(value.size for value in weights.values()),
        "update_parameters": update_bytes // 4,
        "rounds_simulated": rounds,
        "rounds_planned": protocol.rounds,
        "planned_s": _planned_s(protocol, short, whole),
        "planned_coordinator_s": protocol.rounds * whole.coordinator_s / whole.rounds_closed
        if whole.rounds_closed
        else None,
        "speeds": asdict(speeds),
        "measured": [asdict(one) for one in measured],
        "private": protocol.private,
        "privacy_of_a_site": {
            "steps": protocol.rounds * protocol.training.steps_per_round,
            "sampling_rate": privacy.sampling_rate,
            "noise_multiplier": privacy.noise_multiplier,
            "delta": privacy.delta,
            "max_epsilon": privacy.max_epsilon,
        }
        if protocol.private
        else None,
    }


def _planned_s(protocol: StudyProtocol, short: StudyProtocol, found: Measured) -> float | None:
    """Return how long all rounds of ``protocol`` take at the pace that was ``found``, or None."""
    if not found.rounds_closed or found.ended:
        return None
    evaluations, simulated = _evaluations(protocol), _evaluations(short)
    return (
        protocol.rounds * found.rounds_s / found.rounds_closed
        + evaluations * (found.study_s - found.rounds_s) / simulated
    )


def _evaluations(protocol: StudyProtocol) -> int:
    """Return after how many rounds the study evaluates: the last one always is one of them."""
    return math.ceil(protocol.rounds / protocol.evaluate_every)


def _check_memory(protocol: StudyProtocol, update_bytes: int, sites: int) -> None:
    if protocol.aggregation.rule not in HOLDING:
        return
    try:
        there = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not every system says what is free
        return
    due = update_bytes * sites
    if due > there:
        raise StateError(
            f"{protocol.aggregation.rule} holds the updates of all sites at once: {due / 1e9:.1f} "
            f"GB for {sites} sites, and {there / 1e9:.1f} GB are free here.",
            do="Simulate fewer sites, or choose a rule that adds up what comes.",
            code="memory",
        )


def _run(
    protocol: StudyProtocol,
    weights: Arrays,
    shapes: dict[str, tuple[int, ...]],
    *,
    sites: int,
    speeds: Speeds,
) -> Measured:
    with tempfile.TemporaryDirectory(prefix="gliofed-simulation-") as name:
        folder = Path(name)
        admitted, identities = _enrol(folder, _names(protocol, sites))
        study = _publish(folder, protocol, weights)
        journal = Journal(folder / "journal.jsonl")
        clock = Clock()
        fleet = SimulatedFleet(
            sorted(identities), identities, study.protocol, shapes, speeds=speeds, clock=clock
        )
        runner = Rounds(study, fleet, journal=journal, sites=admitted, clock=clock)
        _forget_peak()
        cpu_s, began = time.process_time(), time.perf_counter()
        ended = ""
        try:
            runner.run()
        except GliofedError as error:
            ended = str(error)
        wall_s = time.perf_counter() - began - fleet.own_s
        cpu_s = time.process_time() - cpu_s - fleet.own_s
        peak = _peak_bytes()
        report = full_report(study, journal, admitted=admitted.names())
        return _measured(
            report,
            fleet,
            sites=sites,
            ended=ended,
            study_s=clock.monotonic(),
            coordinator_s=wall_s,
            coordinator_cpu_s=cpu_s,
            peak_bytes=peak,
            journal_bytes=journal.path.stat().st_size,
        )


def _measured(
    report: dict[str, Any],
    fleet: SimulatedFleet,
    *,
    sites: int,
    ended: str,
    study_s: float,
    coordinator_s: float,
    coordinator_cpu_s: float,
    peak_bytes: int,
    journal_bytes: int,
) -> Measured:
    attempts = report["attempts"]
    dropped: dict[str, int] = {}
    for one in attempts:
        for why in one["dropped"].values():
            dropped[why] = dropped.get(why, 0) + 1
    lengths = sorted(one["seconds"] for one in attempts if one["state"] == "closed")
    return Measured(
        sites=sites,
        rounds_closed=report["rounds_closed"],
        rounds_failed=len(report["failed_rounds"]),
        answers=sum(len(one["sites"]) for one in attempts),
        dropped=dropped,
        ended=ended,
        study_s=study_s,
        round_s=lengths[len(lengths) // 2] if lengths else None,
        rounds_s=sum(one["seconds"] or 0.0 for one in attempts),
        coordinator_s=coordinator_s,
        coordinator_cpu_s=coordinator_cpu_s,
        site_ms=1e3 * coordinator_s / max(1, fleet.orders),
        site_cpu_ms=1e3 * coordinator_cpu_s / max(1, fleet.orders),
        peak_bytes=peak_bytes,
        bytes_down=dict(fleet.bytes_down),
        bytes_up=dict(fleet.bytes_up),
        journal_bytes=journal_bytes,
    )


def _names(protocol: StudyProtocol, sites: int) -> list[str]:
    """Return as many names: those that the protocol gives weights to, then numbers."""
    named = sorted(protocol.aggregation.weights)
    numbered = (f"simulated-{place:05d}" for place in range(1, sites + 1))
    return [*named, *(name for name in numbered if name not in named)][:sites]


def _enrol(folder: Path, names: Sequence[str]) -> tuple[Sites, dict[str, Identity]]:
    sites = Sites(folder / "sites", Journal(folder / "journal.jsonl"))
    identities: dict[str, Identity] = {}
    for name in names:
        identity = identities[name] = Identity(Ed25519PrivateKey.generate())
        request = Request(
            site=name,
            identity_key=identity.public,
            node_key="ecdsa-sha2-nistp384 simulated",
            version="simulated",
        )
        sites.add(sign_request(request, identity))
    return sites, identities


def _publish(folder: Path, protocol: StudyProtocol, weights: Arrays) -> Study:
    coordinator = Identity.create(folder / "coordinator.key")
    place = folder / "studies" / protocol.study
    tomorrow = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1)
    changed = {
        "expires": max(tomorrow, protocol.expires),
        "initial_sha256": keep_initial(place, weights),
    }
    lasting = protocol.model_copy(update=changed)
    coordinator.sign(PROTOCOL, lasting.model_dump(mode="json")).save(place / "protocol.json")
    return Study.open(place, coordinators={coordinator.public})


def _forget_peak() -> None:
    """Let the system measure this process's peak memory from now on, where it can."""
    mark = Path("/proc/self/clear_refs")
    if os.access(mark, os.W_OK):
        mark.write_text("5")


def _peak_bytes() -> int:
    """Return the most memory that this process had."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)[0]) * 1024
    import resource  # Windows has none, and is told so before

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
