"""One study at one site: its patients, its training, its scores, from protocol to arrays.

Everything here stays at the site; ``client.participation`` decides what leaves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch

from client import accountant
from client.cohort import Split, read_cohort, split
from client.evaluation import evaluate
from client.imaging.cache import PreparedCache
from client.imaging.case import Case
from client.imaging.preprocessing import Prepared
from client.private_training import LedgerCharge, train_privately
from client.site import Machine, Site
from client.training import ExecutionOptions, Patient, Progress, choose_execution, train
from common.errors import CaseError, ConsentError, PrivacyError, StateError
from common.metrics import RegionScores
from common.networks import build, load_arrays, state_arrays
from common.privacy import Cap, Ledger, Mechanism
from common.protocol import PreprocessingOptions, StudyProtocol
from common.regions import REGIONS
from common.weights import Arrays
from common.wire import PrivacySpent


def starting_weights(protocol: StudyProtocol) -> Arrays:
    """Return the random weights that the protocol's network and seed determine."""
    return state_arrays(build(protocol.network, seed=protocol.seed))


def read_split(site: Site, protocol: StudyProtocol) -> Split:
    """Return the site's labelled cases, split by patient for this study; raise CaseError."""
    return split(read_cohort(site.data), protocol.study)


def training_cases(site: Site, protocol: StudyProtocol) -> int:
    """Return how many cases the study trains on here."""
    return len(read_split(site, protocol).train)


def training_patients(site: Site, protocol: StudyProtocol) -> list[Patient]:
    """Return the patients to train on, each with all their scans: the unit of privacy.

    Raises CaseError (code ``case-none``) if there is none.
    """
    cases = read_split(site, protocol).train
    if not cases:
        raise CaseError(
            f"The training split of {site.name} is empty.",
            do="Add labelled patients to the cohort.",
            code="case-none",
        )
    names = sorted({case.patient for case in cases})
    return [
        _loaders(site, protocol.preprocessing, [case for case in cases if case.patient == name])
        for name in names
    ]


def train_round(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays,
    *,
    round_number: int,
    progress: Progress | None = None,
) -> Arrays:
    """Train from ``weights`` for one round and return the update of the trained arrays.

    With privacy each step is charged to the site's ledger before it is taken. Raises PrivacyError
    (code ``privacy-cap``) when the budget does not allow the whole round, CaseError without
    patients.
    """
    patients = training_patients(site, protocol)
    network = build(protocol.network, seed=protocol.seed)
    load_arrays(network, weights)
    execution = execution_for(site.settings.machine)
    if not protocol.private:
        if not site.settings.policy.allow_without_privacy:
            raise ConsentError("This site does not train without privacy.", code="policy-privacy")
        return train(
            network,
            patients,
            protocol.training,
            seed=protocol.seed + round_number,
            execution=execution,
            progress=progress,
        ).update
    check_delta(protocol, len(patients))
    study_cap, site_cap = caps(site, protocol)
    with open_ledger(site) as ledger:
        _check_round_fits(ledger, protocol, study_cap, site_cap)
        charge = LedgerCharge(
            ledger, protocol.study, protocol.digest, round_number, study_cap, site_cap
        )
        return train_privately(
            network,
            patients,
            protocol.training,
            protocol.privacy,
            charge,
            execution=execution,
            progress=progress,
        ).update


def _check_round_fits(
    ledger: Ledger, protocol: StudyProtocol, study_cap: Cap, site_cap: Cap
) -> None:
    """Raise PrivacyError before a round that would spend steps and end without an update."""
    mechanism = Mechanism(protocol.privacy.noise_multiplier, protocol.privacy.sampling_rate)
    left = ledger.steps_left(
        study=protocol.study, mechanism=mechanism, study_cap=study_cap, site_cap=site_cap
    )
    if left < protocol.training.local_steps:
        raise PrivacyError(
            f"The privacy budget of study {protocol.study} does not allow another round: it takes "
            f"{protocol.training.local_steps} steps, and {left} are left below epsilon "
            f"{study_cap.epsilon:g} of the study and {site_cap.epsilon:g} of the site.",
            do="The study ends here for this site, or the hospital raises its cap.",
            code="privacy-cap",
        )


def check_delta(protocol: StudyProtocol, patients: int) -> None:
    """Raise PrivacyError unless delta is below one over the number of patients trained on."""
    if protocol.privacy.delta * patients >= 1:
        raise PrivacyError(
            f"The delta of study {protocol.study} is too large for this site's cohort: it must be "
            "smaller than one over the number of its patients.",
            do="Ask for a protocol with a smaller delta.",
            code="privacy-delta",
        )


def score(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays,
    cases: Sequence[Case],
) -> RegionScores:
    """Return the Dice scores of ``weights`` over ``cases`` of the site."""
    network = build(protocol.network, seed=protocol.seed)
    load_arrays(network, weights)
    return evaluate(
        network,
        _loaders(site, protocol.preprocessing, cases),
        crop_size=protocol.training.crop_size,
        execution=execution_for(site.settings.machine),
    )


def validation_dice(site: Site, protocol: StudyProtocol, weights: Arrays) -> dict[str, float]:
    """Return the mean Dice per region on the validation patients; empty without any."""
    return mean_dice(score(site, protocol, weights, read_split(site, protocol).validation))


def mean_dice(scores: RegionScores) -> dict[str, float]:
    """Return the mean per region of those regions that have a score."""
    means = {region: scores.mean(region) for region in REGIONS}
    return {region: round(mean, 6) for region, mean in means.items() if mean is not None}


def open_ledger(site: Site) -> Ledger:
    """Open the site's privacy ledger; raise StateError."""
    return Ledger(
        site.folder / "ledger.sqlite",
        accountant=accountant.epsilon,
        code_version=version("gliofed"),
    )


def caps(site: Site, protocol: StudyProtocol) -> tuple[Cap, Cap]:
    """Return the study's and the site's own cap, both at the study's delta."""
    delta = protocol.privacy.delta
    return (
        Cap(protocol.privacy.max_epsilon, delta),
        Cap(site.settings.policy.max_epsilon, delta),
    )


def privacy_spent(site: Site, protocol: StudyProtocol) -> PrivacySpent:
    """Return what the study has cost each patient here."""
    with open_ledger(site) as ledger:
        spent = ledger.spent(protocol.privacy.delta, study=protocol.study)
    return PrivacySpent(
        noise_multiplier=protocol.privacy.noise_multiplier,
        sampling_rate=protocol.privacy.sampling_rate,
        steps=spent.steps,
        delta=spent.delta,
        epsilon=round(spent.epsilon, 4),
    )


def execution_for(machine: Machine) -> ExecutionOptions:
    """Return how this machine computes, as its settings say.

    Raises StateError (code ``device``) for a device that it does not have.
    """
    if machine.threads:
        torch.set_num_threads(machine.threads)
    present = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available()}
    if not present.get(machine.device, torch.backends.mps.is_available()):
        raise StateError(
            f"site.toml asks for the device {machine.device}, which torch does not find here.",
            do='Set device = "auto" or "cpu", or mend the driver.',
            code="device",
        )
    return choose_execution(machine.device)


def _loaders(
    site: Site, options: PreprocessingOptions, cases: Sequence[Case]
) -> list[Callable[[], Prepared]]:
    cache = PreparedCache(site.folder / "cache", options)
    return [functools.partial(cache.get, case) for case in cases]
