"""The costs of thresholds and of networks of them: a step's time, what it saves for its backward, its peak memory.

    python -m tropigrad.perf_reports.studies.ftprop.costs OUT [--only NAME] [--quick]

writes OUT/costs-NAME.jsonl, and costs.jsonl and costs.md of all tables that OUT holds.

NAME is activation, steps, memory or batches. Beside ours: the eager port of the released code (eager.py) and
torch.compile of it; of the activation alone also Brevitas' sign with a straight-through estimator, where it can be
imported. It wants setuptools < 81, so it is run in an environment of its own, with this project in it:

    python -m venv brevitas && brevitas/bin/pip install brevitas 'setuptools<81' PROJECT
    brevitas/bin/python -m tropigrad.perf_reports.studies.ftprop.costs OUT --only activation
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....autotune.timing import interleaved
from ....kernels import hard_threshold
from ....nn import convnet4, convnet8
from ....whole_files import replace
from ... import output
from ...environment import machine, versions
from ...measuring.memory import peak_memory
from ..runs import write_metrics
from ..tables import markdown
from .eager import eager_port, eager_sign
from .methods import RATES, WEIGHT_DECAY, device, saved_bytes

Record = dict[str, Any]
Calls = Mapping[str, Callable[[], Any]]
NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnet4": convnet4, "convnet8": convnet8}
PACKED, PLAIN, EAGER, COMPILED = "ours, packed", "ours, plain", "eager port", "torch.compile of the eager port"
BYTES, SSTE = "ours, packed, 8 bits", "ours, packed, sste"
_OPTIONS: dict[str, Record] = {PACKED: {}, BYTES: {"save": "byte"}, SSTE: {"rule": "sste"}}
BATCH = 64
LIMIT = 1e9  # bytes that the largest batch may take
_NEAR = 0.03  # share of the batch within which the largest one is sought
_MODULE = "tropigrad.perf_reports.studies.ftprop.costs"
# memory that is freed goes back to the system, so that the resident set is what is in use
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

# ------------------------------------------------------------------------------------------------ the activation


def activations(elements: int) -> tuple[Calls, list[str]]:
    """Forward and backward of a sign of so many float32 elements, by each contender; and what cannot be measured."""
    generator = torch.Generator().manual_seed(0)
    z, dy = (torch.randn(BATCH, elements // BATCH, generator=generator).to(device()) for _ in range(2))
    z.requires_grad_()

    def both(function: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(function(z), z, dy)[0]

    torch.compiler.reset()
    contenders: dict[str, Callable[[Tensor], Tensor]] = {
        "ours, soft_hinge": hard_threshold,
        "ours, soft_hinge, 8 bits": partial(hard_threshold, save="byte"),
        "ours, sste": partial(hard_threshold, rule="sste"),
        "ours, ste": partial(hard_threshold, rule="ste"),
        "eager port, soft_hinge": eager_sign,
        "torch.compile of the eager port, soft_hinge": torch.compile(eager_sign),
    }
    missing = []
    brevitas = brevitas_sign()
    if brevitas is None:
        missing.append("Brevitas, ste")
    else:
        contenders["Brevitas, ste"] = brevitas
    return {name: both(function) for name, function in contenders.items()}, missing


def brevitas_sign() -> Callable[[Tensor], Tensor] | None:
    """Brevitas' sign with a straight-through estimator; None where it cannot be imported."""
    try:
        from brevitas.function.ops_ste import binary_sign_ste  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return binary_sign_ste


