"""MaxPlusClassifier: a MaxPlusMLP under scikit-learn's conventions, trained by Adam on mini-batches.

logits = MaxPlusMLP((x − μ) / σ),   μ and σ of the features over the rows that it learned from
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import check_positive, check_size
from .explicit.estimator import Classifier
from .explicit.labels import classes_and_index, read_labels
from .explicit.rows import Rows, read_rows
from .explicit.settings import check_seed
from .maxplus_networks import MaxPlusMLP


@dataclass(frozen=True, eq=False)
class _Fitted:
    classes: np.ndarray
    mean: Tensor  # [D], float64
    scale: Tensor  # [D], float64: the standard deviation, 1 where it is 0
    network: MaxPlusMLP  # in float64, so that an answer does not depend on the other rows of its batch
    losses: tuple[float, ...]

    @property
    def n_features(self) -> int:
        return len(self.mean)


class MaxPlusClassifier(Classifier):
    """A network of linear and max-plus layers as an estimator: Linear → max_i u_i + w_oi, on standardised features.

    Features may have any sign and unit. Training is float32: Adam on the cross-entropy of shuffled mini-batches, whose
    rate falls linearly to 0. Answers are computed in float64.

    Args:
        hidden: the number of linear units, or a tuple of those of each block: `MaxPlusMLP`'s.
        epochs: passes over the rows.
        learning_rate: Adam's at the start.
        batch_size: rows of a step.
        seed: draws the initial weights and the order of the rows; torch's own generator is left as it was.

    x is [N, D]: an array, a list, or a torch tensor, on whose device it is trained; a sparse one is refused.

    Attributes, after learning:
        classes_: [C], NumPy.  n_features_in_: D.
        loss_curve_: the mean loss of each epoch.

    scikit-learn's conventions hold where that is installed. A call that is refused changes nothing.
    """

    _fitted: _Fitted | None

    def __init__(
        self,
        hidden: int | tuple[int, ...] = 64,
        *,
        epochs: int = 30,
        learning_rate: float = 0.01,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.positive_only = False
        return tags

    def fit(self, x: Any, y: Any) -> MaxPlusClassifier:
        """Learns from rows and their labels; forgets what was learned before.

        Args:
            x: [N, D].  y: [N].

        Raises:
            ValueError: an argument of the constructor, or a row or label, does not fit: entries that are not finite,
                labels that are fractions. The message names argument, row and value.
            TypeError: one of them is no number; x is sparse.
        """
        name = self._name
        for size in ("epochs", "batch_size"):
            check_size(name, size, getattr(self, size))
        check_positive(name, "learning_rate", self.learning_rate)
        seed = check_seed(name, self.seed)
        rows = self._dense(read_rows(name, x))
        classes, places = classes_and_index(name, read_labels(name, y, len(rows)))
        values, targets = rows.values.double(), torch.from_numpy(places).to(rows.device)
        mean, deviation = values.mean(0), values.std(0, correction=0)
        # of the rounding of a constant feature nothing is to be made large
        scale = torch.where(deviation > 1e-12 * values.abs().amax(0), deviation, 1.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MaxPlusMLP(rows.features, self.hidden, len(classes)).to(rows.device)
            losses = self._train(network, ((values - mean) / scale).float(), targets)
        self._fitted = _Fitted(classes, mean, scale, network.double().requires_grad_(False), losses)
        return self

    def _train(self, network: MaxPlusMLP, x: Tensor, targets: Tensor) -> tuple[float, ...]:
        steps = self.epochs * -(-len(x) // self.batch_size)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        losses = []
        with torch.enable_grad():
            for _ in range(self.epochs):
                total = torch.zeros((), device=x.device)
                for batch in torch.randperm(len(x), device="cpu").to(x.device).split(self.batch_size):
                    loss = nn.functional.cross_entropy(network(x[batch]), targets[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    falling.step()
                    total += loss.detach() * len(batch)
                losses.append(total / len(x))
        return tuple(torch.stack(losses).tolist())

    @property
    def loss_curve_(self) -> tuple[float, ...]:
        """The mean loss of each epoch."""
        return self._attribute("loss_curve_").losses

    def to_module(self, *, dtype: torch.dtype = torch.float32, device: Any = None) -> MaxPlusMLP:
        """The network as a module whose first layer standardises: it takes rows as `predict` does, and gives logits.

        Args:
            dtype: of its parameters.  device: None is where it was trained.
        """
        fitted = self._learned()
        network = copy.deepcopy(fitted.network).requires_grad_(True)
        first = network.layers[0]
        with torch.no_grad():
            first.weight /= fitted.scale
            first.bias -= first.weight @ fitted.mean
        return network.to(device=device, dtype=dtype)

    def _logits(self, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
        fitted = self._learned()
        width = max(*fitted.network.hidden, len(fitted.classes))
        with torch.no_grad():
            for part, block in rows.blocks(width):
                yield part, fitted.network((block.double() - fitted.mean) / fitted.scale)

    def _read(self, x: Any) -> Rows:
        return self._dense(super()._read(x))

    def _dense(self, rows: Rows) -> Rows:
        """
        Raises:
            TypeError: the rows are sparse.  ValueError: an entry is not finite; the message names it.
        """
        if rows.is_sparse:
            raise TypeError(f"{self._name}: Sparse data was passed, but dense data is required; expected x.toarray()")
        bad = ~rows.values.isfinite()
        if bad.any():
            row, feature = bad.nonzero()[0].tolist()
            value = rows.values[row, feature].item()
            raise ValueError(
                f"{self._name}: Input X contains {'NaN' if value != value else 'infinity'}: row {row} has {value} at "
                f"feature {feature}; expected finite numbers"
            )
        return rows
