"""WorstSampleLoss: hand values, the sparse winner-takes-all subgradient, special values and bad input."""

import pytest
import torch
from torch.nn import functional

from tropigrad.nn import WorstSampleLoss

NAN = float("nan")


def test_hinge_by_hand():
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.5, 2.0], [0.0, 0.0, 9.0]], requires_grad=True)
    # margins: 1 + 1 − 3 → 0;  1 + 2 − 0.5 = 2.5, the worst;  1 + 0 − 9 → 0
    loss = WorstSampleLoss()(scores, torch.tensor([0, 1, 2]))
    assert loss.item() == 2.5
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.tolist() == [[0, 0, 0], [0, -1, 1], [0, 0, 0]]


@pytest.mark.parametrize("margin", [0.5, 1.0, 4.0])
def test_hinge_is_the_definition(margin):
    scores, targets = torch.randn(50, 6, dtype=torch.float64), torch.randint(6, (50,))
    worst = max(
        max(0.0, max(margin + f[k] for k in range(6) if k != y) - f[y])
        for f, y in zip(scores.tolist(), targets.tolist(), strict=True)
    )
    assert WorstSampleLoss(margin)(scores, targets).item() == worst


def test_cross_entropy_is_the_worst_sample_s():
    scores, targets = torch.randn(50, 6, requires_grad=True), torch.randint(6, (50,))
    loss = WorstSampleLoss(kind="cross_entropy")(scores, targets)
    assert loss == functional.cross_entropy(scores, targets, reduction="none").max()
    (gradient,) = torch.autograd.grad(loss, scores)
    assert (gradient != 0).any(dim=1).sum() == 1


def test_ties_go_to_the_first_sample_and_the_first_rival():
    scores = torch.zeros(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(WorstSampleLoss()(scores, torch.tensor([1, 2, 3])), scores)
    assert gradient.tolist() == [[1, -1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_no_loss_no_gradient():
    scores = (10 * torch.eye(4)).requires_grad_()
    loss = WorstSampleLoss()(scores, torch.arange(4))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("place", [0, 2], ids=["of the label", "of a rival"])
@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_nan_propagates(kind, place):
    scores = torch.zeros(3, 4)
    scores[1, place] = NAN
    assert WorstSampleLoss(kind=kind)(scores, torch.zeros(3, dtype=torch.int64)).isnan()


def test_scaling_scores_and_margin_scales_the_loss():
    scores, targets = torch.randn(20, 5), torch.randint(5, (20,))
    assert WorstSampleLoss(4.0)(4 * scores, targets) == 4 * WorstSampleLoss(1.0)(scores, targets)


@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_compiles_into_one_graph(kind):
    module = WorstSampleLoss(kind=kind)
    scores, targets = torch.randn(20, 5), torch.randint(5, (20,))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, targets), module(scores, targets))


@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_out_of_range_is_an_error(kind, label):
    """−100 as well, which torch's own cross-entropy leaves out."""
    low, high = min(0, label), max(0, label)
    with pytest.raises(IndexError, match=rf"targets span \[{low}, {high}\]; expected labels in \[0, 2\]"):
        WorstSampleLoss(kind=kind)(torch.zeros(2, 3), torch.tensor([0, label]))


@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_vmap_takes_one_loss_of_each(kind):
    scores, targets = torch.randn(4, 20, 5), torch.randint(5, (4, 20))
    loss = WorstSampleLoss(kind=kind)
    expected = torch.stack([loss(f, y) for f, y in zip(scores, targets, strict=True)])
    assert torch.equal(torch.vmap(loss)(scores, targets), expected)


@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_another_default_device_changes_nothing(kind):
    scores, targets = torch.randn(20, 5), torch.randint(5, (20,))
    with torch.device("meta"):
        loss = WorstSampleLoss(kind=kind)(scores, targets)
    assert loss == WorstSampleLoss(kind=kind)(scores, targets)


@pytest.mark.parametrize(
    ("scores", "targets", "error", "match"),
    [
        pytest.param(torch.zeros(3), torch.zeros(3).long(), ValueError, r"scores have shape \(3,\)", id="rank"),
        pytest.param(torch.zeros(0, 3), torch.zeros(0).long(), ValueError, "N ≥ 1", id="no sample"),
        pytest.param(torch.zeros(3, 1), torch.zeros(3).long(), ValueError, "K ≥ 2", id="one class"),
        pytest.param(torch.zeros(3, 2), torch.zeros(4).long(), ValueError, r"\(4,\).*\[3\]", id="lengths"),
        pytest.param(torch.zeros(3, 2), torch.zeros(3), TypeError, "float32", id="float labels"),
    ],
)
def test_bad_input_is_named(scores, targets, error, match):
    with pytest.raises(error, match=match):
        WorstSampleLoss()(scores, targets)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"kind": "squared"}, "'squared'.*'hinge' or 'cross_entropy'", id="kind"),
        pytest.param({"margin": 0.0}, "margin is 0.0", id="no margin"),
        pytest.param({"margin": NAN}, "margin is nan", id="NaN margin"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        WorstSampleLoss(**options)


@pytest.mark.parametrize("margin", ["cross_entropy", None, True, torch.ones(2)], ids=str)
def test_a_margin_that_is_no_number_is_named(margin):
    with pytest.raises(TypeError, match=r"WorstSampleLoss: margin is .*; expected a number"):
        WorstSampleLoss(margin)


def test_a_kind_in_the_margin_s_place_is_told_its_own():
    with pytest.raises(TypeError, match="expected a number, and the kind as kind='cross_entropy'"):
        WorstSampleLoss("cross_entropy")  # pyright: ignore


def test_repr():
    assert repr(WorstSampleLoss(2.0)) == "WorstSampleLoss(margin=2, kind='hinge')"
