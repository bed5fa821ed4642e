"""Tier 1: exact counts of what a kernel loads, stores and computes, as Triton's interpreter carries it out.

Every operation of the interpreter's builder is watched: elements that a mask leaves out are not counted, so the counts
are those of the work and not of the tile. Equal inputs give equal counts, on any machine.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from .declaration import Call

_KINDS = {
    "additions": ("fadd", "fsub"),
    "products": ("fmul", "fma"),
    "divisions": ("fdiv", "precise_divf", "frem"),
    "extrema": ("minimumf", "minnumf", "maximumf", "maxnumf", "clampf"),
    "functions": ("exp", "exp2", "log", "log2", "sin", "cos", "erf", "sqrt", "precise_sqrt", "rsqrt"),
    "comparisons": ("fcmp", "icmp", "select"),
    "integer arithmetic": (
        "add", "sub", "mul", "sdiv", "udiv", "srem", "urem", "shl", "lshr", "ashr", "and", "or", "xor", "minsi",
        "minui", "maxsi", "maxui", "umulhi", "addptr",
    ),
}  # fmt: skip
_LOADS, _STORES = ("load", "masked_load"), ("store", "masked_store")


def _kind(name: str) -> str | None:
    for kind, names in _KINDS.items():
        if name in names or (kind == "comparisons" and name.startswith(names[:2])):
            return kind
    return None


def _elements(*handles: Any) -> int:
    return max((int(np.size(handle.data)) for handle in handles if hasattr(handle, "data")), default=0)


def _itemsize(pointers: Any) -> int:
    return pointers.get_element_ty().primitive_bitwidth // 8


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts what interpreted kernels do inside the block; TRITON_INTERPRET must be on."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder
    counts: Counter[str] = Counter()

    def count_memory(what: str, mask_at: int | None, args: Sequence[Any]) -> None:
        pointers, mask = args[0], None if mask_at is None else args[mask_at]
        n = (
            _elements(pointers)
            if mask is None
            else int(np.count_nonzero(np.broadcast_to(mask.data, pointers.data.shape)))
        )
        counts[f"elements {what}"] += n
        counts[f"bytes {what}"] += n * _itemsize(pointers)

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name in _LOADS:
                count_memory("loaded", 1 if name == "masked_load" else None, args)
            elif name in _STORES:
                count_memory("stored", 2 if name == "masked_store" else None, args)
            elif name.startswith("atomic_"):
                counts["atomic operations"] += _elements(args[1] if name == "atomic_rmw" else args[0])
            elif name == "dot":
                a, b = args[0].data, args[1].data
                counts["products of matrices"] += int(a.size) * int(b.shape[-1])
            elif kind := _kind(name):
                counts[kind] += _elements(*args)
            return method(self, *args, **kwargs)

        return run

    def summed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(self: Any, inputs: Any) -> Any:
            first = inputs[0] if isinstance(inputs, tuple) else inputs
            counts[f"elements {name}"] += _elements(first.handle)
            return method(self, inputs)

        return run

    with ExitStack() as stack:
        for attribute in dir(builder):
            if attribute.startswith("create_"):
                name = attribute.removeprefix("create_")
                stack.enter_context(mock.patch.object(builder, attribute, watched(name, getattr(builder, attribute))))
        for name, of in (("reduced", interpreter.ReduceOps), ("scanned", interpreter.ScanOps)):
            stack.enter_context(mock.patch.object(of, "apply", summed(name, of.apply)))
        yield counts


def measure(calls: Sequence[Call], tell: Callable[[str], object] = lambda what: None) -> Iterator[dict[str, Any]]:
    """A record for each call: its counts, or why it failed. Only in a process in which Triton interprets."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "gate: tier 1 counts interpreted kernels; expected TRITON_INTERPRET=1 before triton's import"
        )
    for call in calls:
        if 1 not in call.tiers:
            continue
        tell(f"{call.key}, interpreted")
        record: dict[str, Any] = {"tier": 1, "of": call.key, "target": "interpreter"}
        try:
            with counting() as counts:
                call.function()
        except Exception as error:
            yield record | {"error": f"{type(error).__name__}: {error}"}
            continue
        if not counts:
            yield record | {"error": "no kernel ran: is it called at all, and by Triton, on these inputs?"}
            continue
        yield record | {"figures": dict(sorted(counts.items()))}
