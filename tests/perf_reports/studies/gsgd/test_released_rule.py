"""The released step is GSGD's where no BatchNorm is; its two rules are those written down; a step by filters."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tropigrad.optim import GSGD, BasisPaths
from tropigrad.perf_reports.studies.gsgd.released_rule import PerFilterSGD, ReleasedGSGD, unit_skeleton_

X = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 6


def block(norm=False):
    """Three convolutions of six channels; the skeleton at ones."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before in (3, 6, 6):
        layers += [nn.Conv2d(before, 6, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(6, eps=1e-20)] if norm else []
        layers += [nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double()
    unit_skeleton_([filters(model)])
    return model


def filters(model) -> list[Any]:
    return [layer.weight for layer in model if isinstance(layer, nn.Conv2d)]


def loss_of(model):
    return functional.cross_entropy(model(X).mean((2, 3)), Y)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9, "weight_decay": 0.05}], ids=["released-setting", "momentum-decay"]
)
def test_without_batch_norm_it_is_the_step_on_path_values(settings):
    model, other = block(), block()
    optimizer = GSGD(BasisPaths(other), 0.01, least_ratio=1e-3, floor=0.0, **settings)
    train(model, ReleasedGSGD([filters(model)], [], 0.01, **settings), 10)
    train(other, optimizer, 10)
    assert optimizer.held == 0
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_the_modes_are_those_written_down():
    """After one step from ones: n scales what is off the skeleton; 1 − R has n, 1 or 1 / n."""
    before = [w.detach().clone() for w in filters(block())]
    bones = torch.zeros(6, 6, 3, 3, dtype=torch.bool)
    bones[range(6), range(6), 1, 1] = True
    into = torch.zeros(6, 3, 3, 3, dtype=torch.bool)
    into[range(6), [0, 1, 2, 0, 1, 2], 1, 1] = True
    masks, found = (into, bones, bones), {}
    for mode in ("none", "released", "released_noweight"):
        model = block()
        train(model, ReleasedGSGD([filters(model)], [], 0.01, bn_mode=mode), 1)
        after = [w.detach() for w in filters(model)]
        R = after[0][into]
        steps = [
            w * (R.view(1, 6, 1, 1) if at else 1.0) - v for at, (w, v) in enumerate(zip(after, before, strict=True))
        ]
        found[mode] = 1 - R, [step[~mask] for step, mask in zip(steps, masks, strict=True)]
        assert all(torch.equal(w[bones], torch.ones(6, dtype=torch.float64)) for w in after[1:])
    norms = [w.square().sum(1, keepdim=True).sqrt().expand_as(w) for w in before]
    n = norms[0][into]
    plain, off = found["none"]
    for mode, scale in (("released", 1 / n), ("released_noweight", n)):
        torch.testing.assert_close(found[mode][0], plain * scale, rtol=1e-9, atol=1e-12)
        for step, first, norm, mask in zip(found[mode][1], off, norms, masks, strict=True):
            torch.testing.assert_close(step, first * norm[~mask], rtol=1e-9, atol=1e-12)


def test_off_the_skeleton_the_modes_differ_in_their_buffers():
    models = {mode: block() for mode in ("released", "released_noweight")}
    for mode, model in models.items():
        train(model, ReleasedGSGD([filters(model)], [], 0.01, momentum=0.9, bn_mode=mode), 3)
    one, other = (filters(model)[1] for model in models.values())
    assert (one - other).abs().max() > 1e-6


def test_plain_parameters_take_sgd():
    model, other = block(True), block(True)
    affine = [p for p in model.parameters() if p.dim() == 1]
    train(model, ReleasedGSGD([filters(model)], affine, 0.01, momentum=0.9), 1)
    train(other, torch.optim.SGD([p for p in other.parameters() if p.dim() == 1], 0.01, momentum=0.9), 1)
    for p, q in zip(affine, (p for p in other.parameters() if p.dim() == 1), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("is_by_filters", [True, False], ids=["by-filters", "sgd"])
def test_behind_batch_norm_the_step_by_filters_does_not_know_the_size_of_a_filter(is_by_filters):
    """SGD is the control that does."""
    outputs = []
    for spread in (0.0, 1.0):
        model = block(True)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for w in filters(model):
                w *= (spread * torch.randn(6, 1, 1, 1, dtype=torch.float64, generator=generator)).exp()
        affine = [p for p in model.parameters() if p.dim() == 1]
        sgd = torch.optim.SGD(model.parameters(), 0.05)
        train(model, PerFilterSGD(filters(model), affine, 0.05) if is_by_filters else sgd, 20)
        outputs.append(model(X).detach())
    difference = (outputs[0] - outputs[1]).abs().max()
    assert difference < 1e-9 if is_by_filters else difference > 1e-3


@pytest.mark.parametrize(
    ("channels", "settings", "match"),
    [
        ((3, 6, 6), {"bn_mode": "weight"}, "bn_mode is 'weight'; expected one of none, released"),
        ((3, 6), {}, "two or more with equal outputs"),
        ((8, 6, 6), {}, "the first with no more inputs"),
        ((3, 6, 4), {}, r"blocks\[0\] has convolutions of \(out, in\)"),
    ],
    ids=["mode", "one", "narrowing", "unequal"],
)
def test_what_is_no_block_is_refused(channels, settings, match):
    weights = [nn.Parameter(torch.ones(b, a, 3, 3)) for a, b in pairwise(channels)]
    with pytest.raises(ValueError, match=match):
        ReleasedGSGD([weights], [], 0.1, **settings)


def test_a_copy_keeps_the_mode():
    model = block()
    optimizer: Any = ReleasedGSGD([filters(model)], [], 0.01, bn_mode="released")
    train(model, optimizer, 1)
    other, twin = copy.deepcopy((model, optimizer))
    train(model, optimizer, 2)
    train(other, twin, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
