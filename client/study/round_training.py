"""One study at one site: its patients, its training, its scores, from protocol to arrays.

Everything here stays at the site; ``client.runtime.order_handler`` decides what leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.cohort.patient_split import Split, split
from client.cohort.series_decisions import cohort_of
from client.imaging.case import Case
from client.imaging.missing_sequences import check_usable
from client.imaging.prepared_cache import PreparedCache
from client.imaging.preprocessing import Prepared
from client.networks.padding import PaddedNetwork
from client.networks.registry import build, load_arrays, state_arrays
from client.privacy.budget_caps import (
    caps,
    charge_unprotected,
    mechanism,
    open_ledger,
    with_room,
)
from client.privacy.dp_sgd import LedgerCharge, train_privately
from client.segmentation.calibration import Counts
from client.segmentation.dice import RegionScores
from client.segmentation.evaluation import Evaluation, evaluate, evaluate_fully, predictions
from client.site.execution import execution_for
from client.site.folder import Site
from client.site.preemption import yielding
from client.site.pseudonyms import patients_key, pseudonym, withdrawn
from client.study.consent import check_delta
from client.study.known_patients import by_patient
from client.study.round_state import Kept, Trained
from client.training.drift_correction import NO_TERMS, Terms, correction
from client.training.loop import Progress, TrainingResult, train
from client.training.lr_schedule import Place
from common.errors import CaseError, ConsentError, PrivacyError
from common.messages.low_rank import Subspace
from common.records.weights import Arrays
from common.regions import REGIONS, labels_to_regions
from common.study import trained_parameters
from common.study.drawn_weights import draw
from common.study.protocol import PreprocessingOptions, StudyProtocol, TrainingOptions

_LOG = logging.getLogger(__name__)

_PERSONAL_SEED: Final = 2**31
"""Keeps the draws of the personal model, without privacy, apart from those of the updates."""


def starting_weights(protocol: StudyProtocol) -> Arrays:
    """Return the random weights that the protocol's network and seed determine."""
    return draw(protocol.network, seed=protocol.seed)


def update_shapes(protocol: StudyProtocol, weights: Arrays) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each array that a site sends for a round from ``weights``."""
    return trained_parameters.update_shapes(
        {name: array.shape for name, array in weights.items()},
        protocol.network.name,
        protocol.training,
    )


def trained_shapes(protocol: StudyProtocol, weights: Arrays) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each array that a site trains: what it sends and what it keeps."""
    return trained_parameters.trained_shapes(
        {name: array.shape for name, array in weights.items()},
        protocol.network.name,
        protocol.training,
    )


def read_split(site: Site, protocol: StudyProtocol) -> Split:
    """Return the site's labelled cases, split by patient for this study; raise CaseError.

    Patients who have withdrawn are in no part of it, nor cases that lack a sequence if the study
    has no ``sequence_dropout``; the log says which.
    """
    gone = withdrawn(site)
    parts = split(cohort_of(site), protocol.study)
    key = patients_key(site) if gone else b""

    def taken(case: Case) -> bool:
        return not (gone and pseudonym(key, case.patient) in gone) and _usable(case, protocol)

    return Split(
        *(
            tuple(case for case in part if taken(case))
            for part in (parts.train, parts.validation, parts.test)
        )
    )


def _usable(case: Case, protocol: StudyProtocol) -> bool:
    try:
        check_usable(case.name, case.missing, sequence_dropout=protocol.training.sequence_dropout)
    except CaseError as error:
        _LOG.warning("A case is left out of %s. %s", protocol.study, error)
        return False
    return True


def training_cases(site: Site, protocol: StudyProtocol) -> int:
    """Return how many cases the study trains on here."""
    return len(read_split(site, protocol).train)


def training_patients(site: Site, protocol: StudyProtocol) -> dict[str, list[Loader]]:
    """Return, by pseudonym, the patients to train on, each with all their scans.

    The patient is the unit of privacy. Raises CaseError (code ``case-none``) if there is none.
    """
    known = by_patient(site, read_split(site, protocol).train)
    if not known:
        raise CaseError(
            f"The training split of {site.name} is empty.",
            do="Add labelled patients to the cohort, or what the log says that its cases lack.",
            code="case-none",
        )
    return {name: loaders(site, protocol.preprocessing, own) for name, own in known.items()}


