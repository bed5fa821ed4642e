"""Misuses that follow from an op's arguments: no tensor, an unsupported dtype, two dtypes, another layout or device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Misuse:
    """A call that must fail: the error's type, and a pattern its message must contain."""

    id: str
    call: Callable[[], Any]
    error: type[Exception]
    match: str


def misuse_of(op: Callable[..., Any], **fixed: Any) -> Callable[..., Misuse]:
    """bad(id, error, match, *args, **kwargs) is the misuse op(*args, **kwargs), with the keywords `fixed` as well."""

    def bad(id: str, error: type[Exception], match: str, *args: Any, **kwargs: Any) -> Misuse:
        return Misuse(id, lambda: op(*args, **{**fixed, **kwargs}), error, match)

    return bad


def misuses_of(
    op: Callable[..., Any], arguments: Mapping[str, Tensor], dtypes: Collection[torch.dtype]
) -> list[Misuse]:
    """Calls in which the last float argument, or each of them, is what it must not be.

    Args:
        op: takes the arguments by place.
        arguments: of a call that passes, float32 on one device, by the names that messages have for them.
        dtypes: those that the op supports.
    """
    floats = [name for name, x in arguments.items() if x.is_floating_point()]
    (first, *others), last = floats, floats[-1]
    tensor = "(number or a )?torch.Tensor"
    place = rf"{_escaped(last)}( \(.*\))?( is)? on meta"

    def bad(id: str, error: type[Exception], match: str, change: Callable[[Tensor], Any], *names: str) -> Misuse:
        changed = [change(x) if name in names else x for name, x in arguments.items()]
        return Misuse(id, lambda: op(*changed), error, match)

    misuses = [
        bad("not-a-tensor", TypeError, f"{_escaped(last)} is a list; expected a {tensor}", lambda x: [1.0], last),
        bad("sparse", TypeError, f"{_escaped(last)} has layout torch.sparse_coo", Tensor.to_sparse, last),
    ]
    if torch.int64 not in dtypes:
        misuses.append(bad("int64", TypeError, f"{_escaped(first)} is torch.int64; expected", Tensor.long, *floats))
    if others:
        mixed = f"{_escaped(last)} is torch.float64.*expected one dtype"
        misuses.append(bad("mixed-dtypes", TypeError, mixed, Tensor.double, last))
        misuses.append(bad("device", ValueError, place, lambda x: x.to("meta"), last))
    return misuses


def _escaped(name: str) -> str:
    return name.replace("[", r"\[").replace("]", r"\]")
