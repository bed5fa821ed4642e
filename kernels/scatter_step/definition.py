"""A step on the touched entries of W: what each rule does, and the oracle, which does it densely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("sgd", "momentum", "adagrad", "polyak", "adam", "rmsprop")
STATE_OVERLAPS = (
    "scatter_step: state shares memory with param or within itself; expected places of its own, as this call's first "
    "step made it; nothing was written"
)
STATE = {  # what a rule keeps
    "sgd": (),
    "momentum": ("velocity", "touched", "step"),
    "adagrad": ("sum",),
    "polyak": (),
    "adam": ("mean", "square", "step"),
    "rmsprop": ("square",),
}
DECAY = {"adam": 0.999, "rmsprop": 0.99}  # by default, of the rules that have one
EPS = {"adagrad": 1e-10, "adam": 1e-8, "rmsprop": 1e-8}


def decay_and_eps(rule: str, decay: float | None, eps: float | None) -> tuple[float, float]:
    """decay and eps, for None those of the rule; 0 where the rule has none."""
    return DECAY.get(rule, 0.0) if decay is None else decay, EPS.get(rule, 0.0) if eps is None else eps


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums, rules and state are computed and kept in: float32 for 16-bit weights."""
    return torch.promote_types(dtype, torch.float32)


def state_form(param: Tensor, rule: str, coordinates: int) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of what a rule keeps; `coordinates` is how many index tensors name an entry (a row) of param."""
    like_param = param.shape, compute_dtype(param.dtype)
    forms = {
        "velocity": like_param,
        "sum": like_param,
        "mean": like_param,
        "square": like_param,
        "touched": (param.shape[:coordinates], torch.int32),
        "step": (torch.Size(), torch.int32),
    }
    return {name: forms[name] for name in STATE[rule]}


def fresh_state(param: Tensor, rule: str, coordinates: int) -> dict[str, Tensor]:
    """The state before the first step: zeros."""
    return {
        name: torch.zeros(shape, dtype=dtype, device=param.device)
        for name, (shape, dtype) in state_form(param, rule, coordinates).items()
    }


class Options(NamedTuple):
    """A rule and its numbers."""

    rule: str
    momentum: float = 0.9
    decay: float = 0.0
    eps: float = 0.0


class State(NamedTuple):
    """The tensors that a rule keeps, by their purpose; None for those that it does not keep."""

    moment: Tensor | None = None  # velocity, sum or mean
    square: Tensor | None = None
    touched: Tensor | None = None
    number: Tensor | None = None  # of the steps there were


_PLACES = {"velocity": "moment", "sum": "moment", "mean": "moment", "square": "square", "touched": "touched"}
_PLACES |= {"step": "number"}


def arranged(rule: str, kept: Sequence[Tensor]) -> State:
    """The tensors that a rule keeps, which come in the order of STATE, as a State."""
    return State(**{_PLACES[name]: x for name, x in zip(STATE[rule], kept, strict=True)})


def moved(
    w: Tensor, g: Tensor, lr: float | Tensor, options: Options, state: State, since: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """w, its moment and its mean square after the gradient g, all in the compute dtype.

    state: of these entries; its number is that of this step, from 1. since: how many steps ago each was last touched,
    broadcast over w; momentum alone asks. Of polyak, g is the step.
    """
    (rule, momentum, decay, eps), (moment, square, _, number) = options, state
    if rule == "adam":
        assert number is not None
        lr = corrected_rate(lr, number, momentum, decay)
    if isinstance(lr, Tensor):
        lr = lr.to(w)
    if rule == "momentum":
        assert moment is not None
        assert since is not None
        moment = (momentum ** since.double()).to(w.dtype) * moment + g
        return w - lr * moment, moment, None
    if rule == "adagrad":
        assert moment is not None
        moment = moment + g * g
        root = torch.maximum(moment.sqrt(), g.abs())  # √q ≥ |g|, but where g² is too small to be told from 0
        return torch.where(g == 0, w, w - lr * (g / (root + eps))), moment, None  # without eps 0 / 0 where g is 0
    if rule in ("adam", "rmsprop"):
        assert square is not None
        if rule == "adam":
            assert moment is not None
            moment = moment + (g - moment) * (1 - momentum)
            following = square + (g * g - square) * (1 - decay)
            square = torch.where(square == math.inf, square, following)  # ∞ − ∞ would be NaN
        else:
            square = square * decay + (1 - decay) * g * g
        is_small = square < torch.finfo(w.dtype).tiny  # √v ≥ √(1 − decay) |g|, but where v is too small to tell
        root = torch.where(is_small, torch.maximum(square.sqrt(), math.sqrt(1 - decay) * g.abs()), square.sqrt()) + eps
        step = lr * ((g if moment is None else moment) / root)
        return torch.where(root == 0, w, w - step), moment, square
    return w - (g if rule == "polyak" else lr * g), None, None


def corrected_rate(lr: float | Tensor, number: Tensor, momentum: float, decay: float) -> float | Tensor:
    """lr √(1 − decayᵗ) / (1 − momentumᵗ), t = number, in float64: a number, where reading t waits for no device."""
    lr = lr.double() if isinstance(lr, Tensor) else lr
    if number.is_cpu:
        t = int(number)
        return lr * math.sqrt(1 - decay**t) / (1 - momentum**t)
    t = number.double()
    return lr * (1 - decay**t).sqrt() / (1 - momentum**t)


def polyak_step(gap: float | Tensor, g: Tensor) -> Tensor:
    """γ g, γ = (F − F*) / ‖g‖², the norm in float64; 0 where that is 0. γ can be infinite where the step is not."""
    norm = g.double().square().sum().sqrt()
    gap = gap.to(norm) if isinstance(gap, Tensor) else torch.full_like(norm, gap)
    return torch.where(norm == 0, 0.0, (gap / norm).to(g) * (g / norm.to(g)))


def not_finite(at: Sequence[int]) -> str:
    """The error of a step that is not finite at this entry."""
    return (
        f"scatter_step: the weight at [{', '.join(map(str, at))}], or its state, would be NaN or infinite; expected a "
        "step that leaves both finite: look at values and lr; nothing was written"
    )


def scatter_step_ref(
    param: Tensor,
    indices: Tensor | Sequence[Tensor],
    values: Tensor,
    *,
    lr: float | Tensor,
    rule: str = "sgd",
    state: dict[str, Tensor] | None = None,
    momentum: float = 0.9,
    decay: float | None = None,
    eps: float | None = None,
    check_finite: bool = False,
    deterministic: bool | None = None,
) -> dict[str, Tensor]:
    """The oracle: g is summed up densely, the rule moves all of W, and what was not touched is left as it was."""
    at = (indices,) if isinstance(indices, Tensor) else tuple(indices)
    state = state or fresh_state(param, rule, len(at))
    kept = torch.stack([index >= 0 for index in at]).all(0)
    at = tuple(index[kept].long() for index in at)
    dtype = compute_dtype(param.dtype)
    g = torch.zeros_like(param, dtype=dtype).index_put_(at, values[kept].to(dtype), accumulate=True)
    g = polyak_step(lr, g) if rule == "polyak" else g
    was_touched = torch.zeros(param.shape[: len(at)], dtype=torch.bool, device=param.device)
    was_touched[at] = True
    wide = was_touched.view(*was_touched.shape, *[1] * (param.dim() - len(at)))
    old = arranged(rule, [state[name] for name in STATE[rule]])
    number = None if old.number is None else old.number + 1
    since = None if number is None or old.touched is None else (number - old.touched).view_as(wide)
    options = Options(rule, momentum, *decay_and_eps(rule, decay, eps))
    w, *moments = moved(param.to(dtype), g, lr, options, old._replace(number=number), since)
    w = w.to(param.dtype)
    if check_finite:
        for entry in was_touched.nonzero().tolist():
            if not all(x[tuple(entry)].isfinite().all() for x in (w, *moments) if x is not None):
                raise FloatingPointError(not_finite(entry))
    param.copy_(torch.where(wide, w, param))
    for x, new in zip(old[:2], moments, strict=True):
        if x is not None and new is not None:
            x.copy_(torch.where(wide, new, x))
    if old.number is not None and number is not None:
        old.number.copy_(number)
        if old.touched is not None:
            old.touched.masked_fill_(was_touched, int(number))
    return state
