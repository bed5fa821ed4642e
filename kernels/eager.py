"""Whether a call may go straight to its kernel: torch's dispatcher costs a small call more than the kernel does."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, get_num_threads, is_grad_enabled
from torch.autograd import forward_ad, profiler
from torch.compiler import is_compiling

from .. import autotune
from . import backend, native

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


SOURCE = Path(__file__).with_suffix(".cpp")
MOST_CALLS = 1 << 12  # where shapes never repeat, nothing is gained by keeping them all
CALLS_BEFORE_COMPILING = 1000  # compiling against torch's headers takes a core a quarter of a minute, once

# what has these values while nobody looks and no block chooses a backend or a config: variables of modules, and of
# the context
_FLAGS = (
    (vars(forward_ad), "_current_level", -1),
    (vars(profiler), "_is_profiler_enabled", False),
    (vars(backend), "forced_everywhere", ""),
)
_SCOPES = ((autotune.SCOPE, None), (backend.FORCED, ""))


def recall(options: tuple[Hashable, ...], tensors: tuple[Any, ...]) -> Callable[..., Any] | Literal[False] | None:
    """What was remembered of a call that takes the same path: a function of these tensors; None where nothing was.

    False where it is not to be remembered: somebody looks, a block that chooses a backend or a config is open, or one
    of the tensors is no plain one of the CPU. None may stand for a tensor that a call does without.

    The path depends on the tensors' layouts in memory, the options, the op's name among them, whether a gradient is
    wanted, and the threads. eager.cpp answers once it is compiled, which the first thousand recalled calls start in
    the background; Python does until then, and where there is no compiler, or Python has no headers.
    """
    return not is_compiling() and _front.recall(options, tensors)


def remember(call: Callable[..., Any], options: tuple[Hashable, ...], tensors: tuple[Any, ...]) -> None:
    """`recall(options, tensors)` gives this call, until autotune.reload()."""
    _use_compiled()
    _front.remember(call, options, tensors)


def prepared(
    run: Any,
    always: Any,
    outputs: tuple[Tensor | None, ...],
    check: Callable[[int], None],
    *,
    writes: tuple[int, ...] = (),
    gathers: bool = False,
) -> Callable[..., Any]:
    """A function of tensors that gives their addresses to a C++ kernel and returns the new outputs.

    Args:
        run: int(const void* always, void*...), of a library of native.py: the inputs' addresses, the outputs', at most
            8 together. With `gathers` any number, in an array: int(const void* always, void* const*).
        always: what each call is given too, an array or a structure of ctypes; kept.
        outputs: like which each is made, contiguous (native.shape_only); None for one whose address is null.
        check: raises what a status that is not 0 means.
        writes: the places of the inputs that are written, which autograd is told.

    Returns:
        A function of tensors, None and numbers, of which a null and the address of a double are given; it returns the
        outputs that are not None: the one, or a tuple. It raises NotPlain where a tensor has no memory of its own.
    """
    _use_compiled()
    if _front is not _python:
        return _front.prepared(ctypes.cast(run, ctypes.c_void_p).value, always, outputs, check, writes, gathers)
    empty_like, increment = torch.empty_like, torch.autograd.graph.increment_version

    def call(*inputs: Any) -> Any:
        made = [None if like is None else empty_like(like) for like in outputs]
        addresses = [_address(x) for x in (*inputs, *made)]
        if gathers:
            pointers = [x if x is None or isinstance(x, int) else ctypes.addressof(x) for x in addresses]
            status = run(ctypes.byref(always), (ctypes.c_void_p * len(pointers))(*pointers))
        else:
            status = run(
                ctypes.byref(always), *(ctypes.byref(x) if isinstance(x, ctypes.c_double) else x for x in addresses)
            )
        if status:
            check(status)
        for at in writes:
            if not inputs[at].is_inference():  # such a tensor has no version
                increment(inputs[at])
        wanted = tuple(x for x in made if x is not None)
        return wanted[0] if len(wanted) == 1 else wanted

    return call


def _address(x: Tensor | float | None) -> int | ctypes.c_double | None:
    """Of a tensor; or the number itself, whose address only lives as long as it does."""
    if isinstance(x, Tensor):
        if not (address := x.data_ptr()):
            raise NotPlain
        return address
    return None if x is None else ctypes.c_double(x)


def compile() -> bool:
    """Compiles eager.cpp where that was never done, which takes a quarter of a minute; whether it answers now."""
    return _use_compiled() or _use(native.extension(SOURCE, compiles=True))


def who_answers() -> str:
    """Who recalls small calls here, and why no other, for people."""
    if _use_compiled() or _front is not _python:
        return "C++"
    if reason := native.why_no_compiler():
        return f"Python: {reason}"
    if not native.has_python_headers():
        return "Python: its headers are absent; install them for calls of 1 µs (Debian: apt install python3-dev)"
    return f"Python; C++ once a program has recalled {CALLS_BEFORE_COMPILING}"


@functools.cache
def _use_compiled() -> bool:
    return _use(native.extension(SOURCE, compiles=False))


def _use(found: Any) -> bool:
    global _front
    if found is not None and _front is _python:
        found.watch(_QUIET, _plain("cpu"), _FLAGS, _SCOPES, MOST_CALLS, NotPlain)
        _front = found
        _python.forget()
    return found is not None


class _Python:
    """The table of eager.cpp, until that is there."""

    def __init__(self) -> None:
        self.calls: dict[Hashable, Callable[..., Any]] = {}
        self.recalled = 0

    def recall(self, options: tuple[Hashable, ...], tensors: tuple[Any, ...]) -> Any:
        key = self._key(options, tensors)
        call = key is not None and self.calls.get(key)
        if call:
            self.recalled += 1
            if self.recalled == CALLS_BEFORE_COMPILING:
                native.in_background(compile)
        return call

    def remember(self, call: Callable[..., Any], options: tuple[Hashable, ...], tensors: tuple[Any, ...]) -> None:
        if len(self.calls) >= MOST_CALLS:
            self.forget()
        key = self._key(options, tensors)
        if key is not None:
            self.calls[key] = call

    def forget(self) -> None:
        self.calls.clear()

    @staticmethod
    def _key(options: tuple[Hashable, ...], tensors: tuple[Any, ...]) -> Hashable | None:
        if not _nobody_looks() or any(values[name] != quiet for values, name, quiet in _FLAGS):
            return None
        if any(variable.get() != quiet for variable, quiet in _SCOPES):
            return None
        key, requires_grad = (options, get_num_threads()), False
        for x in tensors:
            if x is None:
                key += (None,)
                continue
            if type(x) not in _TYPES or not x.is_cpu or x.is_neg() or x.is_nested or x.layout is not torch.strided:
                return None
            key += x.shape, x.stride(), x.dtype
            requires_grad |= x.requires_grad
        return *key, requires_grad and is_grad_enabled()


_python = _Python()
_front: Any = _python
autotune.on_reload(lambda: _front.forget())


@functools.cache
def _plain(device_type: str) -> tuple[int, ...]:
    """The dispatch keys of a dense tensor, made outside and inside inference mode."""
    with torch.inference_mode(False):
        ordinary = torch.empty(0, device=device_type)
    with torch.inference_mode():
        inference = torch.empty(0, device=device_type)
    return tuple(torch._C._dispatch_keys(x).raw_repr() for x in (ordinary, inference))
