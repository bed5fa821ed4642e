"""The same launches many times over: as a CUDA graph on a GPU that has them, else one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

REPEATS = 32  # that a graph holds: a replay costs the host as much as one launch


class Repeated:
    """Calls `launch` so many times, from REPEATS on mostly by replaying a graph of so many calls.

    launch: launches kernels on the current device and stream, always with the same arguments, and returns what Triton
    does: None of a launch that the tuner only plans. It must be harmless at the start, where a call compiles them and a
    capture follows; and a call too many, which a whole graph may come to.
    """

    def __init__(self, launch: Callable[[], Any], device: torch.device) -> None:
        self._launch = launch
        self._has_graphs = device.type == "cuda"
        self._graph = self._captured() if self._has_graphs else None

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        if self._launch() is None:  # nothing may compile inside a capture; and what is only planned leaves it empty
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(REPEATS):
                self._launch()
        return graph

    def __call__(self, count: int) -> None:
        if self._has_graphs and self._graph is None and count >= REPEATS:
            self._graph = self._captured()
        if self._graph is None or count < REPEATS:
            for _ in range(count):
                self._launch()
        else:
            for _ in range(-(-count // REPEATS)):
                self._graph.replay()
