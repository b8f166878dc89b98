"""A consortium in a folder, and hospitals that are a few lines of numpy."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import ConsentError, FederationError, GliofedError
from common.messages.reply_limits import ReplyLimit
from common.messages.wire_format import (
    CONTROL,
    Content,
    Order,
    OrderKind,
    PrivacySpent,
    Report,
    pack,
    refusal,
    unpack_order,
)
from common.records.weights import Arrays, digest
from common.study.protocol import APPROVAL, PROTOCOL, StudyProtocol
from common.trust.enrolment import Request, sign_request
from common.trust.identity import Identity, Statement
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from server.consortium.published_study import Study, keep_initial
from server.rounds import round_loop
from server.rounds.fleet import Delivery, MemoryFleet
from server.rounds.round_loop import Rounds

SHAPES = {"conv_final.0.weight": (3,), "conv_final.2.weight": (2, 3)}


def node_key(key: ec.EllipticCurvePrivateKey | None = None) -> str:
    public = (key or ec.generate_private_key(ec.SECP384R1())).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def start(value: float = 0.0) -> Arrays:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


class Clock:
    """A clock that only moves when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.at: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.01)
        for when, action in list(self.at):
            if self.now >= when:
                self.at.remove((when, action))
                action()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at.append((self.now + seconds, action))


@dataclass
class Hospital:
    """A site that adds ``step`` to every weight, and can be told to misbehave."""

    name: str
    identity: Identity
    step: float = 1.0
    approves: bool = True
    refuses: GliofedError | None = None
    lost: int = 0
    head: str = ""
    knows: str = ""
    statistics: dict[str, list[float]] | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    trained: dict[tuple[str, int, str], Arrays] = field(default_factory=dict)
    replies: dict[str, Callable[[Order, Content], Content]] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    weights: Arrays = field(default_factory=dict)
    control: Arrays = field(default_factory=dict)
    """What came with the last order: the weights, and what came beside them."""

    def __call__(self, kind: str, content: Content) -> Content:
        order, arrays = unpack_order(content)
        weights = {name: v for name, v in arrays.items() if not name.startswith(CONTROL)}
        self.weights = weights
        self.control = {
            name.removeprefix(CONTROL): v for name, v in arrays.items() if name not in weights
        }
        assert order.kind == kind
        self.asked.append((kind, order.round))
        self.orders.append(order)
        if self.lost:
            self.lost -= 1
            raise FederationError("lost", code="lost")
        good = self.answer(order, weights)
        return self.replies[kind](order, good) if kind in self.replies else good

    def answer(self, order: Order, weights: Arrays) -> Content:
        protocol = Statement.loads(order.protocol)
        if order.kind == "offer":
            if not self.approves:
                return pack(report(order, status="pending", code="not-approved"), None)
            return pack(report(order, approval=self.approval(protocol).dumps()), None)
        if self.refuses is not None:
            return pack(refusal(order, self.refuses), None)
        if order.kind == "describe":
            return pack(report(order, statistics=self.statistics), None)
        assert digest(weights) == order.weights_sha256
        if order.kind == "evaluate":
            mean = float(next(iter(weights.values())).mean())
            return pack(report(order, dice={"WT": min(1.0, abs(mean) / 10), "ET": 0.25}), None)
        key = (order.study, order.round, order.weights_sha256)
        if key not in self.trained:
            self.trained[key] = {
                name: np.full_like(value, self.step) for name, value in weights.items()
            }
        spent = PrivacySpent(
            noise_multiplier=1,
            sampling_rate=0.1,
            steps=order.round,
            delta=1e-3,
            epsilon=order.round,
        )
        done = report(
            order,
            case_count="20-49",
            privacy_spent=spent,
            site_head=self.head,
            coordinator_head=self.knows,
        )
        return pack(done, self.trained[key])

    def approval(self, protocol: Statement, /, **changes: Any) -> Statement:
        known = protocol.opened(kind=PROTOCOL, signer=protocol.signer)
        frozen = StudyProtocol.model_validate(known)
        body = {
            "protocol": frozen.digest,
            "site": self.name,
            "study": frozen.study,
            "decision": "approve",
            **changes,
        }
        return self.identity.sign(APPROVAL, body)


def report(order: Order, *, status: str = "done", **fields: Any) -> Report:
    base = {"kind": order.kind, "study": order.study, "round": order.round, "status": status}
    return Report.model_validate({**base, **fields})


class Fleet(MemoryFleet):
    """A fleet of hospitals that can be away, deaf or slow.

    An order to a site that is away or deaf is not answered; one that is slow answers an order to
    train after so many seconds.
    """

    def __init__(self, hospitals: Mapping[str, Hospital], clock: Clock) -> None:
        super().__init__(hospitals)
        self.clock = clock
        self.away: set[str] = set()
        self.deaf: set[str] = set()
        self.slow: dict[str, float] = {}
        self.ready: dict[str, float] = {}
        self.forgotten: list[str] = []

    def online(self) -> set[str]:
        return super().online() - self.away

    def send(
        self, site: str, kind: OrderKind, content: Content, *, ttl_s: float, limit: ReplyLimit
    ) -> str:
        ticket = super().send(site, kind, content, ttl_s=ttl_s, limit=limit)
        self.ready[ticket] = self.clock.now + (self.slow.get(site, 0.0) if kind == "train" else 0.0)
        return ticket

    def collect(self, ticket: str) -> Delivery | None:
        if ticket.partition("/")[0] in self.away | self.deaf or self.clock.now < self.ready[ticket]:
            return None
        return super().collect(ticket)

    def forget(self, ticket: str) -> None:
        super().forget(ticket)
        self.forgotten.append(ticket)


