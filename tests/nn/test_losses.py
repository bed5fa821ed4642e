"""Losses: hand values and definitions, winner-takes-all subgradients, special values and bad input; the temperature."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch.nn import functional

from tropigrad.nn import CVaRLoss, WorstSampleLoss, best_temperature
from tropigrad.nn.losses import tail

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


# ------------------------------------------------------------------------------------------------ CVaR


def sample_losses(scores, targets, kind, temperature=1.0, margin=1.0):
    """By the definitions, a sample at a time, in Python's numbers."""
    losses = []
    for f, y in zip(scores.tolist(), targets.tolist(), strict=True):
        if kind == "hinge":
            losses.append(max(0.0, max(margin + f[k] for k in range(len(f)) if k != y) - f[y]))
        else:
            losses.append(math.log(sum(math.exp((value - f[y]) / temperature) for value in f)))
    return losses


def mean_of_the_worst(losses, alpha):
    """By exact fractions: the weights sum to α N."""
    left = total = max(Fraction(1), Fraction(str(alpha)) * len(losses))
    mean = Fraction(0)
    for loss in sorted(losses, reverse=True):
        mean += min(left, Fraction(1)) * Fraction(loss) / total
        left -= min(left, Fraction(1))
    return float(mean)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.33, 0.1, 0.05, 0.02, 0.001])
@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_cvar_is_the_definition(kind, alpha):
    scores, targets = torch.randn(50, 6, dtype=torch.float64), torch.randint(6, (50,))
    loss = CVaRLoss(alpha, kind, temperature=0.5, margin=2.0)(scores, targets)
    expected = mean_of_the_worst(sample_losses(scores, targets, kind, 0.5, 2.0), alpha)
    assert loss.item() == pytest.approx(expected, rel=1e-14)


def test_the_last_sample_counts_by_a_fraction():
    scores = torch.tensor([[0.0, 4.0], [0.0, 1.0], [0.0, 2.0], [9.0, 0.0]], requires_grad=True)
    loss = CVaRLoss(0.375, "hinge")(scores, torch.zeros(4).long())  # losses 5, 2, 3, 0, and m = 1.5
    assert loss.item() == pytest.approx((5 + 3 / 2) / 1.5)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[:, 1].tolist() == pytest.approx([2 / 3, 0, 1 / 3, 0])


@pytest.mark.parametrize("alpha", [1 / 50, 0.01, 1e-12], ids=str)
@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_one_sample_or_less_is_the_worst_sample(kind, alpha):
    scores, targets = torch.randn(50, 6, requires_grad=True), torch.randint(6, (50,))
    ours, worst = CVaRLoss(alpha, kind)(scores, targets), WorstSampleLoss(kind=kind)(scores, targets)
    assert ours == worst
    assert torch.equal(torch.autograd.grad(ours, scores)[0], torch.autograd.grad(worst, scores)[0])


def test_all_samples_are_the_mean():
    scores, targets = torch.randn(50, 6, requires_grad=True), torch.randint(6, (50,))
    ours, theirs = CVaRLoss(temperature=0.125)(scores, targets), functional.cross_entropy(8 * scores, targets)
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(loss, scores)[0] for loss in (ours, theirs))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("alpha", "samples", "expected"),
    [(0.1, 30, (3, 0.0)), (0.7, 10, (7, 0.0)), (0.25, 10, (2, 0.5)), (0.01, 100, (0, 1.0)), (1e-9, 3, (0, 1.0))],
    ids=str,
)
def test_a_share_within_rounding_of_an_integer_is_one(alpha, samples, expected):
    assert tail(alpha, samples) == expected


@pytest.mark.parametrize("alpha", [0.5, 0.625], ids=["whole", "fractional"])
def test_ties_at_the_end_of_the_tail_go_to_the_first_samples(alpha):
    scores = torch.zeros(4, 3, requires_grad=True)
    loss = CVaRLoss(alpha)(scores, torch.tensor([0, 1, 2, 0]))
    (gradient,) = torch.autograd.grad(loss, scores)
    counted = gradient.abs().sum(dim=1)
    assert loss.item() == pytest.approx(math.log(3))
    assert counted[0] == counted[1] > 0
    assert (counted[2] > 0) == (alpha > 0.5)
    assert counted[3] == 0


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.3, 0.01])
@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("place", [0, 2], ids=["of the label", "of a rival"])
def test_cvar_propagates_nan(kind, alpha, place):
    scores = torch.zeros(8, 4)
    scores[5, place] = NAN
    assert CVaRLoss(alpha, kind)(scores, torch.zeros(8).long()).isnan()


@pytest.mark.parametrize("alpha", [0.5, 0.3], ids=["whole", "fractional"])
def test_an_infinite_loss_is_infinite(alpha):
    scores = torch.randn(8, 3)
    scores[2, 0] = float("-inf")
    assert CVaRLoss(alpha)(scores, torch.zeros(8).long()) == float("inf")


