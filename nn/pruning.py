"""Units that never win, removed:  max_i (u_i + w_oi) does not change when an input i that no output takes is left out.

A tropical layer takes one input for each output. An input that wins nowhere on the samples x has no part in what the
network says of x, and neither have the row of the layer below that makes it, nor, where that layer is tropical too, the
inputs that won for this row alone. So outputs on x keep their bits. Source of the idea, for a linear
layer under a max-plus one: Zhang, Blusseau, Velasco-Forero, Bloch, Angulo, "Max-plus operators applied to filter
selection and model pruning in neural networks", ISMM 2019.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..kernels import tropical_matmul
from ..kernels.mathematics.semiring import semiring_zero
from .linear_min_max import LinearMinMax
from .maxplus import MaxPlusLinear, MinPlusLinear
from .maxplus_networks import MaxPlusMLP

# what lets each feature pass by itself, and so leaves a unit that is removed without a trace
_BY_FEATURE = (
    nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
)  # fmt: skip
# A product of matrices sums in another order where few columns are left, so that its bits may change. Columns in a
# multiple of this are summed as before by the BLAS that were tried; where even that fails, all are kept.
_COLUMNS = 16

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class PrunedUnits(Generic[Model]):
    """A network without the units that never win, and which these are. Layers go by their names in the model."""

    model: Model  # a copy; the network that was given is as it was
    kept: dict[str, Tensor]  # by tropical layer: the inputs that are left, int64, by their indices before
    removed: dict[str, Tensor]  # the others
    wins: dict[str, Tensor]  # [outputs, inputs] int64 before pruning: how often, on x, the output took the input
    weights: dict[str, int]  # weights of the layer that are left
    winning_weights: dict[str, int]  # those of them that ever win; the rest could be the semiring's zero
    samples: int  # rows of x
    parameters: tuple[int, int]  # numbers in the model, before and after

    def describe(self) -> list[str]:
        """A line for each tropical layer, and one for the model."""
        lines = []
        for name, kept in self.kept.items():
            total = len(kept) + len(self.removed[name])
            weights, winning = self.weights[name], self.winning_weights[name]
            lines.append(
                f"{name}: {len(kept):,} of {total:,} inputs are kept, {total - len(kept):,} removed; "
                f"{winning:,} of the {weights:,} weights left ever win ({winning / weights:.1%})"
            )
        before, after = self.parameters
        lines.append(
            f"{after:,} of {before:,} parameters ({after / before:.1%}); outputs on {self.samples:,} samples unchanged"
        )
        return lines


@torch.no_grad()
def prune_units(model: Model, x: Tensor, *, clear_weights: bool = False, batch: int = 4096) -> PrunedUnits[Model]:
    """Remove the units that never win on x; the outputs on x stay the same bits.

    Units are the inputs of MaxPlusLinear, MinPlusLinear and of both layers of LinearMinMax, for outputs that are not
    removed themselves. They go with what makes them: a row of nn.Linear, of a tropical layer, or of LinearMinMax's A.
    Chains are nn.Sequential, nested ones too, and MaxPlusMLP; each child of any other module is a chain of its own,
    whose outputs are all kept, as inside ResidualMaxPlus. Functions of each feature alone (nn.ReLU, nn.Dropout) may
    stand between a unit and its layer; what anything else makes is kept.

    The network that is left, evaluated in the same batches, is compared with the one that was given. A product of
    matrices may sum in another order when few of its columns are left: where that shows, linear layers keep some
    units that never win, up to a multiple of 16, and all of them where that does not help.

    The sizes of what is left are no longer those of the model's arguments: save the model, not its state_dict alone.

    Args:
        model: evaluated as by model.eval(), and not changed.
        x: [N, ...], N ≥ 1, as the model takes it.
        clear_weights: also set the tropical weights that never win to the semiring's zero, −∞ or +∞. Outputs on x
            stay; such a weight is never trained again.
        batch: samples at a time, at least 1.
    Returns:
        The smaller network; which inputs are left, and how often each won.
    Raises:
        TypeError: model is no nn.Module, x no tensor, or an output none.
        ValueError: no samples; a model without a tropical layer, or with one in two places; outputs that change
            because the model's own forward calls layers otherwise than one after another.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prune_units: model is a {type(model).__name__}; expected an nn.Module")
    if not isinstance(x, Tensor):
        raise TypeError(f"prune_units: x is a {type(x).__name__}; expected a torch.Tensor")
    if x.dim() == 0 or len(x) == 0 or batch < 1:
        raise ValueError(
            f"prune_units: x has shape {tuple(x.shape)}, batch is {batch}; expected [N, ...] with N ≥ 1, and at least 1"
        )
    watched = copy.deepcopy(model).eval()
    wins, hooks = _watch(watched)
    expected = _outputs(watched, x, batch)
    for hook in hooks:
        hook.remove()
    for columns in (1, _COLUMNS, None):
        smaller = copy.deepcopy(model)
        kept, weights = _prune(smaller, wins, columns, clear_weights)
        if _are_equal(_outputs(copy.deepcopy(smaller).eval(), x, batch), expected):
            break
    else:
        raise ValueError(
            f"prune_units: the outputs of {type(model).__name__} change when units that never win are removed: its "
            "forward uses layers otherwise than one after another; expected nn.Sequential, MaxPlusMLP or LinearMinMax"
        )
    removed = {
        name: (~torch.zeros(wins[name].shape[1], dtype=torch.bool).index_fill(0, at, True)).nonzero()[:, 0]
        for name, at in kept.items()
    }
    sizes = tuple(sum(p.numel() for p in network.parameters()) for network in (model, smaller))
    return PrunedUnits(
        smaller,
        kept,
        removed,
        wins,
        {name: total for name, (total, _) in weights.items()},
        {name: winning for name, (_, winning) in weights.items()},
        len(x),
        (sizes[0], sizes[1]),
    )


