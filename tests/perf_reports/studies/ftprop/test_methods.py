"""The schedule, the batches, and what each method makes of a small set."""

import json
from dataclasses import replace

import pytest
import torch

from tropigrad.perf_reports.studies.ftprop import images, methods
from tropigrad.perf_reports.studies.ftprop.images import Batches
from tropigrad.perf_reports.studies.ftprop.methods import Recipe, Training

from .conftest import blobs, pictures

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_learns(method):
    training = Training(Recipe(rule=method, epochs=40, batch=16), blobs())
    rows = [row for _ in range(240) if (row := training.advance())]
    assert [row["iteration"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert rows[-1]["test_accuracy"] > 0.95
    assert {row["activation"] for row in rows} == {"sign" if method in methods.RULES else method}


def test_methods_differ_in_the_backward_alone():
    x = blobs().x_test
    first, second = (Training(Recipe(rule=rule), blobs()).model for rule in ("soft_hinge", "sste"))
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), Training(Recipe(seed=1), blobs()).model(x))


def test_the_rate_falls_where_the_paper_has_it_and_a_short_schedule_says_so():
    full = Recipe("convnet4", epochs=300)
    assert full.drops == [200, 250]
    assert "short" not in full.schedule
    short = replace(full, epochs=5)
    assert short.schedule == "5 epochs, rate 0.00025, a tenth of it after 3 and 4, a short schedule: the paper's is 300"
    training, rates = Training(Recipe(epochs=6, batch=90), blobs()), []
    for _ in range(6):
        training.advance()
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] + [1e-5])


def test_a_training_that_leaves_the_finite_numbers_has_no_loss():
    dataset = blobs()
    dataset.x_train[0, 0] = float("nan")
    training = Training(Recipe(), dataset)
    rows = [row for _ in range(2) if (row := training.advance())]
    assert rows[-1]["loss"] is None
    json.dumps(rows, allow_nan=False)


def test_what_is_saved_for_the_backward_is_counted_once_and_without_parameters():
    x = torch.randn(8, 4, requires_grad=True)
    layer = torch.nn.Linear(4, 4, bias=False)
    # x stands once though two layers save it; tanh saves its output; the weight is a parameter
    assert methods.saved_bytes(layer, lambda: layer(x).tanh() + layer(x.view(8, 4))) == 2 * x.nbytes
    sste, soft = (Training(Recipe(rule=rule), blobs()).saved_bytes() for rule in ("sste", "soft_hinge"))
    hidden = 64 * sum((256, 256))
    assert soft - sste == 4 * hidden - hidden // 8


# ------------------------------------------------------------------------------------------------ batches


def test_other_sets_than_cifar10_are_taken_as_they_are():
    dataset = blobs()
    x, y = Batches(dataset, 0, CPU).drawn(torch.tensor([3, 1]), 0, 0)
    assert torch.equal(x, dataset.x_train[[3, 1]])
    assert torch.equal(y, dataset.y_train[[3, 1]])


def test_a_cut_is_a_piece_of_the_framed_image():
    x = torch.arange(1.0, 2 * 3 * 25 + 1).view(2, 3, 5, 5)
    y = images.cut(x, torch.tensor([4, 0]), torch.tensor([4, 6]), torch.tensor([False, True]))
    assert torch.equal(y[0], x[0])
    expected = torch.nn.functional.pad(x[1], (4,) * 4)[:, 0:5, 6:11].flip(-1)
    assert torch.equal(y[1], expected)
    assert y.is_contiguous()


def test_cifar10_is_scaled_and_drawn_again_in_the_same_way():
    batches = Batches(pictures(), 0, CPU)
    rows = torch.arange(8)
    first, again, later = (batches.drawn(rows, *place)[0] for place in ((0, 0), (0, 0), (1, 0)))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    black = (torch.zeros(3) - torch.tensor(images.MEAN)) / torch.tensor(images.STD)
    corner = first.view(8, 3, 32, 32)[..., 0, 0]
    assert torch.isclose(corner, black, atol=1e-6).all(1).any()  # of the frame
    x, _ = next(batches.test())
    whole = pictures().x_test.view(-1, 3, 32, 32)
    unscaled = x.view(-1, 3, 32, 32) * torch.tensor(images.STD).view(3, 1, 1) + torch.tensor(images.MEAN).view(3, 1, 1)
    torch.testing.assert_close(unscaled, whole, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("method", ["soft_hinge", "saturated_relu"])
@pytest.mark.parametrize("network", ["convnet4", "convnet8"])
def test_the_papers_networks_take_cifar10s_images(network, method):
    training = Training(Recipe(network, method, epochs=1, batch=20), pictures())
    rows = [row for _ in range(2) if (row := training.advance())]
    assert rows[-1]["network"] == network
    assert rows[-1]["loss"] is not None
    assert training.saved_bytes() < Training(Recipe(network, "relu", batch=20), pictures()).saved_bytes() / 1.5


def test_they_take_no_other_images():
    with pytest.raises(ValueError, match=r"convnet4 takes images of 3 × 32 × 32; three blobs has 16 features"):
        Training(Recipe("convnet4"), blobs())
