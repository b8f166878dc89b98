"""Starting weights from a file that a person has to the first round of a hospital."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from client.privacy import budget_caps
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from common.errors import FederationError
from common.records.weights import Arrays, digest
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from server.consortium.published_study import Study
from tests import consortia


@pytest.mark.parametrize("others", [False, True])
def test_a_hospital_trains_from_the_weights_that_it_approved(
    site: Site,
    consortium: Consortium,
    tmp_path: Path,
    others: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given as bfloat16; a coordinator that then sends others gets a refusal, at no cost."""
    protocol = consortia.tiny_protocol(rounds=1, training={"local_steps": 1}, reports=[])
    drawn = round_training.starting_weights(protocol)
    given = {name: torch.from_numpy(value).bfloat16() for name, value in drawn.items()}
    save_file(given, tmp_path / "given.safetensors")
    (tmp_path / "study.toml").write_text(consortia.toml(protocol))
    published = provisioning.publish(
        consortium, tmp_path / "study.toml", initial=tmp_path / "given.safetensors"
    )
    named = digest({name: value.float().numpy() for name, value in given.items()})
    assert published.initial_sha256 == named
    consortia.approve(site, consortium, published)
    decided = site.decision(published.study)
    assert decided is not None
    assert decided[0].protocol == published.digest
    runs = consortia.rounds(consortium, published.study, {"north": Participation(site)})
    if not others:
        runs.run()
        assert [facts["base"] for facts in consortia.events(site, "training")] == [named]
        return

    def evil(_: Study) -> Arrays:
        return drawn

    monkeypatch.setattr(Study, "given", evil)
    monkeypatch.setattr("server.rounds.round_loop._FAILED_ROUNDS", 1)
    with pytest.raises(FederationError, match="missed its quorum"):
        runs.run()
    assert consortia.events(site, "training") == []
    (told,) = consortium.journal.events("site declined", order="train")
    assert told.facts["code"] == "initial"
    with budget_caps.open_ledger(site) as ledger:
        assert list(ledger.facts()) == []
