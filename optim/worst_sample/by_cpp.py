"""The iterations in C++ (by_cpp.cpp), called through ctypes on the tensors of a run."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...kernels.runtime import native
from ...kernels.tropical_matmul import tropical_matmul
from .definition import (
    IDLE,
    LOSSES,
    PATIENCE,
    STEPS,
    Activations,
    Moves,
    Observation,
    Progress,
    State,
    Weights,
    observe,
)

_SOURCE = Path(__file__).with_name("by_cpp.cpp")
DTYPES = (torch.float32, torch.float64)
MEMORIES = ("winners", "trees")
# SMALL: leaves that an iteration looks at, in all samples, before it takes threads. Every choice gives the same bits.
ITERATE = Tuned(
    "worst_sample.cpp",
    Space({"SMALL": (1 << 13, 1 << 15, 1 << 17, 1 << 19, 1 << 21), "threads": native.THREADS}),
    default=lambda problem: {"SMALL": 1 << 17, "threads": 0},
    source=_SOURCE,
)


_EXCHANGE = ctypes.CFUNCTYPE(ctypes.c_int)
_LOST = -1  # the status of a run whose exchange has failed


class _Problem(ctypes.Structure):
    """Mirrors `struct Problem` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("N", "training", "d", "p", "q", "K", "columns")),
        *(
            (name, ctypes.c_int64)
            for name in ("loss", "step", "trains_a", "has_trees", "idle_limit", "small", "threads", "tail")
        ),
        *((name, ctypes.c_double) for name in ("margin", "target", "patience", "mass")),
        *((name, ctypes.c_void_p) for name in ("x", "xt", "y")),
        *((f"{of}{name}", ctypes.c_void_p) for of in ("", "best_", "best_right_") for name in Weights._fields),
        *((name, ctypes.c_void_p) for name in ("z", "zt", "u", "ut", "unit_bound", "score_bound")),
        *((name, ctypes.c_void_p) for name in ("unit_third", "score_third", "f", "losses")),
        *((name, ctypes.c_void_p) for name in ("unit_winner", "score_winner", "unit_second", "score_second")),
        *((name, ctypes.c_void_p) for name in ("unit_trees", "score_trees", "is_right", "times_worst")),
        ("progress", ctypes.POINTER(Progress)),
        ("exchange", _EXCHANGE),
        *((name, ctypes.c_void_p) for name in ("seen", "seen_x")),
        ("first", ctypes.c_int64),
    )


@native.cached
def _functions(dtype: torch.dtype):
    library = native.library_of(_SOURCE, dtype)
    if library is None:
        return None
    problem = ctypes.POINTER(_Problem)
    library.worst_sample_project.argtypes = [problem]
    library.worst_sample_build.argtypes = [problem, ctypes.c_int]
    counter = ctypes.POINTER(ctypes.c_int64)
    pairs = (ctypes.c_void_p, ctypes.c_int64)
    library.worst_sample_follow.argtypes = [problem, ctypes.c_int, *pairs, *pairs, *pairs]
    library.worst_sample_run.argtypes = [problem, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, counter]
    return library


def is_available(dtype: torch.dtype) -> bool:
    """Whether the loop of this dtype could be compiled, now if need be. If it could not, one warning has told why."""
    return _functions(dtype) is not None


def bytes_needed(N: int, p: int, q: int, K: int, itemsize: int, memory: str) -> int:
    """Bytes that a memory takes beside the samples and the weights, at the most: the whole of z is counted."""
    index = _index(p, q).itemsize
    shared = N * ((p + q + K + 1) * itemsize + (q + K) * index + 1)
    if memory == "winners":
        return shared + N * ((p + 3 * q + 2 * K) * itemsize + (q + K) * index)
    return shared + N * (q * _power_of_two(p) + K * _power_of_two(q)) * index


def _is_mirrored(a: Tensor) -> bool:
    half = len(a) // 2
    return len(a) == 2 * half and torch.equal(a[half:], -a[:half])


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _index(p: int, q: int) -> torch.dtype:
    return torch.int16 if _power_of_two(max(p, q)) < 1 << 15 else torch.int32  # an absent leaf of a tree has a number


