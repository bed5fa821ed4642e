"""Chooses the implementation that a call takes, and says why the others are off."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy
import torch

from ... import autotune
from ...triton_or_stub import HAS_GLUON, HAS_TRITON, triton
from . import capture, native

# Operators are registered for these devices. torch calls AMD's GPUs "cuda" too.
DEVICES = ("cpu", "cuda", "xpu", "mps")
BACKENDS = ("auto", "gluon", "triton", "cpp", "torch")


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1), and so on CPU tensors too."""
    return HAS_TRITON and bool(triton.knobs.runtime.interpret)


def _why_not_interpretable() -> str:
    """Why the interpreter fails here, or "": that of triton 3.6 indexes arrays in a way that NumPy 2.4 forbids."""
    triton_version, numpy_version = (
        tuple(int(part) for part in module.__version__.split(".")[:2]) for module in (triton, numpy)
    )
    if triton_version < (3, 7) and numpy_version >= (2, 4):
        return (
            f"the interpreter of triton {triton.__version__} fails on NumPy {numpy.__version__}; expected NumPy < 2.4"
        )
    return ""


# set by a block of `forcing`, in its thread
_FORCED: ContextVar[str] = ContextVar("tropigrad_backend", default="")
forced_everywhere = ""


@contextmanager
def forcing(name: str, *, everywhere: bool = False) -> Iterator[None]:
    """Acts as TROPIGRAD_BACKEND inside the block: for this thread, or `everywhere`.

    autograd runs a backward on a GPU in another thread, which only `everywhere` reaches.
    """
    global forced_everywhere
    if everywhere:
        before, forced_everywhere = forced_everywhere, name
        try:
            with autotune.unremembered():
                yield
        finally:
            forced_everywhere = before
        return
    token = _FORCED.set(name)
    try:
        with autotune.unremembered():
            yield
    finally:
        _FORCED.reset(token)


def forced() -> str:
    """The forced backend, or "auto": that of the innermost `forcing`, else of TROPIGRAD_BACKEND, which is checked.

    The variable is read once, since reading it takes longer than a small kernel. autotune.reload() reads it again.
    """
    return _FORCED.get() or forced_everywhere or _variable()


@functools.cache
def _variable() -> str:
    name = os.environ.get("TROPIGRAD_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"TROPIGRAD_BACKEND is {name!r}; expected one of {', '.join(BACKENDS)}")
    return name


autotune.on_reload(_variable.cache_clear)


def why_off(name: str, device: torch.device) -> str:
    """Why `name` cannot take tensors of this device; "" where it can."""
    if name == "gluon":
        if not HAS_GLUON:
            return "this triton, or its absence, leaves no Gluon: pip install 'triton>=3.6' (Linux)"
        if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
            return f"Gluon kernels take NVIDIA GPUs of compute capability 8.0 or more, not {device}"
        if interpreted():
            return "no interpreter runs Gluon: unset TRITON_INTERPRET before the import"
    if name == "triton":
        if not HAS_TRITON:
            return "triton is not installed: pip install triton (Linux)"
        if device.type not in ("cuda", "xpu") and not interpreted():
            return f"triton does not compile for {device.type}; TRITON_INTERPRET=1 interprets, if set before the import"
        if interpreted():
            return _why_not_interpretable()
    if name == "cpp":
        if device.type != "cpu":
            return f"the C++ kernels take CPU tensors, these are on {device.type}"
        return native.why_no_compiler()
    return ""


def choose(
    op: str,
    device: torch.device,
    offered: tuple[str, ...],
    dtype: torch.dtype = torch.float32,
    source: Path | None = None,
    gluon_serves: Callable[[str, torch.device, torch.dtype], bool] | None = None,
) -> str:
    """The backend that a call of `op` on `device` takes, out of those that the op offers.

    source: the op's C++ kernel. If no library of the dtype can be built from it, torch serves, unless C++ is forced.
    gluon_serves: whether the op's Gluon kernels may be chosen without being forced. If Gluon is forced, Triton takes
    the calls that have no Gluon form.

    Raises:
        RuntimeError: TROPIGRAD_BACKEND forces one that the op lacks or that cannot run here; the message says why.
        ImportError: CUDA tensors without triton.
    """
    if device.type == "cuda":
        capture.watch(device)
    name = forced()
    if name != "auto":
        if name == "gluon" and name not in offered:
            name = "triton"
        reason = why_off(name, device) if name in offered else f"{op} has {', '.join(offered)}"
        if reason:
            raise RuntimeError(f"{op}: TROPIGRAD_BACKEND={name} cannot run: {reason}")
        return name
    if device.type == "cuda" and "triton" in offered:
        if not HAS_TRITON:
            raise ImportError(
                f"{op}: CUDA tensors need triton: pip install triton (Linux), or move the tensors to the CPU, "
                "or set TROPIGRAD_BACKEND=torch for a slow path"
            )
        return "gluon" if "gluon" in offered and gluon_serves and gluon_serves(op, device, dtype) else "triton"
    if device.type == "cpu" and "cpp" in offered:
        if source is not None and native.is_loaded(source, dtype):
            return "cpp"
        reason = why_off("cpp", device)
        if reason:
            native.warn_of_slower_path(reason)
        elif source is None or native.library_of(source, dtype) is not None:  # None: it has warned
            return "cpp"
    return "torch"
