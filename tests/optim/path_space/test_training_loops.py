"""Every optimizer in the training loops that people write around optimizers of torch: one table, one run each.

A loop is right where it gives the weights of the plain loop bit for bit, or those that torch's own rules say.
"""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from tropigrad.optim import GSGD, BasisPaths, PathSGD


class Network(nn.Module):
    """A chain of paths, a BatchNorm between two chains, and a layer that is in none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(x + self.down(torch.relu(self.up(x))))


@dataclass(frozen=True)
class Case:
    """An optimizer of a model, and whether it keeps state."""

    make: Callable[[nn.Module], torch.optim.Optimizer]
    has_state: bool


CASES = {
    "gsgd": Case(lambda model: GSGD(BasisPaths(model), 0.02), False),
    "gsgd-momentum": Case(lambda model: GSGD(BasisPaths(model), 0.02, momentum=0.9, weight_decay=0.01), True),
    "gsgd-unit": Case(lambda model: GSGD(BasisPaths(model).unit_skeleton_(), 0.02, momentum=0.9), True),
    "path-sgd": Case(lambda model: PathSGD(BasisPaths(model), 0.005), False),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def batches(count, size=16):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 5, generator=generator), torch.arange(size) % 3) for _ in range(count)]


def started(case):
    torch.manual_seed(2)
    model = Network()
    return model, case.make(model)


def train(model, optimizer, some):
    for x, y in some:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def same(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def by_deepcopy(case, model, optimizer):
    return copy.deepcopy((model, optimizer))


def by_pickle(case, model, optimizer):
    return pickle.loads(pickle.dumps((model, optimizer)))


def by_torch_save(case, model, optimizer):
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_state_dict(case, model, optimizer):
    """Through a file that holds tensors and numbers alone."""
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    other, its = started(case)
    other.load_state_dict(saved)
    its.load_state_dict(state)
    return other, its


def by_distributed_state_dict(case, model, optimizer, flattened=False):
    options = checkpoint.StateDictOptions(flatten_optimizer_state_dict=flattened)
    saved = copy.deepcopy(checkpoint.get_state_dict(model, optimizer, options=options))
    other, its = started(case)
    checkpoint.set_state_dict(other, its, model_state_dict=saved[0], optim_state_dict=saved[1], options=options)
    return other, its


def by_flat_distributed_state_dict(case, model, optimizer):
    return by_distributed_state_dict(case, model, optimizer, flattened=True)


COPIES = (
    by_deepcopy,
    by_pickle,
    by_torch_save,
    by_state_dict,
    by_distributed_state_dict,
    by_flat_distributed_state_dict,
)


@pytest.mark.parametrize("copied", COPIES, ids=lambda copied: copied.__name__)
def test_a_copy_in_the_middle_goes_on_as_the_original(case, copied):
    model, optimizer = started(case)
    train(model, optimizer, batches(4))
    before = copy.deepcopy(model.state_dict())
    other, its = copied(case, model, optimizer)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())  # taking it has moved nothing
    assert same(model, other)
    train(other, its, batches(7)[4:])
    assert not same(model, other)
    train(model, optimizer, batches(7)[4:])
    assert same(model, other)


def test_distributed_state_dicts_go_both_ways(case):
    """What torch reads out of an optimizer that was set is what was set, by the names of parameters."""
    model, optimizer = started(case)
    train(model, optimizer, batches(3))
    saved: Any = copy.deepcopy(checkpoint.get_optimizer_state_dict(model, optimizer))
    other, its = started(case)
    checkpoint.set_optimizer_state_dict(other, its, saved)
    found: Any = checkpoint.get_optimizer_state_dict(other, its)
    assert bool(saved["state"]) == case.has_state
    assert found["param_groups"] == saved["param_groups"]
    assert found["state"].keys() == saved["state"].keys()
    for name, state in saved["state"].items():
        assert set(name.split(".")) & {"stem", "norm", "up", "down", "head"}
        assert all(torch.equal(found["state"][name][key], value) for key, value in state.items())


def test_a_gradient_scaler_takes_steps_and_skips_one(case):
    """A scale that is a power of two leaves every bit. Where a gradient is infinite nothing moves, and it halves."""
    (plain, optimizer), (scaled, its) = started(case), started(case)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number, (x, y) in enumerate(batches(5)):
        its.zero_grad()
        scaler.scale(functional.cross_entropy(scaled(x), y)).backward()
        if number == 2:
            weights = [p.detach().clone() for p in scaled.parameters()]
            gradient = scaled.get_parameter("up.weight").grad
            assert gradient is not None
            gradient.view(-1)[3] = float("inf")
            scaler.step(its)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(scaled.parameters(), weights, strict=True))
            assert scaler.get_scale() == 2.0**9
            plain(x)  # the statistics of its BatchNorm move too
            continue
        scaler.step(its)
        scaler.update()
        train(plain, optimizer, [(x, y)])
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_gradients_accumulate(case):
    (whole, optimizer), (parts, its) = started(case), started(case)
    for model in (whole, parts):
        model.eval()  # else a BatchNorm's statistics are those of a part
    train(whole, optimizer, batches(3))
    for x, y in batches(3):
        its.zero_grad()
        for some, labels in zip(x.split(4), y.split(4), strict=True):
            (functional.cross_entropy(parts(some), labels) / 4).backward()
        its.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_clipped_gradients_are_taken_as_they_are(case, clip):
    model, optimizer = started(case)
    x, y = batches(1)[0]
    functional.cross_entropy(model(x), y).backward()
    other, its = copy.deepcopy((model, optimizer))
    clip(model.parameters(), 1e-3)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    its.step()
    assert same(model, other)
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


SCHEDULES = {
    "exponential": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    "one-cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=9, cycle_momentum=False
    ),
    "warm-up-and-cosine": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
        ],
        [2],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedulers_set_the_rate_of_every_group(case, schedule):
    model, optimizer = started(case)
    other, its = started(case)
    scheduler = SCHEDULES[schedule](optimizer)
    rates = []
    for batch in batches(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for group, lr in zip(its.param_groups, rates[-1], strict=True):
            group["lr"] = lr
        train(model, optimizer, [batch])
        train(other, its, [batch])
        scheduler.step()
    assert len({tuple(lr) for lr in rates}) > 3
    assert same(model, other)


def test_closures_are_called_once_with_gradients_on(case):
    (plain, optimizer), (closed, its) = started(case), started(case)
    calls = []
    for x, y in batches(3):

        def closure(x=x, y=y):
            calls.append(torch.is_grad_enabled())
            its.zero_grad()
            loss = functional.cross_entropy(closed(x), y)
            loss.backward()
            return loss

        with torch.no_grad():
            loss = its.step(closure)
        assert loss.isfinite()
    train(plain, optimizer, batches(3))
    assert calls == [True] * 3
    assert same(plain, closed)


def test_hooks_of_the_step_are_called(case):
    model, optimizer = started(case)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, batches(1))
    assert seen == ["before", "after"]


@pytest.mark.parametrize("of", ["inner", "wrapped"])
def test_one_data_parallel_rank_takes_the_steps_of_none(case, of, one_process):
    """The optimizer is given the module, or what wraps it."""
    plain, optimizer = started(case)
    train(plain, optimizer, batches(4))
    torch.manual_seed(2)
    model = Network()
    wrapped = DistributedDataParallel(model)
    its = case.make(wrapped if of == "wrapped" else model)
    train(wrapped, its, batches(4))
    assert same(plain, model)
    saved: Any = checkpoint.get_optimizer_state_dict(wrapped, its)
    assert "up.weight" in saved["param_groups"][0]["params"]
    checkpoint.set_optimizer_state_dict(wrapped, its, saved)


def test_a_compiled_model_takes_the_steps_of_the_model(case):
    plain, optimizer = started(case)
    train(plain, optimizer, batches(4))
    torch.manual_seed(2)
    model = Network()
    compiled = torch.compile(model, backend="aot_eager")
    train(compiled, case.make(compiled), batches(4))
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_gradients_set_to_none_or_to_zero(case):
    """No gradients: nothing moves. Zeros: nothing but what momentum and decay move, and no number is lost."""
    model, optimizer = started(case)
    before = copy.deepcopy(model)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert same(model, before)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
