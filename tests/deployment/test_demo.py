"""The demo with each network: one word in the protocol, then all the way to a mask."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from client.networks.registry import NETWORKS
from tests import children

DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "demo.sh"


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_network_trains_privately_and_segments(network: str, tmp_path: Path) -> None:
    work = tmp_path / "demo"
    commands = Path(sys.executable).parent
    done = children.run(
        ["/bin/bash", DEMO, work],
        env={
            **os.environ,
            "DEMO_NETWORK": network,
            "DEMO_PATIENTS": "14",
            "PATH": f"{commands}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    study = json.loads((work / "status.json").read_text())["studies"][0]
    sites = set(study["privacy_spent"])
    assert len(sites) == 3
    assert [set(one["took_part"]) for one in study["rounds"]] == [sites] * study["rounds_planned"]
    assert all(0 < spent["epsilon"] <= 10 for spent in study["privacy_spent"].values())

    released = json.loads((work / "model" / "protocol.json").read_text())
    assert f'"name":"{network}"' in json.dumps(released).replace(" ", "").replace("\\", "")
    assert (work / "segmentation" / "segmentation.nii.gz").is_file()
    assert len(list(work.glob("*-private.safetensors"))) == len(sites)  # DEMO_FULL makes more
    assert "It took" in done.stdout
