"""Classifiers solved from counts, then a few steps of Adam beside a random start, left in a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....nn import ExplicitMLP, ExplicitSoftmax
from ...commands import Progress
from ...data import DataError, Dataset
from ...texts import Speeches
from ..runs import Run
from .curves import plot_starts

RATES = (1e-4, 1e-3, 1e-2, 1e-1)  # of Adam, one of which a start takes by the samples held out
BATCH = 1024
HELD_OUT = 0.1
_AT_ONCE = 4096  # samples of one forward pass


@dataclass(frozen=True)
class Samples(Dataset):
    """A data set whose rows may be sparse: x ≥ 0 is a tensor [N, D] or a sparse SciPy matrix."""

    x_train: Any
    x_test: Any

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Samples:
        return cls(dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test, dataset.name)

    @classmethod
    def of_speeches(cls, speeches: Speeches, seed: int) -> Samples:
        """Three in ten speeches of each speaker are the test, drawn by seed."""
        generator, y = torch.Generator().manual_seed(seed), torch.from_numpy(speeches.y)
        is_test = torch.zeros(len(y), dtype=torch.bool)
        for speaker in range(len(speeches.names)):
            rows = (y == speaker).nonzero().squeeze(1)
            order = torch.randperm(len(rows), generator=generator)
            is_test[rows[order[: round(0.3 * len(rows))]]] = True
        x = speeches.csr()
        return cls(x[(~is_test).numpy()], y[~is_test], x[is_test.numpy()], y[is_test], "speakers")


def _rows(x: Any, index: Tensor, scale: float, offset: float) -> Tensor:
    """K (x + o) / Σ (x + o) of some rows, dense, in float32: what the solved networks take."""
    rows = x[index] if isinstance(x, Tensor) else torch.from_numpy(x[index.numpy()].toarray()).float()
    rows = rows + offset
    return scale * rows / rows.sum(1, keepdim=True)


def _network(sizes: Sequence[int]) -> nn.Sequential:
    """Linear, Softmax, …, Linear, with torch's Xavier start and biases of 0: what `to_sequential` gives, unsolved."""
    modules: list[nn.Module] = []
    for d, c in pairwise(sizes):
        layer = nn.Linear(d, c)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        modules += [layer, nn.Softmax(dim=-1)]
    return nn.Sequential(*modules[:-1])


