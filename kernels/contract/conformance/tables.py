"""What every registered op promises, as cases that a test suite or a new device's qualification runs.

A case is a name and a call that raises AssertionError where the promise is broken, or `NotHere` where this machine
cannot tell. An op joins by being registered: nothing here names one. One that works in place gives its spec a function
that returns what was written; the spec also says whether there are gradients, and which promises are none of its own.

| promise | cases |
|---|---|
| values and winners equal the oracle's on every backend: ties, NaN, ∓∞, saturation, empty sizes, all dtypes | forward |
| so they do with any config | config |
| any stride, offsets beyond 2³¹ elements included; more than 2³¹ outputs on a GPU | strides, huge |
| misuse is named | misuse |
| gradients and double gradients are right; ties route to one winner; of nothing they are 0 | gradcheck, subgradient, \
empty |
| a winner out of range is named or masked, never written; −1 is skipped | indices |
| the same gradient bit for bit when torch.use_deterministic_algorithms asks, on any number of threads | deterministic |
| torch.compile without a graph break or a recompile storm, export, opcheck, vmap | compile, export, opcheck, vmap |
| forward-mode AD is right or raises | jvp |
| autocast casts nothing down | autocast |
| many threads at once, other streams and devices | threads, streams |
| calls that ran once can be captured in a CUDA graph | capture |
| the same bits in every form that the C++ kernels can be built in | forms |
| a call behaves as the first did, however often the like was made: saved tensors, hooks, graph, errors, names of \
operators | checkpointing, saved_tensors, graph, profiler |
| torch.jit.trace, with its check, and torch.fx.symbolic_trace | jit_trace, fx_trace |
| nothing lands on a default device that the arguments are not on | default_device |
| right to the ends of the dtype's range; scaled by a power of two, the same but for that power | ends, scaling |
| operands that share memory are as copies | aliasing |
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo.testing
from torch import Tensor
from torch.fx.proxy import GraphAppendingTracer
from torch.utils.checkpoint import checkpoint

from ....autotune import override, reload
from ...runtime import backend as backends
from ...runtime import native
from ..comparison import assert_same
from ..registry import REGISTRY
from ..spec import Scaling, Sizes, Spec


class NotHere(Exception):
    """This machine cannot run the case; the message says why."""


@dataclass(frozen=True)
class Case:
    """One check of one op: `run()` passes, or raises AssertionError or NotHere."""

    op: str
    promise: str
    id: str
    run: Callable[[], None]
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.op}-{self.promise}-{self.id}"


def cases(device: torch.device, ops: tuple[str, ...] = ()) -> list[Case]:
    """Every case of the named ops, or of all."""
    specs = [spec for name, spec in REGISTRY.items() if not ops or name in ops]
    return [
        case
        for spec in specs
        for table in TABLES
        if table.__name__ not in spec.left_out
        for case in table(spec, device)
    ]


# ------------------------------------------------------------------------------------------------ how to compare


@contextmanager
def forced(name: str, device: torch.device) -> Iterator[None]:
    """One backend inside the block; memory that a kernel fails to write reads as NaN there."""
    reason = backends.why_off(name, device)
    if reason:
        raise NotHere(reason)
    with backends.forcing(name, everywhere=True):
        yield


@contextmanager
def _poisoned() -> Iterator[None]:
    """torch.empty gives NaN (integers: the largest) inside the block."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _check_forward(spec: Spec, name: str, device: torch.device, args, kwargs) -> None:
    if name == "triton" and _interpreter_truncates(spec, args, kwargs):
        raise NotHere("Triton's interpreter truncates bfloat16 where a GPU rounds")
    with forced(name, device), _poisoned():
        if spec.has_winners(kwargs):
            assert_same(
                spec.op(*args, **kwargs, return_indices=True),
                spec.oracle(*args, **kwargs, return_indices=True),
                spec.is_exact(kwargs),
            )
        assert_same(spec.op(*args, **kwargs), spec.oracle(*args, **kwargs), spec.is_exact(kwargs))


def _interpreter_truncates(spec: Spec, args, kwargs) -> bool:
    """Whether some value needs more than bfloat16's bits, so that it matters how the interpreter shortens it."""
    if not backends.interpreted() or args[0].dtype != torch.bfloat16:
        return False
    wide = spec.oracle(*_cast(args, torch.float64), **kwargs)
    return not torch.equal(wide.bfloat16().double().nan_to_num(), wide.nan_to_num()) or not _on_a_grid(args)


def _on_a_grid(args) -> bool:
    """Whether all finite inputs are small integers, whose sums and products bfloat16 holds exactly."""
    floats = [x for x in args if x.is_floating_point()]
    return all(bool(((x == x.round()) & (x.abs() < 12)).logical_or(~x.isfinite()).all()) for x in floats)


# An op may take integer tensors beside its floats, such as paths: they are neither cast nor differentiated.


def _cast(args, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in args)


