"""The C++ kernel of feature fragility (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import native
from .by_torch import Network, columns_of, reduced

SOURCE = Path(__file__).with_name("by_cpp.cpp")

FRAGILITY = Tuned(
    "feature_fragility.cpp",
    Space({"threads": native.THREADS}),
    default=lambda problem: {"threads": 0},
    source=SOURCE,
)
_SMALL = 1 << 16  # leaves that one thread looks at before another would start
_SAMPLES = 1 << 10  # whose z is held at a time
_WIDTH = 8  # units are filled up to a multiple of so many: float64s of the widest vector


@native.cached
def _function():
    function = native.required("feature_fragility", SOURCE, torch.float64).feature_fragility
    pointer = ctypes.c_void_p
    function.argtypes = [*[pointer] * 7, ctypes.c_double, ctypes.c_double, pointer, pointer]
    return function


def compute(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """change [N, d] and classes [N, d] int64, as `by_torch.compute`."""
    network = _sorted(reduced(A, W1, W2))
    columns = columns_of(network.A, 2)
    slopes = network.A.T.contiguous()
    (N, d), (q, p) = x.shape, network.leaves.shape
    if columns is None:
        rows, leaves = slopes.new_empty(0, dtype=torch.int64), network.leaves.contiguous()
    else:
        rows = torch.where(columns.slopes != 0, columns.rows, -1)
        rows, leaves = torch.nn.functional.pad(rows, (0, 2 - rows.shape[1]), value=-1), network.leaves.T.contiguous()
    change, classes = torch.empty_like(x), torch.empty(x.shape, dtype=torch.int64)
    config = FRAGILITY.config({"N": N, "d": d, "q": q, "p": p, "dtype": str(x.dtype)}, x.device)
    for n in range(0, N, _SAMPLES):
        X = x[n : n + _SAMPLES].double()
        z = X @ slopes
        threads = native.threads(config["threads"], len(X) * q * p, _SMALL)
        problem = native.integers(len(X), d, p, q, columns is not None, threads)
        exact = torch.empty_like(X)
        addresses = (tensor.data_ptr() for tensor in (leaves, network.classes, slopes, rows, z, X))
        status = _function()(problem, *addresses, low, high, exact.data_ptr(), classes[n:].data_ptr())
        if status == 1:
            raise MemoryError("feature_fragility: no memory for the lines of a sample")
        if status:
            raise RuntimeError("feature_fragility: a walk along the lines did not end; please report this network")
        change[n : n + _SAMPLES] = torch.where(exact == -torch.inf, torch.inf, exact)
    return change, classes


def _sorted(network: Network) -> Network:
    """The units in the order of their classes, and units without a value behind them."""
    order = network.classes.argsort(stable=True)
    more = -len(order) % _WIDTH
    leaves = torch.nn.functional.pad(network.leaves[order], (0, 0, 0, more), value=-torch.inf)
    classes = torch.nn.functional.pad(network.classes[order], (0, more), value=torch.iinfo(torch.int64).max)
    return Network(network.A, leaves, classes)
