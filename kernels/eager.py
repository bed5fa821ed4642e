"""Whether a call may go straight to its kernel: torch's dispatcher costs a small call more than the kernel does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TYPES = (Tensor, torch.nn.Parameter)


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
    and all are plain: no subclass, no fake, no wrapper, no lazy negation. Costs about a microsecond.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._dispatch_tls_local_include_set().raw_repr() in _quiet()
        and not torch._C._is_torch_function_mode_enabled()
        and not torch.autograd.profiler._is_profiler_enabled
        and forward_ad._current_level < 0
        and all(type(x) in _TYPES and torch._C._dispatch_keys(x).raw_repr() in _plain(x.device.type) for x in tensors)
    )


@functools.cache
def _quiet() -> tuple[int, ...]:
    """The dispatch keys that a thread adds to every call, outside and inside inference mode, when nothing is active."""
    backend = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
    return backend.add(torch._C.DispatchKey.ADInplaceOrView).raw_repr(), backend.raw_repr()


@functools.cache
def _plain(device_type: str) -> tuple[int, ...]:
    """The dispatch keys of a dense tensor, made outside and inside inference mode."""
    with torch.inference_mode(False):
        ordinary = torch.empty(0, device=device_type)
    with torch.inference_mode():
        inference = torch.empty(0, device=device_type)
    return tuple(torch._C._dispatch_keys(x).raw_repr() for x in (ordinary, inference))
