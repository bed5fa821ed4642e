"""The time of the kernels of explicit solutions on real data, beside what one would use.

    python -m tropigrad.perf_reports.studies.explicit.costs [OUT] --data-dir DIR     writes costs.jsonl

MNIST's bytes summed by class, WikiText-2's pairs of (distance, token) and next token counted, and its readout, dense
and sparse. Contenders take turns; each time is of a whole call, conversions included, warm.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ....autotune.timing import interleaved
from ....kernels import cooccurrence, gather_softmax, log_shift
from ....kernels.log_shift import SparseLogShift
from ....kernels.pair_counts import as_csr, pair_counts
from ....kernels.runtime.csr import csr_tensor
from ... import output
from ...data import find_data_dir, read_mnist
from ...environment import machine, versions
from ...texts import Text, read_text

K = 4  # tokens of context
POSITIONS = 1024  # of a readout
SMOOTHING = 0.1
BUDGET = 6.0  # seconds for each table

Calls = Mapping[str, Callable[[], Any]]


def sums_of_classes(x: np.ndarray, y: np.ndarray) -> Calls:
    """Sums of each class's rows: x [N, D] uint8 and labels y [N] int64, of ten classes."""
    from sklearn.naive_bayes import MultinomialNB

    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    words = rows.flatten()[: rows.numel() // 8 * 8].view(torch.int64)
    return {
        "ours, integers": lambda: cooccurrence(rows, labels, 10),
        "ours, rows scaled to one sum": lambda: cooccurrence(rows, labels, 10, scale=32.0, offset=32.0),
        "a read of the bytes": lambda: words.sum(),
        "torch, one-hot product in float32": lambda: F.one_hot(labels, 10).float().T @ rows.float(),
        "MultinomialNB on float64": lambda: MultinomialNB().fit(x.astype(np.float64), y),
        "MultinomialNB on the bytes": lambda: MultinomialNB().fit(x, y),
    }


def pairs_of(text: Text) -> tuple[Tensor, Tensor]:
    """Rows k V + token at distance k + 1, and columns, the next token: K pairs a position, int32."""
    tokens, V = torch.from_numpy(text.train).int(), text.vocabulary
    rows = [tokens[K - 1 - k : len(tokens) - 1 - k] + k * V for k in range(K)]
    return torch.cat(rows), tokens[K:].repeat(K)


def counts_of_pairs(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Calls:
    from scipy import sparse

    ones = np.ones(len(rows), np.int32)
    coordinates = rows.numpy(), columns.numpy()
    keys = rows.long() * shape[1] + columns
    return {
        "ours": lambda: pair_counts(rows, columns, shape),
        "SciPy, COO to CSR": lambda: sparse.coo_matrix((ones, coordinates), shape=shape).tocsr(),
        "torch.unique of packed keys": lambda: torch.unique(keys, return_counts=True),
    }


def readouts(text: Text, rows: Tensor, columns: Tensor, backward: bool) -> Calls:
    """Cross-entropy of POSITIONS contexts; the dense forms hold the rows that these name alone."""
    V = text.vocabulary
    shifted = log_shift(as_csr(pair_counts(rows, columns, (K * V, V)), (K * V, V)), smoothing=SMOOTHING)
    assert isinstance(shifted, SparseLogShift)
    crow, entries = shifted.weight.crow_indices(), shifted.weight.values().float()
    table = csr_tensor(crow, shifted.weight.col_indices(), entries, (K * V, V))
    bias = (K * shifted.base - (K - 1) * shifted.log_mass).float().requires_grad_(backward)
    positions = torch.linspace(0, len(rows) // K - 1, POSITIONS, dtype=torch.float64).long()
    contexts = rows.view(K, -1)[:, positions].T.long().contiguous()
    targets = columns[positions].long()
    named, places = contexts.unique(return_inverse=True)
    dense = torch.zeros(len(named), V)
    for place, row in enumerate(named.tolist()):
        own = slice(int(crow[row]), int(crow[row + 1]))
        dense[place, shifted.weight.col_indices()[own].long()] = entries[own]

    def ended(losses: Tensor) -> None:
        if backward:
            losses.sum().backward()
            bias.grad = None

    return {
        "ours, sparse": lambda: ended(gather_softmax(table, contexts, targets, bias=bias)),
        "ours, dense": lambda: ended(gather_softmax(dense, places, targets, bias=bias)),
        "eager torch, dense": lambda: ended(F.cross_entropy(dense[places].sum(1) + bias, targets, reduction="none")),
    }


def measure(folder: Path, budget: float = BUDGET) -> Iterator[dict[str, Any]]:
    """A record a table and contender: raw samples in seconds, their median, and that over the first contender's.

    Raises:
        DataError: MNIST or WikiText-2 is not in the folder.
    """
    mnist = read_mnist(folder)
    x, y = (mnist.x_train * 255).round().to(torch.uint8).numpy(), mnist.y_train.numpy()
    yield from _table("sums of MNIST's classes", sums_of_classes(x, y), budget)
    text = read_text(folder / "wikitext-2")
    rows, columns = pairs_of(text)
    shape = K * text.vocabulary, text.vocabulary
    yield from _table("pairs of WikiText-2", counts_of_pairs(rows, columns, shape), budget)
    for backward, name in ((False, "readout"), (True, "readout and its backward to bias")):
        yield from _table(f"{name}, WikiText-2", readouts(text, rows, columns, backward), budget)


def _table(name: str, calls: Calls, budget: float) -> Iterator[dict[str, Any]]:
    timed = interleaved(calls, budget_s=budget)
    ours = timed[next(iter(calls))]
    for contender, samples in timed.items():
        yield {
            "kind": "cost",
            "table": name,
            "contender": contender,
            "seconds": samples.seconds,
            "rounds": samples.rounds,
            "median": samples.median.value,
            "times_ours": samples.ratio(ours).value,
        }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("perf_reports/out"))
    parser.add_argument("--data-dir", type=Path, help="a folder with mnist and wikitext-2 (default: TROPIGRAD_DATA)")
    chosen = parser.parse_args(arguments)
    folder = find_data_dir(chosen.data_dir)
    if folder is None:
        parser.error("no folder of data; expected --data-dir DIR or TROPIGRAD_DATA")
    chosen.out.mkdir(parents=True, exist_ok=True)
    with (chosen.out / "costs.jsonl").open("w", encoding="utf-8") as file:
        file.write(json.dumps({"kind": "run", "machine": machine(), "versions": versions()}) + "\n")
        for record in measure(folder):
            file.write(json.dumps(record) + "\n")
            times = f"{record['median'] * 1e3:.4g} ms, {record['times_ours']:.3g} × the first"
            print(f"{record['table']}: {record['contender']} {times}", flush=True)


if __name__ == "__main__":
    output.take_any_encoding()
    main(sys.argv[1:])
