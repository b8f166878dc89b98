"""The fault matrix: what breaks, at which moment, and what must hold whatever it was.

Real processes, each side in a network namespace of its own (``wires``). Each cell runs a study of
two rounds on one consortium of three hospitals, of which ``north`` is the one that things happen
to, and ends with ``Trial.check``. With the variable ``GLIOFED_FAULTS_TABLE`` the outcomes are
written into that file as a Markdown table; cells that were not run keep their rows.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from common.records.atomic_files import write_secret
from tests import children, proxies
from tests.certificates import expired
from tests.deployment.stack import running_stack, until
from tests.deployment.trial import NORTH, ROUNDS, SITES, Trial, own_disks
from tests.deployment.wires import HUB, Wires, laid, needed_here
from tests.programs import needed
from tests.proxies import PASSWORD, USER, ConnectProxy, serving

pytestmark = pytest.mark.slow

ODD: Final = Path(__file__).parent / "odd"
TABLE: Final = os.environ.get("GLIOFED_FAULTS_TABLE", "")
WEIGHTS_BYTES: Final = 200_000
"""Less than a tiny network has."""
NOBODY: Final = frozenset[str]()
ONLY_NORTH: Final = frozenset({NORTH})
AT_MOST_ONE: Final = (NOBODY, *(frozenset({name}) for name in SITES))


Happens = Callable[[Trial], object]


class Cell(NamedTuple):
    """``happens`` launches the study, and breaks something once the moment has come."""

    fault: str
    moment: str
    happens: Happens
    out: tuple[frozenset[str], ...] | None = (NOBODY,)
    """Whom a closed round may lack, one of these; None if the cell checks it itself."""
    ends: str = "study finished"


CELLS: list[Cell] = []


def cell(
    fault: str,
    moment: str,
    *,
    out: tuple[frozenset[str], ...] | None = (NOBODY,),
    ends: str = "study finished",
) -> Callable[[Happens], Happens]:
    def keep(happens: Happens) -> Happens:
        CELLS.append(Cell(fault, moment, happens, out, ends))
        return happens

    return keep


# --- The network ---------------------------------------------------------------------------------


@cell("nothing", "-")
def _(trial: Trial) -> None:
    trial.launch()


@cell("delay 200 ms each way", "always")
def _(trial: Trial) -> None:
    trial.wire.delay_s = 0.2
    trial.launch()


@cell("delay 100 to 400 ms, packets overtake", "always")
def _(trial: Trial) -> None:
    trial.wire.delay_s, trial.wire.jitter_s = 0.1, 0.3
    trial.launch()


@cell("5 % of packets lost", "always")
def _(trial: Trial) -> None:
    trial.wire.loss = 0.05
    trial.launch()


@cell("2 Mbit/s, network of 1.7 MB", "always")
def _(trial: Trial) -> None:
    trial.wire.rate_bit_s = 2e6
    trial.launch(size="small", deadline_s=90)


@cell("50 kbit/s, too slow for the deadline", "always", out=(ONLY_NORTH,))
def _(trial: Trial) -> None:
    trial.launch(deadline_s=30)
    trial.wire.rate_bit_s = 5e4


def _cut(trial: Trial, moment: str) -> None:
    trial.launch(deadline_s=120)
    trial.reach(moment)
    trial.wire.cut = True
    time.sleep(20)
    trial.wire.mend()


for _moment in ("download", "training", "upload"):
    CELLS.append(Cell("cut for 20 s", _moment, lambda trial, moment=_moment: _cut(trial, moment)))


def _ends_without_north(trial: Trial) -> None:
    """Wait for the end: north may have been done with the first round when it happened."""
    trial.finish()
    assert trial.dropped()[-1] == ONLY_NORTH


@cell("cut for good", "training", out=(NOBODY, ONLY_NORTH))
def _(trial: Trial) -> None:
    trial.launch(deadline_s=40)
    trial.reach("training")
    trial.wire.cut = True
    _ends_without_north(trial)


@cell("two of three cut for good", "training", out=None, ends="study paused")
def _(trial: Trial) -> None:
    trial.launch(deadline_s=30)
    trial.reach("training")
    trial.wires[NORTH].cut = trial.wires["south"].cut = True
    end = trial.finish()
    assert end.facts["code"] == "quorum"
    (failed, *_) = trial.events("round failed")
    assert {NORTH, "south"} >= set(failed.facts["dropped"]) >= {"south"}


# --- A proxy on the way --------------------------------------------------------------------------


@contextlib.contextmanager
def _behind(trial: Trial, proxy: ConnectProxy, **network: str) -> Iterator[None]:
    """Let north's network be left through ``proxy``, which stands in it."""
    address = trial.stack.consortium.address
    proxy.ways = {address: (HUB, int(address.rpartition(":")[2]))}
    settings = trial.stack.site(NORTH) / "site.toml"
    before = settings.read_text()
    with serving(proxy, within=trial.wires.within(NORTH)):
        text = before
        for name, value in {**network, "proxy": proxy.url}.items():
            text = text.replace(f'\n{name} = ""\n', f'\n{name} = "{value}"\n')
        try:
            settings.write_text(text)
            trial.restart(NORTH)
            yield
        finally:
            settings.write_text(before)
            trial.restart(NORTH)


