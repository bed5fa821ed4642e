"""ExplicitMLP: a network of softmax layers, each solved from counts; no gradient step.

Codes T (rows ≥ 0 of sum 1) stand in for what a hidden layer should answer. It is then a softmax layer on classes that
overlap: F = Xᵀ T, and h = softmax(x U₁ / T₁). As ‖h‖₁ = 1, the next layer is solved with K = 1: U₂ = log(hᵀ Y + ε).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels import cooccurrence
from ..arguments import check_size, is_integer
from ..units import units_by_class
from .estimator import Classifier
from .labels import classes_and_index, held_out, read_labels
from .rows import Rows, Scaling, read_rows
from .settings import check_choice, check_fraction, check_number, check_searchable, check_seed
from .solution import SMOOTHINGS, Counts, Solution, Tuned, count, search, solve
from .subclasses import subclasses

_HIDDEN_SMOOTHINGS = (1e-2, 1e-1, 1.0, 10.0)  # what is tried for a hidden layer
_HIDDEN_TEMPERATURES = tuple(2.0**k for k in range(-9, -1))  # the same, in units of K
_OUTPUT_SMOOTHINGS = (1e-2, 1e-1, 1.0)  # of the output that a hidden layer is judged by
_ENOUGH = 20_000  # rows that a hidden layer is judged by: more say the same
_SPREAD = 0.1  # of a code of the label, what goes to all units alike


@dataclass(frozen=True)
class _Settings:
    hidden: tuple[int, ...]
    codes: str
    scaling: Scaling
    smoothing: float | None  # None stands for "search"
    iterations: int
    validation_fraction: float
    seed: int


@dataclass(frozen=True, eq=False)
class _Fitted:
    classes: np.ndarray
    scaling: Scaling
    layers: tuple[Solution, ...]  # the last is the output
    smoothings: tuple[float, ...]
    temperatures: tuple[float, ...]
    is_torch: bool

    @property
    def n_features(self) -> int:
        return self.layers[0].weight.shape[0]


class ExplicitMLP(Classifier):
    """A softmax network with hidden layers, on non-negative features, solved layer by layer: no gradient step.

        h = softmax(x U₁ / T₁)    U₁ = log F − (1 − 1/K) log S,   F = Xᵀ T + ε,   S_h = Σ_d F_dh
        logits = h U₂ / T₂        U₂ = log(hᵀ Y + ε)

    T are codes, what the hidden layer is to answer for a row: its subclass, or a code of its label. Further hidden
    layers are solved as the first, on h, whose rows sum to 1.

    Source: Williams & Zhao, arXiv 2311.07510, 2023, which solves networks layer by layer. The codes, subclasses
    foremost, and the choice of temperatures are ours.

    Args:
        hidden: H, the number of hidden units, or a tuple of those of each layer; at least one a class.
        codes: "subclasses": each class is divided by k-means (k-means++ and Lloyd's iterations on the rows as the layer
            sees them) among its share of the units, and a row's code is the unit of its subclass. "labels": a class has
            a block of units that divide its rows by random weights, and .1 of a code goes to all units alike. That code
            knows no more than the label: the network then answers about as one layer does.
        scale: K > 0, the sum that rows are scaled to.
        smoothing: ε ≥ 0 of all layers; or "search": of each hidden layer 0.01, 0.1, 1 or 10, of the output as in
            ExplicitSoftmax.
        offset: o ≥ 0, added to each entry before rows are scaled, in the units of x.
        iterations: Lloyd's, at most.
        validation_fraction: of the rows of each class, those that are not counted: temperatures, and smoothing, are
            chosen by their cross-entropy. That of a hidden layer is K times a power of 2, from 1/512 to 1/4.
        seed: draws those rows, the first centres and the random weights.

    x is K (x + o) / Σ (x + o) in learning and in predicting. Rows, labels and answers are of the kinds and dtypes that
    ExplicitSoftmax takes and gives. They are read in blocks of 2²² numbers, sparse ones too, which k-means makes dense
    for as long; beyond x, fit holds [N] codes, [H, D] centres and sums, and the hidden answers of the rows held out.

    Attributes, after learning:
        classes_: [C], NumPy.  n_features_in_: D.
        coefs_, intercepts_: of each layer [out, in] and [out], float64, temperature included; NumPy's, or tensors where
            the rows were.
        smoothings_, temperatures_: of each layer.

    scikit-learn's conventions hold where that is installed. A call that is refused changes nothing.
    """

    _fitted: _Fitted | None

    def __init__(
        self,
        hidden: int | tuple[int, ...] = 100,
        codes: str = "subclasses",
        *,
        scale: float = 32.0,
        smoothing: float | str = "search",
        offset: float = 0.0,
        iterations: int = 10,
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.codes = codes
        self.scale = scale
        self.smoothing = smoothing
        self.offset = offset
        self.iterations = iterations
        self.validation_fraction = validation_fraction
        self.seed = seed

    # ------------------------------------------------------------------------------------------- learning

    def fit(self, x: Any, y: Any) -> ExplicitMLP:
        """Learns from rows and their labels; forgets what was learned before.

        Args:
            x: [N, D].  y: [N].

        Raises:
            ValueError: an argument of the constructor, or a row or label, does not fit: fewer hidden units than
                classes, a row that is negative, not finite or all zero, labels that are fractions, an offset with
                sparse rows, nothing held out. The message names argument, row and value.
            TypeError: one of them is no number.
        """
        name, settings = self._name, self._checked()
        rows = read_rows(name, x)
        classes, places = classes_and_index(name, read_labels(name, y, len(rows)))
        for size in settings.hidden:
            if size < len(classes):
                raise ValueError(
                    f"{name}: hidden is {self.hidden} and y has {len(classes)} classes; expected no fewer units"
                )
        held = held_out(places, settings.validation_fraction, settings.seed).to(rows.device)
        if not held.any():
            raise ValueError(
                f"{name}: validation_fraction is {settings.validation_fraction:g}, which holds nothing out of "
                f"{len(rows)} sample(s); expected a larger fraction or more rows"
            )
        work = _Solver(name, settings, rows, torch.from_numpy(places).to(rows.device), held, classes)
        self._fitted = work.run()
        return self

    # ------------------------------------------------------------------------------------------- what was learned

    @property
    def coefs_(self) -> list[Any]:
        """The layers' weights, [out, in] float64, temperature included."""
        fitted = self._attribute("coefs_")
        return [layer.weight.t() if fitted.is_torch else layer.weight.t().cpu().numpy() for layer in fitted.layers]

    @property
    def intercepts_(self) -> list[Any]:
        """The layers' biases, [out] float64: 0, as rows of all layers have one sum."""
        fitted = self._attribute("intercepts_")
        return [layer.bias if fitted.is_torch else layer.bias.cpu().numpy() for layer in fitted.layers]

    @property
    def smoothings_(self) -> tuple[float, ...]:
        """ε of each layer."""
        return self._attribute("smoothings_").smoothings

    @property
    def temperatures_(self) -> tuple[float, ...]:
        """T of each layer."""
        return self._attribute("temperatures_").temperatures

    def to_sequential(self, *, dtype: torch.dtype = torch.float32, device: Any = None) -> nn.Sequential:
        """The same network as torch's Linear, Softmax, …, Linear, to be fine-tuned.

        It takes rows as `normalized` gives them, and its outputs are logits, for `nn.CrossEntropyLoss`:

            network = model.to_sequential()
            logits = network(model.normalized(x))

        Args:
            dtype: of its parameters.  device: None is where it was solved.
        """
        modules: list[nn.Module] = []
        for layer in self._learned().layers:
            modules += [layer.to_linear(dtype, device), nn.Softmax(dim=-1)]
        return nn.Sequential(*modules[:-1])

    def normalized(self, x: Any) -> Any:
        """Rows as the first layer sees them, K (x + o) / Σ (x + o), in x's kind and floating dtype."""
        rows = self._read(x)
        scaling = self._learned().scaling
        return rows.answer_rows(part for _, part in scaling.of(self._name, rows))

    # ------------------------------------------------------------------------------------------- parts

    def _logits(self, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
        fitted = self._learned()
        width = max(layer.weight.shape[1] for layer in fitted.layers)
        for part, seen in fitted.scaling.of(self._name, rows, width=width):
            yield part, fitted.layers[-1].logits(_through(fitted.layers[:-1], seen))

    def _checked(self) -> _Settings:
        name = self._name
        sizes = self.hidden if isinstance(self.hidden, tuple | list) else (self.hidden,)
        if not sizes:
            raise ValueError(f"{name}: hidden is {self.hidden!r}; expected a number of units, or a tuple of them")
        for size in sizes:
            check_size(name, "hidden", size)
        if not is_integer(self.iterations) or self.iterations < 0:
            raise ValueError(f"{name}: iterations is {self.iterations!r}; expected an integer of at least 0")
        return _Settings(
            tuple(int(size) for size in sizes),
            check_choice(name, "codes", self.codes, ("subclasses", "labels")),
            Scaling(
                check_number(name, "scale", self.scale, least=0, open_at_least=True),
                check_number(name, "offset", self.offset, least=0),
            ),
            check_searchable(name, "smoothing", self.smoothing, least=0),
            int(self.iterations),
            check_fraction(name, "validation_fraction", self.validation_fraction),
            check_seed(name, self.seed),
        )


class _Layer(NamedTuple):
    solution: Solution
    smoothing: float
    temperature: float


@dataclass(frozen=True, eq=False)
class _Solver:
    """One fit, layer by layer: from the rows that are kept, judged by those held out."""

    where: str
    settings: _Settings
    rows: Rows
    index: Tensor  # [N] int64, the classes
    held: Tensor  # [N] bool
    classes: np.ndarray

    def run(self) -> _Fitted:
        layers: list[_Layer] = []
        for size in self.settings.hidden:
            layers.append(self._hidden(_solutions(layers), size))
        layers.append(self._output(_solutions(layers)))
        return _Fitted(
            self.classes,
            self.settings.scaling,
            _solutions(layers),
            tuple(layer.smoothing for layer in layers),
            tuple(layer.temperature for layer in layers),
            self.rows.is_torch,
        )

    # ------------------------------------------------------------------------------------------- rows and counts

    def _blocks(self, below: tuple[Solution, ...], width: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """The rows as the layer on top of `below` sees them, in float32."""
        width = max(width, *(layer.weight.shape[1] for layer in below), 1)
        for part, seen in self.settings.scaling.of(self.where, self.rows, width=width, dtype=torch.float32):
            yield part, _through(below, seen)

    def _dense_blocks(self, below: tuple[Solution, ...]) -> Iterator[tuple[slice, Tensor]]:
        for part, rows in self._blocks(below):
            yield part, rows.to_dense() if rows.layout == torch.sparse_csr else rows

    def _counts(self, below: tuple[Solution, ...], places: Tensor, size: int) -> Counts:
        """F of `size` places that rows go to: of those that are kept."""
        apart = torch.where(self.held, size, places)  # the others go to one place more, which is left out
        if not below:
            counts = count(self.where, self.rows, apart, size + 1, self.settings.scaling)
            return Counts(counts.features.t()[:size].t(), counts.rows[:size])
        total = torch.zeros(size + 1, below[-1].weight.shape[1], dtype=torch.float64, device=self.rows.device)
        for part, h in self._blocks(below):
            total += cooccurrence(h, apart[part], size + 1).t()
        return Counts(total[:size].t(), torch.bincount(apart, minlength=size + 1)[:size])

    # ------------------------------------------------------------------------------------------- layers

    def _hidden(self, below: tuple[Solution, ...], size: int) -> _Layer:
        """A hidden layer of `size` units."""
        settings, classes = self.settings, len(self.classes)
        units = units_by_class(torch.bincount(self.index[~self.held], minlength=classes).cpu(), size)
        if settings.codes == "subclasses":
            blocks = partial(self._dense_blocks, below)
            places = subclasses(blocks, self.index, ~self.held, units, settings.iterations, settings.seed)
            return self._judged(below, self._counts(below, places, size))
        counts = self._counts(below, self.index, classes)
        codes = _codes_of_labels(units, settings.seed).to(self.rows.device)
        return self._judged(below, Counts(counts.features @ codes, codes.sum(0)))

    def _judged(self, below: tuple[Solution, ...], counts: Counts) -> _Layer:
        """The hidden layer whose smoothing and temperature have the least cross-entropy, by an output on top of it.

        Temperatures are tried from the best so far, upward and downward for as long as one is better than the last.
        """
        judges = self._judges()
        index = self.index[judges]
        scale = 1.0 if below or self.settings.scaling.scale is None else self.settings.scaling.scale
        temperatures = [scale * t for t in _HIDDEN_TEMPERATURES]
        outputs = _OUTPUT_SMOOTHINGS if self.settings.smoothing is None else (self.settings.smoothing,)
        at, least, best = len(temperatures) // 2, math.inf, None
        for smoothing in _HIDDEN_SMOOTHINGS if self.settings.smoothing is None else (self.settings.smoothing,):
            solution = self._solved(counts, smoothing, scale)
            judging, watched = [], []
            for part, seen in self._blocks(below, width=solution.weight.shape[1]):
                z = solution.logits(seen)
                judging.append(z[judges[part]])
                watched.append(z[self.held[part]])
            each = torch.cat(judging), torch.cat(watched)
            losses: dict[int, float] = {-1: math.inf, len(temperatures): math.inf}

            def loss(t: int, z: tuple[Tensor, Tensor] = each, losses: dict[int, float] = losses) -> float:
                if t not in losses:
                    h, seen = ((part / temperatures[t]).softmax(1) for part in z)
                    of_classes = Counts(cooccurrence(h, index, len(self.classes)), torch.bincount(index))
                    losses[t] = self._searched(of_classes, seen, outputs, tolerance=1e-3).loss
                return losses[t]

            for step in (1, -1):
                while loss(at + step) < loss(at):
                    at += step
            if best is None or loss(at) < least:
                least, best = loss(at), _Layer(solution.over(temperatures[at]), smoothing, temperatures[at])
        assert best is not None
        return best

    def _judges(self) -> Tensor:
        """[N] bool: the kept rows that a hidden layer is judged by, at most _ENOUGH."""
        kept = (~self.held).nonzero()[:, 0]
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(self.settings.seed), device="cpu")
        judges = torch.zeros_like(self.held)
        judges[kept[order[:_ENOUGH].to(kept.device)]] = True
        return judges

    def _output(self, below: tuple[Solution, ...]) -> _Layer:
        counts = self._counts(below, self.index, len(self.classes))
        watched = torch.cat([h[self.held[part]] for part, h in self._blocks(below)])
        smoothings = SMOOTHINGS if self.settings.smoothing is None else (self.settings.smoothing,)
        tuned = self._searched(counts, watched, smoothings)
        return _Layer(self._solved(counts, tuned.smoothing).over(tuned.temperature), tuned.smoothing, tuned.temperature)

    def _searched(
        self, counts: Counts, watched: Tensor, smoothings: tuple[float, ...], tolerance: float = 1e-12
    ) -> Tuned:
        """Smoothing and temperature of an output layer, by the hidden answers of the rows held out."""

        def logits_at(smoothing: float) -> Tensor:
            return self._solved(counts, smoothing).logits(watched)

        return search(smoothings, logits_at, self.index[self.held], None, tolerance=tolerance)

    def _solved(self, counts: Counts, smoothing: float, scale: float = 1.0) -> Solution:
        names = self.classes if counts.features.shape[1] == len(self.classes) else np.arange(counts.features.shape[1])
        return solve(self.where, counts, names, smoothing, "uniform", scale, "mass")


def _solutions(layers: list[_Layer]) -> tuple[Solution, ...]:
    return tuple(layer.solution for layer in layers)


def _through(layers: tuple[Solution, ...], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer.logits(x).softmax(1)
    return x


def _codes_of_labels(units: list[int], seed: int) -> Tensor:
    """[C, H]: a block of units for each class, with random weights so that units of a block differ."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.full((len(units), sum(units)), _SPREAD / sum(units), dtype=torch.float64, device="cpu")
    first = 0
    for c, size in enumerate(units):
        weights = -torch.rand(size, generator=generator, dtype=torch.float64, device="cpu").clamp(min=1e-12).log()
        codes[c, first : first + size] += (1 - _SPREAD) * weights / weights.sum()
        first += size
    return codes
