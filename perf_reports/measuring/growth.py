"""Time and peak memory of one call while one of its sizes grows and the others stay: ours beside dense backprop.

Small problems, a few rounds, of which the least time counts: what is asked is the exponent, not the microsecond.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from ...autotune.timing import interleaved
from ...kernels.contract.spec import Contender, Sizes, Spec, Workload
from ..commands import Progress
from .benchmark import DEVICE, one_line, short
from .memory import peak_memory

FACTORS = (1, 2, 4, 8)
QUICK_FACTORS = (1, 4)


@dataclass(frozen=True)
class Sweep:
    """A workload, the sizes that it starts from, and the letters that grow, one at a time, with their meaning."""

    op: str
    workload: str
    base: Sizes
    letters: Mapping[str, str]


SWEEPS = (
    Sweep(
        "tropical_matmul",
        "forward + backward",
        {"M": 64, "K": 128, "N": 128},
        {"M": "M, the batch", "K": "K, the inputs", "N": "N, the outputs"},
    ),
    Sweep(
        "hard_threshold",
        "soft hinge, forward + backward",
        {"N": 32, "C": 32, "H": 8, "W": 8},
        {"N": "N, the batch", "C": "C, the channels"},
    ),
    Sweep(
        "gather_softmax",
        "readout forward + backward",
        {"B": 128, "K": 4, "D": 512, "V": 1000},
        {"B": "B, the batch", "V": "V, the words"},
    ),
    Sweep(
        "path_norm", "path norm forward + backward", {"M": 64, "N": 64}, {"M": "M, the outputs", "N": "N, the inputs"}
    ),
)


@dataclass(frozen=True)
class Step:
    """One letter of a sweep."""

    spec: Spec
    sweep: Sweep
    letter: str
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"growth of {self.sweep.op}, {self.sweep.workload}, with {self.letter}"


def steps(specs: Mapping[str, Spec], only: Sequence[str] = (), dtype: torch.dtype = torch.float32) -> list[Step]:
    """The letters to sweep: of all sweeps, or of the ops and workloads named, that take the dtype."""
    return [
        Step(specs[sweep.op], sweep, letter, dtype)
        for sweep in SWEEPS
        if sweep.op in specs and (not only or sweep.op in only or sweep.workload in only)
        if dtype in specs[sweep.op].timed_in(_workload(specs[sweep.op], sweep))
        for letter in sweep.letters
    ]


def _workload(spec: Spec, sweep: Sweep) -> Workload:
    return next(workload for workload in spec.workloads if workload.name == sweep.workload)


def measure(
    chosen: Sequence[Step], *, end: float, quick: bool = False, seed: int = 0, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Records of kind growth, and left_out for a letter that failed or that the time did not reach.

    Args:
        chosen: of `steps`.
        end: the clock (`perf_counter`) after which no letter is begun.
        quick: two sizes of each letter.
        progress: called with (done, total, what is being measured).
    """
    for done, step in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen), step.name)
        if perf_counter() > end:
            yield {"kind": "left_out", "what": step.name, "reason": "the time of the report was spent", "budget": True}
            continue
        try:
            yield from _swept(step, QUICK_FACTORS if quick else FACTORS, seed)
        except Exception as error:
            yield {"kind": "left_out", "what": step.name, "reason": one_line(error)}
    if progress is not None:
        progress(len(chosen), len(chosen), "growth")


def _swept(step: Step, factors: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    workload = _workload(step.spec, step.sweep)
    compared = [contender for contender in workload.contenders if contender.role in ("ours", "dense")]
    for factor in factors:
        shape = {**step.sweep.base, step.letter: step.sweep.base[step.letter] * factor}
        inputs = step.spec.inputs(shape, step.dtype, DEVICE, seed)
        calls, peaks = {}, {}
        for contender in compared:
            calls[contender.name] = contender.prepare(*inputs)
            calls[contender.name]()
            _, memory = peak_memory(calls[contender.name])
            peaks[contender.name] = None if memory is None else memory.peak_bytes
        timed = interleaved(calls, budget_s=0.1, sample_s=0.003, min_rounds=3, max_rounds=9, seed=seed)
        for contender in compared:
            yield {
                **_what(step, contender),
                "size": shape[step.letter],
                "shape": shape,
                "seconds": min(timed[contender.name].seconds),
                "samples": timed[contender.name].seconds,
                "operations": workload.operations(shape),
                "peak_bytes": peaks[contender.name],
            }


def _what(step: Step, contender: Contender) -> dict[str, Any]:
    return {
        "kind": "growth",
        "op": step.sweep.op,
        "workload": step.sweep.workload,
        "letter": step.letter,
        "dtype": short(step.dtype),
        "meaning": step.sweep.letters[step.letter],
        "contender": contender.name,
        "role": contender.role,
    }
