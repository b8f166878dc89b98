"""The site's SuperNode: Flower's own, with seven of its habits corrected.

- It is a loop that speaks to the coordinator and a server that hands orders to the worker. When the
  loop gives up, on an answer that it does not try again, the server stays: the site would look
  alive and never take an order. Here the process ends, and the supervisor starts another.
- An order whose run ends while it is being received stays behind, half: the worker would wait for
  the other half, and later answers would wait behind it. Here it is thrown away.
- Each call is signed with the machine's time, and refused if that is some seconds ahead of the
  coordinator's or five minutes behind. Here a refused call is signed again with the time that came
  with the refusal, over the connection whose certificate was checked. A wrong clock is said in the
  site's journal; the coordinator's time is used for these signatures and nothing else.
- After a SuperNode that was killed, the next one is not let in for a minute, in which the
  coordinator believes that the order is being worked on. Here the next one, on the same machine,
  says first that the old one is gone, and the order is given again at once.
- It looks for a proxy in the environment alone, and reads ``NO_PROXY`` in a way of its own. Here it
  goes the way that ``Site.proxy`` says, which is the one that `gliofed-site doctor` goes, and
  writes it down.
- It gives its orders to whoever asks at its port, by plain HTTP. Here worker and SuperNode know
  each other by a certificate of their own (``common.process.loopback_tls``), and the port is bound
  before anything is served.
- It says that a connection failed and never why, and gives up where a proxy says that the
  coordinator is away, though it goes on trying where the coordinator itself is. Here it says why,
  once, and goes on trying.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import socket
import sys
import traceback
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import httpx
from flwr.app.message import message as messages
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import node_auth_http_interceptor, start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.site.folder import Site
from common.doctor.tls_probe import context_for
from common.errors import GliofedError, StateError
from common.process.loopback_tls import HOST, LoopbackAddress
from common.process.proxies import Proxy, without_proxies
from common.records.atomic_files import read_json, write_json
from common.records.journal import Journal
from common.web.http_server import in_place_of_uvicorn

_BEHIND_PROXY: Final = frozenset({"502", "503", "504"})
_SAME_S: Final = 2.0
"""Two clocks that differ by less are the same: a ``Date`` header is in whole seconds."""


class Clock:
    """The coordinator's time, as far as this machine knows: its own until it hears better.

    ``told`` gets the seconds by which this machine is ahead, each time that they change.
    """

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told = told
        self._ahead = dt.timedelta()

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) - self._ahead

    def learn(self, answer: httpx.Response) -> bool:
        """Set the clock by ``answer``; return whether that changed it."""
        try:
            theirs = parsedate_to_datetime(answer.headers["date"])
        except (KeyError, ValueError):
            return False
        if theirs.tzinfo is None:
            return False
        if abs((self.now() - theirs).total_seconds()) < _SAME_S:
            return False
        self._ahead = dt.datetime.now(dt.UTC) - theirs
        self._told(round(self._ahead.total_seconds()))
        return True


def main() -> None:
    """Run the SuperNode of the site in the folder ``argv[1]``; never return.

    The other arguments are those of ``flower-supernode``.
    """
    folder = Path(sys.argv.pop(1))
    code = 1
    try:
        correct(folder, leaving(folder))
        serve(Site.open(folder).runtime.known())
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except GliofedError as error:
        sys.stderr.write(f"ERROR : {error}\n")
    except BaseException:  # noqa: BLE001  the process's edge
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(runtime: LoopbackAddress) -> None:
    """Run ``flower-supernode`` with a ``runtime`` for the worker alone, until its loop ends."""
    at, listening = runtime.bound()
    program: Any = import_module("flwr.supernode.cli.flower_supernode")
    program.uvicorn = in_place_of_uvicorn(at.server_context(), listening)
    sys.argv += [
        *("--host", HOST, "--port", str(at.port)),
        *("--ssl-ca-certfile", str(at.certificate)),
        *("--ssl-certfile", str(at.certificate)),
        *("--ssl-keyfile", str(at.key)),
    ]
    program.flower_supernode()


def correct(folder: Path, proxy: Proxy | None) -> None:
    """Correct Flower's habits in this process."""
    clock = Clock(functools.partial(_tell, Journal(folder / "journal.jsonl")))
    auth = node_auth_http_interceptor
    auth.now = clock.now
    messages.now = clock.now  # of the replies that the SuperNode itself gives
    auth.NodeAuthHttpInterceptor.intercept = signed_in_time(
        auth.NodeAuthHttpInterceptor.intercept, clock
    )
    auth.NodeAuthHttpInterceptor.intercept = noting(
        auth.NodeAuthHttpInterceptor.intercept, folder / "flower" / "contact"
    )
    auth.NodeAuthHttpInterceptor.intercept = explaining(auth.NodeAuthHttpInterceptor.intercept)
    FleetHttpClient.__init__ = going_through(FleetHttpClient.__init__, proxy)
    FleetHttpClient.ActivateNode = taking_over(
        FleetHttpClient.ActivateNode, folder / "flower" / "node.json"
    )
    start_client_internal._pull_and_store_message = receive_whole(
        start_client_internal._pull_and_store_message
    )


def leaving(folder: Path) -> Proxy | None:
    """Return the proxy of the site in ``folder`` and write it down for its doctor.

    After that nothing in this process finds a proxy in the environment. Raises StateError.
    """
    site = Site.open(folder)
    proxy = site.proxy(os.environ)
    for name in set(os.environ) - set(without_proxies(os.environ)):
        del os.environ[name]
    try:
        write_json(site.way, {"proxy": "" if proxy is None else str(proxy)})
    except StateError as error:
        sys.stderr.write(f"{error}\n")  # a doctor that does not know is no reason to stop
    return proxy


