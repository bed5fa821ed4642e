"""Every workload of an op against its contenders: whether they agree, then how fast they are and what memory they take.

A speedup is reported only where the gate is green, on the inputs that are timed. Ours is held against the reference
(the materialised definition, else the first rival that computes the same): `==` where the op is exact. Then each rival
is held against ours, with a tolerance.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ...autotune import Choice, recorded
from ...autotune.timing import Samples, interleaved
from ...kernels.contract.spec import Contender, Sizes, Spec, Workload
from ...kernels.runtime import backend
from ..commands import Progress
from .memory import peak_memory

Outputs = tuple[Tensor, ...]
PreparedCall = Callable[[], Outputs]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QUICK_SHAPES = 2
OWN = "own"  # the name of a shape that is given by its sizes
# three calls of a rival may take so long, however little time is left: the dense one is what a page is about
_SLOW_S = {"dense": 15.0}
_SLOW_OTHERS_S = 5.0
_LEAST_S = {False: 0.5, True: 0.25}  # of timing a cell, by `quick`
# a first call that compiles would be charged with the compiler's memory
MEASURED_IN_MEMORY = ("ours", "dense", "peer")
SPENT = "the time of the report was spent"
# of a rival: a tie may take another winner there, and the gradient follows it. In 16 bits of the reference too, which
# rounds at each of its steps, where ours rounds once
RIVAL_MAY_DIFFER = 1e-3


@dataclass(frozen=True)
class Cell:
    """One workload at one shape."""

    spec: Spec
    workload: Workload
    shape_name: str
    shape: Sizes
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        """ "S1 256×512×512": the name of the shape and its sizes; and the dtype, where it is not the usual one."""
        label = f"{self.shape_name} {'×'.join(map(str, self.shape.values()))}"
        return label if self.dtype == self.spec.timed_in(self.workload)[0] else f"{label} {short(self.dtype)}"

    def record(self, kind: str, contender: Contender) -> dict[str, Any]:
        return {
            "kind": kind,
            "op": self.spec.name,
            "workload": self.workload.name,
            "shape_name": self.shape_name,
            "shape_label": self.label,
            "shape": dict(self.shape),
            "contender": contender.name,
            "role": contender.role,
        }

    @property
    def backend(self) -> str:
        """The backend that our call takes; "" where it cannot run, which the gate then shows."""
        try:
            return backend.choose(self.spec.name, DEVICE, self.spec.backends)
        except (RuntimeError, ImportError):
            return ""

    @property
    def name(self) -> str:
        return f"{self.spec.name}, {self.workload.name}, {self.label}"

    def left_out(self, contender: Contender, reason: str, *, budget: bool = False) -> dict[str, Any]:
        record = {**self.record("left_out", contender), "what": f"{self.name}: {contender.name}", "reason": reason}
        return record | ({"budget": True} if budget else {})

    def not_reached(self) -> dict[str, Any]:
        """The record of a cell that the time of the report did not reach."""
        record = {**self.record("left_out", self.workload.contenders[0]), "what": self.name, "reason": SPENT}
        return record | {"contender": None, "role": None, "budget": True}


def chosen(specs: Iterable[Spec], only: Sequence[str] = ()) -> list[tuple[Spec, Workload]]:
    """The workloads of the ops and workloads with these names; all where there are none."""
    return [
        (spec, workload)
        for spec in specs
        for workload in spec.workloads
        if not only or spec.name in only or workload.name in only
    ]


def cells(
    specs: Sequence[Spec],
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    dtype: torch.dtype | None = None,
    shapes: Sequence[str | Sizes] = (),
) -> list[Cell]:
    """The cells to measure: each workload at each standard shape; in quick mode at the two cheapest.

    Args:
        only: names of ops or of workloads; all where empty.
        dtype: of the inputs; by default each workload's usual one. Workloads that cannot take it have no cell.
        shapes: names of standard shapes, and sizes by letter, in place of all standard shapes.
    """
    result = []
    for spec, workload in chosen(specs, only):
        if _why_not(spec, workload, dtype, shapes):
            continue
        sizes = _asked(spec, shapes) if shapes else list(spec.shapes.items())
        if quick and not shapes:
            cheapest = sorted(sizes, key=lambda item: workload.operations(item[1]))[:QUICK_SHAPES]
            sizes = [item for item in sizes if item in cheapest]
        of = dtype or spec.timed_in(workload)[0]
        result += [Cell(spec, workload, name, shape, of) for name, shape in sizes]
    return result


def unfit(
    specs: Sequence[Spec], only: Sequence[str], dtype: torch.dtype | None, shapes: Sequence[str | Sizes]
) -> list[dict[str, Any]]:
    """Records of kind left_out: of the workloads that have no cell, as they cannot take the dtype or the shapes."""
    return [
        {"kind": "left_out", "what": f"{spec.name}, {workload.name}", "reason": reason}
        for spec, workload in chosen(specs, only)
        if (reason := _why_not(spec, workload, dtype, shapes))
    ]


def _why_not(spec: Spec, workload: Workload, dtype: torch.dtype | None, shapes: Sequence[str | Sizes]) -> str:
    if dtype is not None and dtype not in spec.timed_in(workload):
        return f"it is not timed in {short(dtype)}"
    if shapes and not _asked(spec, shapes):
        return "it has none of the shapes asked for"
    return ""


def _asked(spec: Spec, shapes: Sequence[str | Sizes]) -> list[tuple[str, Sizes]]:
    """Those of the shapes that an op has, by name; own sizes are put into the order of its letters."""
    letters = letters_of(spec)
    result: list[tuple[str, Sizes]] = []
    for shape in shapes:
        if isinstance(shape, str):
            result += [(shape, spec.shapes[shape])] if shape in spec.shapes else []
        elif set(shape) == set(letters):
            result.append((OWN, {letter: shape[letter] for letter in letters}))
    return result


def letters_of(spec: Spec) -> list[str]:
    """The letters of an op's sizes."""
    return list(next(iter(spec.shapes.values())))


