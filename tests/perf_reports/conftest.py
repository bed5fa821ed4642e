"""Made-up records of a whole run, and an op small enough to be measured in a test."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from tropigrad.kernels.contract.spec import Contender, Spec, Workload
from tropigrad.kernels.runtime.implementations import Implementations
from tropigrad.perf_reports.page import page


def training(method, iteration, seconds, loss, accuracy, role="ours"):
    return {
        "kind": "training",
        "study": "maxplus",
        "method": method,
        "dataset": "digits",
        "seed": 0,
        "iteration": iteration,
        "seconds": seconds,
        "loss": loss,
        "train_accuracy": accuracy,
        "test_accuracy": accuracy,
    }


def summary(method, role, seconds):
    return {
        "kind": "training_summary",
        "study": "maxplus",
        "method": method,
        "role": role,
        "dataset": "digits",
        "seed": 0,
        "seconds_per_iteration": seconds,
        "iterations": 20,
        "stopped": "20 iterations done",
        "final_loss": 0.5,
        "best_loss": 0.5,
        "test_accuracy": 0.95,
        "peak_bytes": None,
    }


def timing(workload, shape, contender, role, seconds, ratio=None):
    return {
        "kind": "timing",
        "op": "product",
        "workload": workload,
        "shape_name": shape,
        "shape_label": f"{shape} 8×8×8",
        "shape": {"M": 8, "K": 8, "N": 8},
        "contender": contender,
        "role": role,
        "gate": "none" if role == "scale" else "green",
        "mix": "add_max",
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "backend": "cpp" if role == "ours" else None,
        "calls_per_sample": 1,
        "seconds": [seconds] * 3,
        "rounds": [0, 1, 2],
        "median": {"value": seconds, "low": seconds * 0.9, "high": seconds * 1.1},
        "operations": 10**9,
        "bytes": 10**7 if shape == "S1" else 10**8,
        "rate": 1 / seconds,
        "ratio": None if ratio is None else {"value": ratio, "low": ratio * 0.9, "high": ratio * 1.1},
    }


def ceiling(name, threads, value, unit="G steps/s"):
    return {
        "kind": "ceiling",
        "name": name,
        "threads": threads,
        "value": value,
        "unit": unit,
        "samples": [value],
        "how": "registers only",
    }


def growing(contender, role, size, steps):
    return {
        "kind": "growth",
        "op": "product",
        "workload": "forward",
        "letter": "N",
        "meaning": "N, the outputs",
        "contender": contender,
        "role": role,
        "size": size,
        "seconds": 1e-6 * steps,
        "peak_bytes": 1000 * steps,
    }


def front(method, role, points):
    """A front by points (loss, norm, nonzeros), of which the last is dominated."""
    return {
        "kind": "front",
        "study": "l1path",
        "method": method,
        "role": role,
        "dataset": "digits",
        "seed": 0,
        "seconds": 2.0,
        "epochs": 40,
        "points": [
            {"loss": loss, "l1": l1, "nnz": nnz, "test_accuracy": 0.9, "is_dominated": place == len(points) - 1}
            for place, (loss, l1, nnz) in enumerate(points)
        ],
    }


def front_end(method, role, hypervolume):
    ends = {"study": "l1path", "hypervolume": hypervolume, "common_range": [20.0, 80.0]}
    return {**summary(method, role, 0.05), **ends}


def fronts():
    """The records of a study of fronts: two of them, of which the other one is ahead where both reach."""
    records = [
        front("held λ", "ours", [(2.3, 0.0, 0), (0.6, 20.0, 50), (0.01, 80.0, 400), (0.7, 90.0, 500)]),
        front("sweep", "other", [(2.3, 0.0, 0), (0.4, 30.0, 80), (0.0002, 200.0, 1900), (0.5, 90.0, 90)]),
        front_end("held λ", "ours", 0.9),
        front_end("sweep", "other", 0.95),
    ]
    return [{"schema_version": 1, "run": "abc", "time": "2026-01-02T03:04:05.000+00:00"} | r for r in records]


@pytest.fixture
def run_records():
    """The records of `finished_run`."""
    return finished_run()


def finished_run():
    """One finished run: ceilings, training by two methods, two workloads at two shapes, memory, something left out."""
    records = [
        {
            "kind": "run",
            "time": "2026-01-02T03:04:05.000+00:00",
            "machine": {"cpu": "a processor", "threads": 2, "flags": ["avx2", "fma"], "memory_bytes": 8e9, "gpus": []},
            "versions": {"torch": "2.13.0", "triton": None},
            "git_revision": None,
            "environment": {},
            "settings": {"quick": False, "only": [], "data_dir": None, "seed": 0},
        }
    ]
    records += [ceiling(name, n, 50.0 * n) for name in ("add_max", "fma_max") for n in (1, 2)]
    records.append(ceiling("memory", 2, 20.0, "GB/s"))
    for i in range(20):
        records.append(training("sparse backward", i, 0.001 * i, 4 / (i + 1), 0.9 + 0.002 * i))
        records.append(training("dense autograd", i, 0.1 * i, 4 / (i + 1), 0.9 + 0.002 * i))
    records += [summary("sparse backward", "ours", 0.001), summary("dense autograd", "dense", 0.1)]
    for workload in ("forward", "forward + backward"):
        for shape in ("S1", "S2"):
            records += [
                timing(workload, shape, "tropigrad", "ours", 0.02),
                timing(workload, shape, "dense eager", "dense", 0.8, 40.0),
                timing(workload, shape, "a peer", "peer", 0.016, 0.8),
                timing(workload, shape, "torch.matmul", "scale", 0.01),
            ]
    memory = {key: records[-4][key] for key in ("op", "workload", "shape_name", "shape_label", "contender", "role")}
    records.append(
        {**memory, "kind": "memory", "peak_bytes": 5_000_000, "result_bytes": 4_000_000, "how": "high water"}
    )
    for size in (8, 16):
        records += [growing("tropigrad", "ours", size, size), growing("dense eager", "dense", size, size**2)]
    records.append({"kind": "startup", "what": "import tropigrad", "seconds": 0.1, "samples": [0.1]})
    records.append({"kind": "left_out", "what": "forward: another peer", "reason": "not installed"})
    records.append({"kind": "run_end", "interrupted": False, "seconds": 12.3, "error": None})
    return [{"schema_version": 1, "run": "abc", "time": "2026-01-02T03:04:05.000+00:00"} | record for record in records]


@pytest.fixture
def words_alone(monkeypatch):
    """The page without its figures, which take the time."""
    nothing = {"cost": [], "roofline": [], "speedups": [], "growth": [], "training": {}}
    monkeypatch.setattr(page, "_drawings", lambda run, out, titles: nothing)


def _inputs(shape, dtype, device, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = (shape["M"], shape["K"]), (shape["K"], shape["N"])
    return tuple(torch.randn(size, generator=generator, dtype=dtype).to(device) for size in sizes)


def product(a, b):
    return (a.unsqueeze(2) + b).amax(1)


def calls(a, b):
    return lambda: (product(a, b),)


WORKLOAD = Workload(
    name="forward",
    contenders=(Contender("ours", "ours", calls), Contender("definition", "dense", calls)),
    operations=lambda shape: shape["M"] * shape["K"] * shape["N"],
    bytes=lambda shape, itemsize: itemsize * 3 * shape["M"] * shape["N"],
    mix="add_max",
)


@pytest.fixture
def tiny_spec():
    """`tiny_spec(*contenders)`: an op of one workload, at two shapes; by default ours and the definition."""

    def make(*contenders, workloads=None):
        workload = replace(WORKLOAD, contenders=contenders or WORKLOAD.contenders)
        return Spec(
            name="product",
            op=product,
            oracle=product,
            inputs=_inputs,
            shapes={"S1": {"M": 3, "K": 4, "N": 5}, "S2": {"M": 6, "K": 7, "N": 8}},
            workloads=workloads or (workload,),
            variants={},
            dtypes=(torch.float32, torch.float64),
            small_shapes=({"M": 1, "K": 2, "N": 1},),
            samples=lambda device: [],
            implementations=Implementations("product", torch=product),
        )

    return make


@pytest.fixture
def write_mnist():
    """`write_mnist(folder)`: random images in MNIST's format, labels 0 to 9 in turn; returns the folder."""

    def idx(array):
        sizes = np.array(array.shape, ">u4").tobytes()
        return bytes([0, 0, 0x08, array.ndim]) + sizes + array.astype(np.uint8).tobytes()

    def write(folder, images=30, test_images=10, size=(4, 3), packed=True):
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        for part, count in (("train", images), ("t10k", test_images)):
            pixels = generator.integers(0, 256, (count, *size))
            files = {f"{part}-images-idx3-ubyte": pixels, f"{part}-labels-idx1-ubyte": np.arange(count) % 10}
            for name, array in files.items():
                if packed:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
                else:
                    (folder / name).write_bytes(idx(array))
        return folder

    return write
