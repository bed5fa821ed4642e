"""The iterations as the tuner sees them: a run without end, timed some iterations at a time, proven by the definition.

Two samples that differ in their labels alone keep F above its target, and steps of c / √t end nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...autotune import Call, Tunable, Work, register
from . import by_cpp, by_triton
from .captured_loop import REPEATS
from .definition import LOSSES, Dense, Samples, Settings, State, Weights, beginning
from .loops import LOOPS

CPU = torch.device("cpu")
ITERATIONS = 16
SHAPES = {
    "digits": {"N": 1437, "d": 64, "p": 128, "q": 60, "K": 10},  # of scikit-learn
    "5000×784": {"N": 5000, "d": 784, "p": 1568, "q": 100, "K": 10},
    "500 digits": {"N": 500, "d": 64, "p": 128, "q": 60, "K": 10},  # one Triton program serves them
}
# of the cross-entropy in Triton: exp and log are each library's own
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def begin(
    shape: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device = CPU,
    loss: Literal["hinge", "cross_entropy"] = "hinge",
) -> State:
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
    weights, best = (Weights(*(w.to(device, dtype, copy=True) for w in (a, w1, w2))) for _ in range(2))
    settings = Settings(loss, step="sqrt", length=1.0)
    times = torch.zeros(N, dtype=torch.int64, device=device)
    samples = Samples(x.to(device, dtype), y.to(device), N)
    return State(settings, samples, weights, best, None, beginning(settings), times)


def _steps(loop: Dense | by_cpp.Sparse, iterations: int) -> Callable[[], tuple[Tensor, ...]]:
    trace = torch.empty(iterations, dtype=torch.float64, device="cpu")

    def call() -> tuple[Tensor, ...]:
        loop.run(iterations, trace)
        return trace, loop.state.weights.w1, loop.state.weights.w2

    return call


def calls(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """In C++ with each memory, in Triton with each loss; none where every iteration is dense."""
    backend_name = _backend(device, dtype)
    if dtype not in by_cpp.DTYPES or backend_name == "torch":
        return
    N, p, q, K = (shape[letter] for letter in "NpqK")
    if backend_name == "cpp":
        check = _proof(shape, dtype, device, "hinge", ITERATIONS, 0.0)
        for memory in by_cpp.MEMORIES:
            if by_cpp.bytes_needed(N, p, q, K, dtype.itemsize, memory) <= 1 << 30:
                fresh = partial(_begun_in_cpp, shape, dtype, memory)
                work = _work(ITERATIONS, 2, shape, dtype)
                yield Call(f"{ITERATIONS} iterations, {memory}", fresh(), check, work, fresh)
        return
    iterations = 4 * REPEATS if device.type == "cuda" else ITERATIONS  # replays of a graph, as in a long run
    for loss in LOSSES:
        fresh = partial(_begun_in_triton, shape, dtype, device, loss, iterations)
        check = _proof(shape, dtype, device, loss, iterations, 0.0 if loss == "hinge" else TOLERANCE[dtype])
        work = _work(iterations, 2 if loss == "hinge" else K, shape, dtype)
        name = f"{iterations} iterations, {loss.replace('_', '-')}"
        # Of an iteration the cost is what moved, which no listing tells. By the listing every config of the
        # cross-entropy is out on sm_90: `advance`, which has none, takes 8 bytes of stack.
        yield Call(name, fresh(), check, work, fresh, is_foreseeable=False)


def _backend(device: torch.device, dtype: torch.dtype) -> str:
    """The backend that a run takes; torch, which has no kernels with a config, where no other can run."""
    try:
        return LOOPS.backend_on(device, dtype)
    except RuntimeError:  # TROPIGRAD_BACKEND forces what cannot run here
        return "torch"


def _work(iterations: int, routes: int, shape: Mapping[str, int], dtype: torch.dtype) -> Work:
    leaves = iterations * routes * shape["N"] * (1 + shape["K"])  # one of each route's unit, and one of every class
    return Work(leaves, leaves * 2 * dtype.itemsize, "gather")


def _begun_in_cpp(shape: Mapping[str, int], dtype: torch.dtype, memory: str) -> Callable[[], tuple[Tensor, ...]]:
    return _steps(LOOPS.functions["cpp"](begin(shape, dtype), memory), ITERATIONS)


def _begun_in_triton(
    shape: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
    loss: Literal["hinge", "cross_entropy"],
    iterations: int,
) -> Callable[[], tuple[Tensor, ...]]:
    return _steps(LOOPS.functions["triton"](begin(shape, dtype, device, loss), ""), iterations)


def _proof(
    shape: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
    loss: Literal["hinge", "cross_entropy"],
    iterations: int,
    tolerance: float,
) -> Callable[[tuple[Tensor, ...]], None]:
    """Compares F and the weights after the first iterations with the definition's."""
    expected: list[Tensor] = []

    def check(got: tuple[Tensor, ...]) -> None:
        if not expected:
            expected.extend(_steps(LOOPS.functions["torch"](begin(shape, dtype, device, loss), ""), iterations)())
        for what, ours, definition in zip(("F", "W1", "W2"), got, expected, strict=True):
            torch.testing.assert_close(
                ours, definition, rtol=tolerance, atol=tolerance, msg=lambda why, what=what: f"{what} differs: {why}"
            )

    return check


register(
    Tunable(
        "worst_sample",
        SHAPES,
        (by_cpp.ITERATE, by_triton.PROGRAM, by_triton.ITERATION),
        calls,
        middle={"N": 1300, "d": 9, "p": 30, "q": 11, "K": 5},
        interpreted={"N": 33, "d": 4, "p": 8, "q": 5, "K": 3},
    )
)
