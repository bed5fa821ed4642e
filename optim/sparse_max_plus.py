"""Steps on the entries that have a gradient: of sparse gradients those listed, of dense ones all.

A batch moves few weights of a max-plus layer, and its gradient is a list of them. A dense step would visit every weight
and its moments all the same. Here the list is stepped by `scatter_step`, which leaves the others as they are, and
parameters with dense gradients (of linear layers beside, of biases) by torch.optim's own functions for the same rule.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from ..kernels.runtime.arguments import looks_at_values
from ..kernels.scatter_step import restorer as restorer_of
from ..kernels.scatter_step import scatter_steps
from ..kernels.scatter_step.definition import STATE, compute_dtype, decay_and_eps, fresh_state

_WHERE = "SparseMaxPlus"
RULES = ("sgd", "momentum", "adagrad", "rmsprop", "adam")


class SparseMaxPlus(torch.optim.Optimizer):
    """An optimizer for layers with sparse gradients, as `nn.MaxPlusLinear(..., sparse=True)` has them.

    | rule       | of each entry with a gradient                                                 | lazily as  |
    |------------|-------------------------------------------------------------------------------|------------|
    | "sgd"      | w ← w − lr g                                                                  | SGD        |
    | "momentum" | v ← βˢ v + g, w ← w − lr v, last touched s steps ago                          | –          |
    | "adagrad"  | q ← q + g², w ← w − lr g / (√q + eps)                                         | Adagrad    |
    | "rmsprop"  | v ← α v + (1 − α) g², w ← w − lr g / (√v + eps)                               | –          |
    | "adam"     | m ← m + (1 − β₁)(g − m), v ← v + (1 − β₂)(g² − v),                            | SparseAdam |
    |            | w ← w − lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + eps), t steps of this parameter |            |

    Other entries, their moments included, stay as they are. The third column names the optimizer of torch.optim whose
    steps on a sparse gradient these are: SGD's to the bit, the others' to the last place. A dense gradient touches all
    entries, by the rule's dense form: that of torch.optim.SGD, Adagrad, RMSprop and Adam, fused where torch has it. A
    parameter may have the one at one step and the other at the next. Moments are float32 for 16-bit weights, which are
    rounded once.

    Args:
        params: parameters or groups of them. Of each group lr, rule, momentum, decay, eps and check_finite can be set.
        lr: ≥ 0, a number or a tensor of shape ().
        rule: one of the five.
        momentum: β of "momentum", β₁ of "adam", in [0, 1).
        decay: α of "rmsprop", by default 0.99; β₂ of "adam", by default 0.999; in [0, 1).
        eps: ≥ 0; by default 1e-10 for "adagrad", else 1e-8.
        check_finite: whether a step that would write a weight or moment that is not finite writes nothing, of any
            parameter, and raises. On a GPU only inside torch.autograd.detect_anomaly(), as it would wait for it.

    torch.distributed.checkpoint.state_dict gives and takes its state by the parameters' names. Flattened, torch
    restores what a step on dense gradients keeps: all but when "momentum" touched which entry.

    Raises:
        TypeError, ValueError: an option or a parameter that does not fit; in `step`, a gradient of another layout, or a
            state that is not of the rule. Nothing was written.
        FloatingPointError: in `step`, as check_finite says.

    Sources: Duchi, Hazan, Singer, "Adaptive subgradient methods", JMLR 2011; Kingma, Ba, "Adam", ICLR 2015.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        rule: str = "adam",
        *,
        momentum: float = 0.9,
        decay: float | None = None,
        eps: float | None = None,
        check_finite: bool = True,
    ) -> None:
        options = {"lr": lr, "rule": rule, "momentum": momentum, "decay": decay, "eps": eps}
        super().__init__(params, {**options, "check_finite": check_finite})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what state_dict() gave. Moments keep their own dtypes, where torch would give them the parameter's."""
        loaded: dict[str, Any] = {}

        def look(_: Any, final: dict[str, Any]) -> None:  # behind all hooks that may have changed it
            for group in final["param_groups"]:
                if missing := [name for name in self.defaults if name not in group]:
                    raise ValueError(f"{_WHERE}: a param group has no {', '.join(missing)}; expected one of {_WHERE}")
                _check_options(group)
            loaded.update(final)

        hook = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        numbers_of = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(numbers_of, parameters, strict=True):
            if number in loaded["state"]:
                self.state[p] = {k: x.to(p.device, copy=True) for k, x in loaded["state"][number].items()}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """One step of every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss.
        Returns:
            What closure returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(False):  # in a third of no_grad's time
            listed, dense = [], []
            for group in self.param_groups:
                lists, whole = None, []
                for p in group["params"]:
                    grad = p.grad
                    if grad is None:
                        continue
                    if grad.layout is torch.strided:
                        whole.append(p)
                        continue
                    if lists is None:
                        lists = _Lists([], [], [], [], group)
                        listed.append(lists)
                    lists.parameters.append(p)
                    lists.indices.append(_coordinates(p, grad))
                    lists.values.append(grad._values())
                    lists.states.append(self.state[p])
                if whole:
                    dense.append(_DenseStep(whole, group, self.state))
            self._take(listed, dense)
        return loss

    def _take(self, listed: list[_Lists], dense: list[_DenseStep]) -> None:
        """All steps, or, where a check fails, none: dense ones are computed aside, and listed ones are taken back."""
        for step in dense:
            step.compute()
        restores: list[Callable[[], None]] = []
        try:
            for i, each in enumerate(listed):
                if i + 1 < len(listed):  # the last fails as a whole
                    restores += each.restorers()
                each.take()
        except BaseException:
            for restore in restores:
                restore()
            raise
        for step in dense:
            step.write()


def _is_checked(p: Tensor, group: dict[str, Any]) -> bool:
    return group["check_finite"] and looks_at_values(p.device)


# ------------------------------------------------------------------------------------------------ sparse gradients


def _coordinates(p: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    if grad.layout is not torch.sparse_coo or not 0 < grad.sparse_dim() < 3:
        dimensions = f" with {grad.sparse_dim()} sparse dimensions" if grad.layout is torch.sparse_coo else ""
        raise TypeError(
            f"{_WHERE}: the gradient of a parameter {tuple(p.shape)} is {grad.layout}{dimensions}; expected a dense "
            "one, or torch.sparse_coo with one sparse dimension or two"
        )
    return grad._indices().unbind()


class _Lists(NamedTuple):
    """The steps of those parameters of a group that have sparse gradients."""

    parameters: list[Tensor]
    indices: list[tuple[Tensor, ...]]
    values: list[Tensor]
    states: list[dict[str, Tensor]]
    group: dict[str, Any]

    def take(self) -> None:
        """All of them, or, where a check fails, none."""
        parameters, indices, values, states, group = self
        if group["rule"] == "momentum":
            for p, at, state in zip(parameters, indices, states, strict=True):
                if "touched" not in state and "velocity" in state:  # all were at the last step
                    state["touched"] = torch.zeros(p.shape[: len(at)], dtype=torch.int32, device=p.device)
                    state["step"] = torch.zeros((), dtype=torch.int32, device=p.device)
        try:
            scatter_steps(
                parameters, indices, values, states, lr=group["lr"], rule=group["rule"], momentum=group["momentum"],
                decay=group["decay"], eps=group["eps"], check_finite=group["check_finite"],
            )  # fmt: skip
        except FloatingPointError as error:
            text = str(error)
            if len(parameters) == 1:
                text = f"of a parameter {tuple(parameters[0].shape)}: {text}, of any parameter"
            raise FloatingPointError(f"{_WHERE}: {text}") from error

    def restorers(self) -> list[Callable[[], None]]:
        """Take the steps back."""
        names = STATE[self.group["rule"]]

        def restorer(p: Tensor, at: tuple[Tensor, ...], state: dict[str, Tensor]) -> Callable[[], None]:
            kept = dict(state)
            of_tensors = restorer_of(p, at[0], at[1] if len(at) == 2 else None, [state[n] for n in names if n in state])

            def restore() -> None:
                of_tensors()
                state.clear()
                state.update(kept)

            return restore

        lists = zip(self.parameters, self.indices, self.states, strict=True)
        return [restorer(*each) for each in lists if _is_checked(each[0], self.group)]


# ------------------------------------------------------------------------------------------------ dense gradients


class _DenseStep:
    """The step of those parameters of a group that have dense gradients, by torch.optim's functions."""

    def __init__(self, parameters: list[Any], group: dict[str, Any], states: Any) -> None:
        self.parameters, self.group = parameters, group
        self.states = [states[p] for p in parameters]
        rule = group["rule"]
        for p, state in zip(parameters, self.states, strict=True):
            _check_state(p, rule, state)

    def compute(self) -> None:
        rule, parameters, momentum = self.group["rule"], self.parameters, self.group["momentum"]
        decay, eps = decay_and_eps(rule, self.group["decay"], self.group["eps"])
        self.is_aside = any(_is_checked(p, self.group) for p in parameters)
        gradients = [p.grad.to(compute_dtype(p.dtype)) for p in parameters]
        self.weights = [p.to(g.dtype, copy=self.is_aside) for p, g in zip(parameters, gradients, strict=True)]
        self.moments = [
            {name: x.clone() if self.is_aside else x for name, x in _moments(p, rule, state, momentum).items()}
            for p, state in zip(parameters, self.states, strict=True)
        ]
        kept = {name: [moments[name] for moments in self.moments] for name in self.moments[0]}
        fused = all(p.is_cpu or p.is_cuda for p in parameters)
        _RULES[rule](self.weights, gradients, kept, fused, self.group["lr"], momentum, decay, eps)
        if self.is_aside:
            for p, weight, moments in zip(parameters, self.weights, self.moments, strict=True):
                for name, x in (("weights", weight.to(p.dtype)), *moments.items()):
                    if not _is_finite(x):
                        raise FloatingPointError(
                            f"{_WHERE}: the step would write {name} of a parameter {tuple(p.shape)} that are not "
                            f"finite in {p.dtype}; nothing was written, of any parameter"
                        )

    def write(self) -> None:
        for p, weight, state, moments in zip(self.parameters, self.weights, self.states, self.moments, strict=True):
            if weight is not p:
                p.copy_(weight)
            state.pop("touched", None)  # of momentum: all entries were
            state.update(moments)


