"""Language models without a gradient step: counts of (feature of the context, next token), as softmax weights.

With the counts F [D, V] of the K features of each context, ε added to each, and S_i = Σ_d F_di, the logits are

    z_i = Σ_k w_k log F[d_k, i] − w_0 log S_i

Weights of one, and w_0 = K − 1, are the explicit solution of Williams & Zhao, arXiv 2311.07498; it takes the K features
for independent and so counts twice what they share. K + 1 weights that are fitted to held-out text mend that: the
cross-entropy is convex in them.

Ranks may share a model out (shares.py): each counts its own text, and holds the rows of F that hash to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels import gather_softmax, log_shift
from ...kernels.log_shift import SparseLogShift
from ...kernels.pair_counts import Counts, PairCounter, as_csr, pair_counts
from ...kernels.runtime.csr import csr_tensor
from ...kernels.runtime.ranks import check_group, of_ranks
from ..arguments import check_positive, check_size, is_integer
from .arpa import write_bigrams
from .contexts import MODES, CatFeatures, Features, Mode, SuffixFeatures, SumFeatures
from .ranks import check_equal, together
from .settings import SEARCH, check_choice, check_fraction, check_searchable, check_seed
from .shares import Part, Runs, from_owners, to_owners
from .tokens import CHUNK, TokensLike, as_int64, check_integers, open_tokens, windows

NAME = "ExplicitLanguageModel"
_TUNED_ON = 2_000  # held-out positions that K + 2 numbers are fitted to, evenly spaced
_FARTHEST = 16  # ε is sought from 1e-8 to 1e8
_READ_AT_ONCE = 1 << 14  # positions of one readout


class _Totals(NamedTuple):
    """Sums over all ranks that share a model out, or of the one process."""

    features: int  # D
    mass: Tensor  # [V] int64, Σ_d F_di without smoothing
    token_counts: Tensor  # [V] int64
    positions: int


class _Readout(NamedTuple):
    """The rows of F that some contexts need, as logarithms."""

    features: Features
    weight: Tensor  # [D, V] sparse_csr, what each count adds to log ε
    base: Tensor  # [V], log ε
    log_mass: Tensor  # [V], log S


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

    After `fit` with a group, or `share`, the ranks of it share the model out. Then every rank makes each call, counts_
    has the rows that this rank owns, and token_counts_ and positions_ are of its own text. Each rank saves its own
    state_dict; all of them, loaded in one process and merged, are the whole model.

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
        self._readout_cache: _Readout | None = None
        self._totals_cache: _Totals | None = None
        self._group: dist.ProcessGroup | None = None

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
            "settings": self._settings(),
            "keys": features.keys if isinstance(features, SuffixFeatures) else None,
            "counts": None if self._counts is None else tuple(self._counts),
            "token_counts": self.token_counts_,
            "positions": self.positions_,
            "smoothing": self._smoothing,
            "weights": self._weights,
        }

    def _settings(self) -> dict[str, Any]:
        return {
            "vocabulary": self.vocabulary,
            "radius": self.radius,
            "mode": self.mode,
            "smoothing": self.smoothing,
            "weights": None if self.weights is None else self._plain_weights(),
            "smoothing_prior": self.smoothing_prior,
            "boundary": self.boundary,
            "validation_fraction": self.validation_fraction,
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

    def fit(
        self, tokens: TokensLike, *, dtype: Any = "uint16", chunk: int = CHUNK, group: dist.ProcessGroup | None = None
    ) -> ExplicitLanguageModel:
        """Count a text afresh; what is "search" is chosen by its end.

        Args:
            tokens: a 1-D ndarray, memory map or tensor of integers; or the path of a `.npy` file or of raw
                little-endian integers of `dtype`, which is mapped and never read as a whole.
            chunk: positions that are counted at a time. The counts do not depend on it.
            group: ranks that share the model out. Each gives a text of its own, which is read once, and holds the rows
                of F that hash to it: the bits of one process that counts all texts by `partial_fit`. What is "search"
                is chosen by the ends of all texts.

        Raises:
            TypeError, ValueError: no integers; a token outside [0, vocabulary), with its position; a text shorter than
                radius + 1; a file that is empty or no whole number of tokens. The model stays as it was. Where
                another rank fails, so does this one; the message names it.
        """

        def opened() -> tuple[np.ndarray | Tensor, int]:
            text = open_tokens(NAME, tokens, dtype)
            held = math.ceil((len(text) - self.radius) * self.validation_fraction) if self._searches else 0
            if held and len(text) - held <= self.radius:
                raise ValueError(
                    f"{NAME}: tokens has length {len(text)}, of which 'search' holds {held} out; expected more"
                )
            return text, len(text) - held

        text, cut = together(NAME, group, opened)
        check_equal(NAME, {"the settings": self._settings()}, group)
        fresh = self._unfitted()
        fresh._group = group
        if self._searches:
            fresh._count(text[:cut], chunk)
            fresh._tune(text[cut - self.radius :])
            fresh._count(text[cut - self.radius :], chunk)
        else:
            fresh._count(text, chunk)
        self.__dict__ = fresh.__dict__
        return self

    def partial_fit(self, tokens: TokensLike, *, dtype: Any = "uint16", chunk: int = CHUNK) -> ExplicitLanguageModel:
        """Count one more text. No context reaches from one text into another. Arguments and errors are `fit`'s."""
        text = together(NAME, self._group, lambda: open_tokens(NAME, tokens, dtype))
        self._count(text, chunk)
        return self

    def share(self, group: dist.ProcessGroup) -> ExplicitLanguageModel:
        """Share out what the models of all ranks have counted, each a text of its own or a share that was saved.

        Raises:
            TypeError: group is no process group.  ValueError: the model is shared out already, is of other settings on
                another rank, or has counts on no rank.
        """
        check_group(NAME, group)
        self._check_whole("share")
        facts = {"the settings": self._settings(), "what was searched": (self._smoothing, _listed(self._weights))}
        check_equal(NAME, facts, group)
        runs = Runs(self.vocabulary)
        for part in to_owners(self._part(), group):
            runs.add(part)
        part = runs.sum()
        assert part is not None
        self._group, self._readout_cache = group, None
        self._features, self._counts = part
        self._totals_cache = self._sums()
        if not self._totals_cache.positions:
            self._reset()
            raise ValueError(f"{NAME}: share got models without counts; fit one first")
        return self

    def _part(self) -> Part:
        counts = self._counts
        if counts is None:
            nothing = torch.empty(0, dtype=torch.int64, device="cpu")
            counts = pair_counts(nothing, nothing, (self._features.size, self.vocabulary))
        return Part(self._features, counts)

    def _check_whole(self, what: str) -> None:
        if self._group is not None:
            raise ValueError(
                f"{NAME}: {what} got a model that ranks share out; expected a whole one: in one process, merge what "
                "from_state_dict makes of the state_dict() of each rank"
            )

    def merge(self, other: ExplicitLanguageModel) -> ExplicitLanguageModel:
        """Add the counts of a model of this vocabulary, radius, mode and boundary: as if one had counted both texts.

        Raises:
            TypeError: no ExplicitLanguageModel.  ValueError: one of another setting, or without counts.
        """
        if not isinstance(other, ExplicitLanguageModel):
            raise TypeError(f"{NAME}: merge got a {type(other).__name__}; expected an {NAME}")
        for model in (self, other):
            model._check_whole("merge")
        for name in ("vocabulary", "radius", "mode", "boundary"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"{NAME}: merge got a model of {name} {theirs!r}; expected {ours!r}, as here")
        if other._counts is None:
            raise ValueError(f"{NAME}: merge got a model without counts; fit it first")
        self._take(other._part(), other.token_counts_, other.positions_)
        return self

    def _unfitted(self) -> ExplicitLanguageModel:
        fresh = object.__new__(ExplicitLanguageModel)
        fresh.__dict__ = dict(self.__dict__)
        fresh._reset()
        return fresh

    def _count(self, text: np.ndarray | Tensor, chunk: int) -> None:
        together(NAME, self._group, lambda: check_size(NAME, "chunk", chunk))
        part, token_counts, positions = (self._counted if self._group is None else self._counted_by_all)(text, chunk)
        if sum(of_ranks(positions, self._group)) == 0:
            raise ValueError(f"{NAME}: tokens has no whole context of {self.radius} tokens without the boundary")
        self._take(part, token_counts, positions)

    def _counted(self, text: np.ndarray | Tensor, chunk: int) -> tuple[Part, Tensor, int]:
        features = self._no_features()
        if isinstance(features, SuffixFeatures):
            features = features.joined(contexts for contexts, _ in self._pieces(text, chunk))
        counter = PairCounter((features.size, self.vocabulary))
        token_counts, positions = torch.zeros_like(self.token_counts_), 0
        for contexts, targets in self._pieces(text, chunk):
            counter.add(features.rows(contexts).flatten(), targets.repeat_interleave(self.radius))
            token_counts += targets.bincount(minlength=self.vocabulary)
            positions += len(targets)
        return Part(features, counter.csr()), token_counts, positions

    def _counted_by_all(self, text: np.ndarray | Tensor, chunk: int) -> tuple[Part, Tensor, int]:
        """The rows that this rank owns, of all ranks' texts; the tokens and positions of its own."""
        assert self._group is not None
        token_counts, positions = torch.zeros_like(self.token_counts_), 0
        runs, shape = Runs(self.vocabulary), (self._no_features().size, self.vocabulary)
        for contexts, targets in self._pieces(text, chunk):
            features = self._no_features()
            if isinstance(features, SuffixFeatures):
                features = features.joined([contexts])
                shape = features.size, self.vocabulary
            pairs = features.rows(contexts).flatten(), targets.repeat_interleave(self.radius)
            for part in to_owners(Part(features, pair_counts(*pairs, shape)), self._group):
                runs.add(part)
            token_counts += targets.bincount(minlength=self.vocabulary)
            positions += len(targets)
        part = runs.sum()
        return part or self._unfitted()._part(), token_counts, positions

    def _pieces(self, text: np.ndarray | Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Contexts and targets, a chunk at a time; those of ranks that are through with their text are empty."""
        pieces = windows(NAME, text, self.vocabulary, self.radius, self.boundary, chunk)
        if self._group is None:
            yield from pieces
            return
        nothing = torch.empty(0, dtype=torch.int64, device="cpu")
        while True:
            piece = together(NAME, self._group, lambda: next(pieces, None))
            if all(of_ranks(piece is None, self._group)):
                return
            yield piece or (nothing.view(0, self.radius), nothing)

    def _take(self, part: Part, token_counts: Tensor, positions: int) -> None:
        """Add counts to those so far."""
        self._features, self._counts = part if self._counts is None else self._part().joined(part, self.vocabulary)
        self.token_counts_ = self.token_counts_ + token_counts
        self.positions_ += positions
        self._readout_cache, self._totals_cache = None, None
        if self._group is not None:  # here, where all ranks are
            self._totals_cache = self._sums()

    @property
    def _totals(self) -> _Totals:
        if self._totals_cache is None:
            self._totals_cache = self._sums()
        return self._totals_cache

    def _sums(self) -> _Totals:
        part = self._part()
        mass = torch.zeros_like(self.token_counts_).index_add_(0, part.counts.columns.long(), part.counts.counts)
        if self._group is None:
            return _Totals(part.features.size, mass, self.token_counts_, self.positions_)
        sums = torch.cat([mass, self.token_counts_, torch.tensor([self.positions_, part.features.size])])
        dist.all_reduce(sums, group=self._group)
        mass, token_counts, (positions, size) = *sums[:-2].chunk(2), sums[-2:].tolist()
        return _Totals(size if self.mode == "suffix" else part.features.size, mass, token_counts, positions)

    @property
    def counts_(self) -> Tensor:
        """F as a sparse_csr tensor [D, V] of int64."""
        return as_csr(self._checked_counts, (self._features.size, self.vocabulary))

    @property
    def _checked_counts(self) -> Counts:
        if self._counts is None:
            raise ValueError(f"{NAME}: nothing was counted yet; call fit first")
        return self._counts

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
        self._tune(together(NAME, self._group, lambda: open_tokens(NAME, tokens, dtype)))
        return self

    def _held_out(self, text: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Contexts and targets, evenly spaced over those of all ranks' texts in the order of the ranks."""
        contexts, targets = map(torch.cat, zip(*self._pieces(text, CHUNK), strict=True))
        sizes = of_ranks(len(targets), self._group)
        total = sum(sizes)
        if total == 0:
            raise ValueError(f"{NAME}: the held-out text has no whole context; expected some to fit weights to")
        if total > _TUNED_ON:
            kept = torch.linspace(0, total - 1, _TUNED_ON, dtype=torch.float64, device="cpu").long()
            first = 0 if self._group is None else sum(sizes[: self._group.rank()])
            kept = kept[(kept >= first) & (kept < first + len(targets))] - first
            contexts, targets = contexts[kept], targets[kept]
        contexts, targets = zip(*of_ranks((contexts, targets), self._group), strict=True)
        return torch.cat(contexts), torch.cat(targets)

    def _tune(self, text: np.ndarray | Tensor) -> None:
        contexts, targets = self._held_out(text)
        part = self._needed(contexts)
        rows = part.features.rows(contexts)
        start = torch.full((self.radius + 1,), 1 / self.radius, dtype=torch.float64, device="cpu")
        start[-1] = 0.0  # a sum of a mean row: its loss is finite, which that of the paper's weights may not be

        def fitted(smoothing: float) -> tuple[float, Tensor]:
            _, weight, base, log_mass = self._shifted(smoothing, part)

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

    def _needed(self, contexts: Tensor) -> Part:
        """The features and counts that contexts ask for: of one process all."""
        part = self._part()
        return part if self._group is None else from_owners(part, contexts, self.vocabulary, self._group)

    def _read(self, contexts: Tensor) -> _Readout:
        if self._group is not None:
            return self._shifted(self.smoothing_, self._needed(contexts))
        if self._readout_cache is None:
            self._readout_cache = self._shifted(self.smoothing_, Part(self._features, self._checked_counts))
        return self._readout_cache

    def _shifted(self, smoothing: float, part: Part) -> _Readout:
        eps, (features, counts) = self._smoothings(smoothing), part
        if features.size == 0:  # no context has a feature that was seen: an empty row stands for none
            counts = counts._replace(crow=counts.crow.new_zeros(2))
        shape = len(counts.crow) - 1, self.vocabulary
        shifted = log_shift(as_csr(counts, shape), smoothing=eps, scale=1.0)
        assert isinstance(shifted, SparseLogShift)
        weight = shifted.weight
        weight = csr_tensor(weight.crow_indices(), weight.col_indices(), weight.values().float(), shape)
        # of integers, which add up exactly, however they are shared out
        log_mass = (eps * self._totals.features + self._totals.mass.double()).log()
        return _Readout(features, weight, eps.log(), log_mass)

    def _smoothings(self, smoothing: float) -> Tensor:
        if self.smoothing_prior == "uniform":
            return torch.full((self.vocabulary,), smoothing, dtype=torch.float64, device="cpu")
        return smoothing * self.vocabulary * self.token_probabilities_

    @property
    def token_probabilities_(self) -> Tensor:
        """[V] float64: (N_i + ½) / (N + V/2)."""
        smoothed = self._totals.token_counts.double() + 0.5
        return smoothed / smoothed.sum()

    def _arguments(self, readout: _Readout) -> tuple[Tensor, Tensor]:
        """The arguments of gather_softmax: bias [V], weights [K]."""
        bias = self.weights_[:-1].sum() * readout.base - self.weights_[-1] * readout.log_mass
        return bias.to(readout.weight.dtype), self.weights_[:-1].to(readout.weight.dtype)

    # --------------------------------------------------------------------------------------------- prediction

    def cross_entropy(self, tokens: TokensLike, *, dtype: Any = "uint16") -> float:
        """The mean of −log p(token | context) in nats, over all positions with a whole context, of all ranks' texts.

        Raises:
            TypeError, ValueError: as `fit`; also a model without counts or weights.
        """
        text = together(NAME, self._group, lambda: open_tokens(NAME, tokens, dtype))
        total, positions = 0.0, 0
        for contexts, targets in self._pieces(text, _READ_AT_ONCE):
            readout = self._read(contexts)
            if len(targets) == 0:
                continue
            bias, weights = self._arguments(readout)
            rows = readout.features.rows(contexts)
            losses = gather_softmax(readout.weight, rows, targets, bias=bias, weights=weights)
            total += losses.sum(dtype=torch.float64).item()
            positions += len(targets)
        total, positions = (sum(each) for each in zip(*of_ranks((total, positions), self._group), strict=True))
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
        rows = together(NAME, self._group, lambda: self._checked_contexts(contexts))
        answer = self._logits(rows).log_softmax(1)
        return answer.numpy() if isinstance(contexts, np.ndarray) else answer

    def _checked_contexts(self, contexts: np.ndarray | Tensor) -> Tensor:
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
        return rows

    def _logits(self, contexts: Tensor, known: int | None = None) -> Tensor:
        """Logits [B, V] of contexts, of which the last `known` tokens are known; None: all."""
        readout = self._read(contexts)
        bias, weights = self._arguments(readout)
        rows = readout.features.rows(contexts)
        if known is not None:
            rows[:, known:] = -1
        logits, weight = bias.double().repeat(len(rows), 1), readout.weight
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
        contexts = torch.tensor([[0] * missing + context], device="cpu")
        logits = self._logits(contexts, len(context))[0]
        if missing:
            _, _, base, log_mass = self._read(contexts)
            mean = log_mass - math.log(self._totals.features) - base
            logits += self.weights_[len(context) : -1].float().sum() * mean
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
        self._check_whole("to_arpa")
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


def _listed(weights: Tensor | None) -> list[float] | None:
    return None if weights is None else weights.tolist()


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
