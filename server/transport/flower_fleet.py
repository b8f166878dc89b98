"""Rounds over Flower: the fleet behind a ``Grid``, and the few control calls that gliofed makes.

One Flower run carries everything, as long as the executor lives: offers, and every round of every
study. Flower's own client retries end the whole process when a call is not authorised; ours give
up instead, so that the executor can start a new run and go on from the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import context_from_proto, context_to_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.serverapp import Grid
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from common.errors import FederationError
from common.messages.wire_format import MESSAGE_TYPES, Content, OrderKind, bundle_sources
from common.process.child_processes import repeating
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub
from server.rounds.fleet import Delivery, Presence

_HEARTBEAT_S: Final = 10.0
_ONLINE: Final = "online"
_UNREGISTERED: Final = "unregistered"
_GLANCE_S: Final = 0.05
_GLANCE_EVERY_S: Final = 0.2
_ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
CALL_ERRORS: Final = (httpx.HTTPError, RuntimeError, OSError)
"""What a call to the SuperLink raises when it is down, restarted, or no longer knows our task."""


@dataclass
class _Pull:
    """A pull that goes on; ``lost`` says whether the order was lost when it began."""

    future: Future[Delivery | None]
    lost: bool
    lost_at_s: float | None = None

    def lost_for_s(self) -> float:
        """Return how long it is known that the order is lost: since this was asked first."""
        now = time.monotonic()
        if self.lost_at_s is None:
            self.lost_at_s = now
        return now - self.lost_at_s


class GridFleet:
    """The sites that a Flower ``Grid`` reaches, by the name that they were registered under.

    Replies are pulled by ``pulls`` threads, each of which holds one reply at most: Flower waits, up
    to three minutes, for a site whose upload is slow or broke off, and the others must not. For the
    same reason ``collect`` waits for a pull that is not done only now and then.

    Flower does not deliver an order again to a node that was started anew and had it before: what
    was sent to a node before it was started counts as lost, unless its reply is there. A reply that
    broke off with the node never becomes whole, and Flower would wait for it: such a pull is given
    up ``broken_off_s`` after the restart was seen.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        online_every_s: float = 1.0,
        pulls: int = 8,
        broken_off_s: float = 10.0,
    ) -> None:
        self._grid = grid
        self._pool = ThreadPoolExecutor(pulls, thread_name_prefix="pull")
        self._broken_off_s = broken_off_s
        self._pulling: dict[str, _Pull] = {}
        self._sent: dict[str, tuple[str, str]] = {}
        self._online_every_s = online_every_s
        self._nodes: dict[str, int] = {}
        self._started: dict[str, str] = {}
        self._asked = float("-inf")
        self._glanced = float("-inf")

    def online(self) -> set[str]:
        if time.monotonic() - self._asked >= self._online_every_s:
            # A site that has just changed its node key may be there twice: the newer one counts.
            nodes = sorted(
                (node for node in self._grid.get_nodes() if node.name),
                key=lambda node: str(node.last_activated_at),
            )
            self._nodes = {node.name: node.node_id for node in nodes}
            self._started |= {node.name: node.last_activated_at for node in nodes}
            self._asked = time.monotonic()
        return set(self._nodes)

    def send(self, site: str, kind: OrderKind, content: Content, *, ttl_s: float) -> str:
        message = Message(
            content=content,
            dst_node_id=self._nodes[site],
            message_type=MESSAGE_TYPES[kind],
            ttl=ttl_s,
        )
        (ticket,) = self._grid.push_messages([message])
        if not ticket:
            raise FederationError(f"Flower did not take the order for {site}.", code="order-push")
        self._sent[str(ticket)] = (site, self._started.get(site, ""))
        return str(ticket)

    def collect(self, ticket: str) -> Delivery | None:
        site, started = self._sent.get(ticket, ("", ""))
        lost = started != self._started.get(site, "")
        if ticket not in self._pulling:
            self._pulling[ticket] = _Pull(self._pool.submit(self._pull, ticket), lost)
        pull = self._pulling[ticket]
        if not pull.future.done() and time.monotonic() - self._glanced >= _GLANCE_EVERY_S:
            wait([pull.future], timeout=_GLANCE_S)
            self._glanced = time.monotonic()
        if pull.future.done():
            delivery = pull.future.result()
            if delivery is None and pull.lost:
                delivery = Delivery(None, "restarted")
        elif lost and pull.lost_for_s() >= self._broken_off_s:
            delivery = Delivery(None, "restarted")
        else:
            return None
        del self._pulling[ticket]
        if delivery is not None:
            self._sent.pop(ticket, None)
        return delivery

    def forget(self, ticket: str) -> None:
        """A reply that is being pulled is freed as soon as it is there."""
        self._pulling.pop(ticket, None)
        self._sent.pop(ticket, None)

    def _pull(self, ticket: str) -> Delivery | None:
        """Pull one reply. One at a time: Flower loads everything that a call asks for at once."""
        for reply in self._grid.pull_messages([ticket]):
            if reply.has_error():
                return Delivery(None, f"flower-{reply.error.code}")
            return Delivery(reply.content, "")
        return None


def start_run(consortium: Consortium) -> int:
    """Stop what earlier executors left running and start the one Flower run; return its id."""
    fab, _ = build_fab_from_files(bundle_sources())
    with _control(consortium) as control:
        for run in control.ListRuns(ListRunsRequest()).run_dict.values():
            if run.status.status != "finished":
                with contextlib.suppress(httpx.HTTPStatusError):
                    control.StopRun(StopRunRequest(run_id=run.run_id))
        bundle = Fab(hashlib.sha256(fab).hexdigest(), fab, {})
        answer = control.StartRun(StartRunRequest(fab=fab_to_proto(bundle)))
    if not answer.HasField("run_id"):
        raise FederationError("The SuperLink did not start a run.", do="See its log.")
    return int(answer.run_id)