def _moments(p: Tensor, rule: str, state: dict[str, Tensor], momentum: float) -> dict[str, Tensor]:
    if not state:
        state = {name: x for name, x in fresh_state(p, rule, 1).items() if name != "touched"}
    if rule != "momentum":
        return {name: state[name] for name in STATE[rule]}
    velocity = state["velocity"]
    if "touched" in state:  # brought up to the last step
        since = (state["step"] - state["touched"]).double()
        factor = (momentum**since).to(velocity.dtype)
        velocity = velocity * factor.view(*factor.shape, *[1] * (p.dim() - factor.dim()))
    return {"velocity": velocity}


def _is_finite(x: Tensor) -> bool:
    return x.numel() == 0 or not x.is_floating_point() or math.isfinite(torch.linalg.vector_norm(x, math.inf))


def _sgd(weights, gradients, kept, fused, lr, momentum, decay, eps) -> None:
    velocities = kept.get("velocity")
    sgd(
        weights, gradients, [None] * len(weights) if velocities is None else velocities, fused=fused,
        weight_decay=0.0, momentum=0.0 if velocities is None else momentum, lr=lr, dampening=0.0, nesterov=False,
        maximize=False,
    )  # fmt: skip


def _adagrad(weights, gradients, kept, fused, lr, momentum, decay, eps) -> None:
    steps = [torch.zeros((), device="cpu") for _ in weights]  # which no decay of lr asks for
    fused = fused and all(p.is_cpu for p in weights)
    adagrad(
        weights, gradients, kept["sum"], steps, fused=fused or None, lr=lr, weight_decay=0.0, lr_decay=0.0, eps=eps,
        maximize=False,
    )  # fmt: skip


