"""torch.utils.flop_counter counts the tropical operators: two for each step of the definition."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tropigrad.kernels import tropical_conv2d, tropical_matmul, tropical_matvec
from tropigrad.kernels.contract.registry import REGISTRY

M, K, N = 3, 5, 7


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def leaves(*sizes):
    return [torch.randn(size, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("semiring", ["max_plus", "min_plus", "max_times", "log"])
def test_a_product_counts_as_torch_counts_its_own(semiring):
    a, b = torch.rand(4, M, K), torch.rand(4, K, N)
    steps = REGISTRY["tropical_matmul"].workloads[0].operations({"M": M, "K": K, "N": N})
    assert counted(lambda: tropical_matmul(a, b, semiring=semiring)) == 4 * 2 * steps == counted(lambda: a @ b)


def test_batches_are_broadcast_and_a_vector_is_one_column():
    a, b = torch.rand(2, 1, M, K), torch.rand(4, K, N)
    assert counted(lambda: tropical_matmul(a, b)) == 2 * 4 * 2 * M * N * K
    assert counted(lambda: tropical_matvec(a[0, 0], b[0, :, 0])) == 2 * M * K


def test_the_backward_adds_once_for_each_output_and_gradient():
    a, b = leaves((M, K), (K, N))
    assert counted(lambda: tropical_matmul(a, b).sum().backward()) == 2 * M * N * K + 2 * M * N
    assert counted(lambda: tropical_matmul(a, b.detach()).sum().backward()) == 2 * M * N * K + M * N


def test_the_log_products_gradients_cost_a_product_each():
    a, b = leaves((M, K), (K, N))
    assert counted(lambda: tropical_matmul(a, b, semiring="log").sum().backward()) == 3 * 2 * M * N * K


def test_a_convolution_counts_as_torch_counts_its_own():
    x, weight = leaves((2, 4, 9, 8), (6, 2, 3, 3))
    plain = counted(lambda: torch.nn.functional.conv2d(x, weight, groups=2))
    assert counted(lambda: tropical_conv2d(x, weight, groups=2)) == plain
    outputs = 2 * 6 * 7 * 6
    assert counted(lambda: tropical_conv2d(x, weight, groups=2).sum().backward()) == plain + 2 * outputs
