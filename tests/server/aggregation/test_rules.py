"""One suite that every aggregation rule passes; ``cases`` says which law holds for which rule."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import FederationError
from common.records.weights import Arrays, digest, load, save
from server.aggregation import RULES
from server.aggregation.scaffold import control
from tests.server.aggregation.cases import (
    CASES,
    Case,
    Memory,
    Reply,
    Round,
    expected,
    flat,
    fold,
)

finite = st.floats(-1e3, 1e3, width=32)
updates = st.fixed_dictionaries(
    {"a": arrays(np.float32, (2, 3), elements=finite), "b": arrays(np.float32, (), elements=finite)}
)
weights = st.sampled_from([1.0, 1.0, 2.5]) | st.floats(1e-2, 1e2)
steps = st.integers(1, 100)


@pytest.fixture(params=CASES, ids=[case.rule for case in CASES], scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def holds(law: str) -> Any:
    """Run a test for each rule for which the table says that ``law`` holds."""
    rules = [case for case in CASES if getattr(case, law)]
    return pytest.mark.parametrize("case", rules, ids=[case.rule for case in rules])


@st.composite
def rounds(draw: st.DrawFn, case: Case, *, same_steps: bool = False) -> Round:
    count = draw(st.integers(case.least, case.least + 3))
    common = draw(steps)
    return [
        Reply(
            f"site-{number}",
            draw(updates),
            draw(weights),
            common if same_steps else draw(steps),
        )
        for number in range(count)
    ]


def close(one: Arrays, other: Arrays, *, scale: float, tolerance: float = 1e-6) -> bool:
    """Return whether two results differ by less than ``tolerance`` of the largest number folded."""
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], rtol=tolerance, atol=tolerance * scale) for name in one
    )


def largest(replies: Round) -> float:
    return max(float(np.abs(flat(reply.update)).max()) for reply in replies)


def test_every_rule_of_the_protocol_is_here_and_has_a_case() -> None:
    assert [case.rule for case in CASES] == list(RULES)
    for case in CASES:
        assert case.parsed().rule == case.rule
    literal = CASES[0].parsed().__class__.model_json_schema()["properties"]["rule"]["enum"]
    assert set(literal) == set(RULES)


@settings(max_examples=15)
@given(data=st.data())
def test_it_is_what_the_formula_says_round_after_round(case: Case, data: st.DataObject) -> None:
    memory: Memory = {}
    state: Arrays = {}
    for _ in range(3):
        replies = data.draw(rounds(case))
        # A weight is a site's for the whole study.
        replies = [replace(reply, weight=1.0 + k) for k, reply in enumerate(replies)]
        if "krum" in case.rule:
            # With equal distances another rounding chooses another site, as near as the first.
            noise = np.random.default_rng(0)
            for reply in replies:
                shift = noise.normal(size=(2, 3)).astype(np.float32)
                reply.update["a"] += np.float32(300) * shift
        rule = fold(case.make(state), replies)
        wanted = expected(case, replies, memory)
        found, state = flat(rule.result()), rule.state()
        # Iterating multiplies rounding where a few sites agree to the last bit.
        tolerance = 1e-3 if case.rule == "geometric_median" else 3e-6
        # The adaptive rules move a weight by about their rate, 1 or less, whatever the updates.
        scale = 1.0 if "second" in case.kept else largest(replies)
        assert np.allclose(found, wanted, rtol=tolerance, atol=tolerance * scale)


def test_it_is_what_the_formula_says_for_arrays_of_many_blocks(case: Case) -> None:
    rng = np.random.default_rng(8)
    replies = [
        Reply(
            f"site-{number}",
            {
                "large": rng.normal(size=(2, 9_001)).astype(np.float32),
                "none": np.zeros((0, 3), np.float32),
            },
            weight=1.0 + number % 3,
        )
        for number in range(7)
    ]
    for options in ({}, {"quorum": 7}):
        result = case.combine(replies, **options)
        assert result["none"].shape == (0, 3)
        assert np.allclose(
            flat(result), expected(case, replies, {}, **options), rtol=1e-5, atol=1e-6
        )


@settings(max_examples=15)
@given(data=st.data())
def test_the_order_of_sites_does_not_matter(case: Case, data: st.DataObject) -> None:
    replies = data.draw(rounds(case))
    first = case.combine(replies)
    for order in itertools.islice(itertools.permutations(replies), 1, 120, 17):
        other = case.combine(list(order))
        if case.exact:
            assert all(np.array_equal(first[name], other[name]) for name in first)
        assert close(other, first, scale=largest(replies))


def test_the_order_of_sites_changes_no_bit_of_numbers_of_like_size(case: Case) -> None:
    rng = np.random.default_rng(5)
    state: Arrays = {}
    for _ in range(2):
        replies = [
            Reply(
                f"site-{number}",
                {"a": rng.normal(size=(40, 50)).astype(np.float32)},
                weight=float(rng.uniform(0.5, 4.0)),
                steps=int(rng.integers(1, 90)),
            )
            for number in range(7)
        ]
        first = fold(case.make(state), replies)
        for _ in range(4):
            other = fold(case.make(state), [replies[at] for at in rng.permutation(7)])
            assert digest(other.result()) == digest(first.result())
            assert digest(other.state()) == digest(first.state())
        state = first.state()


@holds("identity")
@settings(max_examples=15)
@given(update=updates, data=st.data())
def test_what_all_sites_send_is_the_result(case: Case, update: Arrays, data: st.DataObject) -> None:
    replies = data.draw(rounds(case, same_steps=True))
    same = [replace(reply, update=update) for reply in replies]
    assert close(case.combine(same), update, scale=largest(same))
    if case.least == 1:
        assert close(case.combine(same[:1]), update, scale=largest(same))


@holds("between")
@settings(max_examples=15)
@given(data=st.data())
def test_the_result_lies_between_the_updates(case: Case, data: st.DataObject) -> None:
    replies = data.draw(rounds(case, same_steps=True))
    result = flat(case.combine(replies))
    stack = np.stack([flat(reply.update) for reply in replies])
    rounding = 1e-6 * largest(replies)
    assert (result >= stack.min(0) - rounding).all()
    assert (result <= stack.max(0) + rounding).all()


@holds("scales")
@settings(max_examples=15)
@given(data=st.data(), power=st.integers(-8, 8))
def test_larger_updates_give_the_same_result_larger(
    case: Case, data: st.DataObject, power: int
) -> None:
    replies = data.draw(rounds(case))
    # Numbers near the smallest of float32 lose bits when they are halved.
    smallest = min(abs(x) for r in replies for x in [1.0, *flat(r.update)] if x)
    assume(smallest > 1e-30)
    factor = np.float32(2.0**power)
    scaled = [
        replace(reply, update={n: np.asarray(v * factor) for n, v in reply.update.items()})
        for reply in replies
    ]
    result = {name: np.asarray(v * factor) for name, v in case.combine(replies).items()}
    assert close(case.combine(scaled), result, scale=largest(scaled))


@holds("scales")
@settings(max_examples=10)
@given(data=st.data())
def test_weights_are_relative(case: Case, data: st.DataObject) -> None:
    replies = data.draw(rounds(case))
    heavier = [replace(reply, weight=4 * reply.weight) for reply in replies]
    assert close(case.combine(heavier), case.combine(replies), scale=largest(replies))


def test_weights_count_where_the_table_says_so(case: Case) -> None:
    numbers = np.arange(case.least + 2, dtype=np.float32) ** 2
    replies = [Reply(f"site-{k}", {"a": np.full(2, x, np.float32)}) for k, x in enumerate(numbers)]
    # More than half of all weight, so that medians must follow.
    heavy = [*replies[:-1], replace(replies[-1], weight=20.0)]
    changed = not np.array_equal(case.combine(replies)["a"], case.combine(heavy)["a"])
    assert changed == case.weighted


@settings(max_examples=10)
@given(data=st.data())
def test_names_shapes_and_dtype_are_those_of_the_updates(case: Case, data: st.DataObject) -> None:
    rule = fold(case.make(), data.draw(rounds(case)))
    result = rule.result()
    assert {name: value.shape for name, value in result.items()} == {"a": (2, 3), "b": ()}
    for value in (*result.values(), *rule.state().values()):
        assert value.dtype == np.float32
        assert np.isfinite(value).all()


@settings(max_examples=10)
@given(data=st.data())
def test_updates_and_state_are_left_as_they_were(case: Case, data: st.DataObject) -> None:
    state = fold(case.make(), data.draw(rounds(case))).state()
    replies = data.draw(rounds(case))
    given_ = [state, *(reply.update for reply in replies)]
    before = [{name: value.copy() for name, value in part.items()} for part in given_]
    rule = fold(case.make(state), replies)
    first, after = rule.result(), rule.state()
    for part, kept in zip(given_, before, strict=True):
        assert part.keys() == kept.keys()
        assert all(np.array_equal(part[name], kept[name]) for name in kept)
    # What is handed in or out may be overwritten without changing the rule.
    wanted = [{name: value.copy() for name, value in part.items()} for part in (first, after)]
    for part in (*(reply.update for reply in replies), first, after):
        for value in part.values():
            value[...] = 77
    for part, kept in zip((rule.result(), rule.state()), wanted, strict=True):
        assert part.keys() == kept.keys()
        assert all(np.array_equal(part[name], kept[name]) for name in kept)


@settings(max_examples=15)
@given(data=st.data())
def test_a_study_resumed_from_saved_state_gives_the_same_bits(
    case: Case, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    straight: Arrays = {}
    resumed: Arrays = {}
    for _ in range(3):
        replies = data.draw(rounds(case))
        one, other = fold(case.make(straight), replies), fold(case.make(resumed), replies)
        first, second = one.result(), other.result()
        straight = one.state()
        assert {name.partition("/")[0] for name in straight} == set(case.kept)
        save(path, other.state(), {})
        resumed = load(path)
        assert straight.keys() == resumed.keys()
        for name in first:
            assert first[name].tobytes() == second[name].tobytes()
        for name in straight:
            assert straight[name].tobytes() == resumed[name].tobytes()


def test_asking_twice_changes_nothing(case: Case) -> None:
    replies = [Reply(f"site-{k}", {"a": np.full(3, k, np.float32)}) for k in range(case.least)]
    rule = fold(case.make(fold(case.make(), replies).state()), replies)
    first, state = rule.result(), rule.state()
    assert np.array_equal(rule.result()["a"], first["a"])
    assert all(np.array_equal(value, state[name]) for name, value in rule.state().items())


ONE = {"a": np.ones(2, np.float32), "b": np.ones((), np.float32)}
NAN, INF = np.full(2, np.nan, np.float32), np.array([1, np.inf], np.float32)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("z", ONE, weight=0.0), "weight must be positive"),
        (Reply("z", ONE, weight=-1.0), "weight must be positive"),
        (Reply("z", ONE, weight=float("nan")), "weight must be positive"),
        (Reply("z", ONE, weight=float("inf")), "weight must be positive"),
        (Reply("z", ONE, weight=float("-inf")), "weight must be positive"),
        (Reply("z", ONE, steps=0), "local steps must be positive"),
        (Reply("z", ONE, steps=-3), "local steps must be positive"),
        (Reply("z", {**ONE, "a": NAN}), "'a' holds a value that is not finite"),
        (Reply("z", {**ONE, "a": INF}), "'a' holds a value that is not finite"),
        (Reply("z", {**ONE, "b": np.float32(-np.inf).reshape(())}), "'b' holds a value"),
        (Reply("z", {"a": ONE["a"]}), "'b' is missing"),
        (Reply("z", {**ONE, "c": ONE["b"]}), "'c' is not in those before"),
        (Reply("z", {**ONE, "a": np.ones(3, np.float32)}), r"shape \(3,\), before \(2,\)"),
        (Reply("z", {**ONE, "a": np.ones(2)}), "float64, not float32"),  # type: ignore[dict-item]
        (Reply("z", {}), "no array"),
        (Reply("site-0", ONE), "has one in this round already"),
    ],
)
def test_an_unfit_update_is_refused_and_changes_nothing(
    case: Case, reply: Reply, said: str
) -> None:
    good = [Reply(f"site-{k}", ONE) for k in range(case.least)]
    rule, undisturbed = fold(case.make(), good), fold(case.make(), good)
    with pytest.raises(FederationError, match=said) as caught:
        fold(rule, [reply])
    assert reply.site in caught.value.message
    assert caught.value.do
    for found, wanted in (
        (rule.result(), undisturbed.result()),
        (rule.state(), undisturbed.state()),
    ):
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], wanted[name]) for name in found)


def test_an_update_refused_first_leaves_no_trace(case: Case) -> None:
    rule = case.make()
    with pytest.raises(FederationError, match="not finite"):
        fold(rule, [Reply("site-0", {"other": NAN})])
    fold(rule, [Reply(f"site-{k}", ONE) for k in range(case.least)])
    assert rule.result().keys() == ONE.keys()


def test_too_few_updates_are_no_result(case: Case) -> None:
    with pytest.raises(FederationError, match="no update"):
        case.make().result()
    with pytest.raises(FederationError, match="no update"):
        case.make().state() if case.kept else case.make().result()
    if case.least > 1:
        rule = fold(case.make(), [Reply(f"site-{k}", ONE) for k in range(case.least - 1)])
        with pytest.raises(FederationError, match=f"needs {case.least} updates"):
            rule.result()


@pytest.mark.parametrize(
    "state",
    [
        {"unknown/a": ONE["a"]},
        {"momentum": ONE["a"]},
        {"/a": ONE["a"]},
    ],
)
def test_a_state_that_no_rule_wrote_is_refused(case: Case, state: Arrays) -> None:
    with pytest.raises(FederationError, match="cannot go on from the state"):
        case.make(state)


@pytest.mark.parametrize("case", [c for c in CASES if c.kept], ids=lambda c: c.rule)
@pytest.mark.parametrize("bad", [NAN, INF, np.ones(2)], ids=["nan", "inf", "float64"])
def test_a_state_of_unfit_numbers_is_refused(case: Case, bad: Any) -> None:
    state = fold(case.make(), [Reply("site-0", ONE)]).state()
    for name in state:
        with pytest.raises(FederationError, match=f"'{name}' is not finite float32"):
            case.make({**state, name: bad})


@pytest.mark.parametrize("case", [c for c in CASES if c.kept], ids=lambda c: c.rule)
def test_a_state_of_another_network_is_refused(case: Case) -> None:
    state = fold(case.make(), [Reply("site-0", ONE)]).state()
    with pytest.raises(FederationError, match="'b' is missing"):
        fold(case.make(state), [Reply("site-0", {"a": ONE["a"]})])


@pytest.mark.parametrize("case", [c for c in CASES if "second" in c.kept], ids=lambda c: c.rule)
@pytest.mark.parametrize(
    "second", [{"second/a": np.ones(3, np.float32)}, {"second/a": -ONE["a"]}, {}]
)
def test_a_state_whose_parts_do_not_fit_is_refused(case: Case, second: Arrays) -> None:
    with pytest.raises(FederationError, match="cannot go on from the state"):
        case.make({"momentum/a": ONE["a"], **second})


def test_small_updates_are_not_lost_beside_large_ones() -> None:
    big, small = np.full(1, 1e8, np.float32), np.ones(1, np.float32)
    sent = [big, *[small] * 8, -big]
    replies = [Reply(f"site-{k}", {"a": value}) for k, value in enumerate(sent)]
    for case in CASES[:3]:
        assert case.combine(replies)["a"][0] == pytest.approx(0.8)


def test_a_result_beyond_float32_is_refused() -> None:
    case = next(case for case in CASES if case.rule == "fedavgm")
    huge = [Reply("a", {"a": np.full(1, 3e38, np.float32)})]
    with pytest.raises(FederationError, match="not finite"):
        fold(case.make(fold(case.make(), huge).state()), huge).result()


def test_half_of_the_weight_is_half_in_whatever_order_it_adds_up() -> None:
    """0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last bit; both are half of 1.2 here."""
    case = next(case for case in CASES if case.rule == "coordinate_median")
    for order in itertools.permutations([0.1, 0.2, 0.3]):
        replies = [
            Reply(f"site-{number}", {"a": np.full(1, number, np.float32)}, weight)
            for number, weight in enumerate((*order, 0.6))
        ]
        assert case.combine(replies)["a"].tolist() == [2.5]


def test_fednova_undoes_the_pull_of_a_site_that_takes_more_steps() -> None:
    slow = Reply("slow", {"a": np.array([1.0, 0.0], np.float32)}, steps=1)
    fast = Reply("fast", {"a": np.array([0.0, 9.0], np.float32)}, steps=9)
    fednova = next(case for case in CASES if case.rule == "fednova")
    assert fednova.combine([slow, fast])["a"].tolist() == [2.5, 2.5]


def test_scaffold_steps_by_the_servers_learning_rate() -> None:
    case = next(case for case in CASES if case.rule == "scaffold")
    assert case.combine([Reply("a", ONE)], server_learning_rate=0.5)["a"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("weights", [{}, {"a": 3.0, "d": 0.5}])
def test_scaffold_hands_out_the_mean_of_all_sites_control_variates(
    weights: dict[str, float],
) -> None:
    """Sites that keep their own c_i, as the paper has it, agree with the coordinator on c."""
    case = next(case for case in CASES if case.rule == "scaffold")
    rng, rate, counts = np.random.default_rng(4), 0.05, {"a": 7, "b": 3, "c": 7, "d": 1}
    own: dict[str, Any] = {}
    c: Any = np.zeros(20)
    state: Arrays = {}
    for attendance in (["a", "b"], ["b", "c"], ["a"], ["d", "c", "b", "a"]):
        replies = []
        for site in attendance:
            gradients = rng.normal(size=(counts[site], 20))
            corrected = gradients - own.get(site, 0) + c
            update = (-rate * corrected.sum(0)).astype(np.float32)
            replies.append(Reply(site, {"w": update}, weights.get(site, 1.0), counts[site]))
            own[site] = own.get(site, 0) - c - update / (counts[site] * rate)
            # With option II this is the mean of the gradients without correction.
            assert np.allclose(own[site], gradients.mean(0), atol=1e-5)
        state = fold(case.make(state), replies).state()
        c = control(state, learning_rate=rate)["w"]
        shares = {site: weights.get(site, 1.0) for site in own}
        mean = sum(shares[site] * own[site] for site in own) / sum(shares.values())
        assert np.allclose(c, mean, atol=1e-5)
    assert control({}, learning_rate=rate) == {}


def test_a_state_is_a_file_that_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    for case in CASES:
        save(path, fold(case.make(), [Reply(f"s{k}", ONE) for k in range(case.least)]).state(), {})
        assert set(load(path)) == {
            f"{kind}/{name}"
            for kind in case.kept
            for name in (["s0"] if kind == "weight" else ["a", "b"])
        }
