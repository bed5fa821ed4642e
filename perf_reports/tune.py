"""The words that `tropigrad tune`, `explain` and `cache` read and say; the work itself is autotune's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .. import autotune, kernels  # noqa: F401  kernels registers the ops
from ..autotune.cache import Store
from ..autotune.device import default_device
from ..autotune.explanation import pairs
from ..autotune.tunable import find, shapes_of
from ..kernels.contract.registry import REGISTRY
from .commands import Progress
from .measuring.ceilings import GIGA, WAYS, bandwidth_roof, compute_roof

Plan = list[tuple[str, Mapping[str, Mapping[str, int]], torch.dtype]]  # (op, shapes by name, dtype)


def plan(ops: Sequence[str], shapes: Sequence[str], dtype: str) -> Plan:
    """Check a request, and spell out what is to be tuned.

    Raises:
        ValueError: an op, a shape or a dtype that means nothing; the message says what does.
    """
    of = getattr(torch, dtype, None)
    dtypes = {str(x).removeprefix("torch."): x for spec in REGISTRY.values() for x in spec.dtypes}
    if dtype not in dtypes or not isinstance(of, torch.dtype):
        raise ValueError(f"the dtype is {dtype!r}; expected one of {', '.join(dtypes)}")
    sizes = [sizes_of(text) for text in shapes]
    return [(op, shapes_of(find(op), sizes), of) for op in ops or autotune.TUNABLE]


def sizes_of(text: str) -> dict[str, int]:
    """Sizes by letter: of "M=256,K=512,N=512".

    Raises:
        ValueError: no such text.
    """
    try:
        return {name.strip(): int(size) for name, size in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        raise ValueError(f"the shape is {text!r}; expected sizes by name, such as M=256,K=512,N=512") from None


def run(plan: Plan, *, budget_s: float, again: bool = False, progress: Progress | None = None):
    """The findings of a plan, within a budget that is shared out evenly over its ops."""
    end, findings = perf_counter() + budget_s, []
    for number, (op, shapes, dtype) in enumerate(plan):
        share = max(0.0, end - perf_counter()) / (len(plan) - number)
        findings += autotune.tune(op, shapes, dtype=dtype, budget_s=share, again=again, progress=progress)
    return findings


def export() -> Path:
    """Write this device's table into the package.

    Raises:
        OSError: the package's folder cannot be written: the table is made in a source tree.
        ValueError: nothing is tuned on this device.
    """
    environment = autotune.fingerprint(default_device())
    entries = autotune.store().whole(environment)
    if not entries:
        raise ValueError("nothing is tuned for this device and software, so there is no table to export")
    return autotune.export(environment, entries)


def lines(findings: Sequence[autotune.Finding], table: Path | None, verbose: bool = False) -> list[str]:
    """For people."""
    text = []
    for f in findings:
        gain = f.gain
        if gain is None:
            words = "the default, which nothing beat"
        else:
            beside = f.noise or gain
            words = f"{gain.value:.3g} × [{gain.low:.3g}, {gain.high:.3g}] over the default"
            words += f", the default over itself {beside.value:.3g} [{beside.low:.3g}, {beside.high:.3g}]"
            if f.config == f.default:
                words = f"the default; its best rival {words}"
        text += [f"{f.kernel}  {pairs(f.problem)}", f"  {f.how}: {pairs(f.config)}", f"  {words}"]
        if "unforeseen" in f.evidence:
            text.append(f"  {f.evidence['unforeseen']} configs left unforeseen: there was no time to compile them")
        if verbose:
            rivals = f.evidence.get("rivals", ())
            rejected = [rival for rival in rivals if rival["rejected"]]
            text.append(f"  {sum(r['ratio'] > 0 for r in rivals)} timed, {len(rejected)} rejected")
            text += [f"    {pairs(rival['config'])}: {rival['rejected']}" for rival in rejected]
    if not findings:
        text.append("no kernel with a config: these ops run on torch here")
    if any(f.how == "cut off" for f in findings):
        text.append("the budget cut some searches off: the same command goes on from there")
    if any(f.how == "tuned" and not f.stored for f in findings):
        text.append(f"not stored: {autotune.store().root} cannot be written")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1):
        text.append("the machine was busy: numbers of threads above all are better tuned on a quiet one (--again)")
    return text + ([f"table: {table}"] if table else [])


def as_json(findings: Sequence[autotune.Finding], table: Path | None) -> dict[str, Any]:
    """For machines."""
    return {"findings": [f.record() for f in findings], "table": str(table) if table else None}


def explain(op: str, shapes: Mapping[str, Mapping[str, int]], dtype: torch.dtype) -> autotune.Explanation:
    """Like `autotune.explain`, by the ceilings that `report` or `qualify` measured in this environment, if one did."""
    return autotune.explain(op, shapes, dtype=dtype, ceilings=ceilings(default_device(), dtype))


def keep_ceilings(records: Iterable[Mapping[str, Any]], device: torch.device, by: str) -> None:
    """Note a device's measured ceilings in the user's cache, under its environment, for `explain`.

    by: the command that measured them, for people.
    """
    kept = [{x: r[x] for x in ("name", "threads", "value")} for r in records if r["kind"] == "ceiling"]
    if kept:
        origin = f"{by}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        autotune.store().note(autotune.fingerprint(device), "ceilings", {"origin": origin, "records": kept})


def _kept_ceilings(environment: autotune.Fingerprint) -> tuple[list[dict[str, Any]], str]:
    """The records, and what measured them and when; none where nothing was kept that can be understood."""
    try:
        note: Any = autotune.store().noted(environment, "ceilings")
        records = [
            {"kind": "ceiling", "name": str(r["name"]), "threads": int(r["threads"]), "value": float(r["value"])}
            for r in note["records"]
        ]
        return [r for r in records if 0 < r["value"] < math.inf], str(note["origin"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return [], ""


def ceilings(device: torch.device, dtype: torch.dtype) -> autotune.Ceilings:
    """The ceilings that were kept, as they bound calls in a dtype: a CPU's steps were measured in float32 alone."""
    environment = autotune.fingerprint(device)
    kept, origin = _kept_ceilings(environment)
    everybody = environment.units if device.type == "cpu" else 0
    records = [r for r in kept if r["threads"] == everybody]
    of = {mix: mix for mix in WAYS} if dtype == torch.float32 else {}
    if device.type == "cuda" and (dtype == torch.float16 or not dtype.is_floating_point):
        of = {"add_max": "add_max_half" if dtype == torch.float16 else "add_max_int"}
    steps = {mix: compute_roof(records, name) for mix, name in of.items()}
    bandwidth = bandwidth_roof(records)
    launch = bandwidth_roof(records, "launch")
    maxima = compute_roof(records, "add_max") if device.type == "cuda" else None
    return autotune.Ceilings(
        {mix: rate * GIGA for mix, rate in steps.items() if rate},
        bandwidth and bandwidth * GIGA,
        launch and launch / 1e6,
        maxima and maxima * GIGA,
        origin,
    )


