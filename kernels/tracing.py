"""Public functions that torch.fx's tracers record whole, as they do torch's own: their checks are control flow."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

_P = ParamSpec("_P")
_R = TypeVar("_R")

_PLAIN = (
    Tensor,
    torch.nn.Parameter,
    str,
    bool,
    int,
    float,
    type(None),
    torch.dtype,
)  # of these none stands for another


def traceable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, which hands a call to an argument that is no tensor but stands for one, such as torch.fx's proxy.

    Tensors that override torch's functions are left to the operators inside: torch would rebuild a named tuple that
    comes back to them from one argument, and fail.
    """

    @functools.wraps(function)
    def public(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for x in (*args, *kwargs.values()):
            if type(x) not in _PLAIN and (proxies := stand_ins(*args, *kwargs.values())):
                return handle_torch_function(public, proxies, *args, **kwargs)
        return function(*args, **kwargs)

    return public


def stand_ins(*arguments: Any) -> list[Any]:
    """Of arguments, and of what lists and tuples among them hold, those that are no tensors but stand for some."""
    stand_ins = []
    for argument in arguments:
        for x in argument if isinstance(argument, list | tuple) else (argument,):
            if type(x) not in _PLAIN and hasattr(type(x), "__torch_function__") and not isinstance(x, Tensor):
                stand_ins.append(x)
    return stand_ins
