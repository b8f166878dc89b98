"""The consortium's TLS: its certification authorities and the certificate of its one door.

    ca.crt                   every authority that is trusted now, the newest first
    keys/ca.key              the key that signs certificates
    keys/ca.next.key         while the authority changes: the key of the newest one, which signs
                             nothing before every site trusts it
    server.crt               of the gateway, which hospitals see
    keys/server.key          its key
    keys/server.next.key     for the moment in which the certificate is replaced

Invariant: killed at any moment, the folder holds a key and a certificate that fit, at the latest
after ``settle``.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import StateError
from common.records.atomic_files import write_bytes, write_secret

_CA_YEARS: Final = 10
_SERVER_DAYS: Final = 825
_SIGNS_ONLY: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def make(folder: Path, *, name: str, host: str) -> None:
    """Make a P-384 authority and the gateway's certificate (host, localhost)."""
    key = new_key(folder / "keys" / "ca.key")
    write_bytes(folder / "ca.crt", _authority(key, name=name))
    renew(folder, host=host)


def renew(folder: Path, *, host: str) -> None:
    """Replace the server's certificate and key; the authority that signs stays the same.

    It is for ``host``, and for every name that the one before was for: sites may still use it.
    """
    settle(folder)
    key = new_key(folder / "keys" / "server.next.key")
    write_bytes(folder / "server.crt", _signed(folder, key, host=host))
    settle(folder)


def begin_authority(folder: Path, *, name: str) -> None:
    """Make a new authority and trust it beside the old one; it signs nothing yet."""
    key = new_key(folder / "keys" / "ca.next.key")
    write_bytes(folder / "ca.crt", _authority(key, name=name) + (folder / "ca.crt").read_bytes())


def finish_authority(folder: Path, *, host: str) -> None:
    """Sign the server's certificate by the new authority and trust the old one no more."""
    following = folder / "keys" / "ca.next.key"
    if following.exists():
        following.replace(folder / "keys" / "ca.key")
    renew(folder, host=host)
    write_bytes(folder / "ca.crt", _issuer(folder).public_bytes(serialization.Encoding.PEM))


def changing_authority(folder: Path) -> bool:
    """Return whether a new authority was begun and not finished."""
    return (folder / "keys" / "ca.next.key").exists() or len(trusted(folder)) > 1


def settle(folder: Path) -> None:
    """Finish a replacement of the certificate that was killed half-way."""
    following = folder / "keys" / "server.next.key"
    if not following.exists():
        return
    if (folder / "server.crt").exists() and _public(following) == certificate(folder).public_key():
        following.replace(folder / "keys" / "server.key")
    else:
        following.unlink()


def certificate(folder: Path) -> x509.Certificate:
    """Return the server's certificate; raise StateError if it cannot be read."""
    return _load(folder / "server.crt")[0]


def trusted(folder: Path) -> list[x509.Certificate]:
    """Return the authorities that are trusted now, the newest first."""
    return _load(folder / "ca.crt")


def serving_until(folder: Path) -> dt.datetime:
    """Return until when (UTC) hospitals accept the server's certificate."""
    return certificate(folder).not_valid_after_utc


def _load(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(
            f"The certificate {path} cannot be read: {error}.",
            do="Restore the folder from a backup.",
            code="certificate",
        ) from None


def new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a P-384 key and keep it at ``path``, for its owner alone."""
    key = ec.generate_private_key(ec.SECP384R1())
    made = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_secret(path, made)
    return key


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    return cast(ec.EllipticCurvePrivateKey, key)


def _public(path: Path) -> ec.EllipticCurvePublicKey:
    return _key(path).public_key()


def _issuer(folder: Path) -> x509.Certificate:
    """Return the trusted authority whose key is ``keys/ca.key``."""
    own = _public(folder / "keys" / "ca.key")
    for authority in trusted(folder):
        if authority.public_key() == own:
            return authority
    raise StateError(
        f"{folder / 'ca.crt'} does not hold the authority of keys/ca.key.",
        do="Restore the folder from a backup.",
        code="certificate",
    )


def _authority(key: ec.EllipticCurvePrivateKey, *, name: str) -> bytes:
    now = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} gliofed CA"[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=365 * _CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNS_ONLY, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
        .public_bytes(serialization.Encoding.PEM)
    )


def _names(folder: Path) -> list[x509.GeneralName]:
    """Return what the present certificate is for; nothing if there is none that can be read."""
    try:
        extensions = certificate(folder).extensions
        return list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (StateError, x509.ExtensionNotFound):
        return []


def _signed(folder: Path, key: ec.EllipticCurvePrivateKey, *, host: str) -> bytes:
    """Return a certificate of ``key`` for ``host``, signed by ``keys/ca.key``."""
    now = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    issuer, signer = _issuer(folder), _key(folder / "keys" / "ca.key")
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    try:
        own: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        own = x509.DNSName(host)
    names += [one for one in (own, *_names(folder)) if one not in names]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=_SERVER_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
        .public_bytes(serialization.Encoding.PEM)
    )
