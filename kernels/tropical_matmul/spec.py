"""The tropical product as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import log_matmul
from .. import tropical_winners_scatter as winners_scatter
from ..contract.misuses import misuse_of
from ..contract.registry import register
from ..contract.samples import INF, NAN, SPECIAL, normal_inputs, sampled, short
from ..contract.spec import Contender, Extra, Misuse, Scaling, Sizes, Spec
from ..contract.workloads import Call, Function, called, chunks, compiled, in_chunks, rivals, standard, trained
from ..mathematics.semiring import SELECTIVE
from ..runtime.arguments import FLOATS, INTEGERS
from . import _FORWARDS, SEMIRINGS, by_cpp, by_gluon, by_triton, refine, tropical_matmul, tropical_matmul_ref


def oracle(a, b, *, semiring="max_plus", temperature=1.0, return_indices=False, nan="propagate", out_dtype=None):
    """The definition with the public function's signature."""
    if out_dtype is not None:
        a, b = a.to(out_dtype), b.to(out_dtype)
    values, winners = tropical_matmul_ref(a, b, semiring=semiring, temperature=temperature, nan=nan)
    return (values, winners) if return_indices else values


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal A [M, K] and B [K, N]; integers from ±1000, or all of int8."""
    a, b = normal_inputs(seed, dtype, device, (shape["M"], shape["K"]), (shape["K"], shape["N"]))
    return a, b


# ------------------------------------------------------------------------------------------------ contenders


def _steps(shape: Sizes) -> int:
    return shape["M"] * shape["N"] * shape["K"]


def _output(a: Tensor, b: Tensor) -> tuple[int, int]:
    return a.shape[-2], b.shape[-1]


def _transposed(function: Function):
    """A contender that is given B's columns in one piece: K innermost."""
    return lambda a, b: called(function)(a, b.mT.contiguous())


def _dense(rows: Tensor, bt: Tensor) -> Tensor:
    """The candidates materialised."""
    return (rows.unsqueeze(1) + bt).amax(-1)


def _dense_with_winners(a: Tensor, b: Tensor) -> Call:
    return _transposed(in_chunks(lambda rows, bt: (rows.unsqueeze(1) + bt).max(-1), _candidates))(a, b)


def _candidates(rows: Tensor, bt: Tensor) -> int:
    return bt.numel()


def _dense_trained(a: Tensor, b: Tensor) -> Call:
    """Backprop through the materialised candidates, chunk after chunk of A's rows, dB summed over the chunks."""
    rows = [chunk.clone().requires_grad_() for chunk in chunks(a, b.numel())]
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


def _of_one_winner(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(1) + b.mT).max(-1).values


def _trained(product: Function):
    return trained(product, _output)


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

    return _trained(tropical_maxplus_matmul)(a, b)


WORKLOADS = standard(
    "",
    tropical_matmul,
    inputs,
    _output,
    _steps,
    "add_max",
    forward=(
        *rivals(_dense, _transposed, eager=in_chunks(_dense, _candidates)),
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
        Contender("torch.compile", "compiled", compiled(_of_one_winner, _trained), limit=200_000_000),
        Contender("tropical-gemm", "peer", _tropical_gemm_trained, requires="tropical_gemm"),
        Contender("torch.matmul", "scale", _trained(torch.matmul)),
    ),
    saves_winners=True,
    dtypes=(*FLOATS, torch.int32, torch.int16),  # sums of int8 do not fit into it: eager torch wraps around
)

# ------------------------------------------------------------------------------------------------ samples


