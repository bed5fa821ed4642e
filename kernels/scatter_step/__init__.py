"""Sparse step: W[i, j] ← rule(W[i, j], g[i, j]), g[i, j] = Σ of the values listed for (i, j), where there are any.

A gradient with few non-zeros, as a max-plus network's or an embedding's, needs no pass over W: the cost is that of the
list. Duplicates are summed before the rule, which is not linear in g for all rules, nor W's rounding for any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import combinations
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..runtime import memory
from ..runtime.arguments import FLOATS, looks_at_values
from ..runtime.dispatch import Plan, operator
from ..runtime.implementations import Implementations
from . import by_cpp, by_triton
from .definition import (
    RULES,
    STATE,
    STATE_OVERLAPS,
    Options,
    State,
    arranged,
    compute_dtype,
    decay_and_eps,
    fresh_state,
    moved,
    not_finite,
    polyak_step,
    scatter_step_ref,
    state_form,
)

__all__ = ["RULES", "scatter_step", "scatter_step_ref"]

_ORDINARY = (Tensor, torch.nn.Parameter)

# ------------------------------------------------------------------------------------------------ the step


def _step(
    param: Tensor,
    rows: Tensor,
    columns: Tensor | None,
    values: Tensor,
    lr: float,
    rate: Tensor | None,
    rule: str,
    momentum: float,
    decay: float,
    eps: float,
    kept: list[Tensor],
    check_finite: bool,
    deterministic: bool | None,
) -> None:
    """param [R, ...], with columns [R, C, ...], any strides; rows and columns [nnz]; values [nnz, ...].

    rate: takes the place of lr, [], on the CPU or on param's device. kept: the rule's state, in the order of STATE.
    param and kept are written in place.
    """
    if param.dim() > (2 if columns is None else 3):
        _step_in_one(
            param, rows, columns, values, lr, rate, rule, momentum, decay, eps, kept, check_finite, deterministic
        )
        return
    options, state = Options(rule, momentum, decay, eps), arranged(rule, kept)
    chosen = _STEPS.backend_of(param)
    if rate is None or rate.is_cpu:
        lr, rate = _checked_rate(lr if rate is None else float(rate)), None
    if rows.shape[0] == 0:
        if state.number is not None:
            state.number.add_(1)
        return
    rows, values = rows.contiguous(), values.contiguous()
    columns = None if columns is None else columns.contiguous()
    if chosen == "cpp" and param.numel() and values.numel():
        by_cpp.step(param, rows, columns, values, lr, options, kept, check_finite)
    else:
        pace = lr if rate is None else rate
        if not memory.none_meet((param, *kept, rows, columns, values, rate)):
            written = [param, *kept]
            _check_apart(*written)
            rows, values = memory.apart(rows, *written), memory.apart(values, *written)
            columns = None if columns is None else memory.apart(columns, *written)
            pace = lr if rate is None else memory.apart(rate, *written)
        if deterministic is None:
            deterministic = torch.are_deterministic_algorithms_enabled()
        with torch.no_grad():
            param_rows = _as_rows(param, columns)
            state = state._replace(
                moment=None if state.moment is None else _as_rows(state.moment, columns),
                square=None if state.square is None else _as_rows(state.square, columns),
                touched=None if state.touched is None else state.touched.view(param_rows.shape[:2]),
            )
            values = values.view(len(rows), param_rows.shape[-1])
            _check_range(param_rows, rows, columns)
            step = _STEPS.functions["torch" if chosen == "cpp" else chosen]  # C++ takes nothing empty
            is_watched = check_finite and looks_at_values(param.device)
            with _taken_back_unless_finite((param_rows, *state), rows, columns) if is_watched else nullcontext():
                step(param_rows, rows, columns, values, pace, options, state, deterministic)
    if not param.is_inference():  # such a tensor has no version
        torch.autograd.graph.increment_version(param)


class _Listed(NamedTuple):
    """One of the weights of a call, its list, and what the rule keeps of it."""

    param: Tensor
    rows: Tensor
    columns: Tensor | None
    values: Tensor
    kept: list[Tensor]


def _each(params, indices, values, coordinates, rule: str, kept) -> list[_Listed]:
    """The arguments of the operator, by weights."""
    index, state, names = iter(indices), iter(kept), STATE[rule]
    return [
        _Listed(param, next(index), next(index) if count == 2 else None, v, [next(state) for _ in names])
        for param, v, count in zip(params, values, coordinates, strict=True)
    ]


def _checked_steps(
    params, indices, values, coordinates, lr, rate, rule, momentum, decay, eps, kept, check_finite, deterministic
) -> None:
    """The steps one by one; where one fails, those before it are taken back if check_finite."""
    steps = _each(params, indices, values, coordinates, rule, kept)
    for step in steps:
        if step.param.is_cpu:  # where the public function leaves that to the operator
            _check_layouts(*step[:4], rule, step.kept)
    steps.sort(key=lambda step: step.param.numel())
    restores: list[Callable[[], None]] = []
    options = rule, momentum, decay, eps
    step = steps[0]
    try:
        for i, step in enumerate(steps):
            if i + 1 < len(steps) and check_finite and looks_at_values(step.param.device):
                # not of the last, the largest, which fails as a whole
                restores.append(restorer(step.param, step.rows, step.columns, step.kept))
            _step(*step[:4], lr, rate, *options, step.kept, check_finite, deterministic)
    except BaseException as error:
        for restore in restores:
            restore()
        if isinstance(error, FloatingPointError) and len(steps) > 1:
            raise FloatingPointError(f"of a parameter {tuple(step.param.shape)}: {error}, of any parameter") from error
        raise


def _check_layouts(param, rows, columns, values, rule: str, kept: Sequence[Tensor]) -> None:
    _check_tensors(param, (rows,) if columns is None else (rows, columns), values)
    if STATE[rule]:
        _check_state(param, rule, dict(zip(STATE[rule], kept, strict=False)), 1 if columns is None else 2)


def _plan(
    params, indices, values, coordinates, lr, rate, rule, momentum, decay, eps, kept, check_finite, deterministic
) -> Plan:
    steps, calls = _each(params, indices, values, coordinates, rule, kept), []
    if rate is not None and not (rate.is_cpu and rate.dtype == torch.float64):
        return []
    for param, rows, columns, v, own in steps:
        _check_layouts(param, rows, columns, v, rule, own)
        lists = rows, v, *(() if columns is None else (columns,))
        if (
            param.dim() > (2 if columns is None else 3)
            or param.numel() * v.numel() == 0
            or param.dtype != params[0].dtype
            or not all(x.is_contiguous() for x in lists)
            or _STEPS.backend_of(param) != "cpp"
        ):
            return []
        calls.append(by_cpp.call(param, rows, columns, v, rule, check_finite))
    return by_cpp.plan(params[0].dtype, calls)


def _step_in_one(param, rows, columns, values, lr, rate, rule, momentum, decay, eps, kept, *others) -> None:
    """Trailing dimensions as one; where no single stride serves them, in a copy of param that is copied back."""
    first = 1 if columns is None else 2
    trailing = range(first, param.dim() - 1)
    is_copied = any(param.stride(i) != param.stride(i + 1) * param.shape[i + 1] for i in trailing)
    with torch.no_grad():
        whole = param.flatten(first)
        if is_copied:
            _check_apart(param, *kept)
        kept = [x.flatten(first) if x.dim() == param.dim() else x for x in kept]
        _step(whole, rows, columns, values.flatten(1), lr, rate, rule, momentum, decay, eps, kept, *others)
        if is_copied:
            param.copy_(whole.view(param.shape))
            if not param.is_inference():
                torch.autograd.graph.increment_version(param)


def _no_vmap(info, in_dims, *args) -> NoReturn:
    raise NotImplementedError(
        "scatter_step: vmap does not apply, as it works in place; expected one step of a longer list, in which the "
        "number of each map is an index more"
    )


_WHOLE = 16  # elements of a whole tensor that are copied in the time of one that is gathered


def restorer(param: Tensor, rows: Tensor, columns: Tensor | None, kept: Sequence[Tensor]) -> Callable[[], None]:
    """Takes a step that follows back: the listed entries of param and its state, or all of them where that is less."""
    at: Any = rows if columns is None else (rows, columns)
    is_whole = param.numel() <= _WHOLE * rows.numel()
    with torch.no_grad():
        before = [(x, x.clone() if is_whole or not x.dim() else x[at]) for x in (param, *kept)]

    def restore() -> None:
        with torch.no_grad():
            for x, values in before:
                x[... if is_whole or not x.dim() else at] = values

    return restore


def _check_apart(param: Tensor, *state: Tensor) -> None:
    """Raises ValueError where two tensors that are written share memory."""
    if any(memory.overlap(x, y) for x, y in combinations((param, *state), 2)):
        raise ValueError(STATE_OVERLAPS)


def _as_rows(x: Tensor, columns: Tensor | None) -> Tensor:
    """The view [R, C, D]: of size 1 where x lacks a dimension."""
    x = x.unsqueeze(1) if columns is None else x
    return x if x.dim() == 3 else x.unsqueeze(-1)


def _check_range(param: Tensor, rows: Tensor, columns: Tensor | None) -> None:
    """Indices are in [−1, size): looked at on the CPU, and on a GPU, where it synchronises, inside detect_anomaly()."""
    if not looks_at_values(param.device):
        return
    for name, index, size in (("rows" if columns is not None else "indices", rows, param.shape[0]),
                              ("columns", columns, param.shape[1])):  # fmt: skip
        if index is not None:
            lowest, highest = (int(x) for x in index.aminmax())
            if lowest < -1 or highest >= size:
                raise IndexError(
                    f"scatter_step: {name} reach from {lowest} to {highest}, out of range; "
                    f"expected [-1, {size}), -1 to skip; nothing was written"
                )


@contextmanager
def _taken_back_unless_finite(written: Sequence[Tensor | None], rows: Tensor, columns: Tensor | None) -> Iterator[None]:
    """Raises FloatingPointError where the step inside left weights or state that are not finite, and takes it back.

    written: param, moment and square [R, C, D], touched [R, C] and number [], as far as the rule has them.
    """
    tensors = [x for x in written if x is not None]
    at, *_ = _distinct(tensors[0], rows, columns)
    before = [x[at] if x.dim() else x.clone() for x in tensors]
    yield
    is_bad = torch.zeros_like(at[0], dtype=torch.bool)
    for x in tensors:
        if x.is_floating_point():
            is_bad |= ~x[at].isfinite().all(1)
    if not is_bad.any():
        return
    for x, was in zip(tensors, before, strict=True):
        x[at if x.dim() else ...] = was
    first = int(is_bad.int().argmax())
    raise FloatingPointError(not_finite([int(x[first]) for x in at[: 1 if columns is None else 2]]))


def _distinct(param: Tensor, rows: Tensor, columns: Tensor | None) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """The distinct entries that are listed, as rows and columns in order; which in the list count, and as which."""
    R, C = param.shape[:2]
    columns = torch.zeros_like(rows) if columns is None else columns
    kept = (rows >= 0) & (columns >= 0) & (rows < R) & (columns < C)
    keys, place = torch.unique(rows[kept].long() * C + columns[kept], return_inverse=True)
    return (keys // max(C, 1), keys % max(C, 1)), kept, place


def _step_by_torch(
    param: Tensor,
    rows: Tensor,
    columns: Tensor | None,
    values: Tensor,
    lr: float | Tensor,
    options: Options,
    state: State,
    deterministic: bool,
) -> None:
    """Distinct coordinates by sorting, their sums, and the rule on what was gathered."""
    at, kept, place = _distinct(param, rows, columns)
    dtype = compute_dtype(param.dtype)
    g = torch.zeros((len(at[0]), param.shape[2]), dtype=dtype, device=param.device)
    g.index_put_((place,), values[kept].to(dtype), accumulate=True)  # which sorts where it must be deterministic
    since = None
    if state.number is not None:
        state.number.add_(1)
        if state.touched is not None:
            since = (state.number - state.touched[at]).unsqueeze(-1)
            state.touched[at] = state.number
    g = polyak_step(lr, g) if options.rule == "polyak" else g
    gathered = State(*(None if x is None else x[at] for x in state[:2]), number=state.number)
    w, *moments = moved(param[at].to(dtype), g, lr, options, gathered, since)
    param[at] = w.to(param.dtype)
    for x, new in zip(state[:2], moments, strict=True):
        if x is not None and new is not None:
            x[at] = new


_STEPS = Implementations(
    "scatter_step", source=by_cpp.SOURCE, cpp=by_cpp.step, triton=by_triton.step, torch=_step_by_torch
)

# ------------------------------------------------------------------------------------------------ operator

_STEP = operator(
    "scatter_step(Tensor(a!)[] params, Tensor[] indices, Tensor[] values, int[] coordinates, float lr, Tensor? rate, "
    "str rule, float momentum, float decay, float eps, Tensor(b!)[] kept, bool check_finite, bool? deterministic) "
    "-> ()",
    _checked_steps,
    fake=lambda *args: None,
    vmap=_no_vmap,
    plan=_plan,
)

# ------------------------------------------------------------------------------------------------ public


def scatter_step(
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
    """One step of an optimizer on the listed entries of `param`, in place: w ← rule(w, g), g = Σ values of the entry.

    | rule       | of each touched entry, once                            | state                                     |
    |------------|--------------------------------------------------------|-------------------------------------------|
    | "sgd"      | w ← w − lr g                                           | none                                      |
    | "momentum" | v ← βˢ v + g, w ← w − lr v, last touched s steps ago   | velocity, touched (the step of the last   |
    |            |                                                        | touch), step (how many there were)        |
    | "adagrad"  | q ← q + g², w ← w − lr g / (√q + eps)                  | sum (q)                                   |
    | "polyak"   | w ← w − γ g, γ = lr / ‖g‖², the norm over all entries  | none                                      |
    | "adam"     | m ← m + (1 − β)(g − m), v ← v + (1 − α)(g² − v),       | mean (m), square (v), step (t, how many   |
    |            | w ← w − lr √(1 − αᵗ) / (1 − βᵗ) · m / (√v + eps)       | there were)                               |
    | "rmsprop"  | v ← α v + (1 − α) g², w ← w − lr g / (√v + eps)        | square (v)                                |

    β is `momentum`, α is `decay`. Adam is lazy as torch.optim.SparseAdam is: m and v of an entry rest while it is not
    listed, and t counts the steps of the state, not those of the entry. RMSprop is lazy likewise.
    A momentum that decays lazily forgets as the dense one does, and moves weights only when they are touched. Polyak's
    lr is the gap F − F* of the loss to its target, in the units of the loss; where g = 0 nothing moves. Sums and state
    are float32 for 16-bit weights, which are rounded once. What is too large for its dtype is inf, as in torch.optim;
    else finite gradients leave finite weights. Sources: Duchi, Hazan, Singer, "Adaptive subgradient
    methods", JMLR 2011, fig. 1; Polyak, "Minimization of unsmooth functionals", 1969; Nesterov, "Subgradient methods
    for huge-scale optimization problems", 2012; Kingma, Ba, "Adam", ICLR 2015, the rate as at the end of section 2;
    Tieleman, Hinton, "RMSprop", Coursera lecture 6.5, 2012.

    Args:
        param: weights [R], [R, ...] or [R, C, ...] of float64, float32, float16 or bfloat16; any strides that do not
            overlap. Written outside autograd, as torch.optim does; a graph that saved it is told.
        indices: int64 or int32 [nnz] along the first dimension (elements of a vector, rows of a matrix), or a pair
            (rows, columns) of such along the first two. In any order, repeated at will; −1 skips the entry.
        values: the gradient [nnz, *the dimensions of param that indices leave], in param's dtype. Values, indices and
            lr may be views of param or of the state: the step is that on copies of them.
        lr: a finite number, or a tensor [] on the CPU or on param's device, where a CUDA graph reads it anew at each
            replay.
        rule: one of the six above.
        state: what the last call returned; None or an empty dict, which is filled in, before the first.
        momentum: β in [0, 1).
        decay: α in [0, 1); None: 0.999 for "adam", 0.99 for "rmsprop".
        eps: at least 0, in the units of g; None: 1e-10 for "adagrad", 1e-8 for "adam" and "rmsprop".
        check_finite: refuse a step that would not leave every listed weight and its state finite.
        deterministic: the same bits each time; None: as torch.use_deterministic_algorithms says. On the CPU always, for
            any number of threads; on a GPU all but "sgd" in float32 and float64, whose atomic additions come in any
            order without it.

    Returns:
        The state, tensors by name: torch.save, load and deepcopy it with the optimizer's.

    Raises:
        TypeError: a dtype or a type is none of the above.
        ValueError: shapes, devices or the state do not fit, an option is out of range, or what is written shares
            memory: elements of param, or the state with it. Nothing was written.
        IndexError: an index outside [−1, size), with nothing written: on the CPU, and on a GPU inside
            torch.autograd.detect_anomaly(), as it costs a synchronisation; elsewhere on a GPU the entry is skipped.
        FloatingPointError: with check_finite, a listed weight or its state would be NaN or infinite, with nothing
            written: on the CPU, and on a GPU inside torch.autograd.detect_anomaly(); elsewhere on a GPU nothing looks.
    """
    at: tuple[Any, ...] = tuple(indices) if isinstance(indices, (list, tuple)) else (indices,)
    if state is not None and not isinstance(state, dict):
        raise TypeError(
            f"scatter_step: state is a {type(state).__name__}; expected a dict, what the last call returned"
        )
    fits = _fit(param, at, values, lr, rule, state)
    if not fits:
        _check_tensors(param, at, values)
    numbers = _checked_options(param, lr, rule, momentum, decay, eps)
    names = STATE[rule]
    if not state:
        fresh = fresh_state(param, rule, len(at)) if names else {}
        state = fresh if state is None else state
        state.update(fresh)
    elif names and not fits:
        _check_state(param, rule, state, len(at))
    if len(at) == 2 and at[0].dtype != at[1].dtype:
        at = at[0].long(), at[1].long()
    kept = [state[name] for name in names]
    _call([param], at, [values], [len(at)], lr, rule, numbers, kept, check_finite, deterministic)
    return state


def scatter_steps(
    params: Sequence[Tensor],
    indices: Sequence[tuple[Tensor, ...]],
    values: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    *,
    lr: float | Tensor,
    rule: str,
    momentum: float,
    decay: float | None,
    eps: float | None,
    check_finite: bool,
) -> None:
    """scatter_step on several weights, with a list and a state of each. With check_finite, of all or of none.

    On the CPU it is one call of C++, which looks at all steps before it writes the first.

    Raises:
        What scatter_step raises; states that were empty then are so again.
    """
    names = STATE.get(rule, ())
    fresh: list[dict[str, Tensor]] = []
    try:
        kept: list[Tensor] = []
        flat: list[Tensor] = []
        for param, at, v, state in zip(params, indices, values, states, strict=True):
            if not _fit(param, at, v, lr, rule, state):
                _check_tensors(param, at, v)
                if names and state:
                    _check_state(param, rule, state, len(at))
                elif names:
                    fresh.append(state)
                    state.update(fresh_state(param, rule, len(at)))
                if isinstance(lr, Tensor):
                    _check_lr(param, lr)
            flat += at
            kept += [state[name] for name in names]
        numbers = _checked_options(params[0], lr, rule, momentum, decay, eps)
        coordinates = [len(at) for at in indices]
        _call(params, flat, values, coordinates, lr, rule, numbers, kept, check_finite, None)
    except BaseException:
        for state in fresh:
            state.clear()
        raise


def _call(
    params: Sequence[Tensor],
    indices: Sequence[Tensor],
    values: Sequence[Tensor],
    coordinates: list[int],
    lr: float | Tensor,
    rule: str,
    numbers: tuple[float, float, float],
    kept: list[Tensor],
    check_finite: bool,
    deterministic: bool | None,
) -> None:
    """Calls the operator on arguments that were checked."""
    rate = lr if isinstance(lr, Tensor) else None
    options = rule, *numbers, kept, bool(check_finite), deterministic
    if torch.compiler.is_compiling():
        if rate is None:  # to a compiler a number would be a constant
            rate = torch.tensor(float(lr), dtype=torch.float64, device="cpu")
        with torch.no_grad():  # as torch.optim steps
            _STEP([param.detach() for param in params], indices, values, coordinates, 0.0, rate, *options)
        return
    number = 0.0 if rate is not None else float(lr)
    for param, v in zip(params, values, strict=True):
        if param.is_neg() or v.is_neg():
            break
    else:
        _STEP.call(params, indices, values, coordinates, number, rate, *options)
        return
    with torch.no_grad():  # torch's own way with lazy negations knows no operator that may be given None
        wholes = [param.resolve_neg() for param in params]
        _STEP(wholes, indices, [v.resolve_neg() for v in values], coordinates, number, rate, *options)
        for param, whole in zip(params, wholes, strict=True):
            if whole is not param:
                param.copy_(whole)


def _fit(param: Tensor, at: Any, values: Tensor, lr: Any, rule: str, state: Any) -> bool:
    """Whether the operator itself checks the tensors, as its CPU kernel does once for each kind of call.

    These are the cheapest questions that Python can ask: a small step takes no longer than its checks.
    """
    if not (
        type(param) in _ORDINARY
        and type(values) in _ORDINARY
        and param.is_cpu
        and values.is_cpu
        and not (param.is_nested or values.is_nested)
        and len(at) < 3
        and type(lr) in (float, int)
        and type(rule) is str
    ):
        return False
    for x in at:
        if not (type(x) is Tensor and x.is_cpu and not x.is_nested and x.dtype is at[0].dtype):
            return False
    for name in STATE.get(rule, ()):  # noqa: SIM110  a generator costs more than its questions
        if not state or type(state.get(name)) is not Tensor:
            return False
    return True


def _check_tensors(param: Tensor, at: tuple[Tensor, ...], values: Tensor) -> None:
    if len(at) not in (1, 2):
        raise ValueError(f"scatter_step: {len(at)} index tensors came; expected one, or a pair (rows, columns)")
    names = ("indices",) if len(at) == 1 else ("rows", "columns")
    for name, x in zip(("param", "values", *names), (param, values, *at), strict=True):
        memory.check_dense("scatter_step", name, x, "of a sparse gradient give .indices() and .values()")
        if x.device != param.device:
            raise ValueError(f"scatter_step: param is on {param.device} and {name} on {x.device}; expected one device")
    if param.dtype not in FLOATS:
        raise TypeError(f"scatter_step: param is {param.dtype}; expected float64, float32, float16 or bfloat16")
    if values.dtype != param.dtype:
        raise TypeError(f"scatter_step: values are {values.dtype}; expected param's {param.dtype}")
    for name, x in zip(names, at, strict=True):
        if x.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"scatter_step: {name} are {x.dtype}; expected int64 or int32")
        if x.dim() != 1 or x.shape != at[0].shape:
            like = "[nnz]" if x is at[0] else f"{list(at[0].shape)}, as {names[0]}"
            raise ValueError(f"scatter_step: {name} have shape {tuple(x.shape)}; expected {like}")
    if param.dim() < len(at):
        wanted = "[R, ...]" if len(at) == 1 else "[R, C, ...]"
        raise ValueError(f"scatter_step: param has shape {tuple(param.shape)}; expected {wanted}")
    if at[0].shape[0] >= 2**31:
        raise ValueError(f"scatter_step: {at[0].shape[0]} entries came; expected fewer than 2**31: split the list")
    expected = (at[0].shape[0], *param.shape[len(at) :])
    if values.shape != expected:
        raise ValueError(f"scatter_step: values have shape {tuple(values.shape)}; expected {expected}, to follow param")
    if memory.repeats(param):
        raise ValueError("scatter_step: param's elements share memory; expected one place for each: param.contiguous()")


def _checked_options(
    param: Tensor, lr: float | Tensor, rule: str, momentum: float, decay: float | None, eps: float | None
) -> tuple[float, float, float]:
    """momentum, decay and eps, for None those of the rule."""
    if rule not in RULES:
        raise ValueError(f"scatter_step: rule is {rule!r}; expected one of {', '.join(map(repr, RULES))}")
    if type(lr) is not float or not math.isfinite(lr):
        _check_lr(param, lr)
    decay, eps = decay_and_eps(rule, decay, eps)
    are_floats = type(momentum) is type(decay) is type(eps) is float
    if not are_floats:
        for name, x in (("momentum", momentum), ("decay", decay), ("eps", eps)):
            if not isinstance(x, (int, float, Real)):
                raise TypeError(f"scatter_step: {name} is a {type(x).__name__}; expected a number")
    if not 0 <= momentum < 1:
        raise ValueError(f"scatter_step: momentum is {momentum}; expected a number in [0, 1)")
    if not 0 <= decay < 1:
        raise ValueError(f"scatter_step: decay is {decay}; expected a number in [0, 1)")
    if not 0 <= eps < math.inf:
        raise ValueError(f"scatter_step: eps is {eps}; expected at least 0, and finite")
    return (momentum, decay, eps) if are_floats else (float(momentum), float(decay), float(eps))


def _check_lr(param: Tensor, lr: float | Tensor) -> None:
    if isinstance(lr, Tensor):
        if lr.dim() or not lr.is_floating_point():
            raise ValueError(f"scatter_step: lr is {lr.dtype} of shape {tuple(lr.shape)}; expected one float, shape ()")
        if lr.device != param.device and lr.device.type != "cpu":
            raise ValueError(f"scatter_step: lr is on {lr.device}; expected param's {param.device}, or the CPU")
        if lr.requires_grad:
            raise ValueError("scatter_step: lr requires a gradient, which no step has; expected lr.detach()")
    elif not isinstance(lr, (int, float, Real)):
        raise TypeError(f"scatter_step: lr is a {type(lr).__name__}; expected a number or a tensor of shape ()")
    elif not torch.compiler.is_compiling():
        _checked_rate(float(lr))


def _checked_rate(lr: float) -> float:
    if not math.isfinite(lr):
        raise ValueError(f"scatter_step: lr is {lr}; expected a finite number; nothing was written")
    return lr


def _check_state(param: Tensor, rule: str, state: dict[str, Tensor], coordinates: int) -> None:
    for name, (shape, dtype) in state_form(param, rule, coordinates).items():
        x = state.get(name)
        if x is None:
            raise ValueError(f"scatter_step: state has {', '.join(state)}; expected {name} too, as rule {rule!r} keeps")
        memory.check_dense("scatter_step", f"state's {name}", x)
        if x.shape != shape or x.dtype != dtype or x.device != param.device or not x.is_contiguous():
            raise ValueError(
                f"scatter_step: state's {name} is {x.dtype} {tuple(x.shape)} on {x.device}; expected "
                f"{dtype} {tuple(shape)} on {param.device}, contiguous, as this call's first step made it"
            )
