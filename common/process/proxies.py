"""Through which proxy a connection goes, and what of that the processes of one machine may know.

Pure. Settings come first; without them the environment is read as curl reads it for a TLS
connection: ``https_proxy`` before ``all_proxy``, small letters before capitals, ``no_proxy`` with
domains, addresses and networks. Invariant: nothing goes to this machine through a proxy, whatever
the environment says. A proxy is asked by CONNECT and sees TLS alone.

Out of scope: going the way (``common.doctor.tls_probe``), and what it means
(``common.doctor.connectivity_report``).
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from common.errors import StateError

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

_PORTS: Final = {"http": 80, "https": 443}
_NAMES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_EXEMPTIONS: Final = ("no_proxy", "NO_PROXY")
_VARIABLES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "grpc_proxy"})


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that is asked by CONNECT; ``str`` of it has no credentials."""

    scheme: str
    """``http``, or ``https`` if the proxy itself is spoken to by TLS."""
    host: str
    port: int
    source: str
    """Where it is set: ``site.toml``, or the name of a variable."""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    authority: Path | None = None
    """Who signed the certificate of an ``https`` proxy; None for those whom the system trusts."""

    def __str__(self) -> str:
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    @property
    def authorization(self) -> str:
        """The header ``Proxy-Authorization``, or an empty text without a user."""
        if not self.user:
            return ""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def parse_proxy(text: str, *, source: str) -> Proxy:
    """Return the proxy that ``text`` names, as ``http://USER:PASSWORD@HOST:PORT``.

    Raises StateError, whose words quote nothing of ``text``, which may hold a password.

    >>> parse_proxy("proxy.example.org:3128", source="HTTPS_PROXY").port
    3128
    """
    do = f"Write http://HOST:PORT in {source}."
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise StateError(f"{source} names no proxy.", do=do, code="proxy") from None
    if parts.scheme not in _PORTS:
        raise StateError(
            f"{source} names a proxy of the kind {parts.scheme}, which gliofed does not speak.",
            do="Name a proxy that takes HTTP CONNECT, as http://HOST:PORT.",
            code="proxy",
        )
    if not parts.hostname or parts.path.strip("/") or parts.query or port == 0:
        raise StateError(f"{source} names no proxy.", do=do, code="proxy")
    return Proxy(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        source=source,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def from_environment(environment: Mapping[str, str], *, host: str, port: int) -> Proxy | None:
    """Return the proxy that the environment names for TLS to ``host``, or None; raise StateError.

    >>> set_ = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "example.org"}
    >>> str(from_environment(set_, host="fl.example.com", port=443))
    'http://proxy:3128'
    >>> from_environment(set_, host="fl.example.org", port=443) is None
    True
    """
    source = next((name for name in _NAMES if environment.get(name, "").strip()), None)
    if source is None or is_loopback(host) or exempts(exemptions(environment), host, port):
        return None
    return parse_proxy(environment[source].strip(), source=source)


def exemptions(environment: Mapping[str, str]) -> str:
    """Return the list of those who are reached without a proxy."""
    return next((environment[name] for name in _EXEMPTIONS if environment.get(name)), "")


def exempts(listed: str, host: str, port: int) -> bool:
    """Return whether ``listed`` (``no_proxy``) lets ``host`` be reached without a proxy.

    >>> [exempts(".example.org, 10.0.0.0/8", one, 443) for one in ("a.example.org", "10.1.2.3")]
    [True, True]
    >>> exempts("example.org", "notexample.org", 443)
    False
    """
    name = _plain(host)
    for entry in listed.replace(",", " ").split():
        if entry == "*":
            return True
        domain, _, number = entry.rpartition(":")
        if domain and number.isdigit() and (":" not in domain or domain.endswith("]")):
            if int(number) != port:
                continue
            entry = domain
        entry = _plain(entry.lstrip("."))
        if entry and (name == entry or name.endswith(f".{entry}") or _within(name, entry)):
            return True
    return False


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this machine alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """Return ``host`` as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the environment says of proxies, with this machine exempted."""
    return {name: value for name, value in _exempting(environment).items() if _is_about(name)}


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which no library finds a proxy, for itself or its children.

    Our processes speak to each other on this machine; the one that leaves it is given
    ``variables`` again, and asks ``from_environment``.
    """
    return {
        name: value
        for name, value in _exempting(environment).items()
        if name.lower() not in _VARIABLES
    }


def _exempting(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with this machine among those who are reached without a proxy."""
    listed = [one for one in exemptions(environment).replace(",", " ").split() if one]
    if "*" not in listed:
        listed += [one for one in LOOPBACK if one not in listed]
    return {**environment, **dict.fromkeys(_EXEMPTIONS, ",".join(listed))}


def _is_about(name: str) -> bool:
    return name.lower() in _VARIABLES or name in _EXEMPTIONS


def _plain(host: str) -> str:
    return host.lower().strip("[]").rstrip(".")


def _within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
