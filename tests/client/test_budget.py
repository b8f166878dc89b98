"""What the ledger says in words: spent, left, over all studies."""

from __future__ import annotations

import pytest

from client import accountant, studies
from client.budget import budget
from client.site import Site
from common.privacy import Mechanism
from common.protocol import PROTOCOL, StudyProtocol
from server.provisioning import Consortium
from tests.consortia import STUDY, edit, tiny_protocol


def offer(site: Site, consortium: Consortium, protocol: StudyProtocol) -> None:
    site.keep_protocol(consortium.identity.sign(PROTOCOL, protocol.model_dump(mode="json")))


def train(site: Site, protocol: StudyProtocol) -> None:
    studies.train_round(site, protocol, studies.starting_weights(protocol), round_number=1)


def test_nothing_offered_nothing_spent(site: Site) -> None:
    found = budget(site)
    assert found["studies"] == []
    assert found["all_studies"] == {
        "epsilon_spent": 0.0,
        "epsilon_cap": 10.0,
        "delta": 1e-5,
        "steps_spent": 0,
    }


def test_spent_and_left_fit_the_accountant(site: Site, consortium: Consortium) -> None:
    first, second = tiny_protocol(), tiny_protocol(study="another-one", privacy={"delta": 1e-4})
    bare = tiny_protocol(study="bare", privacy={"mode": "none"})
    for protocol in (first, second, bare):
        offer(site, consortium, protocol)
    train(site, first)
    train(site, second)
    found = budget(site)
    by_name = {one["study"]: one for one in found["studies"]}
    assert by_name["bare"] == {"study": "bare", "private": False}
    own = by_name[STUDY]
    step = Mechanism(2.0, 0.5)
    assert own["steps_spent"] == 2
    assert own["epsilon_spent"] == pytest.approx(accountant.epsilon([(step, 2)], 1e-3), abs=1e-4)
    assert own["rounds_left"] == own["steps_left"] // 2
    total = own["steps_left"] + own["steps_spent"]
    assert accountant.epsilon([(step, total)], 1e-3) <= own["epsilon_cap"]
    everything = found["all_studies"]
    assert (everything["delta"], everything["steps_spent"]) == (1e-4, 4)
    assert everything["epsilon_spent"] == pytest.approx(
        accountant.epsilon([(step, 4)], 1e-4), abs=1e-4
    )


def test_the_sites_cap_limits_what_is_left(site: Site, consortium: Consortium) -> None:
    offer(site, consortium, tiny_protocol())
    (before,) = budget(site)["studies"]
    (after,) = budget(edit(site, "max_epsilon = 10.0", "max_epsilon = 1.0"))["studies"]
    assert after["steps_left"] < before["steps_left"]
    assert after["rounds_left"] == after["steps_left"] // 2
