"""The SuperLink's own door: its port of the loopback address, and the certificate that it shows.

    flower/hub/port       where it listens
    flower/hub/hub.crt    its certificate, which is its own authority and never expires
    flower/hub/hub.key    that certificate's key
    flower/hub/reached    touched whenever the executor has reached it

Only processes of this machine and user come to this door; hospitals come to the gateway. ``serve``
makes them anew at each start, and everything that calls the SuperLink reads them here, so that
nothing between the coordinator's own processes depends on the public certificate or on a port that
was free when the consortium was founded. Another port is taken if this one is not free any more
(``server.transport.superlink``).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import StateError
from common.process.child_processes import free_port
from common.records.atomic_files import write_secret
from server.consortium.certificates import new_key, pem

HOST: Final = "127.0.0.1"

# Whatever the clock says, now or later: RFC 5280, 4.1.2.5, for a certificate without an end.
_BEGINS: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_NEVER: Final = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
_OWN_AUTHORITY: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Hub:
    """The door as it is now."""

    folder: Path
    port: int

    @classmethod
    def make(cls, flower: Path) -> Hub:
        """Choose a free port and make key and certificate, below the folder of Flower's files."""
        hub = cls(flower / "hub", free_port())
        hub.folder.mkdir(parents=True, exist_ok=True)
        hub.folder.chmod(0o700)
        key = new_key(hub.key)
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gliofed SuperLink")])
        address = x509.IPAddress(ipaddress.ip_address(HOST))
        public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        made = (
            x509.CertificateBuilder()
            .subject_name(own)
            .issuer_name(own)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGINS)
            .not_valid_after(_NEVER)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_OWN_AUTHORITY, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(public, critical=False)
            .sign(key, hashes.SHA384())
        )
        write_secret(hub.certificate, pem(made))
        hub._reached.unlink(missing_ok=True)
        return hub.at(hub.port)

    @classmethod
    def open(cls, flower: Path) -> Hub:
        """Return the door as it is now; raise StateError if `serve` made none."""
        path = flower / "hub" / "port"
        try:
            return cls(path.parent, int(path.read_text()))
        except (OSError, ValueError):
            raise StateError(
                f"{path} does not say where the SuperLink listens.",
                do="`gliofed-server serve` writes it when it starts: start it again.",
                code="not-serving",
            ) from None

    def at(self, port: int) -> Hub:
        """Let the door be at ``port`` from now on."""
        write_secret(self.noted, f"{port}\n".encode())
        return replace(self, port=port)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def noted(self) -> Path:
        """The file that changes when the port does."""
        return self.folder / "port"

    @property
    def certificate(self) -> Path:
        return self.folder / "hub.crt"

    @property
    def key(self) -> Path:
        return self.folder / "hub.key"

    @property
    def _reached(self) -> Path:
        return self.folder / "reached"

    def reached(self) -> None:
        """Take note that the executor has reached the SuperLink just now."""
        self._reached.touch(mode=0o600)

    def reached_s_ago(self) -> float | None:
        """Return how long ago the executor reached the SuperLink, or None if it never did."""
        try:
            return max(0.0, time.time() - self._reached.stat().st_mtime)
        except FileNotFoundError:
            return None

    def trust(self) -> ssl.SSLContext:
        """Return what trusts this door's certificate, and nothing else."""
        try:
            return ssl.create_default_context(cafile=str(self.certificate))
        except (OSError, ssl.SSLError) as error:
            raise StateError(
                f"The SuperLink's certificate {self.certificate} cannot be read: {error}.",
                do="`gliofed-server serve` makes it when it starts: start it again.",
                code="not-serving",
            ) from None
