"""A hospital's proxy that takes CONNECT, on the loopback interface; it ends with the test.

It knows the names that it was given, as a proxy does that alone resolves what is outside; every
other target is refused. ``asked`` is what came, without the credentials.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "anna", "s3cret:p@ss"
_LONGEST_S = 30.0

Target = tuple[str, int]


@dataclass
class ConnectProxy:
    """What a proxy does, and what it saw."""

    ways: Mapping[str, Target] = field(default_factory=dict)
    """Where HOST:PORT is in truth."""
    user: str = ""
    password: str = ""
    scheme: str = 'Basic realm="hospital"'
    tls: ssl.SSLContext | None = None
    """With it, the proxy itself is spoken to by TLS."""
    opens: ssl.SSLContext | None = None
    """With it, TLS inside is opened and nothing passed on."""
    says: str = ""
    """A status line in the place of a way."""
    host: str = "127.0.0.1"
    port: int = 0
    away: threading.Event = field(default_factory=threading.Event)
    """While it is set, what was open is closed and what comes is sent away."""
    asked: list[str] = field(default_factory=list)
    carried: int = 0
    """Bytes that went through, both ways."""

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a machine behind it, for whom nothing is exempted."""
        return dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), self.url)

    def serve(self, listener: socket.socket, ended: threading.Event) -> None:
        """Answer until ``ended``; in a thread of its own for each connection."""
        listener.settimeout(0.02)
        threads: list[threading.Thread] = []
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                raw, _ = listener.accept()
                if self.away.is_set():
                    raw.close()
                    continue
                threads.append(threading.Thread(target=self._answer, args=(raw, ended)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _answer(self, raw: socket.socket, ended: threading.Event) -> None:
        raw.settimeout(_LONGEST_S)
        with contextlib.suppress(OSError), raw:
            near = self.tls.wrap_socket(raw, server_side=True) if self.tls else raw
            with near:
                self._asked(near, ended)

    def _asked(self, near: socket.socket, ended: threading.Event) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = near.recv(4096)
            if not more:
                return None
            head += more
        line, *headers = head.decode("latin-1").split("\r\n")
        self.asked.append(line)
        given = {k.lower(): v.strip() for k, _, v in (one.partition(":") for one in headers)}
        wanted = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        verb, target, _ = line.split(" ", 2)
        if self.says:
            return near.sendall(f"HTTP/1.1 {self.says}\r\nContent-Length: 0\r\n\r\n".encode())
        if self.user and given.get("proxy-authorization") != wanted:
            asks = f"Proxy-Authenticate: {self.scheme}\r\nContent-Length: 0\r\n\r\n"
            return near.sendall(f"HTTP/1.1 407 Proxy Authentication Required\r\n{asks}".encode())
        if verb != "CONNECT" or target not in self.ways:
            return near.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        if self.opens is not None:
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with self.opens.wrap_socket(near, server_side=True) as opened:
                opened.recv(4096)
            return None
        try:
            far = socket.create_connection(self.ways[target], timeout=_LONGEST_S)
        except OSError:
            return near.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with far:
            self._carry(near, far, ended)
        return None

    def _carry(self, near: socket.socket, far: socket.socket, ended: threading.Event) -> None:
        """Carry both ways until one side closes."""
        for one in (near, far):
            one.settimeout(0.02)
        while not (ended.is_set() or self.away.is_set()):
            for here, there in ((near, far), (far, near)):
                try:
                    data = here.recv(65536)
                except (TimeoutError, ssl.SSLWantReadError):
                    continue
                if not data:
                    return
                self.carried += len(data)
                there.settimeout(_LONGEST_S)
                there.sendall(data)
                there.settimeout(0.02)


@contextlib.contextmanager
def serving(
    proxy: ConnectProxy, *, within: Callable[[Callable[[], None]], None] = lambda act: act()
) -> Iterator[ConnectProxy]:
    """Let ``proxy`` serve at its port, or at a free one; ``within`` puts its thread elsewhere."""
    ended, ready = threading.Event(), threading.Event()

    def serve() -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((proxy.host, proxy.port))
            listener.listen(32)
            proxy.port = listener.getsockname()[1]
            ready.set()
            proxy.serve(listener, ended)

    thread = threading.Thread(target=within, args=(serve,))
    thread.start()
    try:
        if not ready.wait(5.0):
            raise RuntimeError("The proxy does not listen.")
        yield proxy
    finally:
        ended.set()
        thread.join()


def authority(folder: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """Make the hospital's own authority; return its certificate, and the TLS of a server."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hospital proxy CA")])
    now = dt.datetime.now(dt.UTC)

    def made(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, signs: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=signs, path_length=None), critical=True)
        )
        if not signs:
            listed = x509.SubjectAlternativeName(
                [x509.DNSName(one) for one in names]
                + [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            )
            builder = builder.add_extension(listed, critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    own = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    (folder / "hospital.crt").write_bytes(made(name, key.public_key(), signs=True))
    (folder / "proxy.crt").write_bytes(made(subject, own.public_key(), signs=False))
    (folder / "proxy.key").write_bytes(
        own.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "proxy.crt", folder / "proxy.key")
    return folder / "hospital.crt", context
