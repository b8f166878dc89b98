"""What the site's page shows now, read from the site's folder alone.

It is read anew when something changed, and every few seconds for what the machine has left. What
cannot be read is said in words, and the rest is shown: a damaged journal must not hide the stop.
What privacy has cost is reckoned when no order is carried out, or for the first time, and nobody
waits for it: it takes a processor for seconds, which training has a better use for.

Nothing here names a patient: of the journal there are those facts alone that never do.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from client.page.machine_load import Machine, look
from client.privacy.budget_caps import open_ledger
from client.site.activity import Doing, doing_now
from client.site.folder import Site
from client.site.pseudonyms import withdrawn
from client.site.stop import Halt, halted
from client.views.disclosures import listed
from common.errors import GliofedError, StateError
from common.foreign_text import printable
from common.records.atomic_files import is_held, read_json
from common.records.journal import Entry

LOOK_EVERY_S: Final = 10.0
LAST_EVENTS: Final = 20
_NO_STUDY_DELTA: Final = 1e-5
_SHOWN: Final = ("study", "round", "order", "what", "code", "bytes", "seconds", "by", "protocol")
"""Facts of the journal that never speak of a patient."""
_LIBRARIES: Final = ("gliofed", "flwr", "torch", "monai", "opacus")


class Budget(NamedTuple):
    """What a study has cost its worst patient; ``study`` is empty for all studies together."""

    study: str
    private: bool
    epsilon: float
    cap: float
    steps: int


class Event(NamedTuple):
    """A fact of the journal, with what may be shown of it."""

    number: int
    time: str
    event: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """All that the page shows."""

    site: str
    consortium: str
    address: str
    at: str
    running: bool
    halt: Halt | None
    doing: Doing | None
    clinic: bool
    """A clinical job runs here: training waits."""
    contact: str
    """When the coordinator last answered; empty if it never did."""
    window: str
    studies: Mapping[str, str]
    """What was decided about each study."""
    left: tuple[Mapping[str, Any], ...]
    """What left today (UTC), newest first."""
    kinds: Mapping[str, tuple[int, int]]
    """Of each kind of what left today, how often and how many bytes."""
    budgets: tuple[Budget, ...]
    events: tuple[Event, ...]
    orders: Mapping[tuple[str, str, str], tuple[int, float, int]]
    """By study, order and outcome: how many answers, of how many seconds and bytes."""
    withdrawn: int
    cases: Mapping[str, int]
    """How many cases the last `gliofed-site check` found, by state."""
    machine: Machine
    versions: Mapping[str, str]
    troubles: tuple[str, ...]


class Readings:
    """Reads the site in ``folder``."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        machine: Callable[[Path], Machine] = look,
        aside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """``aside`` does what nobody waits for: in a thread, if it is None."""
        self._folder = folder
        self._clock = clock
        self._look = machine
        self._lock = threading.Lock()
        self._mark = ""
        self._last: Reading | None = None
        self._journal: tuple[object, tuple[Entry, ...]] = (None, ())
        self._aside = aside or _in_a_thread
        self._asked: object = None
        self._spent: tuple[tuple[Budget, ...], str] = ((), "")
        self._machine: tuple[float, Machine] | None = None

    def mark(self) -> str:
        """Return what changes when the page would show something else."""
        site = Site.open(self._folder)
        contact = _stamp(site.contact)
        return repr(
            (
                _stamp(site.journal.path),
                _stamp(site.stopped),
                _stamp(site.folder / "site.toml"),
                _stamp(site.folder / "flower" / "activity.json"),
                is_held(site.lock),
                contact and contact[0] // 60_000_000_000,
                int(self._clock() / LOOK_EVERY_S),
                self._spent,
            )
        )

    def now(self) -> Reading:
        """Return what is the case; raise StateError if the folder is no site's any more."""
        with self._lock:
            mark = self.mark()
            if self._last is None or mark != self._mark:
                self._last, self._mark = self._read(Site.open(self._folder)), mark
            return self._last

    def _read(self, site: Site) -> Reading:
        troubles: list[str] = []

        def attempt(read: Callable[[], Any], instead: Any) -> Any:
            try:
                return read()
            except GliofedError as error:
                if str(error) not in troubles:
                    troubles.append(str(error))
                return instead

        entries: tuple[Entry, ...] = attempt(lambda: self._entries(site), ())
        doing = doing_now(site)
        today = dt.datetime.now(dt.UTC).date()
        left = tuple(reversed(listed(entries, since=today)))
        kit = attempt(lambda: site.kit, None)
        return Reading(
            site=site.name,
            consortium=printable(kit.consortium) if kit else "",
            address=kit.address if kit else "",
            at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            running=is_held(site.lock),
            halt=halted(site),
            doing=doing,
            clinic=is_held(site.clinic_lock),
            contact=_time(site.contact),
            window=window(site, dt.datetime.now()),
            studies=attempt(lambda: _decisions(site), {}),
            left=left,
            kinds=_kinds(left),
            budgets=attempt(lambda: self._budgets(site, entries, busy=doing is not None), ()),
            events=tuple(map(_event, reversed(entries[-LAST_EVENTS:]))),
            orders=_orders(entries),
            withdrawn=len(attempt(lambda: withdrawn(site), ())),
            cases=_cases(site),
            machine=self._machine_now(site.folder),
            versions=_versions(),
            troubles=tuple(troubles),
        )

    def _entries(self, site: Site) -> tuple[Entry, ...]:
        stamp = _stamp(site.journal.path)
        if self._journal[0] != stamp:
            self._journal = stamp, tuple(site.journal.entries())
        return self._journal[1]

    def _budgets(self, site: Site, entries: Sequence[Entry], *, busy: bool) -> tuple[Budget, ...]:
        question = (len(entries), site.settings.policy.max_epsilon)
        if self._asked is None or (self._asked != question and not busy):
            self._asked = question
            self._aside(lambda: self._reckon(site))
        found, trouble = self._spent
        if trouble:
            raise StateError(trouble)
        return found

    def _reckon(self, site: Site) -> None:
        try:
            self._spent = budgets(site), ""
        except GliofedError as error:
            self._spent = (), str(error)

    def _machine_now(self, folder: Path) -> Machine:
        now = self._clock()
        if self._machine is None or now - self._machine[0] >= LOOK_EVERY_S:
            self._machine = now, self._look(folder)
        return self._machine[1]


