"""The tropical product as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import log_matmul
from .. import tropical_winners_scatter as winners_scatter
from ..contract.registry import register
from ..contract.spec import Contender, Extra, Misuse, Sample, Scaling, Sizes, Spec
from ..contract.workloads import Call, Function, called, standard, trained
from ..runtime.arguments import FLOATS, INTEGERS
from . import _FORWARDS, SEMIRINGS, by_cpp, by_gluon, by_triton, refine, tropical_matmul, tropical_matmul_ref

NAN, INF = float("nan"), float("inf")


def oracle(a, b, *, semiring="max_plus", temperature=1.0, return_indices=False, nan="propagate", out_dtype=None):
    """The definition with the public function's signature."""
    if out_dtype is not None:
        a, b = a.to(out_dtype), b.to(out_dtype)
    values, winners = tropical_matmul_ref(a, b, semiring=semiring, temperature=temperature, nan=nan)
    return (values, winners) if return_indices else values


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal A [M, K] and B [K, N]; integers from ±1000, or all of int8."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape["M"], shape["K"]), (shape["K"], shape["N"])
    if dtype.is_floating_point:
        a, b = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    else:
        bound = min(1000, torch.iinfo(dtype).max)
        a, b = (torch.randint(-bound, bound, size, generator=generator) for size in sizes)
    return a.to(device, dtype), b.to(device, dtype)


# ------------------------------------------------------------------------------------------------ contenders


def _steps(shape: Sizes) -> int:
    return shape["M"] * shape["N"] * shape["K"]


def _output(a: Tensor, b: Tensor) -> tuple[int, int]:
    return a.shape[-2], b.shape[-1]


def _trained(product: Function, a: Tensor, b: Tensor) -> Call:
    return trained(product, _output)(a, b)


_CANDIDATES_AT_A_TIME = 1 << 26  # 256 MiB in fp32: smaller problems are materialised whole


