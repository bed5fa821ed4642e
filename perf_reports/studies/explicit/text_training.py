"""A language model counted from a text, beside the paper's own form and Kneser–Ney, left in a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....nn import ExplicitLanguageModel
from ...commands import Progress
from ...texts import Text
from ..runs import Run
from .curves import plot_models
from .kneser_ney import KneserNey

POSITIONS = 50_000  # of the test text, its first ones
SMOOTHING = 0.01  # of the paper's form
_RADIUS = {"characters": 5, "words": 3}
_PRIOR = {"characters": "uniform", "words": "unigram"}


def train(
    text: Text,
    out: Path,
    *,
    radius: int | None = None,
    mode: str = "suffix",
    positions: int = POSITIONS,
    sample: int = 0,
    temperature: float = 0.8,
    seed: int = 0,
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Count a text, fit K + 1 weights and ε to its validation part, and compare on its test part.

    Leaves in a folder metrics.jsonl (a row a model), model.pt (`model`, for `ExplicitLanguageModel.from_state_dict`,
    `words` and `config`; loads with weights_only=True), training.png (where matplotlib is installed), checkpoint.pt.
    Ctrl-C ends after the model under way.

    Args:
        radius: K; by default 5 of characters, 3 of words.
        mode: of ExplicitLanguageModel. Of characters ε is the same for all, of words it follows the unigrams.
        positions: at most so many tokens of the test text are predicted, the first ones; 0 takes all.
        sample: so many tokens are drawn at the end; by default 40 words or 300 characters.
        temperature: of the sample.  seed: the same.
    Returns:
        The summary: `rows` of metrics.jsonl, the sample, the files, whether it was interrupted.
    Raises:
        ValueError: settings that do not fit the text.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    if positions < 0 or sample < 0:
        raise ValueError(f"train: positions is {positions} and sample is {sample}; expected at least 0")
    K = _RADIUS[text.unit] if radius is None else radius
    prior = _PRIOR[text.unit]
    config = {
        "text": text.name,
        "unit": text.unit,
        "tokens": len(text.train),
        "vocabulary": text.vocabulary,
        "radius": K,
        "mode": mode,
        "positions": positions,
    }
    test = text.test[: positions + K] if positions else text.test
    V = text.vocabulary
    ours = ExplicitLanguageModel(V, K, mode, "search", "search", smoothing_prior=prior)  # pyright: ignore[reportArgumentType]
    run = Run(out, config, resume)
    if run.state is not None and run.state["model"] is not None:
        ours = ExplicitLanguageModel.from_state_dict(run.state["model"])

    def counted() -> ExplicitLanguageModel:
        return ours.partial_fit(text.train).tune(text.valid)

    def paper(order: int) -> ExplicitLanguageModel:
        return ExplicitLanguageModel(V, order, "sum", SMOOTHING).fit(text.train)

    models: dict[str, tuple[Callable[[], ExplicitLanguageModel | KneserNey], bool]] = {
        f"ours: {mode}, K = {K}, weights": (counted, True),
        "the paper's form, K = 1": (lambda: paper(1), False),
        f"the paper's form, K = {K}": (lambda: paper(K), False),
    }
    if math.log2(V) * (K + 1) < 63:  # its n-grams are numbers of 63 bits
        models[f"Kneser–Ney, {K + 1}-gram"] = (lambda: KneserNey(text.train, V, K + 1), False)
    if K == 1:
        del models["the paper's form, K = 1"]

    def advance() -> None:
        name = list(models)[len(run.rows)]
        fitted, is_ours = models[name]
        ExplicitLanguageModel(V, K, mode).fit(text.train[: K + 1])  # pyright: ignore[reportArgumentType]  compiles
        began = time.perf_counter()
        model = fitted()
        seconds = time.perf_counter() - began
        # each model sees the same tokens as targets: those from K on
        loss = model.cross_entropy(test[K - (model.order - 1 if isinstance(model, KneserNey) else model.radius) :])
        run.rows.append(
            {
                "kind": "training",
                "study": "explicit",
                "dataset": text.name,
                "model": name,
                "is_ours": is_ours,
                "seconds": seconds,
                "test_loss": loss,
                "perplexity": math.exp(loss),
            }
        )

    def is_done() -> bool:
        return len(run.rows) == len(models)

    def tell() -> None:
        progress(len(run.rows), len(models), [*models, "a sample"][len(run.rows)])

    def snapshot() -> tuple[dict[str, Any], dict[str, Any]]:
        state = ours.state_dict() if run.rows else None
        return {"model": state}, {"model": state, "words": text.words}

    run.go(is_done=is_done, advance=advance, snapshot=snapshot, plot=plot_models, tell=tell)
    length = sample or {"characters": 300, "words": 40}[text.unit]
    drawn = text.spelled(ours.sample(length, temperature=temperature, seed=seed)) if run.rows else ""
    summary = {**config, "rows": run.rows, "sample": drawn, "interrupted": not is_done(), "files": run.files}
    if run.rows:
        summary |= {"smoothing": ours.smoothing_, "weights": ours.weights_.tolist()}
    return summary


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary that `train` returned, for people."""
    lines = [
        f"text           {summary['text']}: {summary['tokens']} {summary['unit']} to count, "
        f"vocabulary {summary['vocabulary']}"
    ]
    width = max((len(row["model"]) for row in summary["rows"]), default=0)
    for row in summary["rows"]:
        lines.append(
            f"{'perplexity':<15}{row['model']:<{width}}  {row['perplexity']:.4g} "
            f"({row['test_loss']:.3f} nats a token), fitted in {row['seconds']:.2g} s"
        )
    if summary["rows"]:
        weights = ", ".join(f"{w:.2f}" for w in summary["weights"])
        lines.append(f"found          smoothing {summary['smoothing']:.2g}, weights {weights}")
        lines.append(f"sample         {summary['sample']}")
    if summary["interrupted"]:
        lines.append("interrupted    --resume goes on with the next model")
    return [*lines, f"files          {'  '.join(summary['files'])}"]
