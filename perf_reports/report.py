"""The report: measure this machine's ceilings, train beside dense backprop, time every kernel; then draw the page.

Every record is on the disk as soon as it exists, so an interruption loses nothing. What speaks for a system is measured
first, then each workload at its middle shape, rivals that must be compiled included, then the other shapes, as far as
the time reaches; `resume` goes on from there. A first page is drawn while the rest is measured.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..kernels.contract.registry import REGISTRY
from ..kernels.contract.spec import Sizes, Spec
from . import data, environment, modules, pending, tune
from .commands import BadRequest, Progress, StageProgress
from .durations import format_duration
from .measuring import benchmark, ceilings, gpu_ceilings, growth, startup
from .page import numbers, page, speedups
from .page.systems import SYSTEMS
from .records import Results, fails, last_run, read_what_can_be
from .studies import STUDIES

RESULTS = "results.jsonl"
BUDGET_S = {False: 260.0, True: 95.0}  # by `quick`; the page at the end takes some seconds more
FIRST_PAGE_S, NEXT_PAGE_S = 40.0, 75.0
# shares of the budget: what speaks for a system, and training, end at these; growth and startup are kept so much.
# Each study may take an equal part of the training's time that is left when it begins: what a short one leaves is the
# others', and none takes the turn of those behind it.
_HEADLINES_END, _TRAINING_ENDS, _GROWTH, _STARTUP = 0.22, 0.55, 0.08, 0.1


@dataclass(frozen=True)
class ReportOutcome:
    """The result of a report: its page, its records, and whether it was interrupted."""

    page: Path
    records: Sequence[Mapping[str, Any]]  # of this run
    interrupted: bool
    results: Path
    note: str = ""  # what else there is to tell

    @property
    def disagreements(self) -> list[str]:
        """The places where our results were not those of the reference. They fail the report; a rival's own do not."""
        return [
            f"{r['op']}, {r['workload']}, {r['shape_label']}: {r['detail']}"
            for r in self.records
            if r["kind"] == "gate" and fails(r)
        ]

    @property
    def exit_code(self) -> int:
        return 130 if self.interrupted else 1 if self.disagreements else 0


def names() -> list[str]:
    """The names that `only` may hold: of studies, ops, workloads."""
    workloads = [workload.name for spec in REGISTRY.values() for workload in spec.workloads]
    return list(dict.fromkeys([*STUDIES, *REGISTRY, *workloads]))


def catalogue() -> dict[str, list[str]]:
    """The names that `only` may hold, by kind."""
    workloads = [workload.name for spec in REGISTRY.values() for workload in spec.workloads]
    return {
        "studies": list(STUDIES),
        "ops": [name for name, spec in REGISTRY.items() if spec.workloads],
        "workloads": list(dict.fromkeys(workloads)),
    }


def _refuse_unknown(only: Sequence[str]) -> None:
    choice = names()
    for name in only:
        if name in choice:
            continue
        raise BadRequest(
            f"--only: nothing is named {name!r}; {_near(name, choice)}`tropigrad report --list` prints all "
            f"{len(choice)} names"
        )


def _near(name: str, choice: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, choice, n=3, cutoff=0.5)
    near += [other for other in choice if name and name in other and other not in near][: 3 - len(near)]
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


@dataclass(frozen=True)
class Plan:
    """The parts of a report, in order."""

    cells: Sequence[benchmark.Cell]
    studies: Sequence[str]
    sweeps: Sequence[growth.Step]
    has_ceilings: bool
    has_startup: bool
    quick: bool
    data_dir: Path | None
    seed: int
    budget_s: float

    @property
    def names(self) -> list[str]:
        """Names of all its parts, as `pending` knows them."""
        return [
            *([pending.CEILINGS] if self.has_ceilings else []),
            *(pending.training(study) for study in self.studies),
            *(cell.name for cell in self.cells),
            *(step.name for step in self.sweeps),
            *([pending.STARTUP] if self.has_startup else []),
        ]

    def only(self, unfinished: Sequence[str]) -> Plan:
        """The parts with these names."""
        return replace(
            self,
            cells=[cell for cell in self.cells if cell.name in unfinished],
            studies=[study for study in self.studies if pending.training(study) in unfinished],
            sweeps=[step for step in self.sweeps if step.name in unfinished],
            has_ceilings=pending.CEILINGS in unfinished,
            has_startup=pending.STARTUP in unfinished,
        )