def _chunks(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return a.split(max(1, _CANDIDATES_AT_A_TIME // max(1, b.numel())))


def _dense(a: Tensor, b: Tensor) -> Call:
    """The candidates materialised, K innermost, as many rows at a time as fit."""
    bt = b.mT.contiguous()
    return lambda: (torch.cat([(rows.unsqueeze(1) + bt).amax(-1) for rows in _chunks(a, b)]),)


def _dense_with_winners(a: Tensor, b: Tensor) -> Call:
    bt = b.mT.contiguous()

    def call():
        parts = [(rows.unsqueeze(1) + bt).max(-1) for rows in _chunks(a, b)]
        return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

    return call


def _dense_trained(a: Tensor, b: Tensor) -> Call:
    """Backprop through the materialised candidates, chunk after chunk of A's rows, dB summed over the chunks."""
    rows = [chunk.clone().requires_grad_() for chunk in _chunks(a, b)]
    bt = b.mT.contiguous().requires_grad_()

    def call():
        values, das, dbt = [], [], torch.zeros_like(bt)
        for chunk in rows:
            c = (chunk.unsqueeze(1) + bt).max(-1).values
            da, dbt_part = torch.autograd.grad(c, (chunk, bt), torch.ones_like(c))
            values.append(c.detach())
            das.append(da)
            dbt += dbt_part
        return torch.cat(values), torch.cat(das), dbt.mT

    return call


def _compiled(a: Tensor, b: Tensor) -> Call:
    bt = b.mT.contiguous()
    product = torch.compile(lambda a, bt: (a.unsqueeze(1) + bt).amax(-1), dynamic=False)
    return lambda: (product(a, bt),)


def _compiled_trained(a: Tensor, b: Tensor) -> Call:
    product = torch.compile(lambda a, b: (a.unsqueeze(1) + b.mT).max(-1).values, dynamic=False)
    return _trained(product, a, b)


def _sesum(a: Tensor, b: Tensor) -> Call:
    import sesum

    x, y = a.numpy(), b.numpy()
    return lambda: (torch.from_numpy(sesum.sesum("ij,jk->ik", x, y, semiring=sesum.max_plus)),)


def _tropical_gemm(a: Tensor, b: Tensor) -> Call:
    import tropical_gemm

    x, y = a.numpy(), b.numpy()
    return lambda: (torch.from_numpy(tropical_gemm.maxplus_matmul_2d(x, y)),)


def _tropical_gemm_with_winners(a: Tensor, b: Tensor) -> Call:
    import tropical_gemm

    x, y, shape = a.numpy(), b.numpy(), (a.shape[0], b.shape[1])

    def call():
        values, winners = tropical_gemm.maxplus_matmul_with_argmax(x, y)
        return torch.from_numpy(values).view(shape), torch.from_numpy(winners).view(shape)

    return call


def _tropical_gemm_trained(a: Tensor, b: Tensor) -> Call:
    from tropical_gemm.pytorch import tropical_maxplus_matmul

    return _trained(tropical_maxplus_matmul, a, b)


WORKLOADS = standard(
    "",
    tropical_matmul,
    inputs,
    _output,
    _steps,
    "add_max",
    forward=(
        Contender("dense eager", "dense", _dense),
        Contender("torch.compile", "compiled", _compiled),
        Contender("tropical-gemm", "peer", _tropical_gemm, requires="tropical_gemm"),
        Contender("sesum", "peer", _sesum, requires="sesum"),
        Contender("torch.matmul", "scale", called(torch.matmul)),
    ),
    winners=(
        Contender("dense eager", "dense", _dense_with_winners),
        Contender("tropical-gemm", "peer", _tropical_gemm_with_winners, requires="tropical_gemm"),
    ),
    training=(
        Contender("dense autograd", "dense", _dense_trained),
        Contender("torch.compile", "compiled", _compiled_trained, limit=200_000_000),
        Contender("tropical-gemm", "peer", _tropical_gemm_trained, requires="tropical_gemm"),
        Contender("torch.matmul", "scale", trained(torch.matmul, _output)),
    ),
    saves_winners=True,
)

# ------------------------------------------------------------------------------------------------ samples


def samples(device: torch.device) -> list[Sample]:
    """Where implementations go wrong: ties, NaN, infinities, saturation, edges, strides, batches."""
    selective = {
        "max_plus": {"semiring": "max_plus"},
        "min_plus": {"semiring": "min_plus"},
        "max_times": {"semiring": "max_times"},
    }
    samples: list[Sample] = []

    def add(id: str, a: Tensor, b: Tensor, **kwargs) -> None:
        samples.append(Sample(id, (a.to(device), b.to(device)), kwargs))

    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0])
    pairs_a, pairs_b = special.view(-1, 1, 1).expand(7, 1, 3).clone(), special.expand(7, 3, 7).clone()
    pairs_a[:, :, 1:] = -INF  # the pair under test first, then two candidates that lose, tie or are NaN
    pairs_b[:, 1:] = torch.tensor([[-INF], [2.0]])

    def far_beyond(dtype: torch.dtype) -> tuple[Tensor, ...]:
        bounds = torch.iinfo(dtype)
        return tuple(
            torch.randint(bounds.min, bounds.max + 1, size, generator=generator) for size in ((11, 37), (37, 19))
        )

    messy_a, messy_b = (torch.randint(-2, 3, size, generator=generator).float() for size in ((37, 41), (41, 35)))
    for x in (messy_a, messy_b):
        where = torch.randperm(x.numel(), generator=generator)[:24]
        x.view(-1)[where] = torch.tensor([NAN, INF, -INF, -INF]).repeat(6)
    messy_a[3], messy_a[4], messy_b[:, 5] = -INF, NAN, NAN
    for name, kwargs in selective.items():
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for nan in ("propagate", "ignore"):
                label = f"{name}-{str(dtype).removeprefix('torch.')}-{nan}"
                add(f"special-{label}", pairs_a.to(dtype), pairs_b.to(dtype), nan=nan, **kwargs)
                add(f"messy-{label}", messy_a.to(dtype), messy_b.to(dtype), nan=nan, **kwargs)
        ties = (
            torch.randint(-2, 3, (2, 19, 67), generator=generator),
            torch.randint(-2, 3, (67, 21), generator=generator),
        )
        add(f"ties-{name}", *(x.float() for x in ties), **kwargs)
        for dtype in INTEGERS:
            low, high, label = torch.iinfo(dtype).min, torch.iinfo(dtype).max, str(dtype).removeprefix("torch.")
            edge = torch.tensor([low, low + 1, -100, -1, 0, 1, 100, high - 1, high], dtype=dtype)
            add(f"saturating-{name}-{label}", edge.view(-1, 1), edge.view(1, -1), **kwargs)
            add(
                f"saturating-{name}-{label}-long",
                edge.expand(9, 9).contiguous(),
                edge.view(-1, 1).expand(9, 17),
                **kwargs,
            )
            # far beyond the bounds on both sides: the first to reach a bound wins
            add(f"clipped-{name}-{label}", *(x.to(dtype) for x in far_beyond(dtype)), **kwargs)
            add(f"ties-{name}-{label}", *(x.to(dtype) for x in ties), **kwargs)
            add(f"edge-{name}-{label}-K=0", torch.zeros(2, 0, dtype=dtype), torch.zeros(0, 3, dtype=dtype), **kwargs)
        # sums that 16-bit floats must round before they are compared: many near ties
        for dtype in (torch.float16, torch.bfloat16):
            a, b = (torch.randn(size, generator=generator).to(dtype) for size in ((21, 65), (65, 18)))
            add(f"rounding-{name}-{str(dtype).removeprefix('torch.')}", a * 30, b, **kwargs)
        for M, K, N in ((0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (0, 0, 0)):
            add(f"edge-{name}-{M}x{K}x{N}", torch.randn(M, K), torch.randn(K, N), **kwargs)
        add(f"edge-{name}-no-batch", torch.randn(0, 3, 4), torch.randn(0, 4, 5), **kwargs)
        add(f"all-lost-{name}", torch.full((3, 5), INF if name == "min_plus" else -INF), torch.zeros(5, 4), **kwargs)
        a, b = (torch.randn(size, generator=generator) for size in ((2, 1, 9, 13), (3, 13, 11)))
        add(f"broadcast-{name}", a, b, **kwargs)
        add(f"shared-right-{name}", a, b[0], **kwargs)
        add(f"shared-left-{name}", a[0, 0], b, **kwargs)
        add(f"wider-{name}", a.half(), b.half(), out_dtype=torch.float32, **kwargs)
        add(f"wider-{name}-int16", a.short(), b.short(), out_dtype=torch.int32, **kwargs)
    for T in (1.0, 0.05):
        a, b = (torch.randn(size, generator=generator) for size in ((2, 9, 13), (13, 11)))
        add(f"log-T={T}", a, b, semiring="log", temperature=T)
        a[0, 2], a[1, 3, 4], a[0, 1, 1] = -INF, INF, NAN
        add(f"log-T={T}-special", a, b, semiring="log", temperature=T)
        add(f"log-T={T}-ignore", a, b, semiring="log", temperature=T, nan="ignore")
    add("log-K=0", torch.randn(2, 0), torch.randn(0, 3), semiring="log")
    return samples


def misuses(device: torch.device) -> list[Misuse]:
    a, b = torch.zeros(2, 3, device=device), torch.zeros(3, 4, device=device)

    def bad(id: str, error: type[Exception], match: str, *args, **kwargs) -> Misuse:
        return Misuse(id, lambda: tropical_matmul(*args, **kwargs), error, match)

    return [
        bad("complex", TypeError, "b is torch.complex64; expected one of", a, b.to(torch.complex64)),
        bad("bool", TypeError, "a is torch.bool; expected one of", a.bool(), b.bool()),
        bad("vector", ValueError, r"a has shape \(3,\); expected \[\.\.\., M, K\]", a[0], b),
        bad("inner-size", ValueError, r"b has shape \(4, 3\); expected \[\.\.\., 3, N\]", a, b.mT),
        bad(
            "batch",
            ValueError,
            r"b's batch \(3,\) does not broadcast with a's \(2,\)",
            a.expand(2, 2, 3),
            b.expand(3, 3, 4),
        ),
        bad(
            "semiring", ValueError, "semiring is 'plus_times'; expected one of 'max_plus'", a, b, semiring="plus_times"
        ),
        bad("nan", ValueError, "nan is 'skip'; expected 'propagate' or 'ignore'", a, b, nan="skip"),
        bad("cold", ValueError, "temperature is 0; expected a positive", a, b, semiring="log", temperature=0),
        bad("temperature-nan", ValueError, "temperature is nan", a, b, semiring="log", temperature=NAN),
        bad("log-winners", ValueError, "the log semiring has no winners", a, b, semiring="log", return_indices=True),
        bad("log-integers", TypeError, "a is torch.int32; the log semiring takes", a.int(), b.int(), semiring="log"),
        bad(
            "narrower",
            TypeError,
            "out_dtype is torch.float16; expected a dtype of a's kind",
            a,
            b,
            out_dtype=torch.float16,
        ),
    ]


def huge(device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    a = torch.arange(70_000, device=device).remainder(97).half().view(-1, 1)
    b = torch.arange(31_000, device=device).remainder(89).half().view(1, -1)
    return (a, b), (a[-2:], b)


def scattered(winners: Tensor) -> tuple[Tensor, ...]:
    dc = torch.arange(winners.numel(), dtype=torch.float32, device=winners.device).view_as(winners)
    return torch.ops.tropigrad.tropical_winners_scatter(dc, winners, None, None, 4, "max_plus", True, True)


def supports(dtype: torch.dtype, kwargs) -> bool:
    """The log semiring has no integers and no winners."""
    return kwargs.get("semiring") != "log" or (dtype.is_floating_point and not kwargs.get("return_indices"))


def scalings(kwargs) -> tuple[Scaling, ...]:
    if kwargs["semiring"] == "max_times":
        return Scaling((1, 0), 1), Scaling((1, -1), 0)
    return (Scaling((1, 1), 1, lambda factor: {"temperature": factor}),)  # which the log semiring alone looks at


SPEC = register(
    Spec(
        name="tropical_matmul",
        op=tropical_matmul,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "S1": {"M": 256, "K": 512, "N": 512},
            "S2": {"M": 1024, "K": 1024, "N": 1024},
            "S3": {"M": 64, "K": 784, "N": 1024},
        },
        workloads=WORKLOADS,
        variants={name: {"semiring": name} for name in SEMIRINGS},
        dtypes=(*FLOATS, *INTEGERS),
        small_shapes=(
            {"M": 1, "K": 1, "N": 1},
            {"M": 3, "K": 70, "N": 130},
            {"M": 65, "K": 17, "N": 33},
        ),
        samples=samples,
        particular_misuses=misuses,
        implementations=_FORWARDS,
        middle={"M": 130, "K": 1100, "N": 150},
        interpreted={"M": 9, "K": 17, "N": 8},
        supports=supports,
        is_exact=lambda kwargs: kwargs.get("semiring") != "log",
        fewer_backends=lambda kwargs: log_matmul._FORWARDS.backends if kwargs.get("semiring") == "log" else None,
        tuned={
            "cpp": (by_cpp.FORWARD, winners_scatter.by_cpp.SCATTER),
            "gluon": (by_gluon.FORWARD, by_gluon.FIRST_SPLIT, refine.REFINE),
            "triton": (
                by_triton.FORWARD,
                winners_scatter.by_triton.SCATTER,
                winners_scatter.by_triton.STREAM,
                log_matmul.FORWARD,
                log_matmul.BACKWARD,
            ),
        },
        scalings=scalings,
        aliased={
            "twice": lambda x: (x, x),
            "transposed": lambda x: (x, x.mT),
            "rows": lambda x: (x[1:4], x),
            "columns": lambda x: (x, x[:, ::2]),
            "expanded": lambda x: (x[0].expand(6, 6), x),
        },
        extra=Extra(huge=huge, scatter=(scattered, 4)),
    )
)
