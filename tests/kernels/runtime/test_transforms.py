"""What stands between a caller and any op: forms of the Hessian, mapped dimensions of 0, lazy views, devices."""

from typing import Any

import pytest
import torch

from tropigrad.kernels import (
    largest_path,
    path_norm,
    path_values,
    tropical_conv2d,
    tropical_matmul,
    tropical_matvec,
    tropical_winners_grad,
)

WINDOW = {"stride": (2, 1), "padding": 1, "groups": 2}
PATHS = torch.tensor([[0, 0, 0], [1, 2, 1], [1, 0, 1], [0, 2, 0]])
IMAGE = {"input_size": (3, 4), "padding": 1}
IMAGE_PATHS = torch.tensor([[0, 0, 0], [11, 6, 1], [5, 4, 1], [3, 20, 0]])


def weights_values(first, last):
    return path_values([first, last], PATHS)


def image_values(first, last):
    return path_values([first, last], IMAGE_PATHS, **IMAGE)


# name -> a function of two tensors, and their shapes
OPS = {
    **{
        f"matmul-{semiring}": (lambda a, b, s=semiring: tropical_matmul(a, b, semiring=s), (2, 3), (3, 2))
        for semiring in ("max_plus", "min_plus", "max_times", "log")
    },
    **{
        f"matvec-{semiring}": (lambda a, x, s=semiring: tropical_matvec(a, x, semiring=s), (2, 3), (3,))
        for semiring in ("max_plus", "log")
    },
    "conv2d": (lambda x, w: tropical_conv2d(x, w, **WINDOW), (1, 4, 3, 4), (2, 2, 2, 2)),
    "path_values": (weights_values, (3, 2), (2, 3)),
    "path_values-image": (image_values, (2, 1, 3, 3), (2, 24)),
    "path_norm": (lambda a, b: path_norm([a, b]), (3, 2), (2, 3)),
    "path_norm-log": (lambda a, b: path_norm([a, b], 1, log=True), (3, 2), (2, 3)),
    "largest_path": (lambda a, b: largest_path([a, b]).value, (3, 2), (2, 3)),
}
ops = pytest.mark.parametrize("name", OPS)


def drawn(name):
    op, *shapes = OPS[name]
    return op, *(torch.randn(shape, dtype=torch.float64) for shape in shapes)


# ------------------------------------------------------------------------------------------------ Hessians


@ops
@pytest.mark.parametrize("of", [0, 1], ids=["first", "second"])
def test_every_form_of_the_hessian_agrees(name, of):
    """Row by row, vectorized by torch.autograd, by torch.func, and that mapped over a batch."""
    op, *given = drawn(name)

    def total(x):
        values = op(*(x if index == of else y for index, y in enumerate(given)))
        return (values * values * values).sum() + values.sum()

    x = given[of]
    expected: Any = torch.autograd.functional.hessian(total, x)
    assert expected.any()
    reverse = torch.func.jacrev(torch.func.jacrev(total))
    torch.testing.assert_close(torch.autograd.functional.hessian(total, x, vectorize=True), expected)
    torch.testing.assert_close(reverse(x), expected)
    torch.testing.assert_close(torch.vmap(reverse)(torch.stack([x, x])), torch.stack([expected, expected]))


# ------------------------------------------------------------------------------------------------ no sample


@ops
@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0), (1, None), (None, 1)], ids=str)
def test_a_mapped_dimension_of_zero_gives_empty_results(name, mapped):
    op, *given = drawn(name)
    shape = op(*given).shape

    def empty(x, dim):
        return x if dim is None else x.new_zeros((*x.shape[:dim], 0, *x.shape[dim:]))

    args = [empty(x, dim) for x, dim in zip(given, mapped, strict=True)]
    assert torch.vmap(op, mapped)(*args).shape == (0, *shape)

    def total(*x):
        return op(*x).square().sum()

    for got, x in zip(torch.vmap(torch.func.grad(total, (0, 1)), mapped)(*args), given, strict=True):
        assert got.shape == (0, *x.shape)
    gradients = torch.func.grad(lambda *x: torch.vmap(op, mapped)(*x).square().sum(), (0, 1))(*args)
    for got, x in zip(gradients, args, strict=True):
        assert got.shape == x.shape
        assert not got.any()


def test_winners_of_no_sample():
    a, b = torch.zeros(0, 2, 3), torch.zeros(3, 4)
    for op, args in (
        (tropical_matmul, (a, b)),
        (tropical_matvec, (a, b[:, 0])),
        (tropical_conv2d, (torch.zeros(0, 1, 2, 5, 5), torch.zeros(3, 2, 2, 2))),
    ):
        values, indices = torch.vmap(lambda *x, op=op: op(*x, return_indices=True), (0, None))(*args)
        assert values.shape == indices.shape
        assert len(values) == 0
        assert indices.dtype == torch.int64


