"""One training run, of one method or of several side by side, left in a folder."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...commands import Progress
from ...data import Dataset
from ...durations import format_duration
from ..runs import Run
from ..threads import one_thread
from .drawing import plot
from .methods import Recipe, Training, device
from .verdict import spread, verdict

SEEDS = 3


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    *,
    methods: Sequence[str] | None = None,
    seeds: int = 1,
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Train one network, or one for each of several methods and seeds, and leave what came of it in a folder.

    Methods take turns, a mini-batch each, so that a slow minute of the machine is shared; seeds follow one another.
    Writes metrics.jsonl (an epoch a line), model.pt (`state_dicts` by method, of the last seed, and `config`; loads
    with weights_only=True), training.png (where matplotlib is installed) and checkpoint.pt; each is replaced as a
    whole. Ctrl-C ends after the mini-batches under way with all of these in place; a run that is resumed goes through
    the same weights, bit for bit, as one that never stopped.

    Args:
        recipe: of each; its rule is replaced by each of `methods`, and its seed is the first.
        methods: rules and activations; by default the recipe's rule alone.
        resume: go on from the checkpoint in `out`; otherwise what a run left there is replaced.
        progress: called at the start and after each epoch.
    Returns:
        The summary: the configuration, the bytes saved for a backward by method, `rows` of metrics.jsonl, whether it
        was interrupted, the files.
    Raises:
        ValueError: settings that do not exist, or do not fit the data.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    methods = [recipe.rule] if methods is None else list(methods)
    if seeds < 1:
        raise ValueError(f"train: seeds is {seeds}; expected at least 1")
    config = {"dataset": dataset.name, "features": dataset.features, "classes": dataset.classes, **asdict(recipe)}
    config |= {"methods": methods, "seeds": seeds}
    del config["rule"]

    def begun(seed: int) -> dict[str, Training]:
        return {name: Training(replace(recipe, rule=name, seed=recipe.seed + seed), dataset) for name in methods}

    trainings, place = begun(0), 0
    saved = {name: training.saved_bytes() for name, training in trainings.items()}
    run = Run(out, config, resume)
    if run.state is not None:
        place = run.state["place"]
        trainings = begun(place)
        for name, training in trainings.items():
            training.load_state(run.state["trainings"][name])
    rows, total = run.rows, recipe.epochs * seeds

    def is_done() -> bool:
        return place == seeds - 1 and all(training.epoch == recipe.epochs for training in trainings.values())

    def advance() -> None:
        nonlocal trainings, place
        if all(training.epoch == recipe.epochs for training in trainings.values()):
            place += 1
            trainings = begun(place)
        ended = [row for training in trainings.values() if (row := training.advance())]
        rows.extend(ended)
        if ended:
            best = max(ended, key=lambda row: row["test_accuracy"])
            what = f"{best['test_accuracy']:.2%} right" + (f" by {best['rule']}" if len(methods) > 1 else "")
            progress(place * recipe.epochs + ended[0]["iteration"], total, what)

    def snapshot() -> tuple[dict[str, Any], dict[str, Any]]:
        state = {"place": place, "trainings": {name: training.state() for name, training in trainings.items()}}
        return state, {"state_dicts": {name: training.model.state_dict() for name, training in trainings.items()}}

    first = next(iter(trainings.values()))
    progress(place * recipe.epochs + first.epoch, total, f"{recipe.network}, {dataset.name}")
    # the MLP's products are too small to be shared
    with one_thread() if recipe.network == "mlp" else nullcontext():
        run.go(is_done=is_done, advance=advance, snapshot=snapshot, plot=plot)
    return {
        **config,
        "schedule": recipe.schedule,
        "device": device().type,
        "samples": len(dataset.y_train),
        "saved_bytes": saved,
        "rows": rows,
        "interrupted": not is_done(),
        "files": run.files,
    }


def last_rows(rows: Sequence[dict[str, Any]], epochs: int) -> dict[str, list[dict[str, Any]]]:
    """Method → the rows of the last epoch, one a seed."""
    methods = dict.fromkeys(row["rule"] for row in rows)
    return {name: [r for r in rows if r["rule"] == name and r["iteration"] == epochs] for name in methods}


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary that `train` returned, for people: of several methods, a table of them side by side."""
    activation = {"quantized_relu": "quantized ReLU"}.get(summary["activation"], summary["activation"])
    head = [
        f"network        {summary['dataset']}: {summary['network']}, {activation}; {summary['samples']} samples",
        f"schedule       {summary['schedule']}; batches of {summary['batch']}, on the {summary['device'].upper()}",
    ]
    rows, methods = summary["rows"], summary["methods"]
    lasts = last_rows(rows, summary["epochs"])
    own = _alone(summary, methods[0]) if len(methods) == 1 else _side_by_side(summary, lasts)
    lines = [*head, *own]
    if summary["interrupted"]:
        lines.append("interrupted    --resume goes on")
    return [*lines, f"files          {'  '.join(summary['files'])}"]


def _alone(summary: dict[str, Any], method: str) -> list[str]:
    rows = summary["rows"]
    if not rows:
        return ["epochs         none ended"]
    last = rows[-1]
    return [
        f"method         {method}; {_megabytes(summary['saved_bytes'][method])} saved for the backward of a batch",
        f"epochs         {last['iteration']}; a step takes {format_duration(last['step_seconds'])}",
        f"training loss  {_number(rows[0]['loss'])} first epoch, {_number(last['loss'])} last epoch",
        f"test accuracy  {last['test_accuracy']:.2%}, in the last epoch",
    ]


def _side_by_side(summary: dict[str, Any], lasts: dict[str, list[dict[str, Any]]]) -> list[str]:
    rows = summary["rows"]
    ended = {name: own for name, own in lasts.items() if own}
    seeds = max((len(own) for own in ended.values()), default=0)
    plural = "s" if seeds != 1 else ""
    lines = ["", f"{'method':<15}{'test accuracy, last epoch':<27}{'a step':<11}saved for the backward of a batch"]
    for name in summary["methods"]:
        own = [row for row in rows if row["rule"] == name]
        accuracy = spread([row["test_accuracy"] for row in ended[name]]) if name in ended else "–"
        step = format_duration(statistics.median(row["step_seconds"] for row in own)) if own else "–"
        lines.append(f"{name:<15}{accuracy:<27}{step:<11}{_megabytes(summary['saved_bytes'][name])}")
    lines += ["", f"{seeds} seed{plural}, mean ± standard deviation." if seeds != 1 else "1 seed."]
    if all(name in ended for name in ("soft_hinge", "sste")):
        lines.append(verdict({name: [row["test_accuracy"] for row in own] for name, own in ended.items()}) + ".")
    return [*lines, ""]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4g}"