def register_sites(consortium: Consortium, known: dict[bytes, str]) -> None:
    """Let in exactly the node keys of admitted sites, each under its site's name.

    ``known`` is what was registered when this was last called, and is brought up to date. The old
    key of a site that renewed its keys goes when the new one is in use.
    """
    wanted = {
        public_key_to_bytes(load_ssh_public_key(key.encode())): site
        for key, site in consortium.sites.node_keys().items()
    }
    leaving = consortium.sites.leaving()
    if wanted == known and not leaving:
        return
    with _control(consortium) as control:
        nodes = {
            bytes(node.public_key): node
            for node in control.ListNodes(ListNodesRequest()).nodes_info
            if node.status != _UNREGISTERED
        }
        for key in wanted.keys() - nodes.keys():
            control.RegisterNode(RegisterNodeRequest(public_key=key, name=wanted[key]))
        for key in nodes.keys() - wanted.keys():
            control.UnregisterNode(UnregisterNodeRequest(node_id=nodes[key].node_id))
    known.clear()
    known.update(wanted)
    for site in leaving:
        new = consortium.sites.get(site)
        if new is None:
            continue
        node = nodes.get(public_key_to_bytes(load_ssh_public_key(new.node_key.encode())))
        if node is not None and node.status == _ONLINE:
            consortium.sites.left(site)


def presence(consortium: Consortium) -> dict[str, Presence]:
    """Return, of each registered site, whether its SuperNode is connected; raise a CALL_ERROR.

    Asks once: who looks at a page does not wait for a SuperLink that is down.
    """
    with _control(consortium, retries=_once()) as control:
        nodes = control.ListNodes(ListNodesRequest()).nodes_info
    found = {}
    for node in sorted(nodes, key=lambda node: bool(node.status == "online")):  # last: it counts
        online = node.status == "online"
        since = node.last_activated_at if online else node.last_deactivated_at or node.online_until
        found[node.name] = Presence(online, str(since) if since else "")  # 0 or "": never
    return found


def run_app(
    consortium: Consortium, run_id: int, app: Callable[[Grid, Context], Any], *, patience_s: float
) -> None:
    """Take the run's task from the SuperLink and run ``app`` in this process."""
    token, hub = _acquire(consortium, run_id, patience_s=patience_s), consortium.hub
    grid = HttpGrid(runtime_api_address=hub.address, token=token)
    grid._retry_invoker = _retries()
    client = grid._runtime_client
    _call_directly(client, trust=hub.client_context())
    given = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id = given.task_id
    TaskIdentity.run_id = given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    grid.set_run(run_from_proto(given.run))
    context = context_from_proto(given.context)
    context.run_config = {"consortium": str(consortium.folder)}
    status, details = "failed", "The executor stopped."
    hub.reached()
    with repeating(lambda: _beat(client, hub), every_s=_HEARTBEAT_S):
        try:
            app(grid, context)
            status, details = "completed", ""
        finally:
            with contextlib.suppress(*CALL_ERRORS):
                client.PushTaskOutput(
                    PushTaskOutputRequest(
                        context=context_to_proto(context), sub_status=status, details=details
                    )
                )
            grid.close()


def _beat(client: RuntimeHttpClient, hub: Hub) -> None:
    """Tell Flower that the task lives, and `health` that Flower heard it.

    A task that Flower no longer knows shows at the next call.
    """
    with contextlib.suppress(*CALL_ERRORS):
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        hub.reached()


def _acquire(consortium: Consortium, run_id: int, *, patience_s: float) -> str:
    """Return the token of the run's ServerApp task; nobody without the secret gets one."""
    secret = load_superexec_auth_secret(secret_file=str(consortium.superexec_secret))
    with _client(
        RuntimeHttpClient,
        consortium,
        [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE),
        ],
    ) as client:
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            answer = client.AcquireTask(wanted)
            if answer.HasField("task") and answer.token and answer.task.run_id == run_id:
                return str(answer.token)
            time.sleep(0.2)
    raise FederationError("The SuperLink gave no task for the run.", do="See its log.")


def _control(
    consortium: Consortium, *, retries: RetryInvoker | None = None
) -> contextlib.AbstractContextManager[Any]:
    interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
    return _client(ControlHttpClient, consortium, interceptors, retries=retries)


@contextlib.contextmanager
def _client(
    kind: Any,
    consortium: Consortium,
    interceptors: list[Any],
    *,
    retries: RetryInvoker | None = None,
) -> Iterator[Any]:
    hub = consortium.hub
    client = kind(
        f"https://{hub.address}", interceptors=interceptors, retry_invoker=retries or _retries()
    )
    _call_directly(client, trust=hub.client_context())
    try:
        yield client
    finally:
        client.close()


def _call_directly(client: Any, *, trust: ssl.SSLContext) -> None:
    """Let a client of Flower's trust ``trust`` alone, and no proxy that the environment names.

    The SuperLink is on this machine: a hospital's proxy neither reaches it nor may see the calls.
    """
    flowers = client._client
    client._client = httpx.Client(verify=trust, timeout=flowers.timeout, trust_env=False)
    flowers.close()


def _once() -> RetryInvoker:
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(),
        recoverable_exceptions=(),
        max_tries=1,
        max_time=None,
    )


def _retries() -> RetryInvoker:
    """Retry what a restarting SuperLink causes for a minute; give up at once on a refusal."""
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.2, max_delay=2.0),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=45.0,
        should_giveup=lambda error: (
            isinstance(error, httpx.HTTPStatusError)
            and error.response.status_code not in {502, 503, 504}
        ),
    )
