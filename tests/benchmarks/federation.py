"""A federation in memory for benchmarks about learning: hospitals, start and rounds.

An update passes through what it passes through in a study: trained from the round's weights,
encoded by the site, a Flower record, checked and decoded by the coordinator, folded by the rule.
The same seed gives the same figures. What is not here changes no weight: keys, journals, deadlines,
and privacy, which each benchmark says why it leaves out.

Held-out patients are never trained on, at no hospital.
"""

from __future__ import annotations

import functools
import hashlib
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.cohort.case_discovery import read_cohort
from client.imaging.case import Case
from client.imaging.prepared_cache import PreparedCache
from client.networks.registry import build, load_arrays, state_arrays
from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.segmentation.evaluation import evaluate
from client.site.execution import ExecutionOptions
from client.training.crops import Patient
from client.training.loop import train
from common.messages.compression import encode
from common.messages.wire_format import Report, pack, unpack_report
from common.records.weights import Arrays, norm
from common.regions import REGIONS
from common.study.protocol import StudyProtocol
from server.aggregation import RULES

EXECUTION: Final = ExecutionOptions(prefetch=0)
"""One core: nothing is gained by drawing crops in the background."""

_HELD_OUT: Final = 3
"""Of so many patients of a folder, sorted by name, the last is held out."""

_PRETRAINING: Final = ((2e-3, 0.6), (5e-4, 0.4))
"""Learning rate and share of the steps of each phase."""


@dataclass(frozen=True)
class Scan:
    """A prepared case in memory; see ``client.training.crops.PreparedCase``."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Hospital:
    """A site's patients, each with their scans."""

    name: str
    patients: tuple[tuple[Scan, ...], ...]
    held_out: tuple[Scan, ...]
    variant: str = ""
    """What was done to the patients, if anything, to tell their updates from others."""


Update = Callable[[], Arrays]
Send = Callable[[Update, Arrays, np.random.Generator], Arrays]
"""What a site sends, made of the update that it would train, the last change of the global weights
({} in the first round) and chance."""


@dataclass(frozen=True)
class Outcome:
    """What a study gave: the last weights, the bytes and the norm of each update."""

    weights: Arrays
    nbytes: tuple[int, ...]
    norms: tuple[float, ...]


def phantom_hospitals(
    folder: Path,
    profiles: Sequence[str],
    protocol: StudyProtocol,
    *,
    patients: int,
    held_out: int,
    size: int,
    seed: int,
) -> list[Hospital]:
    """Return a hospital of phantoms for each name in ``profiles``; ``size`` as in phantoms."""
    hospitals = []
    for site, profile in enumerate(profiles):
        data = folder / f"{site}-{profile}"
        write_cohort(
            data, PROFILES[profile], patients=patients + held_out, size=size, seed=seed, site=site
        )
        people = _people(data, folder / "cache", protocol)
        aside = tuple(scan for scans in people[patients:] for scan in scans)
        hospitals.append(Hospital(profile, tuple(people[:patients]), aside))
    return hospitals


def data_folder() -> Path | None:
    """Return the folder of hospitals that the environment variable GLIOFED_BENCH_DATA names."""
    named = os.environ.get("GLIOFED_BENCH_DATA")
    return Path(named) if named else None


def folder_hospitals(data: Path, cache: Path, protocol: StudyProtocol) -> list[Hospital]:
    """Return a hospital for each folder of ``data``; every third patient is held out."""
    hospitals = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        people = _people(folder, cache, protocol)
        aside = people[_HELD_OUT - 1 :: _HELD_OUT]
        kept = [p for place, p in enumerate(people) if place % _HELD_OUT != _HELD_OUT - 1]
        scans = tuple(scan for person in aside for scan in person)
        hospitals.append(Hospital(folder.name, tuple(kept), scans))
    return hospitals


def _people(data: Path, cache_folder: Path, protocol: StudyProtocol) -> list[tuple[Scan, ...]]:
    """Return the labelled scans of each patient, prepared, in memory."""
    cache = PreparedCache(cache_folder, protocol.preprocessing)
    by_patient: dict[str, list[Scan]] = {}
    for case in read_cohort(data).labelled:
        by_patient.setdefault(case.patient, []).append(_scan(cache, case))
    return [tuple(scans) for _, scans in sorted(by_patient.items())]


