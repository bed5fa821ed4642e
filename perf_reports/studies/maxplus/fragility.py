"""Which single pixel turns an image: the fragility of a max-plus network, beside the gradient of an equally good MLP.

    python -m tropigrad.perf_reports.studies.maxplus.fragility OUT --data digits    writes fragility.jsonl, .png
    python -m tropigrad.perf_reports.studies.maxplus.fragility OUT --data mnist:DIR
    … --train-a          of a network whose A is trained as well

The network starts as k-medoids and is trained by Adam on mini-batches of the mean cross-entropy of 8 f. The MLP, of one
hidden layer, is trained until it is as often right on the test samples, and no further. Of every class the first
test sample is drawn that both are right about, whether a pixel turns it or not. Pixels stay within [0, 1].

A max-plus network's map is a statement: this pixel, changed by so much, gives that class, and no other does with
less. The MLP's is a slope at the image, which says nothing of a change of any size.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....nn import Fragility, LinearMinMax, fragility
from ....whole_files import replace
from ... import output
from ...data import DataError, Dataset, load
from ...environment import machine
from ..runs import write_metrics

BATCH, TEMPERATURE = 128, 8.0
LIMITS = (0.25, 0.5, 0.75, 1.0)  # of a change, for the shares of samples that are recorded


class Settings(NamedTuple):
    """How the two are trained; medoids are sought among so many samples."""

    hidden: int
    epochs: int
    rate: float
    medoids_of: int
    mlp: int


SETTINGS = {
    ("digits", False): Settings(100, 30, 0.003, 2000, 32),
    ("digits", True): Settings(100, 30, 0.001, 2000, 32),
    ("mnist", False): Settings(200, 4, 0.003, 6000, 64),
    ("mnist", True): Settings(200, 3, 0.001, 6000, 64),
}


class Shown(NamedTuple):
    """A test sample that is drawn."""

    index: int
    label: int
    image: Tensor  # [d]
    change: Tensor  # [d]
    classes: Tensor  # [d]
    saliency: Tensor  # [d]: how the MLP's margin falls with each pixel


def trained_network(dataset: Dataset, settings: Settings, train_a: bool) -> LinearMinMax:
    """A linear-min-max network from its k-medoids, by Adam."""
    torch.manual_seed(0)
    network = LinearMinMax(dataset.features, settings.hidden, dataset.classes, train_a=train_a)
    few = torch.randperm(len(dataset.x_train))[: settings.medoids_of]
    network.init_kmedoids(dataset.x_train[few], dataset.y_train[few])
    optimizer = torch.optim.Adam([w for w in network.parameters() if w.requires_grad], settings.rate)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(dataset.x_train)).split(BATCH):
            optimizer.zero_grad()
            scores = TEMPERATURE * network(dataset.x_train[batch])
            functional.cross_entropy(scores, dataset.y_train[batch]).backward()
            optimizer.step()
    return network


def equal_mlp(dataset: Dataset, hidden: int, accuracy: float, epochs: int = 300) -> nn.Sequential:
    """An MLP that was trained until its test accuracy was no less, or for so many epochs."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(dataset.features, hidden), nn.ReLU(), nn.Linear(hidden, dataset.classes))
    optimizer = torch.optim.Adam(mlp.parameters(), 0.001)
    for _ in range(epochs):
        for step, batch in enumerate(torch.randperm(len(dataset.x_train)).split(BATCH)):
            optimizer.zero_grad()
            functional.cross_entropy(mlp(dataset.x_train[batch]), dataset.y_train[batch]).backward()
            optimizer.step()
            if step % 5 == 4 and accuracy_of(mlp, dataset) >= accuracy:
                return mlp
    return mlp


@torch.no_grad()
def accuracy_of(model: nn.Module, dataset: Dataset) -> float:
    return (model(dataset.x_test).argmax(dim=1) == dataset.y_test).float().mean().item()


def saliency(mlp: nn.Module, x: Tensor) -> Tensor:
    """−∂(score of the class − best other score)/∂x of each image [N, d]."""
    x = x.clone().requires_grad_()
    best = mlp(x).topk(2, dim=1).values
    return -torch.autograd.grad((best[:, 0] - best[:, 1]).sum(), x)[0]