def test_a_mapped_dimension_of_zero_among_others():
    nested = torch.vmap(torch.vmap(lambda a: tropical_matmul(a, torch.zeros(3, 4), semiring="log")), in_dims=1)
    assert nested(torch.zeros(5, 0, 2, 3)).shape == (0, 5, 2, 4)


# ------------------------------------------------------------------------------------------------ views, devices


@ops
def test_a_lazy_negation_is_negated(name):
    """The imaginary part of a conjugate lies in memory with the other sign."""
    op, *given = drawn(name)
    lazy = [torch.complex(x, -x).conj().imag for x in given]
    assert all(x.is_neg() for x in lazy)
    for of in ((0,), (1,), (0, 1)):
        args = [lazy[index] if index in of else x for index, x in enumerate(given)]
        assert torch.equal(op(*args), op(*given))
        leaves = [x.detach().requires_grad_() for x in args]
        plain = [x.clone().requires_grad_() for x in given]
        got, expected = (torch.autograd.grad(op(*x).sum(), x) for x in (leaves, plain))
        assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


MINE = [name for name in OPS if name.startswith(("conv2d", "path_")) or name.endswith("log")]


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_default_device_changes_nothing(name, backend, set_backend):
    set_backend(backend)
    op, *given = drawn(name)

    def everything():
        leaves = [x.clone().requires_grad_() for x in given]
        value = op(*leaves)
        first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), leaves)
        return [x.detach() for x in (value, *first, *second)]

    expected = everything()
    with torch.device("meta"):
        got = everything()
    assert all(x.device.type == "cpu" for x in got)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # path_norm leaves C++ where a mode looks


# ------------------------------------------------------------------------------------------------ no tensor as expected


def _calls():
    a, b, x = torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(1, 4, 5, 5)
    return {
        "matmul-a": ("tropical_matmul: a", lambda bad: tropical_matmul(bad, b)),
        "matmul-b": ("tropical_matmul: b", lambda bad: tropical_matmul(a, bad)),
        "matvec-x": ("tropical_matvec: x", lambda bad: tropical_matvec(a, bad)),
        "conv2d-x": ("tropical_conv2d: x", lambda bad: tropical_conv2d(bad, torch.zeros(2, 4, 3, 3))),
        "conv2d-weight": ("tropical_conv2d: weight", lambda bad: tropical_conv2d(x, bad)),
        "path_values": (r"path_values: weights\[1\]", lambda bad: path_values([b, bad], PATHS)),
        "path_values-paths": ("path_values: paths", lambda bad: path_values([b], bad)),
        "path_norm": (r"path_norm: weights\[0\]", lambda bad: path_norm([bad, b])),
        "largest_path": (r"largest_path: weights\[1\]", lambda bad: largest_path([b, bad])),
    }


CALLS = _calls()


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize(
    "make", [torch.nn.UninitializedParameter, torch.nn.parameter.UninitializedBuffer], ids=["parameter", "buffer"]
)
@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_without_a_shape_is_named(name, make, autocast):
    argument, call = CALLS[name]
    with (
        torch.autocast("cpu", enabled=autocast),
        pytest.raises(
            TypeError, match=f"^{argument} is an {make.__name__}; expected an initialised tensor: call its module once"
        ),
    ):
        call(make())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_nested_tensor_is_named(name, layout):
    argument, call = CALLS[name]
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=layout)
    with pytest.raises(TypeError, match=f"^{argument} is a nested tensor; expected one shape for all"):
        call(nested)


def test_more_candidates_than_four_bytes_number_are_refused():
    """An expanded element takes no memory."""
    many = torch.zeros(1, 1, dtype=torch.int8).expand(1, 2**31 + 1)
    image = many.view(1, -1, 1, 1)
    calls: list[tuple[Any, tuple[torch.Tensor, ...]]] = [
        (tropical_matmul, (many, many.mT)),
        (tropical_matvec, (many, many[0])),
        (tropical_conv2d, (image, image)),
    ]
    for op, args in calls:
        for options in ({}, {"return_indices": True}):
            with pytest.raises(ValueError, match=f"^{op.__name__}: .* 2147483649 candidates .*; expected at most 2³¹"):
                op(*args, **options)
    wide = many.to("meta").unsqueeze(0)
    with pytest.raises(ValueError, match="there are 2147483649 candidates for each; expected at most 2³¹"):
        torch.ops.tropigrad.tropical_matmul(wide, wide.mT, "max_plus", True, False)
    assert tropical_winners_grad(torch.ones(1, 1), torch.full((1, 1), 2**31), 2**31 + 1).a.shape == (1, 2**31 + 1)
