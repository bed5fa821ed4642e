"""A step on the touched entries of W: what each rule does, and the oracle, which does it densely."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
_PLACES = ({"velocity", "sum", "mean"}, {"square"}, {"touched"}, {"step"})  # moment, square, touched, number
ARGUMENTS = {  # which of a rule's state is the operator's moment, square, touched and number; "" for none
    rule: tuple(next((name for name in kept if name in place), "") for place in _PLACES) for rule, kept in STATE.items()
}
DECAY = {"adam": 0.999, "rmsprop": 0.99}  # by default, of the rules that have one
EPS = {"adagrad": 1e-10, "adam": 1e-8, "rmsprop": 1e-8}


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


def options_of(rule: str, decay: float | None, eps: float | None) -> tuple[float, float]:
    """decay and eps, for None those of the rule; 0 where the rule has none."""
    return DECAY.get(rule, 0.0) if decay is None else decay, EPS.get(rule, 0.0) if eps is None else eps


def moved(
    w: Tensor,
    g: Tensor,
    moment: Tensor | None,
    square: Tensor | None,
    since: Tensor | None,
    number: Tensor | None,
    *,
    lr: float | Tensor,
    rule: str,
    momentum: float,
    decay: float,
    eps: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """w, its moment (velocity, sum or mean) and its mean square after the gradient g, all in the compute dtype.

    since: how many steps ago each was last touched, broadcast over w; momentum alone asks. number: of this step, from
    1; Adam alone asks. Of polyak, g is the step.
    """
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
    moment, square, touched, number = map(state.get, ARGUMENTS[rule])
    number = None if number is None else number + 1
    since = None if number is None or touched is None else (number - touched).view_as(wide)
    decay, eps = options_of(rule, decay, eps)
    w, new_moment, new_square = moved(
        param.to(dtype), g, moment, square, since, number,
        lr=lr, rule=rule, momentum=momentum, decay=decay, eps=eps,
    )  # fmt: skip
    w = w.to(param.dtype)
    if check_finite:
        for entry in was_touched.nonzero().tolist():
            if not all(x[tuple(entry)].isfinite().all() for x in (w, new_moment, new_square) if x is not None):
                raise FloatingPointError(not_finite(entry))
    param.copy_(torch.where(wide, w, param))
    for old, new in ((moment, new_moment), (square, new_square)):
        if old is not None and new is not None:
            old.copy_(torch.where(wide, new, old))
    if number is not None:
        state["step"].copy_(number)
        if touched is not None:
            touched.masked_fill_(was_touched, int(number))
    return state
