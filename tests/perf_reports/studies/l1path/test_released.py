"""The released algorithm against its rules, written down once more: its α, its momentum, its phases, its checkpoint."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tropigrad.perf_reports.studies.l1path.released import Released


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 6, generator=generator)
    return [(x, (x[:, 0] > x[:, 1]).long())]


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


SHORT: dict[str, Any] = {"first_steps": 6, "dense_points": 2, "sparse_points": 2, "correctors": 3, "predictor_steps": 2}


def flat(parameters):
    return torch.cat([p.detach().flatten() for p in parameters])


def soft(z, t):
    return z.sign() * (z.abs() - t).clamp(min=0)


def test_lambda_is_one_of_what_ten_bisections_give():
    front = Released(model(), functional.cross_entropy, **SHORT).run(batch(), progress=False)
    assert [p.phase for p in front] == ["start", "dense", "dense", "sparse", "sparse"]
    for point in front:
        assert point.lam is not None
        odd = 2048 / (1 + point.lam)
        assert odd == pytest.approx(round(odd), abs=1e-6)
        assert round(odd) % 2 == 1
    assert front[1].lam is not None
    assert front[1].lam >= 4.88e-4


def test_first_steps_are_those_of_the_rules():
    """Full batch: p = x + (k − 1)/(k + a) (x − the last p), dropped with k = 0 where its norm is larger."""
    h, a, steps = 0.1, 2.0, 12
    network = model()
    (x_in, y_in), *_ = batch()
    walk = Released(network, functional.cross_entropy, h=h, acceleration=a, **{**SHORT, "first_steps": steps})
    x, last, k = flat(network.parameters()), flat(network.parameters()), 0
    other = model()
    for _ in range(steps):
        p = x + (k - 1) / (k + a) * (x - last)
        k, p = (0, x) if p.abs().sum() > x.abs().sum() else (k + 1, p)
        last = p
        nn.utils.vector_to_parameters(p.clone(), other.parameters())
        loss = functional.cross_entropy(other(x_in), y_in)
        d = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(other.parameters()))])
        low, high = 0.0, 1.0
        for _ in range(10):
            alpha = (low + high) / 2
            y = soft(p - h * alpha * d, h * (1 - alpha))
            low, high = (alpha, high) if d @ (y - p) > y.abs().sum() - p.abs().sum() else (low, alpha)
        alpha = (low + high) / 2
        x = soft(p - h * alpha * d, h * (1 - alpha))
    front = walk.run([(x_in, y_in)], progress=False)
    front.load(0)
    assert torch.allclose(flat(network.parameters()), x, atol=1e-6)


def test_a_walk_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    def killed(done, total, what):
        if done == 2:
            raise MemoryError

    whole = Released(model(), functional.cross_entropy, **SHORT).run(batch(), progress=False)
    with pytest.raises(MemoryError):
        Released(model(), functional.cross_entropy, **SHORT).run(batch(), progress=killed, checkpoint=tmp_path)
    parts = Released(model(), functional.cross_entropy, **SHORT).run(batch(), progress=False, checkpoint=tmp_path)
    assert [(p.loss, p.l1, p.lam) for p in parts] == [(p.loss, p.l1, p.lam) for p in whole]


def test_the_iris_rule_ends_a_predictor():
    def epochs(ends):
        settings: dict[str, Any] = {
            **SHORT,
            "predictor": "sgd",
            "predictor_lr": 0.1,
            "predictor_steps": 50,
            "ends": ends,
        }
        return Released(model(), functional.cross_entropy, **settings).run(batch(), progress=False)[1].epochs or 0

    assert epochs(None) == 6 + 50 + 3
    assert epochs((0.0, 100.0)) < 6 + 50 + 3
