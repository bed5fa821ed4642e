"""The dispatcher is left out only where nobody would notice."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tropigrad.kernels import tropical_matmul
from tropigrad.kernels.eager import is_unobserved

A, B = torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([[0.5, 1.0], [2.0, -1.0]])
EXPECTED = (A[:, :, None] + B).amax(1)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Labelled(torch.Tensor):
    pass


def test_an_ordinary_call_is_unobserved():
    assert is_unobserved(A, B)
    assert is_unobserved(torch.nn.Parameter(A))
    with torch.no_grad():
        assert is_unobserved(A)
    with torch.inference_mode():
        assert is_unobserved(A, B * 2)
    assert is_unobserved(torch.ones(2, 2).T, torch.ones(1).expand(3, 3))


@pytest.mark.parametrize("requires_grad", [False, True], ids=["values", "training"])
def test_a_dispatch_mode_sees_the_operator(requires_grad):
    with Seen() as seen:
        c = tropical_matmul(A.clone().requires_grad_(requires_grad), B)
    assert "tropigrad::tropical_matmul" in seen.names
    assert torch.equal(c, EXPECTED)


def test_the_backward_is_seen_too():
    a = A.clone().requires_grad_()
    c = tropical_matmul(a, B)
    with Seen() as seen:
        c.sum().backward()
    assert "tropigrad::tropical_winners_scatter" in seen.names


def test_a_profiler_sees_the_operator():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        tropical_matmul(A, B)
    assert "tropigrad::tropical_matmul" in {event.key for event in profile.key_averages()}


def test_a_trace_holds_the_operator():
    traced = make_fx(lambda a, b: tropical_matmul(a, b))(A, B)
    assert any("tropigrad.tropical_matmul" in str(node.target) for node in traced.graph.nodes)


def test_a_lazy_negation_is_carried_out():
    negated = torch.imag(torch.complex(torch.zeros(2, 2), -A).conj())
    assert negated.is_neg()
    assert not is_unobserved(negated)
    assert torch.equal(tropical_matmul(negated, B), EXPECTED)


def test_a_subclass_stays_one():
    labelled = A.as_subclass(Labelled)
    assert not is_unobserved(labelled)
    assert type(tropical_matmul(labelled, B)) is Labelled


def test_a_default_device_moves_nothing():
    with torch.device("meta"):
        assert torch.equal(tropical_matmul(A, B), EXPECTED)


def test_a_tangent_is_refused_not_dropped():
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        tropical_matmul(forward_ad.make_dual(A, torch.ones_like(A)), B)


def test_transforms_and_fakes_are_observed():
    answers = []
    torch.vmap(lambda x: answers.append(is_unobserved(x)) or x)(A)
    with torch._subclasses.FakeTensorMode():
        answers.append(is_unobserved(torch.ones(2)))
    assert answers == [False, False]
