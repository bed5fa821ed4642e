"""The iterations as the tuner sees them: a run without end, timed 16 iterations at a time, proven by the definition.

Two samples that differ in their labels alone keep F above its target, and steps of c / √t end nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ...autotune import Call, Tunable, Work, register
from ...kernels import backend
from . import by_cpp
from .definition import Dense, Samples, Settings, State, Weights, beginning

ITERATIONS = 16
SHAPES = {
    "digits": {"N": 1437, "d": 64, "p": 128, "q": 60, "K": 10},  # of scikit-learn
    "5000×784": {"N": 5000, "d": 784, "p": 1568, "q": 100, "K": 10},
}


def begin(shape: Mapping[str, int], dtype: torch.dtype) -> State:
    """Standard normal samples and weights, the same each time; A = [I; −I], as networks start."""
    N, d, p, q, K = (shape[letter] for letter in "NdpqK")
    generator = torch.Generator().manual_seed(0)
    x, w1, w2 = (
        torch.randn(size, generator=generator, dtype=torch.float64, device="cpu") for size in ((N, d), (q, p), (K, q))
    )
    y = torch.randint(0, K, (N,), generator=generator, dtype=torch.int32, device="cpu")
    x[-1], y[-1] = x[0], (y[0] + 1) % K
    half = torch.eye(p // 2, d, dtype=torch.float64, device="cpu")
    a = torch.cat([half, -half, x.new_zeros(p % 2, d)])
    weights, best = (Weights(*(w.to(dtype, copy=True) for w in (a, w1, w2))) for _ in range(2))
    settings = Settings(step="sqrt", length=1.0)
    times = torch.zeros(N, dtype=torch.int64, device="cpu")
    return State(settings, Samples(x.to(dtype), y, N), weights, best, None, beginning(settings), times)


def _steps(loop) -> Callable[[], tuple[Tensor, ...]]:
    trace = torch.empty(ITERATIONS, dtype=torch.float64, device="cpu")

    def call() -> tuple[Tensor, ...]:
        loop.run(ITERATIONS, trace)
        return trace, loop.state.weights.w1, loop.state.weights.w2

    return call


def calls(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """With each memory, where C++ serves."""
    if backend.choose("worst_sample", device, ("torch", "cpp"), dtype) != "cpp" or dtype not in by_cpp.DTYPES:
        return
    expected: list[Tensor] = []

    def check(got: tuple[Tensor, ...]) -> None:
        if not expected:
            expected.extend(_steps(Dense(begin(shape, dtype), by_cpp.activate))())
        for what, found, wanted in zip(("F", "W1", "W2"), got, expected, strict=True):
            assert torch.equal(found, wanted), f"{what} differs"

    N, p, q, K = (shape[letter] for letter in "NpqK")
    moved = ITERATIONS * 2 * N  # a leaf of two units, and one each of every class
    work = Work(moved * (1 + K), moved * (1 + K) * 2 * dtype.itemsize, "gather")
    for memory in by_cpp.MEMORIES:
        if by_cpp.bytes_needed(N, p, q, K, dtype.itemsize, memory) <= 1 << 30:
            fresh = partial(_begun, shape, dtype, memory)
            yield Call(f"{ITERATIONS} iterations, {memory}", fresh(), check, work, fresh)


def _begun(shape: Mapping[str, int], dtype: torch.dtype, memory: str) -> Callable[[], tuple[Tensor, ...]]:
    return _steps(by_cpp.Sparse(begin(shape, dtype), memory))


register(Tunable("worst_sample", SHAPES, (by_cpp.ITERATE,), calls))
