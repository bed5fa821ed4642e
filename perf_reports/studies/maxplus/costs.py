"""What an iteration on the worst sample costs, over the samples N, the leaves p and the units q.

Dense evaluation is N q p steps. A winner cache looks at N samples for each of four moved weights and reads p or q
leaves again for a few of them; a tree replays log p matches. The network is a nearest-medoid classifier of random
points, from its start, so that all sizes are trained alike: Polyak's steps, hinge.

    python -m tropigrad.perf_reports.studies.maxplus.costs [OUT]     writes costs.jsonl and iteration-costs.png
    python -m tropigrad.perf_reports.studies.maxplus.costs OUT --mnist DIR    real data instead, to runs.jsonl
    … --device cuda                                                          the caches in Triton, on a GPU
    python -m tropigrad.perf_reports.studies.maxplus.costs OUT --batches     training by mini-batches, to batches.jsonl
    python -m tropigrad.perf_reports.studies.maxplus.costs OUT --mnist DIR --shares 1 0.1 0.01    to shares.jsonl

The second measures the digits, q = 300, and MNIST, q = 100, from their k-medoids: an iteration costs most at first,
where many samples tie, so stretches of the run are told apart. Processor time is of all threads, theirs that wait too.

Mini-batches: forward, backward and step of the mean cross-entropy, with sparse gradients and with dense ones. The
methods take turns on one thread, and times are its processor time, which others on the machine disturb least.

Shares: iterations on the mean of the worst share α of MNIST's samples, in turns with those on the worst one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ....nn import LinearMinMax, WorstSampleLoss
from ....optim import SparseMaxPlus
from ....optim.worst_sample import Dense, Samples, Settings, Sparse, State, Weights, activate, beginning
from ....optim.worst_sample.by_triton import Cached
from ... import output
from ...data import Dataset, load, read_mnist
from ...environment import machine
from ...measuring.memory import peak_memory

SIZES = {
    "N": [(N, 128, 100) for N in (1000, 3000, 10_000, 30_000, 100_000)],
    "p": [(10_000, p, 100) for p in (32, 128, 512, 2048)],
    "q": [(10_000, 128, q) for q in (10, 30, 100, 300, 1000)],
}
REPEATS, WARM_UP, ITERATIONS = 7, 20, 20  # each sample is the mean of so many iterations; of one, where dense
TREES_UP_TO = 1 << 28  # N q p: two bytes each
SCALE, MARGIN = 64.0, 4.0
STRETCHES, EACH = (0, 100, 200, 400, 600), 10  # bounds in iterations; so many make a sample
BATCH, LEAVES, UNITS, BATCHES = 128, 1568, 300, 200  # of mini-batch training
SHARE_STRETCHES, EACH_OF_SHARE = (0, 100, 200), 5
EACH_ON_GPU = 50  # more than a call's look at the run takes, and a graph's fill


def run_of(N: int, p: int, q: int, classes: int = 10, device: str = "cpu") -> State:
    """Random points of [0, 1]^d, d = p / 2, with the class of the nearest of 100 centres; q of them are the units."""
    generator = torch.Generator().manual_seed(0)
    d = p // 2
    centres = torch.rand(100, d, generator=generator, device="cpu")
    x = torch.rand(N, d, generator=generator, device="cpu")
    y = (torch.cdist(x, centres).argmin(dim=1) % classes).int()
    medoids = torch.randperm(N, generator=generator, device="cpu")[:q]
    model = LinearMinMax(d, q, classes)
    model._set_scale(SCALE)
    m = SCALE * x[medoids]
    own = y[medoids] == torch.arange(classes, device="cpu")[:, None]
    w2 = torch.where(own, 0.0, -2 * (SCALE + MARGIN))
    return begun(Weights(model.A.detach(), torch.cat([-m, m], dim=1), w2), x, y, device)


def begun(weights: Weights, x: torch.Tensor, y: torch.Tensor, device: str, share: float | None = None) -> State:
    settings = Settings(margin=MARGIN, alpha=share)
    own, best = (Weights(*(w.to(device, copy=True) for w in weights)) for _ in range(2))
    samples = Samples(x.to(device), y.int().to(device), len(x))
    times_worst = torch.zeros(len(x), dtype=torch.int64, device=device)
    return State(settings, samples, own, best, None, beginning(settings), times_worst)


def loop_of(method: str, state: State) -> Dense | Sparse:
    if method in ("fused dense", "winners on a GPU"):
        return (Dense if method == "fused dense" else Cached)(state, activate)
    return Sparse(state, method)


def measure(sizes: dict[str, list[tuple[int, int, int]]] = SIZES, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """One record a method and size: raw samples of seconds per iteration, and their median."""
    for axis, points in sizes.items():
        for N, p, q in points:
            for method in (
                ("winners", "trees", "fused dense") if device == "cpu" else ("winners on a GPU", "fused dense")
            ):
                if method == "trees" and N * q * p > TREES_UP_TO:
                    continue
                dense = method == "fused dense"
                loop = loop_of(method, run_of(N, p, q, device=device))
                iterations = 1 if dense else ITERATIONS if device == "cpu" else EACH_ON_GPU
                loop.run(1 if dense else WARM_UP, torch.zeros(WARM_UP, dtype=torch.float64, device="cpu"))
                samples = []
                for _ in range(REPEATS):
                    start = time.perf_counter()
                    done = loop.run(iterations, torch.zeros(iterations, dtype=torch.float64, device="cpu"))
                    if done < iterations:
                        break
                    samples.append((time.perf_counter() - start) / done)
                if samples:
                    yield {
                        "kind": "iteration_cost",
                        "axis": axis,
                        "method": method,
                        "N": N,
                        "p": p,
                        "q": q,
                        "seconds": samples,
                        "median": statistics.median(samples),
                        "least": min(samples),
                    }


def measure_run(dataset: Dataset, hidden: int, autograd: bool, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """One record a method and stretch: raw samples of wall seconds per iteration, and the mean processor seconds."""
    x, y = dataset.x_train, dataset.y_train
    model = LinearMinMax(dataset.features, hidden, dataset.classes)
    generator = torch.Generator().manual_seed(0)
    model.init_kmedoids(x, y, SCALE, margin=MARGIN, generator=generator)
    weights = Weights(model.A.detach(), model.W1.detach(), model.W2.detach())

    def record(method: str, iterations: str, samples: list[float], processor: float) -> dict[str, Any]:
        named = {"kind": "run_cost", "data": dataset.name, "hidden": hidden, "method": method, "iterations": iterations}
        return named | {"seconds": samples, "median": statistics.median(samples), "processor": processor}

    def timed(work: Callable[[], int], repeats: int) -> tuple[list[float], float]:
        """work: returns how many iterations it did; none where the run has ended."""
        samples, processor = [], time.process_time()
        for _ in range(repeats):
            start = time.perf_counter()
            if (done := work()) == 0:
                break
            samples.append((time.perf_counter() - start) / done)
        return samples, time.process_time() - processor

    method, each = ("winners", EACH) if device == "cpu" else ("winners on a GPU", EACH_ON_GPU)
    if device != "cpu":  # its kernels compile
        loop_of(method, begun(weights, x, y, device)).run(1, torch.zeros(1, dtype=torch.float64, device="cpu"))
    loop = loop_of(method, begun(weights, x, y, device))
    for begin, end in pairwise(STRETCHES):
        samples, processor = timed(
            lambda: loop.run(each, torch.zeros(each, dtype=torch.float64, device="cpu")), (end - begin) // each
        )
        if not samples:  # the run has ended
            break
        done = loop.state.progress.iteration - begin
        yield record(method, f"{begin}-{begin + done}", samples, processor / done)
    dense = Dense(begun(weights, x, y, device), activate)
    samples, processor = timed(lambda: dense.run(1, torch.zeros(1, dtype=torch.float64, device="cpu")), REPEATS)
    if samples:
        yield record("fused dense", f"0-{len(samples)}", samples, processor / len(samples))
    if autograd:
        a, w1, w2 = (w.to(device, copy=True).requires_grad_() for w in weights)
        x, y = x.to(device), y.to(device)

        def iteration() -> int:
            u = ((x @ a.T)[:, None, :] + w1).min(dim=2).values
            WorstSampleLoss(MARGIN)((u[:, None, :] + w2).max(dim=2).values, y).backward()
            return 1

        samples, processor = timed(iteration, REPEATS)
        yield record("dense autograd", "0-1", samples, processor / REPEATS)


def measure_real(folder: Path, device: str = "cpu") -> Iterator[dict[str, Any]]:
    yield from measure_run(load("digits"), 300, autograd=True, device=device)
    yield from measure_run(read_mnist(folder), 100, autograd=False, device=device)  # whose candidates take 38 GB


OPTIMIZERS: dict[str, tuple[bool, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = {  # and whether sparse
    "sparse, SparseMaxPlus": (True, SparseMaxPlus),
    "sparse, SparseMaxPlus unchecked": (True, lambda parameters: SparseMaxPlus(parameters, check_finite=False)),
    "sparse, SparseAdam": (True, torch.optim.SparseAdam),
    "dense, Adam": (False, torch.optim.Adam),
    "dense, Adam foreach": (False, lambda parameters: torch.optim.Adam(parameters, foreach=True)),
    "dense, Adam fused": (False, lambda parameters: torch.optim.Adam(parameters, fused=True)),
}


def measure_batches(
    batch: int = BATCH, p: int = LEAVES, q: int = UNITS, batches: int = BATCHES, classes: int = 10
) -> Iterator[dict[str, Any]]:
    """One record a method and part of a step: raw samples of processor seconds, of one thread, and the peak memory.

    "gradient + step" is backward and step. The peak is that of the first step with the moments that it makes, beyond
    the weights and the data.
    """
    state = run_of(batch * 8, p, q, classes)
    x, y = state.samples.x[:batch], state.samples.y[:batch].long()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for trained in (False, True):
            runs, peaks = {}, {}
            for method, (sparse, make) in OPTIMIZERS.items():
                model = LinearMinMax(p // 2, q, classes, train_a=trained, sparse=sparse)
                for own, start in zip((model.A, model.W1, model.W2), state.weights, strict=True):
                    own.data.copy_(start / SCALE)
                runs[method] = model, make([w for w in model.parameters() if w.requires_grad])
                memory = peak_memory(lambda run=runs[method]: (torch.tensor(_timed_step(run, x, y)),))[1]
                peaks[method] = None if memory is None else memory.peak_bytes
            times: dict[str, list[tuple[float, ...]]] = {method: [] for method in runs}
            for _ in range(batches):
                for method, run in runs.items():
                    times[method].append(_timed_step(run, x, y))
            for method, samples in times.items():
                for part, seconds in zip(PARTS, map(list, zip(*samples, strict=True)), strict=True):
                    yield {
                        "kind": "batch_cost",
                        "method": method,
                        "A": "trained" if trained else "fixed",
                        "part": part,
                        "batch": batch,
                        "p": p,
                        "q": q,
                        "classes": classes,
                        "seconds": seconds,
                        "median": statistics.median(seconds),
                        "least": min(seconds),
                        "peak_bytes": peaks[method],
                    }
    finally:
        torch.set_num_threads(threads)


PARTS = ("forward", "backward", "step", "gradient + step")


def _timed_step(run: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[float, ...]:
    """The processor seconds of each of PARTS, of one step of a run: a model and its optimizer."""
    model, optimizer = run
    optimizer.zero_grad()
    begin = time.thread_time()
    loss = torch.nn.functional.cross_entropy(8 * model(x), y)
    forward = time.thread_time()
    loss.backward()
    backward = time.thread_time()
    optimizer.step()
    end = time.thread_time()
    return forward - begin, backward - forward, end - backward, end - forward


def measure_shares(
    dataset: Dataset, hidden: int, shares: list[float], bounds: tuple[int, ...] = SHARE_STRETCHES
) -> Iterator[dict[str, Any]]:
    """One record a share and stretch: raw samples of wall and of processor seconds per iteration.

    All runs begin at the same medoids and take turns, so that what else the machine does meets them alike.
    """
    x, y = dataset.x_train, dataset.y_train
    model = LinearMinMax(dataset.features, hidden, dataset.classes)
    model.init_kmedoids(x, y, SCALE, margin=MARGIN, generator=torch.Generator().manual_seed(0))
    weights = Weights(model.A.detach(), model.W1.detach(), model.W2.detach())
    loops: dict[float | None, Sparse] = {
        share: Sparse(begun(weights, x, y, "cpu", share), "winners") for share in (None, *shares)
    }
    for begin, end in pairwise(bounds):
        samples: dict[float | None, list[tuple[float, float]]] = {share: [] for share in loops}
        for _ in range((end - begin) // EACH_OF_SHARE):
            for share, loop in loops.items():
                start, processor = time.perf_counter(), time.process_time()
                done = loop.run(EACH_OF_SHARE, torch.zeros(EACH_OF_SHARE, dtype=torch.float64, device="cpu"))
                if done:
                    pair = time.perf_counter() - start, time.process_time() - processor
                    samples[share].append((pair[0] / done, pair[1] / done))
        worst = [statistics.median(column) for column in zip(*samples[None], strict=True)]
        for share, pairs in samples.items():
            if not pairs:  # the run has ended
                continue
            seconds, processors = (list(column) for column in zip(*pairs, strict=True))
            yield {
                "kind": "share_cost",
                "data": dataset.name,
                "hidden": hidden,
                "share": share,
                "iterations": f"{begin}-{end}",
                "seconds": seconds,
                "processor_seconds": processors,
                "median": statistics.median(seconds),
                "processor": statistics.median(processors),
                "times_worst_sample": statistics.median(processors) / worst[1] if worst else None,
                "threads": torch.get_num_threads(),
            }


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Three panels: the least time of an iteration over N, p and q."""
    from ...page.figures import COLOR, drawing

    colors = {"winners": COLOR["ours"], "trees": COLOR["other"], "fused dense": COLOR["dense"]}
    with drawing(10, 3.8, ncols=3) as (figure, panels):  # pyright: ignore
        for axis, panel in zip(SIZES, panels, strict=True):
            for method, color in colors.items():
                rows = [r for r in records if r["axis"] == axis and r["method"] == method]
                times = [r["least"] * 1e6 for r in rows]
                panel.loglog([r[axis] for r in rows], times, "o-", color=color, label=method, markersize=4)
            fixed = ", ".join(
                f"{name} = {value:,}" for name, value in zip("Npq", SIZES[axis][1], strict=True) if name != axis
            )
            panel.set_title(fixed)
            panel.set_xlabel(axis)
            panel.grid(axis="y")
        panels[0].set_ylabel("µs per iteration")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(path, dpi=160)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("perf_reports/out"))
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="a folder with MNIST-format files")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", action="store_true", help="mini-batch training instead, on the CPU")
    parser.add_argument("--shares", type=float, nargs="+", metavar="α", help="of MNIST's samples; needs --mnist")
    parser.add_argument("--hidden", type=int, default=100, help="units, with --shares")
    chosen = parser.parse_args(arguments)
    if chosen.shares and not chosen.mnist:
        parser.error("--shares needs --mnist DIR, a folder with MNIST-format files")
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.batches:
        stem, names, measured = "batches", ("method", "A", "part"), measure_batches()
    elif chosen.shares:
        stem, names = "shares", ("data", "hidden", "share", "iterations", "times_worst_sample")
        measured = measure_shares(read_mnist(chosen.mnist), chosen.hidden, chosen.shares)
    elif chosen.mnist:
        stem, names = "runs", ("data", "hidden", "method", "iterations")
        measured = measure_real(chosen.mnist, chosen.device)
    else:
        stem, names, measured = "costs", ("method", "N", "p", "q"), measure(device=chosen.device)
    records = []
    with (chosen.out / f"{stem}.jsonl").open("w", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "run", "machine": machine()}) + "\n")
        for record in measured:
            file.write(json.dumps(record) + "\n")
            processor = f", processor {record['processor'] * 1e6:.4g} µs" if stem == "runs" else ""
            print(*(record[name] for name in names), f"{record['median'] * 1e6:.4g} µs{processor}", flush=True)
            records.append(record)
    if stem == "costs" and chosen.device == "cpu":
        draw(records, chosen.out / "iteration-costs.png")


if __name__ == "__main__":
    output.take_any_encoding()
    main(sys.argv[1:])
