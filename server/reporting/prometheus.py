"""The consortium in numbers for Prometheus: sites, rounds, scores, privacy, bytes.

Computed, when it is asked for, from the same reading that the dashboard shows. Labels are names of
studies, sites and regions and codes of a fixed list; no label and no number is about a single
patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from common.web.prometheus import Figures, counter, gauge
from server.reporting.live_status import Reading


class Consortium(Figures[Reading]):
    """What the dashboard shows; a damaged journal is told as ``gliofed_journal_readable 0``."""

    readable = ("journal_readable", "1 if the journal is whole.")

    def figures(self, reading: Reading) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "gliofed_journal_facts", "Facts in the journal.", value=len(reading.entries)
        )
        online = gauge("site_online", "1 if the site's connection is there.", "site")
        suspended = gauge("site_suspended", "1 if the site is suspended.", "site")
        paused = gauge("site_paused", "1 if the hospital says it stopped its site.", "site")
        for site in reading.sites:
            paused.add_metric([site.name], float(bool(site.paused)))
            if site.online is not None:
                online.add_metric([site.name], float(site.online))
            suspended.add_metric([site.name], float(bool(site.suspended)))
        yield online
        yield suspended
        yield paused
        yield from _studies(reading.studies)


def _studies(studies: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    closed = gauge("study_rounds_closed", "Closed rounds.", "study")
    planned = gauge("study_rounds_planned", "Rounds of the protocol.", "study")
    state = gauge("study_state", "1 for the state that the study is in.", "study", "state")
    seconds = gauge("study_round_seconds", "Of the last attempt that ended.", "study")
    scores = gauge("study_dice", "Last Dice that a site reported.", "study", "site", "region")
    spent = gauge("study_epsilon", "Of a site's worst patient, as it said.", "study", "site")
    cap = gauge("study_epsilon_cap", "The protocol's max_epsilon.", "study")
    alarms = gauge("study_journal_alarms", "Times that two journals did not fit.", "study")
    left_out = counter("study_left_out", "Rounds without a site.", "study", "site", "code")
    received = counter("study_received_bytes", "Bytes of accepted updates.", "study", "site")
    for name, report in studies.items():
        closed.add_metric([name], report["rounds_closed"])
        planned.add_metric([name], report["rounds_planned"])
        state.add_metric([name, report["state"]], 1)
        alarms.add_metric([name], len(report["journal_alarms"]))
        if report["max_epsilon"] is not None:
            cap.add_metric([name], report["max_epsilon"])
        ended = [one["seconds"] for one in report["attempts"] if one["seconds"] is not None]
        if ended:
            seconds.add_metric([name], ended[-1])
        for site, dice in (report["evaluations"] or [{"dice": {}}])[-1]["dice"].items():
            for region, score in dice.items():
                scores.add_metric([name, site, region], score)
        for site, said in report["privacy_spent"].items():
            spent.add_metric([name, site], said["epsilon"])
        missed: Counter[tuple[str, str]] = Counter()
        sent: Counter[str] = Counter()
        for one in report["attempts"]:
            missed.update(one["dropped"].items())
            sent.update({site: said["bytes"] or 0 for site, said in one["sites"].items()})
        for (site, code), count in sorted(missed.items()):
            left_out.add_metric([name, site, code], count)
        for site, total in sorted(sent.items()):
            received.add_metric([name, site], total)
    yield from (closed, planned, state, seconds, scores, spent, cap, alarms, left_out, received)