def _leaves(args) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The arguments, float ones as leaves that require a gradient; and these alone."""
    args = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in args)
    return args, tuple(x for x in args if x.requires_grad)


def _results(spec: Spec, args, kwargs, weight: Callable[[Tensor], Tensor] = torch.ones_like) -> tuple[Tensor, ...]:
    """The value and, where there are any, the gradients of the arguments under `weight(value)`."""
    if not spec.is_differentiable:
        return (spec.op(*args, **kwargs),)
    args, leaves = _leaves(args)
    out = spec.op(*args, **kwargs)
    return out.detach(), *torch.autograd.grad(out, leaves, weight(out))


# ------------------------------------------------------------------------------------------------ the tables


def forward(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for sample in spec.samples(device):
            if _offers(spec, name, sample.kwargs):
                yield Case(
                    spec.name,
                    "forward",
                    f"{name}-{sample.id}",
                    lambda name=name, s=sample: _check_forward(spec, name, device, s.args, s.kwargs),
                )
        for variant, kwargs in spec.variants.items():
            for dtype in spec.dtypes:
                if not spec.supports(dtype, kwargs) or not _offers(spec, name, kwargs):
                    continue
                for seed, shape in enumerate(spec.small_shapes):
                    label = "x".join(str(size) for size in shape.values())
                    yield Case(
                        spec.name,
                        "forward",
                        f"{name}-{variant}-{_short(dtype)}-{label}",
                        lambda name=name, kwargs=kwargs, dtype=dtype, shape=shape, seed=seed: _check_forward(
                            spec, name, device, spec.inputs(shape, dtype, device, seed), kwargs
                        ),
                        slow=name == "triton" and device.type == "cpu" and seed > 1,
                    )


def config(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The smallest and the largest config of every tuned kernel; the whole space is slow."""
    shape = {letter: 18 + 3 * index for index, letter in enumerate(spec.small_shapes[0])}  # ragged for any power of 2
    for name, kernels in spec.tuned.items():
        for tuned in kernels:
            configs = list(tuned.space)
            for index, chosen in enumerate(configs):

                def run(name=name, tuned=tuned, chosen=chosen):
                    for kwargs in (kwargs for kwargs in spec.variants.values() if _offers(spec, name, kwargs)):
                        with override(tuned.name, chosen):
                            _check_forward(spec, name, device, spec.inputs(shape, torch.float32, device, 0), kwargs)
                            if spec.is_differentiable:
                                _check_subgradient(spec, name, device, kwargs, shape)

                label = "-".join(f"{key}={value}" for key, value in chosen.items())
                slow = index not in (0, len(configs) - 1)
                yield Case(spec.name, "config", f"{tuned.name}-{label}", run, slow=slow)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[..., :1, :1].expand(x.shape),
    "sliced": lambda x: x.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., ::3, ::2],
    "offset": lambda x: torch.cat([x.new_zeros(7), x.flatten()])[7:].view(x.shape),
    "far": lambda x: _spread(x),
}


def _spread(x: Tensor) -> Tensor:
    """The rows of x so far apart that the last lies beyond 2³¹ elements; the memory between is never touched."""
    *outer, columns = x.shape
    step = 2**31 // max(1, math.prod(outer) - 1) + columns
    rows = torch.empty(step * (math.prod(outer) - 1) + columns, dtype=x.dtype, device=x.device)
    strides = [step * math.prod(outer[axis + 1 :]) for axis in range(len(outer))]
    return rows.as_strided(x.shape, (*strides, 1)).copy_(x)


