"""A site that took part in a round, and a machine that is always the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.page.machine_load import Gpu, Machine
from client.page.site_status import Readings
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.consortia import answer, approve, order

MACHINE = Machine(
    disk_free_bytes=300 * 10**9,
    disk_total_bytes=10**12,
    memory_free_bytes=40 * 10**9,
    memory_total_bytes=64 * 10**9,
    processors=16,
    load=1.5,
    gpus=(Gpu("NVIDIA H100", 20 * 2**30, 80 * 2**30, 0.75),),
)


@pytest.fixture
def trained(site: Site, consortium: Consortium, protocol: StudyProtocol) -> Site:
    """The site after one round and one refusal."""
    approve(site, consortium, protocol)
    weights = round_training.starting_weights(protocol)
    for number in (1, 99):
        content = order(consortium.identity, protocol, "train", number=number, weights=weights)
        answer(Participation(site), content)
    return site


@pytest.fixture
def readings(site: Site) -> Readings:
    return Readings(site.folder, machine=lambda _: MACHINE, aside=lambda work: work())


@pytest.fixture
def patients(cohort: Path) -> list[str]:
    """Every name under which patients and cases are known at the hospital."""
    return sorted({path.name for path in cohort.rglob("*") if path.is_dir()})
