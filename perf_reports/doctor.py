"""What `tropigrad doctor` tells: versions, devices, backends and why one is off, compiler, cache, variables."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..kernels import backend, dispatch, native, qualification
from ..kernels.spec import REGISTRY
from . import results

_PROBE = '#include "{}"\nextern "C" int tropigrad_answers() {{ return 1; }}\n'


def examine() -> dict[str, Any]:
    """Facts for machines; "problems" lists what should work here and does not."""
    problems = results.wrong_variables()
    data = os.environ.get("TROPIGRAD_DATA")
    if data and not Path(data).is_dir():
        problems.append(f"TROPIGRAD_DATA is {data!r}, which is no folder; expected one of MNIST-format files, or unset")
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    backends = {str(device): _backends(device) for device in devices}
    found = {
        "versions": results.versions(),
        "machine": results.machine(),
        "interpreted": backend.interpreted(),
        "backends": backends,
        "compiler": _compiler(problems),
        "operators": dispatch.who_registers(),
        "cache": _cache(problems),
        "environment": results.environment(),
        "problems": problems,
    }
    name = os.environ.get("TROPIGRAD_BACKEND", "auto")
    if name in backend.BACKENDS and name != "auto" and all(off[name] for off in backends.values()):
        problems.append(f"TROPIGRAD_BACKEND={name} forces a backend that is off: {backends['cpu'][name]}")
    return found


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
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        source = Path(folder, "probe.cpp")
        source.write_text(_PROBE.format(Path(native.__file__).with_suffix(".hpp").resolve()), encoding="utf-8")
        before = os.environ.get("TROPIGRAD_CACHE_DIR")
        os.environ["TROPIGRAD_CACHE_DIR"] = folder  # an empty cache: this is to compile, now
        try:
            library = native.library(source)
        finally:
            if before is None:
                del os.environ["TROPIGRAD_CACHE_DIR"]
            else:
                os.environ["TROPIGRAD_CACHE_DIR"] = before
    if library is None:
        why = str(said[-1].message) if said else "the compiler gave no library"
        problems.append(why)
        return {"works": False, "why": why}
    form = {"vector_bits": 8 * native.vector_bytes(), "sums": "fma" if native.adds_by_fma() else "addition"}
    return {"works": True, "why": "", **form}


def _cache(problems: list[str]) -> dict[str, Any]:
    folder = native.cache_folder()
    wanted = os.environ.get("TROPIGRAD_CACHE_DIR")
    if wanted and not folder.is_relative_to(Path(wanted).expanduser()):
        problems.append(
            f"TROPIGRAD_CACHE_DIR is {wanted!r}, which cannot be used; expected a folder of yours to write in"
        )
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {"folder": str(folder), "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def lines(found: Mapping[str, Any], verbose: bool = False) -> list[str]:
    """The facts for people."""
    machine, compiler, cache = found["machine"], found["compiler"], found["cache"]
    said = [f"{name:<14}{version or 'absent'}" for name, version in found["versions"].items()]
    said.append(f"{'cpu':<14}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads")
    if verbose:
        said.append(f"{'flags':<14}{' '.join(machine['flags']) or 'none of interest'}")
    said += [f"{'gpu':<14}{name}" for name in machine["gpus"]] or [f"{'gpu':<14}none"]
    for device, backends in found["backends"].items():
        said += [f"{f'{name} on {device}':<14} {'on' if not why else 'off: ' + why}" for name, why in backends.items()]
    said.append(f"{'interpreter':<14}{'on' if found['interpreted'] else 'off'} (TRITON_INTERPRET)")
    said.append(f"{'compiling':<14}{'works' if compiler['works'] else compiler['why']}")
    if compiler["works"]:
        said.append(f"{'C++ kernels':<14}vectors of {compiler['vector_bits']} bits, sums by {compiler['sums']}")
    said.append(f"{'operators':<14}registered from {found['operators']}")
    said.append(f"{'cache':<14}{cache['folder']}: {cache['files']} files, {cache['bytes'] / 1e6:.1f} MB")
    said += [f"{name}={value}" for name, value in found["environment"].items()]
    return said + [f"problem: {problem}" for problem in found["problems"]]
