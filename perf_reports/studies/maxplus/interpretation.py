"""The units and the pixels that decide: a linear-min-max network read from its winners.

    python -m tropigrad.perf_reports.studies.maxplus.interpretation OUT [--data digits|mnist:DIR] [--hidden Q] \
        [--epochs E] [--seed S]

A score is one path: f_nk = u_nj + W2_kj by the unit j that wins for class k, and u_nj = z_ni + W1_ji by the leaf i that
wins for the unit. With A = λ[I; −I] a unit is a box around an image, from −W1_ji / λ (below it ink is missing) to
W1_j,d+i / λ (above it there is too much), and the leaf is the pixel that lies farthest outside. So for each sample and
class there is one image and one pixel that say why the score is not higher. Units that never win on the training
samples are removed by `prune_units`, and no training output changes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ....kernels import tropical_matmul
from ....nn import LinearMinMax, MaxPlusMLP, PrunedUnits, prune_units
from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ...environment import machine, versions
from ..runs import write_metrics

TEMPERATURE = 1 / 8  # by which the scores are divided in the cross-entropy
BATCH = 128
SHOWN = 12  # units of a class in the picture
SAMPLES = 6


@dataclass(frozen=True)
class Setting:
    """Sizes of the networks and how they are trained."""

    hidden: int
    epochs: int
    rate: float = 3e-3


SETTINGS = {"digits": Setting(hidden=100, epochs=80), "mnist": Setting(hidden=200, epochs=6)}


# ------------------------------------------------------------------------------------------------ the networks


def trained(dataset: Dataset, setting: Setting, seed: int) -> LinearMinMax:
    """A network from its medoids, A fixed, trained by mini-batches on the mean cross-entropy of f / temperature."""
    model = LinearMinMax(dataset.features, setting.hidden, dataset.classes, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    samples = min(2048, len(dataset.y_train) // dataset.classes)
    model.init_kmedoids(
        dataset.x_train, dataset.y_train, scale=1.0, margin=1.0, max_samples=max(256, samples // 5), generator=generator
    )
    _train(model, dataset, setting, generator, TEMPERATURE)
    return model


def trained_mlp(dataset: Dataset, setting: Setting, seed: int) -> MaxPlusMLP:
    """One block, Linear → MaxPlus, with as many units: the network of which Zhang et al. removed filters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaxPlusMLP(dataset.features, setting.hidden, dataset.classes, device="cpu")
    _train(model, dataset, setting, torch.Generator().manual_seed(seed), 1.0)
    return model


