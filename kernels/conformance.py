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
| gradients and double gradients are right; ties route to one winner | gradcheck, subgradient |
| a winner out of range is named or masked, never written; −1 is skipped | indices |
| the same gradient bit for bit when torch.use_deterministic_algorithms asks, on any number of threads | deterministic |
| torch.compile without a graph break or a recompile storm, export, opcheck, vmap | compile, export, opcheck, vmap |
| forward-mode AD is right or raises | jvp |
| autocast casts nothing down | autocast |
| many threads at once, other streams and devices | threads, streams |
| calls that ran once can be captured in a CUDA graph | capture |
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo.testing
from torch import Tensor

from ..autotune import override
from . import backend as backends
from .spec import REGISTRY, Shape, Spec

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


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


def assert_same(got: Any, expected: Any, exact: bool, what: str = "result") -> None:
    """`==`, NaN where NaN, same shape and dtype; within the dtype's tolerance where the op is not exact."""
    if not isinstance(expected, Tensor):
        for index, (x, y) in enumerate(zip(got, expected, strict=True)):
            assert_same(x, y, exact, f"{what}[{index}]")
        return
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == expected.dtype, f"{what}: {got.dtype}, expected {expected.dtype}"
    if not exact and expected.is_floating_point():
        tolerance = TOLERANCE[expected.dtype]
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        return
    wrong = ~((got == expected) | ((got != got) & (expected != expected)))
    if wrong.any():
        where = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} differ, "
            f"first at {where}: {got[where]}, expected {expected[where]}"
        )


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


def _check_subgradient(spec: Spec, name: str, device: torch.device, kwargs, shape: Shape) -> None:
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
    for index, (op, args) in enumerate(spec.raw_ops(device)):

        def run(op=op, args=args):
            torch.library.opcheck(op, args)

        yield Case(spec.name, "opcheck", f"{op.name()}-{index}", run)


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
    return torch.linspace(-1, 1, out.numel()).to(out).view_as(out)


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


def _check_repetitions(spec: Spec, device: torch.device, kwargs, dtype: torch.dtype, shape: Shape, batched: bool):
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
    forward, config, strides, huge, misuse, gradcheck, subgradient, indices, deterministic, compile, export, opcheck,
    vmap, jvp, autocast, threads, streams, capture, repetitions,
)  # fmt: skip


def _offers(spec: Spec, name: str, kwargs) -> bool:
    return name in spec.offers(kwargs)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
