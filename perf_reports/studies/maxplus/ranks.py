"""The costs of sharing the samples out: bytes on the wire, time an iteration, and a model to 1,024 ranks.

    python -m tropigrad.perf_reports.studies.maxplus.ranks OUT [--ranks 2 4] [--mnist DIR] [--stretches 12]
    python -m tropigrad.perf_reports.studies.maxplus.ranks OUT --records FILE       draws FILE's again

Processes on this machine, one thread each, meet through gloo on the loopback interface. Bytes come from counters: those
of the sockets of every process (TCP_INFO: what was sent, headers of gloo included, and in how many segments) and those
of the interface (/proc/net/dev, with the headers of TCP and IP, acknowledgements, and whatever else ran there). Beside
them is an all-reduce of the dense gradient of W1 and W2, as DistributedDataParallel makes one a step.

With --mnist, rank 0 iterates alone on all samples, in turns with all ranks on their shares, through the same iterates;
each stretch has its wall time and every rank's processor time, which others on the machine disturb least.

The model: an iteration takes c N / R on R ranks, and the exchange. A maximum on gloo is a ring of 2 (R − 1) messages
after each other, a broadcast a tree of ⌈log₂ R⌉; c, the time of a message h and the bandwidth are measured here. Where
a message costs as much as the work that one more rank takes over, at R* = √(c N / 2 h), it stops scaling. The other
curve has a tree for the maximum too, as NCCL may, with the same h: it stops where a rank has no samples left to give.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ....nn import LinearMinMax
from ....optim import WorstSampleSubgradient
from ....whole_files import replace
from ... import output
from ...data import read_mnist
from ...environment import machine, versions
from ..runs import write_metrics
from .costs import MARGIN, SCALE, run_of
from .methods import kernel_copy, start

Record = Mapping[str, Any]

SIZES = {  # N, p, q
    "small": (2_000, 64, 20),
    "more samples": (16_000, 64, 20),
    "more leaves": (2_000, 1024, 20),
    "more units": (2_000, 64, 320),
}
ITERATIONS, DENSE_STEPS = 100, 20
MESSAGES = 40  # samples; the least one counts: others on the machine only add
UNITS, EACH = 100, 10  # of MNIST; iterations of a stretch
TIMEOUT = timedelta(seconds=600)
MODEL_RANKS = [1 << power for power in range(11)]
MODEL_SAMPLES = (60_000, 10_000_000, 1_000_000_000)


# ------------------------------------------------------------------------------------------------ counters


def sent_by_sockets() -> tuple[int, int]:
    """Bytes, and segments, that this process's TCP sockets have sent."""
    total = segments = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.type != socket.SOCK_STREAM or one.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # closed in between, or not connected
            continue
        total += struct.unpack_from("Q", info, 200)[0]  # tcpi_bytes_sent
        segments += struct.unpack_from("I", info, 136)[0]  # tcpi_segs_out
    return total, segments


