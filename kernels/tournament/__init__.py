"""Tournament: the largest of n values and its index, kept while values change; an update costs O(touched · log n).

A short computational tree (Nesterov, 2012). Leaves are the n values; each node holds the winner of its FAN children, as
(value, index): the largest, of equals the lowest index, of any NaN the first, as in torch.max.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import listed, looks_at_values
from ..runtime.dispatch import operator
from ..runtime.implementations import Implementations
from . import by_cpp, by_triton
from .definition import DTYPES, first_of, node_count

__all__ = ["Tournament", "Winner"]

# ------------------------------------------------------------------------------------------------ build and update


def _build(leaves: Tensor, values: Tensor, indices: Tensor, largest: bool) -> None:
    """leaves [B, n] -> nodes [B, nodes], values and int64 indices; all contiguous."""
    if leaves.shape[0]:
        _BUILDS.of(leaves)(leaves, values, indices, largest)


def _update(leaves: Tensor, values: Tensor, indices: Tensor, positions: Tensor, new: Tensor, largest: bool) -> None:
    """leaves[b, positions[b, t]] ← new[b, t], and the nodes above; positions and new are [B, t], or [t] for all trees.

    Position −1 is skipped. One outside [−1, n) raises IndexError before anything is written: on the CPU, and on a GPU
    inside torch.autograd.detect_anomaly(), as it costs a synchronisation; elsewhere it is skipped too.
    """
    if leaves.shape[0] == 0 or positions.numel() == 0:
        return
    chosen = _UPDATES.backend_of(leaves)
    if chosen == "cpp":
        by_cpp.update(leaves, values, indices, positions, new, largest)
        return
    n = leaves.shape[1]
    if looks_at_values(leaves.device):
        lowest, highest = (int(x) for x in positions.aminmax())
        if lowest < -1 or highest >= n:
            raise IndexError(
                f"Tournament: positions reach from {lowest} to {highest}, out of range; expected [-1, {n}), -1 to "
                "skip; nothing was written"
            )
    if chosen == "triton":  # torch's reads all before it writes
        positions, new = (memory.apart(x, leaves, values, indices) for x in (positions, new))
    _UPDATES.functions[chosen](leaves, values, indices, positions, new, largest)


def _build_by_torch(leaves: Tensor, values: Tensor, indices: Tensor, largest: bool) -> None:
    """Nothing but the root is read: the nodes below it are left as they are."""
    values[:, -1], indices[:, -1] = first_of(leaves, largest)


def _update_by_torch(leaves, values, indices, positions, new, largest) -> None:
    rows = torch.arange(leaves.shape[0], device=leaves.device).unsqueeze(1)
    rows, positions, new = torch.broadcast_tensors(rows, positions, new.detach())
    good = (positions >= 0) & (positions < leaves.shape[1])
    leaves[rows[good], positions[good].long()] = new[good]
    _build_by_torch(leaves, values, indices, largest)


_BUILDS = Implementations(
    "Tournament", source=by_cpp.SOURCE, cpp=by_cpp.build, triton=by_triton.build, torch=_build_by_torch
)
_UPDATES = Implementations(
    "Tournament", source=by_cpp.SOURCE, cpp=by_cpp.update, triton=by_triton.update, torch=_update_by_torch
)


def _no_vmap(info, in_dims, *args) -> NoReturn:
    raise NotImplementedError(
        "Tournament: vmap does not apply, as it works in place; expected trees [..., n], which are a batch of their own"
    )


# ------------------------------------------------------------------------------------------------ operators

_BUILD = operator(
    "tournament_build(Tensor leaves, Tensor(a!) values, Tensor(b!) indices, bool largest) -> ()",
    _build,
    fake=lambda *args: None,
    vmap=_no_vmap,
)
_UPDATE = operator(
    "tournament_update(Tensor(a!) leaves, Tensor(b!) values, Tensor(c!) indices, Tensor positions, Tensor new, "
    "bool largest) -> ()",
    _update,
    fake=lambda *args: None,
    vmap=_no_vmap,
)

# ------------------------------------------------------------------------------------------------ public


class Winner(NamedTuple):
    """The result of `Tournament.winner`, named as that of torch.max."""

    value: Tensor
    index: Tensor


class Tournament:
    """The largest (or smallest) of n values, batched, and its index, kept up to date as single values change.

    Building costs O(n), an update O(touched · log n), the winner nothing: no method waits for a GPU, and after a first
    update of the same shape they can be captured in a CUDA graph. An update that touches so many leaves that a new
    build is cheaper builds anew. Not differentiable: it is bookkeeping for optimizers. Source: Nesterov, "Subgradient
    methods for huge-scale optimization problems", Mathematical Programming, 2012.

    Args:
        values: [..., n], n ≥ 1, of float64, float32, float16, bfloat16, int32, int16 or int8; copied.
        largest: the largest wins, or the smallest; of equals the lowest index, of any NaN the first, as in torch.max.

    Raises:
        TypeError: values is no strided tensor of a supported dtype.
        ValueError: values has no last dimension, or an empty one.

    torch.save, pickle and deepcopy take it as it is; `state_dict` holds the leaves, from which loading builds the tree.
    """

    def __init__(self, values: Tensor, *, largest: bool = True) -> None:
        _check_values("values", values)
        if values.dim() == 0 or values.shape[-1] == 0:
            raise ValueError(f"Tournament: values has shape {tuple(values.shape)}; expected [..., n], n at least 1")
        self.largest = bool(largest)
        self._batch = values.shape[:-1]
        leaves = values.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
        self._leaves = leaves.view(self._batch.numel(), values.shape[-1])
        nodes = self._leaves.shape[0], node_count(values.shape[-1])
        self._values = self._leaves.new_empty(nodes)
        self._indices = torch.empty(nodes, dtype=torch.int64, device=values.device)
        self._winner = self._root()
        self._build()

    def _root(self) -> Winner:
        return Winner(self._values[:, -1].view(self._batch), self._indices[:, -1].view(self._batch))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_winner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._winner = self._root()  # a copied view would be one of nothing

    def _build(self) -> None:
        _BUILD(self._leaves, self._values, self._indices, self.largest)

    @property
    def values(self) -> Tensor:
        """The values as they are now, [..., n]: to be read; changed by `update` alone."""
        return self._leaves.view(*self._batch, self._leaves.shape[-1])

    @property
    def winner(self) -> Winner:
        """(value [...], index int64 [...]): views that the next update changes; clone what is to stay."""
        return self._winner

    def update(self, positions: Tensor, values: Tensor) -> None:
        """values[..., positions] ← values, and the winner with them.

        Args:
            positions: int64 or int32 [t], the same in every tree, or [..., t]; −1 changes nothing. A position that
                comes twice for one tree takes the last of its values on the CPU, and any one of them on a GPU.
            values: [t] or [..., t], in the dtype and on the device of the tree's.

        Both may be views of `values` or `winner`: all is read before any of it is written.

        Raises:
            TypeError: a dtype or a type is none of the above.
            ValueError: shapes or devices do not fit.
            IndexError: a position outside [−1, n), with nothing written: on the CPU, and on a GPU inside
                torch.autograd.detect_anomaly(), as it costs a synchronisation; elsewhere on a GPU it is skipped.
        """
        self._check(positions, values)
        if len(self._batch) > 1:
            positions = positions.flatten(0, -2) if positions.dim() > 1 else positions
            values = values.flatten(0, -2) if values.dim() > 1 else values
        _UPDATE(self._leaves, self._values, self._indices, positions, values, self.largest)

    def _check(self, positions: Tensor, values: Tensor) -> None:
        leaves = self._leaves
        _check_values("values", values)
        memory.check_dense("Tournament", "positions", positions)
        if positions.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"Tournament: positions is {positions.dtype}; expected a tensor of int64 or int32")
        if values.dtype != leaves.dtype:
            raise TypeError(f"Tournament: values is {values.dtype}; expected the tree's {leaves.dtype}")
        for name, x in (("positions", positions), ("values", values)):
            if x.device != leaves.device:
                raise ValueError(f"Tournament: {name} is on {x.device}; expected the tree's {leaves.device}")
            if x.dim() != 1 and (x.dim() == 0 or x.shape[:-1] != self._batch):
                raise ValueError(
                    f"Tournament: {name} has shape {tuple(x.shape)}; expected [t], or {[*self._batch, 't']}"
                )
        if positions.shape[-1] != values.shape[-1]:
            raise ValueError(
                f"Tournament: values has shape {tuple(values.shape)}; expected [..., {positions.shape[-1]}], to follow "
                f"the {tuple(positions.shape)} of positions"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """{"values": the leaves [..., n]}, a copy."""
        return {"values": self.values.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes the leaves of a tree of the same shape and dtype, on any device, and builds anew.

        Raises:
            ValueError: no "values", or of another shape or dtype; nothing is changed.
        """
        values = state.get("values") if isinstance(state, Mapping) else None
        if values is None:
            came = f"keys {list(state)}" if isinstance(state, Mapping) else f"no dict, but a {type(state).__name__}"
            raise ValueError(f"Tournament: the state has {came}; expected 'values', as state_dict() gives it")
        _check_values("the state's values", values)
        if values.shape != self.values.shape or values.dtype != self._leaves.dtype:
            raise ValueError(
                f"Tournament: the state has {values.dtype} {tuple(values.shape)}; expected 'values', "
                f"{self._leaves.dtype} {tuple(self.values.shape)}"
            )
        self._leaves.copy_(values.reshape(self._leaves.shape))
        self._build()

    def __repr__(self) -> str:
        shape, dtype, device = tuple(self.values.shape), self._leaves.dtype, self._leaves.device
        return f"Tournament(shape={shape}, dtype={dtype}, device={device}, largest={self.largest})"


def _check_values(name: str, values: Any) -> None:
    memory.check_dense("Tournament", name, values)
    if values.dtype not in DTYPES:
        raise TypeError(f"Tournament: {name} is {values.dtype}; expected one of {listed(DTYPES)}")
