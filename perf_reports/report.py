"""The report: measure this machine's ceilings, train beside dense backprop, time every kernel; then draw the page.

Every record is on the disk as soon as it exists, so an interruption loses nothing: the page shows what there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..kernels.contract.registry import REGISTRY
from . import data, environment, tune
from .commands import BadRequest, Progress, StageProgress
from .durations import format_duration
from .measuring import benchmark, ceilings, startup
from .page import page, speedups
from .records import Results
from .studies import STUDIES

_KERNEL_BUDGET_S = {False: 140.0, True: 12.0}  # by `quick`


@dataclass(frozen=True)
class ReportOutcome:
    """The result of a report: its page, its records, and whether it was interrupted."""

    page: Path
    records: Sequence[Mapping[str, Any]]  # of this run
    interrupted: bool

    @property
    def disagreements(self) -> list[str]:
        """The places where our results were not those of the reference. They fail the report; a rival's own do not."""
        return [
            f"{r['op']}, {r['workload']}, {r['shape_label']}: {r['detail']}"
            for r in self.records
            if r["kind"] == "gate" and r["gate"] == "red" and (r["role"] == "ours" or r["is_reference"])
        ]

    @property
    def exit_code(self) -> int:
        return 130 if self.interrupted else 1 if self.disagreements else 0


def names() -> list[str]:
    """The names that `only` may hold: of studies, ops, workloads."""
    workloads = [workload.name for spec in REGISTRY.values() for workload in spec.workloads]
    return list(dict.fromkeys([*STUDIES, *REGISTRY, *workloads]))


def run(
    out: Path,
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    data_dir: Path | None = None,
    seed: int = 0,
    progress: StageProgress = lambda stage, done, total, what: None,
) -> ReportOutcome:
    """Measure, append to results.jsonl in `out`, and draw the page there.

    Args:
        out: a folder, made where it is missing.
        quick: the smallest setting, under a minute.
        only: names out of `names()`; everything where empty.
        data_dir: MNIST-format files to train on; by default scikit-learn's digits.
        progress: called with (stage, done, total, what is being done); the stages are ceilings, startup, training and
            kernels.
    Raises:
        BadRequest: `only` holds a name that means nothing, or TROPIGRAD_BACKEND or TROPIGRAD_AUTOTUNE does.
        DataError: the data are missing or corrupt. Nothing has been written then.
        OSError: `out` cannot be written.
    """
    unknown = [name for name in only if name not in names()]
    if unknown:
        raise BadRequest(f"nothing is named {', '.join(map(repr, unknown))}; expected some of: {', '.join(names())}")
    if wrong := environment.wrong_variables():
        raise BadRequest("; ".join(wrong))
    data_dir = data.find_data_dir(data_dir)
    studies = [name for name in STUDIES if not only or name in only]
    cells = benchmark.cells(list(REGISTRY.values()), only=only, quick=quick)
    if studies:
        data.load(data_dir=data_dir, seed=seed)  # missing or corrupt data must come to light before anything is written

    loss_titles = {name: study.loss_title for name, study in STUDIES.items()}
    out.mkdir(parents=True, exist_ok=True)
    start = perf_counter()
    interrupted = False
    with Results(out / "results.jsonl") as kept:
        settings = {
            "quick": quick,
            "only": list(only),
            "data_dir": None if data_dir is None else str(data_dir),
            "seed": seed,
        }
        kept.add(environment.head(settings))
        try:
            for record in _measured(studies, cells, quick, data_dir, seed, progress):
                kept.add(record)
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:
            # a bug, not a result: what was measured is shown, then the error goes its way
            seconds, reason = perf_counter() - start, f"{type(error).__name__}: {error}"
            kept.add({"kind": "run_end", "interrupted": True, "seconds": seconds, "error": reason})
            page.build(kept.records, out, loss_titles)
            raise
        kept.add({"kind": "run_end", "interrupted": interrupted, "seconds": perf_counter() - start, "error": None})
        index = page.build(kept.records, out, loss_titles)
    return ReportOutcome(index, kept.records, interrupted)


def _measured(
    studies: Sequence[str],
    cells: Sequence[benchmark.Cell],
    quick: bool,
    data_dir: Path | None,
    seed: int,
    progress: StageProgress,
) -> Iterator[Mapping[str, Any]]:
    def on(stage: str) -> Progress:
        return lambda done, total, what: progress(stage, done, total, what)

    if cells:
        roofs = []
        for record in ceilings.measure(quick=quick, progress=on("ceilings")):
            yield record
            roofs.append(record)
        tune.keep_ceilings(roofs, torch.device("cpu"), "tropigrad report")
        yield from startup.measure(quick=quick, progress=on("startup"))
    for name in studies:
        yield from STUDIES[name].compare(data_dir=data_dir, quick=quick, seed=seed, progress=on("training"))
    if cells:
        budget_s = _KERNEL_BUDGET_S[quick]
        yield from benchmark.measure(cells, budget_s=budget_s, quick=quick, seed=seed, progress=on("kernels"))


def summary(outcome: ReportOutcome) -> list[str]:
    """Six lines: machine, training, speed over dense backprop, over peers, gate, page."""
    run, groups = outcome.records, speedups.groups(outcome.records)
    head = run[0]
    return [
        f"machine   {head['machine']['cpu']}, {head['machine']['threads']} threads, torch {head['versions']['torch']}",
        f"training  {_training_line(run)}",
        f"dense     {_speed_line([g for g in groups if g.role == 'dense' and g.workload != speedups.TRAINING])}",
        f"rivals    {_speed_line([g for g in groups if g.role != 'dense'])}",
        f"results   {_gate_line(outcome)}",
        f"page      {outcome.page}",
    ]


def _training_line(run: Sequence[Mapping[str, Any]]) -> str:
    methods = [r for r in run if r["kind"] == "training_summary"]
    if not methods:
        return "not part of this run" if not any(r["kind"] == "training" for r in run) else "not finished"
    words = []
    for r in methods:
        if r["role"] in ("ours", "dense"):
            speed = format_duration(r["seconds_per_iteration"])
            words.append(f"{r['method']} {speed} an iteration, {page.percent(r['test_accuracy'])} right")
    return f"{methods[0]['dataset']}: " + "; ".join(words)


def _speed_line(groups: Sequence[speedups.Group]) -> str:
    if not groups:
        return "nothing compared in this run"
    return "; ".join(f"{g.workload} {page.ratio(g.mean)} {g.contender}" for g in groups)


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
        "results": str(outcome.page.with_name("results.jsonl")),
        "run": outcome.records[0]["run"],
        "interrupted": outcome.interrupted,
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
