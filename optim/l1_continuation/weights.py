"""Weights of a network by name, as a point of the front keeps them: copied, compared, written into a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
_MOST_NAMES = 4  # in an error


def copied(state: Mapping[str, Tensor]) -> State:
    """The tensors of a state, copied to the CPU: training goes on in those of the model.

    Raises:
        TypeError: it is no mapping of names to tensors.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"the state is a {type(state).__name__}; expected a dict of names and tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"the state has {name!r}: {type(tensor).__name__}; expected names and tensors")
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a model, under every name that they have there."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def parameter_names(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))


def difference(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """A clause that says in which names or shapes `state` differs from `other`; None where it does not."""
    absent, unexpected = [name for name in other if name not in state], [name for name in state if name not in other]
    if absent or unexpected:
        parts = [f"it lacks {_listed(absent)}"] if absent else []
        return " and ".join([*parts, *([f"it has {_listed(unexpected)} besides"] if unexpected else [])])
    for name, tensor in state.items():
        if tensor.shape != other[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, not {tuple(other[name].shape)}"
    return None


def misfit(state: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """A clause that says why a state does not fit a model, to the name, shape and dtype; None where it does.

    A tensor of several names may come under one of them, and a buffer that the model does not save may be absent.
    """
    there = tensors_of(model)
    covered = {id(there[name]) for name in state if name in there}
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    needed = {n: t for n, t in there.items() if n in state or (id(t) in saved and id(t) not in covered)}
    clause = difference(state, needed)
    for name, tensor in state.items():
        if clause is None and tensor.dtype != there[name].dtype:
            clause = f"{name} is {tensor.dtype}, and {there[name].dtype} in the model: model.to({tensor.dtype}) first"
    return clause


@torch.no_grad()
def write(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Writes a state that fits into the model's own tensors."""
    there = tensors_of(model)
    for name, tensor in state.items():
        there[name].copy_(tensor)


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
