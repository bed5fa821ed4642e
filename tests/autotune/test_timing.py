"""Interleaving, medians and ratios on a clock that only the measured calls move."""

import gc
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.autotune import timing
from tropigrad.autotune.timing import Samples, interleaved

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20)


def samples(*seconds: float, rounds: tuple[int, ...] | None = None) -> Samples:
    return Samples(seconds, tuple(range(len(seconds))) if rounds is None else rounds, 1)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock.takes(s)` is a call that moves it."""

    class Clock:
        now = 0.0
        log: list[str]

        def takes(self, seconds, name=""):
            def call():
                self.log.append(name)
                self.now += seconds

            return call

    found = Clock()
    found.log = []
    monkeypatch.setattr(timing, "perf_counter", lambda: found.now)
    return found


@settings(deadline=None, max_examples=30)
@given(TIMES)
def test_the_interval_of_a_median_lies_within_the_samples(times):
    found = samples(*times).median
    assert min(times) <= found.low <= found.high <= max(times)
    assert found.value == pytest.approx(statistics.median(times))


@settings(deadline=None, max_examples=30)
@given(TIMES, st.floats(0.01, 100))
def test_a_call_that_takes_a_constant_multiple_has_that_ratio_without_spread(times, factor):
    found = samples(*(factor * t for t in times)).ratio(samples(*times))
    assert (found.low, found.value, found.high) == pytest.approx((factor,) * 3)


def test_a_ratio_pairs_the_rounds_so_that_drift_cancels():
    ours, theirs = samples(1, 2, 4, 8, 16), samples(3, 6, 12, 24, 48)
    assert theirs.ratio(ours).low == theirs.ratio(ours).high == 3
    assert theirs.median.low < theirs.median.high


def test_a_ratio_takes_the_rounds_that_both_joined():
    ours, theirs = samples(1, 100, 1, 100, 1), samples(5, 5, 5, rounds=(0, 2, 4))
    assert theirs.ratio(ours).value == 5


def test_a_ratio_of_samples_that_share_no_round_is_refused():
    with pytest.raises(ValueError, match="share no round"):
        samples(1, rounds=(0,)).ratio(samples(1, rounds=(1,)))


def test_short_calls_are_repeated_within_a_sample_and_timed_right(clock):
    found = interleaved({"a": clock.takes(0.001), "b": clock.takes(0.004)}, budget_s=1, sample_s=0.02)
    assert found["a"].calls_per_sample == 20
    assert found["b"].calls_per_sample == 5
    assert found["a"].median.value == pytest.approx(0.001)
    assert found["b"].ratio(found["a"]).value == pytest.approx(4)


def test_the_calls_take_turns_in_a_changing_order(clock):
    calls = {name: clock.takes(0.02, name) for name in "abc"}
    interleaved(calls, budget_s=3, sample_s=0.02)
    turns = ["".join(clock.log[i : i + 3]) for i in range(9, len(clock.log), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1


def test_the_budget_ends_the_rounds_but_not_before_the_least_number(clock):
    assert len(interleaved({"a": clock.takes(0.1)}, budget_s=2.05, min_rounds=3)["a"].seconds) == 21
    assert len(interleaved({"a": clock.takes(0.1)}, budget_s=0, min_rounds=3)["a"].seconds) == 3
    assert len(interleaved({"a": clock.takes(0.1)}, budget_s=99, max_rounds=5)["a"].seconds) == 5


def test_a_slow_call_joins_fewer_rounds_spread_evenly(clock):
    found = interleaved({"quick": clock.takes(0.01), "slow": clock.takes(2.0)}, budget_s=6, min_rounds=7)
    assert found["slow"].rounds == (0, 3, 6)
    assert len(found["quick"].rounds) >= 7
    assert found["slow"].ratio(found["quick"]).value == pytest.approx(200)


def test_a_call_known_to_be_long_is_not_made_to_warm_it(clock):
    interleaved({"slow": clock.takes(2.0, "slow")}, budget_s=6, min_rounds=3, known_s={"slow": 2.0})
    assert len(clock.log) == 3


def test_garbage_collection_is_as_before_also_after_an_error(clock):
    def fails():
        if not gc.isenabled():
            raise RuntimeError("in the rounds")

    assert gc.isenabled()
    interleaved({"a": clock.takes(0.1)}, budget_s=0)
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="in the rounds"):
        interleaved({"a": fails}, budget_s=0)
    assert gc.isenabled()
