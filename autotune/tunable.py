"""The ops that can be tuned, by name: a package of ops registers how to call them, and how to prove their results.

find(op)              the op
shapes_of(op, ...)    sizes, checked
launches(op, shape)   the kernels and problems that its calls come to
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .keys import Problem, canonical
from .machine.cost import Work
from .scope import Choice, observed
from .tuned import Tuned

Sizes = Mapping[str, int]  # by the op's own letters: {"M": 256, "K": 512, "N": 512}


@dataclass(frozen=True)
class Call:
    """One way of calling an op on fixed inputs."""

    name: str  # "max_plus, with winners"
    run: Callable[[], Any]
    check: Callable[[Any], None]  # raises AssertionError where what `run` returned is not the oracle's
    work: Work
    # for an op that works in place: builds the same call on fresh inputs; `check` is given that call's result
    fresh: Callable[[], Callable[[], Any]] | None = None
    # False where no forecast is made, for it would mislead: what a launch does depends on what an earlier one computed
    is_foreseeable: bool = True


@dataclass(frozen=True)
class Tunable:
    """An op as the tuner sees it."""

    name: str
    shapes: Mapping[str, Sizes]  # the standard ones
    kernels: tuple[Tuned, ...]  # that are its own
    calls: Callable[[Sizes, torch.dtype, torch.device], Iterable[Call]]
    # that launch one of its kernels at a problem, where no shape's sizes are the problem's
    calls_at: Callable[[Problem, torch.dtype, torch.device], Iterable[Call]] = lambda *problem: ()
    # small shapes for tests: several blocks and tasks of each C++ kernel, and what Triton's interpreter does in time
    middle: Sizes | None = None
    interpreted: Sizes | None = None


TUNABLE: dict[str, Tunable] = {}


def register(tunable: Tunable) -> None:
    """Lets `tune`, `explain` and `warm_up` find an op by its name."""
    TUNABLE[tunable.name] = tunable


def find(op: str) -> Tunable:
    """The op of this name.

    Raises:
        ValueError: no such op is registered.
    """
    if op not in TUNABLE:
        names = ", ".join(sorted(TUNABLE)) or "none; import tropigrad.kernels first"
        raise ValueError(f"no op named {op!r} can be tuned; expected one of: {names}")
    return TUNABLE[op]


def shapes_of(tunable: Tunable, shapes: Mapping[str, Sizes] | Sizes | Sequence[Sizes] | None) -> dict[str, Sizes]:
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


def launches(tunable: Tunable, shape: Sizes, dtype: torch.dtype, device: torch.device) -> Iterator[Launched]:
    """Makes each call of an op once; yields each (kernel, problem's key) the first time it comes up."""
    return launched_by(tunable.calls(shape, dtype, device))


def launched_by(calls: Iterable[Call]) -> Iterator[Launched]:
    """Makes each of these calls once; yields as `launches` does."""
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
