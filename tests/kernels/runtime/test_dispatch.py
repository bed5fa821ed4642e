"""Every call goes through torch's dispatcher, the hundredth like the first; C++ and Python register the same."""

import functools
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tropigrad import autotune
from tropigrad.kernels import tropical_matmul
from tropigrad.kernels.runtime import backend, dispatch, native
from tropigrad.kernels.runtime.dispatch import Gradient, operator
from tropigrad.kernels.tropical_matmul.definition import tropical_matmul_ref

A, B = torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([[0.5, 1.0], [2.0, -1.0]])
EXPECTED = (A[:, :, None] + B).amax(1)
compiled = pytest.mark.skipif(bool(why := native.why_no_compiler()), reason=why)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Labelled(torch.Tensor):
    pass


# ------------------------------------------------------------------------------------------------ who sees a call


@pytest.mark.parametrize("requires_grad", [False, True], ids=["values", "training"])
def test_a_dispatch_mode_sees_every_call(requires_grad):
    a = A.clone().requires_grad_(requires_grad)
    for _ in range(3):
        with Seen() as seen:
            c = tropical_matmul(a, B)
        assert "tropigrad::tropical_matmul" in seen.names
        assert torch.equal(c, EXPECTED)


def test_the_backward_is_seen_too():
    a = A.clone().requires_grad_()
    for _ in range(3):
        c = tropical_matmul(a, B)
        with Seen() as seen:
            c.sum().backward()
        assert "tropigrad::tropical_winners_scatter" in seen.names


def test_a_profiler_sees_the_same_in_every_call():
    x, events = torch.randn(3, 5), []  # of a layout that no other test has
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            tropical_matmul(x, x.T)
        events.append([event.name for event in profile.events() or ()])
    assert "tropigrad::tropical_matmul" in events[0]
    assert events[0] == events[1] == events[2]


def test_a_trace_holds_the_operator():
    traced = make_fx(lambda a, b: tropical_matmul(a, b))(A, B)
    assert any("tropigrad.tropical_matmul" in str(node.target) for node in traced.graph.nodes)


def test_a_lazy_negation_is_carried_out():
    negated = torch.imag(torch.complex(torch.zeros(2, 2), -A).conj())
    assert negated.is_neg()
    for _ in range(2):
        assert torch.equal(tropical_matmul(negated, B), EXPECTED)


def test_zeros_without_memory_are_zeros():
    zeros = torch._efficientzerotensor((2, 2))  # pyright: ignore[reportPrivateImportUsage]
    for _ in range(2):
        assert torch.equal(tropical_matmul(zeros, B), B.amax(0).expand(2, 2))


@pytest.mark.parametrize("return_indices", [False, True], ids=["values", "indices"])
def test_a_subclass_stays_one(return_indices):
    labelled = A.as_subclass(Labelled)
    found = tropical_matmul(labelled, B, return_indices=return_indices)
    assert {type(x) for x in (found if return_indices else (found,))} == {Labelled}
    assert torch.equal(found[0] if return_indices else found, EXPECTED)


def test_a_tangent_is_refused_not_dropped():
    for _ in range(2):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            tropical_matmul(forward_ad.make_dual(A, torch.ones_like(A)), B)


# ------------------------------------------------------------------------------------------------ call after call


@pytest.mark.parametrize("return_indices", [False, True], ids=["values", "indices"])
@pytest.mark.parametrize("semiring", ["max_plus", "min_plus", "max_times"])
@pytest.mark.parametrize(
    "shapes", [((5, 7), (7, 3)), ((2, 5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3)), ((2, 5, 7), (1, 7, 3))]
)
def test_the_third_call_is_as_right_as_the_first(shapes, semiring, return_indices):
    for _ in range(3):
        a, b = (torch.randint(-3, 4, shape).float() for shape in shapes)
        values, winners = tropical_matmul_ref(a, b, semiring=semiring)
        got = tropical_matmul(a, b, semiring=semiring, return_indices=return_indices)
        assert torch.equal(got.values if return_indices else got, values)
        assert not return_indices or torch.equal(got.indices, winners)


