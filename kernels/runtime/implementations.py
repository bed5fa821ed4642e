"""An op's functions by backend: the one list of the backends that it has, and the one place that chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import autotune
from . import backend, capture


class Implementations:
    """Functions of one signature, each named for the backend that it runs on.

    Args:
        op: the op's name, for errors.
        source: of the C++ kernel. Where no library can be made of it, torch serves.
        dtypes: those that a backend takes, where it takes fewer than the op does.
        gluon_serves: whether the Gluon kernels are to be chosen unforced, as `backend.choose` takes it.
        functions: cpp=, gluon=, triton= and torch=, as far as the op has them.
    """

    def __init__(
        self,
        op: str,
        *,
        source: Path | None = None,
        dtypes: Mapping[str, Collection[torch.dtype]] | None = None,
        gluon_serves: Callable[[str, torch.device, torch.dtype], bool] | None = None,
        **functions: Callable[..., Any],
    ) -> None:
        self.op, self.source, self.functions, self.backends = op, source, functions, tuple(functions)
        self._dtypes, self._gluon_serves = dtypes or {}, gluon_serves
        self._kept: dict[tuple[torch.device, torch.dtype, str], str] = {}
        _kept.append(self._kept)

    def of(self, x: Tensor) -> Callable[..., Any]:
        """The function for a call whose tensors are as x, by device and dtype. Errors are those of `backend.choose`."""
        return self.functions[self.backend_of(x)]

    def backend_of(self, x: Tensor) -> str:
        """The backend of such a call, by name."""
        return self.backend_on(x.device, x.dtype)

    def backend_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """The backend of calls on a device in a dtype, by name. That of a GPU's kernels is remembered."""
        if self._kept and (kept := self._kept.get((device, dtype, backend.forced()))):
            if device.type == "cuda":
                capture.watch(device)
            return kept
        name = backend.choose(self.op, device, self.offered(dtype), dtype, self.source, self._gluon_serves)
        # while a graph is captured, a Gluon kernel that was never compared must wait
        if name in ("gluon", "triton") and not autotune.capturing(device):
            self._kept[device, dtype, backend.forced()] = name
        return name

    def offered(self, dtype: torch.dtype) -> tuple[str, ...]:
        """The backends that take a dtype."""
        if not self._dtypes:
            return self.backends
        return tuple(name for name in self.backends if dtype in self._dtypes.get(name, (dtype,)))


_kept: list[dict[tuple[torch.device, torch.dtype, str], str]] = []  # of every op


def _forget(*change: int) -> None:
    for of_an_op in _kept:
        of_an_op.clear()


autotune.on_reload(_forget)
autotune.on_scope(_forget)