def train_round(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays,
    *,
    round_number: int,
    control: Arrays | None = None,
    progress: Progress | None = None,
    drawing: Callable[[], None] | None = None,
) -> Trained:
    """Train from ``weights`` for one round; return the update, and what is this site's own.

    The site's local layers take the place of those in ``weights``. ``control`` is c of SCAFFOLD, if
    the study's rule is that. The personal model is trained after the update, in steps of its own.

    With privacy all patients are prepared before the first is drawn, and then ``drawing`` is
    called: what comes after it depends on the draws. Each step is charged to the site's ledger
    before it is taken; patients whose budget does not allow the whole round are left out of it.
    Raises PrivacyError (code ``privacy-cap``) when that is everyone, CaseError without patients.
    Without privacy the whole round is charged to all of them, as steps whose epsilon is infinite.
    """
    patients = training_patients(site, protocol)
    if protocol.private:
        _prepare(site, patients)
        if drawing is not None:
            drawing()
        return _train_privately(site, protocol, weights, patients, round_number, control, progress)
    if not site.settings.policy.allow_without_privacy:
        raise ConsentError("This site does not train without privacy.", code="policy-privacy")

    def train_part(part: _Part) -> TrainingResult:
        return train(
            part.network,
            list(patients.values()),
            part.options,
            seed=part.seed,
            execution=execution_for(site.settings.machine),
            subspace=part.subspace,
            terms=part.terms,
            place=part.place,
            before_step=yielding(site),
            progress=part.progress,
        )

    parts = _parts(site, protocol, weights, round_number, control, progress)
    with open_ledger(site) as ledger:
        number = charge_unprotected(
            site, protocol, ledger, frozenset(patients), round_number=round_number
        )
        made = _trained(parts, train_part)
        ledger.confirm(number)
    return made


def _prepare(site: Site, patients: Mapping[str, Sequence[Loader]]) -> None:
    """Prepare whoever is not in the cache, so that drawing them first takes no longer than again.

    Where the cache has a limit, all may not fit into it, and nobody is prepared ahead.
    """
    if site.settings.machine.cache_bytes:
        return
    wait = yielding(site)
    for load in (load for scans in patients.values() for load in scans):
        wait()
        try:
            load.prepare()
        except CaseError as error:
            _LOG.warning("A scan cannot be prepared. %s", error)