@pytest.mark.parametrize("semiring", ["max_plus", "max_times"])
@pytest.mark.parametrize("shapes", [((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((2, 3, 4), (2, 4, 2))])
def test_the_second_call_has_gradients_of_every_order(shapes, semiring):
    product = functools.partial(tropical_matmul, semiring=semiring)
    for needs in ((True, True), (True, False), (False, True)):
        for _ in range(2):
            a, b = (torch.randn(s, dtype=torch.double, requires_grad=n) for s, n in zip(shapes, needs, strict=True))
            assert torch.autograd.gradcheck(product, (a, b))
            assert torch.autograd.gradgradcheck(product, (a, b))


def test_every_call_leaves_the_same_graph():
    a, left = torch.randn(3, 7, requires_grad=True), []  # of a layout that no other test has
    for _ in range(4):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            c = tropical_matmul(a, a.T)
        assert c.grad_fn is not None
        left.append((c.grad_fn.name(), [(x.shape, x.stride(), x.dtype) for x in kept]))
    assert left[0][0] == "TropicalMatmulBackward"
    assert left[0] == left[1] == left[2] == left[3]


def test_a_forced_backend_and_reload_are_obeyed_after_other_calls():
    for _ in range(2):
        tropical_matmul(A, B)
    with backend.forcing("gluon"), pytest.raises(RuntimeError, match="cannot run"):
        tropical_matmul(A, B)
    with autotune.recorded() as choices:
        tropical_matmul(A, B)
    assert bool(choices) == (not backend.why_off("cpp", A.device))


# ------------------------------------------------------------------------------------------------ plans

HALVES = """#include <cstdint>
// addresses: x, y, offset, half of x plus offset, x doubled
extern "C" int halves(const int64_t* call, void* const* addresses) {
  const float* x = static_cast<const float*>(addresses[0]);
  const float* y = static_cast<const float*>(addresses[1]);
  const double offset = *static_cast<const double*>(addresses[2]);
  float* half = static_cast<float*>(addresses[3]);
  int32_t* doubled = static_cast<int32_t*>(addresses[4]);
  for (int64_t i = 0; i < call[0]; ++i) half[i] = x[i] / 2 + (y ? y[i] : 0) + float(offset);
  if (doubled) for (int64_t i = 0; i < call[0]; ++i) doubled[i] = int32_t(x[i] * 2);
  return call[0] && x[0] < 0 ? 7 : 0;
}"""


class Halves:
    """x / 2 + y + offset and 2 x, by a kernel whose plans are counted."""

    def __init__(self, source):
        source.write_text(HALVES)
        library = native.library(source)
        assert library is not None
        self.kernel, self.plans, self.by_python = library.halves, [], 0
        self.operator = operator(
            "halves_of_a_test(Tensor x, Tensor? y, float offset, bool doubles, str label, int[] sizes)"
            " -> (Tensor, Tensor)",
            self.body,
            fake=lambda x, *others: (torch.empty_like(x), torch.empty_like(x, dtype=torch.int32)),
            plan=self.plan,
            gradient=Gradient(lambda grads, saved, sizes, needs, *options: [grads[0] / 2] if needs[0] else []),
        )

    def plan(self, x, y, offset, doubles, label, sizes):
        self.plans.append((tuple(x.shape), x.stride(), x.dtype, y is None, doubles, label, tuple(sizes)))
        if label == "none":
            return []
        outputs = (torch.float32, x.shape), (torch.int32, x.shape if doubles else (0,))
        return dispatch.plan(self.kernel, outputs, native.integers(x.numel()))

    def body(self, x, y, offset, doubles, label, sizes):
        self.by_python += 1
        if x.numel() and x.flatten()[0] < 0:
            raise ArithmeticError("the first is negative")
        plan = self.plan(x, y, offset, doubles, label, sizes)
        if not plan:
            return x / 2 + (0 if y is None else y) + offset, (x * 2).int()
        status, outputs = dispatch.run(plan, x, y, offset)
        assert status == 0
        return outputs


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return Halves(tmp_path_factory.mktemp("halves") / "halves.cpp")


@compiled
def test_a_plan_gives_what_the_kernel_wrote(halves):
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, -1.0])
    for _ in range(2):
        for offset in (0.0, 0.25):  # no part of what a plan depends on
            half, doubled = halves.operator(x, y, offset, True, "label", [1])
            assert torch.equal(half, x / 2 + y + offset)
            assert torch.equal(doubled, (x * 2).int())
            half, doubled = halves.operator(x, None, offset, False, "label", [1])
            assert torch.equal(half, x / 2 + offset)
            assert doubled.shape == (0,)


@compiled
def test_what_the_kernel_reports_python_says(halves):
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="the first is negative"):
            halves.operator(torch.tensor([-1.0, 2.0]), None, 0.0, False, "label", [])
    before = halves.by_python
    half, _ = halves.operator(torch.tensor([1.0, 2.0]), None, 0.0, False, "none", [])
    assert half.tolist() == [0.5, 1.0]
    assert halves.by_python == before + 1


@compiled
def test_a_plan_is_made_once_for_each_layout_and_its_options(halves):
    x = torch.randn(4, 6).abs()
    calls = {
        "first": (x, None, False, "label", [1]),
        "shape": (x[:3], None, False, "label", [1]),
        "strides": (x.T, None, False, "label", [1]),
        "None": (x, x, False, "label", [1]),
        "bool": (x, None, True, "label", [1]),
        "string": (x, None, False, "another label", [1]),
        "letters": (x, None, False, "label\0", [1]),
        "integers": (x, None, False, "label", [2]),
        "more integers": (x, None, False, "label", [1, 1]),
    }

    def plans():
        halves.plans.clear()
        for a, b, *options in calls.values():
            halves.operator(a, b, 0.5, *options)
            halves.operator(a.clone(memory_format=torch.preserve_format), b, 1.5, *options)
        return len(halves.plans)

    autotune.reload()
    assert plans() == len(calls)
    assert plans() == 0
    autotune.reload()
    assert plans() == len(calls)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert plans() == len(calls)
    finally:
        torch.set_num_threads(before)
    assert plans() == 0
    for block in (autotune.recorded, lambda: backend.forcing("torch"), lambda: backend.forcing("cpp", everywhere=True)):
        with block():
            assert plans() == 2 * len(calls)  # nothing is kept, or taken from what was kept
        assert plans() == 0


