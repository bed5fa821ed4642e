"""The sparse step as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...autotune import Problem
from ..contract.misuses import misuse_of
from ..contract.registry import register
from ..contract.samples import INF, NAN, Numbers, sampled, short
from ..contract.spec import Contender, Extra, Misuse, Scaling, Sizes, Spec, Workload
from ..contract.workloads import Call
from ..runtime.arguments import FLOATS
from . import _STEPS, RULES, by_cpp, by_triton, scatter_step, scatter_step_ref


def _stepped(
    step: Callable, param: Tensor, coordinates: Tensor, values: Tensor, rows=False, lr=0.25, **options
) -> Tensor:
    """W after two steps of an in-place `step`, as a function: param is left, with its strides, as it came.

    param [R, C], coordinates [2, nnz], values [nnz, 1]: of elements, or of rows, each column with a factor of its own.
    """
    indices, values = tuple(coordinates.unbind(0)), values[:, :1]
    if rows:
        indices, values = coordinates[0], values * torch.arange(1, 1 + param.shape[1], device=values.device).to(values)
    else:
        values = values[:, 0]
    if any(size > 1 and stride == 0 for size, stride in zip(param.shape, param.stride(), strict=True)):
        param = param.clone(memory_format=torch.contiguous_format)  # an expanded one is refused
    before = param.clone()
    state = step(param, indices, values, lr=lr, momentum=0.5, **options)
    step(param, indices, values, lr=lr, momentum=0.5, state=state, **options)
    after = param.clone()
    param.copy_(before)
    return after


def stepped(param, coordinates, values, *, rows=False, **options):
    """scatter_step as a function."""
    return _stepped(scatter_step, param, coordinates, values, rows, **options)


def oracle(param, coordinates, values, *, rows=False, **options):
    """The definition as a function."""
    return _stepped(scatter_step_ref, param, coordinates, values, rows, **options)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Standard normal W [R, C] and values [nnz, 1]; coordinates [2, nnz] at random: some repeat, some are −1."""
    R, C, nnz = shape["R"], shape["C"], shape["nnz"]
    numbers = Numbers(seed)
    param = numbers.normal(R, C, dtype=torch.float64)
    coordinates = torch.stack([torch.randint(0, size, (nnz,), generator=numbers.generator) for size in (R, C)])
    coordinates[:, ::7] = coordinates[:, :1].clone()
    coordinates[0, 3::11] = -1
    values = numbers.normal(nnz, 1, dtype=torch.float64)
    return param.to(device, dtype), coordinates.to(device), values.to(device, dtype)


def inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...] | None:
    """Inputs whose entries are rows: W [R, C, D] and values [nnz, D]."""
    R, C, nnz, D = (int(problem[letter]) for letter in ("R", "C", "nnz", "D"))
    if D == 1:
        return None
    _, coordinates, values = inputs({"R": R, "C": C, "nnz": nnz}, dtype, device, 0)
    return torch.ones((R, C, D), dtype=dtype, device=device), coordinates, values.repeat(1, D)


# ------------------------------------------------------------------------------------------------ contenders


