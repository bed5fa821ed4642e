"""Which implementation a call takes, and why the others are off."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy
import torch

from .. import autotune
from ..triton_or_stub import HAS_GLUON, HAS_TRITON, triton
from . import capture, native, qualification
from .spec import REGISTRY

DEVICES = ("cpu", "cuda", "xpu", "mps")  # what operators are registered for; AMD's GPUs are "cuda" to torch
BACKENDS = ("auto", "gluon", "triton", "cpp", "torch")


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1), and so on CPU tensors too."""
    return HAS_TRITON and bool(triton.knobs.runtime.interpret)


def _why_not_interpretable() -> str:
    """triton 3.6's interpreter indexes arrays in a way that NumPy 2.4 forbids."""
    triton_version, numpy_version = (
        tuple(int(part) for part in module.__version__.split(".")[:2]) for module in (triton, numpy)
    )
    if triton_version < (3, 7) and numpy_version >= (2, 4):
        return (
            f"the interpreter of triton {triton.__version__} fails on NumPy {numpy.__version__}; expected NumPy < 2.4"
        )
    return ""


_FORCED: ContextVar[str] = ContextVar("tropigrad_backend", default="")  # by a block of `forcing`, in its thread
forced_everywhere = ""


@contextmanager
def forcing(name: str, *, everywhere: bool = False) -> Iterator[None]:
    """TROPIGRAD_BACKEND inside the block, for this thread alone; or for all: a backward on a GPU runs in another."""
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
    """One path for debugging and tests, or "auto": TROPIGRAD_BACKEND, checked.

    The variable is read once, since reading it takes longer than a small kernel: autotune.reload() reads it anew.
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
) -> str:
    """The backend that a call of `op` on `device` takes, out of those that the op offers.

    source: of the op's C++ kernel. Where no library of the dtype can be made of it, torch serves, unless C++ is forced.

    Gluon kernels run where they are forced, and where they are qualified and agree with Triton's at first use. Forced,
    they leave what has no Gluon form to Triton.

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
        return "gluon" if "gluon" in offered and _gluon_serves(op, device, dtype) else "triton"
    if device.type == "cpu" and "cpp" in offered:
        if source is not None and native.is_loaded(source, dtype):
            return "cpp"
        reason = why_off("cpp", device)
        if reason:
            native.warn_of_slower_path(reason)
        elif source is None or native.library_of(source, dtype) is not None:  # None: it has warned
            return "cpp"
    return "torch"


def _gluon_serves(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the op's Gluon kernels are qualified here, and agree with Triton's; asked once per dtype and device."""
    if qualification.why_not_op(op, device) or why_off("gluon", device):
        return False
    if (op, device, dtype) not in _agreeing:
        if autotune.capturing(device):
            return False  # nothing is compared inside a capture
        _agreeing[op, device, dtype] = _agrees_with_triton(op, device, dtype)
    return _agreeing[op, device, dtype]


_agreeing: dict[tuple[str, torch.device, torch.dtype], bool] = {}


def _agrees_with_triton(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """The same values and winners at the op's small shapes; one warning where not."""
    spec = REGISTRY[op]
    try:
        for kwargs in spec.variants.values():
            if "gluon" not in spec.offers(kwargs) or not spec.supports(dtype, kwargs):
                continue
            for seed, shape in enumerate(spec.small_shapes):
                inputs = spec.inputs(shape, dtype, device, seed)
                options = {**kwargs, "return_indices": True} if spec.has_winners(kwargs) else kwargs
                results = []
                for name in ("gluon", "triton"):
                    with forcing(name):
                        found = spec.op(*inputs, **options)
                    results.append(found if isinstance(found, tuple) else (found,))
                if not all(bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(*results, strict=True)):
                    raise ArithmeticError(f"the results differ at {dict(shape)}, {dict(options)}")
    except Exception as error:  # whatever it is, Triton's kernel serves
        warnings.warn(
            f"{op}: the Gluon kernel of {dtype} is off on {device}: {type(error).__name__}: {error}; "
            "Triton's serves: report this, with the text of tropigrad explain",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
