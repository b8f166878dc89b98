"""The gRPC server: health, metadata and inference, and its orderly end.

Of the protocol's methods those are served that a clinic needs; others are UNIMPLEMENTED.

Whoever has no token holds nothing: what is open to all is answered, and all else refused, without
a message being waited for, and connections have deadlines and a number of their own. A call with
the token that does not send its message ends with its connection, and counts as one of the places
of those who have the token.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as words

from client.clinic.result_folder import described, measure
from client.clinic.service import tensors
from client.clinic.service.access import allowed
from client.clinic.service.model_holder import Keeper, Warm
from client.clinic.service.prometheus import Counters
from client.clinic.service.request_queue import Full, Late, Line
from common.errors import GliofedError, ModelError, StateError

SERVICE: Final = "inference.GRPCInferenceService"
OPEN: Final = ("ServerLive", "ServerReady")
"""Methods that need no token: they are for probes and say nothing."""
_LOG = logging.getLogger(__name__)
_OTHERS: Final = 8  # threads beyond those that wait in the line: for health and for refusals
_LIMITS: Final = (
    ("grpc.max_allowed_incoming_connections", 512),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 1_800_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 32),
    ("grpc.max_metadata_size", 16_384),
)
"""Of a connection: an hour for calls to begin, half an hour more for them to end."""
_LONGEST: Final = 1500  # characters of a message in metadata
_Answer = Callable[[Any, grpc.ServicerContext], Message]


@dataclass(frozen=True)
class Terms:
    """How a service takes requests."""

    host: str = "127.0.0.1"
    port: int = 8001
    places: int = 8
    max_message_mb: int = 512


class Service:
    """Serves a keeper's model until ``drain``."""

    def __init__(
        self,
        keeper: Keeper,
        line: Line,
        counters: Counters,
        *,
        terms: Terms,
        token: bytes,
        credentials: grpc.ServerCredentials | None,
        job: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._keeper, self._line, self._counters = keeper, line, counters
        self._job = job
        self._ready = True
        most = terms.places + 1 + _OTHERS
        size = terms.max_message_mb * 2**20
        self._server = grpc.server(
            ThreadPoolExecutor(most, thread_name_prefix="gliofed-service"),
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                *_LIMITS,
            ],
            maximum_concurrent_rpcs=2 * most,
            interceptors=(_Guard(token, counters),),
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        address = f"{terms.host}:{terms.port}"
        try:
            self.port = int(
                self._server.add_secure_port(address, credentials)
                if credentials
                else self._server.add_insecure_port(address)
            )
        except (RuntimeError, ValueError) as error:
            raise StateError(
                f"The service cannot listen at {address}, or its certificate does not fit its key.",
                do="Choose another port with --port, and check the files of --certificate, --key.",
                code="service-port",
            ) from error
        self._server.start()

    def drain(self, *, within_s: float) -> bool:
        """Take no more requests, finish those that are here; return whether all were finished."""
        self._ready = False
        began = time.monotonic()
        self._server.stop(within_s).wait()
        return time.monotonic() - began < within_s

    def _handlers(self) -> Any:
        methods: dict[str, tuple[type[Message], _Answer]] = {
            "ServerLive": (
                words.ServerLiveRequest,
                lambda *_: words.ServerLiveResponse(live=True),
            ),
            "ServerReady": (
                words.ServerReadyRequest,
                lambda *_: words.ServerReadyResponse(ready=self._ready),
            ),
            "ServerMetadata": (words.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (words.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (words.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": (words.ModelInferRequest, self._infer),
        }
        handlers = {
            name: _open(answer) if name in OPEN else _method(kind, answer)
            for name, (kind, answer) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _server_metadata(self, _: Any, __: grpc.ServicerContext) -> Message:
        return words.ServerMetadataResponse(name="gliofed", version=version("gliofed"))

    def _model_ready(self, request: Any, _: grpc.ServicerContext) -> Message:
        warm = self._keeper.warm
        ready = self._ready and self._keeper.usable and _is(warm, request.name, request)
        return words.ModelReadyResponse(ready=ready)

    def _model_metadata(self, request: Any, context: grpc.ServicerContext) -> Message:
        warm = self._keeper.warm
        if not _is(warm, request.name, request):
            context.abort(grpc.StatusCode.NOT_FOUND, _other(warm))
        return tensors.metadata(warm.name, warm.version)

    def _infer(self, request: Any, context: grpc.ServicerContext) -> Message:
        began = time.monotonic()
        status = grpc.StatusCode.INTERNAL
        try:
            try:
                response = self._inferred(request, context)
                status = grpc.StatusCode.OK
                return response
            except _Refused as refused:
                status = refused.status
                self._counters.refused.labels(refused.reason).inc()
                if refused.error is not None:
                    context.set_trailing_metadata(((tensors.ERROR, _packed(refused.error)),))
                context.abort(status, str(refused))
        finally:
            self._counters.requests.labels(status.name).inc()
            self._counters.latency.observe(time.monotonic() - began)

    def _inferred(self, request: Any, context: grpc.ServicerContext) -> Message:
        warm = self._keeper.warm
        if request.model_name and request.model_name != warm.name:
            raise _Refused(grpc.StatusCode.NOT_FOUND, "model", _other(warm))
        try:
            asked = tensors.asked(request)
        except GliofedError as error:
            raise _invalid(error) from error

        def work() -> Message:
            with self._job():
                return self._segmented(self._keeper.for_work(), asked, request)

        try:
            future = self._line.join(work, wanted=context.is_active)
        except Full:
            raise _Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "full",
                f"{len(self._line)} requests wait already, as many as may. Ask again later.",
            ) from None
        try:
            return future.result(_seconds(context.time_remaining()))
        except (NotYet, Late):
            raise _Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, "deadline", "The deadline passed."
            ) from None
        except _Refused:
            raise
        except GliofedError as error:
            raise _invalid(error) from error
        except Exception as error:  # the edge: one request must not end the service
            _LOG.exception("A request failed in an unforeseen way.")
            raise _Refused(
                grpc.StatusCode.INTERNAL, "failure", f"The service failed: {type(error).__name__}."
            ) from error

    def _segmented(self, warm: Warm, asked: tensors.Asked, request: Any) -> Message:
        if request.model_version and request.model_version != warm.version:
            raise _Refused(grpc.StatusCode.NOT_FOUND, "model", _other(warm))
        began = time.monotonic()
        found, origin = warm.segment(asked.case, asked.read)
        measured, midline = measure(found, {name: one.data for name, one in asked.read.items()})
        result = described(
            asked.case, found, origin, measured, midline=midline, inputs=asked.inputs_sha256
        )
        result["seconds"] = round(time.monotonic() - began, 3)
        return tensors.answer(found, result, request=request, wanted=asked.outputs)


class _Guard(grpc.ServerInterceptor):  # type: ignore[misc] # grpc has no types
    """Lets who has the token call everything, and anybody ask whether the service is well.

    Who has none is refused before the message is read: it can be large.
    """

    def __init__(self, token: bytes, counters: Counters) -> None:
        self._token, self._counters = token, counters

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        open_to_all = details.method in {f"/{SERVICE}/{name}" for name in OPEN}
        if open_to_all or allowed(details.invocation_metadata, self._token):
            return continuation(details)
        # Of a stream nothing is read until it is asked for.
        return grpc.stream_unary_rpc_method_handler(self._refuse)

    def _refuse(self, _: Any, context: grpc.ServicerContext) -> None:
        self._counters.refused.labels("token").inc()
        context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            "The token is missing or wrong: send `authorization: Bearer TOKEN`.",
        )


def _method(kind: type[Message], answer: _Answer) -> Any:
    def behave(raw: bytes, context: grpc.ServicerContext) -> Message:
        try:
            request = kind.FromString(raw)
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The message cannot be read.")
        return answer(request, context)

    return grpc.unary_unary_rpc_method_handler(
        behave, response_serializer=lambda message: message.SerializeToString()
    )


def _open(answer: _Answer) -> Any:
    """Return a method that holds no place while a caller does not send what says nothing."""
    return grpc.stream_unary_rpc_method_handler(
        lambda _requests, context: answer(None, context),
        response_serializer=lambda message: message.SerializeToString(),
    )


class _Refused(Exception):  # noqa: N818
    """A request that ends with a status, a word for the metrics, and what its sender reads."""

    def __init__(
        self,
        status: grpc.StatusCode,
        reason: str,
        message: str,
        error: GliofedError | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.error = status, reason, error


def _seconds(remaining: float | None) -> float | None:
    """Return a call's time as a lock can wait; a call without deadline has centuries."""
    return None if remaining is None else min(remaining, threading.TIMEOUT_MAX)


def _invalid(error: GliofedError) -> _Refused:
    status = grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, StateError):
        status = grpc.StatusCode.UNAVAILABLE
    elif isinstance(error, ModelError):
        status = grpc.StatusCode.FAILED_PRECONDITION
    return _Refused(status, error.code, str(error)[:_LONGEST], error)


def _packed(error: GliofedError) -> bytes:
    values = {"message": error.message[:_LONGEST], "do": error.do[:_LONGEST], "code": error.code}
    return json.dumps(values).encode()


def _is(warm: Warm, name: str, request: Any) -> bool:
    return name == warm.name and request.version in ("", warm.version)


def _other(warm: Warm) -> str:
    return f"The model here is {warm.name}, version {warm.version}."
