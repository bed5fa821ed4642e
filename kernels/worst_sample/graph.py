"""A sequence of launches, repeated: a CUDA graph where one can be captured, else one launch after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch

_REPEATS = 32  # that a graph holds


class Repeated:
    """Calls `launch` so many times, on a GPU mostly by replaying a graph of _REPEATS calls.

    launch: launches kernels on the current stream, always with the same arguments; one call too many changes nothing.
    """

    def __init__(self, launch: Callable[[], None], device: torch.device) -> None:
        self._launch, self._device = launch, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_compiled = False

    def __call__(self, count: int) -> None:
        if not self._is_compiled and count:  # by a launch outside the capture: inside, nothing may be
            self._launch()
            self._is_compiled = True
            count -= 1
        if self._device.type != "cuda" or count < _REPEATS:
            for _ in range(count):
                self._launch()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self._device), torch.cuda.graph(self._graph):
                for _ in range(_REPEATS):
                    self._launch()
        for _ in range(-(-count // _REPEATS)):
            self._graph.replay()
