"""The readout as data, of a dense and of a sparse weight: shapes, costs, rivals, samples and misuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..contract.registry import register
from ..contract.spec import Contender, Misuse, Sample, Scaling, Sizes, Spec, Workload
from ..contract.workloads import Call, called, rivals, standard, trained
from ..runtime.arguments import FLOATS
from ..runtime.csr import as_sparse_csr
from . import _DENSE, _SPARSE, by_cpp, by_triton, gather_softmax, gather_softmax_ref
from .definition import SPARSE_DTYPES


def _of(readout: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The readout of weight [D, V], contexts [B, K], targets [B, 1], bias [1, V] and weights [1, K]: matrices alone."""

    def of_matrices(weight, contexts, targets, bias, weights, *, bare: bool = False) -> Tensor:
        if bare:  # neither bias nor weights, whose gradients are 0
            return readout(weight, contexts, targets[:, 0]) + 0 * (bias.sum() + weights.sum())
        return readout(weight, contexts, targets[:, 0], bias=bias[0], weights=weights[0])

    return of_matrices


op, oracle = _of(gather_softmax), _of(gather_softmax_ref)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """weight, bias and weights standard normal; contexts and targets at random, some contexts −1."""
    B, K, D, V = (shape[letter] for letter in ("B", "K", "D", "V"))
    generator = torch.Generator().manual_seed(seed)
    weight, bias, weights = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)
        for size in ((D, V), (1, V), (1, K))
    )
    contexts, targets = (torch.randint(0, high, size, generator=generator) for high, size in ((D, (B, K)), (V, (B, 1))))
    contexts.view(-1)[3::7] = -1
    return weight, contexts.to(device), targets.to(device), bias, weights


# ------------------------------------------------------------------------------------------------ contenders


def _dense(weight, contexts, targets, bias, weights) -> Tensor:
    """All logits."""
    rows = weight[contexts.clamp(min=0)] * (weights[0].unsqueeze(-1) * (contexts >= 0).unsqueeze(-1))
    return cross_entropy(rows.sum(1) + bias[0], targets[:, 0], reduction="none")


def _output(weight, contexts, targets, bias, weights) -> tuple[int, ...]:
    return (len(contexts),)


def _logits(shape: Sizes) -> int:
    return shape["B"] * shape["V"] * (shape["K"] + 1)


WORKLOADS = standard(
    "readout",
    op,
    inputs,
    _output,
    _logits,
    "gather",
    forward=rivals(_dense, called, "all logits"),
    training=rivals(_dense, partial(trained, output=_output), "all logits"),
)

# ------------------------------------------------------------------------------------------------ samples


def _samples(dtypes: tuple[torch.dtype, ...], device: torch.device) -> list[Sample]:
    """Logarithms of 0, NaN, infinities, logits beyond exp, contexts of nothing, one column, no position."""
    samples: list[Sample] = []

    def add(id: str, args: tuple[Tensor, ...], **kwargs) -> None:
        samples.append(Sample(id, args, kwargs))

    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        shape = {"B": 4, "K": 3, "D": 5, "V": 37}
        weight, contexts, targets, bias, weights = inputs(shape, dtype, device, 0)
        weights = weights.abs()
        for label, value in (("zero", -float("inf")), ("nan", float("nan")), ("infinity", float("inf"))):
            special = weight.clone()
            special[contexts[0, 0], 3] = value
            add(f"{label}-{name}", (special, contexts, targets, bias, weights))
        barred = bias.clone()
        barred[0, targets[1, 0]] = -float("inf")
        add(f"barred-{name}", (weight, contexts, targets, barred, weights))
        add(f"nothing-{name}", (weight, torch.full_like(contexts, -1), targets, bias, weights))
        add(f"bare-{name}", (weight, contexts, targets, bias, weights), bare=True)
        add(f"large-{name}", (weight * 64, contexts, targets, bias, weights))
        add(f"one-column-{name}", inputs({**shape, "V": 1}, dtype, device, 0))
        add(f"no-position-{name}", (weight, contexts[:0], targets[:0], bias, weights))
        add(f"wide-{name}", inputs({"B": 2, "K": 2, "D": 3, "V": 2100}, dtype, device, 0))
    return samples


