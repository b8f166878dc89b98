from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy.mechanism import Mechanism
from client.privacy.patient_exposure import Exposure, cohort_digest, maximal
from common.errors import PrivacyError

MECHANISMS = [Mechanism(noise, 0.1) for noise in (0.5, 1.0, 2.0)]
PEOPLE = [f"{number:032x}" for number in range(6)]

HISTORIES = st.lists(
    st.dictionaries(st.sampled_from(MECHANISMS), st.integers(1, 3)).map(Counter), max_size=8
)


def test_a_cohort_is_named_by_its_patients_alone() -> None:
    digest = cohort_digest(frozenset(PEOPLE))
    assert digest == cohort_digest(frozenset(reversed(PEOPLE)))
    assert digest != cohort_digest(frozenset(PEOPLE[1:]))
    assert len(digest) == 64
    with pytest.raises(PrivacyError):
        cohort_digest(frozenset())


@settings(max_examples=60, deadline=None)
@given(
    facts=st.lists(
        st.tuples(
            st.sampled_from(["alpha", "beta"]),
            st.sampled_from(MECHANISMS),
            st.sets(st.sampled_from(PEOPLE), min_size=1),
            st.integers(1, 5),
        ),
        max_size=8,
    ),
    asked=st.sets(st.sampled_from(PEOPLE), min_size=1),
    study=st.sampled_from([None, "alpha", "beta"]),
)
def test_each_patient_has_exactly_its_own_steps(
    facts: list[tuple[str, Mechanism, set[str], int]], asked: set[str], study: str | None
) -> None:
    exposure = Exposure()
    for name, mechanism, members, steps in facts:
        cohort = frozenset(members)
        if cohort_digest(cohort) not in exposure:
            exposure.know(cohort_digest(cohort), cohort)
        exposure.add(name, mechanism, cohort_digest(cohort), steps)
    histories = exposure.histories(frozenset(asked), study=study)
    assert sorted(one for members, _ in histories for one in members) == sorted(asked)
    for members, history in histories:
        for one in members:
            own = Counter[Mechanism]()
            for name, mechanism, touched, steps in facts:
                if one in touched and study in {None, name}:
                    own[mechanism] += steps
            assert history == own
    touched = {one for name, _, members, _ in facts if study in {None, name} for one in members}
    assert exposure.patients(study=study) == touched


@given(HISTORIES)
def test_what_is_left_out_is_contained_in_what_is_kept(
    histories: list[Counter[Mechanism]],
) -> None:
    kept = maximal(histories)
    assert all(one in histories for one in kept)
    assert all(any(one <= other for other in kept) for one in histories)
    assert not any(one <= other for one in kept for other in kept if one is not other)
