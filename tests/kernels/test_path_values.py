"""What paths demand beyond the conformance suite: whole networks, rescaling, zeros, images, threads, bad nodes."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, linear

from tropigrad.kernels import largest_path, path_norm, path_values
from tropigrad.kernels.mathematics.network import network, pack, unpack
from tropigrad.kernels.path_values import by_triton, definition, path_values_ref
from tropigrad.kernels.path_values.spec import random_paths
from tropigrad.kernels.runtime import backend, native

NO_COMPILER = native.why_no_compiler()
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is a compiler")
NO_INTERPRETER = backend.why_off("triton", torch.device("cpu"))
interpreted = pytest.mark.skipif(bool(NO_INTERPRETER), reason=NO_INTERPRETER or "Triton is interpreted here")
BACKENDS = ["torch", pytest.param("cpp", marks=compiled), pytest.param("triton", marks=interpreted)]
IMAGE = {"input_size": (4, 3), "stride": [1, (2, 1)], "padding": [1, (1, 0)]}


def dense(*widths: int, dtype=torch.float64) -> list[torch.Tensor]:
    return [torch.randn(o, i, dtype=dtype) for i, o in itertools.pairwise(widths)]


def image_network(dtype=torch.float64) -> list[torch.Tensor]:
    """2 × 4 × 3 → 2 × 4 × 3 → 3 × 2 × 2 → 2, as IMAGE says."""
    shapes = (2, 2, 3, 3), (3, 2, 3, 2), (2, 12)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def every_path(weights, **options) -> torch.Tensor:
    sizes = definition.sizes(network("path_values", weights, *(options.get(k, d) for k, d in DEFAULTS)))
    return torch.cartesian_prod(*map(torch.arange, sizes))


DEFAULTS = (("input_size", None), ("stride", 1), ("padding", 0))


# ------------------------------------------------------------------------------------------------ all paths


@pytest.mark.parametrize("name", BACKENDS)
def test_hand_values(name, set_backend):
    set_backend(name)
    weights = torch.tensor([[2.0, 3.0], [5.0, -7.0]]), torch.tensor([[11.0, 0.5]])
    assert path_values(weights, torch.tensor([[0, 0, 0], [1, 1, 0], [1, 0, 0]])).tolist() == [22.0, -3.5, 33.0]
    assert path_values(weights, torch.tensor([0, 1, 0])).item() == 2.5


@pytest.mark.parametrize("name", BACKENDS)
def test_a_linear_network_is_the_sum_of_its_paths(name, set_backend):
    """y[o] = Σ over paths from i to o of v(p) x[i]: the nodes of a path are those that torch's layers number."""
    set_backend(name)
    first, second, last = weights = image_network()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    hidden = conv2d(x, first, padding=1)
    y = linear(conv2d(hidden, second, stride=(2, 1), padding=(1, 0)).flatten(1), last)
    paths = every_path(weights, **IMAGE)
    terms = path_values(weights, paths, **IMAGE) * x.flatten()[paths[:, 0]]
    torch.testing.assert_close(y[0], torch.zeros(2, dtype=y.dtype).index_add(0, paths[:, -1], terms))


@pytest.mark.parametrize("options", [{}, IMAGE], ids=["linear", "convolution"])
def test_the_norm_and_the_largest_path_are_those_of_all_paths(options):
    weights = image_network() if options else dense(5, 4, 6, 3)
    paths = every_path(weights, **options)
    values = path_values(weights, paths, **options)
    for p in (1, 2):
        expected = values.abs().pow(p).sum()
        torch.testing.assert_close(path_norm(weights, p, **options), expected)
        torch.testing.assert_close(path_norm(weights, p, log=True, **options), expected.log())
    value, route = largest_path(weights, **options)
    best = values.abs().argmax()
    assert route.tolist() == paths[best].tolist()
    assert value == values[best]