# ------------------------------------------------------------------------------------------------ chains


@dataclass(frozen=True, eq=False)
class _Tropical:
    """A tropical layer: a weight [outputs, inputs] of a module."""

    name: str
    module: nn.Module
    parameter: str
    semiring: str


@dataclass(frozen=True, eq=False)
class _Rows:
    """A linear layer: parameters of a module with a row for each output."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]


_Piece = _Tropical | _Rows | None  # None: makes what it makes of all that it gets


def _chains(module: nn.Module, name: str = "") -> Iterator[list[_Piece]]:
    """The chains of a module: pieces of which each feeds the next, and the last one's outputs are all needed."""
    pieces: list[_Piece] = []
    inner: list[tuple[nn.Module, str]] = []

    def collect(part: nn.Module, name: str) -> None:
        prefix = f"{name}." if name else ""
        # torch's own masks and parametrizations make a weight of something else: it cannot be cut
        is_plain = "weight" in part._parameters
        if isinstance(part, LinearMinMax):
            pieces.append(_Rows(f"{prefix}A", part, ("A",)))
            pieces.append(_Tropical(f"{prefix}W1", part, "W1", "min_plus"))
            pieces.append(_Tropical(f"{prefix}W2", part, "W2", "max_plus"))
        elif isinstance(part, MaxPlusLinear | MinPlusLinear) and is_plain:
            pieces.append(_Tropical(name or type(part).__name__, part, "weight", part.semiring))
        elif type(part) is nn.Linear and is_plain:  # a subclass may compute something else
            pieces.append(_Rows(name, part, ("weight", "bias") if part.bias is not None else ("weight",)))
        elif type(part) in (nn.Sequential, MaxPlusMLP):
            for child_name, child in part._modules.items():  # named_children leaves out a layer's second place
                if child is not None:
                    collect(child, prefix + child_name)
        elif type(part) not in _BY_FEATURE:
            pieces.append(None)
            inner.extend((child, prefix + child_name) for child_name, child in part.named_children())

    collect(module, name)
    yield pieces
    for child, child_name in inner:
        yield from _chains(child, child_name)


def _tropical(model: nn.Module) -> list[_Tropical]:
    """
    Raises:
        ValueError: there are none, or one is in two places.
    """
    layers = [piece for chain in _chains(model) for piece in chain if isinstance(piece, _Tropical)]
    if not layers:
        raise ValueError(
            f"prune_units: no tropical layer in {type(model).__name__}; expected MaxPlusLinear, MinPlusLinear or "
            "LinearMinMax, by itself, in nn.Sequential or in a module's children"
        )
    places: dict[int, str] = {}
    for piece in (piece for chain in _chains(model) for piece in chain if piece is not None):
        weight = getattr(piece.module, piece.parameter if isinstance(piece, _Tropical) else piece.parameters[0])
        if id(weight) in places:
            raise ValueError(
                f"prune_units: {places[id(weight)]} and {piece.name} of {type(model).__name__} are one layer in two "
                "places; expected layers of their own, as a unit that never wins here may win there"
            )
        places[id(weight)] = piece.name
    return layers


# ------------------------------------------------------------------------------------------------ winners