def measure_activation(quick: bool) -> Iterator[Record]:
    """One thread, at 1, 4 and 16 M elements."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for elements in (1 << 16,) if quick else (1 << 20, 1 << 22, 1 << 24):
            calls, missing = activations(elements)
            facts = {"table": "activation", "elements": elements, "threads": 1}
            yield from _timed(calls, facts, "eager port, soft_hinge", budget=0.2 if quick else 8.0)
            for name in missing:
                yield {"kind": "left_out", **facts, "contender": name, "why": "brevitas cannot be imported"}
    finally:
        torch.set_num_threads(threads)


def _timed(calls: Calls, facts: Record, baseline: str, budget: float) -> Iterator[Record]:
    timed = interleaved(calls, budget_s=budget)
    for contender, samples in timed.items():
        ratio = timed[baseline].ratio(samples)
        yield {
            "kind": "time",
            **facts,
            "contender": contender,
            "seconds": samples.seconds,
            "rounds": samples.rounds,
            "median": samples.median.value,
            "baseline": baseline,
            "times_faster": ratio.value,
            "times_faster_low": ratio.low,
            "times_faster_high": ratio.high,
        }


# ------------------------------------------------------------------------------------------------ a network's step


def contender(network: str, name: str) -> nn.Module:
    """A network at its start, the same for every contender; its rule is the soft hinge, but of SSTE."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[network]("sign", packed=name in _OPTIONS, **_OPTIONS.get(name, {}))
    if name in (EAGER, COMPILED):
        model = eager_port(model)
    model = model.to(device())
    return torch.compile(model) if name == COMPILED else model  # pyright: ignore[reportReturnType]


class Step:
    """A training step of a network on random images of CIFAR-10's size."""

    def __init__(self, network: str, name: str, batch: int = BATCH) -> None:
        self.model = contender(network, name)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), RATES[network], weight_decay=WEIGHT_DECAY[network], fused=True
        )
        self.feed(batch)

    def feed(self, batch: int) -> None:
        """Take this many images from now on."""
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 3, 32, 32, generator=generator).to(device())
        self.y = (torch.arange(batch) % 10).to(device())

    def loss(self) -> Tensor:
        return functional.cross_entropy(self.model(self.x), self.y)

    def __call__(self) -> tuple[()]:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        return ()

    @property
    def held_bytes(self) -> int:
        """The bytes of weights, averages, Adam's state and the images."""
        tensors = [*self.model.parameters(), *self.model.buffers(), self.x]
        tensors += [x for state in self.optimizer.state.values() for x in state.values()]
        return sum(x.nbytes for x in tensors)


def measure_steps(quick: bool) -> Iterator[Record]:
    """Seconds of a step, contenders taking turns in one process, and the bytes that its forward saves."""
    names = (PACKED, PLAIN, EAGER) if quick else (*_OPTIONS, PLAIN, EAGER, COMPILED)
    for network in NETWORKS:
        batch = 4 if quick else BATCH
        torch.compiler.reset()
        steps = {name: Step(network, name, batch) for name in names}
        facts = {"table": "step", "network": network, "batch": batch, "threads": torch.get_num_threads()}
        for name, step in steps.items():
            yield {"kind": "saved", **facts, "contender": name, "bytes": saved_bytes(step.model, step.loss)}
        yield from _timed(steps, facts, EAGER, budget=0.2 if quick else 20.0)


def peak_of_step(network: str, name: str, batch: int) -> Record:
    """The peak of a step's memory: what it takes beyond what is there before it, and weights, Adam's state and images.

    To be called in a fresh process. Two steps on two images come first: they make Adam's state, and load what torch
    loads late. What torch.compile takes to compile is no part of a step, so its first steps are as large.
    """
    step = Step(network, name, batch if name == COMPILED else 2)
    for _ in range(2):
        step()
    step.feed(batch)
    step.optimizer.zero_grad()
    _, memory = peak_memory(step)
    if memory is None:
        return {"bytes": None, "how": "this system does not tell a process's peak"}
    return {"bytes": memory.peak_bytes + step.held_bytes, "how": memory.how}


def fresh_peak(network: str, name: str, batch: int) -> Record:
    """`peak_of_step` in a process of its own, as a record."""
    command = [sys.executable, "-m", _MODULE, "--peak", network, name, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_MALLOC}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    facts = {"network": network, "contender": name, "batch": batch, "threads": torch.get_num_threads()}
    return {"kind": "peak", **facts, **json.loads(done.stdout.splitlines()[-1])}


