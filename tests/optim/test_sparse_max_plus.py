# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
"""SparseMaxPlus: the iterates of torch.optim where those are lazy too, and whole steps or none."""

import copy
import importlib
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tropigrad.kernels.scatter_step import scatter_step, scatter_step_ref
from tropigrad.nn import LinearMinMax, MaxPlusLinear, MinPlusLinear
from tropigrad.optim import SparseMaxPlus

RULES = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
TORCH = {  # the same rule, of all entries; fused where torch has it
    "sgd": lambda p, lr: torch.optim.SGD(p, lr, fused=True),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, fused=True),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "adam": lambda p, lr: torch.optim.Adam(p, lr, fused=True),
}


def samples(n=60, d=6, classes=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator).to(dtype), torch.arange(n) % classes


def stack(sparse=True, dtype=torch.float32):
    """A deep one, with dense parameters between and behind."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8, dtype=dtype),
        MaxPlusLinear(8, 12, sparse=sparse, dtype=dtype),
        MinPlusLinear(12, 7, sparse=sparse, dtype=dtype),
        nn.Linear(7, 4, dtype=dtype),
    )


def network(sparse=True, train_a=True, dtype=torch.float32):
    torch.manual_seed(0)
    return LinearMinMax(6, 9, 4, train_a=train_a, sparse=sparse, dtype=dtype)


MODELS = [pytest.param(stack, id="stack"), pytest.param(network, id="LinearMinMax")]


def train(model, optimizer, steps=5, begin=0, scheduler=None, dtype=torch.float32):
    x, y = samples(dtype=dtype)
    for step in range(begin, begin + steps):
        batch = slice(10 * step % 60, 10 * step % 60 + 10)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]).float(), y[batch]).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_equal_weights(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------ iterates


def gradients_of(model, step):
    """Of a batch, each entry listed once."""
    x, y = samples(dtype=next(model.parameters()).dtype)
    batch = slice(10 * step % 60, 10 * step % 60 + 10)
    gradients = torch.autograd.grad(F.cross_entropy(model(x[batch]), y[batch]), list(model.parameters()))
    return [gradient.coalesce() if gradient.is_sparse else gradient for gradient in gradients]


def step_by(optimizer, model, gradients):
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient
    optimizer.step()


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
def test_local_rules_are_the_dense_ones(make, rule):
    """An entry without a gradient stays where it is by the dense rule too.

    torch adds −lr g to a dense weight by one fma, and to the entries of a list by two roundings, as scatter_step does.
    """
    ours, dense, listed = make(), make(), make()
    optimizer, rival = SparseMaxPlus(ours.parameters(), 0.05, rule), TORCH[rule](dense.parameters(), 0.05)
    other = (torch.optim.SGD if rule == "sgd" else torch.optim.Adagrad)(listed.parameters(), 0.05)
    for step in range(12):
        gradients = gradients_of(ours, step)
        step_by(optimizer, ours, gradients)
        step_by(rival, dense, [gradient.to_dense() for gradient in gradients])
        step_by(other, listed, gradients)
    for name, mine in ours.named_parameters():
        if rule == "sgd" and mine.grad.is_sparse and mine.grad.sparse_dim() == 2:  # rows it adds by fma too
            assert torch.equal(mine, listed.get_parameter(name))
        for model in (dense, listed):
            torch.testing.assert_close(mine, model.get_parameter(name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lists_are_stepped_by_scatter_step(rule, dtype):
    ours = network(dtype=dtype)
    op, oracle = copy.deepcopy(ours), copy.deepcopy(ours)
    optimizer = SparseMaxPlus(ours.parameters(), 0.05, rule)
    forms = [(op, scatter_step, [{} for _ in range(3)]), (oracle, scatter_step_ref, [{} for _ in range(3)])]
    x, y = samples(dtype=dtype)
    for step in range(6):
        batch = slice(10 * step, 10 * step + 10)
        optimizer.zero_grad()
        F.cross_entropy(ours(x[batch]), y[batch]).backward()
        gradients = [p.grad for p in ours.parameters()]
        for model, form, states in forms:
            for i, (p, gradient) in enumerate(zip(model.parameters(), gradients, strict=True)):
                at = tuple(gradient._indices())
                states[i] = form(p.detach(), at, gradient._values(), lr=0.05, rule=rule, state=states[i])
        optimizer.step()
    assert_equal_weights(ours, op)
    for state, direct in zip(optimizer.state.values(), forms[0][2], strict=False):
        assert all(torch.equal(state[name], direct[name]) for name in direct)
    if rule in ("sgd", "momentum"):
        assert_equal_weights(ours, oracle)
    for mine, theirs in zip(ours.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adam_is_sparse_adam(dtype):
    ours, theirs = network(dtype=dtype), network(dtype=dtype)
    optimizer, rival = SparseMaxPlus(ours.parameters(), 0.05), torch.optim.SparseAdam(list(theirs.parameters()), 0.05)
    for step in range(30):
        gradients = gradients_of(ours, step)
        step_by(optimizer, ours, gradients)
        step_by(rival, theirs, gradients)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    for mine, other in zip(optimizer.state.values(), rival.state.values(), strict=True):
        assert torch.equal(mine["mean"], other["exp_avg"])
        assert torch.equal(mine["square"], other["exp_avg_sq"])
        assert mine["step"] == other["step"]


@pytest.mark.parametrize("check_finite", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", MODELS)
def test_dense_gradients_take_torch_s_own_steps(make, rule, check_finite):
    ours, theirs = make(sparse=False), make(sparse=False)
    train(ours, SparseMaxPlus(ours.parameters(), 0.01, rule, check_finite=check_finite), 8)
    train(theirs, TORCH[rule](theirs.parameters(), 0.01), 8)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other) or (rule == "adagrad" and torch.allclose(mine, other))


@pytest.mark.parametrize("rule", RULES)
def test_entries_without_a_gradient_stay(rule):
    model = network()
    train(model, optimizer := SparseMaxPlus(model.parameters(), 0.05, rule), 3)
    before, states = weights(model), copy.deepcopy(optimizer.state)
    train(model, optimizer, 1, begin=3)
    for p, old in zip(model.parameters(), before, strict=True):
        untouched = p.grad.to_dense() == 0
        assert torch.equal(p[untouched], old[untouched])
        assert not torch.equal(p, old)
        for was, now in zip(states.values(), optimizer.state.values(), strict=True):
            for name in set(was) - {"step", "touched"}:
                moved = was[name] != now[name]
                assert 0 < moved.sum() < moved.numel()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("order", ["sparse first", "dense first"])
def test_a_parameter_may_have_either_gradient(rule, order):
    """Steps whose gradients touch all entries are the same, listed or not; but for where torch's two Adams add eps."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.ones(3, 4, dtype=torch.float64)) for _ in range(2)]
    optimizers = [SparseMaxPlus([p], 0.1, rule) for p in parameters]
    for step in range(6):
        gradient = torch.randn(3, 4, dtype=torch.float64, generator=generator)
        is_sparse = (step // 2) % 2 == (order == "dense first")
        parameters[0].grad = gradient.to_sparse() if is_sparse else gradient
        parameters[1].grad = gradient
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(*parameters, rtol=1e-6 if rule == "adam" else 1e-12, atol=1e-12)


def test_momentum_of_a_listed_entry_decays_until_a_dense_step():
    p = nn.Parameter(torch.zeros(2))
    optimizer = SparseMaxPlus([p], 1.0, "momentum", momentum=0.5)
    for index in (0, 1, 1):
        p.grad = torch.sparse_coo_tensor([[index]], [1.0], (2,))
        optimizer.step()
    p.grad = torch.zeros(2)
    optimizer.step()
    # velocities: of 0: 1, then 1/8 at the fourth step; of 1: 1, 3/2, 3/4
    assert optimizer.state[p]["velocity"].tolist() == [0.125, 0.75]
    assert p.tolist() == [-1.125, -3.25]


# ------------------------------------------------------------------------------------------------ what optimizers do


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_run_resumes_from_its_state_bit_for_bit(rule, make, dtype):
    straight = make(dtype=dtype)
    train(straight, optimizer := SparseMaxPlus(straight.parameters(), 0.05, rule), 3, dtype=dtype)
    stored = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, stored)
    train(straight, optimizer, 3, begin=3, dtype=dtype)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=True)
    resumed = make(dtype=dtype)
    resumed.load_state_dict(loaded["model"])
    other = SparseMaxPlus(resumed.parameters(), 7.0, "sgd")
    other.load_state_dict(loaded["optimizer"])
    train(resumed, other, 3, begin=3, dtype=dtype)
    assert_equal_weights(straight, resumed)
    for one, two in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype is two[name].dtype
            assert torch.equal(one[name], two[name])