def in_order(cells: Sequence[benchmark.Cell]) -> list[benchmark.Cell]:
    """The cells that speak for a system first; then each workload at its middle shape; then the others."""
    headlines = {system.workloads[0]: place for place, system in enumerate(SYSTEMS)}
    cost = {cell.name: cell.workload.operations(cell.shape) for cell in cells}
    shapes: dict[tuple[str, str], list[str]] = {}
    for cell in sorted(cells, key=lambda cell: cost[cell.name]):
        shapes.setdefault((cell.spec.name, cell.workload.name), []).append(cell.name)
    # the smallest measures the host, the largest takes long
    middle = {workload: names[(len(names) - 1) // 2] for workload, names in shapes.items()}

    def place(cell: benchmark.Cell) -> tuple[int, float]:
        workload = (cell.spec.name, cell.workload.name)
        if middle[workload] != cell.name:
            return 2, cost[cell.name]
        return (0, headlines[workload]) if workload in headlines else (1, 0)

    return sorted(cells, key=place)


def _headlines(cells: Sequence[benchmark.Cell]) -> list[benchmark.Cell]:
    """The first cell of each workload that speaks for a system."""
    headlines = {system.workloads[0] for system in SYSTEMS}
    first: dict[tuple[str, str], benchmark.Cell] = {}
    for cell in cells:
        first.setdefault((cell.spec.name, cell.workload.name), cell)
    return [cell for workload, cell in first.items() if workload in headlines]


def run(
    out: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    module: Sequence[str] = (),
    threads: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    shapes: Sequence[str] = (),
    data_dir: Path | None = None,
    seed: int = 0,
    budget_s: float | None = None,
    resume: bool = False,
    progress: StageProgress = lambda stage, done, total, what: None,
    tell: Callable[[str], None] = lambda line: None,
) -> ReportOutcome:
    """Measure, append to results.jsonl in `out`, and draw the page there.

    A page of a finished run stays until this run is finished as well: until then its page is in `out`/unfinished.

    Args:
        out: a folder, made where it is missing.
        quick: the smallest setting, within two minutes.
        only: names out of `names()`; everything where empty.
        module: Python files, or dotted names of modules, that register ops; see `modules.load`.
        threads: torch's number of threads from here on.
        device: "cpu" or "cuda"; the one that torch has, which is the default.
        dtype: of the kernels' inputs; by default each workload's usual one.
        shapes: names of standard shapes, or sizes such as M=64,K=784,N=1024, in place of all standard shapes.
        data_dir: MNIST-format files to train on; by default scikit-learn's digits.
        budget_s: seconds to measure for; by default BUDGET_S.
        resume: go on with the last run in `out`, with its settings; those from `quick` to `shapes` must be its own, or
            not set.
        progress: called with (stage, done, total, what is being done); the stages are ceilings, training, kernels,
            growth and startup.
        tell: called with a line where something is to be told in between, as that a first page is there.
    Raises:
        BadRequest: a name, a dtype, a shape, TROPIGRAD_BACKEND or TROPIGRAD_AUTOTUNE means nothing, a `module` or the
            device cannot be used, nothing can be measured so, or there is no run to resume, or one measured elsewhere.
        DataError: the data are missing or corrupt. Nothing has been written then.
        OSError: `out` cannot be written.
    """
    asked = {
        "quick": quick,
        "only": list(only),
        "module": modules.load(module),
        "threads": threads,
        "device": device,
        "dtype": dtype,
        "shapes": list(shapes),
    }
    if wrong := environment.wrong_variables():
        raise BadRequest("; ".join(wrong))
    earlier: Sequence[Mapping[str, Any]] = ()
    if resume:
        earlier = _to_resume(out / RESULTS, asked)
        settings = earlier[0]["settings"]
        asked = {name: settings.get(name, unset) for name, unset in _UNSET.items()}
        quick, only, seed = asked["quick"], asked["only"], settings["seed"]
        modules.load(asked["module"])
        data_dir = data_dir or (settings["data_dir"] and Path(settings["data_dir"]))
    _refuse_unknown(only)
    if asked["device"] not in (None, benchmark.DEVICE.type):
        there = f"torch has {benchmark.DEVICE.type} here"
        hide = "; hide the GPU with CUDA_VISIBLE_DEVICES= in the environment" if benchmark.DEVICE.type == "cuda" else ""
        raise BadRequest(f"--device is {asked['device']}; {there}{hide}")
    data_dir = data.find_data_dir(data_dir)
    kind, sizes = _dtype(asked["dtype"]), _sizes(asked["shapes"], only)
    specs = list(REGISTRY.values())
    cells = in_order(benchmark.cells(specs, only=only, quick=quick, dtype=kind, shapes=sizes))
    unfit = benchmark.unfit(specs, only, kind, sizes)
    studies = [name for name in STUDIES if not only or name in only]
    if kind not in (None, torch.float32):
        reason = "it trains in float32"
        unfit += [{"kind": "left_out", "what": pending.training(name), "reason": reason} for name in studies]
        studies = []
    plan = Plan(
        cells,
        studies=studies,
        sweeps=growth.steps(REGISTRY, only, kind or torch.float32),
        has_ceilings=bool(cells),
        has_startup=bool(cells) and not quick,
        quick=quick,
        data_dir=data_dir,
        seed=seed,
        budget_s=budget_s or BUDGET_S[quick],
    )
    planned = plan.names
    if not planned:
        raise BadRequest(_nothing(specs, only, asked))
    if earlier:
        plan = plan.only(pending.unfinished(earlier))
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    if plan.studies:
        data.load(data_dir=data_dir, seed=seed)  # missing or corrupt data must come to light before anything is written

    out.mkdir(parents=True, exist_ok=True)
    settings = {
        **asked,
        "data_dir": None if data_dir is None else str(data_dir),
        "seed": seed,
        "budget_s": plan.budget_s,
    }
    with Results(out / RESULTS, earlier) as kept:
        if not earlier:
            kept.add({**environment.head(settings), "planned": planned})
            for record in unfit:
                kept.add(record)
        folder = out / page.UNFINISHED if page.is_finished(out) else out
        interrupted, error = _keep(kept, plan, folder, progress, tell)
        records = last_run(kept.records)
        if not interrupted:
            index = page.build(records, out, _loss_titles())
            shutil.rmtree(out / page.UNFINISHED, ignore_errors=True)
        else:
            index = page.build(records, folder, _loss_titles())
    if error is not None:
        raise error  # a bug, not a result: what was measured is shown, then the error goes its way
    return ReportOutcome(index, records, interrupted, out / RESULTS, _note(records, out, earlier, plan))


def _dtype(name: str | None) -> torch.dtype | None:
    names = {benchmark.short(d): d for spec in REGISTRY.values() for w in spec.workloads for d in spec.timed_in(w)}
    if name is not None and name not in names:
        raise BadRequest(f"--dtype is {name!r}; expected one of {', '.join(names)}")
    return None if name is None else names[name]


def _sizes(shapes: Sequence[str], only: Sequence[str]) -> list[str | Sizes]:
    """Shapes as `benchmark.cells` takes them, each of which some op has."""
    specs = list(dict.fromkeys(spec.name for spec, _ in benchmark.chosen(REGISTRY.values(), only)))
    names = list(dict.fromkeys(name for op in specs for name in REGISTRY[op].shapes))
    letters = {op: set(benchmark.letters_of(REGISTRY[op])) for op in specs}
    result: list[str | Sizes] = []
    if shapes and not specs:
        raise BadRequest(f"--shapes {' '.join(shapes)}: sizes are those of ops, and --only names none")
    for text in shapes:
        if "=" not in text:
            if text not in names:
                raise BadRequest(
                    f"--shapes: no op has a shape {text!r}; {_near(text, names)}they have {', '.join(names)}"
                )
            result.append(text)
            continue
        try:
            sizes = tune.sizes_of(text)
        except ValueError as error:
            raise BadRequest(f"--shapes: {error}") from None
        if not any(set(sizes) == own for own in letters.values()):
            theirs = "; ".join(f"{op} {', '.join(benchmark.letters_of(REGISTRY[op]))}" for op in specs)
            raise BadRequest(f"--shapes {text}: no op has the sizes {', '.join(sizes)}; they have: {theirs}")
        if wrong := [letter for letter, size in sizes.items() if size < 1]:
            raise BadRequest(f"--shapes {text}: {wrong[0]} is {sizes[wrong[0]]}; expected positive integers")
        result.append(sizes)
    return result


def _nothing(specs: Sequence[Spec], only: Sequence[str], asked: Mapping[str, Any]) -> str:
    timed = [
        f"{workload.name} is timed in {', '.join(map(benchmark.short, spec.timed_in(workload)))}, "
        f"at {', '.join(spec.shapes)} or sizes {', '.join(benchmark.letters_of(spec))}"
        for spec, workload in benchmark.chosen(specs, only)
    ]
    options = " and ".join(f"--{name} {asked[name]}" for name in ("dtype", "shapes") if asked[name]) or "these names"
    return f"nothing can be measured with {options}: {'; '.join(timed[:4]) or 'training is in float32'}"


def _keep(
    kept: Results, plan: Plan, folder: Path, progress: StageProgress, tell: Callable[[str], None]
) -> tuple[bool, Exception | None]:
    """Measure and write down; returns whether that was interrupted, and by which error of ours."""
    start = perf_counter()
    interrupted, error, page_at, is_first = False, None, start + FIRST_PAGE_S, True
    try:
        for record in _measured(plan, progress):
            kept.add(record)
            if perf_counter() > page_at:
                index = page.build(last_run(kept.records), folder, _loss_titles(), draft=True)
                if is_first:
                    tell(f"a first page, which the rest completes: {index}")
                page_at, is_first = perf_counter() + NEXT_PAGE_S, False
    except KeyboardInterrupt:
        interrupted = True
    except Exception as caught:
        interrupted, error = True, caught
    reason = None if error is None else f"{type(error).__name__}: {error}"
    before = sum(r["seconds"] for r in kept.records if r["kind"] == "run_end")
    seconds = before + perf_counter() - start
    kept.add({"kind": "run_end", "interrupted": interrupted, "seconds": seconds, "error": reason})
    return interrupted, error


def _loss_titles() -> dict[str, str]:
    return {name: study.loss_title for name, study in STUDIES.items()}


def _note(records: Sequence[Mapping[str, Any]], out: Path, earlier: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    if earlier and not plan.names:
        return "nothing was left to measure: the last run is whole, and its page was drawn again"
    if left := pending.unfinished(records):
        total = len(records[0]["planned"])
        return f"{len(left)} of {total} parts wait for more time: tropigrad report --resume --out {out}"
    return ""


_UNSET = {"quick": False, "only": [], "module": [], "threads": None, "device": None, "dtype": None, "shapes": []}


def _to_resume(path: Path, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The last run in a file, where it can go on here."""
    run = last_run(read_what_can_be(path).records) if path.is_file() else []
    if not run:
        raise BadRequest(f"{path}: no run to resume; leave --resume out, or name the --out of the run")
    head = run[0]
    if not head.get("planned") or "machine" not in head:
        raise BadRequest(f"{path}: its last run does not say what it planned; start without --resume, or use --redraw")
    if head["settings"].get("threads"):
        torch.set_num_threads(head["settings"]["threads"])
    here = environment.head({})
    facts = [("machine", "cpu"), ("machine", "threads"), ("versions", "torch"), ("versions", "tropigrad")]
    other = [
        f"{name} {head[part].get(name)!r}, here {here[part].get(name)!r}"
        for part, name in facts
        if head[part].get(name) != here[part].get(name)
    ]
    if head.get("git_revision") != here["git_revision"]:
        other.append(f"revision {head.get('git_revision')}, here {here['git_revision']}")
    settings = head["settings"]
    for name, unset in _UNSET.items():
        if asked[name] != unset and asked[name] != settings.get(name, unset):
            was = "not set" if settings.get(name, unset) == unset else settings[name]
            other.append(f"--{name} was {was}, asked for {asked[name]}")
    if other:
        raise BadRequest(f"{path}: a run of another kind cannot be resumed: {'; '.join(other)}")
    return run


def redraw(path: Path, out: Path, run: str | None = None) -> tuple[Path, list[str]]:
    """Draw a run of a results file again, whatever machine or version it comes from.

    Args:
        path: a results.jsonl; lines that cannot be used are left out.
        out: the folder of the page.
        run: the beginning of its id; by default the run that was begun last.
    Returns:
        The page, and a line for each thing of the file that was left out.
    Raises:
        BadRequest: the file cannot be read, or holds no such run.
    """
    try:
        reading = read_what_can_be(path)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror or error}; expected a results.jsonl of a report") from None
    records = last_run(reading.records, run)
    if not records:
        ids = [f"{r['run']} ({r.get('time', '')[:16]})" for r in reading.records if r["kind"] == "run"]
        which = f"no run {run!r}; it has {', '.join(ids)}" if ids else "no run that could be drawn"
        raise BadRequest(f"{path}: {which}; expected a results.jsonl of `tropigrad report`")
    return page.build(records, out, _loss_titles(), complaints=reading.complaints), reading.complaints


def _measured(plan: Plan, progress: StageProgress) -> Iterator[Mapping[str, Any]]:
    start = perf_counter()
    end = start + plan.budget_s

    def on(stage: str) -> Progress:
        return lambda done, total, what: progress(stage, done, total, what)

    def timed(cells: Sequence[benchmark.Cell], until: float, compiles: bool = True) -> Iterator[Mapping[str, Any]]:
        yield from benchmark.measure(
            cells,
            budget_s=max(0.0, until - perf_counter()),
            quick=plan.quick,
            compiles=compiles,
            seed=plan.seed,
            progress=on("kernels"),
        )

    if plan.has_ceilings:
        roofs = []
        is_cpu = benchmark.DEVICE.type == "cpu"
        measure = ceilings.measure if is_cpu else partial(gpu_ceilings.measure, benchmark.DEVICE)
        for record in measure(quick=plan.quick, progress=on("ceilings")):
            yield record
            roofs.append(record)
        tune.keep_ceilings(roofs, benchmark.DEVICE, "tropigrad report")
    first = _headlines(plan.cells) if plan.studies else []
    if first:
        yield from timed(first, start + _HEADLINES_END * plan.budget_s, compiles=False)
    training_end = start + _TRAINING_ENDS * plan.budget_s if plan.cells or plan.sweeps else end
    for place, name in enumerate(plan.studies):
        share = (training_end - perf_counter()) / (len(plan.studies) - place)
        yield from _trained(name, plan, perf_counter() + share, on("training"))
    # those that speak for a system are timed once more beside what had to be compiled
    rest = [cell for cell in plan.cells if cell not in first or (not plan.quick and _is_compiled(cell))]
    kept_s = plan.budget_s * (_GROWTH * bool(plan.sweeps) + _STARTUP * plan.has_startup)
    if rest:
        yield from timed(rest, end - kept_s)
    if plan.sweeps:
        until = end - plan.budget_s * _STARTUP * plan.has_startup
        yield from growth.measure(plan.sweeps, end=until, quick=plan.quick, seed=plan.seed, progress=on("growth"))
    if plan.has_startup:
        ops = list(dict.fromkeys(cell.spec.name for cell in plan.cells))
        left = max(5.0, end - perf_counter())
        yield from startup.measure(ops, budget_s=left, progress=on("startup"))


def _is_compiled(cell: benchmark.Cell) -> bool:
    return any(contender.role == "compiled" for contender in cell.workload.contenders)


class _OutOfTime(Exception):
    """Ends a study between two of its iterations."""


def _trained(study: str, plan: Plan, end: float, progress: Progress) -> Iterator[Mapping[str, Any]]:
    def until_the_end(done: int, total: int, what: str) -> None:
        progress(done, total, what)
        if perf_counter() > end:
            raise _OutOfTime

    try:
        yield from STUDIES[study].compare(
            data_dir=plan.data_dir, quick=plan.quick, seed=plan.seed, progress=until_the_end
        )
    except _OutOfTime:
        reason = f"{benchmark.SPENT} before it ended; its curves are drawn as far as they came"
        yield {"kind": "left_out", "what": pending.training(study), "reason": reason, "budget": True}


def summary(outcome: ReportOutcome) -> list[str]:
    """Six lines: machine, training, speed over dense backprop, over peers, gate, page; and a note, if there is one."""
    run, groups = outcome.records, speedups.groups(outcome.records)
    head = run[0]
    return [
        f"machine   {head['machine']['cpu']}, {head['machine']['threads']} threads, torch {head['versions']['torch']}",
        f"training  {_training_line(run)}",
        f"dense     {_speed_line([g for g in groups if g.role == 'dense' and g.workload != speedups.TRAINING])}",
        f"rivals    {_speed_line([g for g in groups if g.role != 'dense'])}",
        f"results   {_gate_line(outcome)}",
        f"page      {outcome.page}",
        *([f"note      {outcome.note}"] if outcome.note else []),
    ]


_EACH = {"step": "a step", "solution": "in all"}  # what an iteration is called


def _training_line(run: Sequence[Mapping[str, Any]]) -> str:
    methods = [r for r in run if r["kind"] == "training_summary"]
    if not methods:
        return "not part of this run" if not any(r["kind"] == "training" for r in run) else "not finished"
    words = []
    for r in methods:
        if r["role"] in ("ours", "dense"):
            speed = f"{format_duration(r['seconds_per_iteration'])} {_EACH.get(r.get('iteration', ''), 'an iteration')}"
            words.append(f"{r['method']} {speed}, {numbers.percent(r['test_accuracy'])} right")
    return f"{methods[0]['dataset']}: " + "; ".join(words)


def _speed_line(groups: Sequence[speedups.Group]) -> str:
    if not groups:
        return "nothing compared in this run"
    return "; ".join(f"{g.workload} {numbers.ratio(g.mean)} {g.contender}" for g in groups)


def _gate_line(outcome: ReportOutcome) -> str:
    gates = [r for r in outcome.records if r["kind"] == "gate"]
    agreeing = sum(r["gate"] == "green" for r in gates)
    words = f"{agreeing} of {len(gates)} comparisons agree" if gates else "nothing compared"
    if outcome.disagreements:
        words += f"; OURS DIFFER: {'; '.join(outcome.disagreements)}"
    return words + ("; INTERRUPTED" if outcome.interrupted else "")


def as_json(outcome: ReportOutcome) -> dict[str, Any]:
    """The summary for machines."""
    return {
        "page": str(outcome.page),
        "results": str(outcome.results),
        "run": outcome.records[0]["run"],
        "interrupted": outcome.interrupted,
        "note": outcome.note,
        "unfinished": pending.unfinished(outcome.records),
        "disagreements": outcome.disagreements,
        "speedups": [
            {
                "workload": group.workload,
                "contender": group.contender,
                "role": group.role,
                "geometric_mean": group.mean,
                "by_shape": {shape: [r.low, r.value, r.high] for shape, r in group.by_shape.items()},
            }
            for group in speedups.groups(outcome.records)
        ],
        "training": [dict(r) for r in outcome.records if r["kind"] == "training_summary"],
        "left_out": [{"what": r["what"], "reason": r["reason"]} for r in outcome.records if r["kind"] == "left_out"],
    }