def cached() -> dict[str, Any]:
    """The user's tuned configs, and the environments they belong to."""
    store: Store = autotune.store()
    entries = []
    for path, entry in store.entries():
        if isinstance(entry, autotune.Entry):
            where = path.parent.parent.name
            gain = entry.evidence.get("gain") or {}
            entries.append({"environment": where, **entry.key, "config": dict(entry.config), "gain": gain.get("value")})
    environments = {entry["environment"]: store.manifest(entry["environment"]) for entry in entries}
    return {"root": str(store.root), "environments": environments, "entries": entries}


def cached_lines(cache: Mapping[str, Any]) -> list[str]:
    """For people."""
    text = [f"{cache['root']}: {len(cache['entries'])} entries"]
    for name, manifest in cache["environments"].items():
        software = ", ".join(f"{x} {manifest[x]}" for x in ("torch", "triton", "driver") if manifest.get(x))
        text.append(f"{name}  {manifest.get('device', 'unknown')}, {manifest.get('units', '?')} units, {software}")
        for entry in cache["entries"]:
            if entry["environment"] == name:
                text.append(f"  {entry['kernel']}  {pairs(entry['problem'])}  ->  {pairs(entry['config'])}")
    return text


def damaged() -> list[str]:
    """List what cannot be read in the user's cache, and what killed writers left there."""
    store = autotune.store()
    broken = [f"{path}: {entry}" for path, entry in store.entries() if not isinstance(entry, autotune.Entry)]
    return broken + [f"{path}: left by a writer that was killed; it can be deleted" for path in store.left_over()]