def test_loading_copies_what_it_loads():
    model = network()
    train(model, optimizer := SparseMaxPlus(model.parameters()), 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other = network()
    optimizer = SparseMaxPlus(other.parameters())
    optimizer.register_load_state_dict_pre_hook(lambda _, state: {**state, "state": dict(state["state"])})
    optimizer.load_state_dict(saved)
    train(other, optimizer, 2)
    for number, state in before["state"].items():
        for name, x in state.items():
            assert torch.equal(x, saved["state"][number][name])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_go_on_alike(duplicate):
    model = stack()
    train(model, optimizer := SparseMaxPlus(model.parameters(), 0.05), 3)
    for p in model.parameters():
        p.grad = None
    other, its = duplicate((model, optimizer))
    for m, o in ((model, optimizer), (other, its)):
        train(m, o, 3, begin=3)
    assert_equal_weights(model, other)


def test_groups_have_options_of_their_own():
    ours, theirs = stack(), [stack() for _ in range(2)]
    options = [{"rule": "sgd", "lr": 0.1}, {"rule": "adam", "lr": 0.01, "momentum": 0.8, "decay": 0.9, "eps": 1e-6}]
    split = [list(ours[:2].parameters()), list(ours[2:].parameters())]
    optimizer = SparseMaxPlus([{"params": split[0], **options[0]}], check_finite=False)
    optimizer.add_param_group({"params": split[1], **options[1]})
    x, y = samples()
    F.cross_entropy(ours(x), y).backward()
    optimizer.step()
    for model, option, part in zip(theirs, options, (slice(0, 2), slice(2, 4)), strict=True):
        single = SparseMaxPlus(model[part].parameters(), **option)
        F.cross_entropy(model(x), y).backward()
        single.step()
        assert_equal_weights(ours[part], model[part])


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_schedulers_set_the_rate(as_tensor):
    schedulers = torch.optim.lr_scheduler
    lr = torch.tensor(0.05) if as_tensor else 0.05
    for make in (
        lambda o: schedulers.CosineAnnealingLR(o, 5),
        lambda o: schedulers.OneCycleLR(o, 0.05, total_steps=9),  # which cycles the momentum too
    ):
        models = [stack(), stack()]
        train(models[0], o := SparseMaxPlus(models[0].parameters(), copy.copy(lr)), 5, scheduler=make(o))
        optimizer = SparseMaxPlus(models[1].parameters(), 0.05)
        rates = make(other := SparseMaxPlus(network().parameters(), 0.05))
        for step in range(5):
            optimizer.param_groups[0]["lr"] = other.param_groups[0]["lr"]
            optimizer.param_groups[0]["momentum"] = other.param_groups[0]["momentum"]
            train(models[1], optimizer, 1, begin=step)
            other.step()
            rates.step()
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_closure_is_called_with_gradients():
    model, (x, y) = network(), samples()
    optimizer = SparseMaxPlus(model.parameters(), 0.05)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
    for _ in range(20):
        last = optimizer.step(closure)
    assert last < first


def test_parameters_without_gradients_stay():
    model = stack()
    before = weights(model)
    optimizer = SparseMaxPlus(model.parameters())
    optimizer.step()
    model[3].weight.grad = torch.ones_like(model[3].weight)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old) == (p is not model[3].weight)