def _through(trial: Trial, proxy: ConnectProxy, **network: str) -> None:
    with _behind(trial, proxy, **network):
        trial.launch()
        trial.finish()
    assert len(proxy.asked) >= 2
    assert proxy.carried > 2 * WEIGHTS_BYTES, "it went another way"


@cell("through a proxy", "always")
def _(trial: Trial) -> None:
    _through(trial, ConnectProxy())


@cell("through a proxy with a password", "always")
def _(trial: Trial) -> None:
    secret = trial.stack.site(NORTH) / "keys" / "proxy.password"
    write_secret(secret, f"{PASSWORD}\n".encode())
    proxy = ConnectProxy(user=USER, password=PASSWORD)
    _through(trial, proxy, proxy_user=USER, proxy_password_file="keys/proxy.password")


@cell("through a proxy that speaks TLS, with its own CA", "always")
def _(trial: Trial) -> None:
    authority, tls = proxies.authority(trial.stack.folder / "hospital")
    _through(trial, ConnectProxy(tls=tls), proxy_ca=str(authority))


@cell("the proxy is away for 20 s", "upload")
def _(trial: Trial) -> None:
    proxy = ConnectProxy()
    with _behind(trial, proxy):
        trial.launch(deadline_s=120)
        trial.reach("upload")
        proxy.away.set()
        time.sleep(20)
        proxy.away.clear()
        trial.wire.mend()
        trial.finish()


# --- Processes that die --------------------------------------------------------------------------


def _kill(trial: Trial, child: str, moment: str) -> None:
    trial.launch(deadline_s=120)
    trial.reach(moment)
    trial.kill(NORTH if child in {"worker", "supernode"} else "server", child)
    trial.wire.mend()


for _child, _moment in (
    ("worker", "upload"),
    ("supernode", "download"),
    ("supernode", "upload"),
    ("gateway", "download"),
    ("gateway", "upload"),
    ("superlink", "training"),
    ("superlink", "upload"),
    ("executor", "training"),
    ("executor", "upload"),
):
    CELLS.append(
        Cell(
            f"kill -9 {_child}",
            _moment,
            lambda trial, child=_child, moment=_moment: _kill(trial, child, moment),
        )
    )


def _kill_all(trial: Trial, name: str, moment: str) -> None:
    trial.launch(deadline_s=120)
    trial.reach(moment)
    trial.stack.kill_supervisor(name)
    trial.wire.mend()
    time.sleep(5)
    trial.stack.start(name)


for _name, _who in ((NORTH, "everything at a site"), ("server", "everything at the coordinator")):
    CELLS.append(
        Cell(
            f"kill -9 {_who}, back after 5 s",
            "upload",
            lambda trial, name=_name: _kill_all(trial, name, "upload"),
        )
    )


# --- Processes that hang -------------------------------------------------------------------------


