"""Mutual TLS between two processes of one machine and one user, over the loopback interface.

    port        where the server listens
    NAME.crt    the certificate that both ends show; it is its own authority and never expires
    NAME.key    its key

Other users of the machine reach every port of the loopback interface, and may take one before its
owner does. Here both ends show the one certificate whose key lies in a folder of mode 0700, and
trust that alone: whoever cannot read the folder can neither ask the server nor stand in its place.
Where another process has taken the port meanwhile, the server takes another and notes that.

Flower's own programs ask for no certificate: ``common.web.http_server.in_place_of_uvicorn`` gives
them a server that does.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import StateError
from common.records.atomic_files import write_secret

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
_BACKLOG: Final = 128


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class LoopbackAddress:
    """Where one server of this machine listens, and by what both ends know each other.

    ``restart`` is the command that makes all of it anew.
    """

    folder: Path
    port: int
    name: str
    restart: str

    def create(self) -> Self:
        """Make key and certificate anew, choose a free port, and return the address."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        key = ec.generate_private_key(ec.SECP384R1())
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"gliofed {self.name}")])
        public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        address = x509.IPAddress(ipaddress.ip_address(HOST))
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
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(public, critical=False)
            .sign(key, hashes.SHA384())
        )
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        write_secret(self.key, key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        write_secret(self.certificate, made.public_bytes(pem))
        return self._at(free_port())

    def known(self) -> Self:
        """Return the address with the port of now.

        Raises StateError (code ``not-serving``) if it was never made.
        """
        try:
            return replace(self, port=int(self.noted.read_text(encoding="ascii")))
        except (OSError, ValueError):
            raise StateError(
                f"{self.noted} does not say where the {self.name} listens.",
                do=f"`{self.restart}` writes it when it starts: start it again.",
                code="not-serving",
            ) from None

    def bound(self) -> tuple[Self, socket.socket]:
        """Listen at the port that was chosen, or at another if it is taken.

        Returns the address with its port, which is noted, and the socket.
        """
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            try:
                listening.bind((HOST, self.port))
            except OSError:
                listening.bind((HOST, 0))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        port = listening.getsockname()[1]
        return (self if port == self.port else self._at(port)), listening

    def _at(self, port: int) -> Self:
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
        return self.folder / f"{self.folder.name}.crt"

    @property
    def key(self) -> Path:
        return self.folder / f"{self.folder.name}.key"

    def client_context(self) -> ssl.SSLContext:
        """Return what shows the certificate and trusts no other; raise StateError."""
        try:
            context = ssl.create_default_context(cafile=str(self.certificate))
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise StateError(
                f"The {self.name}'s certificate {self.certificate} cannot be read: {error}.",
                do=f"`{self.restart}` makes it when it starts: start it again.",
                code="not-serving",
            ) from None
        return context

    def server_context(self) -> ssl.SSLContext:
        """Return what shows the certificate and completes no handshake with who does not."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        context.load_verify_locations(self.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        return context