def measure_memory(quick: bool) -> Iterator[Record]:
    """The peak memory of a step, of each network and contender."""
    names = (PACKED, EAGER) if quick else (*_OPTIONS, PLAIN, EAGER, COMPILED)
    for network in ("convnet8",) if quick else NETWORKS:
        for name in names:
            yield {"table": "memory", **fresh_peak(network, name, BATCH)}


def measure_batches(quick: bool) -> Iterator[Record]:
    """The largest batch of ConvNet8 whose step stays below LIMIT, sought by the secant; every peak is a record."""
    for name in (PACKED,) if quick else (PACKED, BYTES, PLAIN, EAGER):
        yield from largest_batch(partial(fresh_peak, "convnet8", name), BATCH if quick else 4 * BATCH)


def largest_batch(peak: Callable[[int], Record], second: int) -> Iterator[Record]:
    """Peaks at BATCH and at a second batch, then where a line through the two nearest to LIMIT has it."""
    records: dict[int, Record] = {}
    for batch in (BATCH, second):
        if batch not in records:
            records[batch] = {"table": "batches", **peak(batch)}
            yield records[batch]
    if any(r["bytes"] is None for r in records.values()) or len(records) < 2:
        return
    for _ in range(6):
        below = [b for b, r in records.items() if r["bytes"] <= LIMIT]
        above = [b for b, r in records.items() if r["bytes"] > LIMIT]
        if not below or (above and min(above) <= max(below) * (1 + _NEAR) + 1):
            break
        a, b = sorted(records, key=lambda batch: abs(records[batch]["bytes"] - LIMIT))[:2]
        slope = (records[a]["bytes"] - records[b]["bytes"]) / (a - b)
        batch = int(max(below) + (LIMIT - records[max(below)]["bytes"]) / slope) if slope > 0 else 2 * max(below)
        least, most = max(below) + 1, min(above, default=4 * max(below)) - 1
        if batch in (least, max(below)) or batch <= least:
            batch = int(max(below) * (1 + _NEAR)) + 1
        batch = min(max(batch, least), max(most, least))
        records[batch] = {"table": "batches", **peak(batch)}
        yield records[batch]
    yield {
        "kind": "largest_batch",
        "table": "batches",
        "network": records[BATCH]["network"],
        "contender": records[BATCH]["contender"],
        "limit": LIMIT,
        "batch": max((b for b, r in records.items() if r["bytes"] <= LIMIT), default=None),
        "too_large": min((b for b, r in records.items() if r["bytes"] > LIMIT), default=None),
    }


MEASURES: dict[str, Callable[[bool], Iterator[Record]]] = {
    "activation": measure_activation,
    "steps": measure_steps,
    "memory": measure_memory,
    "batches": measure_batches,
}

# ------------------------------------------------------------------------------------------------ the tables


def table(records: Sequence[Record]) -> str:
    """Markdown: the activation alone, a network's step, the largest batches; of what has been measured."""
    parts = []
    times = [r for r in records if r["kind"] in ("time", "left_out")]
    activation = [r for r in times if r["table"] == "activation"]
    if activation:
        parts.append(_activation_table(activation))
    of_steps = [r for r in records if r.get("table") in ("step", "memory")]
    for network, batch in dict.fromkeys((r["network"], r["batch"]) for r in of_steps):
        own = [r for r in of_steps if (r["network"], r["batch"]) == (network, batch)]
        parts.append(_step_table(f"{network}, batch {batch}", own))
    batches = [r for r in records if r["kind"] == "largest_batch"]
    if batches:
        title = f"{batches[0]['network']}: the largest batch whose step peaks below {batches[0]['limit'] / 1e9:g} GB"
        lines = [(r["contender"], str(r["batch"]), str(r["too_large"])) for r in batches]
        parts.append(_markdown(title, ("contender", "batch", "takes more"), lines))
    return "\n\n".join(parts) + "\n"


