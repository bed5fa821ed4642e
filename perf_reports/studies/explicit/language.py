"""Language models of the study: counts as softmax weights, the paper's way and with weights; Kneser–Ney beside them.

Counts are of the training text, what is searched is searched on the validation text, figures are of the test text: the
mean over its positions from the 8th on, which all models predict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....nn import ExplicitLanguageModel
from ...texts import Text
from . import methods
from .kneser_ney import KneserNey
from .methods import Record
from .warm_starts import Descent

_SKIPPED = 8


@dataclass(frozen=True)
class Form:
    """One ExplicitLanguageModel; the paper's has no weights."""

    mode: Any
    radius: int
    weighted: bool = False
    prior: Any = "uniform"

    @property
    def name(self) -> str:
        how = "weights" if self.weighted else "the paper's form"
        return f"{self.mode}, K = {self.radius}, {how}" + (", unigram smoothing" if self.prior == "unigram" else "")


FORMS = {
    "characters": (
        *(Form("sum", K) for K in (1, 2, 4, 8)),
        *(Form("cat", K) for K in (2, 4, 8)),
        Form("suffix", 5),
        Form("cat", 8, True),
        *(Form("suffix", K, True, "unigram") for K in (1, 2, 3, 4, 5)),
    ),
    "words": (
        *(Form("cat", K) for K in (1, 4)),
        Form("sum", 4),
        Form("cat", 1, True, "unigram"),
        Form("cat", 4, True, "unigram"),
        *(Form("suffix", K, True, "unigram") for K in (2, 3, 4)),
    ),
}
ORDERS = {"characters": (2, 3, 4, 5, 6), "words": (2, 3, 4)}


def languages(text: Text, forms: Sequence[Form] | None = None, orders: Sequence[int] | None = None) -> Iterator[Record]:
    """A record for each model: its cross-entropies in nats and perplexity, and seconds of counting and of searching."""
    V = text.vocabulary
    base = {"kind": "language", "dataset": text.name, "unit": text.unit, "vocabulary": V, "tokens": len(text.train)}
    for form in FORMS[text.unit] if forms is None else forms:
        weights = "search" if form.weighted else None
        model = ExplicitLanguageModel(V, form.radius, form.mode, "search", weights, smoothing_prior=form.prior)
        start = methods.clock()
        model.partial_fit(text.train)
        counted = methods.clock()
        model.tune(text.valid)
        searched = methods.clock()
        loss = model.cross_entropy(text.test[_SKIPPED - form.radius :])
        yield {
            **base,
            "method": form.name,
            "role": "ours" if form.weighted else "paper",
            "context": form.radius,
            "counting_seconds": counted - start,
            "searching_seconds": searched - counted,
            "smoothing": model.smoothing_,
            "weights": None if model.weights_ is None else [round(w, 4) for w in model.weights_.tolist()],
            "cross_entropy": loss,
            "perplexity": math.exp(loss),
        }
    for order in ORDERS[text.unit] if orders is None else orders:
        start = methods.clock()
        baseline = KneserNey(text.train, V, order)
        counted = methods.clock()
        loss = baseline.cross_entropy(text.test[_SKIPPED - order + 1 :])
        yield {
            **base,
            "method": f"Kneser–Ney, {order}-gram",
            "role": "peer",
            "context": order - 1,
            "counting_seconds": counted - start,
            "searching_seconds": 0.0,
            "cross_entropy": loss,
            "perplexity": math.exp(loss),
        }


# ------------------------------------------------------------------------------------------------ a warm start


class _Cat(nn.Module):
    """Logits of a context as the sum of a row for each (distance, token), and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.rows = nn.EmbeddingBag(weight.shape[0], weight.shape[1], mode="sum", _weight=weight.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, keys: Tensor) -> Tensor:
        return self.rows(keys) + self.bias


def warm_language(
    text: Text,
    radius: int = 8,
    *,
    horizons: Sequence[int] = (10, 100, 500),
    rates: Sequence[float] = (1e-4, 1e-3, 3e-3, 1e-2, 1e-1),
    batch: int = 1024,
    watched: int = 20_000,
) -> Iterator[Record]:
    """An EmbeddingBag of (distance, token) rows by Adam: from the weights of "cat", and from zero.

    The rate is that of the least held-out loss at each horizon.
    """
    V = text.vocabulary

    def rows(tokens: np.ndarray) -> tuple[Tensor, Tensor]:
        windows = torch.from_numpy(np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(tokens, radius + 1)))
        return windows[:, :radius].flip(1) + V * torch.arange(radius), windows[:, radius]

    train, valid, test = rows(text.train), rows(text.valid[: watched + radius]), rows(text.test[: watched + radius])
    sample = train[0][:watched], train[1][:watched]
    starts: dict[str, nn.Module] = {"zero": _Cat(torch.zeros(radius * V, V), torch.zeros(V))}
    ways: tuple[tuple[str, Any], ...] = (("explicit, the paper's form", None), ("explicit, weights", "search"))
    for name, weights in ways:
        model = ExplicitLanguageModel(V, radius, "cat", "search", weights).partial_fit(text.train).tune(text.valid)
        starts[name] = _Cat(*_layer(model))
    for start, network in starts.items():
        trials: dict[tuple[float, int], tuple[float, Record]] = {}
        for rate in rates:
            descent = Descent(network, train, rate, batch, 0)
            for steps in (0, *horizons):
                descent.advance(steps - descent.steps)
                losses = {
                    "train_loss": descent.judged(sample)[0],
                    "test_loss": descent.judged(test)[0],
                    "seconds": descent.seconds,
                }
                trials[rate, steps] = descent.judged(valid)[0], losses
        for steps in (0, *horizons):
            rate = min(rates, key=lambda rate: trials[rate, steps][0])
            settings = {"start": start, "steps": steps, "rate": rate, "batch": batch}
            yield {
                "kind": "warm_language",
                "dataset": text.name,
                "radius": radius,
                **settings,
                **trials[rate, steps][1],
            }


def _layer(model: ExplicitLanguageModel) -> tuple[Tensor, Tensor]:
    """Rows [K V, V] and bias [V] with the logits of a model of mode "cat"."""
    V = model.vocabulary
    weights, smoothing = model.weights_, model.smoothing_
    assert weights is not None
    assert smoothing is not None
    counts = model.counts_.to_dense().double() + smoothing
    weight = weights[:-1].repeat_interleave(V)[:, None] * counts.log()
    bias = -weights[-1] * counts.sum(0).log()
    center = weight.mean(1, keepdim=True)  # a constant of a row changes no probability
    return (weight - center).float(), (bias - bias.mean()).float()
