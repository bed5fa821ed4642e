"""The five systems of the library, as a reader of the page meets them: what each costs by dense backprop, and here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import equals

Record = Mapping[str, Any]


@dataclass(frozen=True)
class System:
    """One system: its study in the report, where it has one, and the workloads that speak for it, the first first."""

    name: str
    title: str
    workloads: tuple[tuple[str, str], ...]  # (op, workload)
    study: str = ""
    iteration: str = ""  # what one iteration of the study is, where those of ours and of dense backprop compare
    op_first: bool = False  # the op speaks for it: most of an iteration is other layers', and the same on both sides


SYSTEMS = (
    System(
        "maxplus",
        "max-plus networks",
        (("tropical_matmul", "forward + backward"), ("tropical_matmul", "forward")),
        study="maxplus",
        iteration="training on the worst sample, an iteration",
    ),
    System(
        "ftprop",
        "hard thresholds",
        (("hard_threshold", "soft hinge, forward + backward"),),
        study="ftprop",
        iteration="training, an epoch",
        op_first=True,
    ),
    System(
        "explicit",
        "softmax by counting",
        (("gather_softmax", "readout forward + backward"), ("gather_softmax", "readout forward")),
        study="explicit",
    ),
    System(
        "l1path",
        "sparse networks",
        (("held_step", "held step"), ("proximal_candidates", "proximal candidates")),
        study="l1path",
    ),
    System(
        "gsgd",
        "path space",
        (("path_norm", "path norm forward + backward"), ("path_norm", "path norm forward")),
        study="gsgd",
        iteration="training, an epoch",
    ),
)


@dataclass(frozen=True)
class Cost:
    """A system's cost by dense backprop and by ours, in seconds and, where it was measured, in bytes."""

    system: System
    measured: str  # what was done
    dense_name: str
    dense: float
    ours: float
    dense_bytes: float | None
    our_bytes: float | None

    @property
    def ratio(self) -> float:
        """How many times longer dense backprop takes."""
        return self.dense / self.ours


def costs(run: Sequence[Record]) -> list[Cost]:
    """The costs of every system that a run has measured: of its training where that ended, else of an op."""
    every = []
    for system in SYSTEMS:
        first, second = (_of_an_op, _of_training) if system.op_first else (_of_training, _of_an_op)
        every.append(first(run, system) or second(run, system))
    return [cost for cost in every if cost is not None]


def unmeasured(run: Sequence[Record]) -> list[System]:
    """The systems that `costs` has nothing of."""
    measured = {cost.system.name for cost in costs(run)}
    return [system for system in SYSTEMS if system.name not in measured]


def _of_training(run: Sequence[Record], system: System) -> Cost | None:
    ends = [r for r in run if r["kind"] == "training_summary" and r["study"] == system.study]
    ours = next((r for r in ends if r["role"] == "ours"), None)
    dense = next((r for r in ends if r["role"] == "dense"), None)
    if ours is None or dense is None or not ours["seconds_per_iteration"] or not dense["seconds_per_iteration"]:
        return None
    if ours.get("iteration") != dense.get("iteration"):
        return _of_an_equal_loss(run, system, ours["dataset"])
    return Cost(
        system,
        f"{system.iteration}, {ours['dataset']}",
        dense["method"],
        dense["seconds_per_iteration"],
        ours["seconds_per_iteration"],
        dense.get("peak_bytes"),
        ours.get("peak_bytes"),
    )


def _of_an_equal_loss(run: Sequence[Record], system: System, dataset: str) -> Cost | None:
    equal = equals.at(run, system.study, "loss")
    if equal is None:
        return None
    measured = f"training to an equal loss, {dataset}"
    return Cost(system, measured, equal.dense, equal.dense_seconds, equal.our_seconds, None, None)


def _of_an_op(run: Sequence[Record], system: System) -> Cost | None:
    for op, workload in system.workloads:
        timed = [r for r in run if r["kind"] == "timing" and (r["op"], r["workload"]) == (op, workload)]
        rivals = [r for r in timed if r["role"] == "dense" and r["ratio"] is not None]
        if not rivals:
            continue
        dense = max(rivals, key=lambda r: r["operations"])
        ours = next(
            (r for r in timed if r["role"] == "ours" and r["shape_label"] == dense["shape_label"]),
            None,
        )
        if ours is None:
            continue
        peaks = {
            r["role"]: r["peak_bytes"]
            for r in run
            if r["kind"] == "memory"
            and (r["op"], r["workload"], r["shape_label"]) == (op, workload, dense["shape_label"])
        }
        return Cost(
            system,
            f"{workload}, {dense['shape_label']}",
            dense["contender"],
            dense["median"]["value"],
            ours["median"]["value"],
            peaks.get("dense"),
            peaks.get("ours"),
        )
    return None
