"""The candidates as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...autotune import Problem
from ..contract.misuses import misuse_of
from ..contract.registry import register
from ..contract.samples import normal_inputs, sampled, short
from ..contract.spec import Contender, Extra, Misuse, Scaling, Sizes, Spec, Workload
from ..contract.workloads import called, compiled
from ..runtime.arguments import FLOATS
from . import CANDIDATES, by_cpp, by_triton, proximal_candidates, proximal_candidates_ref

H, ALPHAS = 0.1, (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)


def op(x: Tensor, d: Tensor, h: float = H, alphas: Sequence[float] = ALPHAS) -> Tensor:
    """Both results as one tensor [A, elements + 1] of x's dtype: g is the last column."""
    result = proximal_candidates(x, d, h, alphas)
    return _in_one(result[0], result[1])


def oracle(x: Tensor, d: Tensor, h: float = H, alphas: Sequence[float] = ALPHAS) -> Tensor:
    """The definition as `op` gives it."""
    return _in_one(*proximal_candidates_ref(x, d, h, torch.tensor(alphas, dtype=torch.float64)))


def _in_one(y: Tensor, g: Tensor) -> Tensor:
    return torch.cat((y[..., None].flatten(1), g.to(y)[:, None]), 1)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Weights x [M, N] of the size of 1/10, so that some reach 0, and d of the size of 1."""
    size = shape["M"], shape["N"]
    return normal_inputs(seed, dtype, device, size, size, scales=(0.1, 1.0))


def _plain(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    alphas = torch.tensor(ALPHAS, dtype=x.dtype, device=x.device)[:, None, None]
    u = x - H * alphas * d
    y = u.sign() * (u.abs() - H * (1 - alphas)).relu()
    return y, ((y - x) * d - y.abs() + x.abs()).sum((1, 2), dtype=torch.float64).to(x.dtype)


def _ours(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """y, and g in the dtype whose rounding the products of `_plain` have."""
    y, g = proximal_candidates(x, d, H, ALPHAS)
    return y, g.to(x.dtype)


WORKLOAD = Workload(
    "proximal candidates",
    (
        Contender("tropigrad", "ours", called(_ours)),
        Contender("eager", "dense", called(_plain)),
        Contender("torch.compile", "compiled", compiled(_plain, called)),
    ),
    operations=lambda shape: len(ALPHAS) * shape["M"] * shape["N"],
    bytes=lambda shape, itemsize: (2 + len(ALPHAS)) * shape["M"] * shape["N"] * itemsize,
    mix="mul_add",
)


@sampled
def samples(add, numbers) -> None:
    """Kinks, zeros, every dtype, one α and none, other steps, empty sizes."""
    x = torch.tensor([[-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 0.0, 2.0]])
    d = torch.tensor([[1.0, -1.0, 0.5, 0.0, 2.0, -2.0, -4.0, 1.0]])
    for dtype in FLOATS:
        add(f"kinks-{short(dtype)}", x.to(dtype), d.to(dtype), h=0.5, alphas=(0.0, 0.25, 0.5, 1.0))
    add("one", x, d, h=2.0, alphas=(0.75,))
    add("none", x, d, alphas=())
    add("scalar", x[0, 0], d[0, 0])
    for M, N in ((0, 3), (3, 0)):
        add(f"empty-{M}x{N}", torch.ones(M, N), torch.ones(M, N))
    big = numbers.normal(3, 5000)
    add("blocks", big, numbers.normal(3, 5000))


def misuses(device: torch.device) -> list[Misuse]:
    x = torch.zeros(2, 3, device=device)
    bad = misuse_of(proximal_candidates)
    return [
        bad("shapes", ValueError, r"d has shape \(2,\); expected \(2, 3\), that of x", x, x[:, 0], 0.1, [0.5]),
        bad("step-type", TypeError, "h is a str; expected a number", x, x, "0.1", [0.5]),
        bad("step", ValueError, "h is 0; expected a positive number", x, x, 0, [0.5]),
        bad("range", ValueError, r"alphas\[1\] is 1.5; expected a number from 0 to 1", x, x, 0.1, [0.5, 1.5]),
        bad("alpha", TypeError, "alphas has a str in it; expected numbers", x, x, 0.1, ["a"]),
        bad("alphas", TypeError, "alphas is a float; expected numbers or a torch.Tensor", x, x, 0.1, 0.5),
        bad("integers", TypeError, "alphas is torch.int64; expected", x, x, 0.1, torch.tensor([0, 1])),
        bad("rank", ValueError, r"alphas has shape \(1, 1\); expected \[A\]", x, x, 0.1, torch.ones(1, 1)),
    ]


def _inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...] | None:
    if int(problem["A"]) != len(ALPHAS):
        return None
    return inputs({"M": 1, "N": int(problem["size"])}, dtype, device, 0)


SPEC = register(
    Spec(
        name="proximal_candidates",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={"layer": {"M": 512, "N": 512}, "large": {"M": 2048, "N": 2048}},
        workloads=(WORKLOAD,),
        variants={"eight": {}},
        dtypes=FLOATS,
        small_shapes=({"M": 1, "N": 1}, {"M": 17, "N": 33}, {"M": 30, "N": 150}),
        samples=samples,
        particular_misuses=misuses,
        implementations=CANDIDATES,
        is_exact=lambda kwargs: False,
        no_gradient="a search for α: none flows through it",
        left_out={"ends": "g of the largest numbers is not finite in one order of additions, and is in another"},
        tuned={"cpp": (by_cpp.CANDIDATES,), "triton": (by_triton.CANDIDATES,)},
        scalings=lambda kwargs: (Scaling((1, 0), 1, lambda factor: {"h": H * factor}),),
        extra=Extra(inputs_at=_inputs_at),
    )
)
