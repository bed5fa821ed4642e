"""Makes a public function one call in the graph of torch.fx's tracers, which cannot follow the checks inside it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

_P = ParamSpec("_P")
_R = TypeVar("_R")

# types of arguments that stand for nothing but themselves
_PLAIN = (Tensor, torch.nn.Parameter, str, bool, int, float, type(None), torch.dtype)


def traceable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wraps a function so that an argument that stands for a tensor, such as torch.fx's Proxy, takes over its call.

    Tensors that override torch's functions (subclasses) are left to the operators that the function calls. Handed the
    whole call, torch would rebuild the named tuple that it returns from a single argument, and fail.
    """

    @functools.wraps(function)
    def public(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for x in (*args, *kwargs.values()):
            if type(x) not in _PLAIN and (proxies := stand_ins(*args, *kwargs.values())):
                return handle_torch_function(public, proxies, *args, **kwargs)
        return function(*args, **kwargs)

    return public


def stand_ins(*arguments: Any) -> list[Any]:
    """The arguments, and elements of lists and tuples among them, that are no tensors but stand for some."""
    stand_ins = []
    for argument in arguments:
        for x in argument if isinstance(argument, list | tuple) else (argument,):
            if type(x) not in _PLAIN and hasattr(type(x), "__torch_function__") and not isinstance(x, Tensor):
                stand_ins.append(x)
    return stand_ins
