"""The log semiring where numbers are large, small, tied or infinite: softmax weights sum to 1 at any offset, any T."""

import math

import pytest
import torch

from tropigrad.kernels import tropical_matmul, tropical_matvec
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.tropical_matmul import tropical_matmul_ref

NAN, INF = float("nan"), float("inf")
NO_INTERPRETER = backend.why_off("triton", torch.device("cpu"))
NO_COMPILER = backend.why_off("cpp", torch.device("cpu"))
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "C++ compiles here")
interpreted = pytest.mark.skipif(bool(NO_INTERPRETER), reason=NO_INTERPRETER or "Triton is interpreted here")
BACKENDS = ["torch", pytest.param("cpp", marks=compiled), pytest.param("triton", marks=interpreted)]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def log_matmul(a, b, T=1.0, **options):
    return tropical_matmul(a, b, semiring="log", temperature=T, **options)


def scores(offset, dtype, seed=0):
    """a [4, 32] and b [32, 3], standard normal plus half the offset each, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randn(shape, generator=generator) + offset / 2).to(dtype).requires_grad_()
        for shape in ((4, 32), (32, 3))
    )


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("T", [1.0, 30.0, 1e-3, 1e-30], ids=lambda T: f"T={T:g}")
@pytest.mark.parametrize("offset", [0, 1000, -1000, -2000])
def test_softmax_weights_sum_to_one(offset, T, dtype, name, set_backend):
    """A row of dA is the sum of N = 3 softmaxes, a column of dB of M = 4."""
    set_backend(name)
    a, b = scores(offset, dtype)
    da, db = torch.autograd.grad(log_matmul(a, b, T).sum(), (a, b))
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(da.double().sum(1), torch.full((4,), 3.0).double(), rtol=rounding, atol=0)
    torch.testing.assert_close(db.double().sum(0), torch.full((3,), 4.0).double(), rtol=rounding, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_softmax_weights_of_a_vector_and_under_autocast_sum_to_one(dtype):
    a, b = scores(-2000, dtype)
    (da,) = torch.autograd.grad(tropical_matvec(a, b[:, 0], semiring="log").sum(), a)
    torch.testing.assert_close(da.double().sum(1), torch.ones(4).double(), rtol=4 * torch.finfo(dtype).eps, atol=0)
    with torch.autocast("cpu", dtype=dtype):
        c = log_matmul(a, b)
    assert c.dtype == torch.float32
    (da,) = torch.autograd.grad(c.sum(), a)
    torch.testing.assert_close(
        da.double().sum(1), torch.full((4,), 3.0).double(), rtol=4 * torch.finfo(dtype).eps, atol=0
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_forward_algorithm_keeps_a_posterior_mass_of_one(dtype):
    """∂ log-likelihood / ∂ emissions of one step are the posterior over its states, after 200 steps as after one."""
    states, steps = 8, 200
    transitions = torch.randn(states, states).log_softmax(1).to(dtype)
    emissions = (torch.randn(steps, 1, states) - 8).to(dtype).requires_grad_()
    alpha = torch.full((1, states), -math.log(states), dtype=dtype)
    for emission in emissions:
        alpha = log_matmul(alpha, transitions) + emission
    likelihood = log_matmul(alpha, torch.zeros(states, 1, dtype=dtype))
    assert likelihood.item() < -1000
    (posterior,) = torch.autograd.grad(likelihood.sum(), emissions)
    masses = posterior.double().sum((1, 2))
    assert (masses - 1).abs().max() <= steps * torch.finfo(dtype).eps  # each step rounds the gradient once


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("T", [1.0, 1e-6, 1e-30, 1e-45], ids=lambda T: f"T={T:g}")
def test_tied_candidates_share_equally(T, name, set_backend):
    set_backend(name)
    a = torch.tensor([[1000.0, -3.0, 1000.0, -INF]], requires_grad=True)
    c = log_matmul(a, torch.zeros(4, 1), T)
    assert c.item() == pytest.approx(1000 + T * math.log(2), rel=1e-6)
    assert torch.autograd.grad(c, a)[0].tolist() == [[0.5, 0.0, 0.5, 0.0]]


@pytest.mark.parametrize("name", BACKENDS)
def test_infinite_candidates(name, set_backend):
    """What is +∞ shares the gradient; where all are −∞ there is none; a NaN spoils its output alone."""
    set_backend(name)
    rows = [[INF, 0.0, INF], [-INF, -INF, -INF], [NAN, 0.0, 0.0], [-INF, 0.0, INF]]
    a = torch.tensor(rows, requires_grad=True)
    for nan, value, row in (("propagate", NAN, [NAN] * 3), ("ignore", math.log(2), [0.0, 0.5, 0.5])):
        c = log_matmul(a, torch.zeros(3, 1), nan=nan)
        (da,) = torch.autograd.grad(c.sum(), a)
        expected = torch.tensor([[0.5, 0.0, 0.5], [0.0] * 3, row, [0.0, 0.0, 1.0]])
        torch.testing.assert_close(c.flatten(), torch.tensor([INF, -INF, value, INF]), equal_nan=True)
        torch.testing.assert_close(da, expected, equal_nan=True)


# ------------------------------------------------------------------------------------------------ range


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("top", "T"),
    [(3e38, 1e38), (3e38, 1.0), (3e38, 1e-30), (-3e38, 2.0), (1.0, 1e-38), (1e-30, 1e-38), (1e-20, 1e30), (0.0, 3e38)],
    ids=str,
)
def test_values_near_the_ends_of_float32_are_those_of_float64(top, T, name, set_backend):
    """x / T, and x − top, may be beyond the dtype where the result is not."""
    set_backend(name)
    a = torch.tensor([[top, top - top / 7, -top, top / 3, 0.0]])
    wide = a.double().requires_grad_()
    narrow = a.clone().requires_grad_()
    expected, got = (log_matmul(x, torch.zeros_like(x.mT), T) for x in (wide, narrow))
    torch.testing.assert_close(got, expected.float(), rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(got, narrow), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-7)
    oracle, _ = tropical_matmul_ref(a, torch.zeros_like(a.mT), semiring="log", temperature=T)
    torch.testing.assert_close(got, oracle, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shift", [-60, 60])
@pytest.mark.parametrize("T", [0.25, 0.75, 3.0])
def test_rescaling_by_a_power_of_two_changes_no_bit(T, shift, name, set_backend):
    """C(s A, s B, s T) = s C(A, B, T), and the gradient is the same: by the form of the differences, too."""
    set_backend(name)
    factor = 2.0**shift
    found = []
    for s in (1.0, factor):
        a, b = (x.detach().mul(s).requires_grad_() for x in scores(0, torch.float32))
        c = log_matmul(a, b, T * s)
        found.append((c.detach() / s, *torch.autograd.grad(c.sum(), (a, b))))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_a_sum_beyond_the_dtype_is_infinite_and_not_a_nan():
    a = torch.tensor([[3e38, 3e38]])
    assert log_matmul(a, torch.zeros(2, 1), 1e38).item() == INF
    assert log_matmul(-a, torch.zeros(2, 1), 1e38).item() == pytest.approx(-3e38 + 1e38 * math.log(2))


# ------------------------------------------------------------------------------------------------ derivatives of it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_second_derivative_reads_nothing_rounded(dtype):
    """On sums that are exact in 16 bits, it is that of float64 but for its own rounding."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randint(-66, -60, shape, generator=generator) * 8.0 for shape in ((4, 9), (9, 3))]
    slopes = [torch.randint(-2, 3, x.shape, generator=generator).double() for x in given]
    found = []
    for chosen in (dtype, torch.float64):
        a, b = leaves = [x.to(chosen).requires_grad_() for x in given]
        first = torch.autograd.grad(log_matmul(a, b, 8.0).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(first, leaves, [s.to(chosen) for s in slopes]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=8 * torch.finfo(dtype).eps, atol=2e-3)


def test_a_third_derivative():
    a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    leaves = a.requires_grad_(), b.requires_grad_()

    def gradients(a, b):
        return torch.autograd.grad(log_matmul(a, b, 0.7).square().sum(), (a, b), create_graph=True)

    assert torch.autograd.gradcheck(gradients, leaves)
    assert torch.autograd.gradgradcheck(gradients, leaves)


def test_many_rows_are_differentiated_twice_in_chunks():
    """More candidates than are held at once, whose parts are put together again."""
    a, b = torch.randn(3, 40, dtype=torch.float64), torch.randn(40, 30_000, dtype=torch.float64)
    slope = torch.randn(3, 30_000, dtype=torch.float64)

    def second(a, b):
        a, b = a.requires_grad_(), b.requires_grad_()
        first = torch.autograd.grad(log_matmul(a, b), (a, b), slope[: len(a)], create_graph=True)
        return torch.autograd.grad(first, (a, b), [torch.ones_like(x).cumsum(-1) / x.numel() for x in first])

    together, parts = second(a, b)[0], [second(a[[i]], b)[0] for i in range(3)]
    assert together.shape == a.shape
    assert all(part.isfinite().all() for part in parts)
    torch.testing.assert_close(log_matmul(a, b), torch.cat([log_matmul(a[[i]], b) for i in range(3)]))


# ------------------------------------------------------------------------------------------------ temperature


@pytest.mark.parametrize("op", [tropical_matmul, tropical_matvec], ids=["matmul", "matvec"])
class TestTemperature:
    a = torch.linspace(-1, 1, 6).view(2, 3)

    def of(self, op, temperature):
        b = torch.linspace(0, 1, 3)
        return op(self.a, b.unsqueeze(1) if op is tropical_matmul else b, semiring="log", temperature=temperature)

    @pytest.mark.parametrize(
        "temperature",
        [torch.tensor(0.5), torch.tensor(0.5).double(), torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)],
        ids=["float32", "float64", "frozen"],
    )
    def test_a_tensor_of_no_dimensions_is_read(self, op, temperature):
        assert torch.equal(self.of(op, temperature), self.of(op, 0.5))
        temperature = temperature.clone().fill_(0.25)
        assert torch.equal(self.of(op, temperature), self.of(op, 0.25))

    def test_a_tensor_that_changed_is_read_anew(self, op):
        temperature = torch.tensor(1.0)
        for value in (1.0, 0.5, 0.25):
            temperature.fill_(value)
            assert torch.equal(self.of(op, temperature), self.of(op, value))

    def test_numbers_of_any_kind(self, op):
        numpy = pytest.importorskip("numpy")
        for number in (numpy.float32(0.5), numpy.float64(0.5), numpy.float16(0.5)):
            assert torch.equal(self.of(op, number), self.of(op, 0.5))
        for number in (2, numpy.int64(2)):
            assert torch.equal(self.of(op, number), self.of(op, 2.0))

    def test_a_gradient_is_not_lost_in_silence(self, op):
        temperature = torch.nn.Parameter(torch.tensor(0.5))
        message = "temperature requires a gradient; expected a number: the temperature has no gradient here"
        with pytest.raises(TypeError, match=message):
            self.of(op, temperature)
        with pytest.raises(TypeError, match=message):
            torch.func.grad(lambda T: self.of(op, T).sum())(torch.tensor(0.5))
        with pytest.raises(TypeError, match="temperature carries a tangent; expected a number"):
            torch.func.jvp(lambda T: self.of(op, T), (torch.tensor(0.5),), (torch.tensor(1.0),))
        with pytest.raises(TypeError, match="temperature is a tensor without a value"):
            torch.vmap(lambda T: self.of(op, T))(torch.ones(3))
        with torch.no_grad():
            assert torch.equal(self.of(op, temperature), self.of(op, 0.5))

    @pytest.mark.parametrize(
        ("temperature", "error", "match"),
        [
            ("1", TypeError, "temperature is '1'; expected a number"),
            (None, TypeError, "temperature is None; expected a number"),
            (True, TypeError, "temperature is True; expected a number"),
            (torch.ones(3), TypeError, r"temperature is a tensor of shape \(3,\) and torch.float32; expected a number"),
            (torch.ones(2, 1), TypeError, r"temperature is a tensor of shape \(2, 1\)"),
            (torch.tensor(True), TypeError, r"temperature is a tensor of shape \(\) and torch.bool"),
            (torch.tensor(NAN), ValueError, "temperature is nan; expected a positive finite number"),
            (NAN, ValueError, "temperature is nan; expected a positive finite number"),
            (INF, ValueError, "temperature is inf; expected a positive finite number"),
            (-1.0, ValueError, "temperature is -1.0; expected a positive finite number"),
            (1e39, ValueError, r"temperature is 1e\+39; expected one that float32 holds"),
            (torch.empty((), device="meta"), TypeError, "temperature is a tensor without a value"),
        ],
        ids=[
            "str",
            "none",
            "bool",
            "row",
            "rows",
            "bool-tensor",
            "nan-tensor",
            "nan",
            "inf",
            "negative",
            "wide",
            "meta",
        ],
    )
    def test_others_are_named(self, op, temperature, error, match):
        with pytest.raises(error, match=f"^{op.__name__}: {match}"):
            self.of(op, temperature)