def budgets(site: Site) -> tuple[Budget, ...]:
    """Return what each study, and all together, has cost its worst patient.

    Raises StateError; PrivacyError if the accountants contradict each other.
    """
    protocols = [site.protocol(name) for name in site.study_names()]
    private = [protocol for protocol in protocols if protocol.private]
    delta = min((one.privacy.delta for one in private), default=_NO_STUDY_DELTA)
    found = []
    with open_ledger(site) as ledger:
        for one in protocols:
            if not one.private:
                found.append(Budget(one.study, False, 0.0, 0.0, 0))
                continue
            spent = ledger.spent(one.privacy.delta, study=one.study)
            cap = one.privacy.max_epsilon
            found.append(Budget(one.study, True, spent.epsilon, cap, spent.steps))
        total = ledger.spent(delta)
    found.append(Budget("", True, total.epsilon, site.settings.policy.max_epsilon, total.steps))
    return tuple(found)


def window(site: Site, now: dt.datetime) -> str:
    """Return in words when orders may be carried out, by the hospital's own clock."""
    hours = site.settings.policy.hours
    begin, end = hours.split("-")
    if hours == "00:00-24:00":
        return "open at all hours"
    if begin == end:
        return f"never open (hours = {hours})"
    if site.settings.policy.open_at(now.time()):
        return f"open until {end}"
    when = "today" if f"{now:%H:%M}" < begin else "tomorrow"
    return f"closed; opens {when} at {begin}"


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _decisions(site: Site) -> dict[str, str]:
    said = {}
    for name in site.study_names():
        decided = site.decision(name)
        said[name] = "waits for a decision" if decided is None else f"{decided[0].decision}d"
    return said


def _kinds(left: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    count: Counter[str] = Counter(str(one["what"]) for one in left)
    size: Counter[str] = Counter()
    for one in left:
        size[str(one["what"])] += one["bytes"] or 0
    return {what: (count[what], size[what]) for what in sorted(count)}


def _orders(entries: Sequence[Entry]) -> dict[tuple[str, str, str], tuple[int, float, int]]:
    found: dict[tuple[str, str, str], tuple[int, float, int]] = {}
    for entry in entries:
        if entry.event not in {"sent", "declined"}:
            continue
        facts = entry.facts
        outcome = "done" if entry.event == "sent" else str(facts.get("code") or "declined")
        key = (str(facts.get("study", "")), str(facts.get("order", "")), outcome)
        count, seconds, size = found.get(key, (0, 0.0, 0))
        found[key] = (
            count + 1,
            seconds + float(facts.get("seconds") or 0.0),
            size + int(facts.get("bytes") or 0),
        )
    return found


def _cases(site: Site) -> dict[str, int]:
    """Return what the last check counted; {} if there was none."""
    try:
        found = read_json(site.checked, what="what was checked")
        return {str(state): int(count) for state, count in found.items()}
    except (StateError, AttributeError, TypeError, ValueError):
        return {}


def _event(entry: Entry) -> Event:
    facts = {key: entry.facts[key] for key in _SHOWN if entry.facts.get(key) not in (None, "")}
    return Event(entry.number, entry.time, entry.event, facts)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def _time(path: Path) -> str:
    stamp = _stamp(path)
    if stamp is None:
        return ""
    return dt.datetime.fromtimestamp(stamp[0] / 1e9, dt.UTC).isoformat(timespec="seconds")
