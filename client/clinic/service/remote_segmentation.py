"""Segment at a service: the case is read here, computed there, and written here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from retrying import Retrying
from tritonclient.grpc import service_pb2 as words
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from client.clinic.result_folder import Origin, Segment, Segmentation
from client.clinic.service.access import HEADER, channel_credentials, read_token
from client.clinic.service.tensors import ERROR, answered, request_of
from client.imaging.case import Case
from client.imaging.image_reading import read_image
from common.errors import CaseError, FederationError, GliofedError, IdentityError, ModelError
from common.process.proxies import is_loopback

TIMEOUT_S: Final = 1800.0
_ATTEMPTS: Final = 4
_WAIT_MS: Final = 500
_OWN: Final[Mapping[grpc.StatusCode, type[GliofedError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: CaseError,
    grpc.StatusCode.FAILED_PRECONDITION: ModelError,
}
"""What the service says in its own words, and what that is here."""
_AGAIN: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


@contextlib.contextmanager
def service(
    address: str,
    *,
    authority: Path | None = None,
    token: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Segment]:
    """Yield what segments a case at ``address``, HOST:PORT.

    No proxy is asked, whatever the environment says: the service is the hospital's own.

    It raises CaseError as a local segmentation does, IdentityError where the token is wrong, and
    FederationError where the service is not reached, is full, or fails.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise FederationError(
            f"{address!r} is no address of a service.",
            do="Give --server HOST:PORT, as gpu.hospital.example:8001.",
            code="service-address",
        )
    credentials = channel_credentials(host, authority)
    if credentials is None and not is_loopback(host):
        raise IdentityError("Patients' images are sent by TLS alone.", code="service-tls")
    metadata = [] if token is None else [(HEADER, "Bearer " + read_token(token).decode())]
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
    ]
    channel = (
        grpc.secure_channel(address, credentials, options)
        if credentials
        else grpc.insecure_channel(address, options)
    )
    stub = GRPCInferenceServiceStub(channel)
    again = Retrying(
        stop_max_attempt_number=_ATTEMPTS,
        wait_exponential_multiplier=_WAIT_MS,
        retry_on_exception=_passes,
    )

    def segment(case: Case) -> tuple[Segmentation, Origin]:
        request = request_of({name: read_image(image) for name, image in case.images.items()})
        try:
            response: words.ModelInferResponse = again.call(
                stub.ModelInfer, request, timeout=timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            raise _said(address, error) from error
        return answered(response)

    try:
        yield segment
    finally:
        channel.close()


def _passes(error: BaseException) -> bool:
    return isinstance(error, grpc.RpcError) and error.code() in _AGAIN


def _said(address: str, error: Any) -> GliofedError:
    """Return the failure of a call in our own words, or in the service's where it has some."""
    status = error.code()
    packed = dict(error.trailing_metadata() or ()).get(ERROR)
    kind = _OWN.get(status)
    if packed is not None and kind is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(packed)
            return kind(values["message"], do=values["do"], code=values["code"])
    if status is grpc.StatusCode.UNAUTHENTICATED:
        return IdentityError(
            f"The service at {address} does not take the token.",
            do="Ask its owner for the token, and name the file with --token-file.",
            code="service-token",
        )
    known = {
        grpc.StatusCode.UNAVAILABLE: "does not answer, or its certificate is not trusted",
        grpc.StatusCode.RESOURCE_EXHAUSTED: f"has no room: {error.details()}",
        grpc.StatusCode.DEADLINE_EXCEEDED: "took too long",
    }
    what = known.get(status, f"failed ({status.name}): {error.details()}")
    return FederationError(
        f"The service at {address} {what}.",
        do="Check the address, --ca and that `gliofed-site serve` runs; or segment here with "
        "--model or --site.",
        code="service-unreachable",
    )