def test_accumulated_gradients_are_one_step():
    models, (x, y) = [network(dtype=torch.float64) for _ in range(2)], samples(dtype=torch.float64)
    for model, parts in zip(models, ([slice(0, 60)], [slice(0, 25), slice(25, 60)]), strict=True):
        optimizer = SparseMaxPlus(model.parameters(), 0.05)
        for part in parts:
            F.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad.is_sparse and p.grad._nnz() == 0 for p in model.parameters())
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", MODELS)
def test_grad_scaler_unscales_them(make):
    models, (x, y) = [make(), make()], samples()
    for model, scale in zip(models, (1.0, 1024.0), strict=True):
        optimizer = SparseMaxPlus(model.parameters(), 0.05, "sgd")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_equal_weights(*models)


def test_grad_scaler_skips_a_step_that_is_not_finite():
    model, (x, y) = network(), samples()
    before = weights(model)
    optimizer, scaler = SparseMaxPlus(model.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
    (scaler.scale(F.cross_entropy(model(x), y)) * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_a_graph_is_told_that_its_weights_moved():
    model, (x, y) = stack(), samples()
    optimizer = SparseMaxPlus(model.parameters())
    loss = F.cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", range(6), ids=lambda i: f"parameter {i}")
@pytest.mark.parametrize("value", [math.inf, math.nan, 3e38], ids=str)
@pytest.mark.parametrize("started", [False, True], ids=["first step", "fourth step"])
def test_a_step_that_is_not_finite_writes_nothing(rule, bad, value, started):
    model, (x, y) = stack(), samples()
    optimizer = SparseMaxPlus(model.parameters(), 0.05, rule)
    if started:
        train(model, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 1e30 if value == 3e38 else 0.05  # what overflows is the weight, or the moment
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(-1, 1)
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    for p in model.parameters():
        gradient = p.grad._values() if p.grad.is_sparse else p.grad
        gradient.mul_(1e-8)
    p = list(model.parameters())[bad]
    (p.grad._values() if p.grad.is_sparse else p.grad).view(-1)[0] = value
    before, states = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(FloatingPointError, match=r"SparseMaxPlus: .*of a parameter .*nothing was written, of any"):
        optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)
    after = optimizer.state_dict()["state"]
    assert {n: set(s) for n, s in states.items() if s} == {n: set(s) for n, s in after.items() if s}
    for number, state in states.items():
        for name, x in state.items():
            assert torch.equal(x, after[number][name])


@pytest.mark.parametrize("whole", [0, 16], ids=["listed entries", "whole tensors"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [0, 3])
def test_steps_taken_before_the_failing_one_are_taken_back(monkeypatch, whole, rule, steps):
    monkeypatch.setattr(importlib.import_module("tropigrad.kernels.scatter_step"), "_WHOLE", whole)
    model, (x, y) = network(), samples()
    optimizer = SparseMaxPlus(model.parameters(), 0.05, rule)
    train(model, optimizer, steps)
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    model.W1.grad._values()[5] = math.nan  # the largest, which is stepped last
    before, states = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(FloatingPointError, match="nothing was written, of any parameter"):
        optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)
    for number, state in optimizer.state_dict()["state"].items():
        assert state.keys() == states.get(number, {}).keys()
        assert all(torch.equal(x, states[number][name]) for name, x in state.items())


def test_without_the_check_it_is_written():
    model = network()
    optimizer = SparseMaxPlus(model.parameters(), check_finite=False)
    F.cross_entropy(model(samples()[0]), samples()[1]).backward()
    model.W1.grad._values()[0] = math.nan
    optimizer.step()
    assert model.W1.isnan().sum() == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        pytest.param({"rule": "polyak"}, ValueError, "rule is 'polyak'; expected one of 'sgd', 'momentum'", id="rule"),
        pytest.param({"lr": -1.0}, ValueError, "lr is -1.0; expected at least 0", id="lr"),
        pytest.param({"lr": math.nan}, ValueError, "lr is nan; expected at least 0", id="lr NaN"),
        pytest.param({"lr": "1"}, TypeError, "lr is '1'; expected", id="lr text"),
        pytest.param({"lr": torch.ones(2)}, ValueError, r"lr is torch.float32 of shape \(2,\)", id="lr tensor"),
        pytest.param({"momentum": 1.0}, ValueError, r"momentum is 1.0; expected a number in \[0, 1\)", id="momentum"),
        pytest.param({"momentum": None}, TypeError, "momentum is None; expected a number", id="no momentum"),
        pytest.param({"decay": -0.1}, ValueError, r"decay is -0.1; expected a number in \[0, 1\), or None", id="decay"),
        pytest.param({"eps": math.inf}, ValueError, "eps is inf; expected at least 0, and finite", id="eps"),
    ],
)
def test_options_out_of_range_are_named(options, error, match):
    model = network()
    with pytest.raises(error, match=f"SparseMaxPlus: {match}"):
        SparseMaxPlus(model.parameters(), **options)
    optimizer = SparseMaxPlus([model.W1])
    with pytest.raises(error, match=f"SparseMaxPlus: {match}"):
        optimizer.add_param_group({"params": [model.W2], **options})
    assert len(optimizer.param_groups) == 1