def sent_by_loopback() -> int:
    """Bytes that the loopback interface has carried."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def carried(steps: int, call: Callable[[], object]) -> tuple[Record, float]:
    """Counts what sockets and interface carry a step, and the seconds; all ranks make the call, of so many steps."""
    dist.barrier()
    before, lo, begun = sent_by_sockets(), sent_by_loopback(), time.perf_counter()
    call()
    seconds, after = time.perf_counter() - begun, sent_by_sockets()
    own = torch.tensor([after[0] - before[0], after[1] - before[1]])
    dist.barrier()
    lo = sent_by_loopback() - lo  # the barrier's few bytes included
    dist.all_reduce(own)
    ranks = dist.get_world_size()
    payload, segments = (int(count) / steps / ranks for count in own)
    return {"socket_bytes": payload, "segments": segments, "interface_bytes": lo / steps / ranks}, seconds / steps


# ------------------------------------------------------------------------------------------------ one rank


def _of_size(name: str, rank: int, ranks: int) -> list[dict[str, Any]]:
    """Bytes of an iteration and of a dense all-reduce, of a size in SIZES."""
    N, p, q = SIZES[name]
    state = run_of(N, p, q)
    model = LinearMinMax(p // 2, q, 10)
    model.load_state_dict(dict(zip(("A", "W1", "W2"), state.weights, strict=True)))
    own = slice(rank * N // ranks, (rank + 1) * N // ranks)
    x, y = state.samples.x[own].clone(), state.samples.y[own].clone()
    records = []
    for train_a in (False, True) if name == "small" else (False,):
        optimizer = WorstSampleSubgradient(
            kernel_copy(model), x, y, group=dist.group.WORLD, margin=MARGIN, train_A=train_a, step="sqrt"
        )
        optimizer.step(ITERATIONS)  # warm; the slices of `step` have grown
        done: list[int] = []
        counts, seconds = carried(ITERATIONS, lambda at=optimizer, to=done: to.append(len(at.step(ITERATIONS))))
        if done != [ITERATIONS]:
            raise RuntimeError(f"ranks: {name} ended after {done} iterations; expected {ITERATIONS}")
        of = {"kind": "bytes", "ranks": ranks, "size": name, "N": N, "p": p, "q": q, "train_A": train_a}
        records.append({**of, "method": "worst sample", **counts, "seconds": seconds})
    gradient = torch.zeros(q * p + 10 * q)
    counts, seconds = carried(DENSE_STEPS, lambda: [dist.all_reduce(gradient) for _ in range(DENSE_STEPS)])
    of = {"kind": "bytes", "ranks": ranks, "size": name, "N": N, "p": p, "q": q, "train_A": False}
    records.append({**of, "method": "dense all-reduce", **counts, "seconds": seconds})
    return records


def _messages(ranks: int) -> list[dict[str, Any]]:
    """The time of a maximum of one number, of a broadcast of twelve, and of a large all-reduce."""
    key, seen, large = torch.zeros(1, dtype=torch.int64), torch.zeros(13, dtype=torch.float64), torch.zeros(1 << 22)
    calls = {
        "maximum": (20, lambda: dist.all_reduce(key, dist.ReduceOp.MAX)),
        "broadcast": (20, lambda: (dist.broadcast(seen, 0), dist.broadcast(seen, ranks - 1))),
        "large all-reduce": (1, lambda: dist.all_reduce(large)),
    }
    records = []
    for name, (times, call) in calls.items():
        each = []
        for _ in range(MESSAGES):
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(times):
                call()
            each.append((time.perf_counter() - begun) / times / (2 if name == "broadcast" else 1))
        size = large.nbytes if "large" in name else key.nbytes if name == "maximum" else seen.nbytes
        records.append({"kind": "message", "ranks": ranks, "call": name, "bytes": size, "seconds": each})
    return records


def _on_mnist(folder: Path, rank: int, ranks: int, stretches: int) -> list[dict[str, Any]]:
    """Stretches of one process on all samples, in turns with all ranks on their shares."""
    dataset = read_mnist(folder)
    x, y = dataset.x_train, dataset.y_train
    N = len(x)
    if rank == 0:
        model, _ = start(dataset, UNITS, 0, SCALE, MARGIN)
    else:
        model = LinearMinMax(x.shape[1], UNITS, dataset.classes)
    for weights in model.parameters():
        dist.broadcast(weights.detach(), 0)
    own = slice(rank * N // ranks, (rank + 1) * N // ranks)
    options: dict[str, Any] = {"margin": MARGIN, "train_A": False}
    alone = WorstSampleSubgradient(kernel_copy(model), x, y, **options) if rank == 0 else None
    dist.barrier()
    shared = WorstSampleSubgradient(kernel_copy(model), x[own].clone(), y[own], group=dist.group.WORLD, **options)
    records = []
    for stretch in range(stretches):
        for method in ("alone", "shared") if stretch % 2 else ("shared", "alone"):
            optimizer = alone if method == "alone" else shared
            dist.barrier()
            wall, processor = time.perf_counter(), time.process_time()
            done = 0 if optimizer is None else len(optimizer.step(EACH))
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            seconds: list[Any] = [None] * ranks
            dist.all_gather_object(seconds, processor)
            if done:
                of = {"kind": "iterations", "ranks": ranks, "stretch": stretch, "method": method, "iterations": done}
                times = {"wall_seconds": wall / done, "processor_seconds": [each / done for each in seconds]}
                records.append({**of, "N": N, "p": 2 * x.shape[1], "q": UNITS, **times})
    if alone is not None and alone.state_dict()["progress"] != shared.state_dict()["progress"]:
        raise RuntimeError("ranks: the iterates of several ranks differ from those of one process")
    return records


def _as_rank(asked: argparse.Namespace) -> None:
    """Does what each process does; rank 0 writes the records."""
    rank, ranks = asked.rank
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{asked.out}/meeting", TIMEOUT, ranks, rank)
    if asked.mnist is None:
        records = [record for name in SIZES for record in _of_size(name, rank, ranks)] + _messages(ranks)
    else:
        records = _on_mnist(asked.mnist, rank, ranks, asked.stretches)
    if rank == 0:
        write_metrics(asked.out / "records.jsonl", records)
    dist.barrier()
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------ the model


def measured(ranks: Sequence[int], mnist: Path | None, stretches: int) -> list[Record]:
    """The records of processes that this one starts; each knows what it measured."""
    records: list[Record] = [{"kind": "run", "machine": machine(), "versions": versions()}]
    runs: list[tuple[int, list[str]]] = [(count, []) for count in ranks]
    if mnist is not None:
        runs.append((2, ["--mnist", str(mnist), "--stretches", str(stretches)]))
    for count, options in runs:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tropigrad.perf_reports.studies.maxplus.ranks", folder, *options]
            processes = [subprocess.Popen([*command, "--rank", str(rank), str(count)]) for rank in range(count)]
            try:
                failed = [process.wait() for process in processes]
            finally:
                for process in processes:
                    process.kill()
            if any(failed):
                raise RuntimeError(f"ranks: of {count} processes some have failed ({failed}); their words are above")
            lines = (Path(folder) / "records.jsonl").read_text(encoding="utf-8").splitlines()
        records += [json.loads(line) for line in lines]
        print(f"{count} ranks{', MNIST' if options else ''}: {len(lines)} records", flush=True)
    return records


def constants(records: Sequence[Record]) -> dict[str, float]:
    """The model's: seconds a sample (c, a median); of the least samples those of a message (h), and bytes."""
    alone = [
        r["processor_seconds"][0] / r["N"] for r in records if r["kind"] == "iterations" and r["method"] == "alone"
    ]
    messages = [r for r in records if r["kind"] == "message" and r["ranks"] == 2]
    seconds = {r["call"]: min(r["seconds"]) for r in messages}
    large = next(r["bytes"] for r in messages if r["call"] == "large all-reduce")
    return {
        "seconds_a_sample": statistics.median(alone),
        "seconds_a_message": seconds["maximum"] / 2,  # a ring of two ranks sends two after each other
        "bytes_a_second": large / seconds["large all-reduce"],  # each of two ranks sends the whole once
    }