class World:
    """A coordinator's folder with admitted hospitals and one published study."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.node_keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.folder = folder
        self.clock = clock
        self.consortium = provisioning.init(
            folder / "coordinator", name="Gliomas", host="localhost", port=9443
        )
        self.hospitals: dict[str, Hospital] = {}
        self.fleet = Fleet(self.hospitals, clock)

    def join(self, *names: str, **options: Any) -> Hospital:
        for name in names:
            identity = Identity.create(self.folder / f"{name}.key")
            self.hospitals[name] = Hospital(name, identity, **options)
            provisioning.admit(
                self.consortium, self.request(name, identity), self.folder / f"{name}.kit"
            )
        self.fleet._sites = dict(self.hospitals)
        return self.hospitals[names[-1]]

    def request(self, name: str, identity: Identity) -> Path:
        path = self.folder / f"{name}.request.json"
        self.node_keys[name] = ec.generate_private_key(ec.SECP384R1())
        wanted = Request(
            site=name,
            identity_key=identity.public,
            node_key=node_key(self.node_keys[name]),
            version="0.1.0",
        )
        sign_request(wanted, identity).save(path)
        return path

    def protocol_file(self, name: str = "demo", **changes: Any) -> Path:
        values: dict[str, Any] = {
            "study": f'"{name}"',
            "title": '"A study"',
            "expires": dt.date(2090, 1, 1),
            "rounds": 2,
            "training": {"local_steps": 1, "learning_rate": 0.1},
            "aggregation": {"quorum": 2, "deadline_s": 100},
            "privacy": {"mode": '"patient-dp"'},
        }
        for path, value in changes.items():
            table, _, key = path.rpartition("__")
            (values[table] if table else values)[key] = value
        lines = [f"{k} = {v}" for k, v in values.items() if not isinstance(v, dict)]
        for table, items in values.items():
            if isinstance(items, dict):
                lines += [f"[{table}]", *(f"{k} = {v}" for k, v in items.items())]
        file = self.folder / f"{name}.toml"
        file.write_text("\n".join(lines))
        return file

    def publish(
        self, name: str = "demo", *, initial: Arrays | None = None, **changes: Any
    ) -> Study:
        """Publish a study; ``initial`` are starting weights of any shapes, as hospitals' are."""
        path = self.protocol_file(name, **changes)
        if initial is None:
            provisioning.publish(self.consortium, path)
        else:
            named = keep_initial(self.consortium.folder / "studies" / name, initial)
            frozen = provisioning.frozen_protocol(self.consortium, path, initial_sha256=named)
            provisioning.sign_and_publish(self.consortium, frozen)
        return self.consortium.study(name)

    def rounds(self, study: str = "demo", *, journal: Any = None, poll_s: float = 0.25) -> Rounds:
        return Rounds(
            self.consortium.study(study),
            self.fleet,
            journal=journal or self.consortium.journal,
            sites=self.consortium.sites,
            clock=self.clock,
            poll_s=poll_s,
        )

    def run(self, study: str = "demo", *, poll_s: float = 0.25) -> None:
        """Run all rounds; where an hour is waited, few looks at the clock save seconds."""
        self.consortium.study(study).want("running")
        self.rounds(study, poll_s=poll_s).run()

    def events(self, *names: str, **where: Any) -> list[dict[str, Any]]:
        return [entry.facts for entry in self.consortium.journal.events(*names, **where)]

    def names(self, study: str = "demo") -> list[str]:
        return [entry.event for entry in self.consortium.journal.events(study=study)]

    def weights(self, study: str = "demo") -> Arrays:
        """The weights of the last round that the journal says is closed."""
        last = self.events("round closed", study=study)[-1]
        return self.consortium.study(study).load(last["round"], last["weights"])


@pytest.fixture
def clock() -> Clock:
    """The clock of the rounds: nothing there waits in earnest."""
    return Clock()


@pytest.fixture(autouse=True)
def small_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn from a protocol's seed is as small as the hospitals here, not a network."""
    monkeypatch.setattr(round_loop, "draw", lambda _network, *, seed: start(float(seed)))
    monkeypatch.setattr(
        round_loop, "drawn_digest", lambda _network, *, seed: digest(start(float(seed)))
    )


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> World:
    return World(tmp_path, clock)


@pytest.fixture
def consortium(world: World) -> Consortium:
    return world.consortium


@pytest.fixture
def refusing() -> ConsentError:
    return ConsentError("The policy forbids it.", code="policy-cap")


@pytest.fixture
def three(world: World) -> World:
    world.join("a", step=1.0)
    world.join("b", step=2.0)
    world.join("c", step=6.0)
    world.publish()
    return world


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hospital's environment, whose proxy is out of reach: whoever asks it fails."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
