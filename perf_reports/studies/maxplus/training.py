"""One training run by the sparse backward, left in a folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ....kernels.runtime.ranks import of_ranks, on_all_ranks
from ....nn import LinearMinMax
from ....optim import WorstSampleSubgradient
from ....optim.worst_sample.subgradient import Iterate
from ...commands import Progress
from ...data import Dataset
from ..runs import Run
from .drawing import plot
from .features import view
from .methods import ANSWER_SECONDS, MARGIN, NAME, SCALE, accuracy_of, kernel_copy, logged, start

_BETTER = (
    "Adam on mini-batches of the mean cross-entropy trains this network to a better accuracy: leave --objective worst "
    "out, and the objective that wins on the validation samples is taken"
)


class _Samples(NamedTuple):
    x: Tensor
    y: Tensor


def hold_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, _Samples | None, Tensor]:
    """The data without a share of each class's training samples; these, or None where there are none; the rows left."""
    generator, y = torch.Generator().manual_seed(seed), dataset.y_train
    held = torch.zeros(len(y), dtype=torch.bool, device="cpu")
    for label in y.unique():
        rows = (y == label).nonzero().squeeze(1)
        order = torch.randperm(len(rows), generator=generator, device="cpu")
        held[rows[order[: min(len(rows) - 1, round(share * len(rows)))]]] = True
    left, x = (~held).nonzero().squeeze(1), dataset.x_train
    if not held.any():
        return dataset, None, left
    kept = dataclasses.replace(dataset, x_train=x[~held], y_train=y[~held])
    return kept, _Samples(x[held], y[held]), left


