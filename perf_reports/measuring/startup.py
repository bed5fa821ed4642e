"""The waits around a result: the import, the first call where nothing is compiled yet, and the cost of any call before
and after its kernel.

Each sample of the first two is a fresh process with an empty cache folder, so that nothing is left over from an earlier
one. The last is the time of calls so small that nothing else is left of them, torch.matmul's in between.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import torch

from ...autotune.timing import interleaved
from ...kernels import tropical_matmul
from ..commands import Progress

IMPORTS = 3

# each prints JSON objects, one a line: what -> seconds
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
print(json.dumps({"the operators, nothing compiled": time.perf_counter() - start}), flush=True)
chosen = [spec for spec in REGISTRY.values() if spec.name in sys.argv[1:] and "cpp" in spec.tuned]
for place in range(max((len(spec.dtypes) for spec in chosen), default=0)):  # one dtype of each op before a second
    for spec in chosen:
        dtypes = sorted(spec.dtypes, key=lambda dtype: dtype != torch.float32)
        for dtype in dtypes[place : place + 1]:
            inputs = spec.inputs(spec.small_shapes[-1], dtype, torch.device("cpu"), 0)
            for when in ("nothing compiled", "compiled"):
                start = time.perf_counter()
                spec.op(*inputs)
                what = f"{spec.name}, {str(dtype).removeprefix('torch.')}, {when}"
                print(json.dumps({what: time.perf_counter() - start}), flush=True)
"""


def measure(ops: Sequence[str], *, budget_s: float, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
    """Records of kind startup, in seconds: imports beyond torch's own, calls on 8 × 8 matrices, and first calls on the
    CPU by dtype, of the ops that have a C++ kernel of their own.

    Args:
        ops: names of ops. Those without a C++ kernel of their own run on another's.
        budget_s: seconds for all of it; first calls that they do not reach are left out.
        progress: called with (done, total, what is being measured).
    """
    end, total = perf_counter() + budget_s, IMPORTS + 2
    imports = []
    for number in range(IMPORTS):
        if progress is not None:
            progress(number, total, "importing")
        if imports and perf_counter() > end - budget_s / 2:
            break
        imports.append(_run(_IMPORT))
    for what in imports[0]:
        yield _record(what, [seconds[what] for seconds in imports])
    if progress is not None:
        progress(total - 2, total, "small calls")
    for what, samples in interleaved(_small_calls(), budget_s=1.0).items():
        yield _record(what, list(samples.seconds))
    if progress is not None:
        progress(total - 1, total, "first calls")
    for what, seconds in _run(_FIRST_CALLS, *ops, limit_s=max(5.0, end - perf_counter())).items():
        yield _record(what, [seconds])
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


def _run(program: str, *arguments: str, limit_s: float | None = None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="tropigrad-startup-", ignore_cleanup_errors=True) as cache:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"TROPIGRAD_CACHE_DIR": cache, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            start_new_session=True,  # its compilers end with it
        )
        is_cut = False
        try:
            written, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            is_cut = True
            _end(process)
            written, errors = process.communicate()
        except BaseException:
            _end(process)
            process.communicate()
            raise
    if process.returncode and not is_cut:
        raise RuntimeError(f"startup: a fresh process failed: {errors.strip().splitlines()[-1]}")
    lines = written.splitlines(keepends=True)
    parts = [json.loads(line) for line in lines if line.endswith("\n")]  # a last one may have been cut
    return {what: seconds for part in parts for what, seconds in part.items()}


def _end(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