@compiled
def test_plans_do_not_pile_up(halves):
    x = torch.ones(1)
    most = 1 << 12
    for n in range(most + 1):
        halves.operator(x, None, 0.0, False, "label", [n])
    halves.plans.clear()
    halves.operator(x, None, 0.0, False, "label", [most])
    halves.operator(x, None, 0.0, False, "label", [0])
    assert [sizes for *_, sizes in halves.plans] == [(0,)]


@compiled
def test_threads_share_plans(halves):
    x, wrong = torch.ones(5), []

    def work(seed):
        for n in range(200):
            half, _ = halves.operator(x, None, float(seed), False, "label", [n % 7])
            if not torch.equal(half, x / 2 + seed):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@compiled
def test_a_gradient_flows_through_an_operator_with_a_plan(halves):
    x = torch.ones(3, requires_grad=True)
    for _ in range(2):
        half, doubled = halves.operator(x, None, 0.5, True, "label", [])
        assert half.grad_fn.name() == "HalvesOfATestBackward"
        assert not doubled.requires_grad
        (gradient,) = torch.autograd.grad(half.sum(), x)
        assert torch.equal(gradient, torch.full_like(x, 0.5))


# ------------------------------------------------------------------------------------------------ C++ or Python

BOTH = """
import torch
from torch.utils.checkpoint import checkpoint
from tropigrad.kernels import tropical_matmul
from tropigrad.kernels.runtime import dispatch
torch.manual_seed(0)
a, b = (torch.randn(3, 3, dtype=torch.double).requires_grad_() for _ in range(2))
print(dispatch.who_registers().split(":")[0])
for semiring in ("max_plus", "max_times"):
    f = lambda a, b: tropical_matmul(a, b, semiring=semiring).sin()
    for _ in range(3):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            c = tropical_matmul(a, b, semiring=semiring)
        print(c.grad_fn.name(), [(list(x.shape), x.dtype) for x in kept])
    assert torch.autograd.gradcheck(f, (a, b)) and torch.autograd.gradgradcheck(f, (a, b))
    loss = lambda a, b: f(a, b).sum()
    x, y = a.detach(), b.detach()
    say = lambda z: print([round(n, 9) for n in z.flatten().tolist()])
    say(torch.func.grad(loss)(x, y))
    say(torch.vmap(torch.func.grad(loss))(x.expand(2, 3, 3), y.expand(2, 3, 3)))
    say(torch.func.jacrev(torch.func.jacrev(loss))(x, y))
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for reentrant in (False, True):
        for g in (f, compiled):
            a.grad = b.grad = None
            checkpoint(g, a, b, use_reentrant=reentrant).sum().backward()
            say(torch.cat([a.grad, b.grad]))
try:
    torch.func.jvp(f, (x, y), (x, y))
except NotImplementedError:
    print("no forward mode")
"""


@compiled
def test_cpp_and_python_register_the_same(tmp_path):
    said = {}
    for who, environment in (
        ("C++", {}),
        ("Python", {"CXX": str(tmp_path / "none"), "TROPIGRAD_CACHE_DIR": str(tmp_path)}),
    ):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                f"import tropigrad.kernels.runtime.dispatch as d; d.load(compiles=True){BOTH}",
            ],
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
        assert done.returncode == 0, done.stderr
        first, *said[who] = done.stdout.splitlines()
        assert first == who
    assert said["C++"] == said["Python"]


@compiled
def test_transforms_and_the_compiler_go_together():
    f = torch.vmap(torch.func.grad(lambda a, b: tropical_matmul(a, b, semiring="max_times").sum()))
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5, 4)
    assert torch.equal(torch.compile(f, backend="aot_eager", fullgraph=True)(a[0], b[0]), f(a[0], b[0]))


def test_people_are_told_who_registers(monkeypatch):
    assert dispatch.load(compiles=True) == (not native.why_no_compiler())
    assert dispatch.who_registers().split(":")[0] in ("C++", "Python")
    monkeypatch.setattr(dispatch, "_is_settled", False)
    monkeypatch.setattr(native, "extension", lambda source, compiles: None)
    monkeypatch.setattr(native, "why_no_compiler", lambda: "no compiler")
    assert dispatch.who_registers() == "Python: no compiler"
    monkeypatch.setattr(native, "why_no_compiler", lambda: "")
    assert dispatch.who_registers() == "C++, compiled at the first call"
