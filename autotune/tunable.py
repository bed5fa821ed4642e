"""What can be tuned, by the name of its op: whoever has ops registers here how to call them and how to prove a result.

tune(op, shapes)      searches for every kernel that the op's calls at these shapes launch
warm_up(op, shapes)   makes each call once, so that nothing is left to compile or to look up
launches(op, shape)   the kernels and problems that a call comes to, for explain()
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from .cost import NOMINAL, Ceilings, Prediction, Work
from .search import Finding, Progress, Task, search
from .space import Config
from .store import Store, canonical, store, warn_once
from .tuned import Choice, Problem, Tuned, mode, observed, reload

Shape = Mapping[str, int]
A_SEARCH_S = 60.0  # where no budget is given
IN_A_CALL_S = 20.0  # what a call may spend on a kernel in the mode tune


@dataclass(frozen=True)
class Call:
    """One way of calling an op on fixed inputs."""

    name: str  # "max_plus, with winners"
    run: Callable[[], Any]
    check: Callable[[Any], None]  # raises AssertionError where what `run` returned is not the oracle's
    work: Work
    # of a call that goes on from what it wrote: gives it anew, on inputs of its own; `check` takes what that returns
    fresh: Callable[[], Callable[[], Any]] | None = None


# the forecast of each config of a kernel, for a call that launches it; or why the config is out
Inspect = Callable[[Call, Tuned, Sequence[Config], Ceilings], Sequence[Prediction | str]]


@dataclass(frozen=True)
class Tunable:
    """An op as the tuner sees it."""

    name: str
    shapes: Mapping[str, Shape]  # the standard ones
    kernels: tuple[Tuned, ...]  # that are its own
    calls: Callable[[Shape, torch.dtype, torch.device], Iterable[Call]]
    inspect: Callable[[torch.device], Inspect | None] = lambda device: None
    # that launch one of its kernels at a problem, where no shape's sizes are the problem's
    calls_at: Callable[[Problem, torch.dtype, torch.device], Iterable[Call]] = lambda *problem: ()


TUNABLE: dict[str, Tunable] = {}


def register(tunable: Tunable) -> None:
    """Lets `tune`, `explain` and `warm_up` find an op by its name."""
    TUNABLE[tunable.name] = tunable


def find(op: str) -> Tunable:
    """
    Raises:
        ValueError: no such op is registered.
    """
    if op not in TUNABLE:
        known = ", ".join(sorted(TUNABLE)) or "none; import tropigrad.kernels first"
        raise ValueError(f"no op named {op!r} can be tuned; expected one of: {known}")
    return TUNABLE[op]


def shapes_of(tunable: Tunable, shapes: Mapping[str, Shape] | Shape | Sequence[Shape] | None) -> dict[str, Shape]:
    """Shapes by name, checked: one, several, several by name, or None for the op's standard ones.

    Raises:
        ValueError: sizes that the op does not have, that it lacks, or that are no positive integers.
    """
    if not shapes:
        return dict(tunable.shapes)
    if isinstance(shapes, Mapping):
        named = {"": shapes} if not isinstance(next(iter(shapes.values())), Mapping) else shapes
    else:
        named = {"×".join(map(str, shape.values())): shape for shape in shapes}
    letters = list(next(iter(tunable.shapes.values())))
    for shape in named.values():
        if not isinstance(shape, Mapping) or set(shape) != set(letters):
            raise ValueError(f"{tunable.name}: the shape {shape} came; expected sizes for {', '.join(letters)}")
        if not all(type(size) is int and size > 0 for size in shape.values()):
            raise ValueError(f"{tunable.name}: the shape {dict(shape)} came; expected positive integers")
    return {name: {letter: shape[letter] for letter in letters} for name, shape in named.items()}  # type: ignore[index]


def launches(tunable: Tunable, shape: Shape, dtype: torch.dtype, device: torch.device) -> Iterator[Launched]:
    """Makes each call of an op once; yields each (kernel, problem's key) the first time it comes up."""
    return _launched(tunable.calls(shape, dtype, device))


def _launched(calls: Iterable[Call]) -> Iterator[Launched]:
    seen: set[str] = set()
    for call in calls:
        met: list[tuple[Tuned, Problem, Choice]] = []
        with observed(lambda *launch, met=met: met.append(launch)):
            call.run()
        for kernel, problem, choice in met:
            label = canonical(kernel.key(problem))
            if label not in seen:
                seen.add(label)
                yield Launched(call, kernel, dict(problem), choice)


@dataclass(frozen=True)
class Launched:
    """A kernel that a call launched, at which problem and with which config."""

    call: Call
    kernel: Tuned
    problem: Problem
    choice: Choice


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ------------------------------------------------------------------------------------------------ tuning


def tune(
    op: str,
    shapes: Mapping[str, Shape] | Shape | Sequence[Shape] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    budget_s: float | None = None,
    again: bool = False,
    progress: Progress | None = None,
    into: Store | None = None,
) -> list[Finding]:
    """Tunes every kernel that an op's calls launch at these shapes; each is stored as soon as it is found.

    Args:
        op: its name, "tropical_matmul".
        shapes: {"M": 256, "K": 512, "N": 512}, a list of such, or a dict of such by name; by default the standard ones.
        dtype: of the inputs.
        device: by default the GPU where there is one, else the CPU.
        budget_s: seconds for all of them, shared out over the shapes; what one leaves over the next may use. By default
            60 a kernel and shape. What was cut off is said in the findings, and goes on at the next call.
        again: measure anew what is stored.
        progress: called with (done, total, what is being done).
        into: another store than the user's.

    Raises:
        ValueError: an unknown op, or shapes that are not its.
        WrongDefault: a kernel's default config does not give the oracle's result.
    """
    tunable, device, into = find(op), device or default_device(), into or store()
    shapes = shapes_of(tunable, shapes)
    start, found, seen = perf_counter(), [], set()
    with mode("replay"):
        for number, shape in enumerate(shapes.values()):
            spare = math.inf if budget_s is None else start + budget_s - perf_counter()
            end = perf_counter() + spare / (len(shapes) - number)
            if spare <= 0:  # not even to see what it launches
                found.append(Finding(op, shape, {}, {}, {}, "cut off", stored=False))
                continue
            if progress:
                progress(number, len(shapes), f"{op}: what is launched at {_label(shape)}")
            for launched in launches(tunable, shape, dtype, device):
                label = canonical(launched.kernel.key(launched.problem))
                if label in seen:
                    continue
                seen.add(label)
                # half of the shape's share each: values first, then what else there may be
                share = A_SEARCH_S if budget_s is None else (end - perf_counter()) / 2
                task = _task(tunable, launched, device)
                found.append(search(task, store=into, budget_s=share, again=again, progress=progress))
                reload()
    return found


def _task(tunable: Tunable, launched: Launched, device: torch.device) -> Task:
    inspect = tunable.inspect(device)
    return Task(
        launched.kernel,
        launched.problem,
        device,
        launched.call.run,
        launched.call.check,
        launched.call.fresh,
        inspect and (lambda configs: inspect(launched.call, launched.kernel, configs, NOMINAL)),
    )


def _label(shape: Shape) -> str:
    return " ".join(f"{name}={size}" for name, size in shape.items())


def tune_problem(kernel: Tuned, problem: Problem, device: torch.device) -> Choice | None:
    """Tunes one kernel for one problem, in the middle of a call; None where no registered op leads there.

    In a thread of its own: the caller's gradient mode, dispatch keys and transforms are none of the search's.
    """
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1, thread_name_prefix="tropigrad-tune") as pool:
        finding = pool.submit(context.run, _search_problem, kernel, problem, device).result()
    if finding is None:
        warn_once(
            f"tropigrad: no registered op leads to {kernel.name} at {dict(problem)}: it runs with its default; "
            "expected an op whose sizes are the problem's"
        )
        return None
    return Choice(finding.config, "user cache" if finding.stored else "tuned in this process, not stored")