def short(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")


def measure(
    wanted: Sequence[Cell],
    *,
    budget_s: float,
    quick: bool = False,
    compiles: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of kind gate, timing, memory and left_out, as they come.

    Args:
        wanted: of `cells`.
        budget_s: seconds for all of them; what one cell leaves over, the next may use. A cell that they do not reach is
            left out.
        quick: fewer rounds, and nothing that must be compiled first.
        compiles: whether torch.compile takes part; where it does not, it waits for more time.
        progress: called with (done, total, what is being measured).
    """
    end = perf_counter() + budget_s
    for done, cell in enumerate(wanted):
        if progress is not None:
            progress(done, len(wanted), f"{cell.workload.name} {cell.shape_name}")
        if done and perf_counter() > end:
            yield cell.not_reached()
            continue
        share = (end - perf_counter()) / (len(wanted) - done)
        yield from _measure_cell(cell, share, end, quick, compiles, seed)
    if progress is not None:
        progress(len(wanted), len(wanted), "kernels")


@dataclass
class _Entry:
    contender: Contender
    call: PreparedCall
    outputs: Outputs = ()
    first_s: float = 0.0
    choices: Mapping[str, Choice] = field(default_factory=dict)  # the configs its kernels ran with
    gate: str = "none"  # "green" | "red" | "none": computes something else, or nothing to compare with


def _measure_cell(
    cell: Cell, budget_s: float, end: float, quick: bool, compiles: bool, seed: int
) -> Iterator[dict[str, Any]]:
    start = perf_counter()
    inputs, small = (
        cell.spec.inputs(shape, cell.dtype, DEVICE, seed) for shape in (cell.shape, cell.spec.small_shapes[-1])
    )
    entries: list[_Entry] = []
    for contender in cell.workload.contenders:
        if reason := _why_left_out(cell, contender, quick):
            yield cell.left_out(contender, reason)
            continue
        if contender.role == "compiled" and (not compiles or perf_counter() > end):
            yield cell.left_out(contender, f"{SPENT} before it could be compiled", budget=True)
            continue
        try:
            # at a small size first: pages of code that are touched for the first time are no kernel's memory
            if contender.role in MEASURED_IN_MEMORY:
                contender.prepare(*small)()
            entry = _Entry(contender, contender.prepare(*inputs))
            called = perf_counter()
            with recorded() as entry.choices:
                entry.outputs, memory = peak_memory(entry.call)
            entry.first_s = perf_counter() - called
        except Exception as error:
            if contender.role == "ours":
                failed = {"gate": "red", "against": None, "detail": one_line(error)}
                yield {**cell.record("gate", contender), **failed}
                return
            yield cell.left_out(contender, one_line(error))
            continue
        entries.append(entry)
        if memory is not None and contender.role in MEASURED_IN_MEMORY:
            yield {**cell.record("memory", contender), **asdict(memory)}
    yield from _gate(cell, entries)
    for entry in entries:
        entry.outputs = ()
    left = max(_LEAST_S[quick], budget_s - (perf_counter() - start))
    for entry in [entry for entry in entries[1:] if entry.contender.role != "compiled"]:
        # three calls of it are the least that is timed
        slow_s = _SLOW_S.get(entry.contender.role, _SLOW_OTHERS_S)
        if 3 * entry.first_s > max(slow_s, (end - perf_counter()) / 5):
            yield cell.left_out(entry.contender, f"{SPENT}: one call took {entry.first_s:.2g} s", budget=True)
            entries.remove(entry)
    timed = interleaved(
        {entry.contender.name: entry.call for entry in entries},
        # the rounds are not to pay for what compiling took
        budget_s=left,
        min_rounds=5 if quick else 7,
        # the first call of what is compiled was spent on compiling
        known_s={entry.contender.name: entry.first_s for entry in entries if entry.contender.role != "compiled"},
        seed=seed,
    )
    yield from _timings(cell, entries, timed)


def _why_left_out(cell: Cell, contender: Contender, quick: bool) -> str:
    if contender.requires and importlib.util.find_spec(contender.requires) is None:
        return f"{contender.requires} is not installed: pip install 'tropigrad[peers]'"
    steps = cell.workload.operations(cell.shape)
    if contender.limit and steps > contender.limit:
        return f"{steps:.2g} steps; it takes too long or too much memory above {contender.limit:.2g}"
    if contender.role == "compiled" and quick:
        return "compiling takes longer than the whole quick setting"
    return ""


def one_line(error: Exception) -> str:
    """The first line of an error, after its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


# ------------------------------------------------------------------------------------------------ the gate


@dataclass(frozen=True)
class Agreement:
    """The comparison of two contenders' outputs."""

    identical: bool  # `==`, NaN where NaN
    share: float  # of the entries outside the tolerance
    detail: str


def agree(ours: Outputs, theirs: Outputs) -> Agreement:
    """Compare output by output: `==` for integers, and for floats 64 ε of the largest magnitude, which sums need.

    ε is that of the coarser of the two.
    """
    if len(ours) != len(theirs):
        return Agreement(False, 1.0, f"{len(theirs)} outputs against {len(ours)}")
    identical, worst_share, worst_gap = True, 0.0, 0.0
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            return Agreement(False, 1.0, f"output {number} is {tuple(b.shape)} against {tuple(a.shape)}")
        if a.is_floating_point() != b.is_floating_point():
            return Agreement(False, 1.0, f"output {number} is {b.dtype} against {a.dtype}")
        a, b = a.detach(), b.detach().to(a.device)
        same = (a == b) | (a.isnan() & b.isnan())
        if bool(same.all()):
            continue
        identical = False
        gap = (a.double() - b.double()).abs().masked_fill(same, 0)
        tolerance = 0.0
        if a.is_floating_point():
            scale = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
            tolerance = 64 * max(torch.finfo(x.dtype).eps for x in (a, b)) * scale
        off = ~(gap <= tolerance)  # a NaN on one side alone is off
        worst_share = max(worst_share, float(off.double().mean()))
        worst_gap = max(worst_gap, float(gap.nan_to_num(float("inf")).max()))
    detail = "identical" if identical else f"largest difference {worst_gap:.2g}, {worst_share:.2g} of the entries off"
    return Agreement(identical, worst_share, detail)


def _gate(cell: Cell, entries: Sequence[_Entry]) -> Iterator[dict[str, Any]]:
    if not entries or entries[0].contender.role != "ours":
        return
    ours, rivals = entries[0], [entry for entry in entries[1:] if entry.contender.role != "scale"]
    if not rivals:
        return
    reference = next((entry for entry in rivals if entry.contender.role == "dense"), rivals[0])
    for rival in sorted(rivals, key=lambda entry: entry is not reference):
        agreement = agree(ours.outputs, rival.outputs)
        good = agreement.share <= RIVAL_MAY_DIFFER
        if rival is reference and not (cell.dtype.is_floating_point and cell.dtype.itemsize == 2):
            options = cell.workload.options
            exact = cell.spec.is_exact(options) and cell.spec.gradient_is_exact(options)
            good = agreement.identical if exact else agreement.share == 0
        rival.gate = "green" if good else "red"
        if rival is reference:
            ours.gate = rival.gate
        yield {
            **cell.record("gate", rival.contender),
            "gate": rival.gate,
            "against": ours.contender.name,
            "is_reference": rival is reference,
            **asdict(agreement),
        }


# ------------------------------------------------------------------------------------------------ the timings


def _timings(cell: Cell, entries: Sequence[_Entry], timed: Mapping[str, Samples]) -> Iterator[dict[str, Any]]:
    operations = cell.workload.operations(cell.shape)
    ours = entries[0]
    for entry in entries:
        samples = timed[entry.contender.name]
        trusted = entry is not ours and ours.gate == "green" and entry.gate == "green"
        yield {
            **cell.record("timing", entry.contender),
            "gate": entry.gate,
            "mix": cell.workload.mix,
            "dtype": short(cell.dtype),
            "device": DEVICE.type,
            "threads": torch.get_num_threads(),
            "backend": cell.backend if entry is ours else None,
            "configs": {kernel: asdict(choice) for kernel, choice in entry.choices.items()},
            "calls_per_sample": samples.calls_per_sample,
            "seconds": samples.seconds,
            "rounds": samples.rounds,
            "median": asdict(samples.median),
            "operations": operations,
            "bytes": cell.workload.bytes(cell.shape, cell.dtype.itemsize),
            "rate": operations / samples.median.value / 1e9,
            "ratio": asdict(samples.ratio(timed[ours.contender.name])) if trusted else None,
        }