def _watch(model: nn.Module) -> tuple[dict[str, Tensor], list[torch.utils.hooks.RemovableHandle]]:
    """Counts of winners, [outputs, inputs] by layer, that grow with each call of the model; the hooks that count."""
    wins: dict[str, Tensor] = {}
    layers: dict[nn.Module, list[_Tropical]] = {}
    for layer in _tropical(model):
        wins[layer.name] = torch.zeros(getattr(layer.module, layer.parameter).shape, dtype=torch.int64, device="cpu")
        layers.setdefault(layer.module, []).append(layer)

    def counter(of_module: list[_Tropical]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            u = inputs[0]
            if isinstance(module, LinearMinMax):
                u = module.linear(u)
            u = u.reshape(-1, u.shape[-1])
            for layer in of_module:
                weight = getattr(module, layer.parameter)
                u, winners = tropical_matmul(u, weight.T, semiring=layer.semiring, return_indices=True)
                entries = winners + torch.arange(len(weight), device=winners.device) * weight.shape[1]
                counts = torch.bincount(entries.flatten(), minlength=weight.numel())
                wins[layer.name] += counts.view(weight.shape).cpu()

        return count

    return wins, [module.register_forward_pre_hook(counter(of_module)) for module, of_module in layers.items()]


def _outputs(model: nn.Module, x: Tensor, batch: int) -> Tensor:
    outputs = []
    for part in x.split(batch):
        output = model(part)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"prune_units: {type(model).__name__} returns a {type(output).__name__}; expected a torch.Tensor"
            )
        outputs.append(output)
    return torch.cat(outputs)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


# ------------------------------------------------------------------------------------------------ what is removed


def _prune(
    model: nn.Module, wins: dict[str, Tensor], columns: int | None, clear: bool
) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """Prune the model in place, from its outputs down; returns the inputs kept, and the weights left and winning."""
    kept: dict[str, Tensor] = {}
    weights: dict[str, tuple[int, int]] = {}
    for chain in _chains(model):
        outputs: Tensor | None = None  # of the present piece, those that are needed: indices, None for all
        for place in reversed(range(len(chain))):
            piece, maker = chain[place], chain[place - 1] if place else None
            if piece is None:
                outputs = None
            elif isinstance(piece, _Rows):
                for name in piece.parameters:
                    _keep(piece.module, name, outputs, 0)
                if outputs is not None and isinstance(piece.module, nn.Linear):
                    piece.module.out_features = len(outputs)
                outputs = None
            else:
                of_outputs = wins[piece.name] if outputs is None else wins[piece.name][outputs]
                inputs = _needed(of_outputs.any(dim=0), maker, columns)
                if clear:
                    _clear(piece, outputs, of_outputs > 0)
                _keep(piece.module, piece.parameter, outputs, 0)
                _keep(piece.module, piece.parameter, inputs, 1)
                left = of_outputs[:, inputs]
                kept[piece.name] = inputs
                weights[piece.name] = left.numel(), int((left > 0).sum())
                _set_sizes(piece, len(left), len(inputs))
                outputs = inputs
    return {name: kept[name] for name in wins}, {name: weights[name] for name in wins}


def _needed(winning: Tensor, maker: _Piece, columns: int | None) -> Tensor:
    """The inputs to keep: those that win, and others where their maker cannot do without them."""
    if maker is None or (columns is None and isinstance(maker, _Rows)):
        return torch.arange(len(winning), device="cpu")
    inputs, others = winning.nonzero()[:, 0], (~winning).nonzero()[:, 0]
    if columns is not None and isinstance(maker, _Rows):
        inputs = torch.cat([inputs, others[: -len(inputs) % columns]]).sort().values
    return inputs


def _keep(module: nn.Module, name: str, indices: Tensor | None, dimension: int) -> None:
    if indices is not None:
        old = getattr(module, name)
        chosen = old.index_select(dimension, indices.to(old.device)).contiguous()
        setattr(module, name, nn.Parameter(chosen, requires_grad=old.requires_grad))


def _clear(piece: _Tropical, outputs: Tensor | None, is_winning: Tensor) -> None:
    weight = getattr(piece.module, piece.parameter)
    winning = torch.zeros_like(weight, dtype=torch.bool)
    winning[slice(None) if outputs is None else outputs.to(weight.device)] = is_winning.to(weight.device)
    weight.masked_fill_(~winning, semiring_zero(piece.semiring, weight.dtype))


def _set_sizes(piece: _Tropical, outputs: int, inputs: int) -> None:
    if isinstance(piece.module, MaxPlusLinear | MinPlusLinear):
        piece.module.out_features, piece.module.in_features = outputs, inputs
    elif isinstance(piece.module, LinearMinMax) and piece.parameter == "W2":
        piece.module.classes, piece.module.hidden = outputs, inputs
