"""Methods are ranked where their intervals part, and nowhere else."""

import math

import pytest

from tropigrad.perf_reports.studies.ftprop.verdict import interval, spread, verdict


def test_the_interval_is_students():
    stats = pytest.importorskip("scipy.stats", reason="SciPy knows Student's t")
    for n in (2, 3, 5, 10):
        values = [0.8 + 0.01 * (i % 3) for i in range(n)]
        mean, sem = sum(values) / n, stats.sem(values)
        assert interval(values) == pytest.approx(stats.t.interval(0.95, n - 1, mean, sem), rel=1e-4)
    assert interval([0.5]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        pytest.param([0.90, 0.901, 0.902], [0.80, 0.801, 0.802], "soft_hinge is ahead of sste", id="first"),
        pytest.param([0.80, 0.801, 0.802], [0.90, 0.901, 0.902], "sste is ahead of soft_hinge", id="second"),
        pytest.param([0.90, 0.80, 0.70], [0.71, 0.81, 0.61], "soft_hinge and sste are not ranked", id="overlap"),
        pytest.param([0.9], [0.1], "are not ranked: one seed has no interval", id="one-seed"),
    ],
)
def test_a_ranking_needs_intervals_that_part(first, second, words):
    assert words in verdict({"soft_hinge": first, "sste": second, "ste": [0.0]})


def test_the_spread_of_one_seed_is_none():
    assert spread([0.5]) == "50.00%"
    assert spread([0.5, 0.6]) == "55.00 ± 7.07 %"
