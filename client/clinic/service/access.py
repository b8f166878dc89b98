"""Who may ask: a bearer token in a file, TLS, and no plain text beyond the loopback interface.

A file's mode must keep others from the token; on Windows, where modes say nothing, that is left to
the permissions of its folder.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path
from typing import Final

import grpc

from common import posix
from common.errors import IdentityError, StateError
from common.process.proxies import is_loopback
from common.records.atomic_files import write_secret

HEADER: Final = "authorization"
_SHORTEST: Final = 16


def read_token(path: Path) -> bytes:
    """Return the token in ``path``; raise StateError (``service-token``) unless it is a secret."""
    try:
        mode = path.stat().st_mode
        token = path.read_bytes().strip()
    except OSError as error:
        raise StateError(
            f"The token in {path} cannot be read: {error.strerror}.",
            do="Name the file with --token-file; `gliofed-site serve` makes one at first.",
            code="service-token",
        ) from error
    if posix.POSIX and mode & 0o077:
        raise StateError(
            f"Others than its owner may read the token in {path}.",
            do=f"Make a new one, and set its mode: chmod 600 {path}",
            code="service-token",
        )
    if len(token) < _SHORTEST or not token.isascii() or len(token.split()) != 1:
        raise StateError(
            f"The token in {path} is no word of at least {_SHORTEST} characters.",
            do="Make one with: openssl rand -hex 32",
            code="service-token",
        )
    return token


def own_token(path: Path) -> bytes:
    """Return the token in ``path``, made new where there is none."""
    if not path.exists():
        write_secret(path, secrets.token_hex(32).encode() + b"\n")
    return read_token(path)


def allowed(metadata: object, token: bytes) -> bool:
    """Return whether a call's metadata hold the token, in a time that does not tell it."""
    given = ""
    for key, value in metadata or ():  # type: ignore[attr-defined]
        if key == HEADER and isinstance(value, str):
            given = value
    expected = b"Bearer " + token
    return hmac.compare_digest(given.encode(), expected)


def server_credentials(
    host: str, certificate: Path | None, key: Path | None
) -> grpc.ServerCredentials | None:
    """Return the TLS of a service on ``host``, None for plain text on the loopback interface.

    Raises IdentityError (``service-tls``) for plain text anywhere else.
    """
    if (certificate is None) != (key is None):
        raise IdentityError(
            "TLS needs a certificate and its key.",
            do="Give both --certificate and --key.",
            code="service-tls",
        )
    if certificate is None or key is None:
        if is_loopback(host):
            return None
        raise IdentityError(
            f"Without TLS the service would send patients' images over the network of {host}.",
            do="Give --certificate and --key, or serve on 127.0.0.1.",
            code="service-tls",
        )
    return grpc.ssl_server_credentials([(_read(key), _read(certificate))])


def channel_credentials(host: str, authority: Path | None) -> grpc.ChannelCredentials | None:
    """Return how to reach ``host``: by TLS unless it is this machine and no ``authority`` is named.

    ``authority`` is the PEM file of who signed the service's certificate.
    """
    if authority is None and is_loopback(host):
        return None
    return grpc.ssl_channel_credentials(_read(authority) if authority else None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(
            f"{path} cannot be read: {error.strerror}.", do="Check the path.", code="service-tls"
        ) from error
