"""Language models of the study, on a chain of order 2."""

import numpy as np
import pytest
import torch

from tropigrad.nn import ExplicitLanguageModel
from tropigrad.perf_reports.studies.explicit import language
from tropigrad.perf_reports.studies.explicit.language import Form


def test_models_are_told_with_their_loss(text):
    forms = (Form("sum", 2), Form("suffix", 2, True, "unigram"))
    records = {r["method"]: r for r in language.languages(text, forms, orders=(3,))}
    assert list(records) == [
        "sum, K = 2, the paper's form",
        "suffix, K = 2, weights, unigram smoothing",
        "Kneser–Ney, 3-gram",
    ]
    paper, ours, peer = records.values()
    assert paper["weights"] == [1, 1, 1]
    assert ours["cross_entropy"] < paper["cross_entropy"]
    assert abs(ours["cross_entropy"] - peer["cross_entropy"]) < 0.05
    for r in records.values():
        assert r["perplexity"] == pytest.approx(np.exp(r["cross_entropy"]))
        assert r["cross_entropy"] < np.log(7)


def test_all_models_predict_the_same_positions(text, monkeypatch):
    positions = []
    whole = ExplicitLanguageModel.cross_entropy
    monkeypatch.setattr(
        ExplicitLanguageModel,
        "cross_entropy",
        lambda model, tokens: positions.append(len(tokens) - model.radius) or whole(model, tokens),
    )
    monkeypatch.setattr(
        language.KneserNey,
        "cross_entropy",
        lambda model, tokens: positions.append(len(tokens) - model.order + 1) or 1.0,
    )
    list(language.languages(text, [Form("cat", 1), Form("suffix", 3)], orders=(2, 4)))
    assert positions == [len(text.test) - 8] * 4


def test_an_embedding_bag_starts_as_the_model(text):
    records = list(language.warm_language(text, 2, horizons=(20,), rates=(1e-9, 0.03), batch=256))
    at = {(r["start"], r["steps"]): r for r in records}
    assert len(at) == 6
    assert at["zero", 0]["test_loss"] == pytest.approx(np.log(7))
    assert at["zero", 20]["rate"] == 0.03
    assert at["zero", 20]["train_loss"] < at["zero", 0]["train_loss"]
    assert at["explicit, weights", 0]["test_loss"] < at["explicit, the paper's form", 0]["test_loss"]


@pytest.mark.parametrize("weights", [None, "search"], ids=["the paper's form", "weights"])
def test_a_layer_has_the_models_probabilities(text, weights):
    model = ExplicitLanguageModel(7, 2, "cat", 0.1, weights).partial_fit(text.train)
    model = model if weights is None else model.tune(text.valid)
    contexts = torch.tensor([[0, 3], [5, 5], [6, 1]])
    keys = contexts.flip(1) + 7 * torch.arange(2)
    log_p = language._Cat(*language._layer(model))(keys).log_softmax(1)
    torch.testing.assert_close(log_p.double(), model.predict_log_proba(contexts), rtol=0, atol=1e-5)
