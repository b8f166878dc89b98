"""What it means how far one gets on the way to the coordinator: name, port, TLS, clock.

Pure: ``common.reach`` goes the way.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from common.findings import Finding, ok, problem, warning
from common.reach import PATIENCE_S, Reached

_SAME_CLOCK_S: Final = 5.0
_WRONG_CLOCK_S: Final = 300.0
"""By more than that Flower refuses a call that is not signed again (``client.node``)."""
_RENEW_DAYS: Final = 30


def of_door(found: Reached, *, whose: str, now: dt.datetime, ours: bool = False) -> list[Finding]:
    """Judge the way to a door, as far as it was gone.

    ``whose`` says what the trusted authorities are from; ``now`` is this machine's time (UTC);
    ``ours`` is a door on this side.
    """
    where = f"{found.host} port {found.port}"
    ask = "Start `gliofed-server serve`." if ours else "Ask the coordinator whether it is served."
    if found.name_problem:
        why = found.name_problem
        why = f"no answer within {PATIENCE_S:g} s" if why == "timeout" else why
        return [
            problem(
                "name",
                f"The name {found.host} could not be resolved: {why}.",
                "Check this machine's DNS, or let it name the address in /etc/hosts.",
            )
        ]
    named = ok("name", f"{found.host} is {', '.join(found.addresses)}.")
    if found.port_problem:
        return [named, _port_problem(found, where, ask=ask)]
    opened = ok("port", f"{where} takes connections.")
    if found.tls_problem:
        return [named, opened, _tls_problem(found, whose, ask=ask)]
    days = [] if found.valid is None else _of_certificate(found, found.valid, now, ours=ours)
    return [named, opened, *days, of_clock(found.ahead_s)]


def _port_problem(found: Reached, where: str, *, ask: str) -> Finding:
    if found.port_problem == "timeout":
        return problem(
            "port",
            f"{where} swallows connections: no answer within {PATIENCE_S:g} s.",
            f"A firewall on the way drops them: let it pass TCP to port {found.port} of "
            f"{', '.join(found.addresses)}.",
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
        "Check the route and the firewall of this machine.",
    )


def _tls_problem(found: Reached, whose: str, *, ask: str) -> Finding:
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