def shown(dataset: Dataset, network: LinearMinMax, mlp: nn.Module, fragile: Fragility) -> list[Shown]:
    """The first test sample of every class that both models are right about."""
    with torch.no_grad():
        right = torch.stack([model(dataset.x_test).argmax(dim=1) == dataset.y_test for model in (network, mlp)]).all(0)
    samples = []
    for label in range(dataset.classes):
        of_class = (right & (dataset.y_test == label)).nonzero().flatten().tolist()
        for n in of_class[:1]:
            x = dataset.x_test[n]
            samples.append(Shown(n, label, x, fragile.change[n], fragile.classes[n], saliency(mlp, x[None])[0]))
    return samples


def study(data: str, train_a: bool) -> tuple[list[dict[str, Any]], list[Shown], Tensor]:
    """Records, the samples to draw, and |change| of the test samples that the network is right about."""
    dataset = load(data)
    name = data.partition(":")[0]
    settings = SETTINGS[name, train_a]
    network = trained_network(dataset, settings, train_a)
    accuracy = accuracy_of(network, dataset)
    mlp = equal_mlp(dataset, settings.mlp, accuracy)
    wall, thread = time.perf_counter(), time.thread_time()
    fragile = fragility(network, dataset.x_test, box=(0.0, 1.0))
    seconds = {"seconds": time.perf_counter() - wall, "thread_seconds": time.thread_time() - thread}
    with torch.no_grad():
        right = network(dataset.x_test).argmax(dim=1) == dataset.y_test
    sizes = fragile.change[right].abs()
    least = sizes.amin(dim=1)
    records: list[dict[str, Any]] = [
        {
            "kind": "network", "data": name, "hidden": settings.hidden, "train_a": train_a, "samples": len(right),
            "accuracy": accuracy, "mlp_accuracy": accuracy_of(mlp, dataset), "mlp_hidden": settings.mlp, **seconds,
            "turned_within": {str(limit): (least <= limit).float().mean().item() for limit in LIMITS},
            "turning_pixels": sizes.isfinite().float().mean().item(),
        }
    ]  # fmt: skip
    samples = shown(dataset, network, mlp, fragile)
    for sample in samples:
        pixel = int(sample.change.abs().argmin())
        at = sample.change[pixel].item()
        turns = {"pixel": pixel, "change": at, "becomes": int(sample.classes[pixel])} if math.isfinite(at) else {}
        records.append({"kind": "sample", "data": name, "index": sample.index, "label": sample.label, **turns})
    return records, samples, sizes


