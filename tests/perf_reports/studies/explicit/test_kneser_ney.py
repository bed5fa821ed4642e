"""Interpolated Kneser–Ney: a distribution, nltk's on a tiny text, and what it predicts."""

import numpy as np
import pytest

from tropigrad.perf_reports.studies.explicit.kneser_ney import KneserNey

TOKENS = np.random.default_rng(1).integers(0, 5, 60)


def all_grams(order):
    return np.arange(5**order)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("discounts", [None, (0.3, 0.5, 0.7, 0.9)], ids=["estimated", "given"])
def test_is_a_distribution_after_every_history_seen_or_not(order, discounts):
    p = KneserNey(TOKENS, 5, order, discounts).probabilities(all_grams(order)).reshape(-1, 5)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)


def test_is_that_of_nltk():
    lm = pytest.importorskip("nltk.lm", reason="nltk has another Kneser–Ney")
    util = pytest.importorskip("nltk.util", reason="and all n-grams of a text")
    theirs = lm.KneserNeyInterpolated(3, discount=0.1)
    words = [str(token) for token in TOKENS]
    theirs.fit([util.everygrams(words, max_len=3)], vocabulary_text=words)
    theirs.vocab = lm.Vocabulary(words, unk_cutoff=1)
    grams = np.unique([25 * a + 5 * b + c for a, b, c in zip(TOKENS, TOKENS[1:], TOKENS[2:], strict=False)])
    expected = [theirs.score(str(g % 5), [str(g // 25), str(g // 5 % 5)]) for g in grams]
    ours = KneserNey(TOKENS, 5, 3, (0, 0.1, 0.1)).probabilities(grams)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_an_unseen_history_leaves_the_lower_order():
    tokens = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2])  # 4 was never seen
    model = KneserNey(tokens, 5, 2, (0.5, 0.5))
    after_4 = model.probabilities(4 * 5 + np.arange(5))
    counts = np.array([2, 1, 1, 1, 0])  # how many tokens stood before 0 (2 and 3), 1, 2 and 3
    _, d, grams, continuation, _, mass, fan_out = model.levels[0]
    assert (grams.tolist(), continuation.tolist()) == ([0, 1, 2, 3], counts[:4].tolist())
    expected = (np.maximum(counts - d, 0) + d * fan_out[0] / 5) / mass[0]
    np.testing.assert_allclose(after_4, expected, rtol=1e-12)


def test_the_cross_entropy_is_the_mean_over_the_grams():
    model = KneserNey(TOKENS, 5, 2)
    grams = 5 * TOKENS[:-1] + TOKENS[1:]
    assert model.cross_entropy(TOKENS) == pytest.approx(-np.log(model.probabilities(grams)).mean())
