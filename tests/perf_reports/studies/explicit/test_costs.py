"""The costs of the kernels on real data: the contenders of a table compute one thing."""

import numpy as np
import pytest
import torch

from tropigrad.perf_reports.studies.explicit import costs


def test_sums_of_classes_agree(bags):
    pytest.importorskip("sklearn", reason="MultinomialNB comes with scikit-learn")
    x, y = bags()
    calls = costs.sums_of_classes(x, y)
    ours = calls["ours, integers"]().T.numpy()
    assert np.array_equal(calls["torch, one-hot product in float32"]().numpy(), ours)
    for name in ("MultinomialNB on float64", "MultinomialNB on the bytes"):
        assert np.array_equal(calls[name]().feature_count_, ours[:3])


def test_counts_of_pairs_agree(text):
    pytest.importorskip("scipy", reason="SciPy is a contender")
    shape = costs.K * text.vocabulary, text.vocabulary
    calls = costs.counts_of_pairs(*costs.pairs_of(text), shape)
    ours = costs.as_csr(calls["ours"](), shape)
    assert np.array_equal(ours.to_dense().numpy(), calls["SciPy, COO to CSR"]().toarray())
    keys, counts = calls["torch.unique of packed keys"]()
    assert torch.equal(counts, ours.values())
    assert torch.equal(keys % text.vocabulary, ours.col_indices().long())


@pytest.mark.parametrize("backward", [False, True])
def test_readouts_agree(text, backward, monkeypatch):
    monkeypatch.setattr(costs, "POSITIONS", 50)
    losses = []
    for name in ("gather_softmax", "cross_entropy"):
        owner = costs if name == "gather_softmax" else costs.F
        function = getattr(owner, name)

        def told(*arguments, function=function, **options):
            losses.append(function(*arguments, **options))
            return losses[-1]

        monkeypatch.setattr(owner, name, told)
    for call in costs.readouts(text, *costs.pairs_of(text), backward).values():
        call()
    sparse, dense, eager = losses
    assert torch.allclose(sparse, eager, rtol=1e-5)
    assert torch.allclose(dense, eager, rtol=1e-5)


def test_a_table_has_a_record_a_contender():
    records = list(costs._table("sums", {"ours": lambda: sum(range(100)), "theirs": lambda: sum(range(9000))}, 0.2))
    assert [r["contender"] for r in records] == ["ours", "theirs"]
    assert records[0]["times_ours"] == 1
    assert all(len(r["seconds"]) == len(r["rounds"]) >= 1 for r in records)
