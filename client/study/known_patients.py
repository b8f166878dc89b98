"""Who the patients of a cohort are to the ledger: the same person whatever a file is called.

A patient is known by the name that the cohort uses and by the voxels of each sequence; both are
kept in the ledger as keyed hashes. Cases that share a scan are of one patient, under the pseudonym
that the ledger knew first, so that a renamed patient keeps what was spent, one who stands in the
cohort twice is drawn once, and one who withdrew stays away.

A scan is read for it once, when it is prepared. One that cannot be read adds nothing: it cannot be
trained on either. Out of scope: two different scans of one patient under two names, and one patient
in two hospitals, which no hospital can see.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections import defaultdict
from collections.abc import Iterable

from client.imaging.case import Case
from client.imaging.prepared_cache import PreparedCache
from client.privacy.budget_caps import open_ledger
from client.privacy.ledger import Ledger
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym, withdrawn
from common.study.protocol import PreprocessingOptions

_LOG = logging.getLogger(__name__)


def by_patient(site: Site, cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Return the cases of each patient, by pseudonym; who has withdrawn is left out.

    What is not known of them yet is written into the ledger. Raises StateError.
    """
    own, scans = _own(site, cases, read=True)
    with open_ledger(site) as ledger:
        ledger.know(scans)
        return _grouped(site, own, {name: ledger.names(name) for name in own})


def look_up(site: Site, ledger: Ledger, cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Return what ``by_patient`` does, as far as that is known without reading an image."""
    own, scans = _own(site, cases, read=False)
    names = {}
    for name in own:
        owners = [one for scan in sorted(scans[name]) if (one := ledger.owner(scan))]
        names[name] = ledger.names(owners[0] if owners else name)
    return _grouped(site, own, names)


def _own(
    site: Site, cases: Iterable[Case], *, read: bool
) -> tuple[dict[str, list[Case]], dict[str, set[str]]]:
    """Return the cases and the keyed digests of the scans of each pseudonym."""
    key = patients_key(site)
    cache = PreparedCache(site.folder / "cache", PreprocessingOptions())
    own: dict[str, list[Case]] = {}
    scans: dict[str, set[str]] = defaultdict(set)
    for case in sorted(cases, key=lambda case: case.patient):
        name = pseudonym(key, case.patient)
        own.setdefault(name, []).append(case)
        try:
            found = cache.scans(case, read=read)
        except Exception as error:  # noqa: BLE001  whatever one scan does, the others go on
            _LOG.warning("A scan of patient %s is not known by its voxels: %s", name, error)
            continue
        scans[name] |= {_keyed(key, scan) for scan in found}
    return own, scans


def _grouped(
    site: Site, own: dict[str, list[Case]], names: dict[str, tuple[str, ...]]
) -> dict[str, list[Case]]:
    gone = withdrawn(site)
    found: dict[str, list[Case]] = {}
    for name, cases in own.items():
        if gone.isdisjoint({name, *names[name]}):
            found.setdefault(names[name][0], []).extend(cases)
    return found


def _keyed(key: bytes, scan: str) -> str:
    return hmac.new(key, b"scan " + scan.encode(), hashlib.sha256).hexdigest()[:32]