def exchange_seconds(ranks: int, message: float, tree: bool) -> float:
    """A maximum and a broadcast."""
    depth = math.ceil(math.log2(ranks))
    return message * ((2 * depth if tree else 2 * (ranks - 1)) + depth)


def dense_seconds(ranks: int, count: float, of: Mapping[str, float]) -> float:
    """An all-reduce of so many bytes by a ring."""
    return 2 * (ranks - 1) * of["seconds_a_message"] + 2 * (ranks - 1) / ranks * count / of["bytes_a_second"]


def best_ranks(samples: int, of: Mapping[str, float]) -> float:
    """R*, where one more rank gains nothing on a ring."""
    return math.sqrt(of["seconds_a_sample"] * samples / (2 * of["seconds_a_message"]))


def draw(records: Sequence[Record], path: Path) -> None:
    """Bytes, and seconds, of an iteration over the ranks: measured, and by the model."""
    from ...page.figures import COLOR, drawing

    of = constants(records)
    largest = max(r["p"] * r["q"] for r in records if r["kind"] == "iterations")
    gradient = 4 * largest
    ranks = MODEL_RANKS[1:]
    ours = {
        count: min(r["interface_bytes"] for r in records if _is_ours(r) and r["ranks"] == count)
        for count in sorted({r["ranks"] for r in records if _is_ours(r)})
    }  # the least: others on the machine only add
    with drawing(11.5, 4.8, ncols=2) as (figure, (wire, clock)):  # pyright: ignore
        wire.loglog(
            ranks, [2 * (r - 1) / r * gradient for r in ranks], color=COLOR["dense"], label="dense all-reduce, MNIST's"
        )
        dense = [r for r in records if r["kind"] == "bytes" and r["method"] == "dense all-reduce"]
        wire.plot(
            [r["ranks"] for r in dense],
            [r["interface_bytes"] for r in dense],
            "x",
            color=COLOR["dense"],
            label="measured, other sizes",
        )
        # the ring sends as many messages more with each rank: a line through what was measured
        (first, least), (last, most) = min(ours.items()), max(ours.items())
        slope = (most - least) / (last - first) if last > first else least / first
        line = [least + slope * (r - first) for r in ranks]
        wire.plot(ranks, line, color=COLOR["ours"], label="worst sample, a ring: the line through these")
        wire.plot([*ours], [*ours.values()], "o", color=COLOR["ours"], label="measured, any N, p, q")
        wire.axhline(1000, color=COLOR["muted"], linewidth=0.8, linestyle=":")
        wire.set_ylabel("bytes a rank sends in an iteration")
        clock.set_ylabel("seconds an iteration")
        for samples in MODEL_SAMPLES:
            work = of["seconds_a_sample"] * samples
            for tree, style in ((False, "-"), (True, "--")):
                times = [
                    work / r + (exchange_seconds(r, of["seconds_a_message"], tree) if r > 1 else 0) for r in MODEL_RANKS
                ]
                clock.loglog(MODEL_RANKS, times, style, color=COLOR["ours"])
            clock.annotate(f"N = {samples:,}", (1.1, work * 1.25), color=COLOR["ours"], fontsize=9)
            stop = min(best_ranks(samples, of), MODEL_RANKS[-1])
            if stop > 1:
                clock.plot(stop, work / stop + 2 * (stop - 1) * of["seconds_a_message"], "o", color=COLOR["other"])
        times = [dense_seconds(r, gradient, of) for r in ranks]
        clock.plot(ranks, times, color=COLOR["dense"], label="dense all-reduce of MNIST's gradient")
        clock.plot([], [], "-", color=COLOR["ours"], label="ring, as gloo's")
        clock.plot([], [], "--", color=COLOR["ours"], label="tree")
        clock.plot([], [], "o", color=COLOR["other"], label="the ring stops scaling")
        for panel in (wire, clock):
            panel.set_xlabel("ranks")
            panel.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
            panel.grid(axis="y")
            panel.legend(fontsize=8)
        wire.set_title("On the wire")
        clock.set_title("The model: work and exchange")
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