def test_rescaling_a_node_changes_no_path():
    """Incoming weights times c, outgoing ones over c; by powers of two, which round nothing."""
    weights = dense(5, 7, 6, 4, dtype=torch.float32)
    scaled, c = [w.clone() for w in weights], 2.0 ** torch.randint(-9, 10, (7,))
    scaled[0] *= c.unsqueeze(1)
    scaled[1] /= c
    paths = random_paths([5, 7, 6, 4], 500)
    assert torch.equal(path_values(scaled, paths), path_values(weights, paths))
    torch.testing.assert_close(path_norm(scaled), path_norm(weights))
    assert torch.equal(largest_path(scaled).route, largest_path(weights).route)
    assert largest_path(scaled).value == largest_path(weights).value


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=7), st.integers(0, 40), st.integers(0, 2**20))
def test_any_depth_and_width(widths, count, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o, i, generator=generator).requires_grad_() for i, o in itertools.pairwise(widths)]
    paths = random_paths(widths, count, generator)
    got, expected = path_values(weights, paths), path_values_ref(weights, paths)
    assert torch.equal(got, expected)
    dv = torch.randn(count, generator=generator)
    for ours, theirs in zip(*(torch.autograd.grad(v, weights, dv) for v in (got, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
def test_gradients_are_the_oracles(name, deterministic, set_backend):
    set_backend(name)
    weights = [w.requires_grad_() for w in image_network()]
    paths = every_path(weights, **IMAGE)[::7]
    dv = torch.randn(len(paths), dtype=torch.float64)
    expected = torch.autograd.grad(path_values_ref(weights, paths, **IMAGE), weights, dv)
    torch.use_deterministic_algorithms(deterministic)
    try:
        got = torch.autograd.grad(path_values(weights, paths, **IMAGE), weights, dv)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", BACKENDS)
def test_zero_weights_have_gradients(name, set_backend):
    """∂v/∂w is the product of the others, where it is that w itself is 0 too; where two are 0 there is none."""
    set_backend(name)
    weights = [torch.tensor([[x]], requires_grad=True) for x in (2.0, 0.0, 3.0)]
    path = torch.zeros(1, 4, dtype=torch.int64)
    got = torch.autograd.grad(path_values(weights, path).sum(), weights)
    assert [g.item() for g in got] == [0.0, 6.0, 0.0]
    weights[0].data.zero_()
    got = torch.autograd.grad(path_values(weights, path).sum(), weights)
    assert [g.item() for g in got] == [0.0, 0.0, 0.0]


def test_convolutions_differentiate_twice():
    weights = [w.requires_grad_() for w in image_network()]
    paths = every_path(weights, **IMAGE)[::211]

    def values(*weights):
        return path_values(weights, paths, **IMAGE)

    assert torch.autograd.gradcheck(values, weights)
    assert torch.autograd.gradgradcheck(values, weights)


def test_a_third_derivative():
    weights = [torch.tensor([[x]], requires_grad=True) for x in (2.0, 5.0, 3.0)]
    derivative = path_values(weights, torch.zeros(4, dtype=torch.int64))
    for weight in weights:
        (derivative,) = torch.autograd.grad(derivative, weight, torch.ones_like(derivative), create_graph=True)
    assert derivative.item() == 1.0


def test_half_precision_adds_in_float32():
    """In float16 a running sum of ones stops at 2048."""
    for dtype in (torch.float16, torch.bfloat16):
        weight = torch.ones(1, 1, dtype=dtype, requires_grad=True)
        path_values([weight], torch.zeros(4096, 2, dtype=torch.int64)).sum().backward()
        assert weight.grad is not None
        assert weight.grad.item() == 4096


@compiled
@pytest.mark.parametrize(
    "widths", [(9, 8, 7, 9), (30, 20), (700, 600, 20), (3,) * 12], ids=["small", "one-layer", "large", "deep"]
)
def test_any_number_of_threads_gives_the_same_bits(widths, set_backend):
    """On one layer threads share its weights; on more than one, the layers. One thread walks small networks."""
    set_backend("cpp")
    weights = [w.requires_grad_() for w in dense(*widths, dtype=torch.float32)]
    paths = random_paths(list(widths), 100_000)
    dv = torch.randn(len(paths))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            values = path_values(weights, paths)
            found.append((values.detach(), *torch.autograd.grad(values, weights, dv)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    expected = torch.autograd.grad(path_values_ref(weights, paths), weights, dv)
    for ours, theirs in zip(found[0][1:], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------------ bad nodes


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("column", "node"), [(0, 3), (1, -1), (2, 2**32), (2, 4), (0, -(2**63))], ids=str)
def test_a_node_outside_its_layer_is_named(name, column, node, set_backend):
    set_backend(name)
    weights, paths = dense(3, 5, 4), torch.zeros(700, 3, dtype=torch.int64)
    paths[300, column] = node
    size = (3, 5, 4)[column]
    message = rf"paths\[300, {column}\] is {node}; expected a node of layer {column}, in \[0, {size}\)"
    with pytest.raises(IndexError, match=message):
        path_values(weights, paths)
    layers = pack(network("path_values", weights, None, 1, 0))
    flat = torch.cat([w.flatten() for w in weights]).unsqueeze(0)
    with pytest.raises(IndexError, match=message):
        torch.ops.tropigrad.path_values_backward(torch.ones(1, 700).double(), flat, paths.unsqueeze(0), layers)


@interpreted
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
def test_the_triton_kernels_mask_what_is_outside(deterministic):
    """A GPU raises nothing: the value is NaN, and no gradient is added anywhere."""
    weights, paths = image_network(), random_paths([24, 24, 12, 2], 300).unsqueeze(0)
    layers = network("path_values", weights, *IMAGE.values())
    flat, dv = torch.cat([w.flatten() for w in weights]).unsqueeze(0), torch.randn(1, 300, dtype=torch.float64)
    bad = paths.clone()
    lost = [0, 7, 8, 299]
    for row, column, node in zip(lost, (0, 1, 2, 3), (24, -1, 2**40, 2), strict=True):
        bad[0, row, column] = node
    got, expected = by_triton.forward(flat, bad, layers), by_triton.forward(flat, paths, layers)
    expected[0, lost] = math.nan
    assert torch.equal(got.nan_to_num(1e9), expected.nan_to_num(1e9))
    assert got[0, lost].isnan().all()
    torch.use_deterministic_algorithms(deterministic)
    try:
        got = by_triton.backward(dv, flat, bad, layers)
    finally:
        torch.use_deterministic_algorithms(False)
    kept = torch.ones(300, dtype=torch.bool).index_fill(0, torch.tensor(lost), False)
    torch.testing.assert_close(got, definition.gradient(dv[:, kept], flat, paths[:, kept], layers))


def test_layers_survive_packing():
    layers = network("path_values", image_network(), *IMAGE.values())
    assert unpack(pack(layers)) == layers
    assert definition.sizes(layers) == [24, 24, 12, 2]


# ------------------------------------------------------------------------------------------------ norm, largest path


def test_the_norm_overflows_only_where_the_sum_does():
    weights = [torch.full((1, 1), x) for x in (1e18, 1e18, 1e18, 1e-18, 1e-18, 1e-18)]
    assert path_norm(weights, 1).item() == pytest.approx(1.0, rel=1e-5)
    assert path_norm(weights, 2).item() == pytest.approx(1.0, rel=1e-5)
    assert path_norm(weights[:3], 1).item() == math.inf
    assert path_norm(weights[:3], 2, log=True).item() == pytest.approx(6 * math.log(1e18), rel=1e-6)
    assert path_norm(weights[3:], 1).item() == 0.0
    assert path_norm(weights[3:], 1, log=True).item() == pytest.approx(-3 * math.log(1e18), rel=1e-6)


NORMS = ["torch", pytest.param("cpp", marks=compiled)]


def norm_and_gradient(weights, **options):
    leaves = [w.detach().clone().requires_grad_() for w in weights]
    value = path_norm(leaves, **options)
    return value.detach(), torch.autograd.grad(value, leaves)


def assert_rescaled(weights, scaled, powers, shift, **options):
    """The norm of `scaled` is 2^shift that of `weights`, to the bit but where C++ leaves it to torch; gradients too.

    powers: what each weight was multiplied by.
    """
    value, gradient = norm_and_gradient(weights, **options)
    got, slopes = norm_and_gradient(scaled, **options)
    near = {"rtol": 8 * torch.finfo(value.dtype).eps, "atol": 0}
    if options["log"]:
        torch.testing.assert_close(got, value + shift * math.log(2), **near)
        shift = 0
    else:
        torch.testing.assert_close(got * 2.0**-shift, value, **near)
    for ours, theirs, power in zip(slopes, gradient, powers, strict=True):
        torch.testing.assert_close(ours * power * 2.0**-shift, theirs, **near)
    with backend.forcing("torch"):
        first, second = path_norm(weights, **options), path_norm(scaled, **options)
        assert options["log"] or torch.equal(second * 2.0**-shift, first)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("log", [False, True], ids=["sum", "log"])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shifts", [(1, -1, 0), (-1, 1, 0), (1, 0, -1), (0.5, 0.25, 0.25), (-0.5, 0.5, 0.5), (0, 0, 1), (0, 0, -1)], ids=str
)
def test_the_norm_of_rescaled_layers(shifts, dtype, p, log, name, set_backend):
    """By 2^±60, or 2^±500 in float64, whose squares are near the dtype's ends."""
    set_backend(name)
    weights = [0.4 * w for w in dense(5, 7, 6, 4, dtype=dtype)]  # whose norms are near 1
    shifts = [int(shift * (500 if dtype == torch.float64 else 60)) for shift in shifts]
    powers = [2.0**shift for shift in shifts]
    scaled = [w * power for w, power in zip(weights, powers, strict=True)]
    assert_rescaled(weights, scaled, powers, p * sum(shifts), p=p, log=log)


def rescaled_nodes(weights, most):
    """Each hidden node's, or channel's, incoming weights times a power of two, the outgoing ones divided by it."""
    scaled, powers = [w.clone() for w in weights], [torch.ones_like(w) for w in weights]
    for before, after in itertools.pairwise(range(len(weights))):
        c = 2.0 ** torch.randint(-most, most + 1, weights[before].shape[:1]).to(weights[before].dtype)
        into = c.view(-1, *[1] * (weights[before].dim() - 1))
        flattened = weights[after].shape[1] // len(c) if weights[after].dim() == 2 else 1
        out_of = c.repeat_interleave(flattened).view(1, -1, *[1] * (weights[after].dim() - 2))
        for x in (scaled, powers):
            x[before] *= into
            x[after] /= out_of
    return scaled, powers


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("log", [False, True], ids=["sum", "log"])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("most", [10, 30, 60])
@pytest.mark.parametrize("net", ["dense", "dead", "image"])
def test_the_norm_of_rescaled_nodes(net, most, p, log, name, set_backend):
    """Nodes 2^240 apart in one layer, p = 2; some of them dead ends, or never reached."""
    if net == "image":
        weights, options = image_network(torch.float32), IMAGE
        name = "torch"  # which serves convolutions
    else:
        weights, options = dense(5, 7, 6, 4, dtype=torch.float32), {}
    if net == "dead":
        weights[0][2], weights[1][:, 3], weights[1][1] = 0, 0, 0
    set_backend(name)
    scaled, powers = rescaled_nodes(weights, most)
    assert_rescaled(weights, scaled, powers, 0, p=p, log=log, **options)


@pytest.mark.parametrize("name", NORMS)
def test_the_norm_where_squares_and_row_sums_leave_the_dtype(name, set_backend):
    set_backend(name)
    two_ways = torch.tensor([[2.0**-60], [2.0**60]]), torch.tensor([[2.0**60, 2.0**-60]])
    assert path_norm(two_ways, 1).item() == path_norm(two_ways, 2).item() == 2
    long_rows = torch.full((1, 3), 3e38), torch.tensor([[1e-30]])
    assert path_norm(long_rows, 1).item() == pytest.approx(9e8, rel=1e-5)
    assert path_norm(long_rows, 2).item() == pytest.approx(2.7e17, rel=1e-5)
    one = [torch.full((1, 1), 1e-30)]
    assert path_norm(one, 2, log=True).item() == pytest.approx(2 * math.log(1e-30), rel=1e-6)
    assert path_norm(one, 2).item() == 0
    assert path_norm([torch.full((1, 1), 1e30)], 2).item() == math.inf


@compiled
@pytest.mark.parametrize("small", [1e-3, 1e-8, 1e-12, 1e-16, 1e-25, 1e-40], ids=str)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_norm_of_a_net_with_decayed_weights_is_right_in_cpp(at, small, set_backend):
    """A whole row, a whole column and single weights that decay: left to torch where their parts would be lost.

    A gradient may come as 0 that is 2^−70 of another.
    """
    set_backend("cpp")
    weights = dense(9, 8, 7, 3, dtype=torch.float32)
    weights[at][1] *= small
    weights[at][:, 2] *= small
    weights[at][0, 0] *= small
    value, gradient = norm_and_gradient(weights)
    expected, slopes = norm_and_gradient([w.double() for w in weights])
    torch.testing.assert_close(value, expected.float())
    nothing = 2.0**-70 * max(slope.abs().max().item() for slope in slopes)
    for ours, theirs in zip(gradient, slopes, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=nothing)


@pytest.mark.parametrize("p", [1, 2])
def test_the_norms_curvature_beside_zeros_and_after_rescaling(p):
    """Σ w² is curved at w = 0 too, of a node that nothing reaches and of one that leads nowhere."""
    weights = dense(3, 4, 2)
    weights[0][1], weights[1][:, 2] = 0, 0
    scaled, powers = rescaled_nodes(weights, 40)

    def curvature(weights):
        def norm(first):
            return path_norm([first, weights[1]], p)

        return torch.autograd.functional.hessian(norm, weights[0]), torch.func.hessian(norm)(weights[0])

    expected = torch.diag_embed(2 * weights[1].square().sum(0).view(4, 1).expand(4, 3).flatten()).view(4, 3, 4, 3)
    for of in curvature(weights):
        torch.testing.assert_close(of, expected if p == 2 else torch.zeros_like(expected))
    c = powers[0]
    for of in curvature(scaled):
        torch.testing.assert_close(of * c * c.view(4, 3, 1, 1), curvature(weights)[0])


@pytest.mark.parametrize("log", [False, True], ids=["sum", "log"])
@pytest.mark.parametrize("p", [1, 2])
def test_the_norm_differentiates_in_both_modes(p, log):
    weights = [w.requires_grad_() for w in dense(3, 4, 2)]
    assert torch.autograd.gradcheck(lambda *w: path_norm(w, p, log=log), weights, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *w: path_norm(w, p, log=log), weights)


def test_the_largest_path_alone_has_a_gradient():
    weights = [w.requires_grad_() for w in dense(5, 4, 6, 3)]
    value, route = largest_path(weights)
    for l, gradient in enumerate(torch.autograd.grad(value, weights)):
        edge = int(route[l + 1]), int(route[l])
        assert gradient.nonzero().tolist() == [list(edge)]
        torch.testing.assert_close(gradient[edge] * weights[l][edge], value)


def test_ties_go_to_the_lowest_node_from_the_output_back():
    weights = torch.tensor([[1.0, 2.0], [-2.0, 2.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    value, route = largest_path(weights)
    assert route.tolist() == [1, 0, 0]
    assert value.item() == 2.0
    assert largest_path([-w for w in weights]).route.tolist() == [1, 0, 0]


def test_where_every_path_has_a_zero_the_largest_is_zero():
    weights = torch.tensor([[0.0, 0.0], [3.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    value, route = largest_path(weights)
    assert value.item() == 0.0
    assert route.tolist() == [0, 0, 0]


WIDTHS = {"one-layer": (5, 3), "narrow": (7, 1, 37, 2), "blocks": (1100, 70, 131, 9), "empty": (3, 0, 2)}


@compiled
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("log", [False, True], ids=["sum", "log"])
@pytest.mark.parametrize("widths", WIDTHS)
def test_the_norm_and_its_gradient_in_cpp_are_those_of_torch(widths, log, p):
    weights = [w.requires_grad_() for w in dense(*WIDTHS[widths])]
    found = {}
    for name in ("cpp", "torch"):
        with backend.forcing(name):
            value = path_norm(weights, p, log=log)
            assert (type(value.grad_fn).__name__ == "_PathNormBackward") == (name == "cpp")
            found[name] = (value, *torch.autograd.grad(3 * value, weights))
    torch.testing.assert_close(found["cpp"], found["torch"], equal_nan=True)


@compiled
def test_the_norm_has_the_same_bits_on_any_number_of_threads(monkeypatch):
    weights = [w.requires_grad_() for w in dense(1100, 300, 700, 9, dtype=torch.float32)]

    def computed():
        value = path_norm(weights, log=True)
        return value, *torch.autograd.grad(value, weights)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = computed()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for _ in range(5):
        assert all(torch.equal(x, y) for x, y in zip(one, computed(), strict=True))


@compiled
def test_who_looks_at_the_norm_sees_torch():
    first, last = dense(4, 3, 2)
    first.requires_grad_()
    value = path_norm([first, last])
    (gradient,) = torch.autograd.grad(value, [first], create_graph=True)
    slopes = torch.tensor([1.0, -2.0], dtype=torch.float64)
    (many,) = torch.autograd.grad(value, [first], slopes, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(many, slopes.view(2, 1, 1) * gradient)
    (second,) = torch.autograd.grad(gradient.sum(), [first])
    with torch.autocast("cpu", torch.bfloat16):
        (again,) = torch.autograd.grad(value, [first], create_graph=True)
    torch.testing.assert_close(again, gradient, rtol=1e-12, atol=0)
    torch.testing.assert_close(second, (2 * last.square().sum(0)).view(3, 1).expand(3, 4))
    torch.testing.assert_close(torch.func.grad(lambda w: path_norm([w, last]))(first), gradient)
    torch.testing.assert_close(torch.vmap(lambda w: path_norm([w, last]))(first.expand(2, 3, 4)), value.expand(2))


@compiled
def test_one_weight_may_be_several_layers():
    (shared,) = dense(4, 4)
    shared.requires_grad_()
    expected = 2 * shared * (shared.square().sum(1) + shared.square().sum(0)[:, None])
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(path_norm([shared, shared]), [shared], create_graph=create_graph)
        torch.testing.assert_close(gradient, expected)


# ------------------------------------------------------------------------------------------------ what is taken


@pytest.mark.parametrize(
    "op",
    [path_norm, largest_path, lambda w: path_values(w, torch.tensor([0, 1, 0]))],
    ids=["norm", "largest", "values"],
)
def test_weights_of_any_iterable(op):
    weights = dense(3, 4, 2, dtype=torch.float32)
    expected = op(weights)
    listed = torch.nn.ParameterList([torch.nn.Parameter(w) for w in weights])
    for iterable in (tuple(weights), listed, (w for w in weights), listed.parameters()):
        got = op(iterable)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        assert all(torch.equal(x, y) for x, y in pairs)
    wrong: list[tuple[Any, str]] = [(dict(enumerate(weights)), "dict"), ("ab", "str"), (None, "NoneType"), (3, "int")]
    for bad, name in wrong:
        with pytest.raises(TypeError, match=f"weights is a {name}; expected a list of weights, one a layer"):
            op(bad)


def test_the_norms_power_may_be_any_number_that_is_1_or_2():
    numpy = pytest.importorskip("numpy")
    weights = dense(3, 4, 2)
    right: list[Any] = [2.0, numpy.int64(2), numpy.float32(2)]
    for p in right:
        assert torch.equal(path_norm(weights, p), path_norm(weights, 2))
    wrong: list[Any] = [True, "2", 1.5, math.nan, None, torch.tensor(2)]
    for p in wrong:
        with pytest.raises(ValueError, match=r"path_norm: p is .*; expected 1 or 2"):
            path_norm(weights, p)


def test_sizes_may_be_numpys():
    numpy = pytest.importorskip("numpy")
    weight = [torch.randn(3, 2, 3, 3)]

    def norm(integer: Any, short: Any):
        padding: Any = [(integer(2), short(1))]
        return path_norm(weight, input_size=(short(5), integer(6)), stride=integer(2), padding=padding)

    assert torch.equal(norm(numpy.int64, numpy.int32), norm(int, int))
    wrong: list[tuple[str, Any]] = [("stride", 2.0), ("stride", None), ("padding", "1"), ("stride", [(1, 1.0)])]
    for name, bad in [*wrong, ("padding", True)]:
        with pytest.raises(ValueError, match=f"path_norm: {name} is .*; expected integers"):
            path_norm(weight, input_size=5, **{name: bad})
    wrong_sizes: list[Any] = [True, "5", 5.0, (5,), (5, None)]
    for bad in wrong_sizes:
        with pytest.raises(ValueError, match=r"path_norm: input_size is .*; expected integers"):
            path_norm(weight, input_size=bad)
