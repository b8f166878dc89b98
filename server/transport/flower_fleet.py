"""Rounds over Flower: the fleet behind a ``Grid``, and the few control calls that gliofed makes.

One Flower run carries everything, as long as the executor lives: offers, and every round of every
study. Flower's own client retries end the whole process when a call is not authorised; ours give
up instead, so that the executor can start a new run and go on from the journal.

A SuperLink that is down ends the run (CALL_ERRORS). What a reply does is its site's affair alone
(``server.rounds.fault_boundary``), also where the SuperLink cannot serve that one reply while it
serves everything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
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

from common.errors import FederationError, IdentityError, UpdateError
from common.foreign_text import printable
from common.messages.reply_limits import ReplyLimit, reply_limit
from common.messages.wire_format import MESSAGE_TYPES, Content, OrderKind, bundle_sources
from common.process.child_processes import repeating
from common.study.protocol import MessageOptions
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub
from server.rounds.fault_boundary import within
from server.rounds.fleet import Delivery, Presence
from server.transport.reply_pull import Incoming, Tree

_LOG = logging.getLogger(__name__)
_HEARTBEAT_S: Final = 10.0
_ONLINE: Final = "online"
_UNREGISTERED: Final = "unregistered"
_GLANCE_S: Final = 0.05
_GLANCE_EVERY_S: Final = 0.2
_ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
CALL_ERRORS: Final = (httpx.HTTPError, RuntimeError, OSError)
"""What a call to the SuperLink raises when it is down, restarted, or no longer knows our task."""


_STILL_COMING_S: Final = 0.25
"""After which it is looked whether the rest of a reply has arrived; twice as long each time, to"""
_LONGEST_S: Final = 2.0
_NAME_LETTERS: Final = 100
_FREED_AT_ONCE: Final = 16
"""Of the answers that a site gave to one order: more of them go with the run."""
_OUTAGE_STATUS: Final = frozenset({401, 403, 502, 503, 504})
"""By which the SuperLink says that it does not know our task, or that it is not there."""


class Replies(Protocol):
    """What the SuperLink is asked for a reply. Each call raises CALL_ERRORS."""

    def arrived(self, ticket: str) -> Sequence[tuple[str, Tree]]:
        """Return root and tree of each reply to an order; each is named once."""

    def content(self, name: str) -> bytes | None:
        """Return an object, or None if it is still to come; raise LookupError if it never will."""

    def free(self, root: str) -> None:
        """Let the SuperLink forget a reply."""


class SuperLinkReplies:
    """The replies that a ``Grid`` over HTTP leads to.

    ``HttpGrid.pull_messages`` would load all that a reply names before it looks at any of it.
    """

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def arrived(self, ticket: str) -> Sequence[tuple[str, Tree]]:
        found = self._grid._runtime_client.PullMessages(
            PullAppMessagesRequest(message_ids=[ticket])
        )
        names = (message.metadata.message_id for message in found.messages_list)
        return list(zip(names, found.message_object_trees, strict=True))

    def content(self, name: str) -> bytes | None:
        wanted = PullObjectRequest(
            node=self._grid.node, run_id=self._grid.run.run_id, object_id=name
        )
        found = self._grid._runtime_client.PullObject(wanted)
        if not found.object_found:
            raise LookupError(name)
        return bytes(found.object_content) if found.object_available else None

    def free(self, root: str) -> None:
        self._grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=root
            )
        )


class _OutageError(Exception):
    """A call failed because of the SuperLink, and not because of the reply; ``__cause__`` says."""


@dataclass
class _Pull:
    """A reply that is looked for; ``lost`` says whether the order was lost when that began."""

    limit: ReplyLimit
    lost: bool
    future: Future[Delivery | None]
    incoming: Incoming | None = None
    forgotten: bool = False
    looked_at_s: float = 0.0
    again_s: float = _STILL_COMING_S
    lost_at_s: float | None = None

    def lost_for_s(self) -> float:
        """Return how long it is known that the order is lost: since this was asked first."""
        now = time.monotonic()
        if self.lost_at_s is None:
            self.lost_at_s = now
        return now - self.lost_at_s


@dataclass(frozen=True)
class _Ticket:
    """An order that was sent: to whom, to which start of its node, and how large its reply is."""

    site: str
    started: str
    limit: ReplyLimit


_NO_ARRAYS: Final = reply_limit(None, MessageOptions())


class GridFleet:
    """The sites that a Flower ``Grid`` reaches, by the name that they were registered under.

    Replies are pulled by ``pulls`` threads, none of which waits for a site: of a reply whose upload
    is slow or broke off the rest is asked for later. For the same reason ``collect`` waits for a
    pull that is not done only now and then.

    Flower does not deliver an order again to a node that was started anew and had it before: what
    was sent to a node before it was started counts as lost, unless its reply is there. A reply that
    broke off with the node never becomes whole: such a pull is given up ``broken_off_s`` after the
    restart was seen.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        replies: Replies | None = None,
        online_every_s: float = 1.0,
        pulls: int = 8,
        broken_off_s: float = 10.0,
    ) -> None:
        self._grid = grid
        self._replies: Replies = replies or SuperLinkReplies(grid)
        self._pool = ThreadPoolExecutor(pulls, thread_name_prefix="pull")
        self._broken_off_s = broken_off_s
        self._pulling: dict[str, _Pull] = {}
        self._sent: dict[str, _Ticket] = {}
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

    def send(
        self, site: str, kind: OrderKind, content: Content, *, ttl_s: float, limit: ReplyLimit
    ) -> str:
        message = Message(
            content=content,
            dst_node_id=self._nodes[site],
            message_type=MESSAGE_TYPES[kind],
            ttl=ttl_s,
        )
        (ticket,) = self._grid.push_messages([message])
        if not ticket:
            raise FederationError(f"Flower did not take the order for {site}.", code="order-push")
        self._sent[str(ticket)] = _Ticket(site, self._started.get(site, ""), limit)
        return str(ticket)

    def collect(self, ticket: str) -> Delivery | None:
        sent = self._sent.get(ticket, _Ticket("", "", _NO_ARRAYS))
        lost = sent.started != self._started.get(sent.site, "")
        if ticket not in self._pulling:
            self._pulling[ticket] = self._begin(ticket, sent.limit, lost=lost)
        pull = self._pulling[ticket]
        if not pull.future.done() and time.monotonic() - self._glanced >= _GLANCE_EVERY_S:
            wait([pull.future], timeout=_GLANCE_S)
            self._glanced = time.monotonic()
        delivery: Delivery | None = None
        if pull.future.done():
            delivery = _result(pull.future)
            if delivery is None and pull.incoming is None:
                del self._pulling[ticket]  # nothing has come: it is asked again at the next look
                if not pull.lost:
                    return None
                delivery = Delivery(None, "restarted")
            elif delivery is None and not (lost and pull.lost_for_s() >= self._broken_off_s):
                if time.monotonic() - pull.looked_at_s >= pull.again_s:
                    pull.looked_at_s = time.monotonic()
                    pull.again_s = min(_LONGEST_S, 2 * pull.again_s)
                    pull.future = self._pool.submit(self._advance, ticket, pull)
                return None
        elif not (lost and pull.lost_for_s() >= self._broken_off_s):
            return None
        self.forget(ticket)
        return delivery or Delivery(None, "restarted")

    def forget(self, ticket: str) -> None:
        """A reply that is being pulled is freed as soon as it is there."""
        self._sent.pop(ticket, None)
        pull = self._pulling.pop(ticket, None)
        if pull is None:
            return
        pull.forgotten = True
        if pull.future.done() and pull.incoming is not None:
            self._pool.submit(self._free, pull.incoming.root)

    def _begin(self, ticket: str, limit: ReplyLimit, *, lost: bool) -> _Pull:
        pull = _Pull(limit, lost, Future(), looked_at_s=time.monotonic())
        pull.future = self._pool.submit(self._advance, ticket, pull)
        return pull

    def _advance(self, ticket: str, pull: _Pull) -> Delivery | None:
        """Pull what is there of one reply; return it once it is whole or refused."""
        try:
            delivery = within(
                lambda: self._pulled(ticket, pull), passes=(_OutageError, _UnservedError)
            )
        except _UnservedError as error:
            delivery = Delivery(None, str(error))
        except (UpdateError, IdentityError) as error:
            delivery = Delivery(None, "", error)
        if pull.incoming is not None and (delivery is not None or pull.forgotten):
            self._free(pull.incoming.root)
            pull.incoming = None
        return delivery

    def _pulled(self, ticket: str, pull: _Pull) -> Delivery | None:
        if pull.incoming is None:
            arrived = self._called(lambda: self._replies.arrived(ticket))
            for root, _ in arrived[1:_FREED_AT_ONCE]:  # a second answer to one order is none
                self._free(root)
            if not arrived:
                return None
            root, tree = arrived[0]
            try:
                pull.incoming = Incoming(root, tree, pull.limit)
            except UpdateError:
                self._free(root)
                raise
        return pull.incoming.proceed(lambda name: self._called(lambda: self._replies.content(name)))

    def _called(self, call: Callable[[], _Answer]) -> _Answer:
        """Return what the SuperLink answers about one reply.

        Raises _OutageError if it serves nothing at all, _UnservedError if it does not serve this.
        """
        try:
            return call()
        except LookupError:
            raise _UnservedError(f"flower-{ErrorCode.MESSAGE_UNAVAILABLE}") from None
        except httpx.HTTPStatusError as error:
            if error.response.status_code in _OUTAGE_STATUS:
                raise _OutageError from error
            try:
                list(self._grid.get_nodes())
            except CALL_ERRORS as down:
                raise _OutageError from down
            raise _UnservedError(f"superlink-{error.response.status_code}") from error
        except CALL_ERRORS as error:
            raise _OutageError from error

    def _free(self, root: str) -> None:
        """Let the SuperLink forget a reply; one that it does not forget goes with its run."""
        with contextlib.suppress(*CALL_ERRORS):
            self._replies.free(root)


