"""The tournament as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..contract.misuses import misuse_of
from ..contract.registry import register
from ..contract.samples import INF, SPECIAL, Numbers, sampled, short
from ..contract.spec import Contender, Extra, Misuse, Scaling, Sizes, Spec, Workload
from ..contract.workloads import Call
from . import _UPDATES, Tournament, Winner, by_cpp, by_triton
from .definition import DTYPES, FAN, first_of, levels


def played(values: Tensor, positions: Tensor, new: Tensor, *, largest=True, return_indices=False) -> Tensor | Winner:
    """The winner after one update, as a function: values [B, n], positions and new [B, t]."""
    tournament = Tournament(values, largest=largest)
    tournament.update(positions, new)
    return tournament.winner if return_indices else tournament.winner.value


def oracle(values: Tensor, positions: Tensor, new: Tensor, *, largest=True, return_indices=False):
    """The definition: write, then look at everything."""
    kept = positions >= 0
    rows = torch.arange(len(values), device=values.device).unsqueeze(1).expand(positions.shape)
    after = values.clone(memory_format=torch.contiguous_format)
    after[rows[kept], positions[kept]] = new[kept]
    value, index = first_of(after, largest)
    return (value, index) if return_indices else value


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """Standard normal values [B, n] (integers from ±100), positions [B, t] that differ, some −1, and new values."""
    B, n, t = shape["B"], shape["n"], min(shape["t"], shape["n"])
    numbers = Numbers(seed)
    values, new = (numbers.normal(*size, dtype=torch.float64) for size in ((B, n), (B, t)))
    if not dtype.is_floating_point:
        values, new = (x.mul(40).clamp(-100, 100) for x in (values, new))
    positions = numbers.orders(B, n, t)
    positions[:, 2::5] = -1
    return values.to(device, dtype), positions.to(device), new.to(device, dtype)


# ------------------------------------------------------------------------------------------------ contenders


def _ours(values: Tensor, positions: Tensor, new: Tensor) -> Call:
    tournament, turns = Tournament(values), _turns(new)

    def call():
        tournament.update(positions, next(turns))
        return tuple(tournament.winner)

    return call


def _built(values: Tensor, positions: Tensor, new: Tensor) -> Call:
    return lambda: tuple(Tournament(values).winner)


def _torch_max(values: Tensor, positions: Tensor, new: Tensor) -> Call:
    leaves, positions, turns = values.clone(), positions.clamp(min=0), _turns(new)

    def call():
        leaves.scatter_(-1, positions, next(turns))
        return tuple(leaves.max(-1))

    return call


def _turns(new: Tensor):
    """New values that differ from call to call: a tree would find nothing to do for the same ones."""
    both = new, new + 1
    while True:
        yield from both


def _touched(shape: Sizes) -> int:
    return shape["B"] * shape["t"]


def _bytes(shape: Sizes, itemsize: int) -> int:
    above = sum(min(count, shape["t"]) for count in levels(shape["n"]))
    return shape["B"] * (shape["t"] * (8 + 2 * itemsize) + above * (FAN + 1) * (8 + itemsize))


UPDATE = Workload(
    "tournament update",
    (Contender("tropigrad", "ours", _ours), Contender("torch.max", "dense", _torch_max)),
    operations=_touched,
    bytes=_bytes,
    mix="gather",
)

# ------------------------------------------------------------------------------------------------ samples


@sampled
def samples(add, numbers) -> None:
    """Where implementations go wrong: ties, NaN that come and go, infinities, −0, bounds, one leaf, no tree."""
    special, none = torch.tensor(SPECIAL[:-1]), torch.zeros(2, 0, dtype=torch.int64)
    for label, largest in (("max", True), ("min", False)):
        of = {"largest": largest}
        for dtype in DTYPES:
            values, new = numbers.small(3, 70, dtype=dtype), numbers.small(3, 9, dtype=dtype)
            positions, id = numbers.orders(3, 70, 9), f"{label}-{short(dtype)}"
            add(f"ties-{id}", values, positions, new, **of)
            if dtype.is_floating_point:
                messy, fresh = (numbers.among(special, *x.shape).to(dtype) for x in (values, new))
                add(f"special-{id}", messy, positions, fresh, **of)
                worst, kind = -INF if largest else INF, "all-worst"
            else:
                bounds, kind = torch.iinfo(dtype), "bound"
                worst = bounds.min if largest else bounds.max
            lost = torch.full_like(values, worst)
            add(f"{kind}-{id}", lost, positions, lost[:, :9], **of)
        x = torch.tensor([[1.0]])
        add(f"one-leaf-{label}", x, torch.tensor([[0]]), x + 1, **of)
        add(f"nothing-touched-{label}", x.expand(2, 5), torch.full((2, 3), -1), x.expand(2, 3), **of)
        add(f"no-tree-{label}", x[:0].expand(0, 5), none.view(0, 2), x[:0].expand(0, 2), **of)
        add(f"empty-update-{label}", x.expand(2, 5), none, x.expand(2, 1)[:, :0], **of)
        rows = numbers.normal(2, 5000)
        add(f"all-touched-{label}", rows, numbers.orders(2, 5000, 5000), rows.flip(0), **of)


def _made(values: Tensor, *update: Tensor, **options) -> None:
    tournament = Tournament(values, **options)
    if update:
        tournament.update(*update)


def misuses(device: torch.device) -> list[Misuse]:
    x, i = torch.zeros(2, 5, device=device), torch.zeros(2, 3, dtype=torch.int64, device=device)
    bad = misuse_of(_made)
    misuses = [
        bad("not-a-tensor", TypeError, "values is a list; expected a torch.Tensor", [1.0]),
        bad("int64", TypeError, "values is torch.int64; expected one of float64", x.long()),
        bad("sparse", TypeError, "values has layout torch.sparse_coo; expected torch.strided", x.to_sparse()),
        bad("no-leaf", ValueError, r"values has shape \(2, 0\); expected \[..., n\]", x[:, :0]),
        bad("scalar", ValueError, r"values has shape \(\); expected \[..., n\]", x[0, 0]),
        bad("positions", TypeError, "positions is torch.float32; expected a tensor of int64", x, x, x),
        bad("dtype", TypeError, "values is torch.float64; expected the tree's torch.float32", x, i, x[:, :3].double()),
        bad("device", ValueError, "values is on meta; expected the tree's", x, i, x[:, :3].to("meta")),
        bad("batch", ValueError, r"positions has shape \(1, 3\); expected \[t\], or \[2, 't'\]", x, i[:1], x[:, :3]),
        bad("touched", ValueError, r"values has shape \(2, 5\); expected \[..., 3\]", x, i, x),
    ]
    if device.type == "cpu":
        misuses += [
            bad("beyond", IndexError, r"out of range; expected \[-1, 5\).*nothing was written", x, i + 5, x[:, :3]),
            bad("below", IndexError, r"out of range; expected \[-1, 5\)", x, i - 2, x[:, :3]),
        ]
    return misuses


def _updated(positions: Tensor, own: Callable[[Tournament], Tensor], copied: Callable[[Tensor], Tensor]):
    """A tree after an update with values that are views of it."""
    tournament = Tournament(Numbers().normal(2, 70))
    tournament.update(positions.expand(2, 70), copied(own(tournament)).expand(2, 70))
    return tournament.values, *tournament.winner


SPEC = register(
    Spec(
        name="Tournament",
        op=played,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "one": {"B": 1, "n": 60_000, "t": 4},
            "many": {"B": 1, "n": 60_000, "t": 1000},
            "batch": {"B": 1000, "n": 1568, "t": 1},
        },
        workloads=(UPDATE,),
        variants={"max": {"largest": True}, "min": {"largest": False}},
        dtypes=DTYPES,
        small_shapes=({"B": 1, "n": 1, "t": 1}, {"B": 3, "n": 33, "t": 5}, {"B": 2, "n": 1100, "t": 40}),
        samples=samples,
        particular_misuses=misuses,
        is_wrapped=True,
        implementations=_UPDATES,
        middle={"B": 70, "n": 3000, "t": 90},
        no_gradient="bookkeeping of optimizers: it works in place and has no gradient",
        left_out={
            "vmap": "batches of trees are its own",
            "autocast": "values are of one dtype, which nothing casts",
            "fx_trace": "a tree is kept and changed; it is no function of its values",
        },
        tuned={"cpp": (by_cpp.BUILD, by_cpp.UPDATE), "triton": (by_triton.BUILD, by_triton.UPDATE)},
        scalings=lambda kwargs: (Scaling((1, 0, 1), 1),),
        extra=Extra(
            in_place={"update": _ours, "build": _built},
            overlapping={
                "own-values": partial(_updated, torch.arange(69, -1, -1), lambda tree: tree.values),
                "own-winner": partial(_updated, torch.arange(70), lambda tree: tree.winner.value.unsqueeze(1)),
            },
        ),
    )
)
