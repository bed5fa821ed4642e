"""Feature fragility as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract.misuses import misuse_of
from ..contract.registry import register
from ..contract.samples import INF, NAN, normal_inputs, sampled, short
from ..contract.spec import Misuse, Sizes, Spec
from ..runtime.arguments import FLOATS
from . import FRAGILITIES, by_cpp, feature_fragility, feature_fragility_ref

BOX = (-8.0, 8.0)  # wide enough for normal numbers


def op(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, **kwargs) -> Tensor:
    """Both results as one tensor [2, N, d] of x's dtype."""
    change, classes = feature_fragility(x, A, W1, W2, **kwargs)
    return torch.stack([change, classes.to(change.dtype)])


def oracle(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor, **kwargs) -> Tensor:
    """The definition as `op` gives it."""
    change, classes = feature_fragility_ref(x, A, W1, W2, **kwargs)
    return torch.stack([change, classes.to(change.dtype)])


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Normal x [N, d], W1 [q, 2d], W2 [K, q]; A = [D; −D′], D and D′ diagonal, or, of every third seed, dense."""
    N, d, q, K = (shape[letter] for letter in "NdqK")
    x, W1, W2, A = normal_inputs(seed, torch.float64, device, (N, d), (q, 2 * d), (K, q), (2 * d, d))
    if seed % 3 != 2:
        signs = torch.ones(2 * d, 1, dtype=A.dtype, device=device)
        signs[d:] = -1
        A = signs * (0.5 + A.abs()) * torch.eye(d, dtype=A.dtype, device=device).repeat(2, 1)
    return tuple(tensor.to(dtype) for tensor in (x, A, W1, W2))


def _paired(d: int, scale: float = 1.0) -> Tensor:
    return scale * torch.cat([torch.eye(d), -torch.eye(d)])


@sampled
def samples(add, numbers) -> None:
    """Ties, bounds, leaves and units taken away, one class, one unit, rows of zeros, every dtype, empty sizes."""
    for dtype in FLOATS:
        for box in (None, (-3.0, 3.0)):
            id = f"ties-{short(dtype)}-{'free' if box is None else 'box'}"
            x, W1, W2 = (numbers.small(*size, dtype=dtype) for size in ((4, 3), (5, 6), (3, 5)))
            add(id, x, _paired(3, 2.0).to(dtype), W1, W2, box=box)
    x, W1, W2 = numbers.normal(4, 3), numbers.normal(5, 6), numbers.normal(3, 5)
    add("one-class", x, _paired(3), W1, W2[:1])
    add("one-unit", x, _paired(3), W1[:1], W2[:, :1])
    add("one-leaf", x, _paired(3)[:1], W1[:, :1], W2)
    add("no-slopes", x, torch.zeros(6, 3), W1, W2)
    add("few-slopes", x, _paired(3).index_fill(0, torch.tensor([1, 3]), 0), W1, W2)
    add("one-direction", x, torch.eye(3), W1[:, :3], W2)
    dense = numbers.normal(4, 2)
    add("dense", x[:, :2], dense, W1[:, :4], W2)
    add("dense-box", x[:, :2], dense, W1[:, :4], W2, box=BOX)
    add("dense-ties", x[:, :2].round(), dense.sign(), W1[:, :4].round(), W2.round())
    away = W1.clone()
    away[0, 0] = away[2, 5] = INF
    add("no-leaf", x, _paired(3), away, W2)
    away = W2.clone()
    away[0, 1] = away[1, 1] = away[2, 1] = away[0, 4] = -INF
    add("no-unit", x, _paired(3), W1, away)
    add("at-bounds", x.clamp(-0.25, 0.25), _paired(3), W1, W2, box=(-0.25, 0.25))
    add("no-samples", x[:0], _paired(3), W1, W2)
    add("no-features", x[:, :0], torch.zeros(6, 0), W1, W2)


def misuses(device: torch.device) -> list[Misuse]:
    x, A = torch.zeros(3, 2, device=device), torch.ones(4, 2, device=device)
    W1, W2 = torch.zeros(5, 4, device=device), torch.zeros(3, 5, device=device)
    bad = misuse_of(feature_fragility)

    def changed(tensor: Tensor, value: float) -> Tensor:
        return tensor.index_fill(1, torch.tensor([1], device=device), value)

    misuses = [
        bad("not-a-tensor", TypeError, "W1 is a list; expected a torch.Tensor", x, A, [1.0], W2),
        bad("sparse", TypeError, "A has layout torch.sparse_coo", x, A.to_sparse(), W1, W2),
        bad("integers", TypeError, "x is torch.int64; expected one of float64", x.long(), A, W1, W2),
        bad("mixed-dtypes", TypeError, "x is torch.float32 and W2 is torch.float64; expected one dtype", x, A, W1,
            W2.double()),
        bad("device", ValueError, "W2 is on meta and x on", x, A, W1, W2.to("meta")),
        bad("rank", ValueError, r"x has shape \(2,\); expected \[N, d\]", x[0], A, W1, W2),
        bad("sizes", ValueError, r"the shapes are x \(3, 2\), A \(4, 2\), W1 \(5, 3\)", x, A, W1[:, :3], W2),
        bad("no-class", ValueError, r"W2 \(0, 5\); expected .* of at least 1", x, A, W1, W2[:0]),
        bad("box-type", TypeError, "box is 1; expected None or two numbers", x, A, W1, W2, box=1),
        bad("box-of-one", TypeError, r"box is \(0,\); expected None or two numbers", x, A, W1, W2, box=(0,)),
        bad("box", ValueError, r"box is \(1, 1\); expected low < high", x, A, W1, W2, box=(1, 1)),
        bad("box-nan", ValueError, r"box is \(0, nan\); expected low < high", x, A, W1, W2, box=(0, NAN)),
    ]  # fmt: skip
    if device.type == "cpu":
        misuses += [
            bad("outside", ValueError, r"x\[0, 1\] is 2; expected features in the box from 0 to 1", changed(x, 2), A,
                W1, W2, box=(0, 1)),
            bad("nan", ValueError, r"x\[0, 1\] is nan; expected a finite number", changed(x, NAN), A, W1, W2),
            bad("slope", ValueError, r"A\[0, 1\] is inf; expected a finite number", x, changed(A, INF), W1, W2),
            bad("leaf", ValueError, r"W1\[0, 1\] is -inf; expected a number, or inf", x, A, changed(W1, -INF), W2),
            bad("unit", ValueError, r"W2\[0, 1\] is inf; expected a number, or -inf", x, A, W1, changed(W2, INF)),
        ]  # fmt: skip
    return misuses


SPEC = register(
    Spec(
        name="feature_fragility",
        op=op,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "digits": {"N": 540, "d": 64, "q": 100, "K": 10},
            "mnist": {"N": 1000, "d": 784, "q": 200, "K": 10},
        },
        variants={"free": {}, "box": {"box": BOX}},
        dtypes=FLOATS,
        small_shapes=(
            {"N": 1, "d": 1, "q": 1, "K": 1},
            {"N": 3, "d": 2, "q": 5, "K": 3},
            {"N": 4, "d": 3, "q": 4, "K": 2},
        ),
        samples=samples,
        particular_misuses=misuses,
        is_wrapped=True,
        is_exact=lambda kwargs: False,
        no_gradient="it is read off winners, which do not move with small changes",
        implementations=FRAGILITIES,
        middle={"N": 9, "d": 3, "q": 9, "K": 3},
        tuned={"cpp": (by_cpp.FRAGILITY,)},
        left_out={
            "ends": "sums of three of the largest numbers are beyond float64, and the numbers beyond the box",
            "config": "its shape takes the oracle days: tests/kernels/test_feature_fragility.py goes through the space",
        },
    )
)
