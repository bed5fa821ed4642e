"""Class-wise sums as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract.registry import register
from ..contract.spec import Contender, Extra, Misuse, Sample, Scaling, Sizes, Spec, Workload
from ..contract.workloads import Call
from ..runtime.csr import as_sparse_csr
from . import _SUMS, by_cpp, by_triton, cooccurrence, cooccurrence_ref
from .definition import DTYPES, FLOATS, LABELS

_CLASSES = 24  # of a call that names none: as many as any shape of the suite has


def op(x: Tensor, labels: Tensor, *, classes: int = _CLASSES, csr: bool = False, **options) -> Tensor:
    """labels [N] or [N, 1], which the suite can give strides; csr: of the same rows as a sparse_csr tensor."""
    return cooccurrence(as_sparse_csr(x) if csr else x, labels.flatten(), classes, **options)


def oracle(x: Tensor, labels: Tensor, *, classes: int = _CLASSES, csr: bool = False, **options) -> Tensor:
    return cooccurrence_ref(x, labels.flatten(), classes, **options)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Integers x [N, D] from 1 to 11, of which every sum is exact, and labels [N, 1]."""
    N, D, C = shape["N"], shape["D"], shape["C"]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 12, (N, D), generator=generator, dtype=torch.int8, device="cpu")
    labels = torch.randint(0, max(1, C), (N, 1), generator=generator, device="cpu")
    if dtype == torch.bool:
        x = (x > 5) | (x == x[:, :1])  # no row of zeros
    return x.to(device, dtype), labels.to(device)


# ------------------------------------------------------------------------------------------------ contenders


def _of_bytes(function: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[Tensor, Tensor], Call]:
    def prepare(x: Tensor, labels: Tensor) -> Call:
        rows, targets, classes = x.to(torch.uint8), labels.flatten(), int(labels.max()) + 1
        return lambda: (function(rows, targets, classes),)

    return prepare


