"""L1Continuation and L1Sweep: stationary points of a convex problem, fronts of small networks, resumption, errors."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tropigrad.optim import L1Continuation, L1Sweep

SHORT: dict[str, Any] = {
    "first_steps": 20,
    "dense_points": 2,
    "sparse_points": 3,
    "predictor_steps": 2,
    "correctors": 5,
}


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)).to(dtype)


def batches(n: int = 60, size: int = 20, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    y = (x[:, :3] + 0.3 * torch.randn(n, 3, generator=generator)).argmax(1)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, n, size)]


def loader() -> torch.utils.data.DataLoader:
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)


def walked(make, **options):
    return make(network(), cross_entropy, **options).run(loader(), batches(seed=1), progress=False)


KINDS = {
    "mpg": lambda model, loss, **k: L1Continuation(model, loss, **SHORT, **k),
    "mpg-spacing": lambda model, loss, **k: L1Continuation(model, loss, **SHORT, spacing=0.1, **k),
    "sgd": lambda model, loss, **k: L1Continuation(model, loss, **SHORT, predictor="sgd", predictor_lr=0.1, **k),
    "held": lambda model, loss, **k: L1Continuation(model, loss, **SHORT, corrector="held", **k),
    "sweep": lambda model, loss, **k: L1Sweep(model, loss, points=5, most=0.1, first_steps=20, correctors=5, **k),
}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)

# ------------------------------------------------------------------------------------------------ a convex problem


def _drawn():
    """400 rows of 30 features, correlated by a common part, whose labels hang on six of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 30, generator=generator, dtype=torch.float64)
    x = x + 0.5 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, generator=generator, dtype=torch.float64)
    return x, (x[:, :6] @ torch.tensor([2.0, -2, 1, -1, 0.5, -0.5], dtype=x.dtype) + noise > 0).double()


def _breast_cancer():
    """Standardised, 569 rows of 30 features, which are nearly dependent: condition number 1e5."""
    data = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0))
    return x, torch.tensor(data.target, dtype=torch.float64)


def _loss(output, y):
    return binary_cross_entropy_with_logits(output[:, 0], y)


def _linear(features: int) -> nn.Linear:
    model = nn.Linear(features, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.05)
    return model


def _gradient(x, y, w):
    return x.T @ ((x @ w).sigmoid() - y) / len(y)


