"""The methods, and a network's training by one of them, a mini-batch at a time.

Schedule: Friesen & Domingos, ICLR 2018, arXiv 1710.11573, and their released code: Adam, batches of 64, and the rate
× 0.1 at the start of epochs 200 and 250 of 300. Where there are fewer epochs it falls after as large a share of them.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....autotune.timing import synchronize
from ....kernels import hard_threshold
from ....nn import FTPROP_SETTINGS
from ...data import Dataset
from . import networks
from .images import Batches
from .networks import SMOOTH

NAME = "ftprop"
LOSS_TITLE = "Training loss"
RULES = ("soft_hinge", "sste", "ste", "hinge")  # those that are set side by side, of all that a threshold has
METHODS = (*RULES, *SMOOTH)
ACTIVATIONS = ("sign", "step", "quantized_relu")
_PAPERS = {name: FTPROP_SETTINGS[name] for name in ("convnet4", "convnet8")}
FULL_EPOCHS = _PAPERS["convnet4"].epochs
DROPS = tuple(epoch / FULL_EPOCHS for epoch in _PAPERS["convnet4"].milestones)
RATES = {"mlp": 1e-3} | {name: settings.lr for name, settings in _PAPERS.items()}
WEIGHT_DECAY = {"mlp": 0.0} | {name: settings.weight_decay["sign"] for name, settings in _PAPERS.items()}


@dataclass(frozen=True)
class Recipe:
    """One training: a network, the activation in it and its rule, and the schedule."""

    network: str = "mlp"
    rule: str = "soft_hinge"  # of a threshold's backward; or an activation of SMOOTH
    epochs: int = 20
    activation: str = "sign"  # the threshold, where the rule is one's
    seed: int = 0
    batch: int = 64
    packed: bool = True  # thresholds are kept as bits

    def check(self) -> None:
        """Raise ValueError where a setting is none of those there are."""
        for name, value, choices in (
            ("net", self.network, tuple(RATES)),
            ("activation", self.activation, ACTIVATIONS),
        ):
            if value not in choices:
                raise ValueError(f"train: {name} is {value!r}; expected one of {', '.join(choices)}")
        if self.rule not in SMOOTH:
            # the op says which rules a threshold has
            options = {"kind": "staircase", "steps": 3} if self.activation == "quantized_relu" else {}
            try:
                hard_threshold(torch.zeros(1), **{"kind": self.activation, **options}, rule=self.rule)
            except ValueError as error:
                raise ValueError(f"train: {error}; or {' or '.join(SMOOTH)}") from None
        for name, value in (("epochs", self.epochs), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"train: {name} is {value}; expected at least 1")

    @property
    def drops(self) -> list[int]:
        """The epochs, counted from 0, at whose start the rate falls to a tenth."""
        return [round(share * self.epochs) for share in DROPS]

    @property
    def is_short(self) -> bool:
        """Whether the paper trains this network for more epochs."""
        return self.network != "mlp" and self.epochs < FULL_EPOCHS

    @property
    def schedule(self) -> str:
        """The schedule, for people; a short one is named as such."""
        drops = " and ".join(str(drop) for drop in dict.fromkeys(self.drops) if 0 < drop < self.epochs)
        falls = f", a tenth of it after {drops}" if drops else ""
        short = f", a short schedule: the paper's is {FULL_EPOCHS}" if self.is_short else ""
        plural = "s" if self.epochs > 1 else ""
        return f"{self.epochs} epoch{plural}, rate {RATES[self.network]:g}{falls}{short}"


def methods_of(activation: str) -> tuple[str, ...]:
    """The methods that are set side by side; a staircase has no plain hinge."""
    return tuple(name for name in METHODS if name != "hinge" or activation != "quantized_relu")


def usual_epochs(network: str, dataset: Dataset) -> int:
    """The full schedule of a convolutional network where there is a GPU; elsewhere what takes minutes."""
    if network == "mlp":
        return 20 if len(dataset.y_train) < 10_000 else 5
    return FULL_EPOCHS if device().type == "cuda" else 5


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Training:
    """A network in training, a mini-batch at a time. Its clock stands still while batches are made and it is judged."""

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        recipe.check()
        self.recipe, self.dataset = recipe, dataset
        self.batches = Batches(dataset, recipe.seed, device())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = networks.build(recipe.network, recipe.activation, recipe.rule, self.batches, packed=recipe.packed)
        self.model = model.to(device())
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), RATES[recipe.network], weight_decay=WEIGHT_DECAY[recipe.network], fused=True
        )
        self.epoch = self.position = 0
        self.seconds: list[float] = []  # of each step of this epoch
        self.losses = self.right = 0.0  # of the epoch: sums over the samples so far
        self.order = self.batches.order(0)

    def advance(self) -> dict[str, Any] | None:
        """One mini-batch; at the end of an epoch, its record."""
        rows = self.order[self.position : self.position + self.recipe.batch]
        if self.position == 0:
            rate = RATES[self.recipe.network] * 0.1 ** sum(self.epoch >= drop for drop in self.recipe.drops)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        x, y = self.batches.drawn(rows, self.epoch, self.position)
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            # dropout draws the same in a run that is resumed
            torch.manual_seed((self.recipe.seed * 1_000_003 + self.epoch) * 1_000_003 + self.position)
            scores, loss = self.step(x, y)
        self.losses += loss.item() * len(rows)
        self.right += (scores.argmax(1) == y).sum().item()
        self.position += len(rows)
        return self._end_of_epoch() if self.position == len(self.order) else None

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step on these samples: scores and loss, of the weights before it."""
        synchronize()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        scores = self.model(x)
        loss = functional.cross_entropy(scores, y)
        loss.backward()
        self.optimizer.step()
        synchronize()
        self.seconds.append(time.perf_counter() - start)
        return scores.detach(), loss.detach()

    def _end_of_epoch(self) -> dict[str, Any]:
        self.epoch += 1
        record = {
            "kind": "training",
            "study": NAME,
            "dataset": self.dataset.name,
            "network": self.recipe.network,
            "activation": self.recipe.rule if self.recipe.rule in SMOOTH else self.recipe.activation,
            "rule": self.recipe.rule,
            "seed": self.recipe.seed,
            "iteration": self.epoch,
            "seconds": sum(self.seconds),
            "step_seconds": statistics.median(self.seconds),
            # JSON has no NaN: a training that has left the finite numbers has no loss
            "loss": self.losses / len(self.order) if math.isfinite(self.losses) else None,
            "train_accuracy": self.right / len(self.order),
            "test_accuracy": self.test_accuracy(),
        }
        self.position, self.losses, self.right, self.seconds = 0, 0.0, 0.0, []
        self.order = self.batches.order(self.epoch)
        return record

    @torch.no_grad()
    def test_accuracy(self) -> float:
        self.model.eval()
        right = sum((self.model(x).argmax(1) == y).sum().item() for x, y in self.batches.test())
        self.model.train()
        return right / len(self.dataset.y_test)

    def saved_bytes(self) -> int:
        """The bytes that one mini-batch's forward keeps for its backward."""
        x, y = self.batches.drawn(self.order[: self.recipe.batch], 0, 0)
        model = copy.deepcopy(self.model)  # a forward moves a batch norm's averages
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return saved_bytes(model, lambda: functional.cross_entropy(model(x), y))

    def state(self) -> dict[str, Any]:
        """All that the next mini-batches depend on."""
        scalars = {name: getattr(self, name) for name in ("epoch", "position", "seconds", "losses", "right")}
        return {**scalars, **{name: getattr(self, name).state_dict() for name in ("model", "optimizer")}}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in ("epoch", "position", "seconds", "losses", "right"):
            setattr(self, name, state[name])
        for name in ("model", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.order = self.batches.order(self.epoch)


def saved_bytes(model: nn.Module, forward: Any) -> int:
    """The bytes of all that autograd saves while `forward` runs; each storage once, the model's parameters not."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds on to the tensors, so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in parameters:
            kept[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
