"""The site in numbers for Prometheus: orders, bytes, privacy, cases by number, the machine.

Computed, when it is asked for, from the same reading that the page shows. Labels are names of
studies and kinds of orders and codes of a fixed list; no label names a patient or a case, and a
number of cases or patients is an exact one: these figures are for the hospital itself.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from client.page.site_status import Reading
from common.web.prometheus import Figures, counter, gauge


class SiteFigures(Figures[Reading]):
    """What the site's page shows; ``gliofed_site_readable`` is 0 if not all of it can be read."""

    readable = ("site_readable", "1 if all that the site keeps can be read.")

    def whole(self, reading: Reading) -> bool:
        return not reading.troubles

    def figures(self, reading: Reading) -> Iterator[Metric]:
        yield _one("site_running", "1 if the site runs.", float(reading.running))
        yield _one("site_stopped", "1 if the hospital stopped it.", float(bool(reading.halt)))
        yield _one("site_busy", "1 while an order is carried out.", float(bool(reading.doing)))
        yield _one("clinic_busy", "1 while a clinical job runs here.", float(reading.clinic))
        if reading.contact:
            when = dt.datetime.fromisoformat(reading.contact).timestamp()
            yield _one("last_contact_seconds", "When the coordinator last answered.", when)
        yield from _orders(reading)
        yield from _privacy(reading)
        yield from _cases(reading)
        yield from _machine(reading)


def _orders(reading: Reading) -> Iterator[Metric]:
    labels = ("study", "order", "outcome")
    answers = counter("orders", "Answers in the journal, by outcome.", *labels)
    seconds = counter("order_seconds", "Seconds that the answers took.", *labels)
    size = counter("sent_bytes", "Bytes that left with the answers.", *labels)
    for key, (count, took, left) in sorted(reading.orders.items()):
        answers.add_metric(list(key), count)
        seconds.add_metric(list(key), took)
        size.add_metric(list(key), left)
    yield from (answers, seconds, size)
    if reading.doing is not None and reading.doing.steps:
        yield _one("steps_done", "Of the order that is carried out.", reading.doing.step)
        yield _one("steps_planned", "Of the order that is carried out.", reading.doing.steps)


def _privacy(reading: Reading) -> Iterator[Metric]:
    spent = gauge("epsilon", "Of the worst patient; study is empty for all together.", "study")
    cap = gauge("epsilon_cap", "The most that it may be.", "study")
    for one in reading.budgets:
        if one.private:
            spent.add_metric([one.study], one.epsilon)
            cap.add_metric([one.study], one.cap)
    yield from (spent, cap)


def _cases(reading: Reading) -> Iterator[Metric]:
    if reading.cases:
        cases = gauge("cases", "At the last `gliofed-site check`, by state.", "state")
        for state, count in sorted(reading.cases.items()):
            cases.add_metric([state], count)
        yield cases
    yield _one("patients_withdrawn", "Patients who have withdrawn.", reading.withdrawn)


def _machine(reading: Reading) -> Iterator[Metric]:
    machine = reading.machine
    yield _one("disk_free_bytes", "On the disk of the site's folder.", machine.disk_free_bytes)
    yield _one("disk_bytes", "Of the disk of the site's folder.", machine.disk_total_bytes)
    used = gauge("gpu_memory_used_bytes", "By whatever uses it.", "gpu")
    total = gauge("gpu_memory_bytes", "That it has.", "gpu")
    for number, gpu in enumerate(machine.gpus):
        used.add_metric([str(number)], gpu.used_bytes)
        total.add_metric([str(number)], gpu.total_bytes)
    yield from (used, total)


def _one(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gliofed_{name}", words, value=value)