def _own_part(what: str, x: Tensor, y: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The samples of this rank: the ranks have equal parts, but for one sample, in their order."""
    if group is None:
        return x, y
    rank, ranks = group.rank(), group.size()
    if len(x) < ranks:
        raise ValueError(f"train: {len(x)} {what} samples for {ranks} ranks; expected at least one each: fewer ranks")
    own = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
    return x[own], y[own]


def kept_iterate(optimizer: WorstSampleSubgradient, model: LinearMinMax, validation: tuple[Tensor, Tensor]) -> Iterate:
    """The iterate that is right most often on the held-out samples: of equals that of the least F, else the first."""
    best, first = optimizer.best, optimizer.best_validation
    twin = kernel_copy(model)
    twin.load_state_dict(best.weights)
    return best if accuracy_of(twin, *validation) == first.accuracy else first


def _remarks(kept: Mapping[str, Any]) -> list[str]:
    """Remarks on a run whose iterates are no better than its start."""
    if not kept["validation_samples"]:
        return []
    if kept["kept"] == "validation" and kept["kept_iteration"] == 0 < kept["iterations"]:
        remark = "no iterate is right more often on the validation samples than the start, and the start is kept"
        return [f"{remark} (--keep loss keeps the iterate of the least loss)", _BETTER]
    if kept["validation_accuracy"] < kept["first_validation_accuracy"]:
        return [
            "the iterate that is kept, of the least loss, is worse on the validation samples than the start",
            _BETTER,
        ]
    return []


def train(
    dataset: Dataset,
    out: Path,
    *,
    features: str = "pixels",
    hidden: int | None = None,
    iterations: int = 300,
    seed: int = 0,
    scale: float = SCALE,
    margin: float = MARGIN,
    step: Literal["polyak", "sqrt", "power"] = "polyak",
    loss: Literal["hinge", "cross_entropy"] = "hinge",
    memory: Literal["auto", "trees", "winners"] = "auto",
    train_a: bool = False,
    validation: float = 0.1,
    keep: Literal["validation", "loss"] = "validation",
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Train one network by the sparse backward, and leave it in a folder.

    Writes metrics.jsonl (the logged iterations), model.pt (`state_dict` of the iterate that is kept, `config`, and
    `view`, what makes features of pixels: View(*view).of(x), or None; loads with weights_only=True), training.png
    (where matplotlib is installed) and checkpoint.pt; each is replaced as a whole. Ctrl-C ends after the iteration
    under way with all of these in place; a run that is resumed goes through the same iterates, bit for bit, as one that
    never stopped.

    Args:
        features: of FEATURES in features.py.
        hidden: hidden units; by default 300, or a quarter of the samples where that is less.
        iterations: in all, those before a resumption included. It ends sooner where F is 0, to rounding.
        seed: of the samples that k-medoids draws, and of random directions.
        scale, margin: λ and Δ, see LinearMinMax.init_kmedoids.
        step, loss, memory, train_a: see WorstSampleSubgradient.
        validation: the share of each class's training samples that is held out, in [0, 1); F does not see them.
        keep: "validation", the iterate that is right most often on them: of equal ones that of the least F, where it is
            one of them, else the first. "loss", that of the least F, also where no sample is held out. F falls for the
            sake of one sample: others may fare worse than at the start.
        resume: go on from the checkpoint in `out`; otherwise what a run left there is replaced.
        progress: called before each iteration.
        group: of torch.distributed. Every rank gives the same data and settings, and keeps the caches of an equal part
            of the samples; the iterates, and the files, which rank 0 writes, are those of one process.
    Returns:
        The summary: iterations, losses, accuracies, seconds, whether it was interrupted, the files, and remarks. On
        other ranks than 0, whether it was interrupted.
    Raises:
        ValueError: settings that do not fit the data.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    if iterations < 1:
        raise ValueError(f"train: iterations is {iterations}; expected at least 1")
    if not 0 <= validation < 1:
        raise ValueError(f"train: validation is {validation}; expected a share in [0, 1)")
    if keep not in ("validation", "loss"):
        raise ValueError(f"train: keep is {keep!r}; expected 'validation' or 'loss'")
    dataset, held_out, rows_left = hold_out(dataset, validation, seed)
    if hidden is None:
        hidden = min(300, max(dataset.classes, len(dataset.y_train) // 4))
    seen = view(features, dataset.x_train, seed)
    dataset = dataset if seen is None else seen.on(dataset)
    watched = None if held_out is None else (held_out.x if seen is None else seen.of(held_out.x), held_out.y)
    keep = keep if watched else "loss"
    config = {
        "dataset": dataset.name,
        "features": features,
        "in_features": dataset.features,
        "hidden": hidden,
        "classes": dataset.classes,
        "seed": seed,
        "scale": scale,
        "margin": margin,
        "step": step,
        "loss": loss,
        "train_a": train_a,
        "validation": validation,
    }
    pace = 1  # iterations that take as long as Ctrl-C may wait
    run = Run(out, config, resume, group)
    rows, state = run.rows, run.state
    if state is not None:
        model = LinearMinMax(dataset.features, hidden, dataset.classes, device="cpu")
        model.load_state_dict(state["optimizer"]["weights"])
    else:
        progress(0, iterations, "k-medoids")

        def begin() -> LinearMinMax:
            if run.leads:
                return start(dataset, hidden, seed, scale, margin)[0]
            return LinearMinMax(dataset.features, hidden, dataset.classes, device="cpu")

        model = on_all_ranks("train", group, begin)
        if group is not None:
            for weights in model.parameters():
                dist.broadcast(weights.detach(), dist.get_global_rank(group, 0), group)
    optimizer = WorstSampleSubgradient(
        model,
        *_own_part("training", dataset.x_train, dataset.y_train, group),
        step,
        memory,
        group,
        loss=loss,
        margin=margin,
        train_A=train_a,
        validation=None if watched is None else _own_part("validation", *watched, group),
    )
    spent = 0.0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        spent = state["seconds"]

    def is_done() -> bool:
        return optimizer.status != "going" or optimizer.iteration >= iterations

    def tell() -> None:
        progress(optimizer.iteration, iterations, f"F {optimizer.best.loss:.4g}")

    def log() -> None:
        # an iterate may have been logged as the last one before
        rows[:] = [row for row in rows if row["iteration"] < optimizer.iteration]
        rows.append(
            {
                "kind": "training",
                "study": NAME,
                "method": "sparse",
                "dataset": dataset.name,
                "iteration": optimizer.iteration,
                "seconds": spent,
                "loss": optimizer.loss,
                "train_accuracy": accuracy_of(model, dataset.x_train, dataset.y_train),
                "validation_accuracy": None if watched is None else accuracy_of(model, *watched),
                "test_accuracy": accuracy_of(model, dataset.x_test, dataset.y_test),
                "seed": seed,
            }
        )

    def kept() -> Iterate:
        return optimizer.best if watched is None or keep == "loss" else kept_iterate(optimizer, model, watched)

    def advance() -> None:
        nonlocal pace, spent
        if run.leads and logged(optimizer.iteration, iterations):
            log()
        until = range(optimizer.iteration + 1, iterations + 1)
        asked = next(i for i in until if logged(i, iterations) or i == iterations) - optimizer.iteration
        asked = min(asked, of_ranks(pace, group)[0])
        begun = time.perf_counter()
        optimizer.step(asked)
        seconds = time.perf_counter() - begun
        spent += seconds
        pace = max(1, round(asked * ANSWER_SECONDS / seconds))

    def snapshot() -> tuple[dict[str, Any], dict[str, Any]]:
        training = {"seconds": spent, "optimizer": optimizer.state_dict()}
        return training, {"state_dict": kept().weights, "view": None if seen is None else tuple(seen)}

    run.go(is_done=is_done, advance=advance, snapshot=snapshot, plot=plot, tell=tell, end=log)
    interrupted = not is_done()
    if not run.leads:
        optimizer.load_best()  # rank 0 does below
        return {"interrupted": interrupted}
    last = rows[-1]
    worst = optimizer.worst
    worst = worst._replace(sample=int(rows_left[worst.sample]))  # as in the data set
    memory_of = optimizer.why
    best = optimizer.load_best()
    best_loss_test_accuracy = accuracy_of(model, dataset.x_test, dataset.y_test)
    left = kept()
    model.load_state_dict(left.weights)
    of_kept = {
        "kept": keep,
        "kept_iteration": left.iteration,
        "iterations": last["iteration"],
        "validation_samples": 0 if watched is None else len(watched[1]),
        "first_validation_accuracy": rows[0]["validation_accuracy"],
        "validation_accuracy": None if watched is None else accuracy_of(model, *watched),
    }
    return {
        **config,
        **of_kept,
        "remarks": _remarks(of_kept),
        "memory": memory_of,
        "interrupted": interrupted,
        "seconds": spent,
        "first_loss": rows[0]["loss"],
        "final_loss": last["loss"],
        "best_loss": best.loss,
        "best_loss_test_accuracy": best_loss_test_accuracy,
        "first_test_accuracy": rows[0]["test_accuracy"],
        "test_accuracy": accuracy_of(model, dataset.x_test, dataset.y_test),
        "train_accuracy": last["train_accuracy"],
        "worst_sample": worst._asdict(),
        "files": run.files,
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary that `train` returned, for people."""
    worst = summary["worst_sample"]
    interrupted = "; interrupted, --resume goes on" if summary["interrupted"] else ""
    accuracies = (
        f"{summary['first_test_accuracy']:.2%} at the start, {summary['best_loss_test_accuracy']:.2%} at best loss, "
        f"{summary['test_accuracy']:.2%} as kept: iterate {summary['kept_iteration']}"
    )
    watched = f"on {summary['validation_samples']} training samples held out"
    if summary["validation_samples"]:
        first, last = summary["first_validation_accuracy"], summary["validation_accuracy"]
        of_validation = f"{first:.2%} at the start, {last:.2%} as kept, {watched}"
    else:
        of_validation = f"{watched}: the iterate of the least loss is kept"
    return [
        f"network        {summary['dataset']}: {summary['in_features']} features, {summary['hidden']} hidden units",
        f"memory         {summary['memory']}",
        f"iterations     {summary['iterations']} in {summary['seconds']:.3g} s{interrupted}",
        f"worst loss     {summary['first_loss']:.4g} at the start, {summary['best_loss']:.4g} at best",
        f"validation     {of_validation}",
        f"test accuracy  {accuracies}",
        f"worst sample   {worst['sample']}, in {worst['share']:.0%} of the iterates",
        f"files          {'  '.join(summary['files'])}",
        *(f"remark         {remark}" for remark in summary["remarks"]),
    ]
