"""pack_bits and unpack_bits against numpy, through every backend, and what the operator says about values beside ±1."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.kernels import pack_bits, unpack_bits
from tropigrad.kernels.pack_bits import HAS_NAN, HAS_OTHERS, PACK
from tropigrad.kernels.pack_bits.definition import DTYPES
from tropigrad.kernels.runtime import backend

CPU = torch.device("cpu")
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(why := backend.why_off(name, CPU)), reason=why))
    for name in ("cpp", "triton", "torch")
]


def test_by_hand():
    x = torch.tensor([[1.0, -1, 1, 1, -1, 0, float("nan"), 2, 0.5]])
    assert pack_bits(x).tolist() == [[0b10001101, 1]]
    assert unpack_bits(torch.tensor([0b101], dtype=torch.uint8), 4).tolist() == [1, -1, 1, -1]
    assert unpack_bits(torch.tensor([0b101], dtype=torch.uint8), 3, kind="step").tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", BACKENDS)
@given(rows=st.integers(0, 4), columns=st.integers(0, 140), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_bits_are_numpy_s(name, rows, columns, seed):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    with backend.forcing(name):
        bits = pack_bits(x)
        assert np.array_equal(bits.numpy(), np.packbits(x.numpy() > 0, axis=-1, bitorder="little"))
        assert torch.equal(unpack_bits(bits, columns, kind="step", dtype=torch.bool), x > 0)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_goes_to_bits(name, dtype, set_backend):
    set_backend(name)
    x = torch.tensor([[0, 1, 3, 0, 7, 0, 0, 1, 0, 5]] * 3).to(dtype)
    assert pack_bits(x).tolist() == [[0b10010110, 0b10]] * 3


@pytest.mark.parametrize("name", BACKENDS)
def test_bits_with_strides_are_unpacked(name, set_backend):
    set_backend(name)
    bits = torch.randint(256, (6, 10), dtype=torch.uint8)
    expected = unpack_bits(bits, 80)
    assert torch.equal(unpack_bits(bits[:, 2:7], 40), expected[:, 16:56])
    assert torch.equal(unpack_bits(bits[::2], 80), expected[::2])
    assert torch.equal(unpack_bits(bits.t().contiguous().t(), 80), expected)
    assert torch.equal(unpack_bits(bits[:1].expand(4, 10), 77), expected[:1, :77].expand(4, 77))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("size", [5, 64, 1000])
def test_flags_name_what_no_bit_holds(name, size, set_backend):
    set_backend(name)
    x = (torch.rand(4, size) > 0.5).float() * 2 - 1
    assert int(PACK(x, True)[1]) == 0
    for place in ((0, 0), (3, size - 1)):
        for value, flag in ((float("nan"), HAS_NAN), (0.0, HAS_OTHERS), (1.5, HAS_OTHERS), (float("inf"), HAS_OTHERS)):
            changed = x.clone()
            changed[place] = value
            bits, flags = PACK(changed, True)
            assert int(flags) == flag
            assert torch.equal(bits, pack_bits(changed))
    x[0, 0], x[3, size - 1] = float("nan"), 7
    assert int(PACK(x, True)[1]) == HAS_NAN | HAS_OTHERS
    assert int(PACK(x, False)[1]) == 0


def test_flags_are_of_each_map():
    x = torch.ones(3, 2, 20)
    x[1, 0, 3], x[2, 1, 7] = float("nan"), 0
    bits, flags = torch.vmap(lambda one: PACK(one, True))(x)
    assert flags.tolist() == [0, HAS_NAN, HAS_OTHERS]
    assert torch.equal(bits, pack_bits(x))


def test_a_lazy_negation_is_packed_as_what_it_stands_for():
    z = torch.complex(torch.randn(20), torch.randn(20))
    assert torch.equal(pack_bits(z.conj().imag), pack_bits(-z.imag))


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_both_are_traced():
    def both(x):
        return unpack_bits(pack_bits(x), 21)

    x = torch.randn(3, 21)
    for traced in (torch.jit.trace(both, x), torch.fx.symbolic_trace(both), torch.compile(both, fullgraph=True)):
        assert torch.equal(traced(x), torch.where(x > 0, 1.0, -1.0))


def test_many_sizes_compile_once_more():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: unpack_bits(pack_bits(x), x.shape[-1]), fullgraph=True, backend=counter)
    for size in range(20, 60, 3):
        x = torch.randn(3, size)
        assert torch.equal(compiled(x), torch.where(x > 0, 1.0, -1.0))
    assert counter.frame_count <= 2
