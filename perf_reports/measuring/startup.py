"""The waits around a result: the import, the first call where nothing is compiled yet, and the cost of any call before
and after its kernel.

Each sample of the first two is a fresh process with an empty cache folder, so that nothing is left over from an earlier
one. The last is the time of calls so small that nothing else is left of them, torch.matmul's in between.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...autotune.timing import interleaved
from ...kernels import tropical_matmul
from ..commands import Progress

IMPORTS = {False: 3, True: 1}  # by `quick`

# prints a JSON object: what -> seconds
_IMPORT = """
import json, time
import torch
start = time.perf_counter()
import tropigrad
package = time.perf_counter()
import tropigrad.kernels, tropigrad.nn
print(json.dumps({"import tropigrad": package - start, "and its kernels and layers": time.perf_counter() - package}))
"""
_FIRST_CALLS = """
import json, sys, time
import torch
from tropigrad.kernels.contract.registry import REGISTRY
import tropigrad.kernels
from tropigrad.kernels.runtime import dispatch
start = time.perf_counter()
dispatch.load(compiles=True)
seconds = {"the operators, nothing compiled": time.perf_counter() - start}
for spec in REGISTRY.values():
    if "cpp" not in spec.tuned:
        continue  # runs on another op's library
    for dtype in spec.dtypes[: int(sys.argv[1])]:
        inputs = spec.inputs(spec.small_shapes[-1], dtype, torch.device("cpu"), 0)
        for when in ("nothing compiled", "compiled"):
            start = time.perf_counter()
            spec.op(*inputs)
            seconds[f"{spec.name}, {str(dtype).removeprefix('torch.')}, {when}"] = time.perf_counter() - start
print(json.dumps(seconds))
"""


def measure(*, quick: bool = False, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Records of kind startup, in seconds: imports beyond torch's own, first calls on the CPU by dtype, of
    the ops that have a C++ kernel of their own, and calls on 8 × 8 matrices.

    Args:
        quick: one import, and the first calls of one dtype.
        progress: called with (done, total, what is being measured).
    """
    total = IMPORTS[quick] + 2
    imports = []
    for number in range(IMPORTS[quick]):
        if progress is not None:
            progress(number, total, "importing")
        imports.append(_run(_IMPORT))
    for what in imports[0]:
        yield _record(what, [seconds[what] for seconds in imports])
    if progress is not None:
        progress(total - 2, total, "first calls")
    for what, seconds in _run(_FIRST_CALLS, "1" if quick else "99").items():
        yield _record(what, [seconds])
    if progress is not None:
        progress(total - 1, total, "small calls")
    for what, samples in interleaved(_small_calls(), budget_s=2.0).items():
        yield _record(what, list(samples.seconds))
    if progress is not None:
        progress(total, total, "started up")


def _small_calls() -> dict[str, Callable[[], Any]]:
    a, b = torch.randn(2, 8, 8, device="cpu").unbind()
    trained = a.clone().requires_grad_()
    products = {"tropical_matmul": tropical_matmul, "torch.matmul": torch.matmul}
    return {
        f"{name}, 8 × 8, {what}": functools.partial(product, left, b)
        for what, left in (("values", a), ("values, for a gradient", trained))
        for name, product in products.items()
    }


def _record(what: str, samples: list[float]) -> dict[str, Any]:
    return {"kind": "startup", "what": what, "seconds": statistics.median(samples), "samples": samples}


def _run(program: str, *arguments: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="tropigrad-startup-") as cache:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"TROPIGRAD_CACHE_DIR": cache},
        )
    if done.returncode:
        raise RuntimeError(f"startup: a fresh process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)