def _rmsprop(weights, gradients, kept, fused, lr, momentum, decay, eps) -> None:
    steps = [torch.zeros((), device="cpu") for _ in weights]
    rmsprop(
        weights, gradients, kept["square"], [], [], steps, lr=lr, alpha=decay, eps=eps, weight_decay=0.0,
        momentum=0.0, centered=False,
    )  # fmt: skip


def _adam(weights, gradients, kept, fused, lr, momentum, decay, eps) -> None:
    steps = [step.float() for step in kept["step"]]
    adam(
        weights, gradients, kept["mean"], kept["square"], [], steps, fused=fused, amsgrad=False, beta1=momentum,
        beta2=decay, lr=lr, weight_decay=0.0, eps=eps, maximize=False,
    )  # fmt: skip
    for step in kept["step"]:
        step.add_(1)


_RULES: dict[str, Callable[..., None]] = {
    "sgd": _sgd,
    "momentum": _sgd,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
}

# ------------------------------------------------------------------------------------------------ checks


def _check_group(group: dict[str, Any]) -> None:
    _check_options(group)
    for p in group["params"]:
        if p.layout is not torch.strided:
            raise ValueError(f"{_WHERE}: a parameter {tuple(p.shape)} is {p.layout}; expected a dense one")
        if not p.is_floating_point():
            raise TypeError(f"{_WHERE}: a parameter {tuple(p.shape)} is {p.dtype}; expected a floating dtype")


def _check_options(group: dict[str, Any]) -> None:
    rule, lr = group["rule"], group["lr"]
    if rule not in RULES:
        raise ValueError(f"{_WHERE}: rule is {rule!r}; expected one of {', '.join(map(repr, RULES))}")
    if isinstance(lr, Tensor):
        if lr.dim() or not lr.is_floating_point():
            raise ValueError(f"{_WHERE}: lr is {lr.dtype} of shape {tuple(lr.shape)}; expected one float, shape ()")
    else:
        _check_number("lr", lr, math.inf, "at least 0, and finite")
    _check_number("momentum", group["momentum"], 1.0, "a number in [0, 1)")
    if group["decay"] is not None:
        _check_number("decay", group["decay"], 1.0, "a number in [0, 1), or None")
    if group["eps"] is not None:
        _check_number("eps", group["eps"], math.inf, "at least 0, and finite, or None")


def _check_number(name: str, value: Any, bound: float, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{_WHERE}: {name} is {value!r}; expected {expected}")
    if not 0 <= float(value) < bound:
        raise ValueError(f"{_WHERE}: {name} is {value}; expected {expected}")


def _check_state(p: Tensor, rule: str, state: dict[str, Tensor]) -> None:
    """Demands that the state of a parameter with a dense gradient is of the rule."""
    for name in STATE[rule]:
        if state and name not in state and not (rule == "momentum" and name in ("touched", "step")):
            raise ValueError(
                f"{_WHERE}: the state of a parameter {tuple(p.shape)} has {', '.join(state)}; expected {name} too, as "
                f"rule {rule!r} keeps: a rule begins with no state"
            )