def going_through(made: Callable[..., None], proxy: Proxy | None) -> Callable[..., None]:
    """Return the ``__init__`` of Flower's client made to go through ``proxy`` alone, or none."""

    @functools.wraps(made)
    def wrapped(
        client: Any, base_url: str, *, verify: Any = True, timeout: float = 30.0, **others: Any
    ) -> None:
        made(client, base_url, verify=verify, timeout=timeout, **others)
        client._client.close()
        client._client = httpx.Client(
            verify=verify,
            timeout=timeout,
            follow_redirects=True,
            trust_env=False,
            proxy=None if proxy is None else httpx_proxy(proxy),
        )

    return wrapped


def httpx_proxy(proxy: Proxy) -> httpx.Proxy:
    return httpx.Proxy(
        str(proxy),
        auth=(proxy.user, proxy.password) if proxy.user else None,
        ssl_context=context_for(proxy) if proxy.scheme == "https" else None,
    )


def explaining(intercept: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    """Return ``intercept`` made to say why a call failed, once for each reason in a row.

    A proxy that cannot reach the coordinator is a failed connection, which Flower tries again.
    """
    last = ""

    @functools.wraps(intercept)
    def wrapped(signer: Any, context: Any, call_next: Callable[[Any], Any]) -> httpx.Response:
        nonlocal last
        try:
            answer = intercept(signer, context, call_next)
        except httpx.TransportError as error:
            said = isinstance(error, httpx.ProxyError)
            why = f"{'The proxy says: ' if said else ''}{str(error) or type(error).__name__}"
            if why != last:
                sys.stderr.write(f"ERROR : The coordinator was not reached. {why}\n")
                last = why
            if said and str(error)[:3] in _BEHIND_PROXY:
                raise httpx.ConnectError(why) from error
            raise
        last = ""
        return answer

    return wrapped


def signed_in_time(
    intercept: Callable[..., httpx.Response], clock: Clock
) -> Callable[..., httpx.Response]:
    """Return Flower's ``intercept``, which signs a call, made to sign a refused one once more."""

    @functools.wraps(intercept)
    def wrapped(signer: Any, context: Any, call_next: Callable[[Any], Any]) -> httpx.Response:
        unsigned = context.request.headers.copy()
        answer = intercept(signer, context, call_next)
        if answer.status_code == httpx.codes.UNAUTHORIZED and clock.learn(answer):
            context.request.headers = unsigned
            answer = intercept(signer, context, call_next)
        return answer

    return wrapped


def noting(
    intercept: Callable[..., httpx.Response], contact: Path
) -> Callable[..., httpx.Response]:
    """Return ``intercept`` made to date the file ``contact`` by each call that is answered well."""

    @functools.wraps(intercept)
    def wrapped(signer: Any, context: Any, call_next: Callable[[Any], Any]) -> httpx.Response:
        answer = intercept(signer, context, call_next)
        if answer.is_success:
            with contextlib.suppress(OSError):  # a page that does not know is no reason to stop
                contact.touch()
        return answer

    return wrapped


def taking_over(activate: Callable[..., Any], kept: Path) -> Callable[..., Any]:
    """Return Flower's ``activate``, which ends what a killed SuperNode of this machine left.

    ``kept`` says who was activated last, and on which machine: a copy of the site's folder that
    runs elsewhere shall not put this one out.
    """

    @functools.wraps(activate)
    def wrapped(client: Any, request: Any) -> Any:
        try:
            answer = activate(client, request)
        except httpx.HTTPStatusError as refused:
            node_id = _left_by(kept)
            if refused.response.status_code != httpx.codes.PRECONDITION_FAILED or not node_id:
                raise
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
            answer = activate(client, request)
        try:
            write_json(kept, {"machine": socket.gethostname(), "node_id": answer.node_id})
        except StateError as error:
            sys.stderr.write(f"{error}\n")  # costs a minute after the next kill, no more
        return answer

    return wrapped


def _left_by(kept: Path) -> int:
    """Return the id of the node that ``kept`` names, or 0 if it is of another machine."""
    try:
        left = read_json(kept, what="note of the last SuperNode")
        return int(left["node_id"]) if left["machine"] == socket.gethostname() else 0
    except (StateError, KeyError, TypeError, ValueError):
        return 0


def _tell(journal: Journal, ahead_s: float) -> None:
    side = "ahead of" if ahead_s > 0 else "behind"
    sys.stderr.write(f"The clock is {abs(ahead_s):g} s {side} the coordinator's.\n")
    try:
        journal.append("clock differs", ahead_s=ahead_s)
    except StateError as error:
        sys.stderr.write(f"{error}\n")  # the call is worth more than the note


def receive_whole(receive: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return Flower's ``receive`` with calls whose failure makes it throw the order away.

    Flower does so for an ``Exception``; what says that the run has ended is none.
    """

    @functools.wraps(receive)
    def wrapped(*, pull_object: Any, confirm_message_received: Any, **others: Any) -> int | None:
        return receive(
            pull_object=_ordinary(pull_object),
            confirm_message_received=_ordinary(confirm_message_received),
            **others,
        )

    return wrapped


def _ordinary(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RunNotRunningException:
            raise RuntimeError("The run has ended.") from None

    return wrapped


if __name__ == "__main__":
    main()