def _search_problem(kernel: Tuned, problem: Problem, device: torch.device) -> Finding | None:
    dtype, key = _dtype(problem), canonical(kernel.key(problem))
    for tunable in TUNABLE.values():
        if kernel not in tunable.kernels:
            continue
        with mode("replay"), observed(lambda *launch: None):
            for launched in _launched(_leading(tunable, problem, dtype, device)):
                if canonical(launched.kernel.key(launched.problem)) == key:
                    return search(_task(tunable, launched, device), store=store(), budget_s=IN_A_CALL_S)
    return None


def _leading(tunable: Tunable, problem: Problem, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The calls of an op that may launch a kernel at this problem."""
    yield from tunable.calls_at(problem, dtype, device)
    standard = next(iter(tunable.shapes.values())) if tunable.shapes else {}
    if any(type(problem.get(letter)) is int for letter in standard):
        # a size that the problem does not have is none that the kernel depends on
        yield from tunable.calls({x: int(problem.get(x, size)) for x, size in standard.items()}, dtype, device)


def _dtype(problem: Problem) -> torch.dtype:
    found = getattr(torch, str(problem.get("dtype", "torch.float32")).removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def warm_up(
    op: str,
    shapes: Mapping[str, Shape] | Shape | Sequence[Shape] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> None:
    """Makes every call of an op once at each shape, so that no later one compiles or reads the disk.

    For servers before their first request, and before a CUDA graph is captured. Arguments as of `tune`.
    """
    tunable, device = find(op), device or default_device()
    for shape in shapes_of(tunable, shapes).values():
        for call in tunable.calls(shape, dtype, device):
            call.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
