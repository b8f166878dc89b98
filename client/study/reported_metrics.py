"""What a site measures for a study beside training: scores of its models, histograms of its cohort.

With noise, it is charged to the ledger of every patient who may be in it before it is measured; who
has no budget for it is left out. Everything here stays at the site;
``client.runtime.order_handler`` decides what leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from client.imaging.case import Case
from client.imaging.preprocessing import Prepared
from client.privacy.budget_caps import caps, open_ledger, with_room
from client.privacy.dp_dice import SENSITIVITY, NoisedDice, noised_dice
from client.privacy.dp_histograms import SENSITIVITY as STATISTICS_SENSITIVITY
from client.privacy.dp_histograms import noised_statistics, patient_vector
from client.privacy.mechanism import Mechanism, Patients, Purpose
from client.site.folder import Site
from client.study.consent import check_delta
from client.study.known_patients import by_patient
from client.study.round_training import (
    loaders,
    mean_dice,
    read_split,
    score,
    with_local_layers,
)
from common.errors import CaseError
from common.records.weights import Arrays
from common.regions import REGIONS
from common.study.protocol import StudyProtocol

_LOG = logging.getLogger(__name__)


def validation_dice(
    site: Site, protocol: StudyProtocol, weights: Arrays, patients: Mapping[str, Sequence[Case]]
) -> dict[str, float]:
    """Return the mean Dice per region on the validation patients; empty without any.

    What is scored are the global weights with this site's own local layers, if the study has such.
    """
    used = with_local_layers(site, protocol, weights)
    cases = [case for own in patients.values() for case in own]
    return mean_dice(score(site, protocol, used, cases))


def validation_patients(site: Site, protocol: StudyProtocol) -> dict[str, list[Case]]:
    """Return the cases of each patient whom the study validates on, by pseudonym."""
    return by_patient(site, read_split(site, protocol).validation)


def noised_validation_dice(
    site: Site, protocol: StudyProtocol, weights: Arrays, *, round_number: int
) -> NoisedDice:
    """Return the means over the validation patients with noise.

    Scored is what ``validation_dice`` scores. Raises PrivacyError (code ``privacy-cap``) when the
    budget of no patient allows it.
    """
    patients = validation_patients(site, protocol)
    multiplier = protocol.privacy.dice_noise_multiplier
    used = with_local_layers(site, protocol, weights)
    scores: list[dict[str, float | None]] = []
    with _charged(
        site,
        protocol,
        frozenset(patients),
        Mechanism(multiplier, 1.0),
        purpose="metrics",
        round_number=round_number,
        sensitivity=SENSITIVITY,
    ) as names:
        for name in sorted(names):
            scores.append(_scores(site, protocol, used, patients[name], name))
        return noised_dice(scores, noise_multiplier=multiplier)


def _scores(
    site: Site, protocol: StudyProtocol, weights: Arrays, cases: list[Case], name: str
) -> dict[str, float | None]:
    """Return a patient's scores, and none where one of the scans fails, whyever.

    A patient without scores is counted with a half in each region. To fail in their place would
    tell that their scan cannot be read, and cost everybody another charge at each try.
    """
    try:
        found = score(site, protocol, weights, cases)
    except CaseError as error:  # the log stays in the hospital
        _LOG.warning("Patient %s counts as a half in each region. %s", name, error)
    except Exception:  # noqa: BLE001  the edge of one patient's data
        _LOG.exception("Patient %s counts as a half in each region: unforeseen.", name)
    else:
        return {region: found.mean(region) for region in REGIONS}
    return dict.fromkeys(REGIONS)


def noised_cohort_statistics(site: Site, protocol: StudyProtocol) -> dict[str, list[float]]:
    """Return the histograms of the training patients that the protocol asks for, with noise.

    A patient whose scans cannot be read adds nothing: that must not show. Raises PrivacyError (code
    ``privacy-cap``) when the budget of no patient allows it.
    """
    patients = by_patient(site, read_split(site, protocol).train)
    options = protocol.statistics
    with _charged(
        site,
        protocol,
        frozenset(patients),
        Mechanism(options.noise_multiplier, 1.0),
        purpose="statistics",
        round_number=0,
        sensitivity=STATISTICS_SENSITIVITY,
    ) as names:
        vectors = (_vector(site, protocol, patients, name) for name in sorted(names))
        return noised_statistics(vectors, options)


def _vector(
    site: Site, protocol: StudyProtocol, patients: Mapping[str, list[Case]], name: str
) -> NDArray[np.float64]:
    scans: list[Prepared] = []
    for load in loaders(site, protocol.preprocessing, patients[name]):
        try:
            scans.append(load())
        except CaseError as error:  # as which all that goes wrong with a case comes
            _LOG.warning("A scan of patient %s is not counted: %s", name, error)
    try:
        return patient_vector(scans, protocol.statistics.histograms)
    except Exception:  # noqa: BLE001  the edge of one patient's data
        _LOG.exception("Patient %s is not counted: unforeseen.", name)
        return patient_vector([], protocol.statistics.histograms)


@contextmanager
def _charged(
    site: Site,
    protocol: StudyProtocol,
    patients: Patients,
    release: Mechanism,
    *,
    purpose: Purpose,
    round_number: int,
    sensitivity: float,
) -> Iterator[Patients]:
    """Charge one ``release`` to those of ``patients`` who have room for it, and yield them.

    It is confirmed when the block ends well; otherwise it was reserved, and counts as spent.
    """
    if not patients:
        yield patients
        return
    check_delta(site.settings.policy, protocol, len(patients))
    study_cap, patient_cap = caps(site, protocol)
    with open_ledger(site) as ledger:
        names = with_room(ledger, protocol, release, 1, patients, (study_cap, patient_cap))
        number = ledger.reserve(
            study=protocol.study,
            protocol=protocol.digest,
            round_number=round_number,
            purpose=purpose,
            patients=names,
            mechanism=release,
            clipping_norm=sensitivity,
            steps=1,
            study_cap=study_cap,
            patient_cap=patient_cap,
        )
        yield names
        ledger.confirm(number)
