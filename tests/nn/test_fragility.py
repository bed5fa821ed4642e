"""Fragility of models: the digits, other models, shapes, errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tropigrad.kernels import feature_fragility
from tropigrad.nn import LinearMinMax, fragility


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    from tropigrad.perf_reports import data

    dataset = data.load("digits")
    model = LinearMinMax(64, 60, 10)
    model.init_kmedoids(dataset.x_train, dataset.y_train)
    return model, dataset.x_test[:60]


def test_digits_turn_where_it_says(digits):
    """Beyond the change the model, in float64, says the new class; as far short of it the old. Many pixels are tied."""
    model, x = digits
    change, classes = fragility(model, x, box=(0, 1))
    n, i = change.isfinite().nonzero().T
    assert len(n) > 100
    wide = LinearMinMax(64, 60, 10, dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    before, delta = wide(x.double()).argmax(1)[n], change[n, i].double()
    near = torch.copysign(torch.full_like(delta, 1e-6), delta)

    def moved(by: torch.Tensor) -> torch.Tensor:
        others = x[n].double()
        others[torch.arange(len(n)), i] += by
        return others

    beyond = moved(delta + near)
    assert torch.equal(beyond, beyond.clamp(0, 1))
    assert torch.equal(wide(beyond).argmax(1), classes[n, i])
    is_apart = delta != 0
    assert is_apart.sum() > 100
    assert torch.equal(wide(moved(delta - near)).argmax(1)[is_apart], before[is_apart])


def test_batches_and_other_models(digits):
    model, x = digits
    expected = fragility(model, x)
    other = SimpleNamespace(A=model.A.data, W1=model.W1.data, W2=model.W2.data)
    for result in (
        fragility(other, x.view(3, 20, 64)),
        [t.view(3, 20, 64) for t in feature_fragility(x, *vars(other).values())],
    ):
        assert torch.equal(result[0].view(60, 64), expected.change)
        assert torch.equal(result[1].view(60, 64), expected.classes)
    one = fragility(model, x[7])
    assert torch.equal(one.change, expected.change[7])


def test_errors_name_what_came():
    model = LinearMinMax(3, 4, 2)
    with pytest.raises(TypeError, match="fragility: Linear has no tensor A, W1, W2; expected a LinearMinMax"):
        fragility(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(TypeError, match="x is a list"):
        fragility(model, [0.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"x has shape \(1, 2\); expected \[..., 3\]"):
        fragility(model, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"x\[0, 0\] is 2; expected features in the box from 0 to 1"):
        fragility(model, torch.full((1, 3), 2.0), box=(0, 1))
