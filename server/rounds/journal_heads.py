"""The heads of journals: the coordinator's own, and the sites' as they were last heard."""

from __future__ import annotations

from common.records.journal import Journal


class Heads:
    """What goes with orders, and what replies are compared with."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._sites: dict[str, str] = {}
        self._own: set[str] = set()
        self.restored = False
        """Whether the coordinator was restored from a backup, and nobody accepted what was lost."""
        for entry in journal.entries():
            self.restored = entry.event == "backup restored" or (
                self.restored and entry.event != "loss accepted"
            )
            self._own.add(entry.hash)
            if "site" in entry.facts and entry.facts.get("site_head"):
                self._sites[entry.facts["site"]] = entry.facts["site_head"]

    @property
    def own(self) -> str:
        """Head of the coordinator's journal now."""
        return self._journal.head

    def of(self, site: str) -> str:
        """Return the head of the site's journal that was heard last, or an empty text."""
        return self._sites.get(site, "")

    def heard(self, site: str, head: str) -> None:
        if head:
            self._sites[site] = head

    def owns(self, head: str) -> bool:
        """Return whether the coordinator's journal had this head once."""
        if head and head not in self._own:
            self._own.update(entry.hash for entry in self._journal.entries())
        return not head or head in self._own
