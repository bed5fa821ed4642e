"""Language models without a gradient step: counts of (feature of the context, next token), as softmax weights.

With the counts F [D, V] of the K features of each context, ε added to each, and S_i = Σ_d F_di, the logits are

    z_i = Σ_k w_k log F[d_k, i] − w_0 log S_i

Weights of one, and w_0 = K − 1, are the explicit solution of Williams & Zhao, arXiv 2311.07498; it takes the K features
for independent and so counts twice what they share. K + 1 weights that are fitted to held-out text mend that: the
cross-entropy is convex in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...kernels import gather_softmax, log_shift
from ...kernels.log_shift import SparseLogShift
from ...kernels.pair_counts import Counts, PairCounter, as_csr, merge_counts
from ...kernels.runtime.csr import csr_tensor
from ..arguments import check_positive, check_size, is_integer
from .arpa import write_bigrams
from .contexts import MODES, CatFeatures, Features, Mode, SuffixFeatures, SumFeatures
from .settings import SEARCH, check_choice, check_fraction, check_searchable, check_seed
from .tokens import CHUNK, TokensLike, as_int64, check_integers, open_tokens, windows

NAME = "ExplicitLanguageModel"
_TUNED_ON = 2_000  # held-out positions that K + 2 numbers are fitted to, evenly spaced
_FARTHEST = 16  # ε is sought from 1e-8 to 1e8
_READ_AT_ONCE = 1 << 14  # positions of one readout


class ExplicitLanguageModel:
    """Softmax over the next token, from counts:  z_i = Σ_k w_k log F[d_k, i] − w_0 log S_i.

    Args:
        vocabulary: V; tokens are integers in [0, V).
        radius: K, the tokens of a context. The first K tokens of a text have no whole context and are skipped.
        mode: the features d_1 … d_K of a context: "sum": its tokens; "cat": its tokens with their distances; "suffix":
            its last 1, 2, …, K tokens, each as one key. V^K of "suffix" must be below 2^63.
        smoothing: ε > 0, added to every count. "search": chosen with the weights, or for them, on held-out text: the
            best of 10^(j/2), by steps from 0.01 for as long as they pay.
        weights: None: w_k = 1 and w_0 = K − 1, the paper's. K + 1 numbers w_1 … w_K, w_0. "search": fitted to held-out
            text. `fit` holds the last `validation_fraction` of the positions out, and counts them afterwards; `tune`
            takes a text of its own.
        smoothing_prior: "uniform": ε_i = ε. "unigram": ε_i = ε V p_i with p_i = (N_i + ½) / (N + V/2), where N_i counts
            how often token i came next.
        boundary: a token that ends contexts: none reaches back over it. It may itself be the oldest token of a context.
        validation_fraction: of the positions, the last ones.

    Attributes, after fit:
        counts_: [D, V] sparse_csr of int64.  token_counts_: [V] int64, N_i.  weights_: [K + 1] float64, w_0 last.
        smoothing_: ε.  positions_: how many positions were counted.

    Raises:
        TypeError, ValueError: an argument that is none of these; the message names it.
    """

    def __init__(
        self,
        vocabulary: int,
        radius: int = 1,
        mode: Mode = "sum",
        smoothing: float | Literal["search"] = 0.3,
        weights: Sequence[float] | Literal["search"] | None = None,
        *,
        smoothing_prior: Literal["uniform", "unigram"] = "uniform",
        boundary: int | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        check_size(NAME, "vocabulary", vocabulary)
        check_size(NAME, "radius", radius)
        self._start_smoothing = check_searchable(NAME, "smoothing", smoothing, least=0, open_at_least=True)
        check_choice(NAME, "mode", mode, MODES)
        check_choice(NAME, "smoothing_prior", smoothing_prior, ("uniform", "unigram"))
        if mode == "suffix" and vocabulary**radius >= 2**63:
            largest = int(63 / math.log2(vocabulary))
            raise ValueError(
                f"{NAME}: radius is {radius}; keys of mode 'suffix' fit in 63 bits up to radius {largest} "
                f"at a vocabulary of {vocabulary}"
            )
        if boundary is not None and not (is_integer(boundary) and 0 <= boundary < vocabulary):
            raise ValueError(f"{NAME}: boundary is {boundary!r}; expected a token, 0 to {vocabulary - 1}, or None")
        check_fraction(NAME, "validation_fraction", validation_fraction)
        self.vocabulary, self.radius, self.mode = int(vocabulary), int(radius), mode
        self.smoothing, self.smoothing_prior = smoothing, smoothing_prior
        self.weights, self.boundary = weights, boundary
        self.validation_fraction = validation_fraction
        self._start_weights = None if _is_search(weights) else _checked_weights(weights, radius)
        self._reset()

    def _reset(self) -> None:
        self._features: Features = self._no_features()
        self._counts: Counts | None = None
        self.token_counts_ = torch.zeros(self.vocabulary, dtype=torch.int64, device="cpu")
        self.positions_ = 0
        self._weights = self._start_weights
        self._smoothing = self._start_smoothing
        self._readout_cache: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def _searches(self) -> bool:
        return self._start_smoothing is None or self._start_weights is None

    def _no_features(self) -> Features:
        if self.mode == "sum":
            return SumFeatures(self.vocabulary)
        if self.mode == "cat":
            return CatFeatures(self.vocabulary, self.radius)
        return SuffixFeatures.empty(self.vocabulary, self.radius)

    def __repr__(self) -> str:
        counted = "" if self._counts is None else f", {self.positions_} positions counted"
        return (
            f"{NAME}(vocabulary={self.vocabulary}, radius={self.radius}, mode={self.mode!r}, "
            f"smoothing={self.smoothing!r}{counted})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Settings, counts and what was searched: numbers, strings and tensors, for torch.load(weights_only=True)."""
        features = self._features
        return {
            "settings": {
                "vocabulary": self.vocabulary,
                "radius": self.radius,
                "mode": self.mode,
                "smoothing": self.smoothing,
                "weights": None if self.weights is None else self._plain_weights(),
                "smoothing_prior": self.smoothing_prior,
                "boundary": self.boundary,
                "validation_fraction": self.validation_fraction,
            },
            "keys": features.keys if isinstance(features, SuffixFeatures) else None,
            "counts": None if self._counts is None else tuple(self._counts),
            "token_counts": self.token_counts_,
            "positions": self.positions_,
            "smoothing": self._smoothing,
            "weights": self._weights,
        }

    def _plain_weights(self) -> list[float] | str:
        return "search" if self._start_weights is None else self._start_weights.tolist()

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ExplicitLanguageModel:
        """The model that a `state_dict` describes."""
        model = cls(**state["settings"])
        if state["keys"] is not None:
            model._features = SuffixFeatures(model.vocabulary, state["keys"])
        model._counts = None if state["counts"] is None else Counts(*state["counts"])
        model.token_counts_, model.positions_ = state["token_counts"], state["positions"]
        model._smoothing, model._weights = state["smoothing"], state["weights"]
        return model

    # ---------------------------------------------------------------------------------------------- counting

    def fit(self, tokens: TokensLike, *, dtype: Any = "uint16", chunk: int = CHUNK) -> ExplicitLanguageModel:
        """Count a text afresh; what is "search" is chosen by its end.

        Args:
            tokens: a 1-D ndarray, memory map or tensor of integers; or the path of a `.npy` file or of raw
                little-endian integers of `dtype`, which is mapped and never read as a whole.
            chunk: positions that are counted at a time. The counts do not depend on it.

        Raises:
            TypeError, ValueError: no integers; a token outside [0, vocabulary), with its position; a text shorter than
                radius + 1; a file that is empty or no whole number of tokens. The model stays as it was.
        """
        text = open_tokens(NAME, tokens, dtype)
        fresh = self._unfitted()
        if self._searches:
            held = math.ceil((len(text) - self.radius) * self.validation_fraction)
            cut = len(text) - held
            if cut <= self.radius:
                raise ValueError(
                    f"{NAME}: tokens has length {len(text)}, of which 'search' holds {held} out; expected more"
                )
            fresh._count(text[:cut], chunk)
            fresh._tune(text[cut - self.radius :])
            fresh._count(text[cut - self.radius :], chunk)
        else:
            fresh._count(text, chunk)
        self.__dict__ = fresh.__dict__
        return self

    def partial_fit(self, tokens: TokensLike, *, dtype: Any = "uint16", chunk: int = CHUNK) -> ExplicitLanguageModel:
        """Count one more text. No context reaches from one text into another. Arguments and errors are `fit`'s."""
        text = open_tokens(NAME, tokens, dtype)
        self._count(text, chunk)
        return self

    def merge(self, other: ExplicitLanguageModel) -> ExplicitLanguageModel:
        """Add the counts of a model of this vocabulary, radius, mode and boundary: as if one had counted both texts.

        Raises:
            TypeError: no ExplicitLanguageModel.  ValueError: one of another setting, or without counts.
        """
        if not isinstance(other, ExplicitLanguageModel):
            raise TypeError(f"{NAME}: merge got a {type(other).__name__}; expected an {NAME}")
        for name in ("vocabulary", "radius", "mode", "boundary"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"{NAME}: merge got a model of {name} {theirs!r}; expected {ours!r}, as here")
        if other._counts is None:
            raise ValueError(f"{NAME}: merge got a model without counts; fit it first")
        features = self._features
        if isinstance(features, SuffixFeatures) and isinstance(other._features, SuffixFeatures):
            features = features.joined_with(other._features)
        self._take(features, other._counts_at(features), other.token_counts_, other.positions_)
        return self

    def _unfitted(self) -> ExplicitLanguageModel:
        fresh = object.__new__(ExplicitLanguageModel)
        fresh.__dict__ = dict(self.__dict__)
        fresh._reset()
        return fresh

    def _count(self, text: np.ndarray | Tensor, chunk: int) -> None:
        check_size(NAME, "chunk", chunk)

        def pieces():
            return windows(NAME, text, self.vocabulary, self.radius, self.boundary, chunk)

        features = self._features
        if isinstance(features, SuffixFeatures):
            features = features.joined(contexts for contexts, _ in pieces())
        counter = PairCounter((features.size, self.vocabulary))
        token_counts, positions = torch.zeros_like(self.token_counts_), 0
        for contexts, targets in pieces():
            counter.add(features.rows(contexts).flatten(), targets.repeat_interleave(self.radius))
            token_counts += targets.bincount(minlength=self.vocabulary)
            positions += len(targets)
        if positions == 0:
            raise ValueError(f"{NAME}: tokens has no whole context of {self.radius} tokens without the boundary")
        self._take(features, counter.csr(), token_counts, positions)

    def _take(self, features: Features, counts: Counts, token_counts: Tensor, positions: int) -> None:
        """Add counts, whose rows are these features, to those so far."""
        if self._counts is not None:
            counts = Counts(*merge_counts(self._counts_at(features), counts, self.vocabulary))
        self._features, self._counts = features, counts
        self.token_counts_ = self.token_counts_ + token_counts
        self.positions_ += positions
        self._readout_cache = None

    def _counts_at(self, features: Features) -> Counts:
        """The counts so far, as rows of a larger set of features."""
        counts = self._counts
        assert counts is not None
        if isinstance(features, SuffixFeatures) and isinstance(self._features, SuffixFeatures):
            lengths = counts.crow.new_zeros(features.size)
            lengths[self._features.places_in(features)] = counts.crow.diff()
            crow = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            counts = Counts(crow, counts.columns, counts.counts)
        return counts

    @property
    def counts_(self) -> Tensor:
        """F as a sparse_csr tensor [D, V] of int64."""
        if self._counts is None:
            raise ValueError(f"{NAME}: nothing was counted yet; call fit first")
        return as_csr(self._counts, (self._features.size, self.vocabulary))

    # ----------------------------------------------------------------------------------------------- weights

    @property
    def smoothing_(self) -> float:
        """ε, as given or as found."""
        if self._smoothing is None:
            raise ValueError(f"{NAME}: smoothing='search' has not searched yet; call tune(held-out tokens), or fit")
        return self._smoothing

    @property
    def weights_(self) -> Tensor:
        """[K + 1] float64: w_1 … w_K, w_0, as given or as found."""
        if self._weights is None:
            raise ValueError(f"{NAME}: weights='search' has not searched yet; call tune(held-out tokens), or fit")
        return self._weights

    def tune(self, tokens: TokensLike, *, dtype: Any = "uint16") -> ExplicitLanguageModel:
        """Choose what is "search" by a held-out text, which is not counted. The cross-entropy is convex in the weights.

        At most 2,000 of its positions are used, evenly spaced.

        Raises:
            TypeError, ValueError: as `fit`; also a model without counts, or where nothing is "search".
        """
        if not self._searches:
            raise ValueError(f"{NAME}: tune has nothing to choose; expected weights='search' or smoothing='search'")
        self._tune(open_tokens(NAME, tokens, dtype))
        return self

    def _tune(self, text: np.ndarray | Tensor) -> None:
        pieces = windows(NAME, text, self.vocabulary, self.radius, self.boundary, CHUNK)
        rows, targets = map(torch.cat, zip(*((self._features.rows(c), t) for c, t in pieces), strict=True))
        if len(targets) == 0:
            raise ValueError(f"{NAME}: the held-out text has no whole context; expected some to fit weights to")
        if len(targets) > _TUNED_ON:
            kept = torch.linspace(0, len(targets) - 1, _TUNED_ON, dtype=torch.float64, device="cpu").long()
            rows, targets = rows[kept], targets[kept]
        start = torch.full((self.radius + 1,), 1 / self.radius, dtype=torch.float64, device="cpu")
        start[-1] = 0.0  # a sum of a mean row: its loss is finite, which that of the paper's weights may not be

        def fitted(smoothing: float) -> tuple[float, Tensor]:
            weight, base, log_mass = self._shifted(smoothing)

            def loss(weights: Tensor) -> Tensor:
                bias = (weights[:-1].sum() * base - weights[-1] * log_mass).to(weight.dtype)
                losses = gather_softmax(weight, rows, targets, bias=bias, weights=weights[:-1].to(weight.dtype))
                return losses.mean(dtype=torch.float64)

            if self._start_weights is not None:
                return loss(self._start_weights).item(), self._start_weights
            return _minimised(loss, start)

        if self._start_smoothing is None:
            self._smoothing, self._weights = _walked(fitted)
        else:
            _, self._weights = fitted(self._start_smoothing)
        self._readout_cache = None

    def _log_counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """log F, as what each count adds to log ε [D, V] sparse_csr; log ε [V]; log S [V]."""
        if self._readout_cache is None:
            self._readout_cache = self._shifted(self.smoothing_)
        return self._readout_cache

    def _shifted(self, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
        shifted = log_shift(self.counts_, smoothing=self._smoothings(smoothing), scale=1.0)
        assert isinstance(shifted, SparseLogShift)
        weight = shifted.weight
        entries = weight.crow_indices(), weight.col_indices(), weight.values().float()
        weight = csr_tensor(*entries, (self._features.size, self.vocabulary))
        return weight, shifted.base, shifted.log_mass

    def _smoothings(self, smoothing: float) -> Tensor:
        if self.smoothing_prior == "uniform":
            return torch.full((self.vocabulary,), smoothing, dtype=torch.float64, device="cpu")
        return smoothing * self.vocabulary * self.token_probabilities_

    @property
    def token_probabilities_(self) -> Tensor:
        """[V] float64: (N_i + ½) / (N + V/2)."""
        smoothed = self.token_counts_.double() + 0.5
        return smoothed / smoothed.sum()

    def _readout(self) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of gather_softmax: weight [D, V] sparse_csr, bias [V], weights [K]."""
        weight, base, log_mass = self._log_counts()
        bias = self.weights_[:-1].sum() * base - self.weights_[-1] * log_mass
        return weight, bias.to(weight.dtype), self.weights_[:-1].to(weight.dtype)

    # --------------------------------------------------------------------------------------------- prediction

    def cross_entropy(self, tokens: TokensLike, *, dtype: Any = "uint16") -> float:
        """The mean of −log p(token | context) in nats, over all positions with a whole context.

        Raises:
            TypeError, ValueError: as `fit`; also a model without counts or weights.
        """
        text = open_tokens(NAME, tokens, dtype)
        weight, bias, weights = self._readout()
        total, positions = 0.0, 0
        for contexts, targets in windows(NAME, text, self.vocabulary, self.radius, self.boundary, _READ_AT_ONCE):
            losses = gather_softmax(weight, self._features.rows(contexts), targets, bias=bias, weights=weights)
            total += losses.sum(dtype=torch.float64).item()
            positions += len(targets)
        if positions == 0:
            raise ValueError(f"{NAME}: tokens has no whole context of {self.radius} tokens without the boundary")
        return total / positions

    def perplexity(self, tokens: TokensLike, *, dtype: Any = "uint16") -> float:
        """exp of the cross-entropy. Errors are those of `cross_entropy`."""
        return math.exp(self.cross_entropy(tokens, dtype=dtype))

    def predict_log_proba(self, contexts: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """log p of every token: contexts [B, radius] of integers, oldest token first → [B, V] float64.

        Raises:
            TypeError: no integers.  ValueError: another shape; a token outside [0, vocabulary); nothing fitted.
        """
        rows = contexts if isinstance(contexts, Tensor) else np.asarray(contexts)
        check_integers(NAME, "contexts", rows)
        rows = as_int64(rows)
        if rows.dim() != 2 or rows.shape[1] != self.radius:
            raise ValueError(f"{NAME}: contexts has shape {tuple(rows.shape)}; expected [B, {self.radius}]")
        is_outside = (rows < 0) | (rows >= self.vocabulary)
        if is_outside.any():
            row, place = is_outside.nonzero()[0].tolist()
            raise ValueError(
                f"{NAME}: contexts has token {int(rows[row, place])} in row {row}; expected 0 to {self.vocabulary - 1}"
            )
        answer = self._logits(self._features.rows(rows)).log_softmax(1)
        return answer.numpy() if isinstance(contexts, np.ndarray) else answer

    def _logits(self, rows: Tensor) -> Tensor:
        weight, bias, weights = self._readout()
        logits = bias.double().repeat(len(rows), 1)
        crow, columns, values = weight.crow_indices(), weight.col_indices(), weight.values()
        for batch, row in enumerate(rows.tolist()):
            for factor, key in zip(weights.tolist(), row, strict=True):
                if key >= 0:
                    entries = slice(int(crow[key]), int(crow[key + 1]))
                    logits[batch].index_add_(0, columns[entries].long(), values[entries].double(), alpha=factor)
        return logits

    def sample(
        self,
        n: int,
        context: Sequence[int] | np.ndarray | Tensor = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[int]:
        """Draw n tokens that go on from a context, each after the ones before it.

        Args:
            context: any number of tokens. Where fewer than `radius` are known, the features that are missing are a mean
                row, log (S / D): with none known the paper's form then draws the first token by S.
            temperature: divides the logits.
            top_k: draw among so many likeliest tokens.

        Raises:
            TypeError, ValueError: an argument that is none of these; nothing fitted.
        """
        check_size(NAME, "n", n)
        check_positive(NAME, "temperature", temperature)
        if top_k is not None:
            check_size(NAME, "top_k", top_k)
        text = [int(token) for token in context]
        for place, token in enumerate(text):
            if not 0 <= token < self.vocabulary:
                raise ValueError(f"{NAME}: context has token {token} at {place}; expected 0 to {self.vocabulary - 1}")
        generator = torch.Generator().manual_seed(check_seed(NAME, seed))
        start = len(text)
        for _ in range(n):
            logits = self._logits_after(text[-self.radius :]) / temperature
            if top_k is not None and top_k < self.vocabulary:
                logits[logits < logits.topk(top_k).values[-1]] = -math.inf
            text.append(int(torch.multinomial(logits.softmax(0), 1, generator=generator)))
        return text[start:]

    def _logits_after(self, context: list[int]) -> Tensor:
        if self.boundary is not None and self.boundary in context:
            last = len(context) - 1 - context[::-1].index(self.boundary)
            context = context[last:]
        missing = self.radius - len(context)
        rows = self._features.rows(torch.tensor([[0] * missing + context], device="cpu"))
        _, base, log_mass = self._log_counts()
        logits = self._logits(torch.where(torch.arange(self.radius, device="cpu") < len(context), rows, -1))[0]
        if missing:
            _, _, weights = self._readout()
            logits += weights[len(context) :].sum() * (log_mass - math.log(self._features.size) - base)
        return logits

    def to_arpa(self, path: str, words: Sequence[str] | None = None) -> None:
        """Write the model as an ARPA file, which kenlm and others read: for radius 1 and smoothing_prior "unigram".

            p(i | h) = (F_hi + α q_i) / (N_h + α)        α = ε V,  q_i = (N_i + ½) / (N + V/2)

        so that a pair that was not seen backs off to q_i, by α / (N_h + α): the model's own probabilities.

        Args:
            words: the V words, without white space (default: the tokens' numbers).

        Raises:
            ValueError: another radius, prior or weights; words that are not V, hold white space or occur twice.
        """
        if self.radius != 1 or self.smoothing_prior != "unigram" or self.weights is not None:
            raise ValueError(
                f"{NAME}: to_arpa got radius {self.radius}, smoothing_prior {self.smoothing_prior!r} and weights "
                f"{self.weights!r}; an ARPA file says radius 1, 'unigram' and None"
            )
        counts = self.counts_
        names = [str(token) for token in range(self.vocabulary)] if words is None else [str(word) for word in words]
        if len(names) != self.vocabulary or len(set(names)) != len(names):
            raise ValueError(
                f"{NAME}: words has {len(set(names))} distinct of {len(names)}; expected {self.vocabulary}"
            )
        for place, name in enumerate(names):
            if not name or name.split() != [name]:
                raise ValueError(f"{NAME}: words has {name!r} at {place}; expected words without white space")
        write_bigrams(path, names, counts, self.token_probabilities_, self.smoothing_ * self.vocabulary)


def _is_search(value: Any) -> bool:
    return isinstance(value, str) and value == SEARCH


def _checked_weights(weights: Any, radius: int) -> Tensor:
    if weights is None:
        return torch.tensor([1.0] * radius + [radius - 1.0], dtype=torch.float64, device="cpu")
    try:
        numbers = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0, device="cpu")
    if numbers.shape != (radius + 1,) or not numbers.isfinite().all():
        raise ValueError(f"{NAME}: weights is {weights!r}; expected None, 'search' or {radius + 1} finite numbers")
    return numbers


def _walked(fitted: Callable[[float], tuple[float, Tensor]]) -> tuple[float, Tensor]:
    """The best ε of 10^(j/2), and its weights: from 10⁻² downhill, as the loss has one valley in log ε."""
    tried = {step: fitted(10 ** (step / 2)) for step in (-4, -5)}
    direction = -1 if tried[-5][0] < tried[-4][0] else 1
    best = min(tried, key=lambda step: tried[step][0])
    while abs(best) < _FARTHEST:
        tried[best + direction] = fitted(10 ** ((best + direction) / 2))
        if tried[best + direction][0] >= tried[best][0]:
            break
        best += direction
    return 10 ** (best / 2), tried[best][1]


def _minimised(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
    """The least value of a convex function of a few numbers, and where, by L-BFGS."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=60, tolerance_grad=1e-4, tolerance_change=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(weights.detach()).item(), weights.detach()
