"""The readout of gathered rows beside torch's own cross-entropy, by hand, and where its numbers are special."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tropigrad.kernels import gather_softmax
from tropigrad.kernels.gather_softmax import gather_softmax_ref
from tropigrad.kernels.runtime import backend

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
NO_CPP = backend.why_off("cpp", CPU)
compiled = pytest.mark.skipif(bool(NO_CPP), reason=NO_CPP or "C++ compiles here")
NO_INTERPRETER = backend.why_off("triton", CPU)
interpreted = pytest.mark.skipif(bool(NO_INTERPRETER), reason=NO_INTERPRETER or "Triton is interpreted here")
CASES = [
    *(pytest.param("torch", form, id=f"torch-{form}") for form in ("dense", "sparse")),
    *(pytest.param("cpp", form, id=f"cpp-{form}", marks=compiled) for form in ("dense", "sparse")),
    pytest.param("triton", "dense", id="triton-dense", marks=interpreted),
]


def table(form, values):
    """A weight of either form, from a dense one."""
    return values if form == "dense" else values.to_sparse_csr()


def problem(B=37, D=11, V=1300, K=3, dtype=torch.float64, density=0.2, name="cpp"):
    """weight [D, V] with zeros, contexts with −1, targets, bias and weights, these two and weight standard normal."""
    B, V = (5, 530) if name == "triton" else (B, V)  # two blocks of columns are enough for the interpreter
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D, V, generator=generator, dtype=torch.float64)
    weight *= torch.rand(D, V, generator=generator) < density
    contexts = torch.randint(-1, D, (B, K), generator=generator)
    targets = torch.randint(0, V, (B,), generator=generator)
    bias, weights = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (V, K))
    return weight.to(dtype), contexts, targets, bias.to(dtype), weights.to(dtype)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_by_hand(name, form, set_backend):
    """Rows log 2 and log 3 beside zeros: softmax (1, 6, 1, 2) / 10 and, of one row, (1, 2, 1, 2) / 6."""
    set_backend(name)
    weight = torch.tensor([[0, 2, 1, 2], [1, 3, 1, 1]], dtype=torch.float64).log().nan_to_num(neginf=0)
    losses = gather_softmax(table(form, weight), torch.tensor([[0, 1], [-1, 0]]), torch.tensor([1, 3]))
    torch.testing.assert_close(losses, torch.tensor([10 / 6, 6 / 2], dtype=torch.float64).log())


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_the_cross_entropy_of_all_logits_and_its_gradients(dtype, name, form, set_backend):
    set_backend(name)
    weight, contexts, targets, bias, weights = problem(dtype=dtype, name=name)
    leaves = [x.requires_grad_() for x in (bias, weights, weight)[: 3 if form == "dense" else 2]]
    rows = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])
    expected = cross_entropy((rows[contexts] * weights[:, None]).sum(1) + bias, targets, reduction="none")
    got = gather_softmax(table(form, weight), contexts, targets, bias=bias, weights=weights)
    slack = 1e-11 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(got, expected, rtol=slack, atol=slack)
    g = torch.linspace(-1, 2, len(got), dtype=dtype)
    gradients = torch.autograd.grad(got, leaves, g)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, g), rtol=slack, atol=slack)


@pytest.mark.parametrize(("name", "form"), CASES[:-1])  # the interpreter would take half a minute
def test_gradients_are_those_of_finite_differences(name, form, set_backend):
    set_backend(name)
    weight, contexts, targets, bias, weights = problem(B=3, D=3, V=4, K=2, density=0.6)
    args = (bias, weights) if form == "sparse" else (bias, weights, weight)

    rows = table(form, weight)

    def losses(bias, weights, rows=rows):
        return gather_softmax(rows, contexts, targets, bias=bias, weights=weights)

    assert torch.autograd.gradcheck(losses, tuple(x.clone().requires_grad_() for x in args))


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_of_bias_sum_to_zero_and_none_flows_to_a_table_that_nobody_reads(dtype, name, form, set_backend):
    set_backend(name)
    weight, contexts, targets, bias, weights = problem(dtype=dtype, name=name)
    bias.requires_grad_()
    contexts.fill_(-1)
    losses = gather_softmax(table(form, weight), contexts, targets, bias=bias, weights=weights)
    torch.testing.assert_close(losses, bias.logsumexp(0) - bias[targets])
    (gradient,) = torch.autograd.grad(losses.sum(), bias)
    assert abs(float(gradient.double().sum())) < 1e3 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("name", "form"), CASES)
def test_no_contexts_at_all(name, form, set_backend):
    set_backend(name)
    weight, _, targets, bias, _ = problem(name=name)
    losses = gather_softmax(
        table(form, weight), torch.zeros(len(targets), 0, dtype=torch.int64), targets, bias=bias.requires_grad_()
    )
    torch.testing.assert_close(losses, bias.logsumexp(0) - bias[targets])
    (gradient,) = torch.autograd.grad(losses[0], bias)
    expected = bias.detach().softmax(0)
    expected[targets[0]] -= 1
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e4, 1e30])
def test_an_offset_to_all_logits_changes_nothing(offset, dtype, name, form, set_backend):
    """Beyond what exp holds; 10³⁰ swallows all else."""
    set_backend(name)
    weight, contexts, targets, bias, weights = problem(dtype=dtype, name=name)
    bias = (bias + offset).requires_grad_()
    losses = gather_softmax(table(form, weight), contexts, targets, bias=bias, weights=weights)
    expected = gather_softmax_ref(weight, contexts, targets, bias=bias.detach(), weights=weights)
    rounding = 8 * max(1, abs(offset)) * torch.finfo(dtype).eps
    torch.testing.assert_close(losses.detach(), expected, rtol=rounding, atol=rounding)
    (gradient,) = torch.autograd.grad(losses.sum(), bias)
    assert abs(float(gradient.double().sum())) < 1e3 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("scale", [10.0, 100.0, 1e4])
def test_rows_of_any_size(scale, name, form, set_backend):
    """Logits that differ by more than exp holds, up and down: only one column counts."""
    set_backend(name)
    weight, contexts, targets, bias, weights = (x.float() if x.is_floating_point() else x for x in problem(B=20, V=700))
    for sign in (1, -1):
        rows = sign * scale * weight
        expected = gather_softmax_ref(rows.double(), contexts, targets, bias=bias.double(), weights=weights.double())
        losses = gather_softmax(table(form, rows), contexts, targets, bias=bias, weights=weights)
        torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=2e-5 * scale)


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_logarithms_of_zero(dtype, name, form, set_backend):
    """−∞ in a row: probability 0 and no gradient; such a target costs +∞; a column of them, in bias, is as absent."""
    set_backend(name)
    weight, contexts, targets, bias, weights = problem(dtype=dtype, V=40)
    contexts[:, 0] = 0
    weight[0, 5], bias[7] = -INF, -INF
    weights = weights.abs().requires_grad_()
    bias.requires_grad_()
    targets[:] = torch.arange(len(targets)) % 40
    losses = gather_softmax(table(form, weight), contexts, targets, bias=bias, weights=weights)
    barred = (targets == 5) | (targets == 7)
    assert (losses[barred] == INF).all()
    expected = gather_softmax_ref(weight, contexts, targets, bias=bias.detach(), weights=weights.detach())
    torch.testing.assert_close(losses.detach(), expected)
    gradients = torch.autograd.grad(losses[~barred].sum(), (bias, weights))
    assert all(x.isfinite().all() for x in gradients)
    assert gradients[0][5] == 0
    assert gradients[0][7] == 0


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_nan_and_infinity(dtype, name, form, set_backend):
    set_backend(name)
    weight, contexts, targets, bias, weights = problem(dtype=dtype, D=4, V=1300)
    contexts = torch.tensor([[0, -1, 3], [1, -1, 3], [2, -1, 3], [3, -1, 3], [1, -1, 2]])
    targets = torch.tensor([5, 900, 900, 5, 7])
    weight[0, 900], weight[1, 900], weight[2, 1200] = NAN, INF, INF
    weights = weights.abs()
    losses = gather_softmax(table(form, weight), contexts, targets, bias=bias, weights=weights)
    assert losses.isnan().tolist() == [True, True, False, False, False]
    assert losses.isinf().tolist() == [False, False, True, False, True]
    bias[3] = NAN
    losses = gather_softmax(table(form, weight), contexts, targets, bias=bias, weights=weights)
    assert losses.isnan().all()
    nothing = gather_softmax(
        table(form, weight), contexts[3:4], targets[3:4], bias=torch.full_like(bias, -INF), weights=weights
    )
    assert nothing.isnan().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16], ids=str)
def test_any_integers(dtype):
    weight, contexts, targets, bias, weights = problem(V=100)
    contexts.clamp_(min=0)
    expected = gather_softmax(weight, contexts, targets, bias=bias, weights=weights)
    got = gather_softmax(weight, contexts.to(dtype), targets.to(dtype), bias=bias, weights=weights)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_out_of_range_is_named(name, form, set_backend):
    set_backend(name)
    weight, contexts, targets, *_ = problem(V=100)
    weight = table(form, weight)
    with pytest.raises(IndexError, match=r"contexts reach from -1 to 11, out of range; expected \[-1, 11\), -1 to add"):
        gather_softmax(weight, contexts.index_fill(0, torch.tensor([4]), 11), targets)
    with pytest.raises(IndexError, match=r"contexts reach from -2 to 10"):
        gather_softmax(weight, contexts.index_fill(0, torch.tensor([4]), -2), targets)
    with pytest.raises(IndexError, match=r"targets reach from -1 to .*expected \[0, 100\)$"):
        gather_softmax(weight, contexts, targets.index_fill(0, torch.tensor([4]), -1))
    with pytest.raises(IndexError, match=r"targets reach from .* to 100"):
        gather_softmax(weight, contexts, targets.index_fill(0, torch.tensor([4]), 100))


def test_a_sparse_weight_has_no_gradient_and_nothing_a_second():
    weight, contexts, targets, bias, _ = problem(V=100)
    trained = weight.to_sparse_csr().requires_grad_()
    with pytest.raises(NotImplementedError, match="gather_softmax: a sparse weight has no gradient"):
        gather_softmax(trained, contexts, targets).sum().backward()
    bias.requires_grad_()
    (slope,) = torch.autograd.grad(gather_softmax(weight, contexts, targets, bias=bias).sum(), bias, create_graph=True)
    with pytest.raises(NotImplementedError, match="gather_softmax: it is differentiated once"):
        slope.square().sum().backward()


def test_one_step_of_training_lowers_the_loss():
    weight, contexts, targets, bias, weights = problem(dtype=torch.float32)
    parameters = [x.requires_grad_() for x in (weight, bias, weights)]
    losses = []
    for _ in range(3):
        loss = gather_softmax(weight, contexts, targets, bias=bias, weights=weights).mean()
        losses.append(float(loss.detach()))
        for x, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            x.data -= 0.5 * slope
    assert losses[0] > losses[1] > losses[2] > 0
    assert math.isfinite(losses[0])