class Sparse:
    """Iterations that touch what moved: the caches u, I, f, J of all samples, and trees over their leaves if asked for.

    Raises:
        MemoryError: the caches do not fit.
    """

    def __init__(self, state: State, memory: str) -> None:
        samples, weights, settings = state.samples, state.weights, state.settings
        (p, d), q, K, N = weights.a.shape, len(weights.w1), len(weights.w2), len(samples.x)
        dtype, index, trees = weights.a.dtype, _index(p, q), memory == "trees"

        def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=weights.a.device)

        def empty(*shape: int, wanted: bool = True, dtype: torch.dtype = dtype) -> Tensor | None:
            return new(*shape, dtype=dtype) if wanted else None

        # A = λ[I; −I], as the networks start: half of z tells the other
        columns = p if settings.train_a or not _is_mirrored(weights.a) else p // 2
        self.state = state
        self._z = new(N, columns)
        self._u, self._f = new(N, q), new(K, N)
        self._losses = new(N)
        self._i, self._j = new(q, N, dtype=index), new(K, N, dtype=index)
        self._buffers = {  # the structure holds addresses alone
            "x": samples.x,
            "xt": samples.x.T.contiguous() if settings.train_a else None,
            "y": samples.y,
            "z": self._z,
            "zt": empty(columns, N, wanted=not trees),
            "u": self._u,
            "ut": empty(q, N, wanted=not trees),
            "unit_bound": empty(q, N, wanted=not trees),
            "score_bound": empty(K, N, wanted=not trees),
            "unit_third": empty(q, N, wanted=not trees),
            "score_third": empty(K, N, wanted=not trees),
            "f": self._f,
            "losses": self._losses,
            "unit_winner": self._i,
            "score_winner": self._j,
            "unit_second": empty(q, N, wanted=not trees, dtype=index),
            "score_second": empty(K, N, wanted=not trees, dtype=index),
            "unit_trees": empty(N, q, _power_of_two(p), wanted=trees, dtype=index),
            "score_trees": empty(N, K, _power_of_two(q), wanted=trees, dtype=index),
            "is_right": empty(N, dtype=torch.uint8),
            "times_worst": state.times_worst,
        }
        for of, iterate in (("", weights), ("best_", state.best), ("best_right_", state.best_right)):
            self._buffers |= {f"{of}{name}": getattr(iterate, name, None) for name in Weights._fields}
        self._problem = _Problem(
            **{name: None if x is None else x.data_ptr() for name, x in self._buffers.items()},
            N=N,
            training=samples.training,
            d=d,
            p=p,
            q=q,
            K=K,
            columns=columns,
            loss=LOSSES.index(settings.loss),
            step=STEPS.index(settings.step),
            trains_a=settings.train_a,
            has_trees=trees,
            idle_limit=IDLE,
            margin=settings.margin,
            target=settings.target,
            patience=PATIENCE,
            tail=math.ceil(state.mass),
            mass=state.mass,
            progress=ctypes.pointer(state.progress),
        )
        self._failures: list[BaseException] = []
        self._wide = index == torch.int32
        self._sizes = {"N": N, "d": d, "p": p, "q": q, "K": K, "memory": memory, "dtype": str(dtype)}
        self._ask()
        functions = _functions(dtype)
        assert functions is not None
        self._functions = functions
        _check(functions.worst_sample_project(self._problem))
        _check(functions.worst_sample_build(self._problem, self._wide))

    def _ask(self) -> None:
        config = ITERATE.config(self._sizes, self._z.device)
        self._problem.small = config["SMALL"]
        self._problem.threads = native.threads(config["threads"], 1, 0)  # of an iteration C++ itself looks at the work

    def run(self, iterations: int, trace: Tensor) -> int:
        """At most so many iterations; F after each goes to `trace` [iterations] float64. Returns how many were done."""
        done = ctypes.c_int64()
        self._ask()
        status = self._functions.worst_sample_run(self._problem, self._wide, iterations, trace.data_ptr(), done)
        if status == _LOST:
            raise self._failures.pop()
        _check(status)
        return done.value

    def share(self, exchange: Callable[[], None], seen: Tensor, x: Tensor | None, first: int) -> None:
        """From now on the run is of all ranks: `exchange` puts their worst sample in the place of this rank's.

        Args:
            exchange: called once an iteration; what it raises, `run` raises.
            seen: [5 + 4 routes] float64: of a sample ℓ, n, the largest score; how many validation samples are right;
                how many routes follow; then (k, j, i, c) of each.
            x: [d], its features; None where A is fixed.
            first: the number of the first of this rank's samples.
        """

        failures = self._failures  # without self, which would keep its caches alive in a circle

        def guarded() -> int:
            try:
                exchange()
            except BaseException as failure:  # also Ctrl-C: nothing may pass through C++
                failures.append(failure)
                return 1
            return 0

        self._buffers |= {"seen": seen, "seen_x": x}
        self._problem.seen, self._problem.seen_x = seen.data_ptr(), None if x is None else x.data_ptr()
        self._problem.first, self._problem.exchange = first, _EXCHANGE(guarded)

    def follow(self, moves: Moves) -> None:
        """Has the caches follow weights that the caller has moved."""
        lists = [torch.tensor(places, dtype=torch.int64, device="cpu") for places in moves]
        arguments = [value for places in lists for value in (places.data_ptr(), len(places))]
        self._ask()
        _check(self._functions.worst_sample_follow(self._problem, self._wide, *arguments))

    @property
    def z(self) -> Tensor:
        """A x, [N, p], or its first half where that tells the other."""
        return self._z

    @property
    def seen(self) -> Observation:
        losses = self._losses[: self.state.samples.training]
        return observe(self.state, losses, Activations(self._u, self._i.T, self._f.T, self._j.T))

    @property
    def activations(self) -> Activations:
        return Activations(self._u, self._i.T.long(), self._f.T, self._j.T.long())


def activate(z: Tensor, weights: Weights) -> Activations:
    """The activations by the fused products, which keep the winners and materialise nothing."""
    u = tropical_matmul(z, weights.w1.T, semiring="min_plus", return_indices=True)
    f = tropical_matmul(u.values, weights.w2.T, return_indices=True)
    return Activations(u.values, u.indices, f.values, f.indices)


def _check(status: int) -> None:
    if status:
        raise MemoryError("worst_sample: no memory for the moves of an iteration")
