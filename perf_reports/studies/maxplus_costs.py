"""What an iteration on the worst sample costs, over the samples N, the leaves p and the units q.

Dense evaluation is N q p steps. A winner cache looks at N samples for each of four moved weights and reads p or q
leaves again for a few of them; a tree replays log p matches. The network is a nearest-medoid classifier of random
points, from its start, so that all sizes are trained alike: Polyak's steps, hinge.

    python -m tropigrad.perf_reports.studies.maxplus_costs [OUT]     writes costs.jsonl and iteration-costs.png
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...kernels.worst_sample import Dense, Samples, Settings, Sparse, State, Weights, activate, beginning
from ...nn import LinearMinMax
from ..results import machine

SIZES = {
    "N": [(N, 128, 100) for N in (1000, 3000, 10_000, 30_000, 100_000)],
    "p": [(10_000, p, 100) for p in (32, 128, 512, 2048)],
    "q": [(10_000, 128, q) for q in (10, 30, 100, 300, 1000)],
}
REPEATS, WARM_UP, ITERATIONS = 7, 20, 20  # each sample is the mean of so many iterations; of one, where dense
TREES_UP_TO = 1 << 28  # N q p: two bytes each


def run_of(N: int, p: int, q: int, classes: int = 10) -> State:
    """Random points of [0, 1]^d, d = p / 2, with the class of the nearest of 100 centres; q of them are the units."""
    generator = torch.Generator().manual_seed(0)
    d = p // 2
    centres = torch.rand(100, d, generator=generator)
    x = torch.rand(N, d, generator=generator)
    y = (torch.cdist(x, centres).argmin(dim=1) % classes).int()
    medoids = torch.randperm(N, generator=generator)[:q]
    model = LinearMinMax(d, q, classes)
    model._set_scale(64.0)
    m = 64.0 * x[medoids]
    own = y[medoids] == torch.arange(classes)[:, None]
    w2 = torch.where(own, 0.0, -2 * (64.0 + 4.0))
    weights = Weights(model.A.detach(), torch.cat([-m, m], dim=1), w2)
    settings = Settings(margin=4.0)
    best = Weights(*(w.clone() for w in weights))
    return State(
        settings, Samples(x, y, N), weights, best, None, beginning(settings), torch.zeros(N, dtype=torch.int64)
    )


def measure(sizes: dict[str, list[tuple[int, int, int]]] = SIZES) -> Iterator[dict[str, Any]]:
    """One record a method and size: raw samples of seconds per iteration, and their median."""
    for axis, points in sizes.items():
        for N, p, q in points:
            for method in ("winners", "trees", "fused dense"):
                if method == "trees" and N * q * p > TREES_UP_TO:
                    continue
                dense = method == "fused dense"
                loop = Dense(run_of(N, p, q), activate) if dense else Sparse(run_of(N, p, q), method)
                iterations = 1 if dense else ITERATIONS
                loop.run(1 if dense else WARM_UP, torch.zeros(WARM_UP, dtype=torch.float64))
                samples = []
                for _ in range(REPEATS):
                    start = time.perf_counter()
                    done = loop.run(iterations, torch.zeros(iterations, dtype=torch.float64))
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


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Three panels: the least time of an iteration over N, p and q."""
    from ..figures import COLOR, drawing

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


def main(out: str = "perf_reports/out") -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    with (folder / "costs.jsonl").open("w", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "run", "machine": machine()}) + "\n")
        for record in measure():
            file.write(json.dumps(record) + "\n")
            print(*(record[name] for name in ("method", "N", "p", "q")), f"{record['median'] * 1e6:.4g} µs", flush=True)
            records.append(record)
    draw(records, folder / "iteration-costs.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
