"""Inside a CUDA-graph capture nothing compiles, and the error names the call that compiles in time."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from tropigrad.kernels.path_step import Shape, definition
from tropigrad.kernels.runtime import backend, capture

triton = pytest.importorskip("triton", reason="triton is not installed")

GPU = torch.device("cuda", 0)


@pytest.fixture
def captured(monkeypatch):
    """`captured[0] = True` begins a capture on the GPU that is not there."""
    state = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state[0])
    with triton.knobs.runtime.scope():
        yield state
        state[0] = False
        capture.watch(GPU)


def compilation(module: str) -> dict:
    return {"fn": SimpleNamespace(module=module, name="_some_kernel"), "compile": {}}


def test_a_kernel_of_ours_is_refused_and_the_warm_up_named(captured):
    captured[0] = True
    capture.watch(GPU)
    with pytest.raises(RuntimeError, match=r"_some_kernel is not compiled yet.*warm_up\(op, shapes"):
        triton.knobs.runtime.jit_cache_hook(**compilation("tropigrad.kernels.tropical_matmul.by_triton"))


def test_kernels_of_others_are_none_of_our_business(captured):
    asked = []
    triton.knobs.runtime.jit_cache_hook = lambda **kwargs: asked.append(kwargs["fn"].module)
    captured[0] = True
    capture.watch(GPU)
    triton.knobs.runtime.jit_cache_hook(**compilation("another.module"))
    assert asked == ["another.module"]


def test_the_hook_is_there_during_a_capture_alone(captured):
    before = triton.knobs.runtime.jit_cache_hook
    capture.watch(GPU)
    assert triton.knobs.runtime.jit_cache_hook is before
    captured[0] = True
    for _ in range(2):
        capture.watch(GPU)
        assert triton.knobs.runtime.jit_cache_hook is not before
    captured[0] = False
    for _ in range(2):
        capture.watch(GPU)
        assert triton.knobs.runtime.jit_cache_hook is before


def test_every_call_on_a_gpu_is_watched(captured):
    captured[0] = True
    backend.choose("an op", GPU, ("triton",))
    with pytest.raises(RuntimeError, match="not compiled yet"):
        triton.knobs.runtime.jit_cache_hook(**compilation("tropigrad.kernels.tropical_matmul.by_triton"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to capture a graph on")
def test_a_captured_call_replays_and_an_unseen_one_is_refused():
    from tropigrad import autotune
    from tropigrad.kernels import tropical_matmul

    a, b = torch.randn(64, 48, device=GPU), torch.randn(48, 80, device=GPU)
    autotune.warm_up("tropical_matmul", {"M": 64, "K": 48, "N": 80}, device=GPU)
    expected = tropical_matmul(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = tropical_matmul(a, b)
    graph.replay()
    assert torch.equal(got, expected)
    with (
        pytest.raises(RuntimeError, match="not compiled yet"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
        autotune.override("tropical_matmul.triton", {"BLOCK_M": 16, "BLOCK_N": 128, "num_warps": 8}),
        backend.forcing("triton"),
    ):
        tropical_matmul(a, b)


def test_what_a_captured_graph_reads_outlives_the_cache_that_made_it(monkeypatch):
    monkeypatch.setattr(capture, "_read_by_graphs", {})
    shapes = Shape(1, 3, 2, 1), Shape(1, 2, 3, 1)
    for captured in (False, True):
        monkeypatch.setattr(capture, "capturing", lambda device, captured=captured: captured)
        definition._skeleton.cache_clear()
        alive = weakref.ref(definition.skeleton(shapes, torch.device("cpu")))
        definition._skeleton.cache_clear()
        gc.collect()
        assert (alive() is not None) is captured
