"""Whole studies in one process with what sites add: both sides' halves fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.networks.registry import build, trainable_names
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from client.study.round_state import Kept
from common.records.weights import Arrays
from server.aggregation.scaffold import control
from server.consortium.provisioning import Consortium
from tests.consortia import STUDY, approve, enrol, found, publish, rounds, tiny_protocol

NAMES = ("north", "south")


def hospitals(root: Path, cohorts: tuple[Path, ...], **changes: Any) -> tuple[Consortium, Any]:
    consortium = found(root / "coordinator")
    protocol = publish(
        consortium, tiny_protocol(aggregation={"quorum": 2, **changes.pop("rule", {})}, **changes)
    )
    sites = {}
    for name, data in zip(NAMES, cohorts, strict=False):
        sites[name] = enrol(consortium, root / name, name=name, data=data)
        approve(sites[name], consortium, protocol)
    return consortium, sites


def run(consortium: Consortium, sites: dict[str, Site]) -> Arrays:
    """Run the study to its end and return its last weights."""
    rounds(
        consortium, STUDY, {name: Participation.open(s.folder) for name, s in sites.items()}
    ).run()
    last = consortium.journal.events("round closed", study=STUDY)[-1].facts
    assert last["took_part"] == list(NAMES)
    return consortium.study(STUDY).load(int(last["round"]), str(last["weights"]))


@pytest.mark.parametrize("messages", [{}, {"encoding": "int8"}])
def test_variates_of_sites_and_coordinator_agree(
    tmp_path: Path, cohorts: tuple[Path, ...], messages: dict[str, Any]
) -> None:
    consortium, sites = hospitals(
        tmp_path,
        cohorts,
        rule={"rule": "scaffold"},
        training={"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.02},
        messages=messages,
        rounds=3,
    )
    run(consortium, sites)
    last = consortium.journal.events("round closed", study=STUDY)[-1].facts
    state = consortium.study(STUDY).load_state(3, str(last["state"]))
    own = {}
    for name, site in sites.items():
        Kept(site, STUDY).settle_control(3)
        own[name] = Kept(site, STUDY).own("control")
        training = [entry.facts for entry in site.journal.events("training")]
        assert [facts["folded_round"] for facts in training] == [0, 1, 2]
        assert len({facts["control"] for facts in training}) == 3
    for name, value in control(state, learning_rate=0.02).items():
        mean = (own["north"][name] + own["south"][name]) / 2
        assert np.allclose(value, mean, rtol=1e-3, atol=1e-4 * np.abs(mean).max())
        assert not np.allclose(own["north"][name], own["south"][name])


def test_each_site_has_layers_of_its_own(tmp_path: Path, cohorts: tuple[Path, ...]) -> None:
    consortium, sites = hospitals(tmp_path, cohorts, training={"local": ["norms"]})
    weights = run(consortium, sites)
    protocol = consortium.study(STUDY).protocol
    start = round_training.starting_weights(protocol)
    local = set(trainable_names(build(protocol.network, seed=0), ("norms",)))
    own = {name: Kept(site, STUDY).own("local") for name, site in sites.items()}
    for name, value in weights.items():
        assert np.array_equal(value, start[name]) == (name in local)
    assert set(own["north"]) == set(own["south"]) == local
    assert all(not np.array_equal(own["north"][n], own["south"][n]) for n in local)
    evaluated = consortium.journal.events("evaluated", study=STUDY)[-1].facts["dice"]
    for name, site in sites.items():
        used = {**weights, **own[name]}
        cases = round_training.read_split(site, protocol).validation
        scores = round_training.mean_dice(round_training.score(site, protocol, used, cases))
        assert evaluated.get(name, {}) == scores


def test_personal_models_leave_the_study_as_it_is(
    tmp_path: Path, cohorts: tuple[Path, ...]
) -> None:
    """Without privacy, whose noise differs, the global model does not know of them."""
    models = []
    for strength in (0.0, 0.5):
        root = tmp_path / str(strength)
        consortium, sites = hospitals(
            root, cohorts, training={"personal_lambda": strength}, privacy={"mode": "none"}
        )
        for site in sites.values():
            path = site.folder / "site.toml"
            path.write_text(path.read_text().replace("privacy = false", "privacy = true"))
        models.append(run(consortium, sites))
        for site in sites.values():
            assert bool(Kept(site, STUDY).own("personal")) == bool(strength)
    assert all(np.array_equal(models[0][name], models[1][name]) for name in models[0])