@cell("SIGSTOP worker for 30 s", "training")
def _(trial: Trial) -> None:
    trial.launch(deadline_s=120)
    trial.reach("training")
    trial.freeze(NORTH, "worker")
    time.sleep(30)
    trial.thaw()


@cell("SIGSTOP worker for good", "training", out=(NOBODY, ONLY_NORTH))
def _(trial: Trial) -> None:
    trial.launch(deadline_s=30)
    trial.reach("training")
    trial.freeze(NORTH, "worker")
    _ends_without_north(trial)


@cell("SIGSTOP SuperNode for 30 s", "upload")
def _(trial: Trial) -> None:
    trial.launch(deadline_s=120)
    trial.reach("upload")
    trial.freeze(NORTH, "supernode")
    time.sleep(30)
    trial.wire.mend()
    trial.thaw()


# --- Disks, clocks, certificates, versions, nonsense ---------------------------------------------


@cell("disk full at a site, for good", "training", out=(NOBODY, ONLY_NORTH))
def _(trial: Trial) -> None:
    trial.launch(deadline_s=40)
    trial.reach("training")
    trial.fill(NORTH)
    _ends_without_north(trial)


@cell("disk full at the coordinator for 20 s, then launched again", "training")
def _(trial: Trial) -> None:
    trial.launch(deadline_s=120)
    trial.reach("training")
    trial.fill("server")
    time.sleep(20)
    trial.free("server")
    end = trial.finish()
    if end.event == "study paused":  # it had something to write meanwhile
        assert end.facts["code"] in {"journal-write", "disk-full"}
        trial.relaunch()


def _shifted(trial: Trial, seconds: int) -> None:
    compiler = needed("cc")
    library = trial.stack.folder / "clock_shift.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", library, ODD / "clock_shift.c"]
    children.run(words, check=True)
    trial.restart(NORTH, {"LD_PRELOAD": str(library), "CLOCK_SHIFT_S": str(seconds)})
    trial.launch()
    differs = trial.stack.opened(NORTH).journal.events("clock differs")
    assert differs
    assert abs(differs[-1].facts["ahead_s"] - seconds) < 5


for _hours in (1, -1):
    CELLS.append(
        Cell(
            f"a site's clock {_hours:+} h",
            "always",
            lambda trial, hours=_hours: _shifted(trial, hours * 3600),
        )
    )


@cell("TLS certificate expired, then renewed", "training", out=(NOBODY,))
def _(trial: Trial) -> None:
    trial.launch(deadline_s=60)
    trial.reach("training")
    stack = trial.stack
    try:
        (stack.coordinator / "server.crt").write_bytes(expired(stack.coordinator))
        trial.kill("server", "gateway")
        until(lambda: trial.events("study waits"), timeout_s=150, what="a sentence")
        assert "rotate-certificate" in stack.report(trial.study)["last_problem"]
        assert stack.journal.events("certificate expired")
        with pytest.raises(RuntimeError, match="expired on"):
            stack.call("gliofed-server", "health", stack.coordinator)
    finally:  # nothing else has to be done
        stack.call("gliofed-server", "rotate-certificate", stack.coordinator, "--by", "Ada")


def odd(**variables: str) -> dict[str, str]:
    """Return the environment of a site that ``odd/sitecustomize.py`` makes odd."""
    paths = [str(ODD), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), **variables}


@cell("another version of gliofed at a site", "always", out=(ONLY_NORTH,))
def _(trial: Trial) -> None:
    trial.launch(odd=odd(ODD_VERSION="99.0.0"))
    trial.finish()
    said = trial.events("site declined", site=NORTH, round=1)
    assert [e.facts["code"] for e in said] == ["version"]
    assert "99.0.0" in said[0].facts["reason"]


_TAKER: Final = """
import os, socket, sys, threading, time
threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
while True:
    taker = socket.socket()
    taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taker.bind((sys.argv[1], int(sys.argv[2])))
        taker.listen()
        break
    except OSError:
        taker.close()
        time.sleep(0.001)
time.sleep(600)
"""