def _scan(cache: PreparedCache, case: Case) -> Scan:
    prepared = cache.get(case)
    if prepared.labels is None:
        raise ValueError(f"{case.name} has no labels")
    return Scan(np.array(prepared.image), np.array(prepared.labels))


def loaders(people: Sequence[Sequence[Scan]]) -> list[Patient]:
    """Return the patients as training reads them."""
    return [[functools.partial(_same, scan) for scan in scans] for scans in people]


def _same(scan: Scan) -> Scan:
    return scan


def pretrained(hospital: Hospital, protocol: StudyProtocol, *, steps: int, seed: int) -> Arrays:
    """Return weights that were trained from random ones on a hospital outside the federation."""
    network = build(protocol.network, seed=seed)
    for phase, (rate, share) in enumerate(_PRETRAINING):
        options = protocol.training.model_copy(
            update={"local_steps": max(1, round(steps * share)), "learning_rate": rate}
        )
        train(
            network,
            loaders(hospital.patients),
            options,
            seed=seed + phase,
            execution=EXECUTION,
        )
    return state_arrays(network)


def score(weights: Arrays, protocol: StudyProtocol, scans: Sequence[Scan]) -> float:
    """Return the Dice of ``weights``, the mean over regions and ``scans``."""
    network = build(protocol.network, seed=0)
    load_arrays(network, weights)
    scores = evaluate(
        network,
        [functools.partial(_same, scan) for scan in scans],
        crop_size=protocol.training.crop_size,
        execution=EXECUTION,
    )
    return statistics.fmean(scores.mean(region) or 0.0 for region in REGIONS)


@dataclass
class Federation:
    """Hospitals that train together, from one start. What sites train in the first round is the
    same in all studies of one federation, and is trained once: their protocols must differ in
    ``aggregation`` and ``messages`` alone.
    """

    start: Arrays
    seed: int
    _first: dict[tuple[str, str], Arrays] = field(default_factory=dict)

    def study(
        self,
        protocol: StudyProtocol,
        hospitals: Sequence[Hospital],
        *,
        sends: Mapping[str, Send] | None = None,
    ) -> Outcome:
        """Run all rounds; raise UpdateError or FederationError as the coordinator would.

        ``sends`` says which sites send something else than what they trained.
        """
        weights, change = dict(self.start), dict[str, NDArray[np.float32]]()
        residuals: dict[str, Arrays] = {}
        nbytes, norms, kept = [], [], dict[str, NDArray[np.float32]]()
        for number in range(1, protocol.rounds + 1):
            rule = RULES[protocol.aggregation.rule](protocol.aggregation, kept)
            for place, hospital in enumerate(hospitals):
                name = hospital.name
                rng = np.random.default_rng([self.seed, number, place])
                honest = functools.partial(self._update, protocol, hospital, weights, number)
                send = (sends or {}).get(name)
                update = honest() if send is None else send(honest, change, rng)
                body, residuals[name] = encode(
                    update, protocol.messages, rng=rng, residual=residuals.get(name)
                )
                got = self._over_the_wire(protocol, number, body)
                nbytes.append(len(body))
                norms.append(norm(got))
                rule.fold(name, got, weight=1.0, steps=protocol.training.local_steps)
            change, kept = rule.result(), rule.state()
            weights = {name: value + change[name] for name, value in weights.items()}
        return Outcome(weights, tuple(nbytes), tuple(norms))

    def _update(
        self, protocol: StudyProtocol, hospital: Hospital, weights: Arrays, number: int
    ) -> Arrays:
        key = hospital.name, hospital.variant
        if number == 1 and key in self._first:
            return self._first[key]
        network = build(protocol.network, seed=0)
        load_arrays(network, weights)
        said = f"{self.seed}/{hospital.name}/{number}".encode()
        result = train(
            network,
            loaders(hospital.patients),
            protocol.training,
            seed=int.from_bytes(hashlib.sha256(said).digest()[:8]),
            execution=EXECUTION,
        )
        if number == 1:
            self._first[key] = result.update
        return result.update

    def _over_the_wire(self, protocol: StudyProtocol, number: int, body: bytes) -> Arrays:
        """Return an update as the coordinator takes it in."""
        report = Report(kind="train", study=protocol.study, round=number, status="done")
        return unpack_report(
            pack(report, body),
            template={name: array.shape for name, array in self.start.items()},
            max_norm=protocol.aggregation.max_update_norm,
            options=protocol.messages,
        )[1]
