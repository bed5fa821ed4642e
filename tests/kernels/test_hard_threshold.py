"""What hard thresholds demand beyond the conformance suite: rules as losses, what is kept, pools, batch norms."""

import itertools

import pytest
import torch
from torch.nn.functional import max_pool2d

from tropigrad.kernels import hard_threshold
from tropigrad.kernels.hard_threshold import batch_norm_threshold, by_cpp, by_torch, by_triton, definition
from tropigrad.kernels.hard_threshold.definition import RULES, Form
from tropigrad.kernels.runtime import backend, native

NO_COMPILER = native.why_no_compiler()
NO_TRITON = backend.why_off("triton", torch.device("cpu"))
BACKWARDS = {"torch": by_torch.backward, "cpp": by_cpp.backward, "triton": by_triton.backward}
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is a compiler")
BACKENDS = ["torch", pytest.param("cpp", marks=compiled)]
FORMS = [(kind, rule or None, weighted) for kind, rules in RULES.items() for rule in rules
         for weighted in ((True, False) if rule else (True,))]  # fmt: skip
KINDS = [{"kind": "sign"}, {"kind": "step", "rule": "sste"}, {"kind": "staircase", "steps": 3},
         {"kind": "saturated_relu"}]  # fmt: skip


def gradient(z, dy, **options):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(hard_threshold(z, **options), z, dy)[0]


def numbers(*size, dtype=torch.float64):
    """Half of them multiples of 1/2, on which steps and bounds lie."""
    z = torch.randn(size, dtype=dtype) * 1.5
    return torch.where(torch.rand(size) < 0.5, (2 * z).round() / 2, z)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("kind", "rule", "weighted"), FORMS)
def test_the_gradient_is_that_of_the_weighted_loss(name, kind, rule, weighted, set_backend):
    """Between the kinks of the losses, where each has one derivative."""
    set_backend(name)
    z, dy = torch.randn(500, dtype=torch.float64) * 1.5, torch.randn(500, dtype=torch.float64)
    dy[::7] = 0
    steps = 3 if kind == "staircase" else None
    got = gradient(z, dy, kind=kind, rule=rule, weighted=weighted, steps=steps)
    leaf = z.clone().requires_grad_()
    if rule is None:
        total = (dy * leaf.clamp(0, 1)).sum()
    else:
        weight = dy.abs() if weighted else dy.sign().abs()
        total = (weight * definition.loss(leaf, -dy.sign(), kind, rule)).sum()
    torch.testing.assert_close(got, torch.autograd.grad(total, leaf)[0], rtol=1e-12, atol=1e-14)
    assert (got[::7] == 0).all()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["sign", "step"])