@pytest.mark.parametrize(
    ("data", "gap", "kkt"), [(_drawn, 1e-5, 1e-4), (_breast_cancer, 1e-4, 1e-3)], ids=["drawn", "breast-cancer"]
)
def test_points_of_a_convex_problem_are_those_of_the_lasso_at_their_own_weight(data, gap, kkt):
    """The objective is scikit-learn's, to a small share; KKT holds within a share of the largest λ; zeros are exact."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = data()
    model = _linear(x.shape[1])
    walk = L1Continuation(
        model, _loss, h=0.5, first_steps=200, dense_points=2, sparse_points=3, predictor_steps=3,
        predictor_lr=0.01, shrinkage=0.03, shrinkages=1, correctors=200,
    )  # fmt: skip
    front = walk.run([(x, y)], progress=False)
    largest = float(_gradient(x, y, torch.zeros(x.shape[1], dtype=x.dtype)).abs().max())
    assert len(front) == 6
    for i, point in enumerate(front):
        front.load(i)
        assert point.lam is not None
        assert point.nnz is not None
        w, lam = model.weight.detach()[0], point.lam
        d = _gradient(x, y, w)
        assert int((w == 0).sum()) == x.shape[1] - point.nnz
        assert float((d.abs() - lam)[w == 0].clamp(min=0).max().nan_to_num() if (w == 0).any() else 0) <= kkt * largest
        assert float((d + lam * w.sign())[w != 0].abs().max()) <= kkt * largest
        solver = linear_model.LogisticRegression(
            C=1 / (lam * len(y)), l1_ratio=1, solver="saga", fit_intercept=False, tol=1e-9, max_iter=100_000
        ).fit(x.numpy(), y.numpy())
        theirs = torch.tensor(solver.coef_[0])

        def objective(w, lam=lam):
            return float(binary_cross_entropy_with_logits(x @ w, y) + lam * w.abs().sum())

        assert objective(w) <= objective(theirs) * (1 + gap)


def test_a_sweep_of_a_convex_problem_is_the_lasso_path():
    x, y = _drawn()
    model = _linear(x.shape[1])
    walk = L1Sweep(model, _loss, lambdas=[0.01, 0.03, 0.1], h=0.2, first_steps=400, correctors=300)
    for i, point in enumerate(walk.run([(x, y)], progress=False)):
        walk.front.load(i)
        w = model.weight.detach()[0]
        d = _gradient(x, y, w)
        lam = [0.01, 0.03, 0.1][i]
        assert point.lam == lam
        assert float((d + lam * w.sign())[w != 0].abs().max()) <= 1e-6
        assert float(d[w == 0].abs().max()) <= lam + 1e-6


# ------------------------------------------------------------------------------------------------ walks


@each_kind
def test_a_walk_gives_its_points_with_weights_that_load(make):
    front = walked(make)
    assert 3 <= len(front) <= 6
    for i, point in enumerate(front):
        front.load(i)
        parameters = list(front.model.parameters())
        assert point.l1 == pytest.approx(sum(p.detach().double().abs().sum().item() for p in parameters))
        assert point.nnz == sum(int(p.count_nonzero()) for p in parameters)
        front.model.eval()
        rows = batches(seed=1)
        losses = torch.stack([cross_entropy(front.model(x), y).double() for x, y in rows])
        assert point.val_loss == pytest.approx(float(losses.mean().detach()))
        assert point.val_error == pytest.approx(float(losses.std().detach()) / math.sqrt(len(rows)))


def test_the_phases_go_from_the_middle_to_both_ends():
    front = walked(KINDS["held"])
    phases = [point.phase for point in front]
    assert phases[:3] == ["start", "dense", "dense"]
    assert set(phases[3:]) == {"sparse"}
    lams = [point.lam for point in front]
    assert lams[0] > lams[1] > lams[2]
    assert lams[0] < lams[3]


@each_kind
def test_two_walks_with_one_seed_give_the_same_bits_and_leave_torchs_generator_alone(make):
    torch.manual_seed(7)
    first = walked(make)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = network()
    torch.set_rng_state(before)
    second = make(model, cross_entropy).run(loader(), batches(seed=1), progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert _facts(first) == _facts(second)
    assert _facts(walked(make, seed=1)) != _facts(first)


def _facts(front):
    return [(p.loss, p.l1, p.nnz, p.lam, p.val_loss, p.phase, p.epochs) for p in front]


def test_spacing_sets_the_ratio_of_sparse_norms():
    walk = L1Continuation(
        network(), cross_entropy, **{**SHORT, "dense_points": 0, "correctors": 1}, spacing=0.3, h=1e-9
    )
    norms = [point.l1 for point in walk.run(batches(), progress=False)]
    assert [after / before for before, after in itertools.pairwise(norms)] == pytest.approx([0.7] * 3, rel=1e-5)


def test_what_is_not_penalised_is_in_no_norm_and_not_shrunk():
    walk = L1Continuation(
        network(),
        cross_entropy,
        **{**SHORT, "dense_points": 0},
        shrinkage=10.0,
        penalize=lambda name: "bias" not in name,
    )
    front = walk.run(batches(), progress=False)
    front.load(-1)
    assert front[-1].l1 == 0
    assert all(int(p.count_nonzero()) == p.numel() for name, p in walk.model.named_parameters() if "bias" in name)
    assert front.penalized == {"0.weight", "3.weight"}


def test_zero_is_the_end_of_a_path():
    walk = L1Continuation(network(), cross_entropy, **{**SHORT, "dense_points": 0, "sparse_points": 9}, shrinkage=10.0)
    assert [point.l1 > 0 for point in walk.run(batches(), progress=False)] == [True, False]


@each_kind
def test_progress_is_told_after_each_epoch(make):
    told = []
    front = make(network(), cross_entropy).run(batches(), progress=lambda *args: told.append(args))
    assert len(told) == front[-1].epochs
    assert [done for done, _, what in told if "nonzeros" in what] == list(range(1, len(front) + 1))


def test_points_are_printed_as_they_come(capsys):
    KINDS["sweep"](network(), cross_entropy).run(batches())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("point 1 of 5: loss ")


# ------------------------------------------------------------------------------------------------ ends before the end


class Stops(Exception):
    pass


@each_kind
def test_a_walk_that_is_continued_gives_the_same_bits(make, tmp_path, monkeypatch):
    monkeypatch.setattr("tropigrad.optim.l1_continuation.tracing._CHECKPOINT_SECONDS", 0.0)
    whole = walked(make)
    epochs = iter(range(10**9))
    stops_at = {7, 25, 35}

    def progress(done, total, what):
        if next(epochs) in stops_at:
            raise Stops

    model = network()
    for stop in (True, True, True, False):
        walk = make(model, cross_entropy)
        if not stop:
            continued = walk.run(loader(), batches(seed=1), progress=progress, checkpoint=tmp_path)
            continue
        with pytest.raises(Stops):
            walk.run(loader(), batches(seed=1), progress=progress, checkpoint=tmp_path)
        model = network(seed=5)  # its weights come from the checkpoint
    assert _facts(continued) == _facts(whole)
    for i in range(len(whole)):
        whole.load(i)
        ours = [p.detach().clone() for p in whole.model.parameters()]
        continued.load(i)
        assert all(torch.equal(p, q) for p, q in zip(ours, continued.model.parameters(), strict=True))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_walk_that_was_killed_is_continued_to_the_same_bits(tmp_path):
    code = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import test_continuation as t
        from tropigrad.optim.l1_continuation import tracing
        tracing._CHECKPOINT_SECONDS = 0.0
        walk = t.KINDS["mpg"](t.network(), t.cross_entropy)
        walk.run(t.loader(), t.batches(seed=1), progress=lambda *args: print(*args, flush=True), checkpoint=sys.argv[1])
        """
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(27):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    continued = KINDS["mpg"](network(seed=5), cross_entropy).run(
        loader(), batches(seed=1), progress=False, checkpoint=tmp_path
    )
    assert _facts(continued) == _facts(walked(KINDS["mpg"]))


