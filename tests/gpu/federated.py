"""A study of two hospitals, one round with privacy, with what the worker runs on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.runtime.order_handler import Participation
from tests import consortia
from tests.consortia import STUDY

SITES: Final = {"north": "reference", "south": "3t-research"}
"""The hospitals and the profiles of their phantoms."""


def missing(folder: Path, device: str) -> tuple[str, float, float]:
    """Run the round below ``folder``; return how much of what must be there is missing.

    That is each site's update, its scores, and, on a GPU, memory that was taken on it.
    """
    consortium = consortia.found(folder / "coordinator")
    protocol = consortia.tiny_protocol(rounds=1, aggregation={"quorum": 2})
    consortia.publish(consortium, protocol)
    hospitals = {}
    for number, (name, profile) in enumerate(SITES.items()):
        data = folder / f"{name}-mri"
        write_cohort(
            data, PROFILES[profile], patients=consortia.PATIENTS, size=24, seed=1, site=number
        )
        site = consortia.enrol(consortium, folder / name, name=name, data=data)
        site = consortia.edit(site, 'device = "auto"', f'device = "{device}"')
        consortia.approve(site, consortium, protocol)
        hospitals[name] = Participation(site)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    consortia.rounds(consortium, STUDY, hospitals).run()
    closed = consortium.journal.events("round closed", study=STUDY)
    took_part = closed[-1].facts["took_part"] if closed else []
    evaluated = consortium.journal.events("evaluated", study=STUDY)
    scored = evaluated[-1].facts["dice"] if evaluated else {}
    lacking = len(SITES.keys() - set(took_part)) + len(SITES.keys() - set(scored))
    if device == "cuda":
        lacking += torch.cuda.max_memory_allocated() <= before
    return "updates and scores that are missing", float(lacking), 0.0