def test_known_estimators(name, kind, set_backend):
    set_backend(name)
    z, dy = numbers(1000), torch.randn(1000, dtype=torch.float64)
    inside = (z.abs() <= 1) if kind == "sign" else (z >= 0) & (z <= 1)
    assert torch.equal(gradient(z, dy, kind=kind, rule="ste"), dy)
    assert torch.equal(gradient(z, dy, kind=kind, rule="sste"), dy * inside)
    assert torch.equal(gradient(z, dy, kind=kind, rule="sigmoid_2_2"), gradient(z, dy, kind=kind))
    soft = gradient(z, dy, kind=kind, rule="soft_hinge")
    torch.testing.assert_close(soft, dy * (1 - z.tanh() ** 2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", BACKENDS)
def test_values_at_the_steps(name, set_backend):
    set_backend(name)
    nan, inf = float("nan"), float("inf")
    z = torch.tensor([nan, -inf, -1.0, -0.0, 0.0, 1e-30, 0.5, 0.75, 1.0, inf])
    expected = {
        ("sign", None): [nan, -1, -1, -1, -1, 1, 1, 1, 1, 1],
        ("step", None): [nan, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        ("staircase", 3): [nan, 0, 0, 0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1],
        ("saturated_relu", None): [nan, 0, 0, 0, 0, 1e-30, 0.5, 0.75, 1, 1],
    }
    for (kind, steps), y in expected.items():
        torch.testing.assert_close(
            hard_threshold(z, kind=kind, steps=steps), torch.tensor(y), rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("name", BACKENDS)
def test_masks_let_no_infinity_through(name, set_backend):
    set_backend(name)
    z, dy = torch.tensor([2.0, 0.5, -2.0, float("nan")]), torch.tensor([float("inf"), 1, float("nan"), float("inf")])
    assert gradient(z, dy, rule="sste").tolist() == [0, 1, 0, 0]
    scaled = z.detach().requires_grad_()
    scale = torch.ones(1, requires_grad=True)
    y = hard_threshold(scaled[:, None], rule="sste", scale=scale, shift=torch.zeros(1))
    assert torch.autograd.grad(y, scaled, dy[:, None])[0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_scales_as_what_came(name, dtype, set_backend):
    set_backend(name)
    z, dy = torch.randn(300, dtype=dtype), torch.randn(300, dtype=dtype)
    for rule, factor in itertools.product(RULES["sign"], (2.0**20, 2.0**-20)):
        assert torch.equal(gradient(z, factor * dy, rule=rule), factor * gradient(z, dy, rule=rule))
        same = gradient(z, factor * dy, rule=rule, weighted=False)
        assert torch.equal(same, gradient(z, dy, rule=rule, weighted=False))


# ------------------------------------------------------------------------------------------------ pools


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rule", ["soft_hinge", "sste", "ste", "hinge", "adaline"])
@pytest.mark.parametrize("save", ["auto", "input"])
def test_a_pool_is_a_threshold_of_max_pool2d(name, rule, save, set_backend):
    set_backend(name)
    z = numbers(2, 3, 8, 20, dtype=torch.float32).requires_grad_()
    y = hard_threshold(z, rule=rule, save=save, pool=2)
    expected = hard_threshold(max_pool2d(z, 2), rule=rule)
    assert torch.equal(y, expected)
    dy = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, z, dy)[0], torch.autograd.grad(expected, z, dy)[0])


# ------------------------------------------------------------------------------------------------ what is kept


def kept(call, z):
    """The bytes of what a call saves for its backward, beside z itself."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        call()
    return sum(x.nbytes for x in saved if x.data_ptr() != z.data_ptr())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("options", "bits"),
    [({"rule": "ste"}, 0), ({"rule": "sste"}, 1), ({"rule": "hinge"}, 2), ({"save": "byte"}, 8), ({}, 0),
     ({"kind": "saturated_relu"}, 1), ({"rule": "sste", "save": "input"}, 0)],
)  # fmt: skip
def test_no_more_is_kept_than_is_said(name, options, bits, set_backend):
    set_backend(name)
    z = torch.randn(4, 8, 16, 16, requires_grad=True)
    assert kept(lambda: hard_threshold(z, **options), z) == z.numel() * bits // 8
    m = 32 if options == {} or options.get("save") == "input" else bits
    assert kept(lambda: hard_threshold(z, pool=2, **options), z) == z.numel() // 4 * (m + 2) // 8


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rule", [rule for rule, x in RULES["sign"].items() if x.is_a_factor])
def test_eight_bits_of_the_factor(name, dtype, rule, set_backend):
    set_backend(name)
    z, dy = torch.randn(5000, dtype=dtype) * 2, torch.randn(5000, dtype=dtype)
    gap = (gradient(z, dy, rule=rule, save="byte") - gradient(z, dy, rule=rule)).abs()
    bound = dy.abs() * RULES["sign"][rule].height / 510
    assert (gap <= bound * (1 + 100 * torch.finfo(dtype).eps) + torch.finfo(dtype).eps).all()
    assert gap.max() > 0


def test_no_second_derivative():
    z = torch.randn(5, requires_grad=True)
    (dz,) = torch.autograd.grad(hard_threshold(z), z, torch.ones(5, requires_grad=True), create_graph=True)
    with pytest.raises(NotImplementedError, match="hard_threshold: it is differentiated once"):
        dz.sum().backward()


# ------------------------------------------------------------------------------------------------ affine maps


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("pool", [None, 2])
@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "matrix"])
def test_behind_a_batch_norm(name, pool, options, layout, set_backend):
    """As BatchNorm2d and a threshold: in training and in eval mode, value and gradients of z, weight and bias."""
    set_backend(name)
    z = torch.randn(6, 5, 8, 4, dtype=torch.float64) * 2 + 1
    if layout == "channels_last":
        z = z.contiguous(memory_format=torch.channels_last)
    if layout == "matrix":
        z, pool = z[:, :, 0, 0], None
    norm = (torch.nn.BatchNorm1d if layout == "matrix" else torch.nn.BatchNorm2d)(5).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    leaves = (z.requires_grad_(), norm.weight, norm.bias)
    expected = hard_threshold(norm(z), pool=pool, **options)
    dy = torch.randn_like(expected)
    y, mean, var = batch_norm_threshold(z, norm.weight, norm.bias, norm.eps, pool=pool, **options)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
    assert not mean.requires_grad
    assert not var.requires_grad
    others = [d for d in range(z.dim()) if d != 1]
    torch.testing.assert_close((var, mean), torch.var_mean(z.detach(), others, correction=0))
    for ours, torchs in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-11)
    norm.eval()
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    y, expected = hard_threshold(z, scale=scale, shift=shift, pool=pool, **options), norm(z)
    expected = hard_threshold(expected, pool=pool, **options)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
    for ours, torchs in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "matrix"])
@pytest.mark.parametrize("offset", [0, 1, 1e4])
@pytest.mark.parametrize("first", [0, 1e6])
def test_statistics_to_a_few_last_digits(name, layout, offset, first, set_backend):
    """Also where the mean is 10⁴ times the spread, and whatever a channel's first element is."""
    set_backend(name)
    z = torch.randn(64, 3, 8, 9) + offset
    z[0, 1, 0, 0] += first
    z = z[:, :, 0, 0] if layout == "matrix" else z
    z = z.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else z
    _, mean, var = batch_norm_threshold(z, torch.ones(3), torch.zeros(3), 1e-5)
    expected = torch.var_mean(z.double(), [d for d in range(z.dim()) if d != 1], correction=0)
    for got, wanted in zip((var, mean), expected, strict=True):
        # float32 has 1.2e-7; a mean near 0 is as exact as what it is the mean of
        torch.testing.assert_close(got, wanted.float(), rtol=5e-7, atol=1e-7)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("sample", [0, 3])
def test_only_a_channel_of_what_is_not_finite_has_no_variance(name, value, sample, set_backend):
    set_backend(name)
    z = torch.randn(4, 3, 8, 9)
    z[sample, 1, 0, 0] = value
    y, _, var = batch_norm_threshold(z, torch.ones(3), torch.zeros(3), 1e-5)
    assert var.isnan().tolist() == [False, True, False]
    assert y[:, 1].isnan().all()
    assert not y[:, ::2].isnan().any()


@compiled
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_are_the_same_on_any_number_of_threads(layout, set_backend):
    set_backend("cpp")
    z = torch.randn(37, 5, 40, 41).contiguous(memory_format=layout)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(batch_norm_threshold(z, torch.ones(5), torch.zeros(5), 1e-5))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_behind_a_batch_norm_z_alone_is_kept():
    z, weight, bias = torch.randn(8, 4, 6, 6, requires_grad=True), torch.ones(4), torch.zeros(4)
    assert kept(lambda: batch_norm_threshold(z, weight, bias, 1e-5, pool=2), z) <= 4 * 4 * 4  # numbers of a channel


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        pytest.param("cpp", marks=compiled),
        pytest.param("triton", marks=pytest.mark.skipif(bool(NO_TRITON), reason=NO_TRITON or "it runs here")),
    ],
)
@pytest.mark.parametrize(("pool", "channels_last"), [(False, False), (False, True), (True, False)])
def test_without_a_slope_an_infinite_z_does_not_count(name, pool, channels_last):
    """dz = p dx + r of the channels whose q is 0."""
    form = Form("sign", 0, "sste", True, "z", pool, channels_last)
    z = torch.randn(2, 8, 4, 6)
    z[:, ::2, 1, 2], z[:, ::2, 2, 3] = float("inf"), float("-inf")
    dy = torch.randn(2, 8, 2, 3) if pool else torch.randn_like(z)
    if channels_last:
        z, dy = (x.contiguous(memory_format=torch.channels_last) for x in (z, dy))
    coefficients = torch.randn(4, 8)
    coefficients[1, ::2] = 0
    scale, shift, nothing = torch.ones(8), torch.zeros(8), z.new_empty(0)
    got = BACKWARDS[name](dy, z, scale, shift, nothing, nothing.to(torch.uint8), coefficients, form)
    leaf = z.clone().requires_grad_()
    (dx,) = torch.autograd.grad(hard_threshold(leaf, rule="sste", pool=2 if pool else None), leaf, dy)
    p, q, center, r = coefficients[:, None, :, None, None]
    expected = p * dx + torch.where(q == 0, 0, q * (z.where(z.isfinite(), 0) - center)) + r
    assert expected.isfinite().all()
    torch.testing.assert_close(got, expected)
