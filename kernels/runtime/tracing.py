"""Public functions that torch.fx's tracers record whole, as they do torch's own: their checks are control flow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

_P = ParamSpec("_P")
_R = TypeVar("_R")


def traceable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, which hands a call to an argument that is no tensor but stands for one, such as torch.fx's proxy.

    Tensors that override torch's functions are left to the operators inside: torch would rebuild a named tuple that
    comes back to them from one argument, and fail.
    """

    @functools.wraps(function)
    def public(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if has_torch_function(given := tuple(_each((*args, *kwargs.values())))):
            stand_ins = tuple(x for x in given if hasattr(type(x), "__torch_function__") and not isinstance(x, Tensor))
            if stand_ins:
                return handle_torch_function(public, stand_ins, *args, **kwargs)
        return function(*args, **kwargs)

    return public


def _each(arguments: Iterable[Any]) -> Iterator[Any]:
    for x in arguments:
        if isinstance(x, list | tuple):
            yield from x
        else:
            yield x
