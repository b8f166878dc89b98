"""What it means how far one gets on the way to the coordinator: name, port, TLS, clock.

Pure: ``common.doctor.tls_probe`` goes the way.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from common.doctor.findings import Finding, ok, problem, warning
from common.doctor.tls_probe import PATIENCE_S, Reached, Through

_SAME_CLOCK_S: Final = 5.0
_WRONG_CLOCK_S: Final = 300.0
"""By more than that Flower refuses a call that is not signed again (``client.runtime.supernode``).
"""
_RENEW_DAYS: Final = 30
_AUTHENTICATE: Final = 407
_BEHIND: Final = frozenset({502, 503, 504})
_OTHER_WAY: Final = (
    " If this network is left through a proxy alone, name it in [network] of site.toml."
)


def of_door(found: Reached, *, whose: str, now: dt.datetime, ours: bool = False) -> list[Finding]:
    """Judge the way to a door, as far as it was gone.

    ``whose`` says what the trusted authorities are from; ``now`` is this machine's time (UTC);
    ``ours`` is a door on this side.
    """
    where = f"{found.host} port {found.port}"
    ask = "Start `gliofed-server serve`." if ours else "Ask the coordinator whether it is served."
    if found.through is not None:
        proxy = _of_proxy(found.through, where)
        if found.through.problem:
            return [proxy]
        return [proxy, *_of_tls(found, whose, now, ask=ask, ours=ours)]
    other_way = "" if ours else _OTHER_WAY
    if found.name_problem:
        why = found.name_problem
        why = f"no answer within {PATIENCE_S:g} s" if why == "timeout" else why
        return [
            problem(
                "name",
                f"The name {found.host} could not be resolved: {why}.",
                f"Check this machine's DNS, or let it name the address in /etc/hosts.{other_way}",
            )
        ]
    named = ok("name", f"{found.host} is {', '.join(found.addresses)}.")
    if found.port_problem:
        return [named, _port_problem(found, where, ask=ask, other_way=other_way)]
    opened = ok("port", f"{where} takes connections.")
    return [named, opened, *_of_tls(found, whose, now, ask=ask, ours=ours)]


def _of_tls(found: Reached, whose: str, now: dt.datetime, *, ask: str, ours: bool) -> list[Finding]:
    if found.tls_problem:
        return [_tls_problem(found, whose, ask=ask)]
    days = [] if found.valid is None else _of_certificate(found, found.valid, now, ours=ours)
    return [*days, of_clock(found.ahead_s)]


def _of_proxy(through: Through, where: str) -> Finding:
    """Judge what the proxy made of it: it let pass, or one sentence says why not."""
    proxy, words = through.proxy, through.words
    check = f"Check the proxy's address in {proxy.source} with who runs it."
    if not through.problem:
        return ok("proxy", f"The proxy {proxy} ({proxy.source}) lets {where} pass.")
    if through.problem == "status":
        return _refusal(through, where)
    if through.problem == "tls":
        return _proxy_tls_problem(through)
    if through.problem == "name":
        why = f"no answer within {PATIENCE_S:g} s" if words == "timeout" else words
        return problem(
            "proxy", f"The name of the proxy {proxy} could not be resolved: {why}.", check
        )
    if through.problem == "port":
        whys = {
            "timeout": f"does not answer within {PATIENCE_S:g} s",
            "refused": "refuses connections: nothing listens there, or a firewall says no",
        }
        why = whys.get(words, f"cannot be reached: {words}")
        return problem("proxy", f"The proxy {proxy} {why}.", check)
    whys = {
        "timeout": f"takes the connection and says nothing within {PATIENCE_S:g} s",
        "closed": "closes the connection without a word",
    }
    other = "https" if proxy.scheme == "http" else "http"
    return problem(
        "proxy",
        f"The proxy {proxy} {whys.get(words, 'does not answer by HTTP')}.",
        f"{check} If it is spoken to with{'' if other == 'https' else 'out'} TLS, write {other}://.",
    )


def _proxy_tls_problem(through: Through) -> Finding:
    proxy, words = through.proxy, through.words
    if words == "chain":
        trusted = "proxy_ca in site.toml" if proxy.authority else "those that this system trusts"
        return problem(
            "proxy",
            f"The certificate of the proxy {proxy} is signed by {through.issuer or 'another'}, not "
            f"by {trusted}.",
            "Name the PEM file of who signs it as proxy_ca in site.toml.",
        )
    if words in {"name", "days"}:
        why = f"not for {proxy.host}" if words == "name" else "not valid by this machine's clock"
        return problem(
            "proxy", f"The certificate of the proxy {proxy} is {why}.", "Tell who runs the proxy."
        )
    why = "no answer" if words == "timeout" else words
    return problem(
        "proxy",
        f"The proxy {proxy} does not speak TLS: {why}.",
        f"Write http:// in place of https:// in {proxy.source}, if it is spoken to without TLS.",
    )


def _refusal(through: Through, where: str) -> Finding:
    """Judge the answer of a proxy that lets nobody pass."""
    proxy, said = through.proxy, through.words
    if through.status == _AUTHENTICATE:
        return _authentication_problem(through)
    if through.status in _BEHIND:
        return problem(
            "proxy",
            f"The proxy {proxy} could not reach {where}: {said}.",
            "Ask the coordinator whether it is served, and who runs the proxy whether it may leave "
            "by this port.",
        )
    return problem(
        "proxy",
        f"The proxy {proxy} refuses the way to {where}: {said}.",
        f"Ask who runs the proxy to allow CONNECT to {where}; many allow port 443 alone.",
    )


def _authentication_problem(through: Through) -> Finding:
    proxy, said = through.proxy, through.words
    offered = {one.lower() for one in through.schemes}
    if offered and "basic" not in offered:
        return problem(
            "proxy",
            f"The proxy {proxy} wants {' or '.join(through.schemes)}, which gliofed does not "
            f"speak: {said}.",
            "Ask who runs the proxy to let this machine pass without a user, or with Basic.",
        )
    if not proxy.user:
        return problem(
            "proxy",
            f"The proxy {proxy} wants a user and a password, and none is set: {said}.",
            "Set proxy, proxy_user and proxy_password_file in [network] of site.toml.",
        )
    return problem(
        "proxy",
        f"The proxy {proxy} does not take the user and the password that are set: {said}.",
        f"Correct them in {proxy.source}.",
    )


def _port_problem(found: Reached, where: str, *, ask: str, other_way: str) -> Finding:
    if found.port_problem == "timeout":
        return problem(
            "port",
            f"{where} swallows connections: no answer within {PATIENCE_S:g} s.",
            f"A firewall on the way drops them: let it pass TCP to port {found.port} of "
            f"{', '.join(found.addresses)}.{other_way}",
        )
    if found.port_problem == "refused":
        return problem(
            "port",
            f"{where} refuses connections: nothing listens there, or a firewall says no.",
            ask,
        )
    return problem(
        "port",
        f"{where} cannot be reached: {found.port_problem}.",
        f"Check the route and the firewall of this machine.{other_way}",
    )


def _tls_problem(found: Reached, whose: str, *, ask: str) -> Finding:
    if found.tls_problem == "chain" and found.through is not None:
        return problem(
            "tls",
            f"The proxy {found.through.proxy} opens TLS: the certificate that comes is not signed "
            f"by the authority in {whose}, but by {found.issuer or 'another'}.",
            f"Let it pass {found.host} port {found.port} unopened: no other authority is ever "
            "trusted here. If it does so already, take the newest kit.",
        )
    if found.tls_problem == "chain":
        return problem(
            "tls",
            f"The certificate is not signed by the authority in {whose}, but by "
            f"{found.issuer or 'another'}.",
            "If a proxy opens TLS on the way, let it pass this port unopened; else take the newest "
            "kit, and compare its fingerprint by telephone.",
        )
    if found.tls_problem == "name":
        return problem(
            "tls",
            f"The certificate is for {', '.join(found.names) or 'no name'}, not for {found.host}.",
            "The coordinator's `consortium.json` must have the name that hospitals use, and "
            "`gliofed-server rotate-certificate` makes a certificate for it.",
        )
    if found.tls_problem == "timeout":
        return problem(
            "tls",
            f"The connection opens and then nothing comes within {PATIENCE_S:g} s.",
            "Something on the way takes the connection in the coordinator's place: let it pass TLS "
            "unopened.",
        )
    if found.tls_problem == "closed":
        return problem(
            "tls",
            "The connection opens and is closed as soon as TLS begins.",
            f"A firewall that looks into TLS may do that: let it pass unopened. {ask}",
        )
    return problem("tls", f"No TLS is spoken at this port: {found.tls_problem}.", ask)


def of_days(about: str, what: str, until: dt.datetime, now: dt.datetime, *, renew: str) -> Finding:
    """Judge how long a certificate is good; ``now`` and ``until`` are UTC."""
    days = (until - now).total_seconds() / 86_400
    if days <= 0:
        return problem(about, f"{what} expired on {until:%Y-%m-%d}.", renew)
    left = f"{what} is good for {int(days)} days, until {until:%Y-%m-%d}"
    return ok(about, f"{left}.") if days > _RENEW_DAYS else warning(about, f"{left} only.", renew)


def _of_certificate(
    found: Reached, valid: tuple[dt.datetime, dt.datetime], now: dt.datetime, *, ours: bool
) -> list[Finding]:
    """Judge the days by the coordinator's time, and then by what this machine takes for time."""
    begins, until = valid
    there = now - dt.timedelta(seconds=found.ahead_s or 0.0)
    renew = "`gliofed-server rotate-certificate` replaces it while everything runs."
    renew = renew if ours else f"Tell the coordinator: {renew}"
    if begins > there:
        told = f"The certificate is valid from {begins:%Y-%m-%d %H:%M} UTC on only."
        return [
            problem("tls", told, "The coordinator's clock was wrong when it was made: " + renew)
        ]
    said = [of_days("tls", f"The certificate for {found.host}", until, there, renew=renew)]
    if said[0].level != "problem" and not begins <= now < until:
        # It is the clock of this machine that makes a good certificate look bad.
        said.append(
            problem(
                "tls",
                "By the clock of this machine the certificate is not valid: no connection of the "
                "site is made.",
                "Set the clock (below).",
            )
        )
    return said


def of_clock(ahead_s: float | None) -> Finding:
    """Judge by how many seconds this machine's clock is ahead of the coordinator's."""
    if ahead_s is None:
        return warning(
            "clock",
            "The coordinator did not say what time it has.",
            "Compare this machine's clock by hand, or use NTP.",
        )
    off = abs(ahead_s)
    side = "ahead of" if ahead_s > 0 else "behind"
    told = f"This machine's clock is {duration(off)} {side} the coordinator's."
    if off <= _SAME_CLOCK_S:
        return ok("clock", f"This machine's clock is the coordinator's, within {off:.0f} s.")
    do = "Let both keep time by NTP (`timedatectl set-ntp true`)."
    return (problem if off > _WRONG_CLOCK_S else warning)("clock", told, do)


def duration(seconds: float) -> str:
    """Return a time in the largest unit that fits, such as ``3 h 5 min``."""
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} days {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