class _UnservedError(Exception):
    """The SuperLink does not serve one reply, and everything else; the text is the reason."""


_Answer = TypeVar("_Answer")


def _result(future: Future[Delivery | None]) -> Delivery | None:
    """Return what a pull gave; raise the CALL_ERROR of a SuperLink that is down."""
    try:
        return future.result()
    except _OutageError as error:
        raise error.__cause__ or error from None


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


def register_sites(
    consortium: Consortium, known: dict[bytes, str], *, compare: bool = False
) -> None:
    """Let in exactly the node keys of admitted sites, each under its site's name.

    What Flower has registered is compared with that when it has changed, and whenever ``compare``:
    a node that nobody admitted is removed, and the journal names it.

    Raises IdentityError (code ``key``), once the others are registered, if a site was admitted with
    what is no key: earlier versions did not look.

    ``known`` is what was registered when this was last called, and is brought up to date. The old
    key of a site that renewed its keys goes when the new one is in use.
    """
    wanted: dict[bytes, str] = {}
    without: list[str] = []
    for text, site in consortium.sites.node_keys().items():
        key = _node_key(text)
        if key is None:
            without.append(site)
        else:
            wanted[key] = site
    leaving = consortium.sites.leaving()
    if compare or wanted != known or leaving:
        _register(consortium, wanted, known, leaving)
    if without:
        raise IdentityError(
            f"What these sites were admitted with is no node key: {', '.join(sorted(without))}.",
            do="`gliofed-server revoke-site`, and `admit` a new request with new keys.",
            code="key",
        )


