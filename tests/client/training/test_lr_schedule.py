import pytest

from client.training.lr_schedule import Place, learning_rate
from common.study.protocol import TrainingOptions


def options(**changes: object) -> TrainingOptions:
    return TrainingOptions.model_validate(
        {"local_steps": 10, "learning_rate": 0.5, **changes},
    )


def test_a_constant_rate_is_what_the_protocol_says() -> None:
    assert {learning_rate(options(), step, 40) for step in range(40)} == {0.5}


def test_it_rises_then_falls_to_nothing() -> None:
    wanted = options(schedule="cosine", warmup_steps=4)
    rates = [learning_rate(wanted, step, 40) for step in range(40)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4] == 0.5
    assert rates[22] == pytest.approx(0.25)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_rounds_go_on_where_the_last_one_stopped() -> None:
    wanted = options(schedule="cosine")
    first, third = Place.of_round(1, 4, wanted), Place.of_round(3, 4, wanted)
    assert (first.done, first.total) == (0, 40)
    assert (third.done, third.total) == (20, 40)


def test_a_study_shorter_than_its_warm_up_has_rates() -> None:
    wanted = options(schedule="cosine", warmup_steps=100)
    assert learning_rate(wanted, 9, 10) == pytest.approx(0.05)
