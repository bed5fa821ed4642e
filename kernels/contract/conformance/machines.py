"""Promises about where an op runs: threads, streams, CUDA graphs, forms of C++, and races of GPU kernels."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import torch

from ...runtime import backend as backends
from ...runtime import native
from ..comparison import assert_same
from ..spec import Sizes, Spec
from .calls import forced, offers, poisoned, short, unequal_weights, value_and_gradients
from .case import Case, NotHere
from .values import check_forward


def deterministic(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Value and gradient under torch.use_deterministic_algorithms, 20 times; on a CPU also on one thread and on two."""
    for name in spec.backends:
        for variant, kwargs in spec.variants.items():
            if not offers(spec, name, kwargs):
                continue

            def run(name=name, kwargs=kwargs):
                args = spec.inputs(spec.small_shapes[-1], torch.float32, device, 0)
                times = 2 if device.type == "cpu" and name == "triton" else 20
                threads = torch.get_num_threads()
                with forced(name, device), poisoned():
                    try:
                        results = []
                        for turn in range(times):
                            torch.set_num_threads(1 + turn % 2)
                            results.append(value_and_gradients(spec, args, kwargs, unequal_weights))
                    finally:
                        torch.set_num_threads(threads)
                for other in results[1:]:
                    assert_same(other, results[0], True, "the same gradient again")

            yield Case(spec.name, "deterministic", f"{name}-{variant}", run)


def threads(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Eight Python threads, each with inputs of its own, forward and backward at once."""
    for name in spec.backends:
        if name == "triton" and device.type == "cpu":
            continue  # the interpreter patches triton's language in place, and so bears one thread only

        def run(name=name):
            kwargs = next(iter(spec.variants.values()))
            inputs = [spec.inputs(spec.small_shapes[-1], torch.float32, device, seed) for seed in range(8)]

            last = {}
            with forced(name, device):
                expected = [value_and_gradients(spec, args, kwargs) for args in inputs]

                def work(index):
                    for _ in range(10):
                        last[index] = value_and_gradients(spec, inputs[index], kwargs)

                workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
            exact = device.type == "cpu"  # atomic additions come in any order on a GPU
            for index, one in enumerate(expected):
                assert_same(last[index], one, exact, f"thread {index}")

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
                torch.cuda._sleep(
                    10_000_000
                )  # work that went to the default stream by mistake would be done long before
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
                return value_and_gradients(spec, args, kwargs)

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


FORMS = (
    *(native.Form("native", by_fma) for by_fma in (False, True)),
    *(native.Form(level, False) for level in native.LEVELS),
    *(native.Form(level, True) for level in native.LEVELS[2:]),  # the first two have no fused multiply-add
)


def forms(spec: Spec, device: torch.device) -> Iterator[Case]:
    """Values, winners and gradients of the C++ kernels in every form: the oracle's, and the same bits as by default.

    A library takes seconds to compile. Therefore only float32 is not marked slow: with the shortest vectors and, if a
    kernel adds as the form says, with the longest vectors in both ways.
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
            f"{form}-{short(dtype)}",
            lambda form=form, dtype=dtype: _check_form(spec, device, form, dtype),
            slow=not quick or dtype != torch.float32,
        )


def _check_form(spec: Spec, device: torch.device, form: native.Form, dtype: torch.dtype) -> None:
    if reason := native.why_not(form):
        raise NotHere(reason)
    calls = [(spec.inputs(shape, dtype, device, 0), kwargs) for shape in spec.small_shapes
             for kwargs in spec.variants.values() if spec.supports(dtype, kwargs)]  # fmt: skip
    calls += [(sample.args, sample.kwargs) for sample in spec.samples(device) if sample.args[0].dtype == dtype]
    calls = [(args, kwargs) for args, kwargs in calls if offers(spec, "cpp", kwargs)]

    def results():
        with forced("cpp", device):
            for args, kwargs in calls:
                winners = {"return_indices": True} if spec.has_winners(kwargs) else {}
                yield spec.op(*args, **kwargs, **winners)
                if spec.is_differentiable and dtype.is_floating_point:
                    yield value_and_gradients(spec, args, kwargs, unequal_weights)

    expected = list(results())
    with native.building(form):
        got = list(results())
        assert native.loaded(), "the form's libraries were not asked for"
        for args, kwargs in calls:
            check_forward(spec, "cpp", device, args, kwargs)
    for index, (ours, default) in enumerate(zip(got, expected, strict=True)):
        assert_same(ours, default, True, f"result {index} in the form {form}")


REPETITIONS = 20


def repetitions(spec: Spec, device: torch.device) -> Iterator[Case]:
    """The Gluon kernels against the portable ones, again and again: no interpreter can show all races and edges.

    They run at the standard shapes (several waves of blocks, many stages of K), with ragged sizes, and batched.
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
                        f"gluon-{variant}-{short(dtype)}-{name}-{form}",
                        lambda kwargs=kwargs, dtype=dtype, sizes=sizes, form=form: _check_repetitions(
                            spec, device, kwargs, dtype, sizes, batched=form == "batched"
                        ),
                    )


def _check_repetitions(spec: Spec, device: torch.device, kwargs, dtype: torch.dtype, shape: Sizes, batched: bool):
    options = {**kwargs, "return_indices": True} if spec.has_winners(kwargs) else kwargs

    def op(*args):
        results = spec.op(*args, **options)
        return tuple(results) if isinstance(results, tuple) else (results,)

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
