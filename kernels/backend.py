"""Which implementation a call takes, and why the others are off."""

from __future__ import annotations

import os

import numpy
import torch

from . import native
from .triton_or_stub import HAS_GLUON, HAS_TRITON, triton

DEVICES = ("cpu", "cuda", "xpu", "mps")  # what operators are registered for; AMD's GPUs are "cuda" to torch
UNQUALIFIED = "no qualification record for this GPU and triton yet; TROPIGRAD_BACKEND=gluon forces it"
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


def forced() -> str:
    """TROPIGRAD_BACKEND, checked: one path for debugging and tests, or "auto"."""
    name = os.environ.get("TROPIGRAD_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(f"TROPIGRAD_BACKEND is {name!r}; expected one of {', '.join(BACKENDS)}")
    return name


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


def choose(op: str, device: torch.device, offered: tuple[str, ...]) -> str:
    """The backend that a call of `op` on `device` takes, out of those that the op offers.

    Gluon kernels run where they are forced: nothing chooses one before its device is qualified. Forced, they leave what
    has no Gluon form to Triton.

    Raises:
        RuntimeError: TROPIGRAD_BACKEND forces one that the op lacks or that cannot run here; the message says why.
        ImportError: CUDA tensors without triton.
    """
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
        return "triton"
    if device.type == "cpu" and "cpp" in offered:
        reason = why_off("cpp", device)
        if not reason:
            return "cpp"
        native.warn_of_slower_path(reason)
    return "torch"
