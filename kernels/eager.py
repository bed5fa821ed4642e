"""Whether a call may go straight to its kernel: torch's dispatcher costs a small call more than the kernel does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, get_num_threads, is_grad_enabled
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

from .. import autotune
from . import backend

_TYPES = (Tensor, torch.nn.Parameter)


def _quiet() -> tuple[int, ...]:
    """The dispatch keys that a thread adds to every call, outside and inside inference mode, when nothing is active."""
    backend = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
    return backend.add(torch._C.DispatchKey.ADInplaceOrView).raw_repr(), backend.raw_repr()


_QUIET = _quiet()
# bound once: a look-up through two modules takes as long as the question
_included, _has_function_mode = torch._C._dispatch_tls_local_include_set, torch._C._is_torch_function_mode_enabled
_dispatch_keys = torch._C._dispatch_keys


def route(function: type[torch.autograd.Function], kernel: Callable[..., Any], *tensors: Tensor) -> Callable[..., Any]:
    """What to call for `function.apply`: the kernel inside it, where neither gradients nor anybody else want more.

    kernel: takes the arguments of function.forward, and gives what that gives through the dispatcher.
    """
    if not is_unobserved(*tensors):
        return function.apply
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _undispatched(function, kernel).apply
    return kernel


@functools.cache
def _undispatched(function: Any, kernel: Callable[..., Any]) -> type[torch.autograd.Function]:
    """`function` without its setup_context: torch then binds no signature, which takes 25 µs a call."""

    class Undispatched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = kernel(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *gradients):
            return function.backward(ctx, *gradients)

    return Undispatched


def is_unobserved(*tensors: Tensor) -> bool:
    """Whether nothing would look at an operator on these tensors on its way to the kernel.

    No compiler, tracer, profiler, mode or functorch transform is active, no tensor can carry a forward-mode tangent,
    and all are plain, on one device: no subclass, no fake, no wrapper, no lazy negation. Costs about a microsecond.
    """
    if not _nobody_looks():
        return False
    plain = _plain(tensors[0].device.type)
    return all(type(x) in _TYPES and _dispatch_keys(x).raw_repr() in plain for x in tensors)


def _nobody_looks() -> bool:
    return (
        not is_compiling()
        and _included().raw_repr() in _QUIET
        and not _has_function_mode()
        and not profiler._is_profiler_enabled
        and forward_ad._current_level < 0
    )


# ------------------------------------------------------------------------------------------------ calls seen before


class NotPlain(Exception):
    """A remembered call met a tensor without memory of its own, such as torch's zero tensors: the dispatcher serves."""


MOST_CALLS = 1 << 12  # where shapes never repeat, nothing is gained by keeping them all
_calls: dict[Hashable, Callable[..., Any]] = {}
autotune.on_reload(_calls.clear)


def label(x: Tensor, y: Tensor, *options: Hashable) -> Hashable | None:
    """What a call on two CPU tensors depends on besides their elements: calls of one label take the same path.

    Their layouts in memory, the options, the op's name among them, whether a gradient is wanted, the threads, and the
    backend that is forced. None where somebody looks, or where the call is not to be remembered.
    """
    if (
        _nobody_looks()
        and (type(x) in _TYPES and type(y) in _TYPES and x.is_cpu and y.is_cpu and not x.is_neg() and not y.is_neg())
        and not autotune.is_scoped()
    ):
        try:
            return (
                *(x.shape, x.stride(), x.dtype, y.shape, y.stride(), y.dtype, options),
                *(is_grad_enabled() and (x.requires_grad or y.requires_grad), get_num_threads(), backend.forced()),
            )
        except RuntimeError:  # a sparse tensor has no strides
            pass
    return None


recall = _calls.get


def remember(label: Hashable, call: Callable[..., Any]) -> None:
    """`recall(label)` gives this call, on two tensors, until autotune.reload()."""
    if len(_calls) >= MOST_CALLS:
        _calls.clear()
    _calls[label] = call


@functools.cache
def _plain(device_type: str) -> tuple[int, ...]:
    """The dispatch keys of a dense tensor, made outside and inside inference mode."""
    with torch.inference_mode(False):
        ordinary = torch.empty(0, device=device_type)
    with torch.inference_mode():
        inference = torch.empty(0, device=device_type)
    return tuple(torch._C._dispatch_keys(x).raw_repr() for x in (ordinary, inference))
