"""One study at one site: its patients, its training, its scores, from protocol to arrays.

Everything here stays at the site; ``client.participation`` decides what leaves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch

from client.accountant import PldAccountant
from client.cohort import Split, read_cohort, split
from client.evaluation import evaluate
from client.imaging.cache import PreparedCache
from client.imaging.case import Case
from client.imaging.preprocessing import Prepared
from client.noised_dice import SENSITIVITY, NoisedDice, noised_dice
from client.patients import patients_key, pseudonym, withdrawn
from client.private_training import LedgerCharge, train_privately
from client.site import Machine, Site
from client.training import (
    ExecutionOptions,
    Patient,
    Progress,
    choose_execution,
    train,
)
from common import parameters
from common.errors import CaseError, ConsentError, PrivacyError, StateError
from common.ledger import Ledger
from common.low_rank import Subspace
from common.metrics import RegionScores
from common.networks import build, load_arrays, state_arrays
from common.privacy import Accountant, Cap, Mechanism
from common.protocol import PreprocessingOptions, StudyProtocol
from common.regions import REGIONS
from common.weights import Arrays
from common.wire import PrivacySpent


def starting_weights(protocol: StudyProtocol) -> Arrays:
    """Return the random weights that the protocol's network and seed determine."""
    return state_arrays(build(protocol.network, seed=protocol.seed))


def update_shapes(protocol: StudyProtocol, weights: Arrays) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each array that a site sends for a round from ``weights``."""
    return parameters.update_shapes(
        {name: array.shape for name, array in weights.items()},
        protocol.network.name,
        protocol.training,
    )


def read_split(site: Site, protocol: StudyProtocol) -> Split:
    """Return the site's labelled cases, split by patient for this study; raise CaseError.

    Patients who have withdrawn are in no part of it.
    """
    gone = withdrawn(site)
    parts = split(read_cohort(site.data), protocol.study)
    if not gone:
        return parts
    key = patients_key(site)
    return Split(
        *(
            tuple(case for case in part if pseudonym(key, case.patient) not in gone)
            for part in (parts.train, parts.validation, parts.test)
        )
    )


def training_cases(site: Site, protocol: StudyProtocol) -> int:
    """Return how many cases the study trains on here."""
    return len(read_split(site, protocol).train)


def training_patients(site: Site, protocol: StudyProtocol) -> dict[str, Patient]:
    """Return, by pseudonym, the patients to train on, each with all their scans.

    The patient is the unit of privacy. Raises CaseError (code ``case-none``) if there is none.
    """
    cases = read_split(site, protocol).train
    if not cases:
        raise CaseError(
            f"The training split of {site.name} is empty.",
            do="Add labelled patients to the cohort.",
            code="case-none",
        )
    return {
        name: _loaders(site, protocol.preprocessing, own)
        for name, own in _by_patient(site, cases).items()
    }


def _by_patient(site: Site, cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return the cases of each patient, by pseudonym."""
    key = patients_key(site)
    found: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.patient):
        found.setdefault(pseudonym(key, case.patient), []).append(case)
    return found


def train_round(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays,
    *,
    round_number: int,
    progress: Progress | None = None,
) -> Arrays:
    """Train from ``weights`` for one round and return the update of the trained arrays.

    With privacy each step is charged to the site's ledger before it is taken; patients whose budget
    does not allow the whole round are left out of it. Raises PrivacyError (code ``privacy-cap``)
    when that is everyone, CaseError without patients.
    """
    patients = training_patients(site, protocol)
    network = build(protocol.network, seed=protocol.seed)
    load_arrays(network, weights)
    execution = execution_for(site.settings.machine)
    subspace = Subspace(protocol.seed, round_number)
    if not protocol.private:
        if not site.settings.policy.allow_without_privacy:
            raise ConsentError("This site does not train without privacy.", code="policy-privacy")
        return train(
            network,
            list(patients.values()),
            protocol.training,
            seed=protocol.seed + round_number,
            execution=execution,
            subspace=subspace,
            progress=progress,
        ).update
    check_delta(protocol, len(patients))
    study_cap, patient_cap = caps(site, protocol)
    with open_ledger(site) as ledger:
        names = _with_room(
            ledger,
            protocol,
            mechanism(protocol),
            protocol.training.local_steps,
            frozenset(patients),
            (study_cap, patient_cap),
        )
        if len(names) < len(patients):
            site.journal.append(
                "patients left out",
                study=protocol.study,
                round=round_number,
                patients=len(patients) - len(names),
                reason="their privacy budget does not allow the round",
            )
        result = train_privately(
            network,
            [patient for name, patient in patients.items() if name in names],
            protocol.training,
            protocol.privacy,
            LedgerCharge(
                ledger,
                protocol.study,
                protocol.digest,
                round_number,
                names,
                study_cap,
                patient_cap,
            ),
            execution=execution,
            subspace=subspace,
            progress=progress,
        )
    if not result.safe:
        raise PrivacyError(
            "The noise of this round did not come from the operating system.",
            do="Install gliofed as it was released; nothing of this round leaves.",
            code="privacy-noise",
        )
    return result.update


