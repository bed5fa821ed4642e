"""Tunes the kernels that an op's calls launch.

tune(op, shapes)      searches for every kernel that the op's calls at these shapes launch
warm_up(op, shapes)   makes each call once, so that nothing is left to compile or to look up
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import torch

from .cache import Store, store, warn_once
from .contest import Finding, Progress, Task, search
from .device import default_device
from .forecast import inspector
from .keys import Problem, canonical
from .scope import Choice, mode, observed
from .tunable import TUNABLE, Call, Launched, Sizes, Tunable, find, launched_by, launches, shapes_of
from .tuned import Tuned, reload, tune_with

A_SEARCH_S = 60.0  # where no budget is given
IN_A_CALL_S = 20.0  # what a call may spend on a kernel in the mode tune


def tune(
    op: str,
    shapes: Mapping[str, Sizes] | Sizes | Sequence[Sizes] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    budget_s: float | None = None,
    again: bool = False,
    progress: Progress | None = None,
    into: Store | None = None,
    found: Callable[[Finding], object] | None = None,
) -> list[Finding]:
    """Tunes every kernel that an op's calls launch at these shapes; each is stored as soon as it is found.

    Args:
        op: its name, "tropical_matmul".
        shapes: {"M": 256, "K": 512, "N": 512}, a list of such, or a dict of such by name; by default the standard ones.
        dtype: of the inputs.
        device: by default the GPU where there is one, else the CPU.
        budget_s: seconds for all of them, shared out over the shapes; what one leaves over the next may use. By default
            60 a kernel and shape. What was cut off is said in the findings, and goes on at the next call.
        again: measure what is stored once more.
        progress: called with (done, total, what is being done).
        into: another store than the user's.
        found: called with each finding as it comes: a process that ends in the middle has then told what it knew.

    Raises:
        ValueError: an unknown op, or shapes that are not its.
        WrongDefault: a kernel's default config does not give the oracle's result.
    """
    tunable, device, into = find(op), device or default_device(), into or store()
    shapes = shapes_of(tunable, shapes)
    start, findings, seen = perf_counter(), [], set()

    def keep(finding: Finding) -> None:
        findings.append(finding)
        if found:
            found(finding)

    with mode("replay"):
        for number, shape in enumerate(shapes.values()):
            spare = math.inf if budget_s is None else start + budget_s - perf_counter()
            end = perf_counter() + spare / (len(shapes) - number)
            if spare <= 0:  # too late even to see what it launches
                keep(Finding(op, shape, {}, {}, {}, "cut off", stored=False))
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
                task = _task(launched, device)
                keep(search(task, store=into, budget_s=share, again=again, progress=progress))
                reload()
    return findings


def _task(launched: Launched, device: torch.device) -> Task:
    return Task(
        launched.kernel,
        launched.problem,
        device,
        launched.call.run,
        launched.call.check,
        launched.call.fresh,
        inspector(launched.call, launched.kernel, device),
    )


def _label(shape: Sizes) -> str:
    return " ".join(f"{name}={size}" for name, size in shape.items())


def tune_problem(kernel: Tuned, problem: Problem, device: torch.device) -> Choice | None:
    """Tunes one kernel for one problem, in the middle of a call; None where no registered op leads there.

    The search runs in a thread of its own, which the caller's gradient mode, dispatch keys and transforms do not reach.
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


tune_with(tune_problem)


def _search_problem(kernel: Tuned, problem: Problem, device: torch.device) -> Finding | None:
    dtype, key = _dtype(problem), canonical(kernel.key(problem))
    for tunable in TUNABLE.values():
        if kernel not in tunable.kernels:
            continue
        with mode("replay"), observed(lambda *launch: None):
            for launched in launched_by(_leading(tunable, problem, dtype, device)):
                if canonical(launched.kernel.key(launched.problem)) == key:
                    return search(_task(launched, device), store=store(), budget_s=IN_A_CALL_S)
    return None


def _leading(tunable: Tunable, problem: Problem, dtype: torch.dtype, device: torch.device) -> Iterator[Call]:
    """The calls of an op that may launch a kernel at this problem."""
    yield from tunable.calls_at(problem, dtype, device)
    standard = next(iter(tunable.shapes.values())) if tunable.shapes else {}
    if any(type(problem.get(letter)) is int for letter in standard):
        # a size that the problem does not have is none that the kernel depends on
        yield from tunable.calls({x: int(problem.get(x, size)) for x, size in standard.items()}, dtype, device)


def _dtype(problem: Problem) -> torch.dtype:
    dtype = getattr(torch, str(problem.get("dtype", "torch.float32")).removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def warm_up(
    op: str,
    shapes: Mapping[str, Sizes] | Sizes | Sequence[Sizes] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> None:
    """Makes every call of an op once at each shape, so that no later one compiles or reads the disk.

    For servers before their first request, and before a CUDA graph is captured. Arguments as in `tune`.
    """
    tunable, device = find(op), device or default_device()
    for shape in shapes_of(tunable, shapes).values():
        for call in tunable.calls(shape, dtype, device):
            call.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
