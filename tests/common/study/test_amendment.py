"""What an amendment may change: one row a key, and every key has its row or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import ProtocolError
from common.study.amendment import FREE, HIGHER, LOWER, amended, changes, check_amendment
from common.study.protocol import StudyProtocol
from tests.consortia import tiny_protocol

OLD = tiny_protocol()


@pytest.mark.parametrize(
    "changed",
    [
        {"rounds": 9},
        {"rounds": 1},
        {"title": "Another"},
        {"expires": "2091-01-01"},
        {"training": {"learning_rate": 1e-2}},
        {"training": {"local_steps": 5}},
        {"aggregation": {"weights": {"north": 2.0}}},
        {"aggregation": {"quorum": 2}},
        {"privacy": {"max_epsilon": 3.0}},
        {"privacy": {"noise_multiplier": 3.0}},
        {"privacy": {"sampling_rate": 0.25}},
        {"reports": ["dice"]},
    ],
)
def test_what_may_change(changed: dict[str, Any]) -> None:
    new = amended(OLD, tiny_protocol(**changed))
    assert (new.version, new.supersedes) == (2, (OLD.digest,))
    assert new.digest != OLD.digest


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"network": {"size": "small"}}, "network.size"),
        ({"network": {"name": "unet"}}, "network.name"),
        ({"preprocessing": {"spacing_mm": 5.0}}, "preprocessing.spacing_mm"),
        ({"seed": 1}, "seed"),
        ({"initial_sha256": "a" * 64}, "initial_sha256"),
        ({"training": {"crop_size": [24, 16, 16]}}, "training.crop_size"),
        ({"training": {"trainable": ["norms"]}}, "training.trainable"),
        ({"training": {"sequence_dropout": 0.2}}, "training.sequence_dropout"),
        ({"training": {"personal_lambda": 0.1}}, "training.personal_lambda"),
        ({"aggregation": {"rule": "fedadam"}}, "aggregation.rule"),
        ({"aggregation": {"max_update_norm": 9.0}}, "aggregation.max_update_norm"),
        ({"privacy": {"max_epsilon": 9.0}}, "privacy.max_epsilon: 8.0 would become 9.0; it may"),
        ({"privacy": {"noise_multiplier": 1.0}}, "it may only become larger"),
        ({"privacy": {"sampling_rate": 0.6}}, "it may only become smaller"),
        ({"privacy": {"delta": 1e-2}}, "privacy.delta"),
        ({"privacy": {"mode": "none"}}, "privacy.mode"),
        ({"prediction": {"overlap": 0.25}}, "prediction.overlap"),
        ({"statistics": {"about": ["volumes"]}}, "statistics.about"),
        ({"messages": {"encoding": "int8"}}, "messages.encoding"),
    ],
)
def test_what_needs_a_new_study(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        amended(OLD, tiny_protocol(**changed, title="Also free"))
    assert words in raised.value.message
    assert "title" not in raised.value.message
    assert "new study" in raised.value.do


def test_reports_may_only_become_fewer() -> None:
    few = tiny_protocol(reports=["dice"])
    with pytest.raises(ProtocolError, match="fewer"):
        amended(few, tiny_protocol(reports=["dice", "case_count"]))


def test_an_amendment_that_changes_nothing_is_none() -> None:
    with pytest.raises(ProtocolError, match="changes nothing"):
        amended(OLD, OLD)


def test_versions_follow_each_other_also_for_who_missed_one() -> None:
    second = amended(OLD, tiny_protocol(rounds=5))
    third = amended(second, tiny_protocol(rounds=2, title="Another"))
    assert third.version == 3
    check_amendment(OLD, third)
    check_amendment(second, third)
    check_amendment(OLD, amended(second, tiny_protocol(rounds=2)))  # back to what it was
    other = amended(OLD, tiny_protocol(rounds=6))
    for before, after in ((other, third), (third, second), (third, third), (second, OLD)):
        with pytest.raises(ProtocolError, match="does not follow"):
            check_amendment(before, after)


def test_the_keys_that_are_named_exist() -> None:
    tables = {key: value for key, value in OLD.model_dump().items() if isinstance(value, dict)}
    known = OLD.model_dump().keys() | {f"{t}.{key}" for t, value in tables.items() for key in value}
    assert known >= FREE | LOWER | HIGHER


def test_a_protocol_without_a_version_is_written_as_before() -> None:
    assert not {"supersedes", "initial_sha256"} & OLD.model_dump(mode="json").keys()
    new = amended(OLD, tiny_protocol(rounds=3))
    assert new.model_dump(mode="json")["supersedes"] == [OLD.digest]
    assert StudyProtocol.model_validate(new.model_dump(mode="json")) == new
    assert dict(changes(OLD, new)) == {"rounds": (2, 3)}
