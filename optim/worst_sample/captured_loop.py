"""A sequence of launches, repeated: by a CUDA graph on a GPU that has them, else one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch

_REPEATS = 32  # that a graph holds: a replay costs the host as much as one launch


class Repeated:
    """Calls `launch` so many times, from _REPEATS on mostly by replaying a graph of so many calls.

    launch: launches kernels on the current device and stream, always with the same arguments. It must be harmless at
    the start, where a call compiles them and a capture follows; and a call too many, which a whole graph may come to.
    """

    def __init__(self, launch: Callable[[], None], device: torch.device) -> None:
        self._launch = launch
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        launch()  # nothing may compile inside a capture
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(_REPEATS):
                launch()

    def __call__(self, count: int) -> None:
        if self._graph is None or count < _REPEATS:
            for _ in range(count):
                self._launch()
        else:
            for _ in range(-(-count // _REPEATS)):
                self._graph.replay()