def draw(record: dict[str, Any], samples: Sequence[Shown], sizes: Tensor, path: Path) -> bool:
    """Images, their fragility and the MLP's gradient, above the shares; returns False without matplotlib."""
    try:
        from matplotlib.ticker import PercentFormatter

        from ...page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    side = math.isqrt(sizes.shape[1])
    with drawing(12, 6.9) as (figure, panel):
        panel.remove()
        above, below = figure.subfigures(2, 1, height_ratios=[1.55, 1])  # pyright: ignore
        for shown, panels in zip(samples, above.subplots(3, len(samples), squeeze=False).T, strict=True):
            plain, turns, slope = panels
            image = shown.image.view(side, side)
            plain.set_title(str(shown.label), loc="center", fontsize=11, fontweight="normal")
            _pixels(plain, image)
            inverse = 1 / shown.change.abs().clamp(min=1e-6)
            strength = torch.where(shown.change.isfinite(), torch.copysign(inverse, shown.change), 0)
            _pixels(turns, image, strength.view(side, side))
            pixel = int(shown.change.abs().argmin())
            text, color = "no pixel", COLOR["muted"]
            if shown.change[pixel].isfinite():
                text = f"{shown.change[pixel].item():+.2f} → {int(shown.classes[pixel])}".replace("-", "−")
                color = COLOR["ink"]
                ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.1}
                turns.plot(pixel % side, pixel // side, "o", markeredgecolor=color, **ring)
            turns.set_xlabel(text, fontsize=9.5, color=color)
            _pixels(slope, image, shown.saliency.view(side, side))
            if shown is samples[0]:
                for each, name in zip(panels, ("image", "max-plus\nfragility", "MLP\ngradient"), strict=True):
                    each.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        _shares(below.subplots(1, 2), sizes, COLOR, PercentFormatter(1, decimals=0))
        kind = "A trained" if record["train_a"] else "A fixed"
        above.suptitle(
            f"Pixels that turn an image alone: {_TITLES[record['data']]}, {record['hidden']} units, {kind}, accuracy "
            f"{record['accuracy']:.3f} (MLP {record['mlp_accuracy']:.3f})",
            x=0.008, ha="left", fontsize=12.5, fontweight="bold",
        )  # fmt: skip
        above.supxlabel(
            "Red: a brighter pixel turns the image; blue: a darker one. The stronger, the less is enough; ringed, with "
            "its change and the class it gives: the most fragile.",
            x=0.008, ha="left", fontsize=9.5, color=COLOR["muted"],
        )  # fmt: skip
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True


_TITLES = {"digits": "digits", "mnist": "MNIST"}


def _pixels(panel: Any, image: Tensor, signed: Tensor | None = None) -> None:
    """An image in grey, or pale below signed numbers: red above 0, blue below."""
    from matplotlib.colors import LinearSegmentedColormap

    grey = LinearSegmentedColormap.from_list("paper", ["#fffffe", "#1b1d21"])
    panel.imshow(image.numpy(), cmap=grey, vmin=0, vmax=1 if signed is None else 4.5)
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(visible=True, color="#dfe2e6")
    if signed is None or not signed.any():
        return
    colors = LinearSegmentedColormap.from_list("signs", [(0.03, 0.32, 0.65), (0.78, 0.1, 0.12)])
    strength = (signed.abs() / signed.abs().max()).sqrt()  # the eye is to tell weak from none
    panel.imshow(signed.sign().numpy(), cmap=colors, vmin=-1, vmax=1, alpha=strength.numpy())


def _shares(panels: Any, sizes: Tensor, color: dict[str, str], percent: Any) -> None:
    """How many samples one pixel turns within a limit, and how many pixels of a sample turn it."""
    least, pixels = panels
    nearest = [*filter(math.isfinite, sizes.amin(dim=1).sort().values.tolist())]
    share = [(k + 1) / len(sizes) for k in range(len(sizes))]
    turned = len(nearest)
    reached = turned / len(sizes)
    least.plot([0, *nearest, 1], [0, *share[:turned], reached], color=color["ours"], linewidth=1.8)
    least.set(xlim=(0, 1), ylim=(0, 1))
    least.set_title("Samples that one pixel can turn", fontsize=11)
    least.set_xlabel("by a change of at most")
    least.yaxis.set_major_formatter(percent)
    counts = sizes.isfinite().sum(dim=1).sort(descending=True).values.tolist()
    pixels.plot(share, counts, color=color["ours"], linewidth=1.8)
    pixels.set_yscale("symlog", linthresh=1)
    pixels.set(xlim=(0, 1), ylim=(0, sizes.shape[1]))
    pixels.yaxis.set_major_formatter("{x:g}")
    pixels.set_title("Pixels that turn a sample, each alone", fontsize=11)
    pixels.set_xlabel("share of the samples")
    pixels.xaxis.set_major_formatter(percent)
    for panel in panels:
        panel.grid(axis="y")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("perf_reports/out"))
    parser.add_argument("--data", default="digits", metavar="digits|mnist:DIR")
    parser.add_argument("--train-a", action="store_true", help="train A as well")
    chosen = parser.parse_args(arguments)
    if (chosen.data.partition(":")[0], chosen.train_a) not in SETTINGS:
        parser.error(f"--data is {chosen.data!r}; expected digits or mnist:DIR")
    try:
        records, samples, sizes = study(chosen.data, chosen.train_a)
    except DataError as error:
        parser.error(str(error))
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_metrics(chosen.out / "fragility.jsonl", [{"kind": "run", "machine": machine()}, *records])
    network = records[0]
    turned = ", ".join(f"{share:.1%} within {limit}" for limit, share in network["turned_within"].items())
    print(f"accuracy {network['accuracy']:.4f}, MLP {network['mlp_accuracy']:.4f}; one pixel turns {turned}")
    print(
        f"{network['samples']} samples in {network['seconds']:.3g} s ({network['thread_seconds']:.3g} s of its thread)"
    )
    if draw(network, samples, sizes, chosen.out / "fragility.png"):
        print(chosen.out / "fragility.png")


if __name__ == "__main__":
    output.take_any_encoding()
    main(sys.argv[1:])
