"""The long-lived worker: takes orders from the site's SuperNode and runs the installed code.

It stands where Flower would unpack a bundle and start a new process for each message. What cannot
be read as a message has nobody to answer to: it is journalled, and the worker goes on. The bundle
is looked at, never installed and never run: one that is not the code-free bundle of this product is
refused, and one of a version too far off is answered with words. Torch and the cache stay warm
between rounds. Texts of failures stay at the site. Whatever happens, the SuperNode gets an answer;
its date is reckoned from the order's, so that a wrong clock here makes no answer look expired.

A worker that dies leaves its order with the SuperNode, perhaps with half an answer, for which the
SuperNode would wait for ever: ``client.commands.supervisor`` restarts both together, and the
coordinator, who hears of it at once, orders again.

The SuperNode is on this machine: what it is asked goes through no proxy, whatever the environment
says, and each of the two shows the other the certificate of this run
(``common.process.loopback_tls``): no other user of the machine gives an order or takes an answer.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
from flwr.app import Context, Message
from flwr.app.error import Error
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from client.app import app
from client.runtime.authentic_orders import AuthenticOrders
from client.site.folder import Site
from client.study.outbound import Reply, let_out
from common.errors import ConsentError, GliofedError, IdentityError, StateError, UpdateError
from common.messages.wire_format import check_bundle, refusal, unpack_order
from common.process import logs
from common.process.child_processes import repeating
from common.records.atomic_files import write_json
from common.versions import own, skew

_LOG = logging.getLogger("client.worker")
_WORDS = logs.get_logger("client.worker")

_ACQUIRE: Final = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_CALL_ERRORS: Final = (httpx.HTTPError, RuntimeError, OSError)
_POLL_S: Final = 0.2
_SILENT_S: Final = 30.0
"""A SuperNode that starts is silent for less."""
_AGAIN_S: Final = 600.0
_HEARTBEAT_S: Final = 10.0


class Worker:
    """Works for the SuperNode of ``site``, wherever on this machine it listens."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._orders = AuthenticOrders(site)
        self._theirs = ""

    def run(self) -> None:
        """Take orders until the process ends."""
        secret = load_superexec_auth_secret(secret_file=str(self._site.superexec_secret))
        signer = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE)
        acquire = self._client(signer, name="SuperExec")
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        silence = Silence()
        while True:
            try:
                answer = acquire.AcquireTask(wanted)
                silence.ended()
                if answer.HasField("task") and answer.token:
                    self._work(str(answer.token))
                    continue
            except _CALL_ERRORS as error:
                silence.goes_on(error)
                time.sleep(1.0)  # the SuperNode is starting, perhaps at another port
                acquire.close()
                acquire = self._client(signer, name="SuperExec")
            time.sleep(_POLL_S)

    def _work(self, token: str) -> None:
        """Carry out one order. Whatever goes wrong, the SuperNode gets an answer."""
        client = self._client(RuntimeTokenHttpInterceptor(token), name="flwr-clientapp")
        status = SubStatus.FAILED
        with contextlib.closing(client), repeating(lambda: _beat(client), every_s=_HEARTBEAT_S):
            try:
                message, context, run, fab = pull_task_input(client)
            except _CALL_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001  the process's edge: what came is no order
                self._note("order failed", code="malformed", error=type(error).__name__)
                push_task_output(client, None, status, "")
                return
            began = time.monotonic()
            try:
                context.node_config = {"site": str(self._site.folder)}
                reply = self._answer(message, context, theirs=check_bundle(fab.content))
                status = SubStatus.COMPLETED
            except GliofedError as error:
                self._note("order refused", run=run.run_id, code=error.code, reason=str(error))
                reply = _failure(message, error.code)
            except Exception as error:  # noqa: BLE001  the process's edge: the text must not leave
                _LOG.exception("An order failed unforeseen.")  # its kind and lines, no text
                name = type(error).__name__
                self._note("order failed", run=run.run_id, code="internal", error=name)
                reply = _failure(message, "internal")
            push_message(client, dated(reply, message, worked_s=time.monotonic() - began), context)
            push_task_output(client, context, status, "")

    def _answer(self, message: Message, context: Context, *, theirs: str) -> Message:
        """Let the site answer, unless the coordinator's version is too far off."""
        self._know(theirs)
        said = skew(site=own(), coordinator=theirs)
        if not said:
            return app(message=message, context=context)
        error = ConsentError(said, code="version")
        try:
            nonce = self._orders.nonce(message.content)
            order, _ = unpack_order(message.content)
        except (UpdateError, IdentityError):  # its orders have another form
            raise error from None
        self._note("order refused", study=order.study, code=error.code, reason=str(error))
        reply = Reply(refusal(order, error), what="a refusal", news=order.kind != "offer")
        content = self._orders.signed(let_out(self._site, order, None, reply), nonce=nonce)
        return Message(content, reply_to=message)

    def _know(self, theirs: str) -> None:
        """Keep the coordinator's version for `gliofed-site doctor`."""
        if theirs == self._theirs:
            return
        self._theirs = theirs
        try:
            write_json(self._site.heard_version, {"version": theirs})
        except StateError as error:
            _LOG.error("The coordinator's version is not kept. %s", error)

    def _note(self, event: str, **facts: object) -> None:
        """Write what went wrong in the journal; a full disk must not keep the answer back."""
        try:
            self._site.journal.append(event, **facts)
        except StateError as error:
            _LOG.error("A fact is not in the journal, which does not take it. %s", error)
            del facts

    def _client(self, interceptor: Any, *, name: str) -> RuntimeHttpClient:
        runtime = self._site.runtime.known()
        return _Runtime(
            f"https://{runtime.address}",
            verify=runtime.client_context(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name=name), interceptor],
        )


class _Runtime(RuntimeHttpClient):  # type: ignore[misc] # Flower has no types
    """Flower's client of the SuperNode's runtime, with no proxy in between."""

    _client: httpx.Client

    def __init__(self, base_url: str, *, verify: ssl.SSLContext, **options: Any) -> None:
        super().__init__(base_url, verify=verify, **options)
        flowers = self._client
        flowers.close()
        self._client = httpx.Client(verify=verify, timeout=flowers.timeout, trust_env=False)


class Silence:
    """Says in the log that the SuperNode does not answer, and that it does again."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._said: float | None = None

    def goes_on(self, error: Exception) -> None:
        now = self._clock()
        if self._since is None:
            self._since = now
        due = self._since + _SILENT_S if self._said is None else self._said + _AGAIN_S
        if now < due:
            return
        self._said = now
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
        _WORDS.error(
            "The SuperNode does not answer.",
            seconds=round(now - self._since),
            error=type(error).__name__,
            code=f"http-{status}" if status else "connection",
        )

    def ended(self) -> None:
        if self._said is not None:
            _WORDS.info("The SuperNode answers again.")
        self._since = self._said = None


def _beat(client: RuntimeHttpClient) -> None:
    with contextlib.suppress(*_CALL_ERRORS):
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


def dated(reply: Message, order: Message, *, worked_s: float) -> Message:
    """Return ``reply`` with a date and a time to live that are reckoned from the order's alone."""
    reply.metadata.created_at = order.metadata.created_at + worked_s
    reply.metadata.ttl = order.metadata.ttl - worked_s
    return reply


def _failure(message: Message, code: str) -> Message:
    return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=code), reply_to=message)


if __name__ == "__main__":
    opened = Site.open(Path(sys.argv[1]))
    logs.configure("worker", known=lambda: [opened.name, *opened.study_names()])
    Worker(opened).run()
