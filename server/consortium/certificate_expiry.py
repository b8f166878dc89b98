"""What the days of the gateway's certificate mean: said before its last one, and after."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from common.doctor.connectivity_report import of_days
from common.doctor.findings import Finding
from server.consortium.certificates import serving_until


def renewal(folder: Path) -> str:
    """Say how the certificate is replaced, while everything runs."""
    return f"`gliofed-server rotate-certificate {folder} --by NAME` makes a new one."


def outlook(folder: Path) -> Finding:
    """Judge how long hospitals will go on accepting the certificate."""
    now, until = dt.datetime.now(dt.UTC), serving_until(folder)
    return of_days("tls", "The certificate of the gateway", until, now, renew=renewal(folder))


def closed(folder: Path) -> str:
    """Return why no hospital can come through, and what to do, or an empty text."""
    until = serving_until(folder)
    if until > dt.datetime.now(dt.UTC):
        return ""
    return (
        f"The TLS certificate {folder / 'server.crt'} expired on {until:%Y-%m-%d}: every hospital "
        f"refuses it. {renewal(folder)}"
    )