def test_a_finished_walk_is_read_from_its_checkpoint(tmp_path):
    first = KINDS["sweep"](network(), cross_entropy).run(batches(), progress=False, checkpoint=tmp_path)
    told = []
    again = KINDS["sweep"](network(seed=1), cross_entropy).run(
        batches(), progress=lambda *args: told.append(args), checkpoint=tmp_path
    )
    assert _facts(again) == _facts(first)
    assert told == []


@each_kind
def test_what_is_not_finite_ends_the_walk_with_its_points_and_good_weights(make):
    rows, calls = batches(), iter(range(10**9))

    def loss(output, y):
        return cross_entropy(output, y) * (math.nan if next(calls) == 120 else 1)

    walk = make(network(), loss)
    with pytest.raises(ValueError, match=r"the loss is not finite \(phase .*, point .*, epoch .*, batch [012]\)"):
        walk.run(rows, progress=False)
    assert len(walk.front) >= 1
    assert all(p.isfinite().all() for p in walk.model.parameters())


def test_a_gradient_that_is_not_finite_is_named():
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return dy * math.inf

    walk = KINDS["mpg"](network(), lambda output, y: cross_entropy(Breaks.apply(output), y))
    before = [p.detach().clone() for p in walk.model.parameters()]
    with pytest.raises(ValueError, match=r"the gradient is not finite \(phase start, point 0, epoch 0, batch 0\)"):
        walk.run(batches(), progress=False)
    assert all(torch.equal(p, q) for p, q in zip(walk.model.parameters(), before, strict=True))


def test_ctrl_c_keeps_the_points_and_the_last_good_weights():
    def progress(done, total, what):
        if done == 2:
            raise KeyboardInterrupt

    walk = KINDS["mpg"](network(), cross_entropy)
    with pytest.raises(KeyboardInterrupt):
        walk.run(batches(), progress=progress)
    assert len(walk.front) == 2
    l1 = sum(p.detach().double().abs().sum().item() for p in walk.model.parameters())
    assert l1 == pytest.approx(walk.front[-1].l1)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    KINDS["sweep"](network(), cross_entropy).run(batches(), progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"is of another run: h 0\.1, now 0\.2"):
        KINDS["sweep"](network(), cross_entropy, h=0.2).run(batches(), progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="is of another run: class 'L1Sweep', now 'L1Continuation'"):
        KINDS["mpg"](network(), cross_entropy).run(batches(), progress=False, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="is of another run: model "):
        KINDS["sweep"](nn.Linear(6, 3), cross_entropy).run(batches(), progress=False, checkpoint=tmp_path)
    (tmp_path / "state.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint of this class"):
        KINDS["sweep"](network(), cross_entropy).run(batches(), progress=False, checkpoint=tmp_path)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"h": 0.0}, "h is 0.0; expected a positive finite number"),
        ({"h": math.nan}, "h is nan; expected a positive finite number"),
        ({"spacing": 0.0}, r"spacing is 0.0; expected a number in \(0, 1\], or None"),
        ({"spacing": 1.5}, r"spacing is 1.5; expected a number in \(0, 1\], or None"),
        ({"first_steps": 0}, "first_steps is 0; expected an integer of at least 1"),
        ({"correctors": 1.5}, "correctors is 1.5; expected an integer of at least 1"),
        ({"dense_points": -1}, "dense_points is -1; expected an integer of at least 0"),
        ({"predictor": "lbfgs"}, "predictor is 'lbfgs'; expected 'adam' or 'sgd'"),
        ({"corrector": "apg"}, "corrector is 'apg'; expected 'mpg' or 'held'"),
        ({"penalize": lambda name: False}, "penalize takes none of 0.weight"),
    ],
)
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        L1Continuation(network(), cross_entropy, **options)


def test_models_and_loaders_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="model has no parameter that requires a gradient"):
        L1Continuation(nn.ReLU(), cross_entropy)
    with pytest.raises(TypeError, match=r"0\.weight is torch\.bfloat16; expected float32 or float64"):
        L1Sweep(network(dtype=torch.bfloat16), cross_entropy)
    with pytest.raises(ValueError, match="loader gives no batch"):
        KINDS["mpg"](network(), cross_entropy).run([], progress=False)
    with pytest.raises(TypeError, match=r"loader gives a Tensor; expected pairs \(x, y\)"):
        KINDS["mpg"](network(), cross_entropy).run([torch.zeros(3, 6)], progress=False)
    with pytest.raises(ValueError, match=r"lambdas is .*; expected one number at least, ascending"):
        L1Sweep(network(), cross_entropy, lambdas=[0.1, 0.01])
    with pytest.raises(ValueError, match="points is 0; expected an integer of at least 1"):
        L1Sweep(network(), cross_entropy, points=0)