def _train(
    model: torch.nn.Module, dataset: Dataset, setting: Setting, order: torch.Generator, temperature: float
) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=setting.rate)
    steps = setting.epochs * math.ceil(len(dataset.y_train) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(setting.epochs):
        for rows in torch.randperm(len(dataset.y_train), generator=order, device="cpu").split(BATCH):
            loss = functional.cross_entropy(model(dataset.x_train[rows]) / temperature, dataset.y_train[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


# ------------------------------------------------------------------------------------------------ the winners


@dataclass(frozen=True, eq=False)
class Decisions:
    """Scores of samples, with the path that each took: [N, K] each."""

    scores: Tensor
    units: Tensor  # the unit that won for the class
    leaves: Tensor  # the leaf that won for this unit: pixel i, or d + i

    @property
    def classes(self) -> Tensor:
        """[N], the class of the largest score."""
        return self.scores.argmax(dim=1)

    def deciding_units(self) -> Tensor:
        """[N], the unit that made the largest score."""
        return self.units.gather(1, self.classes[:, None])[:, 0]

    def deciding_leaves(self) -> Tensor:
        """[N], its leaf."""
        return self.leaves.gather(1, self.classes[:, None])[:, 0]


@torch.no_grad()
def decisions(model: LinearMinMax, x: Tensor, batch: int = 4096) -> Decisions:
    """The winners of a network on x [N, d]."""
    parts = []
    for rows in x.split(batch):
        u, leaves = tropical_matmul(model.linear(rows), model.W1.T, semiring="min_plus", return_indices=True)
        scores, units = tropical_matmul(u, model.W2.T, return_indices=True)
        parts.append((scores, units, leaves.gather(1, units)))
    return Decisions(*(torch.cat(part) for part in zip(*parts, strict=True)))


def images(model: LinearMinMax) -> Tensor:
    """[q, d], the middle of each unit's box: at the start its medoid. A is λ[I; −I]."""
    d = model.in_features
    scale = model.A[0, 0].detach()
    return (model.W1[:, d:] - model.W1[:, :d]).detach() / (2 * scale)


# ------------------------------------------------------------------------------------------------ the records


def accuracy(scores: Tensor, y: Tensor) -> float:
    return (scores.argmax(dim=1) == y).double().mean().item()


@torch.no_grad()
def pruning_record(network: str, model: torch.nn.Module, pruned: PrunedUnits[Any], dataset: Dataset) -> dict[str, Any]:
    """A line of the records: what pruning removed of a network, and its accuracies before and after."""
    before, after = model(dataset.x_test), pruned.model(dataset.x_test)
    return {
        "kind": "pruning",
        "network": network,
        "dataset": dataset.name,
        "train_accuracy": accuracy(model(dataset.x_train), dataset.y_train),
        "test_accuracy": accuracy(before, dataset.y_test),
        "test_accuracy_after": accuracy(after, dataset.y_test),
        "test_predictions_changed": int((before.argmax(dim=1) != after.argmax(dim=1)).sum()),
        "parameters": pruned.parameters[0],
        "parameters_after": pruned.parameters[1],
        "layers": {
            name: {
                "inputs": pruned.wins[name].shape[1],
                "kept": len(kept),
                "weights": pruned.weights[name],
                "winning_weights": pruned.winning_weights[name],
            }
            for name, kept in pruned.kept.items()
        },
    }


def chosen_samples(made: Decisions, y: Tensor) -> list[int]:
    """Samples to show: of each of some classes the one decided by the least, and one that is decided wrongly."""
    best = made.scores.topk(2, dim=1).values
    lead = best[:, 0] - best[:, 1]
    is_right = made.classes == y
    shown: list[int] = []
    classes = [int(c) for c in y.unique()]
    for label in classes[:: max(1, len(classes) // (SAMPLES - 1))][: SAMPLES - 1]:
        rows = (is_right & (y == label)).nonzero()[:, 0]
        if len(rows):  # the median lead: neither the easiest nor the hardest
            shown.append(int(rows[lead[rows].argsort()[len(rows) // 2]]))
    wrong = (~is_right).nonzero()[:, 0]
    if len(wrong):
        shown.append(int(wrong[lead[wrong].argmax()]))
    return shown


# ------------------------------------------------------------------------------------------------ the picture


def draw(model: LinearMinMax, dataset: Dataset, pruned: PrunedUnits[LinearMinMax], path: Path) -> None:
    """Units that decide, by class; pixels that decide; what pruning leaves; and samples with their ten reasons."""
    from matplotlib.colors import LinearSegmentedColormap

    from ...page.figures import COLOR, drawing

    ink = LinearSegmentedColormap.from_list("ink", ["#ffffff", COLOR["ink"]])
    on_test = decisions(model, dataset.x_test)
    pictures = images(model).clamp(0, 1)
    side = math.isqrt(model.in_features)
    shown = chosen_samples(on_test, dataset.y_test)
    with drawing(11.5, 6.2 + 1.18 * len(shown)) as (figure, spare):
        spare.remove()
        upper, lower = figure.subfigures(
            2,
            1,  # pyright: ignore
            height_ratios=[5.4, 1.18 * len(shown) + 0.8],
            hspace=0.02,
        )
        left, right = upper.subfigures(1, 2, width_ratios=[6.6, 4.9])
        _draw_units(left.subplots(), on_test, pictures, side, ink, COLOR)
        _draw_pixels(right, on_test, pruned, model, side, COLOR)
        _draw_samples(lower, dataset, on_test, shown, pictures, side, ink, COLOR)
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=150))


def _draw_units(panel: Any, made: Decisions, pictures: Tensor, side: int, ink: Any, color: dict[str, str]) -> None:
    classes, units = made.classes, made.deciding_units()
    gap = max(1, side // 8)
    pitch = side + gap
    K = made.scores.shape[1]
    orders = []
    for label in range(K):
        counts = torch.bincount(units[classes == label], minlength=len(pictures))
        order = counts.argsort(descending=True, stable=True)
        orders.append(order[counts[order] > 0])
    width = min(SHOWN, max(map(len, orders)))
    sheet = torch.full((K * pitch - gap, width * pitch - gap), float("nan"))
    for label, order in enumerate(orders):
        for place, unit in enumerate(order[:SHOWN].tolist()):
            rows, columns = slice(label * pitch, label * pitch + side), slice(place * pitch, place * pitch + side)
            sheet[rows, columns] = pictures[unit].reshape(side, side)
        more = len(order) - SHOWN
        if more > 0:
            panel.text(sheet.shape[1] + gap, label * pitch + side / 2, f"+{more}", va="center", color=color["muted"])
        panel.text(-gap * 2, label * pitch + side / 2, label, va="center", ha="right", weight="bold", size=12)
    panel.imshow(sheet.numpy(), cmap=ink, vmin=0, vmax=1, interpolation="nearest")
    panel.set_axis_off()
    panel.set_title("Units that decide, the most frequent first")


def _draw_pixels(
    figure: Any, made: Decisions, pruned: PrunedUnits[LinearMinMax], model: LinearMinMax, side: int, color: Any
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    d = model.in_features
    counts = torch.bincount(made.deciding_leaves(), minlength=2 * d).float().view(2, side, side)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.35, 1])
    for place, (name, hue) in enumerate((("too little ink", "ours"), ("too much ink", "dense"))):
        panel = figure.add_subplot(grid[0, place])
        shades = LinearSegmentedColormap.from_list(name, ["#ffffff", color[hue]])
        panel.imshow(
            counts[place].sqrt().numpy(), cmap=shades, vmin=0, vmax=counts.max().sqrt().item(), interpolation="nearest"
        )
        panel.set_xticks([])
        panel.set_yticks([])
        for spine in panel.spines.values():
            spine.set_visible(True)
            spine.set_color(color["grid"])
        share = counts[place].sum() / counts.sum()
        panel.set_xlabel(f"{name}: {share:.0%}", color=color[hue])
        if place == 0:
            panel.set_title("Pixels that decide")
    panel = figure.add_subplot(grid[1, :])
    W1, W2 = pruned.kept["W1"], pruned.kept["W2"]
    before, after = pruned.parameters
    bars = (
        ("units", len(W2), pruned.wins["W2"].shape[1]),
        ("leaves", len(W1), pruned.wins["W1"].shape[1]),
        ("parameters", after, before),
        ("weights that win", pruned.winning_weights["W1"], pruned.weights["W1"]),
    )
    for row, (_, kept, total) in enumerate(bars):
        panel.barh(row, 1, color=color["grid"], height=0.56)
        panel.barh(row, kept / total, color=color["peer"], height=0.56)
        panel.text(1.03, row, f"{kept:,} of {total:,}", va="center", size=9)
    panel.set_yticks(range(len(bars)), [name for name, *_ in bars])
    panel.set_ylim(len(bars) - 0.5, -0.5)
    panel.set_xlim(0, 1.7)
    panel.set_xticks([])
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_title("What is left when all that never wins is removed", x=-0.3)


def _draw_samples(
    figure: Any,
    dataset: Dataset,
    made: Decisions,
    shown: Sequence[int],
    pictures: Tensor,
    side: int,
    ink: Any,
    color: dict[str, str],
) -> None:
    from matplotlib.lines import Line2D

    K, d = made.scores.shape[1], side * side
    panels = figure.subplots(len(shown), K + 1, squeeze=False)
    marker = {"marker": "o", "s": 60, "facecolors": "none", "linewidths": 1.8}
    for row, sample in enumerate(shown):
        says, truth = int(made.classes[sample]), int(dataset.y_test[sample])
        for column in range(K + 1):
            panel, label = panels[row, column], column - 1
            picture = dataset.x_test[sample] if column == 0 else pictures[made.units[sample, label]]
            panel.imshow(picture.reshape(side, side).numpy(), cmap=ink, vmin=0, vmax=1, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            for spine in panel.spines.values():
                spine.set_visible(True)
                spine.set_color(color["grid"])
            if column == 0:
                is_right = says == truth
                text = f"a {truth}" if is_right else f"a {truth}, read as {says}"
                panel.set_xlabel(text, size=9, weight="bold", color=color["ink" if is_right else "dense"])
                marks = [says]
            else:
                score = f"{label}: {made.scores[sample, label]:.2f}".replace("-", "−")
                is_first = label == says
                panel.set_xlabel(score, size=9, weight="bold" if is_first else "normal",
                                 color=color["peer" if is_first else "muted"])  # fmt: skip
                if is_first:
                    for spine in panel.spines.values():
                        spine.set_color(color["peer"])
                        spine.set_linewidth(2.2)
                marks = [label]
            for of_class in marks:
                leaf = int(made.leaves[sample, of_class])
                hue = color["ours" if leaf < d else "dense"]
                panel.scatter(leaf % d % side, leaf % d // side, edgecolors=hue, **marker)
    figure.suptitle(
        "Samples, and for each class the unit and the pixel that set its score",
        x=0.012,
        ha="left",
        weight="bold",
        size=12,
    )
    hues = ("ours", "the sample has too little ink there"), ("dense", "too much")
    rings = [Line2D([], [], linestyle="", marker="o", markersize=8, markerfacecolor="none", markeredgewidth=1.8,
                    markeredgecolor=color[hue], label=text) for hue, text in hues]  # fmt: skip
    figure.legend(handles=rings, loc="outside lower left", ncols=2, handletextpad=0.2)


# ------------------------------------------------------------------------------------------------ the command


def run(dataset: Dataset, setting: Setting, seed: int, out: Path) -> list[dict[str, Any]]:
    """Train, prune, and draw to OUT/interpretation-<data set>.png; returns the records."""
    model = trained(dataset, setting, seed)
    pruned = prune_units(model, dataset.x_train)
    mlp = trained_mlp(dataset, setting, seed)
    rows = [
        pruning_record("linear-min-max", model, pruned, dataset),
        pruning_record("Linear → MaxPlus", mlp, prune_units(mlp, dataset.x_train), dataset),
    ]
    made = decisions(model, dataset.x_test)
    for sample in chosen_samples(made, dataset.y_test):
        rows.append(
            {
                "kind": "decision",
                "dataset": dataset.name,
                "sample": sample,
                "label": int(dataset.y_test[sample]),
                "class": int(made.classes[sample]),
                "scores": made.scores[sample].tolist(),
                "units": made.units[sample].tolist(),
                "leaves": made.leaves[sample].tolist(),
            }
        )
    out.mkdir(parents=True, exist_ok=True)
    draw(model, dataset, pruned, out / f"interpretation-{dataset.name}.png")
    return rows


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The prunings in words."""
    text = []
    for r in (r for r in rows if r["kind"] == "pruning"):
        layers = "; ".join(
            f"{name} {layer['kept']:,} of {layer['inputs']:,} inputs, "
            f"{layer['winning_weights']:,} of {layer['weights']:,} weights win"
            for name, layer in r["layers"].items()
        )
        text.append(
            f"{r['network']}, {r['dataset']}: {layers}; {r['parameters_after']:,} of {r['parameters']:,} parameters; "
            f"test accuracy {r['test_accuracy']:.2%} → {r['test_accuracy_after']:.2%} "
            f"({r['test_predictions_changed']} predictions changed)"
        )
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/interpretation-<data set>.jsonl and .png."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.maxplus.interpretation",
        description="The units and pixels that decide, and how many units never do.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="digits", help="digits or mnist:DIR")
    parser.add_argument("--hidden", type=int, help="units")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    name = asked.data.partition(":")[0]
    if name not in SETTINGS:
        parser.error(f"got {asked.data!r}; expected digits or mnist:DIR")
    setting = SETTINGS[name]
    setting = Setting(asked.hidden or setting.hidden, asked.epochs or setting.epochs, setting.rate)
    try:
        dataset = data.load(asked.data, seed=asked.seed)
    except DataError as error:
        parser.error(str(error))
    rows = run(dataset, setting, asked.seed, asked.out)
    header = {"kind": "run", "machine": machine(), "versions": versions(), "seed": asked.seed, **asdict(setting)}
    write_metrics(asked.out / f"interpretation-{dataset.name}.jsonl", [header, *rows])
    print("\n".join(lines(rows)))
    print(json.dumps([str(asked.out / f"interpretation-{dataset.name}.{kind}") for kind in ("jsonl", "png")]))
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