@pytest.mark.parametrize("alpha", [1.0, 0.4, 0.25, 0.05])
@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_cvar_gradcheck(kind, alpha):
    scores, targets = torch.randn(10, 4, dtype=torch.float64, requires_grad=True), torch.randint(4, (10,))
    assert torch.autograd.gradcheck(lambda f: CVaRLoss(alpha, kind, temperature=0.5)(f, targets), (scores,))


def test_a_learned_temperature_has_its_gradient():
    loss = CVaRLoss(0.45, temperature=0.25, learn_temperature=True).double()
    scores, targets = torch.randn(10, 4, dtype=torch.float64, requires_grad=True), torch.randint(4, (10,))

    def of(scores, log_temperature):
        return torch.func.functional_call(loss, {"log_temperature": log_temperature}, (scores, targets))

    assert loss.log_temperature is not None
    assert torch.autograd.gradcheck(of, (scores, loss.log_temperature))
    assert loss(scores, targets).item() == pytest.approx(CVaRLoss(0.45, temperature=0.25)(scores, targets).item())


def test_a_learned_temperature_finds_the_best_one():
    scores, targets = noisy_scores()
    loss = CVaRLoss(learn_temperature=True, temperature=2.0).double()
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(scores, targets)
        value.backward()
        return value

    optimizer.step(closure)
    assert loss.temperature == pytest.approx(best_temperature(scores, targets), rel=1e-5)


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_the_temperature_can_be_set_and_is_saved(learn):
    scores, targets = torch.randn(10, 4), torch.randint(4, (10,))
    loss = CVaRLoss(0.5, learn_temperature=learn)
    loss.temperature = 0.125
    assert loss.temperature == pytest.approx(0.125)
    other = CVaRLoss(0.5, learn_temperature=learn)
    other.load_state_dict(loss.state_dict())
    assert loss(scores, targets) == other(scores, targets) == copy.deepcopy(loss)(scores, targets)
    torch.testing.assert_close(loss(scores, targets), CVaRLoss(0.5)(8 * scores, targets))
    with pytest.raises(ValueError, match="CVaRLoss: temperature is -1"):
        loss.temperature = -1


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.25, 0.01])
@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_cvar_compiles_into_one_graph(kind, alpha):
    module = CVaRLoss(alpha, kind, temperature=0.5)
    scores, targets = torch.randn(20, 5, requires_grad=True), torch.randint(5, (20,))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, targets), module(scores, targets))
    for loss in (compiled, module):
        loss(scores, targets).backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad / 2, torch.autograd.grad(module(scores, targets), scores)[0])


def test_another_temperature_or_batch_is_not_compiled_from_the_start():
    module, frames = CVaRLoss(0.3, temperature=0.5), []

    def backend(graph, inputs):
        frames.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for samples, temperature in ((20, 0.5), (21, 0.25), (37, 0.125)):
        scores, targets = torch.randn(samples, 5), torch.randint(5, (samples,))
        module.temperature = temperature
        torch.testing.assert_close(compiled(scores, targets), module(scores, targets))
    assert len(frames) <= 2  # a fraction of a last sample, or none


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cvar_under_autocast_and_in_half_precision(dtype, alpha):
    scores, targets = torch.randn(200, 5), torch.randint(5, (200,))
    loss = CVaRLoss(alpha, temperature=0.5)
    expected = loss(scores, targets)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(loss(scores @ torch.eye(5), targets).float(), expected, rtol=0.03, atol=0)
    half = loss(scores.to(dtype), targets)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.3])
