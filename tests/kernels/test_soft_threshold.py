"""What is special to the soft threshold; tests/conformance asks it for every promise."""

import pytest
import torch

from tropigrad.kernels import soft_threshold
from tropigrad.kernels.runtime import backend

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(backend.why_off(name, torch.device("cpu"))), reason=backend.why_off(name, torch.device("cpu")) or "on"
        ),
    )
    for name in ("cpp", "triton", "torch")
]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=BACKENDS)
def every_backend(request):
    with backend.forcing(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_by_hand(every_backend, dtype):
    x = torch.tensor([-3.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3.0], dtype=dtype)
    expected = torch.tensor([-2.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 2.0], dtype=dtype)
    for t in (1, 1.0, torch.ones((), dtype=dtype), torch.ones_like(x)):
        y = soft_threshold(x, t)
        assert y.dtype == dtype
        assert y.tolist() == expected.tolist()


def test_zeros_are_positive_and_nan_and_infinity_stay(every_backend):
    nan, inf = float("nan"), float("inf")
    x, t = torch.tensor([-1.0, -0.0, nan, 1.0, inf, -inf, inf]), torch.tensor([1.0, 0.0, 1.0, nan, 1.0, 1.0, inf])
    y = soft_threshold(x, t)
    assert not y[:2].signbit().any()
    assert y[:2].tolist() == [0, 0]
    assert y[2:4].isnan().all()
    assert y[4:6].tolist() == [inf, -inf]
    assert y[6].isnan()


def test_a_negative_threshold_is_an_error_or_nan(every_backend):
    x = torch.tensor([2.0, 0.0, -2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"t is -0\.5; expected a number of at least 0"):
        soft_threshold(x, -0.5)
    t = torch.tensor([-1.0, -1.0, 1.0], requires_grad=True)
    y = soft_threshold(x, t)
    assert y.isnan().tolist() == [True, True, False]
    gradients = torch.autograd.grad(y, (x, t), torch.ones(3))
    assert [g.tolist() for g in gradients] == [[0, 0, 1], [0, 0, 1]]


def test_it_is_the_proximal_operator_of_the_l1_norm(every_backend):
    """No z near y, nor any of a wide grid, has a smaller ½ (z − x)² + t |z|."""
    generator = torch.Generator().manual_seed(0)
    x, t = 2 * torch.randn(200, 1, generator=generator, dtype=torch.float64), torch.rand(200, 1, generator=generator)
    t = t.double()
    y = soft_threshold(x, t)
    steps = torch.linspace(-1e-3, 1e-3, 21, dtype=torch.float64)
    others = torch.cat([y + steps, torch.linspace(-8, 8, 401, dtype=torch.float64).expand(200, 401)], 1)

    def objective(z):
        return 0.5 * (z - x).square() + t * z.abs()

    assert (objective(others) >= objective(y) - 1e-15).all()
    assert 20 < int((y == 0).sum()) < 180


def test_it_is_odd_shrinks_and_does_not_expand_distances(every_backend):
    x, z, t = torch.randn(3, 50, dtype=torch.float64)
    t = t.abs()
    y = soft_threshold(x, t)
    assert torch.equal(soft_threshold(-x, t), -y)
    assert (y.abs() <= x.abs()).all()
    assert ((y - soft_threshold(z, t)).abs() <= (x - z).abs() + 1e-15).all()
    twice = soft_threshold(y, t)
    torch.testing.assert_close(twice, soft_threshold(x, 2 * t), rtol=0, atol=1e-15)  # two shrinkages are one of the sum


def test_gradients_by_hand_and_0_at_the_kinks(every_backend):
    x = torch.tensor([-3.0, -1.0, 0.5, 1.0, 3.0], requires_grad=True)
    t = torch.tensor(1.0, requires_grad=True)
    dx, dt = torch.autograd.grad(soft_threshold(x, t), (x, t), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]))
    assert dx.tolist() == [1, 0, 0, 0, 16]
    assert dt.item() == 1 - 16
    (dx,) = torch.autograd.grad(soft_threshold(x, 0.5), x, torch.ones(5))
    assert dx.tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("of_x", "of_t"),
    [
        ((3, 4), ()),
        ((3, 4), (4,)),
        ((3, 4), (3, 1)),
        ((4,), (3, 4)),
        ((3, 1), (1, 4)),
        ((2, 1, 4), (3, 1)),
        ((), (2, 2)),
    ],
    ids=str,
)
def test_shapes_broadcast_and_gradients_have_their_own(every_backend, of_x, of_t):
    x = torch.randn(of_x, dtype=torch.float64, requires_grad=True)
    t = torch.rand(of_t, dtype=torch.float64, requires_grad=True)
    y = soft_threshold(x, t)
    assert y.shape == torch.broadcast_shapes(of_x, of_t)
    expected = x.sign() * (x.abs() - t).relu()
    assert torch.equal(y, expected)
    g = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(one, (x, t), g) for one in (y, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    if every_backend != "triton":  # whose interpreter takes seconds for that; the conformance suite waits for one
        assert torch.autograd.gradgradcheck(soft_threshold, (x, t))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_in_place_it_writes_what_it_would_return(every_backend, layout, dtype):
    base = torch.randn(6, 10).to(dtype)
    x = {"contiguous": base, "transposed": base.mT, "sliced": base[:, ::2]}[layout]
    for t in (0.25, torch.rand(x.shape[-1]).to(dtype)):
        expected, version = soft_threshold(x, t), x._version
        kept = base.clone()
        assert soft_threshold(x, t, inplace=True) is x
        assert torch.equal(x, expected)
        assert x._version == version + 1
        if layout == "sliced":
            assert torch.equal(base[:, 1::2], kept[:, 1::2])


def test_in_place_autograd_records_or_refuses_as_for_torch_s_own():
    leaf = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        soft_threshold(leaf, 0.1, inplace=True)
    y = leaf * 2
    soft_threshold(y, 0.1, inplace=True)
    (got,) = torch.autograd.grad(y.sum(), leaf)
    assert torch.equal(got, 2.0 * ((2 * leaf).abs() > 0.1))
    saved = leaf.square()
    with torch.no_grad():
        soft_threshold(leaf, 0.1, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def test_in_place_under_transforms():
    x, t = torch.randn(3, 4), torch.rand(3, 4)
    expected, copied = soft_threshold(x, t), x.clone()
    torch.vmap(lambda a, b: soft_threshold(a, b, inplace=True))(copied, t)
    assert torch.equal(copied, expected)
    with pytest.raises(ValueError, match=r"^soft_threshold: vmap does not map x"):
        torch.vmap(lambda b: soft_threshold(copied[0], b, inplace=True))(t)
    compiled = torch.compile(lambda a, b: soft_threshold(a, b, inplace=True) + 0, fullgraph=True, backend="aot_eager")
    copied = x.clone()
    assert torch.equal(compiled(copied, t), expected)
    assert torch.equal(copied, expected)
    with pytest.raises(NotImplementedError, match="forward"):
        torch.func.jvp(lambda a: soft_threshold(a.clone(), 0.1, inplace=True), (x,), (torch.ones_like(x),))


def test_a_number_is_not_rounded_to_16_bits(every_backend):
    x = torch.linspace(-2, 2, 101).half()
    expected = x.float().sign() * (x.float().abs() - 0.3).relu()
    assert torch.equal(soft_threshold(x, 0.3), expected.half())


def test_a_compiled_function_takes_a_number():
    compiled = torch.compile(lambda x, t: soft_threshold(x, t).sum(), fullgraph=True, backend="aot_eager")
    x = torch.randn(40, requires_grad=True)
    for t in (0.25, 0.5, 0.75):
        out = compiled(x, t)
        assert torch.equal(out, soft_threshold(x, t).sum())
        assert torch.equal(torch.autograd.grad(out, x)[0], (x.abs() > t).float())


@pytest.mark.skipif(bool(backend.why_off("cpp", torch.device("cpu"))), reason="no C++ compiler")
@pytest.mark.parametrize("threads", [1, 2])
def test_large_tensors_of_many_blocks_and_dimensions(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape, of_t in (
            ((7, 13, 1031), (13, 1)),
            ((40_000, 3), (3,)),
            ((3, 50_021), (50_021,)),
            ((2, 3, 5, 7, 601), (5, 1, 1)),
        ):
            x, t = torch.randn(shape), torch.rand(of_t)
            for y in (x, x.transpose(-1, 0), x[..., ::2]):
                s = t if y is x else 0.5
                assert torch.equal(soft_threshold(y, s), y.sign() * (y.abs() - s).relu())
    finally:
        torch.set_num_threads(before)
