"""What the sites are asked beside training: scores of the model, and histograms of their cohorts.

Histograms are asked for once, before the first round; scores whenever a round is due for them. No
quorum is needed for either: who did not answer is named, with why, and the study goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from common.messages.wire_format import OrderKind
from common.records.weights import Arrays
from common.study.cohort_histograms import check_counts
from common.study.protocol import StudyProtocol
from server.rounds.approvals import Approvals
from server.rounds.order_state import Answer, Task
from server.rounds.orders import Orders

Record = Callable[..., None]
"""Writes an event and its facts into the journal."""


class Surveys:
    """Asks the approved sites of one study, and records what they say."""

    def __init__(
        self, protocol: StudyProtocol, orders: Orders, approvals: Approvals, record: Record
    ) -> None:
        self._protocol = protocol
        self._orders = orders
        self._approvals = approvals
        self._record = record

    def describe(self) -> None:
        """Ask for the histograms that the protocol names."""
        options = self._protocol.statistics
        counts: dict[str, dict[str, list[float]]] = {}
        silent: dict[str, str] = {}

        def accept(answer: Answer) -> None:
            told = answer.report.statistics
            if told is None:
                silent[answer.site] = "not reported"
                return
            check_counts(told, options)
            counts[answer.site] = {name: list(values) for name, values in told.items()}

        dropped = self._ask("describe", 0, None, accept)
        self._record(
            "cohorts described",
            round=0,
            about=list(options.about),
            statistics=counts,
            deviation=round(options.deviation, 4),
            dropped={**dropped, **silent},
        )

    def evaluate(self, number: int, weights: Arrays) -> None:
        """Ask for the scores of the model after round ``number``."""
        scores: dict[str, dict[str, float]] = {}
        noise: dict[str, float] = {}
        seconds: dict[str, float] = {}

        def accept(answer: Answer) -> None:
            report = answer.report
            seconds[answer.site] = answer.seconds
            if report.dice is not None:
                scores[answer.site] = {str(region): dice for region, dice in report.dice.items()}
            if report.dice_noise is not None:
                noise[answer.site] = report.dice_noise

        dropped = self._ask("evaluate", number, weights, accept)
        self._record(
            "evaluated",
            round=number,
            dice=scores,
            dice_noise=noise,
            dropped=dropped,
            seconds=seconds,
        )

    def _ask(
        self,
        kind: OrderKind,
        number: int,
        weights: Arrays | None,
        accept: Callable[[Answer], None],
    ) -> dict[str, str]:
        task = Task(
            kind=kind,
            number=number,
            deadline_s=self._protocol.aggregation.deadline_s,
            weights=weights,
        )
        dropped = self._orders.give(
            task, self._approvals.current(), accept, meanwhile=self._approvals.look
        )
        self._approvals.take_back(dropped, number=number)
        return dropped
