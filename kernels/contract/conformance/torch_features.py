"""Promises about torch's features: it compiles, exports, transforms, traces and autocasts an op."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.fx.proxy import GraphAppendingTracer

from ....autotune import reload
from ..comparison import assert_same
from ..spec import Spec
from .calls import as_leaves, cast, forced, offers, short, tiny_leaves, unequal_weights, value_and_gradients
from .case import Case


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
    import torch._dynamo.testing  # two seconds, which a process that runs other cases need not spend

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(compiler)
    compiled = torch.compile(lambda *x: spec.op(*x, **kwargs), fullgraph=True, backend=counter)
    for size in range(3, 9):
        shape = {letter: size + offset for offset, letter in enumerate(spec.small_shapes[0])}
        args = spec.inputs(shape, torch.float32, device, size)
        got, expected = (
            value_and_gradients(one, args, kwargs) for one in (replace(spec, op=lambda *x, **_: compiled(*x)), spec)
        )
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
    """vmap over the first argument and over all of them; vmap of the gradient, and the gradient of vmap."""
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
            args = tuple(x.detach() for x in tiny_leaves(spec, device))
            floats = tuple(x for x in args if x.is_floating_point())
            tangents = tuple(torch.ones_like(x) for x in floats)

            def of_floats(op, x):
                values = iter(x)
                return op(*(next(values) if y.is_floating_point() else y for y in args), **kwargs)

            try:
                got = torch.func.jvp(lambda *x: of_floats(spec.op, x), floats, tangents)
            except NotImplementedError:
                return
            expected = torch.func.jvp(lambda *x: of_floats(spec.oracle, x), floats, tangents)
            assert_same(got, expected, False, "value and tangent")

        yield Case(spec.name, "jvp", variant, run)


def autocast(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Autocast changes nothing, except that operands of two dtypes meet in the wider, and inexact ops in float32."""
    for variant, kwargs in spec.variants.items():
        for low in (torch.float16, torch.bfloat16):

            def run(kwargs=kwargs, low=low):
                wide = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                narrow = cast(wide, low)
                mixed = narrow[0], *wide[1:]
                with torch.autocast(device.type, dtype=low):
                    got = [spec.op(*args, **kwargs) for args in (wide, narrow, mixed)]
                exact = spec.is_exact(kwargs)
                meeting = low if exact and not any(x.dtype == torch.float32 for x in mixed) else torch.float32
                casts = [wide, narrow if exact else cast(narrow, torch.float32), cast(mixed, meeting)]
                for label, ours, args in zip(("wide", "narrow", "mixed"), got, casts, strict=True):
                    assert_same(ours, spec.op(*args, **kwargs), True, f"{label} operands under autocast")

            yield Case(spec.name, "autocast", f"{variant}-{short(low)}", run)


def jit_trace(spec: Spec, device: torch.device) -> Iterator[Case]:
    """torch.jit traces the op, and its check traces again without gradients; arguments require them or not."""
    for variant, kwargs in spec.variants.items():
        for trained in (False, True) if spec.is_differentiable else (False,):

            def run(kwargs=kwargs, trained=trained):
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                inputs = as_leaves(args)[0] if trained else args
                with warnings.catch_warnings():
                    # it warns that a trace leaves out checks of shapes
                    warning = torch.jit.TracerWarning  # pyright: ignore[reportPrivateImportUsage]
                    warnings.filterwarnings("ignore", "(Converting|Iterating)", warning)
                    for _ in range(2):
                        traced: Any = torch.jit.trace(lambda *x: spec.op(*x, **kwargs), inputs)
                new = spec.inputs(spec.small_shapes[-1], torch.float32, device, 1)
                assert_same(traced(*new).detach(), spec.op(*new, **kwargs), spec.is_exact(kwargs), "traced result")

            yield Case(spec.name, "jit_trace", variant + "-trained" * trained, run)


def fx_trace(spec: Spec, device: torch.device) -> Iterator[Case]:
    """torch.fx traces the op as one call of the public function, and the traced module gives the same results."""
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
            expected = value_and_gradients(spec, new, kwargs, unequal_weights)
            got = value_and_gradients(replace(spec, op=lambda *x, **_: traced(*x)), new, kwargs, unequal_weights)
            assert_same(got, expected, device.type == "cpu", "traced result and gradients")

        yield Case(spec.name, "fx_trace", variant, run)


def default_device(spec: Spec, device: torch.device) -> Iterator[Case]:
    """With "meta" as the default device, in a block and for good, and afterwards: result and gradient are right."""
    shape = {letter: 6 + 2 * index for index, letter in enumerate(spec.small_shapes[0])}  # no other case has this shape
    for name in ("auto", *spec.backends):
        for variant, kwargs in spec.variants.items():
            if name != "auto" and not offers(spec, name, kwargs):
                continue

            def run(name=name, kwargs=kwargs):
                reload()
                args = spec.inputs(shape, torch.float32, device, 0)

                def results():
                    return value_and_gradients(spec, args, kwargs, unequal_weights)

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
