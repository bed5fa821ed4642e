"""A step on the touched entries of W: what each rule does, and the oracle, which does it densely."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RULES = ("sgd", "momentum", "adagrad", "polyak")
STATE_OVERLAPS = (
    "scatter_step: state shares memory with param or within itself; expected places of its own, as this call's first "
    "step made it; nothing was written"
)
STATE = {"sgd": (), "momentum": ("velocity", "touched", "step"), "adagrad": ("sum",), "polyak": ()}  # what a rule keeps


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums, rules and state are computed and kept in: float32 for 16-bit weights."""
    return torch.promote_types(dtype, torch.float32)


def state_form(param: Tensor, rule: str, coordinates: int) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of what a rule keeps; `coordinates` is how many index tensors name an entry (a row) of param."""
    like_param = param.shape, compute_dtype(param.dtype)
    forms = {
        "velocity": like_param,
        "sum": like_param,
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


def moved(
    w: Tensor,
    g: Tensor,
    moment: Tensor | None,
    since: Tensor | None,
    *,
    lr: float | Tensor,
    rule: str,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """w and its moment (velocity or sum) after the gradient g, all in the compute dtype.

    since: how many steps ago each was last touched, broadcast over w; momentum alone asks. Of polyak, g is the step.
    """
    if isinstance(lr, Tensor):
        lr = lr.to(w)
    if rule == "momentum":
        assert moment is not None
        assert since is not None
        moment = (momentum ** since.double()).to(w.dtype) * moment + g
        return w - lr * moment, moment
    if rule == "adagrad":
        assert moment is not None
        moment = moment + g * g
        root = torch.maximum(moment.sqrt(), g.abs())  # √q ≥ |g|, but where g² is too small to be told from 0
        return torch.where(g == 0, w, w - lr * (g / (root + eps))), moment  # without eps 0 / 0 where g is 0
    return w - (g if rule == "polyak" else lr * g), None


def polyak_step(gap: float | Tensor, g: Tensor) -> Tensor:
    """γ g, γ = (F − F*) / ‖g‖², the norm in float64; 0 where that is 0. γ can be infinite where the step is not."""
    norm = g.double().square().sum().sqrt()
    gap = gap.to(norm) if isinstance(gap, Tensor) else torch.full_like(norm, gap)
    return torch.where(norm == 0, 0.0, (gap / norm).to(g) * (g / norm.to(g)))


def scatter_step_ref(
    param: Tensor,
    indices: Tensor | Sequence[Tensor],
    values: Tensor,
    *,
    lr: float | Tensor,
    rule: str = "sgd",
    state: dict[str, Tensor] | None = None,
    momentum: float = 0.9,
    eps: float = 1e-10,
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
    since = state["step"] + 1 - state["touched"] if rule == "momentum" else None
    moment = state[STATE[rule][0]] if STATE[rule] else None
    since = None if since is None else since.view_as(wide)
    w, new_moment = moved(param.to(dtype), g, moment, since, lr=lr, rule=rule, momentum=momentum, eps=eps)
    param.copy_(torch.where(wide, w.to(param.dtype), param))
    if moment is not None and new_moment is not None:
        moment.copy_(torch.where(wide, new_moment, moment))
    if rule == "momentum":
        state["step"] += 1
        state["touched"].masked_fill_(was_touched, int(state["step"]))
    return state