def test_parameters_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"a parameter \(2, 3\) is torch.sparse_coo; expected a dense one"):
        SparseMaxPlus([torch.ones(2, 3).to_sparse().requires_grad_()])
    with pytest.raises(TypeError, match=r"a parameter \(2,\) is torch.complex64; expected a floating dtype"):
        SparseMaxPlus([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="empty parameter list"):
        SparseMaxPlus([])


@pytest.mark.parametrize("dimensions", [0, 3])
def test_gradients_of_another_form_are_named_and_nothing_moves(dimensions):
    p, q = nn.Parameter(torch.ones(2, 3, 4)), nn.Parameter(torch.ones(5))
    q.grad, gradient = torch.ones(5), torch.ones(2, 3, 4)
    entry = torch.zeros(dimensions, 1, dtype=torch.int64)
    p.grad = torch.sparse_coo_tensor(entry, gradient[(0,) * dimensions][None], p.shape)
    optimizer = SparseMaxPlus([q, p])
    message = (
        rf"the gradient of a parameter \(2, 3, 4\) is torch.sparse_coo with {dimensions} sparse dimensions; expected"
    )
    with pytest.raises(TypeError, match=f"SparseMaxPlus: {message} a dense one, or torch.sparse_coo with one"):
        optimizer.step()
    assert torch.equal(q, torch.ones(5))
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("make", [lambda: network(), lambda: network(sparse=False)], ids=["sparse", "dense"])
def test_a_rule_without_its_state_is_named(make):
    model = make()
    train(model, optimizer := SparseMaxPlus(model.parameters(), rule="adam"), 2)
    before = weights(model)
    optimizer.param_groups[0]["rule"] = "adagrad"
    with pytest.raises(ValueError, match="expected sum too, as rule 'adagrad' keeps"):
        train(model, optimizer, 1)
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_another_optimizer_s_state_is_refused():
    model = network(sparse=False)
    train(model, other := torch.optim.Adam(model.parameters()), 1)
    optimizer = SparseMaxPlus(model.parameters(), 0.5)
    with pytest.raises(ValueError, match=r"a param group has no rule, .* expected one of SparseMaxPlus"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5
