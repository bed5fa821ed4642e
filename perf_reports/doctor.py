"""The facts of `tropigrad doctor`: versions, devices, backends and why one is off, compiler, cache, variables."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..kernels import tropical_matmul
from ..kernels.contract import qualification
from ..kernels.contract.registry import REGISTRY
from ..kernels.runtime import backend, dispatch, native
from . import environment
from .measuring import ceilings

_PROBE = '#include "{}"\nextern "C" int tropigrad_answers() {{ return 1; }}\n'


def examine() -> dict[str, Any]:
    """Facts for machines; "problems" lists what should work here and does not."""
    problems = environment.wrong_variables()
    data = os.environ.get("TROPIGRAD_DATA")
    if data and not Path(data).is_dir():
        problems.append(f"TROPIGRAD_DATA is {data!r}, which is no folder; expected one of MNIST-format files, or unset")
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    backends = {str(device): _backends(device) for device in devices}
    facts = {
        "versions": environment.versions(),
        "machine": environment.machine(),
        "interpreted": backend.interpreted(),
        "backends": backends,
        "compiler": _compiler(problems),
        "operators": dispatch.who_registers(),
        "cache": _cache(problems),
        "environment": environment.variables(),
        "problems": problems,
    }
    name = os.environ.get("TROPIGRAD_BACKEND", "auto")
    if name in backend.BACKENDS and name != "auto" and all(off[name] for off in backends.values()):
        problems.append(f"TROPIGRAD_BACKEND={name} forces a backend that is off: {backends['cpu'][name]}")
    return facts


def _backends(device: torch.device) -> dict[str, str]:
    """name -> why it is off; "" where it is on."""
    reasons = {name: backend.why_off(name, device) for name in backend.BACKENDS if name != "auto"}
    if not reasons["gluon"] and os.environ.get("TROPIGRAD_BACKEND") != "gluon":
        ops = [spec.name for spec in REGISTRY.values() if "gluon" in spec.tuned]
        reasons["gluon"] = "; ".join(filter(None, {qualification.why_not_op(op, device) for op in ops}))
    return reasons


def _compiler(problems: list[str]) -> dict[str, Any]:
    reason = native.why_no_compiler()
    if reason:
        if os.environ.get("CXX"):
            problems.append(reason)
        return {"works": False, "why": reason}
    with (
        tempfile.TemporaryDirectory(prefix="tropigrad-doctor-") as folder,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        source = Path(folder, "probe.cpp")
        source.write_text(_PROBE.format(native.HEADER.resolve()), encoding="utf-8")
        before = os.environ.get("TROPIGRAD_CACHE_DIR")
        os.environ["TROPIGRAD_CACHE_DIR"] = folder  # an empty cache: this is to compile, now
        try:
            library = native.library(source)
            form = {"vector_bits": 8 * native.vector_bytes(), "sums": "fma" if native.adds_by_fma() else "addition"}
        finally:
            if before is None:
                del os.environ["TROPIGRAD_CACHE_DIR"]
            else:
                os.environ["TROPIGRAD_CACHE_DIR"] = before
    if library is None:
        why = str(caught[-1].message) if caught else "the compiler gave no library"
        problems.append(why)
        return {"works": False, "why": why}
    return {"works": True, "why": "", **form}


def product() -> dict[str, float] | None:
    """G steps/s of the max-plus product at 512³ on one thread, and of its roof, in half a second; None without C++."""
    roof = ceilings.of_one_thread()
    if roof is None or backend.why_off("cpp", torch.device("cpu")):
        return None
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0), device="cpu")
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with backend.forcing("cpp"):
            for _ in range(10):
                start = perf_counter()
                tropical_matmul(a, b)
                times.append(perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {"steps": 512**3 / min(times) / ceilings.GIGA, "roof": roof}


def _cache(problems: list[str]) -> dict[str, Any]:
    folder = native.cache_folder()
    wanted = os.environ.get("TROPIGRAD_CACHE_DIR")
    if wanted and not folder.is_relative_to(Path(wanted).expanduser()):
        problems.append(
            f"TROPIGRAD_CACHE_DIR is {wanted!r}, which cannot be used; expected a folder of yours to write in"
        )
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"folder": str(folder), "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def lines(facts: Mapping[str, Any], verbose: bool = False) -> list[str]:
    """The facts for people."""
    machine, compiler, cache = facts["machine"], facts["compiler"], facts["cache"]
    text = [f"{name:<14}{version or 'absent'}" for name, version in facts["versions"].items()]
    text.append(f"{'cpu':<14}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads")
    if verbose:
        text.append(f"{'flags':<14}{' '.join(machine['flags']) or 'none of interest'}")
    text += [f"{'gpu':<14}{name}" for name in machine["gpus"]] or [f"{'gpu':<14}none"]
    for device, backends in facts["backends"].items():
        text += [f"{f'{name} on {device}':<14} {'on' if not why else 'off: ' + why}" for name, why in backends.items()]
    text.append(f"{'interpreter':<14}{'on' if facts['interpreted'] else 'off'} (TRITON_INTERPRET)")
    text.append(f"{'compiling':<14}{'works' if compiler['works'] else compiler['why']}")
    if compiler["works"]:
        text.append(f"{'C++ kernels':<14}vectors of {compiler['vector_bits']} bits, sums by {compiler['sums']}")
    if speed := facts.get("product"):
        share = f"{speed['steps'] / speed['roof']:.0%} of the {speed['roof']:.1f} that its registers allow"
        text.append(f"{'max-plus':<14}{speed['steps']:.1f} G steps/s at 512³ on one thread, {share}")
    text.append(f"{'operators':<14}registered from {facts['operators']}")
    text.append(f"{'cache':<14}{cache['folder']}: {cache['files']} files, {cache['bytes'] / 1e6:.1f} MB")
    text += [f"{name}={value}" for name, value in facts["environment"].items()]
    return text + [f"problem: {problem}" for problem in facts["problems"]]