def misuses(device: torch.device) -> list[Misuse]:
    weight, contexts, targets, bias, weights = inputs({"B": 3, "K": 2, "D": 4, "V": 5}, torch.float32, device, 0)
    targets, bias, weights = targets[:, 0], bias[0], weights[0]

    def bad(id: str, error: type[Exception], match: str, *changed: Any, **options: Any) -> Misuse:
        args = (*changed, *(weight, contexts, targets)[len(changed) :])
        return Misuse(id, lambda: gather_softmax(*args, **options), error, match)

    misuses = [
        bad("not-a-tensor", TypeError, "weight is a list; expected a torch.Tensor", [1.0]),
        bad("coo", TypeError, "weight has layout torch.sparse_coo; expected torch.strided: .*csr", weight.to_sparse()),
        bad("int64", TypeError, "weight is torch.int64; expected one of float64", weight.long()),
        bad("sparse-half", TypeError, "weight is torch.float16 and sparse", as_sparse_csr(weight.half())),
        bad("vector", ValueError, r"weight has shape \(5,\); expected \[D, V\]", weight[0]),
        bad("float-contexts", TypeError, "contexts is torch.float32; expected integers", weight, contexts.float()),
        bad("bool-contexts", TypeError, "contexts is torch.bool; expected integers", weight, contexts > 0),
        bad("flat-contexts", ValueError, r"contexts has shape \(6,\); expected \[B, K\]", weight, contexts.view(-1)),
        bad("targets", ValueError, r"targets has shape \(2,\); expected \(3,\)", weight, contexts, targets[:2]),
        bad("far-targets", ValueError, "targets is on meta, weight is on", weight, contexts, targets.to("meta")),
        bad("bias", ValueError, r"bias has shape \(4,\); expected \[V\], V = 5", bias=bias[:4]),
        bad("weights", ValueError, r"weights has shape \(1,\); expected \[K\], K = 2", weights=weights[:1]),
        bad("mixed-dtypes", TypeError, "weights is torch.float64, .*expected one dtype", weights=weights.double()),
        bad("narrow-bias", TypeError, "bias is torch.float16, .*expected one dtype", bias=bias.half()),
        bad("device", ValueError, "bias is on meta, weight is on", bias=bias.to("meta")),
        bad("list-of-weights", TypeError, "weights is a list; expected a torch.Tensor", weights=[1.0, 2.0]),
    ]
    if device.type == "cpu":
        misuses += [
            bad("beyond", IndexError, r"contexts reach from .* to 9, out of range", weight, contexts.clamp(min=9)),
            bad("below", IndexError, r"targets reach from -1 to", weight, contexts, targets - targets.min() - 1),
        ]
    return misuses


SPEC = register(
    Spec(
        name="gather_softmax",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "words": {"B": 1024, "K": 4, "D": 4096, "V": 33278},
            "thousand": {"B": 1024, "K": 4, "D": 4000, "V": 1000},
            "characters": {"B": 4096, "K": 8, "D": 520, "V": 65},
        },
        workloads=WORKLOADS,
        variants={"all": {}, "bare": {"bare": True}},
        dtypes=FLOATS,
        small_shapes=(
            {"B": 1, "K": 1, "D": 1, "V": 1},
            {"B": 5, "K": 3, "D": 4, "V": 19},
            {"B": 3, "K": 2, "D": 5, "V": 70},
        ),
        samples=partial(_samples, FLOATS),
        particular_misuses=misuses,
        is_wrapped=True,
        is_exact=lambda kwargs: False,
        implementations=_DENSE,
        middle={"B": 70, "K": 3, "D": 40, "V": 2500},
        left_out={
            "gradcheck": "no second derivative, which it refuses by name; tests/kernels has the first",
            "ends": "sums of such numbers round as their order has it",
        },
        scalings=lambda kwargs: () if kwargs else (Scaling((1, 0, 0, 0, -1), 0),),
        tuned={
            "cpp": (by_cpp.FORWARD, by_cpp.BACKWARD),
            "triton": (by_triton.FORWARD, by_triton.BACKWARD),
        },
    )
)

# ------------------------------------------------------------------------------------------------ sparse