def strides(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for label, layout in LAYOUTS.items():

            def run(name=name, layout=layout):
                dtype = torch.float16 if layout is LAYOUTS["far"] else torch.float32  # 4 GiB an operand on a GPU
                args = tuple(layout(x) for x in spec.inputs(spec.small_shapes[-1], dtype, device, 0))
                for kwargs in spec.variants.values():
                    if _offers(spec, name, kwargs):
                        _check_forward(spec, name, device, args, kwargs)

            yield Case(spec.name, "strides", f"{name}-{label}", run)


def misuse(spec: Spec, device: torch.device) -> Iterator[Case]:
    for bad in spec.misuses(device):

        def run(bad=bad):
            try:
                bad.call()
            except bad.error as error:
                text = str(error)
                assert re.search(bad.match, text), f"the message {text!r} lacks {bad.match!r}"
                assert text.startswith(f"{spec.name}: "), f"the message {text!r} does not name {spec.name}"
            else:
                raise AssertionError(f"no {bad.error.__name__}: the call passed")

        yield Case(spec.name, "misuse", bad.id, run)


def _tiny(spec: Spec, device: torch.device) -> tuple[Tensor, ...]:
    shape = {letter: size for size, letter in enumerate(spec.small_shapes[0], start=2)}
    return _leaves(spec.inputs(shape, torch.float64, device, 0))[0]


def gradcheck(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for variant, kwargs in spec.variants.items():
            if not _offers(spec, name, kwargs):
                continue

            def run(name=name, kwargs=kwargs):
                with forced(name, device):
                    args = _tiny(spec, device)
                    # atomic additions come in any order on a GPU
                    slack = 0.0 if device.type == "cpu" else 1e-12
                    assert torch.autograd.gradcheck(lambda *x: spec.op(*x, **kwargs), args, nondet_tol=slack)
                    assert torch.autograd.gradgradcheck(lambda *x: spec.op(*x, **kwargs), args, nondet_tol=slack)

            yield Case(spec.name, "gradcheck", f"{name}-{variant}", run)


def _check_subgradient(spec: Spec, name: str, device: torch.device, kwargs, shape: Sizes) -> None:
    """The gradient equals autograd's through the oracle, on small integers: many ties, and sums that are exact."""
    generator = torch.Generator().manual_seed(1)
    shaped = spec.inputs(shape, torch.float32, device, 0)
    args, leaves = _leaves(
        torch.randint(-2, 3, x.shape, generator=generator).to(x) if x.is_floating_point() else x for x in shaped
    )
    with forced(name, device):
        out = spec.op(*args, **kwargs)
        weight = torch.randint(-4, 5, out.shape, generator=generator).to(out)
        got = torch.autograd.grad(out, leaves, weight)
        expected = torch.autograd.grad(spec.oracle(*args, **kwargs), leaves, weight)
    assert_same(got, expected, spec.is_exact(kwargs), "gradient")


def subgradient(spec: Spec, device: torch.device) -> Iterator[Case]:
    for name in spec.backends:
        for variant, kwargs in spec.variants.items():
            if _offers(spec, name, kwargs):
                yield Case(
                    spec.name,
                    "subgradient",
                    f"{name}-{variant}",
                    lambda name=name, kwargs=kwargs: _check_subgradient(
                        spec, name, device, kwargs, spec.small_shapes[-1]
                    ),
                )


def empty(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Gradients of calls in which some size is 0: shaped as what they are of, and 0, since nothing has won."""
    if not spec.is_differentiable:
        return
    for name in spec.backends:
        for sample in spec.samples(device):
            floats = [x for x in sample.args if x.is_floating_point()]
            if all(x.numel() for x in sample.args) or not floats or not _offers(spec, name, sample.kwargs):
                continue

            def run(name=name, sample=sample, floats=floats):
                with forced(name, device):
                    _, *gradients = _results(spec, sample.args, sample.kwargs, _unlike)
                assert_same(gradients, [torch.zeros_like(x) for x in floats], True, "gradient")

            yield Case(spec.name, "empty", f"{name}-{sample.id}", run)


def compile(spec: Spec, device: torch.device) -> Iterator[Case]:
    for variant, kwargs in spec.variants.items():
        for compiler in ("aot_eager", "inductor"):
            yield Case(
                spec.name,
                "compile",
                f"{compiler}-{variant}",
                lambda kwargs=kwargs, compiler=compiler: _check_compile(spec, device, kwargs, compiler),
                slow=compiler == "inductor",
            )


def _check_compile(spec: Spec, device: torch.device, kwargs, compiler: str) -> None:
    """One graph, the eager result and gradient, and no more than two compilations over many sizes."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(compiler)
    compiled = torch.compile(lambda *x: spec.op(*x, **kwargs), fullgraph=True, backend=counter)
    for size in range(3, 9):
        shape = {letter: size + offset for offset, letter in enumerate(spec.small_shapes[0])}
        args = spec.inputs(shape, torch.float32, device, size)
        got, expected = (_results(one, args, kwargs) for one in (replace(spec, op=lambda *x, **_: compiled(*x)), spec))
        assert_same(got, expected, spec.is_exact(kwargs), "compiled result and gradients")
    assert counter.frame_count <= 2, (
        f"{counter.frame_count} compilations for six sizes; expected one static, one dynamic"
    )


def export(spec: Spec, device: torch.device) -> Iterator[Case]:
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            class Module(torch.nn.Module):
                def forward(self, *args):
                    return spec.op(*args, **kwargs)

            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            exported = torch.export.export(Module(), args)
            assert_same(exported.module()(*args), spec.op(*args, **kwargs), spec.is_exact(kwargs), "exported result")

        yield Case(spec.name, "export", variant, run)


def opcheck(spec: Spec, device: torch.device) -> Iterator[Case]:
    count = Counter()
    for op, args in spec.raw_ops(device):

        def run(op=op, args=args):
            torch.library.opcheck(op, args)

        yield Case(spec.name, "opcheck", f"{op.name()}-{count[op.name()]}", run)
        count[op.name()] += 1


def vmap(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Over the first argument and over all of them; of the gradient, and the gradient of it."""
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            def op(*x):
                return spec.op(*x, **kwargs)

            def total(*x):
                return op(*x).square().sum()

            exact = spec.is_exact(kwargs)
            many = [spec.inputs(spec.small_shapes[-1], torch.float32, device, seed) for seed in range(3)]
            stacked = tuple(torch.stack(x) for x in zip(*many, strict=True))
            each = tuple(index for index, x in enumerate(stacked) if x.is_floating_point())
            one_by_one = torch.stack([op(*args) for args in many])
            assert_same(torch.vmap(op)(*stacked), one_by_one, exact, "vmap")
            first = torch.vmap(op, (0, *[None] * (len(stacked) - 1)))(stacked[0], *many[0][1:])
            assert_same(first, torch.stack([op(args[0], *many[0][1:]) for args in many]), exact, "vmap over the first")
            inner = torch.vmap(torch.func.grad(total, each))(*stacked)
            outer = torch.func.grad(lambda *x: torch.vmap(total)(*x).sum(), each)(*stacked)
            assert_same(inner, outer, False, "vmap(grad) against grad(vmap)")

        yield Case(spec.name, "vmap", variant, run)


def jvp(spec: Spec, device: torch.device) -> Iterator[Case]:
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            args = tuple(x.detach() for x in _tiny(spec, device))
            floats = tuple(x for x in args if x.is_floating_point())
            tangents = tuple(torch.ones_like(x) for x in floats)

            def of_floats(op, x):
                given = iter(x)
                return op(*(next(given) if y.is_floating_point() else y for y in args), **kwargs)

            try:
                got = torch.func.jvp(lambda *x: of_floats(spec.op, x), floats, tangents)
            except NotImplementedError:
                return
            expected = torch.func.jvp(lambda *x: of_floats(spec.oracle, x), floats, tangents)
            assert_same(got, expected, False, "value and tangent")

        yield Case(spec.name, "jvp", variant, run)


def huge(spec: Spec, device: torch.device) -> Iterator[Case]:
    """More than 2³¹ outputs, compared where they end."""
    if spec.huge is None:
        return
    make = spec.huge

    def run():
        if device.type != "cuda":
            raise NotHere("more than 2³¹ outputs take minutes on a CPU")
        args, last = make(device)
        got, expected = spec.op(*args).flatten(), spec.oracle(*last).flatten()
        assert got.numel() > 2**31, f"{got.numel()} outputs; expected more than 2³¹"
        assert_same(got[-expected.numel() :], expected, True, "the last outputs")

    yield Case(spec.name, "huge", "outputs", run)


def indices(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Winners −1 and outside [−1, K), given to the raw scatter."""
    if spec.scatter is None:
        return
    scatter, K = spec.scatter
    for name in spec.backends:

        def run(name=name):
            generator = torch.Generator().manual_seed(0)
            for mode, bad in itertools.product((nullcontext, _poisoned), (K, -2, 2**15 - 1, -(2**15))):
                with forced(name, device), mode():
                    winners = torch.randint(-1, K, (2, 5, 7), generator=generator).to(device, torch.int16)
                    skipped = winners.clone()
                    skipped[1, 2, 3:5] = -1
                    winners[1, 2, 3:5] = bad
                    expected = scatter(skipped)
                    if device.type == "cpu":
                        try:
                            scatter(winners)
                        except IndexError:
                            continue
                        raise AssertionError(f"winner {bad} of K = {K} raised no IndexError")
                    assert_same(scatter(winners), expected, True, f"gradient with winner {bad} of K = {K}")

        yield Case(spec.name, "indices", name, run)


def deterministic(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Value and gradient under torch.use_deterministic_algorithms, 20 times; on a CPU also on one thread and on two."""
    for name in spec.backends:
        for variant, kwargs in spec.variants.items():
            if not _offers(spec, name, kwargs):
                continue

            def run(name=name, kwargs=kwargs):
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                times = 2 if device.type == "cpu" and name == "triton" else 20
                threads = torch.get_num_threads()
                with forced(name, device), _poisoned():
                    try:
                        found = []
                        for turn in range(times):
                            torch.set_num_threads(1 + turn % 2)
                            found.append(_results(spec, args, kwargs, _unlike))
                    finally:
                        torch.set_num_threads(threads)
                for other in found[1:]:
                    assert_same(other, found[0], True, "the same gradient again")

            yield Case(spec.name, "deterministic", f"{name}-{variant}", run)


def _unlike(out: Tensor) -> Tensor:
    """Upstream gradients of which no two are equal."""
    return torch.linspace(-1, 1, out.numel(), device=out.device).to(out).view_as(out)


def autocast(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Inside autocast as outside it, but that operands of two dtypes meet in the wider, and inexact ops in float32."""
    for variant, kwargs in spec.variants.items():
        for low in (torch.float16, torch.bfloat16):

            def run(kwargs=kwargs, low=low):
                wide = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                narrow = _cast(wide, low)
                mixed = narrow[0], *wide[1:]
                with torch.autocast(device.type, dtype=low):
                    got = [spec.op(*args, **kwargs) for args in (wide, narrow, mixed)]
                exact = spec.is_exact(kwargs)
                casts = [wide, narrow if exact else _cast(narrow, torch.float32), _cast(mixed, torch.float32)]
                for label, ours, args in zip(("wide", "narrow", "mixed"), got, casts, strict=True):
                    assert_same(ours, spec.op(*args, **kwargs), True, f"{label} operands under autocast")

            yield Case(spec.name, "autocast", f"{variant}-{_short(low)}", run)


def threads(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Eight Python threads, each with inputs of its own, forward and backward at once."""
    for name in spec.backends:
        if name == "triton" and device.type == "cpu":
            continue  # the interpreter patches triton's language in place: one thread at a time

        def run(name=name):
            kwargs = next(iter(spec.variants.values()))
            inputs = [spec.inputs(spec.small_shapes[-1], torch.float32, device, seed) for seed in range(8)]

            found = {}
            with forced(name, device):
                expected = [_results(spec, args, kwargs) for args in inputs]

                def work(index):
                    for _ in range(10):
                        found[index] = _results(spec, inputs[index], kwargs)

                workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
            exact = device.type == "cpu"  # atomic additions come in any order on a GPU
            for index, one in enumerate(expected):
                assert_same(found[index], one, exact, f"thread {index}")

        yield Case(spec.name, "threads", name, run)


def streams(spec: Spec, device: torch.device) -> Iterator[Case]:
    """On a stream that is not the default one, and on a second device."""
    for variant, kwargs in spec.variants.items():

        def on_a_stream(kwargs=kwargs):
            if device.type != "cuda":
                raise NotHere("no GPU, no streams")
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            expected = spec.op(*args, **kwargs)
            torch.cuda.synchronize(device)
            stream = torch.cuda.Stream(device)
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10_000_000)  # what ran on the default stream instead would be done long before
                late = [x.clone() for x in args]
                got = spec.op(*late, **kwargs)
            stream.synchronize()
            assert_same(got, expected, True, "on another stream")

        def on_another_device(kwargs=kwargs):
            if device.type != "cuda" or torch.cuda.device_count() < 2:
                raise NotHere("no second GPU")
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            second = torch.device("cuda", 1)
            got = spec.op(*(x.to(second) for x in args), **kwargs)
            assert got.device == second, f"the result is on {got.device}; expected {second}"
            assert_same(got.to(device), spec.op(*args, **kwargs), True, "on another device")

        yield Case(spec.name, "streams", f"stream-{variant}", on_a_stream)
        yield Case(spec.name, "streams", f"device-{variant}", on_another_device)


def capture(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Forward and backward captured in a CUDA graph after one warm-up, replayed on new inputs."""
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            if device.type != "cuda":
                raise NotHere("no GPU, no CUDA graphs")
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)

            def results():
                return _results(spec, args, kwargs)

            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                results()
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = results()
            with torch.no_grad():
                for x, new in zip(args, spec.inputs(spec.small_shapes[-1], torch.float32, device, 1), strict=True):
                    x.copy_(new)
            graph.replay()
            torch.cuda.synchronize(device)
            assert_same(captured, results(), False, "replayed")

        yield Case(spec.name, "capture", variant, run)


# ------------------------------------------------------------------------------------------------ forms of C++

FORMS = (
    *(native.Form("native", by_fma) for by_fma in (False, True)),
    *(native.Form(level, False) for level in native.LEVELS),
    *(native.Form(level, True) for level in native.LEVELS[2:]),  # the others have no fused multiply-add
)


def forms(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Values, winners and gradients of the C++ kernels in every form: the oracle's, and the same bits as by default.

    A library takes seconds to compile: what is not slow is float32 with the shortest vectors, and, where a kernel adds
    as the form says, in both ways with the longest.
    """
    if "cpp" not in spec.backends or device.type != "cpu":
        return
    adds = any(kernel.source and native.has_two_sums(kernel.source) for kernel in spec.tuned.get("cpp", ()))
    for form, dtype in itertools.product(FORMS, spec.dtypes):
        if form.by_fma and not (adds and dtype.is_floating_point):
            continue
        quick = form == native.Form("x86-64", False) or (adds and form.processor == "native")
        yield Case(
            spec.name,
            "forms",
            f"{form}-{_short(dtype)}",
            lambda form=form, dtype=dtype: _check_form(spec, device, form, dtype),
            slow=not quick or dtype != torch.float32,
        )


def _check_form(spec: Spec, device: torch.device, form: native.Form, dtype: torch.dtype) -> None:
    if reason := native.why_not(form):
        raise NotHere(reason)
    calls = [(spec.inputs(shape, dtype, device, 0), kwargs) for shape in spec.small_shapes
             for kwargs in spec.variants.values() if spec.supports(dtype, kwargs)]  # fmt: skip
    calls += [(sample.args, sample.kwargs) for sample in spec.samples(device) if sample.args[0].dtype == dtype]
    calls = [(args, kwargs) for args, kwargs in calls if _offers(spec, "cpp", kwargs)]

    def results():
        with forced("cpp", device):
            for args, kwargs in calls:
                winners = {"return_indices": True} if spec.has_winners(kwargs) else {}
                yield spec.op(*args, **kwargs, **winners)
                if spec.is_differentiable and dtype.is_floating_point:
                    yield _results(spec, args, kwargs, _unlike)

    expected = list(results())
    with native.building(form):
        got = list(results())
        assert native.loaded(), "the form's libraries were not asked for"
        for args, kwargs in calls:
            _check_forward(spec, "cpp", device, args, kwargs)
    for index, (ours, default) in enumerate(zip(got, expected, strict=True)):
        assert_same(ours, default, True, f"result {index} in the form {form}")


# ------------------------------------------------------------------------------------------------ again and again

TURNS = 4  # of one layout: the first, the next, which may go by what that has found out, and two more


def checkpointing(spec: Spec, device: torch.device) -> Iterator[Case]:
    """torch.utils.checkpoint, which demands that what is computed again saves the same tensors."""
    if not spec.is_differentiable:
        return
    for variant, kwargs in spec.variants.items():
        for reentrant in (True, False):

            def run(kwargs=kwargs, reentrant=reentrant):
                reload()  # the first call is to be the first
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                got = []
                for _ in range(TURNS):
                    given, leaves = _leaves(args)
                    out = checkpoint(lambda *x: spec.op(*x, **kwargs), *given, use_reentrant=reentrant)
                    assert isinstance(out, Tensor)
                    out.backward(_unlike(out))
                    got.append((out.detach(), *(x.grad for x in leaves)))
                expected = _results(spec, args, kwargs, _unlike)
                for turn, one in enumerate(got):
                    assert_same(one, expected, device.type == "cpu", f"call {turn}")

            yield Case(spec.name, "checkpointing", f"{variant}-{'reentrant' if reentrant else 'hooks'}", run)


def saved_tensors(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Hooks that copy what is saved, to and fro: the same tensors in each call, and the same result."""
    if not spec.is_differentiable:
        return
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            reload()
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            saved, got = [], []

            def pack(x):
                saved[-1].append((x.shape, x.stride(), x.dtype, x.device))
                return x.clone()

            with torch.autograd.graph.saved_tensors_hooks(pack, torch.clone):
                for _ in range(TURNS):
                    saved.append([])
                    got.append(_results(spec, args, kwargs, _unlike))
            expected = _results(spec, args, kwargs, _unlike)
            for turn, one in enumerate(got):
                assert saved[turn] == saved[0], f"call {turn} saves {saved[turn]}; the first saved {saved[0]}"
                assert_same(one, expected, device.type == "cpu", f"call {turn}")

        yield Case(spec.name, "saved_tensors", variant, run)


def graph(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The nodes of the graph, their kinds, and what is said of misusing it, in each call as in the first."""
    if not spec.is_differentiable:
        return
    for variant, kwargs in spec.variants.items():
        for with_winners in (False, True) if spec.has_winners(kwargs) else (False,):

            def run(kwargs=kwargs, with_winners=with_winners):
                reload()
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                options = {**kwargs, "return_indices": True} if with_winners else kwargs
                found = [_what_the_graph_tells(spec, args, options) for _ in range(TURNS)]
                for turn, one in enumerate(found):
                    assert one == found[0], f"call {turn} tells {one}; the first told {found[0]}"

            yield Case(spec.name, "graph", variant + "-winners" * with_winners, run)


def _what_the_graph_tells(spec: Spec, args, kwargs) -> list[Any]:
    given, _ = _leaves(args)
    made = spec.op(*given, **kwargs)
    results = made if isinstance(made, tuple) else (made,)
    told = [type(made).__name__, *((x.dtype, x.requires_grad, x.is_leaf, x._version) for x in results)]
    waiting = [results[0].grad_fn]
    while waiting:
        node = waiting.pop(0)
        if node is not None:
            told.append(node.name())
            waiting += [before for before, _ in node.next_functions]
    results[0].sum().backward()
    told.append(_said_by(results[0].sum().backward))  # of buffers that are freed
    made = spec.op(*given, **kwargs)
    result = made[0] if isinstance(made, tuple) else made
    with torch.no_grad():
        for x in given:
            x.add_(0)
    told.append(_said_by(result.sum().backward))  # of what was saved, and is changed since
    return told


def _said_by(call: Callable[[], object]) -> str:
    try:
        call()
    except RuntimeError as error:
        return re.sub(r"0x[0-9a-f]+|(version|is at) \d+", "", str(error))
    return ""


def profiler(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The same operators in each call, the fourth as the first, by torch.profiler's account."""
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            reload()
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            named = []
            _results(spec, args, kwargs)
            for _ in range(TURNS):
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                    _results(spec, args, kwargs)
                events = profile.events()
                assert events is not None
                named.append(sorted(event.name for event in events))
                _results(spec, args, kwargs)  # and one that nobody watches
            for turn, names in enumerate(named):
                assert names == named[0], f"call {turn} is {names} to the profiler; the first was {named[0]}"

        yield Case(spec.name, "profiler", variant, run)


# ------------------------------------------------------------------------------------------------ tracers


def jit_trace(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Traced by torch.jit, whose check traces again without gradients, with arguments that require them or not."""
    for variant, kwargs in spec.variants.items():
        for trained in (False, True) if spec.is_differentiable else (False,):

            def run(kwargs=kwargs, trained=trained):
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                given = _leaves(args)[0] if trained else args
                with warnings.catch_warnings():
                    # of checks of shapes, which a trace leaves out
                    said = torch.jit.TracerWarning  # pyright: ignore[reportPrivateImportUsage]
                    warnings.filterwarnings("ignore", "(Converting|Iterating)", said)
                    for _ in range(2):
                        traced: Any = torch.jit.trace(lambda *x: spec.op(*x, **kwargs), given)
                new = spec.inputs(spec.small_shapes[-1], torch.float32, device, 1)
                assert_same(traced(*new).detach(), spec.op(*new, **kwargs), spec.is_exact(kwargs), "traced result")

            yield Case(spec.name, "jit_trace", variant + "-trained" * trained, run)


def fx_trace(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Traced by torch.fx as one call of the public function, and as good as that."""
    for variant, kwargs in spec.variants.items():

        def run(kwargs=kwargs):
            args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
            recorded = torch.fx.Graph()
            tracer = GraphAppendingTracer(recorded)
            proxies = [torch.fx.Proxy(recorded.placeholder(f"x{index}"), tracer) for index in range(len(args))]
            recorded.output(spec.op(*proxies, **kwargs).node)
            traced = torch.fx.GraphModule(torch.nn.Module(), recorded)
            calls = [node.target for node in recorded.nodes if node.op.startswith("call")]
            ours = [call for call in calls if getattr(call, "__module__", "").startswith("tropigrad.")]
            assert len(ours) == 1, f"the graph's calls are {calls}; expected one of ours"
            new = spec.inputs(spec.small_shapes[-1], torch.float32, device, 1)
            expected = _results(spec, new, kwargs, _unlike)
            got = _results(replace(spec, op=lambda *x, **_: traced(*x)), new, kwargs, _unlike)
            assert_same(got, expected, device.type == "cpu", "traced result and gradients")

        yield Case(spec.name, "fx_trace", variant, run)


# ------------------------------------------------------------------------------------------------ surroundings


def default_device(spec: Spec, device: torch.device) -> Iterator[Case]:
    """With "meta" as the default device, in a block and for good: the result and the gradient, and those after it."""
    shape = {letter: 6 + 2 * index for index, letter in enumerate(spec.small_shapes[0])}  # nobody has met it before
    for name in ("auto", *spec.backends):
        for variant, kwargs in spec.variants.items():
            if name != "auto" and not _offers(spec, name, kwargs):
                continue

            def run(name=name, kwargs=kwargs):
                reload()
                args = spec.inputs(shape, torch.float32, device, 0)

                def results():
                    return _results(spec, args, kwargs, _unlike)

                got = {}
                with nullcontext() if name == "auto" else forced(name, device):
                    with torch.device("meta"):
                        got["in a block"], got["in a block, again"] = results(), results()
                    torch.set_default_device("meta")
                    try:
                        got["by default"] = results()
                    finally:
                        torch.set_default_device(None)
                    expected = results()
                for where, one in got.items():
                    for x, y in zip(one, expected, strict=True):
                        assert x.device == y.device, f"{where}: a result is on {x.device}; expected {y.device}"
                    assert_same(one, expected, spec.is_exact(kwargs), where)

            slow = name == "triton" and device.type == "cpu"
            yield Case(spec.name, "default_device", f"{name}-{variant}", run, slow=slow)


# ------------------------------------------------------------------------------------------------ range and aliasing


def ends(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The largest numbers of a dtype, the smallest normal and subnormal ones, and their like, all together."""
    for name, dtype in itertools.product(spec.backends, spec.dtypes):
        for variant, kwargs in spec.variants.items():
            if not (dtype.is_floating_point and spec.supports(dtype, kwargs) and _offers(spec, name, kwargs)):
                continue

            def run(name=name, dtype=dtype, kwargs=kwargs):
                generator, bounds = torch.Generator().manual_seed(0), torch.finfo(dtype)
                positive = torch.tensor([bounds.max, bounds.max / 2, 1, bounds.tiny, 3 * bounds.smallest_normal / 4,
                                         bounds.smallest_normal * bounds.eps, 0], dtype=torch.float64)  # fmt: skip
                table = torch.cat([positive, -positive]).to(device, dtype)
                args = tuple(
                    table[torch.randint(len(table), x.shape, generator=generator).to(device)]
                    if x.is_floating_point()
                    else x
                    for x in spec.inputs(_shape_for(name, spec), dtype, device, 0)
                )
                _check_forward(spec, name, device, args, kwargs)

            slow = name == "triton" and device.type == "cpu" and dtype != torch.float32
            yield Case(spec.name, "ends", f"{name}-{variant}-{_short(dtype)}", run, slow=slow)


EXPONENTS = {torch.float64: 60, torch.float32: 40, torch.bfloat16: 40, torch.float16: 4}


def scaling(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Arguments times a power of two, up and down: value, winners and gradients are the same but for theirs."""
    for name, dtype in itertools.product(spec.backends, spec.dtypes):
        for variant, kwargs in spec.variants.items():
            if not (dtype.is_floating_point and spec.supports(dtype, kwargs) and _offers(spec, name, kwargs)):
                continue
            for index, symmetry in enumerate(spec.scalings(kwargs)):

                def run(name=name, dtype=dtype, kwargs=kwargs, symmetry=symmetry):
                    if name == "triton" and backends.interpreted() and dtype == torch.bfloat16:
                        raise NotHere("Triton's interpreter truncates bfloat16 where a GPU rounds")
                    args = spec.inputs(_shape_for(name, spec), dtype, device, 0)
                    with forced(name, device):
                        for exponent in (EXPONENTS[dtype], -EXPONENTS[dtype]):
                            _check_scaling(spec, args, dtype, kwargs, symmetry, exponent)

                slow = name == "triton" and device.type == "cpu" and dtype != torch.float32
                yield Case(spec.name, "scaling", f"{name}-{variant}-{index}-{_short(dtype)}", run, slow=slow)


def _shape_for(name: str, spec: Spec) -> Sizes:
    """A small shape, with ragged edges; for the interpreter, which takes a second a thousand outputs, a tiny one."""
    if name == "triton" and backends.interpreted():
        return {letter: 3 + index for index, letter in enumerate(spec.small_shapes[0])}
    return spec.small_shapes[-1]


def _check_scaling(spec: Spec, args, dtype: torch.dtype, kwargs, symmetry: Scaling, exponent: int) -> None:
    if dtype == torch.float16:  # multiples of 1/64 keep all their bits when they are scaled down
        args = tuple(x.mul(64).round().div(64) if x.is_floating_point() else x for x in args)
    degrees = symmetry.degrees
    assert len(degrees) == len(args), f"{len(degrees)} degrees for {len(args)} arguments"

    def scaled(x: Tensor, degree: int) -> Tensor:
        return x * 2.0 ** (exponent * degree) if degree else x

    def results(args, **options) -> tuple[Tensor, ...]:
        found = _results(spec, args, {**kwargs, **options})
        if spec.has_winners(kwargs):
            found += (spec.op(*args, **kwargs, **options, return_indices=True)[1],)
        return found

    expected = results(args, **symmetry.options(1.0))
    got = results(
        tuple(scaled(x, degree) for x, degree in zip(args, degrees, strict=True)), **symmetry.options(2.0**exponent)
    )
    of_gradients = [symmetry.degree - d for x, d in zip(args, degrees, strict=True) if x.is_floating_point()]
    of_results = [symmetry.degree, *(of_gradients if spec.is_differentiable else ()), 0]
    back = tuple(scaled(x, -degree) for x, degree in zip(got, of_results, strict=False))
    assert_same(back, expected, spec.is_exact(kwargs), f"results of arguments times 2^{exponent}, scaled back")


def aliasing(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Operands that share memory, as if they did not; an op that works in place may refuse them by a ValueError."""
    for variant, kwargs in spec.variants.items():
        for label, views in spec.aliased.items():

            def run(kwargs=kwargs, views=views):
                base = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).to(device)
                for _ in range(TURNS):
                    got = _through(spec, base, kwargs, views)
                    expected = _through(spec, base, kwargs, lambda x: tuple(view.clone() for view in views(x)))
                    assert_same(got, expected, False, "result and gradient")

            yield Case(spec.name, "aliasing", f"{variant}-{label}", run)
    for label, call in spec.overlapping.items():

        def run_in_place(call=call):
            for _ in range(TURNS):
                expected = call(torch.clone)
                try:
                    got = call(lambda x: x)
                except ValueError as error:
                    if not str(error).startswith(f"{spec.name}: "):
                        raise
                    continue
                assert_same(got, expected, spec.is_exact({}), "result as of copies")

        yield Case(spec.name, "aliasing", label, run_in_place)


def _through(spec: Spec, base: Tensor, kwargs, views: Callable[[Tensor], tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """The value and the gradient of what the arguments are views of."""
    base = base.clone().requires_grad_()
    out = spec.op(*views(base), **kwargs)
    return out.detach(), *torch.autograd.grad(out, base, _unlike(out))


# ------------------------------------------------------------------------------------------------ Gluon

REPETITIONS = 20


def repetitions(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The Gluon kernels against the portable ones, again and again: what no interpreter can show of races and edges.

    At the standard shapes (several waves of blocks, many stages of K), with ragged sizes, and batched.
    """
    for variant, kwargs in spec.variants.items():
        for dtype in spec.dtypes:
            if "gluon" not in spec.offers(kwargs) or not spec.supports(dtype, kwargs):
                continue
            for name, shape in spec.shapes.items():
                ragged = {letter: max(1, size - 1 - 2 * index) for index, (letter, size) in enumerate(shape.items())}
                for form, sizes in (("even", shape), ("ragged", ragged), ("batched", ragged)):
                    yield Case(
                        spec.name,
                        "repetitions",
                        f"gluon-{variant}-{_short(dtype)}-{name}-{form}",
                        lambda kwargs=kwargs, dtype=dtype, sizes=sizes, form=form: _check_repetitions(
                            spec, device, kwargs, dtype, sizes, batched=form == "batched"
                        ),
                    )


def _check_repetitions(spec: Spec, device: torch.device, kwargs, dtype: torch.dtype, shape: Sizes, batched: bool):
    options = {**kwargs, "return_indices": True} if spec.has_winners(kwargs) else kwargs

    def op(*args):
        found = spec.op(*args, **options)
        return tuple(found) if isinstance(found, tuple) else (found,)

    reason = backends.why_off("gluon", device)
    if reason:
        raise NotHere(reason)
    inputs = spec.inputs(shape, dtype, device, 0)
    if batched:
        inputs = tuple(torch.stack([x, x.flip(-1), x.flip(0)]) for x in inputs)
        op = torch.func.vmap(op)
    with forced("triton", device):
        expected = op(*inputs)
    for _ in range(REPETITIONS):
        with forced("gluon", device):
            assert_same(op(*inputs), expected, spec.is_exact(kwargs))


TABLES = (
    forward, config, strides, huge, misuse, gradcheck, subgradient, empty, indices, deterministic, compile, export,
    opcheck, vmap, jvp, autocast, threads, streams, capture, repetitions, forms, checkpointing, saved_tensors, graph,
    profiler, jit_trace, fx_trace, default_device, ends, scaling, aliasing,
)  # fmt: skip


def _offers(spec: Spec, name: str, kwargs) -> bool:
    return name in spec.offers(kwargs)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
