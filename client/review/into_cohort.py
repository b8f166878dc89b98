"""What follows a decision at a site: the case becomes one that the site trains on, or is none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.cohort.reviewed_cases import hand_over, take_back
from client.cohort.series_decisions import cohort_of
from client.review.decision import Said
from client.review.review_case import Subject
from client.review.session import Decided
from client.site.folder import Site
from common.errors import CaseError, GliofedError


def into_cohort(site: Site) -> Decided:
    """Return what hands accepted and corrected cases to ``site`` and takes rejected ones back.

    The review is saved by then: what keeps the case from the cohort is told, not raised.
    """

    def decided(subject: Subject, labels: NDArray[np.uint8], said: Said, number: int) -> str:
        try:
            return _followed(site, subject, labels, said, number)
        except GliofedError as error:
            return f"The cohort of {site.name} did not get the case: {error}"

    return decided


def _followed(
    site: Site, subject: Subject, labels: NDArray[np.uint8], said: Said, number: int
) -> str:
    case = subject.case
    if said.decision == "rejected":
        gone = take_back(site, case)
        return f"{site.name} does not train on the case any more." if gone else ""
    if not site.settings.policy.train_on_reviews:
        return f"{site.name} does not train on reviewed cases (train_on_reviews in site.toml)."
    if _labelled(site, case.patient, case.session):
        return f"The cohort of {site.name} has its own mask of this case, and keeps that."
    hand_over(site, case, labels, subject.affine, decision=said.decision, review=number)
    return f"{site.name} trains on the case from its next round on."


def _labelled(site: Site, patient: str, session: str) -> bool:
    """Return whether the cohort has a mask of the case that no review gave it."""
    try:
        cases = cohort_of(site).labelled
    except CaseError as error:
        if error.code != "case-none":
            raise
        return False
    return any(
        (one.patient, one.session, one.reviewed) == (patient, session, False) for one in cases
    )