def _table(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight that is 0 where a count is, as that of `log_shift`: it is made of integers, and has no gradient."""
    return torch.log1p(4 * counts.to(dtype))


def sparse_op(bias, weights, counts, contexts, targets) -> Tensor:
    """The readout of a CSR weight, made of counts [D, V]."""
    return op(as_sparse_csr(_table(counts, bias.dtype)), contexts, targets, bias, weights)


def sparse_oracle(bias, weights, counts, contexts, targets) -> Tensor:
    return oracle(_table(counts, bias.dtype), contexts, targets, bias, weights)


def sparse_inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Counts of which a tenth is not 0, a row in four more often; bias and weights standard normal."""
    table, contexts, targets, bias, weights = inputs(shape, torch.float32, torch.device("cpu"), seed)
    counts = (table.abs() * 3 - 4.8).clamp(min=0)
    counts[::4] = (table[::4].abs() * 3).floor()
    others = counts.ceil().to(torch.int16), contexts, targets
    return bias.to(device, dtype), weights.to(device, dtype), *(x.to(device) for x in others)


def _prepared(readout: Callable[..., Tensor], table: Callable[[Tensor], Tensor]):
    """A contender whose weight, of either form, is made before it is timed."""

    def prepare(bias, weights, counts, contexts, targets) -> Call:
        weight = table(_table(counts, bias.dtype))
        return lambda: (readout(weight, contexts, targets, bias, weights),)

    return prepare


def _sparse_bytes(shape: Sizes, itemsize: int) -> int:
    """The nonzeros of the rows that are named, a column and a value each, and bias."""
    nonzeros = shape["B"] * shape["K"] * shape["V"] // 5
    return nonzeros * (8 + itemsize) + shape["V"] * itemsize


def _sparse_samples(device: torch.device) -> list[Sample]:
    """A bias of logarithms of 0, NaN and logits beyond exp; rows without a nonzero; no position."""
    samples: list[Sample] = []
    for dtype in SPARSE_DTYPES:
        name = str(dtype).removeprefix("torch.")
        bias, weights, counts, contexts, targets = sparse_inputs({"B": 4, "K": 3, "D": 5, "V": 37}, dtype, device, 0)
        for label, value in (("zero", -float("inf")), ("nan", float("nan")), ("infinity", float("inf"))):
            special = bias.clone()
            special[0, 3] = value
            samples.append(Sample(f"{label}-{name}", (special, weights, counts, contexts, targets)))
        for label, args in {
            "steep": (bias, weights * 50, counts, contexts, targets),
            "deep": (bias * 300, weights, counts, contexts, targets),
            "empty-rows": (bias, weights, counts * 0, contexts, targets),
            "no-position": (bias, weights, counts, contexts[:0], targets[:0]),
            "wide": sparse_inputs({"B": 3, "K": 2, "D": 3, "V": 4500}, dtype, device, 0),
        }.items():
            samples.append(Sample(f"{label}-{name}", args))
    return samples


_NO_TRANSFORM = "torch's compilers, tracers and transforms take no sparse CSR tensors"

register(
    Spec(
        name="gather_softmax_sparse",
        op=sparse_op,
        oracle=sparse_oracle,
        inputs=sparse_inputs,
        shapes={
            "words": {"B": 1024, "K": 4, "D": 512, "V": 33278},
            "characters": {"B": 4096, "K": 8, "D": 520, "V": 65},
        },
        workloads=(
            Workload(
                "sparse readout",
                (
                    Contender("tropigrad", "ours", _prepared(op, as_sparse_csr)),
                    Contender("all logits", "dense", _prepared(_dense, Tensor.contiguous)),
                ),
                operations=_logits,
                bytes=_sparse_bytes,
                mix="gather",
            ),
        ),
        variants={"sparse": {}},
        dtypes=SPARSE_DTYPES,
        small_shapes=SPEC.small_shapes,
        samples=_sparse_samples,
        is_wrapped=True,
        is_exact=lambda kwargs: False,
        implementations=_SPARSE,
        middle={"B": 70, "K": 3, "D": 40, "V": 4500},
        left_out={
            **SPEC.left_out,
            **dict.fromkeys(("compile", "export", "vmap", "jvp", "jit_trace", "fx_trace"), _NO_TRANSFORM),
            **dict.fromkeys(("autocast", "strides"), "a sparse weight has no strides, and none of 16 bits is taken"),
        },
        tuned={"cpp": (by_cpp.SPARSE, by_cpp.SPARSE_BACKWARD)},
    )
)