@sampled
def samples(add, numbers) -> None:
    """Where implementations go wrong: ties, NaN, infinities, saturation, edges, strides, batches."""
    special = torch.tensor(SPECIAL)
    pairs_a, pairs_b = special.view(-1, 1, 1).expand(7, 1, 3).clone(), special.expand(7, 3, 7).clone()
    pairs_a[:, :, 1:] = -INF  # the pair under test first, then two candidates that lose, tie or are NaN
    pairs_b[:, 1:] = torch.tensor([[-INF], [2.0]])
    messy_a, messy_b = numbers.small(37, 41), numbers.small(41, 35)
    for x in (messy_a, messy_b):
        numbers.sprinkle(x, torch.tensor([NAN, INF, -INF, -INF]).repeat(6))
    messy_a[3], messy_a[4], messy_b[:, 5] = -INF, NAN, NAN
    for name in SELECTIVE:
        kwargs = {"semiring": name}
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for nan in ("propagate", "ignore"):
                label = f"{name}-{short(dtype)}-{nan}"
                add(f"special-{label}", pairs_a.to(dtype), pairs_b.to(dtype), nan=nan, **kwargs)
                add(f"messy-{label}", messy_a.to(dtype), messy_b.to(dtype), nan=nan, **kwargs)
        ties = numbers.small(2, 19, 67), numbers.small(67, 21)
        add(f"ties-{name}", *ties, **kwargs)
        for dtype in INTEGERS:
            low, high, label = torch.iinfo(dtype).min, torch.iinfo(dtype).max, f"{name}-{short(dtype)}"
            edge = torch.tensor([low, low + 1, -100, -1, 0, 1, 100, high - 1, high], dtype=dtype)
            long = edge.expand(9, 9).contiguous(), edge.view(-1, 1).expand(9, 17)
            add(f"saturating-{label}", edge.view(-1, 1), edge.view(1, -1), **kwargs)
            add(f"saturating-{label}-long", *long, **kwargs)
            # far beyond the bounds on both sides: the first to reach a bound wins
            add(f"clipped-{label}", numbers.bounded(dtype, 11, 37), numbers.bounded(dtype, 37, 19), **kwargs)
            add(f"ties-{label}", *(x.to(dtype) for x in ties), **kwargs)
            add(f"edge-{label}-K=0", torch.zeros(2, 0, dtype=dtype), torch.zeros(0, 3, dtype=dtype), **kwargs)
        for dtype in (torch.float16, torch.bfloat16):  # sums that must be rounded before they are compared: near ties
            a, b = numbers.normal(21, 65).to(dtype), numbers.normal(65, 18).to(dtype)
            add(f"rounding-{name}-{short(dtype)}", a * 30, b, **kwargs)
        for M, K, N in ((0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (0, 0, 0)):
            add(f"edge-{name}-{M}x{K}x{N}", torch.randn(M, K), torch.randn(K, N), **kwargs)
        add(f"edge-{name}-no-batch", torch.randn(0, 3, 4), torch.randn(0, 4, 5), **kwargs)
        add(f"all-lost-{name}", torch.full((3, 5), INF if name == "min_plus" else -INF), torch.zeros(5, 4), **kwargs)
        a, b = numbers.normal(2, 1, 9, 13), numbers.normal(3, 13, 11)
        add(f"broadcast-{name}", a, b, **kwargs)
        add(f"shared-right-{name}", a, b[0], **kwargs)
        add(f"shared-left-{name}", a[0, 0], b, **kwargs)
        add(f"wider-{name}", a.half(), b.half(), out_dtype=torch.float32, **kwargs)
        add(f"wider-{name}-int16", a.short(), b.short(), out_dtype=torch.int32, **kwargs)
    for T in (1.0, 0.05):
        a, b = numbers.normal(2, 9, 13), numbers.normal(13, 11)
        add(f"log-T={T}", a.clone(), b, semiring="log", temperature=T)
        a[0, 2], a[1, 3, 4], a[0, 1, 1] = -INF, INF, NAN
        add(f"log-T={T}-special", a, b, semiring="log", temperature=T)
        add(f"log-T={T}-ignore", a, b, semiring="log", temperature=T, nan="ignore")
    add("log-K=0", torch.randn(2, 0), torch.randn(0, 3), semiring="log")


def option_misuses(op: Function, *factors: Tensor) -> list[Misuse]:
    """The options that no product of these factors takes."""
    bad, log = misuse_of(partial(op, *factors)), misuse_of(partial(op, *factors), semiring="log")
    integers = misuse_of(op, semiring="log")
    return [
        bad("semiring", ValueError, "semiring is 'plus_times'; expected one of 'max_plus'", semiring="plus_times"),
        bad("nan", ValueError, "nan is 'skip'; expected 'propagate' or 'ignore'", nan="skip"),
        bad("narrower", TypeError, "out_dtype is torch.float16; expected a dtype of a's kind", out_dtype=torch.float16),
        log("cold", ValueError, "temperature is 0; expected a positive", temperature=0),
        log("temperature-nan", ValueError, "temperature is nan", temperature=NAN),
        log("log-winners", ValueError, "the log semiring has no winners", return_indices=True),
        integers("log-integers", TypeError, "a is torch.int32; the log semiring takes", *(x.int() for x in factors)),
    ]


def misuses(device: torch.device) -> list[Misuse]:
    a, b = torch.zeros(2, 3, device=device), torch.zeros(3, 4, device=device)

    bad = misuse_of(tropical_matmul)
    batches = a.expand(2, 2, 3), b.expand(3, 3, 4)
    return [
        bad("complex", TypeError, "b is torch.complex64; expected one of", a, b.to(torch.complex64)),
        bad("bool", TypeError, "a is torch.bool; expected one of", a.bool(), b.bool()),
        bad("vector", ValueError, r"a has shape \(3,\); expected \[\.\.\., M, K\]", a[0], b),
        bad("inner-size", ValueError, r"b has shape \(4, 3\); expected \[\.\.\., 3, N\]", a, b.mT),
        bad("batch", ValueError, r"b's batch \(3,\) does not broadcast with a's \(2,\)", *batches),
        *option_misuses(tropical_matmul, a, b),
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
            "cpp": (
                by_cpp.FORWARD,
                winners_scatter.by_cpp.SCATTER,
                log_matmul.by_cpp.FORWARD,
                log_matmul.by_cpp.BACKWARD,
            ),
            "gluon": (by_gluon.FORWARD, by_gluon.FIRST_SPLIT, refine.REFINE),
            "triton": (
                by_triton.FORWARD,
                winners_scatter.by_triton.SCATTER,
                winners_scatter.by_triton.STREAM,
                log_matmul.by_triton.FORWARD,
                log_matmul.by_triton.BACKWARD,
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