def _train_privately(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays,
    patients: Mapping[str, Sequence[Loader]],
    round_number: int,
    control: Arrays | None,
    progress: Progress | None,
) -> Trained:
    check_delta(site.settings.policy, protocol, len(patients))
    study_cap, patient_cap = caps(site, protocol)
    with open_ledger(site) as ledger:
        names = with_room(
            ledger,
            protocol,
            mechanism(protocol),
            protocol.training.steps_per_round,
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
        charge = LedgerCharge(
            ledger,
            protocol.study,
            protocol.digest,
            round_number,
            names,
            study_cap,
            patient_cap,
        )

        def train_part(part: _Part) -> TrainingResult:
            result = train_privately(
                part.network,
                [patient for name, patient in patients.items() if name in names],
                part.options,
                protocol.privacy,
                charge,
                execution=execution_for(site.settings.machine),
                subspace=part.subspace,
                terms=part.terms,
                place=part.place,
                before_step=yielding(site),
                progress=part.progress,
            )
            if not result.safe:
                raise PrivacyError(
                    "The noise of this round did not come from the operating system.",
                    do="Install gliofed as it was released; nothing of this round leaves.",
                    code="privacy-noise",
                )
            return result

        parts = _parts(site, protocol, weights, round_number, control, progress)
        return _trained(parts, train_part)


@dataclass(frozen=True)
class _Part:
    """One training of a round: of the update, or of the personal model."""

    network: PaddedNetwork
    options: TrainingOptions
    seed: int
    subspace: Subspace
    terms: Terms
    place: Place
    progress: Progress | None


def _parts(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays,
    round_number: int,
    control: Arrays | None,
    progress: Progress | None,
) -> Iterator[_Part]:
    """Yield the trainings of a round, each with its network where it starts."""
    options, kept = protocol.training, Kept(site, protocol.study)
    subspace = Subspace(protocol.seed, round_number)
    place = Place.of_round(round_number, protocol.rounds, options)
    terms = NO_TERMS
    if control is not None:
        terms = Terms(correction=correction(control, kept.own("control")))
    start = with_local_layers(site, protocol, weights)
    yield _Part(
        _loaded(protocol, start),
        options,
        protocol.seed + round_number,
        subspace,
        terms,
        place,
        _shifted(progress, 0, options),
    )
    if options.personal_lambda:
        yield _Part(
            _loaded(protocol, kept.own("personal") or weights),
            options.model_copy(update={"proximal_mu": options.personal_lambda}),
            protocol.seed + round_number + _PERSONAL_SEED,
            subspace,
            Terms(centre=weights),
            place,
            _shifted(progress, options.local_steps, options),
        )


def _trained(parts: Iterator[_Part], train_part: Callable[[_Part], TrainingResult]) -> Trained:
    result = train_part(next(parts))
    personal: Arrays = {}
    for part in parts:
        train_part(part)
        personal = state_arrays(part.network)
    return Trained(result.update, local=result.local, personal=personal)


def _loaded(protocol: StudyProtocol, weights: Arrays) -> PaddedNetwork:
    network = build(protocol.network, seed=protocol.seed)
    load_arrays(network, weights)
    return network


def _shifted(progress: Progress | None, before: int, options: TrainingOptions) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(before + done, options.steps_per_round)


def with_local_layers(site: Site, protocol: StudyProtocol, weights: Arrays) -> Arrays:
    """Return the weights as this site uses them: with its own local layers, if it has any."""
    if not protocol.training.local:
        return weights
    return {**weights, **Kept(site, protocol.study).own("local")}


def score(
    site: Site,
    protocol: StudyProtocol,
    weights: Arrays | Sequence[Arrays],
    cases: Sequence[Case],
) -> RegionScores:
    """Return the Dice scores of ``weights``, as they are, over ``cases`` of the site.

    Several weights predict together.
    """
    members = [weights] if isinstance(weights, Mapping) else weights
    return evaluate(
        [_loaded(protocol, arrays) for arrays in members],
        loaders(site, protocol.preprocessing, cases),
        crop_size=protocol.training.crop_size,
        execution=execution_for(site.settings.machine),
        prediction=protocol.prediction,
        postprocessing=protocol.postprocessing,
        spacing_mm=protocol.preprocessing.spacing_mm,
    )


def score_fully(
    site: Site,
    protocol: StudyProtocol,
    weights: Sequence[Arrays],
    cases: Sequence[Case],
) -> Evaluation:
    """Return all scores, over ``cases``, of networks that predict together; for the site alone."""
    return evaluate_fully(
        [_loaded(protocol, arrays) for arrays in weights],
        loaders(site, protocol.preprocessing, cases),
        crop_size=protocol.training.crop_size,
        execution=execution_for(site.settings.machine),
        prediction=protocol.prediction,
        postprocessing=protocol.postprocessing,
        spacing_mm=protocol.preprocessing.spacing_mm,
    )


def predicted(
    site: Site, protocol: StudyProtocol, weights: Arrays, cases: Sequence[Case]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Yield probabilities and true labels of the site's ``cases``."""
    return predictions(
        _loaded(protocol, weights),
        loaders(site, protocol.preprocessing, cases),
        crop_size=protocol.training.crop_size,
        execution=execution_for(site.settings.machine),
        prediction=protocol.prediction,
    )


def calibration_counts(
    site: Site, protocol: StudyProtocol, weights: Arrays, cases: Sequence[Case]
) -> Counts:
    """Return how true the probabilities of ``weights`` are over the site's ``cases``."""
    total = Counts.none()
    for probabilities, truth in predicted(site, protocol, weights, cases):
        total += Counts.of_case(probabilities, labels_to_regions(truth))
    return total


def mean_dice(scores: RegionScores) -> dict[str, float]:
    """Return the mean per region of those regions that have a score."""
    means = {region: scores.mean(region) for region in REGIONS}
    return {region: round(mean, 6) for region, mean in means.items() if mean is not None}


def loaders(site: Site, options: PreprocessingOptions, cases: Sequence[Case]) -> list[Loader]:
    limit = site.settings.machine.cache_bytes
    cache = PreparedCache(site.folder / "cache", options, limit_bytes=limit)
    return [Loader(cache, case) for case in cases]


@dataclass(frozen=True)
class Loader:
    """Returns a prepared case, when it is called."""

    cache: PreparedCache
    case: Case

    def __call__(self) -> Prepared:
        """Raise CaseError, which names the case, for whatever goes wrong with it."""
        try:
            return self.cache.get(self.case)
        except CaseError:
            raise
        except Exception as error:  # the edge of one patient's data
            raise CaseError(
                f"{self.case.name} cannot be used: {type(error).__name__}: {error}",
                do="`gliofed-site check` looks at the case by itself; the disk may be full or "
                "failing.",
                code="case-unreadable",
            ) from error

    def prepare(self) -> None:
        """Prepare the case if it is not in the cache; raise CaseError as a call does."""
        try:
            there = self.cache.place(self.case).exists()
        except Exception:  # noqa: BLE001  the call says what is wrong
            there = False
        if not there:
            self()