@contextlib.contextmanager
def _taken(trial: Trial, address: str, port: int) -> Iterator[None]:
    """Take a port at the coordinator as soon as it is free; it is free again after the block."""
    words = [*trial.stack.entries["server"], sys.executable, "-S", "-c", _TAKER, address, str(port)]
    with children.start(words, stdin=subprocess.PIPE) as taker:  # ends with its input
        try:
            yield
        finally:
            taker.kill()


# Flower's SuperNode gives an answer up that it could not send for some ten seconds.
@cell("another process takes the gateway's port for 20 s", "training", out=AT_MOST_ONE)
def _(trial: Trial) -> None:
    trial.launch(deadline_s=120)
    trial.reach("training")
    log = trial.stack.folder / "server.log"
    at, said = trial.stack.consortium.listening, log.stat().st_size
    with _taken(trial, at.address, at.port):
        time.sleep(1)
        trial.kill("server", "gateway")
        until(
            lambda: "another process has that port" in log.read_text()[said:],
            timeout_s=30,
            what="which port, and why",
        )
        time.sleep(20)


@cell("another process takes the SuperLink's port", "training")
def _(trial: Trial) -> None:
    trial.launch(deadline_s=120)
    trial.reach("training")
    before = trial.stack.consortium.hub.port
    with _taken(trial, "127.0.0.1", before):
        time.sleep(1)
        trial.kill("server", "superlink")
        until(lambda: trial.stack.consortium.hub.port != before, timeout_s=30, what="another port")
        trial.finish()


for _kind, _what, _code in (
    ("bytes", "noise for arrays", "update-form"),
    ("nan", "an update of NaN", "update-not-finite"),
    ("form", "no report at all", "update-form"),
):

    def _spoilt(trial: Trial, kind: str = _kind, code: str = _code) -> None:
        trial.launch(odd=odd(ODD_REPLY=kind))
        trial.finish()
        refusals = trial.events("reply refused", site=NORTH)
        assert [(e.facts["round"], e.facts["code"]) for e in refusals] == [(1, code), (2, code)]

    CELLS.append(Cell(f"a site answers with {_what}", "always", _spoilt, (ONLY_NORTH,)))


# --- The matrix ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[Wires]:
    needed_here()
    with laid(SITES) as wires:
        yield wires


@pytest.fixture(scope="module")
def consortium(network: Wires, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("faults")
    entries = {name: network.entry(name) for name in ("server", *SITES)}
    with (
        own_disks({folder / "coordinator": 1024, folder / NORTH: 256}),
        running_stack(folder, host=HUB, entries=entries) as stack,
    ):
        for seed, name in enumerate(SITES):
            stack.enrol(name, seed=seed, size=24)
        for name in ("server", *SITES):
            stack.start(name)
        yield Trial(stack, network, "")


@pytest.mark.parametrize("number", range(len(CELLS)), ids=[f"{c.fault}, {c.moment}" for c in CELLS])
def test_the_run_ends_and_tells_the_truth(consortium: Trial, number: int) -> None:
    fault = CELLS[number]
    trial = Trial(consortium.stack, consortium.wires, f"cell-{number}")
    try:
        fault.happens(trial)
        end = trial.finish()
        seconds = time.monotonic() - trial.began
        told = trial.told()
    finally:
        trial.restore()
    assert end.event == fault.ends, told
    trial.check()
    if fault.ends == "study finished":
        assert len(trial.closed()) == ROUNDS
    if fault.out is not None:
        assert all(out in fault.out for out in trial.dropped()), told
    if TABLE:
        write_row(Path(TABLE), [fault.fault, fault.moment, told, f"{seconds:.0f}"])


def write_row(path: Path, row: list[str]) -> None:
    """Put a row into the Markdown table at ``path``, in the place of one with the same name."""
    head = ["| What breaks | When | What happened | Seconds |", "|---|---|---|---:|"]
    lines = path.read_text().splitlines()[2:] if path.exists() else []
    rows = {tuple(line.split(" | ")[:2]): line for line in lines}
    line = f"| {' | '.join(text.replace('|', '/') for text in row)} |"
    rows[tuple(line.split(" | ")[:2])] = line
    path.write_text("\n".join([*head, *rows.values(), ""]))