def _product(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    return (torch.nn.functional.one_hot(labels, classes).float().t() @ x.float()).long().t()


def _index_add(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.zeros((classes, x.shape[1]), dtype=torch.int64).index_add_(0, labels, x.long()).t()


def _normalised(x: Tensor) -> Tensor:
    r = x.double() + 1
    return 32 * (r / r.sum(1, keepdim=True))


def _product_of_normalised(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    return (torch.nn.functional.one_hot(labels, classes).double().t() @ _normalised(x)).t()


def _index_add_of_normalised(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    r = _normalised(x)
    return r.new_zeros((classes, x.shape[1])).index_add_(0, labels, r).t()


def _workload(name: str, product: Callable, index_add: Callable, **options: Any) -> Workload:
    def ours(x: Tensor, labels: Tensor, classes: int) -> Tensor:
        return cooccurrence(x, labels, classes, **options)

    return Workload(
        name,
        (
            Contender("tropigrad", "ours", _of_bytes(ours)),
            Contender("one-hot product", "dense", _of_bytes(product)),
            Contender("index_add_", "peer", _of_bytes(index_add)),
        ),
        operations=lambda shape: shape["N"] * shape["D"],
        bytes=lambda shape, itemsize: shape["N"] * (shape["D"] + 8) + 8 * shape["C"] * shape["D"],
        mix="add_max",
        options=options,
        dtypes=(torch.uint8,),
    )


WORKLOADS = (
    _workload("co-occurrence, bytes", _product, _index_add),
    _workload(
        "co-occurrence, bytes, rows normalised",
        _product_of_normalised,
        _index_add_of_normalised,
        scale=32,
        offset=1,
    ),
)

# ------------------------------------------------------------------------------------------------ samples


def samples(device: torch.device) -> list[Sample]:
    """Dtypes of labels, few and many classes, widths around those of vectors, rows beyond a float64's range, CSR."""
    listed: list[Sample] = []
    generator = torch.Generator().manual_seed(0)

    def add(id: str, x: Tensor, labels: Tensor | list[int], **kwargs) -> None:
        labels = torch.as_tensor(labels, dtype=None if len(labels) else torch.int64)
        listed.append(Sample(id, (x.to(device), labels.to(device)), kwargs))

    def whole(*shape: int) -> Tensor:
        return torch.randint(0, 100, shape, generator=generator)

    def classes(count: int, most: int) -> Tensor:
        return torch.randint(0, most, (count,), generator=generator)

    for dtype in DTYPES:
        label = str(dtype).removeprefix("torch.")
        x = whole(37, 45).bool() if dtype == torch.bool else whole(37, 45).to(dtype)
        add(f"rows-{label}", x, classes(37, 3), classes=3)
        add(f"normalised-{label}", x, classes(37, 3), classes=3, scale=32)
        add(f"shifted-{label}", x, classes(37, 3), classes=3, scale=0.5, offset=0.25)
        if dtype in FLOATS or dtype == torch.int64:
            add(f"csr-{label}", x, classes(37, 3), classes=3, csr=True)
            add(f"csr-normalised-{label}", x, classes(37, 3), classes=3, csr=True, scale=3)
    for dtype in LABELS:
        add(f"labels-{str(dtype).removeprefix('torch.')}", whole(20, 5), classes(20, 4).to(dtype), classes=4)
    for D in (1, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65):
        for dtype in (torch.uint8, torch.float32):
            name = f"width-{D}-{str(dtype).removeprefix('torch.')}"
            add(name, whole(9, D).to(dtype), classes(9, 2), classes=2)
            add(f"{name}-shifted", whole(9, D).to(dtype), classes(9, 2), classes=2, scale=7, offset=3)
    full = torch.full((600, 40), 255, dtype=torch.uint8)
    add("most-bytes", full, [0] * 600, classes=1)  # more than lanes of 16 bits hold
    add("more-classes-than-rows", whole(3, 5), [4, 0, 4], classes=40)
    add("no-rows", whole(0, 5), [], classes=3)
    add("no-rows-normalised", whole(0, 5), [], classes=3, scale=1)
    add("no-features", whole(3, 0), [0, 1, 0], classes=2)
    ends = torch.tensor([[1e-310, 3e-310, 0], [5e307, 5e307, 5e307], [1, 2, 3], [5e-324, 0, 0]], dtype=torch.float64)
    add("ends-normalised", ends, [0, 0, 0, 1], classes=2, scale=32)
    add("ends-shifted", ends, [0, 0, 0, 1], classes=2, scale=32, offset=1e-312)
    add("ends", ends, [0, 1, 1, 1], classes=2)
    add("sum-beyond-float64", ends[1:2].repeat(4, 1), [0, 0, 0, 0], classes=1)
    add("minus-zero", torch.tensor([[-0.0, 1.0], [2.0, -0.0]]), [0, 1], classes=2, scale=1)
    return listed


def misuses(device: torch.device) -> list[Misuse]:
    x = torch.ones(4, 3, device=device)
    labels = torch.tensor([0, 1, 0, 1], device=device)
    tokens = torch.tensor([5, 0, 2, 1], device=device)

    def bad(id: str, error: type[Exception], match: str, *args, **kwargs) -> Misuse:
        return Misuse(id, lambda: cooccurrence(*args, **kwargs), error, match)

    def changed(row: int, column: int, value: float) -> Tensor:
        y = x.clone()
        y[row, column] = value
        return y

    empty = x.index_fill(0, torch.tensor([2], device=device), 0)
    return [
        bad("not-a-tensor", TypeError, "x is a list; expected a torch.Tensor", [[1]], labels, 2),
        bad("labels-list", TypeError, "labels is a list; expected a torch.Tensor", x, [0, 1, 0, 1], 2),
        bad("complex", TypeError, "x is torch.complex64; expected one of float64", x.to(torch.complex64), labels, 2),
        bad("coo", TypeError, r"x has layout torch.sparse_coo; .*to_sparse_csr\(\)", x.to_sparse(), labels, 2),
        bad("float-labels", TypeError, "labels is torch.float32; expected integers", x, labels.float(), 2),
        bad("rank", ValueError, r"x has shape \(1, 4, 3\); expected rows \[N, D\], or tokens", x[None], labels, 2),
        bad("count", ValueError, r"labels has shape \(3,\); expected \[4\]", x, labels[:3], 2),
        bad("device", ValueError, "labels is on meta and x on", x, labels.to("meta"), 2),
        bad("classes", ValueError, "classes is 0; expected an integer of at least 1", x, labels, 0),
        bad("scale", ValueError, "scale is 0; expected a positive number, or None", x, labels, 2, scale=0),
        bad("scale-type", TypeError, "scale is a str; expected a number", x, labels, 2, scale="1"),
        bad("offset", ValueError, "offset is -1; expected a number of at least 0", x, labels, 2, scale=1, offset=-1),
        bad("offset-alone", ValueError, "offset is 1 and scale is None; expected a scale", x, labels, 2, offset=1),
        bad("offset-csr", ValueError, "offset is 1 and x is sparse_csr", x.to_sparse_csr(), labels, 2, scale=1,
            offset=1),
        bad("features", ValueError, r"features is 3 and x has rows \[N, D\]; expected None", x, labels, 2, features=3),
        bad("label", ValueError, r"labels\[1\] is 1; expected an integer in \[0, 1\), as classes is 1", x, labels, 1),
        bad("negative-label", ValueError, r"labels\[0\] is -1; expected an integer in \[0, 2\)", x, labels - 1, 2),
        bad("negative", ValueError, "x is negative in row 2: feature 1 is -1.0", changed(2, 1, -1), labels, 2),
        bad("negative-integer", ValueError, "x is negative in row 2: feature 1 is -1;", changed(2, 1, -1).int(), labels,
            2),
        bad("negative-sum", ValueError, "x is negative in row 2", changed(2, 1, -1), labels, 2, scale=1),
        bad("nan", ValueError, "x is not finite in row 3: feature 0 is nan", changed(3, 0, float("nan")), labels, 2),
        bad("infinite", ValueError, "x is not finite in row 3: feature 0 is inf", changed(3, 0, float("inf")), labels,
            2, scale=2, offset=1),
        bad("no-sum", ValueError, "row 2 of x sums to 0, and so cannot be normalised", empty, labels, 2, scale=1),
        bad("csr-no-sum", ValueError, "row 2 of x sums to 0", empty.to_sparse_csr(), labels, 2, scale=1),
        bad("csr-negative", ValueError, "x is negative in row 2: feature 1 is -1.0",
            changed(2, 1, -1).to_sparse_csr(), labels, 2),
        bad("float-tokens", TypeError, "x is torch.float32; expected tokens of one of uint8", x[:, 0], labels, 2),
        bad("no-features", ValueError, r"features is None and x has tokens \[N\]; expected an integer", tokens, labels,
            2),
        bad("tokens-scale", ValueError, r"scale is 1 and x has tokens \[N\]", tokens, labels, 2, scale=1, features=6),
        bad("token", ValueError, r"x\[0\] is 5, out of range; expected at least 0 and below 5", tokens, labels, 2,
            features=5),
    ]  # fmt: skip


SPEC = register(
    Spec(
        name="cooccurrence",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "mnist": {"N": 60_000, "D": 784, "C": 10},
            "codes": {"N": 20_000, "D": 784, "C": 1000},
            "narrow": {"N": 200_000, "D": 8, "C": 100},
        },
        workloads=WORKLOADS,
        variants={
            "rows": {},
            "normalised": {"scale": 32.0},
            "shifted": {"scale": 32.0, "offset": 0.5},
        },
        dtypes=DTYPES,
        small_shapes=({"N": 1, "D": 1, "C": 1}, {"N": 17, "D": 33, "C": 3}, {"N": 70, "D": 41, "C": 5}),
        samples=samples,
        particular_misuses=misuses,
        is_wrapped=True,
        is_exact=lambda kwargs: kwargs.get("scale") is None,
        no_gradient="it counts",
        implementations=_SUMS,
        middle={"N": 9000, "D": 70, "C": 3},
        interpreted={"N": 9, "D": 5, "C": 3},
        left_out={
            "vmap": "the promise asks for a gradient too: tests/kernels/test_cooccurrence.py maps it",
            "ends": "negative numbers are refused: samples have the ends of float64",
        },
        tuned={"cpp": (by_cpp.SUMS,), "triton": (by_triton.SUMS, by_triton.MASSES, by_triton.JOIN)},
        scalings=lambda kwargs: (
            (Scaling((1, 0), 1 if kwargs.get("scale") is None else 0),) if not kwargs.get("offset") else ()
        ),
        extra=Extra(options_at=lambda shape: {"classes": max(1, shape["C"])}),
    )
)