def test_a_mean_that_float16_holds_of_a_sum_that_it_does_not(alpha):
    scores = torch.tensor([[0.0, 100.0]]).expand(4000, 2).half()
    assert CVaRLoss(alpha)(scores, torch.zeros(4000).long()) == 100


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.01])
@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
def test_vmap_takes_one_cvar_of_each(kind, alpha):
    scores, targets = torch.randn(4, 20, 5), torch.randint(5, (4, 20))
    loss = CVaRLoss(alpha, kind)
    expected = torch.stack([loss(f, y) for f, y in zip(scores, targets, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(scores, targets), expected)


def test_another_default_device_changes_nothing_of_cvar():
    scores, targets = torch.randn(20, 5), torch.randint(5, (20,))
    with torch.device("meta"):
        loss = CVaRLoss(0.3, temperature=0.5)(scores, targets)
    assert loss == CVaRLoss(0.3, temperature=0.5)(scores, targets)


@pytest.mark.parametrize("kind", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_out_of_range_is_an_error_of_cvar(kind, label):
    low, high = min(0, label), max(0, label)
    with pytest.raises(IndexError, match=rf"CVaRLoss: targets span \[{low}, {high}\]; expected labels in \[0, 2\]"):
        CVaRLoss(0.5, kind)(torch.zeros(2, 3), torch.tensor([0, label]))


@pytest.mark.parametrize("loss", [CVaRLoss(), best_temperature], ids=["CVaRLoss", "best_temperature"])
@pytest.mark.parametrize(
    ("scores", "targets", "error", "match"),
    [
        pytest.param(torch.zeros(3), torch.zeros(3).long(), ValueError, r"scores have shape \(3,\)", id="rank"),
        pytest.param(torch.zeros(0, 3), torch.zeros(0).long(), ValueError, "N ≥ 1", id="no sample"),
        pytest.param(torch.zeros(3, 1), torch.zeros(3).long(), ValueError, "K ≥ 2", id="one class"),
        pytest.param(torch.zeros(3, 2), torch.zeros(4).long(), ValueError, r"\(4,\).*\[3\]", id="lengths"),
        pytest.param(torch.zeros(3, 2), torch.zeros(3), TypeError, "float32", id="float labels"),
        pytest.param(torch.zeros(3, 2), torch.full((3,), 2), IndexError, r"\[2, 2\].*\[0, 1\]", id="label"),
    ],
)
def test_bad_samples_are_named(loss, scores, targets, error, match):
    with pytest.raises(error, match=match):
        loss(scores, targets)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        pytest.param({"alpha": 0.0}, ValueError, r"alpha is 0.0; expected a share in \(0, 1\]", id="no share"),
        pytest.param({"alpha": 1.5}, ValueError, "alpha is 1.5", id="more than all"),
        pytest.param({"alpha": NAN}, ValueError, "alpha is nan", id="NaN share"),
        pytest.param({"alpha": None}, TypeError, "alpha is None; expected a number", id="no number"),
        pytest.param({"alpha": "hinge"}, TypeError, "the kind as kind='hinge'", id="kind in its place"),
        pytest.param({"kind": "squared"}, ValueError, "'squared'.*'hinge' or 'cross_entropy'", id="kind"),
        pytest.param({"temperature": 0.0}, ValueError, "temperature is 0.0", id="temperature"),
        pytest.param({"temperature": "hot"}, TypeError, "temperature is 'hot'", id="no temperature"),
        pytest.param({"margin": -1.0}, ValueError, "margin is -1.0", id="margin"),
        pytest.param({"kind": "hinge", "learn_temperature": True}, ValueError, "no temperature", id="hinge"),
    ],
)
def test_bad_options_of_cvar_are_named(options, error, match):
    with pytest.raises(error, match=match):
        CVaRLoss(**options)


def test_cvar_repr():
    assert repr(CVaRLoss(0.1, "hinge", margin=2)) == "CVaRLoss(alpha=0.1, kind='hinge', margin=2)"
    assert repr(CVaRLoss(temperature=0.5)) == "CVaRLoss(alpha=1, kind='cross_entropy', temperature=0.5)"
    assert repr(CVaRLoss(learn_temperature=True)).endswith("temperature=1, learn_temperature=True)")


# ------------------------------------------------------------------------------------------------ temperature


def noisy_scores(factor=1.0):
    """Scores whose best temperature is `factor`: labels are drawn by their softmax."""
    scores = 2 * torch.randn(20000, 5, dtype=torch.float64)
    return factor * scores, torch.multinomial(scores.softmax(dim=1), 1).squeeze(1)


@pytest.mark.parametrize("factor", [1e-3, 0.125, 1.0, 40.0])
def test_the_best_temperature_is_that_of_the_labels(factor):
    assert best_temperature(*noisy_scores(factor)) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_no_temperature_beside_the_best_has_a_lower_loss(dtype):
    scores, targets = torch.randn(300, 4).to(dtype), torch.randint(4, (300,))
    scores[torch.arange(300), targets] += 1
    best = best_temperature(scores, targets)

    def loss(temperature):
        return functional.cross_entropy(scores.double() / temperature, targets).item()

    assert all(loss(best) <= loss(best * other) + 1e-15 for other in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0))


def test_scaled_and_shifted_scores_have_a_scaled_temperature():
    scores, targets = noisy_scores()
    shifted = 8 * scores + 1000 * torch.randn(len(scores), 1, dtype=torch.float64)
    assert best_temperature(shifted, targets) == pytest.approx(8 * best_temperature(scores, targets), rel=1e-6)


def test_the_ends_of_the_range_of_temperatures():
    targets = torch.arange(40) % 4
    right = torch.eye(4)[targets]
    assert best_temperature(right, targets) == pytest.approx(1e-3)
    assert best_temperature(-right, targets) == pytest.approx(1e3)
    assert best_temperature(torch.ones(40, 4), targets) == 1.0


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
def test_scores_without_a_temperature_are_named(value):
    with pytest.raises(ValueError, match="best_temperature: scores hold NaN or infinite values"):
        best_temperature(torch.tensor([[0.0, value]]), torch.tensor([0]))
