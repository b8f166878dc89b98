"""The noise is in what leaves: measured on the reply to an order, after everything between.

An order goes the whole way: consent, ledger, training, what is kept, encoding, the check of what
leaves, decoding. The sampling rate is so small that nobody is drawn, as a rule; then the update is
the noise of its steps and nothing else, over thousands of weights, and its size is known.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pytest

from client.privacy import budget_caps, dp_sgd
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from common.messages.wire_format import unpack_report
from common.records.weights import Arrays
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.consortia import approve, order, tiny_protocol

SIGMA: Final = 1.5
CLIPPING_NORM: Final = 0.02
RATE: Final = 1e-4
RATE_OF_LEARNING: Final = 1e-5
STEPS: Final = 2
EXPECTED: Final = RATE_OF_LEARNING * SIGMA * CLIPPING_NORM / (RATE * 6) * math.sqrt(STEPS)
"""Standard deviation of a weight's update: two plain steps, each divided by the expected draw."""

PATHS: Final[dict[str, dict[str, Any]]] = {
    "as it is": {},
    "float16": {"messages": {"encoding": "float16"}},
    "int8": {"messages": {"encoding": "int8"}},
    "clip by layer": {"privacy": {"clipping": "per_layer"}},
    "automatic clip": {"privacy": {"clipping": "automatic"}},
    "low rank": {"training": {"trainable": ["low_rank"]}},
}


def study(**changes: Any) -> StudyProtocol:
    base: dict[str, Any] = {
        "training": {
            "optimizer": "sgd",
            "momentum": 0.0,
            "learning_rate": RATE_OF_LEARNING,
            "local_steps": STEPS,
        },
        "privacy": {
            "noise_multiplier": SIGMA,
            "clipping_norm": CLIPPING_NORM,
            "sampling_rate": RATE,
            "nominal_patients": 6,
        },
    }
    for table, values in changes.items():
        base[table] = {**base.get(table, {}), **values}
    return tiny_protocol(**base)


def left(site: Site, consortium: Consortium, protocol: StudyProtocol) -> Arrays:
    """Return the update of round 1 as the coordinator has it."""
    approve(site, consortium, protocol)
    weights = round_training.starting_weights(protocol)
    content = order(consortium.identity, protocol, "train", number=1, weights=weights)
    report, arrays = unpack_report(
        Participation(site).answer(content),
        template=round_training.update_shapes(protocol, weights),
        max_norm=1e6,
        options=protocol.messages,
    )
    assert report.status == "done", report.reason
    return arrays


def flat(arrays: Arrays) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([array.ravel() for array in arrays.values()]).astype(np.float64)


@pytest.mark.parametrize("path", PATHS)
def test_the_noise_that_was_charged_is_in_what_leaves(
    site: Site, consortium: Consortium, path: str
) -> None:
    protocol = study(**PATHS[path])
    update = flat(left(site, consortium, protocol))
    error = 1 / math.sqrt(2 * len(update))
    measured = float(update.std()) / EXPECTED
    assert abs(measured - 1) < 5 * error + 0.01, f"{measured:.3f} of the noise, ± {error:.3f}"
    assert abs(update.mean()) < 5 * EXPECTED / math.sqrt(len(update))
    with budget_caps.open_ledger(site) as ledger:
        charged = [fact for fact in ledger.facts() if fact.purpose == "training"]
    assert {fact.mechanism.noise_multiplier for fact in charged} == {SIGMA}
    assert {fact.mechanism.sampling_rate for fact in charged} == {RATE}


def test_under_adam_the_noise_alone_decides(site: Site, consortium: Consortium) -> None:
    """Its first step is the learning rate times a sign, which the noise tosses."""
    protocol = study(training={"optimizer": "adam", "local_steps": 1})
    update = flat(left(site, consortium, protocol))
    assert np.abs(update).max() <= RATE_OF_LEARNING * 1.01
    positive = int((update > 0).sum())
    assert abs(positive - len(update) / 2) < 5 * math.sqrt(len(update)) / 2


def test_the_measurement_would_see_a_tenth_less(
    site: Site, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dp_sgd.noise
    monkeypatch.setattr(dp_sgd, "noise", lambda *given, **ways: 0.9 * real(*given, **ways))
    update = flat(left(site, consortium, study()))
    assert float(update.std()) / EXPECTED < 1 - 5 / math.sqrt(2 * len(update)) - 0.01
