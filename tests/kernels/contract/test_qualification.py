"""A Gluon kernel is chosen where a record proves its source on this GPU and triton, and if it agrees at first use."""

import json
from types import SimpleNamespace

import pytest
import torch

from tropigrad.autotune import source_hash
from tropigrad.kernels.contract import qualification
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend

GPU = torch.device("cuda", 0)
KERNELS = REGISTRY["tropical_matmul"].tuned["gluon"]
OFFERED = ("cpp", "gluon", "triton", "torch")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU of compute capability 9.0 that is not there, and no records."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(qualification.importlib.metadata, "version", lambda name: "3.7.1")
    monkeypatch.setattr(qualification, "RECORDS", tmp_path)
    monkeypatch.setattr(qualification, "_agreeing", {})
    monkeypatch.setattr(backend, "HAS_TRITON", True)
    monkeypatch.delenv("TROPIGRAD_BACKEND", raising=False)
    _forget()
    yield tmp_path
    _forget()


def _forget():
    qualification._records.cache_clear()
    qualification._why_not.cache_clear()


def _commit(folder, **changes):
    record = qualification.record(KERNELS, GPU, 7) | changes
    (folder / "a-gpu.json").write_text(json.dumps(record))
    _forget()


def test_what_qualify_writes_turns_the_kernels_on(gpu):
    record = qualification.record(KERNELS, GPU, 7)
    assert record == {
        "schema": 1,
        "capability": "9.0",
        "triton": "3.7",
        "device": "a GPU",
        "kernels": {kernel.name: source_hash(kernel.source) for kernel in KERNELS},
        "cases": 7,
    }
    _commit(gpu)
    assert qualification.why_not_op("tropical_matmul", GPU) == ""


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"capability": "8.0"}, "no qualification record for compute capability 9.0 with triton 3.7 yet"),
        ({"triton": "3.6"}, "no qualification record for compute capability 9.0 with triton 3.7 yet"),
        ({"kernels": {kernel.name: "old" for kernel in KERNELS}}, "is of another version of tropical_matmul.gluon"),
        ({"kernels": {}}, "is of another version of tropical_matmul.gluon"),
    ],
    ids=["capability", "triton", "source", "kernel"],
)
def test_a_record_of_something_else_turns_nothing_on(gpu, changes, why):
    _commit(gpu, **changes)
    assert why in qualification.why_not(KERNELS[0].name, KERNELS[0].source, GPU)
    assert backend.choose("tropical_matmul", GPU, OFFERED) == "triton"


def test_without_a_record_it_says_how_to_get_one(gpu):
    assert "tropigrad qualify makes one" in qualification.why_not_op("tropical_matmul", GPU)
    assert "no Gluon kernel" in qualification.why_not_op("tropical_matvec", GPU)
    assert "takes GPUs, not cpu" in qualification.why_not_op("tropical_matmul", torch.device("cpu"))


def test_a_broken_record_is_an_error_that_names_the_file(gpu):
    _commit(gpu, schema=2)
    with pytest.raises(ValueError, match="is no qualification record of schema 1"):
        qualification.why_not_op("tropical_matmul", GPU)


def test_the_committed_records_are_read():
    qualification._records()


@pytest.fixture
def first_use(gpu, monkeypatch):
    """A qualified op whose Gluon results are `off` by so much; `asked` lists the backends that were compared."""
    state = SimpleNamespace(off=0.0, asked=[])

    def op(x, **kwargs):
        state.asked.append(backend.forced())
        return (x + (state.off if backend.forced() == "gluon" else 0.0), x.long())

    spec = SimpleNamespace(
        op=op,
        variants={"": {}},
        offers=lambda kwargs: OFFERED,
        supports=lambda dtype, kwargs: True,
        has_winners=lambda kwargs: True,
        small_shapes=({"n": 1}, {"n": 5}),
        inputs=lambda shape, dtype, device, seed: (torch.arange(float(shape["n"])),),
        tuned={"gluon": KERNELS},
    )
    monkeypatch.setitem(REGISTRY, "an op", spec)
    monkeypatch.setattr(backend, "why_off", lambda name, device: "")
    _commit(gpu)
    return state


def chosen(dtype: torch.dtype = torch.float32) -> str:
    return backend.choose("an op", GPU, OFFERED, dtype, gluon_serves=qualification.gluon_serves)


def test_at_first_use_it_is_compared_with_the_portable_kernel_once_a_dtype(first_use):
    for _ in range(2):
        assert chosen(torch.float32) == "gluon"
    assert first_use.asked == ["gluon", "triton"] * 2
    chosen(torch.float16)
    assert first_use.asked == ["gluon", "triton"] * 4


def test_a_kernel_that_disagrees_is_off_with_one_warning(first_use):
    first_use.off = 1e-3
    with pytest.warns(RuntimeWarning, match=r"an op: the Gluon kernel of torch.float32 is off .* results differ at"):
        assert chosen() == "triton"
    assert chosen() == "triton"


def test_a_kernel_that_fails_is_off_with_one_warning(first_use, monkeypatch):
    def fails(x, **kwargs):
        raise RuntimeError("does not compile")

    monkeypatch.setattr(REGISTRY["an op"], "op", fails)
    with pytest.warns(RuntimeWarning, match="RuntimeError: does not compile; Triton's serves"):
        assert chosen() == "triton"


def test_nothing_is_compared_inside_a_capture(first_use, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert chosen() == "triton"
    assert first_use.asked == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert chosen() == "gluon"