def _of(coordinates: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = coordinates.clamp(min=0).unbind(0)
    return rows.contiguous(), columns.contiguous(), values[:, 0].contiguous()


def _ours(rule: str):
    def prepare(param: Tensor, coordinates: Tensor, values: Tensor) -> Call:
        whole = param = param.clone()
        rows, columns, elements = _of(coordinates, values)
        indices, values = (rows, columns), elements if param.dim() == 2 else values
        if param.dim() == 3 and param.shape[1] == 1:
            param, indices = param[:, 0], rows
        state: dict[str, Tensor] = {}

        def call():
            scatter_step(param, indices, values, lr=1e-3, rule=rule, state=state)
            return (whole,)

        return call

    return prepare


def _index_put(param: Tensor, coordinates: Tensor, values: Tensor) -> Call:
    param, (rows, columns, values) = param.clone(), _of(coordinates, values)

    def call():
        param.index_put_((rows, columns), values * -1e-3, accumulate=True)
        return (param,)

    return call


def _index_add(param: Tensor, coordinates: Tensor, values: Tensor) -> Call:
    param, (rows, columns, values) = param.clone(), _of(coordinates, values)
    flat, C = param.view(-1), param.shape[1]

    def call():
        flat.index_add_(0, rows * C + columns, values, alpha=-1e-3)
        return (param,)

    return call


def _torch_optim(make: Callable[..., torch.optim.Optimizer]):
    """A sparse COO gradient, built in each call as a backward does, and an optimizer of torch's on it."""

    def prepare(param: Tensor, coordinates: Tensor, values: Tensor) -> Call:
        weight, (rows, columns, values) = torch.nn.Parameter(param.clone()), _of(coordinates, values)
        optimizer = make([weight], lr=1e-3)
        torch.sparse.check_sparse_tensor_invariants.disable()  # as it is by default: said, torch does not warn of it

        def call():
            weight.grad = torch.sparse_coo_tensor(torch.stack((rows, columns)), values, weight.shape)
            optimizer.step()
            return (weight.detach(),)

        return call

    return prepare


def _dense_optim(make: Callable[..., torch.optim.Optimizer]):
    """A dense gradient, filled in each call as a backward does, and an optimizer of torch's that visits every weight.

    Every call lists the same entries: the others have a mean square of 0 and no gradient, and stay as lazy rules leave
    them. Adam adds eps after its correction, and so computes something else.
    """

    def prepare(param: Tensor, coordinates: Tensor, values: Tensor) -> Call:
        weight, (rows, columns, values) = torch.nn.Parameter(param.clone()), _of(coordinates, values)
        optimizer = make([weight], lr=1e-3)

        def call():
            weight.grad = torch.zeros_like(weight).index_put_((rows, columns), values, accumulate=True)
            optimizer.step()
            return (weight.detach(),)

        return call

    return prepare


def _count(shape: Sizes) -> int:
    return shape["nnz"]


def _sgd_bytes(shape: Sizes, itemsize: int) -> int:
    return shape["nnz"] * (2 * 8 + 3 * itemsize)  # two indices and a value read, an element of W read and written


def _adam_bytes(shape: Sizes, itemsize: int) -> int:
    return _sgd_bytes(shape, itemsize) + 4 * itemsize * shape["nnz"]  # a mean and a mean square read and written


def _moment_bytes(shape: Sizes, itemsize: int) -> int:
    return _sgd_bytes(shape, itemsize) + 2 * itemsize * shape["nnz"]


SGD = Workload(
    "sparse step, sgd",
    (
        Contender("tropigrad", "ours", _ours("sgd")),
        Contender("index_put_", "peer", _index_put),
        Contender("index_add_", "peer", _index_add),
        Contender("torch.optim.SGD, sparse", "peer", _torch_optim(torch.optim.SGD)),
    ),
    operations=_count,
    bytes=_sgd_bytes,
    mix="gather",
)
ADAGRAD = Workload(
    "sparse step, adagrad",
    (
        Contender("tropigrad", "ours", _ours("adagrad")),
        Contender("torch.optim.Adagrad, sparse", "peer", _torch_optim(torch.optim.Adagrad)),
    ),
    operations=_count,
    bytes=_moment_bytes,
    mix="gather",
)
ADAM = Workload(
    "sparse step, adam",
    (
        Contender("tropigrad", "ours", _ours("adam")),
        Contender("torch.optim.SparseAdam", "peer", _torch_optim(torch.optim.SparseAdam)),
        Contender("torch.optim.Adam, fused, dense", "scale", _dense_optim(partial(torch.optim.Adam, fused=True))),
    ),
    operations=_count,
    bytes=_adam_bytes,
    mix="gather",
)
RMSPROP = Workload(
    "sparse step, rmsprop",
    (
        Contender("tropigrad", "ours", _ours("rmsprop")),
        Contender("torch.optim.RMSprop, dense", "peer", _dense_optim(torch.optim.RMSprop)),
    ),
    operations=_count,
    bytes=_moment_bytes,
    mix="gather",
)

# ------------------------------------------------------------------------------------------------ samples


@sampled
def samples(add, numbers) -> None:
    """Where implementations go wrong: cancelling, many and skipped duplicates, NaN, infinities, empty lists."""

    def at(rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        return torch.tensor([rows, columns], dtype=torch.int64)

    for dtype in FLOATS:
        for rule in RULES:
            of, label = {"rule": rule}, f"{rule}-{short(dtype)}"
            w = torch.arange(12, dtype=dtype).view(4, 3)
            g = torch.tensor([4.0, -4.0, 8.0, 4.0, 4.0], dtype=dtype).view(-1, 1)
            # (1, 2) cancels, (0, 0) comes twice, and what is named by a −1 is not
            add(f"duplicates-{label}", w, at([1, 1, -1, 0, 0], [2, 2, 0, 0, 0]), g, **of)
            add(f"skipped-{label}", w, at([-1, 2], [0, -1]), g[:2], **of)
            add(f"empty-{label}", w, at([], []), g[:0], **of)
    many = torch.ones(70, 1)
    for rule in RULES:
        of = {"rule": rule}
        add(f"rate-{rule}", torch.ones(2, 2), at([1, 0], [0, 1]), many[:2], **of, lr=torch.tensor(0.25))
        add(f"one-place-{rule}", torch.zeros(2, 2), at([1] * 70, [0] * 70), many, **of)
        add(f"no-weights-{rule}", torch.zeros(0, 3), at([-1] * 2, [0] * 2), torch.ones(2, 1), **of, rows=True)
        add(f"no-columns-{rule}", torch.zeros(3, 0), at([1] * 2, [0] * 2), torch.ones(2, 1), **of, rows=True)
    special = torch.tensor([NAN, INF, INF, -INF, 1.0]).view(-1, 1)
    add("special", torch.zeros(4, 1), at([0, 1, 2, 2, 3], [0] * 5), special)
    w, g = torch.full((1, 1), 2048, dtype=torch.float16), torch.full((70, 1), -4, dtype=torch.float16)
    add("sum-in-float32", w, at([0] * 70, [0] * 70), g)  # one by one, each 1 would be lost


def misuses(device: torch.device) -> list[Misuse]:
    w, v = torch.zeros(3, 4, device=device), torch.zeros(2, device=device)
    i = torch.zeros(2, dtype=torch.int64, device=device)
    bad = misuse_of(scatter_step, lr=0.1)
    at, sparse = (i, i), v.to_sparse()
    shared, few = w[:1].expand(3, 4), {"rule": "adagrad", "state": {"step": v}}
    adagrad = {"rule": "adagrad", "state": {"sum": torch.zeros(3, 3, device=device)}}
    adam = {"rule": "adam", "state": {"mean": torch.zeros_like(w), "step": i[0].int()}}
    misuses = [
        bad("not-a-tensor", TypeError, "param is a list; expected a torch.Tensor", [1.0], i, v),
        bad("integer-weights", TypeError, "param is torch.int64; expected float64", w.long(), at, v),
        bad("mixed-dtypes", TypeError, "values are torch.float64; expected param's torch.float32", w, at, v.double()),
        bad("float-indices", TypeError, "rows are torch.float32; expected int64 or int32", w, (i.float(), i), v),
        bad("sparse", TypeError, r"values has layout torch.sparse_coo; .* give .indices\(\) and", w, at, sparse),
        bad("three", ValueError, "3 index tensors came; expected one, or a pair", w, (i, i, i), v),
        bad("matrix-index", ValueError, r"indices have shape \(1, 2\); expected \[nnz\]", w, i.view(1, 2), v),
        bad("unlike", ValueError, r"columns have shape \(1,\); expected \[2\], as rows", w, (i, i[:1]), v),
        bad("rows-need-rows", ValueError, r"values have shape \(2,\); expected \(2, 4\), to follow param", w, i, v),
        bad("vector", ValueError, r"param has shape \(4,\); expected \[R, C, ...\]", w[0], at, v),
        bad("device", ValueError, "param is on .* and values on meta; expected one device", w, at, v.to("meta")),
        bad("expanded", ValueError, "param's elements share memory", shared, at, v),
        bad("rule", ValueError, "rule is 'lion'; expected one of 'sgd', 'momentum'", w, at, v, rule="lion"),
        bad("lr", TypeError, "lr is a str; expected a number or a tensor", w, at, v, lr="0.1"),
        bad("lr-shape", ValueError, r"lr is torch.float32 of shape \(2,\); expected one float", w, at, v, lr=v),
        bad("momentum", ValueError, r"momentum is 1.0; expected a number in \[0, 1\)", w, at, v, momentum=1.0),
        bad("decay", ValueError, r"decay is 1.0; expected a number in \[0, 1\)", w, at, v, rule="adam", decay=1.0),
        bad("eps", ValueError, "eps is -1; expected at least 0", w, at, v, eps=-1),
        bad("no-state", ValueError, "state has step; expected sum too", w, at, v, **few),
        bad("half-a-state", ValueError, "state has mean, step; expected square too", w, at, v, **adam),
        bad("state", ValueError, r"state's sum is .* \(3, 3\) on .*; expected .* \(3, 4\)", w, at, v, **adagrad),
    ]
    if device.type == "cpu":
        refused = r"the weight at \[0, 0\], or its state, would be NaN or infinite; expected .*nothing was written"
        misuses += [
            bad("row", IndexError, r"out of range; expected .*\[-1, 3\).*nothing was written", w, (i + 3, i), v),
            bad("column", IndexError, r"out of range; expected .*\[-1, 4\)", w, (i, i + 4), v),
            bad("not-finite", FloatingPointError, refused, w, at, v + INF, check_finite=True),
            bad("below", IndexError, r"out of range; expected .*\[-1, 3\)", w, (i - 2, i), v),
        ]
    return misuses


_OWN = {  # index, and values that are views of W [6, 5]
    "rows-of-param": lambda w: (torch.tensor([1, 2, 4]), w[:3]),
    "rows-moved": lambda w: (torch.tensor([1, 2, 3, 4, 5]), w[:-1]),
    "elements-of-param": lambda w: ((torch.tensor([1, 0, 2]), torch.tensor([0, 1, 2])), w[0, :3]),
    "column-of-param": lambda w: ((torch.arange(6), torch.arange(6).remainder(5)), w[:, 1]),
}


def _overlapping(rule: str, own: str, copied: Callable[[Tensor], Tensor]) -> Tensor:
    w = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    index, values = _OWN[own](w)
    scatter_step(w, index, copied(values), lr=0.25, rule=rule)
    return w


SPEC = register(
    Spec(
        name="scatter_step",
        op=stepped,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "4": {"R": 1024, "C": 1024, "nnz": 4},
            "1e3": {"R": 1024, "C": 1024, "nnz": 1000},
            "1e5": {"R": 4096, "C": 4096, "nnz": 100_000},
            "1e6": {"R": 4096, "C": 4096, "nnz": 1_000_000},
        },
        workloads=(SGD, ADAGRAD, ADAM, RMSPROP),
        variants={
            **{rule: {"rule": rule} for rule in RULES},
            "rows": {"rows": True},
            "rows-momentum": {"rule": "momentum", "rows": True},
            "rows-adam": {"rule": "adam", "rows": True},
            "finite": {"rule": "adam", "check_finite": True},
            "any-order": {"deterministic": False},
        },
        dtypes=FLOATS,
        small_shapes=({"R": 1, "C": 1, "nnz": 1}, {"R": 5, "C": 4, "nnz": 17}, {"R": 7, "C": 5, "nnz": 90}),
        samples=samples,
        particular_misuses=misuses,
        is_wrapped=True,
        implementations=_STEPS,
        middle={"R": 300, "C": 300, "nnz": 40_000},
        is_exact=lambda kwargs: False,
        no_gradient="a step of an optimizer: it works in place and has no gradient",
        left_out={
            "vmap": "one step of many lists on many weights is one step of a longer list",
            "config": "its lists are short, which have none: tests/kernels/test_scatter_step.py goes through the space",
            "autocast": "param and values are of one dtype, which nothing casts",
            **dict.fromkeys(("jit_trace", "fx_trace"), "no trace of a network holds a step of its optimizer"),
            "ends": "sums of such numbers round as their order has it",
        },
        tuned={"cpp": (by_cpp.STEP,), "triton": (by_triton.STEP, by_triton.KEYS)},
        # of the others the learning rate, or eps, has a scale
        scalings=lambda kwargs: (Scaling((1, 0, 1), 1),) if kwargs.get("rule", "sgd") in ("sgd", "momentum") else (),
        extra=Extra(
            inputs_at=inputs_at,
            in_place={rule: _ours(rule) for rule in ("sgd", "adagrad", "adam", "rmsprop")},
            overlapping={f"{name}-{rule}": partial(_overlapping, rule, name) for name in _OWN for rule in RULES},
        ),
    )
)