def _markdown(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join([title, "", markdown(head, lines)])


def _activation_table(records: Sequence[Record]) -> str:
    sizes = sorted({r["elements"] for r in records})
    compiled = {r["elements"]: r["median"] for r in records if r["contender"].startswith("torch.compile")}
    lines = []
    for name in dict.fromkeys(r["contender"] for r in records):
        cells = []
        for size in sizes:
            (r,) = (r for r in records if (r["contender"], r["elements"]) == (name, size))
            if r["kind"] == "left_out":
                cells.append(r["why"])
                continue
            beside = f"; {compiled[size] / r['median']:.3g}" if size in compiled else ""
            cells.append(f"{r['median'] * 1e3:.3g} ms ({r['times_faster']:.3g}{beside})")
        lines.append((name, *cells))
    title = (
        "Forward and backward of the activation, one thread; in brackets how many times as fast as the eager port, and "
        "as torch.compile of it"
    )
    return _markdown(title, ("contender", *(f"{size >> 10:,} Ki elements" for size in sizes)), lines)


def _step_table(title: str, records: Sequence[Record]) -> str:
    def figure(name: str, kind: str, table: str, shown: Callable[[Record], str]) -> str:
        own = [r for r in records if (r["contender"], r["kind"], r["table"]) == (name, kind, table)]
        return shown(own[-1]) if own else "–"

    def megabytes(r: Record) -> str:
        return "–" if r["bytes"] is None else f"{r['bytes'] / 1e6:.1f} MB"

    lines = [
        (
            name,
            figure(name, "time", "step", lambda r: f"{r['median'] * 1e3:.3g} ms ({r['times_faster']:.3g})"),
            figure(name, "saved", "step", megabytes),
            figure(name, "peak", "memory", megabytes),
        )
        for name in dict.fromkeys(r["contender"] for r in records)
    ]
    head = ("contender", "a step", "saved for the backward", "peak of a step with Adam")
    return _markdown(title, head, lines)


# ------------------------------------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/costs-NAME.jsonl, each record as soon as it is measured; then the tables."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description="What networks of hard thresholds cost.")
    parser.add_argument("out", nargs="?", type=Path, default=Path("perf_reports/out"))
    parser.add_argument("--only", choices=tuple(MEASURES), help="one table")
    parser.add_argument("--quick", action="store_true", help="a part of each, which shows that all runs")
    parser.add_argument("--peak", nargs=3, metavar=("NETWORK", "CONTENDER", "BATCH"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.peak:
        network, name, batch = asked.peak
        print(json.dumps(peak_of_step(network, name, int(batch))))
        return 0
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in [asked.only] if asked.only else MEASURES:
        rows: list[Record] = [{"kind": "run", "machine": machine(), "versions": versions()}]
        for record in MEASURES[name](asked.quick):
            rows.append(record)
            write_metrics(asked.out / f"costs-{name}.jsonl", rows)
            print(line(record), flush=True)
    paths = [asked.out / f"costs-{name}.jsonl" for name in MEASURES]
    records = [json.loads(text) for path in paths if path.is_file() for text in path.read_text("utf-8").splitlines()]
    write_metrics(asked.out / "costs.jsonl", records)
    written = table(records)
    replace(asked.out / "costs.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    print(written)
    return 0


def line(record: Record) -> str:
    """A record in one line, for people."""
    left = " ".join(
        str(record[name]) for name in ("table", "network", "elements", "batch", "contender") if name in record
    )
    if record["kind"] == "time":
        low, high = record["times_faster_low"], record["times_faster_high"]
        ratio = f"{record['times_faster']:.3g} × as fast as {record['baseline']} ({low:.3g} to {high:.3g})"
        return f"{left}: {record['median'] * 1e3:.4g} ms, {ratio}"
    if record["kind"] == "left_out":
        return f"{left}: not measured, {record['why']}"
    if record["kind"] == "largest_batch":
        return f"{left}: the largest below {record['limit'] / 1e9:g} GB; {record['too_large']} takes more"
    size = "unknown" if record["bytes"] is None else f"{record['bytes'] / 1e6:.4g} MB"
    return f"{left}: {size}, {'saved for the backward' if record['kind'] == 'saved' else 'at the peak'}"


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
