"""What is special to the candidates; tests/conformance asks them for every promise."""

import pytest
import torch

from tropigrad.kernels import proximal_candidates, soft_threshold
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


@pytest.fixture(params=BACKENDS)
def every_backend(request):
    with backend.forcing(request.param):
        yield request.param


def drawn(seed: int, size: int = 700) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, some of them 0, and slopes of sizes that lie decades apart."""
    generator = torch.Generator().manual_seed(seed)
    x, d, e, zero = torch.randn(4, size, generator=generator, dtype=torch.float64)
    return 0.05 * x * (zero > -0.3), d * 10 ** (e - 1)


def test_values_by_hand(every_backend):
    x, d = torch.tensor([1.0, -1.0, 0.0, 0.25]), torch.tensor([1.0, 0.0, -2.0, 0.0])
    y, g = proximal_candidates(x, d, 0.5, [0.0, 0.5, 1.0])
    assert y.tolist() == [[0.5, -0.5, 0.0, 0.0], [0.5, -0.75, 0.25, 0.0], [0.5, -1.0, 1.0, 0.25]]
    # of ⟨d, y − x⟩: −1/2, −1, −5/2; of the norm's change: −5/4, −3/4, 1/2
    assert g.tolist() == [0.75, -0.25, -3.0]
    assert g.dtype == torch.float64


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("h", [1.0, 0.1, 1e-3])
def test_g_falls_in_alpha(every_backend, seed, h):
    alphas = torch.linspace(0, 1, 101, dtype=torch.float64)
    _, g = proximal_candidates(*drawn(seed), h, alphas)
    assert (g.diff() <= 1e-12 * g.abs().max()).all()
    assert g[0] > g[-1]
    assert g[-1] < 0


def test_a_critical_point_is_a_fixed_point(every_backend):
    """|d| ≤ λ where x is 0, d = −λ sign x elsewhere: nothing moves at the α of this λ, and g is 0."""
    x, d = drawn(0)
    lam = 0.25
    d = torch.where(x == 0, d.clamp(-lam, lam), -lam * x.sign())
    y, g = proximal_candidates(x, d, 0.125, [1 / (1 + lam), 0.5])
    torch.testing.assert_close(y[0], x, rtol=0, atol=1e-16)
    assert abs(g[0]) < 1e-14
    assert not torch.equal(y[1], x)


def test_zero_is_left_alone_where_no_slope_exceeds_the_weight(every_backend):
    d = torch.linspace(-1, 1, 9)
    y, g = proximal_candidates(torch.zeros(9), d, 0.5, [0.0, 0.5, 0.75])
    assert not y[:2].any()
    assert g[:2].tolist() == [0, 0]
    assert y[2].any()
    assert g[2] < 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_each_y_is_a_soft_threshold(every_backend, dtype):
    if every_backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates bfloat16 where a GPU rounds")
    x, d = (one.to(dtype) for one in drawn(1))
    wide = torch.promote_types(dtype, torch.float32)
    y, _ = proximal_candidates(x, d, 0.25, [0.0, 0.25, 1.0])
    for each, alpha in zip(y, (0.0, 0.25, 1.0), strict=True):
        moved = x.to(wide) - 0.25 * alpha * d.to(wide)
        assert torch.equal(each, soft_threshold(moved, 0.25 * (1 - alpha)).to(dtype))
    assert torch.equal(y[0], soft_threshold(x, 0.25))  # α = 0: the plain soft threshold


@pytest.mark.skipif(bool(backend.why_off("cpp", torch.device("cpu"))), reason="no C++ compiler")
def test_g_is_added_up_in_float64_and_has_the_same_bits_on_any_number_of_threads():
    x, d = (one.float() for one in drawn(2, 100_003))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(proximal_candidates(x, d, 0.1, [0.0, 0.5, 0.999]))
    finally:
        torch.set_num_threads(before)
    (y, g), (other_y, other_g) = results
    assert torch.equal(y, other_y)
    assert torch.equal(g, other_g)
    wide = ((y.double() - x.double()) * d.double()).sum(1) - (y.double().abs() - x.double().abs()).sum(1)
    torch.testing.assert_close(g, wide, rtol=1e-12, atol=1e-12)


def test_shapes_strides_and_tensors_of_alphas(every_backend):
    x, d = drawn(3, 24)
    x, d = x.view(2, 3, 4).transpose(0, 2), d.view(4, 2, 3).movedim(1, 2)
    y, g = proximal_candidates(x, d, 0.1, torch.tensor([0.5, 1.0]))
    assert y.shape == (2, 4, 3, 2)
    flat = proximal_candidates(x.flatten(), d.flatten(), 0.1, [0.5, 1.0])
    assert torch.equal(y.flatten(1), flat.y)
    assert torch.equal(g, flat.g)
    batched = torch.vmap(lambda a, b: proximal_candidates(a, b, 0.1, [0.5]).y)(x, d)
    assert torch.equal(batched[:, 0], y[0])
