"""Certificates that are no longer good."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


def expired(coordinator: Path) -> bytes:
    """Return the gateway's certificate as it would be if it had expired yesterday."""
    return expiring(coordinator, days=-1)


def expiring(coordinator: Path, *, days: float) -> bytes:
    """Return the gateway's certificate as it would be if it were good for so many days yet."""
    old = x509.load_pem_x509_certificate((coordinator / "server.crt").read_bytes())
    key = serialization.load_pem_private_key((coordinator / "keys" / "ca.key").read_bytes(), None)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=30))
        .not_valid_after(now + dt.timedelta(days=days))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(key, hashes.SHA384())  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.PEM)