def _is_ours(record: Record) -> bool:
    return record["kind"] == "bytes" and record["method"] == "worst sample" and not record["train_A"]


def table(records: Sequence[Record]) -> str:
    """The measurements and the model's constants, for people."""
    lines = ["| ranks | N, p, q | method | socket bytes | interface bytes | µs |", "|---|---|---|---|---|---|"]
    for r in records:
        if r["kind"] == "bytes":
            method = r["method"] + (", A trained" if r["train_A"] else "")
            sizes = f"{r['N']:,}, {r['p']}, {r['q']}"
            counts = f"{r['socket_bytes']:,.0f} | {r['interface_bytes']:,.0f} | {r['seconds'] * 1e6:,.0f}"
            lines.append(f"| {r['ranks']} | {sizes} | {method} | {counts} |")
    stretches = [r for r in records if r["kind"] == "iterations"]
    for method in ("alone", "shared") if stretches else ():
        own = [r for r in stretches if r["method"] == method]
        wall = statistics.median(r["wall_seconds"] for r in own)
        busiest = statistics.median(max(r["processor_seconds"]) for r in own)
        lines.append(
            f"\n{method}: {wall * 1e3:.2f} ms an iteration by the wall clock, {busiest * 1e3:.2f} ms of processor"
        )
    if stretches:
        of = constants(records)
        lines.append(f"\n{of}")
        lines += [f"N = {N:,}: R* = {best_ranks(N, of):,.0f}" for N in MODEL_SAMPLES]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/ranks.jsonl, ranks.md and, of records with MNIST, ranks.png."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.maxplus.ranks", description="What sharing the samples out costs."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument(
        "--mnist", type=Path, help="a folder of MNIST-format files: times of 2 ranks beside one process"
    )
    parser.add_argument("--stretches", type=int, default=12, help=f"of {EACH} iterations, on MNIST")
    parser.add_argument("--records", type=Path, help="of an earlier run, to draw again")
    parser.add_argument("--rank", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.rank:
        _as_rank(asked)
        return 0
    if asked.records:
        lines = asked.records.read_text(encoding="utf-8").splitlines()
        records: list[Record] = [json.loads(line) for line in lines]
    else:
        records = measured(asked.ranks, asked.mnist, asked.stretches)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_metrics(asked.out / "ranks.jsonl", [dict(record) for record in records])
    written = table(records)
    replace(asked.out / "ranks.md", lambda fresh: fresh.write_text(written + "\n", encoding="utf-8"))
    if any(record["kind"] == "iterations" for record in records):
        draw(records, asked.out / "ranks.png")
    print(written)
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
