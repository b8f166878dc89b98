"""Peak memory of the coordinator with few and with many sites.

Each measurement is a process of its own, whose high water mark the operating system keeps. The
sites live in the same process but hold nothing between two orders.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from common.messages.wire_format import Content, Order, OrderKind, Report, pack
from common.records.weights import Arrays
from common.study.protocol import APPROVAL, StudyProtocol, parse_protocol
from common.trust.enrolment import Request, sign_request
from common.trust.identity import Identity, Statement
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from server.consortium.published_study import keep_initial
from server.rounds.fleet import MemoryFleet
from server.rounds.round_loop import Rounds
from tests import children
from tests.benchmarks.result import Measuring, Result, line

FEW: Final = 4
MANY: Final = 128
ARRAYS: Final = 60
MODEL_BYTES: Final = 18_700_000 // (4 * ARRAYS) * 4 * ARRAYS
ROUNDS: Final = 2


def measure(folder: Path) -> Measuring:
    """Return the peak memory with few and with many sites."""
    columns = ["sites", "peak MB", "before the rounds MB"]
    peaks: dict[int, dict[str, int]] = {}
    for sites in (FEW, MANY):
        command = [sys.executable, "-m", __name__, str(sites), str(folder / str(sites))]
        done = children.run(command, capture_output=True, text=True, check=True)
        peaks[sites] = json.loads(done.stdout)
        yield f"sites {line(columns, _row(sites, peaks[sites]))}"
    more = peaks[MANY]["peak"] - peaks[FEW]["peak"]
    return Result(
        title=f"Coordinator's peak memory, model of {MODEL_BYTES / 1e6:.1f} MB",
        columns=columns,
        rows=[_row(sites, found) for sites, found in peaks.items()],
        promise=f"{MANY} sites take less than two models more than {FEW}, they take "
        f"{more / MODEL_BYTES:.2f}",
        holds=more < 2 * MODEL_BYTES,
        facts={"model_bytes": MODEL_BYTES, "peaks": peaks, "more_bytes": more},
    )


def _row(sites: int, found: Mapping[str, int]) -> list[object]:
    return [sites, found["peak"] / 1e6, found["before"] / 1e6]


def run(sites: int, folder: Path) -> dict[str, int]:
    """Run a study of ``sites`` sites in this process; return the memory before and at its peak."""
    consortium = provisioning.init(folder, name="Memory", host="127.0.0.1", port=1)
    protocol = _publish(consortium, sites)
    study = consortium.study(protocol.study)
    fleet = MemoryFleet({name: _site(consortium, name) for name in _names(sites)})
    before = _peak()
    Rounds(study, fleet, journal=consortium.journal, sites=consortium.sites).run()
    return {"before": before, "peak": _peak()}


def _names(sites: int) -> list[str]:
    return [f"site-{number:02d}" for number in range(sites)]


def _publish(consortium: Consortium, sites: int) -> StudyProtocol:
    for name in _names(sites):
        identity = Identity.create(consortium.folder / "site-keys" / name)
        request = Request(
            site=name,
            identity_key=identity.public,
            node_key="ecdsa-sha2-nistp384 unused",
            version="0",
        )
        consortium.sites.add(sign_request(request, identity))
    path = consortium.folder / "memory.toml"
    path.write_text(
        f'study = "memory"\ntitle = "Memory"\nexpires = 2099-12-31\nrounds = {ROUNDS}\n'
        "[training]\nlocal_steps = 1\nlearning_rate = 0.1\n"
        f'[aggregation]\nquorum = {sites}\n[privacy]\nmode = "none"\n'
    )
    rng = np.random.default_rng(0)
    shape = (MODEL_BYTES // (4 * ARRAYS),)
    start = {f"a{i:02d}.weight": rng.standard_normal(shape, np.float32) for i in range(ARRAYS)}
    named = keep_initial(consortium.folder / "studies" / "memory", start)
    frozen = provisioning.frozen_protocol(consortium, path, initial_sha256=named)
    provisioning.sign_and_publish(consortium, frozen)
    return frozen


def _site(consortium: Consortium, name: str) -> Callable[[OrderKind, Content], Content]:
    identity = Identity.load(consortium.folder / "site-keys" / name)

    def answer(kind: OrderKind, content: Content) -> Content:
        order = Order.model_validate_json(str(content.config_records["gliofed"]["json"]))
        content.array_records.clear()
        approval, update = "", None
        if kind == "offer":
            approval = _approval(identity, name, order)
        elif kind == "train":
            update = _update(f"{name}/{order.round}")
        report = Report(
            kind=order.kind,
            study=order.study,
            round=order.round,
            status="done",
            approval=approval,
        )
        return pack(report, update)

    return answer


def _approval(identity: Identity, name: str, order: Order) -> str:
    body = Statement.loads(order.protocol).body
    protocol = parse_protocol(body, source="order")
    value = {
        "study": order.study,
        "protocol": protocol.digest,
        "site": name,
        "decision": "approve",
        "by": "nobody",
        "why": "",
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    return identity.sign(APPROVAL, value).dumps()


def _update(seed: str) -> Arrays:
    rng = np.random.default_rng(list(seed.encode()))
    shape = (MODEL_BYTES // (4 * ARRAYS),)
    return {
        f"a{i:02d}.weight": rng.standard_normal(shape, np.float32) * np.float32(1e-5)
        for i in range(ARRAYS)
    }


def _peak() -> int:
    """Return this program's high water mark in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before this program began
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(int(sys.argv[1]), Path(sys.argv[2]))))
