"""Records the operators that calls reach, so that each is checked on what it really gets."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..runtime import backend

T = TypeVar("T")
OperatorCall = tuple[Any, tuple[Any, ...]]


def operator_calls(runs: Iterable[Callable[[], Any]], device: torch.device) -> list[OperatorCall]:
    """(operator, arguments) of the tropigrad operators that these calls on the CPU reach, with tensors on `device`.

    Each one shows a dtype, a rank, an option or an absent tensor of an operator's argument that none before it shows.
    """
    with backend.forcing("torch"), _Recorder() as recorder:
        for run in runs:
            run()
    chosen = sorted(covering(recorder.calls, _features), key=lambda call: call[0].name())
    return [(operator, tuple(_moved(argument, device) for argument in arguments)) for operator, arguments in chosen]


def covering(items: Iterable[T], features: Callable[[T], set[Hashable]]) -> list[T]:
    """The items that show a feature which none before them shows."""
    seen: set[Hashable] = set()
    chosen: list[T] = []
    for item in items:
        if new := features(item) - seen:
            seen |= new
            chosen.append(item)
    return chosen


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OperatorCall] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tropigrad":
            self.calls.append((func, tuple(_copied(argument) for argument in args)))
        return func(*args, **(kwargs or {}))


def _copied(argument: Any) -> Any:
    """Copies an argument as it came, though the operator writes it."""
    match argument:
        case Tensor():
            return argument.detach().clone().nan_to_num()  # opcheck takes a NaN for a difference from itself
        case list() | tuple():
            return [_copied(each) for each in argument]
    return argument


def _moved(argument: Any, device: torch.device) -> Any:
    match argument:
        case Tensor():
            return argument.to(device)
        case list():
            return [_moved(each, device) for each in argument]
    return argument


def _features(call: OperatorCall) -> set[Hashable]:
    operator, arguments = call
    return {(operator.name(), place, _kind(argument)) for place, argument in enumerate(arguments)}


def _kind(argument: Any) -> Hashable:
    match argument:
        case Tensor():
            return argument.dtype, argument.dim()
        case None | bool() | str():
            return argument
        case list():
            return tuple({_kind(each): None for each in argument if isinstance(each, Tensor)})
    return type(argument).__name__