class _Stages:
    """Solve both networks, then take steps from both starts: a stage at a time, each known by its name."""

    def __init__(self, samples: Samples, hidden: int, steps: int, scale: float, offset: float, seed: int) -> None:
        self.samples, self.steps, self.scale, self.offset, self.seed = samples, steps, scale, offset, seed
        self.sizes = {
            "one layer": (samples.features, samples.classes),
            "two layers": (samples.features, hidden, samples.classes),
        }
        self.stages = [("solve", network, "explicit") for network in self.sizes]
        if steps:
            self.stages += [("steps", network, start) for network in self.sizes for start in ("explicit", "random")]
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(samples.y_train), generator=generator)
        held = round(HELD_OUT * len(order))
        self.held, self.kept = order[:held], order[held:]
        self.solved: dict[str, dict[str, Tensor]] = {}
        self.trained: dict[str, dict[str, Tensor]] = {}

    def run(self, stage: tuple[str, str, str]) -> list[dict[str, Any]]:
        kind, network, start = stage
        return self._solve(network) if kind == "solve" else self._steps(network, start)

    def _solve(self, network: str) -> list[dict[str, Any]]:
        samples = self.samples
        settings: dict[str, Any] = {
            "scale": self.scale,
            "offset": self.offset,
            "smoothing": "search",
            "seed": self.seed,
        }
        few = slice(0, 4)
        ExplicitSoftmax(self.scale, offset=self.offset).fit(
            samples.x_train[few], samples.y_train[few]
        )  # compiles, which is not measured
        began = time.perf_counter()
        if network == "one layer":
            model = ExplicitSoftmax(temperature="search", **settings).fit(samples.x_train, samples.y_train)
            module: nn.Module = nn.Sequential(model.to_linear())
        else:
            model = ExplicitMLP(self.sizes[network][1], **settings).fit(samples.x_train, samples.y_train)
            module = model.to_sequential()
        seconds = time.perf_counter() - began
        self.solved[network] = module.state_dict()
        return [self._row(network, "explicit", 0, module, seconds, None)]

    def _steps(self, network: str, start: str) -> list[dict[str, Any]]:
        """Adam from one start, at the rate that is best on the samples held out."""

        def begun() -> nn.Module:
            torch.manual_seed(self.seed)
            module = _network(self.sizes[network])
            if start == "explicit":
                module.load_state_dict(self.solved[network])
            return module

        def losses_held_out(rate: float) -> float:
            module = begun()
            for _ in self._adam(module, rate):
                pass
            return self._evaluated(module, self.samples.x_train, self.samples.y_train, self.held)[0]

        rate = min(RATES, key=losses_held_out)
        module = begun()
        rows = [self._row(network, start, 0, module, 0.0, rate)]
        for step, seconds in self._adam(module, rate):
            rows.append(self._row(network, start, step, module, seconds, rate))
        self.trained[f"{network}, {start} start"] = module.state_dict()
        return rows

    def _adam(self, module: nn.Module, rate: float):
        """Yields the number of steps taken, and the seconds that they took."""
        optimizer = torch.optim.Adam(module.parameters(), rate)
        generator = torch.Generator().manual_seed(self.seed)
        order, seconds = self.kept[:0], 0.0
        for step in range(1, self.steps + 1):
            if len(order) == 0:
                order = self.kept[torch.randperm(len(self.kept), generator=generator)]
            batch, order = order[:BATCH], order[BATCH:]
            began = time.perf_counter()
            x = _rows(self.samples.x_train, batch, self.scale, self.offset)
            loss = F.cross_entropy(module(x), self.samples.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds += time.perf_counter() - began
            yield step, seconds

    @torch.no_grad()
    def _evaluated(self, module: nn.Module, x: Any, y: Tensor, index: Tensor) -> tuple[float, float]:
        """The mean cross-entropy, and the share of right answers."""
        loss, right = 0.0, 0
        for part in index.split(_AT_ONCE):
            logits = module(_rows(x, part, self.scale, self.offset))
            loss += F.cross_entropy(logits, y[part], reduction="sum").item()
            right += int((logits.argmax(1) == y[part]).sum())
        return loss / len(index), right / len(index)

    def _row(
        self, network: str, start: str, step: int, module: nn.Module, seconds: float, rate: float | None
    ) -> dict[str, Any]:
        samples = self.samples
        loss, accuracy = self._evaluated(module, samples.x_test, samples.y_test, torch.arange(len(samples.y_test)))
        return {
            "kind": "training",
            "study": "explicit",
            "dataset": samples.name,
            "network": network,
            "start": start,
            "rate": rate,  # None where the network was solved, and no step was taken
            "step": step,
            "seconds": seconds,
            "test_loss": loss,
            "test_accuracy": accuracy,
            "seed": self.seed,
        }


def train(
    samples: Samples,
    out: Path,
    *,
    hidden: int | None = None,
    steps: int = 10,
    scale: float = 32.0,
    offset: float | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Solve one layer and two from counts, then train both by Adam beside a random start; leaves all in a folder.

    Writes metrics.jsonl (test cross-entropy and accuracy after each step), model.pt (`state_dict`s of "one layer" and
    "two layers" as solved in `solved`, and after the steps in `trained`; `config`, whose scale and offset make rows
    K (x + o) / Σ (x + o); loads with weights_only=True), training.png (where matplotlib is installed), checkpoint.pt.
    Ctrl-C ends after the stage under way: one of the two solutions, or one start's steps.

    Args:
        hidden: H of two layers; by default 1000 from 10,000 samples on, else four a class.
        steps: of Adam, on 1,024 samples each; its rate is the best of four on a tenth of the training samples.
        scale, offset: of the rows; by default the offset is 1/8 of a tensor's largest entry, and 0 of sparse rows.
        seed: of k-means, samples held out, batches and the random start.
    Returns:
        The summary: `rows` of metrics.jsonl, the files, whether it was interrupted.
    Raises:
        ValueError: settings that do not fit the data.  DataError: a class without samples.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    if steps < 0:
        raise ValueError(f"train: steps is {steps}; expected at least 0")
    if len(samples.y_train.unique()) != samples.classes:
        raise DataError(
            f"{samples.name}: a label below {samples.classes} has no training sample; expected some of each"
        )
    if hidden is None:
        hidden = 1000 if len(samples.y_train) >= 10_000 else 4 * samples.classes
    if offset is None:
        offset = float(samples.x_train.max()) / 8 if isinstance(samples.x_train, Tensor) else 0.0
    config = {
        "dataset": samples.name,
        "samples": len(samples.y_train),
        "features": samples.features,
        "classes": samples.classes,
        "hidden": hidden,
        "steps": steps,
        "scale": scale,
        "offset": offset,
        "seed": seed,
    }
    run = Run(out, config, resume)
    stages = _Stages(samples, hidden, steps, scale, offset, seed)
    done = 0
    if run.state is not None:
        done, stages.solved, stages.trained = (run.state[name] for name in ("done", "solved", "trained"))

    def advance() -> None:
        nonlocal done
        run.rows.extend(stages.run(stages.stages[done]))
        done += 1

    def tell() -> None:
        kind, network, start = stages.stages[min(done, len(stages.stages) - 1)]
        what = f"{network} by counting" if kind == "solve" else f"{network}, {start} start"
        progress(done, len(stages.stages), what)

    def snapshot() -> tuple[dict[str, Any], dict[str, Any]]:
        networks = {"solved": stages.solved, "trained": stages.trained}
        return {"done": done, **networks}, networks

    run.go(is_done=lambda: done == len(stages.stages), advance=advance, snapshot=snapshot, plot=plot_starts, tell=tell)
    return {**config, "rows": run.rows, "interrupted": done < len(stages.stages), "files": run.files}


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary that `train` returned, for people."""
    rows, sizes = summary["rows"], f"{summary['features']} features, {summary['classes']} classes"
    lines = [f"data           {summary['dataset']}: {summary['samples']} training samples, {sizes}"]
    names = {"one layer": "one layer", "two layers": f"two layers of subclasses, {summary['hidden']} hidden units"}
    for network, name in names.items():
        for row in rows:
            if row["network"] == network and row["rate"] is None:
                lines.append(
                    f"no step        {name}: {row['test_accuracy']:.2%} of the test samples, "
                    f"cross-entropy {row['test_loss']:.3f}, {row['seconds']:.3g} s"
                )
    for network in names:
        ends = {row["start"]: row for row in rows if row["network"] == network and row["rate"] is not None}
        if ends:
            starts = "; ".join(
                f"{start} start {row['test_accuracy']:.2%}, cross-entropy {row['test_loss']:.3f} (rate {row['rate']:g})"
                for start, row in ends.items()
            )
            lines.append(f"{summary['steps']} Adam steps".ljust(15) + f"{network}: {starts}")
    if summary["interrupted"]:
        lines.append("interrupted    --resume goes on with the next stage")
    return [*lines, f"files          {'  '.join(summary['files'])}"]