def _node_key(text: str) -> bytes | None:
    """Return a node key as Flower names it, or None if the text is no key."""
    try:
        return bytes(public_key_to_bytes(load_ssh_public_key(text.encode())))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _register(
    consortium: Consortium, wanted: dict[bytes, str], known: dict[bytes, str], leaving: list[str]
) -> None:
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
            if key not in known:
                consortium.journal.append(
                    "node removed",
                    name=printable(nodes[key].name)[:_NAME_LETTERS],
                    key=hashlib.sha256(key).hexdigest(),
                )
    known.clear()
    known.update(wanted)
    for site in leaving:
        new = consortium.sites.get(site)
        if new is None:
            continue
        node = nodes.get(_node_key(new.node_key) or b"")
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
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        hub.reached()
    except CALL_ERRORS:
        return
    except Exception:  # noqa: BLE001  the thread's edge: without a beat `health` fails in a minute
        _LOG.exception("The heartbeat of the run failed.")


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
    """Retry what a restarting SuperLink causes for a minute; give up at once on a refusal.

    So with 500, which it answers while another call keeps its database locked.
    """
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.2, max_delay=2.0),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=45.0,
        should_giveup=lambda error: (
            isinstance(error, httpx.HTTPStatusError)
            and error.response.status_code not in {500, 502, 503, 504}
        ),
    )