def _with_room(
    ledger: Ledger,
    protocol: StudyProtocol,
    wanted: Mechanism,
    steps: int,
    patients: frozenset[str],
    limits: tuple[Cap, Cap],
) -> frozenset[str]:
    """Return the patients whose budget allows ``steps`` more; raise PrivacyError if none does.

    Who is left out depends on what the ledger charged before, never on what a scan holds.
    """
    study_cap, patient_cap = limits
    room = ledger.room(
        study=protocol.study,
        mechanism=wanted,
        patients=patients,
        study_cap=study_cap,
        patient_cap=patient_cap,
    )
    fitting = frozenset(name for name, left in room.items() if left >= steps)
    if not fitting:
        raise PrivacyError(
            f"The privacy budget of study {protocol.study} does not allow another round: it takes "
            f"{steps} steps, and at most {max(room.values(), default=0)} are left below epsilon "
            f"{study_cap.epsilon:g} of the study and {patient_cap.epsilon:g} of a patient over all "
            "studies.",
            do="The study ends here for this site, or the hospital raises its cap.",
            code="privacy-cap",
        )
    return fitting


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


def noised_validation_dice(
    site: Site, protocol: StudyProtocol, weights: Arrays, *, round_number: int
) -> NoisedDice:
    """Return the means over the validation patients with noise, charged to the ledger before.

    Raises PrivacyError (code ``privacy-cap``) when the budget of no patient allows it.
    """
    patients = _by_patient(site, read_split(site, protocol).validation)
    multiplier = protocol.privacy.dice_noise_multiplier
    release = Mechanism(multiplier, 1.0)
    study_cap, patient_cap = caps(site, protocol)
    scores: list[dict[str, float | None]] = []
    with open_ledger(site) as ledger:
        names = frozenset(patients)
        if names:
            names = _with_room(ledger, protocol, release, 1, names, (study_cap, patient_cap))
            number = ledger.reserve(
                study=protocol.study,
                protocol=protocol.digest,
                round_number=round_number,
                purpose="metrics",
                patients=names,
                mechanism=release,
                clipping_norm=SENSITIVITY,
                steps=1,
                study_cap=study_cap,
                patient_cap=patient_cap,
            )
        for name in sorted(names):
            found = score(site, protocol, weights, patients[name])
            scores.append({region: found.mean(region) for region in REGIONS})
        made = noised_dice(scores, noise_multiplier=multiplier)
        if names:
            ledger.confirm(number)
    return made


def mean_dice(scores: RegionScores) -> dict[str, float]:
    """Return the mean per region of those regions that have a score."""
    means = {region: scores.mean(region) for region in REGIONS}
    return {region: round(mean, 6) for region, mean in means.items() if mean is not None}


def accountant(site: Site) -> Accountant:
    """Return the accountant of the site's ledger, with what it reckoned before."""
    return PldAccountant(site.folder / "cache" / "accounting.json")


def open_ledger(site: Site) -> Ledger:
    """Open the site's privacy ledger.

    Raises StateError; code ``ledger-old`` if it is not the one, or older than the one, that the
    journal speaks of: an old copy would forget what was spent.
    """
    ledger = Ledger(
        site.folder / "ledger.sqlite",
        accountant=accountant(site),
        code_version=version("gliofed"),
    )
    said = [e.facts for e in site.journal.events("sent") if "ledger_head" in e.facts]
    if said and not ledger.holds(said[-1]["ledger_facts"], said[-1]["ledger_head"]):
        ledger.close()
        raise StateError(
            f"The privacy ledger of {site.name} is not the one that the journal speaks of: it was "
            "put back from an old copy or replaced.",
            do="Put the newest copy of ledger.sqlite back; until then no patient is trained on.",
            code="ledger-old",
        )
    return ledger


def mechanism(protocol: StudyProtocol) -> Mechanism:
    """Return the mechanism of one training step of the study."""
    return Mechanism(protocol.privacy.noise_multiplier, protocol.privacy.sampling_rate)


def caps(site: Site, protocol: StudyProtocol) -> tuple[Cap, Cap]:
    """Return a patient's cap in the study and over all studies, both at the study's delta."""
    delta = protocol.privacy.delta
    return (
        Cap(protocol.privacy.max_epsilon, delta),
        Cap(site.settings.policy.max_epsilon, delta),
    )


def privacy_spent(site: Site, protocol: StudyProtocol) -> PrivacySpent:
    """Return what the study has cost its worst patient here."""
    with open_ledger(site) as ledger:
        spent = ledger.spent(protocol.privacy.delta, study=protocol.study)
    return PrivacySpent(
        noise_multiplier=protocol.privacy.noise_multiplier,
        sampling_rate=protocol.privacy.sampling_rate,
        steps=spent.steps,
        delta=spent.delta,
        epsilon=round(spent.epsilon, 4),
    )


def withdrawn_rounds(site: Site, protocol: StudyProtocol) -> tuple[int, ...]:
    """Return the rounds of the study that saw patients who have withdrawn since."""
    gone = withdrawn(site)
    if not gone:
        return ()
    with open_ledger(site) as ledger:
        return tuple(
            sorted(
                {
                    fact.round
                    for name in gone
                    for fact in ledger.facts(study=protocol.study, patient=name)
                    if fact.round
                }
            )
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
    there = torch.cuda.device_count() if present["cuda"] else 0
    if machine.device in ("auto", "cuda") and machine.gpus > max(1, there):
        raise StateError(
            f"site.toml asks for {machine.gpus} CUDA devices, of which torch finds {there} here.",
            do="Set gpus = 1, or 0 for all that are there.",
            code="device",
        )
    return choose_execution(machine.device, gpus=machine.gpus, precision=machine.precision)


def _loaders(
    site: Site, options: PreprocessingOptions, cases: Sequence[Case]
) -> list[Callable[[], Prepared]]:
    cache = PreparedCache(site.folder / "cache", options)
    return [functools.partial(cache.get, case) for case in cases]
